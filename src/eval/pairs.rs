//! A set of image pairs to verify, from wherever the images come.

use std::borrow::Cow;
use std::path::Path;

use rayon::prelude::*;

use crate::data::{Image, VerificationSet};
use crate::eval::cached::{CachedEmbedder, Pictures};
use crate::eval::embedder::Embedder;
use crate::eval::verify::{VerificationReport, check_pairs, verify};
use crate::{Error, Result};

/// Pairs of images, and whether each pair is of one person.
pub struct PairSet {
    name: String,
    images: Images,
    /// The images of each pair; `None` where images `2i` and `2i + 1` are pair `i`.
    pairs: Option<Vec<[usize; 2]>>,
    issame: Vec<bool>,
}

enum Images {
    Encoded(VerificationSet),
    Decoded(Vec<Image>),
}

impl PairSet {
    /// A verification set file (`lfw.bin`).
    pub fn open_bin(path: &Path) -> Result<Self> {
        Ok(Self::encoded(VerificationSet::open_bin(path)?))
    }

    /// A text file of two paths and 0 or 1 a line.
    pub fn open_pairs(path: &Path) -> Result<Self> {
        Ok(Self::encoded(VerificationSet::open_pairs(path)?))
    }

    fn encoded(set: VerificationSet) -> Self {
        Self { name: set.name.clone(), issame: set.issame.clone(), pairs: None, images: Images::Encoded(set) }
    }

    /// Images in memory, two a pair.
    pub fn from_images(name: impl Into<String>, images: Vec<Image>, issame: Vec<bool>) -> Self {
        Self { name: name.into(), images: Images::Decoded(images), pairs: None, issame }
    }

    /// Images in memory, of which each may be in many pairs: `pairs[i]` are the indices of pair `i`. An image is embedded
    /// once, whatever the number of its pairs.
    ///
    /// # Errors
    /// [`Error::Data`] for a pair of an image that is not there, and where `issame` does not have as many entries as
    /// there are pairs.
    pub fn from_indices(
        name: impl Into<String>,
        images: Vec<Image>,
        pairs: Vec<[usize; 2]>,
        issame: Vec<bool>,
    ) -> Result<Self> {
        let name = name.into();
        if pairs.len() != issame.len() {
            return Err(Error::data(
                format!("set {name}"),
                format!("{} pairs and {} entries that say whether they match", pairs.len(), issame.len()),
                "one entry a pair",
                "this is a fault of the program that made the set",
            ));
        }
        if let Some(index) = pairs.iter().flatten().find(|&&index| index >= images.len()) {
            return Err(Error::data(
                format!("set {name}"),
                format!("a pair of image {index}"),
                format!("an index below {}, the number of images", images.len()),
                "this is a fault of the program that made the set",
            ));
        }
        Ok(Self { name, images: Images::Decoded(images), pairs: Some(pairs), issame })
    }

    /// The set's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Number of images to embed: two a pair, but where pairs share images each once.
    pub fn images(&self) -> usize {
        match (&self.pairs, &self.images) {
            (Some(_), Images::Decoded(images)) => images.len(),
            _ => self.issame.len() * 2,
        }
    }

    /// Checks that the protocol can be run on the set, as far as its pairs show it.
    ///
    /// # Errors
    /// Too few pairs, or pairs of one kind only.
    pub fn check_pairs(&self) -> Result<()> {
        check_pairs(&self.name, &self.issame)
    }

    /// Checks that the protocol can be run on the set, and decodes every image once at `size` = `[H, W]`, on all cores.
    ///
    /// # Errors
    /// Too few pairs, or pairs of one kind only; the first image that cannot be read, by its number.
    pub fn check(&self, size: [usize; 2]) -> Result<()> {
        self.check_pairs()?;
        let Images::Encoded(set) = &self.images else { return Ok(()) };
        let faults: Vec<Error> =
            (0..self.images()).into_par_iter().filter_map(|index| set.decode(index, size).err()).collect();
        faults.into_iter().next().map_or(Ok(()), Err)
    }

    /// Embeds all images with their mirrored ones and runs the verification protocol. `progress` gets images done.
    pub fn evaluate(
        &self,
        embedder: &mut Embedder,
        progress: &mut dyn FnMut(usize),
    ) -> Result<VerificationReport> {
        let size = embedder.size();
        let embeddings = embedder.embed(self.images(), &|index| self.load(index, size), true, progress)?;
        self.report(&embeddings, embedder.dimension())
    }

    /// The same with embeddings from a cache where it has them. The embedder adds those of mirrored images.
    ///
    /// # Errors
    /// Those of [`Self::evaluate`].
    pub fn evaluate_cached(
        &self,
        embedder: &mut CachedEmbedder<'_>,
        progress: &mut dyn FnMut(usize),
    ) -> Result<VerificationReport> {
        let embeddings = embedder.embed(self, progress)?;
        self.report(&embeddings, embedder.dimension())
    }

