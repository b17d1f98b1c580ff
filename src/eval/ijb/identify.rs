//! The 1:N protocol: probe templates among the templates of galleries.
//!
//! InsightFace has two programs for it, with two kinds of numbers, and both are here:
//!
//! - `together` (`ijb_1n.py`, whose numbers papers print): the galleries are one, so that every probe has a mate in it. The
//!   threshold of an FPIR is the score that `ceil(FPIR x probes)` of all non-matching scores reach, and TPIR is the share of
//!   probes whose mate's score is above it.
//! - `galleries` and `mean` (`ijb_evals.py`, which is closer to NIST's protocol): each gallery alone. Probes whose mate is in
//!   the other one are the non-mated searches. The threshold is taken from the best score of each of them; a mated probe
//!   counts where its mate is above the threshold and before everybody else.
//!
//! A mate with the same score as somebody else stands behind: equal scores never count for the network.

use std::collections::HashSet;

use rayon::prelude::*;
use serde::Serialize;

use super::dot;
use super::meta::{Identification, Roster, unknown_template};
use super::templates::Templates;
use crate::{Error, Result};

/// The false-positive identification rates at which InsightFace reports.
pub const FPIRS: [f64; 2] = [0.01, 0.1];

/// Points of the curve of TPIR over FPIR: from 1e-4 to 1, this many a decade.
const CURVE: usize = 25;

/// What to do about lists that are not as they should be.
const UNALTERED: &str = "use the unaltered lists of galleries and probes";

/// Probes that one thread compares in one go.
const CHUNK: usize = 64;

/// The true-positive identification rate at a false-positive one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TpirAtFpir {
    /// The false-positive identification rate.
    pub fpir: f64,
    /// The true-positive identification rate; `None` where no probe is without a mate.
    pub tpir: Option<f64>,
    /// Only scores above it count.
    pub threshold: Option<f64>,
}

/// The results with one gallery.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GalleryReport {
    /// What the gallery is called.
    pub name: String,
    /// Its templates.
    pub gallery: usize,
    /// Probes whose mate is in it.
    pub mated: usize,
    /// Probes whose mate is not.
    pub non_mated: usize,
    /// The share of mated probes whose mate has the best score.
    pub top_1: f64,
    /// ... one of the best five.
    pub top_5: f64,
    /// ... one of the best ten.
    pub top_10: f64,
    /// The rates at [`FPIRS`].
    pub tpir_at_fpir: Vec<TpirAtFpir>,
    /// (FPIR, TPIR) for a picture.
    #[serde(skip)]
    pub curve: Vec<(f64, f64)>,
}

/// The results of the 1:N protocol.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct IdentificationReport {
    /// The number of probe templates.
    pub probes: usize,
    /// The galleries as one.
    pub together: GalleryReport,
    /// Each gallery alone.
    pub galleries: Vec<GalleryReport>,
    /// Over the galleries: top-k by all probes together, TPIR the mean of the galleries'.
    pub mean: GalleryReport,
}

/// A list of templates, each once, with its person and feature.
struct Entries<'a> {
    subjects: Vec<u32>,
    features: Vec<&'a [f64]>,
}

impl<'a> Entries<'a> {
    fn new(templates: &'a Templates, roster: &Roster) -> Result<Self> {
        let (mut subjects, mut features) = (Vec::new(), Vec::new());
        for (template, subject) in roster.unique() {
            let missing = || unknown_template(format!("gallery or probe list {}", roster.name), template);
            features.push(templates.feature(template).ok_or_else(missing)?);
            subjects.push(subject);
        }
        Ok(Self { subjects, features })
    }
}

/// How one probe fared.
struct Search {
    /// The score of its mate, and at which place that comes, from 1.
    mate: Option<(f64, usize)>,
    /// The best score of anybody else.
    best_other: f64,
}

/// Runs the protocol.
///
/// # Errors
/// Lists that are empty or name a template that has no image, a person with two templates in the galleries, and a probe
/// without a mate in any of them: InsightFace's programs know no such probe, and none of the data sets has one.
pub fn identify(templates: &Templates, lists: &Identification) -> Result<IdentificationReport> {
    let probes = Entries::new(templates, &lists.probes)?;
    if probes.subjects.is_empty() {
        return Err(empty_list("the list of probes"));
    }
    let mut together = Entries { subjects: Vec::new(), features: Vec::new() };
    let mut galleries = Vec::with_capacity(lists.galleries.len());
    for roster in &lists.galleries {
        let gallery = Entries::new(templates, roster)?;
        together.subjects.extend(&gallery.subjects);
        together.features.extend(&gallery.features);
        galleries.push(alone(&roster.name, &probes, &gallery)?);
    }
    if let Some((template, subject)) = without_mate(lists) {
        return Err(no_mate("the list of probes", template, subject));
    }
    let together = as_one(&probes, &together)?;
    let mean = mean(&galleries);
    Ok(IdentificationReport { probes: probes.subjects.len(), together, galleries, mean })
}

