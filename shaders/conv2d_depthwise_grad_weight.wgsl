// Gradient of a depthwise 2-D convolution with respect to its weight.
//
// dw[tap, c] = sum over output pixels p of x[p moved by the tap, c] * dy[p, c]. An invocation makes one kernel row for four channels
// and walks rows of output pixels, strip by strip, so that what the windows of a strip share is loaded once. It leaves a
// partial sum of its own, [splits * LANES, taps, channels], which sum_rows adds in order.
//
// Channels are a multiple of 4 and all tensors are seen as vec4. A workgroup is COLUMNS vectors of channels x LANES rows.
// Grid: x blocks of channels, y kernel rows, z splits of the rows.

struct Params {
    rows: u32,
    rows_per_split: u32,
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
    stride_y: u32,
    origin_y: i32,
    origin_x: i32,
}

// How activations are stored; the gradient of the weights is not.
alias Elem = f32;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<Elem>>;
@group(0) @binding(2) var<storage, read> dy: array<vec4<Elem>>;
@group(0) @binding(3) var<storage, read_write> dw: array<vec4<f32>>;

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
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let column = group.x * COLUMNS + local % COLUMNS;
    let lane = local / COLUMNS;
    let ty = group.y;
    if column >= params.out_vectors {
        return;
    }
    var sum: array<vec4<f32>, COVERED_MOST>;
    let first = group.z * params.rows_per_split;
    let last = min(first + params.rows_per_split, params.rows);
    for (var row = first + lane; row < last; row += LANES) {
        let iy = u32(i32(row % params.out_height * params.stride_y + ty) + params.origin_y);
        if iy >= params.in_height {
            continue;
        }
        let x_row = (row / params.out_height * params.in_height + iy) * params.in_width;
        for (var ox = 0u; ox < params.out_width; ox += STRIP) {
            var v: array<vec4<f32>, COVERED_MOST>;
            for (var j = 0u; j < COVERED; j++) {
                let ix = u32(i32(ox * STRIDE + j) + params.origin_x);
                v[j] = vec4<f32>();
                if ix < params.in_width {
                    v[j] = vec4<f32>(x[(x_row + ix) * params.in_vectors + column]);
                }
            }
            for (var p = 0u; p < STRIP; p++) {
                if ox + p < params.out_width {
                    let d = vec4<f32>(dy[(row * params.out_width + ox + p) * params.out_vectors + column]);
                    for (var tx = 0u; tx < TAPS; tx++) {
                        sum[tx] = fma(d, v[p * STRIDE + tx], sum[tx]);
                    }
                }
            }
        }
    }
    for (var tx = 0u; tx < TAPS; tx++) {
        let tap = ((group.z * LANES + lane) * params.taps_y + ty) * TAPS + tx;
        dw[tap * params.out_vectors + column] = sum[tx];
    }
}
