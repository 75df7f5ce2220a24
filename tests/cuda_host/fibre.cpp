#include "fibre.h"

#include <cstdio>
#include <cstdlib>
#include <pthread.h>
#include <sys/mman.h>

#ifdef HOST_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifndef __x86_64__
#include <ucontext.h>
#endif

#ifdef __x86_64__
// Saves what a call must keep, exchanges stacks, takes it back.
asm(R"(
.text
.globl host_exchange_stacks
.type host_exchange_stacks, @function
host_exchange_stacks:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size host_exchange_stacks, . - host_exchange_stacks
)");
extern "C" void host_exchange_stacks(void** from, void* to);
#endif

namespace host {

#ifdef HOST_ASAN
constexpr size_t LAST_FRAMES_BYTES = 4096;
#endif

static char* new_stack() {
    const size_t bytes = GUARD_BYTES + STACK_BYTES;
    void* mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED || mprotect(mapped, GUARD_BYTES, PROT_NONE) != 0) {
        perror("cuda_host: a fibre's stack");
        exit(2);
    }
    return static_cast<char*>(mapped) + GUARD_BYTES;
}

void adopt(Fibre& fibre) {
    pthread_attr_t attributes;
    void* stack = nullptr;
    if (pthread_getattr_np(pthread_self(), &attributes) == 0) {
        pthread_attr_getstack(&attributes, &stack, &fibre.stack_bytes);
        pthread_attr_destroy(&attributes);
    }
    fibre.stack = static_cast<char*>(stack);
}

void prepare(Fibre& fibre, void (*entry)()) {
    if (!fibre.stack) {
        fibre.stack = new_stack();
        fibre.stack_bytes = STACK_BYTES;
    }
    fibre.fake_stack = nullptr;
#ifdef HOST_ASAN
    // The frames in which the last use ended never returned.
    __asan_unpoison_memory_region(fibre.stack + STACK_BYTES - LAST_FRAMES_BYTES, LAST_FRAMES_BYTES);
#endif
#ifdef __x86_64__
    // As if `entry` had been called: its address is what `ret` takes, above it a return address that ends backtraces.
    void** top = reinterpret_cast<void**>(fibre.stack + STACK_BYTES);
    top[-1] = nullptr;
    top[-2] = reinterpret_cast<void*>(entry);
    for (int saved = 3; saved <= 8; saved++) {
        top[-saved] = nullptr;
    }
    fibre.at = top - 8;
#else
    if (!fibre.at) {
        fibre.at = new ucontext_t;
    }
    ucontext_t* context = static_cast<ucontext_t*>(fibre.at);
    getcontext(context);
    context->uc_stack.ss_sp = fibre.stack;
    context->uc_stack.ss_size = STACK_BYTES;
    context->uc_link = nullptr;
    makecontext(context, entry, 0);
#endif
}

void switch_fibres(Fibre& from, Fibre& to, bool ends) {
#ifdef HOST_ASAN
    __sanitizer_start_switch_fiber(ends ? nullptr : &from.fake_stack, to.stack, to.stack_bytes);
#else
    (void)ends;
#endif
#ifdef __x86_64__
    host_exchange_stacks(&from.at, to.at);
#else
    if (!from.at) {
        from.at = new ucontext_t;
    }
    swapcontext(static_cast<ucontext_t*>(from.at), static_cast<ucontext_t*>(to.at));
#endif
    arrived(from);
}

void arrived(Fibre& fibre) {
#ifdef HOST_ASAN
    const void* left_stack;
    size_t left_bytes;
    __sanitizer_finish_switch_fiber(fibre.fake_stack, &left_stack, &left_bytes);
#else
    (void)fibre;
#endif
}

}  // namespace host
