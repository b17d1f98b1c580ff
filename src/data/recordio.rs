//! RecordIO training data: `train.rec`, with `train.idx` and `property` beside it where they exist.
//!
//! A record is the magic word, a word of part flag (3 bits) and length (29 bits), the payload, and padding to
//! four bytes. A writer cuts a payload in parts wherever it holds the magic word at a multiple of four; joining
//! puts the word back. A payload is a header of 24 bytes (u32 flag, f32 label, u64 id, u64 id2), then, if the
//! flag is n > 0, n labels in f32 that replace the header's own, then an encoded image. All little-endian.

mod dataset;
mod stored;
mod writer;

use std::borrow::Cow;
use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::{Error, Result};

pub use dataset::RecordDataset;
pub use stored::StoredRecords;
pub use writer::{RecordWriter, SealedRecords, encode_payload, encode_record};

/// What becomes of a fault that is found while a file is opened: passed on to end it, or noted to go on past it.
pub type OnFault<'a> = &'a mut dyn FnMut(Error) -> Result<()>;

/// The word that starts every part of a record.
pub const MAGIC: u32 = 0xced7_230a;

const PART_HEADER: usize = 8;
const HEADER: usize = 24;
const REBUILD: &str = "the file is damaged or was not copied whole: copy it again or repack it";

/// Where a record lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The record's key in the index; without an index its position in the file.
    pub key: u64,
    /// The offset of its first byte in the file.
    pub offset: u64,
}

/// What a damaged record holds and should hold; the reader of the file adds where.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault {
    found: String,
    expected: String,
}

impl Fault {
    fn new(found: impl Into<String>, expected: impl Into<String>) -> Self {
        Self { found: found.into(), expected: expected.into() }
    }
}

/// The payload of the record at `offset` of `file`, and the offset of the next record.
///
/// # Errors
/// A wrong magic word, parts out of order, and anything that would lie past the end of the file.
pub fn read_record(file: &[u8], offset: u64) -> Result<(Cow<'_, [u8]>, u64), Fault> {
    let mut position =
        usize::try_from(offset).ok().filter(|&position| position < file.len()).ok_or_else(|| {
            Fault::new(
                format!("an offset of {offset} past the end"),
                format!("an offset below the length, {}", file.len()),
            )
        })?;
    let (flag, first) = read_part(file, &mut position)?;
    match flag {
        0 => return Ok((Cow::Borrowed(first), position as u64)),
        1 => {}
        _ => {
            return Err(Fault::new(
                format!("part flag {flag} in a record's first part"),
                "0 (whole) or 1 (first)",
            ));
        }
    }
    let mut payload = first.to_vec();
    loop {
        let (flag, part) = read_part(file, &mut position)?;
        if flag != 2 && flag != 3 {
            return Err(Fault::new(
                format!("part flag {flag} in a divided record"),
                "2 (middle) or 3 (last)",
            ));
        }
        payload.extend_from_slice(&MAGIC.to_le_bytes());
        payload.extend_from_slice(part);
        if flag == 3 {
            return Ok((Cow::Owned(payload), position as u64));
        }
    }
}

/// The part flag and contents of the part at `position`, which is moved behind it.
fn read_part<'a>(file: &'a [u8], position: &mut usize) -> Result<(u32, &'a [u8]), Fault> {
    let rest = file.get(*position..).unwrap_or_default();
    let (Some(magic), Some(word)) = (word(rest, 0), word(rest, 4)) else {
        return Err(Fault::new(
            format!("the end of the file {} bytes into a record at byte {position}", rest.len()),
            "a record's magic word and length",
        ));
    };
    if magic != MAGIC {
        return Err(Fault::new(
            format!("{magic:#010x} at byte {position}"),
            format!("the magic word {MAGIC:#010x}"),
        ));
    }
    let (flag, length) = (word >> 29, (word & 0x1fff_ffff) as usize);
    let Some(contents) = rest.get(PART_HEADER..PART_HEADER + length) else {
        return Err(Fault::new(
            format!("the end of the file {} bytes into a record's contents", rest.len() - PART_HEADER),
            format!("{length} bytes"),
        ));
    };
    // A last record without its padding is whole all the same.
    *position = (*position + PART_HEADER + length.next_multiple_of(4)).min(file.len());
    Ok((flag, contents))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// A payload taken apart.
#[derive(Debug, PartialEq)]
pub struct Header<'a> {
    /// The number of labels behind the header; 0 if the header holds the only one.
    pub flag: u32,
    /// The header's own label, which counts only if `flag` is 0.
    own_label: f32,
    /// The labels behind the header, as bytes: `flag` f32.
    labels: &'a [u8],
    /// The encoded image, empty in records that hold none.
    pub image: &'a [u8],
}

