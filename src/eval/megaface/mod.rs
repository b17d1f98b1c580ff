//! MegaFace: identification of FaceScrub's photos among up to a million distractors.
//!
//! The devkit's protocol: of each person every photo in turn is the one in the gallery, and every other photo of that person
//! is searched for among it and the distractors. Photos of other persons of FaceScrub are in no gallery. A search succeeds at
//! rank k where fewer than k distractors have a score that is at least the mate's: an equal score counts against the network.
//! Verification compares the pairs of photos of one person with all pairs of a photo and a distractor.
//!
//! Embeddings are brought to unit length in f64 and stored in f32; scores are their dot products in f32, those of mates and of
//! distractors alike, so that rounding (about 1e-7) may exchange only scores that are as near as that.

pub mod noise;
pub mod photos;

use std::ops::Range;

use rayon::prelude::*;
use serde::Serialize;

use crate::eval::product::{Block, Product};
use crate::{Error, Result};

/// The sizes of the set of distractors that the devkit has.
pub const SIZES: [usize; 6] = [10, 100, 1_000, 10_000, 100_000, 1_000_000];

/// The false-accept rates of the verification.
pub const FARS: [f64; 3] = [1e-6, 1e-5, 1e-4];

/// The photos that are searched for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Probes {
    /// `[P, D]`, of unit length.
    pub embeddings: Vec<f32>,
    /// The person of each.
    pub people: Vec<u32>,
}

/// The photos of other people, in the order in which smaller sets take them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Distractors {
    /// `[M, D]`, of unit length.
    pub embeddings: Vec<f32>,
    /// Those that count as distractors, but that no search finds: InsightFace's way with noise.
    pub unreachable: Vec<bool>,
}

/// Identification among some of the distractors.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Identified {
    /// How many.
    pub distractors: usize,
    /// The share of searches whose mate has a better score than all of them.
    pub rank_1: f64,
    /// The share whose mate is among the best ten.
    pub rank_10: f64,
    /// The cumulative match characteristic, (rank, share of searches that succeed at it): at 1, 2, ... 10, 20, ... 100, 200,
    /// ..., up to all distractors and the mate.
    pub cmc: Vec<(usize, f64)>,
}

/// Verification among all distractors.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verified {
    /// The false-accept rate: at most this share of the pairs of a photo and a distractor is accepted.
    pub far: f64,
    /// The share of pairs of one person that is accepted; `None` where there are too few pairs for this rate.
    pub tar: Option<f64>,
    /// Scores above it are accepted.
    pub threshold: Option<f64>,
    /// Why there is no rate.
    pub note: Option<String>,
}

/// What the protocol measures; rates are fractions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MegafaceReport {
    /// Photos of FaceScrub.
    pub probes: usize,
    /// People on them.
    pub people: usize,
    /// Photos of others.
    pub distractors: usize,
    /// Searches: pairs of different photos of one person, both ways.
    pub searches: usize,
    /// By the number of distractors.
    pub identification: Vec<Identified>,
    /// Pairs of photos of one person.
    pub genuine_pairs: usize,
    /// Pairs of a photo and a distractor.
    pub impostor_pairs: u64,
    /// By the false-accept rate.
    pub verification: Vec<Verified>,
}

/// Brings rows `[N, dimension]` to unit length; a row of zeros stays one.
///
/// # Errors
/// A row with a value that is not finite; `name(i)` tells which.
pub fn to_unit_length(
    rows: &mut [f32],
    dimension: usize,
    name: &(dyn Fn(usize) -> String + Sync),
) -> Result<()> {
    let norm = |row: &[f32]| row.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt();
    if let Some(at) = rows.par_chunks_exact(dimension).position_first(|row| !norm(row).is_finite()) {
        return Err(Error::data(
            format!("the embedding of {}", name(at)),
            "a value that is not finite",
            "finite values",
            "the weights or the precision are at fault: check the training's loss for NaN",
        ));
    }
    rows.par_chunks_exact_mut(dimension).for_each(|row| {
        let norm = norm(row);
        if norm > 0.0 {
            row.iter_mut().for_each(|value| *value = (f64::from(*value) / norm) as f32);
        }
    });
    Ok(())
}

/// The scores of a photo with those of the same person, ascending, and how many distractors beat them.
struct Searches {
    /// The other photos with their scores.
    mates: Vec<(f32, u32)>,
    /// For each size of the set, `[mates]`: distractors that are new at this size and whose score is at least that of the mate
    /// and not that of the next one.
    beaten: Vec<Vec<u32>>,
}

