//! The pairs of a row and a column whose score is in one of some bins, as a list.
//!
//! `rows [R, D], columns [C, D], chosen u32 [bins / 32], window u32 [5] -> count u32 [1], list u32 [capacity, 2]`. Bit `b` of
//! `chosen` is set where bin `b` is chosen; for scores, bins and the window see [`score_histogram`](super::score_histogram).
//! `count` is how many pairs there are; the list has the first of them as `(row + column * 2^16, bin)`, in the order of the
//! tiles and of rows and columns within a tile, and zeros behind them. Where `count` is above the capacity the rest is
//! missing: ask for a smaller window.
//!
//! The order is always the same: the pairs of each row are counted, the counts summed, and each row writes behind those
//! before it. There is no gradient.

use epl_runtime::case::{Case, Input, OpEntry, constant, words};
use epl_runtime::host::Array;
use epl_runtime::kernel::{Kernel, Needs, ParamBlock, read, write};
use epl_runtime::op::{Cost, Lowering, Op, Operand, Record, TensorId, push_many};
use epl_runtime::ops::matmul::Product;
use epl_runtime::{Error, Result, TensorDesc};

use super::tiles::{
    Bins, CLEAR, Tiles, WINDOW, check_panels, check_words, clear, cost, exact_rows, reference_extents,
    reference_pairs, window,
};

epl_runtime::param_block! {
    /// Parameters of `score_select.wgsl` and `score_select_count.wgsl`.
    pub struct ScoreSelectParams {
        /// Rows of the tile.
        rows: u32,
        /// Columns of the tile.
        columns: u32,
        /// The tile's first row.
        row_first: u32,
        /// The tile's first column.
        column_first: u32,
        /// Bins.
        bins: u32,
        /// Bins a unit of score.
        per_unit: f32,
        /// Pairs that the list holds.
        capacity: u32,
    }
}

epl_runtime::param_block! {
    /// Parameters of `score_select_offsets.wgsl`.
    pub struct OffsetsParams {
        /// Rows of the tile.
        rows: u32,
    }
}

static SCORE_SELECT: Kernel = Kernel {
    shader: "score_select",
    entry: "main",
    params: ScoreSelectParams::FIELDS,
    bindings: &[
        read("scores"),
        read("chosen"),
        read("window"),
        read("row_counts"),
        read("offsets"),
        write("list"),
    ],
    constants: &["WORKGROUP"],
    needs: Needs::Nothing,
};
static COUNT: Kernel = Kernel {
    shader: "score_select_count",
    entry: "main",
    params: ScoreSelectParams::FIELDS,
    bindings: &[read("scores"), read("chosen"), read("window"), write("row_counts")],
    constants: &["WORKGROUP"],
    needs: Needs::Nothing,
};
static OFFSETS: Kernel = Kernel {
    shader: "score_select_offsets",
    entry: "main",
    params: OffsetsParams::FIELDS,
    bindings: &[read("row_counts"), write("offsets"), write("total")],
    constants: &["WORKGROUP"],
    needs: Needs::Nothing,
};

const PRODUCT: [&Kernel; 6] = Product::KERNELS;

/// The registry's entry.
pub const ENTRY: OpEntry = OpEntry {
    name: "score_select",
    cases,
    kernels: &[
        &SCORE_SELECT,
        &COUNT,
        &OFFSETS,
        &CLEAR,
        PRODUCT[0],
        PRODUCT[1],
        PRODUCT[2],
        PRODUCT[3],
        PRODUCT[4],
        PRODUCT[5],
    ],
};

/// Invocations that share a row, or all rows; a power of two.
const WORKGROUP: f64 = 128.0;

/// Records the list of the pairs of `rows` and `columns` in `window` whose score is in a chosen bin ->
/// `[count u32 [1], list u32 [capacity, 2]]`.
pub fn score_select(
    record: &mut dyn Record,
    [rows, columns]: [TensorId; 2],
    chosen: TensorId,
    window: TensorId,
    op: ScoreSelect,
) -> Result<[TensorId; 2]> {
    push_many(record, op, &[rows, columns, chosen, window])
}

/// The op `score_select`.
#[derive(Debug, Clone, Copy)]
pub struct ScoreSelect {
    /// The bins.
    pub bins: Bins,
    /// Pairs that the list holds.
    pub capacity: usize,
    /// Overrides the extents of a tile; a multiple of 64.
    pub tile: Option<usize>,
}

