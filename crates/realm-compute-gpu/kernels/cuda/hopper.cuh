// The wrappers of intrinsics.cuh that Hopper brought: barriers that count arrivals and bytes, tensor
// copies, products of warpgroups. The device's version; simt/hopper.cuh is the emulated device's.
//
// Where the architecture lacks an instruction the wrapper is a trap: a kernel that calls it is not
// launched there.
#pragma once

#if __CUDA_ARCH__ >= 900
#define REALM_SM90(...) __VA_ARGS__
#else
#define REALM_SM90(...) asm volatile("trap;")
#endif
// For what only sm_90a has, not PTX for later GPUs.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define REALM_SM90A(...) __VA_ARGS__
#else
#define REALM_SM90A(...) asm volatile("trap;")
#endif

// A barrier for `arrivals` arrivals a phase; phases count from 0. One thread makes it, then calls
// fence_barriers(); the others know of it after a sync_block().
DEVICE void init_barrier(u64* barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals)
                 : "memory");
}
DEVICE void fence_barriers() {
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
// One arrival: what the thread did before is seen by whoever waits for the phase.
DEVICE void arrive(u64* barrier) {
    asm volatile("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }" ::"r"(
                     shared_address(barrier))
                 : "memory");
}
// One arrival, and the phase ends only when `bytes` more bytes of copies have landed, too.
DEVICE void arrive_expect(u64* barrier, u32 bytes) {
    REALM_SM90(asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(
                                shared_address(barrier)),
                            "r"(bytes)
                            : "memory"));
}
// Waits until the last phase with the parity of `phase` has ended. On a barrier that is new, the odd
// parity has.
DEVICE void wait_barrier(u64* barrier, u32 phase) { wait_arrival(barrier, phase); }

// ONE thread calls these copies. They land when the barrier's phase ends, and count as bytes there.
// Addresses and bytes are multiples of 16. `stream`: read once, weights; the first to leave the L2.
DEVICE void copy_bulk(void* shared, const void* global, u32 bytes, u64* barrier,
                      bool stream = false) {
    REALM_SM90(
        u64 policy, once;
        asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
        asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(once));
        if (stream) policy = once;
        asm volatile(
            "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
            "[%0], [%1], %2, [%3], %4;" ::"r"(shared_address(shared)),
            "l"(__cvta_generic_to_global(global)), "r"(bytes), "r"(shared_address(barrier)),
            "l"(policy)
            : "memory"));
}
// The map's box whose first element is column x of row y; what is outside the matrix is zeros, and
// counts. A row of the box is 128 bytes, its 16-byte unit u at place u ^ (row % 8); `shared` is a
// multiple of 1024. The map is a part of the kernel's parameter.
DEVICE void copy_tensor(void* shared, const TensorMap& map, u32 x, u32 y, u64* barrier) {
    REALM_SM90(
        asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                     "[%0], [%1, {%2, %3}], [%4];" ::"r"(shared_address(shared)),
                     "l"(&map), "r"(x), "r"(y), "r"(shared_address(barrier))
                     : "memory"));
}
// After ordinary writes to shared memory, by the writer: then a barrier, then wgmma or copies may
// touch what was written.
DEVICE void fence_async() { REALM_SM90(asm volatile("fence.proxy.async.shared::cta;" ::: "memory")); }

// A barrier of `threads` threads, whole warps; id is 1 to 15.
DEVICE void sync_group(u32 id, u32 threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// A warpgroup gives registers back, or takes them: N a thread, a multiple of 8 from 24 to 256.
template <u32 N>
DEVICE void drop_registers() {
    REALM_SM90A(asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N)));
}
template <u32 N>
DEVICE void claim_registers() {
    REALM_SM90A(asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N)));
}

// Where a matrix of 16-bit elements lies for wgmma, in rows of 128 bytes as copy_tensor lays them;
// groups of 8 rows are stride_bytes apart (1024). K-major: a row is 64 k of one row of the matrix;
// k step s: address + 32 s. MN-major: a row is 64 n of one k; k step s: address + 2048 s; the next 64 n
// are leading_bytes further. The tile begins at a multiple of 1024.
DEVICE u64 tile_descriptor(const void* shared, u32 leading_bytes, u32 stride_bytes) {
    return u64(1) << 62 | u64(stride_bytes >> 4 & 0x3fff) << 32 |
           u64(leading_bytes >> 4 & 0x3fff) << 16 | (shared_address(shared) >> 4 & 0x3fff);
}

