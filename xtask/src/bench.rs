//! `cargo xtask bench`: epl and its peers on the same work, in one run.
//!
//! Every side is a program that answers requests on its standard input, a JSON object a line (`benches/work.rs` says what). They
//! are all started first and then asked in turn, item by item and round by round, so that whatever else the machine does
//! meets all of them alike, and only one works at a time.

mod items;
mod side;
mod table;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::stage::{build, say};
use items::{Item, Sizes, items};
use side::Side;
use table::Results;

pub const HELP: &str = "\
Usage: cargo xtask bench [OPTIONS]

Measures epl and, where they are installed, its peers on the same work, and prints a table of ratios.

Options:
  --only KINDS       of matmul, conv, step, head, with commas between [default: all]
  --peers PEERS      of burn, pytorch, pytorch-autocast, pytorch-compile, with commas between, or none
                     [default: burn and pytorch, on CUDA pytorch-compile too; in mixed pytorch-autocast]
  --precision P      f32 or mixed [default: f32]; in mixed, epl meets pytorch-autocast
  --batch N          images of a convolution and of a step [default: 128; on a CPU adapter 4]
  --rounds N         times that every side is asked for an item [default: 3]
  --shapes SHAPES    of convolutions: main, one of each kind in IR-50, or all that it has [default: main]
  --tune WHEN        choose epl's kernels by measuring: auto (on GPUs, as epl train does), on or off [default: auto]
  --quick            the smaller half of the items, one round
  --python PATH      the Python that has torch [default: EPL_BENCH_PYTHON, or python3]
  --runner COMMAND   put in front of epl and burn, to give both the same device or driver: `taskset -c 0`,
                     `prime-run`, `chroot FOLDER`
  --json FILE        also write the results there
  --help             this text

`EPL_DEVICE` chooses epl's adapter. burn is built first where it was not: some minutes.

Example:
  cargo xtask bench --only conv,step --peers burn
";

/// What was asked for.
#[derive(Debug, Default, PartialEq)]
struct Options {
    only: Vec<String>,
    peers: Option<Vec<String>>,
    mixed: bool,
    batch: Option<usize>,
    rounds: Option<usize>,
    quick: bool,
    all_shapes: bool,
    tune: Option<String>,
    python: Option<String>,
    runner: Option<String>,
    json: Option<PathBuf>,
}

const KINDS: [&str; 4] = ["matmul", "conv", "step", "head"];
const TUNE: [&str; 3] = ["auto", "on", "off"];
const PEERS: [&str; 4] = ["burn", "pytorch", "pytorch-autocast", "pytorch-compile"];

impl Options {
    /// Reads the arguments.
    ///
    /// # Errors
    /// In words, what is wrong with them.
    fn parse(arguments: &[String]) -> std::result::Result<Self, String> {
        let mut options = Self::default();
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().cloned().ok_or(format!("`{argument}` takes a value"));
            let list = |text: String, known: &[&str]| -> std::result::Result<Vec<String>, String> {
                let words = text.split(',').filter(|word| *word != "none").map(String::from);
                let words: Vec<String> = words.collect();
                match words.iter().find(|word| !known.contains(&word.as_str())) {
                    Some(word) => Err(format!("`{word}` is none of {}", known.join(", "))),
                    None => Ok(words),
                }
            };
            let number = |text: String| match text.parse() {
                Ok(number) if number > 0 => Ok(number),
                _ => Err(format!("`{argument} {text}`: expected a number of at least 1")),
            };
            match argument.as_str() {
                "--only" => options.only = list(value()?, &KINDS)?,
                "--peers" => options.peers = Some(list(value()?, &PEERS)?),
                "--precision" => {
                    options.mixed = match value()?.as_str() {
                        "f32" => false,
                        "mixed" => true,
                        other => return Err(format!("precision `{other}`; expected f32 or mixed")),
                    }
                }
                "--batch" => options.batch = Some(number(value()?)?),
                "--rounds" => options.rounds = Some(number(value()?)?),
                "--shapes" => {
                    options.all_shapes = match value()?.as_str() {
                        "main" => false,
                        "all" => true,
                        other => return Err(format!("shapes `{other}`; expected main or all")),
                    }
                }
                "--tune" => match value()? {
                    when if TUNE.contains(&when.as_str()) => options.tune = Some(when),
                    other => return Err(format!("`{other}` is none of {}", TUNE.join(", "))),
                },
                "--quick" => options.quick = true,
                "--python" => options.python = Some(value()?),
                "--runner" => options.runner = Some(value()?),
                "--json" => options.json = Some(value()?.into()),
                unknown => return Err(format!("there is no option `{unknown}`")),
            }
        }
        Ok(options)
    }

    /// A program, with what was to be put in front of it.
    fn command(&self, program: &Path) -> Command {
        let mut words = self.runner.iter().flat_map(|runner| runner.split_whitespace());
        let Some(first) = words.next() else { return Command::new(program) };
        let mut command = Command::new(first);
        command.args(words).arg(program);
        command
    }

    fn wants(&self, kind: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == kind)
    }
}

/// Runs the benchmarks; `Err` of the first kind for wrong usage, in words.
pub fn bench(root: &Path, arguments: &[String]) -> std::result::Result<Result<()>, String> {
    if arguments.iter().any(|argument| argument == "--help" || argument == "-h") {
        print!("{HELP}");
        return Ok(Ok(()));
    }
    let options = Options::parse(arguments)?;
    Ok(measure(root, &options))
}

