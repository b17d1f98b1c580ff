// y[row] = cosines[row, labels[row]], or 0 where the label is no class. One invocation a row.

struct Params {
    rows: u32,
    classes: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> cosines: array<f32>;
@group(0) @binding(2) var<storage, read> labels: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

override WORKGROUP: u32 = 64u;

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let row = (group.x + group.y * groups.x) * WORKGROUP + local.x;
    if row >= params.rows {
        return;
    }
    let label = labels[row];
    var value = 0.0;
    if label < params.classes {
        value = cosines[row * params.classes + label];
    }
    y[row] = value;
}
