//! Checkpoints of a run: a folder each, complete or absent, the newest complete one found again whatever happened.
//!
//! `checkpoints/step-00001000/` holds `state.safetensors`, all tensors that training depends on, and `manifest.json`, a
//! small file with the lengths and SHA-256 of both and everything that is not a tensor. A checkpoint is written in a
//! folder with another name, each file and the folder are synced, and then it is renamed: what has the name of a
//! checkpoint is whole, unless the disk damaged it, which the checksums find.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::interchange::files::{remove, rename, sync_folder, write_atomically};
use crate::interchange::safetensors::{hash_file, hex};
use crate::interchange::tensor_file::TensorFile;
use crate::{Error, Result};

const STATE: &str = "state.safetensors";
const MANIFEST: &str = "manifest.json";
/// The version of the manifest that this program writes, and the only one that it reads.
const FORMAT: u32 = 1;
/// What ends the name of a folder that is being written or removed.
const PARTIAL: &str = ".partial";
/// What ends the name of a checkpoint in whose place another one is put.
const REPLACED: &str = ".replaced.partial";
/// What ends the name of a checkpoint that was found to be damaged.
const DAMAGED: &str = ".damaged";

/// What a manifest holds. The body is what the run says of itself.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format: u32,
    producer: String,
    /// Steps done.
    step: u64,
    /// Length and SHA-256 of the tensors.
    state_bytes: u64,
    state_sha256: String,
    body: serde_json::Value,
    /// SHA-256 of this manifest with an empty string here.
    sha256: String,
}

impl Manifest {
    fn checksum(&self) -> Result<String> {
        let bare = serde_json::json!({
            "format": self.format,
            "producer": self.producer,
            "step": self.step,
            "state_bytes": self.state_bytes,
            "state_sha256": self.state_sha256,
            "body": self.body,
            "sha256": "",
        });
        // The map of serde_json is sorted, so that the same contents are the same text.
        Ok(hex(Sha256::new_with_prefix(bare.to_string())))
    }
}

/// The checkpoints of a run.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    folder: PathBuf,
}

/// A checkpoint that is whole.
#[derive(Debug)]
pub struct Checkpoint<T> {
    /// Its folder.
    pub folder: PathBuf,
    /// Steps done.
    pub step: u64,
    /// The program that wrote it, with its version.
    pub producer: String,
    /// What the run said of itself.
    pub body: T,
    /// The tensors.
    pub state: TensorFile,
}

impl Checkpoints {
    /// Those of the run in the folder `run`.
    pub fn of(run: &Path) -> Self {
        Self { folder: run.join("checkpoints") }
    }

    /// The folder that they are in.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes the checkpoint after `step` steps: `state` writes the tensors to the path that it gets and returns their
    /// bytes and SHA-256. One of the same step is replaced. Returns its folder.
    ///
    /// # Errors
    /// Where something cannot be written; then nothing of it stays, and the checkpoints that were there do.
    pub fn write<T: Serialize>(
        &self,
        step: u64,
        body: &T,
        state: impl FnOnce(&Path) -> Result<(u64, String)>,
    ) -> Result<PathBuf> {
        let done = self.path(step);
        let partial = self.partial(step);
        let written = self.write_aside(step, body, state, &partial).and_then(|()| {
            let replaced = self.folder.join(format!("{}{REPLACED}", name(step)));
            if done.exists() {
                remove(&replaced)?;
                rename(&done, &replaced)?;
            }
            // Between the two there is none of that name: `recover` puts the old one back.
            rename(&partial, &done)
        });
        let written = written.and_then(|()| self.recover()).inspect_err(|_| drop(self.recover()));
        match written {
            Ok(()) => Ok(done),
            Err(error) => {
                // Half a checkpoint helps nobody, and on a full disk its space is needed.
                drop(remove(&partial));
                Err(error)
            }
        }
    }

