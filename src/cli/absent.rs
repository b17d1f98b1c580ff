//! The commands whose names are taken and which this version does not have: scripts get a clear error, and no
//! other meaning will ever be given to the names.

use std::ffi::OsString;

use clap::Args;

use crate::Error;

/// Whatever else is on the command line, so that the error is about the command and not about its options.
#[derive(Debug, Args)]
pub struct Rest {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    rest: Vec<OsString>,
}

impl Rest {
    /// The first argument that nobody asked for.
    pub fn first(&self) -> Option<&OsString> {
        self.rest.first()
    }
}

/// The error of using `command`; `instead` is what this version can do.
fn absent(command: &str, instead: &str) -> Error {
    Error::usage(
        format!("`epl {command}` is not in this version of epl ({})", env!("CARGO_PKG_VERSION")),
        instead,
    )
}

/// Not in this version: write the network as a deployment model (`onnx`)
#[derive(Debug, Args)]
pub struct Export {
    #[command(flatten)]
    rest: Rest,
}

impl Export {
    pub fn error(&self) -> Error {
        absent("export", "a run's model.safetensors has the weights under the names of the PyTorch release")
    }
}

/// Not in this version: convert weights between .pth, .pt and .safetensors
#[derive(Debug, Args)]
pub struct Convert {
    #[command(flatten)]
    rest: Rest,
}

impl Convert {
    pub fn error(&self) -> Error {
        absent(
            "convert",
            "weights are read from .safetensors; in Python, safetensors.torch.save_file writes it",
        )
    }
}

/// The error of `epl bench` without `--loader`.
pub fn bench_of_a_step() -> Error {
    absent(
        "bench",
        "`epl bench --loader` measures the data loader, `epl ops perf` every kernel; `epl train` logs images a second",
    )
}
