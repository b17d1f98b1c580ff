// Gradient of PReLU: dx = dy * (1 or slope), and the partial sums of dslope = sum dy * min(x, 0) per split of the rows and
// channel, which `sum_rows` adds in order.
// As prelu_grad.wgsl with vectors of four channels. A workgroup is COLUMNS vectors x LANES rows; the lanes stride
// through the split, then a tree adds their sums.

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
@group(0) @binding(3) var<storage, read> dy: array<vec4<Elem>>;
@group(0) @binding(4) var<storage, read_write> dx: array<vec4<Elem>>;
// [splits, columns].
@group(0) @binding(5) var<storage, read_write> partial: array<vec4<f32>>;

override COLUMNS: u32 = 64u;
// A power of two.
override LANES: u32 = 4u;

var<workgroup> sums: array<vec4<f32>, COLUMNS * LANES>;

@compute @workgroup_size(COLUMNS, LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let column = group.x * COLUMNS + local.x;
    let first = group.y * params.rows_per_split;
    let last = min(first + params.rows_per_split, params.rows);
    var own = vec4<f32>(0.0);
    if column < params.columns {
        let a = slope[column];
        for (var row = first + local.y; row < last; row += LANES) {
            let i = row * params.columns + column;
            let v = vec4<f32>(x[i]);
            let d = vec4<f32>(dy[i]);
            dx[i] = vec4<Elem>(select(a * d, d, v > vec4<f32>(0.0)));
            own += d * min(v, vec4<f32>(0.0));
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
    if local.y == 0u && column < params.columns {
        partial[group.y * params.columns + column] = own;
    }
}
