//! `epl eval all-pairs` as scripts use it, on embeddings that are made here: what its numbers are, and what is refused.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Command, Output};

use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;

/// People, and images of each.
const PEOPLE: usize = 30;
const EACH: usize = 6;
const DIMENSION: usize = 16;

fn epl(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_epl"));
    command.args(["eval", "all-pairs"]).args(arguments).current_dir(folder);
    command
        .env_remove("EPL_DEVICE")
        .env("EPL_CACHE", "cache")
        .env("EPL_KERNEL_CACHE", "off")
        .output()
        .unwrap()
}

fn result(folder: &Path, arguments: &[&str]) -> Value {
    let ran = epl(folder, &[arguments, &["--json"]].concat());
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    serde_json::from_slice(&ran.stdout).expect("one JSON value on standard output")
}

fn refused(folder: &Path, arguments: &[&str], code: i32, word: &str) {
    let ran = epl(folder, arguments);
    let stderr = String::from_utf8_lossy(&ran.stderr);
    assert_eq!((ran.status.code(), ran.stdout.len()), (Some(code), 0), "{stderr}");
    assert!(stderr.contains(word) && !stderr.contains("panicked"), "{word} is not in: {stderr}");
}

fn write(path: &Path, values: &[f32], labels: Option<&[i64]>, paths: Option<&[String]>) {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let numbers: Vec<u8> = labels.unwrap_or_default().iter().flat_map(|label| label.to_le_bytes()).collect();
    let rows = values.len() / DIMENSION;
    let embeddings = TensorView::new(Dtype::F32, vec![rows, DIMENSION], &bytes).unwrap();
    let mut tensors = vec![("embeddings", embeddings)];
    if let Some(labels) = labels {
        tensors.push(("labels", TensorView::new(Dtype::I64, vec![labels.len()], &numbers).unwrap()));
    }
    let metadata = paths
        .map(|paths| [("paths".to_owned(), serde_json::to_string(paths).unwrap())].into_iter().collect());
    std::fs::write(path, safetensors::serialize(tensors, metadata).unwrap()).unwrap();
}

/// Embeddings around a direction a person, with labels and paths; the last one has no label.
fn faces() -> (Vec<f32>, Vec<i64>, Vec<String>) {
    let mut state = 5u64;
    let mut uniform = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    let (mut values, mut labels, mut paths) = (Vec::new(), Vec::new(), Vec::new());
    for person in 0..PEOPLE {
        let centre: Vec<f32> = (0..DIMENSION).map(|_| uniform()).collect();
        for image in 0..EACH {
            values.extend(centre.iter().map(|value| value + 0.7 * uniform()));
            labels.push(person as i64);
            paths.push(format!("faces/p{person}/{image}.png"));
        }
    }
    values.extend([1.0; DIMENSION]);
    labels.push(-1);
    paths.push("loose.png".to_owned());
    (values, labels, paths)
}

/// True accepts at `far` of the people in `chosen`: (genuine, impostors, accepted), by comparing and sorting.
fn expected(chosen: std::ops::Range<usize>, far: f64) -> (usize, usize, usize) {
    let (values, labels, _) = faces();
    let unit: Vec<Vec<f64>> = values
        .chunks_exact(DIMENSION)
        .map(|row| {
            let norm = row.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt();
            row.iter().map(|&value| f64::from((f64::from(value) / norm) as f32)).collect()
        })
        .collect();
    let rows: Vec<usize> = (chosen.start * EACH..chosen.end * EACH).collect();
    let (mut genuine, mut impostors) = (Vec::new(), Vec::new());
    for (at, &i) in rows.iter().enumerate() {
        for &j in &rows[at + 1..] {
            let score: f64 = unit[i].iter().zip(&unit[j]).map(|(a, b)| a * b).sum();
            if labels[i] == labels[j] { genuine.push(score) } else { impostors.push(score) }
        }
    }
    impostors.sort_by(|a, b| b.total_cmp(a));
    let threshold = impostors[(far * impostors.len() as f64) as usize];
    let accepted = genuine.iter().filter(|&&score| score > threshold).count();
    (genuine.len(), impostors.len(), accepted)
}

