use std::path::Path;

use serde_json::Value;

use super::identify::GalleryReport;
use super::meta::{Meta, Roster, Target};
use super::*;

fn numbers(value: &Value) -> Vec<f64> {
    serde_json::from_value(value.clone()).unwrap()
}

fn integers(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

fn roster(name: &str, value: &Value) -> Roster {
    let rows: Vec<(u32, u32)> = serde_json::from_value(value.clone()).unwrap();
    let (templates, subjects) = rows.into_iter().unzip();
    Roster { name: name.to_owned(), templates, subjects }
}

struct Fixture {
    embeddings: Vec<f32>,
    dimension: usize,
    faces: Faces,
    pairs: Pairs,
    lists: Identification,
    results: Vec<Value>,
}

fn fixture() -> Fixture {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/ijb.json");
    let set: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let floats = |key: &str| -> Vec<f32> { serde_json::from_value(set[key].clone()).unwrap() };
    let triples: Vec<[u32; 3]> = serde_json::from_value(set["pairs"].clone()).unwrap();
    let faces = Faces {
        detector: floats("detector"),
        templates: integers(&set["templates"]),
        medias: integers(&set["medias"]),
        ..Faces::default()
    };
    Fixture {
        embeddings: floats("embeddings"),
        dimension: set["dimension"].as_u64().unwrap() as usize,
        faces,
        pairs: Pairs {
            first: triples.iter().map(|pair| pair[0]).collect(),
            second: triples.iter().map(|pair| pair[1]).collect(),
            same: triples.iter().map(|pair| pair[2] == 1).collect(),
        },
        lists: Identification {
            galleries: vec![roster("G1", &set["galleries"][0]), roster("G2", &set["galleries"][1])],
            probes: roster("probes", &set["probes"]),
        },
        results: set["results"].as_array().unwrap().clone(),
    }
}

impl Fixture {
    fn evaluate(&self, settings: Settings) -> Result<IjbReport> {
        evaluate(&self.embeddings, self.dimension, &self.faces, &self.pairs, Some(&self.lists), settings)
    }
}

fn tops(gallery: &GalleryReport) -> Vec<f64> {
    vec![gallery.top_1, gallery.top_5, gallery.top_10]
}

fn tpirs(gallery: &GalleryReport) -> Vec<f64> {
    gallery.tpir_at_fpir.iter().map(|at| at.tpir.unwrap()).collect()
}

fn near(found: &[f64], expected: &[f64]) -> bool {
    found.len() == expected.len() && found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12)
}

