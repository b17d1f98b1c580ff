//! Record files and verification sets into folders of images.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use super::aside::AsideFolder;
use super::identities::{self, Identities};
use super::recordio::StoredRecords;
use super::stored::Stored;
use super::{VerificationSet, probe};
use crate::{Error, Result};

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpacked {
    /// The number of image files.
    pub images: usize,
    /// The number of identities with images, or of pairs.
    pub groups: usize,
    /// What was left out, and why.
    pub left_out: Vec<String>,
    /// Identities whose name cannot be a folder's and whose label stands for it.
    pub renamed: usize,
}

/// Writes the images of `records` into the folder `out`, one folder an identity, as they are, and
/// `identities.tsv`, which keeps the labels. `progress` is called with the number of images done, from any
/// thread.
///
/// # Errors
/// A folder that is there and not empty; unless they are to be left out, records that cannot be read and
/// images in no known format; [`Error::Io`].
pub fn unpack_records(
    records: &StoredRecords,
    out: &Path,
    skip_damaged: bool,
    progress: &(dyn Fn(usize) + Sync),
) -> Result<Unpacked> {
    let folder = AsideFolder::create(out)?;
    let labels: Vec<Result<u32>> =
        (0..records.len()).into_par_iter().map(|index| records.label(index)).collect();
    let mut left_out = Vec::new();
    let mut images: Vec<(usize, u32)> = Vec::with_capacity(labels.len());
    for (index, label) in labels.into_iter().enumerate() {
        match label {
            Ok(label) => images.push((index, label)),
            Err(error) if skip_damaged => left_out.push(error.to_string()),
            Err(error) => return Err(error),
        }
    }
    let counted = images.iter().map(|&(_, label)| label as usize + 1).max().unwrap_or(0);
    let property = records.property().map_or(0, |property| property.classes.min(1 << 24));
    let classes = counted.max(records.identity_records().len()).max(property);
    let Names { folders, renamed } = Names::of(records, classes);

    let present: HashSet<u32> = images.iter().map(|&(_, label)| label).collect();
    let name_of = |label: u32| folders.name(label).unwrap_or_default();
    for &label in &present {
        let place = folder.writing_at().join(name_of(label));
        std::fs::create_dir_all(&place).map_err(|source| Error::io(&place, source))?;
    }
    let digits = digits(records.len());
    let done = AtomicUsize::new(0);
    let written: Vec<Result<()>> = images
        .par_iter()
        .map(|&(index, label)| {
            let name = format!("{index:0digits$}");
            let written = write_image(
                &records.encoded(index)?,
                &folder.writing_at().join(name_of(label)),
                &name,
                &|| records.name(index),
            );
            progress(done.fetch_add(1, Ordering::Relaxed) + 1);
            written.map(drop)
        })
        .collect();
    let mut count = 0;
    for result in written {
        match result {
            Ok(()) => count += 1,
            Err(error @ Error::Data { .. }) if skip_damaged => left_out.push(error.to_string()),
            Err(error) => return Err(error),
        }
    }
    let list = folder.writing_at().join(identities::FILE);
    std::fs::write(&list, folders.to_text()).map_err(|source| Error::io(&list, source))?;
    folder.publish()?;
    Ok(Unpacked { images: count, groups: present.len(), left_out, renamed })
}

/// What the folders of the classes are called.
struct Names {
    folders: Identities,
    renamed: usize,
}

impl Names {
    fn of(records: &StoredRecords, classes: usize) -> Self {
        let digits = digits(classes);
        let names: Vec<Option<String>> = (0..classes as u32).map(|label| records.identity(label)).collect();
        // Not every file system tells upper from lower case.
        let mut uses: HashMap<String, usize> = HashMap::new();
        for name in names.iter().flatten() {
            *uses.entry(name.to_lowercase()).or_default() += 1;
        }
        let mut folders = Identities::default();
        let mut renamed = 0;
        for (label, name) in (0..).zip(names) {
            let usable = name
                .as_ref()
                .filter(|name| is_folder_name(name) && uses.get(&name.to_lowercase()) == Some(&1));
            if let Some(name) = usable {
                folders.insert(label, name);
                continue;
            }
            renamed += usize::from(name.is_some());
            let mut substitute = format!("{label:0digits$}");
            while uses.contains_key(&substitute) {
                substitute.insert(0, '0');
            }
            folders.insert(label, substitute);
        }
        Self { folders, renamed }
    }
}

