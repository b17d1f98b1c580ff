//! Images that look nearly the same: encoded anew, scaled, made brighter.
//!
//! Two such images differ in few bits of their appearance ([`Look::appearance`]). To find all pairs that
//! differ in at most [`DISTANCE`] = 3 of 64 bits without comparing every image with every other, the bits are
//! cut in six blocks: three differing bits touch at most three blocks, so the other three are equal. For each
//! of the 20 choices of three blocks the images are sorted by their bits in these, and only those that agree
//! in them (32 or 33 bits) are compared. That takes 20 sorts, whatever the number of pairs (Manku, Jain, Das
//! Sarma: Detecting near-duplicates for web crawling, 2007). Each pair that is found is decoded and its
//! miniatures are compared.

use rayon::prelude::*;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::look::Miniature;
use super::{Look, Mark, Progress, Report, Severity, Stage, Subject, same};
use crate::data::stored::Stored;

/// Most bits in which the appearances of two images differ that are compared.
const DISTANCE: u32 = 3;

/// The correlation of the miniatures from which on two images are nearly the same.
const CORRELATION: f32 = 0.98;

/// Where the blocks of bits begin, and the end of the last.
const BLOCKS: [u32; 7] = [0, 11, 22, 33, 44, 54, 64];

/// Among more images than this that agree in half of their bits, each is compared only with as many that
/// follow it: so no set, however odd, takes time without bound.
const WINDOW: usize = 512;

/// Looks for images that are nearly but not quite the same. Blank ones and those that repeat another are left
/// out.
pub(super) fn check(
    report: &mut Report,
    looks: &[Look],
    first_of: &[u32],
    stored: &dyn Stored,
    progress: Progress<'_>,
) {
    let is_own = |&(index, look): &(usize, &Look)| {
        look.is_decoded()
            && !look.is_blank()
            && first_of.get(index).is_some_and(|&first| first as usize == index)
    };
    let own = looks.iter().enumerate().filter(is_own);
    let pairs = alike(own.map(|(index, look)| (look.appearance, index as u32)).collect());
    let done = AtomicUsize::new(0);
    let close: Vec<(u32, u32, f32)> = pairs
        .par_iter()
        .filter_map(|&(a, b)| {
            let miniature = |index| same::load(stored, index).map(|image| Miniature::of(&image));
            let correlation = miniature(a)?.correlation(&miniature(b)?);
            progress(Stage::Comparing, done.fetch_add(1, Ordering::Relaxed) + 1, pairs.len());
            (correlation >= CORRELATION).then_some((a, b, correlation))
        })
        .collect();
    let (mut within, mut across) = (Vec::new(), Vec::new());
    let label = |index: u32| looks.get(index as usize).and_then(Look::label);
    for (a, b, correlation) in close {
        let detail = format!("correlation {correlation:.3}").into();
        let mark = Mark { subject: Subject::Image(b), other: Some(a), detail };
        if label(a) == label(b) { within.push(mark) } else { across.push(mark) }
    }
    report.add(
        Severity::Warning,
        "near-conflict",
        "pairs of images that look nearly the same and are filed under two classes",
        "see whether the two classes are one person, or one of the labels is wrong",
        across,
    );
    report.add(
        Severity::Warning,
        "near-duplicate",
        "pairs of images of one class that look nearly the same",
        "remove one of each: they are one picture encoded twice, or neighbours in a video",
        within,
    );
}

