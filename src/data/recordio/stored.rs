//! A record file as stored images.

use std::borrow::Cow;
use std::path::Path;

use super::dataset::{Property, Selection, class, read_property, select_images};
use super::{Entry, Header, OnFault, RecordFile};
use crate::data::identities::Identities;
use crate::data::no_such_index;
use crate::data::stored::Stored;
use crate::{Error, Result};

/// The images of a record file as they are, with what lies beside the file.
#[derive(Debug)]
pub struct StoredRecords {
    file: RecordFile,
    selection: Selection,
    property: Option<Property>,
    identities: Option<Identities>,
}

impl StoredRecords {
    /// Opens the record file at `path` with its `.idx`, `property` and `identities.tsv`. Faults that
    /// `on_fault` lets pass leave out what they concern.
    ///
    /// # Errors
    /// Those of `on_fault`, and a file that cannot be read or is empty.
    pub fn open(path: &Path, on_fault: OnFault<'_>) -> Result<Self> {
        let file = RecordFile::open_past(path, on_fault)?;
        let selection = select_images(&file, on_fault)?;
        let property = or_fault(read_property(path), on_fault)?;
        let identities = or_fault(Identities::beside(path), on_fault)?;
        Ok(Self { file, selection, property, identities })
    }

    /// The record file.
    pub fn file(&self) -> &RecordFile {
        &self.file
    }

    /// Whether it has InsightFace's form, else that of im2rec.
    pub fn is_insightface(&self) -> bool {
        self.selection.insightface
    }

    /// What `property` says.
    pub fn property(&self) -> Option<Property> {
        self.property
    }

    /// The identities' own records, in InsightFace's form.
    pub fn identity_records(&self) -> &[Entry] {
        &self.selection.identities
    }

    /// Where image `index` lies.
    pub fn entry(&self, index: usize) -> Result<Entry> {
        let images = &self.selection.images;
        images.get(index).copied().ok_or_else(|| no_such_index(index, images.len()))
    }

    /// The number of labels that the record of image `index` holds behind its header; 0 where the header's
    /// counts.
    ///
    /// # Errors
    /// A damaged record.
    pub fn label_flag(&self, index: usize) -> Result<u32> {
        let entry = self.entry(index)?;
        let payload = self.file.payload(entry)?;
        Ok(Header::parse(&payload).map_err(|fault| self.file.error(entry, fault))?.flag)
    }

    /// Checks what reading the images does not: that no record reaches into the next one, and that the records of the
    /// identities can be read. Reads the heads of all records.
    ///
    /// # Errors
    /// Those of `on_fault`.
    pub fn check_structure(&self, on_fault: OnFault<'_>) -> Result<()> {
        let mut entries = self.file.entries().to_vec();
        entries.sort_by_key(|entry| entry.offset);
        for pair in entries.windows(2) {
            let &[entry, next] = pair else { continue };
            // One that cannot be read is found with its image, or below.
            if let Ok(end) = self.file.end_of(entry)
                && end > next.offset
            {
                on_fault(Error::data(
                    self.file.place(entry),
                    format!("a record that ends at byte {end}"),
                    format!("an end at or before the record of key {}, at byte {}", next.key, next.offset),
                    super::REBUILD,
                ))?;
            }
        }
        for &entry in self.identity_records() {
            or_fault(self.images_of(entry).map(Some), on_fault)?;
        }
        Ok(())
    }

    /// The number of images that identity record `entry` gives its identity.
    ///
    /// # Errors
    /// A damaged record, and one that holds no range.
    pub fn images_of(&self, entry: Entry) -> Result<u64> {
        let payload = self.file.payload(entry)?;
        let header = Header::parse(&payload).map_err(|fault| self.file.error(entry, fault))?;
        match (header.label(0), header.label(1)) {
            (Some(start), Some(end)) if start >= 0.0 && end >= start => Ok(end as u64 - start as u64),
            (start, end) => Err(Error::data(
                self.file.place(entry),
                format!("labels {start:?} and {end:?} of an identity"),
                "the first of its image keys and the end of them",
                super::REBUILD,
            )),
        }
    }
}

/// What `result` holds, or nothing if `on_fault` lets its error pass.
fn or_fault<T>(result: Result<Option<T>>, on_fault: OnFault<'_>) -> Result<Option<T>> {
    result.or_else(|error| on_fault(error).map(|()| None))
}

impl Stored for StoredRecords {
    fn len(&self) -> usize {
        self.selection.images.len()
    }

    fn label(&self, index: usize) -> Result<u32> {
        class(&self.file, self.entry(index)?)
    }

    fn encoded(&self, index: usize) -> Result<Cow<'_, [u8]>> {
        let entry = self.entry(index)?;
        let payload = self.file.payload(entry)?;
        let start = {
            let header = Header::parse(&payload).map_err(|fault| self.file.error(entry, fault))?;
            payload.len() - header.image.len()
        };
        Ok(match payload {
            Cow::Borrowed(bytes) => Cow::Borrowed(bytes.get(start..).unwrap_or_default()),
            Cow::Owned(mut bytes) => {
                bytes.drain(..start);
                Cow::Owned(bytes)
            }
        })
    }

    fn name(&self, index: usize) -> String {
        self.entry(index).map_or_else(|_| format!("image {index}"), |entry| self.file.place(entry))
    }

    fn identity(&self, label: u32) -> Option<String> {
        self.identities.as_ref()?.name(label).map(str::to_owned)
    }
}
