// Gradient of batch_norm_eval with respect to x: dx[r, c] = dy[r, c] * weight[c] / sqrt(variance[c] + eps).
// As batch_norm_eval_grad.wgsl with vectors of four channels. A workgroup is COLUMNS vectors x LANES rows that walk a
// split of the rows: a column's factor is made once.

struct Params {
    rows: u32,
    // Channels / 4.
    columns: u32,
    rows_per_split: u32,
    eps: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> weight: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> variance: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> dx: array<vec4<f32>>;

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
    let scale = inverseSqrt(variance[column] + vec4<f32>(params.eps)) * weight[column];
    for (var row = first + local.y; row < last; row += LANES) {
        let i = row * params.columns + column;
        dx[i] = dy[i] * scale;
    }
}
