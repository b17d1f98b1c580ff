// Gradient of a 2-D convolution with respect to its weight for kernels of three columns, few channels and stride 1 along the
// width, on adapters where workgroup memory buys nothing (CPUs).
//
// dw[row, o] = sum over output pixels p of x[p moved by the row's tap, the row's channel] * dy[p, o], where a row is a
// tap and an input channel. One invocation holds the three taps of a kernel row x 4 input channels x 8 output channels
// in registers and walks whole rows of output pixels: of the three vectors of x that a pixel needs, two are those of
// its left neighbour. Every invocation leaves a partial sum, [splits * WORKGROUP, rows, columns], which sum_rows adds in
// order.
//
// Channels are multiples of 4 and all tensors are seen as vec4. Grid: x kernel rows x input vectors of a group, y blocks
// of 8 output channels, z splits of the rows of output pixels.

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

override WORKGROUP: u32 = 8u;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let channel_group = group.y / params.blocks_per_group;
    let group_column = (group.y % params.blocks_per_group) * 2u;
    let column = channel_group * params.group_out_vectors + group_column;
    // An odd last vector is computed twice and written once.
    let pair = group_column + 1u < params.group_out_vectors;
    let second = select(0u, 1u, pair);
    let ty = group.x / params.group_in_vectors;
    let group_channel = group.x % params.group_in_vectors;
    let channel = channel_group * params.group_in_vectors + group_channel;

    // sum[tap][input channel][half of the output channels]
    var sum: array<array<array<vec4<f32>, 2>, 4>, 3>;
    let first = group.z * params.rows_per_split;
    let last = min(first + params.rows_per_split, params.rows);
    for (var base = first; base < last; base += WORKGROUP) {
        let row = min(base + local, last - 1u);
        let iy = u32(i32(row % params.out_height * params.stride_y + ty) + params.origin_y);
        let inside = base + local < last && iy < params.in_height;
        let x_row = select(0u, (row / params.out_height * params.in_height + iy) * params.in_width, inside);
        var v: array<vec4<f32>, 3>;
        for (var t = 0u; t < 2u; t++) {
            let ix = u32(params.origin_x + i32(t));
            let there = inside && ix < params.in_width;
            let at = select(0u, x_row + ix, there) * params.in_vectors + channel;
            v[t] = select(vec4<f32>(), vec4<f32>(x[at]), there);
        }
        for (var ox = 0u; ox < params.out_width; ox++) {
            let ix = u32(params.origin_x + i32(ox + 2u));
            let there = inside && ix < params.in_width;
            let x_at = select(0u, x_row + ix, there) * params.in_vectors + channel;
            v[2] = select(vec4<f32>(), vec4<f32>(x[x_at]), there);
            let at = (row * params.out_width + ox) * params.out_vectors + column;
            let d = array(vec4<f32>(dy[at]), vec4<f32>(dy[at + second]));
            for (var t = 0u; t < 3u; t++) {
                for (var c = 0u; c < 2u; c++) {
                    sum[t][0][c] += v[t].x * d[c];
                    sum[t][1][c] += v[t].y * d[c];
                    sum[t][2][c] += v[t].z * d[c];
                    sum[t][3][c] += v[t].w * d[c];
                }
            }
            v[0] = v[1];
            v[1] = v[2];
        }
    }

    let weight_rows = params.taps_y * 3u * params.group_in_vectors * 4u;
    for (var t = 0u; t < 3u; t++) {
        for (var k = 0u; k < 4u; k++) {
            let weight_row = ((ty * 3u + t) * params.group_in_vectors + group_channel) * 4u + k;
            let at = ((group.z * WORKGROUP + local) * weight_rows + weight_row) * params.out_vectors + column;
            dw[at] = sum[t][k][0];
            if pair {
                dw[at + 1u] = sum[t][k][1];
            }
        }
    }
}
