// Changes from one stack to another: registers that a call keeps are pushed, the stack pointer is
// stored at `from`, and the other stack's registers are popped.
#pragma once
#include <cstdint>

#ifdef __APPLE__
#define SIMT_NAME(name) "_" name
#else
#define SIMT_NAME(name) name
#endif

extern "C" __attribute__((visibility("hidden"))) void realm_simt_switch(void** from, void* to);

#if defined(__x86_64__)

asm(".text\n"
    ".globl " SIMT_NAME("realm_simt_switch") "\n"
    ".p2align 4\n" SIMT_NAME("realm_simt_switch") ":\n"
    "  pushq %rbp\n"
    "  pushq %rbx\n"
    "  pushq %r12\n"
    "  pushq %r13\n"
    "  pushq %r14\n"
    "  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n"
    "  popq %r14\n"
    "  popq %r13\n"
    "  popq %r12\n"
    "  popq %rbx\n"
    "  popq %rbp\n"
    "  ret\n");

// A stack pointer from which realm_simt_switch enters `start`.
inline void* fresh_stack(unsigned char* top, void (*start)()) {
    auto* words = reinterpret_cast<uintptr_t*>(reinterpret_cast<uintptr_t>(top) & ~uintptr_t(15));
    *--words = 0;  // where start would return to: it does not
    *--words = reinterpret_cast<uintptr_t>(start);
    for (int i = 0; i < 6; i++) *--words = 0;
    return words;
}

#elif defined(__aarch64__)

asm(".text\n"
    ".globl " SIMT_NAME("realm_simt_switch") "\n"
    ".p2align 4\n" SIMT_NAME("realm_simt_switch") ":\n"
    "  sub sp, sp, #160\n"
    "  stp x19, x20, [sp]\n"
    "  stp x21, x22, [sp, #16]\n"
    "  stp x23, x24, [sp, #32]\n"
    "  stp x25, x26, [sp, #48]\n"
    "  stp x27, x28, [sp, #64]\n"
    "  stp x29, x30, [sp, #80]\n"
    "  stp d8, d9, [sp, #96]\n"
    "  stp d10, d11, [sp, #112]\n"
    "  stp d12, d13, [sp, #128]\n"
    "  stp d14, d15, [sp, #144]\n"
    "  mov x9, sp\n"
    "  str x9, [x0]\n"
    "  mov sp, x1\n"
    "  ldp x19, x20, [sp]\n"
    "  ldp x21, x22, [sp, #16]\n"
    "  ldp x23, x24, [sp, #32]\n"
    "  ldp x25, x26, [sp, #48]\n"
    "  ldp x27, x28, [sp, #64]\n"
    "  ldp x29, x30, [sp, #80]\n"
    "  ldp d8, d9, [sp, #96]\n"
    "  ldp d10, d11, [sp, #112]\n"
    "  ldp d12, d13, [sp, #128]\n"
    "  ldp d14, d15, [sp, #144]\n"
    "  add sp, sp, #160\n"
    "  ret\n");

inline void* fresh_stack(unsigned char* top, void (*start)()) {
    auto* words = reinterpret_cast<uintptr_t*>(reinterpret_cast<uintptr_t>(top) & ~uintptr_t(15));
    words -= 20;
    for (int i = 0; i < 20; i++) words[i] = 0;
    words[11] = reinterpret_cast<uintptr_t>(start);
    return words;
}

#else
#error "the emulated CUDA device knows only x86-64 and AArch64"
#endif
