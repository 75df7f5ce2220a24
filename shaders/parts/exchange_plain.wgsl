// The fixed tree over the eight lanes of a group, through workgroup memory. Every lane gets the totals.

var<workgroup> lane_sums: array<Sums, N_THREADS>;

fn exchange(own: Sums, thread: u32) -> Sums {
    lane_sums[thread] = own;
    workgroupBarrier();
    let lane = thread - thread % N_LANES_OF_K;
    let a = add(lane_sums[lane], lane_sums[lane + 4u]);
    let b = add(lane_sums[lane + 1u], lane_sums[lane + 5u]);
    let c = add(lane_sums[lane + 2u], lane_sums[lane + 6u]);
    let d = add(lane_sums[lane + 3u], lane_sums[lane + 7u]);
    return add(add(a, c), add(b, d));
}
