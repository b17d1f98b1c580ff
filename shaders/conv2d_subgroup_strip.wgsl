// 2-D convolution as an implicit matrix product for kernels of three columns, at most 8 output channels a group and
// stride 1 along the width, on adapters where workgroup memory buys nothing (CPUs).
//
// As conv2d_subgroup.wgsl, but the 8 pixels of an invocation are neighbours in a row: the 30 vectors of x that their windows
// take from a row are 10 different ones, and with few output channels loading them is most of the work.
//
// Channels are multiples of 4 and all tensors are seen as vec4. Grid: x groups, y, z strips of 8 pixels (folded).
// Every subgroup must be full and have at least 8 invocations.

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

override WORKGROUP: u32 = 8u;

const PIXELS: u32 = 8u;
const TAPS: u32 = 3u;
// Pixels of x that the windows of a strip cover.
const COVERED: u32 = 10u;

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let column = group.x * params.group_out_vectors;
    let strips_per_row = (params.grid_width + PIXELS - 1u) / PIXELS;
    let strips = params.pixels / params.grid_width * strips_per_row;
    let this_strip = (group.y + group.z * groups.y) * WORKGROUP + local;
    let strip = min(this_strip, strips - 1u);
    let row = strip / strips_per_row;
    let first_pixel = strip % strips_per_row * PIXELS;
    let image_row = row / params.grid_height;
    let window_y = i32(row % params.grid_height * params.stride_y) + params.origin_y;
    let window_x = i32(first_pixel) + params.origin_x;

    // The vector of weights that this invocation loads: row slot_row of each 4, first or second half of 8 channels.
    let slot_row = lane % 8u / 2u;
    let slot_column = column + min(lane % 2u, params.group_out_vectors - 1u);

    var sum: array<array<vec4<f32>, 2>, PIXELS>;
    for (var ty = 0u; ty < params.taps_y; ty++) {
        let iy = u32(window_y + i32(ty));
        let x_row = (image_row * params.in_height + iy) * params.in_width;
        var at: array<u32, COVERED>;
        var inside: array<bool, COVERED>;
        for (var j = 0u; j < COVERED; j++) {
            let ix = u32(window_x + i32(j));
            inside[j] = iy < params.in_height && ix < params.in_width;
            at[j] = select(0u, (x_row + ix) * params.in_vectors + group.x * params.group_in_vectors, inside[j]);
        }
        for (var i = 0u; i < params.group_in_vectors; i++) {
            var v: array<vec4<f32>, COVERED>;
            for (var j = 0u; j < COVERED; j++) {
                v[j] = select(vec4<f32>(), vec4<f32>(x[at[j] + i]), inside[j]);
            }
            // w[tap][input channel][half of the output channels]
            var w: array<array<array<vec4<f32>, 2>, 4>, TAPS>;
            for (var tx = 0u; tx < TAPS; tx++) {
                let weight_row = ((ty * TAPS + tx) * params.group_in_vectors + i) * 4u + slot_row;
                let slot = vec4<f32>(weight[params.weight_first + weight_row * params.out_vectors + slot_column]);
                w[tx][0] = array(subgroupBroadcast(slot, 0u), subgroupBroadcast(slot, 1u));
                w[tx][1] = array(subgroupBroadcast(slot, 2u), subgroupBroadcast(slot, 3u));
                w[tx][2] = array(subgroupBroadcast(slot, 4u), subgroupBroadcast(slot, 5u));
                w[tx][3] = array(subgroupBroadcast(slot, 6u), subgroupBroadcast(slot, 7u));
            }
            for (var p = 0u; p < PIXELS; p++) {
                for (var tx = 0u; tx < TAPS; tx++) {
                    for (var c = 0u; c < 2u; c++) {
                        sum[p][c] += v[p + tx].x * w[tx][0][c];
                        sum[p][c] += v[p + tx].y * w[tx][1][c];
                        sum[p][c] += v[p + tx].z * w[tx][2][c];
                        sum[p][c] += v[p + tx].w * w[tx][3][c];
                    }
                }
            }
        }
    }

    let oy = row % params.grid_height * params.out_step_y + params.out_first_y;
    let y_row = (image_row * params.out_height + oy) * params.out_width;
    for (var p = 0u; p < PIXELS; p++) {
        if this_strip < strips && first_pixel + p < params.grid_width {
            let ox = (first_pixel + p) * params.out_step_x + params.out_first_x;
            let to = (y_row + ox) * params.out_vectors + column;
            y[to] = vec4<Elem>(sum[p][0]);
            if params.group_out_vectors > 1u {
                y[to + 1u] = vec4<Elem>(sum[p][1]);
            }
        }
    }
}
