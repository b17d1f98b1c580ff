//! A process of the soak: how it lives, how it ends, what memory it takes.

use std::fmt::{self, Display};
use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

/// Between two looks at a process.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long a process has to live before its memory says anything.
const SETTLED: Duration = Duration::from_secs(20);
/// And how long from then on: in between GPUs are lost, and what is free then is taken again.
const LONG_ENOUGH: Duration = Duration::from_secs(30);
/// The share by which a process may grow from the first third of its life to the last: allocators keep what they had, the more so
/// with each GPU that was lost.
const MAY_GROW: f64 = 0.25;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Successfully.
    Done,
    /// With an error.
    Failed,
    /// It was killed.
    Killed,
}

/// What is left of a process.
#[derive(Debug)]
pub struct Life {
    pub end: End,
    /// Its standard error.
    pub said: String,
}

impl Life {
    /// How often its GPU was lost.
    pub fn losses(&self) -> u32 {
        self.said.matches("warning: the GPU was lost:").count() as u32
    }

    /// Whether a file could not be written to its end.
    pub fn met_full_disk(&self) -> bool {
        ["File too large", "No space left"].iter().any(|words| self.said.contains(words))
    }
}

/// A process.
pub struct Process {
    child: Child,
    listener: std::thread::JoinHandle<String>,
}

impl Process {
    /// Starts `epl` in `folder`. No file may be longer than `limit`; its GPU is lost as `losses` say.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn start(
        epl: &Path,
        folder: &Path,
        arguments: &[String],
        limit: Option<u64>,
        losses: &str,
    ) -> Result<Self> {
        let mut command = match limit {
            Some(bytes) => {
                // A write beyond fails half way, as it does on a full disk.
                let mut shell = Command::new("sh");
                let script = format!("trap '' XFSZ; ulimit -f {}; exec \"$0\" \"$@\"", bytes / 512);
                shell.args(["-c", &script]).arg(epl);
                shell
            }
            None => Command::new(epl),
        };
        command.args(arguments).current_dir(folder).env("EPL_TEST_LOSE_DEVICE", losses);
        command.env("EPL_KERNEL_CACHE", folder.join("kernels"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| epl.display().to_string())?;
        let stream = child.stderr.take().context("standard error")?;
        let listener = std::thread::spawn(move || {
            let (mut stream, mut said) = (stream, Vec::new());
            // What a killed process leaves may end in the middle of a character.
            drop(stream.read_to_end(&mut said));
            String::from_utf8_lossy(&said).into_owned()
        });
        Ok(Self { child, listener })
    }

    /// Lets it live for at most `most`, then kills it.
    ///
    /// # Errors
    /// Where the system does not tell of it, or its memory grew as that of a process does that lets go of nothing.
    pub fn live(mut self, most: Duration, memory: &mut Memory) -> Result<Life> {
        let started = Instant::now();
        let mut seen = Vec::new();
        let end = loop {
            if let Some(status) = self.child.try_wait()? {
                break if status.success() { End::Done } else { End::Failed };
            }
            if started.elapsed() >= most {
                // SIGKILL: nothing of the program runs after it.
                self.child.kill()?;
                self.child.wait()?;
                break End::Killed;
            }
            seen.extend(resident(self.child.id()).map(|bytes| (started.elapsed(), bytes)));
            std::thread::sleep(LOOK_EVERY);
        };
        let said = self.listener.join().unwrap_or_default();
        if let Some(growth) = memory.take(&seen) {
            ensure!(growth.share() <= MAY_GROW, "a process grew {growth}:\n{said}");
        }
        Ok(Life { end, said })
    }
}

/// Bytes of a process that are in memory, where the system tells: with a software GPU those of its buffers too.
fn resident(process: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib * 1024)
}

/// How the memory of a process changed.
#[derive(Clone, Copy, Debug)]
pub struct Growth {
    lived: Duration,
    /// Median bytes of the first third of its life, and of the last.
    before: u64,
    after: u64,
}

impl Growth {
    /// Of what was seen of a process, when and how many bytes; nothing where it did not live for long.
    fn of(seen: &[(Duration, u64)]) -> Option<Self> {
        let settled: Vec<(Duration, u64)> =
            seen.iter().copied().filter(|(after, _)| *after >= SETTLED).collect();
        let lived = settled.last()?.0;
        if lived < SETTLED + LONG_ENOUGH {
            return None;
        }
        let third = settled.len() / 3;
        let before = median(settled.get(..third)?)?;
        let after = median(settled.get(settled.len() - third..)?)?;
        Some(Self { lived, before, after })
    }

    fn share(&self) -> f64 {
        self.after as f64 / self.before.max(1) as f64 - 1.0
    }
}

impl Display for Growth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "from {:.0} MiB in the first third of its life to {:.0} MiB in the last, of {} s",
            mib(self.before),
            mib(self.after),
            self.lived.as_secs()
        )
    }
}

/// Memory of processes.
#[derive(Debug, Default)]
pub struct Memory {
    peak: u64,
    /// Of the process that grew the most.
    growth: Option<Growth>,
}

impl Memory {
    /// Takes what was seen of a process: when, and how many bytes. Returns how it grew, where it lived for long enough.
    fn take(&mut self, seen: &[(Duration, u64)]) -> Option<Growth> {
        let peak = seen.iter().map(|(_, bytes)| *bytes).max().unwrap_or_default();
        self.peak = self.peak.max(peak);
        let growth = Growth::of(seen)?;
        if self.growth.is_none_or(|most| growth.share() > most.share()) {
            self.growth = Some(growth);
        }
        Some(growth)
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn median(seen: &[(Duration, u64)]) -> Option<u64> {
    let mut bytes: Vec<u64> = seen.iter().map(|(_, bytes)| *bytes).collect();
    bytes.sort_unstable();
    bytes.get(bytes.len() / 2).copied()
}

impl Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.peak == 0 {
            return write!(f, "not known on this system");
        }
        write!(f, "{:.0} MiB at most", mib(self.peak))?;
        if let Some(growth) = self.growth {
            write!(f, "; the process that grew most: {growth}")?;
        }
        Ok(())
    }
}

/// Whether something below `folder` was being written.
pub fn any_partial(folder: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(folder) else { return false };
    entries.flatten().any(|entry| {
        let path = entry.path();
        path.to_string_lossy().ends_with(".partial") || (path.is_dir() && any_partial(&path))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_that_of_the_process_that_grew_most() {
        let mut memory = Memory::default();
        let seen = |from: u64, to: u64| -> Vec<(Duration, u64)> {
            let bytes = |i: u64| (from + (to - from) * i / 59) << 20;
            (0..60).map(|i| (Duration::from_secs(20 + i), bytes(i))).collect()
        };
        let grew = |memory: &mut Memory, from, to| memory.take(&seen(from, to)).unwrap().share();
        assert!(grew(&mut memory, 100, 110) < MAY_GROW);
        assert!(grew(&mut memory, 100, 159) > MAY_GROW);
        assert!(grew(&mut memory, 300, 302) < MAY_GROW);
        // Too short a life says nothing of growth.
        assert!(memory.take(&[(Duration::from_secs(1), 1 << 30)]).is_none());
        assert!(memory.take(&seen(100, 159)[..25]).is_none());
        let text = memory.to_string();
        assert!(text.starts_with("1024 MiB at most"), "{text}");
        let most = "from 110 MiB in the first third of its life to 150 MiB in the last, of 79 s";
        assert!(text.ends_with(most), "{text}");
    }
}
