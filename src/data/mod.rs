//! Training and verification data: datasets of labelled face images, the loader that batches them, the readers and
//! writers of the field's file formats, and a doctor for data sets.
//!
//! Everything here is on the CPU and in 8-bit RGB; normalisation and mirroring happen in shaders.

pub mod align;
pub mod aside;
pub mod augment;
pub mod bin;
pub mod decode;
pub mod doctor;
pub mod encode;
pub mod folder;
pub mod identities;
pub mod loader;
pub mod memory;
pub mod pack;
mod pairs;
pub mod probe;
pub mod recordio;
pub mod stored;
pub mod survey;
pub mod synth;
pub mod unpack;

use std::path::{Path, PathBuf};

use crate::{Error, Result};

pub use bin::VerificationSet;
pub use loader::{Batch, Loader, LoaderOptions, Stream};
pub use memory::InMemory;

/// A decoded image: 8-bit RGB, row by row from the top.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Samples, `[H, W, 3]`.
    pub rgb: Vec<u8>,
    /// H, in pixels.
    pub height: usize,
    /// W, in pixels.
    pub width: usize,
}

impl From<Image> for image::RgbImage {
    fn from(image: Image) -> Self {
        let (width, height) = (image.width as u32, image.height as u32);
        // The samples are [H, W, 3] by construction; a fault there would show as an empty picture.
        Self::from_raw(width, height, image.rgb).unwrap_or_default()
    }
}

/// A labelled set of images of one size, addressed by index. Reading is safe from many threads at once.
pub trait Dataset: Send + Sync {
    /// The number of images.
    fn len(&self) -> usize;

    /// Whether there is no image at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of classes; every label is below it.
    fn num_classes(&self) -> usize;

    /// The class of image `index`, without decoding the image.
    fn label(&self, index: usize) -> Result<u32>;

    /// Image `index`, decoded.
    fn load(&self, index: usize) -> Result<Image>;

    /// Image `index`, decoded into `slot`, which holds `[H, W, 3]` for `size` = `[H, W]`. What is in the slot after an
    /// error is not defined. Datasets override it where that saves a copy.
    ///
    /// # Errors
    /// Those of [`Dataset::load`], an image of another size, and a slot of another length.
    fn load_into(&self, index: usize, size: [usize; 2], slot: &mut [u8]) -> Result<()> {
        let image = self.load(index)?;
        if [image.height, image.width] != size || image.rgb.len() != slot.len() {
            return Err(other_size([image.height, image.width], size, || self.name(index)));
        }
        slot.copy_from_slice(&image.rgb);
        Ok(())
    }

    /// What to call image `index` in messages: its path, or its file and key.
    fn name(&self, index: usize) -> String;
}

/// How a dataset is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The network's input size, `[H, W]`. An image of another size is an error unless `resize` is set.
    pub size: [usize; 2],
    /// Scale images of another size by their short side, then crop the centre.
    pub resize: bool,
    /// The number of classes; counted where `None`.
    pub num_classes: Option<usize>,
}

impl Default for Options {
    fn default() -> Self {
        Self { size: [112, 112], resize: false, num_classes: None }
    }
}

/// Opens the training data at `path`: a folder with one folder of images an identity, a `.rec` file (with
/// its `.idx` beside it where there is one), or a folder that holds `train.rec` (and perhaps `property`).
///
/// # Errors
/// When `path` is none of these, and when its index or its identities cannot be read; see
/// [`folder::FolderDataset::open`] and [`recordio::RecordDataset::open`].
pub fn open(path: impl AsRef<Path>, options: &Options) -> Result<Box<dyn Dataset>> {
    let path = path.as_ref();
    let metadata = std::fs::metadata(path).map_err(|source| Error::io(path, source))?;
    if metadata.is_dir() {
        let record_file = path.join("train.rec");
        if record_file.is_file() {
            return Ok(Box::new(recordio::RecordDataset::open(&record_file, options)?));
        }
        return Ok(Box::new(folder::FolderDataset::open(path, options)?));
    }
    if has_extension(path, "rec") {
        return Ok(Box::new(recordio::RecordDataset::open(path, options)?));
    }
    let record_file: PathBuf = path.with_extension("rec");
    let hint = if has_extension(path, "idx") && record_file.is_file() {
        format!("name the record file itself: {}", record_file.display())
    } else {
        "give the folder of identity folders, the .rec file, or the folder that holds train.rec".to_owned()
    };
    Err(Error::data(
        path.display().to_string(),
        "a file that is not a .rec file",
        "a folder of identity folders, a .rec file, or a folder with train.rec",
        hint,
    ))
}

/// Whether `path` ends in `.extension`, in either case.
pub(crate) fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found.eq_ignore_ascii_case(extension))
}

/// Refuses a label that is not below the number of classes.
fn check_label(label: u32, num_classes: usize, place: impl FnOnce() -> String) -> Result<u32> {
    if (label as usize) < num_classes {
        return Ok(label);
    }
    Err(Error::data(
        place(),
        format!("label {label}"),
        format!("a label below the number of classes, {num_classes}"),
        format!("set data.num_classes to at least {}", u64::from(label) + 1),
    ))
}

/// The error for an image that is not of the size of the others.
fn other_size(found: [usize; 2], expected: [usize; 2], name: impl FnOnce() -> String) -> Error {
    Error::data(
        name(),
        format!("an image of {} x {} (height x width)", found[0], found[1]),
        format!("{} x {}, the size of the first image", expected[0], expected[1]),
        "give all images one size, or set data.resize = true",
    )
}

/// The error for an index that is not in the dataset: a mistake of the caller, kept out of the panics.
fn no_such_index(index: usize, len: usize) -> Error {
    Error::data(
        format!("image {index}"),
        format!("a dataset of {len} images"),
        format!("an index below {len}"),
        "this is a fault of the program that asked for it",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_is_no_dataset_is_named_and_explained() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("train.idx");
        std::fs::write(&file, "0\t0\n").unwrap();
        std::fs::write(folder.path().join("train.rec"), "").unwrap();
        let error = open(&file, &Options::default()).err().unwrap();
        assert!(error.to_string().contains("train.idx"), "{error}");
        assert!(error.hint().unwrap().contains("train.rec"), "{error}");

        let missing = folder.path().join("absent");
        let error = open(&missing, &Options::default()).err().unwrap();
        assert!(matches!(error, Error::Io { .. }), "{error}");
        assert!(error.to_string().contains("absent"), "{error}");
    }
}
