//! `epl ops test` and `epl ops grad`: every case against its reference, and every gradient against finite
//! differences.

use std::fmt::{self, Display};

use clap::{Args, ValueEnum};
use epl_runtime::case::{Case, OpEntry};
use epl_runtime::check::{Deviation, check_kernel, run_case, run_gradient};
use epl_runtime::{Device, DeviceOptions};
use serde::Serialize;

use super::Names;
use crate::Result;
use crate::cli::output::{Align, Table, progress};
use crate::cli::{Context, Verdict};

const TEST_EXAMPLES: &str = "\
Examples:
  epl ops test
  epl ops test prelu add --checks off
  EPL_DEVICE=1 epl ops test --json > test.json";

const GRAD_EXAMPLES: &str = "\
Examples:
  epl ops grad
  epl ops grad prelu --json";

/// Whether the bounds and loop checks are compiled into the shaders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Checks {
    /// With them: an access out of bounds does no harm
    On,
    /// Without, as training runs
    Off,
    /// One after the other
    Both,
}

/// Compare every op with its reference on this device
///
/// Cases of 16-bit floats run where the device has them. /// Each case runs with the shaders' bounds and loop checks and without them, and every element of every output is
/// compared with a reference computed on the CPU in 64-bit floats. The deviation shown is that of the worst element,
/// as a share of what is allowed: above 1 is a failure. Fails where any case does.
#[derive(Debug, Args)]
#[command(after_help = TEST_EXAMPLES)]
pub struct Test {
    #[command(flatten)]
    names: Names,
    /// Shader checks to test with
    #[arg(long, value_enum, default_value_t = Checks::Both)]
    checks: Checks,
}

/// Compare gradients with finite differences; needs no GPU
///
/// Both are computed on the CPU in 64-bit floats. Fails where any case does.
#[derive(Debug, Args)]
#[command(after_help = GRAD_EXAMPLES)]
pub struct Grad {
    #[command(flatten)]
    names: Names,
}

/// What a run over the cases found.
#[derive(Debug, Serialize)]
struct Findings {
    /// The adapter; none for what runs without.
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<String>,
    passed: bool,
    ops: Vec<Row>,
    failures: Vec<Failure>,
}

#[derive(Debug, Serialize)]
struct Row {
    name: &'static str,
    /// Comparisons made: cases, times the settings of the shader checks.
    runs: usize,
    failed: usize,
    /// The worst element of all; none where there was nothing to compare.
    worst: Option<Worst>,
}

#[derive(Clone, Debug, Serialize)]
struct Worst {
    case: String,
    tensor: String,
    index: usize,
    got: f64,
    want: f64,
    /// Share of the allowed deviation; more than 1, or null for NaN, is a failure.
    ratio: f64,
}

#[derive(Debug, Serialize)]
struct Failure {
    op: &'static str,
    /// The case, or the kernel whose declaration differs from its WGSL.
    case: String,
    /// Whether the shader checks were on; none where no shader ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    checks: Option<bool>,
    /// The worst element, where the case ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    worst: Option<Worst>,
    /// What went wrong, where it did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl Test {
    pub fn run(&self, context: &Context) -> Result<Verdict> {
        let ops = self.names.select()?;
        let settings: &[bool] = match self.checks {
            Checks::On => &[true],
            Checks::Off => &[false],
            Checks::Both => &[true, false],
        };
        let open = |&shader_checks| {
            Ok((shader_checks, Device::open(&DeviceOptions { shader_checks, ..context.device_options() })?))
        };
        let devices: Vec<_> = settings.iter().map(open).collect::<Result<_>>()?;
        let name = devices.first().map(|(_, device)| device.description().name.clone());

        let mut findings = Findings::new(name);
        let bar = progress(ops.len());
        for entry in &ops {
            bar.set_message(entry.name);
            let mut row = Row::new(entry);
            for kernel in entry.kernels {
                for fault in check_kernel(kernel) {
                    findings.fail(&mut row, kernel.shader, None, Err(fault));
                }
            }
            for case in (entry.cases)().iter().filter(|case| !case.perf) {
                for (checks, device) in devices.iter().filter(|(_, device)| case.runs_on(device.caps())) {
                    let found = run_case(device, case).map_err(|error| error.to_string());
                    findings.add(&mut row, case, Some(*checks), found);
                }
            }
            findings.ops.push(row);
            bar.inc(1);
        }
        bar.finish_and_clear();
        findings.present(context)
    }
}

