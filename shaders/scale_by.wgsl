// y = x * factor[0], or x / factor[0]. Four neighbouring elements an invocation; grid folded into two dimensions.

struct Params {
    len: u32,
    // 1: divide.
    divide: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> factor: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let first = ((group.x + group.y * groups.x) * 256u + local.x) * 4u;
    let last = min(first + 4u, params.len);
    for (var i = first; i < last; i++) {
        if params.divide != 0u {
            y[i] = x[i] / factor[0];
        } else {
            y[i] = x[i] * factor[0];
        }
    }
}
