//! Every architecture as an ONNX model: accepted by onnx's checker, and in onnxruntime the same embeddings as here.
//!
//! onnx and onnxruntime come from PyPI into a virtual environment below `target`. Where there is no Python with `venv`, or
//! PyPI cannot be reached, the test says so and passes; in CI (`CI` is set) it fails instead.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use epl::eval::embedder::Embedder;
use epl::interchange::onnx::{Options, export};
use epl::interchange::safetensors::StateDict;
use epl::model::{Model, ModelSpec};
use epl::nn::network::architectures;
use epl_runtime::{Device, DeviceOptions};

use super::formula::{images, small, state_dict};

/// What is installed.
const PACKAGES: [&str; 3] = ["numpy", "onnx", "onnxruntime"];

/// The Python of a virtual environment with what the test needs, or why there is none.
fn python() -> Result<PathBuf, String> {
    let environment = Path::new(env!("CARGO_TARGET_TMPDIR")).join("onnx-venv");
    let program = if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" };
    let python = environment.join(program);
    let works = || {
        let imports = Command::new(&python).args(["-c", "import numpy, onnx, onnxruntime"]).output();
        imports.is_ok_and(|output| output.status.success())
    };
    if works() {
        return Ok(python);
    }
    let run = |command: &mut Command| match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Err(error.to_string()),
    };
    let make = |name: &str| run(Command::new(name).args(["-m", "venv", "--clear"]).arg(&environment));
    make("python3").or_else(|_| make("python")).map_err(|why| format!("no virtual environment: {why}"))?;
    run(Command::new(&python)
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
        .args(PACKAGES))
    .map_err(|why| format!("pip: {why}"))?;
    if works() { Ok(python) } else { Err("the packages cannot be imported".into()) }
}

#[test]
fn onnxruntime_computes_the_same_embeddings() {
    let python = match python() {
        Ok(python) => python,
        Err(why) => {
            assert!(std::env::var_os("CI").is_none(), "CI checks ONNX models: {why}");
            // Past the test harness, which shows nothing of a test that passes.
            let word = "SKIPPED: ONNX models were not checked, for lack of Python packages";
            writeln!(std::io::stderr(), "{word}: {why}").unwrap();
            return;
        }
    };
    let folder = tempfile::tempdir().unwrap();
    let device = Device::open(&DeviceOptions::default()).unwrap();
    let images = images(3);
    let mut cases = Vec::new();
    for arch in architectures() {
        let network = small(arch, 24);
        let weights = state_dict(&network);
        let model = Model::allocate(ModelSpec::new(arch, network, None).unwrap(), &device).unwrap();
        model.load(&weights, "formula").unwrap();
        let mut embedder = Embedder::new(&model, images.len()).unwrap();
        let mut expected = StateDict::default();
        for (flip, name) in [(false, "plain"), (true, "flip")] {
            let load = |index: usize| Ok(images[index].clone());
            let embeddings = embedder.embed(images.len(), &load, flip, &mut |_| {}).unwrap();
            expected.insert(name, &[images.len(), 24], embeddings);
        }
        expected.write(&folder.path().join(format!("{arch}.safetensors"))).unwrap();
        // Every option alone and all together; deep networks only differ in what repeats.
        let deep = arch.ends_with("00") || arch.ends_with("34");
        let options = if deep { vec![0, 5, 7] } else { vec![0, 1, 2, 4, 7] };
        for bits in options {
            let options = Options { flip: bits & 1 > 0, f16: bits & 2 > 0, fold: bits & 4 > 0 };
            let name = format!("{arch}-{bits}.onnx");
            let metadata = model.spec.description();
            let path = folder.path().join(&name);
            export(&path, &model.spec.network, &weights, "formula", &metadata, options).unwrap();
            cases.push(name);
        }
    }
    let pixels: Vec<u8> = images.iter().flat_map(|image| image.rgb.iter().copied()).collect();
    std::fs::write(folder.path().join("images.bin"), pixels).unwrap();

    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/run_onnx.py");
    let output = Command::new(python).arg(script).arg(folder.path()).args(&cases).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}");
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(text.lines().filter(|line| line.starts_with("ok ")).count(), cases.len());
}
