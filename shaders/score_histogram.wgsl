// Counts the scores of a tile of pairs by value: counts[0] those of two rows with the same label, counts[1] the others.
// Only pairs within the window count, and on the diagonal only those whose column is beyond their row.
//
// An invocation takes one column of some rows, so that neighbours read neighbouring scores. Integers are added
// atomically: the sums are the same in any order. The factor is a power of two and the bin a whole number below 2^24,
// so that the bin of a score is exact, whatever the compiler fuses.

struct Params {
    // The tile: its size, and its first row and column.
    rows: u32,
    columns: u32,
    row_first: u32,
    column_first: u32,
    // Bins of one kind, and bins a unit of score.
    bins: u32,
    per_unit: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> scores: array<f32>;
@group(0) @binding(2) var<storage, read> row_labels: array<u32>;
@group(0) @binding(3) var<storage, read> column_labels: array<u32>;
// First row and end, first column and end, 1 where the rows are the columns.
@group(0) @binding(4) var<storage, read> window: array<u32>;
@group(0) @binding(5) var<storage, read_write> counts: array<atomic<u32>>;

override ROWS: u32 = 16u;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let index = group.x + group.y * groups.x;
    let across = (params.columns + 255u) / 256u;
    let column = (index % across) * 256u + local.x;
    let global_column = params.column_first + column;
    if column >= params.columns || global_column < window[2] || global_column >= window[3] {
        return;
    }
    // Rows of the tile that are in the window, and above the diagonal.
    var begin = window[0];
    var end = window[1];
    if window[4] != 0u {
        end = min(end, global_column);
    }
    begin = max(begin, params.row_first) - params.row_first;
    end = max(end, params.row_first) - params.row_first;
    let first = max((index / across) * ROWS, begin);
    let last = min(min((index / across + 1u) * ROWS, params.rows), end);
    let label = column_labels[global_column];
    let middle = f32(params.bins / 2u);
    for (var row = first; row < last; row++) {
        let place = floor(scores[row * params.columns + column] * params.per_unit) + middle;
        let bin = u32(clamp(place, 0.0, f32(params.bins - 1u)));
        let kind = select(params.bins, 0u, row_labels[params.row_first + row] == label);
        atomicAdd(&counts[kind + bin], 1u);
    }
}
