// Runs the blocks of a launch, one at a time, every thread a fibre.
//
// A thread runs until it has to wait for others: at a barrier for its block, at a function of the warp for its warp.
// It is an error when one that is waited for has ended, waits elsewhere, or waits at another call of the source.
#pragma once

#include "cuda_host.h"

namespace host {

// The order in which blocks run, and threads among those that can: results must not depend on it.
enum class Order { Forward, Reverse, Shuffled };

struct Kernel {
    const char* name;
    u32 threads;
    u32 args_bytes;
    void (*run)(const void* args);
};

struct Orders {
    Order blocks = Order::Forward;
    Order threads = Order::Forward;
};

// Once, before any launch.
void set_up(Orders orders);
void launch(const Kernel& kernel, uint3 grid, const void* args);

}  // namespace host
