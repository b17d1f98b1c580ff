// 2-D convolution as an implicit matrix product, tiled through workgroup memory.
//
// y[pixel, o] = sum over k of x[window(pixel, k)] * weight[k, o], where k runs over taps and input channels.
// A workgroup makes a tile of ROWS pixels x COLUMNS output channels, in steps of 16 values of k. An invocation holds
// 8 pixels x 4 or 8 channels: each vector read from workgroup memory serves at least 16 multiply-adds.
//
// Channels are multiples of 4 and all tensors are seen as vec4. Grid: x blocks of output channels, which share pixels
// and so run side by side; y, z blocks of pixels (folded). The same kernel does the phases of the input gradient: there
// the output is strided (see conv2d_grad_input.rs).

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
// [blocks of pixels, 2, channels]: mean and sum of squared deviations of y, where MOMENTS.
@group(0) @binding(4) var<storage, read_write> partial: array<vec4<f32>>;

override ROWS: u32 = 128u;
override COLUMNS: u32 = 64u;
// Whether an invocation holds 8 channels rather than 4.
override WIDE: bool = false;
// Whether to leave the moments of each block of pixels.
override MOMENTS: bool = false;

// Vectors of four k in a step, and the weight rows that they are.
const STEP: u32 = 4u;
// Pixels of an invocation.
const PIXELS: u32 = 8u;

override STRIPE: u32 = ROWS / PIXELS;
override COLUMN_VECTORS: u32 = COLUMNS / 4u;
// Vectors of channels of an invocation, and how far they lie apart.
override HELD: u32 = select(1u, 2u, WIDE);
override COLUMN_STRIPE: u32 = COLUMN_VECTORS / HELD;
override WORKGROUP: u32 = STRIPE * COLUMN_STRIPE;
// How many vectors of either tile an invocation loads; at most 4.
override X_LOADS: u32 = ROWS * STEP / WORKGROUP;
override WEIGHT_LOADS: u32 = 4u * STEP * COLUMN_VECTORS / WORKGROUP;
override X_TILE: u32 = ROWS * STEP;
override WEIGHT_TILE: u32 = 4u * STEP * COLUMN_VECTORS;

