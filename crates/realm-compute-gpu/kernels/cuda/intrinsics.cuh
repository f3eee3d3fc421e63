// What kernels may use of CUDA, and nothing else: every wrapper has a version in PTX for the device
// and one in simt/intrinsics.cuh for the emulated device, with the same results to the last bit.
//
// indices      thread_index() thread_count() lane() warp() block_x|y|z() grid_x|y|z()
// barriers     sync_block() sync_warp() sync_group(id, threads)
//              init_barrier(barrier, arrivals) fence_barriers() arrive(barrier)
//              arrive_expect(barrier, bytes) wait_barrier(barrier, phase) fence_async()
// warp         shuffle(v, lane) shuffle_xor(v, mask) shuffle_down(v, n): u32, i32, float, u64,
//              double; ballot(b) any(b) all(b). Always the whole warp: every lane must come
// shared       SHARED(type, name, count) dynamic_shared() aligned_shared()
// copies       copy_async4|8|16(shared, global) copy_async16_stream(shared, global)
//              copy_async16_cached(shared, global) commit_async() wait_async<N>()
//              make_arrival(barrier) copy_bulk_stream(shared, global, bytes, barrier, again)
//              wait_arrival(barrier, phase) load_stream16(global)
//              copy_bulk(shared, global, bytes, barrier, stream) copy_tensor(shared, map, x, y, barrier)
// matrices     load_matrix_x2|x4(r, row) load_matrix_x2|x4_trans(r, row) mma_bf16|f16(d, a, b0, b1)
//              wgmma_bf16|f16<N, B_TRANSPOSED>(d, a, b, add) wgmma_fence() wgmma_commit()
//              wgmma_wait<N>() tile_descriptor(shared, leading_bytes, stride_bytes)
// registers    drop_registers<N>() claim_registers<N>() pin_registers(array)
// numbers      bf16_bits bf16_value f16_bits f16_value pack_bf16 pack_f16 sub_bf16x2 sub_f16x2
//              byte_perm and_or and_xor select_bits float_bits bits_float
// atomics      atomic_add(u32*|i32*|u64*) atomic_max(u32*) atomic_min(u32*): the old value
// launches     wait_for_predecessor() let_successor_start()
//
// The mathematical functions are CUDA's own, on the emulated device those of <cmath>.
#pragma once

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i8 = signed char;
using i16 = short;
using i32 = int;
using i64 = long long;

struct alignas(8) u32x2 {
    u32 x, y;
};
struct alignas(16) u32x4 {
    u32 x, y, z, w;
};
struct alignas(8) f32x2 {
    float x, y;
};
struct alignas(16) f32x4 {
    float x, y, z, w;
};

// What copy_tensor copies from: made by the host (`Gpu::tensor_map`), a part of a kernel's parameter.
struct alignas(64) TensorMap {
    u8 bytes[128];
};

#ifdef REALM_EMULATED
#include "simt/intrinsics.cuh"
#else

#define DEVICE __device__ __forceinline__

// A kernel: its one parameter is `p`, its blocks have at most `threads` threads.
#define KERNEL(name, Params, threads) \
    extern "C" __global__ void __launch_bounds__(threads) name(const __grid_constant__ Params p)

// One that leaves room for `blocks` blocks on a multiprocessor.
#define KERNEL_BLOCKS(name, Params, threads, blocks)             \
    extern "C" __global__ void __launch_bounds__(threads, blocks) \
        name(const __grid_constant__ Params p)

DEVICE u32 thread_index() { return threadIdx.x; }
DEVICE u32 thread_count() { return blockDim.x; }
DEVICE u32 lane() { return threadIdx.x % 32; }
DEVICE u32 warp() { return threadIdx.x / 32; }
DEVICE u32 block_x() { return blockIdx.x; }
DEVICE u32 block_y() { return blockIdx.y; }
DEVICE u32 block_z() { return blockIdx.z; }
DEVICE u32 grid_x() { return gridDim.x; }
DEVICE u32 grid_y() { return gridDim.y; }
DEVICE u32 grid_z() { return gridDim.z; }

DEVICE void sync_block() { __syncthreads(); }
DEVICE void sync_warp() { __syncwarp(); }

constexpr u32 FULL_WARP = 0xffffffffu;

#define REALM_SHUFFLES(T)                                                                    \
    DEVICE T shuffle(T v, u32 from) { return __shfl_sync(FULL_WARP, v, int(from)); }         \
    DEVICE T shuffle_xor(T v, u32 mask) { return __shfl_xor_sync(FULL_WARP, v, int(mask)); } \
    DEVICE T shuffle_down(T v, u32 n) { return __shfl_down_sync(FULL_WARP, v, n); }
