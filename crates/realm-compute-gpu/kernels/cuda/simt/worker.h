// A worker runs blocks, one at a time, on the OS thread that holds it: a fiber for each of the
// block's threads.
#pragma once
#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "shadow.h"
#include "simt.h"

namespace simt {

constexpr unsigned MAX_THREADS = 1024;
constexpr size_t MAX_SHARED = 227 * 1024;
// Around each shared array, of poison.
constexpr size_t ZONE = 64;
constexpr size_t SHARED_SPACE = 2 * MAX_SHARED;
constexpr size_t STACK = 128 * 1024;
// The stack after the threads' own is for the report of a fault.
constexpr size_t STACKS = (MAX_THREADS + 1) * STACK;
constexpr unsigned char POISON = 0xff;

// Bytes of a page of memory.
size_t page();

// Device memory that is allocated. `written` becomes 1 once a kernel has written to it.
struct Range {
    uintptr_t start, end, written;
};

// An access to memory, and who asks for it: `what`, or for a plain access the code at `code`.
enum class Where : unsigned char { Anywhere, Shared, Global, SharedOrGlobal };
struct Access {
    Kind kind;
    Where where;
    size_t align;
    const char* what;
    const void* code = nullptr;
};
// Ends the launch with an error unless the running thread may do this now. With no thread running,
// and for what kernels cannot reach but their code may (constants, parameters), it does nothing.
void access(const void* address, size_t bytes, const Access& access);

// What all blocks of a launch have in common.
struct Launch {
    const Kernel* kernel;
    unsigned grid[3], threads, shared;
    const void* parameters;
    uint64_t seed;
    // Sorted.
    Range* ranges;
    size_t range_count;
    // Blocks in the order in which they start, and the next one.
    std::vector<unsigned> order;
    std::atomic<size_t> next;
    std::atomic<bool> failed;
};

struct Copy {
    unsigned char* to;
    const unsigned char* from;
    size_t bytes;
};

// A barrier at which copies of many bytes arrive; phases that have ended.
struct Arrival {
    const void* barrier;
    unsigned phases;
};

struct BulkCopy {
    Copy copy;
    const void* barrier;
};

// Where the running thread stands.
struct Here {
    unsigned thread, threads;
    unsigned block[3], grid[3];
    unsigned char* dynamic;
};

enum class State : unsigned char { Ready, Barrier, Collective, Ended };

struct Fiber {
    void* stack;
    State state;
    bool waited;
    // Copies under way, oldest first; those before groups[i] are of group i or older.
    std::vector<Copy> copies;
    std::vector<size_t> groups;
};

struct Warp {
    // Lanes that can run.
    unsigned ready;
    // The collective that lanes wait at.
    Op op;
    unsigned arrived;
    void* operands[32];
    // Counts the warp's barriers.
    uint32_t moment;
};

struct SharedArray {
    const void* site;
    unsigned char* start;
    size_t bytes;
};

// The worker that has this OS thread.
class Worker;
extern __thread Worker* worker;

class Worker {
  public:
    Here here = {};

    Worker();
    ~Worker();
    Worker(const Worker&) = delete;
    Worker& operator=(const Worker&) = delete;

    // Runs blocks until none is left or one fails. Returns what went wrong, or nothing.
    std::string run(Launch& launch);

    void collective(Op op, void (*compute)(void* const*), void* operands);
    void barrier();
    void* shared_array(const void* site, size_t bytes);
    void copy_async(void* shared, const void* global, size_t bytes);
    void commit_async();
    void wait_async(size_t pending);
    void make_arrival(void* barrier);
    void copy_bulk(const BulkCopy& copy);
    void wait_arrival(void* barrier, unsigned phase);
    void wait_for_predecessor() { fibers[current].waited = true; }
    void access(const void* address, size_t bytes, const Access& access);
    [[noreturn]] void fail(const char* message);
    // If a fault (a signal) happened in a fiber: the end of the stack on which to report it.
    unsigned char* fault(int signal, const void* address);
    [[noreturn]] void report_fault();

  private:
    void run_block(unsigned index);
    void poison();
    const char* find_stray_write() const;
    unsigned random();
    unsigned pick_bit(unsigned mask);
    bool pick(unsigned& next);
    void park(State state);
    void wake(unsigned warp, unsigned lanes);
    void change();
    [[noreturn]] void end();
    void explain_deadlock();
    void note(unsigned thread, const char* message);
    static void start();
    Arrival& find_arrival(const void* barrier);
    Range* in_global(uintptr_t address, size_t bytes);
    void access_shared(const unsigned char* address, size_t bytes, const Access& access);
    void access_global(const void* address, size_t bytes, const Access& access);
    [[noreturn]] void refuse(const void* address, size_t bytes, const Access& access,
                             const char* why);

    Launch* launch = nullptr;
    Fiber fibers[MAX_THREADS];
    Warp warps[MAX_THREADS / 32];
    // Warps with lanes that can run.
    unsigned ready_warps = 0;
    unsigned current = 0;
    unsigned waiting = 0, ended = 0;
    bool running = false;
    void* host = nullptr;
    uint64_t state = 0;
    std::string error;
    unsigned char* stacks;
    unsigned char* shared;
    size_t shared_used = 0;
    std::vector<SharedArray> arrays;
    std::vector<Arrival> arrivals;
    // Under way, oldest first.
    std::vector<BulkCopy> bulk_copies;
    Range* last_range = nullptr;
    Shadow shadow;
    // Counts the blocks' starts and their barriers.
    uint32_t moment = 0;
    int fault_signal = 0;
    const void* fault_address = nullptr;
};

}  // namespace simt
