//! Kernels chosen by measuring: kept, read again, part of what a run goes on with, and off where they are not wanted.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use epl::config::{Autotune, Config, HeadKind};
use epl::report::StepPoint;
use epl::train::kernels::{choose, is_on, known};
use epl::train::plan::{Target, plan_for};
use epl::train::trainer::spec_of;
use epl::train::{Observer, RunOptions, Silent, Stop, run_on};
use epl_runtime::faults::Faults;
use epl_runtime::tune::TuneOptions;
use epl_runtime::{Choices, Device, DeviceOptions};

use super::{IDENTITIES, config, faces, head};

fn device_with(cache: Option<&Path>) -> Arc<Device> {
    Device::open(&DeviceOptions { cache: cache.map(PathBuf::from), ..DeviceOptions::default() }).unwrap()
}

fn tuned(out: &Path) -> Config {
    let mut config = config(out, head(HeadKind::CosFace, true), 2);
    config.head.form = epl::head::HeadForm::Materialized;
    config.train.autotune = Autotune::On;
    config
}

fn file_in(folder: &Path) -> PathBuf {
    let named = |path: &PathBuf| path.to_string_lossy().ends_with(".tuning.json");
    let mut files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files.find(named).unwrap()
}

/// Measures what `config` needs and returns it with what was said.
fn chosen(config: &Config, device: &Arc<Device>, time: Duration) -> (Choices, Vec<String>) {
    let mut said = Vec::new();
    let spec = spec_of(config, IDENTITIES as usize).unwrap();
    let options = TuneOptions { time, ..TuneOptions::default() };
    let choices =
        choose(config, &spec, device, &options, &Stop::default(), &mut |line| said.push(line.to_owned()))
            .unwrap();
    (choices, said)
}

/// All of the time that it may take on a busy machine.
const LONG: Duration = Duration::from_secs(600);

#[test]
fn choices_are_measured_once_and_read_from_then_on() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let config = tuned(&folder.path().join("run"));
    let spec = spec_of(&config, IDENTITIES as usize).unwrap();
    let device = device_with(Some(&cache));

    // Without time nothing is measured, and nothing is kept.
    let (none, said) = chosen(&config, &device, Duration::ZERO);
    assert!(none.is_empty());
    assert!(said.len() == 1 && said[0].contains("keep their kernels for lack of time"), "{said:?}");

    let (first, said) = chosen(&config, &device, LONG);
    assert!(first.len() > 10, "{first:?}");
    assert!(said.len() == 1 && said[0].contains("measured the kernels of"), "{said:?}");
    let text = std::fs::read_to_string(file_in(&cache)).unwrap();
    assert!(text.contains("milliseconds") && text.contains(&device.description().driver), "{text}");

    let (second, said) = chosen(&config, &device, LONG);
    assert_eq!(second, first);
    assert!(said.is_empty(), "{said:?}");
    assert_eq!(known(&config, &spec, &device).unwrap(), first);

    // What was left open is gone on with, and with no more than an instant each start settles some of it.
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let op = json["ops"].as_object_mut().unwrap().values_mut().next().unwrap();
    op["milliseconds"] = serde_json::json!({ "rule": op["milliseconds"]["rule"] });
    (op["choice"], op["open"]) = ("rule".into(), serde_json::json!(["tiled 32x32", "tiled 64x32"]));
    std::fs::write(file_in(&cache), json.to_string()).unwrap();
    assert!(known(&config, &spec, &device).unwrap().len() == first.len());
    for left in [1, 0] {
        let (choices, said) = chosen(&config, &device, Duration::from_nanos(1));
        assert!(said.len() == 1 && said[0].contains("kernels of 1 ops"), "{said:?}");
        assert_eq!(choices.len(), first.len());
        let text = std::fs::read_to_string(file_in(&cache)).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let mut open = json["ops"].as_object().unwrap().values().filter_map(|op| op["open"].as_array());
        assert_eq!(open.next().map_or(0, Vec::len), left, "{text}");
    }
    assert!(chosen(&config, &device, LONG).1.is_empty());
    std::fs::write(file_in(&cache), &text).unwrap();

    // Off by the key, on a CPU adapter by default, and without a place to keep them by default.
    for autotune in [Autotune::Off, Autotune::Auto] {
        let mut config = config.clone();
        config.train.autotune = autotune;
        assert_eq!(is_on(&config, &device), autotune == Autotune::Auto && device.description().kind != "Cpu");
        assert!(!is_on(&config, &device_with(None)));
        if !is_on(&config, &device) {
            assert!(chosen(&config, &device, LONG).0.is_empty());
        }
    }

    // Rubbish, and what was measured elsewhere, is passed over with a word.
    for (rubbish, why) in [
        (String::from("{"), "EOF"),
        (String::from("[]"), "invalid"),
        (text.replace(device.fingerprint(), "another"), "another adapter"),
        (text.replace("\"format\": 1", "\"format\": 99"), "another adapter or version"),
    ] {
        std::fs::write(file_in(&cache), rubbish).unwrap();
        let (none, said) = chosen(&config, &device, Duration::ZERO);
        assert!(none.is_empty(), "{why}");
        assert!(said.iter().any(|line| line.starts_with("warning: ") && line.contains(why)), "{said:?}");
    }

    // A name that means nothing is the rule's.
    let unknown = text.replace("\"choice\": \"", "\"choice\": \"no such ");
    std::fs::write(file_in(&cache), unknown).unwrap();
    let (choices, said) = chosen(&config, &device, LONG);
    assert!(said.is_empty() && choices.len() == first.len());
    let peak = |choices: Choices| {
        let target = Target { caps: device.caps(), choices: Arc::new(choices) };
        plan_for(&config, IDENTITIES as usize, &target, None).unwrap()
    };
    assert_eq!(peak(choices), peak(Choices::new()));
}

