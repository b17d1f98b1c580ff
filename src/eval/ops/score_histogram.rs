//! How many pairs of a row and a column have a score in each bin, apart for those with the same label and the others.
//!
//! `rows [R, D], columns [C, D], row_labels u32 [R], column_labels u32 [C], window u32 [5] -> counts u32 [2, bins]`. The score
//! of a pair is the product of its two rows. `counts[0]` are pairs of one label, `counts[1]` of two; only those in the
//! window count: rows `window[0] .. window[1]`, columns `window[2] .. window[3]`, and where `window[4]` is not 0 only columns
//! beyond their row. [`Bins`] says which bin a score is in. The scores are computed tile by tile and never kept. Integers
//! are added atomically, which is the same in any order. There is no gradient.

use epl_runtime::case::{Case, Input, OpEntry, constant, integers};
use epl_runtime::host::Array;
use epl_runtime::kernel::{Kernel, Needs, ParamBlock, read, write};
use epl_runtime::op::{Cost, Lowering, Op, Operand, Record, TensorId, push_one};
use epl_runtime::ops::matmul::Product;
use epl_runtime::{Error, Result, TensorDesc};

use super::tiles::{
    Bins, CLEAR, Tiles, WINDOW, check_panels, check_words, clear, cost, exact_rows, reference_extents,
    reference_pairs, window,
};

epl_runtime::param_block! {
    /// Parameters of `score_histogram.wgsl`.
    pub struct ScoreHistogramParams {
        /// Rows of the tile.
        rows: u32,
        /// Columns of the tile.
        columns: u32,
        /// The tile's first row.
        row_first: u32,
        /// The tile's first column.
        column_first: u32,
        /// Bins of one kind.
        bins: u32,
        /// Bins a unit of score.
        per_unit: f32,
    }
}

static SCORE_HISTOGRAM: Kernel = Kernel {
    shader: "score_histogram",
    entry: "main",
    params: ScoreHistogramParams::FIELDS,
    bindings: &[read("scores"), read("row_labels"), read("column_labels"), read("window"), write("counts")],
    constants: &["ROWS"],
    needs: Needs::Nothing,
};

const PRODUCT: [&Kernel; 6] = Product::KERNELS;

/// The registry's entry.
pub const ENTRY: OpEntry = OpEntry {
    name: "score_histogram",
    cases,
    kernels: &[
        &SCORE_HISTOGRAM,
        &CLEAR,
        PRODUCT[0],
        PRODUCT[1],
        PRODUCT[2],
        PRODUCT[3],
        PRODUCT[4],
        PRODUCT[5],
    ],
};

/// Rows of a tile that an invocation counts.
const ROWS: usize = 16;

/// Records the histogram of the scores of all pairs of `rows` and `columns` in `window` -> u32 `[2, bins]`.
pub fn score_histogram(
    record: &mut dyn Record,
    [rows, columns]: [TensorId; 2],
    [row_labels, column_labels]: [TensorId; 2],
    window: TensorId,
    op: ScoreHistogram,
) -> Result<TensorId> {
    push_one(record, op, &[rows, columns, row_labels, column_labels, window])
}

/// The op `score_histogram`.
#[derive(Debug, Clone, Copy)]
pub struct ScoreHistogram {
    /// The bins.
    pub bins: Bins,
    /// Overrides the extents of a tile; a multiple of 64.
    pub tile: Option<usize>,
}

