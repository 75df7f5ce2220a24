// The race check. Kernels are compiled with -fsanitize=thread, whose calls before each read and write are answered here
// instead of by ThreadSanitizer: the shadow below keeps who last wrote and read every two bytes of the device's
// memory, and says when two threads do so with nothing between them that puts one first. Of reads it keeps the last by
// each of two blocks.
//
// What puts one before the other: a launch before the next; in a block, sync_block; in a warp, sync_warp
// too (shuffles, votes and products order nothing); between blocks, a fence, an atomic, the same atomic by
// another block and a fence there, with barriers between where others than the atomics' threads read and wrote.
// Blocks run one after the other, so one that is not ordered is found whichever is first.
//
// The shadow also finds reads and writes outside of allocations, of shared memory that nobody wrote, of a target of
// cp.async before its wait, and, before wait_for_earlier(), writes and reads of what earlier kernels wrote.
#ifdef HOST_RACE

#include "race.h"

#include "block.h"
#include "memory.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <map>
#include <string>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

namespace host::race {
namespace {

// Epochs count barriers of blocks, and their beginnings, over the whole run of the program: those of a block are
// successive, and none is another's. 0: never.
typedef u32 Epoch;

enum class Who : u8 { Lane, Warp, Many };

// The last of one kind of access to two bytes.
struct Stamp {
    Epoch epoch;
    // The warp's sync_warps before it.
    u32 warp_epoch;
    // Where in the program: an address of code.
    u32 code;
    u16 thread;
    // Of reads since the block's last barrier: one lane's, more of one warp, or of several warps.
    Who who;
    bool is_atomic;
};

enum class State : u8 { Outside, Free, Shared, Global, UnderCopy };

struct Cell {
    Stamp write, read;
    // The last read by another block than `read`'s.
    Stamp other_read;
    State state;
};

constexpr u64 ARENA_BYTES = 1ull << 30, CELL_BYTES = 2;
constexpr u64 RED_ZONE = 64;

// What another block has made known of itself with an atomic.
struct Release {
    // Its epochs.
    Epoch first, last;
    // All that it did before this epoch, and all of this thread.
    Epoch until;
    u16 thread;
    bool with_thread;
};

struct Thread {
    // It has written since its last fence.
    bool is_dirty;
    bool waited;
    // All before this epoch is fenced by it.
    Epoch fenced;
    // How many of the block's acquired releases it may rely on.
    u32 n_usable;
};

// A release that some thread's atomic met.
struct Acquired {
    Release release;
    u16 thread;
    Epoch epoch;
};

struct Check {
    char* arena = nullptr;
    Cell* cells = nullptr;
    u64 used = 0;
    std::multimap<u64, char*> freed;
    std::map<char*, u64> sizes;
    Epoch epoch = 0, first_of_block = 0, first_of_launch = 0;
    u32 n_threads = 0;
    Thread threads[1024];
    u32 warp_epochs[32];
    // All that the block did before this epoch is fenced.
    Epoch fenced = 0;
    std::vector<Acquired> acquired;
    // Of this launch, by the word.
    std::map<void*, std::vector<Release>> releases;
};

Check check;

void* reserve(u64 bytes) {
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        perror("cuda_host: the shadow of memory");
        exit(2);
    }
    return memory;
}

// The cells of some memory, none where it is not the device's.
struct Cells {
    Cell* first;
    u64 n;
};

Cells cells_of(const void* memory, u64 bytes) {
    const u64 offset = static_cast<const char*>(memory) - check.arena;
    if (check.arena == nullptr || offset >= ARENA_BYTES) {
        return {nullptr, 0};
    }
    const u64 first = offset / CELL_BYTES;
    return {check.cells + first, (offset + bytes + CELL_BYTES - 1) / CELL_BYTES - first};
}

void set_state(void* memory, u64 bytes, State state) {
    const Cells cells = cells_of(memory, bytes);
    std::fill(cells.first, cells.first + cells.n, Cell{{}, {}, {}, state});
}

// `file:line` of an address of code, and of the calls that were inlined there.
std::string place_of(u32 code) {
    char command[128], line[512];
    snprintf(command, sizeof(command), "addr2line -i -s -e /proc/%d/exe 0x%x", getpid(), code - 1);
    std::string place;
    if (FILE* pipe = popen(command, "r")) {
        while (fgets(line, sizeof(line), pipe)) {
            line[strcspn(line, " \n")] = 0;
            place += (place.empty() ? "" : " < ") + std::string(line);
        }
        pclose(pipe);
    }
    return place;
}

struct Access {
    const void* address;
    u32 bytes;
    u32 code;
    bool writes, is_atomic;
};

[[noreturn]] void refuse(const Access& access, const char* why) {
    const char* verb = access.is_atomic ? "changes" : access.writes ? "writes" : "reads";
    fail("%s %u bytes at %p (%s): %s", verb, access.bytes, access.address, place_of(access.code).c_str(), why);
}

[[noreturn]] void race_with(const Access& access, const Stamp& other, const char* did) {
    const char* where = other.epoch >= check.first_of_block ? "" : " of another block";
    const char* more = other.who == Who::Lane ? "" : " and others";
    const std::string why = "a race: thread " + std::to_string(other.thread) + more + where + " " + did + " it (" +
                            place_of(other.code) + "), and nothing puts one before the other";
    refuse(access, why.c_str());
}

bool is_acquired(const Stamp& other) {
    const u32 n_usable = check.threads[threadIdx.x].n_usable;
    for (u32 i = 0; i < check.acquired.size(); i++) {
        const Acquired& acquired = check.acquired[i];
        const Release& release = acquired.release;
        if (other.epoch < release.first || other.epoch > release.last || i >= n_usable) {
            continue;
        }
        if (other.epoch < release.until || (release.with_thread && other.thread == release.thread)) {
            return true;
        }
    }
    return false;
}

// Whether an earlier access is before what the thread that runs does now.
bool is_before(const Stamp& other) {
    if (other.epoch < check.first_of_launch) {
        return true;
    }
    if (other.epoch < check.first_of_block) {
        return is_acquired(other);
    }
    if (other.epoch < check.epoch) {
        return true;
    }
    if (other.who == Who::Many || other.thread / 32 != threadIdx.x / 32) {
        return false;
    }
    return other.warp_epoch < check.warp_epochs[threadIdx.x / 32] ||
           (other.who == Who::Lane && other.thread == threadIdx.x);
}

Stamp stamp_of(const Access& access) {
    const u32 thread = threadIdx.x;
    return {check.epoch, check.warp_epochs[thread / 32], access.code, (u16)thread, Who::Lane, access.is_atomic};
}

// `now` with the reads of this block since its last barrier that a later write may meet.
Stamp joined(const Stamp& earlier, Stamp now) {
    if (earlier.epoch != now.epoch || (earlier.who == Who::Lane && earlier.thread == now.thread)) {
        return now;
    }
    if (earlier.who == Who::Many || earlier.thread / 32 != now.thread / 32) {
        // The one of another warp is what a write of this thread's would race with.
        now.who = Who::Many;
    } else if (earlier.warp_epoch == now.warp_epoch) {
        now.who = Who::Warp;
    }
    return now;
}

void check_cell(Cell& cell, const Access& access) {
    if (cell.state == State::Outside || cell.state == State::Free) {
        refuse(access, cell.state == State::Free ? "this memory was freed" : "no allocation is there");
    }
    if (cell.state == State::UnderCopy) {
        refuse(access, "cp.async writes there, and was not waited for");
    }
    if (cell.state == State::Shared && !access.writes && cell.write.epoch < check.first_of_block) {
        refuse(access, "nobody wrote this shared memory");
    }
    if (cell.state == State::Global && !check.threads[threadIdx.x].waited) {
        if (access.writes) {
            refuse(access, "before wait_for_earlier()");
        }
        if (cell.write.epoch != 0 && cell.write.epoch < check.first_of_launch) {
            refuse(access, "an earlier kernel wrote it, and wait_for_earlier() was not called");
        }
    }
    const bool both_atomic = access.is_atomic && cell.write.is_atomic;
    if (!both_atomic && !is_before(cell.write)) {
        race_with(access, cell.write, cell.write.is_atomic ? "changed" : "wrote");
    }
    const Stamp now = stamp_of(access);
    if (access.writes) {
        for (const Stamp& read : {cell.read, cell.other_read}) {
            if (!is_before(read)) {
                race_with(access, read, "read");
            }
        }
        cell.write = now;
        return;
    }
    if (cell.read.epoch < check.first_of_block) {
        cell.other_read = cell.read;
    }
    cell.read = joined(cell.read, now);
}

void check_access(const Access& access) {
    const Cells cells = cells_of(access.address, access.bytes);
    for (u64 i = 0; i < cells.n; i++) {
        check_cell(cells.first[i], access);
    }
    if (access.writes && !access.is_atomic && cells.n > 0 && cells.first->state == State::Global) {
        check.threads[threadIdx.x].is_dirty = true;
    }
}

u32 code_at(void* address) { return (u32)reinterpret_cast<uintptr_t>(address); }

}  // namespace