#[test]
fn rates_over_all_pairs_are_those_of_sorting_for_the_set_and_its_groups() {
    let folder = tempfile::tempdir().unwrap();
    let (values, labels, paths) = faces();
    write(&folder.path().join("e.safetensors"), &values, Some(&labels), Some(&paths));
    let mut csv = "identity,group\nfaces/p0/0.png,one image\n".to_owned();
    (0..10).for_each(|person| csv += &format!("p{person},first\n"));
    (5..25).for_each(|person| csv += &format!("p{person},middle\n"));
    std::fs::write(folder.path().join("groups.csv"), csv).unwrap();

    let arguments = ["--embeddings", "e.safetensors", "--groups", "groups.csv", "--report", "page.html"];
    let found = result(folder.path(), &arguments);
    let count = PEOPLE * EACH;
    for (key, value) in
        [("images", count), ("identities", PEOPLE), ("unlabelled", 1), ("zero_embeddings", 0), ("passes", 2)]
    {
        assert_eq!(found[key], value, "{key}");
    }
    assert_eq!(found["set"], "e");
    let groups: Vec<(&Value, std::ops::Range<usize>)> =
        vec![(&found, 0..PEOPLE), (&found["groups"][1], 0..10), (&found["groups"][2], 5..25)];
    for (found, people) in groups {
        let rates = found["tar_at_far"].as_array().unwrap();
        assert_eq!(rates.len(), 6);
        for rate in rates {
            let far = rate["far"].as_f64().unwrap();
            let (genuine, impostors, accepted) = expected(people.clone(), far);
            assert_eq!(
                (&found["genuine_pairs"], &found["impostor_pairs"]),
                (&genuine.into(), &impostors.into())
            );
            if (impostors as f64) * far < 1.0 {
                assert!(
                    rate["tar"].is_null() && rate["note"].as_str().unwrap().contains("at least"),
                    "{rate}"
                );
            } else {
                assert_eq!(rate["accepted"], accepted, "{rate}");
                assert_eq!(rate["tar"], accepted as f64 / genuine as f64);
                assert!(accepted > 0 && rate["threshold"].as_f64().unwrap() > 0.0, "{rate}");
            }
        }
    }
    assert_eq!(found["groups"][0]["group"], "one image");
    assert!(found["groups"][0]["tar_at_far"][5]["tar"].is_null());

    let page = std::fs::read_to_string(folder.path().join("page.html")).unwrap();
    for part in ["By group", "middle", "<svg", "e.safetensors", "0.1"] {
        assert!(page.contains(part), "{part}");
    }
    // As text, and at other rates.
    let ran = epl(folder.path(), &["--embeddings", "e.safetensors", "--far", "0.05", "--far", "1e-9"]);
    let text = String::from_utf8_lossy(&ran.stdout);
    assert!(text.contains("5e-2") && text.contains("this rate takes at least 1000000000"), "{text}");
}

#[test]
fn what_cannot_be_measured_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let (values, labels, paths) = faces();
    let at = |name: &str| folder.path().join(name);
    write(&at("e.safetensors"), &values, Some(&labels), Some(&paths));
    write(&at("unlabelled.safetensors"), &values, None, None);
    write(&at("unnamed.safetensors"), &values, Some(&labels), None);
    write(&at("short.safetensors"), &values, Some(&labels[1..]), None);
    write(&at("one.safetensors"), &values, Some(&vec![3; labels.len()]), None);
    let own: Vec<i64> = (0..labels.len() as i64).collect();
    write(&at("own.safetensors"), &values, Some(&own), None);
    let mut spoilt = values.clone();
    spoilt[3 * DIMENSION] = f32::NAN;
    write(&at("nan.safetensors"), &spoilt, Some(&labels), None);
    std::fs::write(at("rubbish.safetensors"), "rubbish").unwrap();
    std::fs::write(at("groups.csv"), "image,group\nfaces/p99/0.png,g\n").unwrap();
    std::fs::create_dir(at("empty")).unwrap();
    let refused = |arguments: &[&str], code, word| refused(folder.path(), arguments, code, word);

    refused(&[], 2, "PATH");
    refused(&["faces"], 2, "--weights");
    refused(&["--embeddings", "e.safetensors", "--far", "2"], 2, "between 0 and 1");
    refused(&["--embeddings", "e.safetensors", "--plan", "9"], 2, "--plan");
    refused(&["--plan", "1"], 2, "no pairs");
    for (file, word) in [
        ("unlabelled", "no tensor labels"),
        ("short", "180 labels"),
        ("one", "0 impostor pairs"),
        ("own", "0 genuine"),
        ("nan", "not finite"),
        ("rubbish", "rubbish.safetensors"),
        ("missing", "missing.safetensors"),
    ] {
        refused(&["--embeddings", &format!("{file}.safetensors")], 1, word);
    }
    refused(&["--embeddings", "e.safetensors", "--groups", "groups.csv"], 1, "groups.csv, line 2");
    refused(&["--embeddings", "unnamed.safetensors", "--groups", "groups.csv"], 1, "without the paths");
    refused(&["--embeddings", "e.safetensors", "--report", "empty"], 1, "empty");
    refused(&["--weights", "w.safetensors", "empty"], 1, "empty");
    refused(&["--weights", "w.safetensors", "absent"], 1, "absent");
}

#[test]
fn a_plan_is_measured_without_a_set() {
    let folder = tempfile::tempdir().unwrap();
    let plan = result(folder.path(), &["--plan", "3000", "--dimension", "32"]);
    assert_eq!((&plan["pairs"], &plan["dimension"]), (&(3000 * 2999 / 2).into(), &32.into()));
    for key in ["step_seconds", "pairs_per_second", "gflops", "pass_seconds"] {
        assert!(plan["measured"][key].as_f64().unwrap() > 0.0, "{plan}");
    }
}
