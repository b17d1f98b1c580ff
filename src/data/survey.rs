//! What a data set is, at a glance: its index is read, and of its images only a sample.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::Serialize;

use super::doctor::{Balance, Look};
use super::recordio::StoredRecords;
use super::stored::{Source, Stored};
use super::{VerificationSet, bin, has_extension, probe};
use crate::{Error, Result};

/// How many images are decoded, evenly spread over the data set.
const SAMPLE: usize = 256;

/// Where labels can only be had from the images' records, those of so many are read.
const LABELS: usize = 200_000;

/// How many names are given.
const NAMES: usize = 5;

/// What a data set is.
#[derive(Debug, Default, Serialize)]
pub struct Survey {
    /// `folder`, `insightface`, `im2rec` or `verification`.
    pub kind: &'static str,
    /// Its files and their lengths; of a folder none, there are too many.
    pub files: Vec<(PathBuf, u64)>,
    /// The number of images.
    pub images: usize,
    /// The number of classes; `None` where that is not known without reading all labels.
    pub classes: Option<usize>,
    /// How the first record spells its label.
    pub label: Option<String>,
    /// What `property` says.
    pub property: Option<String>,
    /// Images a class.
    pub spread: Option<Spread>,
    /// Whether all labels were read for that; where not, it stands for the part that was.
    pub all_labels: bool,
    /// Pairs of one person and of two.
    pub pairs: Option<[usize; 2]>,
    /// The protocol of a verification set's pickle.
    pub pickle: Option<u8>,
    /// What the sampled images are.
    pub sample: Sample,
    /// The names of the first identities, or else the keys of the first records.
    pub names: Vec<String>,
    /// Files that are not part of the data set.
    pub skipped: usize,
    /// Faults in the structure that were passed over.
    pub faults: usize,
}

/// What a sample of the images is.
#[derive(Debug, Default, Serialize)]
pub struct Sample {
    /// The number of images in it.
    pub images: usize,
    /// Their mean length as stored, in bytes.
    pub mean_bytes: u64,
    /// How many have which size, `HxW`, the most frequent first.
    pub sizes: Vec<(String, usize)>,
    /// How many have which format.
    pub formats: BTreeMap<&'static str, usize>,
    /// How many have no colour.
    pub grey: usize,
    /// How many cannot be decoded.
    pub undecodable: usize,
}

/// Images a class.
#[derive(Debug, Serialize)]
pub struct Spread {
    /// Least, median, largest and how they are spread.
    pub balance: Balance,
    /// How many classes have from..=to images.
    pub histogram: Vec<Bin>,
}

/// A bar of a histogram.
#[derive(Debug, Serialize)]
pub struct Bin {
    /// The least number of images.
    pub from: usize,
    /// The largest.
    pub to: usize,
    /// How many classes have so many.
    pub classes: usize,
}

impl Survey {
    /// Looks at what is at `path`: a folder of identity folders, a `.rec` file, a folder with `train.rec`, or
    /// a `.bin` verification set.
    ///
    /// # Errors
    /// Where it is none of these.
    pub fn of(path: &Path) -> Result<Self> {
        if has_extension(path, "bin") {
            return Self::of_set(path);
        }
        let mut faults = 0;
        let source = Source::open(path, &mut |_| {
            faults += 1;
            Ok(())
        })?;
        let mut survey = match &source {
            Source::Folder(folder) => {
                let labels = |index: usize| Stored::label(folder, index).ok();
                let mut survey = Self { kind: "folder", all_labels: true, ..Self::default() };
                survey.spread_labels((0..Stored::len(folder)).filter_map(labels));
                survey
            }
            Source::Records(records) => Self::of_records(records)?,
        };
        let stored = source.stored();
        survey.images = stored.len();
        survey.sample = Sample::of(stored);
        survey.skipped = source.skipped().len();
        survey.faults = faults;
        let names =
            (0..survey.classes.unwrap_or(0).min(NAMES) as u32).filter_map(|label| stored.identity(label));
        survey.names = names.collect();
        if let (Source::Records(records), true) = (&source, survey.names.is_empty()) {
            let entries = (0..survey.images.min(NAMES)).filter_map(|index| records.entry(index).ok());
            survey.names =
                entries.map(|entry| format!("key {} at byte {}", entry.key, entry.offset)).collect();
        }
        Ok(survey)
    }

    fn of_records(records: &StoredRecords) -> Result<Self> {
        let path = records.file().path();
        let kind = if records.is_insightface() { "insightface" } else { "im2rec" };
        let mut survey = Self { kind, ..Self::default() };
        survey.files.push((path.to_path_buf(), length(path)?));
        let index = path.with_extension("idx");
        if let Ok(length) = length(&index) {
            survey.files.push((index, length));
        }
        if let Some(property) = records.property() {
            let place = path.with_file_name("property");
            survey.files.push((place.clone(), length(&place)?));
            survey.property = Some(format!("{},{},{}", property.classes, property.size[0], property.size[1]));
        }
        survey.label = (0..Stored::len(records)).find_map(|index| records.label_flag(index).ok()).map(
            |flag| match flag {
                0 => "in the header".to_owned(),
                1 => "1 behind the header".to_owned(),
                count => format!("the first of {count} behind the header"),
            },
        );
        let identities = records.identity_records();
        if identities.is_empty() {
            let all = Stored::len(records);
            survey.all_labels = all <= LABELS;
            let step = all.div_ceil(LABELS).max(1);
            let labels: Vec<u32> = (0..all.div_ceil(step))
                .into_par_iter()
                .filter_map(|at| Stored::label(records, at * step).ok())
                .collect();
            survey.spread_labels(labels.into_iter());
        } else {
            survey.all_labels = true;
            let counts: Vec<usize> = identities
                .par_iter()
                .map(|&entry| records.images_of(entry).map_or(0, |count| count as usize))
                .collect();
            survey.classes = Some(counts.len());
            survey.spread = Spread::of(&counts);
        }
        Ok(survey)
    }

