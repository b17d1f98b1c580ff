use std::path::Path;

use super::landmarks::{inside, read};
use super::*;

fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/align").join(name)
}

fn load(name: &str) -> Image {
    let encoded = std::fs::read(fixture(name)).unwrap();
    decode_whole(&encoded, || name.to_owned()).unwrap()
}

#[test]
fn equal_to_umeyama_in_numpy_and_to_opencvs_warp() {
    let cases: Vec<serde_json::Value> =
        serde_json::from_str(&std::fs::read_to_string(fixture("cases.json")).unwrap()).unwrap();
    assert!(cases.len() >= 5);
    let image = load("photo.png");
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let points: Points = serde_json::from_value(case["points"].clone()).unwrap();
        let expected: [[f64; 3]; 2] = serde_json::from_value(case["matrix"].clone()).unwrap();
        let side = case["side"].as_u64().unwrap() as usize;
        let found = fit(&points, side).unwrap();
        for (found, expected) in found.transform.matrix().iter().flatten().zip(expected.iter().flatten()) {
            assert!((found - expected).abs() < 1e-9, "{name}: {found} {expected}");
        }
        // The residual, from its definition.
        let distance = |(point, goal): (&[f64; 2], [f64; 2])| {
            let [x, y] = found.transform.apply(*point);
            (x - goal[0]).powi(2) + (y - goal[1]).powi(2)
        };
        let mean = points.iter().zip(target(side)).map(distance).sum::<f64>() / 5.0;
        assert!((mean.sqrt() * 112.0 / side as f64 - found.residual).abs() < 1e-6, "{name}");

        let (warped, expected) =
            (warp(&image, &found.transform, side), load(case["aligned"].as_str().unwrap()));
        assert_eq!((warped.height, warped.width), (expected.height, expected.width));
        let off: Vec<u8> = warped.rgb.iter().zip(&expected.rgb).map(|(a, b)| a.abs_diff(*b)).collect();
        let most = off.iter().max().unwrap();
        let mean = off.iter().map(|&off| f64::from(off)).sum::<f64>() / off.len() as f64;
        // OpenCV rounds where it reads to 1/32 of a pixel.
        assert!(*most <= 2 && mean < 0.25, "{name}: up to {most}, {mean} on average");
    }
}

#[test]
fn the_transform_that_moved_the_target_points_is_found() {
    let moved = Similarity { a: 1.7, b: -0.6, tx: 31.0, ty: 12.5 };
    let points = TARGET.map(|point| moved.apply(point));
    let found = fit(&points, 112).unwrap();
    let back = moved.inverse().unwrap();
    for (point, goal) in points.iter().zip(TARGET) {
        for aligned in [found.transform.apply(*point), back.apply(*point)] {
            assert!((aligned[0] - goal[0]).abs() < 1e-9 && (aligned[1] - goal[1]).abs() < 1e-9);
        }
    }
    assert!(found.residual < 1e-6 && found.mirrored_residual > 15.0, "{found:?}");
    assert!(!found.looks_mirrored());
    // Twice the side is the same picture twice as large.
    let large = fit(&points, 224).unwrap();
    assert!((large.transform.a / found.transform.a - 2.0).abs() < 1e-12);
}

#[test]
fn an_image_that_is_aligned_already_stays_as_it_is() {
    let rgb: Vec<u8> = (0..112 * 112 * 3_usize).map(|at| (at * at % 251) as u8).collect();
    let image = Image { rgb, height: 112, width: 112 };
    let identity = Similarity { a: 1.0, b: 0.0, tx: 0.0, ty: 0.0 };
    assert_eq!(warp(&image, &identity, 112), image);
    // Half a pixel to the right and beyond the border: black counts.
    let half = warp(&image, &Similarity { tx: 0.5, ..identity }, 112);
    assert_eq!(half.rgb[0], ((f64::from(image.rgb[0]) / 2.0) + 0.5) as u8);
    let away = warp(&image, &Similarity { tx: 500.0, ..identity }, 112);
    assert!(away.rgb.iter().all(|&value| value == 0));
}

