//! The doctor on data sets with known faults.

use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::data::encode::Encoding;
use crate::data::recordio::testing::{payload, write};
use crate::data::synth::{SynthConfig, draw};
use crate::data::{Image, VerificationSet};

const CHECKING: Checking = Checking { size: None, resize: false, num_classes: None, near: true };

fn face(identity: u32, index: u32) -> Image {
    let config = SynthConfig {
        seed: 5,
        identities: 100,
        first_identity: 0,
        images_per_identity: 10,
        size: [32, 32],
        hard_share: 0.0,
        mislabelled_share: 0.0,
    };
    Image { rgb: draw(&config, identity, index).rgb, height: 32, width: 32 }
}

fn png(image: &Image) -> Vec<u8> {
    Encoding::Png.encode(image).unwrap()
}

/// Files of a folder of identity folders: three people with three pictures each, and `more`.
fn folder(more: &[(&str, Vec<u8>)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = root.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    };
    for (identity, index) in (0..3).flat_map(|identity| (0..3).map(move |index| (identity, index))) {
        write(&format!("s{identity}/{index}.png"), &png(&face(identity, index)));
    }
    more.iter().for_each(|(name, bytes)| write(name, bytes));
    root
}

/// The report, and all findings as `kind: place = other` lines without the folder.
fn checked(path: &Path, checking: &Checking) -> (Report, Vec<String>) {
    let mut faults = Vec::new();
    let source = Source::open(path, &mut |fault| {
        faults.push(fault);
        Ok(())
    })
    .unwrap();
    let report = check(&source, faults, checking, &|_, _, _| {});
    let prefix = format!("{}{}", path.display(), std::path::MAIN_SEPARATOR);
    let mut lines = Vec::new();
    for finding in &report.findings {
        for mark in &finding.marks {
            let named = Named::new(mark, source.stored());
            let other = named.other.map(|other| format!(" = {other}")).unwrap_or_default();
            let class = if named.place.is_empty() { format!("{:?}", named.label) } else { named.place };
            lines.push(format!("{}: {class}{other}", finding.kind).replace(&prefix, "").replace('\\', "/"));
        }
    }
    (report, lines)
}

#[test]
fn a_sound_folder_has_no_findings() {
    let root = folder(&[]);
    let (report, lines) = checked(root.path(), &CHECKING);
    assert_eq!(lines, [] as [&str; 0]);
    assert_eq!((report.images, report.decoded, report.classes, report.size), (9, 9, 3, Some([32, 32])));
    assert_eq!(report.balance.map(|balance| (balance.min, balance.max)), Some((3, 3)));
}

