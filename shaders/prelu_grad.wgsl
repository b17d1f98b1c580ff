// Gradient of PReLU: dx[i] = dy[i] * (1 or slope), and per-channel partial sums of dslope = sum dy * min(x, 0).
// Rows are split over the grid's y; invocation x owns one channel of its row block, so that loads are coalesced and
// the sums need no atomics. The partial sums [splits, channels] are added in order by `column_sum`.

struct Params {
    rows: u32,
    channels: u32,
    rows_per_split: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> slope: array<f32>;
@group(0) @binding(3) var<storage, read> dy: array<f32>;
@group(0) @binding(4) var<storage, read_write> dx: array<f32>;
@group(0) @binding(5) var<storage, read_write> partial: array<f32>;

override WORKGROUP: u32 = 64u;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let channel = group.x * WORKGROUP + local.x;
    if channel >= params.channels {
        return;
    }
    let a = slope[channel];
    let first = group.y * params.rows_per_split;
    let last = min(first + params.rows_per_split, params.rows);
    var sum = 0.0;
    for (var row = first; row < last; row++) {
        let i = row * params.channels + channel;
        let v = x[i];
        let d = dy[i];
        dx[i] = select(a * d, d, v > 0.0);
        sum += d * min(v, 0.0);
    }
    partial[group.y * params.channels + channel] = sum;
}
