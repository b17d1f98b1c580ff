//! The images that a command line names, numbered through all of its paths.

use std::path::{Path, PathBuf};

use crate::data::{self, Dataset, Image, Options, decode, folder};
use crate::{Error, Result};

/// The label of an image that has none.
const UNLABELLED: i64 = -1;

/// What one path stands for.
enum Source {
    /// An image file, or the images of a folder.
    Files(Vec<PathBuf>),
    /// A folder of identity folders or a record file.
    Labelled(Box<dyn Dataset>),
}

/// The images of several paths, one after the other.
pub struct Sources {
    /// Each with the number of its first image.
    sources: Vec<(usize, Source)>,
    len: usize,
    options: Options,
}

impl Source {
    fn open(path: &Path, options: &Options) -> Result<Self> {
        let metadata = std::fs::metadata(path).map_err(|source| Error::io(path, source))?;
        if metadata.is_dir() {
            if let Some(images) = folder::loose_images(path)? {
                return Ok(Self::Files(images));
            }
            return Ok(Self::Labelled(data::open(path, options)?));
        }
        // What is not a record file is taken for an image; decoding tells.
        match path.extension() {
            Some(extension)
                if extension.eq_ignore_ascii_case("rec") || extension.eq_ignore_ascii_case("idx") =>
            {
                Ok(Self::Labelled(data::open(path, options)?))
            }
            _ => Ok(Self::Files(vec![path.to_path_buf()])),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Files(paths) => paths.len(),
            Self::Labelled(dataset) => dataset.len(),
        }
    }
}

impl Sources {
    /// Opens `paths`; images are decoded to `size` = `[H, W]`.
    ///
    /// # Errors
    /// A path that cannot be opened, or no image in all of them.
    pub fn open(paths: &[PathBuf], size: [usize; 2]) -> Result<Self> {
        let options = Options { size, resize: true, num_classes: None };
        let (mut sources, mut len) = (Vec::with_capacity(paths.len()), 0);
        for path in paths {
            let source = Source::open(path, &options)?;
            let first = len;
            len += source.len();
            sources.push((first, source));
        }
        if len == 0 {
            let places: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
            return Err(Error::data(
                places.join(", "),
                "no image",
                "at least one",
                "name images or folders of them",
            ));
        }
        Ok(Self { sources, len, options })
    }

    /// The number of images.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The source of image `index`, and the image's number in it.
    fn locate(&self, index: usize) -> Result<(&Source, usize)> {
        let after = self.sources.partition_point(|(first, _)| *first <= index);
        match after.checked_sub(1).and_then(|at| self.sources.get(at)) {
            Some((first, source)) if index < self.len => Ok((source, index - first)),
            _ => Err(Error::usage(
                format!("there is no image {index} among {}", self.len),
                "this is a fault of the program; please report it",
            )),
        }
    }

    /// Image `index`, decoded.
    pub fn load(&self, index: usize) -> Result<Image> {
        match self.locate(index)? {
            (Source::Labelled(dataset), at) => dataset.load(at),
            (Source::Files(paths), at) => {
                let path = paths.get(at).map_or(Path::new(""), PathBuf::as_path);
                let encoded = std::fs::read(path).map_err(|source| Error::io(path, source))?;
                decode::decode(&encoded, self.options.size, self.options.resize, || {
                    path.display().to_string()
                })
            }
        }
    }

    /// What image `index` is called: its path, or its record file and key.
    pub fn name(&self, index: usize) -> String {
        match self.locate(index) {
            Ok((Source::Labelled(dataset), at)) => dataset.name(at),
            Ok((Source::Files(paths), at)) => {
                paths.get(at).map(|path| path.display().to_string()).unwrap_or_default()
            }
            Err(_) => String::new(),
        }
    }

    /// The labels of all images, those of each labelled source counted on from the one before; `None` where no
    /// source has any.
    pub fn labels(&self) -> Result<Option<Vec<i64>>> {
        let mut labels = Vec::with_capacity(self.len);
        let mut offset = None;
        for (_, source) in &self.sources {
            match source {
                Source::Files(paths) => labels.extend(paths.iter().map(|_| UNLABELLED)),
                Source::Labelled(dataset) => {
                    let base = offset.unwrap_or(0);
                    for index in 0..dataset.len() {
                        labels.push(base + i64::from(dataset.label(index)?));
                    }
                    offset = Some(base + dataset.num_classes() as i64);
                }
            }
        }
        Ok(offset.map(|_| labels))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write_image(path: &Path, value: u8) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        image::GrayImage::from_pixel(4, 4, image::Luma([value])).save(path).unwrap();
    }

    #[test]
    fn images_of_all_paths_are_in_order_with_labels_that_do_not_clash() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        for (path, value) in [
            ("one.png", 1),
            ("set/a/1.png", 2),
            ("set/b/1.png", 3),
            ("loose/9.png", 4),
            ("loose/10.png", 5),
            ("more/c/1.png", 6),
        ] {
            write_image(&at(path), value);
        }
        let paths = [at("one.png"), at("set"), at("loose"), at("more")];
        let sources = Sources::open(&paths, [4, 4]).unwrap();
        let values: Vec<u8> = (0..sources.len()).map(|index| sources.load(index).unwrap().rgb[0]).collect();
        assert_eq!(values, [1, 2, 3, 4, 5, 6]);
        assert_eq!(sources.labels().unwrap(), Some(vec![-1, 0, 1, -1, -1, 2]));
        assert_eq!(Path::new(&sources.name(4)), at("loose/10.png"));
        assert!(sources.load(6).is_err());

        assert_eq!(Sources::open(&paths[..1], [4, 4]).unwrap().labels().unwrap(), None);
        assert!(Sources::open(&[at("missing")], [4, 4]).is_err());
        std::fs::create_dir(at("empty")).unwrap();
        assert!(Sources::open(&[at("empty")], [4, 4]).err().unwrap().to_string().contains("no image"));
    }
}
