//! The pairs of two panels of embeddings, tile by tile: what the ops that look at their scores have in common.

use epl_runtime::case::{Input, integers, matrix, words};
use epl_runtime::host::Array;
use epl_runtime::kernel::{Kernel, Needs, ParamBlock, write};
use epl_runtime::op::{Bound, Cost, Lowering, Operand};
use epl_runtime::ops::matmul::{MatMul, Product, Variant};
use epl_runtime::{Caps, DType, Error, Result, TensorDesc};

/// Rows of a panel at most: a place in it is 16 bits, and its pairs can be counted in 32.
pub const MAX_PANEL: usize = 1 << 15;

/// Elements of a window: first row and end, first column and end, and 1 where the two panels are the same one, so that
/// only the columns beyond a row count.
pub const WINDOW: usize = 5;

/// Bins of scores: bin `b` has the scores `s` with `floor(s * per_unit) + count / 2 = b`, those beyond its ends in the
/// first and the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bins {
    /// Bins for scores from 0 to 1, a power of two: a product with it is exact.
    pub per_unit: u32,
    /// Bins beyond 1, and as many below -1.
    pub margin: u32,
}

impl Bins {
    /// How many there are.
    pub fn count(&self) -> usize {
        2 * (self.per_unit + self.margin) as usize
    }

    /// The bin of a score.
    pub fn of(&self, score: f64) -> usize {
        let place = (score * f64::from(self.per_unit)).floor() + (self.count() / 2) as f64;
        place.clamp(0.0, (self.count() - 1) as f64) as usize
    }

    /// The least score of bin `bin`, and the end of the one before.
    pub fn edge(&self, bin: usize) -> f64 {
        (bin as f64 - (self.count() / 2) as f64) / f64::from(self.per_unit)
    }

    /// Words of a set of bins, a bit each.
    pub fn words(&self) -> usize {
        self.count().div_ceil(32)
    }
}

epl_runtime::param_block! {
    /// Parameters of `score_clear.wgsl`.
    pub struct ClearParams {
        /// Words.
        len: u32,
    }
}

pub(super) static CLEAR: Kernel = Kernel {
    shader: "score_clear",
    entry: "main",
    params: ClearParams::FIELDS,
    bindings: &[write("words")],
    constants: &[],
    needs: Needs::Nothing,
};

/// Appends a launch that zeroes an operand of `len` words.
pub(super) fn clear(lowering: &mut Lowering<'_>, operand: Operand, len: usize) -> Result<()> {
    let grid = lowering.fold(len.div_ceil(4 * 256))?;
    lowering.dispatch(&CLEAR, &[], &ClearParams { len: lowering.size(len)? }, &[operand], grid)
}

/// Rows times the transpose of columns.
const SCORES: MatMul =
    MatMul { transpose_a: false, transpose_b: true, sum_batch: false, variant: Variant::Auto };

/// Extents of a tile at most, `[rows, columns]`, multiples of 64 so that it begins where a binding may. A CPU adapter's
/// cache holds less; a GPU wants many products in one launch.
fn tile_extents(caps: &Caps, wanted: Option<usize>) -> [usize; 2] {
    match wanted {
        Some(extent) => [extent.next_multiple_of(64); 2],
        None if caps.cpu => [256, 1024],
        None => [4096, 4096],
    }
}

/// A part of the pairs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tile {
    /// The first row and column.
    pub first: [usize; 2],
    /// How many rows and columns.
    pub extents: [usize; 2],
}

/// The tiles of two panels, in order, with the workspace of a tile's scores.
#[derive(Debug)]
pub(super) struct Tiles {
    dim: usize,
    /// In order.
    pub tiles: Vec<Tile>,
    /// Workspace `[rows, columns]` of a tile.
    pub scores: Operand,
    scratch: Option<Operand>,
}

fn cut(rows: usize, columns: usize, [tall, wide]: [usize; 2]) -> Vec<Tile> {
    let starts = |count: usize, step: usize| (0..count).step_by(step);
    starts(rows, tall)
        .flat_map(|row| {
            starts(columns, wide).map(move |column| Tile {
                first: [row, column],
                extents: [tall.min(rows - row), wide.min(columns - column)],
            })
        })
        .collect()
}

impl Tiles {
    /// Divides the pairs of inputs 0 and 1 of the op that is lowered. `tile` overrides the extents of a tile.
    pub fn new(lowering: &mut Lowering<'_>, tile: Option<usize>) -> Result<Self> {
        let caps = lowering.caps();
        let (rows, columns) = (&lowering.input(0)?.shape, &lowering.input(1)?.shape);
        lowering.size(rows.elements())?;
        lowering.size(columns.elements())?;
        let tiles = cut(rows.dim(0), columns.dim(0), tile_extents(caps, tile));
        let mut walk = Self { dim: rows.dim(1), tiles, scores: Operand::Workspace(0), scratch: None };
        let most = |size: &dyn Fn(&Tile) -> u64| walk.tiles.iter().map(size).max().unwrap_or(0);
        let bytes = most(&|tile| 4 * (tile.extents[0] * tile.extents[1]) as u64);
        let split = most(&|tile| walk.product(tile).scratch_bytes(caps));
        walk.scores = lowering.workspace(bytes);
        walk.scratch = (split > 0).then(|| lowering.workspace(split));
        Ok(walk)
    }

