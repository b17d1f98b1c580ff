//! `epl ops dump`: the shader modules as files, for other compilers and validators.

use std::fmt::{self, Display};
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::cli::{Context, Verdict};
use crate::{Error, Result};

const EXAMPLES: &str = "\
Examples:
  epl ops dump --out shaders
  epl ops dump --out shaders && naga shaders/add.wgsl add.metal";

/// Write every shader module as it is handed to the driver, one .wgsl each; needs no GPU
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Dump {
    /// The folder to write to; it is made where it does not exist
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

#[derive(Debug, Serialize)]
struct Dumped<'a> {
    out: &'a PathBuf,
    modules: Vec<String>,
}

impl Dump {
    pub fn run(&self, context: &Context) -> Result<Verdict> {
        std::fs::create_dir_all(&self.out).map_err(|source| Error::io(&self.out, source))?;
        let mut modules = Vec::new();
        for (name, source) in epl_shaders::modules() {
            let file = format!("{name}.wgsl");
            let path = self.out.join(&file);
            std::fs::write(&path, source.as_ref()).map_err(|source| Error::io(&path, source))?;
            modules.push(file);
        }
        context.present(&Dumped { out: &self.out, modules })?;
        Ok(Verdict::Done)
    }
}

impl Display for Dumped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} modules in {}", self.modules.len(), self.out.display())
    }
}
