// Memory of the device: each allocation its own, of exactly its size, so that a sanitizer sees its end.
#pragma once

#include "race.h"

#include <cstdlib>

namespace host {

// Words of memory that nothing was written to: NaN as f32, f16 and bf16.
constexpr u32 POISON = 0x7fc17fc1u;

inline void* allocate(u64 bytes, Space space) {
#ifdef HOST_RACE
    return race::allocate(bytes, space);
#else
    // What the device gives at least; nothing of shared memory is aligned to more than 128 bytes.
    const u64 alignment = space == Space::Shared ? 128 : 256;
    void* memory = nullptr;
    if (posix_memalign(&memory, alignment, bytes) != 0) {
        fail("no memory of %llu bytes", bytes);
    }
    return memory;
#endif
}

inline void release(void* memory) {
#ifdef HOST_RACE
    race::release(memory);
#else
    free(memory);
#endif
}

}  // namespace host
