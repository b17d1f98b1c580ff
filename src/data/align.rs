//! Five-point alignment: the similarity transform that brings a face's landmarks nearest to the field's target points,
//! and the image seen through it.
//!
//! The points are, in this order, the centre of the eye on the left of the image, that of the eye on the right, the tip
//! of the nose, and the corners of the mouth on the left and on the right.

pub mod landmarks;

use super::{Image, decode, probe};
use crate::{Error, Result};

/// Five landmarks, x and y in pixels; the centre of the first pixel is (0, 0).
pub type Points = [[f64; 2]; 5];

/// The side of the image that [`TARGET`] is for.
pub const TARGET_SIDE: usize = 112;

/// Where InsightFace puts the landmarks in an image of 112 x 112, which is what all of its models are trained on.
pub const TARGET: Points =
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]];

/// Landmarks that spread less than this (root mean square, in pixels) are one point: they have no size to scale.
const COINCIDENT: f64 = 0.5;

/// The order of landmarks is suspect where they are off by more than this, in pixels of 112. Detectors are off by a few,
/// a face in full profile by up to 15, one whose left and right are exchanged by about 23.
const SUSPECT_RESIDUAL: f64 = 8.0;

/// ... and where their mirror image fits this many times better. In full profile both fit alike.
const MIRRORED_BETTER: f64 = 2.0;

/// A coordinate beyond this, in pixels, is in no image.
const LARGEST: f64 = 1e6;

/// Landmarks farther outside of the image than this share of its longer side are hardly of this image.
const FAR_OUTSIDE: f64 = 0.25;

/// The target points in an image of `side` x `side`: those of 112 x 112, scaled.
pub fn target(side: usize) -> Points {
    let scale = side as f64 / TARGET_SIDE as f64;
    TARGET.map(|point| point.map(|coordinate| coordinate * scale))
}

/// A rotation with scaling and translation: `(x, y)` goes to `(a x - b y + tx, b x + a y + ty)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Similarity {
    /// Scale times the cosine of the angle.
    pub a: f64,
    /// Scale times the sine of the angle.
    pub b: f64,
    /// Translation in x.
    pub tx: f64,
    /// Translation in y.
    pub ty: f64,
}

impl Similarity {
    /// The matrix `[[a, -b, tx], [b, a, ty]]`.
    pub fn matrix(&self) -> [[f64; 3]; 2] {
        [[self.a, -self.b, self.tx], [self.b, self.a, self.ty]]
    }

    /// Where `point` goes.
    pub fn apply(&self, [x, y]: [f64; 2]) -> [f64; 2] {
        [self.a * x - self.b * y + self.tx, self.b * x + self.a * y + self.ty]
    }

    /// The transform back; `None` where everything goes to one point.
    pub fn inverse(&self) -> Option<Self> {
        let square = self.a * self.a + self.b * self.b;
        if !square.is_normal() {
            return None;
        }
        let (a, b) = (self.a / square, -self.b / square);
        Some(Self { a, b, tx: b * self.ty - a * self.tx, ty: -b * self.tx - a * self.ty })
    }
}

/// How landmarks fit the target points.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fit {
    /// The transform from the image to the aligned one.
    pub transform: Similarity,
    /// How far the landmarks are from the target points then: root mean square, in pixels of 112 x 112.
    pub residual: f64,
    /// The same for the best transform that also mirrors, which is never applied.
    pub mirrored_residual: f64,
}

impl Fit {
    /// Whether the landmarks look like those of a mirrored face: left and right, or x and y, are exchanged in the list.
    pub fn looks_mirrored(&self) -> bool {
        self.residual > SUSPECT_RESIDUAL && self.mirrored_residual * MIRRORED_BETTER < self.residual
    }
}

