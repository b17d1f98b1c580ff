//! Runs that are killed, stopped or starved of disk at any moment, and go on: they end in the same bits as a run that
//! was never disturbed, and lose nothing that was saved.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "common/place.rs"]
mod place;

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use epl::data::VerificationSet;
use rand::Rng;
use rand_pcg::Pcg64;

use place::{CONSTANT, EPOCHS, OTHER, Place, STEPS, checkpoints, files, finish, is_partial};

#[test]
fn killed_thirty_times_at_random_it_ends_in_the_same_bits() {
    let place = Place::new();
    let started = Instant::now();
    place.run("undisturbed", &[], 0);
    let whole = started.elapsed();
    let undisturbed = place.result("undisturbed");
    assert_eq!(undisturbed.1.len() as u64, STEPS + 2 * u64::from(EPOCHS), "a line a step, and two an epoch");
    assert_eq!(checkpoints(&place.path("undisturbed")).len(), 2);

    let last = checkpoints(&place.path("undisturbed")).last().copied().unwrap();
    let state = place.path(&format!("undisturbed/checkpoints/step-{last:08}/state.safetensors"));
    let state = std::fs::metadata(state).unwrap().len();

    // Several runs one after the other, each until it is done; half of the kills come while something is written, and a
    // quarter where files cannot be written to their end.
    let mut random = Pcg64::new(7, 7);
    let (mut kills, mut while_writing, mut while_full, mut runs) = (0, 0, 0, 0);
    while kills < 32 || while_writing < 8 || while_full < 4 {
        let name = format!("killed-{runs}");
        runs += 1;
        let ended_full = loop {
            let full = random.next_u64().is_multiple_of(4);
            let mut command = if full {
                place.starved(&name, &["--resume"], random.next_u64() % state)
            } else {
                place.command(&name, &["--resume"])
            };
            let mut child = command.spawn().unwrap();
            let share = (random.next_u64() % 1000) as f64 / 1000.0;
            let deadline = Instant::now() + whole.mul_f64(1.2 * share);
            let wait_for_writing = random.next_u64().is_multiple_of(2);
            let ended = loop {
                if child.try_wait().unwrap().is_some() {
                    break true;
                }
                let writing = || files(&place.path(&name)).iter().any(|path| is_partial(path));
                if Instant::now() >= deadline && (!wait_for_writing || writing()) {
                    break false;
                }
                if !wait_for_writing {
                    std::thread::sleep(Duration::from_micros(200));
                }
            };
            if ended && full {
                // Where its last files have no room it goes on with some.
                if child.wait().unwrap().success() {
                    break true;
                }
                continue;
            }
            if ended {
                finish(child, 0);
                break false;
            }
            // SIGKILL: nothing of the program runs after it.
            child.kill().unwrap();
            child.wait().unwrap();
            kills += 1;
            while_full += u32::from(full);
            while_writing += u32::from(files(&place.path(&name)).iter().any(|path| is_partial(path)));
        };
        if ended_full {
            // The log may have found no room.
            assert!(place.result(&name).0 == undisturbed.0, "{name}: other weights");
        } else {
            place.same(&name, &undisturbed);
        }
    }
    println!(
        "{kills} kills, {while_writing} of them while something was written, {while_full} on a full disk, in {runs} runs"
    );
}

#[test]
#[cfg(unix)]
fn a_signal_stops_it_with_a_checkpoint_and_it_goes_on() {
    let place = Place::new();
    place.run("undisturbed", &OTHER, 0);
    let undisturbed = place.result("undisturbed");
    for signal in ["-INT", "-TERM"] {
        let name = format!("stopped{signal}");
        let more = [&OTHER[..], &["--set", "train.checkpoint_every=0"]].concat();
        let mut stops = 0;
        loop {
            let child = place.command(&name, &[&more[..], &["--resume"]].concat()).spawn().unwrap();
            // After its first line of the log it trains.
            let log = place.path(&name).join("metrics.jsonl");
            let lines = || std::fs::read_to_string(&log).map_or(0, |text| text.lines().count());
            let before = lines();
            let started = Instant::now();
            while lines() <= before && started.elapsed() < Duration::from_secs(60) {
                std::thread::sleep(Duration::from_millis(1));
            }
            Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
            let output = child.wait_with_output().unwrap();
            let said = String::from_utf8(output.stderr).unwrap();
            if output.status.success() {
                break;
            }
            assert_eq!(output.status.code(), Some(1), "{said}");
            let command = format!("to go on: epl train config.toml --set train.out={name}");
            assert!(said.contains(&command) && said.contains("--resume"), "{said}");
            stops += 1;
            assert!(stops < 50, "it never ends");
        }
        assert!(stops >= 1, "it was never stopped");
        place.same(&name, &undisturbed);
    }
}

