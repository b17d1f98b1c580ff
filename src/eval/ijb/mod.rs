//! IJB-B and IJB-C by the protocol of InsightFace (`recognition/_evaluation_/ijb`): verification of pairs of templates, and
//! identification of probe templates in two galleries.
//!
//! A template is some images of a person, from one or more media (photos, and videos with several frames each). The
//! feature of an image is the sum of its embedding and that of its mirror image, with its length kept, which is small
//! where the network saw little, times the score of the face detector. The features of a medium are averaged, those
//! averages added over the media of a template, and the sum is brought to unit length; the score of two templates is the
//! dot product. All of that is in f64, from embeddings in f32.

pub mod identify;
pub mod meta;
pub mod pictures;
pub mod templates;

use rayon::prelude::*;
use serde::Serialize;

use super::roc::{Roc, TarAtFar};
use crate::{Error, Result};
use identify::IdentificationReport;
use meta::{Faces, Identification, Pairs};
use templates::Templates;

/// The false-accept rates at which InsightFace reports.
pub const FARS: [f64; 6] = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1];

/// What of an image's feature counts. InsightFace calls the test N1D1F1 with all of it: `N` the length of the embedding, `D`
/// the detector's score, and `F` the mirrored image, which the embeddings have or have not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Settings {
    /// Keep the length of the embedding; otherwise it is brought to unit length.
    pub norm: bool,
    /// Multiply by the score of the face detector.
    pub detector_score: bool,
    /// The embeddings are sums with those of the mirrored images.
    pub flip: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { norm: true, detector_score: true, flip: true }
    }
}

/// What the 1:1 protocol measures.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VerificationResult {
    /// The number of pairs.
    pub pairs: usize,
    /// How many of them match.
    pub matching: usize,
    /// Area under the ROC curve.
    pub auc: f64,
    /// The true-accept rates at [`FARS`].
    pub tar_at_far: Vec<TarAtFar>,
    /// (FAR, TAR), thinned for a picture.
    #[serde(skip)]
    pub roc: Vec<(f64, f64)>,
}

/// What the protocols measure; rates are fractions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct IjbReport {
    /// The number of images.
    pub faces: usize,
    /// The number of templates.
    pub templates: usize,
    /// What of the images' features counted.
    pub settings: Settings,
    /// 1:1.
    pub verification: VerificationResult,
    /// 1:N; `None` where there are no galleries.
    pub identification: Option<IdentificationReport>,
}

/// Runs the protocols on `embeddings` `[N, dimension]` of `faces`, row by row.
///
/// # Errors
/// Numbers that do not fit, embeddings that are not finite, a pair or a gallery with a template that has no image, and
/// pairs of one kind only.
pub fn evaluate(
    embeddings: &[f32],
    dimension: usize,
    faces: &Faces,
    pairs: &Pairs,
    identification: Option<&Identification>,
    settings: Settings,
) -> Result<IjbReport> {
    let templates = Templates::new(embeddings, dimension, faces, settings)?;
    let scored = scores(&templates, pairs)?;
    let matching = pairs.same.iter().filter(|same| **same).count();
    let roc = Roc::new(scored).ok_or_else(|| {
        Error::data(
            "the pairs of templates",
            format!("{matching} matching pairs of {}", pairs.same.len()),
            "matching and other pairs",
            "use the unaltered list of pairs",
        )
    })?;
    let identification = match identification {
        Some(lists) => Some(identify::identify(&templates, lists)?),
        None => None,
    };
    Ok(IjbReport {
        faces: faces.templates.len(),
        templates: templates.len(),
        settings,
        verification: VerificationResult {
            pairs: pairs.same.len(),
            matching,
            auc: roc.auc(),
            tar_at_far: FARS.iter().map(|&far| roc.tar_at(far)).collect(),
            roc: roc.thinned(),
        },
        identification,
    })
}

/// The dot products of the pairs' templates, each with whether it matches.
///
/// # Errors
/// A pair with a template that has no image.
pub fn scores(templates: &Templates, pairs: &Pairs) -> Result<Vec<(f64, bool)>> {
    let lists = [pairs.first.len(), pairs.second.len(), pairs.same.len()];
    if lists != [lists[0]; 3] {
        return Err(Error::data(
            "the pairs of templates",
            format!("lists of {lists:?}"),
            "lists of one length",
            "this is a fault of the program that made them",
        ));
    }
    pairs
        .first
        .par_iter()
        .zip(&pairs.second)
        .zip(&pairs.same)
        .enumerate()
        .map(|(at, ((&first, &second), &same))| {
            let of = |template: u32| {
                templates.feature(template).ok_or_else(|| {
                    meta::unknown_template(format!("pair {} of the list of pairs", at + 1), template)
                })
            };
            Ok((dot(of(first)?, of(second)?), same))
        })
        .collect()
}

/// The dot product, in eight partial sums, which the processor adds side by side.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let (a, b) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f64 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum();
    let mut sums = [0.0; 8];
    for (a, b) in a.zip(b) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b);
    }
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests;
