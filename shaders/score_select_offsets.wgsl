// Where the chosen pairs of each row of a tile go in the list: behind those of the rows before it and of all tiles
// before, whose number is in `total` and grows by this tile's. One workgroup; an invocation takes a run of rows.

struct Params {
    rows: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> row_counts: array<u32>;
@group(0) @binding(2) var<storage, read_write> offsets: array<u32>;
@group(0) @binding(3) var<storage, read_write> total: array<u32>;

override WORKGROUP: u32 = 128u;

var<workgroup> cells: array<u32, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_id) local: vec3<u32>) {
    let lane = local.x;
    let run = (params.rows + WORKGROUP - 1u) / WORKGROUP;
    let first = min(lane * run, params.rows);
    let last = min(first + run, params.rows);
    var count = 0u;
    for (var row = first; row < last; row++) {
        count += row_counts[row];
    }
    // Sums up to and with each lane.
    cells[lane] = count;
    for (var step = 1u; step < WORKGROUP; step *= 2u) {
        workgroupBarrier();
        let before = select(0u, cells[max(lane, step) - step], lane >= step);
        workgroupBarrier();
        cells[lane] += before;
    }
    workgroupBarrier();
    let base = total[0];
    var offset = base + cells[lane] - count;
    for (var row = first; row < last; row++) {
        offsets[row] = offset;
        offset += row_counts[row];
    }
    // Every lane has read the total before it grows.
    storageBarrier();
    workgroupBarrier();
    if lane == 0u {
        total[0] = base + cells[WORKGROUP - 1u];
    }
}
