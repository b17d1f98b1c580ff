// 2-D convolution of every channel by itself (depthwise, one output a channel).
//
// y[pixel, c] = sum over taps of x[pixel moved by the tap, c] * weight[tap, c]. An invocation makes STRIP neighbouring pixels of a
// row for four channels, so that what their windows share is loaded once. Neighbouring invocations have neighbouring
// channels.
//
// Channels are a multiple of 4 and all tensors are seen as vec4. A workgroup is COLUMNS vectors of channels x LANES strips.
// Grid: x blocks of channels; y, z blocks of strips (folded). The same kernel does the phases of the input gradient: there the
// output is strided (see conv2d_grad_input.rs).

struct Params {
    pixels: u32,
    grid_height: u32,
    grid_width: u32,
    in_height: u32,
    in_width: u32,
    in_vectors: u32,
    group_in_vectors: u32,
    out_height: u32,
    out_width: u32,
    out_vectors: u32,
    group_out_vectors: u32,
    blocks_per_group: u32,
    taps_y: u32,
    taps_x: u32,
    stride_y: u32,
    stride_x: u32,
    origin_y: i32,
    origin_x: i32,
    out_step_y: u32,
    out_step_x: u32,
    out_first_y: u32,
    out_first_x: u32,
    weight_first: u32,
}

// How activations and weights are stored.
alias Elem = f32;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<Elem>>;
@group(0) @binding(2) var<storage, read> weight: array<vec4<Elem>>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<Elem>>;

override COLUMNS: u32 = 8u;
override LANES: u32 = 1u;
// Pixels of a strip, kernel columns, and the stride along the width: no more than COVERED_MOST pixels of x are covered.
override STRIP: u32 = 8u;
override TAPS: u32 = 3u;
override STRIDE: u32 = 1u;

const STRIP_MOST: u32 = 8u;
const COVERED_MOST: u32 = 10u;

override WORKGROUP: u32 = COLUMNS * LANES;
// Pixels of x that the windows of a strip cover.
override COVERED: u32 = (STRIP - 1u) * STRIDE + TAPS;

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let column = group.x * COLUMNS + local % COLUMNS;
    let strips_per_row = (params.grid_width + STRIP - 1u) / STRIP;
    let strip = (group.y + group.z * groups.y) * LANES + local / COLUMNS;
    if column >= params.out_vectors || strip >= params.pixels / params.grid_width * strips_per_row {
        return;
    }
    let row = strip / strips_per_row;
    let first_pixel = strip % strips_per_row * STRIP;
    let image_row = row / params.grid_height;
    let window_y = i32(row % params.grid_height * params.stride_y) + params.origin_y;
    let window_x = i32(first_pixel * STRIDE) + params.origin_x;

    var sum: array<vec4<f32>, STRIP_MOST>;
    for (var ty = 0u; ty < params.taps_y; ty++) {
        let iy = u32(window_y + i32(ty));
        if iy >= params.in_height {
            continue;
        }
        let x_row = (image_row * params.in_height + iy) * params.in_width;
        var v: array<vec4<f32>, COVERED_MOST>;
        for (var j = 0u; j < COVERED; j++) {
            let ix = u32(window_x + i32(j));
            v[j] = vec4<f32>();
            if ix < params.in_width {
                v[j] = vec4<f32>(x[(x_row + ix) * params.in_vectors + column]);
            }
        }
        for (var tx = 0u; tx < TAPS; tx++) {
            let w = vec4<f32>(weight[params.weight_first + (ty * TAPS + tx) * params.out_vectors + column]);
            for (var p = 0u; p < STRIP; p++) {
                sum[p] = fma(w, v[p * STRIDE + tx], sum[p]);
            }
        }
    }

    let oy = row % params.grid_height * params.out_step_y + params.out_first_y;
    let y_row = (image_row * params.out_height + oy) * params.out_width;
    for (var p = 0u; p < STRIP; p++) {
        if first_pixel + p < params.grid_width {
            let ox = (first_pixel + p) * params.out_step_x + params.out_first_x;
            y[(y_row + ox) * params.out_vectors + column] = vec4<Elem>(sum[p]);
        }
    }
}
