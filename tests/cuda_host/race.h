// The race check's view of a run; nothing unless the program is compiled for it (race.cpp).
#pragma once

#include "cuda_host.h"

namespace host {

enum class Space { Shared, Global };

namespace race {

#ifdef HOST_RACE
// Memory that is watched, with nothing right behind it.
void* allocate(u64 bytes, Space space);
void release(void* memory);
void launch_begins();
void block_begins(u32 n_threads);
// All threads of the block have met: what each did before is before what each does next.
void block_met();
void warp_met(u32 warp);
void waited_for_earlier();
void fenced();
void atomic(void* word, u32 bytes);
// A cp.async: its target is nobody's from issue to wait.
void copy_issued(void* shared, const void* global);
void copy_done(void* shared);
// Whatever wrote there before, no kernel did.
void written_by_host(void* memory, u64 bytes);
#else
inline void launch_begins() {}
inline void block_begins(u32) {}
inline void block_met() {}
inline void warp_met(u32) {}
inline void waited_for_earlier() {}
inline void fenced() {}
inline void atomic(void*, u32) {}
inline void copy_issued(void*, const void*) {}
inline void copy_done(void*) {}
inline void written_by_host(void*, u64) {}
#endif

}  // namespace race
}  // namespace host
