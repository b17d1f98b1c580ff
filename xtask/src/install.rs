//! Installs packages, as root, on Debian and what derives from it.

use std::io::IsTerminal as _;
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::os_release::Packages;
use crate::stage::{run, say};

/// The command with which one gets the packages.
pub fn instruction(packages: &Packages) -> String {
    format!("sudo {} {}", packages.command.join(" "), packages.names.join(" "))
}

/// Installs packages with apt-get as root: directly, or through sudo where that works.
///
/// # Errors
/// There is no way to become root, or apt-get failed.
pub fn install(packages: &Packages) -> Result<()> {
    // One dead third-party source fails the update as a whole; the package may be there all the same.
    if let Err(error) = apt_get(&["update", "-q"], packages) {
        say(format_args!("going on with the package lists as they are: {error}"));
    }
    apt_get(&[&["install", "-q", "--no-install-recommends"], packages.names].concat(), packages)
}

/// Installs a package file, and what it needs.
///
/// # Errors
/// There is no way to become root, or apt-get failed.
pub fn install_file(file: &str, packages: &Packages) -> Result<()> {
    apt_get(&["install", "-q", "--no-install-recommends", file], packages)
}

fn apt_get(arguments: &[&str], packages: &Packages) -> Result<()> {
    let Some(prefix) = privilege() else {
        bail!(
            "installing needs root, and sudo is missing or asks for a password; run `{}`",
            instruction(packages)
        );
    };
    // A machine that has just started may still hold the lock for its own updates.
    let apt = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-y", "-o", "DPkg::Lock::Timeout=300"];
    let mut words = prefix.iter().chain(&apt).chain(arguments);
    let mut command = Command::new(words.next().copied().unwrap_or("env"));
    command.args(words);
    // With a bare `sudo` somebody is at the terminal and may have to type a password.
    if prefix != ["sudo"] {
        command.stdin(Stdio::null());
    }
    run(&mut command)
}

/// The words in front of a command that must run as root, or `None` where that is not possible.
fn privilege() -> Option<&'static [&'static str]> {
    let user = Command::new("id").arg("-u").stdin(Stdio::null()).output().ok()?;
    if user.stdout.trim_ascii() == b"0" {
        return Some(&[]);
    }
    let sudo = |arguments: &[&str]| {
        let output = Command::new("sudo").args(arguments).stdin(Stdio::null()).output();
        output.is_ok_and(|output| output.status.success())
    };
    if sudo(&["-n", "true"]) {
        Some(&["sudo", "-n"])
    } else if std::io::stdin().is_terminal() && sudo(&["--version"]) {
        Some(&["sudo"])
    } else {
        None
    }
}
