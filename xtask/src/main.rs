//! `cargo xtask`: set-up, demo, tests and benchmarks, the same on Linux, macOS and Windows.

mod adapter;
mod bench;
mod browser;
mod demo;
mod gate;
mod install;
mod os_release;
mod python;
mod soak;
mod stage;
mod tally;
mod toolchain;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;

use crate::stage::{Stages, cargo, run, say};
use crate::tally::Tally;

const HELP: &str = "\
Usage: cargo xtask COMMAND

Commands:
  test            everything that a change must pass: formatting, clippy without a warning, all tests
  demo [ARGS...]  trains a small model on made-up faces and says where its report is; ARGS go to the
                  example mini_train (cargo xtask demo --help lists them)
  bench [ARGS...] measures epl and, where they are installed, its peers on the same work, and prints a
                  table of ratios (cargo xtask bench --help)
  soak [ARGS...]  trains for an hour, disturbed by kills, lost GPUs and full disks, and compares the bits
                  (cargo xtask soak --help)
  gate [ARGS...]  hands every shader to the compilers of all backends and compares the sizes of what they
                  make with those in the repository (cargo xtask gate --help)
  setup           only makes sure that the Rust components, a GPU adapter, a browser for the tests of
                  reports and a Python for those of exported models are there; on Debian and Ubuntu it
                  installs Mesa's software Vulkan driver, Chromium (or Google Chrome) and python3-venv
                  where they are missing
  help            this text

Exit codes: 0 done, 1 failed, 2 wrong usage.
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (command, rest) = match arguments.split_first() {
        Some((command, rest)) => (command.as_str(), rest),
        None => return wrong_usage("no command given"),
    };
    if !["demo", "bench", "gate", "soak"].contains(&command) && !rest.is_empty() {
        return wrong_usage(&format!("`{command}` takes no arguments, found `{}`", rest.join(" ")));
    }
    let root = workspace_root();
    let outcome = match command {
        "test" => Ok(test(&root)),
        "demo" => Ok(demo::demo(&root, rest)),
        "bench" => bench::bench(&root, rest).map_err(|wrong| (wrong, bench::HELP)),
        "gate" => gate::gate(&root, rest).map_err(|wrong| (wrong, gate::HELP)),
        "soak" => soak::soak(&root, rest).map_err(|wrong| (wrong, soak::HELP)),
        "setup" => Ok(set_up(&mut Stages::default())),
        "help" | "--help" | "-h" => {
            print!("{HELP}");
            Ok(Ok(()))
        }
        unknown => return wrong_usage(&format!("there is no command `{unknown}`")),
    };
    match outcome {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            eprintln!("\nxtask: {error:#}");
            ExitCode::FAILURE
        }
        Err((wrong, help)) => {
            eprintln!("xtask: {wrong}\n\n{help}");
            ExitCode::from(2)
        }
    }
}

fn wrong_usage(what: &str) -> ExitCode {
    eprintln!("xtask: {what}\n\n{HELP}");
    ExitCode::from(2)
}

/// The folder of the workspace's `Cargo.toml`: the one above this package. Cargo names the package's
/// folder in the environment of what it runs, so a checkout may be moved after it was built.
fn workspace_root() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    package.parent().map_or_else(|| package.clone(), Path::to_path_buf)
}

/// What the tests need before anything is compiled: minutes of building are wasted otherwise.
fn set_up(stages: &mut Stages) -> Result<()> {
    stages.run("Rust components", toolchain::check)?;
    stages.run("GPU adapter", adapter::ensure)?;
    stages.run("Browser", browser::ensure)?;
    stages.run("Python", python::ensure)
}

fn test(root: &Path) -> Result<()> {
    let mut stages = Stages::default();
    let mut tally = Tally::default();
    let outcome = test_stages(root, &mut stages, &mut tally);
    say(format_args!("\n{}\n{tally}", stages.summary()));
    outcome
}

/// The cheapest stages come first. Clippy and the tests share the development profile, so build
/// scripts and procedural macros are compiled once for both; the examples are left to clippy, which
/// checks them without generating code and linking.
fn test_stages(root: &Path, stages: &mut Stages, tally: &mut Tally) -> Result<()> {
    set_up(stages)?;
    stages.run("Formatting", || run(cargo(root).args(["fmt", "--all", "--check"])))?;
    stages.run("Clippy", || {
        run(cargo(root).args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))
    })?;
    stages.run("Tests", || {
        tally.run(cargo(root).args(["test", "--workspace", "--tests", "--no-fail-fast"]))?;
        tally.require_some()
    })?;
    stages.run("Documentation tests", || {
        tally.run(cargo(root).args(["test", "--workspace", "--doc", "--no-fail-fast"]))
    })
}
