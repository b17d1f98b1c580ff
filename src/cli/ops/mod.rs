//! `epl ops`: every kernel's coverage, correctness, gradients and speed on this device.

mod dump;
mod list;
mod perf;
mod test;

use clap::{Args, Subcommand};
use epl_runtime::case::OpEntry;
use epl_runtime::check::select;

use super::{Context, Verdict};
use crate::{Error, Result, eval, head};

const EXAMPLES: &str = "\
Examples:
  epl ops list                   what there is
  epl ops test prelu add         compare two ops with their references
  epl ops grad                   gradients against finite differences; needs no GPU
  epl ops perf --json            speed of every op
  epl ops dump --out shaders     the WGSL of every kernel; needs no GPU";

/// Look at, test and measure the kernels on this device
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Ops {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    List(list::List),
    Test(test::Test),
    Grad(test::Grad),
    Perf(perf::Perf),
    Dump(dump::Dump),
}

impl Ops {
    pub fn run(&self, context: &Context) -> Result<Verdict> {
        match &self.command {
            Command::List(command) => command.run(context),
            Command::Test(command) => command.run(context),
            Command::Grad(command) => command.run(context),
            Command::Perf(command) => command.run(context),
            Command::Dump(command) => command.run(context),
        }
    }
}

/// The ops that a command is about.
#[derive(Debug, Args)]
struct Names {
    /// Names of ops, as `epl ops list` shows them [default: all]
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

impl Names {
    fn select(&self) -> Result<Vec<OpEntry>> {
        let ops = all_ops();
        let chosen = select(&ops, &self.names)
            .map_err(|error| Error::usage(error.to_string(), error.hint().unwrap_or("see `epl ops list`")))?;
        Ok(chosen.into_iter().copied().collect())
    }
}

/// Every op: the runtime's, the heads' and those of evaluation, sorted by name.
pub fn all_ops() -> Vec<OpEntry> {
    let mut ops = [epl_runtime::ops::REGISTRY, head::REGISTRY, eval::ops::REGISTRY].concat();
    ops.sort_by_key(|entry| entry.name);
    ops
}
