//! Packing and unpacking, there and back.

use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::data::recordio::testing;
use crate::data::unpack::unpack_records;
use crate::data::{Image, Options, recordio};

/// A PNG of one pixel whose bytes go on with `tail`, which decoders do not heed.
fn png(value: u8, tail: &[u8]) -> Vec<u8> {
    let mut bytes = Encoding::Png.encode(&Image { rgb: vec![value; 3], height: 1, width: 1 }).unwrap();
    // Behind the header of 24 bytes a payload's words are those of the image.
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend_from_slice(tail);
    bytes
}

fn packing(form: Form) -> Packing {
    Packing {
        form,
        size: None,
        encoding: Encoding::Png,
        any_size: false,
        skip_damaged: false,
        replace: false,
    }
}

fn open(path: &Path) -> Source {
    Source::open(path, &mut Err).unwrap()
}

/// Labels and stored bytes, by label and then in the order of the file.
fn contents(source: &Source) -> Vec<(u32, Vec<u8>)> {
    let stored = source.stored();
    let mut all: Vec<_> = (0..stored.len())
        .map(|index| (stored.label(index).unwrap(), stored.encoded(index).unwrap().into_owned()))
        .collect();
    all.sort_by_key(|(label, _)| *label);
    all
}

fn write_folder(root: &Path, files: &[(&str, Vec<u8>)]) {
    for (name, bytes) in files {
        let path = root.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

#[test]
fn a_folder_becomes_what_insightface_reads() {
    let root = tempfile::tempdir().unwrap();
    let faces = root.path().join("faces");
    write_folder(
        &faces,
        &[("s10/1.png", png(3, b"")), ("s2/10.png", png(2, b"")), ("s2/9.png", png(1, b""))],
    );
    let path = root.path().join("out/train.rec");
    let packed = pack(&open(&faces), &path, &packing(Form::InsightFace), &mut |_| {}).unwrap();
    assert_eq!((packed.images, packed.classes, packed.size, packed.reencoded), (3, 2, Some([1, 1]), 0));
    let text = |name: &str| std::fs::read_to_string(root.path().join("out").join(name)).unwrap();
    assert_eq!((text("property").as_str(), text("identities.tsv").as_str()), ("2,1,1\n", "0\ts2\n1\ts10\n"));

    // Record by record.
    let file = recordio::RecordFile::open(&path).unwrap();
    let labels = |at: usize| {
        let payload = file.payload(file.entries()[at]).unwrap();
        let header = recordio::Header::parse(&payload).unwrap();
        (header.flag, header.label(0).unwrap(), header.label(1), header.image.is_empty())
    };
    assert_eq!(file.entries().iter().map(|entry| entry.key).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
    assert_eq!(labels(0), (2, 4.0, Some(6.0), true));
    assert_eq!(
        [labels(1), labels(2), labels(3)],
        [(0, 0.0, None, false), (0, 0.0, None, false), (0, 1.0, None, false)]
    );
    assert_eq!([labels(4), labels(5)], [(2, 1.0, Some(3.0), true), (2, 3.0, Some(4.0), true)]);
    assert_eq!(contents(&open(&path)), [(0, png(1, b"")), (0, png(2, b"")), (1, png(3, b""))]);
    let options = Options { size: [1, 1], ..Options::default() };
    let dataset = crate::data::open(root.path().join("out"), &options).unwrap();
    assert_eq!((dataset.len(), dataset.num_classes(), dataset.load(2).unwrap().rgb), (3, 2, vec![3; 3]));
    let Source::Records(records) = open(&path) else { panic!("a record file") };
    assert_eq!(records.identity(1).as_deref(), Some("s10"));

    // What is there stays, unless it is to be replaced with everything that belongs to it.
    assert!(matches!(
        pack(&open(&faces), &path, &packing(Form::InsightFace), &mut |_| {}),
        Err(Error::Usage { .. })
    ));
    write_folder(
        &faces,
        &[("s2/small.png", Encoding::Png.encode(&Image { rgb: vec![0; 6], height: 2, width: 1 }).unwrap())],
    );
    let replacing = Packing { any_size: true, replace: true, ..packing(Form::Im2rec) };
    let packed = pack(&open(&faces), &path, &replacing, &mut |_| {}).unwrap();
    assert_eq!((packed.images, packed.size), (4, None));
    assert!(!root.path().join("out/property").exists());
    assert_eq!(recordio::RecordFile::open(&path).unwrap().entries().len(), 4);
    assert_eq!(std::fs::read_dir(root.path().join("out")).unwrap().count(), 3);
}

#[test]
fn sizes_and_damage_are_errors_unless_they_are_dealt_with() {
    let root = tempfile::tempdir().unwrap();
    let faces = root.path().join("faces");
    let wide = Encoding::Png.encode(&Image { rgb: [[9, 8, 7]; 8].concat(), height: 2, width: 4 }).unwrap();
    let jpeg = Encoding::Jpeg(95).encode(&Image { rgb: vec![99; 12], height: 2, width: 2 }).unwrap();
    write_folder(
        &faces,
        &[
            ("a/1.png", png(3, b"")),
            ("a/2.png", wide),
            ("b/1.png", b"text".to_vec()),
            ("b/2.jpg", jpeg[..jpeg.len() - 2].to_vec()),
        ],
    );
    let path = root.path().join("x.rec");
    let run = |packing: Packing| pack(&open(&faces), &path, &packing, &mut |_| {});
    let error = run(packing(Form::Im2rec)).unwrap_err();
    assert!(error.to_string().contains("2.png: found an image of 2 x 4"), "{error}");
    assert!(error.hint().unwrap().contains("--size"));
    let any = Packing { any_size: true, ..packing(Form::Im2rec) };
    let error = run(any.clone()).unwrap_err().to_string();
    assert!(error.contains("1.png: found bytes that are not an image"), "{error}");
    assert!(std::fs::read_dir(root.path()).unwrap().count() == 1, "nothing is left behind");

    let packed = run(Packing { skip_damaged: true, ..any }).unwrap();
    assert_eq!((packed.images, packed.classes, packed.left_out.len()), (2, 2, 2), "{packed:?}");
    let sized =
        Packing { size: Some([2, 2]), skip_damaged: true, replace: true, ..packing(Form::InsightFace) };
    let packed = run(sized).unwrap();
    assert_eq!((packed.images, packed.size, packed.reencoded), (2, Some([2, 2]), 2));
    let dataset = crate::data::open(&path, &Options { size: [2, 2], ..Options::default() }).unwrap();
    assert_eq!(dataset.load(1).unwrap().rgb, [9, 8, 7].repeat(4));
}

#[test]
fn names_that_lead_elsewhere_or_collide_become_labels() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("x.rec");
    let records: Vec<_> =
        (0..6_u8).map(|at| (u64::from(at), testing::payload(&[], f32::from(at), &png(at, b"")))).collect();
    testing::write(&path, &records);
    std::fs::write(
        root.path().join("x.identities.tsv"),
        "0\t../evil\n1\tAnna\n2\tanna\n3\t.hidden\n4\t0000\n",
    )
    .unwrap();
    let Source::Records(records) = open(&path) else { panic!("a record file") };
    let out = root.path().join("out");
    let unpacked = unpack_records(&records, &out, false, &|_| {}).unwrap();
    assert_eq!((unpacked.images, unpacked.groups, unpacked.renamed), (6, 6, 4));
    let mut names: Vec<_> = std::fs::read_dir(&out)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["0000", "00000", "0001", "0002", "0003", "0005", "identities.tsv"]);
    assert!(!root.path().join("evil").exists());
    // Labels stay, though the names sort otherwise.
    pack(&open(&out), &root.path().join("y.rec"), &packing(Form::Im2rec), &mut |_| {}).unwrap();
    assert_eq!(contents(&open(&root.path().join("y.rec"))), contents(&open(&path)));
    std::fs::create_dir(out.join("new")).unwrap();
    std::fs::write(out.join("new/1.png"), png(1, b"")).unwrap();
    let error =
        pack(&open(&out), &root.path().join("z.rec"), &packing(Form::Im2rec), &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("the identity `new`"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn there_and_back_keeps_images_and_labels(
        images in prop::collection::vec(
            (0..5_u32, any::<u8>(), prop::collection::vec(prop_oneof![Just(recordio::MAGIC), any::<u32>()], 0..4), 0..4_usize),
            1..8),
        spelled in any::<bool>(),
        insightface in any::<bool>(),
    ) {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("x.rec");
        let records: Vec<_> = images
            .iter()
            .zip(0..)
            .map(|((label, value, words, cut), key)| {
                let mut tail: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
                tail.truncate(tail.len().saturating_sub(*cut));
                let labels = if spelled { vec![*label as f32, 7.0] } else { Vec::new() };
                (key, testing::payload(&labels, *label as f32, &png(*value, &tail)))
            })
            .collect();
        testing::write(&path, &records);
        let first = open(&path);
        let Source::Records(unpackable) = &first else { panic!("a record file") };
        let out = root.path().join("out");
        unpack_records(unpackable, &out, false, &|_| {}).unwrap();
        let form = if insightface { Form::InsightFace } else { Form::Im2rec };
        let again = root.path().join("again/train.rec");
        let packed = pack(&open(&out), &again, &packing(form), &mut |_| {}).unwrap();
        let second = open(&again);
        prop_assert_eq!(contents(&second), contents(&first));
        prop_assert_eq!(packed.classes, images.iter().map(|image| image.0 as usize + 1).max().unwrap());
        // And from record file to record file.
        let third = root.path().join("third.rec");
        pack(&second, &third, &packing(Form::Im2rec), &mut |_| {}).unwrap();
        prop_assert_eq!(contents(&open(&third)), contents(&first));
        // The pass over the records that has no index finds the same.
        std::fs::remove_file(again.with_extension("idx")).unwrap();
        prop_assert_eq!(contents(&open(&again)), contents(&first));
    }
}