/// The first probe without a mate in any gallery: its template and person.
pub(super) fn without_mate(lists: &Identification) -> Option<(u32, u32)> {
    let people: HashSet<u32> =
        lists.galleries.iter().flat_map(|gallery| gallery.subjects.iter().copied()).collect();
    lists.probes.unique().into_iter().find(|(_, subject)| !people.contains(subject))
}

/// The error for a probe without a mate.
pub(super) fn no_mate(place: impl Into<String>, template: u32, subject: u32) -> Error {
    Error::data(
        place,
        format!("probe template {template} of person {subject}, who is in no gallery"),
        "probes of people of the galleries",
        UNALTERED,
    )
}

/// The error for a gallery or a list of probes with nothing in it.
pub(super) fn empty_list(place: impl Into<String>) -> Error {
    Error::data(place, "an empty list", "templates and the persons that they show", UNALTERED)
}

/// The error for a gallery with none of the probes' people.
pub(super) fn no_person(place: impl Into<String>) -> Error {
    Error::data(place, "no person of the probes", "some of them", UNALTERED)
}

/// Compares all probes with a gallery.
fn search(name: &str, probes: &Entries<'_>, gallery: &Entries<'_>) -> Result<Vec<Search>> {
    let fault = |found: String| {
        Err(Error::data(format!("gallery {name}"), found, "one template a person", UNALTERED))
    };
    if gallery.subjects.is_empty() {
        return Err(empty_list(format!("gallery {name}")));
    }
    let mut people = gallery.subjects.clone();
    people.sort_unstable();
    if let Some(twice) =
        people.windows(2).find_map(|two| (two.first() == two.last()).then(|| two.first().copied()))
    {
        return fault(format!("person {} twice", twice.unwrap_or_default()));
    }
    Ok(probes
        .features
        .par_iter()
        .zip(&probes.subjects)
        .map(|(probe, subject)| {
            let scores: Vec<f64> = gallery.features.iter().map(|feature| dot(probe, feature)).collect();
            let at = gallery.subjects.iter().position(|other| other == subject);
            let others =
                || scores.iter().enumerate().filter(|(other, _)| Some(*other) != at).map(|(_, score)| *score);
            let best_other = others().fold(f64::NEG_INFINITY, f64::max);
            let mate = at.and_then(|at| scores.get(at)).copied();
            let place = |mate: f64| 1 + others().filter(|&other| other >= mate).count();
            Search { mate: mate.map(|mate| (mate, place(mate))), best_other }
        })
        .collect())
}

/// The shares of mated probes whose mate is among the best 1, 5, 10.
fn top(searches: &[Search], mated: usize) -> [f64; 3] {
    [1, 5, 10].map(|most| {
        let found = |search: &&Search| search.mate.is_some_and(|(_, place)| place <= most);
        searches.iter().filter(found).count() as f64 / mated as f64
    })
}

/// A report with what does not depend on thresholds.
fn report(name: &str, gallery: &Entries<'_>, searches: &[Search]) -> Result<GalleryReport> {
    let mated = searches.iter().filter(|search| search.mate.is_some()).count();
    if mated == 0 {
        return Err(no_person(format!("gallery {name}")));
    }
    let [top_1, top_5, top_10] = top(searches, mated);
    Ok(GalleryReport {
        name: name.to_owned(),
        gallery: gallery.subjects.len(),
        mated,
        non_mated: searches.len() - mated,
        top_1,
        top_5,
        top_10,
        tpir_at_fpir: Vec::new(),
        curve: Vec::new(),
    })
}

/// FPIRs of the curve.
fn curve_fpirs() -> impl Iterator<Item = f64> {
    (0..=4 * CURVE).map(|at| 10_f64.powf(at as f64 / CURVE as f64 - 4.0))
}

/// One gallery, with the probes whose mates are elsewhere as the non-mated searches.
fn alone(name: &str, probes: &Entries<'_>, gallery: &Entries<'_>) -> Result<GalleryReport> {
    let searches = search(name, probes, gallery)?;
    let mut report = report(name, gallery, &searches)?;
    let mut alarms: Vec<f64> =
        searches.iter().filter(|search| search.mate.is_none()).map(|search| search.best_other).collect();
    alarms.sort_unstable_by(|a, b| b.total_cmp(a));
    let at = |fpir: f64| {
        // Of n non-mated searches the one before int(n x FPIR), which then is no alarm itself.
        let threshold = alarms.get(((alarms.len() as f64 * fpir) as usize).saturating_sub(1)).copied();
        let tpir = threshold.map(|threshold| {
            let found = |search: &&Search| {
                search.mate.is_some_and(|(mate, _)| mate > search.best_other && mate > threshold)
            };
            searches.iter().filter(found).count() as f64 / report.mated as f64
        });
        TpirAtFpir { fpir, tpir, threshold }
    };
    let tpir_at_fpir = FPIRS.iter().map(|&fpir| at(fpir)).collect();
    let curve = curve_fpirs().filter_map(|fpir| Some((fpir, at(fpir).tpir?))).collect();
    report.tpir_at_fpir = tpir_at_fpir;
    report.curve = curve;
    Ok(report)
}

