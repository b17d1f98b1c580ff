//! Procedural faces: a data set of any size with known truth, for demonstrations, tests and benchmarks.
//!
//! An identity is the geometry and the colouring of a head: skull, jaw, eyes, brows, nose, mouth, ears, hair, beard,
//! glasses, skin. A sample adds what does not belong to the identity: pose, light, expression, occlusion, background
//! and the camera. Heads are triangle meshes in three dimensions, drawn with a depth buffer and a shadow map, and the
//! face is painted in head coordinates.
//!
//! Everything follows from ([`SynthConfig::seed`], identity, index) alone, so that a sample does not depend on how
//! many others are drawn, in what order, or on how many threads. Between platforms a few bytes may differ by one, as
//! the sines and powers of their mathematics libraries do.

mod dice;
mod files;
mod hair;
mod head;
mod maths;
mod mesh;
mod paint;
mod person;
mod props;
mod raster;
mod render;
mod scene;
mod sensor;

pub use files::{SynthFiles, SynthWritten};

use dice::{Dice, Stream};
use person::Person;
use rayon::prelude::*;
use scene::Scene;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A data set of procedural faces.
#[derive(Debug, Clone, PartialEq)]
pub struct SynthConfig {
    /// Seed of everything. Two data sets with the same seed draw their identities from the same people.
    pub seed: u64,
    /// Number of identities.
    pub identities: u32,
    /// Number of the first identity among all people of this seed. Data sets whose ranges
    /// `first_identity..first_identity + identities` do not overlap have nobody in common.
    pub first_identity: u32,
    /// Number of samples of each identity.
    pub images_per_identity: u32,
    /// Height and width of the pictures in pixels.
    pub size: [usize; 2],
    /// Probability in [0, 1] that a sample is hard: strong pose, heavy occlusion, blur, low resolution or harsh light.
    pub hard_share: f32,
    /// Probability in [0, 1] that a sample shows another identity of the same data set than its label says.
    pub mislabelled_share: f32,
}

/// One picture with its label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SynthSample {
    /// Red, green and blue bytes, [height, width, 3], row-major.
    pub rgb: Vec<u8>,
    /// The label, in `0..identities`.
    pub label: u32,
    /// Who is in the picture, counted as the labels are; another than `label` if the sample is mislabelled.
    pub shown_identity: u32,
    /// Whether the sample is one of the hard ones.
    pub hard: bool,
}

/// Draws sample `index` of `identity` (in `0..config.identities`). Costs about 0.7 ms at 32 x 32 and 6 ms at 112 x 112 on
/// one core.
pub fn draw(config: &SynthConfig, identity: u32, index: u32) -> SynthSample {
    let (shown_identity, hard) = choose(config, identity, index);
    let number = |label: u32| u64::from(config.first_identity) + u64::from(label);
    let stream = |purpose| Dice::new(purpose, config.seed, number(identity), u64::from(index));
    let person = Person::sample(config.seed, number(shown_identity));
    let scene = Scene::sample(&mut stream(Stream::Scene), hard);
    let [rows, cols] = config.size;
    let light = render::render(&person, &scene, rows, cols);
    let rgb = sensor::develop(light, &scene.camera, &mut stream(Stream::Sensor));
    SynthSample { rgb, label: identity, shown_identity, hard }
}

/// Who a sample shows, and whether it is hard.
fn choose(config: &SynthConfig, identity: u32, index: u32) -> (u32, bool) {
    let number = u64::from(config.first_identity) + u64::from(identity);
    let dice = &mut Dice::new(Stream::Choice, config.seed, number, u64::from(index));
    let hard = dice.chance(config.hard_share);
    let mislabelled = dice.chance(config.mislabelled_share) && config.identities > 1;
    // One of the others, each equally likely.
    let other = dice.below(config.identities.saturating_sub(1));
    let shown = if !mislabelled { identity } else { other + u32::from(other >= identity) };
    (shown, hard)
}

