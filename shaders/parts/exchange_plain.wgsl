// The fixed tree over the eight lanes of a group, through workgroup memory. Every lane gets the totals.

var<workgroup> lane_sums: array<Four, N_THREADS>;

fn exchange(own: Four) -> Four {
    // Sums of the exchange before may still be read.
    workgroupBarrier();
    lane_sums[thread] = own;
    workgroupBarrier();
    let start = thread - lane;
    let a = add(lane_sums[start], lane_sums[start + 4u]);
    let b = add(lane_sums[start + 1u], lane_sums[start + 5u]);
    let c = add(lane_sums[start + 2u], lane_sums[start + 6u]);
    let d = add(lane_sums[start + 3u], lane_sums[start + 7u]);
    return add(add(a, c), add(b, d));
}
