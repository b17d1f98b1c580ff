//! Stages with a heading before and a time after, and the commands that they run.

use std::fmt::{Display, Write as _};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// The stages run so far, for the summary at the end.
#[derive(Default)]
pub struct Stages {
    finished: Vec<Finished>,
}

struct Finished {
    name: String,
    time: Duration,
    passed: bool,
}

impl Stages {
    /// Runs one stage between its heading and its time.
    ///
    /// # Errors
    /// What `work` failed with, with the stage's name in front.
    pub fn run(&mut self, name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
        say(format_args!("\n==> {name}"));
        let start = Instant::now();
        let outcome = work();
        let (time, passed) = (start.elapsed(), outcome.is_ok());
        say(format_args!("<== {name}: {} in {}", verdict(passed), duration(time)));
        self.finished.push(Finished { name: name.to_owned(), time, passed });
        outcome.with_context(|| format!("{name} failed"))
    }

    /// A line for each stage that was run, and the total.
    pub fn summary(&self) -> String {
        let mut text = String::from("Summary\n");
        for Finished { name, time, passed } in &self.finished {
            // Writing to a `String` cannot fail.
            let _ = writeln!(text, "  {name:<22}{:<8}{:>14}", verdict(*passed), duration(*time));
        }
        let total = self.finished.iter().map(|stage| stage.time).sum();
        let _ = write!(text, "  {:<30}{:>14}", "total", duration(total));
        text
    }
}

fn verdict(passed: bool) -> &'static str {
    if passed { "ok" } else { "FAILED" }
}

/// `4.2 s`, or `3 min 05 s` from a minute on.
pub fn duration(time: Duration) -> String {
    if time < Duration::from_secs(60) {
        format!("{:.1} s", time.as_secs_f64())
    } else {
        format!("{} min {:02} s", time.as_secs() / 60, time.as_secs() % 60)
    }
}

/// Cargo, in the workspace's root: the very one that runs this program, so that `cargo +beta xtask`
/// stays with its toolchain.
pub fn cargo(root: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root);
    command
}

/// Prints a command, runs it and waits for it.
///
/// # Errors
/// The command could not be started, or did not exit with 0.
pub fn run(command: &mut Command) -> Result<()> {
    let line = announce(command);
    let status = command.status().with_context(|| format!("cannot start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` ended with {status}");
    }
    Ok(())
}

/// Builds the package in a folder and returns where its program of this name is.
///
/// # Errors
/// It could not be built, or there is no such program in it.
pub fn build(folder: &Path, name: &str, arguments: &[&str]) -> Result<PathBuf> {
    let mut command = cargo(folder);
    command.args(["build", "--message-format=json-render-diagnostics"]).args(arguments);
    say(format_args!("building in {}", folder.display()));
    let output = command.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    if !output.status.success() {
        bail!("cargo ended with {}", output.status);
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    program(&messages, name).with_context(|| format!("cargo made no program {name}"))
}

/// The program of this name in cargo's messages, which come in any order and tell of programs that come along with it.
fn program(messages: &str, name: &str) -> Option<PathBuf> {
    let mut messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    messages.find_map(|message| {
        let path = message["executable"].as_str()?;
        (message["target"]["name"] == name).then(|| PathBuf::from(path))
    })
}

/// Writes a line to standard output. Unlike `println!` it survives a reader that has gone away.
pub fn say(line: impl Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Prints a command as one would type it, and returns that line without the prompt.
pub fn announce(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_stem().unwrap_or(command.get_program());
    let words = std::iter::once(program).chain(command.get_args());
    let line = words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
    say(format_args!("$ {line}"));
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_readable() {
        assert_eq!(duration(Duration::from_millis(4_249)), "4.2 s");
        assert_eq!(duration(Duration::from_secs(185)), "3 min 05 s");
    }

    #[test]
    fn a_failed_stage_is_named_and_listed() {
        let mut stages = Stages::default();
        stages.run("first", || Ok(())).unwrap();
        let error = stages.run("second", || bail!("no luck")).unwrap_err();
        assert_eq!(format!("{error:#}"), "second failed: no luck");
        let summary = stages.summary();
        let line = |name: &str| summary.lines().find(|line| line.contains(name)).unwrap().to_owned();
        assert!(line("first").contains("ok") && !line("first").contains("FAILED"), "{summary}");
        assert!(line("second").contains("FAILED"), "{summary}");
    }

    #[test]
    fn a_program_is_found_by_its_name() {
        let messages = r#"{"reason": "compiler-artifact", "target": {"name": "epl"}, "executable": null}
            rubbish
            {"reason": "compiler-artifact", "target": {"name": "work"}, "executable": "target/deps/work-1"}
            {"reason": "compiler-artifact", "target": {"name": "epl"}, "executable": "target/epl"}
            {"reason": "build-finished", "success": true}"#;
        assert_eq!(program(messages, "work"), Some("target/deps/work-1".into()));
        assert_eq!(program(messages, "epl"), Some("target/epl".into()));
        assert_eq!(program(messages, "other"), None);
    }

    #[test]
    fn a_command_is_shown_without_the_folder_of_its_program() {
        assert_eq!(announce(Command::new("bin/cargo").args(["fmt", "--all"])), "cargo fmt --all");
    }
}