/// Draws the whole data set on all threads: all samples of identity 0, then of identity 1, and so on. `progress` is
/// called after every sample, from any thread, with the number of samples that are done.
pub fn draw_all(config: &SynthConfig, progress: &(dyn Fn(usize) + Sync)) -> Vec<SynthSample> {
    let done = AtomicUsize::new(0);
    let each = config.images_per_identity;
    (0..config.identities)
        .into_par_iter()
        .flat_map(|identity| (0..each).into_par_iter().map(move |index| (identity, index)))
        .map(|(identity, index)| {
            let sample = draw(config, identity, index);
            progress(done.fetch_add(1, Ordering::Relaxed) + 1);
            sample
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> SynthConfig {
        SynthConfig {
            seed: 7,
            identities: 4,
            first_identity: 0,
            images_per_identity: 3,
            size: [24, 20],
            hard_share: 0.5,
            mislabelled_share: 0.25,
        }
    }

    #[test]
    fn a_sample_depends_on_nothing_but_its_address() {
        let config = config();
        let all = draw_all(&config, &|_| {});
        // Drawn alone, in another order, and as part of a larger data set.
        let larger = SynthConfig { images_per_identity: 9, ..config.clone() };
        for identity in (0..4).rev() {
            for index in (0..3).rev() {
                let expected = &all[(identity * 3 + index) as usize];
                assert_eq!(&draw(&config, identity, index), expected);
                assert_eq!(&draw(&larger, identity, index), expected);
            }
        }
        let reseeded = SynthConfig { seed: 8, ..config.clone() };
        assert_ne!(draw(&reseeded, 0, 0).rgb, all[0].rgb);
        assert_ne!(all[0].rgb, all[1].rgb);
    }

    #[test]
    fn the_number_of_threads_changes_nothing() {
        let config = config();
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| draw_all(&config, &|_| {}))
        };
        assert_eq!(on(1), on(5));
    }

    #[test]
    fn samples_come_by_identity_and_progress_counts_each_once() {
        let config = SynthConfig { mislabelled_share: 0.0, ..config() };
        let seen = std::sync::Mutex::new(Vec::new());
        let all = draw_all(&config, &|done| seen.lock().unwrap().push(done));
        let labels: Vec<u32> = all.iter().map(|s| s.label).collect();
        assert_eq!(labels, [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]);
        assert!(all.iter().all(|s| s.shown_identity == s.label && s.rgb.len() == 24 * 20 * 3));
        let mut seen = seen.into_inner().unwrap();
        seen.sort_unstable();
        assert_eq!(seen, (1..=12).collect::<Vec<_>>());
    }

    #[test]
    fn shares_of_hard_and_mislabelled_samples_are_as_configured() {
        let config = SynthConfig { identities: 100, hard_share: 0.3, mislabelled_share: 0.1, ..config() };
        let choices: Vec<_> = (0..100).flat_map(|i| (0..100).map(move |k| (i, k))).collect();
        let drawn = choices.iter().map(|&(i, k)| (i, choose(&config, i, k)));
        let hard = drawn.clone().filter(|(_, (_, hard))| *hard).count();
        let mislabelled = drawn.clone().filter(|(label, (shown, _))| shown != label).count();
        // Five standard deviations of a binomial count among 10,000.
        assert!(hard.abs_diff(3000) < 230, "{hard} of 10000 hard");
        assert!(mislabelled.abs_diff(1000) < 150, "{mislabelled} of 10000 mislabelled");
        assert!(drawn.clone().all(|(_, (shown, _))| shown < 100));
        let none = SynthConfig { hard_share: 0.0, mislabelled_share: 0.0, ..config.clone() };
        assert!(choices.iter().all(|&(i, k)| choose(&none, i, k) == (i, false)));
        let every = SynthConfig { hard_share: 1.0, mislabelled_share: 1.0, ..config.clone() };
        assert!(choices.iter().all(|&(i, k)| choose(&every, i, k).0 != i && choose(&every, i, k).1));
        // With nobody else to show, the label is right whatever the share.
        let alone = SynthConfig { identities: 1, ..every };
        assert_eq!(choose(&alone, 0, 0).0, 0);
    }

    #[test]
    fn identities_are_numbered_across_data_sets() {
        // Identity 5 is the same person, in the same pictures, whichever range it is drawn from.
        let clean = SynthConfig { mislabelled_share: 0.0, identities: 8, ..config() };
        let later = SynthConfig { first_identity: 5, ..clean.clone() };
        assert_eq!(draw(&clean, 5, 0).rgb, draw(&later, 0, 0).rgb);
        // And nobody is in both of two ranges that do not overlap.
        let other = SynthConfig { first_identity: 8, ..clean.clone() };
        let (ours, theirs) = (draw_all(&clean, &|_| {}), draw_all(&other, &|_| {}));
        assert!(ours.iter().all(|a| theirs.iter().all(|b| a.rgb != b.rgb)));
    }

    /// Means over 4 x 4 blocks of a 32 x 32 picture.
    fn thumbnail(sample: &SynthSample) -> Vec<f32> {
        let mut small = vec![0.0; 8 * 8 * 3];
        for (at, &byte) in sample.rgb.iter().enumerate() {
            let (row, col, channel) = (at / 96, at / 3 % 32, at % 3);
            small[(row / 4 * 8 + col / 4) * 3 + channel] += f32::from(byte) / (16.0 * 255.0);
        }
        small
    }

    /// Share of samples whose nearest mean, among those of the other samples of each identity, is their own.
    fn recognised(per_identity: usize, features: &[Vec<f32>]) -> f64 {
        let (train, size) = (per_identity * 3 / 4, features[0].len());
        let means: Vec<Vec<f32>> = features
            .chunks(per_identity)
            .map(|own| {
                (0..size).map(|k| own[..train].iter().map(|f| f[k]).sum::<f32>() / train as f32).collect()
            })
            .collect();
        let distance = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f32>();
        let mut right = 0;
        for (identity, own) in features.chunks(per_identity).enumerate() {
            for probe in &own[train..] {
                let nearest = (0..means.len())
                    .min_by(|&a, &b| distance(probe, &means[a]).total_cmp(&distance(probe, &means[b])));
                right += usize::from(nearest == Some(identity));
            }
        }
        right as f64 / (means.len() * (per_identity - train)) as f64
    }

    #[test]
    fn identities_are_recognisable_but_not_by_mean_colour() {
        let config = SynthConfig {
            identities: 20,
            images_per_identity: 16,
            size: [32, 32],
            hard_share: 0.0,
            mislabelled_share: 0.0,
            ..config()
        };
        let samples = draw_all(&config, &|_| {});
        let thumbnails: Vec<Vec<f32>> = samples.iter().map(thumbnail).collect();
        let colours: Vec<Vec<f32>> = thumbnails
            .iter()
            .map(|t| (0..3).map(|c| t.iter().skip(c).step_by(3).sum::<f32>() / 64.0).collect())
            .collect();
        let (by_picture, by_colour) = (recognised(16, &thumbnails), recognised(16, &colours));
        // Chance is 0.05.
        assert!(by_picture > 0.35, "recognised {by_picture} of the pictures");
        assert!(by_colour < 0.25, "mean colour alone gives {by_colour} of them away");
    }

    #[test]
    fn hard_samples_are_harder() {
        let easy = SynthConfig {
            identities: 20,
            images_per_identity: 16,
            size: [32, 32],
            hard_share: 0.0,
            mislabelled_share: 0.0,
            ..config()
        };
        let hard = SynthConfig { hard_share: 1.0, ..easy.clone() };
        let rate =
            |config| recognised(16, &draw_all(config, &|_| {}).iter().map(thumbnail).collect::<Vec<_>>());
        let (easy, hard) = (rate(&easy), rate(&hard));
        assert!(hard < easy - 0.08, "{hard} of the hard samples recognised, {easy} of the normal ones");
    }

    #[test]
    fn pictures_of_any_size_are_drawn() {
        for size in [[0, 0], [0, 5], [5, 0], [1, 1], [7, 40], [40, 7], [112, 96]] {
            let config = SynthConfig { size, hard_share: 1.0, ..config() };
            for index in 0..4 {
                assert_eq!(draw(&config, 0, index).rgb.len(), size[0] * size[1] * 3);
            }
        }
    }
}
