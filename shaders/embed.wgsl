// places[r] = resolve(rows[r]); x[r] = scale * table[token], 0 where the slot has finished or the token is past the table.
//
// x [members * cap][d_model] f32, places and rows [members * cap], table [members][part's rows][d_model].
// One workgroup: one row of one member. A table in parts is one dispatch per part: each writes the tokens it has, the
// first also what no part has. Binding 2, the table, is declared by pipelines.rs. Reads and writes d_model elements per row.

@group(0) @binding(0) var<storage, read_write> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> places: array<Place>;
@group(0) @binding(3) var<storage, read> rows: array<Row>;
@group(0) @binding(4) var<storage, read> slots: array<Slot>;
@group(0) @binding(5) var<storage, read> extents: array<Extent>;
@group(0) @binding(6) var<uniform> params: EmbedParams;
@group(0) @binding(7) var<uniform> part: Part;

struct EmbedParams {
    cap: u32,
    d_model: u32,
    max_pages: u32,
    reserved: u32,
    scale: vec2<f32>,
}

fn resolve(row: Row) -> Place {
    var place: Place;
    place.table = (row.slot * N_LANES + row.lane) * params.max_pages;
    place.position = row.position;
    if row.position == FROM_SLOT {
        place.position = slots[row.slot].lengths[row.lane];
    }
    place.token = row.token;
    if row.token == FROM_SLOT {
        place.token = slots[row.slot].last_id;
    }
    place.live = u32(slots[row.slot].finish == RUNNING);
    return place;
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) tile: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let member = tile.z;
    if tile.x >= extents[member].n_rows {
        return;
    }
    let row = member * params.cap + tile.x;
    let place = resolve(rows[row]);
    let known = place.live == 1u && place.token < N_VOCAB;
    let here = place.token >= part.first && place.token - part.first < part.n_rows;
    let is_first = part.first == 0u;
    if is_first && thread == 0u {
        places[row] = place;
    }
    if !((known && here) || (!known && is_first)) {
        return;
    }
    let n_octets = params.d_model / 8u;
    let table_row = row_octet(part.offset + member * part.stride + place.token - part.first, n_octets);
    for (var octet = thread; octet < n_octets; octet += 64u) {
        var value: Octet;
        if known {
            let step = octet / N_LANES_OF_K * BLOCK_ROWS * N_LANES_OF_K;
            value = first_weights((table_row + step + octet % N_LANES_OF_K) * FIRST_WORDS);
        }
        let at = row * (params.d_model / 4u) + 2u * octet;
        x[at] = params.scale[member] * value.lo;
        x[at + 1u] = params.scale[member] * value.hi;
    }
}
