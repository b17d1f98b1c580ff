// Update of the empirical prototypes, in place: queue[y] <- n(a queue[y] + (1 - a) x), with a = f(x . queue[y]).
// One workgroup a sample. A class may occur several times in a batch, so the one workgroup that leads the class does
// all of its updates and the others do nothing: no two workgroups ever touch the same row, whatever their timing.

struct Params {
    rows: u32,
    // First class of the bound range of the prototypes, and how many it has.
    first: u32,
    classes: u32,
    dim: u32,
    rule: u32,
    sequential: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> labels: array<u32>;
@group(0) @binding(3) var<storage, read_write> queue: array<f32>;

override WORKGROUP: u32 = 128u;

// Rule 3 keeps nothing.
const SOFTSIGN: u32 = 0u;
const SIGMOID: u32 = 1u;
const SIGMOID_PAPER: u32 = 2u;
const NORM_EPSILON: f32 = 1e-12;

var<workgroup> ranks: array<u32, WORKGROUP>;
var<workgroup> sums: array<f32, WORKGROUP>;

// How much of the old prototype is kept, given its product with the sample.
fn keep(product: f32) -> f32 {
    switch params.rule {
        case SOFTSIGN: { return product / (1.0 + abs(product)); }
        case SIGMOID: { return 1.0 / (1.0 + exp(1.0 - product)); }
        case SIGMOID_PAPER: { return 1.0 / (1.0 + exp(-product)); }
        default: { return 0.0; }
    }
}

// The rank of a sample among those of its class: the highest leads. With `last` later samples rank higher, with
// `sequential` earlier ones do.
fn rank(row: u32) -> u32 {
    return select(row + 1u, params.rows - row, params.sequential != 0u);
}

fn workgroup_max(lane: u32, value: u32) -> u32 {
    ranks[lane] = value;
    for (var width = WORKGROUP / 2u; width > 0u; width /= 2u) {
        workgroupBarrier();
        if lane < width {
            ranks[lane] = max(ranks[lane], ranks[lane + width]);
        }
    }
    return workgroupUniformLoad(&ranks[0]);
}

fn workgroup_sum(lane: u32, value: f32) -> f32 {
    sums[lane] = value;
    for (var width = WORKGROUP / 2u; width > 0u; width /= 2u) {
        workgroupBarrier();
        if lane < width {
            sums[lane] += sums[lane + width];
        }
    }
    return workgroupUniformLoad(&sums[0]);
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let lane = local.x;
    let first = group.x + group.y * groups.x;
    if first >= params.rows {
        return;
    }
    let label = labels[first];
    // A label below the range wraps around and is past its end.
    let within = label - params.first;
    if within >= params.classes {
        return;
    }
    var highest = 0u;
    for (var row = lane; row < params.rows; row += WORKGROUP) {
        if labels[row] == label {
            highest = max(highest, rank(row));
        }
    }
    if workgroup_max(lane, highest) != rank(first) {
        return;
    }

    let base = within * params.dim;
    let end = select(first + 1u, params.rows, params.sequential != 0u);
    for (var row = first; row < end; row++) {
        if labels[row] != label {
            continue;
        }
        let source = row * params.dim;
        var product = 0.0;
        for (var d = lane; d < params.dim; d += WORKGROUP) {
            product += x[source + d] * queue[base + d];
        }
        let kept = keep(workgroup_sum(lane, product));
        let added = 1.0 - kept;
        var square = 0.0;
        for (var d = lane; d < params.dim; d += WORKGROUP) {
            let v = kept * queue[base + d] + added * x[source + d];
            square += v * v;
        }
        let sum = workgroup_sum(lane, square);
        // A sample that overflowed must not spoil a prototype that outlives it. By its bits: a test on floats may be folded
        // away by a compiler that assumes that there are no NaNs.
        if (bitcast<u32>(sum) & 0x7f800000u) == 0x7f800000u {
            continue;
        }
        let norm = max(sqrt(sum), NORM_EPSILON);
        // A lane overwrites only what it alone has read, so the next sample of the class needs no barrier.
        for (var d = lane; d < params.dim; d += WORKGROUP) {
            queue[base + d] = (kept * queue[base + d] + added * x[source + d]) / norm;
        }
    }
}
