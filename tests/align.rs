//! `epl data align` as a user runs it. Needs no GPU.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

/// Runs `epl data align` in `folder`: its exit code, standard output and standard error.
fn align(folder: &Path, arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_epl"));
    let output = command.args(["data", "align"]).args(arguments).current_dir(folder).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(!stderr.contains("panicked"), "{arguments:?}: {stderr}");
    (output.status.code().unwrap(), stdout, stderr)
}

fn result(ran: &(i32, String, String)) -> Value {
    serde_json::from_str(&ran.1).unwrap_or_else(|error| panic!("{error}: {} {}", ran.1, ran.2))
}

/// The target points, moved by a similarity transform; with the sides exchanged where that is asked for.
fn landmarks(scale: f64, shift: [f64; 2], exchanged: bool) -> Vec<f64> {
    let mut points =
        [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]];
    if exchanged {
        points.swap(0, 1);
        points.swap(3, 4);
    }
    points.iter().flat_map(|[x, y]| [x * scale + shift[0], y * scale + shift[1]]).collect()
}

fn line(name: &str, numbers: &[f64], separator: &str) -> String {
    let fields: Vec<String> =
        std::iter::once(name.to_owned()).chain(numbers.iter().map(f64::to_string)).collect();
    fields.join(separator) + "\n"
}

fn write_image(path: &Path, width: u32, height: u32) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let colour = |x: u32, y: u32| image::Rgb([(x * 255 / width) as u8, (y * 255 / height) as u8, 90]);
    image::RgbImage::from_fn(width, height, colour).save(path).unwrap();
}

#[test]
fn faces_are_aligned_and_what_fails_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    for name in ["s1/a.png", "s1/b c.png", "s2/a.png", "s2/odd.png"] {
        write_image(&root.join("photos").join(name), 300, 250);
    }
    std::fs::write(root.join("photos/text.jpg"), "no image").unwrap();
    let good = landmarks(2.0, [30.0, 20.0], false);
    let list: String = [
        "path,x1,y1,x2,y2,x3,y3,x4,y4,x5,y5\n".to_owned(),
        line("s1/a.png", &good, ","),
        line("s1/b c.png", &good, ","),
        line("s2/a.png", &landmarks(1.0, [500.0, 20.0], false), ","),
        line("s2/odd.png", &landmarks(2.0, [30.0, 20.0], true), ","),
        line("s1/missing.png", &good, ","),
        line("text.jpg", &good, ","),
        line("s1/a.png", &good, ","),
        line("../outside.png", &good, ","),
        line("s1/a.png", &good[..6], ","),
        line("s2/a.bmp", &[7.0; 10], ","),
        "s1/a.png,1,2,3,4,5,6,7,8,9,NaN\n".to_owned(),
    ]
    .concat();
    std::fs::write(root.join("list.csv"), &list).unwrap();
    std::fs::copy(root.join("photos/s1/a.png"), root.join("photos/s2/a.bmp")).unwrap();
    let call = ["--landmarks", "list.csv", "--images", "photos", "--out", "out"];
    let ran = align(root, &[&call[..], &["--json", "--sheet", "sheet.png"]].concat());
    assert_eq!(ran.0, 1, "{}", ran.2);
    let found = result(&ran);
    for (key, count) in
        [("images", 11), ("aligned", 4), ("kept", 0), ("failed", 7), ("mirrored", 1), ("size", 112)]
    {
        assert_eq!(found[key], count, "{key}: {found}");
    }
    let failures = found["failures"].as_array().unwrap();
    let lines: Vec<u64> = failures.iter().map(|failure| failure["line"].as_u64().unwrap()).collect();
    assert_eq!(lines, [6, 7, 8, 9, 10, 11, 12]);
    for (failure, word) in failures.iter().zip([
        "missing.png",
        "text.jpg",
        "line 2",
        "inside the folder",
        "6 numbers",
        "line 4",
        "NaN",
    ]) {
        assert!(failure["what"].as_str().unwrap().contains(word), "{word}: {failure}");
    }
    let warnings = found["warnings"].as_array().unwrap();
    assert_eq!(warnings.len(), 2);
    assert!(warnings[0]["what"].as_str().unwrap().contains("far outside"), "{}", warnings[0]);
    assert!(warnings[1]["what"].as_str().unwrap().contains("exchanged"), "{}", warnings[1]);

    let open = |name: &str| image::open(root.join("out").join(name)).unwrap().into_rgb8();
    // x' = (x - 30) / 2: the picture's colour tells where a pixel is from.
    let aligned = open("s1/a.png");
    assert_eq!(aligned.dimensions(), (112, 112));
    for (x, y) in [(0, 0), (50, 70), (111, 111)] {
        let expected = [(2 * x + 30) * 255 / 300, (2 * y + 20) * 255 / 250, 90];
        let pixel = aligned.get_pixel(x, y).0;
        assert!(
            pixel.iter().zip(expected).all(|(a, b)| u32::from(*a).abs_diff(b) <= 1),
            "{pixel:?} {expected:?}"
        );
    }
    assert_eq!(aligned, open("s1/b c.png"));
    assert!(open("s2/a.png").pixels().all(|pixel| pixel.0 == [0; 3]), "beside the image all is black");
    assert!(!root.join("out/outside.png").exists() && !root.join("outside.png").exists());
    let sheet = image::open(root.join("sheet.png")).unwrap().into_rgb8();
    assert!(sheet.width() > 4 * 2 * 200 && sheet.height() > 200);
    // Nothing unfinished is left.
    let names = std::fs::read_dir(root.join("out/s1")).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = names.collect();
    names.sort();
    assert_eq!(names, ["a.png", "b c.png"]);

    // What is there stays, unless it is to be written anew.
    let before = std::fs::read(root.join("out/s1/a.png")).unwrap();
    std::fs::write(root.join("out/s1/a.png"), "mine").unwrap();
    let again = result(&align(root, &[&call[..], &["--json"]].concat()));
    assert_eq!((&again["aligned"], &again["kept"], &again["failed"]), (&json!(0), &json!(4), &json!(7)));
    assert_eq!(std::fs::read(root.join("out/s1/a.png")).unwrap(), b"mine");
    align(root, &[&call[..], &["--overwrite"]].concat());
    assert_eq!(std::fs::read(root.join("out/s1/a.png")).unwrap(), before);
}

