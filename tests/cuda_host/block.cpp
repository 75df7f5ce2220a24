#include "block.h"

#include "fibre.h"
#include "memory.h"
#include "race.h"

#include <algorithm>
#include <csignal>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <unistd.h>
#include <vector>
#ifdef HOST_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

uint3 threadIdx, blockIdx, blockDim, gridDim;

namespace host {
namespace {

constexpr u32 LANES = 32;

// A 16-byte copy to shared memory that is under way.
struct Copy {
    uint4* target;
    uint4 data;
    u32 group;
};

struct Thread {
    Fibre fibre;
    bool waited_for_earlier;
    std::vector<Copy> copies;
    u32 n_groups;
};

// Those who have come to one place, all called by `site`.
struct Meeting {
    Site site;
    u32 n_here;
    u32 n_ended;
    u32 first;
};

struct Warp {
    Meeting meeting;
    u32 given[LANES], from[LANES], got[LANES];
    uint4 a[LANES];
    uint2 b[LANES];
    float* d[LANES];
};

struct Run {
    Orders orders;
    u64 random = 1;
    const Kernel* kernel = nullptr;
    const void* args = nullptr;
    Fibre main;
    Thread threads[MAX_THREADS];
    Warp warps[MAX_THREADS / LANES];
    Meeting block;
    // Threads that can go on: a ring, each thread in it at most once.
    u32 ready[MAX_THREADS];
    u32 first_ready = 0, n_ready = 0;
    void* shared = nullptr;
    u64 shared_bytes = 0;
};

Run run;

u32 random_below(u32 n) {
    run.random = run.random * 6364136223846793005ull + 1442695040888963407ull;
    return (u32)(((run.random >> 32) * n) >> 32);
}

// The n indices from `first` in the wanted order.
void put_in_order(u32* indices, u32 first, u32 n, Order order) {
    std::iota(indices, indices + n, first);
    if (order == Order::Reverse) {
        std::reverse(indices, indices + n);
    } else if (order == Order::Shuffled) {
        for (u32 left = n; left > 1; left--) {
            std::swap(indices[left - 1], indices[random_below(left)]);
        }
    }
}

// All of the n threads from `first` but `itself` can go on.
void make_ready(u32 first, u32 n, u32 itself) {
    u32 indices[MAX_THREADS];
    put_in_order(indices, first, n, run.orders.threads);
    for (u32 i = 0; i < n; i++) {
        if (indices[i] != itself) {
            run.ready[(run.first_ready + run.n_ready++) % MAX_THREADS] = indices[i];
        }
    }
}

constexpr u32 NONE = ~0u;

// Every thread that has not ended waits: some for their block, some for their warps.
[[noreturn]] void cannot_go_on() {
    const auto waits = [](const Warp& warp) { return warp.meeting.n_here > 0; };
    const Meeting& in_warp = std::find_if(run.warps, run.warps + blockDim.x / LANES, waits)->meeting;
    threadIdx.x = in_warp.first;
    fail("waits at %s (%s:%u) for its warp, while thread %u waits at %s (%s:%u)", in_warp.site.function,
         in_warp.site.file, in_warp.site.line, run.block.first, run.block.site.function, run.block.site.file,
         run.block.site.line);
}

// Runs whoever is ready, and comes back when this thread is. In the end, to the main fibre.
void give_way(Fibre& from, bool ends) {
    if (run.n_ready == 0) {
        if (run.block.n_ended < blockDim.x) {
            cannot_go_on();
        }
        switch_fibres(from, run.main, ends);
        return;
    }
    const u32 next = run.ready[run.first_ready];
    run.first_ready = (run.first_ready + 1) % MAX_THREADS;
    run.n_ready--;
    const uint3 self = threadIdx;
    threadIdx = {next, 0, 0};
    switch_fibres(from, run.threads[next].fibre, ends);
    threadIdx = self;
}

// One literal stands in several places of memory only where several files are compiled.
bool is_same(const char* a, const char* b) { return a == b || strcmp(a, b) == 0; }

bool is_same(Site a, Site b) {
    return a.line == b.line && is_same(a.function, b.function) && is_same(a.file, b.file);
}

// True in the last to come, which goes on; the others return when it has called make_ready().
bool is_last(Meeting& meeting, Site site, u32 n) {
    if (meeting.n_ended > 0) {
        fail("comes to %s (%s:%u), to which thread %u, which has ended, cannot come", site.function, site.file,
             site.line, meeting.first);
    }
    if (meeting.n_here == 0) {
        meeting.site = site;
        meeting.first = threadIdx.x;
    } else if (!is_same(meeting.site, site)) {
        fail("comes to %s (%s:%u), while thread %u waits at %s (%s:%u)", site.function, site.file, site.line,
             meeting.first, meeting.site.function, meeting.site.file, meeting.site.line);
    }
    meeting.n_here++;
    if (meeting.n_here < n) {
        give_way(run.threads[threadIdx.x].fibre, false);
        return false;
    }
    meeting.n_here = 0;
    return true;
}

void leave(Meeting& meeting) {
    if (meeting.n_here > 0) {
        const Site site = meeting.site;
        fail("ends, while thread %u waits at %s (%s:%u)", meeting.first, site.function, site.file, site.line);
    }
    if (meeting.n_ended == 0) {
        meeting.first = threadIdx.x;
    }
    meeting.n_ended++;
}

u32 lane() { return threadIdx.x % LANES; }
Warp& warp() { return run.warps[threadIdx.x / LANES]; }

// `finish` runs once, when the whole warp has come, before any lane goes on.
template <class Finish>
void with_warp(Site site, Finish finish) {
    if (is_last(warp().meeting, site, LANES)) {
        finish(warp());
        make_ready(threadIdx.x / LANES * LANES, LANES, threadIdx.x);
    }
}

void thread_main() {
    arrived(run.threads[threadIdx.x].fibre);
    run.kernel->run(run.args);
    Thread& thread = run.threads[threadIdx.x];
    if (!thread.waited_for_earlier) {
        fail("ends without wait_for_earlier()");
    }
    leave(warp().meeting);
    leave(run.block);
    give_way(thread.fibre, true);
    abort();
}

void run_block() {
    const u32 n = blockDim.x;
    run.block = {};
    run.first_ready = run.n_ready = 0;
    for (u32 thread = 0; thread < n; thread++) {
        prepare(run.threads[thread].fibre, thread_main);
        run.threads[thread].waited_for_earlier = false;
        run.threads[thread].copies.clear();
        run.threads[thread].n_groups = 0;
    }
    for (u32 warp = 0; warp < n / LANES; warp++) {
        run.warps[warp].meeting = {};
    }
    race::block_begins(n);
    make_ready(0, n, NONE);
    give_way(run.main, false);
    if (run.shared) {
        release(run.shared);
        run.shared = nullptr;
    }
}

// A device pointer's 16 bytes, aligned.
void check_aligned(const void* pointer, Site site) {
    if (reinterpret_cast<uintptr_t>(pointer) % 16 != 0) {
        fail("%s (%s:%u) of %p, which is no multiple of 16", site.function, site.file, site.line, pointer);
    }
}

// The kernel, block and thread that run.
void say_who() {
    fprintf(stderr, "cuda_host: ");
    if (run.kernel) {
        fprintf(stderr, "kernel %s, block (%u, %u, %u), thread %u: ", run.kernel->name, blockIdx.x, blockIdx.y,
                blockIdx.z, threadIdx.x);
    }
}

#ifdef HOST_ASAN
void end_report() {
    say_who();
    fprintf(stderr, "as reported above\n");
}
#endif

// A fault on a page below a stack, or anywhere else.
void faulted(int, siginfo_t* info, void*) {
    const char* address = static_cast<const char*>(info->si_addr);
    for (const Thread& thread : run.threads) {
        if (thread.fibre.stack && address < thread.fibre.stack && address >= thread.fibre.stack - GUARD_BYTES) {
            fail("the stack overflows its %zu bytes", STACK_BYTES);
        }
    }
    fail("reads or writes %p, where no memory is", info->si_addr);
}

}  // namespace

void fail(const char* format, ...) {
    say_who();
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    fflush(stderr);
    _exit(3);
}

void set_up(Orders orders) {
    run.orders = orders;
    adopt(run.main);
#ifdef HOST_ASAN
    __sanitizer_set_death_callback(end_report);
#endif
    // A fault may come of a stack that is full, so its handler has a stack of its own.
    static char stack[64 * 1024];
    stack_t other = {};
    other.ss_sp = stack;
    other.ss_size = sizeof(stack);
    sigaltstack(&other, nullptr);
    struct sigaction action = {};
    action.sa_sigaction = faulted;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, nullptr);
    sigaction(SIGBUS, &action, nullptr);
}

