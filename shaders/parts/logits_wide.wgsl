// Rows of logits that stand at multiples of four: a four is one load.

alias Logits = vec4<u32>;

fn base_four(at: u32) -> vec4<u32> {
    return base[at / 4u];
}

fn expert_four(at: u32) -> vec4<u32> {
    return expert[at / 4u];
}

fn anti_four(at: u32) -> vec4<u32> {
    return anti[at / 4u];
}
