// How the threads of a block take turns.
#include "worker.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "switch.h"

namespace simt {

__thread Worker* worker;

namespace {

// Stack tops are not all at the same place of a page, or they would share the cache's few lines.
constexpr size_t STAGGER = 192;

unsigned char* map(size_t bytes) {
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        fputs("no memory for the emulated CUDA device's threads\n", stderr);
        abort();
    }
    return static_cast<unsigned char*>(memory);
}

unsigned char* align(unsigned char* address) {
    return reinterpret_cast<unsigned char*>((reinterpret_cast<uintptr_t>(address) + 15) &
                                            ~uintptr_t(15));
}

const char* name(Op op) {
    static const char* const names[] = {
        "sync_warp",      "a 4-byte shuffle",     "an 8-byte shuffle",
        "a ballot",       "load_matrix_x2",       "load_matrix_x2_trans",
        "load_matrix_x4", "load_matrix_x4_trans", "mma_bf16",
        "mma_f16",        "copy_bulk",            "wgmma_wait",
    };
    return names[static_cast<unsigned>(op)];
}

}  // namespace

size_t page() {
    static const auto bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    return bytes;
}

Worker::Worker() : stacks(map(STACKS)), shared(map(SHARED_SPACE)), shadow(SHARED_SPACE) {
    for (unsigned i = 0; i < MAX_THREADS; i++) mprotect(stacks + i * STACK, page(), PROT_NONE);
}

Worker::~Worker() {
    munmap(stacks, STACKS);
    munmap(shared, SHARED_SPACE);
}

std::string Worker::run(Launch& what) {
    launch = &what;
    worker = this;
    last_range = nullptr;
    error.clear();
    while (!what.failed.load(std::memory_order_relaxed)) {
        const size_t next = what.next.fetch_add(1);
        if (next >= what.order.size()) break;
        run_block(what.order[next]);
        if (!error.empty()) what.failed = true;
    }
    worker = nullptr;
    return error;
}

void Worker::run_block(unsigned index) {
    // The order of its threads depends on the seed and the block, not on the worker.
    state = launch->seed ^ (index + 1) * 0x9e3779b97f4a7c15u;
    for (int i = 0; i < 4; i++) random();
    here.threads = launch->threads;
    memcpy(here.grid, launch->grid, sizeof here.grid);
    here.block[0] = index % here.grid[0];
    here.block[1] = index / here.grid[0] % here.grid[1];
    here.block[2] = index / here.grid[0] / here.grid[1];
    poison();
    for (unsigned i = 0; i < launch->threads; i++) {
        Fiber& fiber = fibers[i];
        unsigned char* top = stacks + (i + 1) * STACK - i % 16 * STAGGER;
        fiber.stack = fresh_stack(top, start);
        fiber.state = State::Ready;
        fiber.waited = false;
        fiber.copies.clear();
        fiber.groups.clear();
        fiber.products = {};
    }
    const unsigned count = launch->threads / 32;
    for (unsigned i = 0; i < count; i++) {
        warps[i].ready = ~0u;
        warps[i].arrived = 0;
    }
    ready_warps = ~0u >> (32 - count);
    waiting = ended = 0;
    clear_barriers();
    clear_products();
    start_order();
    current = random() % launch->threads;
    pick(current);
    here.thread = current;
    running = true;
    realm_simt_switch(&host, fibers[current].stack);
    running = false;
    if (!error.empty()) return;
    if (const char* what = find_unfinished()) {
        note(current, what);
        return;
    }
    if (const char* array = find_stray_write()) {
        char text[160];
        snprintf(text, sizeof text,
                 "block (%u, %u, %u): a write beyond the end of %s shared memory", here.block[0],
                 here.block[1], here.block[2], array);
        error = text;
    }
}

// The block's shared memory: a zone, the dynamic array, a zone, then each static array and a zone.
void Worker::poison() {
    here.dynamic = shared + HEAD + 16;
    dynamic_asked = false;
    unsigned char* end = align(here.dynamic + launch->shared) + ZONE;
    const size_t fresh = static_cast<size_t>(end - shared);
    memset(shared, POISON, shared_used > fresh ? shared_used : fresh);
    shared_used = fresh;
    arrays.clear();
}