#[test]
fn other_forms_of_lists_and_of_images() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    write_image(&root.join("photos/000001.jpg"), 178, 218);
    let celeba = format!(
        "1\nlefteye_x lefteye_y righteye_x righteye_y nose_x nose_y leftmouth_x leftmouth_y rightmouth_x rightmouth_y \n{}",
        line("000001.jpg", &landmarks(1.0, [33.0, 53.0], true), "  ")
    );
    std::fs::write(root.join("celeba.txt"), celeba).unwrap();
    let call = ["--landmarks", "celeba.txt", "--images", "photos", "--format", "jpg"];
    let plain = align(root, &[&call[..], &["--out", "plain", "--size", "64"]].concat());
    assert_eq!(plain.0, 0, "{}", plain.2);
    assert!(
        plain.2.contains("--swap-sides") && plain.1.contains("1 of them mirrored"),
        "{} {}",
        plain.1,
        plain.2
    );
    let swapped = align(root, &[&call[..], &["--out", "swapped", "--swap-sides", "--size", "64"]].concat());
    assert_eq!((swapped.0, swapped.2.as_str()), (0, ""), "{}", swapped.1);
    let bytes = std::fs::read(root.join("swapped/000001.jpg")).unwrap();
    assert_eq!(image::guess_format(&bytes).unwrap(), image::ImageFormat::Jpeg);
    assert_eq!(image::load_from_memory(&bytes).unwrap().into_rgb8().dimensions(), (64, 64));
}

