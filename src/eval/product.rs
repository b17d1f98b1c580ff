//! The scores of all rows of one table with all rows of another, block by block on the GPU: the table of scores is never
//! whole anywhere.

use std::collections::VecDeque;
use std::sync::Arc;

use epl_runtime::ops::matmul::{MatMul, matmul};
use epl_runtime::{Device, Graph, Session, SessionOptions, Store, TensorDesc, TensorId};

use crate::Result;

/// Rows of the left table in a block, at most.
const ROWS: usize = 4096;
/// Rows of the right table in a block, at most. A block of scores is then 32 MiB, which any adapter binds.
const COLUMNS: usize = 2048;

/// Some of the scores: those of rows `row ..` of the left table with rows `column ..` of the right one.
#[derive(Debug, Clone, Copy)]
pub struct Block<'a> {
    /// The first row of the left table.
    pub row: usize,
    /// The first row of the right table.
    pub column: usize,
    /// How many rows of the right table.
    pub columns: usize,
    /// Elements from one row of the left table to the next; at least `columns`.
    pub stride: usize,
    /// The scores, row by row.
    pub values: &'a [f32],
}

impl<'a> Block<'a> {
    /// The scores of each row of the left table that the block has, with the row.
    pub fn rows(&self) -> impl Iterator<Item = (usize, &'a [f32])> + use<'a> {
        let (row, columns) = (self.row, self.columns);
        let rows = self.values.chunks_exact(self.stride.max(1)).enumerate();
        rows.map(move |(at, values)| (row + at, values.get(..columns).unwrap_or_default()))
    }
}

/// Computes scores: dot products of rows.
pub trait Product {
    /// Hands all scores of `left` `[N, D]` and `right` `[M, D]` to `each`, in blocks: every block of the left table with the
    /// first of the right one, then with the second, and so on.
    ///
    /// # Errors
    /// Those of the device, and those of `each`.
    fn for_each_block(
        &mut self,
        left: &[f32],
        right: &[f32],
        each: &mut dyn FnMut(Block<'_>) -> Result<()>,
    ) -> Result<()>;
}

/// Scores in f32 on a GPU. Every score of one run comes from the same kernel and adds its terms in the same order, wherever it
/// stands in its block: equal rows have equal scores.
pub struct GpuProduct {
    session: Session,
    left: TensorId,
    right: TensorId,
    rows: usize,
    columns: usize,
    dimension: usize,
}

impl GpuProduct {
    /// For a left table of `rows` rows and right ones of at most `columns`, of `dimension` each.
    ///
    /// # Errors
    /// Those of the device.
    pub fn new(device: &Arc<Device>, rows: usize, columns: usize, dimension: usize) -> Result<Self> {
        let (rows, columns) = (rows.clamp(1, ROWS), columns.clamp(1, COLUMNS));
        let mut graph = Graph::new();
        let left = graph.input("left", TensorDesc::f32([rows, dimension]))?;
        let right = graph.input("right", TensorDesc::f32([columns, dimension]))?;
        let scores =
            matmul(&mut graph, left, right, None, MatMul { transpose_b: true, ..MatMul::default() })?;
        graph.fetch(scores);
        let session = Session::new(&graph, &Store::new(device), SessionOptions::default())?;
        Ok(Self { session, left, right, rows, columns, dimension })
    }
}

/// Where the scores of a step in flight belong.
struct Pending {
    row: usize,
    rows: usize,
    column: usize,
    columns: usize,
}

impl Product for GpuProduct {
    fn for_each_block(
        &mut self,
        left: &[f32],
        right: &[f32],
        each: &mut dyn FnMut(Block<'_>) -> Result<()>,
    ) -> Result<()> {
        let (rows, stride, dimension) = (self.rows, self.columns, self.dimension);
        let mut pending: VecDeque<Pending> = VecDeque::new();
        let mut deliver = |pending: Option<Pending>, values: &[f32]| -> Result<()> {
            let Some(Pending { row, rows, column, columns }) = pending else { return Ok(()) };
            let values = values.get(..rows * stride).unwrap_or_default();
            each(Block { row, column, columns, stride, values })
        };
        // The rows of a block that is not full are those of an earlier block or zeros; nobody reads their scores.
        let mut padded = [vec![0.0; rows * dimension], vec![0.0; stride * dimension]];
        let mut column = 0;
        for right in right.chunks(stride * dimension) {
            let mut row = 0;
            for left in left.chunks(rows * dimension) {
                for ((tensor, part), padded) in
                    [(self.left, left), (self.right, right)].into_iter().zip(&mut padded)
                {
                    padded.iter_mut().zip(part).for_each(|(to, from)| *to = *from);
                    self.session.write(tensor, bytemuck::cast_slice(padded))?;
                }
                self.session.step()?;
                let [filled, columns] = [left.len() / dimension, right.len() / dimension];
                pending.push_back(Pending { row, rows: filled, column, columns });
                for done in self.session.finished()? {
                    if let Some(values) = done.values.first() {
                        deliver(pending.pop_front(), values.as_f32()?)?;
                    }
                }
                row += filled;
            }
            column += right.len() / dimension;
        }
        for done in self.session.flush()? {
            if let Some(values) = done.values.first() {
                deliver(pending.pop_front(), values.as_f32()?)?;
            }
        }
        Ok(())
    }
}