fn measure(root: &Path, options: &Options) -> Result<()> {
    let program = build(root, "work", &["--release", "--bench", "work"])?;
    let mut command = options.command(&program);
    command.args(["--serve", "--tune", options.tune.as_deref().unwrap_or("auto"), "--kernel-cache"]);
    // Not that of the user, in which runs keep what they were started with.
    command.arg(root.join("target").join("bench-kernels"));
    let ours = Side::start("epl", command)?;
    let (cpu, cuda) = (ours.is_cpu(), has_cuda(options));
    let mut sides = vec![ours];
    let wanted = options.peers.clone().unwrap_or_else(|| default_peers(options.mixed, cuda));
    for peer in &wanted {
        match start_peer(root, peer, cpu, options) {
            Ok(side) => sides.push(side),
            // A peer that is not there is left out, with a word.
            Err(error) => say(format_args!("without {peer}: {error:#}")),
        }
    }
    for side in &sides {
        say(format_args!("{}", side.description()));
    }
    let sizes = Sizes { batch: options.batch, cpu, quick: options.quick, all_shapes: options.all_shapes };
    let wanted: Vec<Item> = items(&sizes).into_iter().filter(|item| options.wants(item.kind)).collect();
    if wanted.is_empty() {
        bail!("nothing is left to measure");
    }
    let rounds = options.rounds.unwrap_or(if options.quick { 1 } else { 3 });
    let mut results = Results::new(&sides);
    for item in &wanted {
        say(format_args!("{}", item.name));
        let mut row = results.row(item);
        for _ in 0..rounds {
            for (index, side) in sides.iter_mut().enumerate() {
                if row.is_open(index) {
                    row.enter(index, side.ask(&item.request(options.mixed, cpu)));
                }
            }
        }
        results.push(row);
    }
    say(format_args!("\n{results}"));
    if let Some(path) = &options.json {
        let text = results.to_json(commit(root).as_deref());
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
        say(format_args!("results: {}", path.display()));
    }
    Ok(())
}

fn default_peers(mixed: bool, cuda: bool) -> Vec<String> {
    let names: &[&str] = match (mixed, cuda) {
        (true, _) => &["pytorch-autocast"],
        (false, false) => &["burn", "pytorch"],
        (false, true) => &["burn", "pytorch", "pytorch-compile"],
    };
    names.iter().map(ToString::to_string).collect()
}

fn python_of(options: &Options) -> String {
    let variable = std::env::var("EPL_BENCH_PYTHON").ok();
    options.python.clone().or(variable).unwrap_or_else(|| "python3".into())
}

/// Whether that Python's torch sees a GPU.
fn has_cuda(options: &Options) -> bool {
    let script = "import torch; assert torch.cuda.is_available()";
    let output = Command::new(python_of(options)).args(["-c", script]).output();
    output.is_ok_and(|output| output.status.success())
}

fn start_peer(root: &Path, peer: &str, cpu: bool, options: &Options) -> Result<Side> {
    let folder = root.join("benches").join("peers");
    if peer == "burn" {
        let program = build(&folder.join("burn"), "epl-bench-burn", &["--release", "--locked"])
            .context("it cannot be built")?;
        let mut command = options.command(&program);
        if cpu {
            // It looks for a GPU otherwise.
            command.env("EPL_BENCH_CPU", "1");
        }
        return Side::start(peer, command);
    }
    let python = python_of(options);
    let installed = Command::new(&python).args(["-c", "import torch"]).output();
    if !installed.is_ok_and(|output| output.status.success()) {
        bail!("`{python}` has no torch: `{python} -m pip install torch`, or name another with --python");
    }
    let mode = peer.strip_prefix("pytorch-").unwrap_or("eager");
    let mut command = Command::new(python);
    command.arg(folder.join("pytorch").join("bench.py")).args(["--mode", mode]);
    Side::start(peer, command)
}

/// The commit of the workspace, where git knows it.
fn commit(root: &Path) -> Option<String> {
    let output =
        Command::new("git").current_dir(root).args(["rev-parse", "--short", "HEAD"]).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn parse(text: &str) -> std::result::Result<Options, String> {
        Options::parse(&text.split_whitespace().map(String::from).collect::<Vec<_>>())
    }

    #[test]
    fn options_are_read() {
        let options = parse("--only conv,step --peers none --precision mixed --batch 16 --quick").unwrap();
        let tuned = parse("--shapes all --tune off").unwrap();
        assert!(tuned.all_shapes && tuned.tune.as_deref() == Some("off"));
        assert_eq!((options.only.as_slice(), options.batch), (&["conv".into(), "step".into()][..], Some(16)));
        assert!(options.mixed && options.quick && options.peers == Some(Vec::new()));
        assert!(options.wants("conv") && !options.wants("head"));
        assert_eq!(parse("").unwrap(), Options::default());
        let runner = Options { runner: Some("nice -n 5".into()), ..Options::default() };
        let command = runner.command(Path::new("work"));
        assert_eq!((command.get_program(), command.get_args().len()), ("nice".as_ref(), 3));
        assert!(parse("").unwrap().wants("head"));
    }

    #[test]
    fn wrong_options_are_told() {
        for (text, part) in [
            ("--only lint", "`lint` is none of matmul"),
            ("--peers meganeura", "none of burn"),
            ("--batch 0", "at least 1"),
            ("--batch", "takes a value"),
            ("--precision f64", "f32 or mixed"),
            ("--shapes large", "main or all"),
            ("--tune never", "none of auto"),
            ("--fast", "no option `--fast`"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
