//! What a checkpoint holds beside the tensors, and whether a run may go on from it.

use std::collections::BTreeMap;

use epl_runtime::Device;
use serde::{Deserialize, Serialize};

use crate::config::{Config, Difference};
use crate::data::Dataset;
use crate::train::epoch::EpochSums;
use crate::train::stall::LossWatch;
use crate::{Error, Result};

/// The state of a run between two steps, without the tensors. Generators and the schedule have none: order,
/// augmentation, dropout and sampled classes are functions of the seed and of the position, and so is the learning rate.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingState {
    /// The epoch in progress, counted from 1.
    pub epoch: u32,
    /// Batches of it that are done; where these are all, what comes at an epoch's end is not.
    pub batch: u64,
    /// Steps so far whose update was left out.
    pub skipped: u64,
    /// The last ones of them, without one that was taken in between.
    pub skipped_in_a_row: u64,
    /// The loss scale; 1 in single precision.
    pub loss_scale: f64,
    /// Finite steps since it last changed.
    #[serde(default)]
    pub finite_steps: u32,
    /// What is known of the course of the loss.
    pub stall: LossWatch,
    /// Seconds of training so far.
    pub train_seconds: f64,
    /// What the steps of the epoch in progress gave.
    pub sums: EpochSums,
    /// Mean loss of the last epoch that has ended.
    pub epoch_loss: Option<f64>,
    /// The best evaluation so far.
    pub best: Option<Best>,
    /// What the data looked like.
    pub data: Fingerprint,
    /// The resolved configuration, as TOML.
    pub config: String,
    /// Adapter, backend and driver.
    pub device: [String; 3],
    /// The kernels that were chosen by measuring, by op; see [`crate::train::kernels`].
    #[serde(default)]
    pub kernels: BTreeMap<String, String>,
}

/// What tells one device from another: adapter, backend and driver.
pub fn device_names(device: &Device) -> [String; 3] {
    let description = device.description();
    [description.name.clone(), description.backend.clone(), description.driver.clone()]
}

/// The best evaluation of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Its epoch, counted from 1.
    pub epoch: u32,
    /// Steps done before it.
    pub step: u64,
    /// Mean accuracy over the verification sets, a fraction.
    pub accuracy: f64,
    /// The sets. With others its accuracy cannot be compared.
    pub sets: Vec<String>,
}

/// What tells one data set from another without reading it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    images: usize,
    classes: usize,
    /// Labels of some samples, evenly spread.
    labels: Vec<u32>,
}

/// Samples whose labels are compared.
const COMPARED: usize = 64;

impl Fingerprint {
    /// Of `dataset`.
    ///
    /// # Errors
    /// Where a label cannot be read.
    pub fn of(dataset: &dyn Dataset) -> Result<Self> {
        let images = dataset.len();
        let count = images.min(COMPARED);
        let labels = (0..count).map(|i| dataset.label(i * images / count)).collect::<Result<_>>()?;
        Ok(Self { images, classes: dataset.num_classes(), labels })
    }
}

/// Keys without which what is in a checkpoint means nothing: shapes, and the cut of the data into batches.
const FIXED: [&str; 11] = [
    "model.arch",
    "model.input",
    "model.embedding",
    "model.width",
    "model.blocks",
    "head.kind",
    "data.shuffle",
    "train.batch_size",
    "train.accumulate",
    "train.seed",
    "train.precision",
];

/// Keys that do not change what is trained: a resumed run keeps its kernels.
const FREE: [&str; 9] = [
    "model.init",
    "data.train",
    "data.num_classes",
    "train.autotune",
    "train.out",
    "train.eval",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.log_every",
];

