// y = a + factor b in vectors of four: what memory gives a kernel that does next to nothing else. A workgroup walks
// `per_workgroup` neighbours, WORKGROUP at a time.

struct Params {
    // Vectors.
    len: u32,
    per_workgroup: u32,
    factor: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> b: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>;

override WORKGROUP: u32 = 256u;

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let first = (group.x + group.y * groups.x) * params.per_workgroup;
    let last = min(first + params.per_workgroup, params.len);
    for (var i = first + local.x; i < last; i += WORKGROUP) {
        y[i] = a[i] + params.factor * b[i];
    }
}
