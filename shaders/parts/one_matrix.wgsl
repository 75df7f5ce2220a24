// An op with one matrix: it stands for the second too.

const SECOND_DTYPE = FIRST_DTYPE;

fn second_word(i: u32) -> vec4<u32> {
    return first_word(i);
}
