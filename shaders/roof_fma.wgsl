// Nothing but multiplications and additions: 12 chains an invocation, each of which waits for nobody but itself, and few enough
// that they stay in registers. y[invocation] is their sum, so that none of it can be left out.

struct Params {
    // Turns of the loop, each with four links of every chain.
    rounds: u32,
    factor: f32,
    addend: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;

override WORKGROUP: u32 = 256u;

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let index = group.x * WORKGROUP + local.x;
    let factor = vec4<f32>(params.factor);
    let addend = vec4<f32>(params.addend);
    var a = vec4<f32>(f32(index), 1.0, 2.0, 3.0);
    var b = a + 4.0;
    var c = a + 8.0;
    for (var round = 0u; round < params.rounds; round++) {
        a = fma(a, factor, addend);
        b = fma(b, factor, addend);
        c = fma(c, factor, addend);
        a = fma(a, factor, addend);
        b = fma(b, factor, addend);
        c = fma(c, factor, addend);
        a = fma(a, factor, addend);
        b = fma(b, factor, addend);
        c = fma(c, factor, addend);
        a = fma(a, factor, addend);
        b = fma(b, factor, addend);
        c = fma(c, factor, addend);
    }
    let sum = a + b + c;
    if (index < arrayLength(&y)) {
        y[index] = (sum.x + sum.y) + (sum.z + sum.w);
    }
}
