// factor = min(1, max_norm / (norm + 1e-6)): what a gradient of this norm is multiplied by so that its norm is at
// most max_norm, as in PyTorch's clip_grad_norm_. One invocation.

struct Params {
    max_norm: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> norm: array<f32>;
@group(0) @binding(2) var<storage, read_write> factor: array<f32>;

@compute @workgroup_size(1)
fn main() {
    let wanted = params.max_norm / (norm[0] + 1e-6);
    // A comparison, not min(): a NaN stays one and is not hidden.
    factor[0] = select(wanted, 1.0, wanted > 1.0);
}