void* allocate(u64 bytes, Space space) {
    if (!check.arena) {
        check.arena = static_cast<char*>(reserve(ARENA_BYTES));
        check.cells = static_cast<Cell*>(reserve(ARENA_BYTES / CELL_BYTES * sizeof(Cell)));
    }
    char* memory;
    const auto freed = check.freed.find(bytes);
    if (freed != check.freed.end()) {
        memory = freed->second;
        check.freed.erase(freed);
    } else {
        memory = check.arena + check.used;
        check.used = (check.used + bytes + RED_ZONE + 255) / 256 * 256;
        if (check.used > ARENA_BYTES) {
            fail("the watched memory has %llu bytes", ARENA_BYTES);
        }
        check.sizes[memory] = bytes;
    }
    set_state(memory, bytes, space == Space::Shared ? State::Shared : State::Global);
    return memory;
}

void release(void* memory) {
    const u64 bytes = check.sizes[static_cast<char*>(memory)];
    set_state(memory, bytes, State::Free);
    check.freed.insert({bytes, static_cast<char*>(memory)});
}

void written_by_host(void* memory, u64 bytes) { set_state(memory, bytes, State::Global); }

void launch_begins() {
    check.first_of_launch = check.epoch + 1;
    check.releases.clear();
}

void block_begins(u32 n_threads) {
    check.first_of_block = ++check.epoch;
    check.n_threads = n_threads;
    check.fenced = 0;
    check.acquired.clear();
    std::fill(check.threads, check.threads + n_threads, Thread{});
    std::fill(check.warp_epochs, check.warp_epochs + 32, 1);
}

