// Normalisation with the statistics of the batch: y[r, c] = (x[r, c] - mean[c]) * inv_std[c] * weight[c] + bias[c].
// As batch_norm.wgsl with vectors of four channels. A workgroup is COLUMNS vectors x LANES rows that walk a split of
// the rows: a column's constants are read once.

struct Params {
    rows: u32,
    // Channels / 4.
    columns: u32,
    rows_per_split: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> weight: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> mean: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> inv_std: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> y: array<vec4<f32>>;

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
    let center = mean[column];
    let scale = inv_std[column] * weight[column];
    let offset = bias[column];
    for (var row = first + local.y; row < last; row += LANES) {
        let i = row * params.columns + column;
        // Not folded into one multiply-add: mean * scale may be far larger than y.
        y[i] = (x[i] - center) * scale + offset;
    }
}
