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
void make_arrival(void* barrier);
// The whole warp's, with the same operands.
void copy_bulk(void* shared, const void* global, size_t bytes, void* barrier);
void wait_arrival(void* barrier, unsigned phase);
void wait_for_predecessor();

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
    static Kernel* first;
    Kernel(const char* unit, const char* name, size_t parameters, unsigned threads,
           void (*run)(const void*))
        : unit(unit), name(name), parameters(parameters), threads(threads), run(run), next(first) {
        first = this;
    }
};

}  // namespace simt
