// The loss scale of the next step, and that of this one as it was: less where this one was not finite, more after `interval` steps in a row that were.
// One invocation.

struct Params {
    interval: u32,
    growth: f32,
    backoff: f32,
    smallest: f32,
    largest: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> nonfinite: array<u32>;
@group(0) @binding(2) var<storage, read_write> scale: array<f32>;
@group(0) @binding(3) var<storage, read_write> good: array<u32>;
@group(0) @binding(4) var<storage, read_write> used: array<f32>;

@compute @workgroup_size(1)
fn main() {
    let before = scale[0];
    used[0] = before;
    if nonfinite[0] > 0u {
        scale[0] = max(before * params.backoff, params.smallest);
        good[0] = 0u;
        return;
    }
    let run = good[0] + 1u;
    if run < params.interval {
        good[0] = run;
        return;
    }
    scale[0] = min(before * params.growth, params.largest);
    good[0] = 0u;
}
