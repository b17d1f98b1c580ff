// Partial sums of the gradients of batch norm's weight and bias: per split of the rows and channel,
// sum dy * (x - mean) * inv_std and sum dy. The splits are added in order by `sum_rows`.
// A workgroup is COLUMNS channels x LANES rows; the lanes stride through the split, then a tree adds them.

struct Params {
    rows: u32,
    // Channels.
    columns: u32,
    rows_per_split: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> mean: array<f32>;
@group(0) @binding(3) var<storage, read> inv_std: array<f32>;
@group(0) @binding(4) var<storage, read> dy: array<f32>;
// Both [splits, channels].
@group(0) @binding(5) var<storage, read_write> partial_weight: array<f32>;
@group(0) @binding(6) var<storage, read_write> partial_bias: array<f32>;

override COLUMNS: u32 = 64u;
// A power of two.
override LANES: u32 = 4u;

// x: the sum for the weight; y: that for the bias.
var<workgroup> sums: array<vec2<f32>, COLUMNS * LANES>;

@compute @workgroup_size(COLUMNS, LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let channel = group.x * COLUMNS + local.x;
    let first = group.y * params.rows_per_split;
    let last = min(first + params.rows_per_split, params.rows);
    var own = vec2<f32>(0.0);
    if channel < params.columns {
        let center = mean[channel];
        let scale = inv_std[channel];
        for (var row = first + local.y; row < last; row += LANES) {
            let i = row * params.columns + channel;
            let d = dy[i];
            own += vec2<f32>(d * ((x[i] - center) * scale), d);
        }
    }
    let slot = local.y * COLUMNS + local.x;
    sums[slot] = own;
    for (var stride = LANES / 2u; stride > 0u; stride /= 2u) {
        workgroupBarrier();
        if local.y < stride {
            own += sums[slot + stride * COLUMNS];
            sums[slot] = own;
        }
    }
    if local.y == 0u && channel < params.columns {
        let i = group.y * params.columns + channel;
        partial_weight[i] = own.x;
        partial_bias[i] = own.y;
    }
}
