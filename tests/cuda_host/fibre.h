// A fibre: a stack and where it stands. Switching between two is a few instructions on x86-64; elsewhere ucontext.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#define HOST_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define HOST_ASAN 1
#endif
#endif

namespace host {

struct Fibre {
    // Memory of the stack, above a page that none may touch.
    char* stack = nullptr;
    size_t stack_bytes = 0;
    void* at = nullptr;
    // AddressSanitizer's, while another fibre runs.
    void* fake_stack = nullptr;
};

constexpr size_t GUARD_BYTES = 4096;
constexpr size_t STACK_BYTES = 256 * 1024;
constexpr size_t MAX_THREADS = 1024;

// Makes a fibre of the one that runs, with the stack of the process.
void adopt(Fibre& fibre);
// Gives the fibre a stack, once, and makes it start at `entry` when it is switched to.
void prepare(Fibre& fibre, void (*entry)());
// Leaves `from` and goes on with `to`; returns when something switches to `from`. `ends`: nothing ever will.
void switch_fibres(Fibre& from, Fibre& to, bool ends);
// The first thing a fibre does.
void arrived(Fibre& fibre);

}  // namespace host
