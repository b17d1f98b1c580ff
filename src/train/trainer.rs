//! The training loop: epochs, steps, what is logged, and what is left behind.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use epl_runtime::{Device, Session, SessionOptions};

use crate::config::{Augment, Config, LearningRate};
use crate::data::{Batch, Dataset, Loader, LoaderOptions};
use crate::eval::embedder::Embedder;
use crate::eval::pairs::PairSet;
use crate::eval::verify::VerificationReport;
use crate::head::sampling::ClassSampler;
use crate::interchange::safetensors::StateDict;
use crate::model::{Head, Model, ModelSpec};
use crate::nn::IrNetwork;
use crate::nn::input::packed_bytes;
use crate::report::StepPoint;
use crate::train::epoch::EpochSums;
use crate::train::events::Observer;
use crate::train::folder::RunFolder;
use crate::train::metrics::Record;
use crate::train::plan::resolve_form;
use crate::train::prototypes::PrototypeWatch;
use crate::train::step::{StepGraph, StepInputs, StepOptions, StepResult, class_sampler, record_step};
use crate::train::summary::eval_point;
use crate::{Error, Result};

/// Images embedded at once during evaluation.
const EVALUATION_BATCH: usize = 64;

/// A model, its data and everything needed to train it.
pub struct Trainer {
    config: Config,
    device: Arc<Device>,
    dataset: Arc<dyn Dataset>,
    loader: Loader,
    sets: Vec<PairSet>,
    model: Model,
    /// What chooses the classes of a step, where they are sampled.
    sampler: Option<ClassSampler>,
    /// Whether the session below has the empirical branch.
    session: Option<(bool, StepInputs, Session)>,
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Steps done.
    pub steps: u64,
    /// Epochs done.
    pub epochs: u32,
    /// Mean loss of the last epoch.
    pub loss: f64,
    /// Seconds of training, evaluations left out.
    pub train_seconds: f64,
    /// Images a second over all training.
    pub images_per_second: f64,
    /// The last evaluation of each set.
    pub evaluations: Vec<VerificationReport>,
}

/// A step in flight.
struct InFlight {
    step: u64,
    epoch: u32,
    lr: f64,
}

/// The network that a configuration describes.
pub fn network_of(config: &Config) -> Result<IrNetwork> {
    let model = &config.model;
    let named = IrNetwork::named(&model.arch)?;
    Ok(IrNetwork {
        input: model.input,
        width: model.width,
        blocks: model.blocks.unwrap_or(named.blocks),
        embedding: model.embedding,
        dropout: model.dropout as f32,
    })
}

/// The model that a configuration describes, for `classes` identities.
pub fn spec_of(config: &Config, classes: usize) -> Result<ModelSpec> {
    let head = Head { settings: config.head, classes };
    ModelSpec::new(&config.model.arch, network_of(config)?, Some(head))
}

/// What the step graph of a configuration is recorded with.
pub fn step_options(config: &Config, empirical: bool) -> StepOptions {
    StepOptions {
        batch: config.train.batch_size,
        momentum: config.optim.momentum as f32,
        weight_decay: config.optim.weight_decay as f32,
        clip_norm: config.optim.clip_norm as f32,
        empirical,
        seed: config.train.seed,
    }
}

/// The batches of `dataset`, whose images must be of the network's input size: the loader makes sure that all of them
/// are of one size, but does not know which.
fn loader_of(config: &Config, dataset: &Arc<dyn Dataset>) -> Result<Loader> {
    let options = LoaderOptions {
        batch_size: config.train.batch_size,
        seed: config.train.seed,
        shuffle: config.data.shuffle,
        mirror: config.data.augment.contains(&Augment::Mirror),
    };
    let loader = Loader::new(dataset.clone(), options)?;
    let ([height, width], [input_height, input_width]) = (loader.image_size(), config.model.input);
    if [height, width] != config.model.input {
        return Err(Error::data(
            dataset.name(0),
            format!("{height} x {width} pixels"),
            format!("{input_height} x {input_width}, the network's input"),
            "set data.resize = true or model.input, or align the images to the network's input first",
        ));
    }
    Ok(loader)
}

impl Trainer {
    /// Makes the model on `device`, from the seed or from the weights that the configuration names.
    /// Returns the trainer and the head tensors that those weights did not provide.
    pub fn new(
        config: Config,
        device: &Arc<Device>,
        dataset: Arc<dyn Dataset>,
        sets: Vec<PairSet>,
    ) -> Result<(Self, Vec<String>)> {
        config.validate()?;
        let loader = loader_of(&config, &dataset)?;
        let classes = dataset.num_classes();
        let config = resolve_form(&config, classes, device.caps())?;
        let model = Model::new(spec_of(&config, classes)?, device, config.train.seed)?;
        let left = match &config.model.init {
            Some(path) => model.load(&StateDict::read(path)?, &path.display().to_string())?,
            None => Vec::new(),
        };
        let sampler = class_sampler(&model.spec, &step_options(&config, false));
        let mut trainer =
            Self { config, device: device.clone(), dataset, loader, sets, model, sampler, session: None };
        // Whatever does not fit the adapter is found now, before anything is written: the evaluation, the graph with
        // the empirical branch, which is the larger one, and that of the first epoch.
        if !trainer.sets.is_empty() {
            Embedder::new(&trainer.model, EVALUATION_BATCH)?;
        }
        if let Some(epl) = trainer.config.head.epl
            && epl.start_epoch <= trainer.config.train.epochs
        {
            trainer.session_for(epl.start_epoch)?;
        }
        trainer.session_for(1)?;
        Ok((trainer, left))
    }

