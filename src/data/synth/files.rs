//! Procedural faces as files: a folder or a record file to train on, who is in it, and a verification set of
//! others.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use super::{SynthConfig, SynthSample, draw};
use crate::data::aside::{AsideFile, AsideFolder};
use crate::data::encode::Encoding;
use crate::data::identities::Identities;
use crate::data::pack::{FaceWriter, Form};
use crate::data::{Image, VerificationSet, has_extension};
use crate::{Error, Result};

/// Takes a picture: its index among those of its identity, what it shows, and its file.
type Take<'a> = &'a mut dyn FnMut(u32, &SynthSample, &[u8]) -> Result<()>;

/// Pictures that are drawn at a time.
const CHUNK: usize = 512;

/// What is written.
#[derive(Debug, Clone)]
pub struct SynthFiles {
    /// Who is drawn.
    pub config: SynthConfig,
    /// How the pictures are encoded.
    pub encoding: Encoding,
    /// The number of pairs of the verification set; 0 for none.
    pub pairs: u32,
    /// Whether a record file that is there is replaced.
    pub replace: bool,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SynthWritten {
    /// The number of pictures to train on.
    pub images: usize,
    /// How many of them are hard.
    pub hard: usize,
    /// How many of them show another than their label says.
    pub mislabelled: usize,
    /// The folder, or the record file with what belongs to it.
    pub files: Vec<PathBuf>,
    /// The verification set.
    pub verification: Option<PathBuf>,
}

impl SynthFiles {
    /// Draws everything on all threads and writes it: to a record file if the name of `out` ends in `.rec`,
    /// else to a folder of one folder an identity. `truth.csv` says who is in each picture; the verification
    /// set, `verification.bin`, shows the people that follow those of the training set. `progress` is called
    /// with the number of pictures done.
    ///
    /// # Errors
    /// [`Error::Usage`] where there is nothing to draw, people are numbered beyond 2^32, or `out` is there;
    /// [`Error::Io`].
    pub fn write(&self, out: &Path, progress: &(dyn Fn(usize) + Sync)) -> Result<SynthWritten> {
        let config = &self.config;
        let [height, width] = config.size;
        if config.identities == 0 || config.images_per_identity == 0 || height == 0 || width == 0 {
            return Err(Error::usage(
                "there is nothing to draw",
                "give at least one identity, image and pixel",
            ));
        }
        let people =
            u64::from(config.first_identity) + u64::from(config.identities) + u64::from(self.others());
        if people > u64::from(u32::MAX) {
            return Err(Error::usage(
                format!("people up to number {people}"),
                "--first-identity and --identities may come to 2^32 at most",
            ));
        }
        if has_extension(out, "rec") {
            self.write_records(out, progress)
        } else {
            self.write_folder(out, progress)
        }
    }

    /// How many pictures are drawn.
    pub fn total(&self) -> usize {
        let pairs = self.pairs as usize;
        self.config.identities as usize * self.config.images_per_identity as usize + 2 * pairs
    }

    fn write_folder(&self, out: &Path, progress: &(dyn Fn(usize) + Sync)) -> Result<SynthWritten> {
        let folder = AsideFolder::create(out)?;
        let extension = self.encoding.extension();
        let mut truth = Truth::default();
        for label in 0..self.config.identities {
            let place = folder.writing_at().join(self.name(label));
            std::fs::create_dir(&place).map_err(|source| Error::io(&place, source))?;
        }
        self.draw(progress, &mut |index, sample, encoded| {
            let name = format!("{}/{index:04}.{extension}", self.name(sample.label));
            let path = folder.writing_at().join(&name);
            std::fs::write(&path, encoded).map_err(|source| Error::io(&path, source))?;
            truth.add(&name, sample);
            Ok(())
        })?;
        let path = folder.writing_at().join("truth.csv");
        std::fs::write(&path, &truth.text).map_err(|source| Error::io(&path, source))?;
        let verification = Path::new("verification.bin");
        let has_set = self.write_set(&folder.writing_at().join(verification), progress)?;
        folder.publish()?;
        Ok(truth.written(vec![out.to_path_buf()], has_set.then(|| out.join(verification))))
    }

    fn write_records(&self, out: &Path, progress: &(dyn Fn(usize) + Sync)) -> Result<SynthWritten> {
        let config = &self.config;
        let beside = |name: &str| match out.file_name() {
            Some(file) if file == "train.rec" => out.with_file_name(name),
            _ => out.with_extension(name),
        };
        let mut writer =
            FaceWriter::create(out, Form::InsightFace, config.identities as usize, self.replace)?;
        let mut truth_file = AsideFile::create(&beside("truth.csv"), self.replace)?;
        let mut truth = Truth::default();
        let mut key = 0_u64;
        self.draw(progress, &mut |_, sample, encoded| {
            key += 1;
            truth.add(&key.to_string(), sample);
            writer.push(sample.label, encoded, config.size)
        })?;
        let mut names = Identities::default();
        (0..config.identities).for_each(|label| names.insert(label, self.name(label)));
        truth_file.write(truth.text.as_bytes())?;
        let truth_file = truth_file.seal()?;
        let verification = beside("verification.bin");
        let has_set = self.write_set(&verification, progress)?;
        let (_, _, mut files) = writer.finish(&names)?;
        truth_file.publish()?;
        files.push(beside("truth.csv"));
        Ok(truth.written(files, has_set.then_some(verification)))
    }

