//! Weights in the files of PyTorch: the zip archives that `torch.save` has written since version 1.6.
//!
//! Such an archive holds `data.pkl`, a pickle of whatever was saved in which a tensor is a storage, an offset, sizes and
//! strides, and a file of raw little-endian elements for each storage. The pickle is read by a machine that never imports
//! or calls anything (`crate::pickle`), under the policy of `policy.rs`; the archive's directory by `zip.rs`; storages
//! are mapped and read in pieces. Every offset and size is checked against what is there before anything is read.

mod find;
mod policy;
mod tensor;
mod zip;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::Mmap;
use sha2::{Digest, Sha256};

use super::tensor_file::{Kind, TensorSource, absent};
use crate::interchange::safetensors::hex;
use crate::pickle::{Node, Pickle};
use crate::{Error, Result};
use find::{Finder, choose};
use policy::{Reason, Weights};
use tensor::{Tensor, reference_of, tensor};
use zip::{Archive, Entry};

/// Most tensors of a file: many times those of any network.
const MAX_TENSORS: usize = 1 << 17;
/// The largest pickle: that of a network of thousands of layers takes some megabytes.
const MAX_PICKLE: usize = 64 << 20;
/// Elements of a tensor that does not lie in order that are gathered at once.
const GATHERED: usize = 1 << 20;
/// Elements that all tensors together may have beyond [`REPEATS`] times the file's bytes.
const FREE_ELEMENTS: usize = 1 << 24;
/// How often an element may stand in tensors: networks share some, and broadcast small ones.
const REPEATS: usize = 8;

/// A PyTorch file, mapped into memory.
#[derive(Debug)]
pub struct TorchFile {
    path: PathBuf,
    map: Mmap,
    tensors: BTreeMap<String, (Tensor, Entry)>,
    key: String,
    other_keys: Vec<String>,
    other_names: Vec<String>,
    /// The storage that was unpacked last, by its name: those of compressed archives are unpacked one at a time.
    unpacked: Mutex<Option<(String, Arc<Vec<u8>>)>>,
}

/// The bytes of a storage.
enum Storage<'a> {
    Mapped(&'a [u8]),
    Unpacked(Arc<Vec<u8>>),
}

impl Storage<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Mapped(bytes) => bytes,
            Self::Unpacked(bytes) => bytes,
        }
    }
}

impl TorchFile {
    /// The SHA-256 of the file as it was opened.
    pub fn sha256(&self) -> String {
        hex(Sha256::new_with_prefix(&self.map))
    }

