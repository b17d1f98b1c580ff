//! Writing record files.

use std::path::Path;

use super::{Fault, HEADER, MAGIC};
use crate::data::aside::{AsideFile, Sealed};
use crate::{Error, Result};

/// The first length that a record cannot have: it is stored in 29 bits.
const MAX_RECORD: usize = 1 << 29;

/// Appends to `out` the record of `payload`: in one part, or divided wherever it holds the magic word at a
/// multiple of four, which is left out there and put back by every reader.
///
/// # Errors
/// A payload of 2^29 bytes or more.
pub fn encode_record(payload: &[u8], out: &mut Vec<u8>) -> Result<(), Fault> {
    if payload.len() >= MAX_RECORD {
        return Err(Fault::new(format!("a record of {} bytes", payload.len()), "less than 2^29"));
    }
    let magic = MAGIC.to_le_bytes();
    let mut part = |flag: u32, contents: &[u8]| {
        out.extend_from_slice(&magic);
        out.extend_from_slice(&((flag << 29) | contents.len() as u32).to_le_bytes());
        out.extend_from_slice(contents);
        // Only a last part can need padding: the others end at multiples of four.
        let padding = contents.len().next_multiple_of(4) - contents.len();
        out.extend(std::iter::repeat_n(0, padding));
    };
    let mut rest = payload;
    let mut divided = false;
    while let Some(at) = rest.chunks_exact(4).position(|word| word == magic) {
        let (before, after) = rest.split_at(4 * at);
        part(if divided { 2 } else { 1 }, before);
        divided = true;
        rest = after.get(magic.len()..).unwrap_or_default();
    }
    part(if divided { 3 } else { 0 }, rest);
    Ok(())
}

/// The payload of a record: `labels` behind the header if there are several, else the one in it; then
/// `image`.
pub fn encode_payload(labels: &[f32], id: u64, image: &[u8], out: &mut Vec<u8>) {
    let (flag, own) = match *labels {
        [label] => (0, label),
        _ => (labels.len() as u32, 0.0),
    };
    out.reserve(HEADER + 4 * labels.len() + image.len());
    out.extend_from_slice(&flag.to_le_bytes());
    out.extend_from_slice(&own.to_le_bytes());
    out.extend_from_slice(&id.to_le_bytes());
    out.extend_from_slice(&[0; 8]);
    if flag > 0 {
        labels.iter().for_each(|label| out.extend_from_slice(&label.to_le_bytes()));
    }
    out.extend_from_slice(image);
}

/// Writes a record file and its index.
#[derive(Debug)]
pub struct RecordWriter {
    records: AsideFile,
    index: AsideFile,
    place: String,
    payload: Vec<u8>,
    record: Vec<u8>,
}

/// A record file and its index that are whole, but not yet at their places.
#[derive(Debug)]
#[must_use = "the files are not at their places before they are published"]
pub struct SealedRecords {
    records: Sealed,
    index: Sealed,
}

impl RecordWriter {
    /// Starts the record file that is to be at `path`, with its `.idx` beside it.
    ///
    /// # Errors
    /// As those of [`AsideFile::create`].
    pub fn create(path: &Path, replace: bool) -> Result<Self> {
        Ok(Self {
            records: AsideFile::create(path, replace)?,
            index: AsideFile::create(&path.with_extension("idx"), replace)?,
            place: path.display().to_string(),
            payload: Vec::new(),
            record: Vec::new(),
        })
    }

    /// Appends a record under `key`, with its labels (one: in the header) and its image, and returns its
    /// offset.
    ///
    /// # Errors
    /// An image of 2^29 bytes or more; [`Error::Io`] where the disk takes no more.
    pub fn push(&mut self, key: u64, labels: &[f32], image: &[u8]) -> Result<u64> {
        self.payload.clear();
        self.record.clear();
        encode_payload(labels, key, image, &mut self.payload);
        encode_record(&self.payload, &mut self.record).map_err(|fault| {
            Error::data(
                format!("{}, key {key}", self.place),
                fault.found,
                fault.expected,
                "leave the image out",
            )
        })?;
        let offset = self.records.position();
        self.records.write(&self.record)?;
        self.index.write(format!("{key}\t{offset}\n").as_bytes())?;
        Ok(offset)
    }

