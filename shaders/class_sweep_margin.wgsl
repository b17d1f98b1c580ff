// One tile of the classes in an online softmax (Milakov and Gimelshein, arXiv 1805.02867). In: tile[row, j] = x . w_j.
// Keeps for each row the largest cosine so far of a class that is not its own, and the sum of e^{s (t_j - largest)}; a
// sum made with an earlier largest is brought to the new one by `decay`, which the sum of the gradient needs as well.
// Out: tile[row, j] = e^{s (t_j - largest)} / |w_j|, 0 for the row's own class. One workgroup a row.

struct Params {
    // Samples.
    rows: u32,
    // The tile's first class, and how many it has.
    first: u32,
    classes: u32,
    // 1 for the first tile.
    initial: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> inverse: array<f32>;
@group(0) @binding(2) var<storage, read> labels: array<u32>;
@group(0) @binding(3) var<storage, read_write> tile: array<f32>;
// x: the largest cosine, y: the sum.
@group(0) @binding(4) var<storage, read_write> running: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> decay: array<f32>;

override WORKGROUP: u32 = 256u;

// Stands for the largest of no cosines; its product with a scale is still finite.
const NOTHING: f32 = -1e30;

var<workgroup> cells: array<f32, WORKGROUP>;

fn workgroup_max(lane: u32, value: f32) -> f32 {
    cells[lane] = value;
    for (var width = WORKGROUP / 2u; width > 0u; width /= 2u) {
        workgroupBarrier();
        if lane < width {
            cells[lane] = max(cells[lane], cells[lane + width]);
        }
    }
    return workgroupUniformLoad(&cells[0]);
}

fn workgroup_sum(lane: u32, value: f32) -> f32 {
    cells[lane] = value;
    for (var width = WORKGROUP / 2u; width > 0u; width /= 2u) {
        workgroupBarrier();
        if lane < width {
            cells[lane] += cells[lane + width];
        }
    }
    return workgroupUniformLoad(&cells[0]);
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let lane = local.x;
    let row = group.x + group.y * groups.x;
    if row >= params.rows {
        return;
    }
    // Past the end where the label is in another tile, or no class.
    let own = labels[row] - params.first;
    let base = row * params.classes;
    var highest = NOTHING;
    for (var j = lane; j < params.classes; j += WORKGROUP) {
        let t = tile[base + j] * inverse[j];
        highest = max(highest, select(t, NOTHING, j == own));
    }
    let before = select(running[row].xy, vec2(NOTHING, 0.0), params.initial != 0u);
    let top = max(before.x, workgroup_max(lane, highest));
    var sum = 0.0;
    for (var j = lane; j < params.classes; j += WORKGROUP) {
        let u = inverse[j];
        let e = select(exp(params.scale * (tile[base + j] * u - top)), 0.0, j == own);
        sum += e;
        tile[base + j] = e * u;
    }
    let total = workgroup_sum(lane, sum);
    if lane == 0u {
        let shrink = exp(params.scale * (before.x - top));
        decay[row] = shrink;
        running[row] = vec4(top, before.y * shrink + total, 0.0, 0.0);
    }
}
