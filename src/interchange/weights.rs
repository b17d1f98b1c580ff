//! Weights in any file that can be read, by names that networks here have.
//!
//! What wraps a network leaves a prefix on every name: `module.` (DataParallel), `_orig_mod.` (torch.compile). Programs
//! that keep the network in an attribute leave that attribute's name (`backbone.`, `model.`). Prefixes of the first kind
//! go where all names have them, those of the second where the network is recognised without them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::recognise::{Recognised, recognise, recognise_as};
use super::sniff::{self, Format};
use super::tensor_file::{Kind, TensorFile, TensorSource, absent};
use super::torch::TorchFile;
use crate::nn::Network;
use crate::{Error, Result};

/// The tensors of a checkpoint of training, in its folder.
const STATE: &str = "state.safetensors";
/// Prefixes that go where all names have them.
const WRAPPERS: &[&str] = &["module.", "_orig_mod."];
/// Prefixes that go where the network is recognised without them.
const ATTRIBUTES: &[&str] = &[
    "backbone.",
    "model.",
    "module.",
    "_orig_mod.",
    "net.",
    "network.",
    "encoder.",
    "model.backbone.",
    "model.module.",
    "model._orig_mod.",
    "backbone.module.",
    "backbone._orig_mod.",
    "net.backbone.",
];

#[derive(Debug)]
enum Source {
    Safetensors(TensorFile),
    Torch(TorchFile),
}

/// A file of weights: tensors by name, and what is known of the network.
#[derive(Debug)]
pub struct WeightsFile {
    path: PathBuf,
    source: Source,
    is_checkpoint: bool,
    /// The names in the file by those that are used here.
    names: BTreeMap<String, String>,
    metadata: BTreeMap<String, String>,
    recognised: Option<Recognised>,
    notes: Vec<String>,
}

