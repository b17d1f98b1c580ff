//! Verification sets: images without labels, in pairs.

use std::borrow::Cow;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use super::{Checking, Mark, Progress, Report, Severity, Subject, TroubleKind, findings, look_at, same};
use crate::Result;
use crate::data::stored::Stored;
use crate::data::{VerificationSet, no_such_index};

/// The protocol's folds, which follow each other in the file.
const FOLDS: usize = 10;

impl Stored for VerificationSet {
    fn len(&self) -> usize {
        self.images.len()
    }

    fn label(&self, index: usize) -> Result<u32> {
        // Pairs have no classes.
        Err(no_such_index(index, 0))
    }

    fn encoded(&self, index: usize) -> Result<Cow<'_, [u8]>> {
        let image = self.images.get(index).ok_or_else(|| no_such_index(index, self.images.len()))?;
        Ok(Cow::Borrowed(image))
    }

    fn name(&self, index: usize) -> String {
        format!("{}, image {index}", self.name)
    }

    fn identity(&self, _: u32) -> Option<String> {
        None
    }
}

/// Checks every image of a verification set and its pairs.
pub fn check_set(set: &VerificationSet, checking: &Checking, progress: Progress<'_>) -> Report {
    let mut report = Report { images: set.images.len(), ..Report::default() };
    let done = AtomicUsize::new(0);
    let (looks, troubles): (Vec<_>, Vec<_>) = (0..set.images.len())
        .into_par_iter()
        .map(|index| {
            let looked = look_at(set, index);
            progress(super::Stage::Reading, done.fetch_add(1, Ordering::Relaxed) + 1, set.images.len());
            looked
        })
        .unzip();
    let mut troubles: Vec<_> =
        troubles.into_iter().flatten().filter(|trouble| trouble.kind != TroubleKind::Label).collect();
    findings::of_troubles(&mut report, &mut troubles);
    findings::of_pictures(&mut report, &looks);
    if let Some((size, marks)) = findings::wrong_sizes(&looks, checking.size) {
        report.size = Some(size);
        report.add(
            Severity::Warning,
            "size",
            format!("images of another size than {} x {} (height x width)", size[0], size[1]),
            "nothing, if they are aligned: evaluation scales them by their short side",
            marks,
        );
    }
    let first_of = same::first_of(&looks, set);
    let pairs = || first_of.chunks_exact(2).zip(&set.issame).enumerate();
    let identical = |wanted: bool| -> Vec<Mark> {
        let found = pairs().filter(|(_, (two, same))| two.first() == two.last() && **same == wanted);
        let mark = |pair: usize| Mark {
            subject: Subject::Image(2 * pair as u32 + 1),
            other: Some(2 * pair as u32),
            detail: format!("pair {pair}").into(),
        };
        found.map(|(pair, _)| mark(pair)).collect()
    };
    report.add(
        Severity::Error,
        "pair-conflict",
        "pairs of one and the same image that are said to show two people",
        "correct the list of pairs",
        identical(false),
    );
    report.add(
        Severity::Warning,
        "trivial-pair",
        "pairs of one and the same image",
        "remove them: every network gets them right",
        identical(true),
    );
    let per_fold = set.issame.len() / FOLDS;
    let folds = (0..FOLDS).filter_map(|fold| {
        let own = set.issame.get(fold * per_fold..(fold + 1) * per_fold)?;
        let same = own.iter().filter(|&&same| same).count();
        (same == 0 || same == own.len()).then(|| {
            Mark::place(format!("fold {fold}"), format!("{same} of {} pairs show one person", own.len()))
        })
    });
    report.add(
        Severity::Warning,
        "one-sided-fold",
        "folds, of the protocol's ten, that have only one kind of pair",
        "mix the pairs: the folds are tenths of the file in its order",
        folds.collect(),
    );
    report.order();
    report
}