impl<'a> Header<'a> {
    /// Takes `payload` apart.
    ///
    /// # Errors
    /// When it is too short for its header or its labels.
    pub fn parse(payload: &'a [u8]) -> Result<Self, Fault> {
        let short = |needed: u64| {
            Fault::new(format!("a record of {} bytes", payload.len()), format!("at least {needed}"))
        };
        let (Some(flag), Some(label), Some(rest)) =
            (word(payload, 0), word(payload, 4), payload.get(HEADER..))
        else {
            return Err(short(HEADER as u64));
        };
        let size = u64::from(flag) * 4;
        let split = usize::try_from(size).ok().and_then(|size| rest.split_at_checked(size));
        let (labels, image) = split.ok_or_else(|| short(HEADER as u64 + size))?;
        Ok(Self { flag, own_label: f32::from_bits(label), labels, image })
    }

    /// Label `index`: of those behind the header if there are any, else (index 0) the header's own.
    pub fn label(&self, index: usize) -> Option<f32> {
        match (self.flag, index) {
            (0, 0) => Some(self.own_label),
            _ => word(self.labels, index.checked_mul(4)?).map(f32::from_bits),
        }
    }

    /// The class: the first label, as the integer that it must be.
    ///
    /// # Errors
    /// A label that is negative, not finite, not whole, or above 2^24, where f32 skips integers.
    pub fn class(&self) -> Result<u32, Fault> {
        let label = self.label(0).unwrap_or(f32::NAN);
        if (0.0..=16_777_216.0).contains(&label) && label.fract() == 0.0 {
            return Ok(label as u32);
        }
        Err(Fault::new(format!("label {label}"), "a whole number from 0 to 2^24"))
    }
}

/// A record file, mapped into memory, with its index.
#[derive(Debug)]
pub struct RecordFile {
    path: PathBuf,
    map: Mmap,
    entries: Vec<Entry>,
}

