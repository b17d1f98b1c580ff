use super::*;
use epl_runtime::DeviceOptions;
use rayon::prelude::*;

fn device() -> Arc<Device> {
    Device::open(&DeviceOptions::default()).expect("a GPU, or a software Vulkan driver")
}

struct Dice(u64);

impl Dice {
    fn normal(&mut self) -> f32 {
        // The sum of uniform numbers is normal enough.
        (0..6).map(|_| self.uniform() - 0.5).sum()
    }

    fn uniform(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 24) as f32
    }
}

/// `count` embeddings around the centres of `people`, some of which are close to each other.
fn clusters(count: usize, people: usize, dimension: usize) -> (Vec<f32>, Vec<u32>) {
    let mut dice = Dice(7);
    let centres: Vec<f32> = (0..people * dimension).map(|_| dice.normal()).collect();
    let mut values = Vec::with_capacity(count * dimension);
    let mut labels = Vec::with_capacity(count);
    for image in 0..count {
        let person = (dice.uniform() * people as f32) as usize % people;
        // Every fifth image looks like the next person.
        let looks = if image % 5 == 0 { (person + 1) % people } else { person };
        let centre = &centres[looks * dimension..][..dimension];
        values.extend(centre.iter().map(|value| value + 1.1 * dice.normal()));
        labels.push(person as u32);
    }
    (values, labels)
}

/// All scores in f64: those of genuine pairs, and of impostors, the largest first.
fn all_scores(members: &Members<'_>) -> [Vec<f64>; 2] {
    let labels = members.labels();
    [true, false].map(|same| {
        let of_row = |i: usize| {
            let others = (i + 1..members.len()).filter(move |&j| (labels[i] == labels[j]) == same);
            others.map(move |j| score(members.row(i), members.row(j))).collect::<Vec<_>>()
        };
        let mut scores: Vec<f64> = (0..members.len()).into_par_iter().flat_map_iter(of_row).collect();
        scores.par_sort_unstable_by(|a, b| b.total_cmp(a));
        scores
    })
}

/// What sorting gives: threshold, genuine pairs and impostors above it.
fn by_sorting([genuine, impostors]: &[Vec<f64>; 2], far: Far) -> Option<(f64, u64, u64)> {
    let rank = far.allowed(impostors.len() as u64) as usize;
    let threshold = *impostors.get(rank).filter(|_| rank > 0)?;
    let above = |scores: &[f64]| scores.iter().filter(|&&score| score > threshold).count() as u64;
    Some((threshold, above(genuine), above(impostors)))
}

fn rates(outcome: &Outcome) -> Vec<Option<(f64, u64, u64)>> {
    let rate = |rate: &Rate| Some((rate.threshold?, rate.accepted?, rate.false_accepts?));
    outcome.tar_at_far.iter().map(rate).collect()
}

fn agrees(members: &Members<'_>, limits: &Limits) -> Outcome {
    let mut fars = Far::decades();
    fars.push("0.37".parse().unwrap());
    let mut last = None;
    let outcome = evaluate(&device(), members, &fars, limits, &mut |progress| last = Some(progress)).unwrap();
    let scores = all_scores(members);
    assert_eq!(members.pairs(), [scores[0].len() as u64, scores[1].len() as u64]);
    let expected: Vec<_> = fars.iter().map(|&far| by_sorting(&scores, far)).collect();
    assert_eq!(rates(&outcome), expected);
    let last = last.unwrap();
    assert_eq!((last.pass, last.done), (outcome.passes, last.pairs));
    outcome
}

#[test]
fn five_thousand_embeddings_give_what_brute_force_gives() {
    let (values, labels) = clusters(5000, 700, 96);
    let unit = Unit::new("clusters", values, 96).unwrap();
    let members = Members::new(&unit, &labels, 0..5000);
    let outcome = agrees(&members, &Limits::default());
    assert_eq!((outcome.images, outcome.passes), (5000, 2));
    assert!((690..=700).contains(&outcome.identities));
    let tars: Vec<f64> = outcome.tar_at_far.iter().filter_map(|rate| rate.tar).collect();
    assert_eq!(tars.len(), 7);
    assert!(tars[0] > 0.0 && tars.windows(2).all(|pair| pair[0] < pair[1]) && tars[6] < 1.0, "{tars:?}");
    for rate in &outcome.tar_at_far {
        let allowed = (rate.far * outcome.impostor_pairs as f64) as u64;
        assert!(rate.false_accepts.unwrap().abs_diff(allowed) <= 1);
    }
    // The curve is near the exact rates.
    for rate in &outcome.tar_at_far {
        let after = outcome.roc.iter().find(|point| point.0 >= rate.far).unwrap();
        assert!(after.1 >= rate.tar.unwrap() - 1e-3, "{rate:?} {after:?}");
        let before = outcome.roc.iter().rev().find(|point| point.0 <= rate.far).unwrap();
        assert!(before.1 <= rate.tar.unwrap() + 1e-3, "{rate:?} {before:?}");
    }
}

#[test]
fn what_does_not_fit_is_taken_in_parts_with_the_same_result() {
    let (values, labels) = clusters(700, 90, 33);
    let unit = Unit::new("clusters", values, 33).unwrap();
    // A group in another order than the set's.
    let members = Members::new(&unit, &labels, (0..700).rev().filter(|row| row % 7 != 3));
    let whole = agrees(&members, &Limits::default());
    for limits in [
        Limits { panel: Some(100), ..Limits::default() },
        Limits { panel: Some(128), listed: Some(50), ..Limits::default() },
        Limits { keep: 20, ..Limits::default() },
    ] {
        let parts = agrees(&members, &limits);
        assert_eq!(parts.tar_at_far, whole.tar_at_far);
        assert!(parts.passes > 2 || limits.keep > 20);
    }
}