#[test]
#[cfg(unix)]
fn where_no_checkpoint_can_be_written_training_goes_on_and_nothing_saved_is_lost() {
    let place = Place::new();
    let run_on =
        |name: &str, more: &[&str], code: i32| place.run(name, &[&CONSTANT[..], more].concat(), code);
    run_on("undisturbed", &[], 0);
    let undisturbed = place.result("undisturbed");
    run_on("full", &["--set", "train.max_steps=9"], 0);
    std::fs::remove_file(place.path("full/model.safetensors")).unwrap();
    let before = checkpoints(&place.path("full"));
    assert_eq!(before.last(), Some(&9));
    let state =
        std::fs::metadata(place.path("full/checkpoints/step-00000009/state.safetensors")).unwrap().len();
    let said = finish(
        place.starved("full", &[&CONSTANT[..], &["--resume"]].concat(), state / 2).spawn().unwrap(),
        1,
    );
    // The last weights are too long as well: that ends the run with an error, after all that could be done.
    assert!(
        said.contains("warning: no checkpoint after step 10") && said.contains("training goes on"),
        "{said}"
    );
    assert!(said.contains("model.safetensors"), "{said}");
    assert_eq!(checkpoints(&place.path("full")), before, "what was saved is still there");
    let leftovers: Vec<_> = files(&place.path("full")).into_iter().filter(|path| is_partial(path)).collect();
    assert!(leftovers.is_empty(), "{leftovers:?}");
    // With room again it goes on.
    run_on("full", &["--resume"], 0);
    place.same("full", &undisturbed);
}

#[test]
fn damaged_checkpoints_are_named_and_passed_over() {
    let place = Place::new();
    let run_on =
        |name: &str, more: &[&str], code: i32| place.run(name, &[&CONSTANT[..], more].concat(), code);
    run_on("undisturbed", &[], 0);
    let undisturbed = place.result("undisturbed");
    run_on("damaged", &["--set", "train.max_steps=20"], 0);
    let run = place.path("damaged");
    let [older, newer] = checkpoints(&run)[..] else { panic!("two are kept") };
    let state = run.join(format!("checkpoints/step-{newer:08}/state.safetensors"));
    let mut bytes = std::fs::read(&state).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(&state, bytes).unwrap();
    let said = run_on("damaged", &["--resume"], 0);
    assert!(said.contains("passed over") && said.contains(&format!("step-{newer:08}")), "{said}");
    assert!(said.contains(&format!("going on after step {older}")), "{said}");
    place.same("damaged", &undisturbed);

    // A run that is done is done again without training: the same files.
    let said = run_on("damaged", &["--resume"], 0);
    assert!(said.contains(&format!("going on after step {STEPS}")), "{said}");
    place.same("damaged", &undisturbed);

    // All damaged: an error, and nothing is thrown away.
    for step in checkpoints(&run) {
        std::fs::write(run.join(format!("checkpoints/step-{step:08}/manifest.json")), "{}").unwrap();
    }
    let said = run_on("damaged", &["--resume"], 1);
    assert!(said.contains("all of them damaged"), "{said}");
    assert!(run.join("model.safetensors").is_file() && checkpoints(&run).len() == 2);
}

#[test]
fn what_a_checkpoint_is_not_for_is_refused() {
    let place = Place::new();
    place.run("run", &["--set", "train.max_steps=3"], 0);
    // Without --resume nothing of it is overwritten, whether it had ended or not.
    let said = place.run("run", &[], 2);
    assert!(said.contains("already holds a finished run"), "{said}");
    std::fs::remove_file(place.path("run/model.safetensors")).unwrap();
    let said = place.run("run", &[], 2);
    assert!(said.contains("already holds an interrupted run") && said.contains("--resume"), "{said}");
    for (set, found) in [
        ("train.batch_size=5", "`train.batch_size`: the checkpoint is of a run with 4; found 5"),
        ("model.width=16", "`model.width`"),
        ("head.kind=softmax", "`head.kind`"),
        ("train.seed=2", "`train.seed`"),
    ] {
        let said = place.run("run", &["--set", set, "--resume"], 2);
        assert!(said.contains(found) && said.contains("model.init"), "{said}");
    }
    // A longer run is told, and allowed.
    let said = place.run("run", &["--set", "optim.lr=0.01", "--set", "train.max_steps=5", "--resume"], 0);
    assert!(said.contains("optim.lr was 0.05, is 0.01"), "{said}");
    // The state of a checkpoint is a file of weights.
    let init =
        format!("model.init={}", place.path("run/checkpoints/step-00000005/state.safetensors").display());
    place.run("from weights", &["--set", &init, "--set", "train.max_steps=1"], 0);
}

