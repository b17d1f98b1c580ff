//! `cargo xtask demo`: the small training run and where its report is.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Result;

use crate::adapter;
use crate::stage::{Stages, cargo, run, say};

/// Runs the example `mini_train` with `arguments` and says where its report is.
///
/// # Errors
/// There is no adapter and none can be set up, or the example failed.
pub fn demo(root: &Path, arguments: &[String]) -> Result<()> {
    let mut stages = Stages::default();
    stages.run("GPU adapter", adapter::ensure)?;
    let start = SystemTime::now();
    stages.run("Demo", || {
        run(cargo(root).args(["run", "--release", "--example", "mini_train", "--"]).args(arguments))
    })?;
    let folder = output_folder(root, arguments);
    match newest_report(&folder, start) {
        Some(report) => say(format_args!("\nThe report is {} (open it in a browser)", report.display())),
        None => say(format_args!("\nThis run wrote no report.html under {}", folder.display())),
    }
    Ok(())
}

/// What `--out` names, or the folder of all runs. Relative paths are relative to `root`, where the
/// example is started.
fn output_folder(root: &Path, arguments: &[String]) -> PathBuf {
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        if let Some(folder) = word.strip_prefix("--out=") {
            return root.join(folder);
        }
        if word == "--out"
            && let Some(folder) = words.next()
        {
            return root.join(folder);
        }
    }
    root.join("runs")
}

/// The `report.html` most recently written in `folder` or one level below, unless it is older than `start`.
fn newest_report(folder: &Path, start: SystemTime) -> Option<PathBuf> {
    // Some file systems keep times to two seconds only.
    let since = start.checked_sub(Duration::from_secs(2))?;
    let below = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    std::iter::once(folder.to_path_buf())
        .chain(below)
        .map(|folder| folder.join("report.html"))
        .filter_map(|report| Some((report.metadata().ok()?.modified().ok()?, report)))
        .filter(|(written, _)| *written >= since)
        .max()
        .map(|(_, report)| report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_output_folder_follows_the_arguments() {
        let root = Path::new("root");
        let folder = |words: &[&str]| {
            output_folder(root, &words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(folder(&[]), root.join("runs"));
        assert_eq!(folder(&["--seed", "3", "--out", "a"]), root.join("a"));
        assert_eq!(folder(&["--out=b"]), root.join("b"));
        assert_eq!(folder(&["--out"]), root.join("runs"));
    }

    #[test]
    fn only_a_report_of_this_run_is_named() {
        let folder = std::env::temp_dir().join(format!("epl-xtask-demo-{}", std::process::id()));
        let run = folder.join("mini");
        std::fs::create_dir_all(&run).unwrap();
        let now = SystemTime::now();
        assert_eq!(newest_report(&folder, now), None);
        std::fs::write(run.join("report.html"), "").unwrap();
        assert_eq!(newest_report(&folder, now), Some(run.join("report.html")));
        assert_eq!(newest_report(&run, now), Some(run.join("report.html")));
        assert_eq!(newest_report(&folder, now + Duration::from_secs(60)), None);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
