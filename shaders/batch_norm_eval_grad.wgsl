// Gradient of batch_norm_eval with respect to x: dx[r, c] = dy[r, c] * weight[c] / sqrt(variance[c] + eps).
// A workgroup is COLUMNS channels x LANES rows that walk a split of the rows: a channel's factor is made once.

struct Params {
    rows: u32,
    // Channels.
    columns: u32,
    rows_per_split: u32,
    eps: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> weight: array<f32>;
@group(0) @binding(2) var<storage, read> variance: array<f32>;
@group(0) @binding(3) var<storage, read> dy: array<f32>;
@group(0) @binding(4) var<storage, read_write> dx: array<f32>;

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
    let scale = inverseSqrt(variance[channel] + params.eps) * weight[channel];
    for (var row = first + local.y; row < last; row += LANES) {
        let i = row * params.columns + channel;
        dx[i] = dy[i] * scale;
    }
}
