//! The classes in tiles: what the ops that walk them have in common.
//!
//! A tile is some rows of the table of prototypes `[C, D]`. For each tile one after the other: the inverse norms of its
//! rows, and the products of all embeddings with them, `[B, T]`. That is all that exists of a matrix of samples and
//! classes at any time. A table that takes several bindings, or several buffers, is walked range by range.
//!
//! Where classes are sampled, a list `classes` u32 `[S]` names those that take part; their rows are copied together
//! tile by tile. Labels are then places in that list.

use epl_runtime::caps::{ROW_ALIGNMENT, RowRange};
use epl_runtime::host::Array;
use epl_runtime::kernel::{Kernel, Needs, ParamBlock, read, write};
use epl_runtime::op::{Bound, Lowering, Operand};
use epl_runtime::ops::matmul::{MatMul, Product};
use epl_runtime::{Caps, Result};

epl_runtime::param_block! {
    /// Parameters of `class_sweep_gather.wgsl`.
    pub struct GatherParams {
        /// Classes of the tile.
        rows: u32,
        /// Place of the tile's first class among those that take part.
        first: u32,
        /// Vectors of four elements of a prototype.
        dim: u32,
        /// First class of the table's range.
        range_first: u32,
        /// Classes of the table's range.
        range_rows: u32,
    }
}

epl_runtime::param_block! {
    /// Parameters of `class_sweep_norms.wgsl`.
    pub struct NormsParams {
        /// Classes of the tile.
        rows: u32,
        /// Vectors of four elements of a prototype.
        dim: u32,
        /// The least norm by which a prototype is divided.
        eps: f32,
    }
}

static GATHER: Kernel = Kernel {
    shader: "class_sweep_gather",
    entry: "main",
    params: GatherParams::FIELDS,
    bindings: &[read("table"), read("classes"), write("tile")],
    constants: &["WORKGROUP"],
    needs: Needs::Nothing,
};

static NORMS: Kernel = Kernel {
    shader: "class_sweep_norms",
    entry: "main",
    params: NormsParams::FIELDS,
    bindings: &[read("prototypes"), write("inverse")],
    constants: &["WORKGROUP"],
    needs: Needs::Nothing,
};

/// Kernels of a walk itself: what begins a tile, and products.
const WALK_KERNELS: [&Kernel; 8] = {
    let [a, b, c, d, e, f] = Product::KERNELS;
    [&GATHER, &NORMS, a, b, c, d, e, f]
};

/// The kernels of an op that walks the classes: its `N` own, and those of the walk; `ALL` is their number.
pub(super) const fn kernels<const N: usize, const ALL: usize>(
    own: [&'static Kernel; N],
) -> [&'static Kernel; ALL] {
    assert!(ALL == N + WALK_KERNELS.len(), "the number of kernels is that of the op's own and the walk's");
    let mut all = [&GATHER; ALL];
    let mut i = 0;
    while i < ALL {
        all[i] = if i < N { own[i] } else { WALK_KERNELS[i - N] };
        i += 1;
    }
    all
}

/// The least norm by which a prototype is divided.
pub(super) const PROTOTYPE_EPSILON: f32 = 1e-12;

/// `x [B, D]` times the transpose of the prototypes of a tile `[T, D]`.
const COSINES: MatMul = MatMul {
    transpose_a: false,
    transpose_b: true,
    sum_batch: false,
    variant: epl_runtime::ops::matmul::Variant::Auto,
};

/// Invocations that share a row of a kernel that loops over it. A CPU adapter runs a subgroup's whole loop before the
/// next subgroup's, so that a row is best left to one.
pub(super) fn row_workgroup(caps: &Caps, on_gpu: f64) -> f64 {
    match caps.subgroups {
        Some(sizes) if caps.cpu => f64::from(sizes.max).min(on_gpu),
        _ => on_gpu,
    }
}

/// Elements of the largest buffer of a tile: enough work for a large GPU in one launch, and little beside the table.
/// A CPU adapter's cache holds less.
fn tile_elements(caps: &Caps) -> usize {
    let wanted: usize = if caps.cpu { 1 << 20 } else { 1 << 23 };
    wanted.min((caps.max_binding_bytes / 4) as usize)
}

/// Some of the classes that take part.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Tile {
    /// The first one's place among all that take part.
    pub first: usize,
    /// How many they are.
    pub rows: usize,
    /// Their part of the table; `None` where their rows are gathered.
    range: Option<(u64, u64)>,
}

