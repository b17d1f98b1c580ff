// Gradient of a 2-D convolution with respect to its weight as an implicit matrix product, tiled through workgroup memory.
//
// dw[row, o] = sum over output pixels p of x[p moved by the row's tap, the row's channel] * dy[p, o], where a row is a
// tap and an input channel. A workgroup makes a tile of ROWS x COLUMNS for its split of the pixels, 16 pixels at a time;
// an invocation holds 8 rows x 4 or 8 columns. The partial sums [splits, rows, columns] are added in order by sum_rows.
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
// Whether an invocation holds 8 columns rather than 4.
override WIDE: bool = false;

// Pixels in a step.
const STEP: u32 = 16u;

override ROW_VECTORS: u32 = ROWS / 4u;
override COLUMN_VECTORS: u32 = COLUMNS / 4u;
// Vectors of columns of an invocation, and how far they lie apart.
override HELD: u32 = select(1u, 2u, WIDE);
override COLUMN_STRIPE: u32 = COLUMN_VECTORS / HELD;
override WORKGROUP: u32 = ROW_VECTORS / 2u * COLUMN_STRIPE;
// How many vectors of either tile an invocation loads; at most 4.
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

    // The pixel of each vector of x that this invocation loads, as column, row and first row of its image. They are
    // counted on from step to step, because division is slow.
    var position: array<vec3<u32>, 4>;
    for (var l = 0u; l < X_LOADS; l++) {
        let pixel = first + (l * WORKGROUP + local) / ROW_VECTORS;
        let out_row = pixel / params.out_width;
        position[l] = vec3<u32>(
            pixel % params.out_width,
            out_row % params.out_height,
            out_row / params.out_height * params.in_height,
        );
    }

    let column = local % COLUMN_STRIPE;
    let row = local / COLUMN_STRIPE * 2u;
    var sum: array<array<vec4<f32>, 2>, 8>;

    // The vectors of a step are on their way while the one before is computed.
    for (var step = first; ; step += STEP) {
        var x_ahead: array<vec4<f32>, 4>;
        for (var l = 0u; l < X_LOADS; l++) {
            let pixel = step + (l * WORKGROUP + local) / ROW_VECTORS;
            let iy = u32(i32(position[l].y * params.stride_y) + shift_y);
            let ix = u32(i32(position[l].x * params.stride_x) + shift_x);
            if pixel < last && load_row < row_vectors && iy < params.in_height && ix < params.in_width {
                x_ahead[l] = vec4<f32>(x[((position[l].z + iy) * params.in_width + ix) * params.in_vectors + channel]);
            }
            position[l].x += STEP;
            while position[l].x >= params.out_width {
                position[l].x -= params.out_width;
                position[l].y++;
                if position[l].y == params.out_height {
                    position[l].y = 0u;
                    position[l].z += params.in_height;
                }
            }
        }
        var dy_ahead: array<vec4<f32>, 4>;
        for (var l = 0u; l < DY_LOADS; l++) {
            let at = l * WORKGROUP + local;
            let pixel = step + at / COLUMN_VECTORS;
            let load_column = group_column + at % COLUMN_VECTORS;
            if pixel < last && load_column < params.group_out_vectors {
                dy_ahead[l] = vec4<f32>(dy[pixel * params.out_vectors + group_first_column + load_column]);
            }
        }
        if step > first {
            for (var p = 0u; p < STEP; p++) {
                var d: array<vec4<f32>, 2>;
                for (var c = 0u; c < HELD; c++) {
                    d[c] = dy_tile[p * COLUMN_VECTORS + column + c * COLUMN_STRIPE];
                }
                for (var r = 0u; r < 2u; r++) {
                    let v = x_tile[p * ROW_VECTORS + row + r];
                    for (var c = 0u; c < HELD; c++) {
                        sum[4u * r][c] = fma(vec4(v.x), d[c], sum[4u * r][c]);
                        sum[4u * r + 1u][c] = fma(vec4(v.y), d[c], sum[4u * r + 1u][c]);
                        sum[4u * r + 2u][c] = fma(vec4(v.z), d[c], sum[4u * r + 2u][c]);
                        sum[4u * r + 3u][c] = fma(vec4(v.w), d[c], sum[4u * r + 3u][c]);
                    }
                }
            }
        }
        if step >= last {
            break;
        }
        workgroupBarrier();
        for (var l = 0u; l < X_LOADS; l++) {
            x_tile[l * WORKGROUP + local] = x_ahead[l];
        }
        for (var l = 0u; l < DY_LOADS; l++) {
            dy_tile[l * WORKGROUP + local] = dy_ahead[l];
        }
        workgroupBarrier();
    }

    for (var r = 0u; r < 8u; r++) {
        let to_row = (group.x * ROW_VECTORS + row) * 4u + r;
        if to_row >= row_vectors * 4u {
            break;
        }
        let to = (group.z * row_vectors * 4u + to_row) * params.out_vectors + group_first_column;
        for (var c = 0u; c < HELD; c++) {
            let at = group_column + column + c * COLUMN_STRIPE;
            if at < params.group_out_vectors {
                dw[to + at] = sum[r][c];
            }
        }
    }
}
