// Second stage of counting infinities and NaNs: adds the partial counts of `check_finite`. One workgroup.

struct Params {
    // Partial counts.
    len: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> partial: array<u32>;
@group(0) @binding(2) var<storage, read_write> count: array<u32>;

// A power of two.
override WORKGROUP: u32 = 256u;

var<workgroup> counts: array<u32, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_id) local: vec3<u32>) {
    var own = 0u;
    for (var i = local.x; i < params.len; i += WORKGROUP) {
        own += partial[i];
    }
    counts[local.x] = own;
    for (var stride = WORKGROUP / 2u; stride > 0u; stride /= 2u) {
        workgroupBarrier();
        if local.x < stride {
            own += counts[local.x + stride];
            counts[local.x] = own;
        }
    }
    if local.x == 0u {
        count[0] = own;
    }
}