#[test]
fn exchanged_sides_are_told_from_turned_heads() {
    let swap =
        |[left, right, nose, mouth_left, mouth_right]: Points| [right, left, nose, mouth_right, mouth_left];
    let turn = |angle: f64| {
        let (b, a) = angle.to_radians().sin_cos();
        Similarity { a, b, tx: 200.0, ty: 200.0 }
    };
    for angle in [0.0, 35.0, 90.0, 180.0, 271.0] {
        let upright = TARGET.map(|point| turn(angle).apply(point));
        assert!(!fit(&upright, 112).unwrap().looks_mirrored(), "{angle}");
        assert!(fit(&swap(upright), 112).unwrap().looks_mirrored(), "{angle}");
        let exchanged = upright.map(|[x, y]| [y, x]);
        assert!(fit(&exchanged, 112).unwrap().looks_mirrored(), "{angle}");
    }
    // Towards a profile, both ways: the eyes and the corners of the mouth draw near to each other, the nose stands out.
    for depth in [-1.0, -0.6, 0.6, 1.0] {
        for width in [0.0, 0.1, 0.3, 0.6] {
            let turned = TARGET.map(|[x, y]| [(x - 56.0) * width, y]);
            let turned =
                [turned[0], turned[1], [turned[2][0] + 25.0 * depth, turned[2][1]], turned[3], turned[4]];
            assert!(!fit(&turned, 112).unwrap().looks_mirrored(), "{depth} {width}");
        }
    }
}

#[test]
fn points_without_a_transform_are_refused() {
    let place = || "x.jpg".to_owned();
    for (points, words) in [
        ([[5.0, 5.0]; 5], "coincide or have no direction, near (5, 5)"),
        ([[1e300, -1e300]; 5], "landmark 1 at (1e300, -1e300), which is in no image"),
        ([[f64::NAN, 0.0]; 5], "not finite"),
    ] {
        let error = fit_or_explain(&points, 112, place).unwrap_err().to_string();
        assert!(error.contains("x.jpg") && error.contains(words), "{error}");
    }
    let mut infinite = TARGET;
    infinite[2][1] = f64::INFINITY;
    assert!(fit_or_explain(&infinite, 112, place).is_err());
    let mut overflowing = TARGET;
    overflowing[2][1] = 1e200;
    assert!(fit_or_explain(&overflowing, 112, place).is_err());
    assert!(fit_or_explain(&TARGET, 112, place).is_ok());
}

#[test]
fn landmarks_far_outside_are_odd() {
    let odd = |points: &Points| oddity(points, &fit(points, 112).unwrap(), [112, 112]);
    assert_eq!(odd(&TARGET), None);
    // A face at the border is none.
    assert_eq!(odd(&TARGET.map(|[x, y]| [x - 50.0, y])), None);
    let far = odd(&TARGET.map(|[x, y]| [x - 90.0, y])).unwrap();
    assert!(matches!(far, Oddity::FarOutside { number: 1, .. }), "{far}");
    assert!(far.to_string().contains("landmark 1"), "{far}");
}

#[test]
fn what_is_no_image_is_refused_by_name() {
    for bytes in [&b""[..], b"text", b"\x89PNG\r\n\x1a\n", b"P5\n99999999 99999999\n255\n"] {
        let error = decode_whole(bytes, || "a/b.png".into()).unwrap_err().to_string();
        assert!(error.contains("a/b.png"), "{error}");
    }
}

const NUMBERS: &str = "1 2 3 4 5 6 7 8 9 10";

/// A line, the image and its score.
type Found = (usize, String, Option<f32>);

/// Reads a list of this text; the names and scores, and the messages about lines that cannot be used.
fn list(text: &str) -> (Vec<Found>, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("list.txt");
    std::fs::write(&path, text).unwrap();
    let (listed, rejected) = read(&path).unwrap();
    for found in &listed {
        assert_eq!(found.points, [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0], [9.0, 10.0]]);
    }
    (
        listed.into_iter().map(|found| (found.line, found.name, found.score)).collect(),
        rejected.into_iter().map(|found| format!("{}: {}", found.line, found.error)).collect(),
    )
}

