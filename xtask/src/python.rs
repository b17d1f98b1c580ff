//! Is there a Python that can make virtual environments? The tests run exported models in onnxruntime with it.

use std::process::{Command, Stdio};

use anyhow::Result;

use crate::install::{install, instruction};
use crate::os_release::{OsRelease, Wanted, packages};
use crate::stage::say;

/// Makes sure that there is one on Debian and Ubuntu, and elsewhere says so where there is none: those tests then say that
/// they are skipped.
///
/// # Errors
/// None; the signature is that of the other stages.
pub fn ensure() -> Result<()> {
    if let Some(version) = usable() {
        say(version);
        return Ok(());
    }
    say("no Python with venv and pip: exported models are not run in onnxruntime");
    match packages(&OsRelease::read(), Wanted::Python) {
        Some(packages) if packages.automatic => match install(&packages) {
            Ok(()) => say(usable().unwrap_or_else(|| "it still cannot make virtual environments".into())),
            Err(error) => say(format_args!("{error:#}")),
        },
        Some(packages) => say(format_args!("`{}` installs it", instruction(&packages))),
        None => say("install Python 3 from your system's packages or https://www.python.org"),
    }
    Ok(())
}

/// Its version, if there is one. Debian's Python may lack the parts that an environment is made of.
fn usable() -> Option<String> {
    ["python3", "python"].into_iter().find_map(|name| {
        let script = "import ensurepip, sys, venv; print('Python', sys.version.split()[0])";
        let output = Command::new(name).args(["-c", script]).stdin(Stdio::null()).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    })
}
