// PReLU over the innermost dimension: y[r, c] = x[r, c] if x[r, c] > 0, else slope[c] * x[r, c].
// A workgroup is COLUMNS channels x LANES rows that walk a split of the rows: a channel's slope is read once.

struct Params {
    rows: u32,
    // Channels.
    columns: u32,
    rows_per_split: u32,
}

// How activations are stored.
alias Elem = f32;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Elem>;
@group(0) @binding(2) var<storage, read> slope: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<Elem>;

override COLUMNS: u32 = 64u;
override LANES: u32 = 4u;

@compute @workgroup_size(COLUMNS, LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let channel = group.x * COLUMNS + local.x;
    if channel >= params.columns {
        return;
    }
    let first = group.y * params.rows_per_split;
    let last = min(first + params.rows_per_split, params.rows);
    let a = slope[channel];
    for (var row = first + local.y; row < last; row += LANES) {
        let i = row * params.columns + channel;
        let v = f32(x[i]);
        y[i] = Elem(select(a * v, v, v > 0.0));
    }
}
