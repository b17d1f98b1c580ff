//! Whether a kernel that was fast is right: what it makes is compared with what the rule's kernel makes, and on less with what
//! naive loops make.

use std::collections::HashSet;
use std::sync::Arc;

use super::{Alone, Candidate, kernels, lowered};
use crate::case::{Case, Tolerance, integers, normal};
use crate::check::run_case_with;
use crate::choice::{Choices, key};
use crate::device::Device;
use crate::host::{Array, HostTensor};
use crate::op::Op;
use crate::session::Session;
use crate::{DType, Error, Result, TensorDesc};

/// FLOPs of a problem that is compared with the reference: about a second of naive loops at most.
const REFERENCE_FLOPS: f64 = 5e7;
/// The most FLOPs of one, where less of the op runs other kernels.
const MOST_REFERENCE_FLOPS: f64 = 2e9;

/// How far rounding may take a result: sums of terms of random signs err by the order of the square root of their number.
fn tolerance(op: &dyn Op, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Tolerance {
    let elements: usize = outputs.iter().map(|desc| desc.shape.elements()).sum();
    let terms = op.cost(inputs, outputs).flops / 2.0 / elements.max(1) as f64;
    let half = outputs.iter().any(|desc| desc.dtype == DType::F16);
    Tolerance {
        relative: 1e-5_f64.max(4e-7 * terms.sqrt()),
        // A unit in the last of 11 bits.
        rounding: if half { 1e-3 } else { 0.0 },
        ..Tolerance::default()
    }
}

/// What differs between a variant's results and those of the rules' kernel, if anything.
pub(super) fn agrees_with_rule(
    alone: &Alone,
    op: &Arc<dyn Op>,
    inputs: &[TensorDesc],
    rule: &Session,
    session: &Session,
) -> Result<Option<String>> {
    let one = tolerance(op.as_ref(), inputs, &op.infer(inputs)?);
    // Either may be off by as much.
    let both = Tolerance { relative: 2.0 * one.relative, rounding: 2.0 * one.rounding, ..one };
    for &id in &alone.outputs {
        let (want, got) = (floats(&rule.read(id)?), floats(&session.read(id)?));
        if let Some((index, got, want)) = first_fault(&got, &want, both) {
            return Ok(Some(format!("element {index} is {got}, that of the rule's kernel {want}")));
        }
    }
    Ok(None)
}

fn floats(tensor: &HostTensor) -> Vec<f32> {
    match tensor.as_f32() {
        Ok(values) => values.to_vec(),
        Err(_) => Array::from(tensor).data.into_iter().map(|value| value as f32).collect(),
    }
}

/// The first element that is further from what it should be than `tolerance` allows, as
/// [`compare`](crate::check::compare) understands it; for tensors of hundreds of millions of elements.
fn first_fault(got: &[f32], want: &[f32], tolerance: Tolerance) -> Option<(usize, f32, f32)> {
    let squares = want.iter().filter(|v| v.is_finite()).map(|&v| f64::from(v) * f64::from(v)).sum::<f64>();
    let rms = (squares / want.len().max(1) as f64).sqrt();
    let right = |got: f32, want: f32| {
        let (g, w) = (f64::from(got), f64::from(want));
        let allowed =
            tolerance.relative * w.abs().max(rms) + tolerance.rounding * w.abs() + tolerance.absolute;
        // A NaN is never right.
        g == w || (g - w).abs() <= allowed
    };
    let wrong = got.iter().zip(want).position(|(&got, &want)| !right(got, want));
    wrong.and_then(|index| Some((index, *got.get(index)?, *want.get(index)?)))
}

/// What differs between a variant's results and the reference, if anything: on less of the op, for which its kernels run with
/// the same constants, within `room` bytes.
pub(super) fn check(
    device: &Arc<Device>,
    candidate: &Candidate,
    variant: &str,
    room: u64,
) -> Result<Option<String>> {
    let of = |op: &dyn Op, inputs: &[TensorDesc], variant| lowered(device, op, inputs, variant);
    let (mut op, mut inputs) = (candidate.op.clone(), candidate.inputs.clone());
    // What the rules run at full size, sums of parts and copies, needs no proof of its own.
    let trusted = kernels(&of(op.as_ref(), &inputs, None)?);
    let needed: HashSet<String> =
        kernels(&of(op.as_ref(), &inputs, Some(variant))?).difference(&trusted).cloned().collect();
    let flops =
        |op: &dyn Op, inputs: &[TensorDesc]| -> Result<f64> { Ok(op.cost(inputs, &op.infer(inputs)?).flops) };
    let fits = |op: &Arc<dyn Op>, inputs: &[TensorDesc]| -> Result<bool> {
        match Alone::new(device, op, inputs)?.bytes(variant) {
            // Its session fills results with NaN beforehand, from a buffer as large as the largest.
            Ok(bytes) => Ok(bytes.beside(bytes) <= room),
            Err(Error::Limit { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    };
    while flops(op.as_ref(), &inputs)? > REFERENCE_FLOPS || !fits(&op, &inputs)? {
        let Some((less, fewer)) = op.smaller(&inputs) else { break };
        let runs = of(less.as_ref(), &fewer, Some(variant));
        if !runs.is_ok_and(|runs| kernels(&runs).is_superset(&needed)) {
            break;
        }
        (op, inputs) = (less, fewer);
    }
    if flops(op.as_ref(), &inputs)? > MOST_REFERENCE_FLOPS || !fits(&op, &inputs)? {
        return Ok(Some("no problem small enough for the reference runs the same kernels".into()));
    }
    let drawn = inputs.iter().zip(1..).map(|(desc, seed)| match desc.dtype {
        DType::F32 => normal(desc.shape.clone(), 1.0, seed),
        DType::F16 => normal(desc.shape.clone(), 1.0, seed).half(),
        DType::U32 => integers(desc.shape.clone(), 1, seed),
    });
    let mut case = Case::shared(variant, op.clone(), drawn.collect());
    case.tolerance = tolerance(op.as_ref(), &inputs, &op.infer(&inputs)?);
    let choices = Choices::from_iter([(key(op.as_ref(), &inputs), variant)]);
    let worst = run_case_with(device, &case, Arc::new(choices))?;
    Ok((!worst.passes()).then(|| {
        let (tensor, index, got, want) = (&worst.tensor, worst.index, worst.got, worst.want);
        format!("{tensor}[{index}] is {got}, the reference makes it {want}")
    }))
}
