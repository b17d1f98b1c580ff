//! `epl ops list`: what is covered.

use std::fmt::{self, Display};

use clap::Args;
use epl_runtime::case::OpEntry;
use serde::Serialize;

use super::Names;
use crate::Result;
use crate::cli::output::{Align, Table};
use crate::cli::{Context, Verdict};

const EXAMPLES: &str = "\
Examples:
  epl ops list
  epl ops list prelu --json";

/// List the ops with their cases and kernels
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct List {
    #[command(flatten)]
    names: Names,
}

#[derive(Debug, Serialize)]
struct Listing {
    ops: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    name: &'static str,
    /// Cases that are compared with the reference.
    cases: usize,
    /// Cases whose gradients are compared with finite differences as well.
    gradient_cases: usize,
    /// Cases for measuring speed.
    perf_cases: usize,
    kernels: Vec<&'static str>,
}

impl List {
    pub fn run(&self, context: &Context) -> Result<Verdict> {
        let ops = self.names.select()?.iter().map(Row::from).collect();
        context.present(&Listing { ops })?;
        Ok(Verdict::Done)
    }
}

impl From<&OpEntry> for Row {
    fn from(entry: &OpEntry) -> Self {
        let cases = (entry.cases)();
        let count = |wanted: fn(&epl_runtime::case::Case) -> bool| cases.iter().filter(|c| wanted(c)).count();
        Self {
            name: entry.name,
            cases: count(|case| !case.perf),
            gradient_cases: count(|case| !case.perf && !case.differentiate.is_empty()),
            perf_cases: count(|case| case.perf),
            kernels: entry.kernels.iter().map(|kernel| kernel.shader).collect(),
        }
    }
}

impl Display for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(&[
            ("op", Align::Left),
            ("cases", Align::Right),
            ("gradient", Align::Right),
            ("perf", Align::Right),
            ("kernels", Align::Left),
        ]);
        // A dash, because a gradient that is not checked should be seen at a glance.
        let dash = |count: usize| if count == 0 { "-".to_owned() } else { count.to_string() };
        for row in &self.ops {
            table.row([
                row.name.to_owned(),
                row.cases.to_string(),
                dash(row.gradient_cases),
                dash(row.perf_cases),
                row.kernels.join(", "),
            ]);
        }
        write!(f, "{table}")
    }
}
