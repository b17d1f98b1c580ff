//! Compiled kernels on disk: written, read, and harmless whatever the file holds.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use epl_runtime::case::normal;
use epl_runtime::ops::matmul::{MatMul, matmul};
use epl_runtime::{Device, DeviceOptions, Graph, Session, SessionOptions, Store, TensorDesc};

/// What devices of this test warned of; one test runs at a time that looks at it.
static WARNINGS: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn warnings() -> Vec<String> {
    std::mem::take(&mut WARNINGS.lock().unwrap())
}

/// Opens a device that keeps its kernels in `folder` and multiplies two matrices on it.
fn product(folder: Option<&Path>) -> (Vec<f32>, u64) {
    let warnings: fn(&str) = |line| WARNINGS.lock().unwrap().push(line.to_owned());
    let options = DeviceOptions {
        cache: folder.map(PathBuf::from),
        warnings: Some(warnings),
        ..DeviceOptions::default()
    };
    let device = Device::open(&options).unwrap();
    let mut graph = Graph::new();
    let a = graph.input("a", TensorDesc::f32([40, 36])).unwrap();
    let b = graph.input("b", TensorDesc::f32([36, 52])).unwrap();
    let c = matmul(&mut graph, a, b, None, MatMul::default()).unwrap();
    graph.fetch(c);
    let mut session = Session::new(&graph, &Store::new(&device), SessionOptions::default()).unwrap();
    let inputs = [(a, &normal([40, 36], 1.0, 1).tensor()), (b, &normal([36, 52], 1.0, 2).tensor())];
    let result = session.run(&inputs).unwrap().remove(0).into_f32().unwrap();
    (result, device.counters().pipelines)
}

#[test]
fn kernels_are_kept_and_rubbish_is_harmless() {
    let folder = std::env::temp_dir().join(format!("epl-pipelines-{}", std::process::id()));
    let (want, compiled) = product(None);
    assert!(compiled > 0);
    assert!(!folder.exists(), "without a folder nothing is written");

    let inside = folder.join("a/b");
    assert_eq!(product(Some(&inside)).0, want);
    let file = || -> PathBuf {
        let files: Vec<PathBuf> = fs::read_dir(&inside).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(files.len(), 1, "{files:?}");
        files[0].clone()
    };
    let written = fs::read(file()).unwrap();
    assert!(written.starts_with(b"epl pipelines 1\n"), "a file of our own format");
    assert!(written.len() > 88, "the driver's data are in it");
    assert_eq!(warnings(), [] as [String; 0]);

    // Used again: the same numbers.
    assert_eq!(product(Some(&inside)).0, want);
    assert_eq!(warnings(), [] as [String; 0]);

    // Rubbish of every kind is passed over with a word, and replaced.
    let mut spoiled = written.clone();
    *spoiled.last_mut().unwrap() ^= 1;
    let mut other_key = written.clone();
    other_key[20] ^= 1;
    let rubbish: [(&[u8], &str); 5] = [
        (b"", "too short"),
        (&[0xff; 5000], "not a file of pipelines"),
        (&written[..written.len() - 1], "damaged"),
        (&spoiled, "damaged"),
        (&other_key, "another adapter"),
    ];
    for (bytes, why) in rubbish {
        fs::write(file(), bytes).unwrap();
        assert_eq!(product(Some(&inside)).0, want);
        let told = warnings();
        assert!(told.len() == 1 && told[0].contains(why), "{told:?}, not {why}");
        assert_eq!(fs::read(file()).unwrap()[..48], written[..48], "after {why} the file is ours again");
        assert_eq!(product(Some(&inside)).0, want);
        assert_eq!(warnings(), [] as [String; 0], "after {why} the file is whole again");
    }

    // Several processes at once: whichever is the last, the file is whole.
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(product(Some(&inside)).0, want));
        }
    });
    assert_eq!(product(Some(&inside)).0, want);
    assert_eq!(warnings(), [] as [String; 0]);

    // A folder that cannot be made: a file is in its place.
    let blocked = folder.join("file");
    fs::write(&blocked, "x").unwrap();
    assert_eq!(product(Some(&blocked.join("below"))).0, want);
    let told = warnings();
    assert!(!told.is_empty() && told.iter().all(|line| line.contains("below")), "{told:?}");
    fs::remove_dir_all(&folder).unwrap();
}
