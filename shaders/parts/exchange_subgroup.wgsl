// The fixed tree over the eight lanes of a group, by shuffles: the additions of exchange_plain.wgsl, whatever the size
// of the subgroup (at least eight). Every lane gets the totals.

fn exchange(own: Four) -> Four {
    let halves = add(own, shuffled(own, 4u));
    let quarters = add(halves, shuffled(halves, 2u));
    return add(quarters, shuffled(quarters, 1u));
}

fn shuffled(sums: Four, mask: u32) -> Four {
    return Four(
        subgroupShuffleXor(sums.a, mask),
        subgroupShuffleXor(sums.b, mask),
        subgroupShuffleXor(sums.c, mask),
        subgroupShuffleXor(sums.d, mask),
    );
}