    /// The configuration, with everything decided that it left open.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The model, with its parameters as they are now.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The device.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// The training set.
    pub fn dataset(&self) -> &Arc<dyn Dataset> {
        &self.dataset
    }

    /// A line about model, data and device.
    fn summary(&self) -> String {
        let network = &self.model.spec.network;
        let sampled = match &self.sampler {
            Some(sampler) => format!(" ({} a step)", sampler.count()),
            None => String::new(),
        };
        format!(
            "{} {}x{} width {} blocks {:?}, {:.2} M parameters; {} images of {} identities{sampled}; {} ({})",
            self.config.model.arch,
            network.input[0],
            network.input[1],
            network.width,
            network.blocks,
            self.model.spec.trained_elements() as f64 / 1e6,
            self.dataset.len(),
            self.dataset.num_classes(),
            self.device.description().name,
            self.device.description().backend,
        )
    }

    /// Whether the loss has the empirical branch in `epoch` (1-based).
    fn empirical(&self, epoch: u32) -> bool {
        self.config.head.epl.as_ref().is_some_and(|epl| epoch >= epl.start_epoch)
    }

    /// The session for `epoch`, built when the branch changes; the other one's memory is freed first.
    fn session_for(&mut self, epoch: u32) -> Result<()> {
        let empirical = self.empirical(epoch);
        if self.session.as_ref().is_some_and(|(has, ..)| *has == empirical) {
            return Ok(());
        }
        self.session = None;
        let StepGraph { graph, inputs } =
            record_step(&self.model.spec, &step_options(&self.config, empirical))?;
        let session = Session::new(&graph, &self.model.store, SessionOptions::default())?;
        self.session = Some((empirical, inputs, session));
        Ok(())
    }

    /// Trains to the end of the configuration, writing into `folder`.
    pub fn run(&mut self, folder: &mut RunFolder, observer: &mut dyn Observer) -> Result<Outcome> {
        let steps_per_epoch = self.loader.batches_per_epoch() as u64;
        let schedule = LearningRate::new(&self.config.optim, &self.config.train);
        let total = schedule.total_steps(steps_per_epoch);
        observer.start(total, steps_per_epoch, &self.summary());

        let hard_cosine = self.config.train.hard_cosine;
        let mut progress = Progress::new(total, PrototypeWatch::new(&self.model, hard_cosine)?, hard_cosine);
        let mut outcome = Outcome {
            steps: 0,
            epochs: 0,
            loss: f64::NAN,
            train_seconds: 0.0,
            images_per_second: f64::NAN,
            evaluations: Vec::new(),
        };
        for epoch in 1..=self.config.train.epochs {
            if progress.submitted >= total {
                break;
            }
            self.session_for(epoch)?;
            let started = Instant::now();
            // The time between epochs goes to evaluation, and is no throughput.
            progress.logged_at = started;
            progress.logged_images = 0;
            progress.waited = Duration::ZERO;
            progress.sums = EpochSums::new(hard_cosine);
            let mut batches = self.loader.epoch(epoch, 0)?;
            while progress.submitted < total {
                let asked = Instant::now();
                let Some(batch) = batches.next() else { break };
                progress.waited += asked.elapsed();
                let batch = batch?;
                let lr = schedule.lr(progress.submitted, steps_per_epoch);
                self.submit(&batch, epoch, lr, &mut progress)?;
                self.collect(false, &mut progress, folder, observer)?;
                batches.recycle(batch);
            }
            self.collect(true, &mut progress, folder, observer)?;
            outcome.train_seconds += started.elapsed().as_secs_f64();
            outcome.epochs = epoch;
            outcome.steps = progress.submitted;
            outcome.loss = progress.sums.mean_loss();
            let prototypes =
                progress.watch.end_epoch(&self.model, epoch, progress.submitted, &progress.sums)?;
            folder.record(&Record::Prototypes(Box::new(prototypes.clone())))?;
            observer.epoch(epoch, outcome.loss, Some(&prototypes));
            if let Some(warning) = folder.take_warning() {
                observer.message(&warning);
            }
            if epoch == self.config.train.epochs || progress.submitted >= total {
                // Before the last evaluation, so that nothing that happens there loses the run.
                self.model.save(&folder.weights_path(), outcome.steps)?;
            }
            outcome.evaluations = self.evaluate(epoch, progress.submitted, folder, observer)?;
        }
        let images = outcome.steps as f64 * self.config.train.batch_size as f64;
        outcome.images_per_second = images / outcome.train_seconds.max(1e-9);
        observer.end();
        Ok(outcome)
    }