impl Op for ScoreSelect {
    fn name(&self) -> &'static str {
        "score_select"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let [rows, columns, chosen, window] = inputs else {
            let expected = "rows, columns, chosen, window";
            return Err(Error::shape(self.name(), format!("{} inputs", inputs.len()), expected));
        };
        check_panels(self.name(), rows, columns)?;
        check_words(self.name(), &[("chosen", chosen, self.bins.words()), ("window", window, WINDOW)])?;
        if self.capacity == 0 {
            return Err(Error::shape(self.name(), "a list without room", "room for a pair"));
        }
        Ok(vec![TensorDesc::u32([1]), TensorDesc::u32([self.capacity, 2])])
    }

    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        let tiles = Tiles::new(lowering, self.tile)?;
        let rows = tiles.tiles.iter().map(|tile| tile.extents[0]).max().unwrap_or(1);
        let counts = lowering.workspace(4 * rows as u64);
        let offsets = lowering.workspace(4 * rows as u64);
        clear(lowering, Operand::Output(0), 1)?;
        clear(lowering, Operand::Output(1), 2 * self.capacity)?;
        let constants = [("WORKGROUP", WORKGROUP)];
        let (chosen, window) = (Operand::Input(2), Operand::Input(3));
        for tile in &tiles.tiles {
            tiles.score(lowering, tile)?;
            let params = ScoreSelectParams {
                rows: lowering.size(tile.extents[0])?,
                columns: lowering.size(tile.extents[1])?,
                row_first: lowering.size(tile.first[0])?,
                column_first: lowering.size(tile.first[1])?,
                bins: lowering.size(self.bins.count())?,
                per_unit: self.bins.per_unit as f32,
                capacity: lowering.size(self.capacity)?,
            };
            let grid = lowering.fold(tile.extents[0])?;
            let operands = [tiles.scores, chosen, window, counts];
            lowering.dispatch(&COUNT, &constants, &params, &operands, grid)?;
            let sums = OffsetsParams { rows: params.rows };
            let operands = [counts, offsets, Operand::Output(0)];
            lowering.dispatch(&OFFSETS, &constants, &sums, &operands, [1, 1, 1])?;
            let operands = [tiles.scores, chosen, window, counts, offsets, Operand::Output(1)];
            lowering.dispatch(&SCORE_SELECT, &constants, &params, &operands, grid)?;
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let chosen = &inputs[2];
        let mut list = Vec::new();
        let mut count = 0.0;
        let extents = reference_extents(self.tile);
        reference_pairs(&inputs[0], &inputs[1], &inputs[3], extents, &mut |i, j, score| {
            let bin = self.bins.of(score);
            if (chosen.data[bin / 32] as u32 >> (bin % 32)) & 1 == 1 {
                count += 1.0;
                list.extend([(i + (j << 16)) as f64, bin as f64]);
            }
        });
        list.resize(2 * self.capacity, 0.0);
        vec![Array::new([1], vec![count]), Array::new([self.capacity, 2], list)]
    }

    fn cost(&self, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Cost {
        cost(inputs, outputs)
    }
}

/// A set of bins of which every word is `word`.
fn pattern(bins: Bins, word: u32) -> Input {
    words(&vec![word; bins.words()])
}

fn cases() -> Vec<Case> {
    let coarse = Bins { per_unit: 8, margin: 2 };
    let fine = Bins { per_unit: 1 << 14, margin: 64 };
    // Places are exact, and so are the products of these rows.
    let case = |label: &str, [rows, columns, dim]: [usize; 3], capacity, chosen: Input, window: Input| {
        let bins = if chosen.desc().shape.elements() == coarse.words() { coarse } else { fine };
        let op = ScoreSelect { bins, capacity, tile: Some(64) };
        let inputs = vec![exact_rows(rows, dim, 1), exact_rows(columns, dim, 2), chosen, window];
        Case::new(label, op, inputs).relative(0.0)
    };
    let some = || pattern(coarse, 0x0002_4924);
    let all = || pattern(coarse, u32::MAX);
    let mut same = case("the same panel", [150, 150, 20], 20_000, some(), window(0..150, 0..150, true));
    same.inputs[1] = same.inputs[0].clone();
    let mut beyond =
        case("scores beyond all bins", [3, 4, 8], 12, pattern(coarse, 1), window(0..3, 0..4, false));
    beyond.inputs[0] = constant([3, 8], 2.0);
    beyond.inputs[1] = constant([4, 8], -1.0);
    let mut perf =
        case("perf", [4096, 4096, 512], 1 << 18, pattern(fine, 1), window(0..4096, 0..4096, false)).perf();
    perf.op = std::sync::Arc::new(ScoreSelect { bins: fine, capacity: 1 << 18, tile: None });
    vec![
        case("odd sizes", [37, 131, 19], 5000, some(), window(0..37, 0..131, false)),
        case("one pair", [1, 1, 1], 1, all(), window(0..1, 0..1, false)),
        case("several tiles", [130, 300, 24], 40_000, some(), window(0..130, 0..300, false)),
        case("fine bins", [130, 200, 24], 30_000, pattern(fine, 0xf), window(0..130, 0..200, false)),
        case("a window across tiles", [130, 300, 24], 2000, all(), window(60..70, 100..257, false)),
        case("a window across the diagonal", [130, 130, 24], 9000, all(), window(50..129, 20..110, true)),
        case("none", [70, 70, 8], 4, pattern(coarse, 0), window(0..70, 0..70, false)),
        case("more than the list holds", [70, 140, 8], 777, all(), window(0..70, 0..140, false)),
        same,
        beyond,
        perf,
    ]
}
