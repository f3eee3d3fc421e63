// Accesses to memory: whether the thread may, and what the intrinsics do.
#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "worker.h"

extern "C" __attribute__((weak, visibility("hidden"))) const char __executable_start, _end;

namespace simt {

namespace {

const char* verb(Kind kind) {
    switch (kind) {
    case Kind::Read: return "a read";
    case Kind::Write: return "a write";
    default: return "an atomic operation";
    }
}

// Constants of the kernels' code.
bool in_program(const void* address) {
    const auto* at = static_cast<const char*>(address);
    return &__executable_start <= at && at < &_end;
}

}  // namespace

void Worker::refuse(const void* address, size_t bytes, const Access& access, const char* why) {
    char text[360], who[64] = "";
    if (access.what) snprintf(who, sizeof who, "%s: ", access.what);
    int length = snprintf(text, sizeof text, "%s%s of %zu bytes at %p%s", who, verb(access.kind),
                          bytes, address, why);
    if (access.code && in_program(access.code)) {
        // With `addr2line -i -e PROGRAM` the line of the kernel.
        const size_t offset =
            static_cast<size_t>(static_cast<const char*>(access.code) - &__executable_start);
        snprintf(text + length, sizeof text - static_cast<size_t>(length), " (code at %#zx)",
                 offset - 1);
    }
    fail(text);
}

void Worker::access(const void* address, size_t bytes, const Access& access) {
    const auto* at = static_cast<const unsigned char*>(address);
    if (access.where == Where::Anywhere && stacks <= at && at < stacks + STACKS) return;
    if (access.align > 1 && reinterpret_cast<uintptr_t>(at) % access.align) {
        refuse(address, bytes, access, ", which is not aligned");
    }
    if (shared <= at && at < shared + SHARED_SPACE) {
        if (access.where == Where::Global) refuse(at, bytes, access, ", which is shared memory");
        check_place(at, bytes, access);
        return touch(at, bytes, access, view(),
                     {static_cast<Agent>(current), time, fibers[current].told});
    }
    access_global(address, bytes, access);
}

void Worker::describe(const unsigned char* at, char* text, size_t length) const {
    // The array that it belongs to, or that it stands behind.
    const unsigned char* base = here.dynamic;
    size_t bytes = launch->shared;
    for (const SharedArray& array : arrays) {
        if (array.start <= at) {
            base = array.start;
            bytes = array.bytes;
        }
    }
    snprintf(text, length, "byte %td of %zu of %s shared array", at - base, bytes,
             base == here.dynamic ? "the dynamic" : "a");
}

// Refuses what does not lie in an array of the block.
void Worker::check_place(const unsigned char* at, size_t bytes, const Access& access) {
    const unsigned char* base = here.dynamic;
    size_t length = launch->shared;
    for (const SharedArray& array : arrays) {
        if (array.start <= at) {
            base = array.start;
            length = array.bytes;
        }
    }
    if (at >= base && at + bytes <= base + length) return;
    char text[120] = ", at ";
    describe(at, text + 5, sizeof text - 5);
    refuse(at, bytes, access, text);
}

void Worker::touch(const unsigned char* at, size_t bytes, const Access& access, const View& view,
                   const Shadow::Toucher& toucher) {
    const auto offset = static_cast<size_t>(at - shared);
    const Shadow::Touch* other = shadow.touch(offset, bytes, access.kind, view, toucher);
    if (!other) return;
    char place[120], who[60], text[300];
    describe(at, place, sizeof place);
    if (other->agent < PRODUCTS_AGENT) {
        snprintf(who, sizeof who, "thread %u", other->agent);
    } else if (other->agent < COPIES_AGENT) {
        const unsigned first = (other->agent - PRODUCTS_AGENT) * 4u;
        snprintf(who, sizeof who, "a wgmma of warps %u to %u", first, first + 3);
    } else {
        snprintf(who, sizeof who, "a copy_bulk or copy_tensor");
    }
    snprintf(text, sizeof text, " races with %s: no barrier between (%s)", who, place);
    refuse(at, bytes, access, text);
}

void Worker::touch_async(const unsigned char* at, size_t bytes, const Access& access,
                         const View& view, Agent agent) {
    if (reinterpret_cast<uintptr_t>(at) % access.align)
        refuse(at, bytes, access, ", which is not aligned");
    if (at < shared || at >= shared + SHARED_SPACE)
        refuse(at, bytes, access, ", which is not shared memory");
    check_place(at, bytes, access);
    shadow.writers(static_cast<size_t>(at - shared), bytes, [&](const Shadow::Touch& write) {
        if (write.agent >= PRODUCTS_AGENT || write.when <= start_time) return;
        if (!view.past(write.agent, write.when) || fenced(view, write.agent, write.when)) return;
        char text[160];
        snprintf(text, sizeof text,
                 " of what thread %u wrote with no fence_async and barrier after it", write.agent);
        refuse(at, bytes, access, text);
    });
    touch(at, bytes, access, view, {agent, time, start_time});
}

void Worker::access_global(const void* address, size_t bytes, const Access& access) {
    Range* range = in_global(reinterpret_cast<uintptr_t>(address), bytes);
    if (access.where == Where::Shared)
        refuse(address, bytes, access, ", which is not shared memory");
    if (!range) {
        const auto* at = static_cast<const unsigned char*>(address);
        const auto* parameters = static_cast<const unsigned char*>(launch->parameters);
        const bool constant = in_program(address) || (parameters <= at && at < parameters + 4096);
        if (access.where == Where::Anywhere && access.kind == Kind::Read && constant) return;
        char text[120] = ", where no memory is allocated";
        for (size_t i = 0; i < launch->range_count; i++) {
            // Buffers end near the end of their last page, and the next one belongs to nobody.
            const Range& near = launch->ranges[i];
            const auto start = reinterpret_cast<uintptr_t>(address);
            if (near.start > start || start - near.start > near.end - near.start + 4096) continue;
            snprintf(text, sizeof text, ", at byte %zu of %zu of a device buffer",
                     size_t(start - near.start), size_t(near.end - near.start));
        }
        refuse(address, bytes, access, text);
    }
    const bool written = __atomic_load_n(&range->written, __ATOMIC_RELAXED);
    if (!fibers[current].waited && (written || access.kind != Kind::Read)) {
        refuse(address, bytes, access,
               " of memory that kernels write comes before wait_for_predecessor()");
    }
    if (!written && access.kind != Kind::Read)
        __atomic_store_n(&range->written, 1, __ATOMIC_RELAXED);
}

Range* Worker::in_global(uintptr_t start, size_t bytes) {
    auto holds = [&](const Range& range) {
        return range.start <= start && start <= range.end && bytes <= range.end - start;
    };
    if (last_range && holds(*last_range)) return last_range;
    size_t low = 0, high = launch->range_count;
    while (low < high) {
        const size_t middle = (low + high) / 2;
        if (launch->ranges[middle].start <= start) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    if (low == 0 || !holds(launch->ranges[low - 1])) return nullptr;
    return last_range = &launch->ranges[low - 1];
}

void access(const void* address, size_t bytes, const Access& how) {
    if (worker) worker->access(address, bytes, how);
}

// What the intrinsics call.

unsigned thread() { return worker->here.thread; }
unsigned threads() { return worker->here.threads; }
unsigned block(int axis) { return worker->here.block[axis]; }
unsigned grid(int axis) { return worker->here.grid[axis]; }
unsigned char* dynamic_shared() { return worker->dynamic_shared(16); }
unsigned char* aligned_shared() { return worker->dynamic_shared(1024); }

void collective(Op op, void (*compute)(void* const*), void* operands) {
    worker->collective(op, compute, operands);
}
void barrier() { worker->barrier(); }
void* shared_array(const void* site, size_t bytes) { return worker->shared_array(site, bytes); }
void copy_async(void* to, const void* from, size_t bytes) { worker->copy_async(to, from, bytes); }
void commit_async() { worker->commit_async(); }
void wait_async(int pending) { worker->wait_async(static_cast<size_t>(pending)); }
void wait_for_predecessor() { worker->wait_for_predecessor(); }

Words load_stream16(const void* global) {
    access(global, 16, {Kind::Read, Where::Global, 16, "load_stream16"});
    Words words;
    memcpy(&words, global, 16);
    return words;
}

namespace {

template <class T>
void atomic(T* to, const char* what) {
    access(to, sizeof(T), {Kind::Atomic, Where::SharedOrGlobal, sizeof(T), what});
}

template <class T>
T add(T* to, T value) {
    atomic(to, "atomic_add");
    return __atomic_fetch_add(to, value, __ATOMIC_RELAXED);
}

}  // namespace

unsigned atomic_add(unsigned* to, unsigned value) { return add(to, value); }
unsigned long long atomic_add(unsigned long long* to, unsigned long long value) {
    return add(to, value);
}

unsigned atomic_max(unsigned* to, unsigned value) {
    atomic(to, "atomic_max");
    unsigned old = __atomic_load_n(to, __ATOMIC_RELAXED);
    while (old < value && !__atomic_compare_exchange_n(to, &old, value, false, __ATOMIC_RELAXED,
                                                       __ATOMIC_RELAXED)) {
    }
    return old;
}

unsigned atomic_min(unsigned* to, unsigned value) {
    atomic(to, "atomic_min");
    unsigned old = __atomic_load_n(to, __ATOMIC_RELAXED);
    while (old > value && !__atomic_compare_exchange_n(to, &old, value, false, __ATOMIC_RELAXED,
                                                       __ATOMIC_RELAXED)) {
    }
    return old;
}

void fail(const char* format, ...) {
    char text[300];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    worker->fail(text);
}

}  // namespace simt
