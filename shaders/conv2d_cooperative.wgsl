// 2-D convolution as an implicit matrix product on cooperative matrices: the units that GPUs multiply small matrices with.
//
// y[pixel, o] = sum over k of x[window(pixel, k)] * weight[k, o], where k runs over taps and input channels. A workgroup
// makes JOBS_Y x JOBS_X jobs of 64 pixels x 32 output channels, one a subgroup, in steps of STEP values of k that are
// laid out in workgroup memory. Sums are f32. Subgroups beyond the jobs, on adapters where their size varies, repeat the last
// job, because all invocations have to take part, and leave its result where nobody reads it.
//
// Channels are multiples of 4 and all tensors are seen as vec4. Grid: x blocks of output channels, which share pixels
// and so run side by side; y, z blocks of pixels (folded). The same kernel does the phases of the input gradient: there
// the output is strided (see conv2d_grad_input.rs).
//
// The 16x16 form is this text with that side in the lines that name it.
enable wgpu_cooperative_matrix;

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

// How activations and weights are stored, and multiplied.
alias Elem = f32;
// Rows and columns of a matrix.
const SIDE: u32 = 8u;
alias Left = coop_mat8x8<Elem, A>;
alias Right = coop_mat8x8<Elem, B>;
alias Sum = coop_mat8x8<f32, C>;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<Elem>>;
@group(0) @binding(2) var<storage, read> weight: array<vec4<Elem>>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<Elem>>;
// [parts of 64 pixels, 2, channels]: mean and sum of squared deviations of y, where MOMENTS.
@group(0) @binding(4) var<storage, read_write> partial: array<vec4<f32>>;

override JOBS_Y: u32 = 1u;
override JOBS_X: u32 = 2u;
// k in a step: 32 where elements have 16 bits, else 16.
override STEP: u32 = 16u;
override WORKGROUP: u32 = 64u;
// Whether to leave the moments of each part of 64 pixels.
override MOMENTS: bool = false;

const JOB_ROWS: u32 = 64u;
const JOB_COLUMNS: u32 = 32u;
const ROW_MATRICES: u32 = JOB_ROWS / SIDE;
const COLUMN_MATRICES: u32 = JOB_COLUMNS / SIDE;
// Elements of a matrix.
const MATRIX: u32 = SIDE * SIDE;
// Elements between rows in workgroup memory, so that those of a column lie in different banks.
const GAP: u32 = 8u;

override JOBS: u32 = JOBS_Y * JOBS_X;
override ROWS: u32 = JOBS_Y * JOB_ROWS;
override COLUMN_VECTORS: u32 = JOBS_X * JOB_COLUMNS / 4u;
override SLOTS: u32 = STEP / 4u;
override X_STRIDE: u32 = STEP + GAP;
override WEIGHT_STRIDE: u32 = JOBS_X * JOB_COLUMNS + GAP;
override X_TILE: u32 = ROWS * X_STRIDE;
override WEIGHT_TILE: u32 = STEP * WEIGHT_STRIDE;
override STAGED: u32 = (JOBS + 1u) * MATRIX;
override JOB_CHANNELS: u32 = JOBS * JOB_COLUMNS;

// x_tile[pixel][k], weight_tile[k][channel]
var<workgroup> x_tile: array<Elem, X_TILE>;
var<workgroup> weight_tile: array<Elem, WEIGHT_TILE>;
// Row and column of x where a pixel's window begins, and the row of all images where its own begins.
var<workgroup> window: array<vec2<i32>, ROWS>;
var<workgroup> image: array<u32, ROWS>;
// A matrix of each job, and one that is not read.
var<workgroup> staged: array<f32, STAGED>;
// Of each job's channels.
var<workgroup> mean: array<f32, JOB_CHANNELS>;
var<workgroup> squares: array<f32, JOB_CHANNELS>;

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

// A value as it is stored.
fn stored(at: u32) -> f32 {
    return f32(Elem(staged[at]));
}