// x_tile[pixel][k / 4], weight_tile[k][channel / 4]
var<workgroup> x_tile: array<vec4<f32>, X_TILE>;
var<workgroup> weight_tile: array<vec4<f32>, WEIGHT_TILE>;

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
) {
    let channel_group = group.x / params.blocks_per_group;
    let group_column = (group.x % params.blocks_per_group) * COLUMN_VECTORS;
    let group_first_column = channel_group * params.group_out_vectors;
    let first_pixel = (group.y + group.z * groups.y) * ROWS;
    let k_vectors = params.taps_y * params.taps_x * params.group_in_vectors;

    // Loader of x: four neighbouring invocations load the 16 k of a pixel.
    var window: array<vec2<i32>, 4>;
    var image: array<u32, 4>;
    for (var l = 0u; l < X_LOADS; l++) {
        let position = grid_position(min(first_pixel + (l * WORKGROUP + local) / STEP, params.pixels - 1u));
        window[l] = vec2<i32>(
            i32(position.y * params.stride_y) + params.origin_y,
            i32(position.x * params.stride_x) + params.origin_x,
        );
        image[l] = position.z * params.in_height;
    }
    // The vector of k that this invocation loads next, as tap and channel.
    let slot = local % STEP;
    var channel = slot % params.group_in_vectors;
    let tap = slot / params.group_in_vectors;
    var tap_y = i32(tap / params.taps_x);
    var tap_x = i32(tap % params.taps_x);

    // The pixels and the channels of an invocation lie a stripe apart, so that neighbours read neighbouring memory.
    let column = local % COLUMN_STRIPE;
    let row = local / COLUMN_STRIPE;
    var sum: array<array<vec4<f32>, 2>, PIXELS>;

    // The vectors of a step are on their way while the one before is computed.
    for (var k = 0u; ; k += STEP) {
        var x_ahead: array<vec4<f32>, 4>;
        for (var l = 0u; l < X_LOADS; l++) {
            let iy = u32(window[l].x + tap_y);
            let ix = u32(window[l].y + tap_x);
            if k + slot < k_vectors && iy < params.in_height && ix < params.in_width {
                let at = ((image[l] + iy) * params.in_width + ix) * params.in_vectors
                    + channel_group * params.group_in_vectors + channel;
                x_ahead[l] = vec4<f32>(x[at]);
            }
        }
        var weight_ahead: array<vec4<f32>, 4>;
        for (var l = 0u; l < WEIGHT_LOADS; l++) {
            let at = l * WORKGROUP + local;
            let weight_row = k * 4u + at / COLUMN_VECTORS;
            let weight_column = group_column + at % COLUMN_VECTORS;
            if weight_row < k_vectors * 4u && weight_column < params.group_out_vectors {
                let at = params.weight_first + weight_row * params.out_vectors + group_first_column + weight_column;
                weight_ahead[l] = vec4<f32>(weight[at]);
            }
        }
        if k > 0u {
            for (var j = 0u; j < STEP; j++) {
                var w: array<array<vec4<f32>, 2>, 4>;
                for (var c = 0u; c < HELD; c++) {
                    let at = j * 4u * COLUMN_VECTORS + column + c * COLUMN_STRIPE;
                    w[0][c] = weight_tile[at];
                    w[1][c] = weight_tile[at + COLUMN_VECTORS];
                    w[2][c] = weight_tile[at + 2u * COLUMN_VECTORS];
                    w[3][c] = weight_tile[at + 3u * COLUMN_VECTORS];
                }
                for (var p = 0u; p < PIXELS; p++) {
                    let v = x_tile[(row + p * STRIPE) * STEP + j];
                    for (var c = 0u; c < HELD; c++) {
                        sum[p][c] = fma(vec4(v.x), w[0][c], sum[p][c]);
                        sum[p][c] = fma(vec4(v.y), w[1][c], sum[p][c]);
                        sum[p][c] = fma(vec4(v.z), w[2][c], sum[p][c]);
                        sum[p][c] = fma(vec4(v.w), w[3][c], sum[p][c]);
                    }
                }
            }
        }
        if k >= k_vectors {
            break;
        }
        workgroupBarrier();
        for (var l = 0u; l < X_LOADS; l++) {
            x_tile[l * WORKGROUP + local] = x_ahead[l];
        }
        for (var l = 0u; l < WEIGHT_LOADS; l++) {
            weight_tile[l * WORKGROUP + local] = weight_ahead[l];
        }
        workgroupBarrier();
        channel += STEP;
        while channel >= params.group_in_vectors {
            channel -= params.group_in_vectors;
            tap_x++;
            if tap_x == i32(params.taps_x) {
                tap_x = 0;
                tap_y++;
            }
        }
    }

    for (var p = 0u; p < PIXELS; p++) {
        let pixel = first_pixel + row + p * STRIPE;
        if pixel >= params.pixels {
            break;
        }
        let to = output_at(grid_position(pixel)) + group_first_column;
        for (var c = 0u; c < HELD; c++) {
            let at = group_column + column + c * COLUMN_STRIPE;
            if at < params.group_out_vectors {
                y[to + at] = vec4<Elem>(sum[p][c]);
            }
        }
    }
    if !MOMENTS {
        return;
    }

    // Of the values as they are stored: their mean, by way of the first pixel's, so that a mean far larger than the deviation costs
    // no digits, then the squares of what is left of them. The tiles are done with, and hold the sums.
    let count = f32(min(ROWS, params.pixels - min(first_pixel, params.pixels - 1u)));
    for (var c = 0u; c < HELD; c++) {
        let own_column = column + c * COLUMN_STRIPE;
        workgroupBarrier();
        if row == 0u {
            weight_tile[own_column] = vec4<f32>(vec4<Elem>(sum[0][c]));
        }
        workgroupBarrier();
        let shift = weight_tile[own_column];
        var values = vec4<f32>();
        for (var p = 0u; p < PIXELS; p++) {
            if first_pixel + row + p * STRIPE < params.pixels {
                values += vec4<f32>(vec4<Elem>(sum[p][c])) - shift;
            }
        }
        x_tile[local] = values;
        for (var stride = STRIPE / 2u; stride > 0u; stride /= 2u) {
            workgroupBarrier();
            if row < stride {
                values += x_tile[local + stride * COLUMN_STRIPE];
                x_tile[local] = values;
            }
        }
        workgroupBarrier();
        if row == 0u {
            weight_tile[own_column] = shift + values / count;
        }
        workgroupBarrier();
        let mean = weight_tile[own_column];
        var squares = vec4<f32>();
        for (var p = 0u; p < PIXELS; p++) {
            if first_pixel + row + p * STRIPE < params.pixels {
                let d = vec4<f32>(vec4<Elem>(sum[p][c])) - mean;
                squares += d * d;
            }
        }
        x_tile[local] = squares;
        for (var stride = STRIPE / 2u; stride > 0u; stride /= 2u) {
            workgroupBarrier();
            if row < stride {
                squares += x_tile[local + stride * COLUMN_STRIPE];
                x_tile[local] = squares;
            }
        }
        let at = group_column + own_column;
        if row == 0u && at < params.group_out_vectors && first_pixel < params.pixels {
            let to = (group.y + group.z * groups.y) * 2u * params.out_vectors + group_first_column + at;
            partial[to] = mean;
            partial[to + params.out_vectors] = squares;
        }
    }
}
