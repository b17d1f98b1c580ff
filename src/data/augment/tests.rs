//! The list of augmentations as a whole.

use super::*;
use crate::data::synth::{SynthConfig, draw as draw_face};

/// An image of random bytes.
pub(super) fn noise([height, width]: [usize; 2], seed: u64) -> Vec<u8> {
    (0..height * width * 3).map(|at| (mix(mix(seed) ^ at as u64) >> 56) as u8).collect()
}

pub(super) fn pixel(rgb: &[u8], width: usize, x: usize, y: usize) -> [u8; 3] {
    std::array::from_fn(|channel| rgb[(y * width + x) * 3 + channel])
}

fn named(name: &str) -> Augment {
    Augment::named(name).unwrap()
}

fn certain(change: Change) -> Augment {
    Augment { probability: 1.0, change }
}

fn every_kind() -> Vec<Augment> {
    ["shift", "scale", "rotate", "jitter", "low_resolution", "crop", "grey", "blur", "erase"]
        .map(|name| Augment { probability: 0.5, ..named(name) })
        .to_vec()
}

fn apply(augmenter: &Augmenter, epoch: u32, index: usize, size: [usize; 2], image: &[u8]) -> Vec<u8> {
    let mut image = image.to_vec();
    augmenter.apply(epoch, index, size, &mut image, &mut Scratch::default());
    image
}

#[test]
fn a_result_depends_on_seed_epoch_and_index_alone() {
    let (size, image) = ([24, 20], noise([24, 20], 1));
    let augmenter = Augmenter::new(&every_kind(), 5);
    let mut scratch = Scratch::default();
    let mut different = 0;
    for index in 0..200 {
        // Memory that was used before, by images of other sizes too, changes nothing.
        let mut again = image.clone();
        augmenter.apply(3, index, size, &mut again, &mut scratch);
        augmenter.apply(9, index, [5, 8], &mut noise([5, 8], 3), &mut scratch);
        let alone = apply(&augmenter, 3, index, size, &image);
        assert_eq!(alone, again);
        different += usize::from(alone != apply(&augmenter, 4, index, size, &image));
        different += usize::from(alone != apply(&Augmenter::new(&every_kind(), 6), 3, index, size, &image));
    }
    assert!(different > 390, "{different} of 400");
}

#[test]
fn the_bytes_never_change() {
    // Runs are to be reproducible across versions and platforms: these values are a promise.
    let size = [16, 12];
    let hash = |augments: &[Augment]| {
        let augmenter = Augmenter::new(augments, 7);
        (0..50).fold(0_u64, |hash, index| {
            apply(&augmenter, 2, index, size, &noise(size, 1))
                .iter()
                .fold(hash, |hash, &byte| mix(hash ^ u64::from(byte)))
        })
    };
    let found: Vec<u64> = every_kind().iter().map(|augment| hash(&[*augment])).collect();
    assert_eq!(found, PROMISED, "{found:#x?}");
}

const PROMISED: [u64; 9] = [
    0xe474_34b9_e96e_791b,
    0xa7ec_ff8d_3b5a_08e4,
    0x7748_d7d0_110b_38ff,
    0x67fd_8e25_fced_9013,
    0x590f_fa3d_a928_c107,
    0x6f4d_7018_ccb3_30a1,
    0xf2f6_48c4_2eb6_1cc1,
    0x347c_ab66_cc2a_5010,
    0x10dd_1ff0_9ec8_d716,
];