// At a multiple of `to` and, as far as 1024, of no more.
unsigned char* Worker::dynamic_shared(size_t to) {
    unsigned char* start = shared + HEAD + (to == 1024 ? 0 : 16);
    if (dynamic_asked && start != here.dynamic)
        fail("dynamic_shared() and aligned_shared() in one kernel");
    dynamic_asked = true;
    return here.dynamic = start;
}

void* Worker::shared_array(const void* site, size_t bytes) {
    for (const SharedArray& array : arrays) {
        if (array.site == site) return array.start;
    }
    size_t total = launch->shared + bytes;
    for (const SharedArray& array : arrays) total += array.bytes;
    if (total > MAX_SHARED)
        simt::fail("the block has %zu bytes of shared memory; %zu at most", total, MAX_SHARED);
    unsigned char* start = shared + shared_used;
    unsigned char* end = align(start + bytes) + ZONE;
    memset(start, POISON, static_cast<size_t>(end - start));
    shared_used = static_cast<size_t>(end - shared);
    arrays.push_back({site, start, bytes});
    return start;
}

const char* Worker::find_stray_write() const {
    auto clean = [](const unsigned char* from, const unsigned char* to) {
        for (; from < to; from++) {
            if (*from != POISON) return false;
        }
        return true;
    };
    const unsigned char* end = here.dynamic + launch->shared;
    const unsigned char* next = arrays.empty() ? shared + shared_used : arrays[0].start;
    if (!clean(shared, here.dynamic) || !clean(end, next)) return "the dynamic";
    for (size_t i = 0; i < arrays.size(); i++) {
        end = arrays[i].start + arrays[i].bytes;
        next = i + 1 < arrays.size() ? arrays[i + 1].start : shared + shared_used;
        if (!clean(end, next)) return "an array in";
    }
    return nullptr;
}

// xorshift64*.
unsigned Worker::random() {
    state |= state == 0;
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return static_cast<unsigned>(state * 0x2545f4914f6cdd1dull >> 32);
}

unsigned Worker::pick_bit(unsigned mask) {
    const unsigned turn = random() % 32;
    const unsigned turned = mask >> turn | mask << (32 - turn) % 32;
    return (static_cast<unsigned>(__builtin_ctz(turned)) + turn) % 32;
}

// Chooses the thread that runs next, most often one of the warp that ran.
bool Worker::pick(unsigned& next) {
    if (ready_warps == 0) return false;
    unsigned warp = current / 32;
    if (!(ready_warps >> warp & 1) || random() % 8 == 0) warp = pick_bit(ready_warps);
    next = warp * 32 + pick_bit(warps[warp].ready);
    return true;
}

// The running thread cannot go on.
void Worker::park(State why) {
    fibers[current].state = why;
    Warp& warp = warps[current / 32];
    warp.ready &= ~(1u << current % 32);
    if (warp.ready == 0) ready_warps &= ~(1u << current / 32);
}

void Worker::wake(unsigned index, unsigned lanes) {
    warps[index].ready |= lanes;
    ready_warps |= 1u << index;
}

// Lets another thread run, until this one can.
void Worker::change() {
    const unsigned from = current;
    unsigned next;
    while (!pick(next)) {
        if (land_something()) continue;
        explain_deadlock();
        realm_simt_switch(&fibers[from].stack, host);
        __builtin_unreachable();
    }
    if (next == from) return;
    current = next;
    here.thread = next;
    realm_simt_switch(&fibers[from].stack, fibers[next].stack);
}

void Worker::start() {
    Worker& self = *worker;
    self.launch->kernel->run(self.launch->parameters);
    self.end();
}

void Worker::end() {
    if (!fibers[current].waited) fail("ended without wait_for_predecessor()");
    park(State::Ended);
    if (++ended == launch->threads) {
        realm_simt_switch(&fibers[current].stack, host);
        __builtin_unreachable();
    }
    change();
    __builtin_unreachable();
}

void Worker::collective(Op op, void (*compute)(void* const*), void* operands) {
    Warp& warp = warps[current / 32];
    if (warp.arrived != 0 && warp.op != op) {
        char text[160];
        snprintf(text, sizeof text, "came to %s while lanes of its warp wait at %s", name(op),
                 name(warp.op));
        fail(text);
    }
    warp.op = op;
    warp.operands[current % 32] = operands;
    if (++warp.arrived < 32) {
        park(State::Collective);
        change();
        return;
    }
    warp.arrived = 0;
    // Of the warp's operations only the barrier orders its lanes' accesses to memory.
    if (op == Op::SyncWarp) {
        const unsigned first = current / 32 * 32;
        share(first, first + 32);
        warp.told = event();
        for (unsigned i = first; i < first + 32; i++) fibers[i].told = warp.told;
    }
    if (compute) compute(warp.operands);
    wake(current / 32, ~0u);
    if (random() % 2) change();
}

