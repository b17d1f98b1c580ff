// y[g] = factor * sum of the elements of x that workgroup g owns; with one workgroup, the sum of all.
// A lane strides through its workgroup's elements, then the lanes are added in a fixed tree.

struct Params {
    len: u32,
    per_group: u32,
    factor: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

const LANES: u32 = 256u;

var<workgroup> sums: array<f32, LANES>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let first = group.x * params.per_group;
    let last = min(first + params.per_group, params.len);
    var sum = 0.0;
    for (var i = first + local.x; i < last; i += LANES) {
        sum += x[i];
    }
    sums[local.x] = sum;
    workgroupBarrier();
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        if local.x < half {
            sums[local.x] += sums[local.x + half];
        }
        workgroupBarrier();
    }
    if local.x == 0u {
        y[group.x] = params.factor * sums[0];
    }
}
