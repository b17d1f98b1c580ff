// Adds a tile's share to the running sum of the gradient: dx = decay[row] * dx + share. One invocation a vector.

struct Params {
    // Vectors of four elements, and those of a row.
    len: u32,
    dim: u32,
    // 1 where the sum so far is scaled by `decay`, which is not read otherwise.
    decayed: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> share: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> decay: array<f32>;
@group(0) @binding(3) var<storage, read_write> dx: array<vec4<f32>>;

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
    var factor = 1.0;
    if params.decayed != 0u {
        factor = decay[i / params.dim];
    }
    dx[i] = factor * dx[i] + share[i];
}
