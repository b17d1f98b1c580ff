//! The directory of a zip archive, read strictly: two readers of one archive must see the same files.
//!
//! An archive is refused where readers could disagree about it: two entries of one name, entries that overlap, a local
//! header that names another file than the directory. Nothing is unpacked here; an entry is a range of the file, so that
//! what is stored uncompressed, as PyTorch does it, is read where it lies. Format: PKWARE's APPNOTE 6.3.10, with zip64.
//! Checksums are not verified: PyTorch can be told to write other ones (`torch.serialization.set_crc32_options`).

use std::collections::BTreeMap;
use std::io::Read;
use std::ops::Range;

/// Why an archive was refused: what was found, and what was expected.
pub type Fault = (String, &'static str);

/// A file in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its bytes in the archive, as they are stored.
    pub bytes: Range<usize>,
    /// Its length in bytes when unpacked.
    pub size: usize,
    /// Whether it is compressed (deflate) or stored as it is.
    pub deflated: bool,
}

/// The files of an archive by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Archive {
    entries: BTreeMap<String, Entry>,
}

const LOCAL: u32 = 0x0403_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;
const END64: u32 = 0x0606_4b50;
const LOCATOR64: u32 = 0x0706_4b50;
const END_BYTES: usize = 22;
const LOCATOR64_BYTES: usize = 20;
/// Deflate makes no more than this of a byte (zlib's technical details: 1032 to 1).
const MOST_OF_A_BYTE: usize = 1032;

impl Archive {
    /// Reads the directory of the archive `file`.
    ///
    /// # Errors
    /// A directory that is not there or not whole, and whatever makes the archive ambiguous.
    pub fn read(file: &[u8]) -> Result<Self, Fault> {
        let directory = Directory::find(file)?;
        let mut entries = BTreeMap::new();
        let mut taken = Vec::new();
        let mut at = directory.bytes.start;
        for _ in 0..directory.count {
            let (name, entry, header, next) = central(file, at, &directory.bytes)?;
            taken.push(header..entry.bytes.end);
            at = next;
            // Folders of archives that were packed by hand.
            if name.ends_with('/') && entry.size == 0 {
                continue;
            }
            if entries.insert(name.clone(), entry).is_some() {
                return Err((format!("two entries called {name:?}"), "one entry of a name"));
            }
        }
        if at != directory.bytes.end {
            return Err(("a directory longer than its entries".to_owned(), "a zip archive"));
        }
        taken.sort_by_key(|range| (range.start, range.end));
        if taken.windows(2).any(|pair| matches!(pair, [first, second] if first.end > second.start)) {
            return Err(("entries that overlap".to_owned(), "entries with bytes of their own"));
        }
        Ok(Self { entries })
    }

    /// The entry called `name`.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// The names of all entries, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }
}

impl Entry {
    /// The bytes of the entry in the archive `file`, unpacked if they are compressed; `most` bounds their number.
    ///
    /// # Errors
    /// More than `most` bytes, or compressed data that are damaged.
    pub fn unpack(&self, file: &[u8], most: usize) -> Result<Vec<u8>, Fault> {
        let stored = file.get(self.bytes.clone()).unwrap_or_default();
        if self.size > most {
            return Err((format!("{} bytes", self.size), "less"));
        }
        if !self.deflated {
            return Ok(stored.to_vec());
        }
        if self.size / MOST_OF_A_BYTE > stored.len() {
            let found = format!("{} bytes said to be packed in {}", self.size, stored.len());
            return Err((found, "a size that compression can reach"));
        }
        let mut unpacked = Vec::with_capacity(self.size);
        let mut reader = flate2::read::DeflateDecoder::new(stored).take(self.size as u64 + 1);
        match reader.read_to_end(&mut unpacked) {
            Ok(length) if length == self.size => Ok(unpacked),
            Ok(length) => Err((format!("{length} bytes of {}", self.size), "as many as the archive says")),
            Err(error) => Err((error.to_string(), "data compressed with deflate")),
        }
    }
}

/// Where the central directory is.
struct Directory {
    bytes: Range<usize>,
    count: u64,
}

impl Directory {
    fn find(file: &[u8]) -> Result<Self, Fault> {
        let absent = || ("no directory at its end".to_owned(), "a whole zip archive");
        let last = file.len().checked_sub(END_BYTES).ok_or_else(absent)?;
        // A comment of at most 64 KiB may follow.
        let mut candidates = (last.saturating_sub(usize::from(u16::MAX))..=last).rev();
        let end = candidates
            .find(|&at| {
                number::<4>(file, at) == Some(u64::from(END))
                    && number::<2>(file, at + 20) == Some((last - at) as u64)
            })
            .ok_or_else(absent)?;
        let field = |at: usize| number::<2>(file, end + at).unwrap_or(0);
        let wide = |at: usize| number::<4>(file, end + at).unwrap_or(0);
        let split = [field(4), field(6)].iter().any(|&disk| disk != 0 && disk != 0xffff);
        if split || field(8) != field(10) {
            return Err(("a part of an archive in several files".to_owned(), "an archive in one file"));
        }
        let (mut count, mut size, mut start) = (field(10), wide(12), wide(16));
        let mut limit = end;
        if let Some(locator) = end.checked_sub(LOCATOR64_BYTES)
            && number::<4>(file, locator) == Some(u64::from(LOCATOR64))
        {
            let damaged = || ("a damaged zip64 directory".to_owned(), "a whole zip archive");
            let end64 = number::<8>(file, locator + 8).and_then(|at| usize::try_from(at).ok());
            let end64 = end64.filter(|&at| at < locator).ok_or_else(damaged)?;
            if number::<4>(file, end64) != Some(u64::from(END64)) {
                return Err(damaged());
            }
            let value = |at: usize| number::<8>(file, end64 + at).ok_or_else(damaged);
            let (count64, size64, start64) = (value(32)?, value(40)?, value(48)?);
            let agrees = |short: u64, most: u64, long: u64| short == most || short == long;
            if !agrees(count, 0xffff, count64)
                || !agrees(size, 0xffff_ffff, size64)
                || !agrees(start, 0xffff_ffff, start64)
            {
                return Err(("two directories that disagree".to_owned(), "one"));
            }
            (count, size, start, limit) = (count64, size64, start64, end64);
        }
        let range = (usize::try_from(start).ok()).zip(usize::try_from(size).ok());
        let range = range.and_then(|(start, size)| Some(start..start.checked_add(size)?));
        match range {
            Some(bytes) if bytes.end == limit => Ok(Self { bytes, count }),
            _ => Err(("a directory that is not where the archive says".to_owned(), "a whole zip archive")),
        }
    }
}

