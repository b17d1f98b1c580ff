//! `cargo xtask soak`: trainings that are killed, lose their GPU and meet full disks at random, for an hour or as long as one
//! likes, each of which has to end in the bits of a training that nothing disturbed.

mod process;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::stage::{build, duration, say};
use process::{End, Life, Memory, Process};

pub const HELP: &str = "\
Usage: cargo xtask soak [--minutes N] [--seed N] [--epochs N]

Trains a small network undisturbed, then again and again with random kills, lost GPUs and (on Unix) full disks, and
fails unless every one of these ends in the bits of the first, and where a process grows by more than a quarter. Says how
often each was survived, and how much memory the processes took.

Options:
  --minutes N        how long, the first training not counted [default: 60]
  --seed N           of what happens when [default: 1]
  --epochs N         of each training; 15 steps each [default: 24]
  --help             this text

Example:
  cargo xtask soak --minutes 5
";

const CONFIG: &str = r#"
[model]
arch = "ir18"
input = [32, 32]
width = 8
embedding = 64
dropout = 0.2
[head]
kind = "cosface"
scale = 32.0
[head.epl]
start_epoch = 2
[data]
train = "data/train"
augment = ["mirror", { kind = "shift", pixels = 3 }]
[optim]
lr = 0.05
clip_norm = 5.0
schedule = { kind = "cosine", warmup_epochs = 1.0 }
[train]
out = "unset"
# Kernels that are measured are not the same in each run.
autotune = "off"
batch_size = 24
checkpoint_every = 7
keep_checkpoints = 2
log_every = 1
eval = ["data/train/verification.bin"]
"#;

/// What was asked for.
#[derive(Debug, PartialEq)]
struct Options {
    minutes: u64,
    seed: u64,
    epochs: u64,
}

impl Options {
    fn parse(arguments: &[String]) -> std::result::Result<Self, String> {
        let mut options = Self { minutes: 60, seed: 1, epochs: 24 };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let place = match argument.as_str() {
                "--minutes" => &mut options.minutes,
                "--seed" => &mut options.seed,
                "--epochs" => &mut options.epochs,
                unknown => return Err(format!("there is no option `{unknown}`")),
            };
            let text = arguments.next().ok_or(format!("`{argument}` takes a value"))?;
            *place = match text.parse() {
                Ok(number) if number > 0 => number,
                _ => return Err(format!("`{argument} {text}`: expected a number of at least 1")),
            };
        }
        Ok(options)
    }
}

/// Random numbers from a seed (SplitMix64, Steele et al. 2014).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, count: u64) -> u64 {
        self.next() % count.max(1)
    }

    fn one_of<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of.get(self.below(of.len() as u64) as usize).copied().unwrap_or_default()
    }

    /// From 1 to 2^`most`, each power of two as likely as any other.
    fn scale_free(&mut self, most: u64) -> u64 {
        let power = 1 << self.below(most);
        power + self.below(power)
    }
}

/// A few losses of the GPU, anywhere.
fn losses(dice: &mut Dice) -> String {
    let mut one = || {
        let operation = dice.one_of(&["any", "any", "submit", "submitted", "read", "poll"]);
        let phase = dice.one_of(&["", "training.", "training.", "checkpoint.", "evaluation."]);
        let most = if operation == "any" && phase.is_empty() { 14 } else { 8 };
        // One that comes at once leaves no time for a new checkpoint: five of these in a row end the run.
        format!("{phase}{operation}@{},training.submit@{}", dice.scale_free(most), 8 + dice.below(60))
    };
    [one(), one(), one()].join(",")
}

/// What happened to the trainings.
#[derive(Debug, Default)]
struct Tally {
    trainings: u32,
    processes: u32,
    kills: u32,
    kills_while_writing: u32,
    losses: u32,
    gave_up: u32,
    full_disks: u32,
    /// In the first half of the time, and in the second.
    memory: [Memory; 2],
}

