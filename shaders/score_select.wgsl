// Writes the chosen pairs of a tile to the list, each as (row + column * 2^16, bin): row by row, and by column within a
// row, from the row's offset on, as far as the list reaches. One workgroup a row, an invocation a run of columns; rows
// without a chosen pair end at once. See score_histogram.wgsl for window and bins.

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
@group(0) @binding(4) var<storage, read> row_counts: array<u32>;
@group(0) @binding(5) var<storage, read> offsets: array<u32>;
@group(0) @binding(6) var<storage, read_write> list: array<vec2<u32>>;

override WORKGROUP: u32 = 128u;

var<workgroup> cells: array<u32, WORKGROUP>;

fn bin_of(score: f32) -> u32 {
    let place = floor(score * params.per_unit) + f32(params.bins / 2u);
    return u32(clamp(place, 0.0, f32(params.bins - 1u)));
}

fn is_chosen(bin: u32) -> bool {
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
    if row_counts[row] == 0u {
        return;
    }
    let lane = local.x;
    let global_row = params.row_first + row;
    var begin = window[2];
    if window[4] != 0u {
        begin = max(begin, global_row + 1u);
    }
    begin = max(begin, params.column_first) - params.column_first;
    let end = min(max(window[3], params.column_first) - params.column_first, params.columns);
    let run = (max(end, begin) - begin + WORKGROUP - 1u) / WORKGROUP;
    let first = begin + lane * run;
    let last = min(first + run, end);
    var count = 0u;
    for (var column = first; column < last; column++) {
        count += u32(is_chosen(bin_of(scores[row * params.columns + column])));
    }
    // Sums up to and with each lane.
    cells[lane] = count;
    for (var step = 1u; step < WORKGROUP; step *= 2u) {
        workgroupBarrier();
        let before = select(0u, cells[max(lane, step) - step], lane >= step);
        workgroupBarrier();
        cells[lane] += before;
    }
    var at = offsets[row] + cells[lane] - count;
    for (var column = first; column < last; column++) {
        let bin = bin_of(scores[row * params.columns + column]);
        if is_chosen(bin) {
            if at < params.capacity {
                list[at] = vec2(global_row | ((params.column_first + column) << 16u), bin);
            }
            at++;
        }
    }
}