    /// Opens the file at `path` and finds its tensors; `key` says where, in a checkpoint that holds them in several places.
    ///
    /// # Errors
    /// A file that cannot be read; one that is no archive of `torch.save`, or asks to run something; tensors that are not
    /// as their storages are; and no tensors, or none under `key`.
    pub fn open(path: &Path, key: Option<&str>) -> Result<Self> {
        let file = File::open(path).map_err(|source| Error::io(path, source))?;
        // SAFETY: the map is only read, as bytes, and every use checks what it reads. Another process that truncates the
        // file while it is in use can end this one, as with any mapped file.
        let map = unsafe { Mmap::map(&file) }.map_err(|source| Error::io(path, source))?;
        let place = path.display().to_string();
        let damaged = |(found, expected): zip::Fault| {
            let hint = "copy or download the file again; if it came so, do not trust it";
            Error::data(place.clone(), found, expected, hint)
        };
        let archive = Archive::read(&map).map_err(damaged)?;
        let top = top_folder(&archive, &place)?;
        if let Some(order) = archive.get(&format!("{top}byteorder")) {
            let order = order.unpack(&map, 64).map_err(damaged)?;
            if order != b"little" {
                return Err(Error::data(
                    &place,
                    format!("elements in byte order {:?}", String::from_utf8_lossy(&order)),
                    "little-endian elements",
                    "save the file again on a little-endian machine",
                ));
            }
        }
        let name = format!("{top}data.pkl");
        let entry =
            archive.get(&name).ok_or_else(|| damaged((format!("no {name}"), "a file of torch.save")))?;
        let program = match map.get(entry.bytes.clone()) {
            Some(bytes) if !entry.deflated && bytes.len() <= MAX_PICKLE => std::borrow::Cow::Borrowed(bytes),
            _ => entry.unpack(&map, MAX_PICKLE).map_err(damaged)?.into(),
        };
        let pickle = parse(&program, &format!("{place}: {name}"))?;

        let refused =
            |(found, expected, hint): find::Fault| Error::data(place.clone(), found, expected, hint);
        let mut finder = Finder::new(&pickle);
        let candidates = finder.candidates().map_err(refused)?;
        if candidates.is_empty() {
            return Err(without_tensors(&pickle, &place));
        }
        let chosen = choose(&candidates, key).map_err(refused)?;
        let named = finder.tensors(chosen).map_err(refused)?;
        let mut tensors = BTreeMap::new();
        if named.tensors.len() > MAX_TENSORS {
            return Err(Error::data(
                place,
                format!("{} tensors", named.tensors.len()),
                format!("at most {MAX_TENSORS}"),
                "use a file of weights; if the file came so, do not trust it",
            ));
        }
        for (name, id) in named.tensors {
            let found = tensor(&pickle, id).unwrap_or_else(|| Err("no tensor".to_owned()));
            let found = found.and_then(|tensor| {
                let entry = storage(&archive, &top, &tensor)?;
                Ok((tensor, entry))
            });
            let found = found.map_err(|found| {
                let hint = "save dense tensors of real numbers; if the file came so, do not trust it";
                Error::data(format!("{place}: tensor {name:?}"), found, "a tensor within its storage", hint)
            })?;
            tensors.insert(name, found);
        }
        let most = map.len().saturating_mul(REPEATS).saturating_add(FREE_ELEMENTS);
        let all = tensors.values().try_fold(0_usize, |sum, (tensor, _)| sum.checked_add(tensor.elements));
        if all.is_none_or(|all| all > most) {
            return Err(Error::data(
                place,
                format!("tensors of more than {most} elements, in a file of {} bytes", map.len()),
                "tensors that the file holds, and not single elements repeated beyond reason",
                "save contiguous tensors; if the file came so, do not trust it",
            ));
        }
        let other_keys = candidates.iter().filter(|other| *other != chosen);
        let other_keys = other_keys.map(|other| other.key.clone()).collect();
        let key = chosen.key.clone();
        drop(program);
        let unpacked = Mutex::new(None);
        Ok(Self { path: path.into(), map, tensors, key, other_keys, other_names: named.others, unpacked })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The key that leads to the tensors in the file; empty where they are all that it holds.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The keys of further tensors in the file.
    pub fn other_keys(&self) -> &[String] {
        &self.other_keys
    }

    /// The names beside the tensors of what is no tensor.
    pub fn other_names(&self) -> &[String] {
        &self.other_names
    }

    /// The names of the tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Shape and kind of the elements of tensor `name`.
    pub fn describe(&self, name: &str) -> Option<(&[usize], Kind)> {
        let (tensor, _) = self.tensors.get(name)?;
        let kind = if tensor.element.is_float() { Kind::Float } else { Kind::Integer };
        Some((&tensor.shape, kind))
    }

    /// A tensor of integers.
    ///
    /// # Errors
    /// Where there is no such tensor, or it holds no integers.
    pub fn integers(&self, name: &str) -> Result<Vec<i64>> {
        let (tensor, entry) = self.find(name)?;
        if tensor.element.is_float() {
            return Err(Error::data(
                format!("{}: tensor {name}", self.path.display()),
                format!("{:?}", tensor.element),
                "integers",
                "use an unaltered file",
            ));
        }
        let storage = self.storage(tensor, entry)?;
        let mut values = Vec::with_capacity(tensor.elements);
        self.for_each_piece(tensor, storage.bytes(), tensor.elements, &mut |_, bytes| {
            tensor.element.integers(bytes, &mut values);
            Ok(())
        })?;
        Ok(values)
    }

    fn find(&self, name: &str) -> Result<(&Tensor, &Entry)> {
        let found = self.tensors.get(name).map(|(tensor, entry)| (tensor, entry));
        found.ok_or_else(|| absent(self.path.display().to_string(), name))
    }

    fn storage(&self, tensor: &Tensor, entry: &Entry) -> Result<Storage<'_>> {
        if !entry.deflated {
            return Ok(Storage::Mapped(self.map.get(entry.bytes.clone()).unwrap_or_default()));
        }
        let mut last = self.unpacked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((name, bytes)) = last.as_ref()
            && *name == tensor.storage
        {
            return Ok(Storage::Unpacked(Arc::clone(bytes)));
        }
        // The one before goes first.
        *last = None;
        let bytes = entry.unpack(&self.map, entry.size).map_err(|(found, expected)| {
            let place = format!("{}: data/{}", self.path.display(), tensor.storage);
            Error::data(place, found, expected, "copy or download the file again")
        })?;
        let bytes = Arc::new(bytes);
        *last = Some((tensor.storage.clone(), Arc::clone(&bytes)));
        Ok(Storage::Unpacked(bytes))
    }

