//! Everything that a run needs, made from its configuration.

use std::sync::Arc;
use std::time::Instant;

use epl_runtime::{Choices, Device, Session};

use crate::checkpoint::Checkpoint;
use crate::config::{Config, NonFinite, Precision};
use crate::data::{Dataset, Loader, LoaderOptions};
use crate::eval::embedder::Embedder;
use crate::eval::pairs::PairSet;
use crate::head::sampling::ClassSampler;
use crate::interchange::tensor_file::TensorSource;
use crate::interchange::weights::WeightsFile;
use crate::model::{HEAD_WEIGHT, Head, Model, ModelSpec};
use crate::nn::Network;
use crate::train::batch::{Room, decide};
use crate::train::plan::{explain_memory, resolve_form};
use crate::train::start::{StartClock, StartSeconds};
use crate::train::state::TrainingState;
use crate::train::step::{ScaleState, StepGraph, StepInputs, StepOptions, class_sampler, record_step};
use crate::{Error, Result};

/// Images embedded at once during evaluation.
pub(super) const EVALUATION_BATCH: usize = 64;

/// A model, its data and everything needed to train it.
pub struct Trainer {
    pub(super) config: Config,
    pub(super) device: Arc<Device>,
    pub(super) dataset: Arc<dyn Dataset>,
    pub(super) loader: Loader,
    pub(super) sets: Arc<[PairSet]>,
    pub(super) model: Model,
    /// What chooses the classes of a step, where they are sampled.
    pub(super) sampler: Option<ClassSampler>,
    /// Whether the session below has the empirical branch.
    pub(super) session: Option<(bool, StepInputs, Session)>,
    pub(super) clock: StartClock,
    /// Where the time until the first step goes.
    pub(super) start_seconds: StartSeconds,
    /// Where to go on from.
    pub(super) start: Option<Checkpoint<TrainingState>>,
    /// Steps between checkpoints; 0 for none but at the ends of epochs.
    pub(super) save_every: u64,
    /// Steps submitted so far, those before a resumption included.
    pub(super) reached: u64,
    /// Steps, epoch and batch of the newest checkpoint.
    pub(super) saved: Option<(u64, u32, u64)>,
}

