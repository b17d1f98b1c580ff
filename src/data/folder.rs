//! A folder of identity folders: each subfolder is a class, each image in it a sample of that class.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::path::{Path, PathBuf};

use image::ImageFormat;

use super::recordio::OnFault;
use super::stored::Stored;
use super::{Dataset, Image, Options, decode, has_extension, no_such_index, other_size};
use crate::{Error, Result};

/// File names that are taken to be images without looking inside, which would be slow for millions of them.
const EXTENSIONS: [&str; 10] = ["jpg", "jpeg", "jpe", "jfif", "png", "bmp", "pgm", "ppm", "pnm", "webp"];

/// A dataset of one folder an identity; labels count the identities in natural sort order (`s2` before `s10`).
#[derive(Debug)]
pub struct FolderDataset {
    root: PathBuf,
    identities: Vec<OsString>,
    /// Label and file name, so that a path's folders are not stored once an image.
    images: Vec<(u32, Box<OsStr>)>,
    options: Options,
    num_classes: usize,
    skipped: Vec<PathBuf>,
}

impl FolderDataset {
    /// Lists `root`: identities and their images in natural sort order, hidden files left out, files that
    /// are not images left out and counted ([`FolderDataset::skipped`]).
    ///
    /// # Errors
    /// No identity folder in `root`, an identity without images or with folders in it, an image in a format
    /// that is not read, more identities than `options.num_classes`, or a folder that cannot be listed.
    pub fn open(root: &Path, options: &Options) -> Result<Self> {
        Self::open_past(root, options, &mut Err)
    }

    /// The same, with the faults inside of `root` handed to `on_fault`: where it returns `Ok` the identity or the file is
    /// passed over.
    ///
    /// # Errors
    /// Those of `on_fault`; no identity folder in `root`, or more of them than `options.num_classes`.
    pub fn open_past(root: &Path, options: &Options, on_fault: OnFault<'_>) -> Result<Self> {
        let listing = list(root, on_fault)?;
        if listing.folders.is_empty() {
            return Err(no_identities(root, &listing));
        }
        let mut dataset = Self {
            root: root.to_path_buf(),
            identities: Vec::with_capacity(listing.folders.len()),
            images: Vec::new(),
            options: options.clone(),
            num_classes: options.num_classes.unwrap_or(listing.folders.len()),
            skipped: listing.files.iter().map(|file| root.join(file)).collect(),
        };
        if dataset.num_classes < listing.folders.len() {
            return Err(Error::usage(
                format!(
                    "data.num_classes is {}, but {} holds {} identities",
                    dataset.num_classes,
                    root.display(),
                    listing.folders.len()
                ),
                "leave data.num_classes out to have the identities counted",
            ));
        }
        for identity in listing.folders {
            dataset.add_identity(identity, on_fault)?;
        }
        Ok(dataset)
    }

    /// The visible files that were left out because they are not images or lie beside the identity folders.
    pub fn skipped(&self) -> &[PathBuf] {
        &self.skipped
    }

    /// The folder's path.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn add_identity(&mut self, identity: OsString, on_fault: OnFault<'_>) -> Result<()> {
        let path = self.root.join(&identity);
        let listing = match list(&path, on_fault) {
            Ok(listing) => listing,
            Err(error) => return on_fault(error),
        };
        for inner in &listing.folders {
            on_fault(Error::data(
                path.join(inner).display().to_string(),
                "a folder inside an identity's folder",
                "images only",
                "move its images into the identity's folder, or make it an identity of its own",
            ))?;
        }
        let label = u32::try_from(self.identities.len()).map_err(|_| {
            Error::data(
                self.root.display().to_string(),
                "more than 2^32 identities",
                "fewer",
                "split the data",
            )
        })?;
        let before = self.images.len();
        for file in listing.files {
            let inside = path.join(&file);
            match is_image(&inside) {
                Ok(true) => self.images.push((label, file.into_boxed_os_str())),
                Ok(false) => self.skipped.push(inside),
                Err(error) => on_fault(error)?,
            }
        }
        if self.images.len() == before {
            return on_fault(Error::data(
                path.display().to_string(),
                "an identity's folder without images",
                "at least one JPEG, PNG, BMP, PGM or WebP image",
                "add images to it or remove it",
            ));
        }
        self.identities.push(identity);
        Ok(())
    }

    fn path(&self, index: usize) -> Result<(u32, PathBuf)> {
        let missing = || no_such_index(index, self.images.len());
        let (label, file) = self.images.get(index).ok_or_else(missing)?;
        let identity = self.identities.get(*label as usize).ok_or_else(missing)?;
        Ok((*label, self.root.join(identity).join(file.as_ref())))
    }
}