impl TrainingState {
    /// Whether a run with `config` on data like `data` may go on from here. Returns a line for everything that is not as
    /// it was, with which the result is not that of an uninterrupted run.
    ///
    /// # Errors
    /// [`Error::Usage`] for the first thing that makes it impossible, as found and as it was.
    pub fn admits(&self, config: &Config, data: &Fingerprint, device: &[String; 3]) -> Result<Vec<String>> {
        let before = Config::from_toml(&self.config, &[])?;
        let mut changed = Vec::new();
        for Difference { key, first: was, second: now } in before.differences(config)? {
            let of_tables = key.starts_with("head.epl") && (was.is_none() || now.is_none());
            let text = |value: Option<String>| value.unwrap_or_else(|| "absent".into());
            if of_tables || FIXED.contains(&key.as_str()) {
                return Err(Error::usage(
                    format!("`{key}`: the checkpoint is of a run with {}; found {}", text(was), text(now)),
                    "go on with the value of the checkpoint, or start another run from its weights: another train.out, \
                     and model.init = \".../checkpoints/step-.../state.safetensors\"",
                ));
            }
            if !FREE.contains(&key.as_str()) {
                changed.push(format!("{key} was {}, is {}", text(was), text(now)));
            }
        }
        if self.data != *data {
            let text = |data: &Fingerprint| format!("{} images of {} identities", data.images, data.classes);
            let (was, now) = (text(&self.data), text(data));
            let found = if was == now { format!("other labels, in {now}") } else { now };
            return Err(Error::usage(
                format!("`data.train`: the checkpoint is of a run on {was}; found {found}"),
                "go on with the same data, or start another run from the weights with model.init",
            ));
        }
        if self.device != *device {
            let text = |device: &[String; 3]| device.join(", ");
            changed.push(format!("the device was {}, is {}", text(&self.device), text(device)));
        }
        Ok(changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::InMemory;
    use crate::head::EplSettings;

    fn data(label: u32) -> Fingerprint {
        let samples = (0..200).map(|i| (vec![0; 12], if i == 103 { label } else { i % 5 })).collect();
        Fingerprint::of(&InMemory::new([2, 2], samples, Some(5)).unwrap()).unwrap()
    }

    fn config() -> Config {
        let mut config = Config::default();
        config.data.train = "data".into();
        config.train.out = "out".into();
        config.train.seed = 7;
        config
    }

    const DEVICE: [&str; 3] = ["GPU", "Vulkan", "1.0"];

    fn state() -> TrainingState {
        TrainingState {
            epoch: 3,
            batch: 2,
            skipped: 0,
            skipped_in_a_row: 0,
            loss_scale: 1024.0,
            finite_steps: 17,
            stall: LossWatch::new(100),
            train_seconds: 1.5,
            sums: EpochSums::new(0.3),
            epoch_loss: Some(0.1 + 0.2),
            best: None,
            data: data(3),
            config: config().to_toml().unwrap(),
            device: DEVICE.map(String::from),
            kernels: BTreeMap::from([("op".into(), "tiled".into())]),
        }
    }

    #[test]
    fn what_changes_nothing_is_free_and_the_rest_is_told() {
        let admits = |change: fn(&mut Config)| {
            let mut config = config();
            change(&mut config);
            state().admits(&config, &data(3), &DEVICE.map(String::from)).unwrap()
        };
        assert_eq!(admits(|_| {}), [] as [&str; 0]);
        let free = admits(|config| {
            config.train.log_every = 5;
            config.train.keep_checkpoints = 9;
            config.data.train = "elsewhere".into();
            config.train.eval = vec!["lfw.bin".into()];
        });
        assert_eq!(free, [] as [&str; 0]);
        let told = admits(|config| (config.train.epochs, config.optim.lr) = (40, 0.01));
        assert_eq!(told, ["optim.lr was 0.1, is 0.01", "train.epochs was 28, is 40"]);
        let other = ["GPU", "Metal", "2.0"].map(String::from);
        let told = state().admits(&config(), &data(3), &other).unwrap();
        assert_eq!(told, ["the device was GPU, Vulkan, 1.0, is GPU, Metal, 2.0"]);
    }

    #[test]
    fn what_the_checkpoint_means_nothing_without_is_refused() {
        let refused = |change: fn(&mut Config), data: Fingerprint| {
            let mut config = config();
            change(&mut config);
            let error = state().admits(&config, &data, &DEVICE.map(String::from)).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            error.to_string()
        };
        let batch = refused(|config| config.train.batch_size = 256, data(3));
        assert_eq!(batch, "`train.batch_size`: the checkpoint is of a run with 512; found 256");
        let epl = refused(|config| config.head.epl = Some(EplSettings::default()), data(3));
        assert!(epl.contains("`head.epl") && epl.contains("absent"), "{epl}");
        let mut larger = data(3);
        larger.images += 1;
        assert!(refused(|_| {}, larger).contains("200 images of 5 identities; found 201 images"));
        let mut relabelled = data(3);
        relabelled.labels[9] += 1;
        assert!(refused(|_| {}, relabelled).contains("other labels"));
    }

    #[test]
    fn a_state_survives_json_bit_for_bit() {
        let mut state = state();
        state.train_seconds = 1.0 / 3.0;
        let text = serde_json::to_string(&state).unwrap();
        let again: TrainingState = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&again).unwrap(), text);
        assert_eq!(again.epoch_loss, Some(0.1 + 0.2));
        assert_eq!(again.train_seconds.to_bits(), state.train_seconds.to_bits());
    }
}
