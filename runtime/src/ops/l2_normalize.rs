//! Rows divided by their Euclidean norm, and the gradient.
//!
//! `y = x / max(|x|, eps)` over the innermost dimension of `x` `[..., D]`. The gradient is
//! `dx = (dy - y (y . dy)) / |x|` where `|x| > eps`, else `dy / eps`. The norm is formed without squaring anything
//! large or small, so that rows of any magnitude keep their direction.

use crate::case::{Case, LARGE_VECTOR, OpEntry, constant, normal};
use crate::host::Array;
use crate::kernel::{Kernel, Needs, ParamBlock, read, write};
use crate::op::{Cost, Gradient, Lowering, Op, Operand, Record, TensorId, push_one};
use crate::{Error, Result, TensorDesc};

crate::param_block! {
    /// Parameters of `l2_normalize.wgsl` and `l2_normalize_grad.wgsl`.
    pub struct L2NormalizeParams {
        /// Rows of `x`, all dimensions but the innermost.
        rows: u32,
        /// The innermost extent.
        columns: u32,
        /// The least divisor.
        eps: f32,
    }
}

static L2_NORMALIZE: Kernel = Kernel {
    shader: "l2_normalize",
    entry: "main",
    params: L2NormalizeParams::FIELDS,
    bindings: &[read("x"), write("y")],
    constants: &[],
    needs: Needs::Nothing,
};

static L2_NORMALIZE_GRAD: Kernel = Kernel {
    shader: "l2_normalize_grad",
    entry: "main",
    params: L2NormalizeParams::FIELDS,
    bindings: &[read("x"), read("dy"), write("dx")],
    constants: &[],
    needs: Needs::Nothing,
};

/// The registry's entry for [`L2Normalize`].
pub const ENTRY: OpEntry = OpEntry { name: "l2_normalize", cases, kernels: &[&L2_NORMALIZE] };
/// The registry's entry for [`L2NormalizeGrad`].
pub const GRAD_ENTRY: OpEntry =
    OpEntry { name: "l2_normalize_grad", cases: grad_cases, kernels: &[&L2_NORMALIZE_GRAD] };

/// Records `x / max(|x|, eps)` over the innermost dimension; `eps` is above 0 and at most 1.
pub fn l2_normalize(record: &mut dyn Record, x: TensorId, eps: f32) -> Result<TensorId> {
    push_one(record, L2Normalize { eps }, &[x])
}

fn check_eps(op: &str, eps: f32) -> Result<()> {
    if (f32::MIN_POSITIVE..=1.0).contains(&eps) {
        return Ok(());
    }
    Err(Error::shape(op, format!("eps {eps}"), "a normal number above 0 and at most 1"))
}

fn lower_rows(
    lowering: &mut Lowering<'_>,
    kernel: &'static Kernel,
    operands: &[Operand],
    eps: f32,
) -> Result<()> {
    let x = &lowering.input(0)?.shape;
    lowering.size(x.elements())?;
    let params = L2NormalizeParams { rows: lowering.size(x.rows())?, columns: lowering.size(x.last())?, eps };
    let grid = lowering.fold(x.rows())?;
    lowering.dispatch(kernel, &[], &params, operands, grid)
}

fn norm(row: &[f64]) -> f64 {
    row.iter().map(|v| v * v).sum::<f64>().sqrt()
}

/// The op `l2_normalize`.
#[derive(Debug, Clone, Copy)]
pub struct L2Normalize {
    /// The least divisor.
    pub eps: f32,
}

impl Op for L2Normalize {
    fn name(&self) -> &'static str {
        "l2_normalize"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let [x] = inputs else {
            return Err(Error::shape("l2_normalize", format!("{} inputs", inputs.len()), "x"));
        };
        check_eps("l2_normalize", self.eps)?;
        Ok(vec![TensorDesc::f32(x.shape.clone())])
    }

    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        lower_rows(lowering, &L2_NORMALIZE, &[Operand::Input(0), Operand::Output(0)], self.eps)
    }

    fn gradient(&self, gradient: &mut Gradient<'_>) -> Result<()> {
        let Some(dy) = gradient.upstream(0) else { return Ok(()) };
        let x = gradient.input(0)?;
        let dx = push_one(gradient.record(), L2NormalizeGrad { eps: self.eps }, &[x, dy])?;
        gradient.set(0, dx);
        Ok(())
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let x = &inputs[0];
        let rows = x.data.chunks(x.shape.last());
        let y = rows.flat_map(|row| {
            let divisor = norm(row).max(f64::from(self.eps));
            row.iter().map(move |v| v / divisor)
        });
        vec![Array::new(x.shape.clone(), y.collect())]
    }

    fn cost(&self, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Cost {
        Cost::once(3.0 * outputs.iter().map(|y| y.shape.elements() as f64).sum::<f64>(), inputs, outputs)
    }
}

