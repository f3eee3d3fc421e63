// What orders the block's accesses to shared memory: who tells whom, at which barrier.
#include "worker.h"

namespace simt {

// The block starts: what blocks before did is past.
void Worker::start_order() {
    start_time = block_time = event();
    joins.clear();
    for (unsigned i = 0; i < launch->threads; i++) {
        Fiber& fiber = fibers[i];
        fiber.known = nullptr;
        fiber.told = fiber.products.done = start_time;
        fiber.fences.clear();
        warps[i / 32].told = start_time;
    }
}

View Worker::view() const {
    const Fiber& fiber = fibers[current];
    return {static_cast<Agent>(current), launch->threads,     block_time,
            start_time,                  warps[current / 32].told, fiber.products.done,
            fiber.known.get()};
}

// What a thread has done until now, and all that it knows, is told to whoever learns `to`.
void Worker::tell(unsigned thread, Times& to) {
    Fiber& fiber = fibers[thread];
    const unsigned threads = launch->threads, first = thread / 32 * 32;
    if (fiber.known) join(to, *fiber.known);
    if (const Time warp = warps[thread / 32].told; warp > block_time) {
        for (unsigned i = first; i < first + 32; i++) raise(to, place(Agent(i), threads), warp);
    }
    if (fiber.products.done > start_time)
        raise(to, place(Agent(PRODUCTS_AGENT + thread / WARPGROUP), threads), fiber.products.done);
    fiber.told = event();
    raise(to, place(Agent(thread), threads), fiber.told);
}

void Worker::learn(unsigned thread, const Known& known) {
    fibers[thread].known = joins(fibers[thread].known, known);
}

// Threads from `first` on have met: each knows what the others know of other agents.
void Worker::share(unsigned first, unsigned end) {
    const Fiber& one = fibers[first];
    bool alike = true;
    for (unsigned i = first + 1; i < end && alike; i++)
        alike = fibers[i].known == one.known && fibers[i].products.done == one.products.done;
    // Of one warpgroup, or none has products: nothing is new to anybody.
    if (alike && (one.products.done == start_time || end - first <= 32)) return;
    auto all = std::make_shared<Times>();
    const Times* last = nullptr;
    for (unsigned i = first; i < end; i++) {
        const Fiber& fiber = fibers[i];
        if (fiber.known && fiber.known.get() != last) join(*all, *fiber.known);
        last = fiber.known.get();
        if (fiber.products.done > start_time)
            raise(*all, place(Agent(PRODUCTS_AGENT + i / WARPGROUP), launch->threads),
                  fiber.products.done);
    }
    const Known known = all;
    for (unsigned i = first; i < end; i++) fibers[i].known = known;
}

// Whether what a thread wrote at a time was followed by a fence_async of its own that `view` knows of.
bool Worker::fenced(const View& view, Agent thread, Time when) const {
    const auto& fences = fibers[thread].fences;
    for (size_t i = fences.size(); i > 0; i--) {
        if (view.past(thread, fences[i - 1])) return fences[i - 1] >= when;
    }
    return false;
}

void Worker::fence_async() {
    fibers[current].told = event();
    fibers[current].fences.push_back(fibers[current].told);
}

}  // namespace simt