void launch(const Kernel& kernel, uint3 grid, const void* args) {
    run.kernel = &kernel;
    run.args = args;
    gridDim = grid;
    blockDim = {kernel.threads, 1, 1};
    blockIdx = threadIdx = {0, 0, 0};
    if (kernel.threads % LANES != 0 || kernel.threads == 0 || kernel.threads > MAX_THREADS) {
        fail("blocks of %u threads", kernel.threads);
    }
    race::launch_begins();
    std::vector<u32> blocks(grid.x * grid.y * grid.z);
    put_in_order(blocks.data(), 0, (u32)blocks.size(), run.orders.blocks);
    for (const u32 block : blocks) {
        blockIdx = {block % grid.x, block / grid.x % grid.y, block / grid.x / grid.y};
        run_block();
    }
    run.kernel = nullptr;
}

void* shared_memory(u64 bytes) {
    if (!run.shared) {
        run.shared = allocate(bytes, Space::Shared);
        run.shared_bytes = bytes;
        for (u64 byte = 0; byte < bytes; byte++) {
            static_cast<u8*>(run.shared)[byte] = (u8)(POISON >> byte % 4 * 8);
        }
    }
    if (run.shared_bytes != bytes) {
        fail("shared memory of %llu bytes after one of %llu", bytes, run.shared_bytes);
    }
    return run.shared;
}