impl Grad {
    pub fn run(&self, context: &Context) -> Result<Verdict> {
        let ops = self.names.select()?;
        let mut findings = Findings::new(None);
        let bar = progress(ops.len());
        for entry in &ops {
            bar.set_message(entry.name);
            let mut row = Row::new(entry);
            for case in (entry.cases)().iter().filter(|case| !case.perf) {
                if let Some(found) = run_gradient(case).map_err(|error| error.to_string()).transpose() {
                    findings.add(&mut row, case, None, found);
                }
            }
            findings.ops.push(row);
            bar.inc(1);
        }
        bar.finish_and_clear();
        findings.present(context)
    }
}

impl Findings {
    fn new(device: Option<String>) -> Self {
        Self { device, passed: true, ops: Vec::new(), failures: Vec::new() }
    }

    /// Enters one comparison.
    fn add(&mut self, row: &mut Row, case: &Case, checks: Option<bool>, found: Result<Deviation, String>) {
        row.runs += 1;
        if let Ok(deviation) = &found
            && row.worst.as_ref().is_none_or(|worst| severity(deviation.ratio) > severity(worst.ratio))
        {
            row.worst = Some(Worst::new(&case.label, deviation));
        }
        if !found.as_ref().is_ok_and(Deviation::passes) {
            self.fail(row, &case.label, checks, found);
        }
    }

    fn fail(&mut self, row: &mut Row, case: &str, checks: Option<bool>, found: Result<Deviation, String>) {
        row.failed += 1;
        self.passed = false;
        let (worst, error) = match found {
            Ok(deviation) => (Some(Worst::new(case, &deviation)), None),
            Err(error) => (None, Some(error)),
        };
        self.failures.push(Failure { op: row.name, case: case.to_owned(), checks, worst, error });
    }

    fn present(&self, context: &Context) -> Result<Verdict> {
        context.present(self)?;
        Ok(if self.passed { Verdict::Done } else { Verdict::Failed })
    }
}

/// Orders deviations: NaN is the worst of all.
fn severity(ratio: f64) -> f64 {
    if ratio.is_nan() { f64::INFINITY } else { ratio }
}

impl Row {
    fn new(entry: &OpEntry) -> Self {
        Self { name: entry.name, runs: 0, failed: 0, worst: None }
    }
}

impl Worst {
    fn new(case: &str, deviation: &Deviation) -> Self {
        Self {
            case: case.to_owned(),
            tensor: deviation.tensor.clone(),
            index: deviation.index,
            got: deviation.got,
            want: deviation.want,
            ratio: deviation.ratio,
        }
    }
}

impl Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(device) = &self.device {
            writeln!(f, "{device}")?;
        }
        let mut table = Table::new(&[
            ("op", Align::Left),
            ("runs", Align::Right),
            ("failed", Align::Right),
            ("worst/allowed", Align::Right),
            ("in case", Align::Left),
        ]);
        for row in &self.ops {
            let (ratio, case) = match &row.worst {
                Some(worst) => (format!("{:.3}", worst.ratio), worst.case.clone()),
                None => ("-".to_owned(), String::new()),
            };
            table.row([row.name.to_owned(), row.runs.to_string(), row.failed.to_string(), ratio, case]);
        }
        write!(f, "{table}")?;
        for failure in &self.failures {
            writeln!(f, "FAILED {failure}")?;
        }
        let runs: usize = self.ops.iter().map(|row| row.runs).sum();
        writeln!(f, "{} ops, {runs} runs, {} failures", self.ops.len(), self.failures.len())
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} / {}", self.op, self.case)?;
        if let Some(checks) = self.checks {
            write!(f, " (checks {})", if checks { "on" } else { "off" })?;
        }
        if let Some(Worst { tensor, index, got, want, ratio, .. }) = &self.worst {
            write!(f, ": {tensor} [{index}]: got {got:e}, expected {want:e}, {ratio:.3} of what is allowed")?;
        }
        if let Some(error) = &self.error {
            write!(f, ": {error}")?;
        }
        Ok(())
    }
}
