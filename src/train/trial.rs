//! A note of the kernel that is being tried, for the case that the GPU, the program or the machine does not outlive it: later
//! starts read it, and when that has happened twice they do not try that kernel again.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// A kernel that was tried.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tried {
    /// The op, as [`Choices`](epl_runtime::Choices) name it.
    pub op: String,
    /// One of its variants.
    pub variant: String,
    /// How often it was tried and nothing came back. A program may be killed for another reason just then, but hardly twice.
    pub times: u32,
}

/// The note. Without it kernels are tried all the same, so nothing that goes wrong with it is an error.
pub struct Trial {
    file: Option<File>,
    /// What an earlier start did not come back from.
    suspect: Option<Tried>,
    /// What is being tried.
    now: Option<Tried>,
}

/// How long the note of a process that has just ended may still be locked: Windows takes its time.
const PATIENCE: Duration = Duration::from_secs(if cfg!(windows) { 2 } else { 0 });

impl Trial {
    /// Opens the note at `path`, which says what an earlier start tried last and did not come back from. The note of a
    /// process that is at it says nothing; there is none then.
    pub fn open(path: Option<&Path>) -> Self {
        let open = || -> Option<(File, String)> {
            let path = path?;
            std::fs::create_dir_all(path.parent()?).ok()?;
            let mut file =
                OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).ok()?;
            // Let go of when the process ends, however it ends.
            let deadline = Instant::now() + PATIENCE;
            while let Err(error) = file.try_lock() {
                if Instant::now() >= deadline || matches!(error, TryLockError::Error(_)) {
                    return None;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            let mut text = String::new();
            // What was cut short, or is no text, names no kernel.
            drop(file.read_to_string(&mut text));
            Some((file, text))
        };
        let (file, text) = open().unzip();
        Self { file, suspect: text.and_then(|text| serde_json::from_str(&text).ok()), now: None }
    }

    /// What is not to be tried again: twice nothing came back from it.
    pub fn fatal(&self) -> Option<&Tried> {
        self.suspect.as_ref().filter(|tried| tried.times > 1)
    }

    /// What is being tried.
    pub fn now(&self) -> Option<&Tried> {
        self.now.as_ref()
    }

    /// Notes what is tried next, durably.
    pub fn tries(&mut self, op: &str, variant: &str) {
        let before = self.suspect.as_ref().filter(|tried| tried.op == op && tried.variant == variant);
        let times = 1 + before.map_or(0, |tried| tried.times);
        let tried = Tried { op: op.to_owned(), variant: variant.to_owned(), times };
        self.write(&serde_json::to_vec(&tried).unwrap_or_default());
        self.now = Some(tried);
    }

    /// Notes that all came back.
    pub fn came_back(&mut self) {
        if self.now.take().is_some() || self.suspect.take().is_some() {
            self.write(b"");
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        let write = |file: &mut File| -> std::io::Result<()> {
            file.set_len(0)?;
            file.rewind()?;
            file.write_all(bytes)?;
            file.sync_data()
        };
        if let Some(file) = &mut self.file
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
        let open = || Trial::open(Some(&path));
        let mut first = open();
        first.tries("an op with a long name", "tiled");
        first.tries("op", "small");
        // A second process has no part in it.
        let mut beside = open();
        beside.tries("op", "tiled");
        beside.came_back();
        drop(first);
        let mut second = open();
        let small = |times| Tried { op: "op".into(), variant: "small".into(), times };
        assert_eq!((second.suspect.clone(), second.fatal()), (Some(small(1)), None), "once may be chance");
        second.tries("op", "small");
        assert_eq!(second.now(), Some(&small(2)));
        drop(second);
        let mut third = open();
        assert_eq!(third.fatal(), Some(&small(2)));
        third.came_back();
        drop(third);
        assert_eq!(open().suspect, None);
        // What came back is no suspect any more.
        let mut fourth = open();
        fourth.tries("op", "small");
        fourth.came_back();
        drop(fourth);
        for rubbish in [&b"{\"op\": \"half a no"[..], b"\xff\xfe", b"[]", b""] {
            assert_eq!(open().suspect, None);
            std::fs::write(&path, rubbish).unwrap();
        }
        assert_eq!(open().suspect, None);
        assert_eq!(Trial::open(None).suspect, None);
    }
}
