//! `epl data inspect`, `check`, `pack`, `unpack` and `synth` as a user runs them, one after the other. Needs
//! no GPU.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

/// Runs `epl data` in `folder` and gives its exit code, standard output and standard error.
fn epl(folder: &Path, arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_epl"));
    let output = command.arg("data").args(arguments).current_dir(folder).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(!stderr.contains("panicked"), "{arguments:?}: {stderr}");
    (output.status.code().unwrap(), stdout, stderr)
}

/// The result of a call that must succeed.
fn result(folder: &Path, arguments: &[&str]) -> Value {
    let (code, stdout, stderr) = epl(folder, &[arguments, &["--json"]].concat());
    assert_eq!(code, 0, "{arguments:?}: {stderr}");
    serde_json::from_str(&stdout).unwrap()
}

/// Fails unless the call fails with `code` and an error that has all of `words`.
fn fails(folder: &Path, arguments: &[&str], code: i32, words: &[&str]) {
    let (found, stdout, stderr) = epl(folder, arguments);
    assert_eq!((found, stdout.as_str()), (code, ""), "{arguments:?}: {stderr}");
    for word in words {
        assert!(stderr.contains(word), "{arguments:?}: {word} is not in: {stderr}");
    }
}

const SYNTH: [&str; 10] =
    ["synth", "--identities", "4", "--images", "3", "--size", "16,16", "--seed", "9", "--verification=20"];

#[test]
fn drawn_people_go_through_every_form_and_back() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let read = |path: &str| std::fs::read(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    let text = |path: &str| String::from_utf8(read(path)).unwrap();
    let drawn =
        result(root, &[&SYNTH[..], &["--out", "faces", "--hard", "0.5", "--mislabelled", "0.5"]].concat());
    assert_eq!((&drawn["images"], &drawn["pairs"]), (&json!(12), &json!(20)));
    let truth = text("faces/truth.csv");
    let rows: Vec<Vec<&str>> = truth.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!((rows.len(), &rows[0][..]), (13, &["image", "label", "shown", "hard"][..]));
    assert!(rows[1..].iter().all(|row| root.join("faces").join(row[0]).is_file()), "{truth}");
    let count = |test: &dyn Fn(&Vec<&str>) -> bool| rows[1..].iter().filter(|&row| test(row)).count();
    assert_eq!(drawn["hard"], count(&|row| row[3] == "1"));
    assert_eq!(drawn["mislabelled"], count(&|row| row[1] != row[2]));

    // The same people, straight into a record file.
    let to_records = ["--out", "rec/train.rec", "--hard", "0.5", "--mislabelled", "0.5"];
    result(root, &[&SYNTH[..], &to_records].concat());
    assert_eq!(read("rec/verification.bin"), read("faces/verification.bin"));
    assert_eq!(text("rec/property"), "4,16,16\n");
    result(root, &["pack", "--out", "packed", "faces"]);
    for file in ["train.rec", "train.idx", "property", "identities.tsv"] {
        assert_eq!(read(&format!("packed/{file}")), read(&format!("rec/{file}")), "{file}");
    }
    fails(root, &["pack", "--out", "packed", "faces"], 2, &["train.rec exists", "--force"]);
    result(root, &["pack", "--out", "packed", "--force", "--size", "20,12", "faces"]);
    assert_eq!(text("packed/property"), "4,20,12\n");

    // Out again, and in again.
    let unpacked = result(root, &["unpack", "--out", "out", "rec"]);
    assert_eq!((&unpacked["images"], &unpacked["identities"]), (&json!(12), &json!(4)));
    assert_eq!(read("out/p000002/0006.png"), read("faces/p000002/0000.png"));
    result(root, &["pack", "--out", "again", "out"]);
    assert_eq!(read("again/train.rec"), read("rec/train.rec"));
    fails(root, &["unpack", "--out", "out", "rec"], 2, &["out exists"]);
    fails(root, &["unpack", "--out", "other", "faces"], 2, &["a folder of images already"]);

    let unpacked = result(root, &["unpack", "--out", "set", "rec/verification.bin"]);
    assert_eq!((&unpacked["images"], &unpacked["pairs"]), (&json!(40), &json!(20)));
    let list = text("set/pairs.txt");
    assert!(list.starts_with("images/0000.png\timages/0001.png\t1\n"), "{list}");
    result(root, &["pack", "--out", "mine.bin", "--pairs", "set/pairs.txt"]);
    assert_eq!(read("mine.bin"), read("rec/verification.bin"));
    fails(root, &["pack", "--out", "mine.bin", "faces"], 2, &["--pairs"]);
    fails(root, &["pack", "--out", "mine", "--pairs", "set/pairs.txt"], 2, &[".bin"]);
    fails(root, &["pack", "--out", "mine"], 2, &["PATH"]);
    fails(root, &["synth", "--out", "x", "--hard", "2"], 2, &["--hard"]);
    fails(root, &["synth", "--out", "x", "--images", "0"], 2, &["nothing to draw"]);

    // What they are.
    for (path, kind, file_count) in [
        ("faces", "folder", 0),
        ("rec", "insightface", 3),
        ("rec/train.rec", "insightface", 3),
        ("mine.bin", "verification", 1),
    ] {
        let found = result(root, &["inspect", path]);
        assert_eq!(found["kind"], kind);
        assert_eq!(found["files"].as_array().unwrap().len(), file_count, "{path}");
        assert_eq!(found["images"], if kind == "verification" { 40 } else { 12 });
        assert_eq!(found["sample"]["sizes"], json!([["16x16", found["images"]]]));
        assert_eq!(found["sample"]["formats"], json!({ "PNG": found["images"] }));
        if kind == "verification" {
            assert_eq!((&found["pairs"], &found["pickle"]), (&json!([10, 10]), &json!(3)));
        } else {
            assert_eq!((&found["classes"], &found["names"][3]), (&json!(4), &json!("p000003")));
            assert_eq!(found["spread"]["histogram"], json!([{ "from": 3, "to": 4, "classes": 4 }]));
        }
        let (code, stdout, _) = epl(root, &["inspect", path]);
        assert!(code == 0 && stdout.contains("16x16 (all)"), "{stdout}");
        assert_eq!(result(root, &["check", "--no-near", path])["errors"], 0, "{path}");
    }
    fails(root, &["inspect", "none"], 1, &["none"]);
    fails(root, &["check", "faces/truth.csv"], 1, &["not a .rec file"]);
}