    /// The protocol on the embeddings of all images.
    fn report(&self, embeddings: &[f32], dimension: usize) -> Result<VerificationReport> {
        match &self.pairs {
            Some(pairs) => {
                verify(&self.name, &rows_of(embeddings, dimension, pairs), dimension, &self.issame)
            }
            None => verify(&self.name, embeddings, dimension, &self.issame),
        }
    }

    fn missing(&self, images: usize) -> Error {
        Error::data(
            format!("set {}", self.name),
            format!("{images} images"),
            format!("{}, two a pair", self.images()),
            "give two images a pair",
        )
    }
}

impl Pictures for PairSet {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> usize {
        self.images()
    }

    fn stored(&self, index: usize) -> Result<Cow<'_, [u8]>> {
        let (bytes, images) = match &self.images {
            Images::Encoded(set) => (set.images.get(index).map(AsRef::as_ref), set.images.len()),
            Images::Decoded(images) => (images.get(index).map(|image| image.rgb.as_slice()), images.len()),
        };
        bytes.map(Cow::Borrowed).ok_or_else(|| self.missing(images))
    }

    fn load(&self, index: usize, size: [usize; 2]) -> Result<Image> {
        match &self.images {
            Images::Encoded(set) => set.decode(index, size),
            Images::Decoded(images) => images.get(index).cloned().ok_or_else(|| self.missing(images.len())),
        }
    }
}

/// Pairs of the images of `people`, `each` of everybody, numbered person by person: any two images of one person, and for
/// every such pair its first image with one of somebody else, all others taken in turn. With the pairs, whether each is of
/// one person. The pairs of a person stand together, so that the protocol's folds have hardly anybody in common.
pub fn balanced_pairs(people: usize, each: usize) -> (Vec<[usize; 2]>, Vec<bool>) {
    let (mut pairs, mut issame) = (Vec::new(), Vec::new());
    for person in 0..people {
        let two = (0..each).flat_map(|a| (a + 1..each).map(move |b| (a, b)));
        for (turn, (a, b)) in two.enumerate() {
            let first = person * each + a;
            pairs.push([first, person * each + b]);
            issame.push(true);
            if people > 1 {
                let other = (person + 1 + turn % (people - 1)) % people;
                pairs.push([first, other * each + b]);
                issame.push(false);
            }
        }
    }
    (pairs, issame)
}

/// The rows of `embeddings` `[N, dimension]` that `pairs` name, one after the other: `[2 pairs, dimension]`.
fn rows_of(embeddings: &[f32], dimension: usize, pairs: &[[usize; 2]]) -> Vec<f32> {
    let row = |&index: &usize| &embeddings[index * dimension..][..dimension];
    pairs.iter().flatten().flat_map(row).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_that_share_images_name_each_once() {
        let images = vec![Image { rgb: vec![0; 3], height: 1, width: 1 }; 3];
        let make = |pairs: &[[usize; 2]], issame: &[bool]| {
            PairSet::from_indices("x", images.clone(), pairs.to_vec(), issame.to_vec())
        };
        let set = make(&[[0, 1], [0, 2], [1, 2], [2, 1]], &[true, false, false, false]).unwrap();
        assert_eq!(set.images(), 3);
        assert!(make(&[[0, 1], [0, 3]], &[true, false]).err().unwrap().to_string().contains("image 3"));
        assert!(make(&[[0, 1]], &[true, false]).is_err());
        assert_eq!(PairSet::from_images("y", images.clone(), vec![true; 2]).images(), 4);
    }

    #[test]
    fn balanced_pairs_are_every_matching_one_and_as_many_others() {
        let (people, each) = (5, 4);
        let (pairs, issame) = balanced_pairs(people, each);
        assert_eq!((pairs.len(), issame.len()), (2 * 5 * 6, 2 * 5 * 6));
        for (pair, same) in pairs.iter().zip(&issame) {
            assert!(pair.iter().all(|&index| index < people * each), "{pair:?}");
            assert_eq!(pair[0] / each == pair[1] / each, *same, "{pair:?}");
            assert_ne!(pair[0], pair[1]);
        }
        let mut matching: Vec<_> =
            pairs.iter().zip(&issame).filter(|pair| *pair.1).map(|pair| *pair.0).collect();
        matching.sort_unstable();
        matching.dedup();
        assert_eq!(matching.len(), 5 * 6, "every two images of a person, once");
        // Six pairs a person go round the four others.
        let met = |person: usize| {
            let mut others: Vec<_> =
                pairs.iter().filter(|pair| pair[0] / each == person).map(|pair| pair[1] / each).collect();
            others.sort_unstable();
            others.dedup();
            others.len()
        };
        assert!((0..people).all(|person| met(person) == people));
        assert_eq!(balanced_pairs(1, 3), (vec![[0, 1], [0, 2], [1, 2]], vec![true; 3]));
        assert_eq!(balanced_pairs(3, 1), (vec![], vec![]));
    }

    #[test]
    fn rows_are_gathered_pair_by_pair() {
        let embeddings = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        assert_eq!(rows_of(&embeddings, 2, &[[2, 0], [0, 1]]), [5.0, 6.0, 1.0, 2.0, 1.0, 2.0, 3.0, 4.0]);
    }
}
