//! A small data set and runs of `epl train` on it, for tests of runs that are disturbed.

#![allow(dead_code, reason = "each test uses some of it")]

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use epl::data::VerificationSet;
use rand::Rng;
use rand_pcg::Pcg64;

/// Identities and images of each.
const IDENTITIES: u32 = 5;
const IMAGES: u32 = 9;
pub const EPOCHS: u32 = 3;
/// Pairs of the verification set.
const PAIRS: u32 = 20;

/// A folder with a small data set and a configuration, in which runs of their own names are made.
pub struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for identity in 0..IDENTITIES {
            let person = folder.path().join(format!("faces/{identity}"));
            std::fs::create_dir_all(&person).unwrap();
            for index in 0..IMAGES {
                // Colour says who it is, and noise tells the images apart.
                let mut random = Pcg64::new(u128::from(identity), u128::from(index));
                let image = image::RgbImage::from_fn(16, 16, |x, _| {
                    let noise = (random.next_u64() % 64) as u8;
                    image::Rgb([(40 * identity) as u8 + noise, (8 * x) as u8 + noise, noise])
                });
                image.save(person.join(format!("{index}.png"))).unwrap();
            }
        }
        let place = Self { folder };
        // Verification pairs of the same pictures.
        let image = |i: u32| {
            std::fs::read(place.path(&format!("faces/{}/{}.png", i % IDENTITIES, i % IMAGES))).unwrap()
        };
        let same = |pair: u32| pair.is_multiple_of(2);
        let pair = |pair: u32| [image(pair), image(if same(pair) { pair + IDENTITIES } else { pair + 1 })];
        let set = VerificationSet {
            name: "pairs".into(),
            images: (0..PAIRS).flat_map(pair).map(Into::into).collect(),
            issame: (0..PAIRS).map(same).collect(),
        };
        set.write_bin(&place.path("pairs.bin"), false).unwrap();
        std::fs::write(place.path("config.toml"), CONFIG).unwrap();
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `epl train` of the run `name`, not yet started.
    pub fn command(&self, name: &str, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_epl"));
        command
            .current_dir(self.folder.path())
            .args(["train", "config.toml", "--set"])
            .env("EPL_KERNEL_CACHE", "off");
        command.arg(format!("train.out={name}")).args(more);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }

    /// The same where no file may be longer than `bytes`: a write beyond fails half way, as it does on a full disk.
    #[cfg(unix)]
    pub fn starved(&self, name: &str, more: &[&str], bytes: u64) -> Command {
        let script = format!(
            "trap '' XFSZ; ulimit -f {}; exec \"$0\" train config.toml --set train.out={name} \"$@\"",
            bytes / 512
        );
        let mut command = Command::new("sh");
        command.current_dir(self.folder.path()).args(["-c", &script, env!("CARGO_BIN_EXE_epl")]).args(more);
        command.env("EPL_KERNEL_CACHE", "off");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }

    #[cfg(not(unix))]
    pub fn starved(&self, name: &str, more: &[&str], _bytes: u64) -> Command {
        self.command(name, more)
    }

    /// Runs to the end and returns what was said; fails unless it ends with `code`.
    pub fn run(&self, name: &str, more: &[&str], code: i32) -> String {
        finish(self.command(name, more).spawn().unwrap(), code)
    }

    /// The bytes of the weights, last and best, and the log without what a clock measured.
    pub fn result(&self, name: &str) -> (Vec<u8>, Vec<serde_json::Value>) {
        let mut weights = std::fs::read(self.path(name).join("model.safetensors")).unwrap();
        weights.extend(std::fs::read(self.path(name).join("model_best.safetensors")).unwrap());
        let log = std::fs::read_to_string(self.path(name).join("metrics.jsonl")).unwrap();
        let record = |line: &str| {
            let mut record: serde_json::Value = serde_json::from_str(line).unwrap();
            for timed in ["images_per_second", "data_wait", "device_wait"] {
                record.as_object_mut().unwrap().remove(timed);
            }
            record
        };
        (weights, log.lines().map(record).collect())
    }

    pub fn same(&self, name: &str, undisturbed: &(Vec<u8>, Vec<serde_json::Value>)) {
        let (weights, log) = self.result(name);
        assert!(weights == undisturbed.0, "{name}: other weights");
        assert_eq!(log, undisturbed.1, "{name}");
        assert!(self.path(name).join("report.html").is_file());
        let leftovers: Vec<_> = files(&self.path(name)).into_iter().filter(|path| is_partial(path)).collect();
        assert!(leftovers.is_empty(), "{leftovers:?}");
    }
}

/// Momentum, dropout, clipping, EPL from the second epoch on, statistics, a schedule, augmentation, evaluation and the best
/// weights. [`OTHER`] has what excludes some of that.
pub const CONFIG: &str = r#"
[model]
arch = "ir18"
input = [16, 16]
width = 8
blocks = [1, 1, 1, 1]
embedding = 16
dropout = 0.2
[head]
kind = "cosface"
scale = 16.0
[head.epl]
start_epoch = 2
[data]
train = "faces"
augment = ["mirror", { kind = "shift", pixels = 2 }]
[optim]
lr = 0.05
clip_norm = 5.0
schedule = { kind = "cosine", warmup_epochs = 0.5 }
[train]
# Kernels that are measured are not the same in each run.
autotune = "off"
out = "unset"
epochs = 3
batch_size = 4
checkpoint_every = 2
keep_checkpoints = 2
log_every = 1
eval = ["pairs.bin"]
"#;

/// A bias, classes that are sampled and walked in tiles, steps of several batches, steps that may be skipped, lines of
/// several steps, one checkpoint.
pub const OTHER: [&str; 16] = [
    "--set",
    "head.kind=uniface",
    "--set",
    "head.sample_rate=0.9",
    "--set",
    "train.batch_size=2",
    "--set",
    "train.accumulate=2",
    "--set",
    "train.nonfinite=skip",
    "--set",
    "train.log_every=3",
    "--set",
    "train.keep_checkpoints=1",
    "--set",
    "train.epochs=5",
];

/// A rate that does not depend on where the run ends, for runs whose end is moved.
pub const CONSTANT: [&str; 2] = ["--set", "optim.schedule={kind=\"constant\"}"];

pub const STEPS: u64 = (EPOCHS * (IDENTITIES * IMAGES / 4)) as u64;

pub fn finish(mut child: Child, code: i32) -> String {
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(code), "{said}");
    said
}

/// All files and folders below `folder`.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut found = Vec::new();
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            found.extend(files(&path));
        }
        found.push(path);
    }
    found
}

pub fn is_partial(path: &Path) -> bool {
    path.to_string_lossy().ends_with(".partial")
}

/// The steps after which there are checkpoints, ascending.
pub fn checkpoints(run: &Path) -> Vec<u64> {
    let Ok(entries) = std::fs::read_dir(run.join("checkpoints")) else { return Vec::new() };
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut steps: Vec<u64> =
        names.filter_map(|name| name.strip_prefix("step-").and_then(|step| step.parse().ok())).collect();
    steps.sort_unstable();
    steps
}