void meet_block(Site site) {
    if (is_last(run.block, site, blockDim.x)) {
        race::block_met();
        make_ready(0, blockDim.x, threadIdx.x);
    }
}

void meet_warp(Site site) {
    with_warp(site, [](Warp&) { race::warp_met(threadIdx.x / LANES); });
}

u32 exchange(Site site, u32 bits, u32 from) {
    if (from >= LANES) {
        fail("%s (%s:%u) of lane %u", site.function, site.file, site.line, from);
    }
    warp().given[lane()] = bits;
    warp().from[lane()] = from;
    with_warp(site, [](Warp& warp) {
        for (u32 lane = 0; lane < LANES; lane++) {
            warp.got[lane] = warp.given[warp.from[lane]];
        }
    });
    return warp().got[lane()];
}

typedef float Columns __attribute__((vector_size(32)));

// d of all lanes += A B, from the 16 x depth and depth x 8 matrices: k in order.
static void multiply(Warp& warp, const float (&a)[16][16], const Columns (&b)[16], u32 depth) {
    for (u32 row = 0; row < 16; row++) {
        Columns sums;
        for (u32 t = 0; t < 4; t++) {
            const float* d = warp.d[row % 8 * 4 + t] + row / 8 * 2;
            sums[2 * t] = d[0];
            sums[2 * t + 1] = d[1];
        }
        for (u32 k = 0; k < depth; k++) {
            sums += a[row][k] * b[k];
        }
        for (u32 t = 0; t < 4; t++) {
            float* d = warp.d[row % 8 * 4 + t] + row / 8 * 2;
            d[0] = sums[2 * t];
            d[1] = sums[2 * t + 1];
        }
    }
}

static void give_fragments(float* d, uint4 a, uint2 b) {
    warp().a[lane()] = a;
    warp().b[lane()] = b;
    warp().d[lane()] = d;
}