#[test]
fn wrong_calls_are_one_clear_error() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    write_image(&root.join("photos/a.png"), 8, 8);
    std::fs::write(root.join("empty.txt"), "").unwrap();
    std::fs::write(root.join("good.txt"), line("a.png", &landmarks(1.0, [0.0; 2], false), " ")).unwrap();
    let call = |list: &'static str, images: &'static str, out: &'static str| {
        align(root, &["--landmarks", list, "--images", images, "--out", out])
    };
    for (ran, code, word) in [
        (call("none.txt", "photos", "out"), 1, "none.txt"),
        (call("empty.txt", "photos", "out"), 1, "no landmarks"),
        (call("photos/a.png", "photos", "out"), 1, "a.png"),
        (call("good.txt", "nothing", "out"), 1, "nothing"),
        (call("good.txt", "good.txt", "out"), 2, "not a folder"),
        (call("good.txt", "photos", "good.txt"), 1, "good.txt"),
        (align(root, &["--landmarks", "good.txt", "--images", "photos"]), 2, "--out"),
    ] {
        assert_eq!((ran.0, ran.1.as_str()), (code, ""), "{}", ran.2);
        assert!(ran.2.contains(word), "{word}: {}", ran.2);
    }
}

#[test]
fn originals_are_never_written_over() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    for name in ["ph/a.png", "ph/s/b.png"] {
        write_image(&root.join(name), 120, 110);
    }
    let originals = || ["ph/a.png", "ph/s/b.png"].map(|name| std::fs::read(root.join(name)).unwrap());
    let before = originals();
    let good = landmarks(1.0, [0.0; 2], false);
    std::fs::write(root.join("list.txt"), line("a.png", &good, " ") + &line("s/b.png", &good, " ")).unwrap();
    let call = ["--landmarks", "list.txt", "--images", "ph"];
    let mut same = vec!["ph", "./ph/", "ph/../ph"];
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("ph", root.join("link")).unwrap();
        same.push("link");
    }
    for out in same {
        for more in [&[][..], &["--overwrite"]] {
            let ran = align(root, &[&call[..], &["--out", out], more].concat());
            assert_eq!((ran.0, ran.1.as_str()), (2, ""), "{out}: {}", ran.2);
            assert!(ran.2.contains("the folder of the originals"), "{out}: {}", ran.2);
            assert_eq!(originals(), before, "{out}");
        }
    }

    // A folder to write to in which some places are those of originals.
    write_image(&root.join("ph/s/s/b.png"), 120, 110);
    let nested = line("a.png", &good, " ") + &line("s/b.png", &good, " ") + &line("s/s/b.png", &good, " ");
    std::fs::write(root.join("nested.txt"), nested).unwrap();
    let call = ["--landmarks", "nested.txt", "--images", "ph", "--out", "ph/s", "--overwrite", "--json"];
    let inner = std::fs::read(root.join("ph/s/s/b.png")).unwrap();
    let ran = align(root, &call);
    let found = result(&ran);
    assert_eq!((ran.0, &found["aligned"], &found["failed"]), (1, &json!(2), &json!(1)), "{found}");
    assert_eq!(found["failures"][0]["line"], 2);
    assert!(found["failures"][0]["what"].as_str().unwrap().contains("is an image of the list"), "{found}");
    assert_eq!((originals(), std::fs::read(root.join("ph/s/s/b.png")).unwrap()), (before.clone(), inner));

    #[cfg(unix)]
    {
        // A link in the place of an aligned image that leads to an original.
        std::fs::create_dir_all(root.join("out")).unwrap();
        std::os::unix::fs::symlink("../ph/a.png", root.join("out/a.png")).unwrap();
        for more in [&[][..], &["--overwrite"]] {
            let call = ["--landmarks", "list.txt", "--images", "ph", "--out", "out", "--json"];
            let found = result(&align(root, &[&call[..], more].concat()));
            assert_eq!((&found["failed"], &found["failures"][0]["line"]), (&json!(1), &json!(1)), "{found}");
            assert_eq!(originals(), before);
        }
    }

    for (sheet, words) in [
        ("ph/a.png", "is an image of the list"),
        ("ph/../ph/s/b.png", "is an image of the list"),
        ("new/a.png", "is the place of an aligned image"),
        ("sheet.jpg", "the sheet is a PNG"),
        ("list.txt", "the sheet is a PNG"),
    ] {
        let call = ["--landmarks", "list.txt", "--images", "ph", "--out", "new", "--sheet", sheet];
        let ran = align(root, &call);
        assert_eq!((ran.0, ran.1.as_str()), (2, ""), "{sheet}: {}", ran.2);
        assert!(ran.2.contains(words), "{sheet}: {}", ran.2);
        assert_eq!(originals(), before);
    }
    assert!(!root.join("new").exists(), "what is refused makes no folder");
}

