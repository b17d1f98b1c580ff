//! The Rust components that the checks need beyond the compiler.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Result, bail};

use crate::stage::{cargo, say};

/// Makes sure that `cargo fmt` and `cargo clippy` can be run.
///
/// # Errors
/// One of them is missing; the message says how to add it.
pub fn check() -> Result<()> {
    let missing: Vec<&str> = ["fmt", "clippy"].into_iter().filter(|command| !runs(command)).collect();
    if missing.is_empty() {
        say("rustfmt and clippy are there");
        return Ok(());
    }
    let components: Vec<&str> =
        missing.iter().map(|command| if *command == "fmt" { "rustfmt" } else { command }).collect();
    bail!(
        "the toolchain lacks {}; add with `rustup component add {}` (without rustup: your system's package \
         of that name)",
        components.join(" and "),
        components.join(" ")
    );
}

fn runs(command: &str) -> bool {
    cargo(Path::new("."))
        .args([command, "--version"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