#[test]
fn the_result_does_not_depend_on_the_kernels() {
    let (values, labels) = clusters(900, 120, 40);
    let unit = Unit::new("clusters", values, 40).unwrap();
    let members = Members::new(&unit, &labels, 0..900);
    let expected = agrees(&members, &Limits::default()).tar_at_far;
    for options in [
        DeviceOptions { gpu_kernels: true, ..DeviceOptions::default() },
        DeviceOptions { webgpu_limits: true, shader_checks: true, ..DeviceOptions::default() },
    ] {
        let device = Device::open(&options).unwrap();
        let mut fars = Far::decades();
        fars.push("0.37".parse().unwrap());
        let outcome = evaluate(&device, &members, &fars, &Limits::default(), &mut |_| {}).unwrap();
        assert_eq!(outcome.tar_at_far, expected);
    }
}

#[test]
fn ties_are_never_split() {
    // Forty embeddings, each many times under several names: most scores are shared by hundreds of pairs.
    let (few, _) = clusters(40, 40, 64);
    let labels: Vec<u32> = (0..1200).map(|image| (image % 40 + image / 400) as u32).collect();
    let values: Vec<f32> = (0..1200).flat_map(|image| few[image % 40 * 64..][..64].to_vec()).collect();
    let unit = Unit::new("ties", values, 64).unwrap();
    let members = Members::new(&unit, &labels, 0..1200);
    for keep in [u64::MAX, 100] {
        let outcome = agrees(&members, &Limits { keep, ..Limits::default() });
        assert!(outcome.tar_at_far.iter().flat_map(|rate| rate.false_accepts).any(|accepts| accepts == 0));
    }
}

#[test]
fn degenerate_sets_have_clear_results() {
    let same = Unit::new("same", vec![0.5; 300 * 16], 16).unwrap();
    let labels: Vec<u32> = (0..300).map(|image| image / 3).collect();
    // All embeddings equal: nothing is above the threshold.
    let outcome = agrees(&Members::new(&same, &labels, 0..300), &Limits::default());
    assert!(outcome.tar_at_far.iter().skip(2).all(|rate| rate.accepted == Some(0) && rate.tar == Some(0.0)));
    // 44 550 impostor pairs are too few for 1e-6 and 1e-5.
    for rate in &outcome.tar_at_far[..2] {
        assert!(rate.tar.is_none() && rate.threshold.is_none());
        assert!(rate.note.as_ref().unwrap().contains("44550 impostor pairs"), "{rate:?}");
    }
    // Rows of zeros are like nobody.
    let (mut values, labels) = clusters(300, 20, 16);
    values[160..320].fill(0.0);
    let zeros = Unit::new("zeros", values, 16).unwrap();
    assert_eq!(zeros.zeros(), 10);
    agrees(&Members::new(&zeros, &labels, 0..300), &Limits::default());

    let fars = Far::decades();
    for (labels, lacking) in [(vec![1; 300], "different"), ((0..300).collect(), "of one identity")] {
        let members = Members::new(&same, &labels, 0..300);
        let outcome = evaluate(&device(), &members, &fars, &Limits::default(), &mut |_| {}).unwrap();
        assert!(outcome.tar_at_far.iter().all(|rate| rate.note.as_ref().unwrap().contains(lacking)));
        assert_eq!((outcome.passes, outcome.roc.len()), (0, 0));
    }
    let nobody = Members::new(&same, &labels, 0..0);
    assert_eq!(nobody.pairs(), [0, 0]);
    assert!(Unit::new("nan", vec![f32::NAN; 4], 2).err().unwrap().to_string().contains("nan, embedding 0"));
    assert!(Unit::new("ragged", vec![0.0; 5], 2).is_err() && Unit::new("none", vec![], 0).is_err());
}

/// The float next to `value` towards zero, or `value` itself.
fn towards_zero(value: f64) -> f32 {
    let nearest = value as f32;
    if f64::from(nearest).abs() > value.abs() { f32::from_bits(nearest.to_bits() - 1) } else { nearest }
}

#[test]
fn a_float_product_is_off_by_less_than_the_bound() {
    let (values, _) = clusters(60, 10, 512);
    let unit = Unit::new("clusters", values, 512).unwrap();
    for i in 0..60 {
        for j in 0..60 {
            let (a, b) = (unit.row(i), unit.row(j));
            let forward: f32 = a.iter().zip(b).map(|(x, y)| x * y).sum();
            let backward: f32 = a.iter().zip(b).rev().map(|(x, y)| x * y).sum();
            // An adapter that rounds towards zero.
            let cut = a.iter().zip(b).fold(0.0f32, |sum, (&x, &y)| {
                towards_zero(f64::from(sum) + f64::from(towards_zero(f64::from(x) * f64::from(y))))
            });
            for float in [forward, backward, cut] {
                assert!((f64::from(float) - score(a, b)).abs() <= unit.bound());
            }
        }
    }
    assert!(unit.bound() < 6.3e-5, "{}", unit.bound());
    // Equal elements, whose sum is always rounded the same way, come within a small factor of the bound.
    let even = Unit::new("even", vec![1.0; 512], 512).unwrap();
    let row = even.row(0);
    let cut = row.iter().fold(0.0f32, |sum, &x| {
        towards_zero(f64::from(sum) + f64::from(towards_zero(f64::from(x) * f64::from(x))))
    });
    let error = (f64::from(cut) - score(row, row)).abs();
    assert!(error <= even.bound() && error > even.bound() / 8.0, "{error} of {}", even.bound());
}
