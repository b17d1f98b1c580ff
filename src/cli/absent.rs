//! The commands whose names are taken and which this version does not have: scripts get a clear error, and no
//! other meaning will ever be given to the names.

use std::ffi::OsString;

use clap::{Args, Subcommand};

use crate::Error;

/// Whatever else is on the command line, so that the error is about the command and not about its options.
#[derive(Debug, Args)]
pub struct Rest {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    rest: Vec<OsString>,
}

/// The error of using `command`; `instead` is what this version can do.
fn absent(command: &str, instead: &str) -> Error {
    Error::usage(
        format!("`epl {command}` is not in this version of epl ({})", env!("CARGO_PKG_VERSION")),
        instead,
    )
}

/// The commands of `epl data` that this version does not have.
#[derive(Debug, Subcommand)]
pub enum DataTools {
    /// Not in this version: align faces by five landmarks
    Align(Rest),
}

impl DataTools {
    pub fn error(&self) -> Error {
        let Self::Align(_) = self;
        absent(
            "data align",
            "`epl data pack --size` scales and crops; detect and align faces with another tool",
        )
    }
}

/// The protocols of `epl eval` that this version does not have.
#[derive(Debug, Subcommand)]
pub enum Protocols {
    /// Not in this version: template verification and identification on IJB-B and IJB-C
    Ijb(Rest),
    /// Not in this version: identification among distractors
    Megaface(Rest),
}

impl Protocols {
    pub fn error(&self) -> Error {
        let name = match self {
            Self::Ijb(_) => "eval ijb",
            Self::Megaface(_) => "eval megaface",
        };
        absent(name, "`epl eval verify` and `epl eval all-pairs` run the 1:1 protocols")
    }
}
