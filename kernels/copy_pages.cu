// plane[to] = plane[from], page by page.
//
// plane [n_pages][page_words], copies [n_copies]. One block: up to COPY_WORDS words of one page, four at a time where a
// page is whole fours; grid (parts of a page, copies). No page is read and written in one launch, so the order of
// blocks does not matter. Reads and writes page_words words per copy.
#include "common.cuh"

struct CopyPagesArgs {
    u32* plane;
    const PageCopy* copies;
    CopyPagesParams params;
};

constexpr u32 THREADS = 256;

// This block's share of a page of n words. The pages are two, so loads need not wait for stores.
template <class Word>
DEVICE void copy_share(Word* __restrict__ to, const Word* __restrict__ from, u32 n) {
    constexpr u32 SHARE = COPY_WORDS * sizeof(u32) / sizeof(Word);
    const u32 end = min_of((blockIdx.x + 1) * SHARE, n);
#pragma unroll 4
    for (u32 word = blockIdx.x * SHARE + threadIdx.x; word < end; word += THREADS) {
        to[word] = from[word];
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) copy_pages(const CopyPagesArgs args) {
    wait_for_earlier();
    let_next_start();
    const u32 page_words = args.params.page_words;
    const PageCopy copy = args.copies[blockIdx.y];
    u32* to = args.plane + (u64)copy.to * page_words;
    const u32* from = args.plane + (u64)copy.from * page_words;
    if (page_words % 4 == 0) {
        copy_share(reinterpret_cast<uint4*>(to), reinterpret_cast<const uint4*>(from), page_words / 4);
    } else {
        copy_share(to, from, page_words);
    }
}