    /// Replaces the labels of the record at `offset`, which must have been pushed with as many (two or more).
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn relabel(&mut self, offset: u64, labels: &[f32]) -> Result<()> {
        let bytes: Vec<u8> = labels.iter().flat_map(|label| label.to_le_bytes()).collect();
        self.records.rewrite(offset + (super::PART_HEADER + HEADER) as u64, &bytes)
    }

    /// Brings both files to the disk.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn seal(self) -> Result<SealedRecords> {
        Ok(SealedRecords { records: self.records.seal()?, index: self.index.seal()? })
    }
}

impl SealedRecords {
    /// Puts both in their places. An index that was there before goes first: never does one lie beside
    /// records that it does not belong to.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn publish(self, path: &Path) -> Result<()> {
        let index = path.with_extension("idx");
        match std::fs::remove_file(&index) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io(index, error));
            }
            _ => {}
        }
        self.records.publish()?;
        self.index.publish()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Header, RecordFile, read_record, testing};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn records_are_what_the_format_says() {
        let magic = MAGIC.to_le_bytes();
        for payload in [
            b"four".to_vec(),
            b"seven b".to_vec(),
            vec![],
            magic.to_vec(),
            [&magic[..], &magic, b"tail"].concat(),
            [&b"word"[..], &magic, b"more", &magic, b"x"].concat(),
            [&b"odd"[..], &magic, b"1"].concat(),
            // Cut short of a whole word.
            [&b"word"[..], &magic[..3]].concat(),
        ] {
            let mut record = Vec::new();
            encode_record(&payload, &mut record).unwrap();
            let mut other = testing::Writer::default();
            other.push(&payload);
            assert_eq!(record, other.bytes, "{}", payload.escape_ascii());
        }
        assert!(encode_record(&vec![0; MAX_RECORD], &mut Vec::new()).is_err());
    }

    #[test]
    fn payloads_have_one_label_in_the_header_and_several_behind_it() {
        for (labels, image) in [(&[7.0][..], &b"image"[..]), (&[3.0, 9.0], b"image"), (&[3.0, 9.0], b"")] {
            let mut payload = Vec::new();
            encode_payload(labels, 5, image, &mut payload);
            let header = Header::parse(&payload).unwrap();
            assert_eq!((header.class().unwrap(), header.image), (labels[0] as u32, image));
            assert_eq!(header.flag as usize, if labels.len() == 1 { 0 } else { labels.len() });
            assert_eq!(payload[8..16], 5_u64.to_le_bytes());
        }
    }

    #[test]
    fn a_file_and_its_index_replace_others_together() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.rec");
        for round in 0..2_u8 {
            let mut writer = RecordWriter::create(&path, round > 0).unwrap();
            let zero = writer.push(0, &[0.0, 0.0], b"").unwrap();
            writer.push(1, &[4.0], &[round; 9]).unwrap();
            writer.relabel(zero, &[2.0, 3.0]).unwrap();
            writer.push(2, &[5.0], b"last").unwrap();
            writer.seal().unwrap().publish(&path).unwrap();
            let file = RecordFile::open(&path).unwrap();
            let payload = |at: usize| file.payload(file.entries()[at]).unwrap();
            assert_eq!(Header::parse(&payload(0)).unwrap().label(1), Some(3.0));
            assert_eq!(Header::parse(&payload(1)).unwrap().image, [round; 9]);
            assert_eq!(Header::parse(&payload(2)).unwrap().image, b"last");
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
        }
        assert!(RecordWriter::create(&path, false).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_records_are_read_back(
            images in prop::collection::vec(
                (prop::collection::vec(prop_oneof![Just(MAGIC), any::<u32>()], 0..6), 0..4_usize, 0..4_usize), 1..5),
        ) {
            let mut file = Vec::new();
            let mut written = Vec::new();
            for (words, label, cut) in images {
                let mut image: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
                image.truncate(image.len().saturating_sub(cut));
                // A magic word may be a label too, and may come to lie across header and image.
                let labels = vec![f32::from_bits(MAGIC); label + 1];
                let mut payload = Vec::new();
                encode_payload(&labels, 0, &image, &mut payload);
                written.push((file.len() as u64, payload.clone(), image));
                encode_record(&payload, &mut file).unwrap();
                prop_assert_eq!(file.len() % 4, 0);
            }
            for (offset, payload, image) in written {
                let (read, _) = read_record(&file, offset).unwrap();
                prop_assert_eq!(&read, &payload);
                prop_assert_eq!(Header::parse(&read).unwrap().image, image);
            }
        }
    }
}
