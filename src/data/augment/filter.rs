//! Separable filters: blur, reduction and enlargement.

use super::draw::exp;

/// Fractional bits of the weights.
const BITS: u32 = 14;

/// For each place of a row of the new image the weights of a few neighbouring places of the old one. They add up to one
/// exactly, so that a constant image stays as it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Taps {
    starts: Vec<usize>,
    /// `count` for each start.
    weights: Vec<i32>,
    count: usize,
}

impl Taps {
    /// A Gaussian of this standard deviation in pixels; beyond its ends a row goes on as it ends.
    pub fn gaussian(length: usize, sigma: f64) -> Self {
        let reach = (3.0 * sigma).ceil().max(1.0) as i64;
        let weights: Vec<f64> =
            (0..=reach).map(|distance| exp(-0.5 * (distance * distance) as f64 / (sigma * sigma))).collect();
        Self::new(length, length, |place| {
            let place = place as i64;
            let neighbours =
                (place - reach..=place + reach).zip(weights.iter().rev().chain(weights.iter().skip(1)));
            neighbours.map(|(at, &weight)| (at, weight)).collect()
        })
    }

    /// The mean over the part of the row that becomes one place, for a reduction from `length` to `reduced`.
    pub fn area(length: usize, reduced: usize) -> Self {
        let part = length as f64 / reduced as f64;
        Self::new(length, reduced, |place| {
            let (start, end) = (place as f64 * part, (place + 1) as f64 * part);
            let covered = |at: i64| ((at + 1) as f64).min(end) - (at as f64).max(start);
            (start as i64..end.ceil() as i64).map(|at| (at, covered(at))).collect()
        })
    }

    /// Linear interpolation, for an enlargement from `length` to `enlarged`.
    pub fn linear(length: usize, enlarged: usize) -> Self {
        let part = length as f64 / enlarged as f64;
        Self::new(length, enlarged, |place| {
            let at = (place as f64 + 0.5) * part - 0.5;
            let (below, right) = (at.floor(), at - at.floor());
            vec![(below as i64, 1.0 - right), (below as i64 + 1, right)]
        })
    }

    /// Collects what `taps_of` says of each of `places`, in shares; places outside of the row count for its ends.
    fn new(length: usize, places: usize, taps_of: impl Fn(usize) -> Vec<(i64, f64)>) -> Self {
        let last = length.saturating_sub(1);
        let taps: Vec<Vec<(usize, f64)>> = (0..places)
            .map(|place| {
                let clamped = |(at, weight): (i64, f64)| (usize::try_from(at).unwrap_or(0).min(last), weight);
                taps_of(place).into_iter().map(clamped).collect()
            })
            .collect();
        let span = |taps: &Vec<(usize, f64)>| {
            let places = || taps.iter().map(|&(at, _)| at);
            (places().min().unwrap_or(0), places().max().unwrap_or(0))
        };
        let count = taps.iter().map(span).map(|(first, last)| last - first + 1).max().unwrap_or(1);
        let mut result = Self { starts: Vec::new(), weights: Vec::new(), count };
        for taps in &taps {
            // A window that is shorter than the others reaches back rather than over the end.
            let start = span(taps).0.min(length.saturating_sub(count));
            let total: f64 = taps.iter().map(|&(_, weight)| weight).sum();
            let mut window = vec![0; count];
            for &(at, weight) in taps {
                window[at - start] += (weight / total * f64::from(1_u32 << BITS)).round() as i32;
            }
            // What rounding leaves goes to the largest weight, where it matters least.
            let missing = (1 << BITS) - window.iter().sum::<i32>();
            if let Some(largest) = window.iter_mut().max() {
                *largest += missing;
            }
            result.starts.push(start);
            result.weights.extend(window);
        }
        result
    }
}

/// Filters the image of `size` across and down. The result, as large as the taps are long, is at the start of `rgb`,
/// which must have room for it.
pub fn apply(
    rgb: &mut [u8],
    [height, width]: [usize; 2],
    [across, down]: [&Taps; 2],
    copy: &mut Vec<u8>,
    sums: &mut Vec<i32>,
) {
    let new_width = across.starts.len();
    copy.clear();
    copy.resize(height * new_width * 3, 0);
    let rows = rgb.chunks_exact(width * 3).zip(copy.chunks_exact_mut(new_width * 3));
    for (from, to) in rows.take(height) {
        let windows = across.starts.iter().zip(across.weights.chunks_exact(across.count));
        for (pixel, (&start, weights)) in to.chunks_exact_mut(3).zip(windows) {
            let mut sum = [HALF; 3];
            let window = from.get(start * 3..).unwrap_or_default();
            for (near, weight) in window.chunks_exact(3).zip(weights) {
                sum.iter_mut().zip(near).for_each(|(sum, value)| *sum += weight * i32::from(*value));
            }
            pixel.iter_mut().zip(sum).for_each(|(value, sum)| *value = (sum >> BITS) as u8);
        }
    }
    let windows = down.starts.iter().zip(down.weights.chunks_exact(down.count));
    for (to, (&start, weights)) in rgb.chunks_exact_mut(new_width * 3).zip(windows) {
        sums.clear();
        sums.resize(new_width * 3, HALF);
        for (from, weight) in copy.chunks_exact(new_width * 3).skip(start).zip(weights) {
            sums.iter_mut().zip(from).for_each(|(sum, value)| *sum += weight * i32::from(*value));
        }
        to.iter_mut().zip(&*sums).for_each(|(value, sum)| *value = (sum >> BITS) as u8);
    }
}

