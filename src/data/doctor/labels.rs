//! Labels: their range, classes without images or with one, and how the images are spread over the classes.

use serde::Serialize;

use super::{Look, Mark, Report, Severity};
use crate::data::stored::Source;

/// From this inequality on a set is called unbalanced: a rule of thumb. A tenth of the classes with 70 % of the
/// images, evenly within both parts, is as uneven.
const MAX_GINI: f64 = 0.6;

/// A class with more than this many times the mean number of images is named.
const MANY: f64 = 20.0;

/// How images are spread over the classes that have any.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Balance {
    /// Classes that have images.
    pub classes: usize,
    /// The least number of images of a class.
    pub min: usize,
    /// The median.
    pub median: usize,
    /// The largest number of images of a class.
    pub max: usize,
    /// Share of the images that lie in the largest hundredth of the classes (at least one class).
    pub largest_percent_share: f64,
    /// The Gini coefficient: 0 where all classes have as many images, near 1 where one has all.
    pub gini: f64,
    /// The number of equally large classes whose images would be as evenly spread (the exponential of the
    /// entropy).
    pub effective_classes: f64,
}

impl Balance {
    /// Of classes with these numbers of images; those without any do not count.
    pub fn of(counts: impl IntoIterator<Item = usize>) -> Option<Self> {
        let mut counts: Vec<usize> = counts.into_iter().filter(|&count| count > 0).collect();
        counts.sort_unstable();
        let (&min, &max) = counts.first().zip(counts.last())?;
        let classes = counts.len();
        let images = counts.iter().sum::<usize>() as f64;
        let largest: usize = counts.iter().rev().take(classes.div_ceil(100)).sum();
        // The sum over all pairs of classes of their difference, by rank.
        let weighted: f64 = counts
            .iter()
            .enumerate()
            .map(|(rank, &count)| (2.0 * rank as f64 + 1.0 - classes as f64) * count as f64)
            .sum();
        let entropy: f64 = counts
            .iter()
            .map(|&count| {
                let share = count as f64 / images;
                -share * share.ln()
            })
            .sum();
        Some(Self {
            classes,
            min,
            median: counts.get(classes / 2).copied().unwrap_or(min),
            max,
            largest_percent_share: largest as f64 / images,
            gini: weighted / (classes as f64 * images),
            effective_classes: entropy.exp(),
        })
    }
}

/// Checks the labels of all images.
pub(super) fn check(report: &mut Report, looks: &[Look], source: &Source, num_classes: Option<usize>) {
    let largest = looks.iter().filter_map(Look::label).max();
    let counted = largest.map_or(0, |label| label as usize + 1);
    let (said, by) = match (num_classes, source) {
        (Some(classes), _) => (Some(classes), "--num-classes"),
        (None, Source::Folder(_)) => (None, ""),
        (None, Source::Records(records)) => match (records.property(), records.identity_records().len()) {
            (Some(property), _) => (Some(property.classes), "property"),
            (None, 0) => (None, ""),
            (None, identities) => (Some(identities), "the identity records"),
        },
    };
    let classes = said.unwrap_or(counted);
    report.classes = classes;
    if let Source::Records(records) = source
        && let (Some(property), identities @ 1..) = (records.property(), records.identity_records().len())
        && property.classes != identities
    {
        let detail = format!("{} classes; {identities} identity records", property.classes);
        report.add(
            Severity::Error,
            "property",
            "disagreements between property and the record file",
            "correct property (classes,height,width)",
            vec![Mark::place(records.file().path().with_file_name("property").display().to_string(), detail)],
        );
    }
    let beyond = looks
        .iter()
        .enumerate()
        .filter(|(_, look)| look.label().is_some_and(|label| label as usize >= classes));
    report.add(
        Severity::Error,
        "label-range",
        format!("images with labels that are not below the number of classes, {classes} by {by}"),
        format!("correct the labels, or the number of classes: at least {counted}"),
        beyond
            .map(|(index, look)| Mark::image(index, format!("label {}", look.label().unwrap_or_default())))
            .collect(),
    );
    let mut counts = vec![0_usize; counted.min(classes)];
    for label in looks.iter().filter_map(Look::label) {
        if let Some(count) = counts.get_mut(label as usize) {
            *count += 1;
        }
    }
    let with =
        |count: usize| (0..).zip(&counts).filter(move |&(_, &found)| found == count).map(|(label, _)| label);
    let trailing = counts.len().min(classes) as u32..classes.min(1 << 25) as u32;
    report.add(
        Severity::Warning,
        "empty-class",
        format!("classes without an image, of {classes}"),
        "number the identities anew without gaps (`epl data unpack`, then `pack` without identities.tsv); each costs \
         memory and is pushed away from all others",
        with(0).chain(trailing).map(|label| Mark::class(label, "")).collect(),
    );
    report.add(
        Severity::Warning,
        "single-image",
        "classes with a single image",
        "add images or leave them out: nothing can be learned about how such a person varies",
        with(1).map(|label| Mark::class(label, "")).collect(),
    );
    report.balance = Balance::of(counts.iter().copied());
    if let Some(balance) = report.balance
        && balance.classes >= 10
    {
        let many = (MANY * looks.len() as f64 / balance.classes as f64) as usize;
        report.add(
            Severity::Warning,
            "large-class",
            format!("classes with more than {MANY} times the mean number of images"),
            "look whether such a class is one person; leave out a part of its images",
            (0..)
                .zip(&counts)
                .filter(|&(_, &count)| count > many)
                .map(|(label, count)| Mark::class(label, format!("{count} images")))
                .collect(),
        );
        if balance.gini > MAX_GINI {
            let detail = format!(
                "Gini coefficient {:.2} (above {MAX_GINI}); the largest 1 % of the classes hold {:.0} % of the images; \
                 spread as {:.0} equal classes of {}",
                balance.gini,
                100.0 * balance.largest_percent_share,
                balance.effective_classes,
                balance.classes
            );
            report.add(
                Severity::Warning,
                "imbalance",
                "imbalance between the classes",
                "limit the images of large classes; small ones are seldom seen otherwise",
                vec![Mark::place("", detail)],
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn balance_is_what_its_names_say() {
        assert_eq!(Balance::of([0, 0]), None);
        let even = Balance::of([3; 200]).unwrap();
        assert_eq!((even.min, even.median, even.max), (3, 3, 3));
        assert!(even.gini.abs() < 1e-12 && (even.effective_classes - 200.0).abs() < 1e-6);
        assert!((even.largest_percent_share - 0.01).abs() < 1e-12);
        let uneven = Balance::of([1, 0, 1, 1, 97]).unwrap();
        assert_eq!((uneven.classes, uneven.min, uneven.median, uneven.max), (4, 1, 1, 97));
        // The mean difference of two classes drawn at random, over twice the mean: 2 * 3 * 96 / 16 / 50.
        assert!((uneven.gini - 0.72).abs() < 1e-12, "{uneven:?}");
        assert!((uneven.largest_percent_share - 0.97).abs() < 1e-12 && uneven.effective_classes < 1.3);
    }
}
