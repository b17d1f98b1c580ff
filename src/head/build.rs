//! Records a head: cosines of the embeddings and the prototypes, their loss, and EPL's second branch.

use epl_runtime::op::{Record, TensorId};
use epl_runtime::ops::add::add;
use epl_runtime::ops::l2_normalize::l2_normalize;
use epl_runtime::ops::matmul::{MatMul, matmul};
use epl_runtime::ops::sum_all::sum_all;
use epl_runtime::{Error, Result};

use super::epl_update::{UpdatePrototypes, epl_update};
use super::gather_target::gather_target;
use super::margin_loss::{MarginLoss, TargetMargin, margin_loss};
use super::settings::{HeadKind, HeadSettings};
use super::uniface_loss::{UniFaceLoss, uniface_loss};

/// The least norm by which an embedding is divided.
const EMBEDDING_EPSILON: f32 = 1e-5;

/// The least norm by which a prototype is divided.
const PROTOTYPE_EPSILON: f32 = 1e-12;

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
}

/// What a head computes.
#[derive(Debug, Clone, Copy)]
pub struct HeadOutputs {
    /// The mean of the rows' losses, `[1]`: of B rows, or of the 2B rows of both branches.
    pub loss: TensorId,
    /// Cosine of each sample and the prototype of its class, `[B]`, without any margin.
    pub target_cosine: TensorId,
    /// Cosine of each sample and the empirical prototype of its class, `[B]`, where that branch is active.
    pub empirical_cosine: Option<TensorId>,
}

/// The bias that UniFace starts from, `ln(10 C)`.
pub fn initial_bias(classes: usize) -> f32 {
    (10.0 * classes as f64).ln() as f32
}

/// Records a head on `inputs`. With EPL the empirical prototypes are updated in any case, and before they are used;
/// `empirical_branch_active` says whether they take part in the loss (from [`start_epoch`] on). What is trained are the
/// embedding, the weight and the bias; the empirical prototypes are constants of the step, so no gradient should be
/// asked of them.
///
/// # Errors
/// Where a tensor that the settings need is missing, where the empirical branch is asked of a head without EPL, and
/// where shapes do not fit.
///
/// [`start_epoch`]: super::EplSettings::start_epoch
pub fn head_loss(
    record: &mut dyn Record,
    inputs: HeadInputs,
    settings: &HeadSettings,
    empirical_branch_active: bool,
) -> Result<HeadOutputs> {
    let x = l2_normalize(record, inputs.embedding, EMBEDDING_EPSILON)?;
    let epl = match (settings.epl, inputs.queue) {
        (Some(epl), Some(queue)) => {
            let op = UpdatePrototypes { update: epl.update, duplicates: epl.duplicates };
            epl_update(record, op, queue, x, inputs.labels)?;
            Some((epl, queue))
        }
        (Some(_), None) => {
            return Err(Error::graph("a head with EPL has no empirical prototypes", "give it the queue"));
        }
        (None, _) => None,
    };
    let rows = record.desc(x).shape.dim(0);

    let cosines = cosines(record, x, inputs.weight)?;
    let target_cosine = gather_target(record, cosines, inputs.labels)?;
    let losses = branch_loss(record, &inputs, settings, cosines, None)?;
    if !empirical_branch_active {
        let loss = sum_all(record, losses, 1.0 / rows as f32)?;
        return Ok(HeadOutputs { loss, target_cosine, empirical_cosine: None });
    }

    let Some((epl, queue)) = epl else {
        return Err(Error::graph(
            "the empirical branch was asked of a head without EPL",
            "give the head its EPL settings, or leave the branch off",
        ));
    };
    let cosines = self::cosines(record, x, queue)?;
    let empirical_cosine = gather_target(record, cosines, inputs.labels)?;
    let empirical = branch_loss(record, &inputs, settings, cosines, Some(epl.k as f32))?;
    let factor = 1.0 / (2 * rows) as f32;
    let loss = sum_all(record, losses, factor)?;
    let empirical_loss = sum_all(record, empirical, factor)?;
    let loss = add(record, loss, empirical_loss)?;
    Ok(HeadOutputs { loss, target_cosine, empirical_cosine: Some(empirical_cosine) })
}

/// Cosines `[B, C]` of the normalised embeddings `[B, D]` and the prototypes `[C, D]`.
fn cosines(record: &mut dyn Record, x: TensorId, prototypes: TensorId) -> Result<TensorId> {
    let unit = l2_normalize(record, prototypes, PROTOTYPE_EPSILON)?;
    matmul(record, x, unit, None, MatMul { transpose_b: true, ..MatMul::default() })
}

/// The rows' losses `[B]`; of the empirical branch where the factor `k` of its adaptive margin is given.
fn branch_loss(
    record: &mut dyn Record,
    inputs: &HeadInputs,
    settings: &HeadSettings,
    cosines: TensorId,
    adaptive: Option<f32>,
) -> Result<TensorId> {
    let (margin, scale) = (settings.effective_margin() as f32, settings.scale as f32);
    let k = adaptive.unwrap_or(0.0);
    let target = match settings.kind {
        HeadKind::UniFace => {
            let bias = inputs
                .bias
                .ok_or_else(|| Error::graph("the UniFace head has no bias", "give it a bias f32[1]"))?;
            let op = UniFaceLoss { margin, scale, k };
            return uniface_loss(record, op, cosines, inputs.labels, bias);
        }
        HeadKind::ArcFace => TargetMargin::Arc(margin, settings.arc_mode),
        // The adaptive margin takes the place of CosFace's own.
        HeadKind::CosFace if adaptive.is_some() => TargetMargin::Subtract(0.0),
        HeadKind::CosFace | HeadKind::Softmax => TargetMargin::Subtract(margin),
    };
    margin_loss(record, MarginLoss { target, scale, k }, cosines, inputs.labels)
}
