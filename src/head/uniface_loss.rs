//! UniFace's loss (Zhou et al., ICCV 2023): binary cross-entropy of every class with one learned bias; its gradient.
//!
//! `loss_i = softplus(-clip(s ((1 - k) t_y - m) - b)) + sum over j != y of softplus(clip(s t_j - b))`, with `t` the
//! cosines `[B, C]`, `y` the class of row `i`, `b` `[1]` and `clip` to `-s..s`. Where the logit is clipped the
//! gradient is 0. `k` is EPL's adaptive margin (arXiv 2405.12447): it is part of the value only, since what it takes
//! away is held constant (`t_y - k detach(t_y)`).
//!
//! A row whose label is no class has loss 0 and gradient 0.

use epl_runtime::case::{Case, Input, OpEntry, constant, floats, integers, uniform, words};
use epl_runtime::host::Array;
use epl_runtime::kernel::{Kernel, Needs, ParamBlock, read, write};
use epl_runtime::op::{Cost, Gradient, Lowering, Op, Operand, Record, TensorId, push_many, push_one};
use epl_runtime::ops::sum_rows;
use epl_runtime::{Error, Result, TensorDesc};

use super::rows::{Rows, WORKGROUP, check_finite, check_per_row, check_scale, label, sigmoid, softplus};

epl_runtime::param_block! {
    /// Parameters of `uniface_loss.wgsl` and `uniface_loss_grad.wgsl`.
    pub struct UniFaceLossParams {
        /// Samples.
        rows: u32,
        /// Classes.
        classes: u32,
        /// Scale of the cosines.
        scale: f32,
        /// Factor of the target's cosine, `1 - k`.
        keep: f32,
        /// The margin.
        margin: f32,
    }
}

static UNIFACE_LOSS: Kernel = Kernel {
    shader: "uniface_loss",
    entry: "main",
    params: UniFaceLossParams::FIELDS,
    bindings: &[read("cosines"), read("labels"), read("bias"), write("loss")],
    constants: &["WORKGROUP"],
    needs: Needs::Nothing,
};

static UNIFACE_LOSS_GRAD: Kernel = Kernel {
    shader: "uniface_loss_grad",
    entry: "main",
    params: UniFaceLossParams::FIELDS,
    bindings: &[
        read("cosines"),
        read("labels"),
        read("bias"),
        read("dloss"),
        write("dcosines"),
        write("partial"),
    ],
    constants: &["WORKGROUP"],
    needs: Needs::Nothing,
};

/// The registry's entry for [`UniFaceLoss`].
pub const ENTRY: OpEntry = OpEntry { name: "uniface_loss", cases, kernels: &[&UNIFACE_LOSS] };
/// The registry's entry for [`UniFaceLossGrad`].
pub const GRAD_ENTRY: OpEntry = OpEntry {
    name: "uniface_loss_grad",
    cases: grad_cases,
    kernels: &[&UNIFACE_LOSS_GRAD, &sum_rows::KERNEL],
};

/// The op `uniface_loss`: `cosines [B, C], labels u32 [B], bias [1] -> loss [B]`.
#[derive(Debug, Clone, Copy)]
pub struct UniFaceLoss {
    /// The margin `m`.
    pub margin: f32,
    /// The scale `s`.
    pub scale: f32,
    /// The factor `k` of the adaptive margin; 0 for none.
    pub k: f32,
}

/// Records [`UniFaceLoss`] and returns the rows' losses `[B]`.
pub fn uniface_loss(
    record: &mut dyn Record,
    op: UniFaceLoss,
    cosines: TensorId,
    labels: TensorId,
    bias: TensorId,
) -> Result<TensorId> {
    push_one(record, op, &[cosines, labels, bias])
}

impl UniFaceLoss {
    /// Factor of the target's cosine.
    pub(super) fn keep(&self) -> f32 {
        1.0 - self.k
    }

