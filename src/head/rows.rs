//! What the ops on `[B, C]` cosines and `[B]` labels have in common.

use epl_runtime::case::{Input, matrix, normal};
use epl_runtime::host::Array;
use epl_runtime::op::Lowering;
use epl_runtime::{DType, Error, Result, TensorDesc};

/// The sizes of a matrix of cosines: a row a sample, a column a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rows {
    /// Samples, B.
    pub rows: usize,
    /// Classes, C.
    pub classes: usize,
}

impl Rows {
    /// The sizes, where `cosines` is f32 `[B, C]` and `labels` u32 `[B]`.
    pub fn check(op: &str, cosines: &TensorDesc, labels: &TensorDesc) -> Result<Self> {
        let &[rows, classes] = cosines.shape.dims() else {
            return Err(Error::shape(op, format!("cosines {cosines}"), "cosines f32[B, C]"));
        };
        if cosines.dtype != DType::F32 {
            return Err(Error::shape(op, format!("cosines {cosines}"), "cosines f32[B, C]"));
        }
        check_labels(op, labels, rows)?;
        Ok(Self { rows, classes })
    }

    /// The sizes in an op whose first input is the checked matrix of cosines.
    pub fn of(lowering: &Lowering<'_>) -> Result<Self> {
        let shape = &lowering.input(0)?.shape;
        lowering.size(shape.elements())?;
        Ok(Self { rows: shape.dim(0), classes: shape.dim(1) })
    }
}

/// An error unless `labels` is u32 `[rows]`.
pub(super) fn check_labels(op: &str, labels: &TensorDesc, rows: usize) -> Result<()> {
    if *labels != TensorDesc::u32([rows]) {
        return Err(Error::shape(op, format!("labels {labels}"), format!("labels u32[{rows}]")));
    }
    Ok(())
}

/// An error unless `found` is f32 `[rows]`.
pub(super) fn check_per_row(op: &str, what: &str, found: &TensorDesc, rows: usize) -> Result<()> {
    if *found != TensorDesc::f32([rows]) {
        return Err(Error::shape(op, format!("{what} {found}"), format!("{what} f32[{rows}]")));
    }
    Ok(())
}

/// An error unless the attribute is a finite number.
pub(super) fn check_finite(op: &str, what: &str, value: f32) -> Result<()> {
    if !value.is_finite() {
        return Err(Error::shape(op, format!("{what} {value}"), format!("a finite {what}")));
    }
    Ok(())
}

/// An error unless the attribute `scale` is positive and finite.
pub(super) fn check_scale(op: &str, scale: f32) -> Result<()> {
    if !(scale > 0.0 && scale.is_finite()) {
        return Err(Error::shape(op, format!("scale {scale}"), "a positive scale"));
    }
    Ok(())
}

/// Invocations that share a row. A CPU adapter would be content with fewer, but these kernels are a small part of a
/// step, and so the tests on a machine without a GPU run what GPUs run.
pub(super) const WORKGROUP: f64 = 256.0;

/// The class of sample `i`, or `None` where its label is no class. For references.
pub(super) fn label(labels: &Array, i: usize, classes: usize) -> Option<usize> {
    let y = labels.data[i] as usize;
    (y < classes).then_some(y)
}

/// `log(1 + e^v)`, for references.
pub(super) fn softplus(v: f64) -> f64 {
    v.max(0.0) + (-v.abs()).exp().ln_1p()
}

/// `1 / (1 + e^-v)`, for references.
pub(super) fn sigmoid(v: f64) -> f64 {
    if v >= 0.0 { 1.0 / (1.0 + (-v).exp()) } else { v.exp() / (1.0 + v.exp()) }
}

/// Rows of unit length, as embeddings are given to ops, for cases.
pub(super) fn unit_rows(rows: usize, dim: usize, seed: u64) -> Input {
    let tensor = normal([rows, dim], 1.0, seed).tensor();
    let values = tensor.as_f32().unwrap_or_default().chunks(dim);
    let scaled: Vec<f32> = values
        .flat_map(|row| {
            let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt();
            row.iter().map(move |v| v / norm)
        })
        .collect();
    matrix([rows, dim], &scaled)
}
