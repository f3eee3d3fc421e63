// What the emulated intrinsics need of the emulation: the running thread's place, its warp's
// collectives, its block's barrier, shared memory and asynchronous copies.
#pragma once
#include <cstddef>

namespace simt {

// Where the running thread stands. To a thread these are constants: it may remember them.
#define SIMT_CONSTANT __attribute__((const))
SIMT_CONSTANT unsigned thread();
SIMT_CONSTANT unsigned threads();
SIMT_CONSTANT unsigned block(int axis);
SIMT_CONSTANT unsigned grid(int axis);
SIMT_CONSTANT unsigned char* dynamic_shared();
#undef SIMT_CONSTANT

// What a whole warp does at once.
enum class Op : unsigned {
    SyncWarp,
    Shuffle,
    Shuffle8,
    Ballot,
    LoadMatrix2,
    LoadMatrix2T,
    LoadMatrix4,
    LoadMatrix4T,
    MmaBf16,
    MmaF16,
    CopyBulk,
    WgmmaWait,
};

// Waits until the 32 lanes have come, each with its operands; the last one computes for all.
void collective(Op op, void (*compute)(void* const* operands), void* operands);
// Waits until all threads of the block have come.
void barrier();
// The block's static array of a SHARED line, which `site` stands for.
void* shared_array(const void* site, size_t bytes);

void copy_async(void* shared, const void* global, size_t bytes);
void commit_async();
void wait_async(int pending);
// The whole warp's, with the same operands: the barrier's one arrival and its copy.
void copy_bulk_stream(void* shared, const void* global, size_t bytes, void* barrier);
void wait_for_predecessor();

// Dynamic shared memory at a multiple of 1024.
unsigned char* aligned_shared();
// Barriers that count arrivals and bytes, copies that land there, barriers of a part of the block.
void init_barrier(void* barrier, unsigned arrivals);
void fence_barriers();
void arrive(void* barrier, size_t bytes);
void wait_barrier(void* barrier, unsigned phase);
void copy_bulk(void* shared, const void* global, size_t bytes, void* barrier);
void copy_tensor(void* shared, const void* map, unsigned x, unsigned y, void* barrier);
void fence_async();
void sync_group(unsigned id, unsigned threads);

// A product of a warpgroup: what its 128 lanes must agree on.
struct Shape {
    unsigned n;
    bool bf16, transposed, add, a_shared;
    // Descriptors.
    unsigned long long a, b;
};
// And each lane's registers.
struct Product {
    Shape shape;
    unsigned a[4];
    float* d;
};
unsigned long long tile_descriptor(const void* shared, size_t leading, size_t stride);
void wgmma(const Product& product);
void wgmma_fence();
void wgmma_commit();
void wgmma_wait(unsigned pending);

struct Words {
    unsigned long long low, high;
};
Words load_stream16(const void* global);

// Atomic operations on device or shared memory; they return the old value.
unsigned atomic_add(unsigned* to, unsigned value);
unsigned long long atomic_add(unsigned long long* to, unsigned long long value);
unsigned atomic_max(unsigned* to, unsigned value);
unsigned atomic_min(unsigned* to, unsigned value);

// Ends the launch with an error.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// The warp's operations. Operands and results are values, so that the kernels' own variables have
// no address and the compiler keeps them in registers.
struct Sums {
    float d[4];
};
struct Registers {
    unsigned r[4];
};
void sync_warp();
unsigned shuffle(unsigned value, unsigned from);
unsigned long long shuffle8(unsigned long long value, unsigned from);
unsigned ballot(bool value);
Registers load_matrix(unsigned count, const void* row, bool transposed);
Sums mma_bf16(Sums d, unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1);
Sums mma_f16(Sums d, unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1);

// A kernel, found by its unit and name. Made by KERNEL before main.
struct Kernel {
    const char* unit;
    const char* name;
    size_t parameters;
    unsigned threads;
    void (*run)(const void* parameters);
    Kernel* next;
    // Whether a launch of it has ended well.
    bool ran = false;
    static Kernel* first;
    Kernel(const char* unit, const char* name, size_t parameters, unsigned threads,
           void (*run)(const void*))
        : unit(unit), name(name), parameters(parameters), threads(threads), run(run), next(first) {
        first = this;
    }
};

}  // namespace simt
