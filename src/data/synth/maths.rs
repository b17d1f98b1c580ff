//! Small functions that the geometry and the paint share.

use glam::Vec3;

/// `a` at 0, `b` at 1.
pub(super) fn lerp(a: f32, b: f32, t: f32) -> f32 {
    a + (b - a) * t
}

/// 0 at `from`, 1 at `to`, smooth between and constant outside; `from` may lie above `to`.
pub(super) fn smooth(from: f32, to: f32, x: f32) -> f32 {
    let t = ((x - from) / (to - from)).clamp(0.0, 1.0);
    t * t * (3.0 - 2.0 * t)
}

/// About exp(-d²/2), exactly 0 beyond |d| = √6. Polynomial, because it is evaluated a dozen times a vertex.
pub(super) fn bump(d: f32) -> f32 {
    let k = (1.0 - d * d * (1.0 / 6.0)).max(0.0);
    k * k * k
}

/// [`bump`] in two dimensions, of distances in standard deviations.
pub(super) fn bump2(dx: f32, dy: f32) -> f32 {
    let k = (1.0 - (dx * dx + dy * dy) * (1.0 / 6.0)).max(0.0);
    k * k * k
}

/// Hash of a lattice point to [0, 1).
pub(super) fn lattice(x: i32, y: i32, salt: u32) -> f32 {
    let mut h = (x as u32).wrapping_mul(0x8da6_b343)
        ^ (y as u32).wrapping_mul(0xd816_3841)
        ^ salt.wrapping_mul(0xcb1a_b31f);
    h = (h ^ (h >> 15)).wrapping_mul(0x2c1b_3c6d);
    h = (h ^ (h >> 12)).wrapping_mul(0x297a_2d39);
    ((h ^ (h >> 15)) >> 8) as f32 / (1 << 24) as f32
}

/// The largest integer below `x`, or `x` itself if it is a whole number that is not negative. Without SSE 4.1, which a
/// portable build cannot assume, `f32::floor` is a function call.
pub(super) fn floor(x: f32) -> i32 {
    (x as i32).wrapping_sub(i32::from(x < 0.0))
}

/// Value noise in [0, 1): smooth interpolation of [`lattice`].
pub(super) fn noise(x: f32, y: f32, salt: u32) -> f32 {
    let (ix, iy) = (floor(x), floor(y));
    let (tx, ty) = (x - ix as f32, y - iy as f32);
    let (tx, ty) = (tx * tx * (3.0 - 2.0 * tx), ty * ty * (3.0 - 2.0 * ty));
    let (ix1, iy1) = (ix.wrapping_add(1), iy.wrapping_add(1));
    let bottom = lerp(lattice(ix, iy, salt), lattice(ix1, iy, salt), tx);
    let top = lerp(lattice(ix, iy1, salt), lattice(ix1, iy1, salt), tx);
    lerp(bottom, top, ty)
}

/// How bright a linear colour looks (Rec. 709 weights).
pub(super) fn luminance(c: Vec3) -> f32 {
    c.dot(Vec3::new(0.2126, 0.7152, 0.0722))
}
