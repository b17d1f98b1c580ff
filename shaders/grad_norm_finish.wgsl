// Second stage of a global L2 norm: adds the partial sums of `grad_norm` in a fixed order and takes the root.
// One workgroup.

struct Params {
    // Partial sums.
    len: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
// x: squares; y: squares scaled by 2^-128.
@group(0) @binding(1) var<storage, read> partial: array<vec2<f32>>;
@group(0) @binding(2) var<storage, read_write> norm: array<f32>;

// A power of two.
override WORKGROUP: u32 = 256u;

const UP: f32 = 0x1p64;

var<workgroup> sums: array<vec2<f32>, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_id) local: vec3<u32>) {
    var own = vec2<f32>(0.0);
    for (var i = local.x; i < params.len; i += WORKGROUP) {
        own += partial[i];
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
        let small = sqrt(own.x);
        if own.y > 0.0 {
            let large = sqrt(own.y) * UP;
            let ratio = small / large;
            norm[0] = large * sqrt(1.0 + ratio * ratio);
        } else {
            norm[0] = small;
        }
    }
}
