// 2-D convolution as an implicit matrix product, for adapters where workgroup memory buys nothing (CPUs).
//
// y[pixel, o] = sum over taps (ty, tx) and channels i of x[pixel moved by the tap, i] * weight[tap, i, o].
// One invocation holds PIXELS pixels x 16 output channels (8 where WIDE is false) in registers; neighbouring invocations
// have neighbouring pixels. An input vector is loaded once for 16 channels. The weights are the same for all
// invocations: the first 8 of a subgroup load one vector each, and subgroupBroadcast hands them round.
//
// Channels are multiples of 4 and all tensors are seen as vec4. Grid: x blocks of output channels, which share pixels
// and so run side by side; y, z blocks of pixels (folded). Every subgroup must be full and have
// at least 8 invocations.
// The same kernel does the phases of the input gradient: there the output is strided (see conv2d_grad_input.rs).

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
override WIDE: bool = true;

const PIXELS: u32 = 8u;

// Column, row and image of a pixel of the grid.
fn grid_position(pixel: u32) -> vec3<u32> {
    let row = pixel / params.grid_width;
    let image = row / params.grid_height;
    return vec3<u32>(pixel - row * params.grid_width, row - image * params.grid_height, image);
}

// Vector of y where a result's channels begin.
fn output_at(position: vec3<u32>) -> u32 {
    let oy = position.y * params.out_step_y + params.out_first_y;
    let ox = position.x * params.out_step_x + params.out_first_x;
    return ((position.z * params.out_height + oy) * params.out_width + ox) * params.out_vectors;
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let columns = select(2u, 4u, WIDE);
    let channel_group = group.x / params.blocks_per_group;
    let group_column = (group.x % params.blocks_per_group) * columns;
    let first_column = channel_group * params.group_out_vectors + group_column;
    let first_pixel = (group.y + group.z * groups.y) * WORKGROUP * PIXELS + local;

    // Where each pixel's window starts, its image's first row, and where its result goes.
    var window: array<vec2<i32>, PIXELS>;
    var image: array<u32, PIXELS>;
    var to: array<u32, PIXELS>;
    for (var p = 0u; p < PIXELS; p++) {
        let position = grid_position(min(first_pixel + p * WORKGROUP, params.pixels - 1u));
        window[p] = vec2<i32>(
            i32(position.y * params.stride_y) + params.origin_y,
            i32(position.x * params.stride_x) + params.origin_x,
        );
        image[p] = position.z * params.in_height;
        to[p] = output_at(position) + first_column;
    }

    // The vector of weights that this invocation loads: row slot_row of each 4, or of each 2 where WIDE.
    let slot = lane % 8u;
    let slot_row = slot / columns;
    let slot_column = min(group_column + slot % columns, params.group_out_vectors - 1u)
        + channel_group * params.group_out_vectors;

    var sum: array<array<vec4<f32>, 4>, PIXELS>;
    for (var ty = 0u; ty < params.taps_y; ty++) {
        for (var tx = 0u; tx < params.taps_x; tx++) {
            var at: array<u32, PIXELS>;
            var inside: array<bool, PIXELS>;
            for (var p = 0u; p < PIXELS; p++) {
                let iy = u32(window[p].x + i32(ty));
                let ix = u32(window[p].y + i32(tx));
                inside[p] = iy < params.in_height && ix < params.in_width;
                at[p] = select(
                    0u,
                    ((image[p] + iy) * params.in_width + ix) * params.in_vectors
                        + channel_group * params.group_in_vectors,
                    inside[p],
                );
            }
            let tap = ty * params.taps_x + tx;
            for (var i = 0u; i < params.group_in_vectors; i++) {
                let row = (tap * params.group_in_vectors + i) * 4u + slot_row;
                let w0 = vec4<f32>(weight[params.weight_first + row * params.out_vectors + slot_column]);
                var w1 = w0;
                if WIDE {
                    w1 = vec4<f32>(weight[params.weight_first + (row + 2u) * params.out_vectors + slot_column]);
                }
                var w: array<array<vec4<f32>, 4>, 4>;
                if WIDE {
                    w[0] = array(
                        subgroupBroadcast(w0, 0u),
                        subgroupBroadcast(w0, 1u),
                        subgroupBroadcast(w0, 2u),
                        subgroupBroadcast(w0, 3u),
                    );
                    w[1] = array(
                        subgroupBroadcast(w0, 4u),
                        subgroupBroadcast(w0, 5u),
                        subgroupBroadcast(w0, 6u),
                        subgroupBroadcast(w0, 7u),
                    );
                    w[2] = array(
                        subgroupBroadcast(w1, 0u),
                        subgroupBroadcast(w1, 1u),
                        subgroupBroadcast(w1, 2u),
                        subgroupBroadcast(w1, 3u),
                    );
                    w[3] = array(
                        subgroupBroadcast(w1, 4u),
                        subgroupBroadcast(w1, 5u),
                        subgroupBroadcast(w1, 6u),
                        subgroupBroadcast(w1, 7u),
                    );
                } else {
                    w[0][0] = subgroupBroadcast(w0, 0u);
                    w[0][1] = subgroupBroadcast(w0, 1u);
                    w[1][0] = subgroupBroadcast(w0, 2u);
                    w[1][1] = subgroupBroadcast(w0, 3u);
                    w[2][0] = subgroupBroadcast(w0, 4u);
                    w[2][1] = subgroupBroadcast(w0, 5u);
                    w[3][0] = subgroupBroadcast(w0, 6u);
                    w[3][1] = subgroupBroadcast(w0, 7u);
                }
                for (var p = 0u; p < PIXELS; p++) {
                    let v = select(vec4<f32>(), vec4<f32>(x[at[p] + i]), inside[p]);
                    for (var c = 0u; c < columns; c++) {
                        sum[p][c] += v.x * w[0][c];
                        sum[p][c] += v.y * w[1][c];
                        sum[p][c] += v.z * w[2][c];
                        sum[p][c] += v.w * w[3][c];
                    }
                }
            }
        }
    }

    for (var p = 0u; p < PIXELS; p++) {
        if first_pixel + p * WORKGROUP < params.pixels {
            for (var c = 0u; c < columns; c++) {
                if group_column + c < params.group_out_vectors {
                    y[to[p] + c] = vec4<Elem>(sum[p][c]);
                }
            }
        }
    }
}
