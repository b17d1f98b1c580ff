//! Runs whose device is lost, at any operation and in any phase: they take up another one by themselves, and end in the
//! bits of a run that never lost its device.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../common/place.rs"]
mod place;

use std::process::{Command, Stdio};

use rand::Rng;
use rand_pcg::Pcg64;

use place::{OTHER, Place, checkpoints, finish};

/// What the losses of a run say on standard error.
const LOST: &str = "warning: the GPU was lost:";

/// `epl train` of the run `name` with kernels that are kept, not yet started.
fn command(place: &Place, name: &str, more: &[&str]) -> Command {
    let mut command = place.command(name, more);
    command.env("EPL_KERNEL_CACHE", place.path("kernels"));
    command
}

/// Runs with these losses to the end; returns what was said and how many there were. A run that gives up, because too many of
/// them came between two checkpoints, is resumed.
fn lost(place: &Place, name: &str, faults: &str, more: &[&str]) -> (String, u64) {
    let mut command = command(place, name, more);
    command.args(["--json", "--test-lose-device", faults]).stdout(Stdio::piped());
    let output = command.output().unwrap();
    let mut said = String::from_utf8(output.stderr).unwrap();
    let warnings = said.matches(LOST).count() as u64;
    if said.contains("times in a row") {
        assert_eq!(output.status.code(), Some(1), "{faults}: {said}");
        said += &place.run(name, &[more, &["--resume"]].concat(), 0);
        return (said, warnings + 1);
    }
    assert!(output.status.success(), "{faults}: {said}");
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(summary["device_losses"].as_u64(), Some(warnings), "{said}");
    (said, warnings)
}

#[test]
fn wherever_it_is_lost_the_run_ends_in_the_same_bits() {
    let place = Place::new();
    place.run("undisturbed", &[], 0);
    let undisturbed = place.result("undisturbed");
    // Before the first step there is nothing to go on from, and the run starts again.
    let start = ["start.buffer@3", "start.pipeline@1", "training.submit@1"];
    let later = [
        "training.submitted@3",
        "checkpoint.read@2",
        "training.poll@9",
        "checkpoint.submit@1",
        "evaluation.buffer@2",
        "checkpoint.poll@3",
        "evaluation.submitted@1",
        "start.buffer@40",
        "evaluation.read@1",
        "start.pipeline@5",
        "evaluation.poll@4",
        "checkpoint.submitted@2",
    ];
    // Each of these with time for a new checkpoint before it: five losses without one end a run.
    let faults: Vec<String> = start
        .map(String::from)
        .into_iter()
        .chain(later.map(|fault| format!("training.submit@3,{fault}")))
        .collect();
    let (said, losses) = lost(&place, "lost", &faults.join(","), &[]);
    println!("{losses} losses");
    for phase in ["start", "training", "checkpoint", "evaluation"] {
        assert!(said.contains(&format!("during {phase}")), "{phase}: {said}");
    }
    assert!(said.contains("starting again, since there is no checkpoint yet"), "{said}");
    assert!(said.contains("going on from the checkpoint after step"), "{said}");
    assert!(losses >= 20, "{losses}: {said}");
    place.same("lost", &undisturbed);
}

/// A loss somewhere in a run, and one that leaves time for a new checkpoint.
fn drawn(random: &mut Pcg64) -> String {
    let mut below = |count: u64| 1 + random.next_u64() % count;
    let somewhere = match below(5) {
        1 => format!("start.{}@{}", ["buffer", "pipeline"][below(2) as usize - 1], below(150)),
        2 => {
            let operation = ["read", "submit", "submitted", "poll", "buffer"][below(5) as usize - 1];
            format!("checkpoint.{operation}@{}", below(120))
        }
        3 => {
            let operation = ["read", "submit", "submitted", "poll", "buffer"][below(5) as usize - 1];
            format!("evaluation.{operation}@{}", below(3))
        }
        _ => format!("any@{}", below(2000)),
    };
    let later = ["submit", "submitted"][below(2) as usize - 1];
    format!("{somewhere},training.{later}@{}", 2 + below(5))
}

#[test]
fn lost_fifty_times_at_random_it_ends_in_the_same_bits() {
    let place = Place::new();
    let mut random = Pcg64::new(5, 5);
    let (mut losses, mut runs) = (0, 0);
    let mixed = ["--set", "train.precision=mixed"];
    for more in [&[][..], &OTHER[..], &mixed[..]] {
        place.run("undisturbed", more, 0);
        let undisturbed = place.result("undisturbed");
        std::fs::remove_dir_all(place.path("undisturbed")).unwrap();
        let before = losses;
        while losses - before < 17 {
            let name = format!("lost-{runs}");
            runs += 1;
            let faults: Vec<String> = (0..11).map(|_| drawn(&mut random)).collect();
            losses += lost(&place, &name, &faults.join(","), more).1;
            place.same(&name, &undisturbed);
        }
    }
    println!("{losses} losses in {runs} runs");
    assert!(losses >= 50);
}

