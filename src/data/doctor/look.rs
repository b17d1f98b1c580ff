//! What the doctor keeps of an image.

use std::hash::{DefaultHasher, Hasher};
use std::sync::LazyLock;

use crate::data::probe::{self, Probe};
use crate::data::{Image, decode};
use crate::{Error, Result};

/// Side of the grey miniature from which the appearance is computed.
const MINI: usize = 32;

/// Side of the square of low frequencies that are kept.
const LOW: usize = 8;

/// An image whose brightness varies less than this, as a standard deviation of 255 over the miniature, shows
/// nothing.
const BLANK: f32 = 4.0;

/// An image whose pixels' strongest and weakest channel differ less than this on average is grey.
const GREY: f32 = 2.0;

const DECODED: u8 = 1;
const GREY_FLAG: u8 = 2;
const BLANK_FLAG: u8 = 4;
const TURNED: u8 = 8;
const LABELLED: u8 = 16;

/// What is kept of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Look {
    /// A hash of size and pixels.
    pub pixels: u64,
    /// The signs of the low frequencies of its brightness.
    pub appearance: u64,
    label: u32,
    size: [u16; 2],
    flags: u8,
    tint: i8,
}

impl Look {
    /// What there is to see on `encoded`; nothing where it cannot be decoded.
    pub fn of(encoded: &[u8]) -> Self {
        let probe = probe::probe(encoded);
        let mut look = Self::default();
        if let Ok(image) = decode(encoded, probe, &String::new) {
            look.fill(&image);
            look.note(probe);
        }
        look
    }

    /// Its label, if that can be read.
    pub fn label(&self) -> Option<u32> {
        self.has(LABELLED).then_some(self.label)
    }

    pub(super) fn set_label(&mut self, label: u32) {
        self.label = label;
        self.flags |= LABELLED;
    }

    /// Its size, `[H, W]`, if it can be decoded.
    pub fn size(&self) -> Option<[usize; 2]> {
        self.is_decoded().then(|| self.size.map(usize::from))
    }

    /// Whether it can be decoded.
    pub fn is_decoded(&self) -> bool {
        self.has(DECODED)
    }

    /// Whether it has no colour.
    pub fn is_grey(&self) -> bool {
        self.has(GREY_FLAG)
    }

    /// Whether it shows next to nothing.
    pub fn is_blank(&self) -> bool {
        self.has(BLANK_FLAG)
    }

    /// Whether it is stored in another orientation than it is to be shown in.
    pub fn is_turned(&self) -> bool {
        self.has(TURNED)
    }

    /// By how much red exceeds blue in its middle, from -128 to 127 in steps of two levels.
    pub fn tint(&self) -> i8 {
        self.tint
    }

    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Notes what the file itself says, where it could be decoded.
    pub(super) fn note(&mut self, probe: Option<Probe>) {
        if probe.is_some_and(|probe| probe.turned) {
            self.flags |= TURNED;
        }
    }

    /// Notes what the decoded image shows.
    pub(super) fn fill(&mut self, image: &Image) {
        let mini = Miniature::of(image);
        self.pixels = hash(image);
        self.appearance = mini.appearance();
        self.size = [image.height, image.width].map(|side| u16::try_from(side).unwrap_or(u16::MAX));
        let flag = |is: bool, flag: u8| if is { flag } else { 0 };
        self.flags |=
            DECODED | flag(chroma(image) < GREY, GREY_FLAG) | flag(mini.deviation() < BLANK, BLANK_FLAG);
        self.tint = (red_over_blue(image) / 2.0).round().clamp(-128.0, 127.0) as i8;
    }
}

/// `encoded`, decoded at its own size.
pub(super) fn decode(encoded: &[u8], probe: Option<Probe>, place: &dyn Fn() -> String) -> Result<Image> {
    match probe {
        Some(probe) => decode::decode(encoded, probe.size, false, place),
        // Decoding knows what is wrong with it.
        None => match decode::decode(encoded, [1, 1], true, place) {
            Err(error) => Err(error),
            Ok(_) => Err(Error::data(place(), "a header that cannot be read", "an image", "replace it")),
        },
    }
}

