//! The ops. One file an op; the registry below is the only list of them.

use crate::case::OpEntry;

pub mod add;
pub mod add_bias;
pub mod batch_norm;
pub mod batch_norm_apply;
pub mod batch_norm_eval;
pub mod batch_norm_grad;
pub mod broadcast_scalar;
pub mod cast;
mod channels;
pub mod check_finite;
pub mod clamp_min;
pub mod concat_rows;
pub mod conv2d;
mod conv2d_cases;
pub mod conv2d_grad_input;
pub mod conv2d_grad_weight;
mod conv2d_variants;
pub mod convolution;
pub mod cooperative;
mod depthwise;
pub mod direct;
pub mod dropout;
pub mod fill;
pub mod grad_norm;
pub mod image_input;
pub mod l2_normalize;
pub mod loss_scale;
pub mod matmul;
mod matmul_cases;
mod moments;
pub mod prelu;
pub mod reshape;
pub mod scale;
pub mod scale_by;
pub mod scale_rows;
pub mod sgd;
pub mod slice_rows;
pub mod step_factor;
pub mod sum_all;
pub mod sum_rows;
mod walk;
mod winograd;

/// Every op of the runtime, sorted by name.
pub const REGISTRY: &[OpEntry] = &[
    add::ENTRY,
    add_bias::ENTRY,
    batch_norm::ENTRY,
    batch_norm_apply::ENTRY,
    batch_norm_eval::ENTRY,
    batch_norm_eval::GRAD_ENTRY,
    batch_norm_grad::INPUT_ENTRY,
    batch_norm_grad::WEIGHT_ENTRY,
    broadcast_scalar::ENTRY,
    cast::ENTRY,
    check_finite::ENTRY,
    clamp_min::ENTRY,
    concat_rows::ENTRY,
    conv2d::ENTRY,
    conv2d_grad_input::ENTRY,
    conv2d_grad_weight::ENTRY,
    dropout::ENTRY,
    fill::ENTRY,
    grad_norm::ENTRY,
    image_input::ENTRY,
    l2_normalize::ENTRY,
    l2_normalize::GRAD_ENTRY,
    loss_scale::ENTRY,
    matmul::ENTRY,
    prelu::ENTRY,
    prelu::GRAD_ENTRY,
    scale::ENTRY,
    scale_by::ENTRY,
    scale_rows::ENTRY,
    sgd::ENTRY,
    slice_rows::ENTRY,
    step_factor::ENTRY,
    sum_all::ENTRY,
    sum_rows::ENTRY,
];
