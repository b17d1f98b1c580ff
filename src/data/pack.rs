//! Data sets into record files.

use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::aside::AsideFile;
use super::encode::Encoding;
use super::identities::{self, Identities};
use super::recordio::RecordWriter;
use super::stored::{Source, Stored};
use super::{decode, probe};
use crate::{Error, Result};

/// The most classes whose labels f32 tells apart.
const MAX_CLASSES: usize = 1 << 24;

/// Images that are read, and if need be encoded, at a time.
const CHUNK: usize = 256;

/// The two forms of record files for training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Record 0 says where the images end and where the identities' own records do.
    InsightFace,
    /// Nothing but images.
    Im2rec,
}

/// How a data set is packed.
#[derive(Debug, Clone)]
pub struct Packing {
    /// The form of the record file.
    pub form: Form,
    /// Images of another size than this `[H, W]` are scaled by their short side, cropped at the centre and
    /// encoded anew.
    pub size: Option<[usize; 2]>,
    /// How they are encoded then.
    pub encoding: Encoding,
    /// Without `size`: whether images of different sizes are packed.
    pub any_size: bool,
    /// Whether what cannot be read is left out, and not an error.
    pub skip_damaged: bool,
    /// Whether files that are there are replaced.
    pub replace: bool,
}

/// What was packed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// The number of images.
    pub images: usize,
    /// The number of classes, with those that have no image.
    pub classes: usize,
    /// The size of the images, `[H, W]`, where all have the same.
    pub size: Option<[usize; 2]>,
    /// How many of them were encoded anew.
    pub reencoded: usize,
    /// What was left out, and why.
    pub left_out: Vec<String>,
    /// The files that were written.
    pub files: Vec<PathBuf>,
}

/// Packs `source` into the record file `path`, with its `.idx`, `identities.tsv` where names are known, and,
/// if it is named `train.rec` and all images have one size, `property`. `progress` is called with the number
/// of images done.
///
/// # Errors
/// Unless they are to be left out, images and labels that cannot be read; images of different sizes without
/// `size` or `any_size`; labels of 2^24 or more; files that are there and not to be replaced; [`Error::Io`].
pub fn pack(
    source: &Source,
    path: &Path,
    packing: &Packing,
    progress: &mut dyn FnMut(usize),
) -> Result<Packed> {
    let stored = source.stored();
    let mut left_out = Vec::new();
    let mut leave_out = |error: Error| {
        if !packing.skip_damaged {
            return Err(error);
        }
        left_out.push(error.to_string());
        Ok(())
    };
    let Order { images, classes, names } = Order::of(source, packing.form, &mut leave_out)?;
    let mut writer = FaceWriter::create(path, packing.form, classes, packing.replace)?;
    let (mut reencoded, mut done) = (0, 0);
    for chunk in images.chunks(CHUNK) {
        let prepared: Vec<_> = chunk
            .par_iter()
            .map(|&(index, label)| (label, prepare(stored, index as usize, packing)))
            .collect();
        for (&(index, _), (label, prepared)) in chunk.iter().zip(prepared) {
            done += 1;
            let (image, size, anew) = match prepared {
                Ok(prepared) => prepared,
                Err(error) => {
                    leave_out(error)?;
                    continue;
                }
            };
            if let Some(known) = writer.size
                && known != size
                && !packing.any_size
            {
                return Err(Error::data(
                    stored.name(index as usize),
                    format!("an image of {} x {} (height x width)", size[0], size[1]),
                    format!("{} x {}, as the images before it", known[0], known[1]),
                    "scale all to one size with --size, or pack them as they are with --any-size",
                ));
            }
            reencoded += usize::from(anew);
            writer.push(label, &image, size)?;
        }
        progress(done);
    }
    let (written, size, files) = writer.finish(&names)?;
    Ok(Packed { images: written, classes, size, reencoded, left_out, files })
}

/// The images of a data set in the order in which they are packed, with their labels.
struct Order {
    images: Vec<(u32, u32)>,
    classes: usize,
    names: Identities,
}

