//! The `epl` command.
fn main() {}
