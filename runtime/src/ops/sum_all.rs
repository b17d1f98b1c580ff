//! Sum of all elements times a constant factor: `[..] -> [1]`. The gradient is `broadcast_scalar`.
//!
//! Two stages, both the same kernel: workgroups add contiguous parts, then one workgroup adds their sums, in an order
//! that depends on the number of elements and the kind of adapter alone.

use crate::case::{Case, OpEntry, normal, uniform};
use crate::host::Array;
use crate::kernel::{Kernel, Needs, ParamBlock, read, write};
use crate::op::{Cost, Gradient, Lowering, Op, Operand, Record, TensorId, push_one};
use crate::ops::broadcast_scalar;
use crate::{Error, Result, TensorDesc};

crate::param_block! {
    /// Parameters of `sum_all.wgsl`.
    pub struct SumAllParams {
        /// Elements of `x`.
        len: u32,
        /// Elements that one workgroup adds.
        per_group: u32,
        /// Factor of the result.
        factor: f32,
    }
}

static SUM_ALL: Kernel = Kernel {
    shader: "sum_all",
    entry: "main",
    params: SumAllParams::FIELDS,
    bindings: &[read("x"), write("y")],
    constants: &[],
    needs: Needs::Nothing,
};

/// The registry's entry.
pub const ENTRY: OpEntry = OpEntry { name: "sum_all", cases, kernels: &[&SUM_ALL] };

/// Dispatches the sums of every `per_group` elements of `from`.
fn lower_stage(
    lowering: &mut Lowering<'_>,
    from: Operand,
    to: Operand,
    len: usize,
    per_group: usize,
    factor: f32,
) -> Result<()> {
    let params = SumAllParams { len: lowering.size(len)?, per_group: lowering.size(per_group)?, factor };
    let grid = [lowering.size(len.div_ceil(per_group))?, 1, 1];
    lowering.dispatch(&SUM_ALL, &[], &params, &[from, to], grid)
}

/// Records `factor * sum of all elements of x`, of shape `[1]`.
pub fn sum_all(record: &mut dyn Record, x: TensorId, factor: f32) -> Result<TensorId> {
    push_one(record, SumAll { factor }, &[x])
}

/// The op `sum_all`.
#[derive(Debug, Clone, Copy)]
pub struct SumAll {
    /// Factor of the result; one over the number of elements gives the mean.
    pub factor: f32,
}

impl Op for SumAll {
    fn name(&self) -> &'static str {
        "sum_all"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        match inputs {
            [_] => Ok(vec![TensorDesc::f32([1])]),
            _ => Err(Error::shape("sum_all", format!("{} inputs", inputs.len()), "x")),
        }
    }

    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        let len = lowering.input(0)?.shape.elements();
        let most: usize = if lowering.caps().cpu { 8 } else { 1024 };
        let per_group = len.div_ceil(most).max(4096);
        let groups = len.div_ceil(per_group).max(1);
        if groups == 1 {
            return lower_stage(lowering, Operand::Input(0), Operand::Output(0), len, per_group, self.factor);
        }
        let partial = lowering.workspace(4 * groups as u64);
        lower_stage(lowering, Operand::Input(0), partial, len, per_group, 1.0)?;
        lower_stage(lowering, partial, Operand::Output(0), groups, groups, self.factor)
    }

    fn gradient(&self, gradient: &mut Gradient<'_>) -> Result<()> {
        let Some(dy) = gradient.upstream(0) else { return Ok(()) };
        let x = gradient.input(0)?;
        let shape = gradient.record().desc(x).shape.clone();
        let dx = broadcast_scalar::broadcast_scalar(gradient.record(), dy, shape, self.factor)?;
        gradient.set(0, dx);
        Ok(())
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        vec![Array::new([1], vec![f64::from(self.factor) * inputs[0].data.iter().sum::<f64>()])]
    }

    fn cost(&self, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Cost {
        Cost::once(inputs.iter().map(|x| x.shape.elements() as f64).sum(), inputs, outputs)
    }
}

fn cases() -> Vec<Case> {
    let case = |label: &str, shape: &[usize], scale: f32, factor: f32| {
        Case::new(label, SumAll { factor }, vec![uniform(shape.to_vec(), 0.1 * scale, scale, 1)])
    };
    vec![
        case("one element", &[1], 1.0, 1.0),
        case("odd sizes", &[3, 5, 7], 1.0, -0.5).differentiate(&[0]),
        case("two stages", &[3, 4099, 5], 1.0, 1.0 / 61_485.0),
        case("huge", &[257], 1e35, 1.0),
        case("tiny", &[257], 1e-35, 1.0),
        // Random signs nearly cancel: the error is relative to the terms (ten thousand of about 1), not to the sum.
        Case::new("both signs", SumAll { factor: 1.0 }, vec![normal([10_007], 1.0, 2)]).absolute(1e-3),
        case("perf", &[32, 112, 112, 64], 1.0, 1.0).perf(),
    ]
}
