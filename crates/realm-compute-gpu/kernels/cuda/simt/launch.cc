// The emulation's face to Rust: launches and device memory.
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <mutex>
#include <thread>

#include "fault.h"
#include "worker.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace simt {

Kernel* Kernel::first;

namespace {

// Workers that no launch uses: their stacks are mapped and touched already.
std::mutex idle_lock;
auto& idle = *new std::vector<std::unique_ptr<Worker>>;

std::unique_ptr<Worker> take_worker() {
    std::lock_guard<std::mutex> guard(idle_lock);
    if (idle.empty()) return std::make_unique<Worker>();
    std::unique_ptr<Worker> worker = std::move(idle.back());
    idle.pop_back();
    return worker;
}

void put_worker(std::unique_ptr<Worker> worker) {
    std::lock_guard<std::mutex> guard(idle_lock);
    idle.push_back(std::move(worker));
}

std::string work(Launch& launch) {
    std::unique_ptr<Worker> worker = take_worker();
    FaultGuard guard;
    std::string error = worker->run(launch);
    put_worker(std::move(worker));
    return error;
}

std::string find(Launch& launch, const char* unit, const char* name, size_t parameters) {
    char text[200];
    for (Kernel* kernel = Kernel::first; kernel; kernel = kernel->next) {
        if (strcmp(kernel->unit, unit) || strcmp(kernel->name, name)) continue;
        launch.kernel = kernel;
        if (kernel->parameters != parameters) {
            snprintf(text, sizeof text, "%zu bytes of parameters; the kernel takes %zu", parameters,
                     kernel->parameters);
            return text;
        }
        if (launch.threads == 0 || launch.threads % 32 || launch.threads > kernel->threads) {
            snprintf(text, sizeof text,
                     "%u threads a block; the kernel takes multiples of 32 up to %u",
                     launch.threads, kernel->threads);
            return text;
        }
        const uint64_t x = launch.grid[0], y = launch.grid[1], z = launch.grid[2];
        if (x == 0 || y == 0 || z == 0 || x > 0x7fffffff || y > 65535 || z > 65535 ||
            x * y * z > 0x7fffffff) {
            snprintf(text, sizeof text, "a grid of %u, %u, %u blocks", launch.grid[0],
                     launch.grid[1], launch.grid[2]);
            return text;
        }
        if (launch.shared > MAX_SHARED) {
            snprintf(text, sizeof text, "%u bytes of shared memory; %zu at most", launch.shared,
                     MAX_SHARED);
            return text;
        }
        return {};
    }
    return "there is no such kernel";
}

// A random order that depends on the seed alone.
void shuffle_blocks(Launch& launch) {
    launch.order.resize(size_t(launch.grid[0]) * launch.grid[1] * launch.grid[2]);
    for (size_t i = 0; i < launch.order.size(); i++) launch.order[i] = static_cast<unsigned>(i);
    // splitmix64's last steps: seeds that are near each other give orders that are not.
    uint64_t state = launch.seed + 0x9e3779b97f4a7c15u;
    state = (state ^ state >> 30) * 0xbf58476d1ce4e5b9u;
    state = (state ^ state >> 27) * 0x94d049bb133111ebu;
    launch.seed = state ^= state >> 31;
    for (size_t i = launch.order.size(); i > 1; i--) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        std::swap(launch.order[i - 1], launch.order[(state >> 33) % i]);
    }
}

std::string run(Launch& launch) {
    shuffle_blocks(launch);
    const size_t cores = std::min(std::max(std::thread::hardware_concurrency(), 1u), 4u);
    const size_t count = std::min(cores, launch.order.size());
    std::vector<std::string> errors(count);
    std::vector<std::thread> threads;
    for (size_t i = 1; i < count; i++) threads.emplace_back([&, i] { errors[i] = work(launch); });
    errors[0] = work(launch);
    for (std::thread& thread : threads) thread.join();
    for (std::string& error : errors) {
        if (!error.empty()) return std::move(error);
    }
    return {};
}

}  // namespace
}  // namespace simt