    fn write_aside<T: Serialize>(
        &self,
        step: u64,
        body: &T,
        state: impl FnOnce(&Path) -> Result<(u64, String)>,
        partial: &Path,
    ) -> Result<()> {
        let at = |source| Error::io(partial, source);
        remove(partial)?;
        if !self.folder.exists() {
            std::fs::create_dir_all(&self.folder).map_err(at)?;
            // The names that lead to a checkpoint have to be as durable as it is.
            let above = [self.folder.parent(), self.folder.parent().and_then(Path::parent)];
            above.into_iter().flatten().try_for_each(sync_folder).map_err(at)?;
        }
        std::fs::create_dir(partial).map_err(at)?;
        let (state_bytes, state_sha256) = state(&partial.join(STATE))?;
        let body = serde_json::to_value(body).map_err(|error| at(error.into()))?;
        let producer = producer();
        let mut manifest = Manifest {
            format: FORMAT,
            producer,
            step,
            state_bytes,
            state_sha256,
            body,
            sha256: String::new(),
        };
        manifest.sha256 = manifest.checksum()?;
        let text = serde_json::to_string(&manifest).map_err(|error| at(error.into()))?;
        write_atomically(&partial.join(MANIFEST), text.as_bytes())?;
        sync_folder(partial).map_err(at)
    }

    /// Puts a checkpoint back that was to be replaced when the process ended.
    fn recover(&self) -> Result<()> {
        for entry in self.entries()? {
            if let Some(whole) = entry.strip_suffix(REPLACED) {
                let (replaced, whole) = (self.folder.join(&entry), self.folder.join(whole));
                if whole.exists() { remove(&replaced)? } else { rename(&replaced, &whole)? }
            }
        }
        Ok(())
    }

    /// Removes all but the newest `keep` checkpoints, and what an end of the process in the middle left behind.
    ///
    /// # Errors
    /// Where something cannot be removed.
    pub fn prune(&self, keep: usize) -> Result<()> {
        self.recover()?;
        for leftover in self.entries()?.into_iter().filter(|name| name.ends_with(PARTIAL)) {
            remove(&self.folder.join(leftover))?;
        }
        for step in self.steps()?.into_iter().skip(keep.max(1)) {
            // A folder is not removed at once: under its own name half of it would look like a damaged checkpoint.
            let partial = self.partial(step);
            rename(&self.path(step), &partial)?;
            remove(&partial)?;
        }
        Ok(())
    }

    /// Whether there is anything with the name of a checkpoint.
    ///
    /// # Errors
    /// Where the folder cannot be listed.
    pub fn any(&self) -> Result<bool> {
        Ok(!self.steps()?.is_empty())
    }

    /// The newest checkpoint that is whole; `None` where there is none at all. Newer ones that are damaged are handed to
    /// `damaged` and renamed, so that they are no checkpoints any more.
    ///
    /// # Errors
    /// Where all that there are, are damaged; then all keep their names.
    pub fn newest<T: DeserializeOwned>(
        &self,
        mut damaged: impl FnMut(&Error),
    ) -> Result<Option<Checkpoint<T>>> {
        self.recover()?;
        let steps = self.steps()?;
        for (index, &step) in steps.iter().enumerate() {
            match self.open(step) {
                Ok(checkpoint) => {
                    // They would count among those that are kept, and push whole ones out.
                    for &step in steps.iter().take(index) {
                        let aside = self.folder.join(format!("{}{DAMAGED}", name(step)));
                        remove(&aside)?;
                        rename(&self.path(step), &aside)?;
                    }
                    return Ok(Some(checkpoint));
                }
                Err(error) => damaged(&error),
            }
        }
        if steps.is_empty() {
            return Ok(None);
        }
        Err(Error::data(
            self.folder.display().to_string(),
            format!("{} checkpoints, all of them damaged", steps.len()),
            "one that is whole",
            "copy them again if they were copied; to start anew, move the run's folder away",
        ))
    }

    fn open<T: DeserializeOwned>(&self, step: u64) -> Result<Checkpoint<T>> {
        let folder = self.path(step);
        let path = folder.join(MANIFEST);
        let wrong = |found: String, expected: &str| {
            Error::data(
                path.display().to_string(),
                found,
                expected,
                "an older checkpoint is used if there is one",
            )
        };
        let text = std::fs::read_to_string(&path).map_err(|source| Error::io(&path, source))?;
        let manifest: Manifest = serde_json::from_str(&text)
            .map_err(|error| wrong(error.to_string(), "the manifest of a checkpoint"))?;
        if manifest.format != FORMAT {
            let hint = "use the version of epl that wrote it";
            let found = format!("format {} (written by {})", manifest.format, manifest.producer);
            return Err(Error::data(path.display().to_string(), found, format!("format {FORMAT}"), hint));
        }
        // A number can be spelt in several ways: what was written is compared and not only what it means.
        let spelt = serde_json::to_string(&manifest).map_err(|error| Error::io(&path, error.into()))?;
        if spelt != text || manifest.checksum()? != manifest.sha256 || manifest.step != step {
            return Err(wrong("contents that were changed".into(), "what its checksum says"));
        }
        let state = folder.join(STATE);
        let (bytes, sha256) = hash_file(&state)?;
        if (bytes, &sha256) != (manifest.state_bytes, &manifest.state_sha256) {
            return Err(Error::data(
                state.display().to_string(),
                format!("{bytes} bytes with SHA-256 {sha256}"),
                format!("{} bytes with SHA-256 {}", manifest.state_bytes, manifest.state_sha256),
                "an older checkpoint is used if there is one",
            ));
        }
        let body = serde_json::from_value(manifest.body)
            .map_err(|error| wrong(error.to_string(), "what this version of epl writes"))?;
        let producer = manifest.producer;
        Ok(Checkpoint { folder, step, producer, body, state: TensorFile::open(&state)? })
    }

