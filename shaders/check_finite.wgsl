// First stage of counting infinities and NaNs: every workgroup leaves the count of its share of x in `partial`.
// x is read as bits, and an element counts where all bits of its exponent are set: a test on floats may be folded
// away by a compiler that assumes that there are no NaNs.

struct Params {
    len: u32,
    // Neighbours that a workgroup takes.
    per_workgroup: u32,
    // The first workgroup's place in `partial`.
    first: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<u32>;
@group(0) @binding(2) var<storage, read_write> partial: array<u32>;

// A power of two.
override WORKGROUP: u32 = 256u;

const EXPONENT: u32 = 0x7f800000u;

var<workgroup> counts: array<u32, WORKGROUP>;

fn bad(bits: u32) -> u32 {
    return select(0u, 1u, (bits & EXPONENT) == EXPONENT);
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let begin = group.x * params.per_workgroup;
    let end = min(begin + params.per_workgroup, params.len);
    var i = begin + local.x;
    var own = 0u;
    // Four independent loads at a time.
    for (; i + 3u * WORKGROUP < end; i += 4u * WORKGROUP) {
        own += (bad(x[i]) + bad(x[i + WORKGROUP])) + (bad(x[i + 2u * WORKGROUP]) + bad(x[i + 3u * WORKGROUP]));
    }
    for (; i < end; i += WORKGROUP) {
        own += bad(x[i]);
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
        partial[params.first + group.x] = own;
    }
}