#[test]
fn a_kernel_that_the_gpu_does_not_outlive_is_not_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let config = tuned(&folder.path().join("run"));
    let spec = spec_of(&config, IDENTITIES as usize).unwrap();
    let options = TuneOptions { time: LONG, ..TuneOptions::default() };
    let json = || -> serde_json::Value {
        serde_json::from_str(&std::fs::read_to_string(file_in(&cache)).unwrap()).unwrap()
    };
    let rejected = || -> Vec<(String, String)> {
        let Ok(files) = std::fs::read_dir(&cache) else { return Vec::new() };
        if !files.flatten().any(|file| file.path().to_string_lossy().ends_with(".tuning.json")) {
            return Vec::new();
        }
        let ops = json()["ops"].as_object().unwrap().clone();
        let of = |op: &serde_json::Value| op["rejected"].as_object().cloned().unwrap_or_default();
        ops.iter().flat_map(|(key, op)| of(op).into_iter().map(|(name, _)| (key.clone(), name))).collect()
    };
    let lose_after = |submissions: u64| {
        let faults: Arc<Faults> = Arc::new(format!("tuning.submit@{submissions}").parse().unwrap());
        let cache = Some(cache.clone());
        Device::open(&DeviceOptions { cache, faults: Some(faults), ..DeviceOptions::default() }).unwrap()
    };
    let mut accused = 0;
    for after in [20, 25, 30, 35, 40] {
        let device = lose_after(after);
        let mut said = Vec::new();
        let error = choose(&config, &spec, &device, &options, &Stop::default(), &mut |line| {
            said.push(line.to_owned())
        })
        .unwrap_err();
        assert!(device.lost().is_some(), "{error}");
        // None where it was the rule's kernel, which is not accused.
        accused += usize::from(said.iter().any(|line| line.contains("did not outlive the kernel")));
        assert_eq!(rejected().len(), accused, "{said:?}");
    }
    assert!(accused > 1, "{accused}");

    // A process that is gone leaves a note. Once may be chance.
    let device = device_with(Some(&cache));
    let note = cache.join(format!("{}.trying.json", &device.fingerprint()[..16]));
    let (key, _) = chosen(&config, &device, Duration::from_nanos(1))
        .0
        .iter()
        .next()
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .unwrap();
    let left = |times: u32| {
        let tried = serde_json::json!({ "op": key, "variant": "tiled 32x32", "times": times });
        std::fs::write(&note, tried.to_string()).unwrap();
        chosen(&config, &device, Duration::from_nanos(1)).1
    };
    assert!(!left(1).iter().any(|line| line.contains("outlive the kernel")));
    assert!(left(2)[0].contains("did not outlive the kernel `tiled 32x32`"));
    assert_eq!(std::fs::read_to_string(&note).unwrap(), "");

    // The others are measured without them.
    let (choices, said) = chosen(&config, &device, LONG);
    assert!(said.last().unwrap().contains("measured"), "{said:?}");
    let ops = json()["ops"].clone();
    for (op, variant) in rejected() {
        let found = &ops[&op];
        assert!(found["milliseconds"].get("rule").is_some(), "{found}");
        assert!(found["milliseconds"].get(&variant).is_none(), "{found}");
        assert_ne!(choices.get(&op), Some(variant.as_str()));
    }
    assert!(rejected().len() > accused);
    assert!(chosen(&config, &device, LONG).1.is_empty());
}

