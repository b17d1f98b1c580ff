//! State dicts as safetensors files: the names and layouts of the PyTorch state dict.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use sha2::{Digest, Sha256};

use super::files::{aside, rename};
use crate::{Error, Result};

pub use super::files::{probe, write_atomically};

/// A tensor of a state dict.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// 64-bit integers (`num_batches_tracked`).
    I64(Vec<i64>),
}

/// Named tensors with shapes, and the file's metadata.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StateDict {
    /// Tensors by name.
    pub tensors: BTreeMap<String, (Vec<usize>, Value)>,
    /// Free text by key: architecture, input size, head, ...
    pub metadata: BTreeMap<String, String>,
}

impl StateDict {
    /// Adds a float tensor.
    pub fn insert(&mut self, name: impl Into<String>, shape: &[usize], values: Vec<f32>) {
        self.tensors.insert(name.into(), (shape.to_vec(), Value::F32(values)));
    }

    /// Shape and floats of tensor `name`, or `None` where it is missing or not float.
    pub fn floats(&self, name: &str) -> Option<(&[usize], &[f32])> {
        match self.tensors.get(name) {
            Some((shape, Value::F32(values))) => Some((shape, values)),
            _ => None,
        }
    }

    /// Reads a safetensors file. f32, f16, bf16 and f64 become f32; integers and booleans become i64.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|source| Error::io(path, source))?;
        let place = path.display().to_string();
        let broken = |error: safetensors::SafeTensorError| {
            let hint = "convert other formats to safetensors first";
            Error::data(place.clone(), error.to_string(), "a safetensors file", hint)
        };
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(broken)?;
        let file = SafeTensors::deserialize(&bytes).map_err(broken)?;
        let mut found = Self::default();
        if let Some(metadata) = header.metadata() {
            found.metadata.extend(metadata.iter().map(|(key, value)| (key.clone(), value.clone())));
        }
        for (name, view) in file.tensors() {
            let value = convert(view.dtype(), view.data()).ok_or_else(|| {
                let (place, dtype) = (format!("{place}: tensor {name}"), format!("{:?}", view.dtype()));
                Error::data(place, dtype, "floats of 16 to 64 bits, or integers", "save the weights as f32")
            })?;
            found.tensors.insert(name, (view.shape().to_vec(), value));
        }
        Ok(found)
    }

    /// Writes a safetensors file: aside, synced, then renamed, so that it is never half there. The same state dict
    /// gives the same bytes.
    pub fn write(&self, path: &Path) -> Result<()> {
        self.write_with(path, &[], |_, _| Ok(()))
    }

    /// The same with `more` f32 tensors, whose values `values` hands to the file piece by piece, little-endian, when it is their
    /// turn: so a tensor of gigabytes is never whole in memory. A tensor of the dict that has the name of one of these is
    /// left out.
    ///
    /// # Errors
    /// [`Error::Io`] naming `path`, those of `values`, and where it gives more or less than the tensor has.
    pub fn write_with(
        &self,
        path: &Path,
        more: &[(&str, Vec<usize>)],
        values: impl FnMut(&str, &mut Sink<'_>) -> Result<()>,
    ) -> Result<()> {
        self.write_parts(path, more, values, None).map(|_| ())
    }

    /// The same; returns the file's length in bytes and its SHA-256.
    ///
    /// # Errors
    /// As [`Self::write_with`].
    pub fn write_hashed(
        &self,
        path: &Path,
        more: &[(&str, Vec<usize>)],
        values: impl FnMut(&str, &mut Sink<'_>) -> Result<()>,
    ) -> Result<(u64, String)> {
        let (bytes, hash) = self.write_parts(path, more, values, Some(Sha256::new()))?;
        Ok((bytes, hash.map(hex).unwrap_or_default()))
    }

    fn write_parts(
        &self,
        path: &Path,
        more: &[(&str, Vec<usize>)],
        mut values: impl FnMut(&str, &mut Sink<'_>) -> Result<()>,
        hash: Option<Sha256>,
    ) -> Result<(u64, Option<Sha256>)> {
        let own = self.tensors.iter().filter(|(name, _)| !more.iter().any(|(other, _)| other == name));
        let own = own.map(|(name, (shape, value))| (name.as_str(), shape, Some(value)));
        let mut all: Vec<_> =
            own.chain(more.iter().map(|(name, shape)| (*name, shape, None::<&Value>))).collect();
        let dtype = |value: Option<&Value>| match value {
            Some(Value::I64(_)) => Dtype::I64,
            Some(Value::F32(_)) | None => Dtype::F32,
        };
        // Wide elements first, so that each is aligned.
        all.sort_by_key(|&(name, _, value)| (dtype(value) != Dtype::I64, name));

        // serde_json's map is sorted by key: the same weights are the same file, bit for bit.
        let mut header = serde_json::Map::new();
        if !self.metadata.is_empty() {
            header.insert("__metadata__".into(), serde_json::json!(self.metadata));
        }
        let mut end = 0u64;
        let mut sizes = Vec::with_capacity(all.len());
        for &(name, shape, value) in &all {
            let width = if dtype(value) == Dtype::I64 { 8 } else { 4 };
            let bytes = shape.iter().product::<usize>() as u64 * width;
            let kind = if width == 8 { "I64" } else { "F32" };
            let offsets = [end, end + bytes];
            header.insert(
                name.into(),
                serde_json::json!({ "dtype": kind, "shape": shape, "data_offsets": offsets }),
            );
            end += bytes;
            sizes.push(bytes);
        }
        let mut text = serde_json::Value::Object(header).to_string().into_bytes();
        text.resize(text.len().next_multiple_of(8), b' ');

        let aside = aside(path);
        let file = std::fs::File::create(&aside).map_err(|source| Error::io(path, source))?;
        let mut sink = Sink { path, file: std::io::BufWriter::new(file), written: 0, hash };
        let write = || -> Result<()> {
            sink.write(&(text.len() as u64).to_le_bytes())?;
            sink.write(&text)?;
            for (&(name, _, value), bytes) in all.iter().zip(sizes) {
                let before = sink.written;
                match value {
                    Some(Value::F32(values)) => sink.write_all_of(values, f32::to_le_bytes)?,
                    Some(Value::I64(values)) => sink.write_all_of(values, i64::to_le_bytes)?,
                    None => values(name, &mut sink)?,
                }
                if sink.written - before != bytes {
                    return Err(Error::data(
                        format!("{}: tensor {name}", path.display()),
                        format!("{} bytes", sink.written - before),
                        format!("{bytes}"),
                        "this is a fault of the program; please report it",
                    ));
                }
            }
            Ok(())
        };
        let written = write().and_then(|()| sink.finish(&aside));
        if written.is_err() {
            // Half a file helps nobody, and on a full disk its space is needed.
            drop(std::fs::remove_file(&aside));
        }
        written
    }
}

/// A file that is being written.
pub struct Sink<'a> {
    path: &'a Path,
    file: std::io::BufWriter<std::fs::File>,
    written: u64,
    hash: Option<Sha256>,
}

impl Sink<'_> {
    /// Appends bytes.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|source| Error::io(self.path, source))?;
        self.written += bytes.len() as u64;
        if let Some(hash) = &mut self.hash {
            hash.update(bytes);
        }
        Ok(())
    }

    fn write_all_of<T: Copy, const N: usize>(
        &mut self,
        values: &[T],
        encode: impl Fn(T) -> [u8; N],
    ) -> Result<()> {
        values.iter().try_for_each(|&value| self.write(&encode(value)))
    }

    /// Makes what was written durable, and gives it the name of the file.
    fn finish(self, aside: &Path) -> Result<(u64, Option<Sha256>)> {
        let at = |source| Error::io(self.path, source);
        let file = self.file.into_inner().map_err(std::io::IntoInnerError::into_error).map_err(at)?;
        file.sync_all().map_err(at)?;
        // An open file cannot be renamed everywhere.
        drop(file);
        rename(aside, self.path)?;
        Ok((self.written, self.hash))
    }
}