#[test]
fn an_epoch_that_the_limit_of_steps_cuts_off_ends_once() {
    let place = Place::new();
    place.run("cut", &["--set", "train.max_steps=5"], 0);
    let (_, log) = place.result("cut");
    let kinds: Vec<&str> = log.iter().map(|record| record["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["step", "step", "step", "step", "step", "prototypes", "eval"]);
}

#[test]
fn a_run_that_ended_among_its_last_files_is_run_again() {
    let place = Place::new();
    let brief = ["--set", "train.epochs=1"];
    place.run("undisturbed", &brief, 0);
    let undisturbed = place.result("undisturbed");
    place.run("again", &brief, 0);
    // As if no checkpoint could be written and the report was not yet.
    std::fs::remove_dir_all(place.path("again/checkpoints")).unwrap();
    std::fs::remove_file(place.path("again/report.html")).unwrap();
    let said = place.run("again", &[&brief[..], &["--resume"]].concat(), 0);
    assert!(said.contains("starting from the beginning"), "{said}");
    place.same("again", &undisturbed);
    // A run that has all of its files is not: it has nothing to go on from.
    std::fs::remove_dir_all(place.path("again/checkpoints")).unwrap();
    let said = place.run("again", &[&brief[..], &["--resume"]].concat(), 2);
    assert!(said.contains("already holds a finished run"), "{said}");
    place.same("again", &undisturbed);
}

#[test]
fn in_mixed_precision_it_goes_on_with_the_loss_scale_that_it_had() {
    let place = Place::new();
    let mixed = ["--set", "train.precision=mixed", "--set", "train.keep_checkpoints=99"];
    place.run("undisturbed", &mixed, 0);
    let undisturbed = place.result("undisturbed");
    place.run("again", &mixed, 0);
    // Back to the first checkpoint, as if the rest had not been.
    let folders = std::fs::read_dir(place.path("again/checkpoints")).unwrap();
    let mut checkpoints: Vec<PathBuf> = folders.map(|entry| entry.unwrap().path()).collect();
    checkpoints.sort();
    assert!(checkpoints.len() > 2, "{checkpoints:?}");
    for later in &checkpoints[1..] {
        std::fs::remove_dir_all(later).unwrap();
    }
    for last in ["report.html", "model.safetensors"] {
        std::fs::remove_file(place.path("again").join(last)).unwrap();
    }
    place.run("again", &[&mixed[..], &["--resume"]].concat(), 0);
    place.same("again", &undisturbed);
    // What was logged of it is what it was.
    let scales: Vec<f64> = undisturbed.1.iter().filter_map(|record| record["loss_scale"].as_f64()).collect();
    assert!(scales.len() > 3 && scales.iter().all(|&scale| scale >= 1024.0), "{scales:?}");
}

#[test]
fn a_verification_set_that_cannot_be_read_is_found_before_the_training() {
    let place = Place::new();
    let set = VerificationSet {
        name: "broken".into(),
        images: (0..20)
            .map(|i| if i == 13 { b"no image"[..].into() } else { b"P6 1 1 255\nabc"[..].into() })
            .collect(),
        issame: (0..10).map(|pair| pair < 5).collect(),
    };
    set.write_bin(&place.path("broken.bin"), false).unwrap();
    let said = place.run("run", &["--set", "train.eval=['broken.bin']"], 1);
    assert!(said.contains("broken, image 13"), "{said}");
    assert!(!place.path("run").exists());
    // Nor one on which the protocol cannot be run, nor two that would go by one name.
    let same = VerificationSet { issame: vec![true; 10], ..set };
    same.write_bin(&place.path("same.bin"), false).unwrap();
    let said = place.run("run", &["--set", "train.eval=['same.bin']"], 1);
    assert!(said.contains("same: found 10 matching pairs of 10"), "{said}");
    let said = place.run("run", &["--set", "train.eval=['pairs.bin', './pairs.bin']"], 2);
    assert!(said.contains("have one name"), "{said}");
}

#[test]
fn a_sample_that_cannot_be_read_costs_no_step_before_it() {
    let place = Place::new();
    place.run("undisturbed", &[], 0);
    let undisturbed = place.result("undisturbed");
    let image = place.path("faces/3/7.png");
    let whole = std::fs::read(&image).unwrap();
    std::fs::write(&image, "no image").unwrap();
    let more = ["--set", "train.checkpoint_every=0"];
    let said = place.run("spoiled", &more, 1);
    assert!(said.contains("faces/3/7.png"), "{said}");
    let [reached] = checkpoints(&place.path("spoiled"))[..] else {
        panic!("a checkpoint was written: {said}")
    };
    std::fs::write(&image, whole).unwrap();
    let said = place.run("spoiled", &[&more[..], &["--resume"]].concat(), 0);
    assert!(said.contains(&format!("going on after step {reached}")), "{said}");
    place.same("spoiled", &undisturbed);
}
