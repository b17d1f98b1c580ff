//! `train.batch_size = "auto"`: the largest batch that fits, and as many of them as make the step the recipe's.
//!
//! A learning rate and its schedule are made for a number of images a step. That number is kept, so that the same
//! configuration trains alike on a large GPU and on a small one: the step is cut into equal batches, whose gradients are
//! accumulated. What is decided stands in the run's `config.toml` and in its checkpoints, and a run that is resumed keeps it.

use epl_runtime::{Caps, Device, Error as RuntimeError};
use sysinfo::{MemoryRefreshKind, RefreshKind, System};

use crate::config::{AUTO, Config};
use crate::train::plan::{peak_bytes, readable};
use crate::{Error, Result};

/// Images of a step where the configuration does not name the batch that its learning rate is for: the release's.
const STEP: usize = 512;
/// One part in so many of the whole memory can be had in any case: what other programs do not use at the moment makes room.
const LEAST_SHARE: u64 = 4;
/// Fewer images than this give batch normalisation poor statistics.
const FEW: usize = 32;
/// The share of the memory that is free now which a run may plan with, where the GPU has none of its own: the loader
/// and other programs need some.
const SHARE: f64 = 0.7;

/// The images of a step, and their largest batch that `fits` (asked with both), of data with so many images; the step alone where none does.
///
/// # Errors
/// That of `fits`.
fn largest(
    config: &Config,
    images: usize,
    mut fits: impl FnMut(usize, usize) -> Result<bool>,
) -> Result<(usize, Option<usize>)> {
    let wanted = if config.optim.lr_batch > 0 { config.optim.lr_batch } else { STEP };
    // With less data the step is the largest power of two that they have: still cut without a rest.
    let step = if images < wanted { 1 << images.max(2).ilog2() } else { wanted };
    for batch in (2..=step).rev().filter(|batch| step.is_multiple_of(*batch)) {
        if fits(step, batch)? {
            return Ok((step, Some(batch)));
        }
    }
    Ok((step, None))
}

/// `config` with a batch, and as many a step as make `step` images.
fn with_batch(config: &Config, step: usize, batch: usize) -> Config {
    let mut decided = config.clone();
    decided.train.batch_size = batch;
    decided.train.accumulate = step / batch.max(1);
    decided
}

/// What a run may take of a device's memory.
pub enum Room<'a> {
    /// What an open device has, beside what is allocated already.
    Device(&'a Device),
    /// So many bytes.
    Bytes(u64),
    /// Nothing is known but the limits of the adapter.
    Unknown,
}

impl Room<'_> {
    /// Whether so many bytes can be had.
    ///
    /// # Errors
    /// A device that is lost.
    fn has(&self, bytes: u64) -> Result<bool> {
        match self {
            Self::Device(device) => {
                Ok(shared_memory(device).is_none_or(|most| bytes <= most) && device.has_room(bytes)?)
            }
            Self::Bytes(most) => Ok(bytes <= *most),
            Self::Unknown => Ok(true),
        }
    }
}

/// Bytes that can be had on a device that shares the host's memory. There drivers promise more than there is, and what is
/// too much ends other programs; a GPU with memory of its own is asked by [`Device::has_room`].
fn shared_memory(device: &Device) -> Option<u64> {
    if !["Cpu", "IntegratedGpu"].contains(&device.description().kind.as_str()) {
        return None;
    }
    let memory = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
    let system = System::new_with_specifics(memory);
    // Systems that keep files in memory, and compress what is idle, tell of too little.
    let mut available = system.available_memory().max(system.total_memory() / LEAST_SHARE);
    // A container may have less than its host; what it keeps of files in memory counts as used there.
    if let Some(limits) = system.cgroup_limits() {
        available = available.min(limits.total_memory.saturating_sub(limits.rss));
    }
    Some((available as f64 * SHARE) as u64)
}

/// The configuration with its batch decided, where that is "auto", for data of `classes` identities and `images` images.
/// `say` gets a line about it.
///
/// # Errors
/// Where no batch fits, or the network is impossible.
pub fn decide(
    config: &Config,
    classes: usize,
    images: usize,
    (caps, room): (&Caps, &Room<'_>),
    say: &mut dyn FnMut(&str),
) -> Result<Config> {
    if config.train.batch_size != AUTO {
        return Ok(config.clone());
    }
    let mut found =
        Err(Error::usage("no batch was tried", "this is a fault of the program; please report it"));
    let (step, batch) = largest(config, images, |step, batch| {
        found = peak_bytes(&with_batch(config, step, batch), classes, caps);
        match &found {
            Ok(bytes) => room.has(*bytes),
            Err(Error::Runtime(RuntimeError::Limit { .. })) => Ok(false),
            Err(_) => Ok(true),
        }
    })?;
    let bytes = found?;
    let Some(batch) = batch else {
        let what = format!(
            "`train.batch_size` is \"auto\", and not even the smallest batch that divides a step of {step} images fits the memory \
             that is free: it needs {}",
            readable(bytes)
        );
        let hint = "close what else uses the memory, or use a narrower network, smaller images, head.sample_rate, or another \
                    device";
        return Err(Error::Runtime(RuntimeError::Limit { what, hint: hint.into() }));
    };
    let decided = with_batch(config, step, batch);
    let times = match decided.train.accumulate {
        1 => "one batch".to_owned(),
        times => format!("{times} batches"),
    };
    say(&format!(
        "train.batch_size = \"auto\": {batch}; a step of {step} images is {times}, and takes {} of GPU memory",
        readable(bytes)
    ));
    if batch < FEW {
        say(&format!(
            "warning: the statistics of batch normalisation are poor over batches of {batch} images: from {FEW} on they are \
             sound"
        ));
    }
    Ok(decided)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(lr_batch: usize, images: usize, most: usize) -> (usize, Option<usize>) {
        let mut config = Config::default();
        config.optim.lr_batch = lr_batch;
        largest(&config, images, |_, batch| Ok(batch <= most)).unwrap()
    }

    #[test]
    fn the_step_is_the_recipes_and_is_cut_without_a_rest() {
        assert_eq!(found(0, 500_000, 1000), (512, Some(512)));
        assert_eq!(found(0, 500_000, 511), (512, Some(256)));
        assert_eq!(found(0, 500_000, 3), (512, Some(2)));
        assert_eq!(found(0, 500_000, 1), (512, None));
        assert_eq!(found(96, 500_000, 50), (96, Some(48)));
        assert_eq!(found(1000, 500_000, 300), (1000, Some(250)));
        // Data with fewer images than a step.
        assert_eq!(found(0, 360, 1000), (256, Some(256)));
        assert_eq!(found(0, 3, 1000), (2, Some(2)));
        assert_eq!(found(0, 0, 1000), (2, Some(2)));
    }

    #[test]
    fn what_was_decided_makes_the_whole_step() {
        let decided = with_batch(&Config::default(), 512, 64);
        assert_eq!((decided.train.batch_size, decided.train.accumulate), (64, 8));
        assert_eq!(decided.train.images_per_step(), 512);
    }
}