#[test]
fn results_of_an_earlier_run_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let good = landmarks(1.0, [0.0; 2], false);
    let mut list = String::new();
    for name in ["a.png", "b.png", "c.png"] {
        write_image(&root.join("ph").join(name), 120, 110);
        list += &line(name, &good, " ");
    }
    list += &line("missing.png", &good, " ");
    std::fs::write(root.join("list.txt"), &list).unwrap();
    // The list is older than what is made of it.
    let past = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    let set_time = |time| {
        std::fs::File::options().write(true).open(root.join("list.txt")).unwrap().set_modified(time).unwrap();
    };
    set_time(past);
    let call = ["--landmarks", "list.txt", "--images", "ph", "--out", "out", "--json"];
    let with = |more: &[&'static str]| align(root, &[&call[..], more].concat());
    with(&["--size", "64"]);
    let counts = |ran: &(i32, String, String)| {
        let found = result(ran);
        ["aligned", "kept", "kept_of_other_size", "kept_from_before", "odd"]
            .map(|key| found[key].as_u64().unwrap())
    };
    let again = with(&["--size", "64"]);
    assert_eq!(counts(&again), [0, 3, 0, 0, 0]);
    assert!(!again.2.contains("warning"), "{}", again.2);

    std::fs::remove_file(root.join("out/b.png")).unwrap();
    // What is there is on the sheet: one face in black.
    image::RgbImage::new(64, 64).save(root.join("out/c.png")).unwrap();
    let other = with(&["--sheet", "sheet.png", "--sheet-faces", "3"]);
    assert_eq!(counts(&other), [1, 2, 2, 0, 0]);
    let found = result(&other);
    assert_eq!(found["warnings"][0]["line"], 1);
    let what = found["warnings"][0]["what"].as_str().unwrap();
    assert!(what.contains("is 64 x 64 and not 112 x 112"), "{what}");
    assert!(other.2.contains("2 images that were there already are not of 112 x 112"), "{}", other.2);
    let sheet = image::open(root.join("sheet.png")).unwrap().into_rgb8();
    let (cell, gap, between) = (224, 4, 28);
    assert_eq!(sheet.dimensions(), (3 * (2 * cell + gap + between) + between, cell + 2 * between));
    let aligned = |face: u32| {
        let left = between + face * (2 * cell + gap + between) + cell + gap;
        sheet.get_pixel(left + cell / 2, between + 10).0
    };
    assert!(aligned(0)[2] > 60 && aligned(1)[2] > 60, "{:?} {:?}", aligned(0), aligned(1));
    assert_eq!(aligned(2), [0; 3]);

    let swapped = with(&["--size", "64", "--swap-sides"]);
    assert_eq!(counts(&swapped), [0, 3, 1, 3, 0]);
    assert!(swapped.2.contains("3 images that were there already may have been"), "{}", swapped.2);
    set_time(std::time::SystemTime::now() + std::time::Duration::from_secs(3600));
    let newer = with(&["--size", "64"]);
    assert_eq!(counts(&newer), [0, 3, 1, 3, 0]);
    assert!(newer.2.contains("3 images that were there already are older than the list"), "{}", newer.2);
    std::fs::write(root.join("out/a.png"), "no image").unwrap();
    let broken = result(&with(&[]));
    assert!(broken["warnings"][0]["what"].as_str().unwrap().contains("is no image"), "{broken}");
}
