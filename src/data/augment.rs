//! Random changes of training images: what they are, how they are drawn, and in what order they are applied.
//!
//! They work on 8-bit RGB on the loader's threads, all but the mirroring, which is a flag that the GPU honours. What
//! becomes of a sample is a function of (seed, epoch, index of the sample, the list of augmentations) alone. Each kind
//! draws from a stream of its own, so that one that is added to the list leaves the draws of the others as they are.
//!
//! Pixels are computed in integers, from numbers that IEEE 754 fixes (sums, products, roots; sines and powers are
//! series of our own in `src/data/augment/draw.rs`): the bytes are the same on every platform.

mod affine;
mod colour;
mod draw;
mod filter;
mod patch;
mod table;

use affine::Affine;
use draw::Draw;
pub use draw::mix;
use filter::Taps;
pub use patch::Fill;
pub use table::OutOfRange;

/// A random change, and how often it happens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Augment {
    /// The share of the samples that are changed, in [0, 1].
    pub probability: f64,
    /// The change.
    pub change: Change,
}

/// A kind of random change with its parameters; each pair is a range, both ends included, drawn from uniformly unless
/// said otherwise.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Change {
    /// Mirrored left to right.
    Mirror,
    /// A random rectangle of the image.
    Crop {
        /// Its share of the image's area.
        scale: [f64; 2],
        /// Its width over its height, drawn uniformly in the logarithm.
        ratio: [f64; 2],
        /// Whether the rectangle is enlarged to the whole image. Otherwise it stays where it is, and what is outside
        /// becomes black.
        resize: bool,
    },
    /// Moved by whole pixels, up to this many in each direction and on each axis.
    Shift {
        /// The most.
        pixels: u32,
    },
    /// Enlarged or reduced about the centre.
    Scale {
        /// The factor.
        range: [f64; 2],
    },
    /// Turned about the centre, by up to this angle in either direction.
    Rotate {
        /// The most.
        degrees: f64,
    },
    /// Other light and other colours.
    Jitter {
        /// Brightness is multiplied by a factor up to this far from 1.
        brightness: f64,
        /// Contrast, the distance from the image's mean brightness, likewise.
        contrast: f64,
        /// Saturation, the distance from grey, likewise.
        saturation: f64,
        /// Hues are turned by up to this part of the circle of colours, at most 1/2.
        hue: f64,
    },
    /// Without colour.
    Grey,
    /// A Gaussian blur.
    Blur {
        /// Its standard deviation in pixels.
        sigma: [f64; 2],
    },
    /// Reduced and enlarged again, as faces are that were small in their photo.
    LowResolution {
        /// The reduced side over the whole one.
        scale: [f64; 2],
    },
    /// A random rectangle is painted over (random erasing; Zhong et al. 2017, arXiv 1708.04896).
    Erase {
        /// Its share of the image's area.
        area: [f64; 2],
        /// Its height over its width, drawn uniformly in the logarithm.
        ratio: [f64; 2],
        /// With what.
        fill: Fill,
    },
}

impl Change {
    /// What tells the streams of the kinds apart. The numbers are a promise: runs are reproducible across versions.
    fn stream(&self) -> u64 {
        match self {
            Self::Mirror => 0,
            Self::Crop { .. } => 1,
            Self::Shift { .. } => 2,
            Self::Scale { .. } => 3,
            Self::Rotate { .. } => 4,
            Self::Jitter { .. } => 5,
            Self::Grey => 6,
            Self::Blur { .. } => 7,
            Self::LowResolution { .. } => 8,
            Self::Erase { .. } => 9,
        }
    }
}

/// A list of augmentations, ready to be applied.
#[derive(Debug, Clone, PartialEq)]
pub struct Augmenter {
    seed: u64,
    /// The probability of mirroring.
    mirror: f64,
    /// The others, each with its stream.
    steps: Vec<(Augment, u64)>,
}

/// Memory that is used from sample to sample.
#[derive(Debug, Default)]
pub struct Scratch {
    copy: Vec<u8>,
    small: Vec<u8>,
    sums: Vec<i32>,
}

impl Augmenter {
    /// `augments` in their order, drawn from `seed`.
    pub fn new(augments: &[Augment], seed: u64) -> Self {
        let mut mirror = 0.0;
        let mut steps: Vec<(Augment, u64)> = Vec::new();
        for augment in augments {
            if augment.change == Change::Mirror {
                mirror = augment.probability;
                continue;
            }
            // A kind that is listed again draws anew.
            let kind = augment.change.stream();
            let before = steps.iter().filter(|(other, _)| other.change.stream() == kind).count();
            steps.push((*augment, kind + ((before as u64) << 32)));
        }
        Self { seed, mirror, steps }
    }

    /// Whether [`Augmenter::apply`] changes any image at all.
    pub fn is_identity(&self) -> bool {
        self.steps.is_empty()
    }

