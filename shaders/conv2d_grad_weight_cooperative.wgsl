// Gradient of a 2-D convolution with respect to its weight as an implicit matrix product on cooperative matrices.
//
// dw[row, o] = sum over output pixels p of x[p moved by the row's tap, the row's channel] * dy[p, o], where a row is a
// tap and an input channel. A workgroup makes JOBS_Y x JOBS_X jobs of 64 rows x 32 output channels, one a subgroup, for its
// split of the pixels, in steps of STEP pixels. The partial sums [splits, rows, columns], in f32, are added in order by
// sum_rows. Subgroups beyond the jobs repeat the last one (see conv2d_cooperative.wgsl).
//
// Channels are multiples of 4 and all tensors are seen as vec4. Grid: x blocks of rows, y blocks of columns, z splits.
//
// The 16x16 form is this text with that side in the lines that name it.
enable wgpu_cooperative_matrix;

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

// How activations are stored, and multiplied; the gradient of the weights is f32.
alias Elem = f32;
// Rows and columns of a matrix.
const SIDE: u32 = 8u;
alias Left = coop_mat8x8<Elem, A>;
alias Right = coop_mat8x8<Elem, B>;
alias Sum = coop_mat8x8<f32, C>;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<Elem>>;
@group(0) @binding(2) var<storage, read> dy: array<vec4<Elem>>;
@group(0) @binding(3) var<storage, read_write> dw: array<vec4<f32>>;

override JOBS_Y: u32 = 1u;
override JOBS_X: u32 = 2u;
// Pixels in a step: 32 where elements have 16 bits, else 16.
override STEP: u32 = 16u;
override WORKGROUP: u32 = 64u;

const JOB_ROWS: u32 = 64u;
const JOB_COLUMNS: u32 = 32u;
const ROW_MATRICES: u32 = JOB_ROWS / SIDE;
const COLUMN_MATRICES: u32 = JOB_COLUMNS / SIDE;
// Elements of a matrix.
const MATRIX: u32 = SIDE * SIDE;
// Elements between rows in workgroup memory, so that those of a column lie in different banks.
const GAP: u32 = 8u;
// A column that is in no image.
const OUTSIDE: i32 = -0x40000000;

override JOBS: u32 = JOBS_Y * JOBS_X;
override ROW_VECTORS: u32 = JOBS_Y * JOB_ROWS / 4u;
override COLUMN_VECTORS: u32 = JOBS_X * JOB_COLUMNS / 4u;
override X_STRIDE: u32 = JOBS_Y * JOB_ROWS + GAP;
override DY_STRIDE: u32 = JOBS_X * JOB_COLUMNS + GAP;
override X_TILE: u32 = STEP * X_STRIDE;
override DY_TILE: u32 = STEP * DY_STRIDE;
override STAGED: u32 = (JOBS + 1u) * MATRIX;

