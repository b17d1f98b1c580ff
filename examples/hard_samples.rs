//! The claim behind EPL, tested on drawn faces: prototypes that are learned by gradient are pulled away from the centre of
//! their class by hard samples, empirical ones are not, and training with these gives better features.
//!
//! A known share of the training pictures is hard or mislabelled. Each head is trained without EPL and with it, over
//! several seeds. A seed draws other people, other weights and another order, and both trainings of a head share all of
//! it, so that they are compared seed by seed. Reported are the cosines of the prototypes `W_y` (learned) and `Q_y`
//! (empirical) to the centre of the class's normal samples, and the verification of people who are not in the training.
//!
//! By default that is 30 trainings of about 35 seconds each on two CPU cores. `docs/epl.md` has what came out.
//!
//! cargo run --release --example hard_samples
//! cargo run --release --example hard_samples -- --heads cosface --seeds 8 --hard-share 0.4

use std::fmt::{self, Display, Formatter};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use clap::Parser;
use epl::cli::DeviceArguments;
use epl::config::{Config, EplSettings, EplUpdate, HeadKind, HeadSettings, Schedule};
use epl::data::synth::{SynthConfig, SynthSample, draw_all};
use epl::data::{Image, InMemory};
use epl::eval::embedder::Embedder;
use epl::eval::pairs::{PairSet, balanced_pairs};
use epl::eval::{Directions, Paired, Spread, VerificationReport};
use epl::interchange::safetensors::{probe, write_atomically};
use epl::model::{HEAD_QUEUE, HEAD_WEIGHT};
use epl::train::{Observer, RunFolder, Stop, Trainer};
use epl::{Error, Result};
use epl_runtime::Device;
use serde::Serialize;

/// Trains heads with and without EPL on drawn faces of which some are hard or mislabelled, and compares where the
/// prototypes lie and how well people who are not in the training are told apart.
#[derive(Parser, Serialize)]
struct Arguments {
    /// Seeds; each has other people, weights and order.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=1000))]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    first_seed: u64,
    /// Heads, each trained without EPL and with it: softmax, cosface, arcface, uniface.
    #[arg(long, value_delimiter = ',', default_value = "cosface,arcface,uniface", value_parser = named::<HeadKind>)]
    heads: Vec<HeadKind>,
    /// Train the heads without EPL only, as for choosing the recipe.
    #[arg(long)]
    plain: bool,
    /// Identities to train on.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(2..=100_000))]
    identities: u32,
    /// Training pictures an identity.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(2..=10_000))]
    images: u32,
    /// Share of hard pictures, in training and in the harder verification set.
    #[arg(long, default_value_t = 0.2, value_parser = share)]
    hard_share: f32,
    /// Share of training pictures that show another of the identities than their label says.
    #[arg(long, default_value_t = 0.1, value_parser = share)]
    mislabelled_share: f32,
    /// Passes over the training set.
    #[arg(long, default_value_t = 16)]
    epochs: u32,
    /// First epoch, from 1, whose loss has the empirical branch.
    #[arg(long, default_value_t = 4)]
    start_epoch: u32,
    /// Update of the empirical prototypes: softsign, sigmoid, sigmoid-paper, direct.
    #[arg(long, default_value = "softsign", value_parser = named::<EplUpdate>)]
    update: EplUpdate,
    /// Margin of every head, with and without EPL.
    #[arg(long, default_value_t = 0.4)]
    margin: f64,
    /// Scale of the cosines in the loss.
    #[arg(long, default_value_t = 16.0)]
    scale: f64,
    /// Base learning rate.
    #[arg(long, default_value_t = 0.1)]
    lr: f64,
    /// Images a step.
    #[arg(long, default_value_t = 32)]
    batch: usize,
    /// Channels of the network's first layer.
    #[arg(long, default_value_t = 8)]
    width: usize,
    /// Length of the embedding.
    #[arg(long, default_value_t = 64)]
    embedding: usize,
    /// Folder for `results.json` and the metrics and weights of every run; runs that are already there are replaced.
    #[arg(long, default_value = "runs/hard_samples")]
    out: PathBuf,
    /// Print the results as JSON instead of tables.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    #[serde(skip)]
    device: DeviceArguments,
}