#[test]
fn equal_to_the_protocol_in_numpy_and_scikit_learn() {
    let fixture = fixture();
    assert_eq!(fixture.results.len(), 4);
    for expected in &fixture.results {
        let flag = |key: &str| expected[key].as_bool().unwrap();
        let settings =
            Settings { norm: flag("norm"), detector_score: flag("detector_score"), ..Settings::default() };
        let report = fixture.evaluate(settings).unwrap();
        let templates =
            Templates::new(&fixture.embeddings, fixture.dimension, &fixture.faces, settings).unwrap();
        let scores: Vec<f64> =
            scores(&templates, &fixture.pairs).unwrap().iter().take(20).map(|(score, _)| *score).collect();
        let of = &expected["verification"];
        assert!(near(&scores, &numbers(&of["scores"])), "{scores:?}");
        assert!((report.verification.auc - of["auc"].as_f64().unwrap()).abs() < 1e-12);
        // Shares of whole numbers: to the last digit.
        let at = &report.verification.tar_at_far;
        assert_eq!(at.iter().map(|at| at.tar).collect::<Vec<_>>(), numbers(&of["tar"]), "{settings:?}");
        assert_eq!(at.iter().map(|at| at.far_of_point).collect::<Vec<_>>(), numbers(&of["far_of_point"]));

        let found = report.identification.unwrap();
        let together = &expected["together"];
        assert_eq!(tops(&found.together), numbers(&together["top"]));
        assert_eq!(tpirs(&found.together), numbers(&together["tpir"]));
        let thresholds = |gallery: &GalleryReport| -> Vec<f64> {
            gallery.tpir_at_fpir.iter().map(|at| at.threshold.unwrap()).collect()
        };
        assert!(near(&thresholds(&found.together), &numbers(&together["thresholds"])));
        for (gallery, expected) in found.galleries.iter().zip(expected["galleries"].as_array().unwrap()) {
            assert_eq!(gallery.mated as u64, expected["mated"].as_u64().unwrap());
            assert_eq!(tops(gallery), numbers(&expected["top"]));
            assert_eq!(tpirs(gallery), numbers(&expected["tpir"]));
            assert!(near(&thresholds(gallery), &numbers(&expected["thresholds"])));
        }
        assert!(near(&tops(&found.mean), &numbers(&expected["mean_top"])));
        assert!(near(&tpirs(&found.mean), &numbers(&expected["mean_tpir"])));
        assert_eq!((found.probes, found.together.gallery, found.together.non_mated), (60, 30, 0));
        // The curve goes through the rates and ends where every mated search that is right counts.
        let curve = &found.galleries[0].curve;
        assert!(curve.is_sorted() && curve.first().unwrap().0 < 1.1e-4 && curve.last().unwrap().0 == 1.0);
    }
}

#[test]
fn equal_scores_count_against_the_network() {
    // One person in all images as far as the network can tell.
    let faces = Faces {
        detector: vec![1.0; 6],
        templates: vec![1, 2, 3, 4, 5, 6],
        medias: vec![1; 6],
        ..Faces::default()
    };
    let pairs = Pairs { first: vec![1, 1], second: vec![2, 3], same: vec![true, false] };
    let list = |templates: &[u32], subjects: &[u32]| Roster {
        name: "x".into(),
        templates: templates.to_vec(),
        subjects: subjects.to_vec(),
    };
    let lists = Identification {
        galleries: vec![list(&[1, 2], &[1, 2]), list(&[3], &[3])],
        probes: list(&[4, 5, 6], &[1, 2, 3]),
    };
    let report = evaluate(&[2.0; 12], 2, &faces, &pairs, Some(&lists), Settings::default()).unwrap();
    assert_eq!((report.verification.auc, report.verification.tar_at_far[0].tar), (0.5, 0.0));
    let found = report.identification.unwrap();
    assert_eq!((found.together.top_1, found.together.top_5), (0.0, 1.0));
    assert!(found.galleries.iter().all(|gallery| tpirs(gallery) == [0.0; 2]));

    // With all probes in one gallery no search is without a mate.
    let lists = Identification { galleries: vec![list(&[1, 2, 3], &[1, 2, 3])], ..lists };
    let report = evaluate(&[2.0; 12], 2, &faces, &pairs, Some(&lists), Settings::default()).unwrap();
    let found = report.identification.unwrap();
    assert!(found.galleries[0].tpir_at_fpir.iter().all(|at| at.tpir.is_none() && at.threshold.is_none()));
    assert!(found.mean.tpir_at_fpir.iter().all(|at| at.tpir.is_none()));
}