    /// An error unless the attributes are numbers that a loss can have.
    pub(super) fn check_attributes(&self, op: &str) -> Result<()> {
        check_scale(op, self.scale)?;
        check_finite(op, "margin", self.margin)?;
        check_finite(op, "k", self.k)
    }

    fn check(&self, op: &str, cosines: &TensorDesc, labels: &TensorDesc, bias: &TensorDesc) -> Result<Rows> {
        self.check_attributes(op)?;
        if *bias != TensorDesc::f32([1]) {
            return Err(Error::shape(op, format!("bias {bias}"), "bias f32[1]"));
        }
        Rows::check(op, cosines, labels)
    }

    /// The logit of a class before it is clipped.
    fn logit(&self, cosine: f64, is_target: bool, bias: f64) -> f64 {
        let value = if is_target { f64::from(self.keep()) * cosine - f64::from(self.margin) } else { cosine };
        f64::from(self.scale) * value - bias
    }

    fn params(&self, lowering: &Lowering<'_>) -> Result<UniFaceLossParams> {
        let Rows { rows, classes } = Rows::of(lowering)?;
        Ok(UniFaceLossParams {
            rows: lowering.size(rows)?,
            classes: lowering.size(classes)?,
            scale: self.scale,
            keep: self.keep(),
            margin: self.margin,
        })
    }
}

impl Op for UniFaceLoss {
    fn name(&self) -> &'static str {
        "uniface_loss"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let [cosines, labels, bias] = inputs else {
            let expected = "cosines, labels, bias";
            return Err(Error::shape(self.name(), format!("{} inputs", inputs.len()), expected));
        };
        let Rows { rows, .. } = self.check(self.name(), cosines, labels, bias)?;
        Ok(vec![TensorDesc::f32([rows])])
    }

    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        let params = self.params(lowering)?;
        let grid = lowering.fold(params.rows as usize)?;
        let constants = [("WORKGROUP", WORKGROUP)];
        let operands = [Operand::Input(0), Operand::Input(1), Operand::Input(2), Operand::Output(0)];
        lowering.dispatch(&UNIFACE_LOSS, &constants, &params, &operands, grid)
    }

    fn gradient(&self, gradient: &mut Gradient<'_>) -> Result<()> {
        let Some(dloss) = gradient.upstream(0) else { return Ok(()) };
        if !gradient.needs(0) && !gradient.needs(2) {
            return Ok(());
        }
        let operands = [gradient.input(0)?, gradient.input(1)?, gradient.input(2)?, dloss];
        let [dcosines, dbias] = push_many(gradient.record(), UniFaceLossGrad(*self), &operands)?;
        gradient.set(0, dcosines);
        gradient.set(2, dbias);
        Ok(())
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let (cosines, labels, bias) = (&inputs[0], &inputs[1], inputs[2].item());
        let (rows, classes) = (cosines.shape.dim(0), cosines.shape.dim(1));
        let scale = f64::from(self.scale);
        vec![Array::from_fn([rows], |i| {
            let Some(y) = label(labels, i, classes) else { return 0.0 };
            (0..classes)
                .map(|j| {
                    let logit = self.logit(cosines.data[i * classes + j], j == y, bias).clamp(-scale, scale);
                    softplus(if j == y { -logit } else { logit })
                })
                .sum()
        })]
    }

    fn cost(&self, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Cost {
        let elements = inputs.first().map_or(0, |cosines| cosines.shape.elements());
        Cost::once(20.0 * elements as f64, inputs, outputs)
    }
}

/// The op `uniface_loss_grad`: `cosines, labels, bias, dloss -> dcosines, dbias`, of the loss that it holds.
#[derive(Debug, Clone, Copy)]
pub struct UniFaceLossGrad(pub UniFaceLoss);