impl WeightsFile {
    /// Opens what is at `path`, by its contents and not by its name: a safetensors file, a file of `torch.save`, or the folder
    /// of a checkpoint. The metadata say what network it is of, where the file says so or its tensors show it.
    ///
    /// # Errors
    /// What cannot be read, or is in another format.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_key(path, None)
    }

    /// The same, with the key under which a file of PyTorch holds the tensors; a dot for the whole.
    ///
    /// # Errors
    /// As [`Self::open`]; a key that leads to no tensors, and one for a file that has no keys.
    pub fn open_key(path: &Path, key: Option<&str>) -> Result<Self> {
        let is_checkpoint = path.is_dir();
        let file = if is_checkpoint { state_in(path)? } else { path.to_path_buf() };
        let mut notes = Vec::new();
        let source = match sniff::format(&file)? {
            Format::Zip => Source::Torch(TorchFile::open(&file, key)?),
            Format::Safetensors => {
                if let Some(key) = key {
                    return Err(Error::usage(
                        format!("{} is a safetensors file, which has no key {key:?}", file.display()),
                        "leave --key out; it is for checkpoints of PyTorch",
                    ));
                }
                Source::Safetensors(TensorFile::open(&file)?)
            }
        };
        let (inner, metadata): (Vec<String>, _) = match &source {
            Source::Safetensors(file) => (file.names().map(String::from).collect(), file.metadata().clone()),
            Source::Torch(file) => {
                if !file.key().is_empty() {
                    notes.push(format!("the tensors are those under the key {:?}", file.key()));
                }
                notes.extend(listed("there are others under the key", file.other_keys()));
                notes.extend(listed("left out, as they are no tensors:", file.other_names()));
                (file.names().map(String::from).collect(), BTreeMap::new())
            }
        };
        let mut opened = Self {
            path: path.to_path_buf(),
            source,
            is_checkpoint,
            names: inner.into_iter().map(|name| (name.clone(), name)).collect(),
            metadata,
            recognised: None,
            notes,
        };
        opened.strip();
        if let Some(found) = &opened.recognised
            && !opened.metadata.contains_key("arch")
        {
            let network = &found.network;
            opened.metadata.extend(network.description(network.arch()));
        }
        Ok(opened)
    }

    /// Takes the prefixes off, and recognises the network.
    fn strip(&mut self) {
        while let Some(prefix) = WRAPPERS.iter().find(|prefix| {
            !self.names.is_empty()
                && self.names.keys().all(|name| name.len() > prefix.len() && name.starts_with(**prefix))
        }) {
            self.names = without(&self.names, prefix).unwrap_or_default();
            self.notes.push(format!("the prefix {prefix} was taken off all names"));
        }
        let shapes = self.shapes(&self.names);
        // What the file says goes before what its tensors show: of a linear layer they show no sides.
        let arch = self.metadata.get("arch");
        let described = arch.and_then(|arch| Network::described(arch, &self.metadata, "").ok());
        let described = described.and_then(|network| recognise_as(network, &shapes));
        self.recognised = described.or_else(|| recognise(&shapes));
        if self.recognised.is_some() {
            return;
        }
        for prefix in ATTRIBUTES {
            let Some(names) = without(&self.names, prefix) else { continue };
            let Some(found) = recognise(&self.shapes(&names)) else { continue };
            self.recognised = Some(found);
            self.names = names;
            self.notes.push(format!("the prefix {prefix} was taken off the names that have it"));
            return;
        }
    }

    fn shapes<'s>(&'s self, names: &'s BTreeMap<String, String>) -> BTreeMap<&'s str, &'s [usize]> {
        let shape = |(name, inner): (&'s String, &'s String)| Some((name.as_str(), self.inner(inner)?.0));
        names.iter().filter_map(shape).collect()
    }

    fn inner(&self, name: &str) -> Option<(&[usize], Kind)> {
        match &self.source {
            Source::Safetensors(file) => file.describe(name),
            Source::Torch(file) => file.describe(name),
        }
    }

    /// What was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file that holds the tensors: where a checkpoint's folder was opened, one in it.
    pub fn file(&self) -> PathBuf {
        if self.is_checkpoint { self.path.join(STATE) } else { self.path.clone() }
    }

    /// The SHA-256 of the file that holds the tensors, as it was opened, whatever has its name by now.
    pub fn sha256(&self) -> String {
        match &self.source {
            Source::Safetensors(file) => file.sha256(),
            Source::Torch(file) => file.sha256(),
        }
    }

    /// Whether it is a checkpoint of training, which has more than weights.
    pub fn is_checkpoint(&self) -> bool {
        self.is_checkpoint
    }

    /// What kind of file it is.
    pub fn format(&self) -> &'static str {
        match &self.source {
            _ if self.is_checkpoint => "checkpoint",
            Source::Safetensors(_) => "safetensors",
            Source::Torch(_) => "torch",
        }
    }

    /// Free text by key: what the file says, and what its tensors show of the network where it says nothing.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The network that the tensors show.
    pub fn recognised(&self) -> Option<&Recognised> {
        self.recognised.as_ref()
    }

    /// What a person should know of how the tensors were found, in lines.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The names of the tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.keys().map(String::as_str)
    }

    /// Shape and kind of the elements of tensor `name`; `None` where there is none, or none that can be read.
    pub fn describe(&self, name: &str) -> Option<(&[usize], Kind)> {
        self.inner(self.names.get(name)?)
    }

    /// A tensor of integers.
    ///
    /// # Errors
    /// Where there is no such tensor, or it holds no integers.
    pub fn integers(&self, name: &str) -> Result<Vec<i64>> {
        let inner = self.require(name)?;
        match &self.source {
            Source::Safetensors(file) => file.integers(inner),
            Source::Torch(file) => file.integers(inner),
        }
    }

    fn require(&self, name: &str) -> Result<&String> {
        self.names.get(name).ok_or_else(|| absent(self.path.display().to_string(), name))
    }
}

impl TensorSource for WeightsFile {
    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.describe(name).filter(|(_, kind)| *kind == Kind::Float).map(|(shape, _)| shape)
    }

    fn for_each_part(
        &self,
        name: &str,
        most: usize,
        each: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        let inner = self.require(name)?;
        match &self.source {
            Source::Safetensors(file) => file.for_each_part(inner, most, each),
            Source::Torch(file) => file.for_each_part(inner, most, each),
        }
    }
}

/// The tensors of the checkpoint in `folder`.
fn state_in(folder: &Path) -> Result<PathBuf> {
    let state = folder.join(STATE);
    if state.is_file() {
        return Ok(state);
    }
    let hint = if folder.join("model.safetensors").is_file() {
        "name the model.safetensors in it"
    } else {
        "name a file, or the folder of a checkpoint: runs/NAME/checkpoints/step-..."
    };
    Err(Error::data(folder.display().to_string(), format!("a folder without {STATE}"), "weights", hint))
}

/// The names without `prefix`, where they have it; `None` where none has it, or two would be the same.
fn without(names: &BTreeMap<String, String>, prefix: &str) -> Option<BTreeMap<String, String>> {
    let bare = |name: &str| name.strip_prefix(prefix).filter(|rest| !rest.is_empty()).map(str::to_owned);
    let stripped: BTreeMap<String, String> = names
        .iter()
        .map(|(name, inner)| (bare(name).unwrap_or_else(|| name.clone()), inner.clone()))
        .collect();
    let any = names.keys().any(|name| bare(name).is_some());
    (any && stripped.len() == names.len()).then_some(stripped)
}