#[test]
fn sets_that_cannot_be_evaluated_are_refused() {
    let good = fixture();
    let fails = |change: &dyn Fn(&mut Fixture), word: &str| {
        let mut set = fixture();
        change(&mut set);
        let error = set.evaluate(Settings::default()).unwrap_err().to_string();
        assert!(error.contains(word), "{word}: {error}");
    };
    assert!(good.evaluate(Settings::default()).is_ok());
    fails(&|set| set.embeddings.truncate(7), "an embedding of 12");
    fails(&|set| set.faces.medias.truncate(7), "a medium");
    fails(&|set| set.embeddings[25] = f32::NAN, "face 3");
    fails(&|set| set.pairs.first[4] = 5, "pair 5 of the list of pairs: found template 5");
    fails(&|set| set.pairs.same.truncate(7), "one length");
    fails(&|set| set.pairs.same.fill(false), "0 matching pairs");
    fails(&|set| set.lists.probes.templates[0] = 3, "template 3");
    fails(&|set| set.lists.galleries[1].subjects.fill(2), "person 2 twice");
    fails(&|set| set.lists.probes.subjects.fill(999), "no person of the probes");
    fails(&|set| set.lists.galleries[0].templates.clear(), "gallery G1: found an empty list");
    fails(&|set| set.lists.probes.templates.clear(), "the list of probes: found an empty list");
    fails(&|set| set.lists.probes.subjects[0] = 999, "of person 999, who is in no gallery");
}

/// A folder with the lists of a tiny IJB-C.
fn folder() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = root.path().join("IJBC").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    let points = "38 51 73 51 56 71 41 92 70 92";
    write(
        "meta/ijbc_name_5pts_score.txt",
        &format!("1.jpg {points} 0.9\n2.jpg {points} 0.8\n3.jpg {points} 0.7\n"),
    );
    write("meta/ijbc_face_tid_mid.txt", "1.jpg 1 10\n2.jpg 1 11\n3.jpg 4 12\n");
    write("meta/ijbc_template_pair_label.txt", "1 4 1\r\n4 1 0\r\n");
    write("meta/ijbc_1N_gallery_G1.csv", "TEMPLATE_ID,SUBJECT_ID\n1,7\n");
    write("meta/ijbc_1N_gallery_G2.csv", "TEMPLATE_ID,SUBJECT_ID,FILENAME\n4,8,\"a,b.jpg\"\n");
    write("meta/ijbc_1N_probe_mixed.csv", "TEMPLATE_ID,SUBJECT_ID\n4,7\n1,8\n4,7\n");
    for name in ["1.jpg", "2.jpg", "3.jpg"] {
        write(&format!("loose_crop/{name}"), "");
    }
    root
}

