// Accesses to memory that is not there, on a thread of a kernel, are the launch's error and not the
// end of the program.
#include "fault.h"

#ifdef __linux__

#include <signal.h>
#include <ucontext.h>

#include <mutex>

#include "worker.h"

namespace simt {

namespace {

constexpr int SIGNALS[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
struct sigaction previous[4];

void report() { worker->report_fault(); }

void handle(int signal, siginfo_t* info, void* context) {
    auto& registers = static_cast<ucontext_t*>(context)->uc_mcontext;
    if (unsigned char* stack = worker ? worker->fault(signal, info->si_addr) : nullptr) {
        // Go on in `report`, on a stack that is known to be good.
        const auto top = reinterpret_cast<uintptr_t>(stack) / 16 * 16;
        const auto code = reinterpret_cast<uintptr_t>(report);
#if defined(__x86_64__)
        registers.gregs[REG_RSP] = static_cast<greg_t>(top - 8);
        registers.gregs[REG_RIP] = static_cast<greg_t>(code);
#else
        registers.sp = top;
        registers.pc = code;
#endif
        return;
    }
    for (int i = 0; i < 4; i++) {
        if (SIGNALS[i] != signal) continue;
        if (previous[i].sa_flags & SA_SIGINFO)
            return previous[i].sa_sigaction(signal, info, context);
        // The instruction is tried again, and what happens then is the previous handler's.
        sigaction(signal, &previous[i], nullptr);
    }
}

}  // namespace

FaultGuard::FaultGuard() {
    static std::once_flag once;
    std::call_once(once, [] {
        struct sigaction action = {};
        action.sa_sigaction = handle;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        sigemptyset(&action.sa_mask);
        for (int i = 0; i < 4; i++) sigaction(SIGNALS[i], &action, &previous[i]);
    });
    stack_t current;
    sigaltstack(nullptr, &current);
    if (!(current.ss_flags & SS_DISABLE)) return;
    memory.resize(64 * 1024);
    stack_t own = {};
    own.ss_sp = memory.data();
    own.ss_size = memory.size();
    sigaltstack(&own, nullptr);
}

FaultGuard::~FaultGuard() {
    if (memory.empty()) return;
    stack_t none = {};
    none.ss_flags = SS_DISABLE;
    sigaltstack(&none, nullptr);
}

}  // namespace simt

#else

namespace simt {

FaultGuard::FaultGuard() {}
FaultGuard::~FaultGuard() {}

}  // namespace simt

#endif
