//! The figures that a report draws. They are also the lines of a run's `metrics.jsonl`, hence the serde names.

use image::RgbImage;
use serde::{Deserialize, Deserializer, Serialize};

/// One logged step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepPoint {
    /// Steps done, counted from 1 over the whole run.
    pub step: u64,
    /// The epoch, counted from 1.
    pub epoch: u32,
    /// Mean loss of the batch.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
    /// Learning rate of the step.
    #[serde(deserialize_with = "null_is_nan")]
    pub lr: f64,
    /// Throughput since the line before.
    #[serde(deserialize_with = "null_is_nan")]
    pub images_per_second: f64,
    /// L2 norm of the whole gradient, head included, before clipping; NaN where it was not measured.
    #[serde(deserialize_with = "null_is_nan")]
    pub grad_norm: f64,
    /// What the loss is multiplied by before the backward pass; 1 in single precision.
    #[serde(default = "nan", deserialize_with = "null_is_nan")]
    pub loss_scale: f64,
    /// Share of the time since the line before in which the loop waited for the loader, 0 to 1.
    #[serde(default = "nan", deserialize_with = "null_is_nan")]
    pub data_wait: f64,
    /// Share of that time in which it waited for the device or handed work to it, 0 to 1: with a loop that keeps the device busy, what is not in
    /// `data_wait`.
    #[serde(default = "nan", deserialize_with = "null_is_nan")]
    pub device_wait: f64,
    /// Steps so far whose update was left out because their loss or gradient was not finite.
    #[serde(default)]
    pub skipped: u64,
}

/// One verification set, evaluated once. Fractions, not percent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvalPoint {
    /// Steps done before the evaluation.
    pub step: u64,
    /// The epoch that had ended, counted from 1.
    pub epoch: u32,
    /// Name of the set, for example `lfw`.
    pub set: String,
    /// Mean accuracy over the ten folds.
    #[serde(deserialize_with = "null_is_nan")]
    pub accuracy: f64,
    /// Population standard deviation of the accuracy over the folds.
    #[serde(deserialize_with = "null_is_nan")]
    pub accuracy_std: f64,
    /// True-accept rate at a false-accept rate of 1e-3.
    #[serde(rename = "tar_at_far_1e-3", deserialize_with = "null_is_nan")]
    pub tar_at_far_1e3: f64,
    /// Area under the ROC curve.
    #[serde(deserialize_with = "null_is_nan")]
    pub auc: f64,
    /// Equal error rate.
    #[serde(deserialize_with = "null_is_nan")]
    pub eer: f64,
    /// Squared distance of two normalised embeddings below which a pair is taken for one person.
    #[serde(deserialize_with = "null_is_nan")]
    pub threshold: f64,
    /// The ROC curve, thinned to what can be seen: false-accept rate and true-accept rate, ascending.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roc: Vec<(f64, f64)>,
}

/// The percentiles that are logged and drawn.
pub const PERCENTILES: [f64; 5] = [5.0, 25.0, 50.0, 75.0, 95.0];

/// Values at [`PERCENTILES`], ascending and finite.
pub type Percentiles = [f64; 5];

/// What the prototypes did in an epoch: figures of its samples and, for angle and drift, of classes. What a head
/// without EPL does not have, and what lines of earlier versions lack, is NaN or `None`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PrototypePoint {
    /// Steps done at the end of the epoch.
    pub step: u64,
    /// The epoch, counted from 1.
    pub epoch: u32,
    /// Mean cosine of an embedding and its class weight, `cos(x, W_y)`.
    #[serde(deserialize_with = "null_is_nan")]
    pub cos_weight: f64,
    /// Its percentiles over the samples.
    #[serde(default)]
    pub cos_weight_percentiles: Option<Percentiles>,
    /// Mean cosine of an embedding and its empirical prototype, `cos(x, Q_y)`.
    #[serde(deserialize_with = "null_is_nan")]
    pub cos_empirical: f64,
    /// Its percentiles over the samples.
    #[serde(default)]
    pub cos_empirical_percentiles: Option<Percentiles>,
    /// Mean cosine of an embedding and its empirical prototype as it was before the step moved it towards the sample.
    #[serde(default = "nan", deserialize_with = "null_is_nan")]
    pub cos_before_update: f64,
    /// Its percentiles over the samples.
    #[serde(default)]
    pub cos_before_update_percentiles: Option<Percentiles>,
    /// Mean adaptive margin, `k cos(x, Q_y)`.
    #[serde(deserialize_with = "null_is_nan")]
    pub adaptive_margin: f64,
    /// Its percentiles over the samples.
    #[serde(default)]
    pub adaptive_margin_percentiles: Option<Percentiles>,
    /// Mean angle in degrees between the two prototypes of a class, W and Q, at the end of the epoch.
    #[serde(deserialize_with = "null_is_nan")]
    pub angle_degrees: f64,
    /// Its percentiles over the classes that are watched.
    #[serde(default)]
    pub angle_degrees_percentiles: Option<Percentiles>,
    /// Mean angle in degrees between a class's Q at the start of the epoch and at its end.
    #[serde(default = "nan", deserialize_with = "null_is_nan")]
    pub drift_degrees: f64,
    /// Its percentiles over the classes that are watched.
    #[serde(default)]
    pub drift_degrees_percentiles: Option<Percentiles>,
    /// The cosine below which a sample counts as hard.
    #[serde(default = "nan", deserialize_with = "null_is_nan")]
    pub hard_cosine: f64,
    /// Share of hard samples, by `cos(x, Q_y)` before the update, for a head without EPL by `cos(x, W_y)`; a fraction.
    #[serde(default = "nan", deserialize_with = "null_is_nan")]
    pub hard_share: f64,
    /// Classes of which the run has not seen a sample so far.
    #[serde(default)]
    pub classes_unvisited: Option<u64>,
}

/// A face and the prototypes that its embedding is nearest to.
#[derive(Debug, Clone, PartialEq)]
pub struct FaceRow {
    /// The face, as the network sees it.
    pub face: RgbImage,
    /// Whose face it is.
    pub name: String,
    /// The nearest prototypes, nearest first.
    pub nearest: Vec<NearestPrototype>,
}

/// One of the prototypes nearest to a face.
#[derive(Debug, Clone, PartialEq)]
pub struct NearestPrototype {
    /// A face of that class, to show whose prototype it is.
    pub exemplar: RgbImage,
    /// Whose prototype it is.
    pub name: String,
    /// Cosine of the embedding and the prototype.
    pub cosine: f64,
    /// Whether it is the prototype of the face's own class.
    pub right: bool,
}

/// JSON has no NaN: what is not finite is written as `null`, and `null` is read as NaN.
fn null_is_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// What a line of an earlier version, which lacks the key, is read as.
fn nan() -> f64 {
    f64::NAN
}
