//! Some rows of a tensor: `[R, ...] -> [count, ...]`, from row `first` on.
//!
//! It has no gradient: what is needed of it is the backward pass of [`concat_rows`](super::concat_rows), and inputs.

use crate::case::{Case, OpEntry, integers, normal};
use crate::host::Array;
use crate::op::{Cost, Gradient, Lowering, Op, Operand, Record, TensorId, push_one};
use crate::ops::concat_rows::{COPY, lower_copy};
use crate::{Error, Result, TensorDesc};

/// The registry's entry.
pub const ENTRY: OpEntry = OpEntry { name: "slice_rows", cases, kernels: &[&COPY] };

/// Records rows `first .. first + count` of `x` (elements, where it is a vector).
pub fn slice_rows(record: &mut dyn Record, x: TensorId, first: usize, count: usize) -> Result<TensorId> {
    push_one(record, SliceRows { first, count }, &[x])
}

/// The op `slice_rows`.
#[derive(Debug, Clone, Copy)]
pub struct SliceRows {
    /// The first row.
    pub first: usize,
    /// Rows.
    pub count: usize,
}

impl Op for SliceRows {
    fn name(&self) -> &'static str {
        "slice_rows"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let [x] = inputs else {
            return Err(Error::shape("slice_rows", format!("{} inputs", inputs.len()), "x"));
        };
        let mut dims = x.shape.dims().to_vec();
        let fits =
            |rows: usize| self.count > 0 && self.first.checked_add(self.count).is_some_and(|end| end <= rows);
        match dims.first_mut() {
            Some(rows) if fits(*rows) => *rows = self.count,
            _ => {
                let found = format!("{} rows from {} of {x}", self.count, self.first);
                return Err(Error::shape("slice_rows", found, "one or more rows that are there"));
            }
        }
        Ok(vec![TensorDesc { shape: dims.into(), ..x.clone() }])
    }

    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        let shape = &lowering.input(0)?.shape;
        let columns = shape.elements() / shape.dim(0);
        let (len, source) = (self.count * columns, self.first * columns);
        lower_copy(lowering, [Operand::Input(0), Operand::Output(0)], len, source, 0)
    }

    fn gradient(&self, gradient: &mut Gradient<'_>) -> Result<()> {
        if gradient.needs(0) {
            return Err(Error::graph(
                "op slice_rows has no gradient",
                "keep it out of the path from the loss to the trained tensors",
            ));
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let x = &inputs[0];
        let columns = x.shape.elements() / x.shape.dim(0);
        let mut dims = x.shape.dims().to_vec();
        dims[0] = self.count;
        vec![Array::new(dims, x.data[self.first * columns..(self.first + self.count) * columns].to_vec())]
    }

    fn cost(&self, _inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Cost {
        // What is left out is not read.
        Cost::once(0.0, outputs, outputs)
    }
}

fn cases() -> Vec<Case> {
    let case = |label: &str, shape: &[usize], first: usize, count: usize| {
        Case::new(label, SliceRows { first, count }, vec![normal(shape.to_vec(), 1.0, 1)])
    };
    vec![
        case("from the start", &[7, 13], 0, 3),
        case("in the middle", &[7, 13], 2, 4),
        case("to the end", &[7, 1], 6, 1),
        case("all of it", &[5, 3, 2], 0, 5),
        Case::new("integers", SliceRows { first: 259, count: 301 }, vec![integers([601], u32::MAX, 1)]),
        case("perf", &[512, 512], 128, 128).perf(),
    ]
}
