//! `epl eval ijb` and `epl eval megaface` as a user runs them, with a tiny network on drawn images.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

/// Runs `epl` in `folder`: its exit code, standard output and standard error.
fn epl(folder: &Path, arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_epl"));
    command.args(arguments).current_dir(folder).env("EPL_CACHE", folder.join("cache"));
    command.env("EPL_KERNEL_CACHE", "off");
    let output = command.output().unwrap();
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

/// Draws an image of somebody.
fn draw(path: &Path, side: u32, person: u32, sample: u32) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let colour = |x: u32, y: u32| {
        let wave = (x * (person + 2) + y * (sample % 3 + 1)) * 256 / side;
        image::Rgb([(70 * person + wave / 4) as u8, (40 * (sample % 5) + y) as u8, wave as u8])
    };
    image::RgbImage::from_fn(side, side, colour).save(path).unwrap();
}

/// A folder with the weights of a tiny network, `w.safetensors`, whose input is 16 x 16, and its training set.
fn work_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    for person in 0..3 {
        for sample in 0..4 {
            draw(
                &root.join(format!("faces/Person_{person}/Person_{person}_{sample}.png")),
                16,
                person,
                sample,
            );
        }
    }
    let config = "[model]\narch = 'ir18'\ninput = [16, 16]\nwidth = 4\nembedding = 8\n\
                  [data]\ntrain = 'faces'\n[train]\nout = 'run'\nepochs = 1\nmax_steps = 2\nbatch_size = 4\n";
    std::fs::write(root.join("config.toml"), config).unwrap();
    let (code, _, stderr) = epl(root, &["train", "config.toml"]);
    assert_eq!(code, 0, "{stderr}");
    std::fs::copy(root.join("run/model.safetensors"), root.join("w.safetensors")).unwrap();
    folder
}

/// Writes a tiny IJB-B: 8 people with 3 templates each, of up to three images in up to two media.
fn write_ijb(root: &Path) {
    let target = [38.2946, 51.6963, 73.5318, 51.5014, 56.0252, 71.7366, 41.5493, 92.3655, 70.7299, 92.2041];
    let (mut points, mut media, mut image) = (String::new(), String::new(), 0);
    for template in 0..24_u32 {
        for frame in 0..=template % 3 {
            image += 1;
            let name = format!("{image}.png");
            draw(&root.join("loose_crop").join(&name), 56, template % 8, image);
            let numbers: Vec<String> =
                target.iter().map(|value| (value / 2.0 + f64::from(image % 4)).to_string()).collect();
            points.push_str(&format!("{name} {} 0.{}\n", numbers.join(" "), 90 + image % 10));
            media.push_str(&format!("{name} {} {}\n", template + 1, 100 + template * 2 + frame / 2));
        }
    }
    let mut pairs = String::new();
    for a in 0..24 {
        for b in a + 1..24 {
            pairs.push_str(&format!("{} {} {}\n", a + 1, b + 1, u8::from(a % 8 == b % 8)));
        }
    }
    let roster = |templates: std::ops::Range<u32>| {
        let rows: Vec<String> =
            templates.map(|template| format!("{},{}", template + 1, template % 8)).collect();
        format!("TEMPLATE_ID,SUBJECT_ID\n{}\n", rows.join("\n"))
    };
    let write = |name: &str, text: &str| {
        std::fs::create_dir_all(root.join("meta")).unwrap();
        std::fs::write(root.join("meta").join(format!("ijbb_{name}")), text).unwrap();
    };
    write("name_5pts_score.txt", &points);
    write("face_tid_mid.txt", &media);
    write("template_pair_label.txt", &pairs);
    write("1N_gallery_S1.csv", &roster(0..4));
    write("1N_gallery_S2.csv", &roster(4..8));
    write("1N_probe_mixed.csv", &roster(8..24));
}

