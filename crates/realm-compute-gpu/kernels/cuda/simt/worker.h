// A worker runs blocks, one at a time, on the OS thread that holds it: a fiber for each of the
// block's threads.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "shadow.h"
#include "simt.h"

namespace simt {

constexpr unsigned MAX_THREADS = 1024;
constexpr size_t MAX_SHARED = 227 * 1024;
// Around each shared array, of poison.
constexpr size_t ZONE = 64;
// Before the dynamic array.
constexpr size_t HEAD = 1024;
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
    Kernel* kernel;
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

// A copy that lands at a barrier: of bytes, or of a box of rows that a tensor map describes.
struct BulkCopy {
    unsigned char* to;
    const unsigned char* from;
    size_t bytes;
    void* barrier;
    // Of a tensor copy: its map, else null, and where the box starts.
    const void* map = nullptr;
    unsigned x = 0, y = 0;
};

// A barrier that counts arrivals and bytes.
struct PhaseBarrier {
    const unsigned char* at;
    // Arrivals a phase has, and those that are missing.
    unsigned arrivals, missing;
    // Bytes that have not landed.
    int64_t bytes;
    // Phases that have ended.
    unsigned phases;
    // Threads that wait.
    unsigned waiting;
    std::vector<BulkCopy> copies;
    // What those who arrived have told so far, and until the end of the last phase.
    Times told;
    Known ended;
};

// A barrier of a part of the block, by its number.
struct GroupBarrier {
    unsigned threads, arrived;
    Times told;
};

// The sums of a warp's products under way, which their lanes' registers get at the end.
struct Sums16 {
    float* d[32];
    unsigned n, under_way;
    // [16][n].
    std::vector<float> rows;
};

// A warp's part of a product under way.
struct WarpProduct {
    Shape shape;
    unsigned group;
    Time begun;
    unsigned a[32][4];
    Sums16* sums;
};

// What a thread knows of its products.
struct Products {
    // Groups closed.
    unsigned groups;
    // Whether a fence stands between other uses of d and the next product, and of a.
    bool fenced, a_fenced;
    // When the last one began that has ended.
    Time done;
};

constexpr unsigned WARPGROUP = 128;
struct Warpgroup {
    unsigned arrived;
    const Product* operands[WARPGROUP];
};

// Where the running thread stands.
struct Here {
    unsigned thread, threads;
    unsigned block[3], grid[3];
    unsigned char* dynamic;
};

enum class State : unsigned char { Ready, Barrier, Collective, Phase, Group, Warpgroup, Ended };

struct Fiber {
    void* stack;
    State state;
    bool waited;
    // Copies under way, oldest first; those before groups[i] are of group i or older.
    std::vector<Copy> copies;
    std::vector<size_t> groups;
    // The barrier that it waits at.
    unsigned waits_at;
    Products products;
    // What it knows of other agents besides what warps' and blocks' barriers say.
    Known known;
    // When it last told others of its accesses, and when it called fence_async.
    Time told;
    std::vector<Time> fences;
};

struct Warp {
    // Lanes that can run.
    unsigned ready;
    // The collective that lanes wait at.
    Op op;
    unsigned arrived;
    void* operands[32];
    // When its lanes last met at a barrier.
    Time told;
    // Under way, oldest first.
    std::vector<WarpProduct> products;
    std::vector<std::unique_ptr<Sums16>> sums;
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
    unsigned char* dynamic_shared(size_t align);
    void init_barrier(void* barrier, unsigned arrivals);
    void arrive(void* barrier, size_t bytes);
    void wait_barrier(void* barrier, unsigned phase);
    void copy_bulk(const BulkCopy& copy);
    void copy_tensor(const BulkCopy& copy);
    void fence_async();
    void sync_group(unsigned id, unsigned threads);
    uint64_t tile_descriptor(const void* at, size_t leading, size_t stride);
    void wgmma(const Product& product);
    void wgmma_fence();
    void wgmma_commit();
    // The products of the running warp but those of its last `pending` groups end.
    void end_products(unsigned pending);
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
    Time event() { return time++; }
    void start_order();
    View view() const;
    void tell(unsigned thread, Times& to);
    void learn(unsigned thread, const Known& known);
    void share(unsigned first, unsigned end);
    bool fenced(const View& view, Agent thread, Time when) const;
    PhaseBarrier& find_barrier(const void* barrier);
    Agent copies_of(const PhaseBarrier& barrier) const;
    void try_to_end(PhaseBarrier& barrier);
    void begin_copy(PhaseBarrier& barrier, const BulkCopy& copy, const Access& write);
    void land(PhaseBarrier& barrier);
    bool land_something();
    bool explain_waits(char* text, size_t length);
    const char* find_unfinished() const;
    void clear_barriers();
    void clear_products();
    void check_product(const Warpgroup& group, unsigned first);
    void touch_operands(const Shape& shape, unsigned first);
    static Sums16* take_sums(Warp& warp, const Product* const* lanes, unsigned n);
    static void give_sums(Warp& warp, Sums16& sums);
    void begin_products(const Warpgroup& group, unsigned first);
    void multiply(unsigned warp, const WarpProduct& product);
    Range* in_global(uintptr_t address, size_t bytes);
    void check_place(const unsigned char* at, size_t bytes, const Access& access);
    void touch(const unsigned char* at, size_t bytes, const Access& access, const View& view,
               const Shadow::Toucher& toucher);
    // What an agent does that is no thread, with the eyes of `view`.
    void touch_async(const unsigned char* at, size_t bytes, const Access& access, const View& view,
                     Agent agent);
    // Where a place in shared memory is, for a message.
    void describe(const unsigned char* at, char* text, size_t length) const;
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
    bool dynamic_asked = false;
    std::vector<PhaseBarrier> barriers;
    GroupBarrier groups[16];
    Warpgroup warpgroups[MAX_THREADS / WARPGROUP];
    Range* last_range = nullptr;
    Shadow shadow;
    Joins joins;
    // The time, when the block started, and when its threads last met.
    Time time = 0, start_time = 0, block_time = 0;
    int fault_signal = 0;
    const void* fault_address = nullptr;
};

}  // namespace simt