    /// Hands the elements of `tensor` to `each` in order, at most `most` at a time, as bytes, with the index of the first.
    fn for_each_piece(
        &self,
        tensor: &Tensor,
        storage: &[u8],
        most: usize,
        each: &mut dyn FnMut(usize, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let width = tensor.element.width();
        let most = most.clamp(1, usize::MAX / 16);
        let mut first = 0;
        if tensor.elements == 0 {
            return Ok(());
        }
        if tensor.is_contiguous() {
            let start = tensor.offset * width;
            let bytes = storage.get(start..start + tensor.elements * width);
            for piece in bytes.ok_or_else(|| self.too_short(tensor))?.chunks(most * width) {
                each(first, piece)?;
                first += piece.len() / width;
            }
            return Ok(());
        }
        let most = most.min(GATHERED);
        let mut piece = Vec::with_capacity(most.min(tensor.elements) * width);
        tensor.for_each_place(|place| -> Result<()> {
            let start = place * width;
            piece.extend_from_slice(storage.get(start..start + width).ok_or_else(|| self.too_short(tensor))?);
            if piece.len() == most * width {
                each(first, &piece)?;
                first += most;
                piece.clear();
            }
            Ok(())
        })?;
        if piece.is_empty() { Ok(()) } else { each(first, &piece) }
    }

    fn too_short(&self, tensor: &Tensor) -> Error {
        let place = format!("{}: data/{}", self.path.display(), tensor.storage);
        Error::data(place, "fewer bytes than when it was opened", "an unaltered file", "try again")
    }
}

impl TensorSource for TorchFile {
    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.describe(name).filter(|(_, kind)| *kind == Kind::Float).map(|(shape, _)| shape)
    }

    fn for_each_part(
        &self,
        name: &str,
        most: usize,
        each: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        let (tensor, entry) = self.find(name)?;
        if !tensor.element.is_float() {
            return Err(absent(self.path.display().to_string(), name));
        }
        let storage = self.storage(tensor, entry)?;
        let mut values = Vec::new();
        self.for_each_piece(tensor, storage.bytes(), most, &mut |first, bytes| {
            match bytemuck::try_cast_slice::<u8, f32>(bytes) {
                // The usual case, without a copy: little-endian floats, aligned.
                Ok(values) if tensor.element == tensor::Element::F32 && cfg!(target_endian = "little") => {
                    each(first, values)
                }
                _ => {
                    values.clear();
                    tensor.element.floats(bytes, &mut values);
                    each(first, &values)
                }
            }
        })
    }
}

