//! A set of image pairs to verify, from wherever the images come.

use std::path::Path;

use crate::Result;
use crate::data::{Image, VerificationSet};
use crate::eval::embedder::Embedder;
use crate::eval::verify::{VerificationReport, verify};

/// Images `2i` and `2i + 1` are pair `i`.
pub struct PairSet {
    name: String,
    images: Images,
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
        Self { name: set.name.clone(), issame: set.issame.clone(), images: Images::Encoded(set) }
    }

    /// Images in memory, two a pair.
    pub fn from_images(name: impl Into<String>, images: Vec<Image>, issame: Vec<bool>) -> Self {
        Self { name: name.into(), images: Images::Decoded(images), issame }
    }

    /// The set's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Number of images, two a pair.
    pub fn images(&self) -> usize {
        self.issame.len() * 2
    }

    /// Embeds all images with their mirrored ones and runs the verification protocol. `progress` gets images done.
    pub fn evaluate(
        &self,
        embedder: &mut Embedder,
        progress: &mut dyn FnMut(usize),
    ) -> Result<VerificationReport> {
        let size = embedder.size();
        let load = |index: usize| match &self.images {
            Images::Encoded(set) => set.decode(index, size),
            Images::Decoded(images) => images.get(index).cloned().ok_or_else(|| {
                crate::Error::data(
                    format!("set {}", self.name),
                    format!("{} images", images.len()),
                    format!("{}, two a pair", self.images()),
                    "give two images a pair",
                )
            }),
        };
        let embeddings = embedder.embed(self.images(), &load, true, progress)?;
        verify(&self.name, &embeddings, embedder.dimension(), &self.issame)
    }
}
