//! A note of the kernel that is being tried, for the case that the GPU, the program or the machine does not outlive it: the next
//! start reads it and does not try that kernel again.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

/// A kernel that was tried.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tried {
    /// The op, as [`Choices`](epl_runtime::Choices) name it.
    pub op: String,
    /// One of its variants.
    pub variant: String,
}

/// The note. Without it kernels are tried all the same, so nothing that goes wrong with it is an error.
pub struct Trial(Option<File>);

impl Trial {
    /// Opens the note at `path`, and returns what an earlier start tried last and did not come back from. The note of a
    /// process that is at it says nothing; there is none then.
    pub fn open(path: Option<&Path>) -> (Self, Option<Tried>) {
        let open = || -> Option<(File, String)> {
            let path = path?;
            std::fs::create_dir_all(path.parent()?).ok()?;
            let mut file =
                OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).ok()?;
            // Let go of when the process ends, however it ends.
            file.try_lock().ok()?;
            let mut text = String::new();
            // What was cut short, or is no text, names no kernel.
            drop(file.read_to_string(&mut text));
            Some((file, text))
        };
        match open() {
            Some((file, text)) => (Self(Some(file)), serde_json::from_str(&text).ok()),
            None => (Self(None), None),
        }
    }

    /// Notes what is tried next, durably.
    pub fn tries(&mut self, op: &str, variant: &str) {
        let tried = Tried { op: op.to_owned(), variant: variant.to_owned() };
        self.write(&serde_json::to_vec(&tried).unwrap_or_default());
    }

    /// Notes that all came back.
    pub fn came_back(&mut self) {
        self.write(b"");
    }

    fn write(&mut self, bytes: &[u8]) {
        let write = |file: &mut File| -> std::io::Result<()> {
            file.set_len(0)?;
            file.rewind()?;
            file.write_all(bytes)?;
            file.sync_data()
        };
        if let Some(file) = &mut self.0
            && write(file).is_err()
        {
            // An old note would accuse a kernel that came back.
            drop(file.set_len(0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_start_reads_what_did_not_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kernels").join("note.json");
        let (mut first, none) = Trial::open(Some(&path));
        assert_eq!(none, None);
        first.tries("an op with a long name", "tiled");
        first.tries("op", "small");
        // A second process has no part in it.
        let (mut beside, none) = Trial::open(Some(&path));
        assert_eq!(none, None);
        beside.came_back();
        drop(first);
        let (mut second, tried) = Trial::open(Some(&path));
        assert_eq!(tried, Some(Tried { op: "op".into(), variant: "small".into() }));
        second.came_back();
        drop(second);
        assert_eq!(Trial::open(Some(&path)).1, None);
        for rubbish in [&b"{\"op\": \"half a no"[..], b"\xff\xfe", b"[]", b""] {
            std::fs::write(&path, rubbish).unwrap();
            assert_eq!(Trial::open(Some(&path)).1, None);
        }
        assert_eq!(Trial::open(None).1, None);
    }
}
