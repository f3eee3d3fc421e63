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
    if (shared <= at && at < shared + SHARED_SPACE) return access_shared(at, bytes, access);
    access_global(address, bytes, access);
}

void Worker::access_shared(const unsigned char* at, size_t bytes, const Access& access) {
    if (access.where == Where::Global) refuse(at, bytes, access, ", which is shared memory");
    // The array that it belongs to, or that it stands behind.
    const unsigned char* base = here.dynamic;
    size_t length = launch->shared;
    for (const SharedArray& array : arrays) {
        if (array.start <= at) {
            base = array.start;
            length = array.bytes;
        }
    }
    char text[120];
    if (at < base || at + bytes > base + length) {
        snprintf(text, sizeof text, ", at byte %td of %zu of %s shared array", at - base, length,
                 base == here.dynamic ? "the dynamic" : "a");
        refuse(at, bytes, access, text);
    }
    const Moment now = {moment, warps[current / 32].moment, static_cast<uint16_t>(current)};
    const int other = shadow.touch(static_cast<size_t>(at - shared), bytes, access.kind, now);
    if (other < 0) return;
    snprintf(text, sizeof text,
             " races with thread %d: no barrier between (byte %td of %s shared array)", other,
             at - base, base == here.dynamic ? "the dynamic" : "a");
    refuse(at, bytes, access, text);
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
unsigned char* dynamic_shared() { return worker->here.dynamic; }

void collective(Op op, void (*compute)(void* const*), void* operands) {
    worker->collective(op, compute, operands);
}
void barrier() { worker->barrier(); }
void* shared_array(const void* site, size_t bytes) { return worker->shared_array(site, bytes); }
void copy_async(void* to, const void* from, size_t bytes) { worker->copy_async(to, from, bytes); }
void commit_async() { worker->commit_async(); }
void wait_async(int pending) { worker->wait_async(static_cast<size_t>(pending)); }
void make_arrival(void* barrier) { worker->make_arrival(barrier); }
void wait_arrival(void* barrier, unsigned phase) { worker->wait_arrival(barrier, phase); }
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
