// Stochastic gradient descent with momentum, four elements an invocation, in place (PyTorch's rule):
// g = scale * grad + weight_decay * w; v = momentum * v + g; w -= lr * v, and the first weights kept from below a floor. Grid folded into two dimensions.
// `sgd_tail` does the elements that do not fill the vectors.

struct Params {
    // Vectors of four elements.
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
@group(0) @binding(1) var<storage, read_write> weight: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> grad: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> velocity: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> lr: array<f32>;
@group(0) @binding(5) var<storage, read> scale: array<f32>;

override WORKGROUP: u32 = 256u;

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let i = (group.x + group.y * groups.x) * WORKGROUP + local.x;
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
    let floored = (vec4(4u * i) + vec4(0u, 1u, 2u, 3u)) < vec4(params.floored);
    weight[i] = select(next, vec4(params.floor), floored & (next < vec4(params.floor)));
}
