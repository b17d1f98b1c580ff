//! Bad input: an error that names the place and says what to do, nothing left behind, nothing destroyed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use epl::config::{Config, HeadKind};
use epl::data::Dataset;
use epl::eval::embedder::Embedder;
use epl::model::{Model, ModelSpec};
use epl::train::plan::plan;
use epl::train::trainer::spec_of;
use epl::train::{RunOptions, Silent, run, run_on};
use epl::{Error, Result};

use epl_runtime::{Device, DeviceOptions};

use super::{BATCH, IDENTITIES, IMAGES, config, device, faces, faces_of, head, resolved};

/// A place to run in that nothing has been written to.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn out(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    fn config(&self) -> Config {
        config(&self.out(), head(HeadKind::CosFace, true), 1)
    }

    fn train(&self, config: Config, data: Arc<dyn Dataset>) -> Result<()> {
        run_on(config, &device(), data, Vec::new(), &RunOptions::default(), &mut Silent).map(|_| ())
    }

    /// Writes the folder of identity folders that `train` is to read. Image `odd` has another size.
    fn write_images(&self, odd: Option<u32>) -> PathBuf {
        let root = self.folder.path().join("faces");
        for index in 0..2 * BATCH as u32 {
            let folder = root.join(format!("person {}", index % 3));
            std::fs::create_dir_all(&folder).unwrap();
            let size = if odd == Some(index) { 20 } else { 16 };
            let image = image::RgbImage::from_fn(size, size, |x, y| {
                image::Rgb([(16 * x) as u8, (16 * y) as u8, (80 * (index % 3)) as u8])
            });
            image.save(folder.join(format!("{index}.png"))).unwrap();
        }
        root
    }
}

/// Fails unless `result` is an error with this exit code, a hint, and a message that has all of `parts`.
fn refused(result: Result<()>, exit_code: u8, parts: &[&str]) -> Error {
    let error = result.expect_err("this should have been refused");
    let message = error.to_string();
    assert_eq!(error.exit_code(), exit_code, "{message}");
    assert!(error.hint().is_some_and(|hint| !hint.is_empty()), "no hint: {message}");
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
    error
}

/// All files under `folder` with their contents.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path.clone(), std::fs::read(&path).unwrap());
            }
        }
    }
    found
}

#[test]
fn data_that_is_not_there() {
    let place = Place::new();
    let mut config = place.config();
    config.data.train = place.folder.path().join("absent");
    refused(run(config, device(), &RunOptions::default(), &mut Silent).map(|_| ()), 1, &["absent"]);
    assert!(!place.out().exists(), "a folder was left behind");
}

#[test]
fn verification_sets_and_initial_weights_that_are_not_there() {
    let place = Place::new();
    let mut config = place.config();
    config.data.train = place.write_images(None);
    config.train.eval = vec!["no such set.bin".into()];
    refused(run(config, device(), &RunOptions::default(), &mut Silent).map(|_| ()), 1, &["no such set.bin"]);
    let mut config = place.config();
    config.model.init = Some("no such weights.safetensors".into());
    refused(place.train(config, faces()), 1, &["no such weights.safetensors"]);
    assert!(!place.out().exists(), "a folder was left behind");
}

#[test]
fn weights_of_another_network() {
    let place = Place::new();
    place.train(place.config(), faces()).unwrap();
    let mut wider = place.config();
    wider.model.init = Some(place.out().join("model.safetensors"));
    wider.model.width = 16;
    wider.train.out = place.folder.path().join("wider");
    refused(place.train(wider.clone(), faces()), 1, &["model.safetensors", "conv1.weight", "[8, 3, 3, 3]"]);
    assert!(!wider.train.out.exists(), "a folder was left behind");
}

#[test]
fn weights_whose_metadata_describe_an_impossible_network() {
    for (key, value) in [
        ("width", "9000000000000000000"),
        ("embedding", "9000000000000000000"),
        ("blocks", "[9000000000000000000, 1, 1, 1]"),
        ("input", "[9000000000000000000, 16]"),
    ] {
        let metadata = BTreeMap::from([(key.to_owned(), value.to_owned())]);
        let spec = ModelSpec::from_metadata(&metadata, Some("ir18"), "w.safetensors");
        refused(spec.map(|_| ()), 2, &[&format!("model.{key}")]);
    }
}

