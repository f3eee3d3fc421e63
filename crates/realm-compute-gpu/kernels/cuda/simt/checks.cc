// What the compiler calls in kernels: -fsanitize=thread announces every access to memory that
// others can see, -fsanitize=undefined what has no meaning. Neither's runtime library is linked.
#include "worker.h"

using simt::Kind;
using simt::Where;

#define HOOK extern "C" __attribute__((visibility("hidden")))

#define CODE __builtin_extract_return_addr(__builtin_return_address(0))
#define PLAIN(name, kind, bytes, align)                                         \
    HOOK void name(void* at) {                                                  \
        simt::access(at, bytes, {kind, Where::Anywhere, align, nullptr, CODE}); \
    }
#define ACCESSES(bytes)                                          \
    PLAIN(__tsan_read##bytes, Kind::Read, bytes, bytes)          \
    PLAIN(__tsan_write##bytes, Kind::Write, bytes, bytes)        \
    PLAIN(__tsan_volatile_read##bytes, Kind::Read, bytes, bytes) \
    PLAIN(__tsan_volatile_write##bytes, Kind::Write, bytes, bytes)
#define UNALIGNED(bytes)                                               \
    PLAIN(__tsan_unaligned_read##bytes, Kind::Read, bytes, 1)          \
    PLAIN(__tsan_unaligned_write##bytes, Kind::Write, bytes, 1)        \
    PLAIN(__tsan_unaligned_volatile_read##bytes, Kind::Read, bytes, 1) \
    PLAIN(__tsan_unaligned_volatile_write##bytes, Kind::Write, bytes, 1)

ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
UNALIGNED(2)
UNALIGNED(4)
UNALIGNED(8)
UNALIGNED(16)

HOOK void __tsan_init() {}
HOOK void __tsan_func_entry(void*) {}
HOOK void __tsan_func_exit() {}
HOOK void __tsan_vptr_update(void**, void*) {}
HOOK void __tsan_vptr_read(void**) {}
HOOK void __tsan_read_range(void* at, unsigned long bytes) {
    simt::access(at, bytes, {Kind::Read, Where::Anywhere, 1, nullptr, CODE});
}
HOOK void __tsan_write_range(void* at, unsigned long bytes) {
    simt::access(at, bytes, {Kind::Write, Where::Anywhere, 1, nullptr, CODE});
}

// The first member of what the compiler says of a fault.
struct Source {
    const char* file;
    unsigned line, column;
};

HOOK void __ubsan_handle_type_mismatch_v1(const Source* at, uintptr_t address) {
    simt::fail("%s:%u: an access to %#zx, which is not aligned for its type", at->file, at->line,
               static_cast<size_t>(address));
}
HOOK void __ubsan_handle_out_of_bounds(const Source* at, uintptr_t index) {
    simt::fail("%s:%u: index %zu is outside the array", at->file, at->line,
               static_cast<size_t>(index));
}
HOOK void __ubsan_handle_shift_out_of_bounds(const Source* at, uintptr_t, uintptr_t count) {
    simt::fail("%s:%u: a shift by %zu bits", at->file, at->line, static_cast<size_t>(count));
}
HOOK void __ubsan_handle_divrem_overflow(const Source* at, uintptr_t, uintptr_t) {
    simt::fail("%s:%u: a division by zero", at->file, at->line);
}
HOOK void __ubsan_handle_builtin_unreachable(const Source* at) {
    simt::fail("%s:%u: the place that should not be reached", at->file, at->line);
}
HOOK void __ubsan_handle_missing_return(const Source* at) {
    simt::fail("%s:%u: the end of a function that should return a value", at->file, at->line);
}
