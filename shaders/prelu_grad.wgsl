// Gradient of PReLU: dx = dy * (1 or slope), and the partial sums of dslope = sum dy * min(x, 0) per split of the rows and
// channel, which `sum_rows` adds in order.
// A workgroup is COLUMNS channels x LANES rows; the lanes stride through the split, then a tree adds their sums.

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
@group(0) @binding(3) var<storage, read> dy: array<Elem>;
@group(0) @binding(4) var<storage, read_write> dx: array<Elem>;
// [splits, channels].
@group(0) @binding(5) var<storage, read_write> partial: array<f32>;

override COLUMNS: u32 = 64u;
// A power of two.
override LANES: u32 = 4u;

var<workgroup> sums: array<f32, COLUMNS * LANES>;

@compute @workgroup_size(COLUMNS, LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let channel = group.x * COLUMNS + local.x;
    let first = group.y * params.rows_per_split;
    let last = min(first + params.rows_per_split, params.rows);
    var own = 0.0;
    if channel < params.columns {
        let a = slope[channel];
        for (var row = first + local.y; row < last; row += LANES) {
            let i = row * params.columns + channel;
            let v = f32(x[i]);
            let d = f32(dy[i]);
            dx[i] = Elem(select(a * d, d, v > 0.0));
            own += d * min(v, 0.0);
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
        partial[group.y * params.columns + channel] = own;
    }
}
