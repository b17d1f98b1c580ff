//! `epl convert` as a user runs it, and PyTorch's files given straight to other commands. The files are those that
//! `tests/reference/torch_files.py` wrote, with what PyTorch's networks make of an image.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::Command;

use epl::interchange::safetensors::StateDict;
use serde_json::{Value, json};

fn fixture(name: &str) -> String {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/torch").join(name);
    path.to_str().unwrap().to_owned()
}

/// Runs `epl` in `folder` and gives its exit code, standard output and standard error.
fn epl(folder: &Path, arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_epl"));
    let output = command.args(arguments).env_remove("EPL_DEVICE").current_dir(folder).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(!stderr.contains("panicked"), "{arguments:?}: {stderr}");
    (output.status.code().unwrap(), stdout, stderr)
}

fn result(folder: &Path, arguments: &[&str]) -> Value {
    let (code, stdout, stderr) = epl(folder, &[arguments, &["--json"]].concat());
    assert_eq!(code, 0, "{arguments:?}: {stderr}");
    serde_json::from_str(&stdout).unwrap()
}

fn fails(folder: &Path, arguments: &[&str], code: i32, words: &[&str]) {
    let (found, stdout, stderr) = epl(folder, arguments);
    assert_eq!((found, stdout.as_str()), (code, ""), "{arguments:?}: {stderr}");
    for word in words {
        assert!(stderr.contains(word), "{arguments:?}: {word} is not in: {stderr}");
    }
}

/// The image of `tests/reference/torch_files.py`.
fn write_image(path: &Path) {
    let colour = |x: u32, y: u32| image::Rgb([x * 7, y * 5, x * y].map(|value| value as u8));
    image::RgbImage::from_fn(32, 32, colour).save(path).unwrap();
}

/// Fails unless the network in `weights` makes of the image what PyTorch's did.
fn embeds_as(folder: &Path, weights: &str, expected: &str) {
    let embed = ["embed", "--weights", weights, "--flip", "none", "--out", "e.safetensors", "image.png"];
    result(folder, &embed);
    let dict = StateDict::read(&folder.join("e.safetensors")).unwrap();
    let (shape, found) = dict.floats("embeddings").unwrap();
    let expected: Vec<f32> =
        serde_json::from_str(&std::fs::read_to_string(fixture(expected)).unwrap()).unwrap();
    assert_eq!(shape, [1, expected.len()]);
    // Sums of some hundred products in another order, in f32.
    let off = found.iter().zip(&expected).any(|(found, expected)| (found - expected).abs() > 1e-5);
    assert!(!off && found.iter().all(|value| value.is_finite()), "{weights}: {found:?}, not {expected:?}");
}

