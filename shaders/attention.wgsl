// Causal attention of one row over its lane's pages, positions 0..=position (or the window's).
//
// y [members * cap][n_heads * head_dim] f32, qkv [members * cap][(n_heads + 2 n_kv_heads) * head_dim] f32.
// One workgroup: one head of one row. Keys come in blocks of KEY_BLOCK aligned to position 0; a block alone gives its
// maximum, the sum of its weights and its weighted values, all in the order of the keys; blocks are folded left to
// right. In a block thread t has key t for the scores, then pairs t and t + 64 of the head for the values. Keys that are
// not visible are never loaded, blocks without any are skipped.
// Reads the lane's K and V once per head (from the cache for heads that share them); writes y once.

@group(0) @binding(0) var<storage, read_write> y: array<f32>;
@group(0) @binding(1) var<storage, read> qkv: array<f32>;
@group(0) @binding(2) var<storage, read> plane: array<u32>;
@group(0) @binding(3) var<storage, read> places: array<Place>;
@group(0) @binding(4) var<storage, read> page_table: array<u32>;
@group(0) @binding(5) var<storage, read> extents: array<Extent>;
@group(0) @binding(6) var<uniform> params: AttentionParams;

struct AttentionParams {
    page: PageParams,
    cap: u32,
    n_heads: u32,
    n_kv_heads: u32,
    head_dim: u32,
    scale: f32,
    softcap: f32,
    window: vec2<u32>,
}

// Below every score; -inf has no literal.
const LOWEST = -3.4028235e38f;

var<workgroup> q: array<vec2<f32>, MAX_HEAD_DIM / 2u>;
var<workgroup> scores: array<f32, KEY_BLOCK>;
var<workgroup> weights: array<f32, KEY_BLOCK>;
var<workgroup> words: array<u32, KEY_BLOCK>;

fn load_pair(word: u32) -> vec2<f32> {
    if KV_DTYPE == F32 {
        return vec2<f32>(bitcast<f32>(plane[word]), bitcast<f32>(plane[word + 1u]));
    } else if KV_DTYPE == BF16 {
        return vec2<f32>(bitcast<f32>(plane[word] << 16u), bitcast<f32>(plane[word] & 0xffff0000u));
    }
    // A device may flush subnormals, see octet.wgsl.
    return unpack2x16float(plane[word]);
}

fn score(word: u32) -> f32 {
    var sum = vec2<f32>(0.0);
    for (var i = 0u; i < params.head_dim / 2u; i++) {
        sum = fma(q[i], load_pair(word + i * PAIR_WORDS), sum);
    }
    return softcap((sum.x + sum.y) * params.scale, params.softcap);
}

@compute @workgroup_size(KEY_BLOCK)
fn main(@builtin(workgroup_id) tile: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let head = tile.x;
    let member = tile.z;
    if tile.y >= extents[member].n_rows {
        return;
    }
    let row = member * params.cap + tile.y;
    let place = places[row];
    let n_pairs = params.head_dim / 2u;
    let y_start = (row * params.n_heads + head) * params.head_dim;
    if place.live == 0u {
        for (var i = thread; i < params.head_dim; i += KEY_BLOCK) {
            y[y_start + i] = 0.0;
        }
        return;
    }
    let q_start = (row * (params.n_heads + 2u * params.n_kv_heads) + head) * params.head_dim;
    for (var i = thread; i < n_pairs; i += KEY_BLOCK) {
        q[i] = vec2<f32>(qkv[q_start + 2u * i], qkv[q_start + 2u * i + 1u]);
    }
    workgroupBarrier();

    let kv_head = head / (params.n_heads / params.n_kv_heads);
    let window = params.window[member];
    let last = place.position;
    let first = select(0u, last + 1u - window, window != 0u && window <= last);
    let pairs = vec2<u32>(thread, thread + KEY_BLOCK);
    var maximum = LOWEST;
    var sum = 0.0;
    var values = vec4<f32>(0.0);
    for (var block = first / KEY_BLOCK; block <= last / KEY_BLOCK; block++) {
        let position = block * KEY_BLOCK + thread;
        let visible = position >= first && position <= last;
        var own = LOWEST;
        var word = 0u;
        if visible {
            word = key_word(place.table, position, kv_head);
            own = score(word);
        }
        scores[thread] = own;
        workgroupBarrier();
        var block_maximum = LOWEST;
        for (var k = 0u; k < KEY_BLOCK; k++) {
            block_maximum = max(block_maximum, scores[k]);
        }
        weights[thread] = exp_nonpositive(own - block_maximum);
        words[thread] = word + value_words();
        workgroupBarrier();

        var block_sum = 0.0;
        var block_values = vec4<f32>(0.0);
        let begin = max(first, block * KEY_BLOCK) - block * KEY_BLOCK;
        let end = min(last - block * KEY_BLOCK, KEY_BLOCK - 1u);
        for (var k = begin; k <= end; k++) {
            let weight = weights[k];
            block_sum += weight;
            var v: vec4<f32>;
            if pairs.x < n_pairs {
                v = vec4<f32>(load_pair(words[k] + pairs.x * PAIR_WORDS), v.zw);
            }
            if pairs.y < n_pairs {
                v = vec4<f32>(v.xy, load_pair(words[k] + pairs.y * PAIR_WORDS));
            }
            block_values = fma(vec4<f32>(weight), v, block_values);
        }
        let new_maximum = max(maximum, block_maximum);
        let old_scale = exp_nonpositive(maximum - new_maximum);
        let block_scale = exp_nonpositive(block_maximum - new_maximum);
        sum = fma(sum, old_scale, block_sum * block_scale);
        values = fma(values, vec4<f32>(old_scale), block_values * block_scale);
        maximum = new_maximum;
    }
    let out = values / sum;
    if pairs.x < n_pairs {
        y[y_start + 2u * pairs.x] = out.x;
        y[y_start + 2u * pairs.x + 1u] = out.y;
    }
    if pairs.y < n_pairs {
        y[y_start + 2u * pairs.y] = out.z;
        y[y_start + 2u * pairs.y + 1u] = out.w;
    }
}