impl Dataset for FolderDataset {
    fn len(&self) -> usize {
        self.images.len()
    }

    fn num_classes(&self) -> usize {
        self.num_classes
    }

    fn label(&self, index: usize) -> Result<u32> {
        self.images.get(index).map(|(label, _)| *label).ok_or_else(|| no_such_index(index, self.images.len()))
    }

    fn load(&self, index: usize) -> Result<Image> {
        let (_, path) = self.path(index)?;
        let encoded = std::fs::read(&path).map_err(|source| Error::io(&path, source))?;
        decode::decode(&encoded, self.options.size, self.options.resize, || path.display().to_string())
    }

    fn load_into(&self, index: usize, size: [usize; 2], slot: &mut [u8]) -> Result<()> {
        if size != self.options.size {
            return Err(other_size(self.options.size, size, || Dataset::name(self, index)));
        }
        let (_, path) = self.path(index)?;
        let encoded = std::fs::read(&path).map_err(|source| Error::io(&path, source))?;
        decode::decode_into(&encoded, size, self.options.resize, slot, || path.display().to_string())
    }

    fn name(&self, index: usize) -> String {
        self.path(index).map_or_else(|_| format!("image {index}"), |(_, path)| path.display().to_string())
    }
}

impl Stored for FolderDataset {
    fn len(&self) -> usize {
        self.images.len()
    }

    fn label(&self, index: usize) -> Result<u32> {
        Dataset::label(self, index)
    }

    fn encoded(&self, index: usize) -> Result<Cow<'_, [u8]>> {
        let (_, path) = self.path(index)?;
        std::fs::read(&path).map(Cow::Owned).map_err(|source| Error::io(&path, source))
    }

    fn name(&self, index: usize) -> String {
        Dataset::name(self, index)
    }

    fn identity(&self, label: u32) -> Option<String> {
        Some(self.identities.get(label as usize)?.to_string_lossy().into_owned())
    }
}

/// The images that lie in `folder` itself, in natural sort order; `None` where it holds folders or record files, and so
/// is a dataset.
///
/// # Errors
/// A folder or a file in it that cannot be read, and an image in a format that is not read.
pub fn loose_images(folder: &Path) -> Result<Option<Vec<PathBuf>>> {
    let listing = list(folder, &mut Err)?;
    let is_record = |file: &OsString| has_extension(Path::new(file), "rec");
    if !listing.folders.is_empty() || listing.files.iter().any(is_record) {
        return Ok(None);
    }
    let mut images = Vec::with_capacity(listing.files.len());
    for file in listing.files {
        let path = folder.join(file);
        if is_image(&path)? {
            images.push(path);
        }
    }
    Ok(Some(images))
}

/// All images in `folder`, at any depth, in natural sort order: those of a folder before those of the folders in it.
///
/// # Errors
/// A folder or a file in it that cannot be read, and an image in a format that is not read.
pub fn tree(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut images = Vec::new();
    let mut waiting = vec![folder.to_path_buf()];
    while let Some(folder) = waiting.pop() {
        let listing = list(&folder, &mut Err)?;
        for file in listing.files {
            let path = folder.join(file);
            if is_image(&path)? {
                images.push(path);
            }
        }
        waiting.extend(listing.folders.iter().rev().map(|inner| folder.join(inner)));
    }
    Ok(images)
}

/// The visible contents of a folder, each in natural sort order.
struct Listing {
    folders: Vec<OsString>,
    files: Vec<OsString>,
}

fn list(folder: &Path, on_fault: OnFault<'_>) -> Result<Listing> {
    let failed = |source| Error::io(folder, source);
    let mut listing = Listing { folders: Vec::new(), files: Vec::new() };
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        if is_clutter(&name) {
            continue;
        }
        let mut kind = entry.file_type().map_err(failed)?;
        if kind.is_symlink() {
            let path = entry.path();
            kind = match std::fs::metadata(&path) {
                Ok(target) => target.file_type(),
                // A link to nothing costs itself alone.
                Err(source) => {
                    on_fault(Error::io(&path, source))?;
                    continue;
                }
            };
        }
        // A pipe or a socket is no image, and reading it may never end.
        match (kind.is_dir(), kind.is_file()) {
            (true, _) => listing.folders.push(name),
            (_, true) => listing.files.push(name),
            _ => {}
        }
    }
    natural_sort(&mut listing.folders);
    natural_sort(&mut listing.files);
    Ok(listing)
}

/// Sorts as people count: `s2` before `s10`. Names that compare equal so (`1` and `01`) are ordered by bytes,
/// so that labels never depend on the order in which the file system lists them.
fn natural_sort(names: &mut [OsString]) {
    names.sort_by(|a, b| natord::compare(&a.to_string_lossy(), &b.to_string_lossy()).then_with(|| a.cmp(b)));
}