#[test]
fn networks_of_pytorch_compute_here_what_they_compute_there() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    write_image(&folder.join("image.png"));
    let (ir, iresnet) = (fixture("tiny_ir.pth"), fixture("tiny_iresnet.pth"));

    // Given as it is, and converted. The extension says nothing.
    embeds_as(folder, &ir, "tiny_ir.json");
    std::fs::copy(&ir, folder.join("renamed.safetensors")).unwrap();
    embeds_as(folder, "renamed.safetensors", "tiny_ir.json");
    let told = result(folder, &["convert", &ir, "ir.safetensors"]);
    let sizes = [&told["arch"], &told["input_size"], &told["embedding"], &told["width"], &told["blocks"]];
    assert_eq!(json!(sizes), json!(["ir18", [32, 32], 4, 1, [2, 1, 1, 1]]));
    assert_eq!(
        (&told["format"], &told["missing"], &told["extra"]),
        (&json!("torch"), &json!([]), &json!([]))
    );
    let notes = told["notes"].to_string();
    assert!(notes.contains("module.") && notes.contains("state_dict"), "{notes}");
    embeds_as(folder, "ir.safetensors", "tiny_ir.json");
    let dict = StateDict::read(&folder.join("ir.safetensors")).unwrap();
    assert_eq!(dict.metadata["channel_order"], "RGB");
    assert_eq!(dict.metadata["blocks"], "[2, 1, 1, 1]");

    // InsightFace's network, written as the release's.
    let told = result(folder, &["convert", &iresnet, "as_ir.safetensors", "--layout", "epl"]);
    assert_eq!((&told["arch"], &told["blocks"]), (&json!("ir18"), &json!([2, 1, 1, 1])));
    embeds_as(folder, "as_ir.safetensors", "tiny_iresnet.json");
    // And back: the same values, but for the bias, which is in the running mean now.
    let back = ["convert", "as_ir.safetensors", "back.safetensors", "--layout", "insightface"];
    assert_eq!(result(folder, &back)["arch"], "iresnet18");
    result(folder, &["convert", &iresnet, "iresnet.safetensors"]);
    let read = |name: &str| StateDict::read(&folder.join(name)).unwrap();
    let (mut first, mut second) = (read("iresnet.safetensors"), read("back.safetensors"));
    for dict in [&mut first, &mut second] {
        for name in ["fc.bias", "features.running_mean"] {
            assert!(dict.tensors.remove(name).is_some(), "{name}");
        }
        assert_eq!(dict.metadata["arch"], "iresnet18");
    }
    assert_eq!(first.tensors, second.tensors);

    // The release's network uses what InsightFace's has no place for.
    fails(
        folder,
        &["convert", "ir.safetensors", "no.safetensors", "--layout", "insightface"],
        1,
        &["layer1.0.downsample.0.weight", "do not agree there", "hint: "],
    );
    assert!(!folder.join("no.safetensors").exists() && !folder.join(".no.safetensors.epl.partial").exists());
}

#[test]
fn training_starts_from_a_pytorch_file_and_its_checkpoint_becomes_weights() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    for identity in 0..2_u8 {
        let place = folder.join(format!("faces/{identity}"));
        std::fs::create_dir_all(&place).unwrap();
        for sample in 0..2_u8 {
            let colour = |x: u32, y: u32| image::Rgb([90 * identity, 60 * sample, (x + y) as u8]);
            image::RgbImage::from_fn(32, 32, colour).save(place.join(format!("{sample}.png"))).unwrap();
        }
    }
    let config = format!(
        "[model]\narch = 'ir18'\nblocks = [2, 1, 1, 1]\ninput = [32, 32]\nwidth = 1\nembedding = 4\ninit = '{}'\n[head.epl]\n\
         [data]\ntrain = 'faces'\n[optim]\nlr = 1e-30\n[train]\nout = 'run'\nepochs = 1\nbatch_size = 4\n",
        fixture("tiny_ir.pth")
    );
    std::fs::write(folder.join("config.toml"), config).unwrap();
    result(folder, &["train", "config.toml"]);
    result(folder, &["convert", &fixture("tiny_ir.pth"), "ir.safetensors"]);
    let read = |name: &str| StateDict::read(&folder.join(name)).unwrap();
    let (start, end) = (read("ir.safetensors"), read("run/model.safetensors"));
    assert_eq!(end.floats("layer4.0.conv1.weight"), start.floats("layer4.0.conv1.weight"));

    let checkpoint =
        std::fs::read_dir(folder.join("run/checkpoints")).unwrap().next().unwrap().unwrap().path();
    let checkpoint = checkpoint.to_str().unwrap();
    let told = result(folder, &["convert", checkpoint, "weights.safetensors"]);
    assert_eq!((&told["format"], &told["arch"]), (&json!("checkpoint"), &json!("ir18")));
    assert!(told["left_out"].as_u64().unwrap() > 10 && told["extra"] == json!([]), "{told}");
    let weights = read("weights.safetensors");
    assert_eq!(weights.tensors, end.tensors, "what a run leaves at its end");
    assert_eq!(weights.metadata["head"], end.metadata["head"]);
}

