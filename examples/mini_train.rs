//! The main job, small: trains a face-recognition network with CosFace + EPL and verifies people it never saw.
//!
//! By default on procedural faces that the project draws itself; `--data PATH` trains on a folder of identity folders
//! or a RecordIO file instead. Everything is left in `--out`: weights, metrics and `report.html`.
//!
//! cargo run --release --example mini_train
//! cargo run --release --example mini_train -- --data path/to/faces --eval path/to/lfw.bin --size 112

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use clap::Parser;
use epl::cli::DeviceArguments;
use epl::config::{Config, Precision, Schedule};
use epl::data::synth::{SynthConfig, SynthSample, draw_all};
use epl::data::{self, Dataset, Image, InMemory};
use epl::eval::pairs::PairSet;
use epl::head::{EplSettings, HeadSettings};
use epl::train::{Console, Outcome, RunOptions, run_on};
use epl::{Error, Result};
use epl_runtime::Device;

/// Trains a small face-recognition network with CosFace + EPL, on procedural faces or on your own.
#[derive(Parser)]
struct Arguments {
    /// A folder of identity folders, or a .rec file; without it, procedural faces are drawn.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Verification sets (.bin) to evaluate on, with --data.
    #[arg(long, requires = "data")]
    eval: Vec<PathBuf>,
    /// The run's folder. A run on the same data that is already there is replaced.
    #[arg(long, default_value = "runs/mini")]
    out: PathBuf,
    /// Seed of faces, weights and order.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Passes over the training set.
    #[arg(long, default_value_t = 10)]
    epochs: u32,
    /// Height and width of the input, divisible by 16.
    #[arg(long, default_value_t = 32)]
    size: usize,
    /// Channels of the network's first layer.
    #[arg(long, default_value_t = 16)]
    width: usize,
    /// Images a step.
    #[arg(long, default_value_t = 64)]
    batch: usize,
    /// Base learning rate.
    #[arg(long, default_value_t = 0.1)]
    lr: f64,
    /// Scale of the cosines in the loss.
    #[arg(long, default_value_t = 32.0)]
    scale: f64,
    /// Margin of the loss.
    #[arg(long, default_value_t = 0.4)]
    margin: f64,
    /// Procedural identities to train on.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(2..=100_000))]
    identities: u32,
    /// Procedural images an identity.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(2..=10_000))]
    images: u32,
    /// How activations are stored: f32, or mixed for 16 bits where that is enough.
    #[arg(long, default_value = "f32", value_parser = precision)]
    precision: Precision,
    #[command(flatten)]
    device: DeviceArguments,
}

fn precision(text: &str) -> std::result::Result<Precision, String> {
    match text {
        "f32" => Ok(Precision::F32),
        "mixed" => Ok(Precision::Mixed),
        _ => Err("expected f32 or mixed".into()),
    }
}

/// Share of procedural samples that are hard: strong pose, occlusion, blur, bad light.
const HARD_SHARE: f32 = 0.1;
/// People that are never trained on, and images of each.
const UNSEEN: (u32, u32) = (60, 10);
/// Pairs of unseen people, half of them of one person.
const PAIRS: usize = 600;

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut err = std::io::stderr().lock();
            let _ = writeln!(err, "error: {error}");
            if let Some(hint) = error.hint() {
                let _ = writeln!(err, "hint: {hint}");
            }
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let started = Instant::now();
    let config = configuration(arguments);
    config.validate()?;
    let device = Device::open(&arguments.device.options())?;
    let (dataset, sets) = match &arguments.data {
        Some(path) => real(path, &arguments.eval, &config)?,
        None => procedural(arguments)?,
    };
    // An earlier run on the same data is replaced, so that the example can simply be run again.
    let outcome = run_on(
        config,
        &device,
        dataset,
        sets,
        &RunOptions { replace: true, ..RunOptions::default() },
        &mut Console::new(),
    )?;
    let mut out = std::io::stdout().lock();
    // A reader that is gone has seen what it wanted; everything is in the run's folder too.
    let _ = table(&mut out, &outcome, started);
    let _ = writeln!(out, "report: {}", arguments.out.join("report.html").display());
    Ok(())
}

/// A network small enough for two CPU cores, and the recipe of the release scaled to it.
fn configuration(arguments: &Arguments) -> Config {
    let milestone = |of_28: f64| ((f64::from(arguments.epochs) * of_28 / 28.0).round() as u32).max(1);
    let mut config = Config::default();
    config.model.arch = "ir18".into();
    config.model.input = [arguments.size; 2];
    config.model.width = arguments.width;
    config.model.blocks = Some([1, 1, 1, 1]);
    config.model.embedding = 128;
    config.model.dropout = 0.2;
    config.head = HeadSettings {
        scale: arguments.scale,
        margin: arguments.margin,
        // The release turns the empirical branch on in the 4th of 28 epochs.
        epl: Some(EplSettings { start_epoch: 1 + milestone(3.0), ..EplSettings::default() }),
        ..HeadSettings::default()
    };
    config.data.train = arguments.data.clone().unwrap_or_else(|| "procedural".into());
    config.optim.lr = arguments.lr;
    // The release drops the rate after 16 and 24 of 28 epochs.
    let milestones = match (milestone(16.0), milestone(24.0)) {
        (first, second) if first < second => vec![first, second],
        (first, _) => vec![first],
    };
    config.optim.schedule = Schedule::Multistep { milestones, gamma: 0.1 };
    config.train.out = arguments.out.clone();
    config.train.epochs = arguments.epochs;
    config.train.precision = arguments.precision;
    config.train.batch_size = arguments.batch;
    config.train.seed = arguments.seed;
    config.train.log_every = 5;
    config
}

