//! How kernels walk a tensor `[..., C]` seen as rows of `C` channels, where a channel has constants or sums of its own.
//!
//! A workgroup is `COLUMNS` neighbouring channels, or vectors of four where `C` is a multiple of 4, by `LANES` rows, and
//! walks one of the parts into which the rows are split: neighbouring lanes touch neighbouring memory, what belongs to a
//! channel is read once, and no index is divided.

use crate::kernel::Kernel;
use crate::op::Lowering;
use crate::{Result, Shape};

crate::param_block! {
    /// Parameters of every kernel that walks `[rows, columns]` in parts of the rows.
    pub struct RowsParams {
        /// Rows, all dimensions but the innermost.
        rows: u32,
        /// Columns: channels, or vectors of four of them.
        columns: u32,
        /// Rows that one workgroup walks.
        rows_per_split: u32,
    }
}

/// The constants of such a kernel.
pub(super) const CONSTANTS: &[&str] = &["COLUMNS", "LANES"];

/// Invocations of a workgroup on a GPU.
const WORKGROUP: usize = 256;
/// Columns of a workgroup on a GPU at most: with more, there are fewer rows at a time and nothing is gained.
const MAX_COLUMNS: usize = 64;
/// Rows that a lane walks at least on a GPU: enough to make up for the channel's constants, or for a sum's second stage.
const ROWS_PER_LANE: usize = 8;
/// Parts of a reduction that fill a GPU.
const WANTED_SPLITS: usize = 512;
/// Parts of a reduction at most: what the second stage adds.
const MAX_SPLITS: usize = 1024;

/// Invocations of a workgroup on a CPU adapter: one subgroup of llvmpipe. It runs a subgroup to its end before the next,
/// so each of several would walk the same memory with gaps as wide as the workgroup.
const CPU_WORKGROUP: usize = 8;
/// Elements of a part on a CPU adapter: it stays in the cache while all of its columns are walked.
const CPU_ELEMENTS: usize = 16 << 10;
/// Rows of a part on a CPU adapter at least.
const CPU_ROWS: usize = 16;

/// How a kernel is launched over `[..., C]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Walk {
    /// The parameters.
    pub params: RowsParams,
    /// Parts of the rows.
    pub splits: usize,
    /// Workgroups.
    pub grid: [u32; 3],
    /// Channels that a lane handles, 4 or 1.
    width: usize,
    columns: usize,
    lanes: usize,
}

impl Walk {
    /// For a kernel without sums.
    pub fn elementwise(lowering: &Lowering<'_>, shape: &Shape) -> Result<Self> {
        Self::new(lowering, shape, |_| lowering.caps().max_grid as usize)
    }

    /// For the first stage of sums over the rows.
    pub fn reduction(lowering: &Lowering<'_>, shape: &Shape) -> Result<Self> {
        let cpu = lowering.caps().cpu;
        Self::new(lowering, shape, |groups| if cpu { MAX_SPLITS } else { WANTED_SPLITS.div_ceil(groups) })
    }

    /// `max_splits` is a function of the workgroups that lie side by side in a row. Everything depends on sizes and on
    /// the kind of adapter alone, so that sums are made in the same order on every run.
    fn new(lowering: &Lowering<'_>, shape: &Shape, max_splits: impl Fn(usize) -> usize) -> Result<Self> {
        lowering.size(shape.elements())?;
        let (rows, channels) = (shape.rows(), shape.last());
        let width = if channels.is_multiple_of(4) { 4 } else { 1 };
        let all_columns = channels / width;
        let workgroup = if lowering.caps().cpu { CPU_WORKGROUP } else { WORKGROUP };
        let columns = all_columns.next_power_of_two().min(MAX_COLUMNS).min(workgroup);
        let lanes = workgroup / columns;
        let groups = all_columns.div_ceil(columns).max(1);
        let least = if lowering.caps().cpu {
            (CPU_ELEMENTS / channels.max(1)).max(CPU_ROWS)
        } else {
            ROWS_PER_LANE * lanes
        };
        let rows_per_split = least.max(rows.div_ceil(max_splits(groups)));
        let splits = rows.div_ceil(rows_per_split).max(1);
        let params = RowsParams {
            rows: lowering.size(rows)?,
            columns: lowering.size(all_columns)?,
            rows_per_split: lowering.size(rows_per_split)?,
        };
        let grid = [lowering.size(groups)?, lowering.size(splits)?, 1];
        Ok(Self { params, splits, grid, width, columns, lanes })
    }

    /// The kernel: `vectors` takes vectors of four channels.
    pub fn kernel(&self, scalars: &'static Kernel, vectors: &'static Kernel) -> &'static Kernel {
        if self.width == 4 { vectors } else { scalars }
    }

    /// The kernel's constants.
    pub fn constants(&self) -> [(&'static str, f64); 2] {
        [("COLUMNS", self.columns as f64), ("LANES", self.lanes as f64)]
    }

    /// Bytes of one partial sum for each part and channel.
    pub fn partial_bytes(&self, channels: usize) -> u64 {
        (self.splits * channels * 4) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TensorDesc;
    use crate::caps::Caps;
    use crate::op::Op;
    use crate::ops::prelu::{Prelu, PreluGrad};

    const SHAPES: [[usize; 2]; 10] = [
        [1, 1],
        [1031, 1],
        [77, 3],
        [2051, 4],
        [65_536, 16],
        [999, 65],
        [129, 68],
        [401_408, 64],
        [3, 4096],
        [8_000_000, 2],
    ];

    #[test]
    fn all_is_walked_and_no_workgroup_is_idle() {
        for caps in [Caps::WEBGPU, Caps { cpu: true, ..Caps::WEBGPU }] {
            for [rows, channels] in SHAPES {
                let (x, slope) = (TensorDesc::f32([rows, channels]), TensorDesc::f32([channels]));
                let (forward, backward) = ([x.clone(), slope.clone()], [x.clone(), slope.clone(), x.clone()]);
                let ops: [(&dyn Op, &[TensorDesc]); 2] = [(&Prelu, &forward), (&PreluGrad, &backward)];
                for (op, inputs) in ops {
                    let outputs = op.infer(inputs).unwrap();
                    let lowered = Lowering::run(op, &caps, inputs, &outputs).unwrap();
                    let first = &lowered.dispatches[0];
                    let params: RowsParams = bytemuck::pod_read_unaligned(&first.params);
                    let [all_columns, part] = [params.columns, params.rows_per_split].map(|n| n as usize);
                    let [columns, lanes] = [0, 1].map(|i| first.constants[i].1 as usize);
                    let [groups, splits] = [0, 1].map(|i| first.grid[i] as usize);
                    let vectors = first.kernel.shader.ends_with("_vec4");
                    assert_eq!(all_columns * if vectors { 4 } else { 1 }, channels);
                    assert!(lanes.is_power_of_two() && columns * lanes <= 256, "{first:?}");
                    assert!(groups * columns >= all_columns, "{first:?}");
                    assert!((groups - 1) * columns < all_columns, "{first:?}");
                    assert!(splits * part >= rows && (splits - 1) * part < rows, "{first:?}");
                }
            }
        }
    }
}
