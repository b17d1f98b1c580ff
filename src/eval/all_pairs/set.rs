//! A labelled set, from images or from embeddings that are already there.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::groups::Names;
use super::unit::Unit;
use crate::data::stored::Source;
use crate::data::{Image, decode};
use crate::eval::cached::Pictures;
use crate::interchange::tensor_file::{TensorFile, TensorSource};
use crate::{Error, Result};

/// Images of identities: a folder of identity folders or a record file.
pub struct ImageSet {
    path: PathBuf,
    name: String,
    source: Source,
}

impl ImageSet {
    /// Opens the set at `path`.
    ///
    /// # Errors
    /// Those of [`Source::open`]; fewer than two images.
    pub fn open(path: &Path) -> Result<Self> {
        let source = Source::open(path, &mut Err)?;
        let name = set_name(path);
        enough(path, source.stored().len())?;
        Ok(Self { path: path.to_path_buf(), name, source })
    }

    /// The identity of every image.
    ///
    /// # Errors
    /// A record that cannot be read.
    pub fn labels(&self) -> Result<Vec<u32>> {
        let stored = self.source.stored();
        (0..stored.len()).map(|index| stored.label(index)).collect()
    }

    /// What its images and identities can be called.
    ///
    /// # Errors
    /// A record that cannot be read.
    pub fn names(&self) -> Result<Names> {
        let stored = self.source.stored();
        let mut names = Names::default();
        for index in 0..stored.len() {
            let label = stored.label(index)?;
            let identity = stored.identity(label).unwrap_or_else(|| label.to_string());
            names.insert(index as u32, &stored.name(index), Some(&self.path), &identity);
        }
        Ok(names)
    }
}

impl Pictures for ImageSet {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> usize {
        self.source.stored().len()
    }

    fn stored(&self, index: usize) -> Result<Cow<'_, [u8]>> {
        self.source.stored().encoded(index)
    }

    fn load(&self, index: usize, size: [usize; 2]) -> Result<Image> {
        let stored = self.source.stored();
        decode::decode(&stored.encoded(index)?, size, true, || stored.name(index))
    }
}

/// The embeddings of a file that `epl embed` wrote, of the images that have a label.
pub struct EmbeddedSet {
    /// What messages call it.
    pub name: String,
    /// The embeddings.
    pub unit: Unit,
    /// The identity of each.
    pub labels: Vec<u32>,
    /// The label of each identity in the file.
    numbers: Vec<i64>,
    /// How many were left out because they have no label.
    pub unlabelled: usize,
    paths: Vec<String>,
}

impl EmbeddedSet {
    /// Reads the file at `path`: `embeddings` `[N, D]`, `labels` `[N]` and, if it has them, the `paths` in its metadata.
    ///
    /// # Errors
    /// A file that cannot be read or lacks a tensor, lengths that do not fit, fewer than two labelled embeddings.
    pub fn open(path: &Path) -> Result<Self> {
        let file = TensorFile::open(path)?;
        let fault = |found: String, expected: &str| {
            let hint = "use a file that `epl embed` wrote from a folder an identity, or a record file";
            Error::data(path.display().to_string(), found, expected, hint)
        };
        let Some(&[count, dimension]) = file.shape("embeddings") else {
            return Err(fault("no tensor embeddings [N, D]".into(), "embeddings [N, D] and labels [N]"));
        };
        if !file.names().any(|name| name == "labels") {
            return Err(fault("no tensor labels".into(), "embeddings [N, D] and labels [N]"));
        }
        let labels = file.integers("labels")?;
        let paths: Option<Vec<String>> =
            file.metadata().get("paths").and_then(|text| serde_json::from_str(text).ok());
        let paths = paths.unwrap_or_default();
        if labels.len() != count || !(paths.is_empty() || paths.len() == count) {
            let found = format!("{count} embeddings, {} labels and {} paths", labels.len(), paths.len());
            return Err(fault(found, "one label and one path an embedding"));
        }
        let mut numbers: HashMap<i64, u32> = HashMap::new();
        let mut originals = Vec::new();
        let mut set = (Vec::new(), Vec::new());
        let mut values = file.floats_of("embeddings")?;
        for (row, &label) in labels.iter().enumerate().filter(|(_, label)| **label >= 0) {
            // Behind those that stay, in place: a set may fill much of the memory.
            let from = row * dimension;
            if from + dimension <= values.len() {
                values.copy_within(from..from + dimension, set.0.len() * dimension);
            }
            let next = numbers.len() as u32;
            set.0.push(*numbers.entry(label).or_insert(next));
            if numbers.len() > originals.len() {
                originals.push(label);
            }
            set.1.extend(paths.get(row).cloned());
        }
        let name = set_name(path);
        enough(path, set.0.len())?;
        let unlabelled = count - set.0.len();
        values.truncate(set.0.len() * dimension);
        let unit = Unit::new(&name, values, dimension)?;
        Ok(Self { name, unit, labels: set.0, numbers: originals, unlabelled, paths: set.1 })
    }