#[test]
fn every_fault_of_a_folder_is_named_once() {
    let image = face(0, 0);
    let grey: Vec<u8> = face(1, 1).rgb.chunks(3).flat_map(|pixel| [pixel[1]; 3]).collect();
    let jpeg = Encoding::Jpeg(90).encode(&face(2, 9)).unwrap();
    let small = Image { rgb: face(2, 2).rgb[..32 * 20 * 3].to_vec(), height: 20, width: 32 };
    let root = folder(&[
        ("s0/again.png", png(&image)),
        ("s1/other.png", png(&image)),
        ("s2/small.png", png(&small)),
        ("s2/cut.jpg", jpeg[..jpeg.len() - 60].to_vec()),
        ("s2/text.png", b"not an image".to_vec()),
        ("s2/notes.txt", b"x".to_vec()),
        ("s3/anew.jpg", Encoding::Jpeg(80).encode(&face(0, 1)).unwrap()),
        ("s4/blank.png", png(&Image { rgb: vec![30; 32 * 32 * 3], height: 32, width: 32 })),
        ("s4/grey.png", png(&Image { rgb: grey, height: 32, width: 32 })),
        ("s5/deep/1.png", png(&image)),
        ("s6/old.gif", b"GIF89a\x01\x00\x01\x00\x00\x00\x00".to_vec()),
    ]);
    let (report, mut lines) = checked(root.path(), &CHECKING);
    lines.sort();
    let expected = [
        "blank: s4/blank.png",
        "duplicate: s0/again.png = s0/0.png",
        "grey: s4/grey.png",
        "label-conflict: s1/other.png = s0/0.png",
        // It is s1/1.png without its colour.
        "near-conflict: s3/anew.jpg = s0/1.png",
        "near-conflict: s4/grey.png = s1/1.png",
        "single-image: Some(3)",
        "size: s2/small.png",
        "skipped: s2/notes.txt",
        "structure: s5",
        "structure: s5/deep",
        "structure: s6",
        "structure: s6/old.gif",
        "undecodable: s2/cut.jpg",
        "undecodable: s2/text.png",
    ];
    assert_eq!(lines, expected);
    let errors = ["structure", "undecodable", "size", "label-conflict"];
    for finding in &report.findings {
        assert_eq!(finding.severity == Severity::Error, errors.contains(&finding.kind), "{finding:?}");
    }
    assert!(report.findings.is_sorted_by_key(|finding| finding.severity));

    // What the options say.
    let (report, lines) = checked(
        root.path(),
        &Checking { size: Some([20, 32]), resize: false, near: false, num_classes: Some(4) },
    );
    assert!(!lines.iter().any(|line| line.starts_with("near")), "{lines:?}");
    assert_eq!(report.finding("size").unwrap().marks.len(), report.decoded - 1);
    assert_eq!(report.finding("label-range").unwrap().marks.len(), 2, "{lines:?}");
    let (report, _) = checked(root.path(), &Checking { resize: true, num_classes: Some(8), ..CHECKING });
    assert!(report.finding("size").is_none());
    assert_eq!(report.finding("empty-class").unwrap().marks.len(), 3);
}

#[test]
fn swapped_channels_are_seen() {
    let root = tempfile::tempdir().unwrap();
    for (identity, index) in (0..8).flat_map(|identity| (0..4).map(move |index| (identity, index))) {
        let mut image = face(identity, index);
        image.rgb.chunks_mut(3).for_each(|pixel| pixel.swap(0, 2));
        let folder = root.path().join(identity.to_string());
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(format!("{index}.png")), png(&image)).unwrap();
    }
    let (report, _) = checked(root.path(), &CHECKING);
    assert!(report.finding("bgr").is_some_and(Finding::is_of_the_whole));
}

#[test]
fn every_fault_of_a_record_file_is_named_and_passed_over() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("train.rec");
    let image = |identity, index| png(&face(identity, index));
    let records = [
        (0, payload(&[8.0, 11.0], 0.0, b"")),
        (1, payload(&[], 0.0, &image(0, 0))),
        (2, payload(&[], 0.5, &image(0, 1))),
        (3, payload(&[], 2.0, &image(2, 0))),
        (4, payload(&[], 9.0, &image(2, 1))),
        (5, payload(&[2.0], 0.0, b"no image")),
        (7, payload(&[], 2.0, &image(2, 2))),
        (8, payload(&[1.0, 3.0], 0.0, b"")),
        (9, payload(&[3.0, 3.0], 0.0, b"")),
        (10, payload(&[3.0, 8.0], 0.0, b"")),
    ];
    write(&path, &records);
    std::fs::write(root.path().join("property"), "4,32,48\n").unwrap();
    let index = std::fs::read_to_string(path.with_extension("idx")).unwrap();
    // Key 3 leads into the middle of a record, one line is no line and one leads past the end.
    let shifted = index.lines().map(|line| match line.split_once('\t') {
        Some(("3", offset)) => format!("3\t{}\n", offset.parse::<u64>().unwrap() + 4),
        _ => format!("{line}\n"),
    });
    std::fs::write(path.with_extension("idx"), shifted.collect::<String>() + "x\n11\t99999999\n").unwrap();

    let (report, lines) = checked(&path, &CHECKING);
    let of = |kind: &str| -> Vec<&String> {
        lines.iter().filter(|line| line.starts_with(&format!("{kind}:"))).collect()
    };
    assert_eq!(of("structure").len(), 3, "{lines:?}");
    for (kind, key) in
        [("label", "key 2,"), ("damaged", "key 3,"), ("label-range", "key 4,"), ("undecodable", "key 5,")]
    {
        assert!(of(kind).len() == 1 && of(kind)[0].contains(key), "{kind}: {lines:?}");
    }
    assert_eq!((of("property").len(), of("property-size").len()), (1, 1), "{lines:?}");
    assert_eq!(of("empty-class"), ["empty-class: Some(1)", "empty-class: Some(3)"]);
    assert_eq!((report.images, report.classes), (6, 4));
}