/// A line that ends in `names`, shortened where there are many; nothing where there are none.
fn listed(what: &str, names: &[String]) -> Option<String> {
    const SHOWN: usize = 8;
    if names.is_empty() {
        return None;
    }
    let shown = |name: &String| if name.is_empty() { "." } else { name }.to_owned();
    let mut list = names.iter().take(SHOWN).map(shown).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        list += &format!(" and {} more", names.len() - SHOWN);
    }
    Some(format!("{what} {list}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interchange::recognise::tensors;
    use crate::interchange::safetensors::{StateDict, Value};
    use crate::nn::{Family, Network};

    const TINY: Network = Network {
        family: Family::IResNet,
        input: [16, 16],
        embedding: 4,
        width: 1,
        blocks: [1; 4],
        dropout: 0.0,
    };

    fn write(path: &Path, prefix: &str, more: &[&str]) {
        let mut dict = StateDict::default();
        for tensor in tensors(&TINY).unwrap() {
            let count = tensor.shape.iter().product();
            let name = format!("{prefix}{}", tensor.name);
            if tensor.optional {
                dict.tensors.insert(name, (vec![], Value::I64(vec![9])));
            } else {
                dict.insert(name, &tensor.shape, vec![0.5; count]);
            }
        }
        for name in more {
            dict.insert(*name, &[1], vec![2.0]);
        }
        dict.write(path).unwrap();
    }

    #[test]
    fn prefixes_go_and_the_network_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w");
        for (prefix, more, notes) in [
            ("", &["head.w"][..], 0),
            ("module.", &[], 1),
            ("module._orig_mod.", &["module._orig_mod.head.w"], 2),
            ("model.", &["head.w"], 1),
            ("module.", &["head.w"], 1),
            ("backbone.", &["backbone.head.w"], 1),
        ] {
            write(&path, prefix, more);
            let file = WeightsFile::open(&path).unwrap();
            assert_eq!(file.notes().len(), notes, "{:?}", file.notes());
            let found = file.recognised().unwrap();
            assert_eq!((&found.network, found.missing.len(), found.extra.len()), (&TINY, 0, more.len()));
            assert_eq!(file.metadata()["input"], "[16, 16]");
            assert_eq!(file.floats_of("bn1.weight").unwrap(), [0.5]);
            assert_eq!(file.integers("bn1.num_batches_tracked").unwrap(), [9]);
            assert_eq!(file.shape("bn1.num_batches_tracked"), None);
            assert!(file.floats_of("module.bn1.weight").is_err());
        }
        // Where two names would become one, both stay.
        write(&path, "model.", &["bn1.weight"]);
        assert!(WeightsFile::open(&path).unwrap().recognised().is_none());
        assert_eq!(WeightsFile::open_key(&path, Some("a")).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn what_the_file_says_goes_before_what_its_tensors_show() {
        // The linear layer of an input of 64 x 16 is that of 32 x 32.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        let tall = Network { input: [64, 16], ..TINY };
        let mut dict = StateDict::default();
        for tensor in tensors(&tall).unwrap().into_iter().filter(|tensor| !tensor.optional) {
            let count = tensor.shape.iter().product();
            dict.insert(tensor.name, &tensor.shape, vec![0.5; count]);
        }
        dict.write(&path).unwrap();
        assert_eq!(WeightsFile::open(&path).unwrap().recognised().unwrap().network.input, [32, 32]);
        dict.metadata.extend(tall.description("iresnet18"));
        dict.write(&path).unwrap();
        assert_eq!(WeightsFile::open(&path).unwrap().recognised().unwrap().network.input, [64, 16]);
        // Metadata that do not fit are no description.
        dict.metadata.insert("input".into(), "[64, 64]".into());
        dict.write(&path).unwrap();
        assert_eq!(WeightsFile::open(&path).unwrap().recognised().unwrap().network.input, [32, 32]);
    }

    #[test]
    fn folders_are_checkpoints_or_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let error = WeightsFile::open(folder.path()).unwrap_err();
        assert!(error.to_string().contains("without state.safetensors"), "{error}");
        write(&folder.path().join("model.safetensors"), "", &[]);
        assert!(WeightsFile::open(folder.path()).unwrap_err().hint().unwrap().contains("model.safetensors"));
        write(&folder.path().join(STATE), "", &[]);
        assert_eq!(WeightsFile::open(folder.path()).unwrap().format(), "checkpoint");
    }
}
