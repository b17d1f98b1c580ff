//! Writing verification sets as pickles of protocol 3: what Python 3 reads with and without
//! `encoding="bytes"`.

use std::collections::HashMap;
use std::path::Path;

use super::VerificationSet;
use crate::data::aside::AsideFile;
use crate::{Error, Result};

// The instructions of the stack machine that are needed here.
const PROTOCOL: [u8; 2] = [0x80, 3];
const EMPTY_LIST: &[u8] = b"]";
const MARK: &[u8] = b"(";
const APPENDS: &[u8] = b"e";
const BYTES: u8 = b'B';
const PUT: u8 = b'r';
const GET: u8 = b'j';
const TRUE: u8 = 0x88;
const FALSE: u8 = 0x89;
const PAIR_END: [u8; 2] = [0x86, b'.'];

impl VerificationSet {
    /// Writes the set as a `.bin` file at `path`: aside, synced, then renamed. Images that are shared are
    /// written once.
    ///
    /// # Errors
    /// [`Error::Usage`] where `path` exists and is not to be replaced; an image of 4 GiB or more;
    /// [`Error::Io`].
    pub fn write_bin(&self, path: &Path, replace: bool) -> Result<()> {
        let mut file = AsideFile::create(path, replace)?;
        file.write(&PROTOCOL)?;
        file.write(EMPTY_LIST)?;
        file.write(MARK)?;
        // Images by where their bytes are, with their numbers in the pickle's memory.
        let mut known: HashMap<*const u8, u32> = HashMap::new();
        for (at, image) in self.images.iter().enumerate() {
            let next = known.len() as u32;
            if let Some(number) = known.get(&image.as_ptr()).filter(|_| !image.is_empty()) {
                file.write(&[&[GET][..], &number.to_le_bytes()].concat())?;
                continue;
            }
            let length = u32::try_from(image.len()).map_err(|_| {
                let place = format!("{}, image {at}", self.name);
                Error::data(place, format!("{} bytes", image.len()), "less than 4 GiB", "leave the image out")
            })?;
            file.write(&[BYTES])?;
            file.write(&length.to_le_bytes())?;
            file.write(image)?;
            if !image.is_empty() {
                file.write(&[&[PUT][..], &next.to_le_bytes()].concat())?;
                known.insert(image.as_ptr(), next);
            }
        }
        file.write(APPENDS)?;
        file.write(EMPTY_LIST)?;
        file.write(MARK)?;
        let booleans: Vec<u8> = self.issame.iter().map(|&same| if same { TRUE } else { FALSE }).collect();
        file.write(&booleans)?;
        file.write(APPENDS)?;
        file.write(&PAIR_END)?;
        file.seal()?.publish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            images in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..5),
            pairs in prop::collection::vec((any::<usize>(), any::<usize>(), any::<bool>()), 1..12),
        ) {
            let images: Vec<Arc<[u8]>> = images.into_iter().map(Into::into).collect();
            let pick = |at: usize| Arc::clone(&images[at % images.len()]);
            let set = VerificationSet {
                name: "mine".to_owned(),
                images: pairs.iter().flat_map(|&(a, b, _)| [pick(a), pick(b)]).collect(),
                issame: pairs.iter().map(|&(_, _, same)| same).collect(),
            };
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("mine.bin");
            set.write_bin(&path, false).unwrap();
            let read = VerificationSet::open_bin(&path).unwrap();
            prop_assert_eq!(&read, &set);
            // Shared images stay shared, and the file holds them once.
            for (a, b) in [(0, 1), (0, set.images.len() - 1)] {
                let shared = |set: &VerificationSet| Arc::ptr_eq(&set.images[a], &set.images[b]);
                prop_assert!(shared(&read) == shared(&set) || set.images[a].is_empty());
            }
            prop_assert!(set.write_bin(&path, false).is_err());
        }
    }
}
