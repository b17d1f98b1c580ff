//! Whole training runs and whole training steps of a tiny network on procedural faces: what a run leaves behind, that
//! it learns, that the same seed gives the same bits, what a step costs, and how bad input is refused.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod accumulate;
mod auto_batch;
mod kernels;
mod memory;
mod mixed;
mod noise;
mod nonfinite;
mod refused;
mod run;
mod step;
mod verification;

use std::path::Path;
use std::sync::{Arc, OnceLock};

use epl::config::{Config, Schedule};
use epl::data::synth::{SynthConfig, draw_all};
use epl::data::{Dataset, InMemory};
use epl::head::{EplSettings, HeadForm, HeadKind, HeadSettings};
use epl::train::Observer;
use epl_runtime::{Device, DeviceOptions};

const IDENTITIES: u32 = 6;
const IMAGES: u32 = 8;
const BATCH: usize = 12;
const STEPS_PER_EPOCH: u64 = (IDENTITIES * IMAGES) as u64 / BATCH as u64;

/// The head's scale: with few classes, the release's 64 lets one sample decide the whole gradient.
const SCALE: f64 = 16.0;

fn fresh_device() -> Arc<Device> {
    Device::open(&DeviceOptions::default()).expect("a GPU, or a software Vulkan driver")
}

/// A device that tests share, so that they compile its pipelines once. Those that count use a fresh one.
fn device() -> Arc<Device> {
    static DEVICE: OnceLock<Arc<Device>> = OnceLock::new();
    DEVICE.get_or_init(fresh_device).clone()
}

/// Procedural faces of `size`, six people with eight images each.
fn faces_of(size: [usize; 2]) -> Arc<dyn Dataset> {
    let settings = SynthConfig {
        seed: 5,
        identities: IDENTITIES,
        first_identity: 0,
        images_per_identity: IMAGES,
        size,
        hard_share: 0.0,
        mislabelled_share: 0.0,
    };
    let samples = draw_all(&settings, &|_| {}).into_iter().map(|sample| (sample.rgb, sample.label)).collect();
    Arc::new(InMemory::new(size, samples, None).unwrap())
}

/// Procedural faces of the tiny network's input size.
fn faces() -> Arc<dyn Dataset> {
    static FACES: OnceLock<Arc<dyn Dataset>> = OnceLock::new();
    FACES.get_or_init(|| faces_of([16, 16])).clone()
}

/// What a run says.
#[derive(Default)]
struct Heard(Vec<String>);

impl Observer for Heard {
    fn message(&mut self, text: &str) {
        self.0.push(text.to_owned());
    }
}

fn head(kind: HeadKind, epl: bool) -> HeadSettings {
    let margin = match kind {
        HeadKind::Softmax => 0.0,
        HeadKind::CosFace | HeadKind::UniFace | HeadKind::ArcFace => 0.2,
    };
    let epl = epl.then(|| EplSettings { start_epoch: 1, ..EplSettings::default() });
    HeadSettings { kind, margin, scale: SCALE, epl, ..HeadSettings::default() }
}

/// A run of a tiny network into `out`.
fn config(out: &Path, head: HeadSettings, epochs: u32) -> Config {
    let mut config = Config::default();
    config.model.arch = "ir18".into();
    config.model.input = [16, 16];
    config.model.width = 8;
    config.model.blocks = Some([1; 4]);
    config.model.embedding = 16;
    config.model.dropout = 0.0;
    config.head = head;
    config.data.train = "procedural faces".into();
    config.optim.lr = 0.05;
    config.optim.schedule = Schedule::Constant;
    config.train.out = out.to_path_buf();
    config.train.epochs = epochs;
    config.train.batch_size = BATCH;
    config.train.log_every = 1;
    config
}

/// The configuration in the run's folder, in which the form of the head has been decided, with that put back to what
/// `asked` had.
fn resolved(out: &Path, asked: &Config) -> Config {
    let mut found = Config::load(&out.join("config.toml"), &[]).unwrap();
    assert_ne!(found.head.form, HeadForm::Auto, "a decision is written down");
    if asked.head.form == HeadForm::Auto {
        found.head.form = HeadForm::Auto;
    }
    found
}