    fn path(&self, step: u64) -> PathBuf {
        self.folder.join(name(step))
    }

    fn partial(&self, step: u64) -> PathBuf {
        self.folder.join(format!("{}{PARTIAL}", name(step)))
    }

    fn entries(&self) -> Result<Vec<String>> {
        let at = |source| Error::io(&self.folder, source);
        match std::fs::read_dir(&self.folder) {
            Ok(entries) => entries
                .map(|entry| Ok(entry.map_err(at)?.file_name().to_string_lossy().into_owned()))
                .collect(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(source) => Err(at(source)),
        }
    }

    /// The steps of which there are checkpoints, the newest first.
    fn steps(&self) -> Result<Vec<u64>> {
        let step =
            |entry: &String| entry.strip_prefix("step-")?.parse().ok().filter(|&step| name(step) == *entry);
        let mut steps: Vec<u64> = self.entries()?.iter().filter_map(step).collect();
        steps.sort_unstable_by(|a, b| b.cmp(a));
        Ok(steps)
    }
}

/// This program, with its version.
pub fn producer() -> String {
    format!("epl {}", env!("CARGO_PKG_VERSION"))
}

fn name(step: u64) -> String {
    format!("step-{step:08}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interchange::safetensors::StateDict;
    use crate::interchange::tensor_file::TensorSource;
    use proptest::prelude::*;

    type Body = Vec<f64>;

    fn write(checkpoints: &Checkpoints, step: u64) -> PathBuf {
        let mut dict = StateDict::default();
        dict.insert("w", &[3], vec![step as f32, 0.1, -1e-30]);
        let body: Body = vec![step as f64, 0.1 + 0.2, 1e-308];
        checkpoints.write(step, &body, |path| dict.write_hashed(path, &[], |_, _| Ok(()))).unwrap()
    }

    fn newest(checkpoints: &Checkpoints) -> (Option<u64>, Vec<String>) {
        let mut damaged = Vec::new();
        let found = checkpoints.newest::<Body>(|error| damaged.push(error.to_string())).unwrap();
        let step = found.map(|found| {
            assert_eq!(found.body, [found.step as f64, 0.1 + 0.2, 1e-308]);
            assert_eq!(found.state.floats_of("w").unwrap(), [found.step as f32, 0.1, -1e-30]);
            found.step
        });
        (step, damaged)
    }

    #[test]
    fn the_newest_is_found_and_the_oldest_go() {
        let run = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::of(run.path());
        assert_eq!(newest(&checkpoints), (None, vec![]));
        assert!(!checkpoints.any().unwrap());
        checkpoints.prune(1).unwrap();
        for step in [5, 900, 123_456_789] {
            write(&checkpoints, step);
            assert_eq!(newest(&checkpoints), (Some(step), vec![]));
        }
        // One that was there before is replaced.
        write(&checkpoints, 900);
        // What a process leaves that ends in the middle, and what is none of ours.
        std::fs::create_dir(checkpoints.folder().join("step-00000950.partial")).unwrap();
        std::fs::create_dir(checkpoints.folder().join("step-7")).unwrap();
        std::fs::write(checkpoints.folder().join("notes"), "mine").unwrap();
        checkpoints.prune(2).unwrap();
        let mut left = checkpoints.entries().unwrap();
        left.sort();
        assert_eq!(left, ["notes", "step-00000900", "step-123456789", "step-7"]);
    }

    #[test]
    fn a_write_that_fails_leaves_what_was_there() {
        let run = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::of(run.path());
        write(&checkpoints, 1);
        for step in [1, 2] {
            let full = checkpoints.write(step, &(), |path| {
                std::fs::write(path, "half").unwrap();
                Err(Error::io(path, std::io::ErrorKind::StorageFull.into()))
            });
            assert!(full.is_err());
            assert_eq!(checkpoints.entries().unwrap(), ["step-00000001"]);
            assert_eq!(newest(&checkpoints), (Some(1), vec![]));
        }
    }

    #[test]
    fn one_that_was_to_be_replaced_is_put_back() {
        let run = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::of(run.path());
        let done = write(&checkpoints, 7);
        let replaced = checkpoints.folder().join("step-00000007.replaced.partial");
        // As a kill between the two renames leaves them.
        std::fs::rename(&done, &replaced).unwrap();
        std::fs::create_dir(checkpoints.folder().join("step-00000007.partial")).unwrap();
        assert_eq!(newest(&checkpoints), (Some(7), vec![]));
        std::fs::rename(&done, &replaced).unwrap();
        checkpoints.prune(1).unwrap();
        assert_eq!(checkpoints.entries().unwrap(), ["step-00000007"]);
        // One that cannot be put in its place: what was there stays.
        std::fs::rename(&done, &replaced).unwrap();
        assert!(write(&checkpoints, 7).ends_with("step-00000007"));
        assert_eq!(checkpoints.entries().unwrap(), ["step-00000007"]);
    }

    #[test]
    fn damaged_ones_do_not_push_whole_ones_out() {
        let run = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::of(run.path());
        for step in [16, 20] {
            write(&checkpoints, step);
        }
        std::fs::write(checkpoints.path(20).join(STATE), "").unwrap();
        assert_eq!(newest(&checkpoints).0, Some(16));
        write(&checkpoints, 18);
        checkpoints.prune(1).unwrap();
        assert_eq!(newest(&checkpoints), (Some(18), vec![]));
        assert!(checkpoints.folder().join("step-00000020.damaged").is_dir());
    }

    #[test]
    fn damaged_ones_are_named_and_passed_over() {
        let run = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::of(run.path());
        let [first, .., last] = [1, 2, 3, 4, 5].map(|step| write(&checkpoints, step));
        std::fs::remove_file(last.join(STATE)).unwrap();
        std::fs::remove_file(checkpoints.path(4).join(MANIFEST)).unwrap();
        let manifest = checkpoints.path(3).join(MANIFEST);
        let text = std::fs::read_to_string(&manifest).unwrap();
        std::fs::write(&manifest, text.replace("\"format\":1", "\"format\":2")).unwrap();
        std::fs::write(checkpoints.path(2).join(STATE), "").unwrap();
        let (step, damaged) = newest(&checkpoints);
        assert_eq!(step, Some(1));
        for (message, part) in damaged.iter().zip([STATE, MANIFEST, "format 2", "0 bytes"]) {
            assert!(message.contains(part), "{part} is not in {message}");
        }
        assert_eq!(damaged.len(), 4);
        std::fs::remove_file(first.join(MANIFEST)).unwrap();
        let error = checkpoints.newest::<Body>(|_| {}).unwrap_err();
        assert!(error.to_string().contains("1 checkpoints, all of them damaged"), "{error}");
    }

    #[test]
    fn a_change_that_leaves_every_number_as_it_was_is_seen() {
        let run = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::of(run.path());
        write(&checkpoints, 1);
        // Each of these is one bit away from its other spelling.
        for (step, from, to) in [(4, "1e-308", "1E-308"), (3, "0000004", "0000005"), (2, "}", "} ")] {
            let manifest = write(&checkpoints, step).join(MANIFEST);
            let text = std::fs::read_to_string(&manifest).unwrap();
            assert!(text.contains(from), "{text}");
            std::fs::write(&manifest, text.replace(from, to)).unwrap();
            assert_eq!(newest(&checkpoints).0, Some(1), "{to}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_flipped_bit_and_no_cut_goes_unseen(at in 0.0..1.0_f64, bit in 0..8_u32, cut: bool, which: bool) {
            let run = tempfile::tempdir().unwrap();
            let checkpoints = Checkpoints::of(run.path());
            write(&checkpoints, 1);
            let path = write(&checkpoints, 2).join(if which { STATE } else { MANIFEST });
            let mut bytes = std::fs::read(&path).unwrap();
            let at = (at * bytes.len() as f64) as usize;
            bytes[at] ^= 1 << bit;
            if cut {
                bytes.truncate(at);
            }
            std::fs::write(&path, bytes).unwrap();
            let found = checkpoints.newest::<Body>(|_| {}).unwrap().unwrap();
            prop_assert!(found.step == 1);
        }
    }
}
