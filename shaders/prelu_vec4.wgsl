// PReLU over the innermost dimension: y[r, c] = x[r, c] if x[r, c] > 0, else slope[c] * x[r, c].
// As prelu.wgsl with vectors of four channels. A workgroup is COLUMNS vectors x LANES rows that walk a split of the
// rows: a column's slopes are read once.

struct Params {
    rows: u32,
    // Channels / 4.
    columns: u32,
    rows_per_split: u32,
}

// How activations are stored.
alias Elem = f32;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<Elem>>;
@group(0) @binding(2) var<storage, read> slope: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<Elem>>;

override COLUMNS: u32 = 64u;
override LANES: u32 = 4u;

@compute @workgroup_size(COLUMNS, LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let column = group.x * COLUMNS + local.x;
    if column >= params.columns {
        return;
    }
    let first = group.y * params.rows_per_split;
    let last = min(first + params.rows_per_split, params.rows);
    let a = slope[column];
    for (var row = first + local.y; row < last; row += LANES) {
        let i = row * params.columns + column;
        let v = vec4<f32>(x[i]);
        y[i] = vec4<Elem>(select(a * v, v, v > vec4<f32>(0.0)));
    }
}
