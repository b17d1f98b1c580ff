// Copies words of four bytes from one tensor to another: y[y_first + i] = x[x_first + i]. One invocation a word; grid folded
// into two dimensions.

struct Params {
    len: u32,
    x_first: u32,
    y_first: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
// As bits, whatever the elements are: a float that passes through a register may lose the payload of a NaN.
@group(0) @binding(1) var<storage, read> x: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<u32>;

override WORKGROUP: u32 = 256u;

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let i = (group.x + group.y * groups.x) * WORKGROUP + local.x;
    if i < params.len {
        y[params.y_first + i] = x[params.x_first + i];
    }
}
