// What a step's gradient is multiplied by: min(1, max_norm / (norm + 1e-6)), as in PyTorch's clip_grad_norm_, or 0, which
// the optimisers take for "leave everything as it is", where the step has anything that is not finite, its norm included. `halted` counts
// such things over the steps; where it latches, no step after the first bad one is taken. One invocation.

struct Params {
    // 0: no limit.
    max_norm: f32,
    latch: u32,
    // 1: scale[0] is a loss scale, and nothing counts as bad while it is above the smallest.
    scaled: u32,
    smallest: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> norm: array<f32>;
@group(0) @binding(2) var<storage, read> nonfinite: array<u32>;
@group(0) @binding(3) var<storage, read_write> halted: array<u32>;
@group(0) @binding(4) var<storage, read> scale: array<f32>;
@group(0) @binding(5) var<storage, read_write> factor: array<f32>;

@compute @workgroup_size(1)
fn main() {
    let before = halted[0];
    let now = nonfinite[0];
    // By its bits: a test on floats may be folded away by a compiler that assumes that there are no NaNs.
    let infinite = (bitcast<u32>(norm[0]) & 0x7f800000u) == 0x7f800000u;
    // The largest number stays: a sum that wraps around would read as "none".
    let forgiven = params.scaled != 0u && scale[0] > params.smallest;
    let bad = select(select(now, 1u, infinite && now == 0u), 0u, forgiven);
    halted[0] = before + min(bad, 0xffffffffu - before);
    let halts = now > 0u || infinite || (params.latch != 0u && before > 0u);
    var wanted = 1.0;
    if params.max_norm > 0.0 {
        wanted = params.max_norm / (norm[0] + 1e-6);
    }
    factor[0] = select(select(wanted, 1.0, wanted > 1.0), 0.0, halts);
}