#[test]
fn a_device_that_is_lost_again_and_again_ends_the_run_and_costs_nothing() {
    let place = Place::new();
    place.run("undisturbed", &[], 0);
    let undisturbed = place.result("undisturbed");
    let fails = |name: &str, faults: &str, more: &[&str]| {
        let mut command = command(&place, name, more);
        finish(command.args(["--test-lose-device", faults]).spawn().unwrap(), 1)
    };
    // After the second checkpoint, and then at the first step each time.
    let again = "training.submit@5".to_owned() + &",training.submit@1".repeat(4);
    let said = fails("lost", &again, &[]);
    let last = said.lines().rfind(|line| line.starts_with("error:")).unwrap();
    for part in ["the GPU was lost", "5 times in a row", "everything up to step 4 is kept", "--resume"] {
        assert!(last.contains(part), "{part}: {said}");
    }
    assert!(said.contains("update the GPU's driver"), "{said}");
    assert_eq!(checkpoints(&place.path("lost")).last(), Some(&4));
    place.run("lost", &["--resume"], 0);
    place.same("lost", &undisturbed);

    // Before there is anything.
    let said = fails("never", &["start.buffer@1"; 5].join(","), &[]);
    assert!(said.contains("5 times in a row") && said.contains("training had not begun"), "{said}");
    assert!(!place.path("never").exists(), "it leaves no folder behind");

    // In the folder of another run, which is no more this run's than before.
    let said = fails("lost", &["start.buffer@1"; 5].join(","), &["--set", "train.seed=3"]);
    assert!(said.contains("training had not begun"), "{said}");
    place.same("lost", &undisturbed);
}

#[test]
fn a_device_that_does_not_live_from_one_checkpoint_to_the_next_gets_more_of_them() {
    let place = Place::new();
    let rare = ["--set", "train.checkpoint_every=0"];
    place.run("undisturbed", &rare, 0);
    let undisturbed = place.result("undisturbed");
    // An epoch has eleven steps, and the device lives for eight.
    let faults = ["training.submit@9"; 8].join(",");
    let (said, losses) = lost(&place, "lost", &faults, &rare);
    assert!(said.contains("with a checkpoint at least every 4 steps"), "{said}");
    assert!(losses >= 3, "{losses}");
    place.same("lost", &undisturbed);
}

/// The driver itself reports the loss, at a submission and at a wait: wgpu answers that in other ways than the destruction
/// of a device.
#[test]
#[cfg(target_os = "linux")]
fn what_the_driver_loses_is_taken_up_again() {
    let place = Place::new();
    place.run("undisturbed", &[], 0);
    let undisturbed = place.result("undisturbed");
    let layer = place.path("layer");
    std::fs::create_dir(&layer).unwrap();
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/device_loss/layer.rs");
    let mut compiler = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    compiler.args(["--edition", "2024", "--crate-type", "cdylib", "-o"]).arg(layer.join("liblayer.so"));
    assert!(compiler.arg(source).status().unwrap().success(), "the layer does not compile");
    std::fs::write(layer.join("layer.json"), MANIFEST).unwrap();
    let start = |name: &str, at: &str, count: &str, more: &[&str]| {
        let mut command = command(&place, name, more);
        command.env("VK_LAYER_PATH", &layer).env("VK_INSTANCE_LAYERS", "VK_LAYER_EPL_lost_device");
        command.env("EPL_LAYER_LOSE", count).env("EPL_LAYER_LOSE_AT", at).env("EPL_TEST_WAIT_LIMIT", "1");
        command.spawn().unwrap()
    };
    let run = |name: &str, at: &str, count: &str, more: &[&str]| {
        let said = finish(start(name, at, count, more), 0);
        // How many submissions a step has is the adapter's business, so not every loss need come.
        assert!(said.contains(LOST) && !said.contains("panicked"), "{at}: {said}");
        place.same(name, &undisturbed);
        said
    };
    // Each device of the run is lost there anew: the layer is loaded again with it.
    run("at-a-submission", "submit", "520", &[]);
    run("at-a-wait", "wait", "1500", &[]);
    // It does not answer: neither the wait for it nor its end takes for ever.
    let said = run("hangs", "hang", "620", &[]);
    assert!(said.contains("it has finished nothing of what it was given for 1 s"), "{said}");
    // Work that was not done, and is told to be.
    let said = run("dropped", "drop", "350", &["--set", "train.checkpoint_every=0"]);
    assert!(said.contains("and did not say so"), "{said}");
    // The weights themselves do not arrive, on no device: nothing is trained from whatever is there instead.
    let said = finish(start("dropped-weights", "drop", "2", &[]), 1);
    assert!(said.contains("and did not say so, 5 times in a row"), "{said}");
    assert!(!place.path("dropped-weights").join("model.safetensors").exists());
}

/// What tells Vulkan's loader of the layer.
#[cfg(target_os = "linux")]
const MANIFEST: &str = r#"{
    "file_format_version": "1.0.0",
    "layer": {
        "name": "VK_LAYER_EPL_lost_device",
        "type": "GLOBAL",
        "library_path": "./liblayer.so",
        "api_version": "1.3.0",
        "implementation_version": "1",
        "description": "loses devices",
        "functions": {
            "vkGetInstanceProcAddr": "epl_layer_get_instance_proc_addr",
            "vkGetDeviceProcAddr": "epl_layer_get_device_proc_addr"
        }
    }
}"#;