REALM_SHUFFLES(u32)
REALM_SHUFFLES(i32)
REALM_SHUFFLES(float)
REALM_SHUFFLES(u64)
REALM_SHUFFLES(double)
#undef REALM_SHUFFLES

// Macros: CUDA has functions of these names, for devices whose warps could not diverge.
#define ballot(value) __ballot_sync(FULL_WARP, value)
#define any(value) (__any_sync(FULL_WARP, value) != 0)
#define all(value) (__all_sync(FULL_WARP, value) != 0)

// A shared array of the block. Its contents are undefined at first.
#define SHARED(type, name, count) __shared__ alignas(16) type name[count]

// The shared memory that the launch asked for, aligned to 16 bytes.
DEVICE u8* dynamic_shared() {
    extern __shared__ __align__(16) u8 realm_dynamic_shared[];
    return realm_dynamic_shared;
}
// The same, aligned to 1024 bytes, for a kernel with tiles for wgmma. A kernel calls one of the two.
DEVICE u8* aligned_shared() {
    extern __shared__ __align__(1024) u8 realm_aligned_shared[];
    return realm_aligned_shared;
}

DEVICE u32 shared_address(const void* shared) { return u32(__cvta_generic_to_shared(shared)); }

DEVICE void copy_async4(void* shared, const void* global) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(shared)),
                 "l"(__cvta_generic_to_global(global))
                 : "memory");
}
DEVICE void copy_async8(void* shared, const void* global) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(shared_address(shared)),
                 "l"(__cvta_generic_to_global(global))
                 : "memory");
}
// Past the L1 cache.
DEVICE void copy_async16(void* shared, const void* global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)),
                 "l"(__cvta_generic_to_global(global))
                 : "memory");
}
// Through the L1 cache: for what several blocks of a multiprocessor read.
DEVICE void copy_async16_cached(void* shared, const void* global) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)),
                 "l"(__cvta_generic_to_global(global))
                 : "memory");
}
// For what is read once, weights: the first to leave the L2 cache.
DEVICE void copy_async16_stream(void* shared, const void* global) {
    u64 policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" ::"r"(
                     shared_address(shared)),
                 "l"(__cvta_generic_to_global(global)), "l"(policy)
                 : "memory");
}
// Closes the group of the thread's copies since the last call.
DEVICE void commit_async() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most N of the thread's last groups are under way. Other threads see what was
// copied after a barrier.
template <int N>
DEVICE void wait_async() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// A copy of many bytes, of what is read once, ends a phase of a barrier: of eight bytes of shared memory
// that one thread makes before others know of it. Phases count from 0; a copy begins when the phase
// before has ended. A block may not end while a copy is on its way to its memory.
DEVICE void make_arrival(u64* barrier) {
#if __CUDA_ARCH__ >= 900
    constexpr u32 ARRIVALS = 1;
#else
    constexpr u32 ARRIVALS = 32;
#endif
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "n"(ARRIVALS)
                 : "memory");
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
// The whole warp calls it, with the same operands; bytes and addresses are multiples of 16. `again`:
// other blocks read the same, so that the L2 does not give it up first.
DEVICE void copy_bulk_stream(void* shared, const void* global, u32 bytes, u64* barrier,
                             bool again = false) {
#if __CUDA_ARCH__ >= 900
    u64 policy, normal;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(normal));
    if (again) policy = normal;
    asm volatile(
        "{ .reg .pred one; elect.sync _|one, 0xffffffff;"
        "@one mbarrier.arrive.expect_tx.shared.b64 _, [%3], %2;"
        "@one cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
        "[%0], [%1], %2, [%3], %4; }" ::"r"(shared_address(shared)),
        "l"(__cvta_generic_to_global(global)), "r"(bytes), "r"(shared_address(barrier)), "l"(policy)
        : "memory");
#else
    for (u32 at = 16 * lane(); at < bytes; at += 512) {
        u8* to = static_cast<u8*>(shared) + at;
        const u8* from = static_cast<const u8*>(global) + at;
        again ? copy_async16(to, from) : copy_async16_stream(to, from);
    }
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(barrier))
                 : "memory");