impl Order {
    fn of(source: &Source, form: Form, leave_out: &mut dyn FnMut(Error) -> Result<()>) -> Result<Self> {
        let stored = source.stored();
        let fixed = match source {
            Source::Folder(folder) => Identities::read(&folder.root().join(identities::FILE))?,
            Source::Records(_) => None,
        };
        let labels_by_name = fixed.as_ref().map(Identities::labels);
        let mut images = Vec::with_capacity(stored.len());
        let labels: Vec<Result<u32>> =
            (0..stored.len()).into_par_iter().map(|index| stored.label(index)).collect();
        for (index, label) in labels.into_iter().enumerate() {
            let label = match label {
                Ok(label) => label,
                Err(error) => {
                    leave_out(error)?;
                    continue;
                }
            };
            let label = match &labels_by_name {
                None => label,
                Some(labels) => {
                    let name = stored.identity(label).unwrap_or_default();
                    *labels.get(name.as_str()).ok_or_else(|| {
                        Error::data(
                            stored.name(index),
                            format!("the identity `{name}`"),
                            format!("an identity that {} beside it lists", identities::FILE),
                            format!(
                                "add it to {} with a label of its own, or remove that file",
                                identities::FILE
                            ),
                        )
                    })?
                }
            };
            let index = u32::try_from(index).map_err(|_| {
                Error::data(stored.name(index), "more than 2^32 images", "fewer", "split the data")
            })?;
            images.push((index, label));
        }
        if form == Form::InsightFace || fixed.is_some() {
            // The images of an identity must follow each other.
            images.sort_by_key(|&(_, label)| label);
        }
        let counted = images.iter().map(|&(_, label)| label as usize + 1).max().unwrap_or(0);
        let said = match (source, &fixed) {
            (Source::Records(records), _) => {
                let property = records.property().map_or(0, |property| property.classes);
                records.identity_records().len().max(property)
            }
            (Source::Folder(_), Some(names)) => names.classes(),
            (Source::Folder(_), None) => 0,
        };
        let classes = counted.max(said);
        if classes > MAX_CLASSES {
            return Err(Error::data(
                "the labels",
                format!("{classes} classes"),
                "at most 2^24: record files hold labels as f32",
                "split the data, or train from the folder",
            ));
        }
        let names = fixed.unwrap_or_else(|| {
            let mut names = Identities::default();
            for label in 0..classes as u32 {
                if let Some(name) = stored.identity(label) {
                    names.insert(label, name);
                }
            }
            names
        });
        Ok(Self { images, classes, names })
    }
}

/// Image `index` as it is to be written: its bytes, its size, and whether they are new.
fn prepare<'a>(
    stored: &'a dyn Stored,
    index: usize,
    packing: &Packing,
) -> Result<(std::borrow::Cow<'a, [u8]>, [usize; 2], bool)> {
    let encoded = stored.encoded(index)?;
    let place = || stored.name(index);
    let Some(found) = probe::probe(&encoded) else {
        // Decoding knows what is wrong with it.
        decode::decode(&encoded, [1, 1], true, place)?;
        return Err(Error::data(place(), "a header that cannot be read", "an image", "replace or remove it"));
    };
    match packing.size {
        Some(size) if size != found.size => {
            let image = decode::decode(&encoded, size, true, place)?;
            Ok((packing.encoding.encode(&image)?.into(), size, true))
        }
        _ => {
            if packing.skip_damaged {
                // Only decoding tells whether it is whole; who asks for this will want to know.
                decode::decode(&encoded, found.size, false, place)?;
            }
            Ok((encoded, found.size, false))
        }
    }
}

/// Writes a record file of labelled images with everything that belongs to it.
#[derive(Debug)]
pub struct FaceWriter {
    writer: RecordWriter,
    path: PathBuf,
    form: Form,
    classes: usize,
    replace: bool,
    /// The end of the image keys so far.
    next: u64,
    images: usize,
    /// The end of each class that is complete or begun, in InsightFace's form.
    ends: Vec<u64>,
    /// The size of the first image.
    size: Option<[usize; 2]>,
    uniform: bool,
}