    /// What its images and identities can be called: an identity by the folder that its images are in, where no other
    /// identity's are, and otherwise by its label.
    ///
    /// # Errors
    /// A file without paths.
    pub fn names(&self) -> Result<Names> {
        if self.paths.is_empty() {
            return Err(Error::data(
                self.name.clone(),
                "embeddings without the paths of their images",
                "the metadata `paths`, to find images by",
                "use the file that `epl embed` wrote",
            ));
        }
        let folder = |path: &String| {
            let folder = Path::new(path).parent().and_then(Path::file_name).unwrap_or_default();
            folder.to_string_lossy().into_owned()
        };
        let mut identities: HashMap<String, Option<u32>> = HashMap::new();
        for (path, &label) in self.paths.iter().zip(&self.labels) {
            let of_all = identities.entry(folder(path)).or_insert(Some(label));
            *of_all = of_all.filter(|&other| other == label);
        }
        let mut names = Names::default();
        for ((row, path), label) in self.paths.iter().enumerate().zip(&self.labels) {
            let folder = folder(path);
            let alone = identities.get(&folder).is_some_and(Option::is_some) && !folder.is_empty();
            let number = self.numbers.get(*label as usize).copied().unwrap_or_default();
            let identity = if alone { folder } else { number.to_string() };
            names.insert(row as u32, path, None, &identity);
        }
        Ok(names)
    }
}

fn set_name(path: &Path) -> String {
    let name = path.file_stem().filter(|name| !name.is_empty());
    name.map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

fn enough(path: &Path, images: usize) -> Result<()> {
    if images >= 2 && u32::try_from(images).is_ok() {
        return Ok(());
    }
    let found = format!("{images} labelled images");
    Err(Error::data(path.display().to_string(), found, "2 to 4294967295", "give a set that has pairs"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interchange::safetensors::{StateDict, Value};

    #[test]
    fn identities_are_called_by_their_folder_where_it_is_theirs_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("e.safetensors");
        let mut dict = StateDict::default();
        dict.insert("embeddings", &[5, 1], vec![1.0; 5]);
        // Two people called p, one of them of a record file with another, and one alone.
        dict.tensors.insert("labels".into(), (vec![5], Value::I64(vec![4, 4, 9, 7, 7])));
        let paths = "[\"A/p/1\",\"A/p/2\",\"B/p/1\",\"C/q/1\",\"C/q/2\"]";
        dict.metadata.insert("paths".into(), paths.into());
        dict.write(&path).unwrap();
        let names = EmbeddedSet::open(&path).unwrap().names().unwrap();
        let csv = folder.path().join("g.csv");
        let read = |text: &str| {
            std::fs::write(&csv, text).unwrap();
            names
                .read_groups(&csv)
                .map(|groups| groups.into_iter().map(|group| group.rows).collect::<Vec<_>>())
        };
        assert_eq!(read("identity,group\n4,a\n9,a\nq,b\n").unwrap(), [vec![0, 1, 2], vec![3, 4]]);
        assert!(read("identity,group\np,a\n").unwrap_err().to_string().contains("`p`"));
        // A first line that is no row of titles is not passed over.
        let error = read("q,a\n4,b\n").unwrap_err().to_string();
        assert!(error.contains("line 1") && error.contains("`q`, which is in the set"), "{error}");
    }

    #[test]
    fn embeddings_without_a_label_are_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("e.safetensors");
        let mut dict = StateDict::default();
        dict.insert("embeddings", &[4, 2], vec![3.0, 4.0, 1.0, 0.0, 0.0, 2.0, 0.0, -5.0]);
        dict.write(&path).unwrap();
        assert!(EmbeddedSet::open(&path).err().unwrap().to_string().contains("no tensor labels"));
        dict.tensors.insert("labels".into(), (vec![4], Value::I64(vec![7, -1, 2, 7])));
        dict.write(&path).unwrap();
        let set = EmbeddedSet::open(&path).unwrap();
        assert_eq!((set.name.as_str(), set.unlabelled, set.labels.as_slice()), ("e", 1, &[0, 1, 0][..]));
        assert_eq!((set.unit.row(0), set.unit.row(2)), (&[0.6, 0.8][..], &[0.0, -1.0][..]));
        assert!(set.names().err().unwrap().to_string().contains("without the paths"));
        for paths in ["[\"a/1\",\"x\",\"b/1\",\"a/2\"]", "[\"a/1\"]"] {
            dict.metadata.insert("paths".into(), paths.into());
            dict.write(&path).unwrap();
            assert_eq!(EmbeddedSet::open(&path).and_then(|set| set.names()).is_ok(), paths.len() > 9);
        }
        dict.tensors.insert("labels".into(), (vec![4], Value::I64(vec![-1, -1, 2, -1])));
        dict.metadata.clear();
        dict.write(&path).unwrap();
        assert!(EmbeddedSet::open(&path).err().unwrap().to_string().contains("1 labelled images"));
    }
}
