// First stage of a global L2 norm: every workgroup leaves the sum of squares of its share of x in `partial`.
// Squares of large values would overflow f32, so they are summed apart, scaled by 2^-64 first (after Blue 1978):
// partial[first + group] = (sum of squares of |x| < 2^32, sum of squares of x / 2^64 of the others).

struct Params {
    len: u32,
    // Neighbours that a workgroup takes.
    per_workgroup: u32,
    // The first workgroup's place in `partial`.
    first: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> partial: array<vec2<f32>>;

// A power of two.
override WORKGROUP: u32 = 256u;

const LARGE: f32 = 0x1p32;
const DOWN: f32 = 0x1p-64;

var<workgroup> sums: array<vec2<f32>, WORKGROUP>;

fn square(value: f32) -> vec2<f32> {
    let large = abs(value) >= LARGE;
    let scaled = select(value, value * DOWN, large);
    return select(vec2<f32>(scaled * scaled, 0.0), vec2<f32>(0.0, scaled * scaled), large);
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let begin = group.x * params.per_workgroup;
    let end = min(begin + params.per_workgroup, params.len);
    var i = begin + local.x;
    var own = vec2<f32>(0.0);
    // Four independent loads at a time.
    for (; i + 3u * WORKGROUP < end; i += 4u * WORKGROUP) {
        own += (square(x[i]) + square(x[i + WORKGROUP])) + (square(x[i + 2u * WORKGROUP]) + square(x[i + 3u * WORKGROUP]));
    }
    for (; i < end; i += WORKGROUP) {
        own += square(x[i]);
    }
    sums[local.x] = own;
    for (var stride = WORKGROUP / 2u; stride > 0u; stride /= 2u) {
        workgroupBarrier();
        if local.x < stride {
            own += sums[local.x + stride];
            sums[local.x] = own;
        }
    }
    if local.x == 0u {
        partial[params.first + group.x] = own;
    }
}
