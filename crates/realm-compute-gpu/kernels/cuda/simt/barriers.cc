// Barriers that count arrivals and bytes, the copies that land there, and barriers of a part of the
// block.
#include <cstdio>
#include <cstring>

#include "tensor_map.h"
#include "worker.h"

namespace simt {

namespace {

// What a barrier's own 8 bytes hold, with its number.
constexpr uint64_t MADE = 0x6261727269657200;

}  // namespace

PhaseBarrier& Worker::find_barrier(const void* at) {
    access(at, 8, {Kind::Atomic, Where::Shared, 8, "a barrier"});
    uint64_t word;
    memcpy(&word, at, 8);
    const uint64_t index = word - MADE;
    if (index < barriers.size() && barriers[index].at == at) return barriers[index];
    fail("a barrier that init_barrier or make_arrival has not made, or that was written to since");
}

// Who acts where a barrier's copies write.
Agent Worker::copies_of(const PhaseBarrier& barrier) const {
    return static_cast<Agent>(COPIES_AGENT + (&barrier - barriers.data()));
}

void Worker::init_barrier(void* at, unsigned arrivals) {
    access(at, 8, {Kind::Write, Where::Shared, 8, "init_barrier"});
    if (arrivals == 0 || arrivals >= 1u << 20) fail("init_barrier for no number of arrivals");
    for (const PhaseBarrier& barrier : barriers) {
        if (barrier.at == at) fail("a barrier is made for the second time");
    }
    const uint64_t word = MADE + barriers.size();
    memcpy(at, &word, 8);
    PhaseBarrier barrier = {};
    barrier.at = static_cast<const unsigned char*>(at);
    barrier.arrivals = barrier.missing = arrivals;
    barriers.push_back(barrier);
}

// Ends the barrier's phase if nothing is missing.
void Worker::try_to_end(PhaseBarrier& barrier) {
    if (barrier.missing || barrier.bytes || !barrier.copies.empty()) return;
    barrier.missing = barrier.arrivals;
    barrier.phases++;
    raise(barrier.told, place(copies_of(barrier), launch->threads), event());
    barrier.ended = std::make_shared<const Times>(barrier.told);
    const auto index = static_cast<unsigned>(&barrier - barriers.data());
    for (unsigned i = 0; barrier.waiting && i < launch->threads; i++) {
        Fiber& fiber = fibers[i];
        if (fiber.state != State::Phase || fiber.waits_at != index) continue;
        fiber.state = State::Ready;
        learn(i, barrier.ended);
        wake(i / 32, 1u << i % 32);
        barrier.waiting--;
    }
}

void Worker::arrive(void* at, size_t bytes) {
    PhaseBarrier& barrier = find_barrier(at);
    if (barrier.missing == 0) fail("more arrivals in a phase than its barrier is made for");
    barrier.bytes += static_cast<int64_t>(bytes);
    barrier.missing--;
    tell(current, barrier.told);
    try_to_end(barrier);
}

void Worker::wait_barrier(void* at, unsigned phase) {
    PhaseBarrier& barrier = find_barrier(at);
    if (barrier.phases % 2 != phase % 2) return learn(current, barrier.ended);
    // As often as not, the copies are late.
    if (random() % 2) {
        land(barrier);
        if (barrier.phases % 2 != phase % 2) return learn(current, barrier.ended);
    }
    barrier.waiting++;
    fibers[current].waits_at = static_cast<unsigned>(&barrier - barriers.data());
    park(State::Phase);
    change();
}

// The copy's bytes are poison until it lands.
void Worker::begin_copy(PhaseBarrier& barrier, const BulkCopy& copy, const Access& write) {
    const View view = this->view();
    touch_async(copy.to, copy.bytes, write, view, copies_of(barrier));
    memset(copy.to, POISON, copy.bytes);
    barrier.copies.push_back(copy);
}

void Worker::copy_bulk(const BulkCopy& copy) {
    if (copy.bytes % 16) fail("copy_bulk of bytes that are no multiple of 16");
    PhaseBarrier& barrier = find_barrier(copy.barrier);
    begin_copy(barrier, copy, {Kind::Write, Where::Shared, 16, "copy_bulk"});
    access(copy.from, copy.bytes, {Kind::Read, Where::Global, 16, "copy_bulk"});
}

void Worker::copy_tensor(const BulkCopy& asked) {
    BulkCopy copy = asked;
    const auto* map = static_cast<const TensorMap*>(copy.map);
    if (reinterpret_cast<uintptr_t>(map) % 64 || map->magic != TENSOR_MAP)
        fail("copy_tensor with what is no tensor map");
    copy.bytes = size_t(map->box_cols) * map->box_rows * 2;
    PhaseBarrier& barrier = find_barrier(copy.barrier);
    begin_copy(barrier, copy, {Kind::Write, Where::Shared, 1024, "copy_tensor"});
    // The rows that are there, for whether they are allocated.
    for (unsigned i = 0; i < map->box_rows && copy.y + i < map->rows; i++) {
        const size_t count = copy.x < map->cols ? map->cols - copy.x : 0;
        const size_t bytes = 2 * (count < map->box_cols ? count : map->box_cols);
        if (bytes == 0) break;
        const uintptr_t from = map->address + (copy.y + i) * map->row_bytes + copy.x * 2;
        access(reinterpret_cast<const void*>(from), bytes,
               {Kind::Read, Where::Global, 2, "copy_tensor"});
    }
}

namespace {

void land_tensor(const BulkCopy& copy) {
    const auto& map = *static_cast<const TensorMap*>(copy.map);
    for (unsigned i = 0; i < map.box_rows; i++) {
        for (unsigned j = 0; j < map.box_cols; j += 8) {
            const size_t at = (size_t(i) * map.box_cols + j) * 2;
            const size_t place = at ^ (at >> 3 & 0x70);
            const size_t column = copy.x + j;
            size_t count = copy.y + i < map.rows && column < map.cols ? map.cols - column : 0;
            count = count < 8 ? count : 8;
            const uintptr_t from = map.address + (copy.y + i) * map.row_bytes + column * 2;
            memset(copy.to + place, 0, 16);
            memcpy(copy.to + place, reinterpret_cast<const void*>(from), count * 2);
        }
    }
}

}  // namespace

// All copies of a barrier land.
void Worker::land(PhaseBarrier& barrier) {
    while (!barrier.copies.empty()) {
        const size_t which = random() % barrier.copies.size();
        const BulkCopy copy = barrier.copies[which];
        barrier.copies.erase(barrier.copies.begin() + static_cast<ptrdiff_t>(which));
        if (copy.map) {
            land_tensor(copy);
        } else {
            memcpy(copy.to, copy.from, copy.bytes);
        }
        barrier.bytes -= static_cast<int64_t>(copy.bytes);
    }
    try_to_end(barrier);
}

// Nothing can run: copies that somebody waits for land. Returns whether there were any.
bool Worker::land_something() {
    for (PhaseBarrier& barrier : barriers) {
        if (barrier.waiting == 0 || barrier.copies.empty()) continue;
        land(barrier);
        if (barrier.waiting == 0) return true;
    }
    return false;
}

void Worker::sync_group(unsigned id, unsigned threads) {
    if (id == 0 || id > 15) fail("sync_group of a number that is not in 1 to 15");
    if (threads == 0 || threads % 32 || threads > launch->threads)
        fail("sync_group for a number of threads that is none of whole warps of the block");
    GroupBarrier& group = groups[id];
    if (group.arrived && group.threads != threads) {
        char text[120];
        snprintf(text, sizeof text, "sync_group(%u, %u) while others wait there for %u threads", id,
                 threads, group.threads);
        fail(text);
    }
    group.threads = threads;
    fibers[current].waits_at = id;
    tell(current, group.told);
    if (++group.arrived < threads) {
        park(State::Group);
        change();
        return;
    }
    group.arrived = 0;
    // All that the members knew was told.
    const Known known = std::make_shared<const Times>(std::move(group.told));
    group.told.clear();
    for (unsigned first = 0; first < launch->threads; first += 32) {
        unsigned lanes = 0;
        for (unsigned i = first; i < first + 32; i++) {
            Fiber& fiber = fibers[i];
            const bool waits = fiber.state == State::Group && fiber.waits_at == id;
            if (!waits && i != current) continue;
            fiber.state = State::Ready;
            fiber.known = known;
            lanes |= 1u << i % 32;
        }
        if (lanes == 0) continue;
        if (lanes != ~0u) fail("sync_group by some lanes of a warp and not by all");
        wake(first / 32, lanes);
    }
    if (random() % 2) change();
}

// Nothing can run: says what a thread waits for, of barriers that are not the whole block's.
bool Worker::explain_waits(char* text, size_t length) {
    for (unsigned i = 0; i < launch->threads; i++) {
        const Fiber& fiber = fibers[i];
        if (fiber.state == State::Phase) {
            const PhaseBarrier& barrier = barriers[fiber.waits_at];
            char where[80];
            describe(barrier.at, where, sizeof where);
            snprintf(text, length,
                     "it waits for ever for phase %u of the barrier at %s: %u of %u arrivals and "
                     "%lld bytes are missing",
                     barrier.phases, where, barrier.missing, barrier.arrivals,
                     static_cast<long long>(barrier.bytes));
        } else if (fiber.state == State::Group) {
            const GroupBarrier& group = groups[fiber.waits_at];
            snprintf(text, length, "it waits for ever at sync_group(%u, %u): %u threads have come",
                     fiber.waits_at, group.threads, group.arrived);
        } else if (fiber.state == State::Warpgroup) {
            snprintf(text, length, "it waits for ever at a wgmma: %u of 128 threads have come",
                     warpgroups[i / WARPGROUP].arrived);
        } else {
            continue;
        }
        note(i, text);
        return true;
    }
    return false;
}

// What the block left undone, if anything.
const char* Worker::find_unfinished() const {
    for (const PhaseBarrier& barrier : barriers) {
        if (!barrier.copies.empty())
            return "the block ended while a copy_bulk was on its way to its shared memory";
    }
    for (unsigned i = 0; i < launch->threads / 32; i++) {
        if (!warps[i].products.empty()) return "the block ended while a wgmma was under way";
    }
    return nullptr;
}

void Worker::clear_barriers() {
    barriers.clear();
    for (GroupBarrier& group : groups) group = {};
}

// What the intrinsics call.

void init_barrier(void* barrier, unsigned arrivals) { worker->init_barrier(barrier, arrivals); }
void fence_barriers() {}
void arrive(void* barrier, size_t bytes) { worker->arrive(barrier, bytes); }
void wait_barrier(void* barrier, unsigned phase) { worker->wait_barrier(barrier, phase); }
void copy_bulk(void* to, const void* from, size_t bytes, void* barrier) {
    worker->copy_bulk({static_cast<unsigned char*>(to), static_cast<const unsigned char*>(from),
                       bytes, barrier});
}
void copy_tensor(void* to, const void* map, unsigned x, unsigned y, void* barrier) {
    worker->copy_tensor({static_cast<unsigned char*>(to), nullptr, 0, barrier, map, x, y});
}
void fence_async() { worker->fence_async(); }
void sync_group(unsigned id, unsigned threads) { worker->sync_group(id, threads); }

}  // namespace simt
