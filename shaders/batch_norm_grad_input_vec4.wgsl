// Gradient of batch norm with respect to x, given those of weight and bias, with h = (x - mean) * inv_std:
// dx[r, c] = weight[c] * inv_std[c] * (dy[r, c] - dbias[c] / rows - h[r, c] * dweight[c] / rows).
// As batch_norm_grad_input.wgsl with vectors of four channels. A workgroup is COLUMNS vectors x LANES rows that walk a
// split of the rows: a column's constants are read once.

struct Params {
    rows: u32,
    // Channels / 4.
    columns: u32,
    rows_per_split: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> weight: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> mean: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> inv_std: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read> dweight: array<vec4<f32>>;
@group(0) @binding(7) var<storage, read> dbias: array<vec4<f32>>;
@group(0) @binding(8) var<storage, read_write> dx: array<vec4<f32>>;

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
    let rows = f32(params.rows);
    let center = mean[column];
    let inverse = inv_std[column];
    let scale = inverse * weight[column];
    let offset = dbias[column] / rows;
    let slope = inverse * (dweight[column] / rows);
    for (var row = first + local.y; row < last; row += LANES) {
        let i = row * params.columns + column;
        dx[i] = scale * ((dy[i] - offset) - (x[i] - center) * slope);
    }
}
