//! Softmax cross-entropy of scaled cosines with a margin on the target, and its gradient.
//!
//! `loss_i = softplus(log(sum over j != y of e^{s t_j}) - s z(t_y))`, with `t` the cosines `[B, C]`, `y` the class of
//! row `i` and `z` the [`TargetMargin`] of `(1 - k) t_y`. This is `-log softmax` of the target, written so that it
//! neither overflows nor loses its digits once a row is learned. `k` is EPL's adaptive margin (arXiv 2405.12447):
//! it is part of the value only, since what it takes away is held constant (`t_y - k detach(t_y)`).
//!
//! A row whose label is no class, or with no class besides its own, has loss 0 and gradient 0.

use epl_runtime::case::{Case, Input, OpEntry, constant, floats, integers, matrix, uniform, words};
use epl_runtime::host::Array;
use epl_runtime::kernel::{Kernel, Needs, ParamBlock, read, write};
use epl_runtime::op::{Cost, Gradient, Lowering, Op, Operand, Record, TensorId, push_many, push_one};
use epl_runtime::{Error, Result, TensorDesc};

use super::rows::{Rows, WORKGROUP, check_finite, check_per_row, check_scale, label, sigmoid, softplus};
use super::settings::ArcMode;

epl_runtime::param_block! {
    /// Parameters of `margin_loss.wgsl` and `margin_loss_grad.wgsl`.
    pub struct MarginLossParams {
        /// Samples.
        rows: u32,
        /// Classes.
        classes: u32,
        /// The target's margin: 0 subtracted; an angle 1 straight-through, 2 easy, 3 hard, 4 exact.
        rule: u32,
        /// Scale of the cosines.
        scale: f32,
        /// Factor of the target's cosine, `1 - k`.
        keep: f32,
        /// The margin.
        margin: f32,
        /// Its cosine.
        cos_margin: f32,
        /// Its sine.
        sin_margin: f32,
    }
}

static MARGIN_LOSS: Kernel = Kernel {
    shader: "margin_loss",
    entry: "main",
    params: MarginLossParams::FIELDS,
    bindings: &[read("cosines"), read("labels"), write("loss"), write("peak"), write("log_sum")],
    constants: &["WORKGROUP"],
    needs: Needs::Nothing,
};

static MARGIN_LOSS_GRAD: Kernel = Kernel {
    shader: "margin_loss_grad",
    entry: "main",
    params: MarginLossParams::FIELDS,
    bindings: &[
        read("cosines"),
        read("labels"),
        read("peak"),
        read("log_sum"),
        read("dloss"),
        write("dcosines"),
    ],
    constants: &["WORKGROUP"],
    needs: Needs::Nothing,
};

/// The registry's entry for [`MarginLoss`].
pub const ENTRY: OpEntry = OpEntry { name: "margin_loss", cases, kernels: &[&MARGIN_LOSS] };
/// The registry's entry for [`MarginLossGrad`].
pub const GRAD_ENTRY: OpEntry =
    OpEntry { name: "margin_loss_grad", cases: grad_cases, kernels: &[&MARGIN_LOSS_GRAD] };

/// The largest cosine whose angle has a finite slope in f32: `1 - 2^-23`, which is also what `1 - 1e-7` rounds to.
const COSINE_LIMIT: f64 = 1.0 - f32::EPSILON as f64;

/// Stands for the logarithm of an empty sum: its product with a scale is still finite in f32.
const NOTHING: f64 = -1e30_f32 as f64;

/// What the margin does to the target's cosine.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum TargetMargin {
    /// `z(c) = c - m` (CosFace; with `m = 0` normalised softmax).
    Subtract(f32),
    /// `z(c) = cos(arccos(c) + m)` (ArcFace), as the mode says.
    Arc(f32, ArcMode),
}

/// The op `margin_loss`: `cosines [B, C], labels u32 [B] -> loss [B], peak [B], log_sum [B]`.
///
/// `peak` is the largest cosine of a class other than the row's own and `log_sum` the logarithm of
/// `sum over j != y of e^{s (t_j - peak)}`; they are kept for the gradient and have none themselves.
#[derive(Debug, Clone, Copy)]
pub struct MarginLoss {
    /// The margin.
    pub target: TargetMargin,
    /// The scale `s`.
    pub scale: f32,
    /// The factor `k` of the adaptive margin; 0 for none.
    pub k: f32,
}