fn hash(image: &Image) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write_usize(image.height);
    hasher.write_usize(image.width);
    hasher.write(&image.rgb);
    hasher.finish()
}

/// The mean difference between the strongest and the weakest channel of a pixel.
fn chroma(image: &Image) -> f32 {
    let spread = |pixel: &[u8]| {
        let (low, high) =
            pixel.iter().fold((255, 0), |(low, high), &value| (value.min(low), value.max(high)));
        u64::from(high - low)
    };
    let pixels = image.rgb.len() / 3;
    image.rgb.chunks_exact(3).map(spread).sum::<u64>() as f32 / pixels.max(1) as f32
}

/// The mean of red minus blue over the middle half of the image in height and width.
fn red_over_blue(image: &Image) -> f32 {
    let (rows, cols) = (image.height, image.width);
    let (mut sum, mut count) = (0_i64, 0_i64);
    for row in image.rgb.chunks_exact((3 * cols).max(1)).skip(rows / 4).take(rows.div_ceil(2)) {
        for pixel in row.chunks_exact(3).skip(cols / 4).take(cols.div_ceil(2)) {
            if let &[red, _, blue] = pixel {
                sum += i64::from(red) - i64::from(blue);
                count += 1;
            }
        }
    }
    sum as f32 / count.max(1) as f32
}

/// A grey picture of [`MINI`] x [`MINI`], row by row.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Miniature(Vec<f32>);

/// cos((2 n + 1) k pi / 2 N) for k in 0..=LOW, n in 0..N.
static COSINES: LazyLock<Vec<[f32; MINI]>> = LazyLock::new(|| {
    let cosine =
        |n: usize, k: usize| ((2 * n + 1) as f32 * k as f32 * std::f32::consts::PI / (2 * MINI) as f32).cos();
    (0..=LOW).map(|k| std::array::from_fn(|n| cosine(n, k))).collect()
});

impl Miniature {
    /// Means of brightness over a grid of cells.
    pub fn of(image: &Image) -> Self {
        // The first and the end of the pixels of a cell; at least one, where the image is smaller.
        let cell = |at: usize, side: usize| {
            let first = (at * side / MINI).min(side.saturating_sub(1));
            (first, ((at + 1) * side / MINI).max(first + 1).min(side))
        };
        let mut values = Vec::with_capacity(MINI * MINI);
        for row in 0..MINI {
            let (top, bottom) = cell(row, image.height);
            for col in 0..MINI {
                let (left, right) = cell(col, image.width);
                let mut sum = 0_u32;
                for y in top..bottom {
                    let line = image.rgb.get(3 * (y * image.width + left)..3 * (y * image.width + right));
                    for pixel in line.unwrap_or_default().chunks_exact(3) {
                        if let &[red, green, blue] = pixel {
                            sum += (77 * u32::from(red) + 150 * u32::from(green) + 29 * u32::from(blue)) >> 8;
                        }
                    }
                }
                values.push(sum as f32 / ((bottom - top) * (right - left)).max(1) as f32);
            }
        }
        Self(values)
    }

    fn mean(&self) -> f32 {
        self.0.iter().sum::<f32>() / self.0.len() as f32
    }

    /// The standard deviation of its brightness.
    fn deviation(&self) -> f32 {
        let mean = self.mean();
        (self.0.iter().map(|value| (value - mean) * (value - mean)).sum::<f32>() / self.0.len() as f32).sqrt()
    }