/// Runs `cargo xtask soak` with `arguments`.
///
/// # Errors
/// The inner one is wrong usage, in words. The outer one is a training that ended in other bits or did not end, or whatever
/// kept them from being run.
pub fn soak(root: &Path, arguments: &[String]) -> std::result::Result<Result<()>, String> {
    if arguments.iter().any(|argument| ["--help", "-h"].contains(&argument.as_str())) {
        print!("{HELP}");
        return Ok(Ok(()));
    }
    let options = Options::parse(arguments)?;
    Ok(run(root, &options))
}

fn run(root: &Path, options: &Options) -> Result<()> {
    let place = Place::new(root, options)?;
    say(format_args!("a training that nothing disturbs ..."));
    let started = Instant::now();
    let mut undisturbed_memory = Memory::default();
    let life = Process::start(&place.epl, &place.folder, &place.arguments("undisturbed"), None, "")?
        .live(Duration::MAX, &mut undisturbed_memory)?;
    ensure!(life.end == End::Done, "the undisturbed training failed:\n{}", life.said);
    let undisturbed = place.weights("undisturbed")?;
    let whole = started.elapsed();
    say(format_args!("  {}, {undisturbed_memory}", duration(whole)));

    let mut dice = Dice(options.seed);
    let mut tally = Tally::default();
    let until = Instant::now() + Duration::from_secs(60 * options.minutes);
    while Instant::now() < until {
        let name = format!("training-{}", tally.trainings);
        let began = Instant::now();
        let half = until.saturating_duration_since(began) < Duration::from_secs(30 * options.minutes);
        disturbed(&place, &name, (whole, usize::from(half)), &mut dice, &mut tally)?;
        ensure!(
            place.weights(&name)? == undisturbed,
            "{} differs from that of the undisturbed training",
            place.folder.join(&name).join("model.safetensors").display()
        );
        tally.trainings += 1;
        std::fs::remove_dir_all(place.folder.join(&name)).context("a finished training's folder")?;
        say(format_args!(
            "{name}: the same bits after {}; so far {} kills, {} lost GPUs, {} full disks",
            duration(began.elapsed()),
            tally.kills,
            tally.losses,
            tally.full_disks
        ));
    }
    report(&tally, &undisturbed_memory, whole);
    Ok(())
}

fn report(tally: &Tally, undisturbed: &Memory, whole: Duration) {
    say(format_args!("\n{:<44}{}", "one training, undisturbed", duration(whole)));
    for (what, count) in [
        ("trainings that ended in the same bits", tally.trainings),
        ("processes", tally.processes),
        ("killed", tally.kills),
        ("  of these while something was written", tally.kills_while_writing),
        ("GPUs lost and taken up again", tally.losses),
        ("given up after five losses in a row", tally.gave_up),
        ("processes that met a full disk", tally.full_disks),
    ] {
        say(format_args!("{what:<44}{count}"));
    }
    say(format_args!("{:<44}{undisturbed}", "memory, undisturbed"));
    let [first, second] = &tally.memory;
    say(format_args!("{:<44}{first}", "memory, disturbed, first half of the time"));
    say(format_args!("{:<44}{second}", "memory, disturbed, second half"));
}

/// One training, disturbed until it is done, in this half of the time. Undisturbed it takes `whole`.
fn disturbed(
    place: &Place,
    name: &str,
    (whole, half): (Duration, usize),
    dice: &mut Dice,
    tally: &mut Tally,
) -> Result<()> {
    let mut arguments = place.arguments(name);
    arguments.push("--resume".into());
    let state = place.largest_file("undisturbed")?;
    // A training that is killed before it gets anywhere never ends.
    for _ in 0..1000 {
        let limit = (cfg!(unix) && dice.below(5) == 0).then(|| dice.below(2 * state));
        let lost = if dice.below(4) == 0 { String::new() } else { losses(dice) };
        // Half of them live long enough to show whether memory grows.
        let share = if dice.below(2) == 0 { 0.05 + dice.below(1000) as f64 / 2000.0 } else { 4.0 };
        let process = Process::start(&place.epl, &place.folder, &arguments, limit, &lost)?;
        let [first, second] = &mut tally.memory;
        let memory = if half == 0 { first } else { second };
        let life = process.live(whole.mul_f64(share), memory)?;
        tally.processes += 1;
        tally.losses += life.losses();
        if life.end == End::Done && !place.folder.join(name).join("report.html").is_file() {
            bail!("{name} ended without a report");
        }
        if ended(life, limit.is_some(), &place.folder.join(name), tally)? {
            return Ok(());
        }
    }
    bail!("{name} did not end")
}