/// Records [`MarginLoss`] and returns the rows' losses `[B]`.
pub fn margin_loss(
    record: &mut dyn Record,
    op: MarginLoss,
    cosines: TensorId,
    labels: TensorId,
) -> Result<TensorId> {
    let [loss, _peak, _log_sum] = push_many(record, op, &[cosines, labels])?;
    Ok(loss)
}

impl MarginLoss {
    /// Factor of the target's cosine.
    pub(super) fn keep(&self) -> f32 {
        1.0 - self.k
    }

    /// The margin, whatever it does.
    pub(super) fn margin(&self) -> f32 {
        match self.target {
            TargetMargin::Subtract(margin) | TargetMargin::Arc(margin, _) => margin,
        }
    }

    /// An error unless the attributes are numbers that a loss can have.
    pub(super) fn check(&self, op: &str) -> Result<()> {
        check_scale(op, self.scale)?;
        check_finite(op, "margin", self.margin())?;
        check_finite(op, "k", self.k)
    }

    /// The target's cosine with its margin, and the derivative that the gradient uses.
    pub(super) fn target(&self, cosine: f64) -> (f64, f64) {
        let c = f64::from(self.keep()) * cosine;
        let (margin, mode) = match self.target {
            TargetMargin::Subtract(margin) => return (c - f64::from(margin), 1.0),
            TargetMargin::Arc(margin, mode) => (f64::from(margin), mode),
        };
        let inside = c.clamp(-COSINE_LIMIT, COSINE_LIMIT);
        let sine = (1.0 - inside * inside).sqrt();
        let value = inside * margin.cos() - sine * margin.sin();
        let slope = if c == inside { margin.cos() + c * margin.sin() / sine } else { 0.0 };
        match mode {
            ArcMode::StraightThrough => (value, 1.0),
            ArcMode::Easy if c <= 0.0 => (c, 1.0),
            ArcMode::Hard if c < -margin.cos() => (c - margin * margin.sin(), 1.0),
            ArcMode::Easy | ArcMode::Hard | ArcMode::Exact => (value, slope),
        }
    }

    /// The number of the target's margin in the kernels.
    pub(super) fn rule(&self) -> u32 {
        match self.target {
            TargetMargin::Subtract(_) => 0,
            TargetMargin::Arc(_, ArcMode::StraightThrough) => 1,
            TargetMargin::Arc(_, ArcMode::Easy) => 2,
            TargetMargin::Arc(_, ArcMode::Hard) => 3,
            TargetMargin::Arc(_, ArcMode::Exact) => 4,
        }
    }

    fn params(&self, lowering: &Lowering<'_>) -> Result<MarginLossParams> {
        let Rows { rows, classes } = Rows::of(lowering)?;
        let margin = self.margin();
        Ok(MarginLossParams {
            rows: lowering.size(rows)?,
            classes: lowering.size(classes)?,
            rule: self.rule(),
            scale: self.scale,
            keep: self.keep(),
            margin,
            cos_margin: f64::from(margin).cos() as f32,
            sin_margin: f64::from(margin).sin() as f32,
        })
    }
}

impl Op for MarginLoss {
    fn name(&self) -> &'static str {
        "margin_loss"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let [cosines, labels] = inputs else {
            return Err(Error::shape(self.name(), format!("{} inputs", inputs.len()), "cosines, labels"));
        };
        self.check(self.name())?;
        let Rows { rows, .. } = Rows::check(self.name(), cosines, labels)?;
        Ok(vec![TensorDesc::f32([rows]); 3])
    }

    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        let params = self.params(lowering)?;
        let grid = lowering.fold(params.rows as usize)?;
        let constants = [("WORKGROUP", WORKGROUP)];
        let operands = [
            Operand::Input(0),
            Operand::Input(1),
            Operand::Output(0),
            Operand::Output(1),
            Operand::Output(2),
        ];
        lowering.dispatch(&MARGIN_LOSS, &constants, &params, &operands, grid)
    }

    fn gradient(&self, gradient: &mut Gradient<'_>) -> Result<()> {
        let Some(dloss) = gradient.upstream(0) else { return Ok(()) };
        if !gradient.needs(0) {
            return Ok(());
        }
        let operands =
            [gradient.input(0)?, gradient.input(1)?, gradient.output(1)?, gradient.output(2)?, dloss];
        let dcosines = push_one(gradient.record(), MarginLossGrad(*self), &operands)?;
        gradient.set(0, dcosines);
        Ok(())
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let (cosines, labels) = (&inputs[0], &inputs[1]);
        let (rows, classes) = (cosines.shape.dim(0), cosines.shape.dim(1));
        let scale = f64::from(self.scale);
        let mut loss = Array::zeros([rows]);
        let mut peak = Array::zeros([rows]);
        let mut log_sum = Array::from_fn([rows], |_| NOTHING);
        for i in 0..rows {
            let row = &cosines.data[i * classes..(i + 1) * classes];
            let own = label(labels, i, classes);
            let others: Vec<f64> =
                row.iter().enumerate().filter(|&(j, _)| Some(j) != own).map(|(_, &t)| t).collect();
            if !others.is_empty() {
                let top = others.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                peak.data[i] = top;
                log_sum.data[i] = others.iter().map(|t| (scale * (t - top)).exp()).sum::<f64>().ln();
            }
            if let Some(y) = own {
                let (z, _) = self.target(row[y]);
                loss.data[i] = softplus(scale * (peak.data[i] - z) + log_sum.data[i]);
            }
        }
        vec![loss, peak, log_sum]
    }

    fn cost(&self, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Cost {
        let elements = inputs.first().map_or(0, |cosines| cosines.shape.elements());
        Cost::once(4.0 * elements as f64, inputs, outputs)
    }
}