/// The network that a configuration describes.
pub fn network_of(config: &Config) -> Result<Network> {
    let model = &config.model;
    let named = Network::named(&model.arch)?;
    Ok(Network {
        family: named.family,
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
        accumulate: config.train.accumulate,
        momentum: config.optim.momentum as f32,
        weight_decay: config.optim.weight_decay as f32,
        clip_norm: config.optim.clip_norm as f32,
        clip_head: config.optim.clip_head,
        halt: config.train.nonfinite == NonFinite::Stop,
        empirical,
        precision: config.train.precision,
        seed: config.train.seed,
    }
}

/// The batches of `dataset`, whose images must be of the network's input size: the loader makes sure that all of them
/// are of one size, but does not know which.
fn loader_of(config: &Config, dataset: &Arc<dyn Dataset>) -> Result<Loader> {
    let options = LoaderOptions {
        batch_size: config.train.images_per_step(),
        seed: config.train.seed,
        shuffle: config.data.shuffle,
        augment: config.data.augment.clone(),
    };
    let images = config.train.images_per_step();
    if config.train.accumulate > 1 && dataset.len() < images {
        return Err(Error::usage(
            format!(
                "a step is train.accumulate = {} batches of train.batch_size = {}, {images} images, but the data has {}",
                config.train.accumulate,
                config.train.batch_size,
                dataset.len()
            ),
            "lower train.accumulate or train.batch_size",
        ));
    }
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
    /// Makes the model on `device`, from the seed.
    ///
    /// # Errors
    /// Whatever is wrong with the configuration or with the data as far as they are read, and what does not fit the device.
    pub fn new(
        config: Config,
        device: &Arc<Device>,
        dataset: Arc<dyn Dataset>,
        sets: Vec<PairSet>,
    ) -> Result<Self> {
        let clock = (StartClock::since(Instant::now()), StartSeconds::default());
        let (classes, images) = (dataset.num_classes(), dataset.len());
        let config = decide(&config, classes, images, (device.caps(), &Room::Device(device)), &mut |_| {})?;
        Self::started(config, device, dataset, sets.into(), clock, &mut |_, _| Ok(Choices::new()))
    }

    /// [`Self::new`] in a start of which some time is gone already, with the kernels that `choose` takes, and with a batch
    /// that is decided.
    pub(super) fn started(
        config: Config,
        device: &Arc<Device>,
        dataset: Arc<dyn Dataset>,
        sets: Arc<[PairSet]>,
        (mut clock, mut seconds): (StartClock, StartSeconds),
        choose: &mut dyn FnMut(&Config, &ModelSpec) -> Result<Choices>,
    ) -> Result<Self> {
        config.validate()?;
        device.enter("start");
        let loader = loader_of(&config, &dataset)?;
        let classes = dataset.num_classes();
        seconds.data += clock.lap();
        let config = resolve_form(&config, classes, device.caps())?;
        seconds.plan = clock.lap();
        let spec = spec_of(&config, classes)?;
        let choices = Arc::new(choose(&config, &spec)?);
        seconds.tune = clock.lap();
        let mut model = Model::new(spec, device, config.train.seed)
            .map_err(|error| explain_memory(error, &config, classes, device.caps()))?;
        model.choices = choices;
        seconds.model = clock.lap();
        let compiled = device.counters();
        let sampler = class_sampler(&model.spec, &step_options(&config, false));
        let mut trainer = Self {
            save_every: config.train.checkpoint_every,
            reached: 0,
            saved: None,
            config,
            device: device.clone(),
            dataset,
            loader,
            sets,
            model,
            sampler,
            session: None,
            clock,
            start_seconds: seconds,
            start: None,
        };
        // Whatever does not fit the adapter is found now, before anything is written: the graph with the empirical branch,
        // which is the larger one, that of the first epoch, and the evaluation.
        if let Some(epl) = trainer.config.head.epl
            && epl.start_epoch <= trainer.config.train.epochs
        {
            trainer.session_for(epl.start_epoch)?;
        }
        trainer.session_for(1)?;
        if trainer.config.train.precision == Precision::Mixed {
            ScaleState::INITIAL.write(&trainer.model.store)?;
        }
        // Beside the session, as at an epoch's end.
        if !trainer.sets.is_empty() {
            Embedder::new(&trainer.model, EVALUATION_BATCH).map_err(|error| {
                explain_memory(error, &trainer.config, trainer.dataset.num_classes(), device.caps())
            })?;
        }
        let now = device.counters();
        trainer.start_seconds.pipelines =
            (now.compiled_nanoseconds - compiled.compiled_nanoseconds) as f64 * 1e-9;
        trainer.start_seconds.pipelines_compiled = now.pipelines - compiled.pipelines;
        trainer.start_seconds.session = trainer.clock.lap();
        Ok(trainer)
    }

    /// Sets the model from the weights that the configuration names, if it names any. Returns what a person should know of
    /// it, in lines: above all, whether the head is theirs.
    ///
    /// # Errors
    /// A file that cannot be read, or is of another network.
    pub fn initialize(&self) -> Result<Vec<String>> {
        let Some(path) = &self.config.model.init else { return Ok(Vec::new()) };
        let place = path.display().to_string();
        let file = WeightsFile::open(path)?;
        let left = self.model.load(&file, &place)?;
        let mut lines: Vec<String> = file.notes().iter().map(|line| format!("{place}: {line}")).collect();
        let classes = self.dataset.num_classes();
        let new_head = left.iter().any(|name| name == HEAD_WEIGHT);
        lines.push(match file.shape(HEAD_WEIGHT) {
            _ if left.is_empty() => {
                format!("starting from {place}: network and head of {classes} identities")
            }
            Some(shape) if new_head => format!(
                "starting from {place}: its network, and a new head of {classes} identities; its own has {}",
                shape.first().copied().unwrap_or_default()
            ),
            _ if new_head => {
                format!(
                    "starting from {place}: its network, and a new head of {classes} identities; it has none"
                )
            }
            _ => {
                format!("starting from {place}: network and head, but for {}, which is new", left.join(", "))
            }
        });
        Ok(lines)
    }

    /// Writes checkpoints at least every so many steps, where there is a number.
    pub(super) fn save_at_least_every(&mut self, steps: Option<u64>) {
        self.save_every = match (self.save_every, steps) {
            (every, None) => every,
            (0, Some(steps)) => steps,
            (every, Some(steps)) => every.min(steps),
        };
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
    pub(super) fn summary(&self) -> String {
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

    /// The session for `epoch`, built when the branch changes; the other one's memory is freed first. Returns whether it is
    /// another one than before.
    pub(super) fn session_for(&mut self, epoch: u32) -> Result<bool> {
        let empirical = self.empirical(epoch);
        if self.session.as_ref().is_some_and(|(has, ..)| *has == empirical) {
            return Ok(false);
        }
        self.session = None;
        // What is freed is there again once the device has noticed.
        self.device.finish()?;
        let StepGraph { graph, inputs } =
            record_step(&self.model.spec, &step_options(&self.config, empirical))?;
        let session =
            Session::new(&graph, &self.model.store, self.model.session_options()).map_err(|error| {
                let classes = self.dataset.num_classes();
                explain_memory(error.into(), &self.config, classes, self.device.caps())
            })?;
        self.session = Some((empirical, inputs, session));
        Ok(true)
    }
}