/// The pairs (a < b) of images whose appearances differ in at most [`DISTANCE`] bits, in order. Of images
/// with one and the same appearance, each is paired with the first, and the first stands for all when others
/// are compared.
fn alike(mut images: Vec<(u64, u32)>) -> Vec<(u32, u32)> {
    images.par_sort_unstable();
    let mut pairs = Vec::new();
    let mut distinct: Vec<(u64, u32)> = Vec::new();
    for run in images.chunk_by(|a, b| a.0 == b.0) {
        if let Some((&first, rest)) = run.split_first() {
            distinct.push(first);
            pairs.extend(rest.iter().map(|other| (first.1, other.1)));
        }
    }
    let masks = masks();
    for (table, &mask) in masks.iter().enumerate() {
        let earlier = masks.get(..table).unwrap_or_default();
        distinct.par_sort_unstable_by_key(|&(appearance, index)| (appearance & mask, index));
        let runs: Vec<&[(u64, u32)]> =
            distinct.chunk_by(|a, b| a.0 & mask == b.0 & mask).filter(|run| run.len() > 1).collect();
        let found = runs.par_iter().flat_map_iter(|run| {
            run.iter().enumerate().flat_map(move |(at, &(one, a))| {
                let others = run.get(at + 1..).unwrap_or_default().iter().take(WINDOW);
                others.filter_map(move |&(other, b)| {
                    let difference = one ^ other;
                    // Pairs that an earlier table has found too are taken once.
                    let known = earlier.iter().any(|mask| difference & mask == 0);
                    (difference.count_ones() <= DISTANCE && !known).then_some((a.min(b), a.max(b)))
                })
            })
        });
        pairs.extend(found.collect::<Vec<_>>());
    }
    pairs.par_sort_unstable();
    pairs
}

/// The masks of every three of the six blocks.
fn masks() -> Vec<u64> {
    let block = |at: usize| -> u64 {
        let (from, to) = (BLOCKS.get(at).copied().unwrap_or(64), BLOCKS.get(at + 1).copied().unwrap_or(64));
        (from..to).fold(0, |mask, bit| mask | (1 << bit))
    };
    let mut masks = Vec::new();
    for a in 0..6 {
        for b in a + 1..6 {
            for c in b + 1..6 {
                masks.push(block(a) | block(b) | block(c));
            }
        }
    }
    masks
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn blocks_cover_all_bits_and_leave_half_of_them() {
        let masks = masks();
        assert_eq!(masks.len(), 20);
        assert_eq!(masks.iter().fold(0, |all, mask| all | mask), u64::MAX);
        assert!(masks.iter().all(|mask| (31..=33).contains(&mask.count_ones())));
    }

    #[test]
    fn hundreds_of_thousands_of_images_take_a_moment() {
        // A linear congruential generator's high bits, so that nothing is alike but what is made so.
        let mut state = 1_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state ^ (state >> 29)
        };
        let mut images: Vec<(u64, u32)> = (0..200_000).map(|index| (next(), index)).collect();
        let twins: Vec<_> =
            (0..100_u32).map(|at| (images[at as usize].0 ^ (1 << (at % 64)) ^ 1, 200_000 + at)).collect();
        images.extend(twins);
        let found = alike(images);
        assert!((0..100).all(|at| found.contains(&(at, 200_000 + at))), "{}", found.len());
        assert!(found.len() < 110, "{}", found.len());
    }

    proptest! {
        #[test]
        fn every_pair_is_found_once(
            base in any::<u64>(),
            flips in prop::collection::vec(prop::collection::vec(0..64_u32, 0..5), 2..30),
        ) {
            let looks: Vec<(u64, u32)> = flips
                .iter()
                .zip(0..)
                .map(|(bits, index)| (bits.iter().fold(base, |word, bit| word ^ (1 << bit)), index))
                .collect();
            let found = alike(looks.clone());
            let mut sorted = found.clone();
            sorted.dedup();
            prop_assert_eq!(&sorted, &found, "no pair twice");
            for &(one, a) in &looks {
                for &(other, b) in looks.iter().filter(|&&(_, b)| b > a) {
                    let firsts = |word| looks.iter().find(|look| look.0 == word).map(|look| look.1);
                    let both_first = firsts(one) == Some(a) && firsts(other) == Some(b);
                    let expected = if one == other { firsts(one) == Some(a) } else {
                        both_first && (one ^ other).count_ones() <= DISTANCE
                    };
                    prop_assert_eq!(found.contains(&(a, b)), expected, "{} {}", a, b);
                }
            }
        }
    }
}
