//! Hair, and hats: a shell around the skull from the crown down to an edge.

use super::head::Skull;
use super::maths::{bump, lerp, noise, smooth};
use super::mesh::{Grid, Material, Mesh};
use super::person::Hair;
use glam::{Affine3A, Quat, Vec3};
use std::f32::consts::{FRAC_PI_2, PI, TAU};

/// Height of the lower edge at azimuth `turn` in [-π, π].
fn edge(hair: &Hair, turn: f32) -> f32 {
    let around = turn.abs();
    let corner = bump((around - 0.62 * hair.opening) / (0.22 * hair.opening));
    let front = hair.hairline + hair.recession * corner + hair.slant * (turn / hair.opening).clamp(-1.0, 1.0);
    // From the forehead down the temple, up over the ear, and down again to the nape.
    let temple = lerp(front, hair.temple, smooth(hair.opening, hair.opening + 0.22, around));
    let side = lerp(temple, hair.side, smooth(1.3, 1.42, around));
    let edge = lerp(side, hair.nape, smooth(1.85, 2.3, around));
    let strands = noise(turn * 9.0, 0.0, hair.salt) - 0.5;
    (edge + 0.05 * strands).min(0.93)
}

/// Adds hair. The paint's position is (azimuth, distance from the crown, share of the way to the edge).
pub(super) fn add(
    mesh: &mut Mesh,
    skull: &Skull,
    hair: &Hair,
    material: Material,
    detail: usize,
    to_world: &Affine3A,
) {
    let grid = Grid { rows: detail / 3 + 5, cols: detail, wraps: true, open: true, material };
    let columns: Vec<_> = (0..grid.cols)
        .map(|col| {
            let t = 2.0 * col as f32 / grid.cols as f32 - 1.0;
            let turn = PI * t * (0.62 + 0.38 * t * t);
            let edge = edge(hair, turn);
            // Way from the crown to the edge: along the arc to the equator, then straight down.
            let length = if edge > 0.0 { FRAC_PI_2 - edge.asin() } else { FRAC_PI_2 - edge };
            (turn, turn.sin_cos(), length)
        })
        .collect();
    let equator = skull.section(0.0);
    mesh.add_grid(&grid, to_world, |row, col| {
        let (turn, (sin, cos), length) = columns[col];
        let share = 1.0 - row as f32 / (grid.rows - 1) as f32;
        let way = length * share;
        let y = if way < FRAC_PI_2 { way.cos() } else { FRAC_PI_2 - way };
        let mut ring = skull.section(y);
        if y < 0.0 {
            ring.width = lerp(ring.width, equator.width, hair.fall);
            ring.back = lerp(ring.back, equator.back * 0.8, hair.fall);
            ring.front = lerp(ring.front, equator.front * 0.75, hair.fall);
            ring.axis *= 1.0 - hair.fall;
        }
        let up = smooth(0.1, 0.8, y);
        let volume = lerp(hair.sides, hair.top, up);
        // The edge lies close to the skin where hair is short, and stands off it where it hangs.
        let thin = 1.0 - share * share * share;
        let taper = lerp(lerp(0.3, 1.0, thin), 1.0, smooth(0.0, -0.4, y) * hair.fall);
        let locks = noise(turn * hair.frequency, way * hair.frequency * 0.45, hair.salt) - 0.5;
        let out = (volume * taper + 2.0 * hair.curl * locks * (1.0 - 0.4 * share)).max(0.012);
        let mut p = ring.point(sin, cos, y, out);
        p.y += out * up;
        (p, Vec3::new(turn, way, share))
    });
    if let Some(radius) = hair.bun {
        let place =
            Affine3A::from_rotation_translation(Quat::IDENTITY, Vec3::new(0.0, 0.98 + radius * 0.55, -0.25));
        let segments = detail / 3 + 5;
        let rows = segments / 2 + 2;
        let knot = Grid { rows, cols: segments, wraps: true, open: false, material };
        mesh.add_grid(&knot, &(*to_world * place), |row, col| {
            let lift = row as f32 / (rows - 1) as f32;
            let (sin_up, cos_up) = (PI * (lift - 0.5)).sin_cos();
            let turn = TAU * col as f32 / segments as f32;
            let p = radius * Vec3::new(cos_up * turn.sin(), sin_up * 0.85, cos_up * turn.cos());
            (p, Vec3::new(turn, lift * 2.0, 0.4))
        });
    }
}
