//! Tensors one below the other: `[R1, ...], [R2, ...], ... -> [R1 + R2 + ..., ...]`.
//!
//! The gradient of each is its rows of the gradient of the result ([`slice_rows`](super::slice_rows)).

use std::sync::Arc;

use crate::case::{Case, OpEntry, integers, normal};
use crate::host::Array;
use crate::kernel::{Kernel, Needs, ParamBlock, read, write};
use crate::op::{Cost, Gradient, Lowering, Op, Operand, Record, TensorId};
use crate::ops::slice_rows::slice_rows;
use crate::{Error, Result, TensorDesc};

crate::param_block! {
    /// Parameters of `concat_rows.wgsl`.
    pub struct CopyParams {
        /// Words to copy.
        len: u32,
        /// The first one's place in x.
        x_first: u32,
        /// The first one's place in y.
        y_first: u32,
    }
}

/// Copies words of four bytes.
pub(super) static COPY: Kernel = Kernel {
    shader: "concat_rows",
    entry: "main",
    params: CopyParams::FIELDS,
    bindings: &[read("x"), write("y")],
    constants: &["WORKGROUP"],
    needs: Needs::Nothing,
};

/// The registry's entry.
pub const ENTRY: OpEntry = OpEntry { name: "concat_rows", cases, kernels: &[&COPY] };

const WORKGROUP: usize = 256;

/// Launches the copy of `len` words from place `source` of one tensor to place `target` of another.
pub(super) fn lower_copy(
    lowering: &mut Lowering<'_>,
    [x, y]: [Operand; 2],
    len: usize,
    source: usize,
    target: usize,
) -> Result<()> {
    lowering.size(source + len)?;
    lowering.size(target + len)?;
    let params = CopyParams {
        len: lowering.size(len)?,
        x_first: lowering.size(source)?,
        y_first: lowering.size(target)?,
    };
    let grid = lowering.fold(len.div_ceil(WORKGROUP))?;
    lowering.dispatch(&COPY, &[("WORKGROUP", WORKGROUP as f64)], &params, &[x, y], grid)
}

/// Records `parts`, of one type and alike but for their first extents, one below the other.
pub fn concat_rows(record: &mut dyn Record, parts: &[TensorId]) -> Result<TensorId> {
    match record.push(Arc::new(ConcatRows), parts)?.as_slice() {
        [all] => Ok(*all),
        outputs => Err(Error::shape("concat_rows", format!("{} outputs", outputs.len()), "one output")),
    }
}

/// The op `concat_rows`.
#[derive(Debug, Clone, Copy)]
pub struct ConcatRows;

impl Op for ConcatRows {
    fn name(&self) -> &'static str {
        "concat_rows"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let Some(first) = inputs.first() else {
            return Err(Error::shape("concat_rows", "no inputs", "one or more"));
        };
        let rest = |desc: &TensorDesc| (desc.dtype, desc.shape.dims().get(1..).map(<[usize]>::to_vec));
        if rest(first).1.is_none() || inputs.iter().any(|desc| rest(desc) != rest(first)) {
            let found: Vec<String> = inputs.iter().map(TensorDesc::to_string).collect();
            return Err(Error::shape(
                "concat_rows",
                found.join(", "),
                "tensors alike but for their first extents",
            ));
        }
        let mut dims = first.shape.dims().to_vec();
        if let Some(rows) = dims.first_mut() {
            *rows = inputs.iter().map(|desc| desc.shape.dim(0)).sum();
        }
        Ok(vec![TensorDesc { shape: dims.into(), ..first.clone() }])
    }

    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        let mut target = 0;
        for index in 0..lowering.inputs() {
            let len = lowering.input(index)?.shape.elements();
            lower_copy(lowering, [Operand::Input(index), Operand::Output(0)], len, 0, target)?;
            target += len;
        }
        Ok(())
    }

    fn gradient(&self, gradient: &mut Gradient<'_>) -> Result<()> {
        let Some(dy) = gradient.upstream(0) else { return Ok(()) };
        let mut first = 0;
        for index in 0..gradient.inputs.len() {
            let x = gradient.input(index)?;
            let rows = gradient.record().desc(x).shape.dim(0);
            if gradient.needs(index) {
                let dx = slice_rows(gradient.record(), dy, first, rows)?;
                gradient.set(index, dx);
            }
            first += rows;
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let Some(first) = inputs.first() else { return Vec::new() };
        let mut dims = first.shape.dims().to_vec();
        dims[0] = inputs.iter().map(|x| x.shape.dim(0)).sum();
        vec![Array::new(dims, inputs.iter().flat_map(|x| x.data.iter().copied()).collect())]
    }

    fn cost(&self, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Cost {
        Cost::once(0.0, inputs, outputs)
    }
}

fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "rows of a matrix, odd sizes",
            ConcatRows,
            vec![normal([3, 7], 1.0, 1), normal([1, 7], 1.0, 2), normal([5, 7], 1.0, 3)],
        )
        .differentiate(&[0, 1, 2]),
        Case::new("one part", ConcatRows, vec![normal([2, 1], 1.0, 1)]).differentiate(&[0]),
        Case::new("images", ConcatRows, vec![normal([2, 3, 5, 3], 1.0, 1), normal([1, 3, 5, 3], 1.0, 2)])
            .differentiate(&[1]),
        Case::new("integers", ConcatRows, vec![integers([300], u32::MAX, 1), integers([257], u32::MAX, 2)]),
        Case::new("perf", ConcatRows, vec![normal([64, 512], 1.0, 1), normal([64, 512], 1.0, 2)]).perf(),
    ]
}