/// The length in bytes and the SHA-256 of the file at `path`.
///
/// # Errors
/// [`Error::Io`] naming `path`.
pub fn hash_file(path: &Path) -> Result<(u64, String)> {
    let at = |source| Error::io(path, source);
    let mut file = std::fs::File::open(path).map_err(at)?;
    let mut hash = Sha256::new();
    let mut piece = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        let read = file.read(&mut piece).map_err(at)?;
        if read == 0 {
            return Ok((bytes, hex(hash)));
        }
        hash.update(piece.get(..read).unwrap_or_default());
        bytes += read as u64;
    }
}

/// A hash in the form in which `sha256sum` prints it.
pub fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The elements of a tensor as floats or integers; `None` for a type that is neither.
pub(super) fn convert(dtype: Dtype, data: &[u8]) -> Option<Value> {
    Some(match dtype {
        Dtype::F32 => Value::F32(chunks(data, f32::from_le_bytes)),
        Dtype::F64 => Value::F32(chunks(data, |b| f64::from_le_bytes(b) as f32)),
        Dtype::F16 => Value::F32(chunks(data, |b| half::f16::from_le_bytes(b).to_f32())),
        Dtype::BF16 => Value::F32(chunks(data, |b| half::bf16::from_le_bytes(b).to_f32())),
        Dtype::I8 => Value::I64(chunks(data, |b| i64::from(i8::from_le_bytes(b)))),
        Dtype::I16 => Value::I64(chunks(data, |b| i64::from(i16::from_le_bytes(b)))),
        Dtype::I32 => Value::I64(chunks(data, |b| i64::from(i32::from_le_bytes(b)))),
        Dtype::I64 => Value::I64(chunks(data, i64::from_le_bytes)),
        Dtype::U16 => Value::I64(chunks(data, |b| i64::from(u16::from_le_bytes(b)))),
        Dtype::U32 => Value::I64(chunks(data, |b| i64::from(u32::from_le_bytes(b)))),
        Dtype::BOOL | Dtype::U8 => Value::I64(data.iter().map(|&b| i64::from(b)).collect()),
        _ => return None,
    })
}