    /// What the folder of a class is called: by the person's number among all of the seed.
    fn name(&self, label: u32) -> String {
        format!("p{:06}", u64::from(self.config.first_identity) + u64::from(label))
    }

    /// Draws all samples, identity by identity, and gives each to `take` with its index and its file.
    fn draw(&self, progress: &(dyn Fn(usize) + Sync), take: Take<'_>) -> Result<()> {
        let config = &self.config;
        let each = u64::from(config.images_per_identity);
        let all = u64::from(config.identities) * each;
        let done = AtomicUsize::new(0);
        for start in (0..all).step_by(CHUNK) {
            let drawn: Vec<Result<_>> = (start..(start + CHUNK as u64).min(all))
                .into_par_iter()
                .map(|at| {
                    let (identity, index) = ((at / each) as u32, (at % each) as u32);
                    let sample = draw(config, identity, index);
                    let encoded = encode(&sample, config.size, self.encoding)?;
                    progress(done.fetch_add(1, Ordering::Relaxed) + 1);
                    Ok((index, sample, encoded))
                })
                .collect();
            for drawn in drawn {
                let (index, sample, encoded) = drawn?;
                take(index, &sample, &encoded)?;
            }
        }
        Ok(())
    }

    /// How many people the verification set shows: each in about twenty pairs.
    fn others(&self) -> u32 {
        if self.pairs == 0 { 0 } else { self.pairs.div_ceil(20).max(4) }
    }

    /// Writes the verification set if there is to be one: pairs of one person and of two in turn, so that
    /// every tenth has both, of people that the training set does not show. None is hard.
    fn write_set(&self, path: &Path, progress: &(dyn Fn(usize) + Sync)) -> Result<bool> {
        if self.pairs == 0 {
            return Ok(false);
        }
        let people = self.others();
        let config = SynthConfig {
            first_identity: self.config.first_identity + self.config.identities,
            identities: people,
            hard_share: 0.0,
            mislabelled_share: 0.0,
            ..self.config.clone()
        };
        let done = AtomicUsize::new(self.total() - 2 * self.pairs as usize);
        let images: Result<Vec<Arc<[u8]>>> = (0..self.pairs)
            .into_par_iter()
            .flat_map_iter(|pair| pair_of(pair, people))
            .map(|(person, index)| {
                let encoded = encode(&draw(&config, person, index), config.size, self.encoding)?;
                progress(done.fetch_add(1, Ordering::Relaxed) + 1);
                Ok(encoded.into())
            })
            .collect();
        let issame = (0..self.pairs).map(|pair| pair % 2 == 0).collect();
        VerificationSet { name: "verification".to_owned(), images: images?, issame }
            .write_bin(path, self.replace)?;
        Ok(true)
    }
}

/// The two (person, index) of a pair: of one person where it is even, else of two. No picture occurs twice.
fn pair_of(pair: u32, people: u32) -> [(u32, u32); 2] {
    let round = pair / 2;
    let (person, turn) = (round % people, round / people);
    let other = if pair.is_multiple_of(2) { person } else { (person + 1 + turn % (people - 1)) % people };
    // Four pictures of each person a turn: two for the pair of one, two for the pairs with others.
    let first = 4 * turn + 2 * (pair % 2);
    [(person, first), (other, first + 1)]
}

fn encode(sample: &SynthSample, [height, width]: [usize; 2], encoding: Encoding) -> Result<Vec<u8>> {
    encoding.encode(&Image { rgb: sample.rgb.clone(), height, width })
}

/// Who is in the pictures.
struct Truth {
    text: String,
    images: usize,
    hard: usize,
    mislabelled: usize,
}

impl Default for Truth {
    fn default() -> Self {
        Self { text: "image,label,shown,hard\n".to_owned(), images: 0, hard: 0, mislabelled: 0 }
    }
}

impl Truth {
    fn add(&mut self, name: &str, sample: &SynthSample) {
        let SynthSample { label, shown_identity, hard, .. } = *sample;
        self.text += &format!("{name},{label},{shown_identity},{}\n", u8::from(hard));
        self.images += 1;
        self.hard += usize::from(hard);
        self.mislabelled += usize::from(label != shown_identity);
    }

    fn written(self, files: Vec<PathBuf>, verification: Option<PathBuf>) -> SynthWritten {
        let Self { images, hard, mislabelled, .. } = self;
        SynthWritten { images, hard, mislabelled, files, verification }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_picture_is_in_two_pairs_and_people_meet_many_others() {
        for (pairs, people) in [(1, 4), (81, 5), (6000, 300)] {
            let all: Vec<_> = (0..pairs).map(|pair| pair_of(pair, people)).collect();
            let distinct: HashSet<_> = all.iter().flatten().collect();
            assert_eq!(distinct.len(), 2 * all.len());
            for (pair, [a, b]) in all.iter().enumerate() {
                assert_eq!(a.0 == b.0, pair % 2 == 0);
                assert!(a.0 < people && b.0 < people);
            }
        }
    }
}
