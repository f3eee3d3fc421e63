// The wrappers of ../hopper.cuh on the emulated device, where what they say is written.
#pragma once
#include "simt.h"

DEVICE u8* aligned_shared() { return simt::aligned_shared(); }

DEVICE void init_barrier(u64* barrier, u32 arrivals) { simt::init_barrier(barrier, arrivals); }
DEVICE void fence_barriers() { simt::fence_barriers(); }
DEVICE void arrive(u64* barrier) { simt::arrive(barrier, 0); }
DEVICE void arrive_expect(u64* barrier, u32 bytes) { simt::arrive(barrier, bytes); }
DEVICE void wait_barrier(u64* barrier, u32 phase) { simt::wait_barrier(barrier, phase); }
DEVICE void copy_bulk(void* shared, const void* global, u32 bytes, u64* barrier, bool = false) {
    simt::copy_bulk(shared, global, bytes, barrier);
}
DEVICE void copy_tensor(void* shared, const TensorMap& map, u32 x, u32 y, u64* barrier) {
    simt::copy_tensor(shared, &map, x, y, barrier);
}
DEVICE void fence_async() { simt::fence_async(); }
DEVICE void sync_group(u32 id, u32 threads) { simt::sync_group(id, threads); }

template <u32 N>
DEVICE void drop_registers() {
    static_assert(N % 8 == 0 && N >= 24 && N <= 256, "no such number of registers");
}
template <u32 N>
DEVICE void claim_registers() {
    static_assert(N % 8 == 0 && N >= 24 && N <= 256, "no such number of registers");
}

DEVICE u64 tile_descriptor(const void* shared, u32 leading_bytes, u32 stride_bytes) {
    return simt::tile_descriptor(shared, leading_bytes, stride_bytes);
}
DEVICE void wgmma_fence() { simt::wgmma_fence(); }
DEVICE void wgmma_commit() { simt::wgmma_commit(); }
template <int N>
DEVICE void wgmma_wait() {
    simt::wgmma_wait(N);
}
template <u32 N>
DEVICE void pin_registers(float (&)[N]) {}
template <u32 N>
DEVICE void pin_registers(u32 (&)[N]) {}

template <u32 N>
constexpr bool realm_wgmma_size =
    N == 16 || N == 32 || N == 64 || N == 96 || N == 128 || N == 192 || N == 256;

#define REALM_WGMMA(name, bf16)                                                              \
    template <u32 N, bool B_TRANSPOSED = false>                                              \
    DEVICE void name(float (&d)[N / 2], const u32(&a)[4], u64 b, bool add = true) {          \
        static_assert(realm_wgmma_size<N>, "no such wgmma");                                 \
        simt::wgmma({{N, bf16, B_TRANSPOSED, add, false, 0, b}, {a[0], a[1], a[2], a[3]}, d}); \
    }                                                                                        \
    template <u32 N, bool B_TRANSPOSED = false>                                              \
    DEVICE void name(float (&d)[N / 2], u64 a, u64 b, bool add = true) {                     \
        static_assert(realm_wgmma_size<N>, "no such wgmma");                                 \
        simt::wgmma({{N, bf16, B_TRANSPOSED, add, true, a, b}, {}, d});                      \
    }
REALM_WGMMA(wgmma_bf16, true)
REALM_WGMMA(wgmma_f16, false)
#undef REALM_WGMMA