/// The op `margin_loss_grad`: `cosines, labels, peak, log_sum, dloss -> dcosines`, of the loss that it holds.
#[derive(Debug, Clone, Copy)]
pub struct MarginLossGrad(pub MarginLoss);

impl Op for MarginLossGrad {
    fn name(&self) -> &'static str {
        "margin_loss_grad"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let [cosines, labels, peak, log_sum, dloss] = inputs else {
            let expected = "cosines, labels, peak, log_sum, dloss";
            return Err(Error::shape(self.name(), format!("{} inputs", inputs.len()), expected));
        };
        self.0.check(self.name())?;
        let Rows { rows, .. } = Rows::check(self.name(), cosines, labels)?;
        check_per_row(self.name(), "peak", peak, rows)?;
        check_per_row(self.name(), "log_sum", log_sum, rows)?;
        check_per_row(self.name(), "dloss", dloss, rows)?;
        Ok(vec![cosines.clone()])
    }

    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        let params = self.0.params(lowering)?;
        let grid = lowering.fold(params.rows as usize)?;
        let constants = [("WORKGROUP", WORKGROUP)];
        let operands = [
            Operand::Input(0),
            Operand::Input(1),
            Operand::Input(2),
            Operand::Input(3),
            Operand::Input(4),
            Operand::Output(0),
        ];
        lowering.dispatch(&MARGIN_LOSS_GRAD, &constants, &params, &operands, grid)
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let [cosines, labels, peak, log_sum, dloss] = inputs else { return Vec::new() };
        let (rows, classes) = (cosines.shape.dim(0), cosines.shape.dim(1));
        let scale = f64::from(self.0.scale);
        let mut dcosines = Array::zeros([rows, classes]);
        for i in 0..rows {
            let Some(y) = label(labels, i, classes) else { continue };
            let (z, slope) = self.0.target(cosines.data[i * classes + y]);
            // The probability of all classes but the row's own.
            let wrong = sigmoid(scale * (peak.data[i] - z) + log_sum.data[i]);
            for j in 0..classes {
                let share = (scale * (cosines.data[i * classes + j] - peak.data[i]) - log_sum.data[i]).exp();
                dcosines.data[i * classes + j] =
                    dloss.data[i] * scale * wrong * if j == y { -slope } else { share };
            }
        }
        vec![dcosines]
    }

    fn cost(&self, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Cost {
        let elements = inputs.first().map_or(0, |cosines| cosines.shape.elements());
        Cost::once(5.0 * elements as f64, inputs, outputs)
    }
}

const SUBTRACT: TargetMargin = TargetMargin::Subtract(0.4);

/// Every kind of margin, for cases.
pub(super) fn every_target() -> [TargetMargin; 6] {
    [
        SUBTRACT,
        TargetMargin::Subtract(0.0),
        TargetMargin::Arc(0.5, ArcMode::StraightThrough),
        TargetMargin::Arc(0.5, ArcMode::Easy),
        TargetMargin::Arc(0.5, ArcMode::Hard),
        TargetMargin::Arc(0.5, ArcMode::Exact),
    ]
}

