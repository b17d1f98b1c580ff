// 2-D convolution by its definition, one invocation an output element: for few channels a group (depthwise).
// Neighbouring invocations have neighbouring channels. Grid folded into two dimensions.

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
@group(0) @binding(1) var<storage, read> x: array<Elem>;
@group(0) @binding(2) var<storage, read> weight: array<Elem>;
@group(0) @binding(3) var<storage, read_write> y: array<Elem>;

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
    let out_channels = params.groups * params.group_out;
    let o = index % out_channels;
    let pixel = index / out_channels;
    let ox = pixel % params.out_width;
    let row = pixel / params.out_width;
    let oy = row % params.out_height;
    let image = row / params.out_height;
    let in_channels = params.groups * params.group_in;
    let first_channel = o / params.group_out * params.group_in;

    var sum = 0.0;
    for (var ky = 0u; ky < params.kernel_height; ky++) {
        // Rows and columns above and left of the image wrap around to huge numbers.
        let iy = oy * params.stride_y + ky - params.pad_top;
        for (var kx = 0u; kx < params.kernel_width; kx++) {
            let ix = ox * params.stride_x + kx - params.pad_left;
            if iy < params.in_height && ix < params.in_width {
                let start = ((image * params.in_height + iy) * params.in_width + ix) * in_channels + first_channel;
                let tap = (ky * params.kernel_width + kx) * params.group_in;
                for (var i = 0u; i < params.group_in; i++) {
                    sum = fma(f32(x[start + i]), f32(weight[(tap + i) * out_channels + o]), sum);
                }
            }
        }
    }
    y[index] = Elem(sum);
}