/// Rows of `dim` elements that together are as long as the offset of a binding must be aligned.
fn aligned_rows(dim: usize) -> usize {
    // 256 bytes; a row's length is a multiple of a power of two, which is what it has in common with them.
    let row = 4 * dim.max(1);
    (256 >> row.trailing_zeros().min(8)).max(1)
}

/// The classes that take part, in tiles of nearly equal size of at most `most` rows (rounded up to where a binding may
/// begin), none of which crosses a range. A function of its arguments alone.
fn tiles(ranges: &[RowRange], sampled: Option<usize>, dim: usize, most: usize) -> Vec<Tile> {
    let cut = |first: usize, rows: usize, at: Option<u64>| {
        let step = rows.div_ceil(rows.div_ceil(most).max(1)).next_multiple_of(aligned_rows(dim));
        (0..rows.div_ceil(step)).map(move |i| {
            let count = step.min(rows - i * step);
            let bytes = |rows: usize| (rows * dim * 4) as u64;
            let range = at.map(|offset| (offset + bytes(i * step), bytes(count)));
            Tile { first: first + i * step, rows: count, range }
        })
    };
    match sampled {
        Some(count) => cut(0, count, None).collect(),
        None => ranges.iter().flat_map(|range| cut(range.first, range.rows, Some(range.offset))).collect(),
    }
}

/// Which inputs of an op are what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operands {
    /// The prototypes `[C, D]`.
    pub table: usize,
    /// The normalised embeddings `[B, D]`.
    pub x: usize,
    /// The classes that take part, u32 `[S]`, ascending; `None` where all do.
    pub classes: Option<usize>,
}

/// A walk over the classes: sizes, workspaces and tiles.
#[derive(Debug)]
pub(super) struct Walk {
    operands: Operands,
    /// Samples, B.
    pub samples: usize,
    /// Elements of an embedding, D.
    pub dim: usize,
    /// Classes that take part.
    pub classes: usize,
    /// Parts of the table that can be bound.
    pub ranges: Vec<RowRange>,
    /// The tiles, in order.
    pub tiles: Vec<Tile>,
    /// Workspace `[T]`: `1 / |w_j|`.
    pub inverse: Operand,
    /// Workspace `[B, T]`: the products.
    pub products: Operand,
    gathered: Option<Operand>,
    scratch: Option<Operand>,
}

impl Walk {
    /// Divides the classes of the op that is lowered. `tile` overrides the number of classes of a tile.
    pub fn new(lowering: &mut Lowering<'_>, operands: Operands, tile: Option<usize>) -> Result<Self> {
        let caps = lowering.caps();
        let table = lowering.input(operands.table)?;
        let (samples, dim) = (lowering.input(operands.x)?.shape.dim(0), table.shape.dim(1));
        let sampled = match operands.classes {
            Some(index) => Some(lowering.input(index)?.shape.elements()),
            None => None,
        };
        lowering.size(table.shape.dim(0))?;
        let fits = tile_elements(caps) / samples.max(dim).max(1) / ROW_ALIGNMENT * ROW_ALIGNMENT;
        let most = tile.unwrap_or(fits.max(ROW_ALIGNMENT)).max(1);
        let ranges = caps.row_ranges(table);
        let tiles = tiles(&ranges, sampled, dim, most);
        let longest = tiles.iter().map(|tile| tile.rows).max().unwrap_or(1);
        lowering.size(longest * samples.max(dim))?;
        let bytes = |elements: usize| 4 * elements as u64;
        let inverse = lowering.workspace(bytes(longest));
        let products = lowering.workspace(bytes(samples * longest));
        let gathered = sampled.map(|_| lowering.workspace(bytes(longest * dim)));
        let mut walk = Self {
            operands,
            samples,
            dim,
            classes: sampled.unwrap_or(table.shape.dim(0)),
            ranges,
            tiles,
            inverse,
            products,
            gathered,
            scratch: None,
        };
        walk.scratch = walk.scratch_for(lowering, |walk, tile| walk.cosines(tile));
        Ok(walk)
    }

