//! Asking a compiler about many modules, on all cores.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::stage::say;

/// How many answers a line of progress stands for.
const PROGRESS: usize = 250;

/// A program that is asked.
pub enum Tool {
    /// One that answers lines (`tests/gate`): its command, and variables of its environment.
    Server { program: PathBuf, arguments: Vec<String>, environment: Vec<(String, String)> },
    /// One that is run for each module, and says by its exit status whether it takes it.
    Once { program: PathBuf },
}

/// What is asked about a module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// No two have the same.
    pub id: String,
    /// To a server the file, the entry point and the profile; else the arguments.
    pub words: Vec<String>,
}

/// A module's figures, or why the tool refuses it.
pub type Answer = std::result::Result<BTreeMap<String, u64>, String>;

/// All answers of a tool.
#[derive(Debug, Default)]
pub struct Answers {
    /// What the tool says that it is.
    pub version: String,
    /// By request.
    pub by_id: BTreeMap<String, Answer>,
    pub time: Duration,
}

/// Asks `tool` everything, in as many processes as there are cores.
///
/// # Errors
/// It cannot be started, or does not answer as it should.
pub fn ask(name: &str, tool: &Tool, requests: &[Request]) -> Result<Answers> {
    let start = Instant::now();
    let cores = std::thread::available_parallelism().map_or(1, usize::from).min(requests.len().max(1));
    let answers = Mutex::new(Answers::default());
    let enter = |id: &str, answer: Answer| {
        let Ok(mut answers) = answers.lock() else { return };
        answers.by_id.insert(id.to_owned(), answer);
        if answers.by_id.len() % PROGRESS == 0 {
            say(format_args!("  {name}: {} of {}", answers.by_id.len(), requests.len()));
        }
    };
    std::thread::scope(|scope| -> Result<()> {
        let workers: Vec<_> = (0..cores)
            .map(|core| {
                // Neighbours are variants of the same kernel: dealt out, all cores have as much to do.
                let own: Vec<&Request> = requests.iter().skip(core).step_by(cores).collect();
                let (enter, answers) = (&enter, &answers);
                scope.spawn(move || -> Result<()> {
                    match tool {
                        Tool::Once { program } => own
                            .iter()
                            .try_for_each(|r| run_once(program, r).map(|answer| enter(&r.id, answer))),
                        Tool::Server { .. } => {
                            let mut rest = own.as_slice();
                            while !rest.is_empty() {
                                let (version, answered) = serve(tool, rest, enter)?;
                                if let Ok(mut answers) = answers.lock() {
                                    answers.version = version;
                                }
                                rest = &rest[answered..];
                                // What it died of is refused, and another process goes on.
                                if let Some((dead, others)) = rest.split_first() {
                                    enter(&dead.id, Err("the tool died of it".into()));
                                    rest = others;
                                }
                            }
                            Ok(())
                        }
                    }
                })
            })
            .collect();
        for worker in workers {
            match worker.join() {
                Ok(outcome) => outcome?,
                Err(_) => bail!("a thread that asks {name} panicked"),
            }
        }
        Ok(())
    })?;
    let mut answers = answers.into_inner().map_err(|_| anyhow::anyhow!("a thread panicked"))?;
    answers.time = start.elapsed();
    Ok(answers)
}

