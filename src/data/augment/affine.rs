//! Changes of geometry: one affine map from the pixels of the new image to places in the old one.

use super::draw::sin_cos;
use super::patch::Patch;

/// `[a, b, c]` for x and for y: the pixel (x, y) of the new image shows the place `a x + b y + c` of the old one. Pixels
/// are points at whole coordinates.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Affine([[f64; 3]; 2]);

impl Affine {
    /// Moved right and down.
    pub fn shift(right: f64, down: f64) -> Self {
        Self([[1.0, 0.0, -right], [0.0, 1.0, -down]])
    }

    /// Enlarged by `factor` about the centre.
    pub fn scale(size: [usize; 2], factor: f64) -> Self {
        Self::about_centre(size, [[1.0 / factor, 0.0], [0.0, 1.0 / factor]])
    }

    /// Turned about the centre, clockwise.
    pub fn rotate(size: [usize; 2], degrees: f64) -> Self {
        let (sine, cosine) = sin_cos(degrees);
        Self::about_centre(size, [[cosine, sine], [-sine, cosine]])
    }

    /// The patch, enlarged to the whole image.
    pub fn crop([height, width]: [usize; 2], patch: &Patch) -> Self {
        let axis = |start: usize, length: usize, side: usize| {
            let factor = length as f64 / side as f64;
            (factor, start as f64 + (factor - 1.0) / 2.0)
        };
        let (across, left) = axis(patch.left, patch.width, width);
        let (down, top) = axis(patch.top, patch.height, height);
        Self([[across, 0.0, left], [0.0, down, top]])
    }

    fn about_centre([height, width]: [usize; 2], [[a, b], [d, e]]: [[f64; 2]; 2]) -> Self {
        let (x, y) = ((width as f64 - 1.0) / 2.0, (height as f64 - 1.0) / 2.0);
        Self([[a, b, x - a * x - b * y], [d, e, y - d * x - e * y]])
    }

    /// This change, and `next` after it.
    pub fn then(&self, next: &Self) -> Self {
        let Self([[na, nb, nc], [nd, ne, nf]]) = *next;
        // The new image shows of the one in between what that shows of the old one.
        Self(self.0.map(|[a, b, c]| [a * na + b * nd, a * nb + b * ne, a * nc + b * nf + c]))
    }
}

/// Fractional bits of places.
const BITS: u32 = 16;

/// Replaces the image by its map, interpolated linearly; black where that is more than half a pixel outside.
pub fn resample(rgb: &mut [u8], [height, width]: [usize; 2], map: &Affine, copy: &mut Vec<u8>) {
    copy.clear();
    copy.extend_from_slice(rgb);
    let fixed = |value: f64| (value * f64::from(1_u32 << BITS)).round() as i64;
    let Affine([[a, b, c], [d, e, f]]) = *map;
    let (step_x, step_y) = (fixed(a), fixed(d));
    let half = 1_i64 << (BITS - 1);
    let end = |side: usize| ((side as i64) << BITS) - half;
    let (end_x, end_y) = (end(width), end(height));
    let last = |side: usize| ((side as i64) - 1) << BITS;
    let (last_x, last_y) = (last(width), last(height));
    for (y, row) in rgb.chunks_exact_mut(width * 3).enumerate() {
        let mut at_x = fixed(b * y as f64 + c);
        let mut at_y = fixed(e * y as f64 + f);
        for pixel in row.chunks_exact_mut(3) {
            let inside = (-half..end_x).contains(&at_x) && (-half..end_y).contains(&at_y);
            let value = if inside {
                // The outer half of an edge's pixel has the pixel's own colour.
                interpolate(copy, width, at_x.clamp(0, last_x), at_y.clamp(0, last_y))
            } else {
                [0; 3]
            };
            pixel.copy_from_slice(&value);
            at_x += step_x;
            at_y += step_y;
        }
    }
}

