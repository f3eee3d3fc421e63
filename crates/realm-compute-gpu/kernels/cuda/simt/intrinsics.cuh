// The wrappers of ../intrinsics.cuh on the emulated device, where what they say is written.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstring>

#include "numbers.h"
#include "simt.h"

#define DEVICE inline __attribute__((always_inline))
#define __device__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))

#define KERNEL(name, Params, threads) REALM_KERNEL(name, Params, threads)
#define KERNEL_BLOCKS(name, Params, threads, blocks) REALM_KERNEL(name, Params, threads)
#define REALM_KERNEL(name, Params, threads)                                                        \
    static void name(const Params& p);                                                             \
    static_assert(sizeof(Params) <= 4096, "a kernel takes at most 4096 bytes of parameters");      \
    static simt::Kernel name##_entry{REALM_UNIT, #name, sizeof(Params), threads,                   \
                                     [](const void* p) { name(*static_cast<const Params*>(p)); }}; \
    static __attribute__((noinline)) void name(const Params& p)

DEVICE u32 thread_index() { return simt::thread(); }
DEVICE u32 thread_count() { return simt::threads(); }
DEVICE u32 lane() { return simt::thread() % 32; }
DEVICE u32 warp() { return simt::thread() / 32; }
DEVICE u32 block_x() { return simt::block(0); }
DEVICE u32 block_y() { return simt::block(1); }
DEVICE u32 block_z() { return simt::block(2); }
DEVICE u32 grid_x() { return simt::grid(0); }
DEVICE u32 grid_y() { return simt::grid(1); }
DEVICE u32 grid_z() { return simt::grid(2); }

DEVICE void sync_block() { simt::barrier(); }
DEVICE void sync_warp() { simt::sync_warp(); }

DEVICE u32 shuffle(u32 v, u32 from) { return simt::shuffle(v, from % 32); }
DEVICE i32 shuffle(i32 v, u32 from) { return i32(shuffle(u32(v), from)); }
DEVICE float shuffle(float v, u32 from) {
    return simt::bits_float(shuffle(simt::float_bits(v), from));
}
DEVICE u64 shuffle(u64 v, u32 from) { return simt::shuffle8(v, from % 32); }
DEVICE double shuffle(double v, u32 from) {
    u64 bits;
    memcpy(&bits, &v, 8);
    bits = shuffle(bits, from);
    memcpy(&v, &bits, 8);
    return v;
}
#define REALM_SHUFFLES(T)                                                   \
    DEVICE T shuffle_xor(T v, u32 mask) {                                   \
        if (mask >= 32) simt::fail("a shuffle_xor with mask %u", mask);     \
        return shuffle(v, lane() ^ mask);                                   \
    }                                                                       \
    DEVICE T shuffle_down(T v, u32 n) {                                     \
        return shuffle(v, n < 32 && lane() + n < 32 ? lane() + n : lane()); \
    }
REALM_SHUFFLES(u32)
REALM_SHUFFLES(i32)
REALM_SHUFFLES(float)
REALM_SHUFFLES(u64)
REALM_SHUFFLES(double)
#undef REALM_SHUFFLES

DEVICE u32 ballot(bool value) { return simt::ballot(value); }
DEVICE bool any(bool value) { return simt::ballot(value) != 0; }
DEVICE bool all(bool value) { return simt::ballot(value) == 0xffffffffu; }

