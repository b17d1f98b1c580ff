//! Files that are never half there: written beside their place, synced, and renamed when all of them are
//! whole.

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::interchange::files::rename;
use crate::{Error, Result};

/// A file under construction. Until [`Sealed::publish`] its place holds what it held before; dropped earlier,
/// it leaves nothing behind.
#[derive(Debug)]
pub struct AsideFile {
    file: BufWriter<File>,
    written: u64,
    place: Place,
}

/// A file that is whole and synced, but not yet at its place.
#[derive(Debug)]
#[must_use = "the file is not at its place before it is published"]
pub struct Sealed(Place);

/// Where a file is and where it is to be; removed if it never gets there.
#[derive(Debug)]
struct Place {
    path: PathBuf,
    aside: PathBuf,
    published: bool,
}

impl AsideFile {
    /// Starts the file that is to be at `path`; makes the folder that it is to be in.
    ///
    /// # Errors
    /// [`Error::Usage`] where `path` exists and is not to be replaced; [`Error::Io`] where it cannot be made.
    pub fn create(path: &Path, replace: bool) -> Result<Self> {
        refuse_existing(path, replace)?;
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|source| Error::io(folder, source))?;
        }
        let aside = aside(path);
        let file = File::create(&aside).map_err(|source| Error::io(&aside, source))?;
        let place = Place { path: path.to_path_buf(), aside, published: false };
        Ok(Self { file: BufWriter::with_capacity(1 << 18, file), written: 0, place })
    }

    /// The number of bytes written so far.
    pub fn position(&self) -> u64 {
        self.written
    }

    /// Appends `bytes`.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|source| Error::io(&self.place.path, source))?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Replaces what was written at `offset`; the next bytes go to the end again.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file.
    pub fn rewrite(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let mut rewrite = || -> std::io::Result<()> {
            self.file.seek(SeekFrom::Start(offset))?;
            self.file.write_all(bytes)?;
            self.file.seek(SeekFrom::Start(self.written)).map(drop)
        };
        rewrite().map_err(|source| Error::io(&self.place.path, source))
    }

    /// Brings everything to the disk.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file.
    pub fn seal(mut self) -> Result<Sealed> {
        let sync = |file: &mut BufWriter<File>| file.flush().and_then(|()| file.get_ref().sync_all());
        sync(&mut self.file).map_err(|source| Error::io(&self.place.path, source))?;
        Ok(Sealed(self.place))
    }
}

impl Sealed {
    /// Puts the file in its place.
    ///
    /// # Errors
    /// [`Error::Io`] naming the place.
    pub fn publish(mut self) -> Result<()> {
        rename(&self.0.aside, &self.0.path)?;
        self.0.published = true;
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.published {
            // What cannot be removed is no worse than what is left after a crash.
            drop(std::fs::remove_file(&self.aside));
        }
    }
}

/// A folder under construction, with the same promise as [`AsideFile`]; its files are not synced one by one.
#[derive(Debug)]
pub struct AsideFolder {
    path: PathBuf,
    aside: PathBuf,
    published: bool,
}

impl AsideFolder {
    /// Starts the folder that is to be at `path`.
    ///
    /// # Errors
    /// [`Error::Usage`] where there is something at `path` or beside it from an earlier try; [`Error::Io`]
    /// where the folder cannot be made.
    pub fn create(path: &Path) -> Result<Self> {
        let is_empty =
            |path: &Path| std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none());
        if !is_empty(path) {
            refuse_existing_folder(path)?;
        }
        let aside = aside(path);
        refuse_existing_folder(&aside)?;
        std::fs::create_dir_all(&aside).map_err(|source| Error::io(&aside, source))?;
        Ok(Self { path: path.to_path_buf(), aside, published: false })
    }

    /// Where its files are written.
    pub fn writing_at(&self) -> &Path {
        &self.aside
    }

    /// Puts the folder in its place.
    ///
    /// # Errors
    /// [`Error::Io`] naming the place.
    pub fn publish(mut self) -> Result<()> {
        // An empty folder may be there; not every system renames over it.
        match std::fs::remove_dir(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io(&self.path, error));
            }
            _ => {}
        }
        std::fs::rename(&self.aside, &self.path).map_err(|source| Error::io(&self.path, source))?;
        self.published = true;
        Ok(())
    }
}

impl Drop for AsideFolder {
    fn drop(&mut self) {
        if !self.published {
            drop(std::fs::remove_dir_all(&self.aside));
        }
    }
}

fn aside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    path.with_file_name(name)
}

fn refuse_existing(path: &Path, replace: bool) -> Result<()> {
    if path.is_dir() {
        return Err(Error::io(path, std::io::ErrorKind::IsADirectory.into()));
    }
    if path.exists() && !replace {
        return Err(Error::usage(
            format!("{} exists", path.display()),
            "name another, or replace it with --force",
        ));
    }
    Ok(())
}

fn refuse_existing_folder(path: &Path) -> Result<()> {
    if path.exists() {
        return Err(Error::usage(
            format!("{} exists", path.display()),
            "name a folder that does not exist or is empty, or remove this one",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_there_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/a.rec");
        let mut file = AsideFile::create(&path, false).unwrap();
        file.write(b"0123").unwrap();
        file.write(b"4567").unwrap();
        file.rewrite(2, b"xyz").unwrap();
        file.write(b"8").unwrap();
        assert_eq!(file.position(), 9);
        assert!(!path.exists());
        file.seal().unwrap().publish().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"01xyz5678");
        assert_eq!(names(path.parent().unwrap()), ["a.rec"]);

        assert!(matches!(AsideFile::create(&path, false), Err(Error::Usage { .. })));
        let mut other = AsideFile::create(&path, true).unwrap();
        other.write(b"other").unwrap();
        drop(other.seal().unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), b"01xyz5678");
        assert_eq!(names(path.parent().unwrap()), ["a.rec"]);
        assert!(matches!(AsideFile::create(folder.path(), true), Err(Error::Io { .. })));
    }

    #[test]
    fn a_folder_is_there_whole_or_not_at_all() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("faces");
        std::fs::create_dir(&path).unwrap();
        let folder = AsideFolder::create(&path).unwrap();
        std::fs::write(folder.writing_at().join("a"), "a").unwrap();
        // Another try meanwhile would write into the same folder.
        assert!(matches!(AsideFolder::create(&path), Err(Error::Usage { .. })));
        drop(AsideFolder::create(&root.path().join("other")).unwrap());
        folder.publish().unwrap();
        assert_eq!((names(root.path()), names(&path)), (vec!["faces".to_owned()], vec!["a".to_owned()]));
        assert!(matches!(AsideFolder::create(&path), Err(Error::Usage { .. })));
    }
}
