// Gradient of a 2-D convolution with respect to its weight by its definition, one invocation an element: for few
// channels a group (depthwise). Output pixels are split over the grid's z; the partial sums [splits, weights] are
// added in order by sum_rows. Grid x, y: the elements of the weight, folded.

struct Params {
    len: u32,
    in_height: u32,
    in_width: u32,
    group_in: u32,
    out_height: u32,
    out_width: u32,
    group_out: u32,
    groups: u32,
    kernel_height: u32,
    kernel_width: u32,
    stride_y: u32,
    stride_x: u32,
    pad_top: u32,
    pad_left: u32,
    pixels: u32,
    pixels_per_split: u32,
}

// How activations are stored; the gradient of the weights is not.
alias Elem = f32;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Elem>;
@group(0) @binding(2) var<storage, read> dy: array<Elem>;
@group(0) @binding(3) var<storage, read_write> dw: array<f32>;

override WORKGROUP: u32 = 64u;

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let index = (group.x + group.y * groups.x) * WORKGROUP + local;
    if index >= params.len {
        return;
    }
    let in_channels = params.groups * params.group_in;
    let out_channels = params.groups * params.group_out;
    let o = index % out_channels;
    let row = index / out_channels;
    let i = o / params.group_out * params.group_in + row % params.group_in;
    let tap = row / params.group_in;
    // Rows and columns above and left of the image wrap around to huge numbers.
    let shift_y = tap / params.kernel_width - params.pad_top;
    let shift_x = tap % params.kernel_width - params.pad_left;

    let first = group.z * params.pixels_per_split;
    let last = min(first + params.pixels_per_split, params.pixels);
    var ox = first % params.out_width;
    var oy = first / params.out_width % params.out_height;
    var image = first / params.out_width / params.out_height;
    var sum = 0.0;
    for (var pixel = first; pixel < last; pixel++) {
        let iy = oy * params.stride_y + shift_y;
        let ix = ox * params.stride_x + shift_x;
        if iy < params.in_height && ix < params.in_width {
            let start = ((image * params.in_height + iy) * params.in_width + ix) * in_channels + i;
            sum = fma(f32(x[start]), f32(dy[pixel * out_channels + o]), sum);
        }
        ox++;
        if ox == params.out_width {
            ox = 0u;
            oy++;
            if oy == params.out_height {
                oy = 0u;
                image++;
            }
        }
    }
    dw[group.z * params.len + index] = sum;
}
