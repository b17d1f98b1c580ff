// Dropout: y = scale * x where the element's random word is at least `threshold`, else 0.
// The words come from Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), a function of
// a counter and a key, in integers alone: block i / 4 of (seed, step, salt) gives the words of four elements, the same
// on every adapter. One invocation a block.

struct Params {
    len: u32,
    salt: u32,
    threshold: u32,
    scale: f32,
    // The first block of the mask.
    first: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> seed: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

// The upper 32 bits of a 64-bit product, by halves of 16 bits.
fn multiply_high(a: u32, b: u32) -> u32 {
    let a0 = a & 0xffffu;
    let a1 = a >> 16u;
    let b0 = b & 0xffffu;
    let b1 = b >> 16u;
    let middle = a1 * b0 + ((a0 * b0) >> 16u);
    let carry = a0 * b1 + (middle & 0xffffu);
    return a1 * b1 + (middle >> 16u) + (carry >> 16u);
}

fn philox(start: vec4<u32>, start_key: vec2<u32>) -> vec4<u32> {
    var c = start;
    var key = start_key;
    for (var round = 0u; round < 10u; round++) {
        let high0 = multiply_high(0xd2511f53u, c.x);
        let high1 = multiply_high(0xcd9e8d57u, c.z);
        c = vec4(high1 ^ c.y ^ key.x, 0xcd9e8d57u * c.z, high0 ^ c.w ^ key.y, 0xd2511f53u * c.x);
        key += vec2(0x9e3779b9u, 0xbb67ae85u);
    }
    return c;
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let block = (group.x + group.y * groups.x) * 256u + local.x;
    let first = 4u * block;
    if first >= params.len {
        return;
    }
    let words = philox(vec4(params.first + block, seed[1], 0u, 0u), vec2(seed[0], params.salt));
    let keep = words >= vec4(params.threshold);
    for (var j = 0u; j < min(4u, params.len - first); j++) {
        y[first + j] = select(0.0, params.scale * x[first + j], keep[j]);
    }
}
