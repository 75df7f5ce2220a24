// Rows of logits of any stride. A four may reach past its row; those ids are not live.

alias Logits = u32;

fn base_four(at: u32) -> vec4<u32> {
    return vec4(base[at], base[at + 1u], base[at + 2u], base[at + 3u]);
}

fn expert_four(at: u32) -> vec4<u32> {
    return vec4(expert[at], expert[at + 1u], expert[at + 2u], expert[at + 3u]);
}

fn anti_four(at: u32) -> vec4<u32> {
    return vec4(anti[at], anti[at + 1u], anti[at + 2u], anti[at + 3u]);
}
