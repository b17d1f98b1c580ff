//! What types cannot say: ranges, and what this version does not support.

use std::f64::consts::FRAC_PI_2;
use std::fmt::Display;

use super::{AUTO, Config, Schedule};
use crate::data::augment::Change;
use crate::head::{HeadForm, HeadKind};
use crate::nn::network::{MAX_BLOCKS, MAX_EMBEDDING, MAX_INPUT, MAX_WIDTH, Network, architectures};
use crate::{Error, Result};

/// Most samples a batch.
const MAX_BATCH: usize = 65_536;
/// Most classes.
const MAX_CLASSES: usize = 1 << 24;

/// Fails with the key, what was found and what was expected unless `ok`.
fn require(ok: bool, key: &str, found: impl Display, expected: &str) -> Result<()> {
    if ok {
        return Ok(());
    }
    Err(Error::usage(
        format!("`{key}`: found {found}; expected {expected}"),
        "correct the value in the configuration file or in --set",
    ))
}

impl Config {
    /// Checks every value that has a range.
    ///
    /// # Errors
    /// [`Error::Usage`] for the first value that is wrong, naming its key.
    pub fn validate(&self) -> Result<()> {
        self.validate_required()?;
        self.validate_model()?;
        self.validate_head()?;
        self.validate_data()?;
        self.validate_optim()?;
        self.validate_train()
    }

    fn validate_required(&self) -> Result<()> {
        let keys = [
            ("data.train", &self.data.train, "a folder of folders or a .rec file"),
            ("train.out", &self.train.out, "the folder to write the run into"),
        ];
        for (key, path, what) in keys {
            if path.as_os_str().is_empty() {
                return Err(Error::usage(
                    format!("`{key}` is missing; expected {what}"),
                    format!("add it to the configuration, or give --set {key}=PATH"),
                ));
            }
        }
        Ok(())
    }

    fn validate_model(&self) -> Result<()> {
        let model = &self.model;
        let arch = model.arch.as_str();
        let known = architectures();
        if !known.contains(&arch) {
            let nearest = known.iter().min_by_key(|known| strsim::damerau_levenshtein(arch, known));
            return Err(Error::usage(
                format!("`model.arch`: found \"{arch}\"; expected one of {}", known.join(", ")),
                format!("the nearest known network is \"{}\"", nearest.copied().unwrap_or_default()),
            ));
        }
        let [height, width] = model.input;
        let whole = |extent: usize| (1..=MAX_INPUT).contains(&extent) && extent.is_multiple_of(16);
        require(
            whole(height) && whole(width),
            "model.input",
            format!("[{height}, {width}]"),
            &format!("a height and a width above 0 and at most {MAX_INPUT}, both divisible by 16"),
        )?;
        require(
            (1..=MAX_EMBEDDING).contains(&model.embedding),
            "model.embedding",
            model.embedding,
            &format!("1 to {MAX_EMBEDDING}"),
        )?;
        require(
            (0.0..1.0).contains(&model.dropout),
            "model.dropout",
            model.dropout,
            "0 or more and less than 1",
        )?;
        require(
            (1..=MAX_WIDTH).contains(&model.width),
            "model.width",
            model.width,
            &format!("1 to {MAX_WIDTH}"),
        )?;
        let step = Network::named(arch)?.family.width_step();
        require(
            model.width.is_multiple_of(step),
            "model.width",
            model.width,
            &format!("a multiple of {step} for {arch}"),
        )?;
        if let Some(blocks) = model.blocks {
            require(
                blocks.iter().all(|count| (1..=MAX_BLOCKS).contains(count)),
                "model.blocks",
                format!("{blocks:?}"),
                &format!("1 to {MAX_BLOCKS} blocks in each layer"),
            )?;
        }
        Ok(())
    }

    fn validate_head(&self) -> Result<()> {
        let head = &self.head;
        match head.kind {
            HeadKind::Softmax => {
                require(
                    head.margin.is_finite(),
                    "head.margin",
                    head.margin,
                    "a finite number (softmax ignores it)",
                )?;
            }
            HeadKind::CosFace | HeadKind::UniFace => {
                require((0.0..1.0).contains(&head.margin), "head.margin", head.margin, "a cosine in [0, 1)")?;
            }
            HeadKind::ArcFace => require(
                (0.0..FRAC_PI_2).contains(&head.margin),
                "head.margin",
                head.margin,
                "an angle in radians in [0, pi/2)",
            )?,
        }
        require(head.scale > 0.0 && head.scale.is_finite(), "head.scale", head.scale, "a number above 0")?;
        require(
            head.sample_rate > 0.0 && head.sample_rate <= 1.0,
            "head.sample_rate",
            head.sample_rate,
            "a share of the classes above 0 and at most 1",
        )?;
        let sampled = head.sample_rate < 1.0;
        require(
            !(sampled && head.form == HeadForm::Materialized),
            "head.form",
            "\"materialized\" together with a head.sample_rate below 1",
            "\"tiled\" or \"auto\": only the tiled form takes some of the classes",
        )?;
        let dimension = self.model.embedding;
        require(
            dimension.is_multiple_of(4) || !(sampled || head.form == HeadForm::Tiled),
            "model.embedding",
            dimension,
            "a multiple of 4, which the tiled form of the head needs",
        )?;
        if let Some(epl) = head.epl {
            require((0.0..=1.0).contains(&epl.k), "head.epl.k", epl.k, "a number in [0, 1]")?;
            require(
                epl.start_epoch >= 1,
                "head.epl.start_epoch",
                epl.start_epoch,
                "1 or more (epochs count from 1)",
            )?;
        }
        Ok(())
    }

