//! A program that answers requests.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::{Value, json};

/// What a side answered to an item.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Measured {
    /// Seconds of one execution, for every sample.
    pub seconds: Vec<f64>,
    /// Of its kernels alone, where it tells.
    pub kernels: Option<f64>,
    /// Bytes of device memory, where it tells.
    pub bytes: Option<u64>,
}

/// One of those who are compared. Its program is started anew where it ended.
pub struct Side {
    name: String,
    hello: Value,
    command: Command,
    process: Process,
}

/// A program that runs.
struct Process {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    /// Whether it has answered anything but who it is.
    used: bool,
}

impl Side {
    /// Starts `command` and asks who it is.
    ///
    /// # Errors
    /// It cannot be started, or says that it cannot work.
    pub fn start(name: &str, mut command: Command) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let (process, hello) = Process::start(name, &mut command)?;
        Ok(Self { name: name.into(), hello, command, process })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it said of itself.
    pub fn hello(&self) -> &Value {
        &self.hello
    }

    /// Whether it works on a CPU, as it says.
    pub fn is_cpu(&self) -> bool {
        self.hello["cpu"].as_bool().unwrap_or(false)
    }

    /// Who it is, in a line.
    pub fn description(&self) -> String {
        let text = |key: &str| self.hello[key].as_str().unwrap_or_default().to_owned();
        let who = format!("{} {} on {} {}", self.name, text("version"), text("device"), text("driver"));
        [who.trim_end().to_owned(), text("kernels")]
            .into_iter()
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join(", ")
    }

    /// Has it do the work.
    ///
    /// # Errors
    /// What it says it cannot do, or that it is gone.
    pub fn ask(&mut self, request: &Value) -> Result<Measured> {
        let mut line = self.process.exchange(request);
        // What it was asked before may have been its end.
        if line.is_err() && self.process.used {
            self.process = Process::start(&self.name, &mut self.command)?.0;
            line = self.process.exchange(request);
        }
        self.process.used = true;
        measured(&answer(&line?)?)
    }
}

impl Process {
    /// Starts it and asks who it is.
    fn start(name: &str, command: &mut Command) -> Result<(Self, Value)> {
        let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        let (Some(to), Some(from)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("{name} has no standard input and output");
        };
        let mut process = Self { child, to, from: BufReader::new(from), used: false };
        let hello = json!({"kind": "hello", "samples": 1, "seconds": 0.0});
        let line = process.exchange(&hello).and_then(|line| answer(&line));
        let hello = line.with_context(|| format!("{name} does not answer"))?;
        Ok((process, hello))
    }

    /// Its answer, a line; an error where it has ended.
    fn exchange(&mut self, request: &Value) -> Result<String> {
        writeln!(self.to, "{request}").and_then(|()| self.to.flush()).map_err(|_| anyhow!("it has ended"))?;
        let mut line = String::new();
        self.from.read_line(&mut line).context("its answer cannot be read")?;
        if line.is_empty() {
            bail!("it has ended");
        }
        Ok(line)
    }
}

fn answer(line: &str) -> Result<Value> {
    let answer: Value =
        serde_json::from_str(line).with_context(|| format!("it answered `{}`", line.trim_end()))?;
    match answer["error"].as_str() {
        Some(error) => bail!("{error}"),
        None => Ok(answer),
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It ends with its input; should it hang, it is not waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn measured(answer: &Value) -> Result<Measured> {
    let seconds: Vec<f64> =
        answer["seconds"].as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
    if seconds.is_empty() || seconds.iter().any(|s| !(s.is_finite() && *s > 0.0)) {
        bail!("it answered no times: {answer}");
    }
    Ok(Measured { seconds, kernels: answer["kernels"].as_f64(), bytes: answer["bytes"].as_u64() })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn answers_without_times_are_refused() {
        let good = measured(&json!({"seconds": [0.5, 0.25], "kernels": 0.2, "bytes": 7})).unwrap();
        assert_eq!(good, Measured { seconds: vec![0.5, 0.25], kernels: Some(0.2), bytes: Some(7) });
        for bad in
            [json!({}), json!({"seconds": []}), json!({"seconds": [0.0]}), json!({"seconds": [1.0, -1.0]})]
        {
            assert!(measured(&bad).is_err(), "{bad}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_side_that_babbles_or_ends_is_told() {
        let side = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            Side::start("it", command)
        };
        let error = |script: &str| format!("{:#}", side(script).err().unwrap());
        assert!(error("read line; echo nonsense").contains("it answered `nonsense`"));
        assert!(error("exit 3").contains("it has ended"));
        assert!(error("read line; echo '{\"error\": \"no adapter\"}'").contains("no adapter"));
        let mut good =
            side("read a; echo '{\"version\": \"1\"}'; read b; echo '{\"seconds\": [2]}'").unwrap();
        assert!(good.description().starts_with("it 1"));
        assert_eq!(good.ask(&json!({})).unwrap().seconds, [2.0]);
        // It is started again for the next item, and not for ever where it ends at once.
        assert_eq!(good.ask(&json!({})).unwrap().seconds, [2.0]);
        let mut useless = side("read a; echo '{}'; read b").unwrap();
        assert!(useless.ask(&json!({})).is_err());
        let mut broken = side("read a; echo '{}'; read b; echo '{\"error\": \"it panicked\"}'").unwrap();
        for _ in 0..2 {
            assert!(format!("{:#}", broken.ask(&json!({})).unwrap_err()).contains("it panicked"));
        }
    }
}