/// The directory's entry at `at`: its name, the entry, where its local header starts, and where the next one is.
fn central(file: &[u8], at: usize, directory: &Range<usize>) -> Result<(String, Entry, usize, usize), Fault> {
    let damaged = || ("a damaged directory".to_owned(), "a whole zip archive");
    let field = |offset: usize| number::<2>(file, at + offset).ok_or_else(damaged);
    let wide = |offset: usize| number::<4>(file, at + offset).ok_or_else(damaged);
    if at >= directory.end || wide(0)? != u64::from(CENTRAL) {
        return Err(damaged());
    }
    let (flags, method) = (field(8)?, field(10)?);
    let (name_bytes, extra_bytes, comment) = (field(28)? as usize, field(30)? as usize, field(32)? as usize);
    let name_at = at + 46;
    let extra_at = name_at + name_bytes;
    let next = extra_at + extra_bytes + comment;
    if next > directory.end {
        return Err(damaged());
    }
    let raw = file.get(name_at..extra_at).unwrap_or_default();
    let name = std::str::from_utf8(raw).map_err(|_| ("a name that is not UTF-8".to_owned(), "UTF-8"))?;
    let leads_out = name.split('/').any(|part| part == ".." || part == ".");
    if name.is_empty() || leads_out || name.starts_with('/') || name.contains(['\\', '\0', ':']) {
        return Err((format!("an entry called {name:?}"), "names of files in folders of the archive"));
    }
    if flags & 1 != 0 {
        return Err((format!("{name}, which is encrypted"), "an archive without a password"));
    }
    let mut sizes = [wide(24)?, wide(20)?, wide(42)?];
    let extra = file.get(extra_at..extra_at + extra_bytes).unwrap_or_default();
    widen(&mut sizes, extra).ok_or_else(damaged)?;
    let [size, packed, header] = sizes.map(|value| usize::try_from(value).ok());
    let (size, packed, header) =
        (size.ok_or_else(damaged)?, packed.ok_or_else(damaged)?, header.ok_or_else(damaged)?);
    if header >= directory.start || number::<4>(file, header) != Some(u64::from(LOCAL)) {
        return Err((format!("no {name} where the directory says"), "a whole zip archive"));
    }
    let local = |offset: usize| number::<2>(file, header + offset).map(|value| value as usize);
    let (local_name, local_extra) = (local(26).ok_or_else(damaged)?, local(28).ok_or_else(damaged)?);
    if file.get(header + 30..header + 30 + local_name) != Some(raw) {
        return Err((format!("another name than {name} before its data"), "a whole zip archive"));
    }
    let start = header + 30 + local_name + local_extra;
    let end = start.checked_add(packed).filter(|&end| end <= directory.start);
    let end = end.ok_or_else(|| {
        (format!("{name} of {packed} bytes, which reaches beyond the data"), "a whole zip archive")
    })?;
    let deflated = match method {
        0 if size == packed => false,
        8 => true,
        0 => return Err((format!("{name} with two lengths, {size} and {packed}"), "one")),
        other => {
            return Err((format!("{name} in compression {other}"), "stored or compressed with deflate"));
        }
    };
    Ok((name.to_owned(), Entry { bytes: start..end, size, deflated }, header, next))
}

/// Replaces those of size, packed size and header's place that do not fit 32 bits by the zip64 field of `extra`; `None`
/// where it lacks one of them.
fn widen(sizes: &mut [u64; 3], extra: &[u8]) -> Option<()> {
    const SATURATED: u64 = 0xffff_ffff;
    if !sizes.contains(&SATURATED) {
        return Some(());
    }
    let mut at = 0;
    while let (Some(id), Some(length)) = (number::<2>(extra, at), number::<2>(extra, at + 2)) {
        let field = extra.get(at + 4..at + 4 + length as usize)?;
        if id == 1 {
            let mut wide = field.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes));
            for size in sizes.iter_mut().filter(|size| **size == SATURATED) {
                *size = wide.next()?;
            }
            return Some(());
        }
        at += 4 + length as usize;
    }
    None
}

/// The little-endian number of N bytes at `at`.
fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<u64> {
    let field = bytes.get(at..at.checked_add(N)?)?;
    Some(field.iter().rev().fold(0, |value, &byte| (value << 8) | u64::from(byte)))
}
