//! The configuration of a training run: a TOML file, plus `--set KEY=VALUE` on the command line.
//!
//! Every key has a default but `data.train` and `train.out`. A key that is not known, a value of the wrong type or
//! out of range, and a value that this version does not support are all [`Error::Usage`], naming the key; nothing
//! is silently ignored.

pub(crate) mod batch;
mod reader;
mod schedule;
#[cfg(test)]
mod tests;
mod validate;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use crate::data::augment::Augment;
pub use crate::head::{ArcMode, Duplicates, EplSettings, EplUpdate, HeadKind, HeadSettings};
pub use batch::AUTO;
pub use schedule::{LearningRate, Schedule};

use crate::nn::Network;
use crate::{Error, Result};

/// A whole training run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The backbone.
    pub model: Model,
    /// The loss.
    pub head: HeadSettings,
    /// The training set.
    pub data: Data,
    /// The optimiser and its schedule.
    pub optim: Optim,
    /// The run.
    pub train: Train,
}

/// The backbone, `[model]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Model {
    /// Name of the network: the release's `ir18`, `ir34`, `ir50`, `ir100`, `ir200`, InsightFace's `iresnet18` .. `iresnet200` and
    /// `mobilefacenet`.
    pub arch: String,
    /// Height and width of the input in pixels, each divisible by 16 (the network halves four times).
    pub input: [usize; 2],
    /// Length D of the embedding.
    pub embedding: usize,
    /// Probability with which a feature is dropped before the last layer, in `[0, 1)`; by default that of `arch`.
    pub dropout: f64,
    /// Channels of the first layer; the other layers keep their ratio to it. By default those of `arch`.
    pub width: usize,
    /// Residual blocks of each of the four layers; by default those of `arch`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocks: Option<[usize; 4]>,
    /// Weights to start from: the backbone only, or all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            arch: "ir50".to_owned(),
            input: [112, 112],
            embedding: 512,
            dropout: 0.4,
            width: 64,
            blocks: None,
            init: None,
        }
    }
}

/// The training set, `[data]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Data {
    /// A folder of folders, a `.rec` file, or a folder with `train.rec`. Required.
    pub train: PathBuf,
    /// Number of identities C; by default counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_classes: Option<usize>,
    /// Whether the images are put into a new order each epoch.
    pub shuffle: bool,
    /// The random changes, in the order in which they are applied.
    pub augment: Vec<Augment>,
    /// Whether images of another size are resized to the network's input; otherwise they are an error.
    pub resize: bool,
}

impl Default for Data {
    fn default() -> Self {
        Self {
            train: PathBuf::new(),
            num_classes: None,
            shuffle: true,
            augment: Augment::named("mirror").into_iter().collect(),
            resize: false,
        }
    }
}

/// Stochastic gradient descent with momentum, `[optim]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Optim {
    /// The base learning rate, which the schedule scales.
    pub lr: f64,
    /// Momentum, in `[0, 1)`.
    pub momentum: f64,
    /// L2 penalty on every parameter.
    pub weight_decay: f64,
    /// How the learning rate changes over the run.
    pub schedule: Schedule,
    /// Largest norm of the whole gradient, head included; 0 is no limit.
    pub clip_norm: f64,
    /// Whether the class weights take part in that norm and are clipped with it; in InsightFace they are not.
    pub clip_head: bool,
    /// The batch that `lr` is meant for: with another one it is scaled in proportion (the linear rule of Goyal et al.,
    /// arXiv 1706.02677). 0: `lr` is used as it stands.
    pub lr_batch: usize,
}

impl Default for Optim {
    fn default() -> Self {
        Self {
            lr: 0.1,
            momentum: 0.9,
            weight_decay: 5e-4,
            schedule: Schedule::default(),
            clip_norm: 0.0,
            clip_head: true,
            lr_batch: 0,
        }
    }
}

/// Storage of activations and gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floats throughout.
    F32,
    /// 16-bit storage, 32-bit accumulation, a dynamic loss scale.
    Mixed,
}

/// What happens after a step whose loss or gradient is not finite. Such a step is never taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NonFinite {
    /// The run ends with an error that says where it came from.
    Stop,
    /// It is left out and counted.
    Skip,
}

/// Whether kernels are measured against each other before a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Autotune {
    /// On a GPU, where what was measured can be kept.
    Auto,
    /// Always.
    On,
    /// Never: rules decide.
    Off,
}

/// The run, `[train]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Train {
    /// The run's folder. Required.
    pub out: PathBuf,
    /// Passes over the training set.
    pub epochs: u32,
    /// Steps after which the run ends, whatever `epochs` is; 0 is no limit.
    pub max_steps: u64,
    /// Images that go through the network at once; [`AUTO`] for the most that fit.
    #[serde(with = "batch")]
    pub batch_size: usize,
    /// Batches of a step. It is the step of one batch that is this many times as large, but for batch normalisation, with
    /// the memory of one; each batch goes through the network once more for that.
    pub accumulate: usize,
    /// Storage of activations and gradients.
    pub precision: Precision,
    /// Whether kernels are measured against each other before the run; a resumed one keeps those that it was started with.
    pub autotune: Autotune,
    /// Seed of every random number of the run.
    pub seed: u64,
    /// Steps between two checkpoints; 0 for none but those at the end of every epoch.
    pub checkpoint_every: u64,
    /// How many checkpoints are kept, the newest ones.
    pub keep_checkpoints: usize,
    /// Verification sets, evaluated at the end of every epoch.
    pub eval: Vec<PathBuf>,
    /// Steps between two lines of the metrics.
    pub log_every: u64,
    /// What happens after a step that is not finite.
    pub nonfinite: NonFinite,
    /// A sample whose cosine with its class's prototype is below this counts as hard in the log, -1 to 1.
    pub hard_cosine: f64,
}

