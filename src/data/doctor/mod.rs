//! The doctor: reads every image of a data set and names what will make a training fail or go wrong.
//!
//! An image leaves 32 bytes behind ([`look::Look`]), so that sets of tens of millions fit in memory; images
//! are decoded again where two are to be compared. Nothing that is damaged ends a check.

mod findings;
mod labels;
mod look;
mod near;
mod report;
mod same;
mod verification;

use rayon::prelude::*;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::probe;
use super::stored::{Source, Stored};
use crate::Error;

pub use labels::Balance;
pub use look::Look;
pub use report::{Finding, Mark, Named, NamedMarks, Report, Severity, Subject};
pub use verification::check_set;

/// What a data set is checked against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checking {
    /// The network's input size, `[H, W]`; that of most images where `None`.
    pub size: Option<[usize; 2]>,
    /// Whether the training will have images of another size scaled.
    pub resize: bool,
    /// The number of classes that the training will be told.
    pub num_classes: Option<usize>,
    /// Whether to look for images that are nearly the same.
    pub near: bool,
}

/// How far a check is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Images that are read.
    Reading,
    /// Pairs that look alike and are compared.
    Comparing,
}

/// Called with the stage, what is done of it and all of it, from any thread.
pub type Progress<'a> = &'a (dyn Fn(Stage, usize, usize) + Sync);

/// Checks every image of `source`, and what was found when it was opened: `faults`.
pub fn check(source: &Source, mut faults: Vec<Error>, checking: &Checking, progress: Progress<'_>) -> Report {
    let stored = source.stored();
    if let Source::Records(records) = source {
        let noted = records.check_structure(&mut |fault| {
            faults.push(fault);
            Ok(())
        });
        // Every fault was let pass, so that none ends it.
        debug_assert!(noted.is_ok(), "{noted:?}");
    }
    let (looks, mut troubles) = read_all(stored, progress);
    let mut report = Report { images: looks.len(), ..Report::default() };
    findings::of_files(&mut report, faults, source.skipped());
    findings::of_troubles(&mut report, &mut troubles);
    let size = findings::of_sizes(&mut report, &looks, source, checking);
    labels::check(&mut report, &looks, source, checking.num_classes);
    findings::of_pictures(&mut report, &looks);
    let first_of = same::check(&mut report, &looks, stored);
    if checking.near {
        near::check(&mut report, &looks, &first_of, stored, progress);
    }
    report.size = size;
    report.order();
    report
}

/// Why an image or its label cannot be used.
#[derive(Debug)]
struct Trouble {
    image: u32,
    kind: TroubleKind,
    message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TroubleKind {
    /// The record or the file itself.
    Damaged,
    /// What should be an image.
    Undecodable,
    /// The label.
    Label,
}

/// Looks at every image on all threads.
fn read_all(stored: &dyn Stored, progress: Progress<'_>) -> (Vec<Look>, Vec<Trouble>) {
    let done = AtomicUsize::new(0);
    let all = stored.len();
    let troubles = std::sync::Mutex::new(Vec::new());
    let looks = (0..all)
        .into_par_iter()
        .map(|index| {
            let (look, trouble) = look_at(stored, index);
            if !trouble.is_empty() {
                // A thread that panicked would have ended the program; what it left is whole.
                troubles.lock().unwrap_or_else(std::sync::PoisonError::into_inner).extend(trouble);
            }
            progress(Stage::Reading, done.fetch_add(1, Ordering::Relaxed) + 1, all);
            look
        })
        .collect();
    (looks, troubles.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))
}

/// What is to be known of image `index`, and what is wrong with it.
fn look_at(stored: &dyn Stored, index: usize) -> (Look, Vec<Trouble>) {
    let mut troubles = Vec::new();
    let mut trouble = |kind: TroubleKind, error: Error| {
        let message = match error {
            // The place is named beside it.
            Error::Data { found, expected, .. } => format!("found {found}; expected {expected}"),
            other => other.to_string(),
        };
        troubles.push(Trouble { image: index as u32, kind, message });
    };
    let mut look = Look::default();
    match stored.encoded(index) {
        Err(error) => trouble(TroubleKind::Damaged, error),
        Ok(encoded) => {
            match stored.label(index) {
                Ok(label) => look.set_label(label),
                Err(error) => trouble(TroubleKind::Label, error),
            }
            let probe = probe::probe(&encoded);
            match look::decode(&encoded, probe, &|| stored.name(index)) {
                Ok(image) => {
                    look.fill(&image);
                    look.note(probe);
                }
                Err(error) => trouble(TroubleKind::Undecodable, error),
            }
        }
    }
    (look, troubles)
}

#[cfg(test)]
mod tests;