/// All galleries as one, in which every probe has a mate.
fn as_one(probes: &Entries<'_>, gallery: &Entries<'_>) -> Result<GalleryReport> {
    let name = "all galleries";
    let searches = search(name, probes, gallery)?;
    let without = searches.iter().filter(|search| search.mate.is_none()).count();
    if without > 0 {
        return Err(Error::data(
            "the galleries together",
            format!("{without} of {} probes whose subject is in none", searches.len()),
            "the mate of every probe, as the sets have it",
            "check that the lists of galleries and probes are of one release",
        ));
    }
    let mut report = report(name, gallery, &searches)?;
    let count = |fpir: f64| ((report.mated as f64 * fpir).ceil() as usize).max(1);
    let most = FPIRS.iter().map(|&fpir| count(fpir)).max().unwrap_or(1);
    let negatives = highest_negatives(probes, gallery, most);
    let mates: Vec<f64> = searches.iter().filter_map(|search| Some(search.mate?.0)).collect();
    let at = |fpir: f64| {
        let threshold = negatives.get(count(fpir) - 1).copied();
        let above = |threshold: f64| mates.iter().filter(|&&mate| mate > threshold).count();
        let tpir = threshold.map(|threshold| above(threshold) as f64 / mates.len() as f64);
        TpirAtFpir { fpir, tpir, threshold }
    };
    report.tpir_at_fpir = FPIRS.iter().map(|&fpir| at(fpir)).collect();
    Ok(report)
}

/// The `most` highest scores of mated probes with somebody else, descending.
fn highest_negatives(probes: &Entries<'_>, gallery: &Entries<'_>, most: usize) -> Vec<f64> {
    let cut = |mut scores: Vec<f64>| {
        if scores.len() > most {
            scores.select_nth_unstable_by(most - 1, |a, b| b.total_cmp(a));
            scores.truncate(most);
        }
        scores
    };
    let probes: Vec<(&[f64], u32)> =
        probes.features.iter().copied().zip(probes.subjects.iter().copied()).collect();
    let mut highest = probes
        .par_chunks(CHUNK)
        .map(|chunk| {
            let mut scores = Vec::new();
            for (probe, subject) in chunk.iter().filter(|(_, subject)| gallery.subjects.contains(subject)) {
                let others =
                    gallery.features.iter().zip(&gallery.subjects).filter(|(_, other)| *other != subject);
                scores.extend(others.map(|(feature, _)| dot(probe, feature)));
            }
            cut(scores)
        })
        .reduce(Vec::new, |a, b| cut([a, b].concat()));
    highest.sort_unstable_by(|a, b| b.total_cmp(a));
    highest
}

fn mean(galleries: &[GalleryReport]) -> GalleryReport {
    let mated = galleries.iter().map(|gallery| gallery.mated).sum::<usize>();
    let share = |of: fn(&GalleryReport) -> f64| {
        galleries.iter().map(|gallery| (of(gallery) * gallery.mated as f64).round()).sum::<f64>()
            / mated as f64
    };
    let mean_of = |values: Vec<Option<f64>>| {
        let sum: Option<f64> = values.iter().copied().sum();
        sum.map(|sum| sum / values.len() as f64)
    };
    let tpir_at_fpir = FPIRS.iter().enumerate().map(|(at, &fpir)| {
        let tpirs = galleries.iter().map(|gallery| gallery.tpir_at_fpir.get(at)?.tpir);
        TpirAtFpir { fpir, tpir: mean_of(tpirs.collect()), threshold: None }
    });
    let curve = curve_fpirs().enumerate().filter_map(|(at, fpir)| {
        let tpirs = galleries.iter().map(|gallery| Some(gallery.curve.get(at)?.1));
        Some((fpir, mean_of(tpirs.collect())?))
    });
    GalleryReport {
        name: "mean".to_owned(),
        gallery: galleries.iter().map(|gallery| gallery.gallery).sum(),
        mated,
        non_mated: galleries.iter().map(|gallery| gallery.non_mated).sum(),
        top_1: share(|gallery| gallery.top_1),
        top_5: share(|gallery| gallery.top_5),
        top_10: share(|gallery| gallery.top_10),
        tpir_at_fpir: tpir_at_fpir.collect(),
        curve: curve.collect(),
    }
}