/// For rounding to the nearest.
const HALF: i32 = 1 << (BITS - 1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::augment::tests::{noise, pixel};

    fn filtered(rgb: &[u8], size: [usize; 2], taps: [&Taps; 2]) -> Vec<u8> {
        let mut rgb = rgb.to_vec();
        apply(&mut rgb, size, taps, &mut Vec::new(), &mut Vec::new());
        rgb
    }

    fn mean(rgb: &[u8]) -> f64 {
        rgb.iter().map(|&value| f64::from(value)).sum::<f64>() / rgb.len() as f64
    }

    #[test]
    fn weights_add_up_and_constant_images_stay_as_they_are() {
        let mut all =
            vec![Taps::area(112, 1), Taps::linear(1, 112), Taps::area(3, 3), Taps::gaussian(1, 2.0)];
        for step in 1..40_usize {
            all.push(Taps::gaussian(20 + step, step as f64 * 0.2));
            all.push(Taps::area(112, 2 * step));
            all.push(Taps::linear(2 * step, 112));
        }
        for taps in &all {
            assert!(taps.weights.chunks(taps.count).all(|window| window.iter().sum::<i32>() == 1 << BITS));
            assert!(taps.weights.iter().all(|&weight| weight >= 0));
        }
        for value in [0, 1, 127, 254, 255] {
            let flat = vec![value; 24 * 24 * 3];
            let taps = Taps::gaussian(24, 1.3);
            assert_eq!(filtered(&flat, [24, 24], [&taps, &taps]), flat);
        }
    }

    #[test]
    fn a_blur_keeps_the_mean_and_spreads_a_point_as_a_gaussian_does() {
        let size = [41, 41];
        let taps = Taps::gaussian(41, 1.5);
        let image = noise(size, 1);
        let blurred = filtered(&image, size, [&taps, &taps]);
        assert!((mean(&blurred) - mean(&image)).abs() < 1.0);
        let rough = |rgb: &[u8]| rgb.windows(4).map(|w| f64::from(w[0].abs_diff(w[3]))).sum::<f64>();
        assert!(rough(&blurred) < 0.4 * rough(&image));

        let mut point = vec![0; 41 * 41 * 3];
        point[(20 * 41 + 20) * 3 + 1] = 255;
        let spread = filtered(&point, size, [&taps, &taps]);
        for (x, y) in [(20, 20), (21, 20), (20, 18), (22, 21)] {
            let distance = (x as f64 - 20.0).powi(2) + (y as f64 - 20.0).powi(2);
            let expected = 255.0 / (2.0 * std::f64::consts::PI * 2.25) * (-distance / 4.5).exp();
            let found = f64::from(pixel(&spread, 41, x, y)[1]);
            // Two roundings to bytes.
            assert!((found - expected).abs() < 1.6, "{x} {y}: {found} {expected}");
        }
        assert!(spread.chunks(3).all(|pixel| pixel[0] == 0 && pixel[2] == 0), "channels do not mix");
    }

    #[test]
    fn reduction_takes_means_and_enlargement_meets_them() {
        let image = noise([8, 8], 2);
        let halves = [&Taps::area(8, 4), &Taps::area(8, 4)];
        let reduced = filtered(&image, [8, 8], halves);
        for (x, y) in [(0, 0), (3, 1), (2, 3)] {
            let four = [(0, 0), (1, 0), (0, 1), (1, 1)]
                .map(|(right, down)| pixel(&image, 8, 2 * x + right, 2 * y + down));
            let expected = four.iter().map(|pixel| f64::from(pixel[0])).sum::<f64>() / 4.0;
            assert!((f64::from(pixel(&reduced, 4, x, y)[0]) - expected).abs() < 1.1);
        }
        // Three times as large: every third place, beginning with the second, is one of the small image.
        let mut room = noise([12, 12], 3);
        let (small, taps) = (room[..4 * 4 * 3].to_vec(), Taps::linear(4, 12));
        apply(&mut room, [4, 4], [&taps, &taps], &mut Vec::new(), &mut Vec::new());
        for y in 0..4 {
            for x in 0..4 {
                assert_eq!(pixel(&room, 12, 3 * x + 1, 3 * y + 1), pixel(&small, 4, x, y));
            }
        }
    }
}
