//! A safetensors file that is read piece by piece, so that tables of gigabytes are never whole in memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use sha2::{Digest, Sha256};

use super::safetensors::{StateDict, Value, hex};
use crate::{Error, Result};

/// Named tensors of which floats can be read in pieces.
pub trait TensorSource {
    /// The shape of tensor `name`; `None` where there is none that can be read as floats.
    fn shape(&self, name: &str) -> Option<&[usize]>;

    /// Hands the elements of tensor `name` to `each` in order, at most `most` at a time, with the index of the first.
    ///
    /// # Errors
    /// Where there is no such tensor, and those of `each`.
    fn for_each_part(
        &self,
        name: &str,
        most: usize,
        each: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()>;

    /// All elements of tensor `name`.
    ///
    /// # Errors
    /// Where there is no such tensor.
    fn floats_of(&self, name: &str) -> Result<Vec<f32>> {
        let mut all = Vec::with_capacity(self.shape(name).map_or(0, |shape| shape.iter().product()));
        self.for_each_part(name, usize::MAX, &mut |_, part| {
            all.extend_from_slice(part);
            Ok(())
        })?;
        Ok(all)
    }
}

/// What a tensor's elements are read as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// f32, whatever width they have in the file.
    Float,
    /// i64, whatever width they have in the file.
    Integer,
}

pub(super) fn absent(place: impl Into<String>, name: &str) -> Error {
    Error::data(place, format!("no tensor {name}"), "it", "use a file of the same architecture")
}

impl TensorSource for StateDict {
    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.floats(name).map(|(shape, _)| shape)
    }

    fn for_each_part(
        &self,
        name: &str,
        most: usize,
        each: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        let (_, values) = self.floats(name).ok_or_else(|| absent("state dict", name))?;
        let mut first = 0;
        for part in values.chunks(most.max(1)) {
            each(first, part)?;
            first += part.len();
        }
        Ok(())
    }
}

/// A tensor's place in the file.
#[derive(Debug)]
struct Entry {
    shape: Vec<usize>,
    dtype: Dtype,
    bytes: Range<usize>,
}

/// A safetensors file, mapped into memory.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    map: Mmap,
    entries: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
}

impl TensorFile {
    /// The SHA-256 of the file as it was opened, whatever has its name by now.
    pub fn sha256(&self) -> String {
        hex(Sha256::new_with_prefix(&self.map))
    }

    /// Opens the file at `path` and reads its header.
    ///
    /// # Errors
    /// A file that cannot be read, and one that is not a whole safetensors file.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|source| Error::io(path, source))?;
        let broken = |found: String| {
            let hint = "copy the file again, or convert other formats to safetensors first";
            Error::data(path.display().to_string(), found, "a safetensors file", hint)
        };
        // An empty file cannot be mapped.
        if file.metadata().map_err(|source| Error::io(path, source))?.len() == 0 {
            return Err(broken("an empty file".into()));
        }
        // SAFETY: the map is only read, as bytes, and every use checks what it reads. Another process that truncates the
        // file while it is in use can end this one, as with any mapped file.
        let map = unsafe { Mmap::map(&file) }.map_err(|source| Error::io(path, source))?;
        let failed = |error: safetensors::SafeTensorError| broken(error.to_string());
        let (header, information) = SafeTensors::read_metadata(&map).map_err(failed)?;
        let mut metadata = BTreeMap::new();
        if let Some(found) = information.metadata() {
            metadata.extend(found.iter().map(|(key, value)| (key.clone(), value.clone())));
        }
        // This also checks that the tensors fill the file and do not overlap.
        SafeTensors::deserialize(&map).map_err(failed)?;
        let start = header + 8;
        let entry = |(name, tensor): (String, &safetensors::tensor::TensorInfo)| {
            let (from, to) = tensor.data_offsets;
            let entry =
                Entry { shape: tensor.shape.clone(), dtype: tensor.dtype, bytes: start + from..start + to };
            (name, entry)
        };
        let entries = information.tensors().into_iter().map(entry).collect();
        Ok(Self { path: path.to_path_buf(), map, entries, metadata })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Free text by key: architecture, input size, head, ...
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The names of the tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Shape and kind of the elements of tensor `name`; `None` where there is none, or none that can be read.
    pub fn describe(&self, name: &str) -> Option<(&[usize], Kind)> {
        let entry = self.entries.get(name)?;
        let kind = match width(entry.dtype) {
            Some(_) => Kind::Float,
            None => super::safetensors::convert(entry.dtype, &[]).map(|_| Kind::Integer)?,
        };
        Some((&entry.shape, kind))
    }

