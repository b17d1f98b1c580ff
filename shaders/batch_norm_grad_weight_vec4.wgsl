// Partial sums of the gradients of batch norm's weight and bias: per split of the rows and channel,
// sum dy * (x - mean) * inv_std and sum dy. The splits are added in order by `sum_rows`.
// As batch_norm_grad_weight.wgsl with vectors of four channels. A workgroup is COLUMNS vectors x LANES rows; the lanes
// stride through the split, then a tree adds them.

struct Params {
    rows: u32,
    // Channels / 4.
    columns: u32,
    rows_per_split: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> mean: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> inv_std: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> dy: array<vec4<f32>>;
// Both [splits, columns].
@group(0) @binding(5) var<storage, read_write> partial_weight: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> partial_bias: array<vec4<f32>>;

override COLUMNS: u32 = 64u;
// A power of two.
override LANES: u32 = 4u;

struct Sums {
    weight: vec4<f32>,
    bias: vec4<f32>,
}

var<workgroup> sums: array<Sums, COLUMNS * LANES>;

@compute @workgroup_size(COLUMNS, LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let column = group.x * COLUMNS + local.x;
    let first = group.y * params.rows_per_split;
    let last = min(first + params.rows_per_split, params.rows);
    var own = Sums(vec4<f32>(0.0), vec4<f32>(0.0));
    if column < params.columns {
        let center = mean[column];
        let scale = inv_std[column];
        for (var row = first + local.y; row < last; row += LANES) {
            let i = row * params.columns + column;
            let d = dy[i];
            own = Sums(own.weight + d * ((x[i] - center) * scale), own.bias + d);
        }
    }
    let slot = local.y * COLUMNS + local.x;
    sums[slot] = own;
    for (var stride = LANES / 2u; stride > 0u; stride /= 2u) {
        workgroupBarrier();
        if local.y < stride {
            let other = sums[slot + stride * COLUMNS];
            own = Sums(own.weight + other.weight, own.bias + other.bias);
            sums[slot] = own;
        }
    }
    if local.y == 0u && column < params.columns {
        let i = group.y * params.columns + column;
        partial_weight[i] = own.weight;
        partial_bias[i] = own.bias;
    }
}