fn cases() -> Vec<Case> {
    let op = |target, scale, k| MarginLoss { target, scale, k };
    let case = |label: String, op: MarginLoss, rows: usize, classes: usize| {
        let cosines = uniform([rows, classes], -0.99, 0.99, 1);
        Case::new(label, op, vec![cosines, integers([rows], classes as u32, 2)])
    };
    let mut cases = Vec::new();
    for target in every_target() {
        cases.push(case(format!("{target:?}"), op(target, 64.0, 0.0), 13, 37));
        // Straight-through and the adaptive margin are values whose gradient is by definition not their derivative:
        // finite differences would rightly disagree, so known values are tested below instead. A small scale keeps
        // every probability of the row large enough for differences.
        if !matches!(target, TargetMargin::Arc(_, ArcMode::StraightThrough)) {
            let small = case(format!("{target:?}, small scale"), op(target, 4.0, 0.0), 7, 11);
            cases.push(small.differentiate(&[0]).epsilon(1e-6));
        }
        cases.push(case(format!("{target:?}, adaptive"), op(target, 64.0, 0.7), 5, 300));
    }
    let exact = TargetMargin::Arc(0.5, ArcMode::Exact);
    cases.extend([
        case("no other class".into(), op(SUBTRACT, 64.0, 0.0), 3, 1),
        case("two classes".into(), op(SUBTRACT, 64.0, 0.0), 9, 2),
        case("more classes than a workgroup".into(), op(SUBTRACT, 64.0, 0.0), 3, 1031),
        Case::new(
            "labels that are no class",
            op(SUBTRACT, 64.0, 0.0),
            vec![uniform([4, 5], -1.0, 1.0, 1), words(&[5, 0, u32::MAX, 4])],
        )
        // One class dominates, so that `log_sum` is the logarithm of a sum just above 1: its error is that of the
        // sum, 2^-24, and not relative to the logarithm.
        .absolute(1.2e-7),
        Case::new(
            "cosines of one and beyond",
            op(exact, 64.0, 0.0),
            vec![rows_of(3, &[1.0, -1.0, 1.0, -1.0, 1.0, 1.0, 1.000_000_2, 1.0, 0.5]), words(&[0, 0, 0])],
        ),
        Case::new(
            "learned rows, whose loss is far below one unit in the last place of 1",
            op(SUBTRACT, 64.0, 0.0),
            vec![rows_of(3, &[1.0, 0.1, 0.2, -0.3, 0.9, -0.2]), words(&[0, 1])],
        )
        // The loss is e^-v with v about 30, and v has 24 bits: e^-v is no better than 30 * 2^-24 relative.
        .relative(3e-5),
        Case::new("equal cosines", op(SUBTRACT, 64.0, 0.0), vec![constant([2, 70], 0.25), words(&[0, 69])]),
        case("perf".into(), op(SUBTRACT, 64.0, 0.0), 128, 10_572).perf(),
    ]);
    cases
}

/// A matrix of `columns` columns.
fn rows_of(columns: usize, values: &[f32]) -> Input {
    matrix([values.len() / columns, columns], values)
}

