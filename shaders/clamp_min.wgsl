// weight[i] = max(weight[i], minimum), in place. One invocation an element; grid folded into two dimensions.

struct Params {
    len: u32,
    minimum: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> weight: array<f32>;

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
    // A comparison, not max(): a NaN stays one and is not hidden.
    let w = weight[i];
    weight[i] = select(w, params.minimum, w < params.minimum);
}
