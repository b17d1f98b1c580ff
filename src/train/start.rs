//! Where the time between the start of a program and its first training step goes.

use std::fmt::{self, Display};
use std::time::Instant;

use serde::Serialize;

/// Seconds of each part of a start, in order.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct StartSeconds {
    /// Options, configuration, and opening the device.
    pub device: f64,
    /// Opening the training set and the verification sets.
    pub data: f64,
    /// Recording and planning the step's graphs, to decide on what the configuration leaves open.
    pub plan: f64,
    /// Timing kernels against each other.
    pub tune: f64,
    /// Allocating the model and giving it its initial values.
    pub model: f64,
    /// Building the sessions: planning, pipelines, buffers, bind groups.
    pub session: f64,
    /// What of that went to the compilation of pipelines.
    pub pipelines: f64,
    /// How many were compiled.
    pub pipelines_compiled: u64,
    /// Checkpoint, run's folder and the first batch.
    pub batch: f64,
    /// Until the first step was handed to the device: the sum of the above, but for `pipelines`, a part of `session`.
    pub first_step: f64,
    /// Until its results were there.
    pub first_result: f64,
}

/// A clock that tells one part from the next.
#[derive(Clone, Copy, Debug)]
pub struct StartClock {
    began: Instant,
    last: Instant,
}

impl StartClock {
    /// A clock of a start that began at `began`.
    pub fn since(began: Instant) -> Self {
        Self { began, last: began }
    }

    /// Seconds since the last call, or the beginning.
    pub fn lap(&mut self) -> f64 {
        let now = Instant::now();
        let seconds = now.duration_since(self.last).as_secs_f64();
        self.last = now;
        seconds
    }

    /// Seconds since the beginning.
    pub fn total(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }
}

impl Display for StartSeconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "first step begun after {:.2} s: ", self.first_step)?;
        let parts = [
            ("device", self.device),
            ("data", self.data),
            ("planning", self.plan),
            ("tuning", self.tune),
            ("initial values", self.model),
            ("session", self.session),
            ("first batch", self.batch),
        ];
        for (index, (name, seconds)) in parts.iter().filter(|(_, seconds)| *seconds > 0.0).enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            write!(f, "{comma}{name} {seconds:.2}")?;
        }
        if self.pipelines_compiled > 0 {
            write!(
                f,
                "; {} kernels built in {:.2} s of the session's",
                self.pipelines_compiled, self.pipelines
            )?;
        }
        write!(f, "; its results after {:.2} s", self.first_result)
    }
}
