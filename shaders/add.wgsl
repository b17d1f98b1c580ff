// y = a + b, four neighbouring elements an invocation.

struct Params {
    len: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<f32>;
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
        y[i] = a[i] + b[i];
    }
}