    fn cosines(&self, tile: &Tile) -> Product {
        Product { attributes: COSINES, m: self.samples, n: tile.rows, k: self.dim }
    }

    /// A workspace for the split sums of a product that is made for every tile; `None` where none is split.
    pub fn scratch_for(
        &self,
        lowering: &mut Lowering<'_>,
        product: impl Fn(&Self, &Tile) -> Product,
    ) -> Option<Operand> {
        let bytes = self.tiles.iter().map(|tile| product(self, tile).scratch_bytes(lowering.caps())).max();
        bytes.filter(|&bytes| bytes > 0).map(|bytes| lowering.workspace(bytes))
    }

    /// Appends the launches that begin a tile: its rows together, their inverse norms, and their products with all
    /// embeddings. Returns its rows `[T, D]`.
    pub fn begin(&self, lowering: &mut Lowering<'_>, tile: &Tile) -> Result<Bound> {
        let table = Operand::Input(self.operands.table);
        let rows = match (tile.range, self.gathered, self.operands.classes) {
            (None, Some(gathered), Some(classes)) => {
                self.gather(lowering, tile, Operand::Input(classes), gathered)?;
                gathered.into()
            }
            (range, ..) => Bound { operand: table, range },
        };
        let params = NormsParams {
            rows: lowering.size(tile.rows)?,
            dim: lowering.size(self.dim / 4)?,
            eps: PROTOTYPE_EPSILON,
        };
        let constants = [("WORKGROUP", row_workgroup(lowering.caps(), 64.0))];
        let grid = lowering.fold(tile.rows)?;
        lowering.dispatch_ranges(&NORMS, &constants, &params, &[rows, self.inverse.into()], grid)?;
        let x = Operand::Input(self.operands.x).into();
        self.cosines(tile).lower(lowering, [x, rows], self.products, self.scratch)?;
        Ok(rows)
    }

    fn gather(
        &self,
        lowering: &mut Lowering<'_>,
        tile: &Tile,
        classes: Operand,
        gathered: Operand,
    ) -> Result<()> {
        let constants = [("WORKGROUP", row_workgroup(lowering.caps(), 128.0))];
        let grid = lowering.fold(tile.rows)?;
        for range in &self.ranges {
            let params = GatherParams {
                rows: lowering.size(tile.rows)?,
                first: lowering.size(tile.first)?,
                dim: lowering.size(self.dim / 4)?,
                range_first: lowering.size(range.first)?,
                range_rows: lowering.size(range.rows)?,
            };
            let table = Bound::part(Operand::Input(self.operands.table), range.offset, range.bytes);
            let bindings = [table, classes.into(), gathered.into()];
            lowering.dispatch_ranges(&GATHER, &constants, &params, &bindings, grid)?;
        }
        Ok(())
    }
}

/// Cosines in f64, for references.
pub(super) struct Cosines {
    /// The classes that take part.
    pub classes: Vec<usize>,
    /// Their normalised prototypes `[S, D]`.
    pub unit: Array,
    /// What each was divided by, and whether that was its own norm.
    pub norms: Vec<(f64, bool)>,
    /// The cosines `[B, S]`.
    pub values: Array,
}