#[test]
fn all_forms_of_lists_are_read() {
    let commas = NUMBERS.replace(' ', ", ");
    let tabs = NUMBERS.replace(' ', "\t");
    let columns = "lefteye_x lefteye_y righteye_x righteye_y nose_x nose_y leftmouth_x leftmouth_y rightmouth_x \
                   rightmouth_y";
    for (text, expected) in [
        (
            format!("a/1.jpg {NUMBERS}\n\nb.jpg  {NUMBERS} 0.5\n"),
            vec![(1, "a/1.jpg", None), (3, "b.jpg", Some(0.5))],
        ),
        // CelebA.
        (
            format!("2\n{columns}\n000001.jpg    {NUMBERS}\r\n000002.jpg {NUMBERS}\r\n"),
            vec![(3, "000001.jpg", None), (4, "000002.jpg", None)],
        ),
        // Its form with commas, and one with a score and quotes.
        (format!("image_id,{}\n1.jpg,{commas}\n", columns.replace(' ', ",")), vec![(2, "1.jpg", None)]),
        (
            format!("\u{feff}# by hand\n\"a, b/c d.jpg\",{commas},0.25\n1 2.jpg,{commas}\n"),
            vec![(2, "a, b/c d.jpg", Some(0.25)), (3, "1 2.jpg", None)],
        ),
        (format!("a b.jpg\t{tabs}\n"), vec![(1, "a b.jpg", None)]),
        // IJB.
        (
            format!("1.jpg {NUMBERS} 0.999\n2.jpg {NUMBERS} 1e-1"),
            vec![(1, "1.jpg", Some(0.999)), (2, "2.jpg", Some(0.1))],
        ),
    ] {
        let (listed, rejected) = list(&text);
        assert!(rejected.is_empty(), "{text}: {rejected:?}");
        let listed: Vec<_> =
            listed.iter().map(|(line, name, score)| (*line, name.as_str(), *score)).collect();
        assert_eq!(listed, expected, "{text}");
    }
}

#[test]
fn lines_that_cannot_be_used_are_named_beside_the_others() {
    let (listed, rejected) = list(&format!(
        "a.jpg {NUMBERS}\nb.jpg 1 2 3\nc d.jpg {NUMBERS}\ne.jpg {NUMBERS} nan\nf.jpg {NUMBERS} 1 2\ng.jpg {NUMBERS}\n"
    ));
    assert_eq!(listed.iter().map(|found| found.0).collect::<Vec<_>>(), [1, 6]);
    let starts = ["2: ", "3: ", "4: ", "5: "];
    assert_eq!(rejected.len(), starts.len());
    for (message, start) in rejected.iter().zip(starts) {
        assert!(message.starts_with(start) && message.contains("ten numbers"), "{message}");
    }
    assert!(rejected[0].contains("3 numbers") && rejected[1].contains("`d.jpg`"), "{rejected:?}");

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("list.txt");
    for text in ["", "\n# nothing\n", "202599\n"] {
        std::fs::write(&path, text).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("no landmarks"), "{text:?}");
    }
    std::fs::write(&path, [0xff, 0xfe, 0]).unwrap();
    assert!(matches!(read(&path), Err(Error::Io { .. })));
    assert!(read(&folder.path().join("none")).is_err());
}

#[test]
fn names_of_columns_are_those_of_landmarks() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("list.csv");
    let numbers = NUMBERS.replace(' ', ",");
    let read_with = |first: &str| {
        let rest = "y1,x2,y2,x3,y3,x4,y4,x5,y5";
        std::fs::write(&path, format!("path,{first},{rest}\na.jpg,{numbers}\n")).unwrap();
        read(&path)
    };
    for good in ["x", "x1", "X_1", "lefteye_x", "left_eye_x", "leftEyeX", "landmark 0 x", "x_left_eye", "p1x"]
    {
        assert_eq!(read_with(good).unwrap().0.len(), 1, "{good}");
    }
    for bad in ["y1", "score", "bbox_x", "left", "index", "lefteye_y"] {
        let error = read_with(bad).unwrap_err().to_string();
        assert!(error.contains(&format!("line 1: found `{bad}` as the name of column 2")), "{error}");
    }
}

#[test]
fn paths_stay_inside() {
    for good in ["a.jpg", "a/b c/d.png", "./a.jpg", "a\\b.jpg"] {
        assert!(inside(good).is_some(), "{good}");
    }
    assert_eq!(inside("a\\b.jpg").unwrap(), Path::new("a/b.jpg"));
    for bad in ["", ".", "/etc/passwd", "../a.jpg", "a/../../b.jpg", "a\\..\\b.jpg"] {
        assert_eq!(inside(bad), None, "{bad}");
    }
}
