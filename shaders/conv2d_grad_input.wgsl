// Gradient of a 2-D convolution with respect to its input by its definition, one invocation an element of dx: for few
// channels a group (depthwise). Each element gathers from the outputs whose window covers it; with a stride, those
// are the ones that the divisibility test lets through. Grid folded into two dimensions.

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
}

// How activations and weights are stored.
alias Elem = f32;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> weight: array<Elem>;
@group(0) @binding(2) var<storage, read> dy: array<Elem>;
@group(0) @binding(3) var<storage, read_write> dx: array<Elem>;

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
    let i = index % in_channels;
    let pixel = index / in_channels;
    let ix = pixel % params.in_width;
    let row = pixel / params.in_width;
    let iy = row % params.in_height;
    let image = row / params.in_height;
    let first_channel = i / params.group_in * params.group_out;

    var sum = 0.0;
    for (var ky = 0u; ky < params.kernel_height; ky++) {
        // Windows that begin below this row wrap around to huge numbers.
        let down = iy + params.pad_top - ky;
        let oy = down / params.stride_y;
        if down % params.stride_y != 0u || oy >= params.out_height {
            continue;
        }
        for (var kx = 0u; kx < params.kernel_width; kx++) {
            let right = ix + params.pad_left - kx;
            let ox = right / params.stride_x;
            if right % params.stride_x != 0u || ox >= params.out_width {
                continue;
            }
            let start = ((image * params.out_height + oy) * params.out_width + ox) * out_channels + first_channel;
            let at = ((ky * params.kernel_width + kx) * params.group_in + i % params.group_in) * out_channels
                + first_channel;
            for (var o = 0u; o < params.group_out; o++) {
                sum = fma(f32(dy[start + o]), f32(weight[at + o]), sum);
            }
        }
    }
    dx[index] = Elem(sum);
}
