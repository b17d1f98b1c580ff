//! Where a browser of the Chromium family is on this machine. Shared with `cargo xtask`.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The environment variable that names the browser to use.
pub const VARIABLE: &str = "EPL_BROWSER";

/// Programs to look for in PATH.
const NAMES: [&str; 6] = [
    "chromium",
    "google-chrome",
    "google-chrome-stable",
    "microsoft-edge",
    "microsoft-edge-stable",
    // Last, because on Ubuntu it may be a script that only says that a snap is missing.
    "chromium-browser",
];

/// Where macOS has them, below `/` and below the home folder.
const MACOS: [&str; 3] = [
    "Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "Applications/Chromium.app/Contents/MacOS/Chromium",
    "Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
];

/// Where Windows has them, below its folders for programs.
const WINDOWS: [&str; 3] = [
    "Google\\Chrome\\Application\\chrome.exe",
    "Microsoft\\Edge\\Application\\msedge.exe",
    "Chromium\\Application\\chrome.exe",
];

/// The browser that [`VARIABLE`] names, or else the first one found.
///
/// # Errors
/// Says that there is none, or that the variable names no file.
pub fn browser() -> Result<PathBuf, String> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
    if let Some(named) = set(VARIABLE) {
        let named = PathBuf::from(named);
        return if named.is_file() {
            Ok(named)
        } else {
            Err(format!("{VARIABLE} is set to {}, which is no file", named.display()))
        };
    }
    places(&set).into_iter().find(|place| place.is_file()).ok_or_else(|| {
        format!("found no Chromium, Chrome or Edge; install one, or set {VARIABLE} to its program file")
    })
}

/// Every place to look at, in order.
fn places(variable: &dyn Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    if cfg!(windows) {
        let roots = ["ProgramFiles", "ProgramFiles(x86)", "LocalAppData"].map(variable);
        return roots
            .iter()
            .flatten()
            .flat_map(|root| WINDOWS.map(|path| Path::new(root).join(path)))
            .collect();
    }
    let path = variable("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = env::split_paths(&path).collect();
    let mut places: Vec<PathBuf> =
        NAMES.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name))).collect();
    if cfg!(target_os = "macos") {
        let roots = [Some(OsString::from("/")), variable("HOME")];
        places.extend(roots.iter().flatten().flat_map(|root| MACOS.map(|path| Path::new(root).join(path))));
    }
    places
}