/// The similarity transform with the least squared distances from `points` to [`target`]`(side)`: that of Umeyama (Least-
/// squares estimation of transformation parameters between two point patterns, 1991), whose rotation is never a
/// reflection. In the plane it needs no singular value decomposition: with the points as complex numbers around their
/// means, `p` and `q`, the factor is `sum conj(p) q / sum |p|^2`; for the best reflection it is `sum p q / sum |p|^2`.
///
/// `None` where the points coincide, or are such that every transform is equally bad.
pub fn fit(points: &Points, side: usize) -> Option<Fit> {
    let target = target(side);
    let mean = |points: &Points| {
        let sum = points.iter().fold([0.0; 2], |sum, point| [sum[0] + point[0], sum[1] + point[1]]);
        sum.map(|sum| sum / points.len() as f64)
    };
    let (from, to) = (mean(points), mean(&target));
    let (mut size, mut target_size) = (0.0, 0.0);
    let (mut proper, mut mirrored) = ([0.0; 2], [0.0; 2]);
    for (point, goal) in points.iter().zip(&target) {
        let (px, py) = (point[0] - from[0], point[1] - from[1]);
        let (qx, qy) = (goal[0] - to[0], goal[1] - to[1]);
        size += px * px + py * py;
        target_size += qx * qx + qy * qy;
        proper = [proper[0] + px * qx + py * qy, proper[1] + px * qy - py * qx];
        mirrored = [mirrored[0] + px * qx - py * qy, mirrored[1] + px * qy + py * qx];
    }
    let count = points.len() as f64;
    if !size.is_finite() || (size / count).sqrt() < COINCIDENT {
        return None;
    }
    let [a, b] = proper.map(|sum| sum / size);
    let transform =
        Similarity { a, b, tx: to[0] - a * from[0] + b * from[1], ty: to[1] - b * from[0] - a * from[1] };
    transform.inverse()?;
    let unit = TARGET_SIDE as f64 / side as f64;
    // What of the target's spread the best factor does not explain.
    let residual = |[x, y]: [f64; 2]| {
        let left = target_size - (x * x + y * y) / size;
        (left.max(0.0) / count).sqrt() * unit
    };
    Some(Fit { transform, residual: residual(proper), mirrored_residual: residual(mirrored) })
}

/// `image` through `transform`, `[side, side]`: every pixel of the result is taken from where the inverse transform leads,
/// bilinearly between the four pixels there; what is outside of the image is black.
///
/// That is what OpenCV's `warpAffine` does, and so what every published model has seen, also where the face is more than
/// twice as large as in the result: then single pixels of the image are skipped, and fine texture aliases. A smoother
/// reduction would look better and be another distribution than the networks were trained on.
pub fn warp(image: &Image, transform: &Similarity, side: usize) -> Image {
    let mut rgb = vec![0; side * side * 3];
    let Some(inverse) = transform.inverse() else { return Image { rgb, height: side, width: side } };
    for (y, row) in rgb.chunks_exact_mut((side * 3).max(1)).enumerate() {
        for (x, pixel) in row.chunks_exact_mut(3).enumerate() {
            pixel.copy_from_slice(&sample(image, inverse.apply([x as f64, y as f64])));
        }
    }
    Image { rgb, height: side, width: side }
}

/// The colour at `(x, y)`, bilinear, with black all round the image.
fn sample(image: &Image, [x, y]: [f64; 2]) -> [u8; 3] {
    let (left, top) = (x.floor(), y.floor());
    let (fx, fy) = (x - left, y - top);
    // Also where it is not a number.
    let inside = left >= -1.0 && top >= -1.0 && left < image.width as f64 && top < image.height as f64;
    if !inside {
        return [0; 3];
    }
    let mut sum = [0.0; 3];
    for (dy, wy) in [(0, 1.0 - fy), (1, fy)] {
        for (dx, wx) in [(0, 1.0 - fx), (1, fx)] {
            let (column, row) = (left as i64 + dx, top as i64 + dy);
            let (Ok(column), Ok(row)) = (usize::try_from(column), usize::try_from(row)) else { continue };
            if column >= image.width || row >= image.height {
                continue;
            }
            let at = (row * image.width + column) * 3;
            let pixel = image.rgb.get(at..at + 3).unwrap_or_default();
            sum.iter_mut().zip(pixel).for_each(|(sum, &value)| *sum += wx * wy * f64::from(value));
        }
    }
    sum.map(|value| (value + 0.5).floor().clamp(0.0, 255.0) as u8)
}