void multiply_bf16(Site site, float* d, uint4 a, uint2 b) {
    give_fragments(d, a, b);
    with_warp(site, [](Warp& warp) {
        const auto low = [](u32 pair) { return float_of(pair << 16); };
        const auto high = [](u32 pair) { return float_of(pair & 0xffff0000u); };
        float rows[16][16];
        Columns columns[16];
        for (u32 lane = 0; lane < LANES; lane++) {
            const u32 g = lane / 4, k = lane % 4 * 2;
            const uint4 a = warp.a[lane];
            const uint2 b = warp.b[lane];
            rows[g][k] = low(a.x), rows[g][k + 1] = high(a.x);
            rows[g + 8][k] = low(a.y), rows[g + 8][k + 1] = high(a.y);
            rows[g][k + 8] = low(a.z), rows[g][k + 9] = high(a.z);
            rows[g + 8][k + 8] = low(a.w), rows[g + 8][k + 9] = high(a.w);
            columns[k][g] = low(b.x), columns[k + 1][g] = high(b.x);
            columns[k + 8][g] = low(b.y), columns[k + 9][g] = high(b.y);
        }
        multiply(warp, rows, columns, 16);
    });
}

void multiply_tf32(Site site, float* d, uint4 a, uint2 b) {
    give_fragments(d, a, b);
    with_warp(site, [](Warp& warp) {
        const auto tf32 = [](u32 bits) { return float_of(bits & 0xffffe000u); };
        float rows[16][16];
        Columns columns[16];
        for (u32 lane = 0; lane < LANES; lane++) {
            const u32 g = lane / 4, k = lane % 4;
            const uint4 a = warp.a[lane];
            rows[g][k] = tf32(a.x), rows[g + 8][k] = tf32(a.y);
            rows[g][k + 4] = tf32(a.z), rows[g + 8][k + 4] = tf32(a.w);
            columns[k][g] = tf32(warp.b[lane].x), columns[k + 4][g] = tf32(warp.b[lane].y);
        }
        multiply(warp, rows, columns, 8);
    });
}

void issue_copy(Site site, void* shared, const void* global) {
    check_aligned(shared, site);
    check_aligned(global, site);
    const char* target = static_cast<const char*>(shared);
    const char* start = static_cast<const char*>(run.shared);
    if (!run.shared || target < start || target + 16 > start + run.shared_bytes) {
        fail("%s (%s:%u) to %p, which is not in shared memory", site.function, site.file, site.line, shared);
    }
    race::copy_issued(shared, global);
    Thread& thread = run.threads[threadIdx.x];
    uint4* words = static_cast<uint4*>(shared);
    thread.copies.push_back({words, *static_cast<const uint4*>(global), thread.n_groups});
    *words = {POISON, POISON, POISON, POISON};
}

void commit_copies() { run.threads[threadIdx.x].n_groups++; }

void wait_for_copies(u32 n_under_way) {
    Thread& thread = run.threads[threadIdx.x];
    const auto is_done = [&](const Copy& copy) { return copy.group + n_under_way < thread.n_groups; };
    for (const Copy& copy : thread.copies) {
        if (is_done(copy)) {
            race::copy_done(copy.target);
            *copy.target = copy.data;
        }
    }
    thread.copies.erase(std::remove_if(thread.copies.begin(), thread.copies.end(), is_done), thread.copies.end());
}

void wait_for_earlier() {
    run.threads[threadIdx.x].waited_for_earlier = true;
    race::waited_for_earlier();
}

void fence() { race::fenced(); }

template <class Word, class Change>
static Word changed(Word* word, Change change) {
    race::atomic(word, sizeof(Word));
    const Word old = *word;
    *word = change(old);
    return old;
}

}  // namespace host

u32 atomicAdd(u32* word, u32 value) {
    return host::changed(word, [=](u32 old) { return old + value; });
}
u64 atomicAdd(u64* word, u64 value) {
    return host::changed(word, [=](u64 old) { return old + value; });
}
