//! The tools of `cargo xtask gate` that are libraries: SPIRV-Tools' validator, Microsoft's DXC, and the compiler of a Vulkan driver.
//!
//! Each reads requests from standard input, a line each: an identifier, a file, the name of its entry point and what it is to be
//! compiled for, with tabs between. It answers each with a line on standard output: the identifier, `ok` and figures as
//! `name=value`, or the identifier, `refused` and why. A line before the answers says which tool it is: `tool`, and its name.

mod dxc;
mod pipelines;
mod validator;

use std::io::{BufRead as _, Write as _};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

/// What is known of one module when a tool took it.
type Figures = Vec<(String, u64)>;

/// A module to look at.
struct Request<'a> {
    path: &'a str,
    entry: &'a str,
    /// A shader model, for DXC.
    profile: &'a str,
}

/// A tool, ready to be asked.
trait Tool {
    /// Its name and version.
    fn name(&self) -> String;

    /// Looks at a module; the inner error is what the tool has against it.
    ///
    /// # Errors
    /// The tool itself failed.
    fn check(&mut self, request: &Request<'_>) -> Result<std::result::Result<Figures, String>>;
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("epl-gate: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut tool: Box<dyn Tool> = match words[..] {
        ["spirv-val"] => Box::new(validator::SpirvTools::new()),
        ["dxc", library, name] => Box::new(dxc::Dxc::load(Path::new(library), name)?),
        ["pipelines"] => Box::new(pipelines::Driver::open()?),
        _ => bail!("expected `spirv-val`, `dxc LIBRARY NAME` or `pipelines`"),
    };
    let mut out = std::io::stdout().lock();
    writeln!(out, "tool\t{}", tool.name())?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let mut fields = line.split('\t');
        let (Some(id), Some(path), Some(entry)) = (fields.next(), fields.next(), fields.next()) else {
            bail!("`{line}` is no request");
        };
        let request = Request { path, entry, profile: fields.next().unwrap_or_default() };
        match tool.check(&request).with_context(|| path.to_owned())? {
            Ok(figures) => {
                write!(out, "{id}\tok")?;
                for (name, value) in figures {
                    write!(out, "\t{name}={value}")?;
                }
                writeln!(out)?;
            }
            Err(reason) => writeln!(out, "{id}\trefused\t{}", reason.replace(['\n', '\t'], " "))?,
        }
        out.flush()?;
    }
    Ok(())
}

/// The words of a file of SPIR-V.
fn words(path: &str) -> Result<Vec<u32>> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {path}"))?;
    let (words, rest) = bytes.as_chunks::<4>();
    if !rest.is_empty() {
        bail!("{path} is no SPIR-V: {} bytes", bytes.len());
    }
    Ok(words.iter().map(|&word| u32::from_le_bytes(word)).collect())
}