/// What is odd about landmarks that can be used all the same.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Oddity {
    /// Left and right, or x and y, are exchanged; see [`Fit::looks_mirrored`].
    Mirrored(Fit),
    /// Landmark `number` (from 1) is far outside of the image.
    FarOutside {
        /// Which of the five.
        number: usize,
        /// Where it is.
        point: [f64; 2],
        /// The image's `[H, W]`.
        size: [usize; 2],
    },
}

impl std::fmt::Display for Oddity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Mirrored(fit) => write!(
                f,
                "the landmarks are those of a mirrored face (off by {:.1} pixels of 112, mirrored by {:.1}): left and \
                 right, or x and y, are exchanged",
                fit.residual, fit.mirrored_residual
            ),
            Self::FarOutside { number, point: [x, y], size: [height, width] } => {
                let (x, y) = (Coordinate(*x), Coordinate(*y));
                write!(f, "landmark {number} at ({x}, {y}) is far outside of the image of {width} x {height}")
            }
        }
    }
}

/// A coordinate for a message: a large one with an exponent instead of hundreds of digits.
struct Coordinate(f64);

impl std::fmt::Display for Coordinate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self(value) = *self;
        let is_plain = value == 0.0 || (1e-6..LARGEST).contains(&value.abs());
        if is_plain { write!(f, "{value}") } else { write!(f, "{value:e}") }
    }
}

/// What is odd about `points` in an image of `size` = `[H, W]`, which fit as `fit` says.
pub fn oddity(points: &Points, fit: &Fit, size: [usize; 2]) -> Option<Oddity> {
    let [height, width] = size.map(|side| side as f64);
    let margin = FAR_OUTSIDE * height.max(width);
    let far = |&[x, y]: &[f64; 2]| {
        x < -margin || y < -margin || x > width - 1.0 + margin || y > height - 1.0 + margin
    };
    if let Some(at) = points.iter().position(far) {
        let point = points.get(at).copied().unwrap_or_default();
        return Some(Oddity::FarOutside { number: at + 1, point, size });
    }
    fit.looks_mirrored().then_some(Oddity::Mirrored(*fit))
}

/// [`fit`], with an error for points that have none.
///
/// # Errors
/// Names the image as `place()` does: points that are not finite, are in no image, or coincide.
pub fn fit_or_explain(points: &Points, side: usize, place: impl Fn() -> String) -> Result<Fit> {
    let hint = "look at that line of the landmarks file, or leave the image out";
    if points.iter().flatten().any(|coordinate| !coordinate.is_finite()) {
        return Err(Error::data(place(), "landmarks that are not finite", "ten finite numbers", hint));
    }
    if let Some(at) = points.iter().position(|point| point.iter().any(|value| value.abs() > LARGEST)) {
        let [x, y] = points.get(at).copied().unwrap_or_default().map(Coordinate);
        return Err(Error::data(
            place(),
            format!("landmark {} at ({x}, {y}), which is in no image", at + 1),
            "five landmarks in pixels of the image",
            hint,
        ));
    }
    fit(points, side).ok_or_else(|| {
        let [x, y] = points.first().copied().unwrap_or_default().map(Coordinate);
        Error::data(
            place(),
            format!("five landmarks that coincide or have no direction, near ({x}, {y})"),
            "the eyes, the nose and the corners of the mouth",
            hint,
        )
    })
}

/// Decodes an image at its own size.
///
/// # Errors
/// Names the image as `place()` does: not an image, damaged or cut off.
pub fn decode_whole(encoded: &[u8], place: impl Fn() -> String) -> Result<Image> {
    match probe::probe(encoded) {
        Some(found) => decode::decode(encoded, found.size, false, place),
        // Decoding says what is wrong with it.
        None => decode::decode(encoded, [1, 1], true, &place).and_then(|_| {
            Err(Error::data(place(), "an image whose size is not known", "an image", "replace or remove it"))
        }),
    }
}

#[cfg(test)]
mod tests;