/// Runs a program on one module.
fn run_once(program: &PathBuf, request: &Request) -> Result<Answer> {
    let output = Command::new(program)
        .args(&request.words)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", program.display()))?;
    if output.status.success() {
        return Ok(Ok(BTreeMap::new()));
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Ok(Err(if text.trim().is_empty() { output.status.to_string() } else { text.trim().to_owned() }))
}

/// Asks one process as long as it lives. Returns what it says that it is, and how many requests it answered.
fn serve(tool: &Tool, requests: &[&Request], enter: &dyn Fn(&str, Answer)) -> Result<(String, usize)> {
    let Tool::Server { program, arguments, environment } = tool else { bail!("not a server") };
    let mut child = Command::new(program)
        .args(arguments)
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let (Some(mut to), Some(from)) = (child.stdin.take(), child.stdout.take()) else {
        bail!("{} has no pipes", program.display());
    };
    let mut lines = BufReader::new(from).lines();
    let Some(first) = lines.next().transpose()? else {
        bail!("{} {} does not start", program.display(), arguments.join(" "));
    };
    let version = first.strip_prefix("tool\t").with_context(|| format!("unexpected answer `{first}`"))?;
    let mut answered = 0;
    for request in requests {
        // A pipe that is closed at the other end: the process has died, and the answer that is missing says at what.
        if writeln!(to, "{}\t{}", request.id, request.words.join("\t")).and_then(|()| to.flush()).is_err() {
            break;
        }
        let Some(line) = lines.next().transpose()? else { break };
        let (id, answer) = read_answer(&line)?;
        if id != request.id {
            bail!("asked about {} and answered about {id}", request.id);
        }
        enter(id, answer);
        answered += 1;
    }
    drop(to);
    child.wait()?;
    Ok((version.to_owned(), answered))
}

fn read_answer(line: &str) -> Result<(&str, Answer)> {
    let mut cells = line.split('\t');
    match (cells.next(), cells.next()) {
        (Some(id), Some("ok")) => {
            let figure = |cell: &str| {
                let (name, value) = cell.rsplit_once('=')?;
                Some((name.to_owned(), value.parse().ok()?))
            };
            let figures: Option<BTreeMap<_, _>> = cells.map(figure).collect();
            Ok((id, Ok(figures.with_context(|| format!("unexpected figures in `{line}`"))?)))
        }
        (Some(id), Some("refused")) => Ok((id, Err(cells.collect::<Vec<_>>().join(" ")))),
        _ => bail!("unexpected answer `{line}`"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read() {
        let (id, answer) = read_answer("0001\tok\tinstructions=12\tSpilled VGPRs=0").unwrap();
        assert_eq!((id, answer.unwrap()["instructions"]), ("0001", 12));
        assert_eq!(read_answer("0002\trefused\tbad").unwrap(), ("0002", Err("bad".into())));
        for bad in ["0003", "0003\tmaybe", "0003\tok\tx=y"] {
            assert!(read_answer(bad).is_err(), "{bad}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_server_that_dies_is_started_again() {
        // Answers until it is asked about what it dies of.
        let script = r#"printf 'tool\tshell\n'; while IFS="$(printf '\t')" read -r id word; do
            [ "$word" = die ] && exit 1; [ "$word" = bad ] && printf '%s\trefused\tno\n' "$id" || printf '%s\tok\tn=1\n' "$id"; done"#;
        let tool = Tool::Server {
            program: "sh".into(),
            arguments: vec!["-c".into(), script.into()],
            environment: Vec::new(),
        };
        let words = ["good", "die", "bad", "die", "good", "good", "good", "die"];
        let requests: Vec<Request> = (0..)
            .zip(words)
            .map(|(id, word)| Request { id: format!("{id}"), words: vec![word.into()] })
            .collect();
        let answers = ask("shell", &tool, &requests).unwrap();
        assert_eq!(answers.version, "shell");
        let refused = |id: usize| answers.by_id[&id.to_string()].is_err();
        assert_eq!((0..8).map(refused).collect::<Vec<_>>(), words.map(|word| word != "good"));
        let missing = Tool::Server {
            program: "/no such program".into(),
            arguments: Vec::new(),
            environment: Vec::new(),
        };
        assert!(ask("missing", &missing, &requests).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn a_program_is_run_for_each() {
        let tool = Tool::Once { program: "sh".into() };
        let request =
            |id: &str, script: &str| Request { id: id.into(), words: vec!["-c".into(), script.into()] };
        let requests = [request("a", "exit 0"), request("b", "echo no >&2; exit 1")];
        let answers = ask("sh", &tool, &requests).unwrap();
        assert_eq!(answers.by_id["b"], Err("no".into()));
        assert!(answers.by_id["a"].is_ok());
    }
}
