// The runner: a process that is the device of a test. Requests come in on standard input, answers go out on standard
// output, both as bytes; what goes wrong is said on standard error and ends the process.
//
// cuda_host [BLOCKS THREADS]: the orders, each forward, reverse or shuffled.

#include "block.h"
#include "memory.h"

#include <cstdio>
#include <vector>

namespace host {

// Made beside the kernels, in the order of Rust's table.
extern const Kernel* const KERNELS[];
extern const u32 N_KERNELS;

namespace {

enum What : u32 { ALLOCATE, FREE, WRITE, READ, LAUNCH };

// device.rs has the same struct. After WRITE and LAUNCH come `bytes` bytes; ALLOCATE is answered by the address,
// READ by the bytes.
struct Request {
    u32 what;
    u32 kernel;
    u32 grid[3];
    u32 reserved;
    u64 address;
    u64 bytes;
};
static_assert(sizeof(Request) == 40, "Request");

void take(void* bytes, u64 n) {
    if (n > 0 && fread(bytes, n, 1, stdin) != 1) {
        fail("a request ends in its middle");
    }
}

void answer(const void* bytes, u64 n) {
    if (n > 0 && fwrite(bytes, n, 1, stdout) != 1) {
        fail("nobody takes the answer");
    }
    fflush(stdout);
}

void serve(const Request& request) {
    void* memory = reinterpret_cast<void*>(request.address);
    switch (request.what) {
    case ALLOCATE: {
        void* allocated = allocate(request.bytes, Space::Global);
        memset(allocated, 0, request.bytes);
        answer(&allocated, sizeof(allocated));
        return;
    }
    case FREE:
        release(memory);
        return;
    case WRITE:
        take(memory, request.bytes);
        race::written_by_host(memory, request.bytes);
        return;
    case READ:
        answer(memory, request.bytes);
        return;
    case LAUNCH: {
        if (request.kernel >= N_KERNELS || request.bytes != KERNELS[request.kernel]->args_bytes) {
            fail("a launch of kernel %u with %llu bytes", request.kernel, request.bytes);
        }
        // Structs of arguments hold pointers.
        std::vector<u64> args((request.bytes + 7) / 8);
        take(args.data(), request.bytes);
        launch(*KERNELS[request.kernel], {request.grid[0], request.grid[1], request.grid[2]}, args.data());
        return;
    }
    }
    fail("request %u", request.what);
}

Order order_of(const char* name) {
    for (const Order order : {Order::Forward, Order::Reverse, Order::Shuffled}) {
        if (strcmp(name, order == Order::Forward ? "forward" : order == Order::Reverse ? "reverse" : "shuffled") == 0) {
            return order;
        }
    }
    fail("no order is named %s", name);
}

}  // namespace
}  // namespace host

int main(int n_args, char** args) {
    host::Orders orders;
    if (n_args == 3) {
        orders = {host::order_of(args[1]), host::order_of(args[2])};
    }
    host::set_up(orders);
    host::Request request;
    while (fread(&request, sizeof(request), 1, stdin) == 1) {
        host::serve(request);
    }
}