// Before the first product, and between other code's use of registers and a product that uses them.
DEVICE void wgmma_fence() {
    REALM_SM90A(asm volatile("wgmma.fence.sync.aligned;" ::: "memory"));
}
// Closes the group of the products since the last call.
DEVICE void wgmma_commit() {
    REALM_SM90A(asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"));
}
// Waits until at most N of the last groups are under way. Their registers are not touched before.
template <int N>
DEVICE void wgmma_wait() {
    REALM_SM90A(asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"));
}
// Keeps the compiler from moving uses of registers across this point: around wgmma_wait, which it
// does not know to change d.
template <u32 N>
DEVICE void pin_registers(float (&d)[N]) {
#pragma unroll
    for (u32 i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}
template <u32 N>
DEVICE void pin_registers(u32 (&a)[N]) {
#pragma unroll
    for (u32 i = 0; i < N; i++) asm volatile("" : "+r"(a[i])::"memory");
}

// The operands' places in the assembly: d is %0 to %(N/2 - 1).
#define REALM_D8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define REALM_D16 REALM_D8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define REALM_D32                                                                         \
    REALM_D16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, "  \
              "%30, %31"
#define REALM_D48                                                                        \
    REALM_D32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, " \
              "%46, %47"
#define REALM_D64                                                                        \
    REALM_D48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, " \
              "%62, %63"
#define REALM_D96                                                                        \
    REALM_D64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, " \
              "%78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, "   \
              "%92, %93, %94, %95"
#define REALM_D128                                                                         \
    REALM_D96 ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, "     \
              "%108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, " \
              "%120, %121, %122, %123, %124, %125, %126, %127"
#define REALM_F4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define REALM_F8(i) REALM_F4(i), REALM_F4(i + 4)
#define REALM_F16(i) REALM_F8(i), REALM_F8(i + 8)
#define REALM_F32(i) REALM_F16(i), REALM_F16(i + 16)
#define REALM_F48(i) REALM_F32(i), REALM_F16(i + 32)
#define REALM_F64(i) REALM_F32(i), REALM_F32(i + 32)
#define REALM_F96(i) REALM_F64(i), REALM_F32(i + 64)
#define REALM_F128(i) REALM_F64(i), REALM_F64(i + 64)

// One instruction: `half` is N / 2, r0 to r6 the numbers from there on.
#define REALM_WGMMA_REGISTERS(n, half, type, r0, r1, r2, r3, r4, r5, r6)                      \
    if constexpr (N == n)                                                                     \
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %" #r5 ", 0; "                               \
                 "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {"         \
                 REALM_D##half "}, {%" #r0 ", %" #r1 ", %" #r2 ", %" #r3 "}, %" #r4           \
                 ", p, 1, 1, %" #r6 "; }"                                                     \
                 : REALM_F##half(0)                                                           \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(u32(add)),         \
                   "n"(int(B_TRANSPOSED))                                                     \
                 : "memory")
#define REALM_WGMMA_SHARED(n, half, type, r0, r1, r2, r3, ...)                                \
    if constexpr (N == n)                                                                     \
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %" #r2 ", 0; "                               \
                 "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {"         \
                 REALM_D##half "}, %" #r0 ", %" #r1 ", p, 1, 1, 0, %" #r3 "; }"               \
                 : REALM_F##half(0)                                                           \
                 : "l"(a), "l"(b), "r"(u32(add)), "n"(int(B_TRANSPOSED))                      \
                 : "memory")
#define REALM_WGMMA_SIZES(one, type)                                   \
    one(16, 8, type, 8, 9, 10, 11, 12, 13, 14);                        \
    one(32, 16, type, 16, 17, 18, 19, 20, 21, 22);                     \
    one(64, 32, type, 32, 33, 34, 35, 36, 37, 38);                     \
    one(96, 48, type, 48, 49, 50, 51, 52, 53, 54);                     \
    one(128, 64, type, 64, 65, 66, 67, 68, 69, 70);                    \
    one(192, 96, type, 96, 97, 98, 99, 100, 101, 102);                 \
    one(256, 128, type, 128, 129, 130, 131, 132, 133, 134)

template <u32 N>
constexpr bool realm_wgmma_size =
    N == 16 || N == 32 || N == 64 || N == 96 || N == 128 || N == 192 || N == 256;

// d (+)= a b for 64x16 times 16xN by a warpgroup (warps 4i to 4i + 3), sums in f32: added to d where
// `add`. Warp w of the four has rows 16w to 16w + 15, whose fragments are mma's: d[4j] to d[4j + 3] are
// its d of columns 8j to 8j + 7; `a` its a, or for all a descriptor of 64 rows, K-major. b describes
// [N][16], K-major, or where B_TRANSPOSED [16][N], MN-major.
#define REALM_WGMMA(name, type)                                                     \
    template <u32 N, bool B_TRANSPOSED = false>                                     \
    DEVICE void name(float (&d)[N / 2], const u32(&a)[4], u64 b, bool add = true) { \
        static_assert(realm_wgmma_size<N>, "no such wgmma");                        \
        REALM_SM90A(REALM_WGMMA_SIZES(REALM_WGMMA_REGISTERS, type));                \
    }                                                                               \
    template <u32 N, bool B_TRANSPOSED = false>                                     \
    DEVICE void name(float (&d)[N / 2], u64 a, u64 b, bool add = true) {            \
        static_assert(realm_wgmma_size<N>, "no such wgmma");                        \
        REALM_SM90A(REALM_WGMMA_SIZES(REALM_WGMMA_SHARED, type));                   \
    }
REALM_WGMMA(wgmma_bf16, "bf16")
REALM_WGMMA(wgmma_f16, "f16")
#undef REALM_WGMMA
