//! Records a head: cosines of the embeddings and the prototypes, their loss, and EPL's second branch.

use epl_runtime::op::{Record, TensorId};
use epl_runtime::ops::add::add;
use epl_runtime::ops::l2_normalize::l2_normalize;
use epl_runtime::ops::matmul::{MatMul, matmul};
use epl_runtime::ops::sgd::Sgd;
use epl_runtime::ops::sum_all::sum_all;
use epl_runtime::{Error, Result};

use super::class_sweep::{ClassLoss, ClassSweep, class_sweep};
use super::class_update::{ClassUpdate, UpdateOperands, class_grad_norm, class_update};
use super::epl_update::{UpdatePrototypes, epl_update};
use super::margin_loss::{MarginLoss, TargetMargin, margin_loss};
use super::settings::{HeadForm, HeadKind, HeadSettings};
use super::target_cosine::target_cosine;
use super::tiles::PROTOTYPE_EPSILON;
use super::uniface_loss::{UniFaceLoss, uniface_loss};

/// The least norm by which an embedding is divided.
const EMBEDDING_EPSILON: f32 = 1e-5;

/// The tensors that a head works on.
#[derive(Debug, Clone, Copy)]
pub struct HeadInputs {
    /// Embeddings `[B, D]`, not normalised.
    pub embedding: TensorId,
    /// Classes of the samples, u32 `[B]`. A label that is no class takes no part in the loss.
    pub labels: TensorId,
    /// Prototypes `[C, D]`, trained.
    pub weight: TensorId,
    /// Empirical prototypes `[C, D]`, persistent; needed where the settings have EPL.
    pub queue: Option<TensorId>,
    /// UniFace's bias `[1]`, trained; needed by that head alone. See [`initial_bias`].
    pub bias: Option<TensorId>,
    /// The classes that take part; `None` where all do.
    pub sampled: Option<SampledClasses>,
}

/// The classes that take part in a step, of both branches, where they are sampled. See
/// [`ClassSampler`](super::sampling::ClassSampler).
#[derive(Debug, Clone, Copy)]
pub struct SampledClasses {
    /// The classes, u32 `[S]`, ascending.
    pub classes: TensorId,
    /// The place of each sample's class among them, u32 `[B]`.
    pub positions: TensorId,
}

/// How a head is recorded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HeadPass {
    /// Whether the empirical prototypes take part in the loss (from
    /// [`start_epoch`](super::EplSettings::start_epoch) on).
    pub empirical_branch: bool,
    /// Classes of a tile of the tiled form; by default what suits the adapter. For tests.
    pub tile: Option<usize>,
}

/// What a head computes.
#[derive(Debug, Clone, Copy)]
pub struct HeadOutputs {
    /// The mean of the rows' losses, `[1]`: of B rows, or of the 2B rows of both branches.
    pub loss: TensorId,
    /// Cosine of each sample and the prototype of its class, `[B]`, without any margin.
    pub target_cosine: TensorId,
    /// Cosine of each sample and the empirical prototype of its class, `[B]`, after the update of the step. With EPL, also
    /// while that branch takes no part in the loss.
    pub empirical_cosine: Option<TensorId>,
    /// The same before the update of the step, so of prototypes that do not know the sample yet. With EPL.
    pub cosine_before_update: Option<TensorId>,
    /// In the tiled form, the prototypes' own step: their gradient is no tensor then, and autodiff must not be asked for
    /// it. `None` in the materialized form, where it is like any other.
    pub prototypes: Option<PrototypeStep>,
}

/// A step of gradient descent on the prototypes in the tiled form, yet to be recorded.
#[derive(Debug, Clone, Copy)]
pub struct PrototypeStep {
    loss: ClassLoss,
    upstream: f32,
    tile: Option<usize>,
    weight: TensorId,
    x: TensorId,
    labels: TensorId,
    context: TensorId,
    classes: Option<TensorId>,
}

impl PrototypeStep {
    fn op(&self, rule: Sgd) -> ClassUpdate {
        let Self { loss, upstream, tile, classes, .. } = *self;
        ClassUpdate { loss, upstream, rule, sampled: classes.is_some(), tile }
    }

    fn operands(&self, velocity: TensorId, lr: TensorId) -> UpdateOperands {
        let Self { weight, x, labels, context, classes, .. } = *self;
        UpdateOperands { weight, velocity, x, labels, context, lr, classes }
    }

    /// Records the norm `[1]` of the prototypes' gradient, without a step.
    pub fn norm(&self, record: &mut dyn Record, velocity: TensorId, lr: TensorId) -> Result<TensorId> {
        let rule = Sgd { momentum: 0.0, weight_decay: 0.0, floor: None };
        class_grad_norm(record, self.op(rule), self.operands(velocity, lr))
    }

    /// Records the step, with the gradient times `scale` `[1]` where there is one, and returns the norm `[1]` of the gradient
    /// before that.
    pub fn apply(
        &self,
        record: &mut dyn Record,
        velocity: TensorId,
        lr: TensorId,
        rule: Sgd,
        scale: Option<TensorId>,
    ) -> Result<TensorId> {
        class_update(record, self.op(rule), self.operands(velocity, lr), scale)
    }
}

/// The bias that UniFace starts from, `ln(10 C)`.
pub fn initial_bias(classes: usize) -> f32 {
    (10.0 * classes as f64).ln() as f32
}