fn interpolate(rgb: &[u8], width: usize, x: i64, y: i64) -> [u8; 3] {
    // Eight bits of each fraction, so that the four weights add up to 2^16.
    let part = |place: i64| ((place >> (BITS - 8)) & 0xff) as u32;
    let (right, down) = (part(x), part(y));
    let at = ((y >> BITS) as usize * width + (x >> BITS) as usize) * 3;
    if right | down == 0 {
        return rgb.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or_default();
    }
    // Where a weight is zero its pixels may lie outside: others stand for them.
    let below = if down == 0 { at } else { at + width * 3 };
    let pair = |at: usize| -> [u8; 6] {
        match rgb.get(at..).and_then(<[u8]>::first_chunk) {
            Some(pair) if right > 0 => *pair,
            _ => {
                let [red, green, blue] =
                    rgb.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or_default();
                [red, green, blue, red, green, blue]
            }
        }
    };
    let (upper, lower) = (pair(at), pair(below));
    let across = |pair: [u8; 6], channel: usize| {
        u32::from(pair[channel]) * (256 - right) + u32::from(pair[channel + 3]) * right
    };
    std::array::from_fn(|channel| {
        ((across(upper, channel) * (256 - down) + across(lower, channel) * down + (1 << 15)) >> 16) as u8
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::augment::tests::{noise, pixel};

    fn mapped(rgb: &[u8], size: [usize; 2], map: &Affine) -> Vec<u8> {
        let mut rgb = rgb.to_vec();
        resample(&mut rgb, size, map, &mut Vec::new());
        rgb
    }

    #[test]
    fn a_shift_moves_every_pixel_and_leaves_black() {
        let (size, image) = ([5, 7], noise([5, 7], 1));
        let moved = mapped(&image, size, &Affine::shift(2.0, -1.0));
        for y in 0..5 {
            for x in 0..7 {
                let expected = if x >= 2 && y + 1 < 5 { pixel(&image, 7, x - 2, y + 1) } else { [0; 3] };
                assert_eq!(pixel(&moved, 7, x, y), expected, "{x} {y}");
            }
        }
        assert_eq!(mapped(&image, size, &Affine::shift(0.0, 0.0)), image);
    }

    #[test]
    fn quarter_turns_are_exact_and_four_of_them_are_none() {
        for side in [6, 7] {
            let (size, image) = ([side; 2], noise([side; 2], 2));
            assert_eq!(mapped(&image, size, &Affine::rotate(size, 0.0)), image);
            let turned = mapped(&image, size, &Affine::rotate(size, 90.0));
            for y in 0..side {
                for x in 0..side {
                    // Clockwise: the top left corner comes to the top right.
                    assert_eq!(pixel(&turned, side, side - 1 - y, x), pixel(&image, side, x, y));
                }
            }
            let quarter = Affine::rotate(size, 90.0);
            assert_eq!(mapped(&image, size, &quarter.then(&quarter).then(&quarter).then(&quarter)), image);
            assert_ne!(turned, image);
        }
    }

    #[test]
    fn maps_are_chained_in_their_order_and_nothing_is_lost_in_between() {
        let (size, image) = ([8, 8], noise([8, 8], 3));
        let (shift, turn) = (Affine::shift(3.0, 0.0), Affine::rotate(size, 90.0));
        // Right by three, then turned clockwise, is turned, then down by three.
        let down = Affine::shift(0.0, 3.0);
        assert_eq!(mapped(&image, size, &shift.then(&turn)), mapped(&image, size, &turn.then(&down)));
        assert_eq!(mapped(&image, size, &shift.then(&Affine::shift(-3.0, 0.0))), image);
        assert_eq!(mapped(&image, size, &Affine::scale(size, 2.0).then(&Affine::scale(size, 0.5))), image);
    }

    #[test]
    fn enlarging_keeps_the_centre_and_constant_images_without_black() {
        let size = [9, 9];
        let image = noise(size, 4);
        let larger = mapped(&image, size, &Affine::scale(size, 3.0));
        for (x, y) in [(4, 4), (1, 4), (7, 7)] {
            let from = |place: usize| 4 + (place as i64 - 4) / 3;
            assert_eq!(pixel(&larger, 9, x, y), pixel(&image, 9, from(x) as usize, from(y) as usize));
        }
        let flat = vec![77; 9 * 9 * 3];
        let patch = Patch { left: 0, top: 2, width: 5, height: 7 };
        for map in [Affine::scale(size, 1.7), Affine::crop(size, &patch)] {
            assert_eq!(mapped(&flat, size, &map), flat);
        }
        // A crop of the whole is the whole; one of the left half has the left half's edge at the right.
        let whole = Patch { left: 0, top: 0, width: 9, height: 9 };
        assert_eq!(mapped(&image, size, &Affine::crop(size, &whole)), image);
        let third = Patch { left: 3, top: 3, width: 3, height: 3 };
        assert_eq!(mapped(&image, size, &Affine::crop(size, &third)), larger);
    }
}