// Runs a kernel to its end. Returns 0, or 1 with what went wrong in `error`, a string cut to fit.
EXPORT int realm_simt_launch(const char* unit, const char* kernel, const unsigned* grid,
                             unsigned threads, unsigned shared, const void* parameters,
                             size_t parameters_len, uint64_t seed, simt::Range* ranges,
                             size_t range_count, char* error, size_t error_len) {
    simt::Launch launch{};
    memcpy(launch.grid, grid, sizeof launch.grid);
    launch.threads = threads;
    launch.shared = shared;
    launch.seed = seed;
    launch.ranges = ranges;
    launch.range_count = range_count;
    alignas(64) unsigned char copy[4096];
    memcpy(copy, parameters, std::min(parameters_len, sizeof copy));
    launch.parameters = copy;
    std::string problem = simt::find(launch, unit, kernel, parameters_len);
    if (problem.empty()) problem = simt::run(launch);
    if (problem.empty()) __atomic_store_n(&launch.kernel->ran, true, __ATOMIC_RELAXED);
    snprintf(error, error_len, "%s", problem.c_str());
    return !problem.empty();
}

// The kernel of an index below their number: returns whether it has run, else -1.
EXPORT int realm_simt_kernel(size_t index, const char** unit, const char** name) {
    const simt::Kernel* kernel = simt::Kernel::first;
    while (kernel && index--) kernel = kernel->next;
    if (!kernel) return -1;
    *unit = kernel->unit;
    *name = kernel->name;
    return __atomic_load_n(&kernel->ran, __ATOMIC_RELAXED);
}

namespace {

using simt::page;

size_t up_to_page(size_t bytes) { return (bytes + page() - 1) / page() * page(); }
size_t pages(size_t bytes) { return up_to_page(bytes + 255); }

// Where a buffer's pages start. It ends less than 256 bytes before the end of the last one.
unsigned char* base(const unsigned char* start, size_t bytes) {
    const size_t end = up_to_page(reinterpret_cast<uintptr_t>(start) + bytes);
    return reinterpret_cast<unsigned char*>(end - pages(bytes));
}

}  // namespace

// Memory aligned to 256 bytes and filled with a byte, what is left of its pages with poison,
// between two pages that nobody may touch. Null where there is not enough.
EXPORT unsigned char* realm_simt_allocate(size_t bytes, unsigned char fill) {
    if (bytes > SIZE_MAX / 4) return nullptr;
    const size_t length = pages(bytes) + 2 * page();
    void* memory =
        mmap(nullptr, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return nullptr;
    unsigned char* first = static_cast<unsigned char*>(memory) + page();
    if (mprotect(first, pages(bytes), PROT_READ | PROT_WRITE)) {
        munmap(memory, length);
        return nullptr;
    }
    unsigned char* end = first + pages(bytes);
    auto* start =
        reinterpret_cast<unsigned char*>((reinterpret_cast<uintptr_t>(end) - bytes) / 256 * 256);
    memset(first, simt::POISON, static_cast<size_t>(start - first));
    memset(start, fill, bytes);
    memset(start + bytes, simt::POISON, static_cast<size_t>(end - start) - bytes);
    return start;
}

EXPORT void realm_simt_release(unsigned char* start, size_t bytes) {
    munmap(base(start, bytes) - page(), pages(bytes) + 2 * page());
}

// 0 unless something was written just before the buffer (1) or just behind it (2).
EXPORT int realm_simt_stray_write(const unsigned char* start, size_t bytes) {
    const unsigned char* first = base(start, bytes);
    const unsigned char* end = first + pages(bytes);
    for (const unsigned char* at = start - first > 256 ? start - 256 : first; at < start; at++) {
        if (*at != simt::POISON) return 1;
    }
    for (const unsigned char* at = start + bytes; at < end; at++) {
        if (*at != simt::POISON) return 2;
    }
    return 0;
}
