//! Where the photos come from: a folder, a list of paths in it, or a file of embeddings.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use rayon::prelude::*;

use crate::data::align::landmarks::inside;
use crate::data::{Image, decode, folder, has_extension};
use crate::eval::cached::Pictures;
use crate::interchange::tensor_file::{TensorFile, TensorSource};
use crate::{Error, Result};

/// Photos, in order.
#[derive(Debug)]
pub struct Photos {
    /// What the set is called in messages.
    set: String,
    /// Where they are from, for messages.
    place: PathBuf,
    /// Their paths, with `/` between the parts: the last parts are what noise lists and persons go by.
    names: Vec<String>,
    contents: Contents,
}

#[derive(Debug)]
enum Contents {
    Files(Vec<PathBuf>),
    /// Embeddings and their length.
    Embedded(Vec<f32>, usize),
}

/// The devkit's list of features.
#[derive(serde::Deserialize)]
struct TemplateList {
    path: Vec<String>,
}

impl Photos {
    /// Opens `path`: a folder of photos at any depth, or what `epl embed` wrote (`.safetensors`). With `list` only the photos
    /// of that list, in its order: a path in the folder a line, or the devkit's JSON with the key `path`.
    ///
    /// # Errors
    /// What is not there, named; a photo that is listed twice; no photo at all; embeddings without `paths`, or with a list.
    pub fn open(set: &str, path: &Path, list: Option<&Path>) -> Result<Self> {
        let photos = match (has_extension(path, "safetensors"), list) {
            (true, Some(list)) => {
                return Err(Error::usage(
                    format!("{} with the list {}", path.display(), list.display()),
                    "a file of embeddings has its photos in order: leave the list out",
                ));
            }
            (true, None) => Self::embedded(set, path)?,
            (false, Some(list)) => Self::listed(set, path, list)?,
            (false, None) => {
                let files = folder::tree(path)?;
                let name = |file: &PathBuf| slashes(file.strip_prefix(path).unwrap_or(file));
                let names = files.iter().map(name).collect();
                Self {
                    set: set.to_owned(),
                    place: path.to_path_buf(),
                    names,
                    contents: Contents::Files(files),
                }
            }
        };
        if photos.names.is_empty() {
            return Err(Error::data(
                path.display().to_string(),
                "no photo",
                format!("the aligned photos of {set}"),
                "name the folder of the aligned photos",
            ));
        }
        Ok(photos)
    }

    fn embedded(set: &str, path: &Path) -> Result<Self> {
        let file = TensorFile::open(path)?;
        let wrong = |found: String| {
            Error::data(
                path.display().to_string(),
                found,
                "a tensor `embeddings` [N, D], and N `paths` in the metadata",
                "write it with `epl embed`",
            )
        };
        let shape = file.shape("embeddings").map(<[usize]>::to_vec);
        let Some(&[count, dimension]) = shape.as_deref() else {
            return Err(wrong(format!("embeddings of shape {shape:?}")));
        };
        let paths = file.metadata().get("paths").map(|text| serde_json::from_str::<Vec<String>>(text));
        let Some(Ok(paths)) = paths else { return Err(wrong("no list of paths in the metadata".into())) };
        if paths.len() != count || dimension == 0 {
            return Err(wrong(format!("{} paths and {count} embeddings of {dimension}", paths.len())));
        }
        let names = paths.iter().map(|path| path.replace('\\', "/")).collect();
        let contents = Contents::Embedded(file.floats_of("embeddings")?, dimension);
        Ok(Self { set: set.to_owned(), place: path.to_path_buf(), names, contents })
    }