/// Hidden files and what operating systems, archivers and network drives leave behind.
fn is_clutter(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    name.starts_with('.')
        || name.starts_with("@")
        || name.starts_with("__")
        || name.eq_ignore_ascii_case("thumbs.db")
        || name.eq_ignore_ascii_case("desktop.ini")
}

/// Whether `path` is an image: by its extension, or else by its first bytes.
fn is_image(path: &Path) -> Result<bool> {
    if EXTENSIONS.iter().any(|extension| has_extension(path, extension)) {
        return Ok(true);
    }
    let mut start = Vec::with_capacity(32);
    std::fs::File::open(path)
        .and_then(|file| file.take(32).read_to_end(&mut start))
        .map_err(|source| Error::io(path, source))?;
    match image::guess_format(&start) {
        Ok(
            ImageFormat::Jpeg | ImageFormat::Png | ImageFormat::Bmp | ImageFormat::Pnm | ImageFormat::WebP,
        ) => Ok(true),
        // An image that would silently be missing from the training is worse than an error.
        Ok(other) => Err(Error::data(
            path.display().to_string(),
            format!("an image in the format {other:?}"),
            "a JPEG, PNG, BMP, PGM or WebP image",
            "convert it or remove it",
        )),
        Err(_) => Ok(false),
    }
}

