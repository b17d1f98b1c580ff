//! `epl bench`: a training step, whole and by op.

use std::fmt::{self, Display};
use std::num::NonZeroUsize;

use serde::Serialize;

use super::super::output::note;
use super::super::output::{Align, MeasuredRoof, Table, bytes};
use super::super::train::NO_AUTOTUNE;
use super::super::{Context, Verdict};
use super::Bench;
use crate::Result;
use crate::config::Config;
use crate::train::StartSeconds;
use crate::train::measure::{OpTime, profile_step};

/// Images a batch where nothing is said.
const BATCH: usize = 32;

#[derive(Debug, Serialize)]
struct Measured {
    device: String,
    arch: String,
    batch: usize,
    precision: String,
    classes: usize,
    epl: bool,
    images_per_second: f64,
    step_ms: Milliseconds,
    /// What a GPU holds for the step.
    peak_bytes: u64,
    launches: usize,
    /// Of a step, the least that any implementation must do.
    flops: f64,
    /// Of the whole step.
    gflops: f64,
    kernels: Vec<OpTime>,
    roof: MeasuredRoof,
    /// Where the time until the first step went.
    start_seconds: StartSeconds,
}

#[derive(Debug, Serialize)]
struct Milliseconds {
    median: f64,
    min: f64,
    max: f64,
}

impl Bench {
    /// Times a training step, then each of its ops.
    pub fn measure_step(&self, context: &Context) -> Result<Verdict> {
        let batch = self.batch.map_or(BATCH, NonZeroUsize::get);
        let mut overrides = vec![
            format!("model.arch={}", self.arch),
            format!("train.batch_size={batch}"),
            format!("train.precision={}", self.precision),
        ];
        if self.epl {
            overrides.push("head.epl.start_epoch=1".into());
        }
        overrides.extend(self.set.iter().cloned());
        overrides.extend(self.no_autotune.then(|| NO_AUTOTUNE.to_owned()));
        // A configuration needs data and a folder; neither is looked at.
        let config = Config::from_toml("data.train = \"-\"\ntrain.out = \"-\"", &overrides)?;
        let classes = self.classes.get();
        let device = context.open()?;
        let opened = context.started.elapsed().as_secs_f64();
        let profile = profile_step(&config, classes, &device, self.steps.get(), &mut |line| note(line))?;
        let images = config.train.images_per_step();
        let median = profile.seconds.median;
        let ms = |seconds: f64| seconds * 1e3;
        context.present(&Measured {
            device: device.description().name.clone(),
            arch: config.model.arch.clone(),
            batch: config.train.batch_size,
            precision: self.precision.clone(),
            classes,
            epl: config.head.epl.is_some(),
            images_per_second: images as f64 / median,
            step_ms: Milliseconds {
                median: ms(median),
                min: ms(profile.seconds.min),
                max: ms(profile.seconds.max),
            },
            peak_bytes: profile.peak_bytes,
            launches: profile.launches,
            flops: profile.flops,
            gflops: profile.flops / median / 1e9,
            start_seconds: StartSeconds {
                device: opened,
                first_step: opened + profile.start.first_step,
                first_result: opened + profile.start.first_result,
                ..profile.start
            },
            kernels: profile.ops,
            roof: profile.roof.into(),
        })?;
        Ok(Verdict::Done)
    }
}

impl Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |key: &str, value: String| writeln!(f, "{key:<14}{value}");
        line("device", self.device.clone())?;
        let epl = if self.epl { " and EPL" } else { "" };
        line("network", format!("{}, batch {}, {}", self.arch, self.batch, self.precision))?;
        line("head", format!("{} identities{epl}", self.classes))?;
        let Milliseconds { median, min, max } = &self.step_ms;
        line(
            "step",
            format!("{median:.1} ms ({min:.1} to {max:.1}), {:.1} images/s", self.images_per_second),
        )?;
        line(
            "work",
            format!(
                "{:.2} GFLOP in {} launches, {:.2} GFLOP/s",
                self.flops / 1e9,
                self.launches,
                self.gflops
            ),
        )?;
        line("GPU memory", bytes(self.peak_bytes))?;
        line("roof", self.roof.to_string())?;
        line("start", self.start_seconds.to_string())?;
        writeln!(f)?;
        let mut table = Table::new(&[
            ("op", Align::Left),
            ("times", Align::Right),
            ("ms", Align::Right),
            ("%", Align::Right),
            ("GFLOP/s", Align::Right),
            ("GB/s", Align::Right),
            ("% of roof", Align::Right),
        ]);
        let total: f64 = self.kernels.iter().map(|op| op.ms).sum();
        let of_roof = |floor: f64, ms: f64| format!("{:.0}", 100.0 * floor / ms.max(f64::MIN_POSITIVE));
        for op in &self.kernels {
            table.row([
                op.name.clone(),
                op.times.to_string(),
                format!("{:.3}", op.ms),
                format!("{:.1}", 100.0 * op.ms / total.max(f64::MIN_POSITIVE)),
                format!("{:.2}", op.gflops),
                format!("{:.2}", op.gbytes_per_s),
                of_roof(op.floor_ms, op.ms),
            ]);
        }
        table.row([
            "sum".into(),
            String::new(),
            format!("{total:.3}"),
            String::new(),
            String::new(),
            String::new(),
            of_roof(self.kernels.iter().map(|op| op.floor_ms).sum(), total),
        ]);
        write!(f, "{table}")
    }
}