impl Default for Train {
    fn default() -> Self {
        Self {
            out: PathBuf::new(),
            epochs: 28,
            max_steps: 0,
            batch_size: 512,
            accumulate: 1,
            precision: Precision::F32,
            autotune: Autotune::Auto,
            seed: 1,
            checkpoint_every: 1000,
            keep_checkpoints: 3,
            eval: Vec::new(),
            log_every: 20,
            nonfinite: NonFinite::Stop,
            hard_cosine: 0.3,
        }
    }
}

/// A key in which two configurations differ, with both values as TOML; `None` for a key that one does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The key, dotted.
    pub key: String,
    /// Its value in the first.
    pub first: Option<String>,
    /// Its value in the second.
    pub second: Option<String>,
}

impl Train {
    /// Images in a step of the optimiser.
    pub fn images_per_step(&self) -> usize {
        self.batch_size.saturating_mul(self.accumulate)
    }
}

impl Config {
    /// Reads the file at `path`, applies `overrides` (each `KEY=VALUE`) and checks the result.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read, otherwise those of [`Config::from_toml`].
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::io(path, source))?;
        Self::from_toml(&text, overrides).map_err(|error| match error {
            Error::Usage { what, hint } if what.starts_with(reader::NOT_TOML) => {
                Error::usage(format!("{}: {what}", path.display()), hint)
            }
            other => other,
        })
    }

    /// Reads a configuration from TOML, applies `overrides` and checks the result.
    ///
    /// An override is `KEY=VALUE`: the key is dotted (`optim.lr`), the value is TOML, or else a bare word that is
    /// taken as a string, so that `--set model.arch=ir18` needs no quotes. Later overrides win.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the key, what was found and what was expected.
    pub fn from_toml(text: &str, overrides: &[String]) -> Result<Self> {
        let config: Self = reader::read(text, overrides, complete_model)?;
        config.validate()?;
        Ok(config)
    }

    /// The configuration as TOML, every default written out; reading it gives the same configuration.
    ///
    /// # Errors
    /// [`Error::Usage`] if TOML cannot hold a value: a path that is not Unicode, a seed of 2^63 or more.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|error| {
            Error::usage(
                format!("the configuration cannot be written as TOML: {error}"),
                "use Unicode paths and a seed below 2^63",
            )
        })
    }

    /// The keys in which `self` and `other` differ, sorted.
    ///
    /// # Errors
    /// As [`Self::to_toml`].
    pub fn differences(&self, other: &Self) -> Result<Vec<Difference>> {
        let values = |config: &Self| -> Result<BTreeMap<String, String>> {
            let table = config.to_toml()?.parse::<toml::Table>().unwrap_or_default();
            let mut values = BTreeMap::new();
            collect_values("", &table, &mut values);
            Ok(values)
        };
        let (own, others) = (values(self)?, values(other)?);
        let keys: BTreeSet<&String> = own.keys().chain(others.keys()).collect();
        let pairs = keys.into_iter().map(|key| Difference {
            key: key.clone(),
            first: own.get(key).cloned(),
            second: others.get(key).cloned(),
        });
        Ok(pairs.filter(|pair| pair.first != pair.second).collect())
    }

    /// Every key of a configuration, dotted, leaves only; the search for the nearest known key needs them all.
    fn known_keys() -> Vec<String> {
        let mut full = Self::default();
        full.model.blocks = Some([1; 4]);
        full.model.init = Some(PathBuf::from("init"));
        full.data.num_classes = Some(2);
        full.head.epl = Some(EplSettings::default());
        let mut keys = Vec::new();
        if let Ok(table) = toml::Table::try_from(&full) {
            collect_keys("", &table, &mut keys);
        }
        keys
    }
}

/// Gives `[model]` the width and the dropout with which its network was published, where they are left out.
fn complete_model(table: &mut toml::Table) {
    let model = table.entry("model").or_insert_with(|| toml::Value::Table(toml::Table::new()));
    // What is no table, or no network, is for the checks that follow to refuse.
    let Some(model) = model.as_table_mut() else { return };
    let default = Model::default().arch;
    let arch = model.get("arch").map_or(Some(default.as_str()), toml::Value::as_str);
    if let Some(Ok(network)) = arch.map(Network::named) {
        // The shortest decimal that is the f32: 0.4 and not 0.4000000059604645.
        let dropout = network.dropout.to_string().parse().unwrap_or_default();
        model.entry("width").or_insert(toml::Value::Integer(network.width as i64));
        model.entry("dropout").or_insert(toml::Value::Float(dropout));
    }
}

fn collect_values(prefix: &str, table: &toml::Table, values: &mut BTreeMap<String, String>) {
    for (name, value) in table {
        let key = reader::join(prefix, name);
        match value {
            toml::Value::Table(inner) => collect_values(&key, inner, values),
            value => drop(values.insert(key, value.to_string())),
        }
    }
}

fn collect_keys(prefix: &str, table: &toml::Table, keys: &mut Vec<String>) {
    for (name, value) in table {
        let key = reader::join(prefix, name);
        match value {
            toml::Value::Table(inner) => collect_keys(&key, inner, keys),
            _ => keys.push(key),
        }
    }
}