/// Height and width of the pictures.
const SIZE: [usize; 2] = [32, 32];
/// People that are never trained on, and pictures of each.
const UNSEEN: (u32, u32) = (60, 6);

/// A value by its name in the configuration.
fn named<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(text.into()).map_err(|error| error.to_string())
}

fn share(text: &str) -> Result<f32, String> {
    let value: f32 = text.parse().map_err(|_| "expected a number".to_owned())?;
    if (0.0..=1.0).contains(&value) { Ok(value) } else { Err("expected a share in 0 .. 1".to_owned()) }
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            note(&format!("error: {error}"));
            if let Some(hint) = error.hint() {
                note(&format!("hint: {hint}"));
            }
            ExitCode::from(error.exit_code())
        }
    }
}

/// A line on standard error; where that is closed there is nobody to tell.
fn note(line: &str) {
    drop(writeln!(std::io::stderr(), "{line}"));
}

fn run(mut arguments: Arguments) -> Result<()> {
    // A head that is named twice would be counted as further seeds.
    let mut heads = Vec::new();
    for kind in arguments.heads {
        if !heads.contains(&kind) {
            heads.push(kind);
        }
    }
    arguments.heads = heads;
    let device = Device::open(&arguments.device.options())?;
    let file = arguments.out.join("results.json");
    probe(&file)?;
    let variants: &[bool] = if arguments.plain { &[false] } else { &[false, true] };
    let total = arguments.seeds as usize * arguments.heads.len() * variants.len();
    let adapter = device.description();
    let mut results = Results {
        adapter: format!("{} ({})", adapter.name, adapter.backend),
        runs: Vec::with_capacity(total),
        comparisons: Vec::new(),
        epochs: Vec::new(),
        arguments,
    };
    let started = Instant::now();
    for seed in (results.arguments.first_seed..).take(results.arguments.seeds as usize) {
        let faces = Faces::draw(&results.arguments, seed)?;
        for kind in results.arguments.heads.clone() {
            for &epl in variants {
                let run = train(&results.arguments, &device, &faces, seed, kind, epl)?;
                results.runs.push(run);
                let (done, run) = (results.runs.len(), &results.runs[results.runs.len() - 1]);
                let left = started.elapsed().as_secs_f64() / done as f64 * (total - done) as f64;
                note(&format!(
                    "{done} of {total}: seed {seed}, {}: accuracy {:.4}, loss {:.3}, {:.0} s; {:.0} min left",
                    name(kind, epl),
                    run.measures.accuracy,
                    run.loss,
                    run.seconds,
                    left / 60.0
                ));
            }
        }
        // After every seed, so that an experiment which is cut off leaves what it has found.
        results.compare();
        write_atomically(&file, results.json()?.as_bytes())?;
    }
    let text = if results.arguments.json { results.json()? } else { results.to_string() };
    // A reader that is gone has seen what it wanted; the file has everything.
    drop(writeln!(std::io::stdout(), "{text}"));
    note(&format!("results: {}", file.display()));
    Ok(())
}