    /// A tensor of integers.
    ///
    /// # Errors
    /// Where there is no such tensor, or it holds no integers.
    pub fn integers(&self, name: &str) -> Result<Vec<i64>> {
        let place = || self.path.display().to_string();
        let (entry, data) = self.find(name).ok_or_else(|| absent(place(), name))?;
        match super::safetensors::convert(entry.dtype, data) {
            Some(Value::I64(values)) => Ok(values),
            _ => Err(Error::data(
                format!("{}: tensor {name}", place()),
                format!("{:?}", entry.dtype),
                "integers",
                "use an unaltered file",
            )),
        }
    }

    fn find(&self, name: &str) -> Option<(&Entry, &[u8])> {
        let entry = self.entries.get(name)?;
        Some((entry, self.map.get(entry.bytes.clone())?))
    }
}

/// Bytes of an element that can be read as a float.
fn width(dtype: Dtype) -> Option<usize> {
    Some(match dtype {
        Dtype::F64 => 8,
        Dtype::F32 => 4,
        Dtype::F16 | Dtype::BF16 => 2,
        _ => return None,
    })
}

impl TensorSource for TensorFile {
    fn shape(&self, name: &str) -> Option<&[usize]> {
        let entry = self.entries.get(name)?;
        width(entry.dtype).map(|_| entry.shape.as_slice())
    }

    fn for_each_part(
        &self,
        name: &str,
        most: usize,
        each: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        let missing = || absent(self.path.display().to_string(), name);
        let (entry, data) = self.find(name).ok_or_else(missing)?;
        let width = width(entry.dtype).ok_or_else(missing)?;
        let mut first = 0;
        for bytes in data.chunks(most.max(1).saturating_mul(width)) {
            match bytemuck::try_cast_slice::<u8, f32>(bytes) {
                // The usual case, without a copy: little-endian floats, aligned.
                Ok(values) if entry.dtype == Dtype::F32 && cfg!(target_endian = "little") => {
                    each(first, values)?
                }
                _ => match super::safetensors::convert(entry.dtype, bytes) {
                    Some(Value::F32(values)) => each(first, &values)?,
                    _ => return Err(missing()),
                },
            }
            first += bytes.len() / width;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_what_the_whole_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        let values: Vec<f32> = (0..1001).map(|i| i as f32 / 7.0).collect();
        let mut dict = StateDict::default();
        dict.insert("a", &[7, 143], values.clone());
        dict.insert("b", &[1], vec![-1.5]);
        dict.tensors.insert("n".into(), (vec![3], Value::I64(vec![1, -2, i64::MAX])));
        dict.metadata.insert("arch".into(), "ir18".into());
        dict.write(&path).unwrap();
        let file = TensorFile::open(&path).unwrap();
        assert_eq!(file.names().collect::<Vec<_>>(), ["a", "b", "n"]);
        assert_eq!(file.metadata(), &dict.metadata);
        assert_eq!(file.integers("n").unwrap(), [1, -2, i64::MAX]);
        assert!(file.integers("a").is_err() && file.integers("absent").is_err());
        for source in [&file as &dyn TensorSource, &dict] {
            assert_eq!(source.shape("a"), Some(&[7, 143][..]));
            assert_eq!((source.shape("n"), source.shape("absent")), (None, None));
            assert_eq!(source.floats_of("a").unwrap(), values);
            let mut pieces = Vec::new();
            let mut each = |first: usize, part: &[f32]| {
                assert_eq!(first, pieces.len());
                assert!(part.len() <= 300);
                pieces.extend_from_slice(part);
                Ok(())
            };
            source.for_each_part("a", 300, &mut each).unwrap();
            assert_eq!(pieces, values);
            assert!(source.floats_of("absent").is_err());
        }
    }

    #[test]
    fn other_floats_are_converted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        let halves: Vec<u8> =
            [1.0, -0.5, 65504.0].into_iter().flat_map(|v| half::f16::from_f32(v).to_le_bytes()).collect();
        let view = safetensors::tensor::TensorView::new(Dtype::F16, vec![3], &halves).unwrap();
        std::fs::write(&path, safetensors::serialize([("h", view)], None).unwrap()).unwrap();
        let file = TensorFile::open(&path).unwrap();
        assert_eq!(file.floats_of("h").unwrap(), [1.0, -0.5, 65504.0]);
    }

    #[test]
    fn what_is_not_whole_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        let mut dict = StateDict::default();
        dict.insert("a", &[100], vec![0.0; 100]);
        dict.write(&path).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for bytes in [&b""[..], b"rubbish", &whole[..whole.len() - 1], &whole[..20]] {
            std::fs::write(&path, bytes).unwrap();
            let error = TensorFile::open(&path).unwrap_err();
            assert!(error.to_string().contains("w.safetensors"), "{error}");
        }
    }
}