void block_met() {
    check.epoch++;
    u32 n_usable = 0;
    bool is_dirty = false;
    for (u32 thread = 0; thread < check.n_threads; thread++) {
        n_usable = std::max(n_usable, check.threads[thread].n_usable);
        is_dirty |= check.threads[thread].is_dirty;
    }
    for (u32 thread = 0; thread < check.n_threads; thread++) {
        check.threads[thread].n_usable = n_usable;
    }
    if (!is_dirty) {
        check.fenced = check.epoch;
    }
}

void warp_met(u32 warp) { check.warp_epochs[warp]++; }

void waited_for_earlier() { check.threads[threadIdx.x].waited = true; }

// A fence is cumulative: what the barriers before it put before it, it puts before what follows.
void fenced() {
    Thread& thread = check.threads[threadIdx.x];
    thread.is_dirty = false;
    thread.fenced = check.epoch;
    while (thread.n_usable < check.acquired.size()) {
        const Acquired& next = check.acquired[thread.n_usable];
        if (next.thread != threadIdx.x && next.epoch == check.epoch) {
            break;
        }
        thread.n_usable++;
    }
}

// In shared memory it orders nothing: barriers do.
void atomic(void* word, u32 bytes) {
    check_access({word, bytes, code_at(__builtin_return_address(1)), true, true});
    const Cells cells = cells_of(word, bytes);
    if (cells.n == 0 || cells.first->state == State::Shared) {
        return;
    }
    const Thread& thread = check.threads[threadIdx.x];
    std::vector<Release>& releases = check.releases[word];
    for (const Release& release : releases) {
        if (release.first != check.first_of_block) {
            check.acquired.push_back({release, (u16)threadIdx.x, check.epoch});
        }
    }
    const Epoch until = std::max(check.fenced, thread.fenced);
    const bool with_thread = !thread.is_dirty && thread.fenced != 0;
    releases.push_back({check.first_of_block, check.epoch, until, (u16)threadIdx.x, with_thread});
}

void copy_issued(void* shared, const void* global) {
    const u32 code = code_at(__builtin_return_address(1));
    check_access({global, 16, code, false, false});
    check_access({shared, 16, code, true, false});
    const Cells cells = cells_of(shared, 16);
    std::for_each(cells.first, cells.first + cells.n, [](Cell& cell) { cell.state = State::UnderCopy; });
}

// For others it is written when its own thread has waited.
void copy_done(void* shared) {
    const Cells cells = cells_of(shared, 16);
    std::for_each(cells.first, cells.first + cells.n, [](Cell& cell) { cell.state = State::Shared; });
    check_access({shared, 16, code_at(__builtin_return_address(1)), true, false});
}

}  // namespace host::race

// What the compiler calls before an access.
using host::race::check_access;
using host::race::code_at;
#define ACCESS(name, bytes, writes)                                                         \
    extern "C" void name(void* address) {                                                   \
        check_access({address, bytes, code_at(__builtin_return_address(0)), writes, false}); \
    }
ACCESS(__tsan_read1, 1, false)
ACCESS(__tsan_read2, 2, false)
ACCESS(__tsan_read4, 4, false)
ACCESS(__tsan_read8, 8, false)
ACCESS(__tsan_read16, 16, false)
ACCESS(__tsan_write1, 1, true)
ACCESS(__tsan_write2, 2, true)
ACCESS(__tsan_write4, 4, true)
ACCESS(__tsan_write8, 8, true)
ACCESS(__tsan_write16, 16, true)
ACCESS(__tsan_unaligned_read2, 2, false)
ACCESS(__tsan_unaligned_read4, 4, false)
ACCESS(__tsan_unaligned_read8, 8, false)
ACCESS(__tsan_unaligned_read16, 16, false)
ACCESS(__tsan_unaligned_write2, 2, true)
ACCESS(__tsan_unaligned_write4, 4, true)
ACCESS(__tsan_unaligned_write8, 8, true)
ACCESS(__tsan_unaligned_write16, 16, true)
extern "C" void __tsan_read_range(void* address, unsigned long bytes) {
    check_access({address, (u32)bytes, code_at(__builtin_return_address(0)), false, false});
}
extern "C" void __tsan_write_range(void* address, unsigned long bytes) {
    check_access({address, (u32)bytes, code_at(__builtin_return_address(0)), true, false});
}
extern "C" void __tsan_init() {}

#endif
