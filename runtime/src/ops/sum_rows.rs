//! Sum over rows: `[R, C] -> [C]`, times a constant factor; and the second stage of every two-stage reduction.
//!
//! Floats are never added atomically: a reduction writes partial sums `[splits, C]`, and this kernel adds them in a
//! fixed order, so that the same inputs give the same bits.

use crate::caps::Caps;
use crate::case::{Case, OpEntry, normal};
use crate::host::Array;
use crate::kernel::{Kernel, Needs, ParamBlock, read, write};
use crate::op::{Cost, Lowering, Op, Operand, Record, TensorId, push_one};
use crate::{Error, Result, TensorDesc};

crate::param_block! {
    /// Parameters of `sum_rows.wgsl`.
    pub struct SumRowsParams {
        /// Rows that are added.
        rows: u32,
        /// Columns.
        columns: u32,
        /// Rows that one workgroup adds.
        rows_per_split: u32,
        /// Factor of the result.
        factor: f32,
    }
}

/// `sum_rows.wgsl`, also dispatched as the second stage of other reductions.
pub static KERNEL: Kernel = Kernel {
    shader: "sum_rows",
    entry: "main",
    params: SumRowsParams::FIELDS,
    bindings: &[read("x"), write("y")],
    constants: &[],
    needs: Needs::Nothing,
};

/// The registry's entry.
pub const ENTRY: OpEntry = OpEntry { name: "sum_rows", cases, kernels: &[&KERNEL] };

/// Columns that one workgroup of `sum_rows.wgsl` handles.
const COLUMNS: usize = 64;

/// How the rows of a reduction are divided among workgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// Number of parts.
    pub splits: usize,
    /// Rows in each part but perhaps the last.
    pub rows_per_split: usize,
}

impl Split {
    /// Parts enough to fill the adapter, none of them trivially short. A function of the sizes and the kind of
    /// adapter alone, so that sums are made in the same order on every run.
    pub fn choose(caps: &Caps, rows: usize, columns: usize) -> Self {
        let column_groups = columns.div_ceil(COLUMNS).max(1);
        let wanted: usize = if caps.cpu { 8 } else { 512 };
        let parts = wanted.div_ceil(column_groups).min(rows.div_ceil(32)).clamp(1, 1024);
        let rows_per_split = rows.div_ceil(parts).max(1);
        Self { splits: rows.div_ceil(rows_per_split).max(1), rows_per_split }
    }

    /// Bytes of the partial sums of `columns` f32 columns.
    pub fn partial_bytes(&self, columns: usize) -> u64 {
        (self.splits * columns * 4) as u64
    }
}

/// Dispatches `to = factor * sum over rows of from`, with `from` `[rows, columns]` and `to` `[columns]`, in one stage.
pub fn lower_sum(
    lowering: &mut Lowering<'_>,
    from: Operand,
    to: Operand,
    rows: usize,
    columns: usize,
    factor: f32,
) -> Result<()> {
    let params = SumRowsParams {
        rows: lowering.size(rows)?,
        columns: lowering.size(columns)?,
        rows_per_split: lowering.size(rows)?,
        factor,
    };
    let grid = [lowering.size(columns.div_ceil(COLUMNS))?, 1, 1];
    lowering.dispatch(&KERNEL, &[], &params, &[from, to], grid)
}

/// Records `factor * sum over all dimensions but the innermost`: `[..., C] -> [C]`.
pub fn sum_rows(record: &mut dyn Record, x: TensorId, factor: f32) -> Result<TensorId> {
    push_one(record, SumRows { factor }, &[x])
}

/// The op `sum_rows`.
#[derive(Debug, Clone, Copy)]
pub struct SumRows {
    /// Factor of the result; 1/R gives the mean.
    pub factor: f32,
}

impl Op for SumRows {
    fn name(&self) -> &'static str {
        "sum_rows"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let [x] = inputs else {
            return Err(Error::shape("sum_rows", format!("{} inputs", inputs.len()), "x"));
        };
        Ok(vec![TensorDesc::f32([x.shape.last()])])
    }

    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        let x = &lowering.input(0)?.shape;
        let (rows, columns) = (x.rows(), x.last());
        let split = Split::choose(lowering.caps(), rows, columns);
        if split.splits == 1 {
            return lower_sum(lowering, Operand::Input(0), Operand::Output(0), rows, columns, self.factor);
        }
        let partial = lowering.workspace(split.partial_bytes(columns));
        let params = SumRowsParams {
            rows: lowering.size(rows)?,
            columns: lowering.size(columns)?,
            rows_per_split: lowering.size(split.rows_per_split)?,
            factor: 1.0,
        };
        let grid = [lowering.size(columns.div_ceil(COLUMNS))?, lowering.size(split.splits)?, 1];
        lowering.dispatch(&KERNEL, &[], &params, &[Operand::Input(0), partial], grid)?;
        lower_sum(lowering, partial, Operand::Output(0), split.splits, columns, self.factor)
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let x = &inputs[0];
        let columns = x.shape.last();
        let mut y = Array::zeros([columns]);
        for (i, v) in x.data.iter().enumerate() {
            y.data[i % columns] += f64::from(self.factor) * v;
        }
        vec![y]
    }

    fn cost(&self, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Cost {
        Cost::once(inputs.iter().map(|x| x.shape.elements() as f64).sum(), inputs, outputs)
    }
}

fn cases() -> Vec<Case> {
    let case = |label: &str, shape: &[usize], factor: f32| {
        Case::new(label, SumRows { factor }, vec![normal(shape.to_vec(), 1.0, 1)])
            // Sums of random signs nearly cancel: the error is relative to the terms, not to the sum.
            .relative(1e-4)
    };
    vec![
        case("one row", &[1, 5], 1.0),
        case("odd sizes", &[77, 67], 0.5),
        case("many rows", &[4099, 3], -1.0),
        case("images", &[2, 9, 7, 65], 1.0 / 126.0),
        case("perf", &[32, 112, 112, 64], 1.0).perf(),
    ]
}