#[test]
fn each_happens_as_often_as_it_is_asked_for_and_independently_of_the_others() {
    let (size, image) = ([12, 12], noise([12, 12], 1));
    for name in ["crop", "shift", "rotate", "jitter", "grey", "blur", "low_resolution", "erase", "scale"] {
        for (probability, range) in [(0.0, 0..1), (0.3, 540..660), (1.0, 1980..2001)] {
            let augmenter = Augmenter::new(&[Augment { probability, ..named(name) }], 5);
            let changed = (0..2000).filter(|&i| apply(&augmenter, 1, i, size, &image) != image).count();
            // 600 expected, standard deviation 20; a change can be drawn so small that it is none.
            let slack = match (name, probability) {
                ("shift", p) if p > 0.0 => (2000.0 * p / 49.0 * 2.0) as usize,
                ("scale" | "low_resolution" | "blur" | "crop" | "rotate", p) if p > 0.0 => {
                    (800.0 * p) as usize
                }
                _ => 0,
            };
            assert!(
                (range.start - slack.min(range.start)..range.end).contains(&changed),
                "{name}: {changed}"
            );
        }
    }
    // One more in front of it leaves the draws of an augmentation as they are.
    let erase = named("erase");
    let alone = Augmenter::new(&[erase], 5);
    let second = Augmenter::new(&[Augment { probability: 0.0, ..named("blur") }, erase], 5);
    assert!((0..50).all(|i| apply(&alone, 1, i, size, &image) == apply(&second, 1, i, size, &image)));
    // The same kind twice draws twice.
    let twice = Augmenter::new(&[erase, erase], 5);
    let both = (0..2000).filter(|&i| apply(&twice, 1, i, size, &image) != image).count();
    assert!((660..780).contains(&both), "1 - 0.8^2 of 2000 is 720, standard deviation 21: {both}");
}

#[test]
fn mirroring_has_its_probability() {
    let flags = |probability: f64| {
        let augmenter = Augmenter::new(&[Augment { probability, change: Change::Mirror }], 3);
        assert!(augmenter.is_identity(), "pixels are left to the GPU");
        (0..10_000).filter(|&index| augmenter.mirrored(1, index)).count()
    };
    assert_eq!((flags(0.0), flags(1.0)), (0, 10_000));
    assert!((4800..5200).contains(&flags(0.5)));
    assert!((1850..2150).contains(&flags(0.2)));
    assert!(!Augmenter::new(&[], 3).mirrored(1, 0));
}

#[test]
fn the_parameters_bound_the_change() {
    let size = [9, 9];
    let mut point = vec![0; 9 * 9 * 3];
    point[(4 * 9 + 4) * 3] = 255;
    let mut seen = std::collections::BTreeSet::new();
    let shift = Augmenter::new(&[certain(Change::Shift { pixels: 2 })], 1);
    for index in 0..400 {
        let moved = apply(&shift, 1, index, size, &point);
        seen.insert(moved.iter().position(|&value| value == 255).unwrap() / 3);
    }
    let expected: Vec<usize> = (2..7).flat_map(|y| (2..7).map(move |x| y * 9 + x)).collect();
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), expected);

    // Changes of no strength are none.
    let image = noise(size, 2);
    let nothing = [
        Change::Scale { range: [1.0, 1.0] },
        Change::Rotate { degrees: 0.0 },
        Change::Jitter { brightness: 0.0, contrast: 0.0, saturation: 0.0, hue: 0.0 },
        Change::LowResolution { scale: [1.0, 1.0] },
        Change::Crop { scale: [1.0, 1.0], ratio: [1.0, 1.0], resize: true },
        Change::Crop { scale: [1.0, 1.0], ratio: [1.0, 1.0], resize: false },
    ];
    let augmenter = Augmenter::new(&nothing.map(certain), 1);
    assert!((0..50).all(|index| apply(&augmenter, 1, index, size, &image) == image));
}

#[test]
fn low_resolution_loses_detail_and_keeps_the_face() {
    let config = SynthConfig {
        seed: 3,
        identities: 1,
        first_identity: 0,
        images_per_identity: 1,
        size: [112, 112],
        hard_share: 0.0,
        mislabelled_share: 0.0,
    };
    let face = draw_face(&config, 0, 0).rgb;
    let difference = |scale: f64| {
        let augmenter = Augmenter::new(&[certain(Change::LowResolution { scale: [scale; 2] })], 1);
        let changed = apply(&augmenter, 1, 0, [112, 112], &face);
        let sum: f64 = changed.iter().zip(&face).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum();
        (sum / face.len() as f64).sqrt()
    };
    let (mild, strong) = (difference(0.8), difference(0.2));
    assert!(mild < strong && mild > 0.5 && strong < 40.0, "{mild} {strong}");
}

#[test]
fn images_of_any_size_are_taken() {
    for size in [[1, 1], [1, 9], [7, 1], [3, 2], [0, 4]] {
        let list: Vec<Augment> =
            every_kind().into_iter().map(|a| Augment { probability: 1.0, ..a }).collect();
        let augmenter = Augmenter::new(&list, 1);
        (0..20).for_each(|index| drop(apply(&augmenter, 1, index, size, &noise(size, 1))));
    }
}