/// Records a head on `inputs`. With EPL the empirical prototypes are updated in any case, and before they are used. What
/// is trained are the embedding, the bias and the weight, the last through [`HeadOutputs::prototypes`] where the form
/// is tiled; the empirical prototypes are constants of the step, so no gradient should be asked of them.
/// [`HeadForm::Auto`] is the materialized form here, unless classes are sampled: who records it knows no adapter.
///
/// # Errors
/// Where a tensor that the settings need is missing, where the empirical branch is asked of a head without EPL, where
/// classes are sampled in the materialized form, and where shapes do not fit.
pub fn head_loss(
    record: &mut dyn Record,
    inputs: HeadInputs,
    settings: &HeadSettings,
    pass: HeadPass,
) -> Result<HeadOutputs> {
    let x = l2_normalize(record, inputs.embedding, EMBEDDING_EPSILON)?;
    let mut cosine_before_update = None;
    let epl = match (settings.epl, inputs.queue) {
        (Some(epl), Some(queue)) => {
            cosine_before_update = Some(target_cosine(record, queue, x, inputs.labels)?);
            let op = UpdatePrototypes { update: epl.update, duplicates: epl.duplicates };
            epl_update(record, op, queue, x, inputs.labels)?;
            Some((epl, queue))
        }
        (Some(_), None) => {
            return Err(Error::graph("a head with EPL has no empirical prototypes", "give it the queue"));
        }
        (None, _) => None,
    };
    let tiled = match settings.form {
        HeadForm::Tiled => true,
        HeadForm::Auto => inputs.sampled.is_some(),
        HeadForm::Materialized if inputs.sampled.is_some() => {
            return Err(Error::graph(
                "the materialized form of a head takes all classes",
                "record the tiled form where classes are sampled",
            ));
        }
        HeadForm::Materialized => false,
    };
    let branches = match (epl, pass.empirical_branch) {
        (Some((epl, queue)), true) => vec![(inputs.weight, None), (queue, Some(epl.k as f32))],
        (None, true) => {
            return Err(Error::graph(
                "the empirical branch was asked of a head without EPL",
                "give the head its EPL settings, or leave the branch off",
            ));
        }
        (_, false) => vec![(inputs.weight, None)],
    };
    // The mean over the rows of all branches.
    let factor = 1.0 / (branches.len() * record.desc(x).shape.dim(0)) as f32;

    let mut prototypes = None;
    let mut cosines = Vec::with_capacity(branches.len());
    let mut loss = None;
    for (table, adaptive) in branches {
        let (of_branch, bias) = branch_loss(&inputs, settings, adaptive)?;
        let losses = if tiled {
            let op = ClassSweep { loss: of_branch, sampled: inputs.sampled.is_some(), tile: pass.tile };
            let classes = inputs.sampled.map(|sampled| sampled.classes);
            let labels = inputs.sampled.map_or(inputs.labels, |sampled| sampled.positions);
            let swept = class_sweep(record, op, [table, x, labels], bias, classes)?;
            prototypes.get_or_insert(PrototypeStep {
                loss: of_branch,
                upstream: factor,
                tile: pass.tile,
                weight: table,
                x,
                labels,
                context: bias.unwrap_or(swept.state),
                classes,
            });
            cosines.push(swept.cosine);
            swept.loss
        } else {
            cosines.push(target_cosine(record, table, x, inputs.labels)?);
            let unit = l2_normalize(record, table, PROTOTYPE_EPSILON)?;
            let all = matmul(record, x, unit, None, MatMul { transpose_b: true, ..MatMul::default() })?;
            match (of_branch, bias) {
                (ClassLoss::UniFace(op), Some(bias)) => uniface_loss(record, op, all, inputs.labels, bias)?,
                (ClassLoss::UniFace(_), None) => return Err(without_bias()),
                (ClassLoss::Margin(op), _) => margin_loss(record, op, all, inputs.labels)?,
            }
        };
        let mean = sum_all(record, losses, factor)?;
        loss = Some(match loss {
            Some(sum) => add(record, sum, mean)?,
            None => mean,
        });
    }
    let mut cosines = cosines.into_iter();
    let (Some(loss), Some(cosine)) = (loss, cosines.next()) else {
        return Err(Error::graph("a head without branches", "this is a fault of the program"));
    };
    let empirical_cosine = match (cosines.next(), epl) {
        (Some(cosine), _) => Some(cosine),
        (None, Some((_, queue))) => Some(target_cosine(record, queue, x, inputs.labels)?),
        (None, None) => None,
    };
    Ok(HeadOutputs { loss, target_cosine: cosine, empirical_cosine, cosine_before_update, prototypes })
}

fn without_bias() -> Error {
    Error::graph("the UniFace head has no bias", "give it a bias f32[1]")
}

/// The loss of a branch and UniFace's bias; of the empirical branch where the factor `k` of its adaptive margin is given.
fn branch_loss(
    inputs: &HeadInputs,
    settings: &HeadSettings,
    adaptive: Option<f32>,
) -> Result<(ClassLoss, Option<TensorId>)> {
    let (margin, scale) = (settings.effective_margin() as f32, settings.scale as f32);
    let k = adaptive.unwrap_or(0.0);
    let target = match settings.kind {
        HeadKind::UniFace => {
            let bias = inputs.bias.ok_or_else(without_bias)?;
            return Ok((ClassLoss::UniFace(UniFaceLoss { margin, scale, k }), Some(bias)));
        }
        HeadKind::ArcFace => TargetMargin::Arc(margin, settings.arc_mode),
        // The adaptive margin takes the place of CosFace's own.
        HeadKind::CosFace if adaptive.is_some() => TargetMargin::Subtract(0.0),
        HeadKind::CosFace | HeadKind::Softmax => TargetMargin::Subtract(margin),
    };
    Ok((ClassLoss::Margin(MarginLoss { target, scale, k }), None))
}
