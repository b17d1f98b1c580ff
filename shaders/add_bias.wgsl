// y[r, c] = x[r, c] + bias[c]. One invocation an element.

struct Params {
    // Elements, and elements of a row.
    len: u32,
    columns: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> bias: array<f32>;
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
    y[i] = x[i] + bias[i % params.columns];
}
