//! PReLU over the innermost dimension, and its gradient.
//!
//! `y = x` where `x > 0`, else `slope[c] * x`, with `x` of shape `[..., C]` and `slope` of shape `[C]`
//! (He et al. 2015, arXiv 1502.01852). The gradient at 0 is that of the negative side, as in PyTorch.

use std::sync::Arc;

use crate::case::{Case, LARGE_IMAGES, OpEntry, normal, uniform};
use crate::host::Array;
use crate::kernel::{Kernel, Needs, ParamBlock, read, write};
use crate::op::{Again, Cost, Gradient, Lowering, Op, Operand, Record, TensorId, push_many, push_one};
use crate::ops::sum_rows;
use crate::ops::walk::{self, RowsParams, Walk};
use crate::{Error, Result, TensorDesc};

const PRELU_KERNEL: Kernel = Kernel {
    shader: "prelu",
    entry: "main",
    params: RowsParams::FIELDS,
    bindings: &[read("x"), read("slope"), write("y")],
    constants: walk::CONSTANTS,
    needs: Needs::Nothing,
};
static PRELU: Kernel = PRELU_KERNEL;
static PRELU_VEC4: Kernel = Kernel { shader: "prelu_vec4", ..PRELU_KERNEL };

const PRELU_GRAD_KERNEL: Kernel = Kernel {
    shader: "prelu_grad",
    entry: "main",
    params: RowsParams::FIELDS,
    bindings: &[read("x"), read("slope"), read("dy"), write("dx"), write("partial")],
    constants: walk::CONSTANTS,
    needs: Needs::Nothing,
};
static PRELU_GRAD: Kernel = PRELU_GRAD_KERNEL;
static PRELU_GRAD_VEC4: Kernel = Kernel { shader: "prelu_grad_vec4", ..PRELU_GRAD_KERNEL };

/// The registry's entry for [`Prelu`].
pub const ENTRY: OpEntry = OpEntry { name: "prelu", cases, kernels: &[&PRELU, &PRELU_VEC4] };
/// The registry's entry for [`PreluGrad`].
pub const GRAD_ENTRY: OpEntry = OpEntry {
    name: "prelu_grad",
    cases: grad_cases,
    kernels: &[&PRELU_GRAD, &PRELU_GRAD_VEC4, &sum_rows::KERNEL],
};

/// Records `prelu(x, slope)`: `x` `[..., C]`, `slope` `[C]` -> `[..., C]`.
pub fn prelu(record: &mut dyn Record, x: TensorId, slope: TensorId) -> Result<TensorId> {
    push_one(record, Prelu, &[x, slope])
}

/// The op `prelu`.
#[derive(Debug, Clone, Copy)]
pub struct Prelu;

fn check(op: &str, x: &TensorDesc, slope: &TensorDesc) -> Result<()> {
    if *slope != TensorDesc::f32([x.shape.last()]) || !x.is_float() {
        return Err(Error::shape(
            op,
            format!("slope {slope} for x {x}"),
            format!("x of floats, and slope f32[{}]", x.shape.last()),
        ));
    }
    Ok(())
}

impl Op for Prelu {
    fn name(&self) -> &'static str {
        "prelu"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let [x, slope] = inputs else {
            return Err(Error::shape("prelu", format!("{} inputs", inputs.len()), "x, slope"));
        };
        check("prelu", x, slope)?;
        Ok(vec![x.clone()])
    }

    fn again(&self) -> Option<Again> {
        Some(Again { op: Arc::new(Self), operands: vec![Operand::Input(0), Operand::Input(1)] })
    }

    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        let walk = Walk::elementwise(lowering, &lowering.input(0)?.shape)?;
        let operands = [Operand::Input(0), Operand::Input(1), Operand::Output(0)];
        let kernel = walk.kernel(&PRELU, &PRELU_VEC4);
        lowering.dispatch(kernel, &walk.constants(), &walk.params, &operands, walk.grid)
    }

    fn gradient(&self, gradient: &mut Gradient<'_>) -> Result<()> {
        let Some(dy) = gradient.upstream(0) else { return Ok(()) };
        let (x, slope) = (gradient.input(0)?, gradient.input(1)?);
        let [dx, dslope] = push_many(gradient.record(), PreluGrad, &[x, slope, dy])?;
        gradient.set(0, dx);
        gradient.set(1, dslope);
        Ok(())
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let (x, slope) = (&inputs[0], &inputs[1]);
        let channels = slope.data.len();
        vec![Array::from_fn(x.shape.clone(), |i| {
            let v = x.data[i];
            if v > 0.0 { v } else { slope.data[i % channels] * v }
        })]
    }

    fn cost(&self, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Cost {
        Cost::once(outputs.iter().map(|y| y.shape.elements() as f64).sum(), inputs, outputs)
    }
}

/// The op `prelu_grad`: `x, slope, dy -> dx, dslope`.
#[derive(Debug, Clone, Copy)]
pub struct PreluGrad;

