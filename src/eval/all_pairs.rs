//! Verification over all pairs of a set: the true-accept rate at given false-accept rates, exactly.
//!
//! This is how MFR-Ongoing is measured (InsightFace, challenges/mfr: "all-to-all 1:1 protocol, with FAR less than
//! 0.000001"): each image against each later one, N (N - 1) / 2 pairs, of which those of one identity are genuine and the
//! others impostors. The score of a pair is the cosine of the two embeddings.
//!
//! **Definitions.** Embeddings are normalised in f64 and rounded to f32; the score is the f64 product of the rounded rows
//! ([`score`]). With M impostor pairs and k = floor(FAR M), the threshold t is the (k + 1)-th largest impostor score, and a
//! pair is accepted if its score is above t: then at most k impostors are, the false-accept rate is never above FAR, and no
//! other threshold with that property accepts more genuine pairs. Where impostors share the score t, fewer than k are
//! accepted. Where k is 0 the set is too small to say anything at this FAR, and nothing is said.
//!
//! **Method.** No N x N matrix: panels of embeddings are multiplied on the GPU, and a first pass counts scores in bins
//! of 2^-14. An f32 product of unit rows is off by at most gamma_D, the bound of any order of summation (Higham 2002,
//! "Accuracy and Stability of Numerical Algorithms", 3.1), so that for every FAR the bins near the one of rank k + 1 hold
//! all pairs of which the GPU cannot say on which side of t they are. A second pass lists these, and their scores in f64
//! decide. So the result does not depend on the adapter, and equals that of computing all scores in f64 and sorting them.
//! Where there are too many to keep, further passes narrow the range by counting the f64 scores first.

mod band;
mod far;
pub mod groups;
pub mod plan;
pub mod set;
mod sweep;
#[cfg(test)]
mod tests;
mod unit;

use std::sync::Arc;
use std::time::Instant;

use epl_runtime::Device;
use serde::Serialize;

use crate::{Error, Result};
use band::{Histogram, Target};
pub use far::Far;
use sweep::Sweep;
pub use sweep::{Limits, Progress};
pub use unit::{Members, Unit, score};

/// What is measured at one false-accept rate.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rate {
    /// The false-accept rate that is not to be exceeded.
    pub far: f64,
    /// The share of genuine pairs that are accepted; `None` where the set has too few pairs for this rate.
    pub tar: Option<f64>,
    /// The score above which a pair is accepted.
    pub threshold: Option<f64>,
    /// Genuine pairs that are accepted.
    pub accepted: Option<u64>,
    /// Impostor pairs that are accepted.
    pub false_accepts: Option<u64>,
    /// Why nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Rate {
    fn without(far: Far, note: String) -> Self {
        let note = Some(note);
        Self { far: far.value(), tar: None, threshold: None, accepted: None, false_accepts: None, note }
    }
}

/// What is measured on a set or a group of its images.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// Images.
    pub images: usize,
    /// Identities that have any.
    pub identities: usize,
    /// Pairs of one identity.
    pub genuine_pairs: u64,
    /// Pairs of two.
    pub impostor_pairs: u64,
    /// In the order in which the rates were asked for.
    pub tar_at_far: Vec<Rate>,
    /// Passes over all pairs.
    pub passes: usize,
    /// How long they took.
    pub seconds: f64,
    /// The ROC curve (FAR, TAR) by the GPU's scores, to the width of a bin; empty where there are not both kinds of pairs.
    #[serde(skip)]
    pub roc: Vec<(f64, f64)>,
}

/// Measures the pairs of `members` at the rates `fars` on `device`. `progress` is called now and then.
///
/// # Errors
/// Those of the device; scores that are off by more than arithmetic allows, or that differ from pass to pass.
pub fn evaluate(
    device: &Arc<Device>,
    members: &Members<'_>,
    fars: &[Far],
    limits: &Limits,
    progress: &mut dyn FnMut(Progress),
) -> Result<Outcome> {
    let start = Instant::now();
    let [genuine, impostors] = members.pairs();
    let mut outcome = Outcome {
        images: members.len(),
        identities: members.identities(),
        genuine_pairs: genuine,
        impostor_pairs: impostors,
        tar_at_far: Vec::with_capacity(fars.len()),
        passes: 0,
        seconds: 0.0,
        roc: Vec::new(),
    };
    let lacking = match (genuine, impostors) {
        (0, _) => Some("no two images of one identity"),
        (_, 0) => Some("no two images of different identities"),
        _ => None,
    };
    if let Some(lacking) = lacking {
        outcome.tar_at_far = fars.iter().map(|&far| Rate::without(far, lacking.to_owned())).collect();
        return Ok(outcome);
    }

    let mut sweep = Sweep::new(device, members, limits)?;
    let histogram = Histogram { bins: sweep.bins(), counts: sweep.histogram(progress)? };
    check_totals(device, &histogram, [genuine, impostors])?;
    outcome.passes = 1;
    outcome.roc = histogram.roc();

    // Rates that allow the same number of false accepts share a target.
    let mut targets: Vec<Target> = Vec::new();
    for far in fars {
        let rank = far.allowed(impostors);
        if rank > 0 && !targets.iter().any(|target| target.rank == rank) {
            targets.push(Target::new(&histogram, rank, members.unit().bound())?);
        }
    }
    let keep = limits.keep / targets.len().max(1) as u64;
    targets.iter_mut().for_each(|target| target.prepare(&histogram, keep));
    while targets.iter().any(|target| target.found().is_none()) {
        sweep.select(&mut targets, &histogram, progress)?;
        outcome.passes += 1;
        for target in &mut targets {
            target.finish(&histogram, members.unit().bound(), keep)?;
        }
    }

    for &far in fars {
        let rank = far.allowed(impostors);
        let found = targets.iter().find(|target| target.rank == rank).and_then(Target::found);
        outcome.tar_at_far.push(match found {
            Some(found) => Rate {
                far: far.value(),
                tar: Some(found.accepted[0] as f64 / genuine as f64),
                threshold: Some(found.threshold),
                accepted: Some(found.accepted[0]),
                false_accepts: Some(found.accepted[1]),
                note: None,
            },
            None => {
                let needed = far.least_impostors();
                let note = format!("{impostors} impostor pairs; this rate takes at least {needed}");
                Rate::without(far, note)
            }
        });
    }
    outcome.seconds = start.elapsed().as_secs_f64();
    Ok(outcome)
}

/// Whether the GPU counted every pair, in bins that a cosine can be in.
fn check_totals(device: &Device, histogram: &Histogram, expected: [u64; 2]) -> Result<()> {
    let found: [u64; 2] = std::array::from_fn(|kind| histogram.counts[kind].iter().sum());
    if found != expected {
        return Err(adapter_fault(
            device,
            format!("{found:?} pairs counted"),
            format!("{expected:?}, of one identity and of two"),
        ));
    }
    let outside = |counts: &Vec<u64>| counts.first().or(Some(&0)) != Some(&0) || counts.last() != Some(&0);
    if histogram.counts.iter().any(outside) {
        return Err(adapter_fault(device, "cosines far from -1 to 1".into(), "cosines".into()));
    }
    Ok(())
}

/// The error for results that correct arithmetic cannot give.
fn adapter_fault(device: &Device, found: String, expected: String) -> Error {
    Error::data(
        format!("adapter {}", device.description().name),
        found,
        expected,
        "check it with `epl ops test score_histogram score_select matmul`, or use another with --device",
    )
}
