//! Changes of colour, pixel by pixel.

use super::draw::sin_cos;

/// What red, green and blue contribute to brightness (those of the CSS and SVG filters, BT.709).
const LUMA: [f64; 3] = [0.213, 0.715, 0.072];

/// Fractional bits of the coefficients: the largest that occur, below 32, times three bytes, fit in 32 bits.
const BITS: u32 = 14;

/// Multiplies brightness, contrast and saturation by `factors` and turns hues by `hue` circles. All in one linear map,
/// so that only the result is clamped: first hue and saturation, which keep the brightness, then contrast about the
/// mean brightness, then brightness.
pub fn jitter(rgb: &mut [u8], [brightness, contrast, saturation]: [f64; 3], hue: f64) {
    let mean = mean_luma(rgb);
    let matrix = colours(saturation, hue).map(|row| row.map(|value| fixed(value * contrast * brightness)));
    let offset = fixed(mean * (1.0 - contrast) * brightness) + (1 << (BITS - 1));
    for pixel in rgb.chunks_exact_mut(3) {
        let &mut [red, green, blue] = pixel else { continue };
        let [red, green, blue] = [red, green, blue].map(i32::from);
        for (value, [r, g, b]) in pixel.iter_mut().zip(matrix) {
            *value = ((r * red + g * green + b * blue + offset) >> BITS).clamp(0, 255) as u8;
        }
    }
}

fn fixed(value: f64) -> i32 {
    (value * f64::from(1_u32 << BITS)).round() as i32
}

/// Saturation and hue as a matrix whose rows each keep grey as it is.
fn colours(saturation: f64, hue: f64) -> [[f64; 3]; 3] {
    let (sine, cosine) = sin_cos(360.0 * hue);
    // The rotation of `hue-rotate` in CSS, whose part that grows with the sine is tabulated.
    const TURN: [[f64; 3]; 3] = [[-0.213, -0.715, 0.928], [0.143, 0.140, -0.283], [-0.787, 0.715, 0.072]];
    std::array::from_fn(|row| {
        std::array::from_fn(|column| {
            let chroma = f64::from(u8::from(row == column)) - LUMA[column];
            LUMA[column] + saturation * (cosine * chroma + sine * TURN[row][column])
        })
    })
}

fn mean_luma(rgb: &[u8]) -> f64 {
    let mut sums = [0_u64; 3];
    for pixel in rgb.chunks_exact(3) {
        sums.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += u64::from(*value));
    }
    let pixels = (rgb.len() / 3).max(1) as f64;
    sums.iter().zip(LUMA).map(|(&sum, weight)| sum as f64 * weight).sum::<f64>() / pixels
}

/// Without colour, by the weights of Pillow's mode `L` (BT.601).
pub fn grey(rgb: &mut [u8]) {
    for pixel in rgb.chunks_exact_mut(3) {
        let &mut [red, green, blue] = pixel else { continue };
        let [red, green, blue] = [red, green, blue].map(u32::from);
        pixel.fill(((19_595 * red + 38_470 * green + 7_471 * blue + 0x8000) >> 16) as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::augment::tests::noise;

    fn jittered(rgb: &[u8], factors: [f64; 3], hue: f64) -> Vec<u8> {
        let mut rgb = rgb.to_vec();
        jitter(&mut rgb, factors, hue);
        rgb
    }

    #[test]
    fn factors_of_one_change_nothing_and_each_does_its_own() {
        let image = noise([16, 16], 1);
        assert_eq!(jittered(&image, [1.0; 3], 0.0), image);
        let darker = jittered(&image, [0.5, 1.0, 1.0], 0.0);
        assert!(image.iter().zip(&darker).all(|(&a, &b)| b == a.div_ceil(2)), "halves are rounded up");
        let flat = jittered(&image, [1.0, 0.0, 1.0], 0.0);
        assert!(flat.iter().all(|&value| value == mean_luma(&image).round() as u8));
        let plain = jittered(&image, [1.0, 1.0, 0.0], 0.0);
        assert!(plain.chunks(3).all(|pixel| pixel[0] == pixel[1] && pixel[1] == pixel[2]));
        assert!((mean_luma(&plain) - mean_luma(&image)).abs() < 0.6);
        // Grey has no hue, and a whole turn is none.
        assert_eq!(jittered(&plain, [1.0; 3], 0.3), plain);
        assert_eq!(jittered(&image, [1.0; 3], 1.0), image);
        assert_ne!(jittered(&image, [1.0; 3], 0.1), image);
        // Red becomes green after a third of the circle, as far as it is in range.
        let [red, green, blue] = jittered(&[120, 0, 0], [1.0; 3], 1.0 / 3.0)[..] else { panic!() };
        assert!(green > red && green > blue, "{red} {green} {blue}");
        assert_eq!(jittered(&[250, 250, 250], [2.0, 1.0, 1.0], 0.0), [255; 3]);
    }

    #[test]
    fn grey_is_the_brightness_that_pillow_gives() {
        let mut image = vec![255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9];
        grey(&mut image);
        assert_eq!(image, [76, 76, 76, 150, 150, 150, 29, 29, 29, 9, 9, 9]);
    }
}