impl Op for PreluGrad {
    fn name(&self) -> &'static str {
        "prelu_grad"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let [x, slope, dy] = inputs else {
            return Err(Error::shape("prelu_grad", format!("{} inputs", inputs.len()), "x, slope, dy"));
        };
        check("prelu_grad", x, slope)?;
        if dy != x {
            return Err(Error::shape("prelu_grad", format!("dy {dy}"), format!("{x}, as x")));
        }
        Ok(vec![x.clone(), slope.clone()])
    }

    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        let x = &lowering.input(0)?.shape;
        let channels = x.last();
        let walk = Walk::reduction(lowering, x)?;
        let dslope = Operand::Output(1);
        let partial = match walk.splits {
            1 => dslope,
            _ => lowering.workspace(walk.partial_bytes(channels)),
        };
        let operands = [Operand::Input(0), Operand::Input(1), Operand::Input(2), Operand::Output(0), partial];
        let kernel = walk.kernel(&PRELU_GRAD, &PRELU_GRAD_VEC4);
        lowering.dispatch(kernel, &walk.constants(), &walk.params, &operands, walk.grid)?;
        if walk.splits > 1 {
            sum_rows::lower_sum(lowering, partial, dslope, walk.splits, channels, 1.0)?;
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let (x, slope, dy) = (&inputs[0], &inputs[1], &inputs[2]);
        let channels = slope.data.len();
        let mut dx = Array::zeros(x.shape.clone());
        let mut dslope = Array::zeros(slope.shape.clone());
        for i in 0..x.data.len() {
            let (v, d, c) = (x.data[i], dy.data[i], i % channels);
            if v > 0.0 {
                dx.data[i] = d;
            } else {
                dx.data[i] = slope.data[c] * d;
                dslope.data[c] += d * v;
            }
        }
        vec![dx, dslope]
    }

    fn cost(&self, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Cost {
        let elements = inputs.first().map_or(0, |x| x.shape.elements());
        Cost::once(3.0 * elements as f64, inputs, outputs)
    }
}

fn cases() -> Vec<Case> {
    vec![
        Case::new("odd sizes", Prelu, vec![normal([3, 5, 7, 13], 1.0, 1), uniform([13], 0.01, 0.9, 2)])
            .differentiate(&[0, 1])
            .epsilon(1e-6),
        Case::new("one channel", Prelu, vec![normal([257, 1], 1.0, 3), uniform([1], 0.1, 0.3, 4)]),
        Case::new("huge and tiny", Prelu, vec![normal([2, 300], 1e30, 5), uniform([300], 1e-8, 1e-6, 6)]),
        Case::new("channels by four", Prelu, vec![normal([2, 3, 5, 8], 1.0, 7), uniform([8], 0.01, 0.9, 8)])
            .differentiate(&[0, 1])
            .epsilon(1e-6),
        Case::new("a tile and four", Prelu, vec![normal([37, 260], 1e30, 9), uniform([260], 1e-8, 0.9, 10)]),
        Case::new("odd sizes", Prelu, vec![normal([3, 5, 7, 13], 1.0, 1), uniform([13], 0.01, 0.9, 2)])
            .half(&[0]),
        Case::new("a tile and four", Prelu, vec![normal([37, 260], 10.0, 9), uniform([260], 0.01, 0.9, 10)])
            .half(&[0]),
        Case::new("perf", Prelu, vec![normal([32, 56, 56, 64], 1.0, 1), uniform([64], 0.01, 0.9, 2)]).perf(),
        Case::new("perf, large", Prelu, vec![normal(LARGE_IMAGES, 1.0, 1), uniform([64], 0.01, 0.9, 2)])
            .perf_large(),
    ]
}

fn grad_cases() -> Vec<Case> {
    let case = |label: &str, shape: &[usize], scale: f32| {
        let channels = shape.last().copied().unwrap_or(1);
        Case::new(
            label,
            PreluGrad,
            vec![
                normal(shape.to_vec(), scale, 1),
                uniform([channels], 0.01, 0.9, 2),
                normal(shape.to_vec(), 1.0, 3),
            ],
        )
    };
    vec![
        case("odd sizes", &[3, 5, 7, 13], 1.0),
        case("many rows", &[2051, 3], 1.0),
        case("many channels", &[5, 131], 1.0),
        case("large", &[9, 66], 1e10),
        case("channels by four", &[2, 5, 3, 8], 1.0),
        case("four channels, many rows", &[9101, 4], 1.0),
        case("a tile and four", &[37, 260], 1.0),
        case("odd sizes", &[3, 5, 7, 13], 1.0).half(&[0, 2]),
        case("four channels, many rows", &[9101, 4], 1.0).half(&[0, 2]),
        case("perf", &[32, 56, 56, 64], 1.0).perf(),
        case("perf, large", LARGE_IMAGES, 1.0).perf_large(),
    ]
}
