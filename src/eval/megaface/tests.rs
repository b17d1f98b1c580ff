use std::collections::HashSet;
use std::path::Path;

use epl_runtime::{Device, DeviceOptions};
use rand::Rng;
use rand_pcg::Pcg64Mcg;

use super::noise::{Treatment, clean_distractors, clean_probes, ending, read};
use super::photos::Photos;
use super::*;
use crate::eval::product::GpuProduct;

/// Scores on the CPU, in odd blocks.
struct Naive {
    dimension: usize,
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

impl Product for Naive {
    fn for_each_block(
        &mut self,
        left: &[f32],
        right: &[f32],
        each: &mut dyn FnMut(Block<'_>) -> Result<()>,
    ) -> Result<()> {
        let (rows, columns, stride) = (7, 13, 16);
        for (column, right) in right.chunks(columns * self.dimension).enumerate() {
            for (row, left) in left.chunks(rows * self.dimension).enumerate() {
                let mut values = Vec::new();
                for a in left.chunks_exact(self.dimension) {
                    let mut scores: Vec<f32> =
                        right.chunks_exact(self.dimension).map(|b| dot(a, b)).collect();
                    // What is behind the columns may be anything.
                    scores.resize(stride, f32::INFINITY);
                    values.extend(scores);
                }
                let filled = right.len() / self.dimension;
                each(Block {
                    row: row * rows,
                    column: column * columns,
                    columns: filled,
                    stride,
                    values: &values,
                })?;
            }
        }
        Ok(())
    }
}

const DIMENSION: usize = 6;

fn rows(random: &mut Pcg64Mcg, count: usize) -> Vec<f32> {
    // Few values, so that some scores are equal.
    let mut rows: Vec<f32> = (0..count * DIMENSION).map(|_| (random.next_u32() % 5) as f32 - 2.0).collect();
    to_unit_length(&mut rows, DIMENSION, &|at| at.to_string()).unwrap();
    rows
}

fn sets() -> (Probes, Distractors) {
    let mut random = Pcg64Mcg::new(77);
    let people: Vec<u32> = (0..40).map(|at| if at < 38 { at % 9 } else { at }).collect();
    let probes = Probes { embeddings: rows(&mut random, people.len()), people };
    let unreachable = (0..150).map(|at| at % 17 == 3).collect();
    (probes, Distractors { embeddings: rows(&mut random, 150), unreachable })
}

/// Every distractor twice.
fn twice(mut distractors: Distractors) -> Distractors {
    distractors.embeddings.extend_from_within(..);
    distractors.unreachable.extend_from_within(..);
    distractors
}

/// The ranks of all searches among the first `size` distractors, by definition.
fn ranks_of(probes: &Probes, distractors: &Distractors, size: usize) -> Vec<usize> {
    let photo = |at: usize| &probes.embeddings[at * DIMENSION..][..DIMENSION];
    let mut found = Vec::new();
    for probe in 0..probes.people.len() {
        for mate in 0..probes.people.len() {
            if mate == probe || probes.people[mate] != probes.people[probe] {
                continue;
            }
            let score = dot(photo(probe), photo(mate));
            let others =
                distractors.embeddings.chunks_exact(DIMENSION).zip(&distractors.unreachable).take(size);
            found.push(
                1 + others.filter(|(other, away)| !**away && dot(photo(probe), other) >= score).count(),
            );
        }
    }
    found
}

#[test]
fn equal_to_the_naive_protocol() {
    let (probes, distractors) = sets();
    let mut done = Vec::new();
    let report = evaluate(
        &mut Naive { dimension: DIMENSION },
        DIMENSION,
        &probes,
        &distractors,
        &[100, 0, 10, 1, 1000, 14],
        &mut |count| done.push(count),
    )
    .unwrap();
    assert_eq!(done.last(), Some(&150));
    assert_eq!((report.probes, report.people, report.distractors), (40, 11, 150));
    let sizes: Vec<usize> = report.identification.iter().map(|found| found.distractors).collect();
    assert_eq!(sizes, [1, 10, 14, 100, 150]);
    for found in &report.identification {
        let ranks = ranks_of(&probes, &distractors, found.distractors);
        assert_eq!(report.searches, ranks.len());
        let share =
            |rank: usize| ranks.iter().filter(|&&found| found <= rank).count() as f64 / ranks.len() as f64;
        assert_eq!((found.rank_1, found.rank_10), (share(1), share(10)), "{}", found.distractors);
        for &(rank, rate) in &found.cmc {
            assert_eq!(rate, share(rank), "{} {rank}", found.distractors);
        }
        assert_eq!(found.cmc.last(), Some(&(found.distractors + 1, 1.0)));
    }
    let last = report.identification.last().unwrap();
    assert!(last.rank_1 > 0.0 && last.rank_1 < last.rank_10 && last.rank_10 < 1.0, "{last:?}");

    // Verification: 6,000 pairs are too few for all rates, and of 12,000 one may be accepted at 1e-4.
    assert_eq!((report.genuine_pairs * 2, report.impostor_pairs), (report.searches, 6000));
    for (at, needed) in report.verification.iter().zip(["1000000", "100000", "10000"]) {
        assert_eq!((at.tar, at.threshold), (None, None));
        let expected = format!("6000 pairs of a photo and a distractor; this rate takes at least {needed}");
        assert_eq!(at.note.as_ref(), Some(&expected));
    }
    let distractors = twice(distractors);
    let mut naive = Naive { dimension: DIMENSION };
    let report = evaluate(&mut naive, DIMENSION, &probes, &distractors, &SIZES, &mut |_| {}).unwrap();
    assert_eq!(report.impostor_pairs, 12_000);
    assert_eq!((report.verification[0].tar, report.verification[1].tar), (None, None));
    let photo = |at: usize| &probes.embeddings[at * DIMENSION..][..DIMENSION];
    let mut impostors = Vec::new();
    for probe in 0..40 {
        for (other, away) in distractors.embeddings.chunks_exact(DIMENSION).zip(&distractors.unreachable) {
            if !away {
                impostors.push(dot(photo(probe), other));
            }
        }
    }
    impostors.sort_by(|a, b| b.total_cmp(a));
    let second = impostors[1];
    assert_eq!(report.verification[2].threshold, Some(f64::from(second)));
    assert_eq!(report.verification[2].note, None);
    let mut above = 0;
    for a in 0..40 {
        above += (a + 1..40)
            .filter(|&b| probes.people[a] == probes.people[b] && dot(photo(a), photo(b)) > second)
            .count();
    }
    assert_eq!(report.verification[2].tar, Some(above as f64 / report.genuine_pairs as f64));
}

#[test]
fn the_highest_scores_are_kept() {
    let mut random = Pcg64Mcg::new(3);
    let scores: Vec<f32> = (0..5000).map(|_| (random.next_u32() % 1000) as f32).collect();
    let reachable: Vec<bool> = (0..100).map(|at| at % 10 != 0).collect();
    for most in [1, 7, 300, 9000] {
        let mut highest = Highest::new(most);
        for block in scores.chunks(1000) {
            let rows: Vec<(usize, &[f32])> = block.chunks(100).enumerate().collect();
            highest.add(&rows, &reachable);
        }
        let mut expected: Vec<f32> =
            scores.iter().enumerate().filter(|(at, _)| at % 10 != 0).map(|(_, score)| *score).collect();
        expected.sort_by(|a, b| b.total_cmp(a));
        expected.truncate(most);
        assert_eq!(highest.sorted(), expected, "{most}");
    }
}

#[test]
fn scores_of_the_gpu_are_those_of_the_cpu() {
    let device = Device::open(&DeviceOptions::default()).expect("a GPU, or a software Vulkan driver");
    let (probes, distractors) = sets();
    // Blocks smaller than the tables: 16 x 40 of 40 x 150.
    let mut gpu = GpuProduct::new(&device, 16, 40, DIMENSION).unwrap();
    let mut seen = vec![0.0; 40 * 150];
    let mut blocks = Vec::new();
    gpu.for_each_block(&probes.embeddings, &distractors.embeddings, &mut |block| {
        blocks.push((block.row, block.column));
        for (row, scores) in block.rows() {
            seen[row * 150 + block.column..][..block.columns].copy_from_slice(scores);
        }
        Ok(())
    })
    .unwrap();
    assert_eq!(blocks.len(), 3 * 4);
    assert!(blocks.is_sorted_by_key(|(row, column)| (*column, *row)), "{blocks:?}");
    let pairs = probes
        .embeddings
        .chunks_exact(DIMENSION)
        .flat_map(|a| distractors.embeddings.chunks_exact(DIMENSION).map(move |b| dot(a, b)));
    for (found, expected) in seen.iter().zip(pairs) {
        assert!((found - expected).abs() < 1e-6, "{found} {expected}");
    }
    // The whole protocol, on scores that no rounding exchanges.
    let (mut probes, mut distractors) = sets();
    let mut random = Pcg64Mcg::new(5);
    for value in probes.embeddings.iter_mut().chain(&mut distractors.embeddings) {
        *value = random.next_u32() as f32 / u32::MAX as f32 - 0.5;
    }
    let distractors = twice(distractors);
    let run = |product: &mut dyn Product| {
        evaluate(product, DIMENSION, &probes, &distractors, &SIZES, &mut |_| {}).unwrap()
    };
    let (on_gpu, on_cpu) = (run(&mut gpu), run(&mut Naive { dimension: DIMENSION }));
    assert_eq!(on_gpu.identification, on_cpu.identification);
    assert!(on_cpu.verification[2].tar.is_some());
    assert_eq!(on_gpu.verification[2].tar, on_cpu.verification[2].tar);
}

#[test]
fn sets_that_cannot_be_evaluated_are_refused() {
    let run = |probes: &Probes, distractors: &Distractors| {
        evaluate(&mut Naive { dimension: DIMENSION }, DIMENSION, probes, distractors, &SIZES, &mut |_| {})
    };
    let (probes, distractors) = sets();
    assert!(run(&probes, &distractors).is_ok());
    assert!(run(&Probes::default(), &distractors).is_err());
    assert!(run(&probes, &Distractors::default()).is_err());
    let short = Probes { embeddings: probes.embeddings[1..].to_vec(), people: probes.people.clone() };
    assert!(run(&short, &distractors).is_err());
    let strangers = Probes { people: (0..40).collect(), ..probes };
    assert!(run(&strangers, &distractors).unwrap_err().to_string().contains("two photos"));
    let mut damaged = vec![1.0, f32::NAN, 1.0, 1.0];
    let error = to_unit_length(&mut damaged, 2, &|at| format!("photo {at}")).unwrap_err().to_string();
    assert!(error.contains("photo 0"), "{error}");
    let mut zero = vec![0.0, 0.0, 3.0, 4.0];
    to_unit_length(&mut zero, 2, &|_| String::new()).unwrap();
    assert_eq!(zero, [0.0, 0.0, 0.6, 0.8]);
}

#[test]
fn noisy_photos_are_replaced_or_left_out() {
    let probes =
        || Probes { embeddings: vec![1.0, 0.0, 0.8, 0.6, 0.0, -1.0, 0.6, 0.8], people: vec![4, 4, 4, 5] };
    let noisy = [false, false, true, false];
    let name = |at: usize| format!("photo {at}");
    let mut dropped = probes();
    clean_probes(&mut dropped, 2, &noisy, Treatment::Drop, &name).unwrap();
    assert_eq!((dropped.embeddings.len(), dropped.people), (6, vec![4, 4, 5]));

    let mut replaced = probes();
    clean_probes(&mut replaced, 2, &noisy, Treatment::Replace, &name).unwrap();
    let mut again = probes();
    clean_probes(&mut again, 2, &noisy, Treatment::Replace, &name).unwrap();
    assert_eq!(replaced, again);
    assert_eq!(
        (&replaced.embeddings[..4], &replaced.embeddings[6..]),
        (&[1.0, 0.0, 0.8, 0.6][..], &[0.6, 0.8][..])
    );
    // The sum of the clean ones is (1.8, 0.6), of length 1.897.
    let row = &replaced.embeddings[4..6];
    assert!((row[0] - 0.948_683).abs() < 1e-3 && (row[1] - 0.316_228).abs() < 1e-3, "{row:?}");
    assert!((row[0].hypot(row[1]) - 1.0).abs() < 1e-6);
    let error = clean_probes(&mut probes(), 2, &[false, false, false, true], Treatment::Replace, &name);
    assert!(error.unwrap_err().to_string().contains("photo 3"));

    let distractors = || Distractors { embeddings: vec![1.0, 0.0, 0.0, 1.0], unreachable: vec![false; 2] };
    let mut away = distractors();
    clean_distractors(&mut away, 2, &[true, false], Treatment::Replace);
    assert_eq!((away.embeddings.len(), away.unreachable), (4, vec![true, false]));
    let mut gone = distractors();
    clean_distractors(&mut gone, 2, &[true, false], Treatment::Drop);
    assert_eq!((gone.embeddings, gone.unreachable), (vec![0.0, 1.0], vec![false]));
}

#[test]
fn noise_lists_go_by_the_end_of_a_path() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("noises.txt");
    std::fs::write(&path, "# faces\nAdam_Sandler_32.png\n\n7\t100/a@N00/12_0.jpg\n200\\b@N00\\3_1.jpg\n")
        .unwrap();
    let names = read(&path, 3).unwrap();
    let expected = ["Adam_Sandler_32.png", "100/a@N00/12_0.jpg", "200/b@N00/3_1.jpg"];
    assert_eq!(names, expected.map(str::to_owned).into_iter().collect::<HashSet<_>>());
    assert_eq!(ending("./megaface/100/a@N00/12_0.jpg", 3), "100/a@N00/12_0.jpg");
    assert_eq!((ending("a.jpg", 3).as_str(), ending("x/y.png", 1).as_str()), ("a.jpg", "y.png"));
    std::fs::write(&path, "# nothing\n").unwrap();
    assert!(read(&path, 1).unwrap_err().to_string().contains("no names"));
    assert!(read(&folder.path().join("none"), 1).is_err());
}

#[test]
fn photos_come_from_folders_lists_and_embeddings() {
    let root = tempfile::tempdir().unwrap();
    let photos = root.path().join("photos");
    for name in ["b/2.png", "b/10.png", "a/x/1.png", "a/0.png"] {
        let path = photos.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        image::GrayImage::new(4, 4).save(path).unwrap();
    }
    std::fs::write(photos.join("notes.txt"), "not a photo").unwrap();
    let open = |list: Option<&Path>| Photos::open("FaceScrub", &photos, list);
    let all = open(None).unwrap();
    assert_eq!(all.names(), ["a/0.png", "a/x/1.png", "b/2.png", "b/10.png"]);
    assert_eq!((all.people().unwrap(), all.are_images()), (vec![0, 1, 2, 2], true));
    let image = crate::eval::cached::Pictures::load(&all, 3, [4, 4]).unwrap();
    assert_eq!((image.height, image.width), (4, 4));

    let list = root.path().join("list");
    std::fs::write(&list, "b/10.png\r\n\n./a/0.png\n").unwrap();
    assert_eq!(open(Some(&list)).unwrap().names(), ["b/10.png", "./a/0.png"]);
    std::fs::write(&list, r#"{"id": ["b", "a"], "path": ["b/10.png", "a/x/1.png"]}"#).unwrap();
    assert_eq!(open(Some(&list)).unwrap().names(), ["b/10.png", "a/x/1.png"]);
    for (text, word) in [
        ("b/10.png\nb/11.png\n", "line 2: found 1 of 2 photos"),
        ("/etc/passwd\n", "line 1"),
        ("b/10.png\n\na/0.png\n./b/10.png\n", "list, line 4: found `./b/10.png`"),
        (r#"{"path": ["b/10.png", "a/0.png", "b/10.png"]}"#, "path 3"),
        (r#"{"path": 5}"#, "list"),
        (r#"{"path": ["b/10.png", "c.png"]}"#, "path 2"),
        ("\n", "no photo"),
    ] {
        std::fs::write(&list, text).unwrap();
        let error = open(Some(&list)).unwrap_err().to_string();
        assert!(error.contains(word), "{word}: {error}");
    }
    std::fs::write(photos.join("loose.png"), b"").unwrap();
    assert!(open(None).unwrap().people().unwrap_err().to_string().contains("loose.png"));
    assert!(Photos::open("x", &root.path().join("none"), None).is_err());

    let file = root.path().join("e.safetensors");
    let mut dict = crate::interchange::safetensors::StateDict::default();
    dict.insert("embeddings", &[2, 3], vec![1.0; 6]);
    dict.write(&file).unwrap();
    assert!(Photos::open("x", &file, None).unwrap_err().to_string().contains("paths"));
    dict.metadata.insert("paths".into(), r#"["f/a/1.png", "f/b/2.png"]"#.into());
    dict.write(&file).unwrap();
    let mut embedded = Photos::open("x", &file, None).unwrap();
    assert_eq!((embedded.people().unwrap(), embedded.are_images()), (vec![0, 1], false));
    assert_eq!(embedded.take_embeddings(), Some((vec![1.0; 6], 3)));
    assert_eq!(Photos::open("x", &file, Some(&list)).unwrap_err().exit_code(), 2);
    dict.metadata.insert("paths".into(), r#"["f/a/1.png"]"#.into());
    dict.write(&file).unwrap();
    assert!(Photos::open("x", &file, None).unwrap_err().to_string().contains("1 paths and 2"));
}