impl RecordFile {
    /// Opens the record file at `path`, with the index from the `.idx` file beside it or, where there is none,
    /// from a pass over the records.
    ///
    /// # Errors
    /// A file that cannot be read or is empty; an index with a line that is not `key<TAB>offset`, an offset past
    /// the end or no line at all; without an index, a damaged record anywhere.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_past(path, &mut Err)
    }

    /// The same, with the faults of the index, or without one those of the records, handed to `on_fault`: where it
    /// returns `Ok` the line or the record is passed over. Records that follow a damaged one are looked for.
    ///
    /// # Errors
    /// Those of `on_fault`; a file that cannot be read or is empty.
    pub fn open_past(path: &Path, on_fault: OnFault<'_>) -> Result<Self> {
        let file = File::open(path).map_err(|source| Error::io(path, source))?;
        let length = file.metadata().map_err(|source| Error::io(path, source))?.len();
        if length == 0 {
            return Err(Error::data(path.display().to_string(), "an empty file", "records", REBUILD));
        }
        // SAFETY: the map is only read, as bytes, and every use checks what it reads. Another process that
        // truncates the file while it is in use can end this one, as with any mapped file.
        let map = unsafe { Mmap::map(&file) }.map_err(|source| Error::io(path, source))?;
        let mut records = Self { path: path.to_path_buf(), map, entries: Vec::new() };
        let index = path.with_extension("idx");
        records.entries = match std::fs::read_to_string(&index) {
            Ok(text) => parse_index(&index, &text, length, on_fault)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => records.scan(on_fault)?,
            Err(source) => return Err(Error::io(&index, source)),
        };
        Ok(records)
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The records, in the order of the index.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The payload of the record at `entry`, copied only if it is divided in parts.
    ///
    /// # Errors
    /// A damaged record; the error names the file, the key and the offset.
    pub fn payload(&self, entry: Entry) -> Result<Cow<'_, [u8]>> {
        let (payload, _) = read_record(&self.map, entry.offset).map_err(|fault| self.error(entry, fault))?;
        Ok(payload)
    }

    /// The offset behind the record at `entry`.
    ///
    /// # Errors
    /// A damaged record; the error names the file, the key and the offset.
    pub fn end_of(&self, entry: Entry) -> Result<u64> {
        read_record(&self.map, entry.offset).map(|(_, end)| end).map_err(|fault| self.error(entry, fault))
    }

    /// `fault`, with the place that it was found at.
    pub fn error(&self, entry: Entry, fault: Fault) -> Error {
        Error::data(self.place(entry), fault.found, fault.expected, REBUILD)
    }

    /// What to call a record in messages.
    pub fn place(&self, entry: Entry) -> String {
        format!("{}, key {}, byte {}", self.path.display(), entry.key, entry.offset)
    }

    fn scan(&self, on_fault: OnFault<'_>) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        let mut offset = 0;
        while (offset as usize) < self.map.len() {
            let entry = Entry { key: entries.len() as u64, offset };
            match read_record(&self.map, offset) {
                Ok((_, next)) => {
                    entries.push(entry);
                    offset = next;
                }
                Err(fault) => {
                    on_fault(self.error(entry, fault))?;
                    offset = self.next_record(offset).unwrap_or(self.map.len() as u64);
                }
            }
        }
        Ok(entries)
    }

    /// The first place behind `offset` that looks like the start of a record.
    fn next_record(&self, offset: u64) -> Option<u64> {
        // Records start at multiples of four.
        let start = usize::try_from(offset).ok()?.next_multiple_of(4) + 4;
        let starts = |words: &&[u8]| word(words, 0) == Some(MAGIC);
        let mut from = start;
        loop {
            let at = from + 4 * self.map.get(from..)?.chunks_exact(4).position(|words| starts(&words))?;
            // A magic word that goes on a divided record is none.
            if word(self.map.get(at..)?, 4).is_some_and(|word| word >> 29 < 2) {
                return Some(at as u64);
            }
            from = at + 4;
        }
    }
}

/// The entries of an index file, in its order, without the lines whose faults `on_fault` lets pass.
fn parse_index(path: &Path, text: &str, file_length: u64, on_fault: OnFault<'_>) -> Result<Vec<Entry>> {
    let fault = |line: usize, found: String, expected: String| {
        Error::data(
            format!("{}, line {}", path.display(), line + 1),
            found,
            expected,
            "if the .rec file is shorter than it was, copy it again; if the index is wrong, delete the .idx file to have the \
             records found by a pass over the .rec file",
        )
    };
    let mut entries = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let mut fields = line.split_whitespace().map(|field| field.parse::<u64>().ok());
        let (Some(Some(key)), Some(Some(offset)), None) = (fields.next(), fields.next(), fields.next())
        else {
            let shown: String = line.chars().take(60).collect();
            on_fault(fault(number, format!("`{shown}`"), "key<TAB>offset".to_owned()))?;
            continue;
        };
        if offset >= file_length {
            let expected = format!("an offset below the length of the .rec file, {file_length}");
            on_fault(fault(number, format!("offset {offset} for key {key}"), expected))?;
            continue;
        }
        entries.push(Entry { key, offset });
    }
    if entries.is_empty() {
        on_fault(fault(0, "an empty index".to_owned(), "key<TAB>offset lines".to_owned()))?;
    }
    Ok(entries)
}

#[cfg(test)]
pub(crate) mod testing;

