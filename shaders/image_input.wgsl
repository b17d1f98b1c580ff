// Packed 8-bit RGB images [batch, height, width, 3] to normalised floats, mirrored where asked for:
// y[n, r, c, k] = (byte - center_k) * scale_k. One invocation a pixel; grid folded into two dimensions.

struct Params {
    pixels: u32,
    width: u32,
    pixels_per_image: u32,
    // 1: blue first in y.
    bgr: u32,
    center_r: f32,
    center_g: f32,
    center_b: f32,
    scale_r: f32,
    scale_g: f32,
    scale_b: f32,
}

// How activations are stored.
alias Elem = f32;

@group(0) @binding(0) var<uniform> params: Params;
// Four bytes a word, the first in the lowest bits.
@group(0) @binding(1) var<storage, read> bytes: array<u32>;
@group(0) @binding(2) var<storage, read> mirror: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<Elem>;

override WORKGROUP: u32 = 256u;

fn byte(i: u32) -> f32 {
    return f32((bytes[i / 4u] >> (8u * (i % 4u))) & 0xffu);
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let pixel = (group.x + group.y * groups.x) * WORKGROUP + local.x;
    if pixel >= params.pixels {
        return;
    }
    var source = pixel;
    if mirror[pixel / params.pixels_per_image] != 0u {
        let column = pixel % params.width;
        source = pixel - column + (params.width - 1u - column);
    }
    let r = (byte(3u * source) - params.center_r) * params.scale_r;
    let g = (byte(3u * source + 1u) - params.center_g) * params.scale_g;
    let b = (byte(3u * source + 2u) - params.center_b) * params.scale_b;
    let swap = params.bgr != 0u;
    y[3u * pixel] = Elem(select(r, b, swap));
    y[3u * pixel + 1u] = Elem(g);
    y[3u * pixel + 2u] = Elem(select(b, r, swap));
}