/// Runs the protocol. `sizes` are numbers of distractors; those beyond the distractors there are, are left out, and all of them
/// is added. `progress` gets the number of distractors done.
///
/// # Errors
/// Numbers that do not fit, no distractor, nobody with two photos; those of `product`.
pub fn evaluate(
    product: &mut dyn Product,
    dimension: usize,
    probes: &Probes,
    distractors: &Distractors,
    sizes: &[usize],
    progress: &mut dyn FnMut(usize),
) -> Result<MegafaceReport> {
    let (count, total) = (probes.people.len(), distractors.unreachable.len());
    check(dimension, probes, distractors)?;
    let mut sizes: Vec<usize> =
        sizes.iter().copied().filter(|&size| size > 0 && size < total).chain([total]).collect();
    sizes.sort_unstable();
    sizes.dedup();

    let mut searches = mates(product, probes, sizes.len())?;
    let genuine: Vec<f32> = searches
        .iter()
        .enumerate()
        .flat_map(|(row, search)| search.mates.iter().filter(move |(_, mate)| *mate as usize > row))
        .map(|(score, _)| *score)
        .collect();
    if genuine.is_empty() {
        return Err(Error::data(
            "the photos that are searched for",
            format!("{count} photos of as many people"),
            "some person with two photos",
            "give one folder a person",
        ));
    }

    let impostor_pairs = count as u64 * total as u64;
    // One more than may be accepted: that score is the threshold.
    let allowed = FARS.map(|far| (impostor_pairs / least_impostors(far)) as usize);
    let mut highest = Highest::new(allowed.iter().max().map_or(1, |most| most + 1));
    product.for_each_block(&probes.embeddings, &distractors.embeddings, &mut |block| {
        let reachable = distractors.unreachable.get(block.column..block.column + block.columns);
        let reachable: Vec<bool> = reachable.unwrap_or_default().iter().map(|away| !away).collect();
        let positions = block.column..block.column + block.columns;
        let pieces = pieces(&positions, &sizes);
        let rows: Vec<(usize, &[f32])> = block.rows().collect();
        let of_block = searches.get_mut(block.row..block.row + rows.len()).unwrap_or_default();
        of_block.par_iter_mut().zip(&rows).for_each(|(search, (_, scores))| {
            for (size, piece) in &pieces {
                search.count(*size, scores, &reachable, piece.clone());
            }
        });
        highest.add(&rows, &reachable);
        progress(block.column + block.columns);
        Ok(())
    })?;

    let identification = identified(&searches, &sizes);
    let negatives = highest.sorted();
    let verification = FARS.iter().zip(allowed).map(|(&far, allowed)| {
        if allowed == 0 {
            let needed = least_impostors(far);
            let note = format!(
                "{impostor_pairs} pairs of a photo and a distractor; this rate takes at least {needed}"
            );
            return Verified { far, tar: None, threshold: None, note: Some(note) };
        }
        let threshold = negatives.get(allowed).copied().unwrap_or(f32::NEG_INFINITY);
        let accepted = genuine.iter().filter(|&&score| score > threshold).count();
        Verified {
            far,
            tar: Some(accepted as f64 / genuine.len() as f64),
            threshold: Some(f64::from(threshold.max(-2.0))),
            note: None,
        }
    });
    let mut people = probes.people.clone();
    people.sort_unstable();
    people.dedup();
    Ok(MegafaceReport {
        probes: count,
        people: people.len(),
        distractors: total,
        searches: searches.iter().map(|search| search.mates.len()).sum(),
        identification,
        genuine_pairs: genuine.len(),
        impostor_pairs,
        verification: verification.collect(),
    })
}

/// The number of impostor pairs of which the rate `far` accepts one; with fewer of them there is no such rate.
fn least_impostors(far: f64) -> u64 {
    ((1.0 / far).round() as u64).max(1)
}

fn check(dimension: usize, probes: &Probes, distractors: &Distractors) -> Result<()> {
    let (count, total) = (probes.people.len(), distractors.unreachable.len());
    let fits = dimension > 0
        && probes.embeddings.len() == count * dimension
        && distractors.embeddings.len() == total * dimension;
    if !fits || total == 0 || count == 0 {
        return Err(Error::data(
            "the photos",
            format!(
                "{count} probes of {} numbers, {total} distractors of {}",
                probes.embeddings.len(),
                distractors.embeddings.len()
            ),
            format!("some of both, with embeddings of {dimension}"),
            "name the folders of both sets",
        ));
    }
    Ok(())
}

/// The scores of every photo with those of the same person.
fn mates(product: &mut dyn Product, probes: &Probes, sizes: usize) -> Result<Vec<Searches>> {
    let mut searches: Vec<Searches> =
        probes.people.iter().map(|_| Searches { mates: Vec::new(), beaten: Vec::new() }).collect();
    let all = &probes.embeddings;
    product.for_each_block(all, all, &mut |block: Block<'_>| {
        let rows: Vec<(usize, &[f32])> = block.rows().collect();
        let people = probes.people.get(block.column..block.column + block.columns).unwrap_or_default();
        let of_block = searches.get_mut(block.row..block.row + rows.len()).unwrap_or_default();
        of_block.par_iter_mut().zip(&rows).for_each(|(search, (row, scores))| {
            let person = probes.people.get(*row);
            let others = (block.column..).zip(people.iter().zip(*scores));
            let same = others.filter(|(column, (other, _))| Some(*other) == person && column != row);
            search.mates.extend(same.map(|(column, (_, score))| (*score, column as u32)));
        });
        Ok(())
    })?;
    searches.par_iter_mut().for_each(|search| {
        search.mates.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        search.beaten = vec![vec![0; search.mates.len()]; sizes];
    });
    Ok(searches)
}