impl FaceWriter {
    /// Starts the record file `path` of images of `classes` classes.
    ///
    /// # Errors
    /// As those of [`AsideFile::create`].
    pub fn create(path: &Path, form: Form, classes: usize, replace: bool) -> Result<Self> {
        let mut writer = RecordWriter::create(path, replace)?;
        let insightface = form == Form::InsightFace;
        if insightface {
            // Its labels are known at the end.
            writer.push(0, &[0.0, 0.0], b"")?;
        }
        Ok(Self {
            writer,
            path: path.to_path_buf(),
            form,
            classes,
            replace,
            next: u64::from(insightface),
            images: 0,
            ends: Vec::new(),
            size: None,
            uniform: true,
        })
    }

    /// Appends an image, in InsightFace's form those of a class after each other and the classes in order.
    ///
    /// # Errors
    /// A label that is not below the number of classes or comes too late; those of [`RecordWriter::push`].
    pub fn push(&mut self, label: u32, image: &[u8], size: [usize; 2]) -> Result<()> {
        let class = label as usize;
        if class >= self.classes || (self.form == Form::InsightFace && class + 1 < self.ends.len()) {
            return Err(Error::data(
                self.path.display().to_string(),
                format!("label {label} after {} classes of {}", self.ends.len(), self.classes),
                "labels in order, below the number of classes",
                "this is a fault of the program; please report it",
            ));
        }
        // Record 0 comes first in InsightFace's form; there keys start at 1.
        self.writer.push(self.next, &[label as f32], image)?;
        self.uniform &= *self.size.get_or_insert(size) == size;
        self.images += 1;
        if self.form == Form::InsightFace {
            // Classes in between have no image: they end where they begin.
            self.ends.resize(class + 1, self.next);
            if let Some(end) = self.ends.last_mut() {
                *end = self.next + 1;
            }
        }
        self.next += 1;
        Ok(())
    }

    /// Writes what is left and puts all files in their places. Returns the number of images, their size if
    /// all have the same, and the files.
    ///
    /// # Errors
    /// A set without images; [`Error::Usage`] where a file is there and not to be replaced; [`Error::Io`].
    pub fn finish(mut self, names: &Identities) -> Result<(usize, Option<[usize; 2]>, Vec<PathBuf>)> {
        if self.images == 0 {
            let hint = "check the data with `epl data check`";
            return Err(Error::data(
                self.path.display().to_string(),
                "no images to write",
                "at least one",
                hint,
            ));
        }
        if self.form == Form::InsightFace {
            self.ends.resize(self.classes, self.next);
            let images_end = self.next;
            let mut start = 1;
            for (key, &end) in (images_end..).zip(&self.ends) {
                self.writer.push(key, &[lower(start), lower(end)], b"")?;
                start = end;
            }
            let identities_end = images_end + self.classes as u64;
            self.writer.relabel(0, &[lower(images_end), lower(identities_end)])?;
        }
        let size = self.size.filter(|_| self.uniform);
        let mut files = vec![self.path.clone(), self.path.with_extension("idx")];
        let property = size.filter(|_| self.path.file_name().is_some_and(|name| name == "train.rec"));
        let property = property.map(|[height, width]| format!("{},{height},{width}\n", self.classes));
        let names = (!names.is_empty()).then(|| names.to_text());
        let mut more = Vec::new();
        let places =
            [(self.path.with_file_name("property"), property), (Identities::place(&self.path), names)];
        for (place, text) in &places {
            if let Some(text) = text {
                let mut file = AsideFile::create(place, self.replace)?;
                file.write(text.as_bytes())?;
                more.push(file.seal()?);
                files.push(place.clone());
            }
        }
        let records = self.writer.seal()?;
        if self.replace {
            // What belonged to the records that are replaced.
            let of_train = self.path.file_name().is_some_and(|name| name == "train.rec");
            for (place, _) in places.iter().filter(|(place, _)| of_train || !place.ends_with("property")) {
                match std::fs::remove_file(place) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(Error::io(place, error));
                    }
                    _ => {}
                }
            }
        }
        records.publish(&self.path)?;
        for file in more {
            file.publish()?;
        }
        Ok((self.images, size, files))
    }
}

/// The largest f32 that is not above `value`: so that no reader that trusts it takes an identity's record for
/// an image.
fn lower(value: u64) -> f32 {
    let nearest = value as f32;
    if nearest as u64 > value { nearest.next_down() } else { nearest }
}

#[cfg(test)]
mod tests;
