//! `epl bench --loader` and `epl data augment` as scripts use them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Exit code, standard output and standard error of a call of `epl` in `folder`.
fn epl(folder: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_epl"))
        .current_dir(folder)
        .args(arguments)
        .env("EPL_KERNEL_CACHE", "off")
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// A folder of three people with two images each, 112 x 112, in the corners of which the colours differ.
fn faces(folder: &Path) {
    for person in 0..3_u8 {
        for sample in 0..2_u8 {
            let path = folder.join(format!("faces/{person}/{sample}.jpg"));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            let picture = image::RgbImage::from_fn(112, 112, |x, y| {
                image::Rgb([x as u8 * 2, y as u8 * 2, 80 * person + 20 * sample])
            });
            picture.save(path).unwrap();
        }
    }
    let config = "[data]\ntrain = \"faces\"\naugment = [\"mirror\", { kind = \"shift\", pixels = 8 }]\n\
                  [train]\nout = \"run\"\nbatch_size = 4\n";
    std::fs::write(folder.join("config.toml"), config).unwrap();
}

#[test]
fn the_loader_is_measured_and_a_step_is_not() {
    let folder = tempfile::tempdir().unwrap();
    faces(folder.path());
    let arguments = ["bench", "--loader", "faces", "--batch", "2", "--threads", "2", "--seconds", "1"];
    let augment = ["--augment", "[\"mirror\", \"erase\"]", "--json"];
    let (code, stdout, stderr) = epl(folder.path(), &[&arguments[..], &augment].concat());
    assert_eq!(code, Some(0), "{stderr}");
    let found: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((&found["images"], &found["batch"], &found["threads"]), (&6.into(), &2.into(), &2.into()));
    for figure in [&found["decode"]["images_per_second"], &found["loader"]["images_per_second"]] {
        assert!(figure.as_f64().unwrap() > 10.0, "{stdout}");
    }
    let loader = &found["loader"];
    assert!(loader["decode_ms_per_image"].as_f64() > loader["augment_ms_per_image"].as_f64());
    assert!(loader["augment_ms_per_image"].as_f64().unwrap() > 0.0);
    assert!(loader["peak_prefetch"].as_u64().unwrap() <= loader["prefetch_limit"].as_u64().unwrap());
    let costs = found["augmentations"].as_array().unwrap();
    assert_eq!((costs.len(), &costs[0]["name"], &costs[0]["probability"]), (9, &"erase".into(), &0.2.into()));

    for (arguments, words) in [
        (&["bench", "--seconds", "3"][..], &["--loader"][..]),
        (&["bench", "--loader", "--arch", "ir50"], &["--arch", "--loader"]),
        (&["bench", "--arch", "ir51"], &["model.arch", "ir51"]),
        (&["bench", "--loader", "--augment", "[\"turn\"]"], &["data.augment[0]", "\"turn\""]),
        (&["bench", "--loader", "faces", "--batch", "7"], &["batch_size is 7", "6 images"]),
    ] {
        let (code, stdout, stderr) = epl(folder.path(), arguments);
        assert_eq!((code, stdout.as_str()), (Some(2), ""), "{stderr}");
        assert!(words.iter().all(|word| stderr.contains(word)), "{stderr}");
    }
}

#[test]
fn the_sheet_shows_the_images_as_they_are_and_as_they_come() {
    let folder = tempfile::tempdir().unwrap();
    faces(folder.path());
    let draw = |more: &[&str]| {
        let arguments =
            ["data", "augment", "config.toml", "--out", "sheet.png", "--images", "3", "--epochs", "4"];
        let (code, stdout, stderr) = epl(folder.path(), &[&arguments[..], more].concat());
        assert_eq!(code, Some(0), "{stderr}");
        (stdout, image::open(folder.path().join("sheet.png")).unwrap().into_rgb8())
    };
    let (stdout, sheet) = draw(&["--json"]);
    let found: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((found["images"].as_array().unwrap().len(), &found["augment"][0]), (3, &"mirror".into()));
    assert_eq!(sheet.dimensions(), (5 * 116 + 4, 3 * 116 + 4));
    let tile = |sheet: &image::RgbImage, row: u32, column: u32| {
        image::imageops::crop_imm(sheet, 4 + 116 * column, 4 + 116 * row, 112, 112).to_image()
    };
    // On the left the images 0, 2 and 4 as they are.
    for (row, path) in ["faces/0/0.jpg", "faces/1/0.jpg", "faces/2/0.jpg"].iter().enumerate() {
        assert_eq!(tile(&sheet, row as u32, 0), image::open(folder.path().join(path)).unwrap().into_rgb8());
    }
    let changed = |sheet: &image::RgbImage| {
        (0..12).filter(|at| tile(sheet, at / 4, 1 + at % 4) != tile(sheet, at / 4, 0)).count()
    };
    assert!(changed(&sheet) > 0);
    assert_eq!(draw(&[]).1, sheet, "the same sheet again");
    assert_eq!(changed(&draw(&["--set", "data.augment=[]"]).1), 0);
    let erased = draw(&["--set", "data.augment=[{kind=\"erase\", probability=0}]", "--always"]).1;
    assert_eq!(changed(&erased), 12);
}
