//! `epl ops perf`: how fast the kernels are on this device.

use std::fmt::{self, Display};

use clap::Args;
use epl_runtime::check::{Speed, run_speed};
use epl_runtime::probe::roof::Roof;
use serde::Serialize;

use super::Names;
use crate::Result;
use crate::cli::output::{Align, MeasuredRoof, Table, progress};
use crate::cli::{Context, Verdict};

const EXAMPLES: &str = "\
Examples:
  epl ops perf
  epl ops perf prelu add --repeats 31 --device nvidia";

/// Measure every op on realistic sizes
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Perf {
    #[command(flatten)]
    names: Names,
    /// Executions of which the median is shown
    #[arg(long, value_name = "N", default_value_t = 11, value_parser = clap::value_parser!(u16).range(1..))]
    repeats: u16,
}

#[derive(Debug, Serialize)]
struct Measurements {
    device: String,
    roof: MeasuredRoof,
    perf: Vec<Row>,
    /// Cases that could not be measured, for instance because they do not fit into the device's memory.
    failures: Vec<Failure>,
}

#[derive(Debug, Serialize)]
struct Row {
    op: &'static str,
    case: String,
    /// Median milliseconds of one execution.
    ms: f64,
    /// 1e9 floating-point operations a second.
    gflops: f64,
    /// 1e9 bytes a second, every operand read or written once.
    gbytes_per_s: f64,
    /// The time that the roof asks for at least, over the time taken.
    of_roof: f64,
    /// What the case waits for at the roof: "memory", "arithmetic", or "matrix unit" where its kernel uses that.
    bound: &'static str,
    /// Whether the GPU's own clock was used; otherwise the time from outside, with submission and wait.
    gpu_clock: bool,
}

impl Row {
    fn new(op: &'static str, case: String, speed: &Speed, roof: Roof) -> Self {
        let roof = roof.of_unit(speed.matrices);
        let (flops, bytes) = (speed.cost.flops, speed.cost.bytes);
        let bound = match (roof.memory_bound(flops, bytes), speed.matrices) {
            (true, _) => "memory",
            (false, None) => "arithmetic",
            (false, Some(_)) => "matrix unit",
        };
        Self {
            op,
            case,
            ms: speed.seconds * 1e3,
            gflops: flops / speed.seconds / 1e9,
            gbytes_per_s: bytes / speed.seconds / 1e9,
            of_roof: roof.floor(flops, bytes) / speed.seconds,
            bound,
            gpu_clock: speed.gpu_clock,
        }
    }
}

#[derive(Debug, Serialize)]
struct Failure {
    op: &'static str,
    case: String,
    error: String,
}

impl Perf {
    pub fn run(&self, context: &Context) -> Result<Verdict> {
        let ops = self.names.select()?;
        let device = context.open()?;
        let roof = Roof::measure(&device)?;
        let (mut perf, mut failures) = (Vec::new(), Vec::new());
        let bar = progress(ops.len());
        for entry in ops {
            bar.set_message(entry.name);
            for case in (entry.cases)().into_iter().filter(|case| case.perf && case.runs_on(device.caps())) {
                match run_speed(&device, &case, usize::from(self.repeats)) {
                    Ok(speed) => perf.push(Row::new(entry.name, case.label, &speed, roof)),
                    Err(error) => {
                        failures.push(Failure { op: entry.name, case: case.label, error: error.to_string() });
                    }
                }
            }
            bar.inc(1);
        }
        bar.finish_and_clear();
        let verdict = if failures.is_empty() { Verdict::Done } else { Verdict::Failed };
        context.present(&Measurements {
            device: device.description().name.clone(),
            roof: roof.into(),
            perf,
            failures,
        })?;
        Ok(verdict)
    }
}

impl Display for Measurements {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.device)?;
        writeln!(f, "roof: {}", self.roof)?;
        let mut table = Table::new(&[
            ("op", Align::Left),
            ("case", Align::Left),
            ("ms", Align::Right),
            ("GFLOP/s", Align::Right),
            ("GB/s", Align::Right),
            ("% of roof", Align::Right),
            ("bound by", Align::Left),
        ]);
        for row in &self.perf {
            table.row([
                row.op.to_owned(),
                row.case.clone(),
                format!("{:.3}", row.ms),
                format!("{:.1}", row.gflops),
                format!("{:.1}", row.gbytes_per_s),
                format!("{:.0}", 100.0 * row.of_roof),
                row.bound.to_owned(),
            ]);
        }
        write!(f, "{table}")?;
        if self.perf.iter().any(|row| !row.gpu_clock) {
            writeln!(f, "timed from outside, submission and wait included: the device has no timestamps")?;
        }
        for failure in &self.failures {
            writeln!(f, "FAILED {} / {}: {}", failure.op, failure.case, failure.error)?;
        }
        Ok(())
    }
}
