//! The ops. One file an op; the registry below is the only list of them.

use crate::case::OpEntry;

pub mod add;
pub mod batch_norm;
pub mod batch_norm_eval;
pub mod batch_norm_grad;
pub mod check_finite;
pub mod clamp_min;
pub mod clip_factor;
pub mod conv2d;
mod conv2d_cases;
pub mod conv2d_grad_input;
pub mod conv2d_grad_weight;
pub mod convolution;
pub mod fill;
pub mod grad_norm;
pub mod image_input;
pub mod prelu;
pub mod reshape;
pub mod sgd;
pub mod sum_rows;

/// Every op of the runtime, sorted by name.
pub const REGISTRY: &[OpEntry] = &[
    add::ENTRY,
    batch_norm::ENTRY,
    batch_norm_eval::ENTRY,
    batch_norm_eval::GRAD_ENTRY,
    batch_norm_grad::INPUT_ENTRY,
    batch_norm_grad::WEIGHT_ENTRY,
    check_finite::ENTRY,
    clamp_min::ENTRY,
    clip_factor::ENTRY,
    conv2d::ENTRY,
    conv2d_grad_input::ENTRY,
    conv2d_grad_weight::ENTRY,
    fill::ENTRY,
    grad_norm::ENTRY,
    image_input::ENTRY,
    prelu::ENTRY,
    prelu::GRAD_ENTRY,
    sgd::ENTRY,
    sum_rows::ENTRY,
];