    fn of_set(path: &Path) -> Result<Self> {
        let set = VerificationSet::open_bin(path)?;
        let mut start = [0; 2];
        let read = std::fs::File::open(path)
            .and_then(|mut file| std::io::Read::read(&mut file, &mut start))
            .map_err(|source| Error::io(path, source))?;
        let same = set.issame.iter().filter(|&&same| same).count();
        Ok(Self {
            kind: "verification",
            files: vec![(path.to_path_buf(), length(path)?)],
            images: set.images.len(),
            pairs: Some([same, set.issame.len() - same]),
            pickle: Some(bin::protocol(start.get(..read).unwrap_or_default())),
            sample: Sample::of(&set),
            ..Self::default()
        })
    }

    /// Counts `labels`.
    fn spread_labels(&mut self, labels: impl Iterator<Item = u32>) {
        let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
        for label in labels {
            *counts.entry(label).or_default() += 1;
        }
        if self.all_labels {
            self.classes = Some(counts.last_key_value().map_or(0, |(&label, _)| label as usize + 1));
        }
        self.spread = Spread::of(&counts.into_values().collect::<Vec<_>>());
    }
}

impl Spread {
    /// Of classes with these numbers of images.
    fn of(counts: &[usize]) -> Option<Self> {
        let balance = Balance::of(counts.iter().copied())?;
        // 1, 2, 3-4, 5-8, ...: each bar twice as wide as the one before.
        let bin = |count: usize| count.next_power_of_two().ilog2();
        let mut bins: BTreeMap<u32, usize> = BTreeMap::new();
        for &count in counts.iter().filter(|&&count| count > 0) {
            *bins.entry(bin(count)).or_default() += 1;
        }
        let (first, last) = (bin(balance.min), bin(balance.max));
        let histogram = (first..=last).map(|bin| Bin {
            from: if bin == 0 { 1 } else { (1 << (bin - 1)) + 1 },
            to: 1 << bin,
            classes: bins.get(&bin).copied().unwrap_or(0),
        });
        Some(Self { balance, histogram: histogram.collect() })
    }
}

impl Sample {
    fn of(stored: &dyn Stored) -> Self {
        let all = stored.len();
        let step = all.div_ceil(SAMPLE).max(1);
        let looks: Vec<_> = (0..all.div_ceil(step))
            .into_par_iter()
            .map(|at| {
                let encoded = stored.encoded(at * step).ok()?;
                Some((encoded.len() as u64, probe::probe(&encoded), Look::of(&encoded)))
            })
            .collect();
        let mut sample = Self { images: looks.len(), ..Self::default() };
        let mut sizes: BTreeMap<[usize; 2], usize> = BTreeMap::new();
        let mut bytes = 0;
        for look in looks {
            let Some((length, probe, look)) = look else {
                sample.undecodable += 1;
                continue;
            };
            bytes += length;
            if let Some(probe) = probe {
                *sizes.entry(probe.size).or_default() += 1;
                *sample.formats.entry(probe::name(probe.format)).or_default() += 1;
            }
            sample.grey += usize::from(look.is_decoded() && look.is_grey());
            sample.undecodable += usize::from(!look.is_decoded());
        }
        sample.mean_bytes = bytes / sample.images.max(1) as u64;
        let mut sizes: Vec<_> = sizes.into_iter().collect();
        sizes.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
        sample.sizes =
            sizes.into_iter().map(|([height, width], count)| (format!("{height}x{width}"), count)).collect();
        sample
    }
}

fn length(path: &Path) -> Result<u64> {
    Ok(std::fs::metadata(path).map_err(|source| Error::io(path, source))?.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_double_and_cover_every_class() {
        let spread = Spread::of(&[1, 2, 3, 4, 5, 8, 9, 16, 0]).unwrap();
        let bins: Vec<_> = spread.histogram.iter().map(|bin| (bin.from, bin.to, bin.classes)).collect();
        assert_eq!(bins, [(1, 1, 1), (2, 2, 1), (3, 4, 2), (5, 8, 2), (9, 16, 2)]);
        let narrow = Spread::of(&[6, 30]).unwrap();
        let bins: Vec<_> = narrow.histogram.iter().map(|bin| (bin.from, bin.to, bin.classes)).collect();
        assert_eq!(bins, [(5, 8, 1), (9, 16, 0), (17, 32, 1)]);
        assert!(Spread::of(&[0]).is_none());
    }
}