    /// Whether the sample is to be mirrored: a hash, so that it does not depend on the order of the samples.
    pub fn mirrored(&self, epoch: u32, index: usize) -> bool {
        // Any constant keeps this apart from the seeding of the order.
        let seeded = mix(self.seed ^ 0x6d69_7272_6f72_6564);
        let drawn = mix(mix(seeded ^ u64::from(epoch)) ^ index as u64);
        draw::unit(drawn) >= 1.0 - self.mirror
    }

    /// Changes the image of sample `index`, `[H, W, 3]` of 8-bit RGB, as epoch `epoch` has it; all but the mirroring.
    ///
    /// Neighbouring changes of geometry (crop with resizing, shift, scale, rotate) become one map, so that the image is
    /// interpolated once, and what one of them moves out of the frame the next one may move back in. What was outside
    /// of the image is black, as in faces that were aligned at the edge of a photo.
    pub fn apply(&self, epoch: u32, index: usize, size: [usize; 2], rgb: &mut [u8], scratch: &mut Scratch) {
        if size.contains(&0) || rgb.len() != size[0] * size[1] * 3 {
            return;
        }
        let mut map: Option<Affine> = None;
        for (augment, stream) in &self.steps {
            let draw = &mut Draw::new(self.seed, epoch, index, *stream);
            if !draw.chance(augment.probability) {
                continue;
            }
            if let Some(next) = geometry(&augment.change, size, draw) {
                map = Some(map.map_or(next, |map| map.then(&next)));
                continue;
            }
            if let Some(map) = map.take() {
                affine::resample(rgb, size, &map, &mut scratch.copy);
            }
            paint(&augment.change, size, rgb, draw, scratch);
        }
        if let Some(map) = map {
            affine::resample(rgb, size, &map, &mut scratch.copy);
        }
    }
}

/// The map of a change of geometry.
fn geometry(change: &Change, size: [usize; 2], draw: &mut Draw) -> Option<Affine> {
    match *change {
        Change::Crop { scale, ratio, resize: true } => {
            Some(Affine::crop(size, &patch::crop(size, scale, ratio, draw)))
        }
        Change::Shift { pixels } => {
            let mut step = || draw.below(2 * u64::from(pixels) + 1) as f64 - f64::from(pixels);
            let right = step();
            Some(Affine::shift(right, step()))
        }
        Change::Scale { range } => Some(Affine::scale(size, draw.between(range))),
        Change::Rotate { degrees } => Some(Affine::rotate(size, draw.between([-degrees, degrees]))),
        _ => None,
    }
}

/// Applies a change that is none of geometry.
fn paint(change: &Change, size: [usize; 2], rgb: &mut [u8], draw: &mut Draw, scratch: &mut Scratch) {
    let [height, width] = size;
    match *change {
        Change::Crop { scale, ratio, .. } => {
            patch::keep_only(rgb, size, &patch::crop(size, scale, ratio, draw));
        }
        Change::Jitter { brightness, contrast, saturation, hue } => {
            let mut factor = |most: f64| draw.between([1.0 - most, 1.0 + most]);
            let factors = [factor(brightness), factor(contrast), factor(saturation)];
            colour::jitter(rgb, factors, draw.between([-hue, hue]));
        }
        Change::Grey => colour::grey(rgb),
        Change::Blur { sigma } => {
            let sigma = draw.between(sigma);
            let (across, down) = (Taps::gaussian(width, sigma), Taps::gaussian(height, sigma));
            filter::apply(rgb, size, [&across, &down], &mut scratch.copy, &mut scratch.sums);
        }
        Change::LowResolution { scale } => {
            let scale = draw.between(scale);
            let reduced = |side: usize| ((side as f64 * scale).round() as usize).clamp(1, side);
            let small = [reduced(height), reduced(width)];
            scratch.small.clear();
            scratch.small.extend_from_slice(rgb);
            let (across, down) = (Taps::area(width, small[1]), Taps::area(height, small[0]));
            filter::apply(&mut scratch.small, size, [&across, &down], &mut scratch.copy, &mut scratch.sums);
            let (across, down) = (Taps::linear(small[1], width), Taps::linear(small[0], height));
            let reduced = scratch.small.get(..small[0] * small[1] * 3).unwrap_or_default();
            rgb.get_mut(..reduced.len()).unwrap_or_default().copy_from_slice(reduced);
            filter::apply(rgb, small, [&across, &down], &mut scratch.copy, &mut scratch.sums);
        }
        Change::Erase { area, ratio, fill } => {
            let patch = patch::erased(size, area, ratio, draw);
            patch::erase(rgb, size, &patch, fill, draw);
        }
        Change::Mirror | Change::Shift { .. } | Change::Scale { .. } | Change::Rotate { .. } => {}
    }
}

#[cfg(test)]
mod tests;
