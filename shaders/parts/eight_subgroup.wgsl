// Lanes exchange by shuffles: the words and sums of eight_plain.wgsl, whatever the size of the subgroup (at least eight).

// Word j: that of lane j.
fn gathered(own: u32) -> EightWords {
    let one = subgroupShuffleXor(own, 1u);
    let two = select(vec2<u32>(own, one), vec2<u32>(one, own), (lane & 1u) != 0u);
    let other_two = subgroupShuffleXor(two, 2u);
    let four = select(vec4<u32>(two, other_two), vec4<u32>(other_two, two), (lane & 2u) != 0u);
    let other_four = subgroupShuffleXor(four, 4u);
    let is_high = (lane & 4u) != 0u;
    return EightWords(select(four, other_four, is_high), select(other_four, four, is_high));
}

// The sum over the lanes of their number `lane`: ((0 + 4) + (2 + 6)) + ((1 + 5) + (3 + 7)).
fn sum_of_own(own: Eight) -> f32 {
    let is_high = (lane & 4u) != 0u;
    let four = select(own.lo, own.hi, is_high) + subgroupShuffleXor(select(own.hi, own.lo, is_high), 4u);
    let is_third = (lane & 2u) != 0u;
    let two = select(four.xy, four.zw, is_third) + subgroupShuffleXor(select(four.zw, four.xy, is_third), 2u);
    let is_odd = (lane & 1u) != 0u;
    return select(two.x, two.y, is_odd) + subgroupShuffleXor(select(two.y, two.x, is_odd), 1u);
}