#[test]
fn the_doctor_names_what_is_wrong_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    result(root, &[&SYNTH[..], &["--out", "rec/train.rec"]].concat());
    let path = root.join("rec/train.rec");
    let index = std::fs::read_to_string(path.with_extension("idx")).unwrap();
    let offset = |key: &str| -> usize {
        let line = index.lines().find(|line| line.starts_with(&format!("{key}\t"))).unwrap();
        line[key.len() + 1..].parse().unwrap()
    };
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[offset("2")] = 0;
    bytes[offset("5") + 60] ^= 0xff;
    std::fs::write(&path, &bytes).unwrap();

    let (code, stdout, stderr) = epl(root, &["check", "--list", "all.csv", "rec"]);
    assert_eq!(code, 1, "{stderr}");
    for word in ["[damaged]", "key 2, byte", "magic word", "[undecodable]", "key 5, byte", "errors: 2 kinds"]
    {
        assert!(stdout.contains(word), "{word} is not in: {stdout}");
    }
    let list = std::fs::read_to_string(root.join("all.csv")).unwrap();
    let lines: Vec<&str> = list.lines().collect();
    assert_eq!(lines[0], "severity,kind,place,label,identity,other,other_label,detail");
    assert!(lines[1].starts_with("error,damaged,\"rec") && lines[1].contains("key 2, byte"), "{list}");
    assert!(lines[2].starts_with("error,undecodable,") && lines[2].contains(",1,p000001,"), "{list}");

    let (code, stdout, _) = epl(root, &["check", "--json", "--list", "all.jsonl", "rec"]);
    let report: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, &report["images"], &report["decoded"]), (1, &json!(12), &json!(10)));
    let counts: Vec<_> =
        report["findings"].as_array().unwrap().iter().map(|finding| &finding["count"]).collect();
    assert_eq!(counts[..2], [1, 1], "{report}");
    assert_eq!(report["findings"][0]["items"][0]["label"], Value::Null);
    assert_eq!(report["findings"][1]["items"][0]["identity"], "p000001");
    let list = std::fs::read_to_string(root.join("all.jsonl")).unwrap();
    let lines: Vec<Value> = list.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len() as u64, counts.iter().filter_map(|count| count.as_u64()).sum::<u64>());
    assert_eq!(lines[0]["kind"], "damaged");

    // And what is whole can be saved.
    fails(root, &["pack", "--out", "saved", "rec"], 1, &["key 2, byte"]);
    let (code, _, stderr) = epl(root, &["pack", "--out", "saved", "--skip-damaged", "rec"]);
    assert!(code == 0 && stderr.matches("left out: ").count() == 2, "{stderr}");
    assert_eq!(result(root, &["check", "--no-near", "saved"])["images"], 10);
    fails(root, &["unpack", "--out", "out", "rec"], 1, &["key 2, byte"]);
    assert_eq!(result(root, &["unpack", "--out", "out", "--skip-damaged", "rec"])["left_out"], 1);
}
