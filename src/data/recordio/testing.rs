//! A RecordIO writer for tests, written from the format's description and not from the reader.

use std::path::Path;

use super::MAGIC;

/// A record file under construction.
#[derive(Default)]
pub struct Writer {
    /// What the file holds so far.
    pub bytes: Vec<u8>,
}

impl Writer {
    /// One part of a record, padded.
    pub fn part(flag: u32, contents: &[u8]) -> Vec<u8> {
        let word = (flag << 29) | contents.len() as u32;
        let mut part = [&MAGIC.to_le_bytes(), &word.to_le_bytes(), contents].concat();
        part.resize(part.len().next_multiple_of(4), 0);
        part
    }

    /// Appends a record, divided at every magic word at a multiple of four, and returns its offset.
    pub fn push(&mut self, payload: &[u8]) -> u64 {
        let offset = self.bytes.len() as u64;
        let mut parts = Vec::new();
        let mut start = 0;
        for at in (0..payload.len() & !3).step_by(4) {
            if payload[at..at + 4] == MAGIC.to_le_bytes() {
                parts.push(&payload[start..at]);
                start = at + 4;
            }
        }
        parts.push(&payload[start..]);
        let last = parts.len() - 1;
        for (index, part) in parts.iter().enumerate() {
            let flag = match index {
                _ if last == 0 => 0,
                0 => 1,
                index if index == last => 3,
                _ => 2,
            };
            self.bytes.extend_from_slice(&Self::part(flag, part));
        }
        offset
    }
}

/// A payload: with `labels` behind the header if there are any, else with `label` in it.
pub fn payload(labels: &[f32], label: f32, image: &[u8]) -> Vec<u8> {
    let mut bytes = (labels.len() as u32).to_le_bytes().to_vec();
    bytes.extend_from_slice(&label.to_le_bytes());
    bytes.extend_from_slice(&[0; 16]);
    labels.iter().for_each(|label| bytes.extend_from_slice(&label.to_le_bytes()));
    bytes.extend_from_slice(image);
    bytes
}

/// Writes `records` (key, payload) to `path` and their index beside it.
pub fn write(path: &Path, records: &[(u64, Vec<u8>)]) {
    let mut writer = Writer::default();
    let mut index = String::new();
    for (key, payload) in records {
        index.push_str(&format!("{key}\t{}\n", writer.push(payload)));
    }
    std::fs::write(path, writer.bytes).unwrap();
    std::fs::write(path.with_extension("idx"), index).unwrap();
}