    fn product(&self, tile: &Tile) -> Product {
        Product { attributes: SCORES, m: tile.extents[0], n: tile.extents[1], k: self.dim }
    }

    /// Appends the launches that put the scores of `tile` into the workspace.
    pub fn score(&self, lowering: &mut Lowering<'_>, tile: &Tile) -> Result<()> {
        let part = |input: usize, side: usize| {
            let bytes = |rows: usize| (rows * self.dim * 4) as u64;
            Bound::part(Operand::Input(input), bytes(tile.first[side]), bytes(tile.extents[side]))
        };
        self.product(tile).lower(lowering, [part(0, 0), part(1, 1)], self.scores, self.scratch)
    }
}

/// Checks rows `[R, D]` and columns `[C, D]`, and returns R and C.
pub(super) fn check_panels(op: &'static str, rows: &TensorDesc, columns: &TensorDesc) -> Result<[usize; 2]> {
    match (rows.shape.dims(), columns.shape.dims()) {
        (&[r, dim], &[c, found])
            if dim == found
                && r.max(c) <= MAX_PANEL
                && [rows, columns].iter().all(|x| x.dtype == DType::F32) =>
        {
            Ok([r, c])
        }
        _ => Err(Error::shape(
            op,
            format!("rows {rows}, columns {columns}"),
            format!("rows f32[R, D], columns f32[C, D], R and C at most {MAX_PANEL}"),
        )),
    }
}

/// Checks vectors of integers.
pub(super) fn check_words(op: &'static str, found: &[(&str, &TensorDesc, usize)]) -> Result<()> {
    for (name, desc, len) in found {
        let expected = TensorDesc::u32([*len]);
        if **desc != expected {
            return Err(Error::shape(op, format!("{name} {desc}"), format!("{name} {expected}")));
        }
    }
    Ok(())
}

/// Calls `each` with row, column and score of every pair in the window, tile by tile, row by row.
pub(super) fn reference_pairs(
    rows: &Array,
    columns: &Array,
    window: &Array,
    extents: [usize; 2],
    each: &mut dyn FnMut(usize, usize, f64),
) {
    let (dim, word) = (rows.shape.dim(1), |i: usize| window.data[i] as usize);
    for tile in cut(rows.shape.dim(0), columns.shape.dim(0), extents) {
        for i in tile.first[0]..tile.first[0] + tile.extents[0] {
            for j in tile.first[1]..tile.first[1] + tile.extents[1] {
                let within = (word(0)..word(1)).contains(&i) && (word(2)..word(3)).contains(&j);
                if within && (word(4) == 0 || j > i) {
                    let row = &rows.data[i * dim..(i + 1) * dim];
                    let column = &columns.data[j * dim..(j + 1) * dim];
                    each(i, j, row.iter().zip(column).map(|(a, b)| a * b).sum());
                }
            }
        }
    }
}

/// The extents of the tiles of an op with `tile` set, for references: tiles that are set are the same on any adapter.
pub(super) fn reference_extents(tile: Option<usize>) -> [usize; 2] {
    tile_extents(&Caps::WEBGPU, tile)
}

/// The work on panels of these sizes: products, and operands once.
pub(super) fn cost(inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Cost {
    let elements = |index: usize| inputs.get(index).map_or(0, |desc| desc.shape.elements()) as f64;
    let columns = inputs.get(1).map_or(0, |desc| desc.shape.dim(0)) as f64;
    Cost::once(2.0 * elements(0) * columns, inputs, outputs)
}

/// Rows `[rows, dim]` whose products are sums of few bits, exact in f32 in any order, and of at most 1: elements of
/// -1/q, 0 and 1/q with q^2 the next power of four from `dim` on.
pub(super) fn exact_rows(rows: usize, dim: usize, seed: u64) -> Input {
    let mut unit = 1.0f32;
    while 1.0 / (unit * unit) < dim as f32 {
        unit /= 2.0;
    }
    let signs = integers([rows * dim], 3, seed).tensor();
    let values: Vec<f32> =
        signs.as_u32().unwrap_or_default().iter().map(|&sign| unit * (sign as f32 - 1.0)).collect();
    matrix([rows, dim], &values)
}

/// A window of panels.
pub(super) fn window(rows: std::ops::Range<u32>, columns: std::ops::Range<u32>, diagonal: bool) -> Input {
    words(&[rows.start, rows.end, columns.start, columns.end, u32::from(diagonal)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_are_between_their_edges() {
        let bins = Bins { per_unit: 8, margin: 2 };
        assert_eq!((bins.count(), bins.words()), (20, 1));
        for (score, bin) in [(0.0, 10), (-0.001, 9), (0.124, 10), (0.125, 11), (1.0, 18), (-1.0, 2)] {
            assert_eq!(bins.of(score), bin, "{score}");
            assert!((bins.edge(bin)..bins.edge(bin + 1)).contains(&score));
        }
        assert_eq!((bins.of(-9.0), bins.of(9.0)), (0, 19));
    }

    #[test]
    fn tiles_cover_every_pair_once() {
        let tiles = cut(150, 70, [64, 64]);
        let pairs: usize = tiles.iter().map(|tile| tile.extents[0] * tile.extents[1]).sum();
        assert_eq!((tiles.len(), pairs), (6, 150 * 70));
        assert_eq!((tiles[5].first, tiles[5].extents), ([128, 64], [22, 6]));
    }
}
