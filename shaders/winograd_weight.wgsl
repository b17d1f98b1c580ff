// The weights of a 3x3 convolution as Winograd's F(2x2, 3x3) multiplies them (Lavin and Gray, arXiv 1509.09308): of each
// 3x3 window g, the 16 values of G g G^T.
//
// weight [3, 3, C, O] -> u [C, 16, O]. One invocation for an input channel and four output channels; grid folded into two
// dimensions.

struct Params {
    len: u32,
    channels: u32,
    out_vectors: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> weight: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> u: array<vec4<f32>>;

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
    let channel = index / params.out_vectors;
    let vector = index % params.out_vectors;
    // G g, column by column.
    var half: array<array<vec4<f32>, 3>, 4>;
    for (var j = 0u; j < 3u; j++) {
        var g: array<vec4<f32>, 3>;
        for (var i = 0u; i < 3u; i++) {
            g[i] = weight[((i * 3u + j) * params.channels + channel) * params.out_vectors + vector];
        }
        half[0][j] = g[0];
        half[1][j] = 0.5 * (g[0] + g[1] + g[2]);
        half[2][j] = 0.5 * (g[0] - g[1] + g[2]);
        half[3][j] = g[2];
    }
    let to = channel * 16u * params.out_vectors + vector;
    for (var i = 0u; i < 4u; i++) {
        let at = to + 4u * i * params.out_vectors;
        u[at] = half[i][0];
        u[at + params.out_vectors] = 0.5 * (half[i][0] + half[i][1] + half[i][2]);
        u[at + 2u * params.out_vectors] = 0.5 * (half[i][0] - half[i][1] + half[i][2]);
        u[at + 3u * params.out_vectors] = half[i][2];
    }
}
