//! The noise lists: photos of FaceScrub that show somebody else, and distractors that show somebody of FaceScrub. The lists
//! are those of InsightFace (`facescrub_noises.txt`, `megaface_noises.txt`).

use std::collections::{HashMap, HashSet};
use std::path::Path;

use rand::Rng;
use rand_pcg::Pcg64Mcg;

use super::{Distractors, Probes};
use crate::{Error, Result};

/// What becomes of noisy photos.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Treatment {
    /// As InsightFace's `remove_noises.py` does, whose numbers papers print. A photo of FaceScrub becomes the sum of the
    /// person's clean photos, with a little noise, and so is found easily; a distractor is put out of reach, and still counts.
    Replace,
    /// They are left out.
    Drop,
}

/// The noise that [`Treatment::Replace`] adds to a centre, uniform from minus this to this.
const JITTER: f32 = 0.001;

/// Reads a list: the last `parts` parts of the path of a photo a line, or behind a tab. Lines that begin with `#` are passed
/// over.
///
/// # Errors
/// A list that cannot be read, or has nothing in it.
pub fn read(path: &Path, parts: usize) -> Result<HashSet<String>> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::io(path, source))?;
    let lines = text.lines().filter(|line| !line.starts_with('#')).map(str::trim);
    let name = |line: &str| ending(line.split('\t').nth(1).unwrap_or(line).trim(), parts);
    let names: HashSet<String> = lines.filter(|line| !line.is_empty()).map(name).collect();
    if names.is_empty() {
        return Err(Error::data(
            path.display().to_string(),
            "no names",
            "a photo a line",
            "use the unaltered list, or leave the option out",
        ));
    }
    Ok(names)
}

/// The last `parts` parts of a path.
pub fn ending(path: &str, parts: usize) -> String {
    let path = path.replace('\\', "/");
    let all: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    all.get(all.len().saturating_sub(parts)..).unwrap_or_default().join("/")
}

/// Applies `treatment` to the probes that are `noisy`.
///
/// # Errors
/// A person all of whose photos are noisy, where they are to be replaced; `name(i)` is that of a photo.
pub fn clean_probes(
    probes: &mut Probes,
    dimension: usize,
    noisy: &[bool],
    treatment: Treatment,
    name: &(dyn Fn(usize) -> String + Sync),
) -> Result<()> {
    if treatment == Treatment::Drop {
        probes.embeddings = kept_rows(&probes.embeddings, dimension, noisy);
        let mut kept = noisy.iter().map(|noisy| !noisy);
        probes.people.retain(|_| kept.next().unwrap_or(true));
        return Ok(());
    }
    let mut centres: HashMap<u32, Vec<f32>> = HashMap::new();
    for ((row, person), _) in
        probes.embeddings.chunks_exact(dimension).zip(&probes.people).zip(noisy).filter(|(_, noisy)| !**noisy)
    {
        let centre = centres.entry(*person).or_insert_with(|| vec![0.0; dimension]);
        centre.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
    }
    let rows = probes.embeddings.chunks_exact_mut(dimension).zip(&probes.people).zip(noisy).enumerate();
    for (at, ((row, person), _)) in rows.filter(|(_, (_, noisy))| **noisy) {
        let Some(centre) = centres.get(person) else {
            return Err(Error::data(
                name(at),
                "a person all of whose photos are on the noise list",
                "a clean photo of everybody, to take the place of noisy ones",
                "leave the person out, or the noisy photos (--noise drop)",
            ));
        };
        // A stream for each photo, so that the others do not matter.
        let mut random = Pcg64Mcg::new(0x6d65_6761_0000_0000 + at as u128);
        for (value, centre) in row.iter_mut().zip(centre) {
            let unit = (random.next_u32() >> 8) as f32 / (1 << 24) as f32;
            *value = centre + JITTER * (2.0 * unit - 1.0);
        }
        super::to_unit_length(row, dimension, &|_| name(at))?;
    }
    Ok(())
}

/// Applies `treatment` to the distractors that are `noisy`.
pub fn clean_distractors(
    distractors: &mut Distractors,
    dimension: usize,
    noisy: &[bool],
    treatment: Treatment,
) {
    match treatment {
        Treatment::Replace => distractors.unreachable = noisy.to_vec(),
        Treatment::Drop => {
            distractors.embeddings = kept_rows(&distractors.embeddings, dimension, noisy);
            let mut kept = noisy.iter().map(|noisy| !noisy);
            distractors.unreachable.retain(|_| kept.next().unwrap_or(true));
        }
    }
}

fn kept_rows(rows: &[f32], dimension: usize, noisy: &[bool]) -> Vec<f32> {
    let rows = rows.chunks_exact(dimension).zip(noisy).filter(|(_, noisy)| !**noisy);
    rows.flat_map(|(row, _)| row).copied().collect()
}