#[cfg(test)]
mod tests {
    use super::testing::{Writer, payload};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn whole_and_divided_records_are_read_back() {
        let magic = MAGIC.to_le_bytes();
        let payloads: Vec<Vec<u8>> = vec![
            b"four".to_vec(),
            b"seven b".to_vec(),
            magic.to_vec(),
            [&magic[..], &magic, b"tail"].concat(),
            [&b"word"[..], &magic, b"more", &magic, b"x"].concat(),
            // Not at a multiple of four: stays whole.
            [&b"odd"[..], &magic, b"1"].concat(),
            vec![],
        ];
        let mut writer = Writer::default();
        let offsets: Vec<u64> = payloads.iter().map(|payload| writer.push(payload)).collect();
        for (index, (&offset, payload)) in offsets.iter().zip(&payloads).enumerate() {
            let (read, next) = read_record(&writer.bytes, offset).unwrap();
            assert_eq!(read.as_ref(), payload.as_slice(), "record {index}");
            assert_eq!(next, offsets.get(index + 1).copied().unwrap_or(writer.bytes.len() as u64));
            assert_eq!(matches!(read, Cow::Owned(_)), [2, 3, 4].contains(&index));
        }
    }

    #[test]
    fn both_spellings_of_the_label_and_bad_labels() {
        let plain = payload(&[], 7.0, b"image");
        let header = Header::parse(&plain).unwrap();
        assert_eq!((header.class().unwrap(), header.image), (7, &b"image"[..]));
        let several = payload(&[3.0, 99.0], 7.0, b"image");
        let header = Header::parse(&several).unwrap();
        assert_eq!((header.class().unwrap(), header.label(1), header.image), (3, Some(99.0), &b"image"[..]));
        assert_eq!(header.label(2), None);
        for label in [-1.0, 0.5, f32::NAN, f32::INFINITY, 3e9] {
            assert!(Header::parse(&payload(&[], label, b"")).unwrap().class().is_err(), "{label}");
            assert!(Header::parse(&payload(&[label], 1.0, b"")).unwrap().class().is_err(), "{label}");
        }
        assert!(Header::parse(&several[..30]).is_err());
        assert!(Header::parse(&several[..20]).is_err());
        let mut absurd = several.clone();
        absurd[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(Header::parse(&absurd).is_err());
    }

    #[test]
    fn damage_is_named_by_file_key_and_offset() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("faces.rec");
        let mut writer = Writer::default();
        let first = writer.push(&payload(&[], 0.0, b"first image"));
        let second = writer.push(&payload(&[], 1.0, b"second image"));
        let index = format!("0\t{first}\n1\t{second}\n");
        let message = |bytes: &[u8], index: &str, key: usize| {
            std::fs::write(&path, bytes).unwrap();
            std::fs::write(path.with_extension("idx"), index).unwrap();
            let records = match RecordFile::open(&path) {
                Ok(records) => records,
                Err(error) => return error.to_string(),
            };
            records.payload(records.entries()[key]).unwrap_err().to_string()
        };

        let truncated = message(&writer.bytes[..writer.bytes.len() - 5], &index, 1);
        assert!(truncated.contains(&format!("faces.rec, key 1, byte {second}")), "{truncated}");
        assert!(truncated.contains("36 bytes"), "{truncated}");
        let shifted = message(&writer.bytes, &format!("0\t0\n7\t{}", second + 4), 1);
        assert!(shifted.contains("key 7") && shifted.contains("the magic word 0xced7230a"), "{shifted}");
        let past = message(&writer.bytes, "0\t0\n1\t5000\n", 1);
        assert!(past.contains("faces.idx, line 2") && past.contains("5000"), "{past}");
        for bad in ["0 zero", "0\t0\t0", "0", "-1\t0", "\n"] {
            let text = message(&writer.bytes, bad, 0);
            assert!(text.contains("faces.idx, line 1"), "{bad:?}: {text}");
        }
        for (flag, first_part) in [(2_u32, true), (3, true), (0, false), (1, false)] {
            let mut bytes = Vec::new();
            if !first_part {
                bytes.extend_from_slice(&Writer::part(1, b"abcd"));
            }
            bytes.extend_from_slice(&Writer::part(flag, b"abcd"));
            let text = message(&bytes, "0\t0\n", 0);
            assert!(text.contains(&format!("part flag {flag}")), "{text}");
        }
        assert!(message(b"", "0\t0\n", 0).contains("an empty file"));
    }