fn chunks<T, const N: usize>(data: &[u8], decode: impl Fn([u8; N]) -> T) -> Vec<T> {
    data.as_chunks::<N>().0.iter().map(|chunk| decode(*chunk)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_dict_survives_the_file_and_is_the_same_bytes_each_time() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("w.safetensors");
        let mut dict = StateDict::default();
        dict.insert("b", &[2, 2], vec![1.0, -2.5, f32::MIN_POSITIVE, 3e38]);
        dict.insert("a", &[1], vec![0.1]);
        dict.tensors.insert("n".into(), (vec![], Value::I64(vec![7])));
        for key in ["z", "k", "arch", "input"] {
            dict.metadata.insert(key.into(), format!("value of {key}"));
        }
        dict.write(&path).expect("written");
        let first = std::fs::read(&path).expect("there");
        assert_eq!(StateDict::read(&path).expect("read"), dict);
        for _ in 0..8 {
            dict.write(&path).expect("written again");
            assert_eq!(std::fs::read(&path).expect("there"), first);
        }
    }

    #[test]
    fn rubbish_is_refused_by_name() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("w.safetensors");
        std::fs::write(&path, b"\xff\xff\xff\xff\xff\xff\xff\xffrubbish").expect("written");
        let error = StateDict::read(&path).expect_err("not a safetensors file");
        assert!(error.to_string().contains("w.safetensors"), "{error}");
        assert!(StateDict::read(&folder.path().join("missing")).is_err());
    }
}