/// The parts of `positions` that are new at each size of the set, with the number of the size, as ranges from the first
/// position.
fn pieces(positions: &Range<usize>, sizes: &[usize]) -> Vec<(usize, Range<usize>)> {
    let starts = std::iter::once(0).chain(sizes.iter().copied());
    let pieces = starts.zip(sizes).enumerate().filter_map(|(number, (from, &to))| {
        let (from, to) = (from.max(positions.start), to.min(positions.end));
        (from < to).then(|| (number, from - positions.start..to - positions.start))
    });
    pieces.collect()
}

impl Searches {
    /// Counts the scores of `piece` among the mates', for the set of number `size`.
    fn count(&mut self, size: usize, scores: &[f32], reachable: &[bool], piece: Range<usize>) {
        let Some(&(lowest, _)) = self.mates.first() else { return };
        let Some(beaten) = self.beaten.get_mut(size) else { return };
        let scores = scores.get(piece.clone()).unwrap_or_default();
        let reachable = reachable.get(piece).unwrap_or_default();
        // Nearly all distractors are below all mates.
        for (&score, _) in
            scores.iter().zip(reachable).filter(|&(&score, &reachable)| reachable && score >= lowest)
        {
            let mates = self.mates.partition_point(|(mate, _)| *mate <= score);
            if let Some(count) = mates.checked_sub(1).and_then(|last| beaten.get_mut(last)) {
                *count += 1;
            }
        }
    }

    /// For each size, how many distractors are at least as good as each mate.
    fn better(&self) -> Vec<Vec<u64>> {
        let mut sums = vec![0; self.mates.len()];
        let add = |beaten: &Vec<u32>| {
            let mut above = 0;
            for (sum, &count) in sums.iter_mut().zip(beaten).rev() {
                above += u64::from(count);
                *sum += above;
            }
            sums.clone()
        };
        self.beaten.iter().map(add).collect()
    }
}

fn identified(searches: &[Searches], sizes: &[usize]) -> Vec<Identified> {
    let better: Vec<Vec<Vec<u64>>> = searches.par_iter().map(Searches::better).collect();
    let of_size = |(number, &size): (usize, &usize)| {
        let mut better: Vec<u64> =
            better.iter().filter_map(|search| search.get(number)).flatten().copied().collect();
        better.par_sort_unstable();
        let at = |rank: usize| {
            better.partition_point(|&better| better < rank as u64) as f64 / better.len().max(1) as f64
        };
        Identified {
            distractors: size,
            rank_1: at(1),
            rank_10: at(10),
            cmc: ranks(size + 1).into_iter().map(|rank| (rank, at(rank))).collect(),
        }
    };
    sizes.iter().enumerate().map(of_size).collect()
}

/// 1, 2, ... 10, 20, ... 100, 200, ..., and `last`.
fn ranks(last: usize) -> Vec<usize> {
    let decades = (0..).map(|power| 10_usize.saturating_pow(power)).take_while(|decade| *decade < last);
    let ranks = decades.flat_map(|decade| (1..10).map(move |digit| digit * decade));
    ranks.filter(|&rank| rank < last).chain([last]).collect()
}

/// The highest of many scores.
struct Highest {
    most: usize,
    scores: Vec<f32>,
    /// Scores up to this one are not among the highest.
    floor: f32,
}

impl Highest {
    fn new(most: usize) -> Self {
        Self { most: most.max(1), scores: Vec::new(), floor: f32::NEG_INFINITY }
    }

    fn add(&mut self, rows: &[(usize, &[f32])], reachable: &[bool]) {
        let floor = self.floor;
        let above = |(_, scores): &(usize, &[f32])| -> Vec<f32> {
            let scores = scores.iter().zip(reachable);
            scores
                .filter(|&(&score, &reachable)| reachable && score > floor)
                .map(|(score, _)| *score)
                .collect()
        };
        let found: Vec<Vec<f32>> = rows.par_iter().map(above).collect();
        found.into_iter().for_each(|scores| self.scores.extend(scores));
        if self.scores.len() > 4 * self.most {
            self.cut();
        }
    }

    fn cut(&mut self) {
        if self.scores.len() > self.most {
            let (_, lowest, _) = self.scores.select_nth_unstable_by(self.most - 1, |a, b| b.total_cmp(a));
            self.floor = *lowest;
            self.scores.truncate(self.most);
        }
    }

    /// Descending.
    fn sorted(mut self) -> Vec<f32> {
        self.cut();
        self.scores.sort_unstable_by(|a, b| b.total_cmp(a));
        self.scores
    }
}

#[cfg(test)]
mod tests;