type Data = (Arc<dyn Dataset>, Vec<PairSet>);

fn real(path: &Path, eval: &[PathBuf], config: &Config) -> Result<Data> {
    let options = data::Options { size: config.model.input, resize: true, num_classes: None };
    let dataset = data::open(path, &options)?;
    let sets = eval.iter().map(|path| PairSet::open_bin(path)).collect::<Result<_>>()?;
    Ok((dataset.into(), sets))
}

fn procedural(arguments: &Arguments) -> Result<Data> {
    let size = [arguments.size; 2];
    let training = SynthConfig {
        seed: arguments.seed,
        identities: arguments.identities,
        first_identity: 0,
        images_per_identity: arguments.images,
        size,
        hard_share: HARD_SHARE,
        mislabelled_share: 0.0,
    };
    let (people, images) = UNSEEN;
    let total =
        u64::from(arguments.identities) * u64::from(arguments.images) + 2 * u64::from(people * images);
    let _ = writeln!(std::io::stderr(), "drawing {total} procedural faces");
    let bar = indicatif::ProgressBar::new(total);
    let draw = |config: &SynthConfig| draw_all(config, &|_| bar.inc(1));
    let samples = draw(&training).into_iter().map(|sample| (sample.rgb, sample.label)).collect();
    let dataset = InMemory::new(size, samples, Some(arguments.identities as usize))?;
    // The same people twice: in easy pictures only, and with as many hard ones as in training.
    let unseen = SynthConfig {
        identities: people,
        first_identity: arguments.identities,
        images_per_identity: images,
        hard_share: 0.0,
        ..training.clone()
    };
    let easy = pair_set("unseen people", &draw(&unseen), size)?;
    let hard = SynthConfig { hard_share: HARD_SHARE, ..unseen };
    let hard = pair_set("unseen people, 10 % hard", &draw(&hard), size)?;
    bar.finish_and_clear();
    Ok((Arc::new(dataset), vec![easy, hard]))
}

/// Pairs of the faces of [`UNSEEN`] people, given identity-major.
fn pair_set(name: &str, faces: &[SynthSample], size: [usize; 2]) -> Result<PairSet> {
    let (people, images) = (UNSEEN.0 as usize, UNSEEN.1 as usize);
    let mut chosen = Vec::with_capacity(2 * PAIRS);
    let mut same = Vec::with_capacity(PAIRS);
    for (a, b) in pairs_of(people, images) {
        for index in [a, b] {
            let face = faces.get(index).ok_or_else(|| {
                Error::usage(format!("there is no unseen face {index}"), "this is a fault of the example")
            })?;
            chosen.push(Image { rgb: face.rgb.clone(), height: size[0], width: size[1] });
        }
        same.push(a / images == b / images);
    }
    Ok(PairSet::from_images(name, chosen, same))
}

/// Pairs of image indices (identity-major), alternately of one person and of two, spread over all people.
fn pairs_of(people: usize, images: usize) -> Vec<(usize, usize)> {
    (0..PAIRS)
        .map(|pair| {
            let round = pair / 2;
            let (person, turn) = (round % people, round / people);
            let first = person * images + turn % images;
            if pair % 2 == 0 {
                (first, person * images + (turn + 1) % images)
            } else {
                // A stride coprime to the number of people pairs everyone with many others.
                let other = (person + 1 + (turn * 7) % (people - 1)) % people;
                (first, other * images + (turn * 3 + 1) % images)
            }
        })
        .collect()
}

fn table(out: &mut impl Write, outcome: &Outcome, started: Instant) -> std::io::Result<()> {
    writeln!(out)?;
    writeln!(out, "{:<28} {:>12}", "steps", outcome.steps)?;
    writeln!(out, "{:<28} {:>12.4}", "mean loss of the last epoch", outcome.loss)?;
    writeln!(out, "{:<28} {:>12.0}", "images a second", outcome.images_per_second)?;
    writeln!(out, "{:<28} {:>10.1} s", "training", outcome.train_seconds)?;
    writeln!(out, "{:<28} {:>10.1} s", "everything", started.elapsed().as_secs_f64())?;
    for report in &outcome.evaluations {
        writeln!(out)?;
        writeln!(out, "{} ({} pairs)", report.name, report.pairs)?;
        writeln!(out, "{:<28} {:>12.4} +- {:.4}", "  accuracy", report.accuracy, report.accuracy_std)?;
        writeln!(out, "{:<28} {:>12.4}", "  TAR at FAR 1e-3", report.tar_at_far_1e3)?;
        writeln!(out, "{:<28} {:>12.4}", "  area under the ROC curve", report.auc)?;
        writeln!(out, "{:<28} {:>12.4}", "  equal error rate", report.eer)?;
    }
    writeln!(out)
}