impl Cosines {
    /// Of `x` `[B, D]` and the rows of `table` `[C, D]` that `classes` lists, or all.
    pub fn new(table: &Array, x: &Array, classes: Option<&Array>) -> Self {
        let dim = table.shape.dim(1);
        let classes: Vec<usize> = match classes {
            Some(list) => list.data.iter().map(|&class| class as usize).collect(),
            None => (0..table.shape.dim(0)).collect(),
        };
        let row = |j: usize| &table.data[classes[j] * dim..(classes[j] + 1) * dim];
        let eps = f64::from(PROTOTYPE_EPSILON);
        let norms: Vec<(f64, bool)> = (0..classes.len())
            .map(|j| {
                let norm = row(j).iter().map(|v| v * v).sum::<f64>().sqrt();
                (norm.max(eps), norm > eps)
            })
            .collect();
        let unit = Array::from_fn([classes.len(), dim], |i| row(i / dim)[i % dim] / norms[i / dim].0);
        let values = Array::from_fn([x.shape.dim(0), classes.len()], |index| {
            let (i, j) = (index / classes.len(), index % classes.len());
            (0..dim).map(|d| x.data[i * dim + d] * unit.data[j * dim + d]).sum()
        });
        Self { classes, unit, norms, values }
    }

    /// `dcosines [B, S]` times the normalised prototypes: `[B, D]`.
    pub fn times_unit(&self, dcosines: &Array) -> Array {
        let (classes, dim) = (self.classes.len(), self.unit.shape.dim(1));
        Array::from_fn([dcosines.shape.dim(0), dim], |index| {
            let (i, d) = (index / dim, index % dim);
            (0..classes).map(|j| dcosines.data[i * classes + j] * self.unit.data[j * dim + d]).sum()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: usize, rows: usize) -> RowRange {
        RowRange { first, rows, offset: 1000 * first as u64, bytes: 20 * rows as u64 }
    }

    #[test]
    fn tiles_cover_every_range_and_cross_none() {
        let found = tiles(&[range(0, 300), range(300, 70)], None, 5, 128);
        let sizes: Vec<(usize, usize)> = found.iter().map(|tile| (tile.first, tile.rows)).collect();
        // 300 rows in three tiles of at most 128.
        assert_eq!(sizes, [(0, 128), (128, 128), (256, 44), (300, 70)]);
        assert_eq!(found[1].range, Some((128 * 20, 128 * 20)));
        assert_eq!(found[3].range, Some((300_000, 1400)));
    }

    #[test]
    fn tiles_are_of_nearly_equal_size() {
        let rows = |total: usize| -> Vec<usize> {
            tiles(&[range(0, total)], None, 5, 1024).iter().map(|tile| tile.rows).collect()
        };
        assert_eq!(rows(1), [1]);
        assert_eq!(rows(1024), [1024]);
        assert_eq!(rows(1025), [576, 449]);
    }

    #[test]
    fn a_binding_may_begin_with_every_aligned_row() {
        for dim in [1, 3, 4, 20, 32, 63, 64, 65, 512] {
            let rows = aligned_rows(dim);
            assert!((4 * dim * rows).is_multiple_of(256), "{dim}");
            assert!(rows == 1 || !(2 * dim * rows).is_multiple_of(256), "{dim}");
        }
    }

    #[test]
    fn all_classes_sampled_are_in_the_tiles_of_no_sampling() {
        let all = tiles(&[range(0, 1025)], None, 5, 256);
        let sampled = tiles(&[range(0, 1025)], Some(1025), 5, 256);
        let places =
            |tiles: &[Tile]| -> Vec<_> { tiles.iter().map(|tile| (tile.first, tile.rows)).collect() };
        assert_eq!(places(&all), places(&sampled));
        assert!(sampled.iter().all(|tile| tile.range.is_none()));
    }
}
