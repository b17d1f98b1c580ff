// Gradient of a 2-D convolution with respect to its weight as an implicit matrix product, tiled through workgroup memory.
//
// dw[row, o] = sum over output pixels p of x[p moved by the row's tap, the row's channel] * dy[p, o], where a row is a
// tap and an input channel. A workgroup makes a tile of ROWS x COLUMNS for its split of the pixels, 16 pixels at a time;
// an invocation holds 8 rows x 4 columns. The partial sums [splits, rows, columns] are added in order by sum_rows.
//
// Channels are multiples of 4 and all tensors are seen as vec4. Grid: x blocks of rows, y blocks of columns, z splits.

struct Params {
    pixels: u32,
    pixels_per_split: u32,
    in_height: u32,
    in_width: u32,
    in_vectors: u32,
    group_in_vectors: u32,
    out_height: u32,
    out_width: u32,
    out_vectors: u32,
    group_out_vectors: u32,
    blocks_per_group: u32,
    taps: u32,
    taps_x: u32,
    stride_y: u32,
    stride_x: u32,
    origin_y: i32,
    origin_x: i32,
}

// How activations are stored; the gradient of the weights is not.
alias Elem = f32;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<Elem>>;
@group(0) @binding(2) var<storage, read> dy: array<vec4<Elem>>;
@group(0) @binding(3) var<storage, read_write> dw: array<vec4<f32>>;

override ROWS: u32 = 128u;
override COLUMNS: u32 = 64u;

// Pixels in a step.
const STEP: u32 = 16u;

override ROW_VECTORS: u32 = ROWS / 4u;
override COLUMN_VECTORS: u32 = COLUMNS / 4u;
override WORKGROUP: u32 = ROW_VECTORS / 2u * COLUMN_VECTORS;
// How many vectors of either tile an invocation loads.
override X_LOADS: u32 = STEP * ROW_VECTORS / WORKGROUP;
override DY_LOADS: u32 = STEP * COLUMN_VECTORS / WORKGROUP;
override X_TILE: u32 = STEP * ROW_VECTORS;
override DY_TILE: u32 = STEP * COLUMN_VECTORS;

// x_tile[pixel][row / 4], dy_tile[pixel][column / 4]
var<workgroup> x_tile: array<vec4<f32>, X_TILE>;
var<workgroup> dy_tile: array<vec4<f32>, DY_TILE>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let channel_group = group.y / params.blocks_per_group;
    let group_column = (group.y % params.blocks_per_group) * COLUMN_VECTORS;
    let group_first_column = channel_group * params.group_out_vectors;
    let row_vectors = params.taps * params.group_in_vectors;
    let first = group.z * params.pixels_per_split;
    let last = min(first + params.pixels_per_split, params.pixels);

    // Loader of x: WORKGROUP is a multiple of ROW_VECTORS, so an invocation always loads the same tap and channel.
    let load_row = group.x * ROW_VECTORS + local % ROW_VECTORS;
    let tap = load_row / params.group_in_vectors;
    let shift_y = i32(tap / params.taps_x) + params.origin_y;
    let shift_x = i32(tap % params.taps_x) + params.origin_x;
    let channel = channel_group * params.group_in_vectors + load_row % params.group_in_vectors;

    let column = local % COLUMN_VECTORS;
    let row = local / COLUMN_VECTORS * 2u;
    var sum: array<vec4<f32>, 8>;

    for (var step = first; step < last; step += STEP) {
        for (var l = 0u; l < X_LOADS; l++) {
            let at = l * WORKGROUP + local;
            let pixel = step + at / ROW_VECTORS;
            let out_row = pixel / params.out_width;
            let iy = u32(i32(out_row % params.out_height * params.stride_y) + shift_y);
            let ix = u32(i32(pixel % params.out_width * params.stride_x) + shift_x);
            var v = vec4<f32>();
            if pixel < last && load_row < row_vectors && iy < params.in_height && ix < params.in_width {
                let image_row = out_row / params.out_height * params.in_height + iy;
                v = vec4<f32>(x[(image_row * params.in_width + ix) * params.in_vectors + channel]);
            }
            x_tile[at] = v;
        }
        for (var l = 0u; l < DY_LOADS; l++) {
            let at = l * WORKGROUP + local;
            let pixel = step + at / COLUMN_VECTORS;
            let load_column = group_column + at % COLUMN_VECTORS;
            var v = vec4<f32>();
            if pixel < last && load_column < params.group_out_vectors {
                v = vec4<f32>(dy[pixel * params.out_vectors + group_first_column + load_column]);
            }
            dy_tile[at] = v;
        }
        workgroupBarrier();
        for (var p = 0u; p < STEP; p++) {
            let d = dy_tile[p * COLUMN_VECTORS + column];
            for (var r = 0u; r < 2u; r++) {
                let v = x_tile[p * ROW_VECTORS + row + r];
                sum[4u * r] = fma(vec4(v.x), d, sum[4u * r]);
                sum[4u * r + 1u] = fma(vec4(v.y), d, sum[4u * r + 1u]);
                sum[4u * r + 2u] = fma(vec4(v.z), d, sum[4u * r + 2u]);
                sum[4u * r + 3u] = fma(vec4(v.w), d, sum[4u * r + 3u]);
            }
        }
        workgroupBarrier();
    }

    if group_column + column >= params.group_out_vectors {
        return;
    }
    for (var r = 0u; r < 8u; r++) {
        let to_row = (group.x * ROW_VECTORS + row) * 4u + r;
        if to_row < row_vectors * 4u {
            let split_row = group.z * row_vectors * 4u + to_row;
            dw[split_row * params.out_vectors + group_first_column + group_column + column] = sum[r];
        }
    }
}