#[test]
fn heads_are_added_and_unknown_networks_kept() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let mut rank = StateDict::default();
    for (file, rows, first) in [("rank0.safetensors", 2, 0.0_f32), ("rank1.safetensors", 1, 8.0)] {
        rank.insert("weight", &[rows, 4], (0..4 * rows).map(|at| first + at as f32).collect());
        rank.write(&folder.join(file)).unwrap();
    }
    let ir = fixture("tiny_ir.pth");
    let call =
        ["convert", &ir, "w.safetensors", "--head", "rank0.safetensors", "--head", "rank1.safetensors"];
    result(folder, &call);
    let dict = StateDict::read(&folder.join("w.safetensors")).unwrap();
    let values: Vec<f32> = (0..12).map(|value| value as f32).collect();
    assert_eq!(dict.floats("loss.weight"), Some((&[3, 4][..], &values[..])));
    fails(
        folder,
        &["convert", &ir, "x.safetensors", "--head", &fixture("alone.pth")],
        1,
        &["[3, 2]", "[classes, 4]"],
    );
    fails(folder, &["convert", &ir, "x.safetensors", "--head", &ir], 1, &["no tensor called weight"]);

    let module = fixture("module.pth");
    let told = result(folder, &["convert", &module, "module.safetensors", "--arch", "ir18"]);
    assert_eq!((&told["arch"], &told["blocks"]), (&json!("ir18"), &Value::Null));
    let expected = StateDict::read(Path::new(&fixture("module.safetensors"))).unwrap();
    assert_eq!(StateDict::read(&folder.join("module.safetensors")).unwrap().tensors, expected.tensors);
    let (code, stdout, _) = epl(folder, &["convert", &fixture("checkpoint_module.pth"), "m.safetensors"]);
    assert!(code == 0 && stdout.contains("under the key \"model\"") && stdout.contains("--arch"), "{stdout}");
    assert!(stdout.contains("ema"), "{stdout}");
    result(folder, &["convert", &fixture("two_keys.pth"), "c.safetensors", "--key", "critic"]);
}

#[test]
fn what_cannot_be_converted_is_refused_and_nothing_is_written() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.join(name), bytes).unwrap();
    write("page.pth", b"<!DOCTYPE html><html>Not found</html>");
    write("pointer.pth", b"version https://git-lfs.github.com/spec/v1\n");
    write("empty.pth", b"");
    write("text.pth", b"rubbish");
    let whole = std::fs::read(fixture("tiny_ir.pth")).unwrap();
    write("half.pth", &whole[..whole.len() / 2]);
    for (file, words) in [
        ("page.pth".to_owned(), &["web page", "hint: "][..]),
        ("pointer.pth".to_owned(), &["Git LFS", "git lfs pull"]),
        ("empty.pth".to_owned(), &["empty file"]),
        ("text.pth".to_owned(), &["safetensors"]),
        ("half.pth".to_owned(), &["no directory at its end", "hint: "]),
        ("absent.pth".to_owned(), &["absent.pth"]),
        (".".to_owned(), &["state.safetensors"]),
        (fixture("refused_legacy.pth"), &["before version 1.6", "weights_only=True"]),
        (fixture("refused_evil.pth"), &["posix.system", "tries to run something", "not to be trusted"]),
        (fixture("two_keys.pth"), &["generator, critic", "--key"]),
    ] {
        fails(folder, &["convert", &file, "out.safetensors"], 1, words);
        if !file.ends_with("two_keys.pth") {
            fails(folder, &["embed", "--weights", &file, "--out", "e", "x.png"], 1, &words[..1]);
        }
    }
    let ir = fixture("tiny_ir.pth");
    fails(folder, &["convert", &ir, "out.safetensors", "--key", "nobody"], 1, &["nobody", "state_dict"]);
    fails(folder, &["convert", &ir, "out.safetensors", "--arch", "ir50"], 2, &["--arch ir50", "ir18"]);
    let module = fixture("module.pth");
    fails(folder, &["convert", &module, "out.safetensors", "--layout", "epl"], 1, &["not known", "--layout"]);
    write("own.safetensors", &whole);
    fails(folder, &["convert", "own.safetensors", "own.safetensors"], 2, &["read and written"]);
    fails(folder, &["convert", &ir], 2, &["OUT"]);
    fails(folder, &["convert", &ir, "."], 1, &["."]);
    assert!(!folder.join("out.safetensors").exists());
}