    /// Uploads a batch and submits its step. Does not wait for it.
    fn submit(&mut self, batch: &Batch, epoch: u32, lr: f64, progress: &mut Progress) -> Result<()> {
        let Some((_, inputs, session)) = &mut self.session else { return Ok(()) };
        let step = progress.submitted;
        let seed = [fold(self.config.train.seed), fold(step)];
        let bytes = packed_bytes(batch.labels.len(), self.model.spec.network.input);
        if batch.images.len() == bytes {
            session.write(inputs.images.bytes, &batch.images)?;
        } else {
            let mut padded = batch.images.clone();
            padded.resize(bytes, 0);
            session.write(inputs.images.bytes, &padded)?;
        }
        session.write(inputs.images.mirror, bytemuck::cast_slice(&batch.mirror))?;
        session.write(inputs.labels, bytemuck::cast_slice(&batch.labels))?;
        if let (Some(sampled), Some(sampler)) = (inputs.sampled, &self.sampler) {
            let sample = sampler.sample(step, &batch.labels)?;
            session.write(sampled.classes, bytemuck::cast_slice(&sample.classes))?;
            session.write(sampled.positions, bytemuck::cast_slice(&sample.positions))?;
        }
        session.write(inputs.lr, bytemuck::bytes_of(&(lr as f32)))?;
        session.write(inputs.seed, bytemuck::bytes_of(&seed))?;
        session.step()?;
        progress.watch.see(&batch.labels);
        progress.flights.push_back(InFlight { step, epoch, lr });
        progress.submitted += 1;
        Ok(())
    }

    /// Takes the results that have arrived; all of them where `wait` is set.
    fn collect(
        &mut self,
        wait: bool,
        progress: &mut Progress,
        folder: &mut RunFolder,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let Some((_, _, session)) = &mut self.session else { return Ok(()) };
        let done = if wait { session.flush()? } else { session.finished()? };
        for finished in done {
            let Some(flight) = progress.flights.pop_front() else { break };
            let result = StepResult::unpack(&finished.values)?;
            if !result.loss.is_finite() || result.nonfinite > 0 {
                return Err(Error::data(
                    format!("step {} (epoch {})", flight.step + 1, flight.epoch),
                    format!(
                        "loss {}, {} gradient elements that are not finite",
                        result.loss, result.nonfinite
                    ),
                    "finite numbers",
                    "lower optim.lr, set optim.clip_norm, or check the images of this batch",
                ));
            }
            progress.sums.add(&result);
            progress.logged_images += self.config.train.batch_size;
            let now = Instant::now();
            let seconds = now.duration_since(progress.logged_at).as_secs_f64();
            let point = StepPoint {
                step: flight.step + 1,
                epoch: flight.epoch,
                loss: f64::from(result.loss),
                lr: flight.lr,
                images_per_second: progress.logged_images as f64 / seconds.max(1e-9),
                grad_norm: f64::from(result.grad_norm),
                loss_scale: 1.0,
                data_wait: progress.waited.as_secs_f64() / seconds.max(1e-9),
                skipped: 0,
            };
            observer.step(&point);
            // The last step always, so that every run has a line of its steps.
            if point.step.is_multiple_of(self.config.train.log_every.max(1)) || point.step == progress.total {
                folder.record(&Record::Step(point))?;
                progress.logged_at = now;
                progress.waited = Duration::ZERO;
                progress.logged_images = 0;
            }
        }
        Ok(())
    }

    /// Runs every verification set on the weights as they are now.
    fn evaluate(
        &self,
        epoch: u32,
        step: u64,
        folder: &mut RunFolder,
        observer: &mut dyn Observer,
    ) -> Result<Vec<VerificationReport>> {
        if self.sets.is_empty() {
            return Ok(Vec::new());
        }
        let mut embedder = Embedder::new(&self.model, EVALUATION_BATCH)?;
        let mut reports = Vec::with_capacity(self.sets.len());
        for set in &self.sets {
            let report = set.evaluate(&mut embedder, &mut |_| {})?;
            folder.record(&Record::Eval(eval_point(&report, step, epoch)))?;
            observer.evaluation(epoch, &report);
            reports.push(report);
        }
        Ok(reports)
    }
}

/// A 64-bit number folded into the 32 bits that the GPU's generator takes as a key.
fn fold(value: u64) -> u32 {
    (value ^ (value >> 32)) as u32
}

/// Where the loop is.
struct Progress {
    /// Steps of the whole run.
    total: u64,
    submitted: u64,
    flights: VecDeque<InFlight>,
    sums: EpochSums,
    watch: PrototypeWatch,
    logged_at: Instant,
    logged_images: usize,
    /// Time since then in which the loader was waited for.
    waited: Duration,
}

impl Progress {
    fn new(total: u64, watch: PrototypeWatch, hard_cosine: f64) -> Self {
        Self {
            total,
            submitted: 0,
            flights: VecDeque::new(),
            sums: EpochSums::new(hard_cosine),
            watch,
            logged_at: Instant::now(),
            logged_images: 0,
            waited: Duration::ZERO,
        }
    }
}