#define SHARED(type, name, count)      \
    static const char name##_site = 0; \
    type(&name)[count] =               \
        *static_cast<type(*)[count]>(simt::shared_array(&name##_site, sizeof(type) * (count)))

DEVICE u8* dynamic_shared() { return simt::dynamic_shared(); }

DEVICE void copy_async4(void* shared, const void* global) { simt::copy_async(shared, global, 4); }
DEVICE void copy_async8(void* shared, const void* global) { simt::copy_async(shared, global, 8); }
DEVICE void copy_async16(void* shared, const void* global) { simt::copy_async(shared, global, 16); }
DEVICE void copy_async16_stream(void* shared, const void* global) {
    simt::copy_async(shared, global, 16);
}
DEVICE void copy_async16_cached(void* shared, const void* global) {
    simt::copy_async(shared, global, 16);
}
DEVICE void make_arrival(u64* barrier) { simt::init_barrier(barrier, 1); }
DEVICE void copy_bulk_stream(void* shared, const void* global, u32 bytes, u64* barrier,
                             bool = false) {
    simt::copy_bulk_stream(shared, global, bytes, barrier);
}
DEVICE void wait_arrival(u64* barrier, u32 phase) { simt::wait_barrier(barrier, phase); }
DEVICE void commit_async() { simt::commit_async(); }
template <int N>
DEVICE void wait_async() {
    simt::wait_async(N);
}

DEVICE u32x4 load_stream16(const void* global) {
    const simt::Words v = simt::load_stream16(global);
    return {u32(v.low), u32(v.low >> 32), u32(v.high), u32(v.high >> 32)};
}

template <int N>
DEVICE void realm_load_matrix(u32 (&r)[N], const void* row, bool transposed) {
    const simt::Registers loaded = simt::load_matrix(N, row, transposed);
    for (int i = 0; i < N; i++) r[i] = loaded.r[i];
}
DEVICE void load_matrix_x2(u32 (&r)[2], const void* row) { realm_load_matrix(r, row, false); }
DEVICE void load_matrix_x2_trans(u32 (&r)[2], const void* row) { realm_load_matrix(r, row, true); }
DEVICE void load_matrix_x4(u32 (&r)[4], const void* row) { realm_load_matrix(r, row, false); }
DEVICE void load_matrix_x4_trans(u32 (&r)[4], const void* row) { realm_load_matrix(r, row, true); }

#define REALM_MMA(name)                                                             \
    DEVICE void name(float (&d)[4], const u32(&a)[4], u32 b0, u32 b1) {             \
        const simt::Sums sums =                                                     \
            simt::name({{d[0], d[1], d[2], d[3]}}, a[0], a[1], a[2], a[3], b0, b1); \
        for (int i = 0; i < 4; i++) d[i] = sums.d[i];                               \
    }
REALM_MMA(mma_bf16)
REALM_MMA(mma_f16)
#undef REALM_MMA

DEVICE u32 float_bits(float value) { return simt::float_bits(value); }
DEVICE float bits_float(u32 bits) { return simt::bits_float(bits); }
DEVICE u16 bf16_bits(float value) { return simt::bf16_bits(value); }
DEVICE float bf16_value(u16 bits) { return bits_float(u32(bits) << 16); }
DEVICE u16 f16_bits(float value) { return simt::f16_bits(value); }
DEVICE float f16_value(u16 bits) { return simt::f16_value(bits); }
DEVICE u32 pack_bf16(float low, float high) { return bf16_bits(low) | u32(bf16_bits(high)) << 16; }
DEVICE u32 pack_f16(float low, float high) { return f16_bits(low) | u32(f16_bits(high)) << 16; }
DEVICE u32 sub_bf16x2(u32 a, u32 b) {
    // f32 has more than twice the bits: its rounding does not show after the second one.
    return pack_bf16(bf16_value(u16(a)) - bf16_value(u16(b)),
                     bf16_value(u16(a >> 16)) - bf16_value(u16(b >> 16)));
}
DEVICE u32 sub_f16x2(u32 a, u32 b) {
    return pack_f16(f16_value(u16(a)) - f16_value(u16(b)),
                    f16_value(u16(a >> 16)) - f16_value(u16(b >> 16)));
}
DEVICE u32 byte_perm(u32 a, u32 b, u32 selector) {
    const u64 bytes = u64(b) << 32 | a;
    u32 d = 0;
    for (u32 i = 0; i < 4; i++) d |= u32(bytes >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
    return d;
}

DEVICE u32 and_or(u32 a, u32 mask, u32 b) { return (a & mask) | b; }
DEVICE u32 and_xor(u32 a, u32 mask, u32 b) { return (a & mask) ^ b; }
DEVICE u32 select_bits(u32 mask, u32 a, u32 b) { return (a & mask) | (b & ~mask); }

DEVICE u32 atomic_add(u32* to, u32 value) { return simt::atomic_add(to, value); }
DEVICE i32 atomic_add(i32* to, i32 value) {
    return i32(simt::atomic_add(reinterpret_cast<u32*>(to), u32(value)));
}
DEVICE u64 atomic_add(u64* to, u64 value) { return simt::atomic_add(to, value); }
DEVICE u32 atomic_max(u32* to, u32 value) { return simt::atomic_max(to, value); }
DEVICE u32 atomic_min(u32* to, u32 value) { return simt::atomic_min(to, value); }

DEVICE void wait_for_predecessor() { simt::wait_for_predecessor(); }
DEVICE void let_successor_start() {}

// CUDA's functions that <cmath> lacks.
DEVICE float rsqrtf(float x) { return 1.0f / sqrtf(x); }
#define REALM_MIN_MAX(T)                             \
    DEVICE T min(T a, T b) { return b < a ? b : a; } \
    DEVICE T max(T a, T b) { return a < b ? b : a; }
REALM_MIN_MAX(u32)
REALM_MIN_MAX(i32)
REALM_MIN_MAX(u64)
REALM_MIN_MAX(i64)
#undef REALM_MIN_MAX
DEVICE float min(float a, float b) { return fminf(a, b); }
DEVICE float max(float a, float b) { return fmaxf(a, b); }
DEVICE double min(double a, double b) { return fmin(a, b); }
DEVICE double max(double a, double b) { return fmax(a, b); }

#include "hopper.cuh"