fn grad_cases() -> Vec<Case> {
    let op = |target, scale, k| MarginLossGrad(MarginLoss { target, scale, k });
    // `peak` and `log_sum` need not be those of the cosines for the kernel to be compared with its reference; values
    // like real ones keep the probabilities from vanishing.
    let inputs = |rows: usize, classes: usize| {
        vec![
            uniform([rows, classes], -0.99, 0.99, 1),
            integers([rows], classes as u32, 2),
            uniform([rows], 0.4, 0.6, 3),
            uniform([rows], 0.0, 2.0, 4),
            uniform([rows], -2.0, 2.0, 5),
        ]
    };
    let case = |label: String, op: MarginLossGrad, rows, classes| {
        // The exponent is a scaled cosine of up to 100, rounded to 24 bits: 100 * 2^-24 relative to its power, twice.
        Case::new(label, op, inputs(rows, classes)).relative(2e-5)
    };
    let mut cases = Vec::new();
    for target in every_target() {
        cases.push(case(format!("{target:?}"), op(target, 64.0, 0.0), 13, 37));
        cases.push(case(format!("{target:?}, adaptive"), op(target, 64.0, 0.7), 5, 300));
    }
    let mut foreign = inputs(4, 5);
    foreign[1] = words(&[5, 0, u32::MAX, 4]);
    let exact = TargetMargin::Arc(0.5, ArcMode::Exact);
    cases.extend([
        case("no other class".into(), op(SUBTRACT, 64.0, 0.0), 3, 1),
        case("more classes than a workgroup".into(), op(SUBTRACT, 64.0, 0.0), 3, 1031),
        Case::new("labels that are no class", op(SUBTRACT, 64.0, 0.0), foreign).relative(2e-5),
        Case::new(
            "cosines of one and beyond",
            op(exact, 64.0, 0.0),
            vec![
                rows_of(2, &[1.0 - f32::EPSILON, 0.5, 1.0, 0.5, -1.000_000_2, 0.5]),
                words(&[0, 0, 0]),
                floats(&[0.5; 3]),
                floats(&[0.0; 3]),
                floats(&[1.0, 2.0, 3.0]),
            ],
        ),
        case("perf".into(), op(SUBTRACT, 64.0, 0.0), 128, 10_572).perf(),
    ]);
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `(z, slope)` of a cosine.
    fn target(margin: f32, mode: ArcMode, k: f32, cosine: f64) -> (f64, f64) {
        MarginLoss { target: TargetMargin::Arc(margin, mode), scale: 64.0, k }.target(cosine)
    }

    fn near(found: (f64, f64), expected: (f64, f64)) {
        let off = (found.0 - expected.0).abs().max((found.1 - expected.1).abs());
        assert!(off < 1e-6, "{found:?}, {expected:?}");
    }

    #[test]
    fn an_angular_margin_is_added_to_the_angle() {
        let (margin, angle) = (0.5, 1.1f64);
        let value = (angle + 0.5).cos();
        let slope = (angle + 0.5).sin() / angle.sin();
        near(target(margin, ArcMode::Exact, 0.0, angle.cos()), (value, slope));
        near(target(margin, ArcMode::Hard, 0.0, angle.cos()), (value, slope));
        near(target(margin, ArcMode::Easy, 0.0, angle.cos()), (value, slope));
        near(target(margin, ArcMode::StraightThrough, 0.0, angle.cos()), (value, 1.0));
    }

    #[test]
    fn the_modes_differ_where_the_angle_is_large() {
        let obtuse = -0.2;
        near(target(0.5, ArcMode::Easy, 0.0, obtuse), (obtuse, 1.0));
        // Beyond pi - m the sum of the angles is over pi.
        let far = -0.95f64;
        near(target(0.5, ArcMode::Hard, 0.0, far), (far - 0.5 * 0.5f64.sin(), 1.0));
        near(target(0.5, ArcMode::StraightThrough, 0.0, far), ((far.acos() + 0.5).cos(), 1.0));
    }

    #[test]
    fn the_adaptive_margin_changes_the_value_and_not_the_gradient_factor() {
        let loss = MarginLoss { target: TargetMargin::Subtract(0.0), scale: 64.0, k: 0.7 };
        near(loss.target(0.5), (0.15, 1.0));
        near(target(0.4, ArcMode::StraightThrough, 0.7, 0.5), ((0.15f64.acos() + 0.4).cos(), 1.0));
    }

    #[test]
    fn the_loss_is_the_cross_entropy_of_the_scaled_cosines() {
        let loss = MarginLoss { target: TargetMargin::Subtract(0.1), scale: 2.0, k: 0.0 };
        let cosines = [0.5f64, -0.3, 0.2];
        let inputs = [Array::new([1, 3], cosines.to_vec()), Array::new([1], vec![2.0])];
        let outputs = loss.reference(&inputs);
        let logits = [1.0f64, -0.6, 2.0 * (0.2 - 0.1)];
        let total: f64 = logits.iter().map(|z| z.exp()).sum();
        near((outputs[0].item(), 0.0), (total.ln() - logits[2], 0.0));

        let mut inputs = inputs.to_vec();
        inputs.extend([outputs[1].clone(), outputs[2].clone(), Array::new([1], vec![3.0])]);
        let gradient = MarginLossGrad(loss).reference(&inputs).remove(0).data;
        for (j, found) in gradient.into_iter().enumerate() {
            let target = if j == 2 { 1.0 } else { 0.0 };
            near((found, 0.0), (3.0 * 2.0 * (logits[j].exp() / total - target), 0.0));
        }
    }

    #[test]
    fn a_single_class_has_nothing_to_learn() {
        let loss = MarginLoss { target: SUBTRACT, scale: 64.0, k: 0.0 };
        let mut inputs = vec![Array::new([1, 1], vec![-1.0]), Array::zeros([1])];
        let outputs = loss.reference(&inputs);
        assert_eq!(outputs[0].item(), 0.0);
        inputs.extend([outputs[1].clone(), outputs[2].clone(), Array::new([1], vec![1.0])]);
        assert_eq!(MarginLossGrad(loss).reference(&inputs)[0].item(), 0.0);
    }
}