impl Op for UniFaceLossGrad {
    fn name(&self) -> &'static str {
        "uniface_loss_grad"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let [cosines, labels, bias, dloss] = inputs else {
            let expected = "cosines, labels, bias, dloss";
            return Err(Error::shape(self.name(), format!("{} inputs", inputs.len()), expected));
        };
        let Rows { rows, .. } = self.0.check(self.name(), cosines, labels, bias)?;
        check_per_row(self.name(), "dloss", dloss, rows)?;
        Ok(vec![cosines.clone(), bias.clone()])
    }

    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        let params = self.0.params(lowering)?;
        let rows = params.rows as usize;
        let grid = lowering.fold(rows)?;
        let constants = [("WORKGROUP", WORKGROUP)];
        let partial = lowering.workspace(4 * u64::from(params.rows));
        let operands = [
            Operand::Input(0),
            Operand::Input(1),
            Operand::Input(2),
            Operand::Input(3),
            Operand::Output(0),
            partial,
        ];
        lowering.dispatch(&UNIFACE_LOSS_GRAD, &constants, &params, &operands, grid)?;
        sum_rows::lower_sum(lowering, partial, Operand::Output(1), rows, 1, 1.0)
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let (cosines, labels, bias, dloss) = (&inputs[0], &inputs[1], inputs[2].item(), &inputs[3]);
        let (rows, classes) = (cosines.shape.dim(0), cosines.shape.dim(1));
        let scale = f64::from(self.0.scale);
        let mut dcosines = Array::zeros([rows, classes]);
        let mut dbias = Array::zeros([1]);
        for i in 0..rows {
            let Some(y) = label(labels, i, classes) else { continue };
            for j in 0..classes {
                let logit = self.0.logit(cosines.data[i * classes + j], j == y, bias);
                if logit.abs() > scale {
                    continue;
                }
                let dlogit = dloss.data[i] * if j == y { -sigmoid(-logit) } else { sigmoid(logit) };
                dcosines.data[i * classes + j] = scale * dlogit;
                dbias.data[0] -= dlogit;
            }
        }
        vec![dcosines, dbias]
    }

    fn cost(&self, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Cost {
        let elements = inputs.first().map_or(0, |cosines| cosines.shape.elements());
        Cost::once(10.0 * elements as f64, inputs, outputs)
    }
}

const PLAIN: UniFaceLoss = UniFaceLoss { margin: 0.4, scale: 64.0, k: 0.0 };
const ADAPTIVE: UniFaceLoss = UniFaceLoss { k: 0.7, ..PLAIN };
const SMALL_SCALE: UniFaceLoss = UniFaceLoss { scale: 4.0, ..PLAIN };

fn inputs(rows: usize, classes: usize, bias: f32) -> Vec<Input> {
    vec![uniform([rows, classes], -0.99, 0.99, 1), integers([rows], classes as u32, 2), constant([1], bias)]
}

fn cases() -> Vec<Case> {
    let mut foreign = inputs(4, 5, 3.0);
    foreign[1] = words(&[5, 0, u32::MAX, 4]);
    vec![
        // The bias keeps the logits inside the clip. The adaptive margin is part of the value and not of the
        // gradient: finite differences would rightly disagree, so a known value is tested below instead.
        Case::new("small scale", SMALL_SCALE, inputs(7, 11, 0.25)).differentiate(&[0, 2]).epsilon(1e-6),
        Case::new("some logits clipped", SMALL_SCALE, inputs(7, 11, 2.5))
            .differentiate(&[0, 2])
            .epsilon(1e-7),
        Case::new("odd sizes", PLAIN, inputs(13, 37, 5.9)),
        Case::new("adaptive", ADAPTIVE, inputs(5, 300, 8.0)),
        Case::new("one class", PLAIN, inputs(3, 1, 2.3)),
        Case::new("more classes than a workgroup", PLAIN, inputs(3, 1031, 9.2)),
        Case::new("every logit clipped", PLAIN, inputs(3, 5, 300.0)),
        Case::new("labels that are no class", PLAIN, foreign),
        Case::new("perf", PLAIN, inputs(128, 10_572, 11.5)).perf(),
    ]
}