    fn validate_data(&self) -> Result<()> {
        let data = &self.data;
        if let Some(classes) = data.num_classes {
            require(
                (2..=MAX_CLASSES).contains(&classes),
                "data.num_classes",
                classes,
                &format!("2 to {MAX_CLASSES}"),
            )?;
        }
        for (index, augment) in data.augment.iter().enumerate() {
            if let Some(fault) = augment.out_of_range() {
                let key = format!("data.augment[{index}].{}", fault.key);
                require(false, &key, fault.found, &fault.expected)?;
            }
        }
        let mirrors = data.augment.iter().filter(|augment| augment.change == Change::Mirror).count();
        require(
            mirrors <= 1,
            "data.augment",
            format!("\"mirror\" {mirrors} times"),
            "it once, since twice mirrored is not mirrored",
        )
    }

    fn validate_optim(&self) -> Result<()> {
        let optim = &self.optim;
        let not_negative = |value: f64| value >= 0.0 && value.is_finite();
        let positive = |value: f64| value > 0.0 && value.is_finite();
        require(positive(optim.lr), "optim.lr", optim.lr, "a number above 0")?;
        require(
            (0.0..1.0).contains(&optim.momentum),
            "optim.momentum",
            optim.momentum,
            "0 or more and less than 1",
        )?;
        require(not_negative(optim.weight_decay), "optim.weight_decay", optim.weight_decay, "0 or more")?;
        require(not_negative(optim.clip_norm), "optim.clip_norm", optim.clip_norm, "0 (off) or more")?;
        match &optim.schedule {
            Schedule::Multistep { milestones, gamma } => {
                require(
                    milestones.first().is_none_or(|&first| first > 0)
                        && milestones.windows(2).all(|pair| pair[0] < pair[1]),
                    "optim.schedule.milestones",
                    format!("{milestones:?}"),
                    "ascending numbers of epochs, 1 or more",
                )?;
                require(positive(*gamma), "optim.schedule.gamma", gamma, "a number above 0")
            }
            Schedule::Polynomial { power, warmup_epochs } => {
                require(positive(*power), "optim.schedule.power", power, "a number above 0")?;
                self.validate_warmup(*warmup_epochs)
            }
            Schedule::Cosine { warmup_epochs } => self.validate_warmup(*warmup_epochs),
            Schedule::Constant => Ok(()),
        }
    }

    fn validate_warmup(&self, warmup_epochs: f64) -> Result<()> {
        require(
            (0.0..f64::from(self.train.epochs.max(1))).contains(&warmup_epochs),
            "optim.schedule.warmup_epochs",
            warmup_epochs,
            &format!("0 or more and less than train.epochs = {}", self.train.epochs),
        )
    }

    fn validate_train(&self) -> Result<()> {
        let train = &self.train;
        require(train.epochs >= 1, "train.epochs", train.epochs, "1 or more")?;
        // Batch normalisation of one sample a channel has no variance.
        require(
            train.batch_size == AUTO || (2..=MAX_BATCH).contains(&train.batch_size),
            "train.batch_size",
            train.batch_size,
            &format!("2 to {MAX_BATCH}, or \"auto\""),
        )?;
        require(
            train.batch_size != AUTO || train.accumulate == 1,
            "train.accumulate",
            train.accumulate,
            "1, or left out: with train.batch_size = \"auto\" it is decided with the batch, for a step of optim.lr_batch \
             images, or 512",
        )?;
        require(train.accumulate >= 1, "train.accumulate", train.accumulate, "1 or more")?;
        require(
            train.images_per_step() <= MAX_BATCH,
            "train.accumulate",
            format!("{} batches of {}", train.accumulate, train.batch_size),
            &format!("at most {MAX_BATCH} images a step"),
        )?;
        require(train.log_every >= 1, "train.log_every", train.log_every, "1 or more")?;
        require(
            (-1.0..=1.0).contains(&train.hard_cosine),
            "train.hard_cosine",
            train.hard_cosine,
            "a cosine in [-1, 1]",
        )?;
        require(train.keep_checkpoints >= 1, "train.keep_checkpoints", train.keep_checkpoints, "1 or more")
    }
}
