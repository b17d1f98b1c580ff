// How many pairs of each row of a tile have a score in one of the chosen bins. One workgroup a row; see
// score_histogram.wgsl for window and bins.

struct Params {
    rows: u32,
    columns: u32,
    row_first: u32,
    column_first: u32,
    bins: u32,
    per_unit: f32,
    // Pairs that the list holds.
    capacity: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> scores: array<f32>;
@group(0) @binding(2) var<storage, read> chosen: array<u32>;
@group(0) @binding(3) var<storage, read> window: array<u32>;
@group(0) @binding(4) var<storage, read_write> row_counts: array<u32>;

override WORKGROUP: u32 = 128u;

var<workgroup> cells: array<u32, WORKGROUP>;

fn is_chosen(score: f32) -> bool {
    let place = floor(score * params.per_unit) + f32(params.bins / 2u);
    let bin = u32(clamp(place, 0.0, f32(params.bins - 1u)));
    return ((chosen[bin / 32u] >> (bin % 32u)) & 1u) != 0u;
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let row = group.x + group.y * groups.x;
    if row >= params.rows {
        return;
    }
    let lane = local.x;
    let global_row = params.row_first + row;
    // Columns of the tile that are in the window, and beyond the diagonal.
    var begin = window[2];
    if window[4] != 0u {
        begin = max(begin, global_row + 1u);
    }
    begin = max(begin, params.column_first) - params.column_first;
    var end = min(max(window[3], params.column_first) - params.column_first, params.columns);
    if global_row < window[0] || global_row >= window[1] {
        end = 0u;
    }
    var count = 0u;
    for (var column = begin + lane; column < end; column += WORKGROUP) {
        count += u32(is_chosen(scores[row * params.columns + column]));
    }
    cells[lane] = count;
    for (var width = WORKGROUP / 2u; width > 0u; width /= 2u) {
        workgroupBarrier();
        if lane < width {
            cells[lane] += cells[lane + width];
        }
    }
    if lane == 0u {
        row_counts[row] = cells[0];
    }
}