/// The op `l2_normalize_grad`: `x, dy -> dx`.
#[derive(Debug, Clone, Copy)]
pub struct L2NormalizeGrad {
    /// The least divisor of the forward op.
    pub eps: f32,
}

impl Op for L2NormalizeGrad {
    fn name(&self) -> &'static str {
        "l2_normalize_grad"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let [x, dy] = inputs else {
            return Err(Error::shape("l2_normalize_grad", format!("{} inputs", inputs.len()), "x, dy"));
        };
        check_eps("l2_normalize_grad", self.eps)?;
        if dy != x {
            return Err(Error::shape("l2_normalize_grad", format!("dy {dy}"), format!("{x}, as x")));
        }
        Ok(vec![x.clone()])
    }

    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        let operands = [Operand::Input(0), Operand::Input(1), Operand::Output(0)];
        lower_rows(lowering, &L2_NORMALIZE_GRAD, &operands, self.eps)
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let (x, dy) = (&inputs[0], &inputs[1]);
        let (columns, eps) = (x.shape.last(), f64::from(self.eps));
        let mut dx = Array::zeros(x.shape.clone());
        for first in (0..x.data.len()).step_by(columns) {
            let row = first..first + columns;
            let length = norm(&x.data[row.clone()]);
            if length <= eps {
                row.for_each(|i| dx.data[i] = dy.data[i] / eps);
                continue;
            }
            let product: f64 = row.clone().map(|i| x.data[i] / length * dy.data[i]).sum();
            row.for_each(|i| dx.data[i] = (dy.data[i] - x.data[i] / length * product) / length);
        }
        vec![dx]
    }

    fn cost(&self, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Cost {
        Cost::once(7.0 * outputs.iter().map(|dx| dx.shape.elements() as f64).sum::<f64>(), inputs, outputs)
    }
}

/// Shapes and magnitudes that the op and its gradient share.
const ROWS: &[(&str, &[usize], f32, f32)] = &[
    ("odd sizes", &[3, 5, 13], 1.0, 1e-12),
    ("one column", &[9, 1], 1.0, 1e-12),
    ("one row of a wide matrix", &[1, 515], 1.0, 1e-5),
    ("huge", &[4, 67], 1e20, 1e-12),
    ("near the largest float", &[4, 67], 5e37, 1e-12),
    ("tiny", &[4, 67], 1e-20, 1e-30),
    ("tiny, below eps", &[4, 67], 1e-20, 1e-12),
    ("below eps", &[3, 7], 1e-3, 0.1),
];

fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = ROWS
        .iter()
        .map(|&(label, shape, deviation, eps)| {
            let case = Case::new(label, L2Normalize { eps }, vec![normal(shape, deviation, 1)]);
            // Finite differences need a step that is small against the values and large against rounding.
            let smooth = matches!(label, "odd sizes" | "below eps");
            if smooth { case.differentiate(&[0]) } else { case }
        })
        .collect();
    cases.push(Case::new("zero", L2Normalize { eps: 1e-12 }, vec![constant([3, 5], 0.0)]));
    cases.push(Case::new("perf", L2Normalize { eps: 1e-12 }, vec![normal([10_572, 512], 1.0, 1)]).perf());
    let large = vec![normal([LARGE_VECTOR / 512, 512], 1.0, 1)];
    cases.push(Case::new("perf, large", L2Normalize { eps: 1e-12 }, large).perf_large());
    cases
}

fn grad_cases() -> Vec<Case> {
    let mut cases: Vec<Case> = ROWS
        .iter()
        .filter(|(label, ..)| *label != "one column")
        .map(|&(label, shape, deviation, eps)| {
            let inputs = vec![normal(shape, deviation, 1), normal(shape, 1.0, 2)];
            let case = Case::new(label, L2NormalizeGrad { eps }, inputs);
            // Gradients of 1e-38 and less are subnormal or near it, where a GPU may round to zero.
            if label == "near the largest float" { case.absolute(1e-38) } else { case }
        })
        .collect();
    let op = L2NormalizeGrad { eps: 1e-12 };
    // The direction of a number does not change with it: the exact gradient is 0, the kernel's a rounding error of dy.
    let one_column = vec![normal([9, 1], 1.0, 1), normal([9, 1], 1.0, 2)];
    cases.push(Case::new("one column", op, one_column).absolute(1e-5));
    cases.push(Case::new("zero", op, vec![constant([3, 5], 0.0), normal([3, 5], 1.0, 2)]));
    cases.push(
        Case::new("perf", op, vec![normal([10_572, 512], 1.0, 1), normal([10_572, 512], 1.0, 2)]).perf(),
    );
    cases
}
