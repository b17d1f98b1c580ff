//! Is there a browser in which the tests can open the pages that epl writes? On Debian and Ubuntu one can be installed.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Result, anyhow, bail};

use crate::install::{install, install_file, instruction};
use crate::os_release::{OsRelease, Packages, Wanted, packages};
use crate::stage::{run, say};

// The test must find the very browser that is made sure of here.
#[path = "../../tests/report_browser/find.rs"]
mod find;

/// Google's own package. Ubuntu has Chromium only as a snap, which does not work in containers.
const CHROME: &str = "https://dl.google.com/linux/direct/google-chrome-stable_current_amd64.deb";

/// Makes sure that there is a browser of the Chromium family.
///
/// # Errors
/// There is none and it cannot be installed from here; the message says what to do.
pub fn ensure() -> Result<()> {
    let why = match usable() {
        Ok(found) => {
            say(found);
            return Ok(());
        }
        Err(why) => why,
    };
    let named = std::env::var_os(find::VARIABLE).is_some_and(|value| !value.is_empty());
    if named || !cfg!(target_os = "linux") {
        return Err(why);
    }
    say(format_args!("no browser: {why}"));
    let os = OsRelease::read();
    let Some(packages) = packages(&os, Wanted::Browser) else { return Err(why) };
    if !packages.automatic {
        bail!("install Chromium with `{}`", instruction(&packages));
    }
    if let Err(error) = install(&packages) {
        say(format_args!("{error:#}"));
        install_chrome(&packages)?;
    }
    say(usable()?);
    Ok(())
}

/// A line that names the browser, if there is one that starts.
fn usable() -> Result<String> {
    let program: PathBuf = find::browser().map_err(|why| anyhow!(why))?;
    if !cfg!(target_os = "linux") {
        // On Windows asking for the version opens a window.
        return Ok(program.display().to_string());
    }
    // Ubuntu has a script of that name which only says that the snap is missing.
    match Command::new(&program).arg("--version").stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => {
            Ok(format!("{}: {}", program.display(), String::from_utf8_lossy(&output.stdout).trim()))
        }
        Ok(output) => {
            bail!("{} does not start: {}", program.display(), String::from_utf8_lossy(&output.stderr).trim())
        }
        Err(error) => bail!("{} does not start: {error}", program.display()),
    }
}

/// Where the distribution has no package that works.
fn install_chrome(packages: &Packages) -> Result<()> {
    let advice = format!(
        "install Google Chrome from https://www.google.com/chrome, or set {} to the program file of a Chromium",
        find::VARIABLE
    );
    if cfg!(not(target_arch = "x86_64")) {
        bail!("{advice}");
    }
    let folder = std::env::temp_dir().join(format!("epl-xtask-browser-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let file = folder.join("chrome.deb").display().to_string();
    let fetched = run(Command::new("curl").args(["-fsSL", "--retry", "3", "-o", &file, CHROME]))
        .or_else(|_| run(Command::new("wget").args(["-q", "-O", &file, CHROME])));
    let installed = fetched.and_then(|()| install_file(&file, packages));
    drop(std::fs::remove_dir_all(&folder));
    installed.map_err(|error| error.context(advice))
}