    #[test]
    fn without_an_index_the_records_are_found_by_a_pass() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("faces.rec");
        let mut writer = Writer::default();
        let offsets = [
            writer.push(b"one"),
            writer.push(&[MAGIC.to_le_bytes(), MAGIC.to_le_bytes()].concat()),
            writer.push(b"three"),
        ];
        // The last record's padding may be missing.
        std::fs::write(&path, &writer.bytes[..writer.bytes.len() - 3]).unwrap();
        let records = RecordFile::open(&path).unwrap();
        let found: Vec<(u64, u64)> =
            records.entries().iter().map(|entry| (entry.key, entry.offset)).collect();
        assert_eq!(found, [(0, offsets[0]), (1, offsets[1]), (2, offsets[2])]);

        std::fs::write(&path, &writer.bytes[..writer.bytes.len() - 5]).unwrap();
        let error = RecordFile::open(&path).unwrap_err().to_string();
        assert!(error.contains(&format!("key 2, byte {}", offsets[2])), "{error}");
    }

    #[test]
    fn damage_can_be_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("faces.rec");
        let mut writer = Writer::default();
        let magic = MAGIC.to_le_bytes();
        let offsets: Vec<u64> =
            (0..5_u8).map(|at| writer.push(&[&[at; 8][..], &magic, &[at; 5]].concat())).collect();
        // The length of record 1 and the magic word of record 3.
        writer.bytes[offsets[1] as usize + 5] = 0xff;
        writer.bytes[offsets[3] as usize] = 0;
        writer.bytes.truncate(writer.bytes.len() - 9);
        std::fs::write(&path, &writer.bytes).unwrap();
        let open = || {
            let mut faults = Vec::new();
            let file = RecordFile::open_past(&path, &mut |fault| {
                faults.push(fault.to_string());
                Ok(())
            });
            (file.unwrap(), faults)
        };
        let (file, faults) = open();
        let found: Vec<u64> = file.entries().iter().map(|entry| entry.offset).collect();
        assert_eq!(found, [offsets[0], offsets[2]]);
        assert_eq!(faults.len(), 3, "{faults:?}");
        for (fault, at) in faults.iter().zip([1, 3, 4]) {
            assert!(fault.contains(&format!("byte {}:", offsets[at])), "{fault}");
        }
        assert!(RecordFile::open(&path).is_err());

        std::fs::write(path.with_extension("idx"), "0\t0\nx\n2\t9999\n3\t4\n").unwrap();
        let (file, faults) = open();
        assert_eq!(file.entries(), [Entry { key: 0, offset: 0 }, Entry { key: 3, offset: 4 }]);
        assert!(faults[0].contains("line 2") && faults[1].contains("line 3"), "{faults:?}");
    }

    proptest! {
        #[test]
        fn arbitrary_payloads_survive_a_round_trip(
            payloads in prop::collection::vec(
                prop::collection::vec(prop_oneof![Just(MAGIC), any::<u32>()], 0..6), 1..5),
            cut in 0..4_usize,
        ) {
            let mut writer = Writer::default();
            let mut written = Vec::new();
            for words in payloads {
                let mut payload: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
                payload.truncate(payload.len().saturating_sub(cut));
                written.push((writer.push(&payload), payload));
            }
            for (offset, payload) in written {
                let (read, _) = read_record(&writer.bytes, offset).unwrap();
                prop_assert_eq!(read.as_ref(), payload.as_slice());
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(
            mut bytes in prop::collection::vec(any::<u8>(), 0..200),
            offset in 0..220_u64,
            words in prop::collection::vec((0..50_usize, 0..8_u32, 0..60_u32), 0..6),
        ) {
            // Plausible part headers in between, so that more than the first check is reached.
            for (at, flag, length) in words {
                let header = [MAGIC.to_le_bytes(), ((flag << 29) | length).to_le_bytes()].concat();
                if let Some(place) = bytes.get_mut(at * 4..at * 4 + 8) {
                    place.copy_from_slice(&header);
                }
            }
            if let Ok((payload, next)) = read_record(&bytes, offset) {
                prop_assert!(next > offset && next <= bytes.len() as u64);
                if let Ok(header) = Header::parse(&payload) {
                    let _ = header.class();
                }
            }
            let _ = Header::parse(&bytes);
            let _ = parse_index(Path::new("x.idx"), &String::from_utf8_lossy(&bytes), 100, &mut Err);
        }
    }
}