#[test]
fn ijb_is_evaluated_from_its_folder() {
    let folder = work_folder();
    let root = folder.path();
    write_ijb(&root.join("sets/IJBB"));
    let call = ["eval", "ijb", "--weights", "w.safetensors", "--ijb", "sets", "--target", "IJBB"];
    let with = |more: &[&'static str]| [&call[..], more].concat();
    let found = result(root, &with(&["--report", "ijbb.html"]));
    assert_eq!(
        (&found["target"], &found["templates"], &found["faces"]),
        (&json!("IJBB"), &json!(24), &json!(48))
    );
    assert_eq!(found["settings"], json!({"norm": true, "detector_score": true, "flip": true}));
    let verification = &found["verification"];
    assert_eq!((&verification["pairs"], &verification["matching"]), (&json!(276), &json!(24)));
    let rates = verification["tar_at_far"].as_array().unwrap();
    let fars: Vec<f64> = rates.iter().map(|at| at["far"].as_f64().unwrap()).collect();
    assert_eq!(fars, [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1]);
    let tars: Vec<f64> = rates.iter().map(|at| at["tar"].as_f64().unwrap()).collect();
    assert!(tars.is_sorted() && tars.iter().all(|tar| (0.0..=1.0).contains(tar)), "{tars:?}");
    let identification = &found["identification"];
    assert_eq!(identification["probes"], 16);
    let names: Vec<&str> =
        identification["galleries"].as_array().unwrap().iter().map(|g| g["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["S1", "S2"]);
    for gallery in [&identification["together"], &identification["mean"], &identification["galleries"][0]] {
        assert!(gallery["top_1"].as_f64().unwrap() <= gallery["top_5"].as_f64().unwrap(), "{gallery}");
        assert_eq!(gallery["tpir_at_fpir"].as_array().unwrap().len(), 2);
    }
    let page = std::fs::read_to_string(root.join("ijbb.html")).unwrap();
    for part in ["N1D1F1", "TAR %", "FPIR", "<svg"] {
        assert!(page.contains(part), "{part}");
    }

    // The second time the embeddings come from the cache, and are the same; other features have other results.
    let again = epl(root, &with(&["--json"]));
    assert!(again.2.contains("embeddings of 48 images are from"), "{}", again.2);
    assert_eq!(serde_json::from_str::<Value>(&again.1).unwrap(), found);
    let auc = |found: &Value| found["verification"]["auc"].as_f64().unwrap();
    for option in ["--no-norm", "--no-detector-score", "--no-flip"] {
        let other = result(root, &with(&[option]));
        assert_ne!(auc(&other), auc(&found), "{option}");
    }
    let (code, text, _) = epl(root, &call);
    assert_eq!(code, 0);
    for part in
        ["IJBB N1D1F1: 48 faces in 24 templates", "276 pairs", "1:N, 16 probes", "all galleries", "S1"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }

    // Without the lists of 1:N there is 1:1, with a word.
    std::fs::remove_file(root.join("sets/IJBB/meta/ijbb_1N_gallery_S1.csv")).unwrap();
    let (code, text, said) = epl(root, &with(&["--json"]));
    assert!(code == 0 && said.contains("no 1:N") && said.contains("gallery_S1.csv"), "{said}");
    let found: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&found["identification"], found["remarks"].as_array().unwrap().len()), (&Value::Null, 1));

    fails(root, &with(&["--target", "IJBC"]), 2, &["--target"]);
    fails(
        root,
        &["eval", "ijb", "--weights", "w.safetensors", "--ijb", "sets"],
        1,
        &["no folder meta", "IJBC"],
    );
    fails(root, &with(&["--report", "sets"]), 1, &["sets"]);

    // What the lists alone tell is found before an image or the weights are read.
    let early = ["eval", "ijb", "--weights", "none.safetensors", "--ijb", "sets", "--target", "IJBB"];
    let list = |name: &str| root.join("sets/IJBB/meta").join(format!("ijbb_{name}"));
    std::fs::write(list("1N_gallery_S1.csv"), "T,S\n1,0\n2,1\n3,2\n4,3\n").unwrap();
    for (name, text, words) in [
        ("1N_probe_mixed.csv", "T,S\n", &["ijbb_1N_probe_mixed.csv", "an empty list"][..]),
        ("1N_probe_mixed.csv", "T,S\n9,0\n13,4\n14,77\n", &["probe_mixed.csv", "template 14 of person 77"]),
        ("1N_gallery_S2.csv", "T,S\n", &["ijbb_1N_gallery_S2.csv", "an empty list"]),
        ("template_pair_label.txt", "\n", &["ijbb_template_pair_label.txt", "0 matching pairs of 0"]),
        ("template_pair_label.txt", "1 2 0\n", &["ijbb_template_pair_label.txt", "0 matching pairs of 1"]),
    ] {
        let before = std::fs::read(list(name)).unwrap();
        std::fs::write(list(name), text).unwrap();
        fails(root, &early, 1, words);
        std::fs::write(list(name), before).unwrap();
    }
    fails(root, &early, 1, &["none.safetensors"]);
    std::fs::write(root.join("sets/IJBB/loose_crop/7.png"), "no image").unwrap();
    fails(root, &call, 1, &["face 7 (7.png)"]);
    std::fs::remove_file(root.join("sets/IJBB/loose_crop/7.png")).unwrap();
    fails(root, &call, 1, &["face 7 (7.png)", "1 of 48 images"]);
}

#[test]
fn megaface_is_evaluated_from_folders_lists_and_embeddings() {
    let folder = work_folder();
    let root = folder.path();
    for at in 0..30 {
        draw(&root.join(format!("mega/{}/{}@N00/{at}_0.png", at % 3, at % 7)), 16, at + 5, at);
    }
    let sets = ["eval", "megaface", "--facescrub", "faces", "--megaface", "mega"];
    let call = [&sets[..], &["--weights", "w.safetensors"]].concat();
    let with = |more: &[&'static str]| [&call[..], more].concat();
    let found = result(root, &with(&["--report", "mega.html"]));
    for (key, count) in
        [("probes", 12), ("people", 3), ("distractors", 30), ("searches", 36), ("genuine_pairs", 18)]
    {
        assert_eq!(found[key], count, "{key}");
    }
    assert_eq!(found["impostor_pairs"], 360);
    // 360 pairs are too few for every rate.
    for at in found["verification"].as_array().unwrap() {
        assert_eq!((&at["tar"], &at["threshold"]), (&Value::Null, &Value::Null));
        assert!(at["note"].as_str().unwrap().starts_with("360 pairs of a photo and a distractor"), "{at}");
    }
    let sizes = |found: &Value| -> Vec<u64> {
        let all = found["identification"].as_array().unwrap();
        all.iter().map(|found| found["distractors"].as_u64().unwrap()).collect()
    };
    assert_eq!(sizes(&found), [10, 30]);
    let rank_1 = |found: &Value, at: usize| found["identification"][at]["rank_1"].as_f64().unwrap();
    assert!(rank_1(&found, 0) >= rank_1(&found, 1), "more distractors are harder: {found}");
    assert_eq!(found["identification"][1]["cmc"].as_array().unwrap().last().unwrap(), &json!([31, 1.0]));
    let page = std::fs::read_to_string(root.join("mega.html")).unwrap();
    for part in ["30 distractors", "FAR 1e-6: 360 pairs", "takes at least 1000000"] {
        assert!(page.contains(part), "{part}");
    }
    fails(root, &with(&["--distractors", "10,0"]), 2, &["--distractors"]);
    assert_eq!(sizes(&result(root, &with(&["--distractors", "5,7,5"]))), [5, 7, 30]);

    // Embeddings that were written before give the same.
    for (set, out) in [("faces", "fs.safetensors"), ("mega", "mf.safetensors")] {
        let images: Vec<String> = if set == "mega" {
            let of = |at: u32| format!("mega/{}/{}@N00/{at}_0.png", at % 3, at % 7);
            let mut all: Vec<String> = (0..30).map(of).collect();
            all.sort_by_key(|name| name.to_owned());
            all
        } else {
            vec![set.to_owned()]
        };
        let mut embed = vec!["embed", "--weights", "w.safetensors", "--out", out];
        embed.extend(images.iter().map(String::as_str));
        result(root, &embed);
    }
    let embedded =
        result(root, &["eval", "megaface", "--facescrub", "fs.safetensors", "--megaface", "mf.safetensors"]);
    // The distractors are in another order, which only smaller sets depend on.
    assert_eq!(embedded["identification"][1], found["identification"][1]);
    assert_eq!(embedded["verification"], found["verification"]);

    // Noise lists and lists of photos.
    std::fs::write(root.join("fs_noise"), "# noise\nPerson_1_2.png\nPerson_9_9.png\n").unwrap();
    std::fs::write(root.join("mf_noise"), "1\t0/0@N00/0_0.png\n0/3@N00/3_0.png\n").unwrap();
    let noise = ["--facescrub-noise", "fs_noise", "--megaface-noise", "mf_noise"];
    let replaced = result(root, &with(&noise));
    assert_eq!((&replaced["noisy_probes"], &replaced["noisy_distractors"]), (&json!(1), &json!(2)));
    assert_eq!((&replaced["distractors"], &replaced["searches"]), (&json!(30), &json!(36)));
    let dropped = result(root, &with(&[&noise[..], &["--noise", "drop"]].concat()));
    assert_eq!((&dropped["distractors"], &dropped["probes"]), (&json!(28), &json!(11)));
    assert_eq!(dropped["searches"], 2 * 12 + 6);
    std::fs::write(root.join("list"), "Person_0/Person_0_0.png\nPerson_0/Person_0_3.png\n").unwrap();
    assert_eq!(result(root, &with(&["--facescrub-list", "list"]))["searches"], 2);
    let (code, text, said) = epl(root, &with(&["--megaface-noise", "fs_noise"]));
    assert!(code == 0 && said.contains("no photo is on the list fs_noise"), "{said}");
    assert!(text.contains("12 photos of 3 people, 30 distractors, 36 searches"), "{text}");
    assert!(
        text.contains("FAR 1e-4: 360 pairs of a photo and a distractor; this rate takes at least 10000"),
        "{text}"
    );
    std::fs::write(root.join("list"), "Person_0/Person_0_0.png\n./Person_0/Person_0_0.png\n").unwrap();
    fails(root, &with(&["--facescrub-list", "list"]), 1, &["list, line 2", "the photo of list, line 1"]);
    std::fs::write(root.join("list"), "0/0@N00/0_0.png\n0/0@N00/0_0.png\n").unwrap();
    fails(root, &with(&["--megaface-list", "list"]), 1, &["list, line 2", "the photo of list, line 1"]);

    fails(root, &sets, 2, &["--weights"]);
    fails(root, &[&sets[..], &["--arch", "ir18"]].concat(), 2, &["--weights"]);
    fails(root, &with(&["--facescrub-list", "fs_noise"]), 1, &["fs_noise", "line 1"]);
    fails(root, &with(&["--megaface-list", "none"]), 1, &["none"]);
    fails(root, &with(&["--facescrub", "mega"]), 2, &["--facescrub"]);
    let strange = ["eval", "megaface", "--facescrub", "faces/Person_0", "--megaface", "mega"];
    fails(root, &strange, 1, &["in no folder", "Person_0"]);
    std::fs::write(root.join("list"), "Person_0/Person_0_0.png\nPerson_1/Person_1_3.png\n").unwrap();
    fails(root, &with(&["--facescrub-list", "list"]), 1, &["two photos"]);
}
