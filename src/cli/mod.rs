//! The `epl` command line: one file a command.
//!
//! A command's result goes to standard output, as text or with `--json` as one JSON object; progress and messages
//! go to standard error. The exit code is 0 where the command did what was asked, 1 where it failed and 2 where it
//! was used wrongly.

mod bench;
mod convert;
mod data;
mod device;
mod devices;
mod embed;
mod eval;
mod export;
mod ops;
mod output;
mod plan;
mod train;

use std::fmt::Display;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use clap::{CommandFactory, Parser, Subcommand};
use epl_runtime::guard::is_guarded;
use epl_runtime::{Device, DeviceOptions};
use serde::Serialize;

pub use device::DeviceArguments;

use crate::Result;

const EXAMPLES: &str = "\
Examples:
  epl devices                    which GPUs there are, and what they can do
  epl plan config.toml           how much memory a run needs, before it is started
  epl train config.toml          train
  epl ops test                   compare every kernel with its reference on this device

`epl COMMAND --help` has an example of each command.";

/// Trains face recognition networks with empirical prototype learning, on any GPU with Vulkan, Metal or DX12.
#[derive(Debug, Parser)]
#[command(name = "epl", version, arg_required_else_help = true, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    context: Context,
    #[command(subcommand)]
    command: Command,
}

/// The options that every command takes.
#[derive(Debug, clap::Args)]
struct Context {
    #[command(flatten)]
    device: DeviceArguments,
    /// Print the result as one JSON object on standard output
    #[arg(long, global = true)]
    json: bool,
    /// Where compiled kernels are kept between calls, or `off` [default: epl/kernels in the system's cache folder]
    #[arg(long, global = true, env = "EPL_KERNEL_CACHE", value_name = "DIR|off", hide_env_values = true)]
    kernel_cache: Option<PathBuf>,
    /// When the program was started.
    #[arg(skip = Instant::now())]
    started: Instant,
}

#[derive(Debug, Subcommand)]
enum Command {
    Devices(devices::Devices),
    Train(train::Train),
    Plan(plan::Plan),
    Embed(embed::Embed),
    Eval(eval::Eval),
    Ops(ops::Ops),
    Export(export::Export),
    Convert(convert::Convert),
    Data(data::Data),
    Bench(bench::Bench),
}

/// How a command that ran to its end came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// It did what was asked.
    Done,
    /// What it checked is not as it should be; its result says what.
    Failed,
}

impl Context {
    /// How to open the adapter that the user chose.
    fn device_options(&self) -> DeviceOptions {
        DeviceOptions {
            cache: self.kernel_cache(),
            warnings: Some(|line| output::note(format_args!("warning: {line}"))),
            ..self.device.options()
        }
    }

    /// The folder in which compiled kernels are kept, where they are.
    fn kernel_cache(&self) -> Option<PathBuf> {
        use etcetera::base_strategy::{BaseStrategy, choose_native_strategy};
        match &self.kernel_cache {
            Some(folder) if folder.as_os_str() == "off" => None,
            // An empty variable is one that is not set.
            Some(folder) if !folder.as_os_str().is_empty() => Some(folder.clone()),
            _ => Some(choose_native_strategy().ok()?.cache_dir().join("epl").join("kernels")),
        }
    }

    /// Opens that adapter.
    fn open(&self) -> Result<Arc<Device>> {
        Ok(Device::open(&self.device_options())?)
    }

    /// Prints a command's result.
    fn present(&self, result: &(impl Display + Serialize)) -> Result<()> {
        output::present(result, self.json)
    }
}

impl Command {
    fn run(&self, context: &Context) -> Result<Verdict> {
        match self {
            Self::Devices(command) => command.run(context),
            Self::Train(command) => command.run(context),
            Self::Plan(command) => command.run(context),
            Self::Embed(command) => command.run(context),
            Self::Eval(command) => command.run(context),
            Self::Ops(command) => command.run(context),
            Self::Export(command) => command.run(context),
            Self::Convert(command) => command.run(context),
            Self::Data(command) => command.run(context),
            Self::Bench(command) => command.run(context),
        }
    }
}

/// The definition of the command line, from which shell completions and man pages can be made.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Panics that are caught, and become errors, need no words of their own on standard error.
fn keep_quiet_about_guarded_panics() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !is_guarded() {
            tell(panic);
        }
    }));
}

/// Runs the command that the process's arguments ask for.
pub fn main() -> ExitCode {
    keep_quiet_about_guarded_panics();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(message) => {
            // Help, the version, or an error of usage; a closed stream leaves nobody to tell.
            drop(message.print());
            return ExitCode::from(u8::try_from(message.exit_code()).unwrap_or(2));
        }
    };
    match cli.command.run(&cli.context) {
        Ok(Verdict::Done) => ExitCode::SUCCESS,
        Ok(Verdict::Failed) => ExitCode::FAILURE,
        Err(error) => {
            output::report(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_definition_is_consistent() {
        super::command().debug_assert();
    }
}