#[test]
fn the_first_bad_image_is_the_one_named() {
    let place = Place::new();
    let spec = spec_of(&place.config(), IDENTITIES as usize).unwrap();
    let model = Model::new(spec, &device(), 1).unwrap();
    let mut embedder = Embedder::new(&model, 8).unwrap();
    let load = |index: usize| {
        // The lowest index fails last in time.
        if index == 0 {
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        Err(Error::data(format!("image {index}"), "noise", "a face", "replace it"))
    };
    refused(embedder.embed(8, &load, false, &mut |_| {}).map(|_| ()), 1, &["image 0"]);
}

#[test]
fn a_run_that_does_not_fit_says_what_it_needs_and_what_would_fit() {
    let place = Place::new();
    let mut config = place.config();
    config.model.input = [48, 48];
    let train = |config: &Config, max_memory_bytes: Option<u64>| {
        let options = DeviceOptions { max_memory_bytes, ..DeviceOptions::default() };
        let (device, data) = (Device::open(&options).unwrap(), faces_of([48, 48]));
        run_on(config.clone(), &device, data, Vec::new(), &RunOptions::default(), &mut Silent).map(|_| ())
    };
    let needs = plan(&config, IDENTITIES as usize, device().caps(), None).unwrap();
    assert!(needs.bytes["activations"] > needs.peak_bytes / 2, "else it is no test of the batch");
    let error = refused(
        train(&config, Some(needs.peak_bytes * 3 / 5)),
        1,
        &["out of memory", "MiB in all", "activations"],
    );
    assert!(!place.out().exists(), "a folder was left behind");
    // What the hint says can be done.
    let hint = error.hint().unwrap().to_owned();
    let number = |after: &str| -> usize {
        let digits = hint.split(after).nth(1).unwrap_or_else(|| panic!("{after} is not in {hint}"));
        digits.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
    };
    config.train.batch_size = number("train.batch_size = ");
    config.train.accumulate = number("train.accumulate = ");
    assert!(config.train.batch_size < BATCH && config.train.images_per_step() >= BATCH, "{hint}");
    train(&config, Some(needs.peak_bytes)).unwrap();
}

#[test]
fn a_batch_that_is_larger_than_the_data() {
    let place = Place::new();
    let mut config = place.config();
    config.train.batch_size = 1000;
    let images = (IDENTITIES * IMAGES).to_string();
    refused(place.train(config, faces()), 2, &["train.batch_size", "1000", &images]);
    assert!(!place.out().exists(), "a folder was left behind");
}

#[test]
fn an_input_that_the_network_cannot_halve() {
    let place = Place::new();
    let mut config = place.config();
    config.model.input = [16, 40];
    refused(place.train(config, faces()), 2, &["model.input", "[16, 40]", "16"]);
    assert!(!place.out().exists(), "a folder was left behind");
}

#[test]
fn images_of_another_size_than_the_input() {
    let place = Place::new();
    for size in [[32, 32], [16, 32], [16, 8]] {
        refused(place.train(place.config(), faces_of(size)), 1, &["image 0", "16 x 16"]);
    }
    assert!(!place.out().exists(), "a folder was left behind");
}

#[test]
fn one_image_of_another_size_among_many() {
    let place = Place::new();
    let mut config = place.config();
    config.data.train = place.write_images(Some(17));
    let error = refused(
        run(config.clone(), device(), &RunOptions::default(), &mut Silent).map(|_| ()),
        1,
        &["17.png", "20"],
    );
    assert!(error.hint().unwrap().contains("data.resize"), "{error}");
    assert!(!place.out().join("model.safetensors").exists(), "a run that failed is not finished");
    // What the hint says helps, in the same folder, with what was trained before.
    config.data.resize = true;
    run(config, device(), &RunOptions { resume: true, ..RunOptions::default() }, &mut Silent).unwrap();
    assert!(place.out().join("model.safetensors").exists());
}

#[test]
fn an_image_that_is_cut_off() {
    let place = Place::new();
    let mut config = place.config();
    config.data.train = place.write_images(None);
    let file = config.data.train.join("person 1").join("4.png");
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    refused(run(config, device(), &RunOptions::default(), &mut Silent).map(|_| ()), 1, &["4.png"]);
}

#[test]
fn more_people_than_classes() {
    let place = Place::new();
    let mut config = place.config();
    config.data.train = place.write_images(None);
    config.data.num_classes = Some(2);
    refused(
        run(config, device(), &RunOptions::default(), &mut Silent).map(|_| ()),
        2,
        &["data.num_classes is 2", "3 identities"],
    );
    assert!(!place.out().exists(), "a folder was left behind");
}

#[test]
fn a_loss_that_is_no_longer_finite() {
    let place = Place::new();
    let mut config = place.config();
    config.train.epochs = 4;
    config.optim.lr = 1e30;
    let error = refused(place.train(config, faces()), 1, &["step", "epoch"]);
    assert!(error.hint().unwrap().contains("optim.lr"), "{:?}", error.hint());
    assert!(!place.out().join("model.safetensors").exists(), "a run that failed is not finished");
}

#[test]
fn a_finished_run_is_left_alone() {
    let place = Place::new();
    place.train(place.config(), faces()).unwrap();
    let before = contents(&place.out());
    assert!(before.len() >= 4);
    let mut other = place.config();
    other.train.seed = 99;
    refused(place.train(other, faces()), 2, &["finished run", "run"]);
    assert!(contents(&place.out()) == before, "the finished run was changed");
}

#[test]
fn only_a_run_on_the_same_data_is_replaced() {
    let place = Place::new();
    let replace = |config: Config| {
        run_on(
            config,
            &device(),
            faces(),
            Vec::new(),
            &RunOptions { replace: true, ..RunOptions::default() },
            &mut Silent,
        )
        .map(|_| ())
    };
    place.train(place.config(), faces()).unwrap();
    let before = contents(&place.out());
    // Neither a run on other data nor a configuration that cannot start takes its place.
    let mut other = place.config();
    other.data.train = "other faces".into();
    refused(replace(other), 2, &["finished run on other data"]);
    let mut wrong = place.config();
    wrong.train.batch_size = 1000;
    refused(replace(wrong), 2, &["train.batch_size"]);
    assert!(contents(&place.out()) == before, "the finished run was changed");
    let mut again = place.config();
    again.train.seed = 99;
    replace(again.clone()).unwrap();
    assert_eq!(resolved(&place.out(), &again), again);
    assert!(contents(&place.out()) != before);
}

#[test]
fn a_file_where_the_folder_should_be() {
    let place = Place::new();
    std::fs::write(place.out(), "notes").unwrap();
    let error = place.train(place.config(), faces()).unwrap_err();
    assert_eq!(error.exit_code(), 1);
    assert!(error.to_string().contains("run"), "{error}");
    assert_eq!(std::fs::read_to_string(place.out()).unwrap(), "notes");
}
