// PReLU over the innermost dimension: y[i] = x[i] if x[i] > 0, else slope[i mod channels] * x[i].
// One invocation an element; grid folded into two dimensions.

struct Params {
    len: u32,
    channels: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> slope: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

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
    let v = x[i];
    y[i] = select(slope[i % params.channels] * v, v, v > 0.0);
}
