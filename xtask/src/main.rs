//! `cargo xtask`: set-up, demo, tests.
fn main() {}