impl Op for ScoreHistogram {
    fn name(&self) -> &'static str {
        "score_histogram"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let [rows, columns, row_labels, column_labels, window] = inputs else {
            let expected = "rows, columns, row_labels, column_labels, window";
            return Err(Error::shape(self.name(), format!("{} inputs", inputs.len()), expected));
        };
        let [r, c] = check_panels(self.name(), rows, columns)?;
        let vectors =
            [("row_labels", row_labels, r), ("column_labels", column_labels, c), ("window", window, WINDOW)];
        check_words(self.name(), &vectors)?;
        Ok(vec![TensorDesc::u32([2, self.bins.count()])])
    }

    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        let tiles = Tiles::new(lowering, self.tile)?;
        clear(lowering, Operand::Output(0), 2 * self.bins.count())?;
        for tile in &tiles.tiles {
            tiles.score(lowering, tile)?;
            let params = ScoreHistogramParams {
                rows: lowering.size(tile.extents[0])?,
                columns: lowering.size(tile.extents[1])?,
                row_first: lowering.size(tile.first[0])?,
                column_first: lowering.size(tile.first[1])?,
                bins: lowering.size(self.bins.count())?,
                per_unit: self.bins.per_unit as f32,
            };
            let operands =
                [tiles.scores, Operand::Input(2), Operand::Input(3), Operand::Input(4), Operand::Output(0)];
            let grid = lowering.fold(tile.extents[0].div_ceil(ROWS) * tile.extents[1].div_ceil(256))?;
            lowering.dispatch(&SCORE_HISTOGRAM, &[("ROWS", ROWS as f64)], &params, &operands, grid)?;
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let (row_labels, column_labels) = (&inputs[2], &inputs[3]);
        let mut counts = Array::zeros([2, self.bins.count()]);
        let extents = reference_extents(self.tile);
        reference_pairs(&inputs[0], &inputs[1], &inputs[4], extents, &mut |i, j, score| {
            let other = usize::from(row_labels.data[i] != column_labels.data[j]);
            counts.data[other * self.bins.count() + self.bins.of(score)] += 1.0;
        });
        vec![counts]
    }

    fn cost(&self, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Cost {
        cost(inputs, outputs)
    }
}

fn cases() -> Vec<Case> {
    // Counts are exact, and so are the products of these rows.
    let case = |label: &str, [rows, columns, dim]: [usize; 3], bins: Bins, window: Input| {
        let op = ScoreHistogram { bins, tile: Some(64) };
        let inputs = vec![
            exact_rows(rows, dim, 1),
            exact_rows(columns, dim, 2),
            integers([rows], 5, 3),
            integers([columns], 5, 4),
            window,
        ];
        Case::new(label, op, inputs).relative(0.0)
    };
    let (coarse, fine) = (Bins { per_unit: 4, margin: 1 }, Bins { per_unit: 1 << 14, margin: 64 });
    let mut same = case("the same panel", [150, 150, 20], coarse, window(0..150, 0..150, true));
    same.inputs[1] = same.inputs[0].clone();
    same.inputs[3] = same.inputs[2].clone();
    let mut beyond = case("scores beyond all bins", [3, 4, 8], coarse, window(0..3, 0..4, false));
    beyond.inputs[0] = constant([3, 8], 2.0);
    beyond.inputs[1] = constant([4, 8], -1.0);
    let mut equal = case("all in one bin", [70, 300, 3], fine, window(0..70, 0..300, false));
    equal.inputs[0] = constant([70, 3], 0.5);
    equal.inputs[1] = constant([300, 3], 0.5);
    let mut perf = case("perf", [4096, 4096, 512], fine, window(0..4096, 0..4096, false)).perf();
    perf.op = std::sync::Arc::new(ScoreHistogram { bins: fine, tile: None });
    vec![
        case("odd sizes", [37, 131, 19], fine, window(0..37, 0..131, false)),
        case("one pair", [1, 1, 1], coarse, window(0..1, 0..1, false)),
        case("several tiles", [130, 300, 24], fine, window(0..130, 0..300, false)),
        case("a window across tiles", [130, 300, 24], fine, window(60..70, 100..257, false)),
        case("a window across the diagonal", [130, 130, 24], coarse, window(50..129, 20..110, true)),
        case("an empty window", [70, 70, 8], coarse, window(7..7, 0..70, false)),
        same,
        beyond,
        equal,
        perf,
    ]
}