#[test]
fn records_that_overlap_or_are_cut_off_behind_the_images_are_found() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("train.rec");
    let image = |label: f32, index| payload(&[], label, &png(&face(label as u32, index)));
    let records = [
        (0, payload(&[5.0, 7.0], 0.0, b"")),
        (1, image(0.0, 0)),
        (2, image(0.0, 1)),
        (3, image(1.0, 0)),
        (4, image(1.0, 1)),
        (5, payload(&[1.0, 3.0], 0.0, b"")),
        (6, payload(&[3.0, 5.0], 0.0, b"")),
    ];
    write(&path, &records);
    assert_eq!(checked(&path, &CHECKING).1, [] as [&str; 0]);
    let sound = std::fs::read(&path).unwrap();
    // The last identity's record is cut off.
    std::fs::write(&path, &sound[..sound.len() - 5]).unwrap();
    let (_, lines) = checked(&path, &CHECKING);
    assert!(
        lines.len() == 1 && lines[0].starts_with("structure:") && lines[0].contains("key 6,"),
        "{lines:?}"
    );
    // A bit of the length of the record with key 2, which then reaches beyond the next one; its image can be read.
    let index = std::fs::read_to_string(path.with_extension("idx")).unwrap();
    let offset: usize = index.lines().nth(2).unwrap().split_once('\t').unwrap().1.parse().unwrap();
    let mut longer = sound;
    longer[offset + 5] ^= 0x10;
    std::fs::write(&path, longer).unwrap();
    let (_, lines) = checked(&path, &CHECKING);
    assert!(
        lines.len() == 1 && lines[0].starts_with("structure:") && lines[0].contains("key 2,"),
        "{lines:?}"
    );
}

#[test]
fn pairs_of_a_verification_set_are_checked() {
    let image = |identity, index| -> std::sync::Arc<[u8]> { png(&face(identity, index)).into() };
    let mut images = Vec::new();
    for pair in 0..20 {
        images.extend([image(pair, 0), image(pair, 1)]);
    }
    images[7] = image(3, 0);
    images[9] = image(4, 0);
    images[11] = b"nothing"[..].into();
    let mut issame = [true, false].repeat(10);
    issame[1] = true;
    issame[5] = true;
    let set = VerificationSet { name: "mine".to_owned(), images, issame };
    let report = check_set(&set, &CHECKING, &|_, _, _| {});
    let found: Vec<(&str, usize)> =
        report.findings.iter().map(|finding| (finding.kind, finding.marks.len())).collect();
    assert_eq!(found, [("undecodable", 1), ("pair-conflict", 1), ("trivial-pair", 1), ("one-sided-fold", 2)]);
    assert_eq!(report.finding("pair-conflict").unwrap().marks[0].subject, Subject::Image(7));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn damage_never_ends_a_check(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
        with_index in any::<bool>(),
    ) {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("train.rec");
        let tiny = |value: u8| png(&Image { rgb: vec![value; 12], height: 2, width: 2 });
        let mut records = vec![(0, payload(&[5.0, 7.0], 0.0, b""))];
        records.extend((1..5_u8).map(|key| (u64::from(key), payload(&[], f32::from(key / 3), &tiny(key)))));
        records.extend([(5, payload(&[1.0, 3.0], 0.0, b"")), (6, payload(&[3.0, 5.0], 0.0, b""))]);
        write(&path, &records);
        if !with_index {
            std::fs::remove_file(path.with_extension("idx")).unwrap();
        }
        let mut bytes = std::fs::read(&path).unwrap();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()).max(1));
        }
        std::fs::write(&path, &bytes).unwrap();
        let (report, lines) = checked(&path, &CHECKING);
        prop_assert!(report.images <= 7);
        prop_assert!(report.images == 4 || !lines.is_empty());
    }
}
