//! From the light that enters the camera to the bytes of the picture.

use super::dice::Dice;
use super::maths::luminance;
use super::scene::Camera;
use glam::{Vec2, Vec3};

/// A picture of linear light, row-major.
pub(super) struct Light {
    pub rows: usize,
    pub cols: usize,
    pub pixels: Vec<Vec3>,
}

impl Light {
    /// The pixel at a place, with the border's pixels repeated outside.
    fn at(&self, row: isize, col: isize) -> Vec3 {
        let row = row.clamp(0, self.rows as isize - 1) as usize;
        let col = col.clamp(0, self.cols as isize - 1) as usize;
        self.pixels[row * self.cols + col]
    }

    /// Bilinear interpolation between pixel centres, which lie at whole coordinates.
    fn between(&self, row: f32, col: f32) -> Vec3 {
        let (r, c) = (row.floor(), col.floor());
        let (fr, fc) = (row - r, col - c);
        let (r, c) = (r as isize, c as isize);
        let top = self.at(r, c).lerp(self.at(r, c + 1), fc);
        let bottom = self.at(r + 1, c).lerp(self.at(r + 1, c + 1), fc);
        top.lerp(bottom, fr)
    }

    fn map(&self, mut pixel: impl FnMut(isize, isize) -> Vec3) -> Self {
        let mut pixels = Vec::with_capacity(self.pixels.len());
        for row in 0..self.rows as isize {
            for col in 0..self.cols as isize {
                pixels.push(pixel(row, col));
            }
        }
        Self { pixels, ..*self }
    }

    /// Gaussian blur with standard deviation `sigma` pixels.
    fn blurred(self, sigma: f32) -> Self {
        if sigma < 0.2 {
            return self;
        }
        let reach = (2.5 * sigma).ceil() as isize;
        let weights: Vec<f32> = (-reach..=reach).map(|d| (-0.5 * (d as f32 / sigma).powi(2)).exp()).collect();
        let total: f32 = weights.iter().sum();
        let taps = || (-reach..=reach).zip(&weights).map(|(d, w)| (d, w / total));
        let across = self.map(|row, col| taps().map(|(d, w)| self.at(row, col + d) * w).sum());
        across.map(|row, col| taps().map(|(d, w)| across.at(row + d, col) * w).sum())
    }

    /// The average over a straight `path` (right, down) in pixels.
    fn moved(self, path: Vec2) -> Self {
        let steps = path.length().ceil() as i32;
        if steps < 1 {
            return self;
        }
        self.map(|row, col| {
            let sum: Vec3 = (0..=steps)
                .map(|step| {
                    let by = path * (step as f32 / steps as f32 - 0.5);
                    self.between(row as f32 + by.y, col as f32 + by.x)
                })
                .sum();
            sum / (steps + 1) as f32
        })
    }

    /// Reduced to `share` of its lines by averaging, and enlarged again.
    fn coarsened(self, share: f32) -> Self {
        let reduce = |n: usize| ((n as f32 * share).round() as usize).clamp(1, n.max(1));
        let (rows, cols) = (reduce(self.rows), reduce(self.cols));
        if rows == self.rows && cols == self.cols {
            return self;
        }
        let mut small = Self { rows, cols, pixels: Vec::with_capacity(rows * cols) };
        for row in 0..rows {
            let lines = row * self.rows / rows..((row + 1) * self.rows).div_ceil(rows);
            for col in 0..cols {
                let columns = col * self.cols / cols..((col + 1) * self.cols).div_ceil(cols);
                let count = (lines.len() * columns.len()) as f32;
                let sum: Vec3 = lines
                    .clone()
                    .flat_map(|r| columns.clone().map(move |c| (r, c)))
                    .map(|(r, c)| self.pixels[r * self.cols + c])
                    .sum();
                small.pixels.push(sum / count);
            }
        }
        let (down, right) = (rows as f32 / self.rows as f32, cols as f32 / self.cols as f32);
        self.map(|row, col| small.between((row as f32 + 0.5) * down - 0.5, (col as f32 + 0.5) * right - 0.5))
    }
}

/// The bytes [rows, cols, 3] of a picture of `light`.
pub(super) fn develop(light: Light, camera: &Camera, dice: &mut Dice) -> Vec<u8> {
    let height = light.rows as f32;
    let light =
        light.moved(camera.motion * height).blurred(camera.blur * height).coarsened(camera.resolution);
    let gain = camera.white_balance * camera.exposure;
    let mut bytes = Vec::with_capacity(light.pixels.len() * 3);
    for &pixel in &light.pixels {
        let tone = (pixel * gain).to_array().map(|c| encode(shoulder(c)));
        let tone = Vec3::from_array(tone);
        let grey = Vec3::splat(luminance(tone));
        let tone = grey + (tone - grey) * camera.saturation;
        let tone = (tone - 0.5) * camera.contrast + 0.5;
        for channel in tone.to_array() {
            let value = channel + camera.noise * dice.normal();
            bytes.push((value.clamp(0.0, 1.0) * 255.0 + 0.5) as u8);
        }
    }
    bytes
}

/// Linear to 0.6, then bent so that highlights fade out towards 1 instead of clipping.
fn shoulder(c: f32) -> f32 {
    if c < 0.6 { c.max(0.0) } else { 1.0 - 0.16 / (c - 0.2) }
}

/// The transfer curve of a display: within 0.01 of c^(1/2.2), in a fraction of the time.
fn encode(c: f32) -> f32 {
    let root = c.sqrt();
    0.86 * root + 0.14 * root.sqrt()
}