fn grad_cases() -> Vec<Case> {
    let case = |label: &str, op: UniFaceLoss, mut operands: Vec<Input>| {
        let rows = operands.first().map_or(1, |cosines| cosines.desc().shape.dim(0));
        operands.push(uniform([rows], 0.5, 2.0, 5));
        Case::new(label, UniFaceLossGrad(op), operands)
    };
    let mut foreign = inputs(4, 5, 3.0);
    foreign[1] = words(&[5, 0, u32::MAX, 4]);
    vec![
        case("odd sizes", PLAIN, inputs(13, 37, 5.9)),
        case("adaptive", ADAPTIVE, inputs(5, 300, 8.0)),
        case("some logits clipped", SMALL_SCALE, inputs(7, 11, 2.5)),
        case("every logit clipped", PLAIN, inputs(3, 5, 300.0)),
        case("one class", PLAIN, inputs(3, 1, 2.3)),
        case("more classes than a workgroup", PLAIN, inputs(3, 1031, 9.2)),
        case("labels that are no class", PLAIN, foreign),
        case("on the bounds", UniFaceLoss { margin: 0.0, ..PLAIN }, {
            let mut operands = inputs(2, 2, 0.0);
            operands[0] = constant([2, 2], -1.0);
            operands[2] = floats(&[0.0]);
            operands
        }),
        case("perf", PLAIN, inputs(128, 10_572, 11.5)).perf(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-6 * expected.abs().max(1.0), "{found}, {expected}");
    }

    #[test]
    fn the_loss_is_the_binary_cross_entropy_of_every_class() {
        let loss = UniFaceLoss { margin: 0.1, scale: 2.0, k: 0.0 };
        let inputs = [
            Array::new([1, 3], vec![0.5, -0.3, 0.2]),
            Array::new([1], vec![2.0]),
            Array::new([1], vec![0.25]),
        ];
        let negative = |t: f64| (1.0 + (2.0 * t - 0.25).exp()).ln();
        let positive = (1.0 + (-(2.0 * (0.2 - 0.1) - 0.25f64)).exp()).ln();
        near(loss.reference(&inputs)[0].item(), negative(0.5) + negative(-0.3) + positive);
    }

    #[test]
    fn the_adaptive_margin_changes_the_value_and_not_the_gradient_factor() {
        let loss = UniFaceLoss { margin: 0.1, scale: 2.0, k: 0.7 };
        let inputs = [
            Array::new([1, 1], vec![0.5]),
            Array::zeros([1]),
            Array::new([1], vec![0.25]),
            Array::new([1], vec![3.0]),
        ];
        let logit: f64 = 2.0 * (0.3 * 0.5 - 0.1) - 0.25;
        near(loss.reference(&inputs[..3])[0].item(), (1.0 + (-logit).exp()).ln());
        let gradients = UniFaceLossGrad(loss).reference(&inputs);
        let dlogit = -3.0 / (1.0 + logit.exp());
        near(gradients[0].item(), 2.0 * dlogit);
        near(gradients[1].item(), -dlogit);
    }

    #[test]
    fn a_clipped_logit_has_a_value_and_no_gradient() {
        let loss = UniFaceLoss { margin: 0.0, scale: 2.0, k: 0.0 };
        let mut inputs =
            vec![Array::new([1, 2], vec![0.5, 0.5]), Array::zeros([1]), Array::new([1], vec![5.0])];
        near(loss.reference(&inputs)[0].item(), (1.0 + 2f64.exp()).ln() + (1.0 + (-2f64).exp()).ln());
        inputs.push(Array::new([1], vec![1.0]));
        let gradients = UniFaceLossGrad(loss).reference(&inputs);
        assert_eq!((gradients[0].data.as_slice(), gradients[1].item()), (&[0.0, 0.0][..], 0.0));
    }
}