    /// One bit for each of the 64 lowest frequencies of its cosine transform but the constant: whether it is
    /// above their median. Encoding an image anew, scaling it and making it brighter change few of them.
    pub fn appearance(&self) -> u64 {
        let along: Vec<[f32; LOW + 1]> = self
            .0
            .chunks_exact(MINI)
            .map(|row| {
                let mut low = [0.0; LOW + 1];
                for (value, wave) in low.iter_mut().zip(COSINES.iter()) {
                    *value = row.iter().zip(wave).map(|(a, b)| a * b).sum();
                }
                low
            })
            .collect();
        let coefficient = |down: usize, across: usize| -> f32 {
            let wave = COSINES.get(down);
            let products = along.iter().zip(wave.into_iter().flatten());
            products.map(|(row, cosine)| row.get(across).copied().unwrap_or(0.0) * cosine).sum()
        };
        let mut values: Vec<f32> = (0..LOW * LOW)
            .map(|at| match (at / LOW, at % LOW) {
                (0, 0) => coefficient(LOW, 0),
                (down, across) => coefficient(down, across),
            })
            .collect();
        let bits = values.clone();
        let middle = values.len() / 2;
        let median = *values.select_nth_unstable_by(middle, f32::total_cmp).1;
        bits.iter().enumerate().fold(0, |word, (at, &value)| word | (u64::from(value > median) << at))
    }

    /// The correlation of two pictures, from -1 to 1: what is left of likeness when brightness and contrast
    /// do not count.
    pub fn correlation(&self, other: &Self) -> f32 {
        let (mean_a, mean_b) = (self.mean(), other.mean());
        let (mut both, mut of_a, mut of_b) = (0.0, 0.0, 0.0);
        for (a, b) in self.0.iter().zip(&other.0) {
            let (a, b) = (a - mean_a, b - mean_b);
            both += a * b;
            of_a += a * a;
            of_b += b * b;
        }
        if of_a * of_b > 0.0 { both / (of_a * of_b).sqrt() } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::encode::Encoding;
    use crate::data::synth::{SynthConfig, draw};

    fn face(identity: u32, index: u32) -> Image {
        let config = SynthConfig {
            seed: 3,
            identities: 50,
            first_identity: 0,
            images_per_identity: 4,
            size: [64, 64],
            hard_share: 0.0,
            mislabelled_share: 0.0,
        };
        Image { rgb: draw(&config, identity, index).rgb, height: 64, width: 64 }
    }

    fn look(image: &Image) -> Look {
        let mut look = Look::default();
        look.fill(image);
        look
    }

    #[test]
    fn pictures_without_colour_or_contents_are_seen() {
        assert_eq!(size_of::<Look>(), 32);
        let flat = |rgb: [u8; 3]| look(&Image { rgb: rgb.repeat(64), height: 8, width: 8 });
        let grey = flat([90, 90, 90]);
        assert!(grey.is_grey() && grey.is_blank() && grey.tint() == 0 && grey.size() == Some([8, 8]));
        assert!(!flat([120, 90, 90]).is_grey() && flat([120, 90, 90]).tint() == 15);
        assert_eq!(flat([0, 0, 255]).tint(), -128);
        let drawn = look(&face(1, 0));
        assert!(drawn.is_decoded() && !drawn.is_grey() && !drawn.is_blank());
        assert!(look(&Image { rgb: Vec::new(), height: 0, width: 0 }).is_blank());
        assert_eq!(Look::default().size(), None);
    }

    #[test]
    fn what_is_encoded_anew_looks_the_same_and_other_faces_do_not() {
        let (mut same, mut other) = (0, 64);
        for identity in 0..50 {
            let image = face(identity, 0);
            let again = Encoding::Jpeg(70).encode(&image).unwrap();
            let again = decode(&again, crate::data::probe::probe(&again), &|| "x".into()).unwrap();
            let brighter = image.rgb.iter().map(|&value| (value / 5 * 4).saturating_add(30)).collect();
            let brighter = Image { rgb: brighter, ..image };
            let distance = |a: &Image, b: &Image| (look(a).appearance ^ look(b).appearance).count_ones();
            let correlation = |a: &Image, b: &Image| Miniature::of(a).correlation(&Miniature::of(b));
            same = same.max(distance(&image, &again)).max(distance(&image, &brighter));
            assert!(correlation(&image, &again) > 0.99 && correlation(&image, &brighter) > 0.99);
            let another = face((identity + 1) % 50, 0);
            other = other.min(distance(&image, &another)).min(distance(&image, &face(identity, 1)));
            assert!(correlation(&image, &another) < 0.95);
        }
        assert!(same <= 4 && other >= 8, "encoded anew {same} bits, others {other} bits");
    }
}
