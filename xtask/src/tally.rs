//! The number of tests over all test binaries, which Cargo reports only one binary at a time.

use std::fmt;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::stage::announce;

/// Counts summed over the closing lines of the test binaries.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tally {
    binaries: usize,
    passed: usize,
    failed: usize,
    ignored: usize,
}

impl Tally {
    /// Runs `cargo test …`, passes its output on line by line and counts.
    ///
    /// # Errors
    /// The command could not be started or read, or did not exit with 0.
    pub fn run(&mut self, command: &mut Command) -> Result<()> {
        let line = announce(command);
        let mut child =
            command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start `{line}`"))?;
        if let Some(output) = child.stdout.take() {
            let mut output = BufReader::new(output);
            let mut bytes = Vec::new();
            // Lines as bytes: what a test prints need not be UTF-8.
            while output.read_until(b'\n', &mut bytes).with_context(|| format!("cannot read `{line}`"))? > 0 {
                self.count(&String::from_utf8_lossy(&bytes));
                std::io::stdout().write_all(&bytes).context("cannot write to standard output")?;
                bytes.clear();
            }
        }
        let status = child.wait().with_context(|| format!("cannot wait for `{line}`"))?;
        if !status.success() {
            bail!("`{line}` ended with {status}");
        }
        Ok(())
    }

    /// Fails when nothing ran: a filter or a manifest that hides every test must not look like success.
    ///
    /// # Errors
    /// No test has passed so far.
    pub fn require_some(&self) -> Result<()> {
        if self.passed == 0 {
            bail!("no test was run; expected the tests of the whole workspace");
        }
        Ok(())
    }

    /// Adds `test result: ok. 3 passed; 0 failed; 1 ignored; …`; other lines count nothing.
    fn count(&mut self, line: &str) {
        let Some(counts) = line.strip_prefix("test result:") else { return };
        let words: Vec<&str> = counts.split_whitespace().collect();
        self.binaries += 1;
        for pair in words.windows(2) {
            let [number, label] = pair else { continue };
            let Ok(number) = number.parse::<usize>() else { continue };
            match label.trim_end_matches(';') {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { binaries, passed, failed, ignored } = self;
        if *binaries == 0 {
            return f.write_str("No test was run");
        }
        write!(f, "Tests: {passed} passed; {failed} failed; {ignored} ignored; in {binaries} test binaries")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_summed_with_and_without_colour() {
        let mut tally = Tally::default();
        for line in [
            "running 5 tests\n",
            "test result: ok. 3 passed; 0 failed; 2 ignored; 0 measured; 4 filtered out; finished in 0.01s\n",
            "test result: \u{1b}[31mFAILED\u{1b}[m. 10 passed; 1 failed; 0 ignored; 0 measured\n",
        ] {
            tally.count(line);
        }
        assert_eq!(tally, Tally { binaries: 2, passed: 13, failed: 1, ignored: 2 });
    }

    #[test]
    fn a_run_without_tests_fails() {
        let mut tally = Tally::default();
        assert_eq!(tally.to_string(), "No test was run");
        tally.count("test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 9 filtered out\n");
        assert!(tally.require_some().is_err());
        tally.count("test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n");
        assert!(tally.require_some().is_ok());
    }
}