#endif
}
// Waits for the end of a phase. Every thread that reads what was copied calls it; then a barrier.
DEVICE void wait_arrival(u64* barrier, u32 phase) {
    u32 ended;
    do {
#if __CUDA_ARCH__ >= 900
        asm volatile(
            "{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
            : "=r"(ended)
            : "r"(shared_address(barrier)), "r"(phase & 1)
            : "memory");
#else
        asm volatile(
            "{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; "
            "}"
            : "=r"(ended)
            : "r"(shared_address(barrier)), "r"(phase & 1)
            : "memory");
#endif
    } while (!ended);
}

// 16 bytes that no kernel of the step writes, past the L1 cache.
DEVICE u32x4 load_stream16(const void* global) {
    u32x4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(__cvta_generic_to_global(global)));
    return v;
}

// 8x8 matrices of 16-bit elements: lane 8i + j gives the address of row j of matrix i (16 bytes,
// aligned); r[i] of lane l is elements 2(l % 4) and 2(l % 4) + 1 of row l / 4, with _trans of
// column l / 4. The x2 forms use the addresses of lanes 0 to 15.
DEVICE void load_matrix_x2(u32 (&r)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}
DEVICE void load_matrix_x2_trans(u32 (&r)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}
DEVICE void load_matrix_x4(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
DEVICE void load_matrix_x4_trans(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// d += a b for 16x16 times 16x8, sums in f32. With g = lane / 4, c = lane % 4: a[0] is row g, k 2c
// and 2c + 1; a[1] row g + 8; a[2] row g, k 2c + 8 and 2c + 9; a[3] row g + 8; b0 is column g, k 2c
// and 2c + 1; b1 k 2c + 8 and 2c + 9; d[0], d[1] are row g, columns 2c and 2c + 1; d[2], d[3] row g
// + 8.
DEVICE void mma_bf16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
DEVICE void mma_f16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

DEVICE u32 float_bits(float value) { return __float_as_uint(value); }
DEVICE float bits_float(u32 bits) { return __uint_as_float(bits); }

// Rounding is to nearest, ties to even; a NaN becomes 0x7fff; what is too large for f16, infinity.
DEVICE u16 bf16_bits(float value) {
    u16 bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
DEVICE float bf16_value(u16 bits) { return bits_float(u32(bits) << 16); }
DEVICE u16 f16_bits(float value) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
DEVICE float f16_value(u16 bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}
// Two in one word, `low` in its low half.
DEVICE u32 pack_bf16(float low, float high) {
    u32 bits;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
}
DEVICE u32 pack_f16(float low, float high) {
    u32 bits;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
}
// a - b in both halves, each rounded once.
DEVICE u32 sub_bf16x2(u32 a, u32 b) {
    u32 d;
    // The instruction sub.bf16x2 is new with sm_90; a - 1 b rounds in the same way.
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(b), "r"(0xbf80bf80u), "r"(a));
    return d;
}
DEVICE u32 sub_f16x2(u32 a, u32 b) {
    u32 d;
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}
// Byte i of the result is byte (selector >> 4i) & 7 of a (0 to 3) and b (4 to 7).
DEVICE u32 byte_perm(u32 a, u32 b, u32 selector) { return __byte_perm(a, b, selector); }

// (a & mask) | b; (a & mask) ^ b; bits of a where the mask has ones, of b elsewhere. One instruction
// also where two operands are constants.
DEVICE u32 and_or(u32 a, u32 mask, u32 b) {
    u32 d;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(d) : "r"(a), "r"(mask), "r"(b));
    return d;
}
DEVICE u32 and_xor(u32 a, u32 mask, u32 b) {
    u32 d;
    asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(d) : "r"(a), "r"(mask), "r"(b));
    return d;
}
DEVICE u32 select_bits(u32 mask, u32 a, u32 b) {
    u32 d;
    asm("lop3.b32 %0, %1, %2, %3, 0xe4;" : "=r"(d) : "r"(a), "r"(b), "r"(mask));
    return d;
}

DEVICE u32 atomic_add(u32* to, u32 value) { return atomicAdd(to, value); }
DEVICE i32 atomic_add(i32* to, i32 value) { return atomicAdd(to, value); }
DEVICE u64 atomic_add(u64* to, u64 value) { return atomicAdd(to, value); }
DEVICE u32 atomic_max(u32* to, u32 value) { return atomicMax(to, value); }
DEVICE u32 atomic_min(u32* to, u32 value) { return atomicMin(to, value); }

// Waits until the stream's kernel before this one has ended and its writes are seen. Before sm_90
// kernels of a stream never overlap.
DEVICE void wait_for_predecessor() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// Lets the next kernel's blocks start, as far as there is room, up to their wait_for_predecessor().
DEVICE void let_successor_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

#include "hopper.cuh"

#endif