/// The folder in which the archive has everything, with its slash.
fn top_folder(archive: &Archive, place: &str) -> Result<String> {
    let wrong =
        |found: &str, hint: &str| Error::data(place, found, "weights as torch.save writes them", hint);
    let mut tops = archive.names().filter_map(|name| {
        let top = name.strip_suffix("data.pkl")?;
        (top.is_empty() || top.find('/') == Some(top.len() - 1)).then_some(top)
    });
    let Some(top) = tops.next() else {
        let has = |suffix: &str| archive.names().any(|name| name.ends_with(suffix));
        return Err(if has(".npy") {
            wrong(
                "an archive of NumPy arrays (.npz)",
                "in Python: torch.save({k: torch.from_numpy(v) for k, v in numpy.load(f).items()}, new)",
            )
        } else if has("config.json") || has(".h5") {
            wrong("a Keras model", "convert it to PyTorch or safetensors first")
        } else {
            wrong(
                "a zip archive without data.pkl",
                "check that it is the right file; unpack archives of several files",
            )
        });
    };
    if tops.next().is_some() {
        return Err(wrong(
            "an archive with data.pkl in several folders",
            "unpack it and use one of the files",
        ));
    }
    let script = |name: &str| {
        name.strip_prefix(top).is_some_and(|name| name == "constants.pkl" || name.starts_with("code/"))
    };
    if archive.names().any(script) {
        return Err(wrong(
            "a TorchScript program (torch.jit.save)",
            "take its weights out in Python: torch.save(torch.jit.load(f).state_dict(), new)",
        ));
    }
    Ok(top.to_owned())
}

fn parse<'a>(program: &'a [u8], place: &str) -> Result<Pickle<'a>> {
    let policy = Weights::default();
    let pickle = Pickle::parse_by(program, &policy).map_err(|fault| {
        let hint = match policy.reason() {
            Some(Reason::Dangerous) => {
                "this file is not to be trusted: nothing in it was run; delete it, and do not load it in Python"
            }
            Some(Reason::Unknown) => {
                "nothing in the file was run; if you trust where it comes from, save its tensors alone in Python: \
                 torch.save(model.state_dict(), new)"
            }
            None => "copy the file again; if it is whole, save a plain state_dict with torch.save(model.state_dict(), F)",
        };
        Error::data(format!("{place}, byte {}", fault.offset), fault.found, fault.expected, hint)
    })?;
    for id in pickle.ids() {
        if let Node::Persistent(reference) = *pickle.node(id) {
            reference_of(&pickle, reference).map_err(|found| {
                Error::data(place, found, "references to storages", "save the tensors alone: a state dict")
            })?;
        }
    }
    Ok(pickle)
}

/// The error for a pickle in which no tensor has a name.
fn without_tensors(pickle: &Pickle<'_>, place: &str) -> Error {
    let array = |id| {
        let call = pickle.call(id);
        call.is_some_and(|(module, name, ..)| module.starts_with("numpy") && name == "_reconstruct")
    };
    let arrays = pickle.ids().filter(|&id| array(id)).count();
    let expected = "a state dict, or a checkpoint or a module with one";
    if arrays > 0 {
        let hint = "in Python: torch.save({k: torch.from_numpy(v) for k, v in arrays.items()}, new)";
        return Error::data(place, format!("{arrays} NumPy arrays and no tensors"), expected, hint);
    }
    let found = format!("{}, without tensors by name", pickle.describe(pickle.root()));
    Error::data(place, found, expected, "save a state dict in Python: torch.save(model.state_dict(), new)")
}

/// The storage of `tensor` in the archive, which must be as long as the pickle says.
fn storage(archive: &Archive, top: &str, tensor: &Tensor) -> Result<Entry, String> {
    let name = format!("{top}data/{}", tensor.storage);
    let Some(entry) = archive.get(&name) else {
        return Err(format!("no {name:?} in the archive"));
    };
    if entry.size != tensor.storage_bytes {
        return Err(format!(
            "{name:?} of {} bytes where the pickle says {}",
            entry.size, tensor.storage_bytes
        ));
    }
    Ok(entry.clone())
}

#[cfg(test)]
mod tests;