void Worker::barrier() {
    if (++waiting < launch->threads) {
        park(State::Barrier);
        change();
        return;
    }
    waiting = 0;
    share(0, launch->threads);
    block_time = event();
    for (unsigned i = 0; i < launch->threads; i++) fibers[i].told = block_time;
    for (unsigned i = 0; i < launch->threads / 32; i++) wake(i, ~0u);
    change();
}

// Nothing can run: names a thread that waits, and another one that will never come.
void Worker::explain_deadlock() {
    const unsigned count = launch->threads;
    auto find = [this](unsigned from, unsigned to, auto matches) {
        while (from < to && !matches(fibers[from])) from++;
        return from;
    };
    auto is = [](State state) {
        return [state](const Fiber& fiber) { return fiber.state == state; };
    };
    char text[200];
    const unsigned lane = find(0, count, is(State::Collective));
    if (lane < count) {
        const unsigned first = lane / 32 * 32;
        const unsigned other = find(
            first, first + 32, [](const Fiber& fiber) { return fiber.state != State::Collective; });
        snprintf(text, sizeof text, "divergent warp: it waits at %s for its warp, but thread %u %s",
                 name(warps[lane / 32].op), other,
                 fibers[other].state == State::Ended ? "has ended" : "waits at sync_block");
        return note(lane, text);
    }
    if (explain_waits(text, sizeof text)) return;
    const unsigned other = find(0, count, is(State::Ended));
    snprintf(text, sizeof text,
             "divergent barrier: it waits at sync_block, but thread %u has ended", other);
    note(find(0, count, is(State::Barrier)), text);
}

void Worker::note(unsigned thread, const char* message) {
    char text[480];
    snprintf(text, sizeof text, "block (%u, %u, %u), thread %u: %s", here.block[0], here.block[1],
             here.block[2], thread, message);
    error = text;
}

void Worker::fail(const char* message) {
    note(current, message);
    realm_simt_switch(&fibers[current].stack, host);
    __builtin_unreachable();
}

unsigned char* Worker::fault(int signal, const void* address) {
    if (!running) return nullptr;
    running = false;
    fault_signal = signal;
    fault_address = address;
    return stacks + STACKS;
}

void Worker::report_fault() {
    const auto* address = static_cast<const unsigned char*>(fault_address);
    if (fault_signal == SIGFPE) fail("a division by zero");
    if (fault_signal == SIGILL) fail("an instruction that should not be reached");
    if (address >= stacks && address < stacks + STACKS) fail("its stack is too small");
    char text[80];
    snprintf(text, sizeof text, "an access to address %p, where nothing is", fault_address);
    fail(text);
}

void Worker::copy_async(void* to, const void* from, size_t bytes) {
    simt::access(to, bytes, {Kind::Write, Where::Shared, bytes, "copy_async"});
    simt::access(from, bytes, {Kind::Read, Where::Global, bytes, "copy_async"});
    memset(to, POISON, bytes);
    fibers[current].copies.push_back(
        {static_cast<unsigned char*>(to), static_cast<const unsigned char*>(from), bytes});
}

void Worker::commit_async() { fibers[current].groups.push_back(fibers[current].copies.size()); }

void Worker::wait_async(size_t pending) {
    Fiber& fiber = fibers[current];
    if (fiber.groups.size() <= pending) return;
    const size_t landing = fiber.groups.size() - pending, count = fiber.groups[landing - 1];
    for (size_t i = 0; i < count; i++) {
        const Copy& copy = fiber.copies[i];
        simt::access(copy.to, copy.bytes,
                     {Kind::Write, Where::Shared, 1, "the end of a copy_async"});
        memcpy(copy.to, copy.from, copy.bytes);
    }
    fiber.copies.erase(fiber.copies.begin(), fiber.copies.begin() + static_cast<ptrdiff_t>(count));
    fiber.groups.erase(fiber.groups.begin(),
                       fiber.groups.begin() + static_cast<ptrdiff_t>(landing));
    for (size_t& end : fiber.groups) end -= count;
}

}  // namespace simt