/// Stops a run after some steps.
struct StopAfter(u64, Stop);

impl Observer for StopAfter {
    fn step(&mut self, point: &StepPoint) {
        if point.step >= self.0 {
            self.1.request();
        }
    }
}

#[test]
fn a_resumed_run_keeps_its_kernels_whatever_became_of_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    // What a GPU might choose, so that the choices differ from this adapter's rules, whichever they are.
    let device = device_with(Some(&cache));
    let (measured, _) = chosen(&tuned(folder.path()), &device, LONG);
    let text = std::fs::read_to_string(file_in(&cache)).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    for (key, _) in measured.iter() {
        let tile = if key.starts_with("MatMul") { "tiled" } else { "tiled 32x32" };
        json["ops"][key]["choice"] = tile.into();
    }
    let other = json.to_string();

    let weights = |name: &str, file: Option<&str>, after: Option<u64>, autotune: Autotune| {
        let mut config = tuned(&folder.path().join(name));
        config.train.autotune = autotune;
        let put = |file: Option<&str>| match file {
            Some(text) => std::fs::write(file_in(&cache), text).unwrap(),
            None => std::fs::write(file_in(&cache), "{}").unwrap(),
        };
        put(file);
        let stop = Stop::default();
        let options = RunOptions { stop: stop.clone(), ..RunOptions::default() };
        let mut observer = StopAfter(after.unwrap_or(u64::MAX), stop);
        let device = device_with(Some(&cache));
        let outcome = run_on(config.clone(), &device, faces(), Vec::new(), &options, &mut observer).unwrap();
        assert_eq!(outcome.interrupted.is_some(), after.is_some());
        if after.is_some() {
            // What was measured is lost, and would be measured again.
            put(None);
            let options = RunOptions { resume: true, ..RunOptions::default() };
            run_on(config.clone(), &device, faces(), Vec::new(), &options, &mut Silent).unwrap();
            assert_eq!(std::fs::read_to_string(file_in(&cache)).unwrap(), "{}", "nothing was measured");
        }
        std::fs::read(config.train.out.join("model.safetensors")).unwrap()
    };
    let whole = weights("whole", Some(&other), None, Autotune::On);
    assert!(whole == weights("again", Some(&other), None, Autotune::On), "the same kernels, other bits");
    assert!(whole == weights("resumed", Some(&other), Some(3), Autotune::On), "resumed to other bits");
    assert!(whole != weights("rules", Some(&other), None, Autotune::Off), "the choices changed nothing");
}
