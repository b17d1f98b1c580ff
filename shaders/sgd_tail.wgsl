// The elements that do not fill the vectors of `sgd`, one an invocation: the same rule on scalars.

struct Params {
    len: u32,
    momentum: f32,
    weight_decay: f32,
    // 1: the gradient is multiplied by scale[0], and 0 there leaves everything as it is.
    scaled: u32,
    // So many of the first weights never fall below the floor.
    floored: u32,
    floor: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> weight: array<f32>;
@group(0) @binding(2) var<storage, read> grad: array<f32>;
@group(0) @binding(3) var<storage, read_write> velocity: array<f32>;
@group(0) @binding(4) var<storage, read> lr: array<f32>;
@group(0) @binding(5) var<storage, read> scale: array<f32>;

override WORKGROUP: u32 = 64u;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(global_invocation_id) global: vec3<u32>) {
    let i = global.x;
    if i >= params.len {
        return;
    }
    let factor = select(1.0, scale[0], params.scaled != 0u);
    if factor == 0.0 {
        return;
    }
    let w = weight[i];
    let v = params.momentum * velocity[i] + (factor * grad[i] + params.weight_decay * w);
    velocity[i] = v;
    let next = w - lr[0] * v;
    // A NaN compares false and stays one.
    weight[i] = select(next, params.floor, i < params.floored && next < params.floor);
}