#[test]
fn lists_are_read_and_checked() {
    let root = folder();
    for place in [root.path().to_path_buf(), root.path().join("IJBC")] {
        let meta = Meta::read(&place, Target::Ijbc).unwrap();
        assert_eq!((&meta.faces.templates[..], &meta.faces.medias[..]), (&[1, 1, 4][..], &[10, 11, 12][..]));
        assert_eq!(meta.faces.detector, [0.9, 0.8, 0.7]);
        assert_eq!(meta.pairs.same, [true, false]);
        assert_eq!(meta.identification.unwrap().probes.unique(), [(1, 8), (4, 7)]);
        assert!(meta.remarks.is_empty(), "{:?}", meta.remarks);
    }
    assert!(Meta::read(root.path(), Target::Ijbb).is_err());
    assert!(Meta::read(Path::new("/nonexistent"), Target::Ijbc).is_err());

    let meta_folder = "IJBC/meta/ijbc_";
    let good = "38 51 73 51 56 71 41 92 70 92";
    let coinciding = format!("1.jpg {good} 1\n2.jpg 5 5 5 5 5 5 5 5 5 5 1\n3.jpg {good} 1\n");
    let far = format!("1.jpg {good} 1\n2.jpg {good} 1\n3.jpg {} 1\n", good.replacen("51 56", "1e300 56", 1));
    let endless = format!("1.jpg {good} 1e300\n2.jpg {good} 1\n3.jpg {good} 1\n");
    for (file, text, words) in [
        ("face_tid_mid.txt", "1.jpg 1 10\n2.jpg 1 11\n", &["face_tid_mid.txt", "2 faces", "3"][..]),
        ("face_tid_mid.txt", "1.jpg 1 10\n2.jpg x 11\n", &["line 2", "2.jpg x 11"]),
        ("template_pair_label.txt", "1 4 1\n1 5 0\n", &["line 2", "template 5"]),
        ("template_pair_label.txt", "1 4 1\n1 4 2\n", &["line 2", "label 2"]),
        ("template_pair_label.txt", "x 4 1\n", &["line 1", "x 4 1"]),
        ("template_pair_label.txt", "1 4 1 1\n", &["line 1", "three numbers"]),
        ("name_5pts_score.txt", "1.jpg 1 2 3 4 5 6 7 8 9 10\n", &["line 1", "detector's score"]),
        ("name_5pts_score.txt", "1.jpg 1 2 3\n", &["line 1", "3 numbers"]),
        ("name_5pts_score.txt", "9.jpg 1 2 3 4 5 6 7 8 9 10 1\n", &["expected 1, as"]),
        ("name_5pts_score.txt", &coinciding, &["line 2 (2.jpg)", "coincide"]),
        ("name_5pts_score.txt", &far, &["line 3 (3.jpg)", "landmark 2 at (73, 1e300)"]),
        ("name_5pts_score.txt", &endless, &["line 1", "score inf"]),
        ("template_pair_label.txt", "", &["template_pair_label.txt", "0 matching pairs of 0"]),
        ("template_pair_label.txt", "1 4 1\n", &["template_pair_label.txt", "1 matching pairs of 1"]),
        ("template_pair_label.txt", "1 4 0\n", &["template_pair_label.txt", "0 matching pairs of 1"]),
        ("1N_gallery_G1.csv", "T,S\n", &["1N_gallery_G1.csv", "an empty list"]),
        ("1N_gallery_G2.csv", "T,S\n4,9\n", &["1N_gallery_G2.csv", "no person of the probes"]),
        ("1N_probe_mixed.csv", "T,S\n", &["1N_probe_mixed.csv", "an empty list"]),
        ("1N_probe_mixed.csv", "T,S\n4,7\n4,7\n1,8\n9,9\n", &["line 5", "template 9"]),
        ("1N_gallery_G2.csv", "T,S\n5,8\n", &["G2.csv, line 2", "template 5"]),
        ("1N_gallery_G2.csv", "T,S\n4,7\n", &["person 7", "gallery G1"]),
        ("1N_gallery_G2.csv", "T,S\n4,seven\n", &["line 2", "4,seven"]),
        ("1N_probe_mixed.csv", "T,S\n4,7\n4,8\n", &["line 3", "person 8", "before of person 7"]),
    ] {
        let path = root.path().join(format!("{meta_folder}{file}"));
        let before = std::fs::read(&path).unwrap();
        std::fs::write(&path, text).unwrap();
        let error = Meta::read(root.path(), Target::Ijbc).unwrap_err().to_string();
        words.iter().for_each(|word| assert!(error.contains(word), "{word}: {error}"));
        std::fs::write(&path, before).unwrap();
    }

    // Names that disagree are told; lists of the 1:N protocol may be absent; images may not.
    let list = root.path().join("IJBC/meta/ijbc_face_tid_mid.txt");
    std::fs::write(&list, "1.jpg 1 10\nother.jpg 1 11\n3.jpg 4 12\n").unwrap();
    std::fs::remove_file(root.path().join("IJBC/meta/ijbc_1N_gallery_G2.csv")).unwrap();
    let meta = Meta::read(root.path(), Target::Ijbc).unwrap();
    assert!(meta.identification.is_none());
    assert_eq!(meta.remarks.len(), 2, "{:?}", meta.remarks);
    assert!(meta.remarks[0].contains("line 2") && meta.remarks[1].contains("G2.csv"), "{:?}", meta.remarks);
    std::fs::remove_file(root.path().join("IJBC/loose_crop/2.jpg")).unwrap();
    let error = Meta::read(root.path(), Target::Ijbc).unwrap_err().to_string();
    assert!(error.contains("face 2 (2.jpg)") && error.contains("1 of 3 images"), "{error}");
}
