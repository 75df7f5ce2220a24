// Where tokens stand in pages: [K | V][n_kv_heads][tokens][head_dim] of the cache's type, from word page_id * page_words
// of the plane. The op's params begin with `page` and have n_kv_heads and head_dim.

const PAIR_WORDS = select(1u, 2u, KV_DTYPE == F32);

// Word of the first key element of a lane's token; its values stand value_words() further.
fn key_word(lane_table: u32, position: u32, kv_head: u32) -> u32 {
    let tokens = params.page.page_tokens;
    let page_id = page_table[lane_table + position / tokens];
    let row = kv_head * tokens + position % tokens;
    return page_id * params.page.page_words + row * (params.head_dim / 2u) * PAIR_WORDS;
}

fn value_words() -> u32 {
    return params.n_kv_heads * params.page.page_tokens * (params.head_dim / 2u) * PAIR_WORDS;
}