/// What all trainings of a seed share.
struct Faces {
    samples: Vec<SynthSample>,
    dataset: Arc<InMemory>,
    /// Name and pictures of each verification set.
    unseen: [(&'static str, Vec<Image>); 2],
}

/// The verification sets: the same people in normal pictures only, and with as many hard ones as in training.
const SETS: [&str; 2] = ["normal", "with hard"];

impl Faces {
    fn draw(arguments: &Arguments, seed: u64) -> Result<Self> {
        let training = SynthConfig {
            seed,
            identities: arguments.identities,
            first_identity: 0,
            images_per_identity: arguments.images,
            size: SIZE,
            hard_share: arguments.hard_share,
            mislabelled_share: arguments.mislabelled_share,
        };
        let unseen = |hard_share| {
            let config = SynthConfig {
                identities: UNSEEN.0,
                first_identity: arguments.identities,
                images_per_identity: UNSEEN.1,
                hard_share,
                mislabelled_share: 0.0,
                ..training.clone()
            };
            let image = |sample: SynthSample| Image { rgb: sample.rgb, height: SIZE[0], width: SIZE[1] };
            draw_all(&config, &|_| {}).into_iter().map(image).collect()
        };
        let unseen = [(SETS[0], unseen(0.0)), (SETS[1], unseen(arguments.hard_share))];
        let samples = draw_all(&training, &|_| {});
        let pictures = samples.iter().map(|sample| (sample.rgb.clone(), sample.label)).collect();
        let dataset = Arc::new(InMemory::new(SIZE, pictures, Some(arguments.identities as usize))?);
        Ok(Self { samples, dataset, unseen })
    }

    fn verification(&self) -> Result<Vec<PairSet>> {
        let (pairs, issame) = balanced_pairs(UNSEEN.0 as usize, UNSEEN.1 as usize);
        let set = |(name, images): &(&str, Vec<Image>)| {
            PairSet::from_indices(*name, images.clone(), pairs.clone(), issame.clone())
        };
        self.unseen.iter().map(set).collect()
    }
}

/// A training, and what came of it.
#[derive(Serialize)]
struct Run {
    head: HeadKind,
    epl: bool,
    seed: u64,
    /// Mean loss of the last epoch.
    loss: f64,
    /// Seconds of everything, evaluations included.
    seconds: f64,
    measures: Measures,
    /// Verification at the end of every epoch.
    epochs: Vec<Evaluation>,
}

#[derive(Serialize)]
struct Evaluation {
    epoch: u32,
    set: String,
    accuracy: f64,
    auc: f64,
}

/// What the trained network does. Cosines are means, over the classes or over the samples of a kind; what has no sense for
/// a run is NaN. `x` is a feature as in verification (the picture's and its mirror image's, added), `W` and `Q` are the
/// prototypes of its label, and the centre is that of the normal, rightly labelled training samples of the class.
#[derive(Serialize)]
struct Measures {
    accuracy: f64,
    auc: f64,
    accuracy_hard: f64,
    auc_hard: f64,
    w_centre: f64,
    q_centre: f64,
    /// The centre of all samples of the label, hard and mislabelled ones too: a mean that nothing protects.
    all_centre: f64,
    /// Angle between W and Q in degrees, over the classes.
    angle: f64,
    normal: Affinity,
    hard: Affinity,
    mislabelled: Affinity,
}

/// Mean cosines of the training samples of a kind.
#[derive(Serialize)]
struct Affinity {
    w: f64,
    q: f64,
    centre: f64,
}

/// Training without a word, but for the verifications.
struct Watch(Vec<Evaluation>);

impl Observer for Watch {
    fn evaluation(&mut self, epoch: u32, report: &VerificationReport) {
        let (set, accuracy, auc) = (report.name.clone(), report.accuracy, report.auc);
        self.0.push(Evaluation { epoch, set, accuracy, auc });
        if std::io::stderr().is_terminal() {
            // Without a line's end: the next line is written over it.
            drop(write!(std::io::stderr(), "\repoch {epoch}, {:<9}: {accuracy:.4}\r", report.name));
        }
    }
}

fn train(
    arguments: &Arguments,
    device: &Arc<Device>,
    faces: &Faces,
    seed: u64,
    kind: HeadKind,
    epl: bool,
) -> Result<Run> {
    let started = Instant::now();
    let config = configuration(arguments, seed, kind, epl);
    let mut trainer = Trainer::new(config.clone(), device, faces.dataset.clone(), faces.verification()?)?;
    let mut folder = RunFolder::create(&config, true)?;
    let mut watch = Watch(Vec::new());
    let outcome = trainer.run(&mut folder, &Stop::default(), &mut watch)?;
    let [normal, hard] = outcome.evaluations.as_slice() else {
        return Err(Error::usage("a run was not evaluated on both sets", "this is a fault of the example"));
    };
    Ok(Run {
        head: kind,
        epl,
        seed,
        loss: outcome.loss,
        measures: measure(&trainer, faces, [normal, hard])?,
        seconds: started.elapsed().as_secs_f64(),
        epochs: watch.0,
    })
}

/// A network small enough for two CPU cores, and one recipe for every head. Its rate, scale and epochs were chosen on
/// CosFace without EPL, with a seed that the experiment does not use: with half the rate or half as many epochs again the
/// verification is the same, with a larger scale (32, 64) it is worse. Margin, update and k are the defaults of the project.
fn configuration(arguments: &Arguments, seed: u64, kind: HeadKind, epl: bool) -> Config {
    let milestone = |of_28: f64| ((f64::from(arguments.epochs) * of_28 / 28.0).round() as u32).max(1);
    let mut config = Config::default();
    config.model.arch = "ir18".into();
    config.model.input = SIZE;
    config.model.width = arguments.width;
    config.model.blocks = Some([1, 1, 1, 1]);
    config.model.embedding = arguments.embedding;
    config.model.dropout = 0.2;
    let settings = EplSettings {
        update: arguments.update,
        start_epoch: arguments.start_epoch,
        ..EplSettings::default()
    };
    config.head = HeadSettings {
        kind,
        margin: arguments.margin,
        scale: arguments.scale,
        epl: epl.then_some(settings),
        ..HeadSettings::default()
    };
    config.data.train = "procedural".into();
    config.optim.lr = arguments.lr;
    // The release drops the rate after 16 and 24 of 28 epochs.
    let mut milestones = vec![milestone(16.0), milestone(24.0)];
    milestones.dedup();
    config.optim.schedule = Schedule::Multistep { milestones, gamma: 0.1 };
    config.train.out =
        arguments.out.join(format!("seed-{seed}")).join(name(kind, epl).replace(" + ", "-").to_lowercase());
    config.train.epochs = arguments.epochs;
    config.train.batch_size = arguments.batch;
    config.train.seed = seed;
    config
}

fn measure(trainer: &Trainer, faces: &Faces, sets: [&VerificationReport; 2]) -> Result<Measures> {
    let dataset = trainer.dataset();
    let mut embedder = Embedder::new(trainer.model(), 64)?;
    let dimension = embedder.dimension();
    let features = embedder.embed(dataset.len(), &|index| dataset.load(index), true, &mut |_| {})?;
    let features = Directions::new(&features, dimension)?;
    let dict = trainer.model().state_dict(0)?;
    // Without EPL there are no empirical prototypes, so no rows, and the means over their cosines are NaN.
    let prototypes = |name| Directions::new(dict.floats(name).map_or(&[], |(_, values)| values), dimension);
    let (weight, queue) = (prototypes(HEAD_WEIGHT)?, prototypes(HEAD_QUEUE)?);

    let samples = &faces.samples;
    let labels: Vec<u32> = samples.iter().map(|sample| sample.label).collect();
    let classes = dataset.num_classes();
    let mislabelled = |index: usize| samples[index].shown_identity != samples[index].label;
    let hard = |index: usize| samples[index].hard && !mislabelled(index);
    let normal = |index: usize| !samples[index].hard && !mislabelled(index);
    let centres = features.centres(&labels, classes, normal);
    let all = features.centres(&labels, classes, |_| true);

    let over_classes =
        |a: &Directions, b: &Directions| mean((0..classes).filter_map(|class| a.cosine(class, b, class)));
    let angles = (0..classes).filter_map(|class| weight.cosine(class, &queue, class));
    let affinity = |kind: &dyn Fn(usize) -> bool| {
        let to = |prototypes: &Directions| {
            let of_kind = (0..samples.len()).filter(|&index| kind(index));
            mean(of_kind.filter_map(|index| features.cosine(index, prototypes, labels[index] as usize)))
        };
        Affinity { w: to(&weight), q: to(&queue), centre: to(&centres) }
    };
    Ok(Measures {
        accuracy: sets[0].accuracy,
        auc: sets[0].auc,
        accuracy_hard: sets[1].accuracy,
        auc_hard: sets[1].auc,
        w_centre: over_classes(&weight, &centres),
        q_centre: over_classes(&queue, &centres),
        all_centre: over_classes(&all, &centres),
        angle: mean(angles.map(|cosine| cosine.acos().to_degrees())),
        normal: affinity(&normal),
        hard: affinity(&hard),
        mislabelled: affinity(&mislabelled),
    })
}

/// NaN where there is nothing.
fn mean(values: impl Iterator<Item = f64>) -> f64 {
    Spread::of(&values.collect::<Vec<_>>()).mean
}

/// The rows of the table: what a figure is called, how to find it, and its decimals.
type Figure = (&'static str, fn(&Measures) -> f64, usize);
const FIGURES: [Figure; 17] = [
    ("accuracy, normal pictures", |m| m.accuracy, 4),
    ("AUC, normal pictures", |m| m.auc, 4),
    ("accuracy, with hard ones", |m| m.accuracy_hard, 4),
    ("AUC, with hard ones", |m| m.auc_hard, 4),
    ("cos(W, centre)", |m| m.w_centre, 4),
    ("cos(Q, centre)", |m| m.q_centre, 4),
    ("cos(mean of all, centre)", |m| m.all_centre, 4),
    ("angle W, Q in degrees", |m| m.angle, 1),
    ("cos(x, W), normal", |m| m.normal.w, 3),
    ("cos(x, Q), normal", |m| m.normal.q, 3),
    ("cos(x, centre), normal", |m| m.normal.centre, 3),
    ("cos(x, W), hard", |m| m.hard.w, 3),
    ("cos(x, Q), hard", |m| m.hard.q, 3),
    ("cos(x, centre), hard", |m| m.hard.centre, 3),
    ("cos(x, W), mislabelled", |m| m.mislabelled.w, 3),
    ("cos(x, Q), mislabelled", |m| m.mislabelled.q, 3),
    ("cos(x, centre), mislabelled", |m| m.mislabelled.centre, 3),
];

#[derive(Serialize)]
struct Results {
    arguments: Arguments,
    adapter: String,
    runs: Vec<Run>,
    /// At the end of the training.
    comparisons: Vec<Comparison>,
    /// Accuracy at the end of every epoch, set by set.
    epochs: Vec<Comparison>,
}

/// A figure of a head without EPL and with it.
#[derive(Serialize)]
struct Comparison {
    head: HeadKind,
    figure: String,
    #[serde(skip)]
    decimals: usize,
    plain: Spread,
    epl: Spread,
    /// With EPL less without, seed by seed.
    paired: Paired,
}

impl Results {
    fn compare(&mut self) {
        let (mut comparisons, mut epochs) = (Vec::new(), Vec::new());
        for &head in &self.arguments.heads {
            for (figure, of, decimals) in FIGURES {
                comparisons
                    .push(self.comparison(head, figure.into(), decimals, |run| Some(of(&run.measures))));
            }
            for set in SETS {
                for epoch in 1..=self.arguments.epochs {
                    let of = |run: &Run| {
                        let found = run.epochs.iter().find(|point| point.epoch == epoch && point.set == set);
                        found.map(|point| point.accuracy)
                    };
                    epochs.push(self.comparison(head, format!("{set}, epoch {epoch}"), 4, of));
                }
            }
        }
        (self.comparisons, self.epochs) = (comparisons, epochs);
    }

    fn comparison(
        &self,
        head: HeadKind,
        figure: String,
        decimals: usize,
        value: impl Fn(&Run) -> Option<f64>,
    ) -> Comparison {
        let of = |epl: bool| -> Vec<f64> {
            let runs = self.runs.iter().filter(|run| run.head == head && run.epl == epl);
            runs.filter_map(&value).collect()
        };
        // Both lists are in the order of the seeds.
        let (plain, epl) = (of(false), of(true));
        let pairs: Vec<(f64, f64)> = plain.iter().copied().zip(epl.iter().copied()).collect();
        let (plain, epl) = (Spread::of(&plain), Spread::of(&epl));
        Comparison { head, figure, decimals, plain, epl, paired: Paired::of(&pairs) }
    }

    fn json(&self) -> Result<String> {
        serde_json::to_string_pretty(self)
            .map_err(|error| Error::usage(format!("no JSON: {error}"), "this is a fault of the example"))
    }
}

impl Display for Results {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}; mean +- standard deviation over {} seeds;", self.adapter, self.arguments.seeds)?;
        writeln!(f, "difference: with EPL less without, seed by seed, mean +- standard error")?;
        for &head in &self.arguments.heads {
            table(f, name(head, false), self.comparisons.iter().filter(|c| c.head == head))?;
        }
        writeln!(
            f,
            "\nAccuracy by epoch; EPL's second branch begins with epoch {}",
            self.arguments.start_epoch
        )?;
        for &head in &self.arguments.heads {
            table(f, name(head, false), self.epochs.iter().filter(|c| c.head == head))?;
        }
        Ok(())
    }
}

/// A table in Markdown that is also readable as it is.
fn table<'a>(
    f: &mut Formatter<'_>,
    title: &str,
    comparisons: impl Iterator<Item = &'a Comparison>,
) -> fmt::Result {
    writeln!(f)?;
    let mut row = |cells: [&str; 5]| {
        let [title, plain, epl, difference, higher] = cells;
        writeln!(f, "| {title:<27} | {plain:>16} | {epl:>16} | {difference:>18} | {higher:>11} |")
    };
    row([title, "without EPL", "with EPL", "difference", "EPL higher"])?;
    row(["---", "---:", "---:", "---:", "---:"])?;
    for comparison in comparisons {
        let Comparison { figure, decimals, plain, epl, paired, .. } = comparison;
        let higher = if paired.difference.is_nan() {
            "-".to_owned()
        } else {
            format!("{} of {}", paired.higher, paired.count)
        };
        row([
            figure,
            &spread(plain.mean, plain.std, *decimals),
            &spread(epl.mean, epl.std, *decimals),
            &match paired.difference {
                difference if difference >= 0.0 => {
                    format!("+{}", spread(difference, paired.standard_error, *decimals))
                }
                difference => spread(difference, paired.standard_error, *decimals),
            },
            &higher,
        ])?;
    }
    Ok(())
}

/// A value and its uncertainty, as far as there are any.
fn spread(value: f64, uncertainty: f64, decimals: usize) -> String {
    match (value.is_nan(), uncertainty.is_nan()) {
        (true, _) => "-".to_owned(),
        (false, true) => format!("{value:.decimals$}"),
        (false, false) => format!("{value:.decimals$} +- {uncertainty:.decimals$}"),
    }
}

fn name(kind: HeadKind, epl: bool) -> &'static str {
    match (kind, epl) {
        (HeadKind::Softmax, false) => "softmax",
        (HeadKind::Softmax, true) => "softmax + EPL",
        (HeadKind::CosFace, false) => "CosFace",
        (HeadKind::CosFace, true) => "CosFace + EPL",
        (HeadKind::ArcFace, false) => "ArcFace",
        (HeadKind::ArcFace, true) => "ArcFace + EPL",
        (HeadKind::UniFace, false) => "UniFace",
        (HeadKind::UniFace, true) => "UniFace + EPL",
    }
}
