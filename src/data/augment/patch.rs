//! Random rectangles: which, and what is done within or outside of them.

use serde::{Deserialize, Serialize};

use super::draw::Draw;

/// What an erased rectangle is filled with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fill {
    /// Every byte at random.
    Noise,
    /// Zero.
    Black,
    /// The mean colour of the image.
    Mean,
}

/// A rectangle of pixels within an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patch {
    pub left: usize,
    pub top: usize,
    pub width: usize,
    pub height: usize,
}

/// The rectangle of a crop: its area relative to the image, and width over height.
pub fn crop(size: [usize; 2], scale: [f64; 2], ratio: [f64; 2], draw: &mut Draw) -> Patch {
    let area = draw.between(scale);
    let ratio = draw.between_ratios(ratio);
    placed(size, (area / ratio).sqrt(), (area * ratio).sqrt(), draw)
}

/// The rectangle to erase: its area relative to the image, and height over width.
pub fn erased(size: [usize; 2], area: [f64; 2], ratio: [f64; 2], draw: &mut Draw) -> Patch {
    let area = draw.between(area);
    let ratio = draw.between_ratios(ratio);
    placed(size, (area * ratio).sqrt(), (area / ratio).sqrt(), draw)
}

/// A rectangle of sides relative to the image's, anywhere in it; a side that is too long is cut to the image's.
fn placed([height, width]: [usize; 2], down: f64, across: f64, draw: &mut Draw) -> Patch {
    // Relative to a square of the image's area, so that the ratio is that of the pixels.
    let side = ((height * width) as f64).sqrt();
    let pixels = |part: f64, most: usize| ((part * side).round() as usize).clamp(1, most);
    let (patch_height, patch_width) = (pixels(down, height), pixels(across, width));
    let left = draw.below((width - patch_width + 1) as u64) as usize;
    let top = draw.below((height - patch_height + 1) as u64) as usize;
    Patch { left, top, width: patch_width, height: patch_height }
}

/// Blackens what is outside of the patch.
pub fn keep_only(rgb: &mut [u8], [_, width]: [usize; 2], patch: &Patch) {
    for (y, row) in rgb.chunks_exact_mut(width * 3).enumerate() {
        if y < patch.top || y >= patch.top + patch.height {
            row.fill(0);
            continue;
        }
        let (start, end) = (patch.left * 3, (patch.left + patch.width) * 3);
        row.get_mut(..start).unwrap_or_default().fill(0);
        row.get_mut(end..).unwrap_or_default().fill(0);
    }
}

/// Paints over the patch.
pub fn erase(rgb: &mut [u8], [_, width]: [usize; 2], patch: &Patch, fill: Fill, draw: &mut Draw) {
    let mean = if fill == Fill::Mean { mean(rgb) } else { [0; 3] };
    for row in rgb.chunks_exact_mut(width * 3).skip(patch.top).take(patch.height) {
        let row = row.get_mut(patch.left * 3..(patch.left + patch.width) * 3).unwrap_or_default();
        if fill == Fill::Noise {
            for bytes in row.chunks_mut(8) {
                bytes.iter_mut().zip(draw.next().to_le_bytes()).for_each(|(byte, drawn)| *byte = drawn);
            }
        } else {
            row.chunks_exact_mut(3).for_each(|pixel| pixel.copy_from_slice(&mean));
        }
    }
}

/// The mean colour, rounded.
fn mean(rgb: &[u8]) -> [u8; 3] {
    let mut sums = [0_u64; 3];
    for pixel in rgb.chunks_exact(3) {
        sums.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += u64::from(*value));
    }
    let pixels = (rgb.len() as u64 / 3).max(1);
    sums.map(|sum| ((sum + pixels / 2) / pixels) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::augment::tests::{noise, pixel};

    #[test]
    fn rectangles_have_the_area_and_the_ratio_that_were_asked_for_and_lie_inside() {
        let size = [112, 96];
        let (mut left, mut right) = (0, 0);
        for index in 0..500 {
            let draw = &mut Draw::new(1, 1, index, 1);
            let patch = crop(size, [0.1, 0.4], [0.5, 2.0], draw);
            assert!(patch.left + patch.width <= 96 && patch.top + patch.height <= 112);
            let area = (patch.width * patch.height) as f64 / (112.0 * 96.0);
            let ratio = patch.width as f64 / patch.height as f64;
            assert!((0.095..0.41).contains(&area), "{patch:?}");
            assert!((0.48..2.1).contains(&ratio), "{patch:?}");
            left += usize::from(patch.left == 0);
            right += usize::from(patch.left + patch.width == 96);
            let other = erased(size, [0.1, 0.4], [0.25, 0.25], draw);
            assert!((other.width as f64 / other.height as f64 - 4.0).abs() < 0.3 || other.width == 96);
        }
        assert!(left > 0 && right > 0, "both edges are reached");
        let draw = &mut Draw::new(1, 1, 0, 1);
        let whole = Patch { left: 0, top: 0, width: 96, height: 112 };
        assert_eq!(crop(size, [1.0, 1.0], [96.0 / 112.0; 2], draw), whole);
        assert_eq!(crop([1, 1], [0.01, 0.01], [1.0; 2], draw), Patch { width: 1, height: 1, ..whole });
    }

    #[test]
    fn within_and_outside_of_a_rectangle() {
        let (size, image) = ([6, 8], noise([6, 8], 1));
        let patch = Patch { left: 2, top: 1, width: 4, height: 3 };
        let inside = |x: usize, y: usize| (2..6).contains(&x) && (1..4).contains(&y);
        let mut kept = image.clone();
        keep_only(&mut kept, size, &patch);
        let draw = &mut Draw::new(1, 1, 0, 1);
        let painted = [Fill::Noise, Fill::Black, Fill::Mean].map(|fill| {
            let mut painted = image.clone();
            erase(&mut painted, size, &patch, fill, draw);
            painted
        });
        for y in 0..6 {
            for x in 0..8 {
                let original = pixel(&image, 8, x, y);
                assert_eq!(pixel(&kept, 8, x, y), if inside(x, y) { original } else { [0; 3] });
                let [random, black, average] = painted.each_ref().map(|image| pixel(image, 8, x, y));
                if inside(x, y) {
                    assert_ne!(random, original);
                    assert_eq!((black, average), ([0; 3], mean(&image)));
                } else {
                    assert_eq!([random, black, average], [original; 3]);
                }
            }
        }
        assert_eq!(mean(&[1, 2, 3, 4, 2, 8]), [3, 2, 6]);
    }
}
