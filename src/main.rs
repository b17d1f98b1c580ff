//! The `epl` command; everything is in [`epl::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    epl::cli::main()
}