/// Why `root` is not a dataset, with a hint that fits what it does hold.
fn no_identities(root: &Path, listing: &Listing) -> Error {
    let records: Vec<_> = listing.files.iter().filter(|file| has_extension(Path::new(file), "rec")).collect();
    let (found, hint) = match (records.as_slice(), listing.files.len()) {
        ([], 0) => ("an empty folder".to_owned(), "put one folder of images an identity in it".to_owned()),
        ([], files) => (
            format!("{files} files and no folders"),
            "put each identity's images in a folder of its own".to_owned(),
        ),
        ([record, ..], _) => (
            "no identity folders and no train.rec".to_owned(),
            format!("name the record file itself: {}", root.join(record).display()),
        ),
    };
    Error::data(root.display().to_string(), found, "one folder of images an identity, or train.rec", hint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::open;

    fn write_image(path: &Path, value: u8) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        image::GrayImage::from_pixel(4, 4, image::Luma([value]))
            .save_with_format(path, ImageFormat::Png)
            .unwrap();
    }

    fn options() -> Options {
        Options { size: [4, 4], ..Options::default() }
    }

    #[test]
    #[cfg(unix)]
    fn a_link_to_nothing_costs_itself_alone() {
        let root = tempfile::tempdir().unwrap();
        for identity in ["a", "b"] {
            std::fs::create_dir(root.path().join(identity)).unwrap();
            std::fs::write(root.path().join(identity).join("1.png"), "").unwrap();
        }
        std::os::unix::fs::symlink("nowhere", root.path().join("b/2.png")).unwrap();
        std::os::unix::fs::symlink("loop", root.path().join("loop")).unwrap();
        let mut faults = Vec::new();
        let dataset = FolderDataset::open_past(root.path(), &Options::default(), &mut |fault| {
            faults.push(fault.to_string());
            Ok(())
        });
        let dataset = dataset.unwrap();
        assert_eq!((Dataset::len(&dataset), Dataset::num_classes(&dataset)), (2, 2));
        assert!(faults[0].contains("loop") && faults[1].contains("2.png") && faults.len() == 2, "{faults:?}");
        let error = FolderDataset::open(root.path(), &Options::default()).unwrap_err();
        assert!(error.to_string().contains("loop"), "{error}");
    }

    #[test]
    fn identities_and_images_are_in_natural_order() {
        let root = tempfile::tempdir().unwrap();
        for (identity, file, value) in
            [("s10", "1.png", 30), ("s2", "img10.jpg", 21), ("s2", "img9.png", 20), ("s1", "noextension", 10)]
        {
            write_image(&root.path().join(identity).join(file), value);
        }
        std::fs::write(root.path().join("s1/.DS_Store"), "x").unwrap();
        std::fs::write(root.path().join("s1/notes.txt"), "x").unwrap();
        std::fs::write(root.path().join("readme.md"), "x").unwrap();
        std::fs::create_dir(root.path().join(".git")).unwrap();
        std::fs::create_dir(root.path().join("s1/@eaDir")).unwrap();

        let dataset = FolderDataset::open(root.path(), &options()).unwrap();
        assert_eq!((Dataset::len(&dataset), dataset.num_classes(), dataset.skipped().len()), (4, 3, 2));
        let samples: Vec<(u32, u8)> = (0..4)
            .map(|index| (Dataset::label(&dataset, index).unwrap(), dataset.load(index).unwrap().rgb[0]))
            .collect();
        assert_eq!(samples, [(0, 10), (1, 20), (1, 21), (2, 30)]);
        assert!(Dataset::name(&dataset, 2).ends_with("img10.jpg"));
        assert!(Dataset::label(&dataset, 4).is_err() && dataset.load(4).is_err());

        let few = Options { num_classes: Some(2), ..options() };
        assert!(matches!(open(root.path(), &few).err().unwrap(), Error::Usage { .. }));
        let more = Options { num_classes: Some(9), ..options() };
        assert_eq!(open(root.path(), &more).unwrap().num_classes(), 9);
    }

    #[test]
    fn equal_natural_keys_are_ordered_by_bytes() {
        let mut names: Vec<OsString> = ["a1", "a01", "a10", "a2"].map(OsString::from).to_vec();
        natural_sort(&mut names);
        let mut reversed: Vec<OsString> = names.iter().rev().cloned().collect();
        natural_sort(&mut reversed);
        assert_eq!(names, reversed);
        assert_eq!(names[3], "a10");
    }

    #[test]
    fn a_wrong_size_names_the_image() {
        let root = tempfile::tempdir().unwrap();
        write_image(&root.path().join("a/1.png"), 1);
        let dataset = FolderDataset::open(root.path(), &Options::default()).unwrap();
        let error = dataset.load(0).unwrap_err();
        assert!(error.to_string().contains("1.png") && error.to_string().contains("112 x 112"), "{error}");
        assert!(error.hint().unwrap().contains("data.resize = true"));
        let resizing = Options { resize: true, ..Options::default() };
        assert_eq!(
            FolderDataset::open(root.path(), &resizing).unwrap().load(0).unwrap().rgb.len(),
            112 * 112 * 3
        );
    }

    #[test]
    fn loose_images_are_those_of_a_folder_that_is_no_dataset() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(loose_images(root.path()).unwrap(), Some(Vec::new()));
        for file in ["10.png", "9.jpg", ".hidden.png"] {
            write_image(&root.path().join(file), 1);
        }
        std::fs::write(root.path().join("notes.txt"), "x").unwrap();
        let expected = ["9.jpg", "10.png"].map(|file| root.path().join(file)).to_vec();
        assert_eq!(loose_images(root.path()).unwrap(), Some(expected));
        write_image(&root.path().join("anna/1.png"), 1);
        assert_eq!(loose_images(root.path()).unwrap(), None);
    }

    #[test]
    fn folders_that_are_no_dataset_say_why() {
        let root = tempfile::tempdir().unwrap();
        let message = || FolderDataset::open(root.path(), &options()).unwrap_err().to_string();
        assert!(message().contains("an empty folder"), "{}", message());
        write_image(&root.path().join("1.png"), 1);
        assert!(message().contains("1 files and no folders"), "{}", message());
        std::fs::write(root.path().join("other.rec"), "x").unwrap();
        assert!(message().contains("no train.rec"), "{}", message());
        std::fs::create_dir(root.path().join("anna")).unwrap();
        assert!(message().contains("anna") && message().contains("without images"), "{}", message());
        std::fs::write(root.path().join("anna/old"), b"GIF89a\x01\x00\x01\x00\x00\x00\x00").unwrap();
        assert!(message().contains("Gif"), "{}", message());
        std::fs::remove_file(root.path().join("anna/old")).unwrap();
        write_image(&root.path().join("anna/day1/1.png"), 1);
        assert!(message().contains("day1"), "{}", message());
    }

    #[test]
    fn faults_inside_can_be_passed_over() {
        let root = tempfile::tempdir().unwrap();
        write_image(&root.path().join("b/1.png"), 7);
        write_image(&root.path().join("b/inner/1.png"), 8);
        std::fs::write(root.path().join("b/old"), b"GIF89a\x01\x00\x01\x00\x00\x00\x00").unwrap();
        std::fs::create_dir(root.path().join("a")).unwrap();
        let mut faults = Vec::new();
        let dataset = FolderDataset::open_past(root.path(), &options(), &mut |fault| {
            faults.push(fault.to_string());
            Ok(())
        });
        let dataset = dataset.unwrap();
        assert_eq!((Dataset::len(&dataset), dataset.identity(0).unwrap()), (1, "b".to_owned()));
        assert_eq!(faults.len(), 3, "{faults:?}");
        for (fault, word) in faults.iter().zip(["without images", "inner", "Gif"]) {
            assert!(fault.contains(word), "{fault}");
        }
    }
}
