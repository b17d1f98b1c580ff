//! Files that are there whole or not at all, whatever happens while they are written.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Checks that `out`, which is to be written, is none of the files that are `read`.
///
/// # Errors
/// [`Error::Usage`] naming it.
pub fn distinct<'a>(out: &Path, read: impl IntoIterator<Item = &'a Path>) -> Result<()> {
    let Ok(there) = out.canonicalize() else { return Ok(()) };
    if read.into_iter().any(|path| path.canonicalize().is_ok_and(|path| path == there)) {
        return Err(Error::usage(
            format!("{} is read and written", out.display()),
            "name another file for the result",
        ));
    }
    Ok(())
}

/// Writes `bytes` to `path` so that a reader finds the old file or the new one, whatever happens in between.
///
/// # Errors
/// [`Error::Io`] naming `path`, which stays as it was.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let aside = aside(path);
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&aside)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    match write() {
        Ok(()) => rename(&aside, path),
        Err(source) => {
            // Half a file helps nobody, and on a full disk its space is needed.
            drop(std::fs::remove_file(&aside));
            Err(Error::io(path, source))
        }
    }
}

/// Gives `from`, whose contents are durable, the name `to`, durably: in the place of a file that has it.
///
/// # Errors
/// [`Error::Io`] naming `to`.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    let renamed = std::fs::rename(from, to).and_then(|()| match to.parent() {
        Some(folder) => sync_folder(folder),
        None => Ok(()),
    });
    renamed.map_err(|source| Error::io(to, source))
}

/// Makes the names in `folder` durable: a file that is synced may still be lost with its name.
#[cfg(unix)]
pub fn sync_folder(folder: &Path) -> std::io::Result<()> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    match File::open(folder)?.sync_all() {
        // Some network file systems know no such thing.
        Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => Ok(()),
        other => other,
    }
}

/// Makes the names in `folder` durable: elsewhere than on Unix a folder cannot be synced, and the file system's journal
/// does it.
#[cfg(not(unix))]
pub fn sync_folder(_folder: &Path) -> std::io::Result<()> {
    Ok(())
}

/// Removes the file or the folder at `path`, with all that is in it, if it is there.
///
/// # Errors
/// [`Error::Io`] naming what could not be removed.
pub fn remove(path: &Path) -> Result<()> {
    let removed = match std::fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(source) => Err(source),
    };
    match removed {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path, source)),
        _ => Ok(()),
    }
}

/// Checks that [`write_atomically`] can write `path`, which stays as it is, so that long work for it is not in vain.
/// Makes the folder that it is to be in.
///
/// # Errors
/// [`Error::Io`] where the folder cannot be made, `path` is a folder, or no file can be made beside it.
pub fn probe(path: &Path) -> Result<()> {
    let probe = || -> std::io::Result<()> {
        if path.is_dir() {
            return Err(std::io::ErrorKind::IsADirectory.into());
        }
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let aside = aside(path);
        File::create(&aside)?;
        std::fs::remove_file(&aside)
    };
    probe().map_err(|source| Error::io(path, source))
}

/// The file that becomes `path` once it is whole.
pub(super) fn aside(path: &Path) -> PathBuf {
    // The whole name, so that w.onnx and w.safetensors do not share it; hidden and ours, so that it is nobody's file.
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".epl.partial");
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_finds_what_cannot_be_written_and_leaves_nothing() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let new = folder.path().join("new/w.safetensors");
        probe(&new).expect("writable");
        assert_eq!(std::fs::read_dir(folder.path().join("new")).expect("made").count(), 0);
        assert!(probe(&folder.path().join("new")).is_err(), "a folder");
        let file = folder.path().join("file");
        std::fs::write(&file, "notes").expect("written");
        probe(&file).expect("it may be replaced");
        assert_eq!(std::fs::read(&file).expect("there"), b"notes");
        assert!(probe(&file.join("w.safetensors")).is_err(), "below a file");
    }

    #[test]
    fn what_is_removed_is_gone_and_may_have_been_gone_before() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let inner = folder.path().join("a");
        std::fs::create_dir_all(inner.join("b")).expect("made");
        std::fs::write(inner.join("b/file"), "x").expect("written");
        for path in [&inner, &inner, &folder.path().join("absent")] {
            remove(path).expect("removed");
            assert!(!path.exists());
        }
    }
}
