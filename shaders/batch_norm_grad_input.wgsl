// Gradient of batch norm with respect to x, given those of weight and bias, with h = (x - mean) * inv_std:
// dx[r, c] = weight[c] * inv_std[c] * (dy[r, c] - dbias[c] / rows - h[r, c] * dweight[c] / rows).
// A workgroup is COLUMNS channels x LANES rows that walk a split of the rows: a channel's constants are read once.

struct Params {
    rows: u32,
    // Channels.
    columns: u32,
    rows_per_split: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> weight: array<f32>;
@group(0) @binding(3) var<storage, read> mean: array<f32>;
@group(0) @binding(4) var<storage, read> inv_std: array<f32>;
@group(0) @binding(5) var<storage, read> dy: array<f32>;
@group(0) @binding(6) var<storage, read> dweight: array<f32>;
@group(0) @binding(7) var<storage, read> dbias: array<f32>;
@group(0) @binding(8) var<storage, read_write> dx: array<f32>;

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
    let rows = f32(params.rows);
    let center = mean[channel];
    let inverse = inv_std[channel];
    let scale = inverse * weight[channel];
    let offset = dbias[channel] / rows;
    let slope = inverse * (dweight[channel] / rows);
    for (var row = first + local.y; row < last; row += LANES) {
        let i = row * params.columns + channel;
        dx[i] = scale * ((dy[i] - offset) - (x[i] - center) * slope);
    }
}