    fn listed(set: &str, folder: &Path, list: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(list).map_err(|source| Error::io(list, source))?;
        let wrong = |place: String, found: String| {
            Err(Error::data(
                place,
                found,
                format!("paths of photos in {}", folder.display()),
                "write a path a line, relative to that folder",
            ))
        };
        let (names, is_json): (Vec<String>, bool) = if text.trim_start().starts_with('{') {
            match serde_json::from_str::<TemplateList>(&text) {
                Ok(list) => (list.path, true),
                Err(error) => return wrong(list.display().to_string(), error.to_string()),
            }
        } else {
            (text.lines().map(|line| line.trim().to_owned()).collect(), false)
        };
        let entries = || (1..).zip(&names).filter(|(_, name)| !name.is_empty());
        let mut files = Vec::with_capacity(names.len());
        let place = |at: usize| format!("{}, {} {at}", list.display(), if is_json { "path" } else { "line" });
        let mut first_of: HashMap<PathBuf, usize> = HashMap::with_capacity(names.len());
        for (at, name) in entries() {
            let Some(inside) = inside(name) else { return wrong(place(at), format!("`{name}`")) };
            // Without `.` in it, so that each photo has one name.
            let path = inside.components().filter(|part| *part != Component::CurDir).collect();
            if let Some(first) = first_of.insert(path, at) {
                return wrong(
                    place(at),
                    format!("`{name}`, which is there already: the photo of {}", place(first)),
                );
            }
            files.push(folder.join(inside));
        }
        let missing = files.par_iter().filter(|file| !file.is_file()).count();
        if let Some(first) = files.par_iter().position_first(|file| !file.is_file()) {
            let at = entries().nth(first).map_or(0, |(at, _)| at);
            let found = format!("{missing} of {} photos that are not in {}", files.len(), folder.display());
            return wrong(place(at), found);
        }
        let names = entries().map(|(_, name)| name.replace('\\', "/")).collect();
        Ok(Self { set: set.to_owned(), place: folder.to_path_buf(), names, contents: Contents::Files(files) })
    }

    /// The paths, with `/` between the parts.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The embeddings and their length, where the photos came as such. They are gone then.
    pub fn take_embeddings(&mut self) -> Option<(Vec<f32>, usize)> {
        match &mut self.contents {
            Contents::Embedded(embeddings, dimension) => Some((std::mem::take(embeddings), *dimension)),
            Contents::Files(_) => None,
        }
    }

    /// Whether there are images to embed.
    pub fn are_images(&self) -> bool {
        matches!(self.contents, Contents::Files(_))
    }

    /// The person of each photo, numbered as they come: the folder that it is in.
    ///
    /// # Errors
    /// A photo in no folder.
    pub fn people(&self) -> Result<Vec<u32>> {
        let mut numbers: HashMap<&str, u32> = HashMap::new();
        let mut people = Vec::with_capacity(self.names.len());
        for name in &self.names {
            let folder = name.rsplit('/').nth(1).filter(|folder| !folder.is_empty() && *folder != ".");
            let Some(folder) = folder else {
                return Err(Error::data(
                    format!("{name} of {}", self.place.display()),
                    "a photo in no folder",
                    "one folder a person",
                    "name the folder of the persons' folders",
                ));
            };
            let next = numbers.len() as u32;
            people.push(*numbers.entry(folder).or_insert(next));
        }
        Ok(people)
    }

    fn file(&self, index: usize) -> &Path {
        match &self.contents {
            Contents::Files(files) => files.get(index).map_or(Path::new(""), PathBuf::as_path),
            Contents::Embedded(..) => Path::new(""),
        }
    }
}

fn slashes(path: &Path) -> String {
    let parts: Vec<_> = path.components().map(|part| part.as_os_str().to_string_lossy()).collect();
    parts.join("/")
}

impl Pictures for Photos {
    fn name(&self) -> &str {
        &self.set
    }

    fn len(&self) -> usize {
        self.names.len()
    }

    fn stored(&self, index: usize) -> Result<Cow<'_, [u8]>> {
        let file = self.file(index);
        std::fs::read(file).map(Cow::Owned).map_err(|source| Error::io(file, source))
    }

    fn load(&self, index: usize, size: [usize; 2]) -> Result<Image> {
        decode::decode(&self.stored(index)?, size, true, || self.file(index).display().to_string())
    }
}