/// Whether `name` can name a folder on every system, which the reader of folders takes for an identity, and
/// leads nowhere else.
fn is_folder_name(name: &str) -> bool {
    const RESERVED: [&str; 4] = ["con", "prn", "aux", "nul"];
    // What is no identity to the reader of folders, and what is written beside the folders.
    const OTHERWISE: [&str; 3] = ["thumbs.db", "desktop.ini", identities::FILE];
    let stem = name.split('.').next().unwrap_or_default().to_lowercase();
    let is_port = |port: &str| stem.strip_prefix(port).is_some_and(|rest| rest.len() == 1);
    let foreign = |c: char| c.is_control() || "/\\:*?\"<>|".contains(c);
    !name.is_empty()
        && name.len() <= 200
        && !name.starts_with(['.', '@', ' '])
        && !name.starts_with("__")
        && !name.ends_with(['.', ' '])
        && !name.contains(foreign)
        && !RESERVED.contains(&stem.as_str())
        && !OTHERWISE.contains(&name.to_lowercase().as_str())
        && !is_port("com")
        && !is_port("lpt")
}

/// Digits with which all numbers below `count` have the same length.
fn digits(count: usize) -> usize {
    count.saturating_sub(1).to_string().len().max(4)
}

/// Writes `encoded` into `folder` under `name` and the extension of its format, and returns the file's name.
fn write_image(encoded: &[u8], folder: &Path, name: &str, place: &dyn Fn() -> String) -> Result<String> {
    let Some(extension) = probe::extension(encoded) else {
        return Err(Error::data(
            place(),
            "bytes that are no image of a known format",
            "a JPEG, PNG, BMP, PGM or WebP image",
            "leave such records out with --skip-damaged",
        ));
    };
    let file = format!("{name}.{extension}");
    let path = folder.join(&file);
    std::fs::write(&path, encoded).map_err(|source| Error::io(&path, source))?;
    Ok(file)
}

/// Writes the images of `set` into `out/images` and the list of its pairs as `out/pairs.txt`. An image that
/// several pairs share is written once.
///
/// # Errors
/// A folder that is there and not empty; unless they are to be left out with their pairs, images in no known
/// format; [`Error::Io`].
pub fn unpack_set(
    set: &VerificationSet,
    out: &Path,
    skip_damaged: bool,
    progress: &mut dyn FnMut(usize),
) -> Result<Unpacked> {
    let folder = AsideFolder::create(out)?;
    let images = folder.writing_at().join("images");
    std::fs::create_dir_all(&images).map_err(|source| Error::io(&images, source))?;
    let digits = digits(set.images.len());
    // `None`: it was left out.
    let mut known: HashMap<*const u8, Option<String>> = HashMap::new();
    let mut left_out = Vec::new();
    let mut list = String::new();
    let mut pairs = 0;
    for (pair, (two, same)) in set.images.chunks_exact(2).zip(&set.issame).enumerate() {
        let mut files = Vec::with_capacity(2);
        for (at, image) in (2 * pair..).zip(two) {
            let file = match known.get(&Arc::as_ptr(image).cast()) {
                Some(file) => file.clone(),
                None => {
                    let place = || format!("{}, image {at}", set.name);
                    let file = match write_image(image, &images, &format!("{at:0digits$}"), &place) {
                        Ok(file) => Some(file),
                        Err(error @ Error::Data { .. }) if skip_damaged => {
                            left_out.push(error.to_string());
                            None
                        }
                        Err(error) => return Err(error),
                    };
                    known.insert(Arc::as_ptr(image).cast(), file.clone());
                    file
                }
            };
            files.extend(file);
        }
        if let [first, second] = files.as_slice() {
            list += &format!("images/{first}\timages/{second}\t{}\n", u8::from(*same));
            pairs += 1;
        }
        progress(pair + 1);
    }
    let path = folder.writing_at().join("pairs.txt");
    std::fs::write(&path, list).map_err(|source| Error::io(&path, source))?;
    folder.publish()?;
    let count = known.values().flatten().count();
    Ok(Unpacked { images: count, groups: pairs, left_out, renamed: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_names_are_safe_on_every_system() {
        for name in ["s1", "Anna Karenina", "n000002", "Žižek", "a.b", "comrade", "0"] {
            assert!(is_folder_name(name), "{name}");
        }
        for name in [
            "",
            ".",
            "..",
            ".x",
            "@eaDir",
            "__MACOSX",
            "a/b",
            "a\\b",
            "c:",
            "a\nb",
            "a.",
            "a ",
            " a",
            "CON",
            "nul.txt",
            "com1",
            "LPT9.x",
            "Thumbs.db",
            "identities.tsv",
        ] {
            assert!(!is_folder_name(name), "{name:?}");
        }
        assert!(!is_folder_name(&"x".repeat(201)));
        assert_eq!([digits(0), digits(10_000), digits(10_001)], [4, 4, 5]);
    }
}
