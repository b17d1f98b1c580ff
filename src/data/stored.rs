//! Labelled images as they are stored: encoded, of any size, and perhaps damaged. What looks at data sets,
//! checks them and packs them works on these; training works on [`super::Dataset`].

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use super::folder::FolderDataset;
use super::recordio::{OnFault, StoredRecords};
use super::{Options, has_extension};
use crate::{Error, Result};

/// A labelled set of stored images, addressed by index. Reading is safe from many threads at once.
pub trait Stored: Send + Sync {
    /// The number of images.
    fn len(&self) -> usize;

    /// Whether there is no image at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The class of image `index`.
    ///
    /// # Errors
    /// A record or a label that cannot be read.
    fn label(&self, index: usize) -> Result<u32>;

    /// Image `index` as it is stored: a JPEG, a PNG, ...
    ///
    /// # Errors
    /// A record or a file that cannot be read.
    fn encoded(&self, index: usize) -> Result<Cow<'_, [u8]>>;

    /// What to call image `index`: its path, or its file and key.
    fn name(&self, index: usize) -> String;

    /// What class `label` is called, where the data say so.
    fn identity(&self, label: u32) -> Option<String>;
}

/// Where a data set came from.
#[derive(Debug)]
pub enum Source {
    /// A folder of one folder an identity.
    Folder(FolderDataset),
    /// A record file.
    Records(StoredRecords),
}

impl Source {
    /// Opens the data set at `path`: a folder of identity folders, a `.rec` file, or a folder that holds
    /// `train.rec`. Faults go to `on_fault`: where it returns `Ok` what is damaged is passed over.
    ///
    /// # Errors
    /// Those of `on_fault`, and where `path` is no data set at all.
    pub fn open(path: &Path, on_fault: OnFault<'_>) -> Result<Self> {
        let is_folder = std::fs::metadata(path).map_err(|source| Error::io(path, source))?.is_dir();
        if let Some(records) = record_file(path, is_folder) {
            return Ok(Self::Records(StoredRecords::open(&records, on_fault)?));
        }
        if !is_folder {
            return Err(Error::data(
                path.display().to_string(),
                "a file that is not a .rec file",
                "a folder of identity folders, a .rec file, or a folder with train.rec",
                "name one of these",
            ));
        }
        Ok(Self::Folder(FolderDataset::open_past(path, &Options::default(), on_fault)?))
    }

    /// Its images.
    pub fn stored(&self) -> &dyn Stored {
        match self {
            Self::Folder(folder) => folder,
            Self::Records(records) => records,
        }
    }

    /// Files in it that are not part of the data set.
    pub fn skipped(&self) -> &[PathBuf] {
        match self {
            Self::Folder(folder) => folder.skipped(),
            Self::Records(_) => &[],
        }
    }
}

/// The record file that `path` names, itself or as the folder that it is in.
fn record_file(path: &Path, is_folder: bool) -> Option<PathBuf> {
    if is_folder {
        Some(path.join("train.rec")).filter(|file| file.is_file())
    } else {
        has_extension(path, "rec").then(|| path.to_path_buf())
    }
}
