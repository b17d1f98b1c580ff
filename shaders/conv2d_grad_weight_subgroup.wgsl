// Gradient of a 2-D convolution with respect to its weight as an implicit matrix product, for adapters where workgroup
// memory buys nothing (CPUs).
//
// dw[row, o] = sum over output pixels p of x[p moved by the row's tap, the row's channel] * dy[p, o], where a row is a
// tap and an input channel. One invocation holds two vectors of rows x 16 columns (8 where WIDE is false) in registers
// and walks the pixels of its split. The values of dy are the same for all invocations: the first 8 of a subgroup load
// one vector each, for 2 pixels (4), and subgroupBroadcast hands them round. The partial sums [splits, rows, columns] are
// added in order by sum_rows.
//
// Channels are multiples of 4 and all tensors are seen as vec4. Grid: x blocks of rows, y blocks of columns, z splits.
// Every subgroup must be full and have at least 8 invocations.

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

override WORKGROUP: u32 = 8u;
override WIDE: bool = true;

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let columns = select(2u, 4u, WIDE);
    // Pixels that 8 vectors of dy cover.
    let step = select(4u, 2u, WIDE);
    let channel_group = group.y / params.blocks_per_group;
    let group_column = (group.y % params.blocks_per_group) * columns;
    let group_first_column = channel_group * params.group_out_vectors;
    let row_vectors = params.taps * params.group_in_vectors;
    let first = group.z * params.pixels_per_split;
    let last = min(first + params.pixels_per_split, params.pixels);

    // Tap and channel of each vector of rows.
    var shift: array<vec2<i32>, 2>;
    var channel: array<u32, 2>;
    for (var r = 0u; r < 2u; r++) {
        let row = min((group.x * 2u + r) * WORKGROUP + local, row_vectors - 1u);
        let tap = row / params.group_in_vectors;
        shift[r] = vec2<i32>(
            i32(tap / params.taps_x) + params.origin_y,
            i32(tap % params.taps_x) + params.origin_x,
        );
        channel[r] = channel_group * params.group_in_vectors + row % params.group_in_vectors;
    }

    let slot = lane % 8u;
    let slot_pixel = slot / columns;
    let slot_column = group_first_column + min(group_column + slot % columns, params.group_out_vectors - 1u);

    // The pixel as column, row and first row of its image; counted, because division is slow.
    var ox = first % params.out_width;
    var oy = first / params.out_width % params.out_height;
    var image = first / params.out_width / params.out_height * params.in_height;
    var sum: array<array<array<vec4<f32>, 4>, 4>, 2>;
    for (var base = first; base < last; base += step) {
        let w = vec4<f32>(dy[min(base + slot_pixel, last - 1u) * params.out_vectors + slot_column]);
        var d: array<vec4<f32>, 8>;
        d[0] = subgroupBroadcast(w, 0u);
        d[1] = subgroupBroadcast(w, 1u);
        d[2] = subgroupBroadcast(w, 2u);
        d[3] = subgroupBroadcast(w, 3u);
        d[4] = subgroupBroadcast(w, 4u);
        d[5] = subgroupBroadcast(w, 5u);
        d[6] = subgroupBroadcast(w, 6u);
        d[7] = subgroupBroadcast(w, 7u);
        for (var p = 0u; p < step; p++) {
            for (var r = 0u; r < 2u; r++) {
                let iy = u32(i32(oy * params.stride_y) + shift[r].x);
                let ix = u32(i32(ox * params.stride_x) + shift[r].y);
                let inside = base + p < last && iy < params.in_height && ix < params.in_width;
                let at = ((image + iy) * params.in_width + ix) * params.in_vectors + channel[r];
                let v = select(vec4<f32>(), vec4<f32>(x[select(0u, at, inside)]), inside);
                for (var c = 0u; c < columns; c++) {
                    sum[r][0][c] += v.x * d[p * columns + c];
                    sum[r][1][c] += v.y * d[p * columns + c];
                    sum[r][2][c] += v.z * d[p * columns + c];
                    sum[r][3][c] += v.w * d[p * columns + c];
                }
            }
            ox++;
            if ox == params.out_width {
                ox = 0u;
                oy++;
                if oy == params.out_height {
                    oy = 0u;
                    image += params.in_height;
                }
            }
        }
    }

    for (var r = 0u; r < 2u; r++) {
        let row = (group.x * 2u + r) * WORKGROUP + local;
        if row < row_vectors {
            for (var k = 0u; k < 4u; k++) {
                let split_row = (group.z * row_vectors + row) * 4u + k;
                for (var c = 0u; c < columns; c++) {
                    if group_column + c < params.group_out_vectors {
                        dw[split_row * params.out_vectors + group_first_column + group_column + c] = sum[r][k][c];
                    }
                }
            }
        }
    }
}
