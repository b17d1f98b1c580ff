//! `train.batch_size = "auto"`.

use std::sync::Arc;

use epl::config::{AUTO, Config, HeadKind};
use epl::train::plan::plan;
use epl::train::{Outcome, RunOptions, run_on};
use epl_runtime::{Device, DeviceOptions};

use super::{Heard, IDENTITIES, config, faces_of, head};

const SIZE: [usize; 2] = [48, 48];

/// A step of all data: the largest power of two that 48 images have.
const STEP: usize = 32;

fn with_memory(bytes: u64) -> Arc<Device> {
    let options = DeviceOptions { max_memory_bytes: Some(bytes), ..DeviceOptions::default() };
    Device::open(&options).unwrap()
}

/// Bytes of a run with `batch` images at once.
fn bytes(asked: &Config, batch: usize) -> u64 {
    let mut config = asked.clone();
    (config.train.batch_size, config.train.accumulate) = (batch, STEP / batch);
    plan(&config, IDENTITIES as usize, with_memory(u64::MAX).caps(), None).unwrap().peak_bytes
}

fn run(config: &Config, device: &Arc<Device>, resume: bool) -> (Outcome, String) {
    let (mut heard, options) = (Heard::default(), RunOptions { resume, ..RunOptions::default() });
    let outcome = run_on(config.clone(), device, faces_of(SIZE), Vec::new(), &options, &mut heard).unwrap();
    (outcome, heard.0.join("\n"))
}

#[test]
fn the_largest_batch_that_fits_is_taken_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let mut asked = config(&folder.path().join("auto"), head(HeadKind::CosFace, true), 3);
    asked.train.batch_size = AUTO;
    // Images large enough for activations to outweigh the parameter blocks of each batch of a step.
    asked.model.input = SIZE;
    let between = (bytes(&asked, 8) + bytes(&asked, 16)) / 2;
    assert!(bytes(&asked, 8) < between, "more images take more memory");

    let mut first = asked.clone();
    first.train.max_steps = 2;
    let (_, said) = run(&first, &with_memory(between), false);
    assert!(said.contains("train.batch_size = \"auto\": 8; a step of 32 images is 4 batches"), "{said}");
    assert!(said.contains("statistics of batch normalisation are poor"), "{said}");
    let written = Config::load(&asked.train.out.join("config.toml"), &[]).unwrap().train;
    assert_eq!((written.batch_size, written.accumulate), (8, 4));

    // With all the memory of the machine the resumed run keeps its batch; a new one does not.
    std::fs::remove_file(asked.train.out.join("model.safetensors")).unwrap();
    let everything = with_memory(u64::MAX);
    let (outcome, said) = run(&asked, &everything, true);
    assert!(outcome.steps == 3 && !said.contains("\"auto\""), "{said}");
    let mut other = asked.clone();
    other.train.out = folder.path().join("other");
    let (_, said) = run(&other, &everything, false);
    assert!(said.contains("\"auto\": 32; a step of 32 images is one batch"), "{said}");

    // It is the run with the numbers that it found.
    let mut told = asked.clone();
    told.train.out = folder.path().join("told");
    (told.train.batch_size, told.train.accumulate) = (8, 4);
    run(&told, &everything, false);
    let weights = |config: &Config| std::fs::read(config.train.out.join("model.safetensors")).unwrap();
    assert!(weights(&asked) == weights(&told));
}

#[test]
fn where_nothing_fits_that_is_said_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let mut asked = config(&folder.path().join("run"), head(HeadKind::CosFace, false), 1);
    asked.train.batch_size = AUTO;
    asked.model.input = SIZE;
    let device = with_memory(bytes(&asked, 2) / 2);
    let error = run_on(
        asked.clone(),
        &device,
        faces_of(SIZE),
        Vec::new(),
        &RunOptions::default(),
        &mut Heard::default(),
    )
    .unwrap_err();
    assert!(
        error.to_string().contains("not even the smallest batch that divides a step of 32 images fits"),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("smaller images"), "{error}");
    assert!(!asked.train.out.exists());
}

#[test]
fn a_number_and_auto_do_not_go_together() {
    let read = |set: &[&str]| {
        let set: Vec<String> = set.iter().map(ToString::to_string).collect();
        Config::from_toml("data.train = \"d\"\ntrain.out = \"o\"\ntrain.batch_size = \"auto\"", &set)
    };
    let config = read(&[]).unwrap();
    assert_eq!(config.train.batch_size, AUTO);
    assert_eq!(Config::from_toml(&config.to_toml().unwrap(), &[]).unwrap(), config);
    let error = read(&["train.accumulate=4"]).unwrap_err();
    assert!(error.to_string().contains("`train.accumulate`: found 4; expected 1, or left out"), "{error}");
    for wrong in ["0", "-1", "\"all\"", "2.5"] {
        let error = read(&[&format!("train.batch_size={wrong}")]).unwrap_err();
        assert!(error.to_string().contains("a whole number above 0, or \"auto\""), "{error}");
        assert_eq!(error.exit_code(), 2);
    }
}