// Takes the moments of `count` values of a channel of a job, SIDE apart from `first` on, into those of the `before` so far.
fn add_moments(first: u32, count: u32, channel: u32, before: u32) {
    // The mean by way of the first value, so that a mean far larger than the deviation costs no digits.
    let shift = stored(first);
    var total = 0.0;
    for (var r = 1u; r < count; r++) {
        total += stored(first + r * SIDE) - shift;
    }
    let own_mean = shift + total / f32(count);
    var own_squares = 0.0;
    for (var r = 0u; r < count; r++) {
        let d = stored(first + r * SIDE) - own_mean;
        own_squares += d * d;
    }
    if before == 0u {
        mean[channel] = own_mean;
        squares[channel] = own_squares;
        return;
    }
    let share = f32(count) / f32(before + count);
    let d = own_mean - mean[channel];
    mean[channel] += d * share;
    squares[channel] += own_squares + d * d * (f32(before) * share);
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
    @builtin(subgroup_id) subgroup: u32,
) {
    let channel_group = group.x / params.blocks_per_group;
    let group_column = (group.x % params.blocks_per_group) * COLUMN_VECTORS;
    let group_first_column = channel_group * params.group_out_vectors;
    let block = group.y + group.z * groups.y;
    let first_pixel = block * ROWS;
    let k_vectors = params.taps_y * params.taps_x * params.group_in_vectors;

    let job = min(subgroup, JOBS - 1u);
    let stage = min(subgroup, JOBS) * MATRIX;
    let x_first = job / JOBS_X * JOB_ROWS * X_STRIDE;
    let weight_first = job % JOBS_X * JOB_COLUMNS;
    // The writers of matrices panic on a stride that is no value of its own.
    let x_stride = X_STRIDE;
    let weight_stride = WEIGHT_STRIDE;

    for (var at = local; at < ROWS; at += WORKGROUP) {
        let position = grid_position(min(first_pixel + at, params.pixels - 1u));
        window[at] = vec2<i32>(
            i32(position.y * params.stride_y) + params.origin_y,
            i32(position.x * params.stride_x) + params.origin_x,
        );
        image[at] = position.z * params.in_height;
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

    // WORKGROUP is a multiple of SLOTS, so an invocation always loads the same vector of a step: as tap and channel.
    let slot = local % SLOTS;
    var channel = slot % params.group_in_vectors;
    let tap = slot / params.group_in_vectors;
    var tap_y = i32(tap / params.taps_x);
    var tap_x = i32(tap % params.taps_x);
    for (var k = 0u; k < k_vectors; k += SLOTS) {
        for (var at = local / SLOTS; at < ROWS; at += WORKGROUP / SLOTS) {
            let iy = u32(window[at].x + tap_y);
            let ix = u32(window[at].y + tap_x);
            var value = vec4<Elem>();
            if k + slot < k_vectors && iy < params.in_height && ix < params.in_width {
                value = x[((image[at] + iy) * params.in_width + ix) * params.in_vectors
                    + channel_group * params.group_in_vectors + channel];
            }
            let to = at * X_STRIDE + slot * 4u;
            x_tile[to] = value.x;
            x_tile[to + 1u] = value.y;
            x_tile[to + 2u] = value.z;
            x_tile[to + 3u] = value.w;
        }
        for (var at = local; at < STEP * COLUMN_VECTORS; at += WORKGROUP) {
            let weight_row = k * 4u + at / COLUMN_VECTORS;
            let weight_column = group_column + at % COLUMN_VECTORS;
            var value = vec4<Elem>();
            if weight_row < k_vectors * 4u && weight_column < params.group_out_vectors {
                value = weight[params.weight_first + weight_row * params.out_vectors + group_first_column + weight_column];
            }
            let to = at / COLUMN_VECTORS * WEIGHT_STRIDE + at % COLUMN_VECTORS * 4u;
            weight_tile[to] = value.x;
            weight_tile[to + 1u] = value.y;
            weight_tile[to + 2u] = value.z;
            weight_tile[to + 3u] = value.w;
        }
        workgroupBarrier();
        for (var s = 0u; s < STEP; s += SIDE) {
            var right: array<Right, COLUMN_MATRICES>;
            for (var c = 0u; c < COLUMN_MATRICES; c++) {
                right[c] = coopLoadT<Right>(&weight_tile[s * WEIGHT_STRIDE + weight_first + c * SIDE], weight_stride);
            }
            for (var r = 0u; r < ROW_MATRICES; r++) {
                let left = coopLoadT<Left>(&x_tile[x_first + r * SIDE * X_STRIDE + s], x_stride);
                for (var c = 0u; c < COLUMN_MATRICES; c++) {
                    sum[r][c] = coopMultiplyAdd(left, right[c], sum[r][c]);
                }
            }
        }
        workgroupBarrier();
        channel += SLOTS;
        while channel >= params.group_in_vectors {
            channel -= params.group_in_vectors;
            tap_x++;
            if tap_x == i32(params.taps_x) {
                tap_x = 0;
                tap_y++;
            }
        }
    }

    // The elements of a matrix are seen in workgroup memory alone: one matrix of every job at a time.
    for (var r = 0u; r < ROW_MATRICES; r++) {
        for (var c = 0u; c < COLUMN_MATRICES; c++) {
            coopStoreT(sum[r][c], &staged[stage], SIDE);
            workgroupBarrier();
            for (var at = local; at < JOBS * MATRIX / 4u; at += WORKGROUP) {
                let of_job = at / (MATRIX / 4u);
                let row = at / (SIDE / 4u) % SIDE;
                let pixel = first_pixel + of_job / JOBS_X * JOB_ROWS + r * SIDE + row;
                let column = group_column + (of_job % JOBS_X * JOB_COLUMNS + c * SIDE) / 4u + at % (SIDE / 4u);
                if pixel < params.pixels && column < params.group_out_vectors {
                    let value_at = at * 4u;
                    let value = vec4<f32>(staged[value_at], staged[value_at + 1u], staged[value_at + 2u], staged[value_at + 3u]);
                    y[output_at(grid_position(pixel)) + group_first_column + column] = vec4<Elem>(value);
                }
            }
            if MOMENTS {
                for (var at = local; at < JOBS * SIDE; at += WORKGROUP) {
                    let of_job = at / SIDE;
                    let first = first_pixel + of_job / JOBS_X * JOB_ROWS + r * SIDE;
                    if first < params.pixels {
                        add_moments(
                            of_job * MATRIX + at % SIDE,
                            min(params.pixels - first, SIDE),
                            of_job * JOB_COLUMNS + c * SIDE + at % SIDE,
                            r * SIDE,
                        );
                    }
                }
            }
            workgroupBarrier();
        }
    }
    if !MOMENTS {
        return;
    }
    for (var at = local; at < JOB_CHANNELS / 4u; at += WORKGROUP) {
        let of_job = at / (JOB_COLUMNS / 4u);
        let job_row = of_job / JOBS_X;
        let column = group_column + of_job % JOBS_X * (JOB_COLUMNS / 4u) + at % (JOB_COLUMNS / 4u);
        if first_pixel + job_row * JOB_ROWS < params.pixels && column < params.group_out_vectors {
            let to = (block * JOBS_Y + job_row) * 2u * params.out_vectors + group_first_column + column;
            let value_at = at * 4u;
            partial[to] = vec4<f32>(mean[value_at], mean[value_at + 1u], mean[value_at + 2u], mean[value_at + 3u]);
            partial[to + params.out_vectors] =
                vec4<f32>(squares[value_at], squares[value_at + 1u], squares[value_at + 2u], squares[value_at + 3u]);
        }
    }
}
