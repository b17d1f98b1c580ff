//! Images with the same pixels.

use rayon::prelude::*;

use super::{Look, Mark, Report, Severity, Subject, look};
use crate::data::Image;
use crate::data::probe;
use crate::data::stored::Stored;

/// Looks for images with the same pixels. Returns, for each image, the first that has its pixels: itself for
/// most.
pub(super) fn check(report: &mut Report, looks: &[Look], stored: &dyn Stored) -> Vec<u32> {
    let first_of = first_of(looks, stored);
    let (mut within, mut across) = (Vec::new(), Vec::new());
    for (index, &first) in first_of.iter().enumerate().filter(|&(index, &first)| index != first as usize) {
        let label = |index: usize| looks.get(index).and_then(Look::label);
        let mark = Mark { subject: Subject::Image(index as u32), other: Some(first), detail: "".into() };
        if label(index) == label(first as usize) { within.push(mark) } else { across.push(mark) }
    }
    report.add(
        Severity::Error,
        "label-conflict",
        "images whose very pixels are filed under another class too",
        "at least one of the two labels is wrong: see who it is, or remove both",
        across,
    );
    report.add(
        Severity::Warning,
        "duplicate",
        "images that repeat another one of their class",
        "remove them: they count twice",
        within,
    );
    first_of
}

/// For each image the first that has its pixels. Images with the same hash are decoded and compared.
pub(super) fn first_of(looks: &[Look], stored: &dyn Stored) -> Vec<u32> {
    let mut order: Vec<u32> = (0..looks.len() as u32).filter(|&index| is_decoded(looks, index)).collect();
    let hash = |index: u32| looks.get(index as usize).map_or(0, |look| look.pixels);
    order.par_sort_unstable_by_key(|&index| (hash(index), index));
    let mut first_of: Vec<u32> = (0..looks.len() as u32).collect();
    let runs: Vec<&[u32]> = order.chunk_by(|&a, &b| hash(a) == hash(b)).filter(|run| run.len() > 1).collect();
    let found: Vec<(u32, u32)> = runs.par_iter().flat_map_iter(|run| same_pixels(run, stored)).collect();
    for (index, first) in found {
        if let Some(place) = first_of.get_mut(index as usize) {
            *place = first;
        }
    }
    first_of
}

fn is_decoded(looks: &[Look], index: u32) -> bool {
    looks.get(index as usize).is_some_and(Look::is_decoded)
}

/// Of images with one hash, those with the pixels of the first. Others, of which nature knows none, are left
/// alone.
fn same_pixels(run: &[u32], stored: &dyn Stored) -> Vec<(u32, u32)> {
    let Some((&first, rest)) = run.split_first() else { return Vec::new() };
    let Some(image) = load(stored, first) else { return Vec::new() };
    let same = rest.iter().filter(|&&index| load(stored, index).is_some_and(|other| other == image));
    same.map(|&index| (index, first)).collect()
}

/// Image `index`, decoded again.
pub(super) fn load(stored: &dyn Stored, index: u32) -> Option<Image> {
    let encoded = stored.encoded(index as usize).ok()?;
    look::decode(&encoded, probe::probe(&encoded), &|| stored.name(index as usize)).ok()
}