/// Counts how a process ended; whether the training is done.
fn ended(life: Life, starved: bool, folder: &Path, tally: &mut Tally) -> Result<bool> {
    let full = starved && life.met_full_disk();
    tally.full_disks += u32::from(full);
    match life.end {
        End::Done => return Ok(true),
        End::Killed => {
            tally.kills += 1;
            tally.kills_while_writing += u32::from(process::any_partial(folder));
        }
        End::Failed if life.said.contains("times in a row") => tally.gave_up += 1,
        End::Failed if full => {}
        End::Failed => bail!("a training failed that nothing had disturbed in that way:\n{}", life.said),
    }
    Ok(false)
}

/// The program, the data and where trainings are.
struct Place {
    epl: PathBuf,
    folder: PathBuf,
    epochs: u64,
}

impl Place {
    fn new(root: &Path, options: &Options) -> Result<Self> {
        let epl = build(root, "epl", &["--release", "--bin", "epl"])?;
        let folder = root.join("target").join("soak");
        if folder.exists() {
            std::fs::remove_dir_all(&folder).context("what an earlier soak left")?;
        }
        std::fs::create_dir_all(&folder).context("target/soak")?;
        std::fs::write(folder.join("config.toml"), CONFIG).context("the configuration")?;
        let words = "data synth --out data/train --identities 24 --images 15 --size 32,32 --verification 60";
        let arguments: Vec<String> = words.split(' ').map(String::from).collect();
        let drawn = Process::start(&epl, &folder, &arguments, None, "")?
            .live(Duration::MAX, &mut Memory::default())?;
        ensure!(drawn.end == End::Done, "the faces could not be drawn:\n{}", drawn.said);
        Ok(Self { epl, folder, epochs: options.epochs })
    }

    /// Those of the training `name`.
    fn arguments(&self, name: &str) -> Vec<String> {
        let set = [format!("train.out={name}"), format!("train.epochs={}", self.epochs)];
        let mut arguments = vec!["train".to_owned(), "config.toml".to_owned()];
        set.into_iter().for_each(|set| arguments.extend(["--set".to_owned(), set]));
        arguments
    }

    /// The last and the best weights of a training.
    fn weights(&self, name: &str) -> Result<Vec<u8>> {
        let read = |file: &str| {
            let path = self.folder.join(name).join(file);
            std::fs::read(&path).with_context(|| path.display().to_string())
        };
        let mut weights = read("model.safetensors")?;
        weights.extend(read("model_best.safetensors")?);
        Ok(weights)
    }

    /// Bytes of the largest file of a checkpoint.
    fn largest_file(&self, name: &str) -> Result<u64> {
        let folder = self.folder.join(name).join("checkpoints");
        let mut largest = 0;
        for checkpoint in std::fs::read_dir(folder).context("the checkpoints")? {
            let state = checkpoint.context("a checkpoint")?.path().join("state.safetensors");
            largest = largest.max(std::fs::metadata(state).map_or(0, |file| file.len()));
        }
        Ok(largest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read_or_refused() {
        let parse = |text: &str| Options::parse(&text.split(' ').map(String::from).collect::<Vec<_>>());
        assert_eq!(Options::parse(&[]), Ok(Options { minutes: 60, seed: 1, epochs: 24 }));
        assert_eq!(parse("--minutes 5 --seed 7"), Ok(Options { minutes: 5, seed: 7, epochs: 24 }));
        for wrong in ["--minutes", "--minutes 0", "--minutes x", "--hours 1"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn losses_are_what_the_program_understands() {
        let mut dice = Dice(3);
        for _ in 0..100 {
            for loss in losses(&mut dice).split(',') {
                let (place, count) = loss.split_once('@').unwrap();
                assert!(count.parse::<u64>().unwrap() > 0 && !place.is_empty(), "{loss}");
            }
        }
    }
}