// x_tile[pixel][row], dy_tile[pixel][column]
var<workgroup> x_tile: array<Elem, X_TILE>;
var<workgroup> dy_tile: array<Elem, DY_TILE>;
// Row and column by which a vector of rows moves a pixel, and its channel.
var<workgroup> shift: array<vec2<i32>, ROW_VECTORS>;
var<workgroup> channel: array<u32, ROW_VECTORS>;
// Row and column of x of each pixel of a step, and the row of all images where its own begins.
var<workgroup> position: array<vec2<i32>, STEP>;
var<workgroup> image: array<u32, STEP>;
// A matrix of each job, and one that is not read.
var<workgroup> staged: array<f32, STAGED>;

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
    @builtin(subgroup_id) subgroup: u32,
) {
    let channel_group = group.y / params.blocks_per_group;
    let group_column = (group.y % params.blocks_per_group) * COLUMN_VECTORS;
    let group_first_column = channel_group * params.group_out_vectors;
    let row_vectors = params.taps * params.group_in_vectors;
    let first = group.z * params.pixels_per_split;
    let last = min(first + params.pixels_per_split, params.pixels);

    let job = min(subgroup, JOBS - 1u);
    let stage = min(subgroup, JOBS) * MATRIX;
    let first_row = job / JOBS_X * JOB_ROWS;
    let first_column = job % JOBS_X * JOB_COLUMNS;
    // The writers of matrices panic on a stride that is no value of its own.
    let x_stride = X_STRIDE;
    let dy_stride = DY_STRIDE;

    for (var at = local; at < ROW_VECTORS; at += WORKGROUP) {
        let row = group.x * ROW_VECTORS + at;
        let tap = row / params.group_in_vectors;
        shift[at] = vec2<i32>(i32(tap / params.taps_x) + params.origin_y, i32(tap % params.taps_x) + params.origin_x);
        if row >= row_vectors {
            shift[at].y = OUTSIDE;
        }
        channel[at] = channel_group * params.group_in_vectors + row % params.group_in_vectors;
    }
    // Sums begin as zeros that are loaded: what a matrix holds without a value differs between languages.
    for (var at = local; at < STAGED; at += WORKGROUP) {
        staged[at] = 0.0;
    }
    workgroupBarrier();
    var sum: array<array<Sum, COLUMN_MATRICES>, ROW_MATRICES>;
    for (var r = 0u; r < ROW_MATRICES; r++) {
        for (var c = 0u; c < COLUMN_MATRICES; c++) {
            sum[r][c] = coopLoadT<Sum>(&staged[stage], SIDE);
        }
    }

    for (var step = first; step < last; step += STEP) {
        for (var at = local; at < STEP; at += WORKGROUP) {
            let pixel = step + at;
            let out_row = pixel / params.out_width;
            position[at] = vec2<i32>(
                i32(out_row % params.out_height * params.stride_y),
                i32(pixel % params.out_width * params.stride_x),
            );
            if pixel >= last {
                position[at].y = OUTSIDE;
            }
            image[at] = out_row / params.out_height * params.in_height;
        }
        workgroupBarrier();
        for (var at = local; at < STEP * ROW_VECTORS; at += WORKGROUP) {
            let p = at / ROW_VECTORS;
            let row = at % ROW_VECTORS;
            let iy = u32(position[p].x + shift[row].x);
            let ix = u32(position[p].y + shift[row].y);
            var value = vec4<Elem>();
            if iy < params.in_height && ix < params.in_width {
                value = x[((image[p] + iy) * params.in_width + ix) * params.in_vectors + channel[row]];
            }
            let to = p * X_STRIDE + row * 4u;
            x_tile[to] = value.x;
            x_tile[to + 1u] = value.y;
            x_tile[to + 2u] = value.z;
            x_tile[to + 3u] = value.w;
        }
        for (var at = local; at < STEP * COLUMN_VECTORS; at += WORKGROUP) {
            let pixel = step + at / COLUMN_VECTORS;
            let column = group_column + at % COLUMN_VECTORS;
            var value = vec4<Elem>();
            if pixel < last && column < params.group_out_vectors {
                value = dy[pixel * params.out_vectors + group_first_column + column];
            }
            let to = at / COLUMN_VECTORS * DY_STRIDE + at % COLUMN_VECTORS * 4u;
            dy_tile[to] = value.x;
            dy_tile[to + 1u] = value.y;
            dy_tile[to + 2u] = value.z;
            dy_tile[to + 3u] = value.w;
        }
        workgroupBarrier();
        for (var s = 0u; s < STEP; s += SIDE) {
            var right: array<Right, COLUMN_MATRICES>;
            for (var c = 0u; c < COLUMN_MATRICES; c++) {
                right[c] = coopLoadT<Right>(&dy_tile[s * DY_STRIDE + first_column + c * SIDE], dy_stride);
            }
            for (var r = 0u; r < ROW_MATRICES; r++) {
                // Rows of the product are columns of the tile.
                let left = coopLoad<Left>(&x_tile[s * X_STRIDE + first_row + r * SIDE], x_stride);
                for (var c = 0u; c < COLUMN_MATRICES; c++) {
                    sum[r][c] = coopMultiplyAdd(left, right[c], sum[r][c]);
                }
            }
        }
        workgroupBarrier();
    }

    // The elements of a matrix are seen in workgroup memory alone: one matrix of every job at a time.
    for (var r = 0u; r < ROW_MATRICES; r++) {
        for (var c = 0u; c < COLUMN_MATRICES; c++) {
            coopStoreT(sum[r][c], &staged[stage], SIDE);
            workgroupBarrier();
            for (var at = local; at < JOBS * MATRIX / 4u; at += WORKGROUP) {
                let of_job = at / (MATRIX / 4u);
                let row = group.x * ROW_VECTORS * 4u + of_job / JOBS_X * JOB_ROWS + r * SIDE + at / (SIDE / 4u) % SIDE;
                let column = group_column + (of_job % JOBS_X * JOB_COLUMNS + c * SIDE) / 4u + at % (SIDE / 4u);
                if row < row_vectors * 4u && column < params.group_out_vectors {
                    let value_at = at * 4u;
                    dw[(group.z * row_vectors * 4u + row) * params.out_vectors + group_first_column + column] =
                        vec4<f32>(staged[value_at], staged[value_at + 1u], staged[value_at + 2u], staged[value_at + 3u]);
                }
            }
            workgroupBarrier();
        }
    }
}
