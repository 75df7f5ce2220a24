// The fixed tree over the eight lanes of a group, by shuffles: the additions of exchange_plain.wgsl, whatever the size
// of the subgroup (at least eight). Every lane gets the totals.

fn exchange(own: Sums, thread: u32) -> Sums {
    let halves = add(own, shuffled(own, 4u));
    let quarters = add(halves, shuffled(halves, 2u));
    return add(quarters, shuffled(quarters, 1u));
}

fn shuffled(sums: Sums, mask: u32) -> Sums {
    return Sums(
        subgroupShuffleXor(sums.a, mask),
        subgroupShuffleXor(sums.b, mask),
        subgroupShuffleXor(sums.c, mask),
        subgroupShuffleXor(sums.d, mask),
        subgroupShuffleXor(sums.squares, mask),
    );
}
