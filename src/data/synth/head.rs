//! The surface of the head: a smooth skull with features raised on its front.

use super::maths::{bump, bump2, lerp, smooth};
use super::mesh::{Grid, Material, Mesh};
use super::person::{HeadShape, Person};
use super::scene::Expression;
use glam::{Affine3A, Vec3};
use std::f32::consts::{FRAC_PI_2, PI};

/// A horizontal section of the skull: half an ellipse to the front and half an ellipse to the back.
#[derive(Clone, Copy)]
pub(super) struct Section {
    pub width: f32,
    /// z of the foremost point, of the axis, and of the rearmost point.
    pub front: f32,
    pub axis: f32,
    pub back: f32,
}

impl Section {
    /// The point at an azimuth (0 is the front, positive is the picture's right), `out` units outside the surface.
    pub fn point(&self, sin: f32, cos: f32, y: f32, out: f32) -> Vec3 {
        let depth = if cos > 0.0 { self.front - self.axis } else { self.axis - self.back };
        Vec3::new((self.width + out) * sin, y, self.axis + (depth + out) * cos)
    }
}

/// Half width at height `y` of a superellipse with half axes 1.
fn outline(y: f32, exponent: f32) -> f32 {
    (1.0 - y.abs().min(1.0).powf(exponent)).max(0.0).powf(1.0 / exponent)
}

/// The sections of a skull, tabulated because hair asks for one at every vertex.
pub(super) struct Skull([Section; Skull::STEPS + 1]);

impl Skull {
    const STEPS: usize = 64;

    pub fn new(shape: &HeadShape) -> Self {
        Self(std::array::from_fn(|step| {
            let t = 2.0 * step as f32 / Self::STEPS as f32 - 1.0;
            section(shape, t * (2.0 - t.abs()))
        }))
    }

    /// The section at height `y`, without features.
    pub fn section(&self, y: f32) -> Section {
        // Steps shrink towards the poles, where the outline turns fastest: this inverts t (2 - |t|).
        let y = y.clamp(-1.0, 1.0);
        let t = (1.0 - (1.0 - y.abs()).sqrt()).copysign(y);
        let at = (t + 1.0) * 0.5 * Self::STEPS as f32;
        let step = (at as usize).min(Self::STEPS - 1);
        let (low, high, share) = (self.0[step], self.0[step + 1], at - step as f32);
        Section {
            width: lerp(low.width, high.width, share),
            front: lerp(low.front, high.front, share),
            axis: lerp(low.axis, high.axis, share),
            back: lerp(low.back, high.back, share),
        }
    }
}

fn section(shape: &HeadShape, y: f32) -> Section {
    let (width, front) = if y > 0.0 {
        (outline(y, 2.25), outline(y, 2.5))
    } else {
        let taper = lerp(1.0, shape.jaw, smooth(0.0, -0.7, y)) * lerp(1.0, shape.chin, smooth(-0.5, -1.0, y));
        (outline(y, shape.squareness) * taper, outline(y, 3.4))
    };
    let axis = 0.28 * smooth(0.0, -1.0, y);
    let back = outline(y, 2.2) * lerp(1.0, 0.3, smooth(0.0, -0.75, y));
    Section {
        width: shape.width * width,
        front: axis + (shape.front - axis) * front,
        axis,
        back: axis - (shape.back + axis) * back,
    }
}

/// How far the features of the face rise above the skull, towards the viewer, at (`x`, `y`).
fn relief(person: &Person, expression: &Expression, x: f32, y: f32) -> f32 {
    let (head, eyes, nose, mouth) = (&person.head, &person.eyes, &person.nose, &person.mouth);
    let ax = x.abs();
    let mut z = head.brow_ridge * bump((y - eyes.height - 0.15) / 0.08) * bump((ax - 0.2) / 0.15);
    let (ex, ey) = (ax - eyes.spacing, y - eyes.height);
    z -= eyes.socket * bump2((ax - eyes.spacing * 0.9) / 0.17, (ey - 0.02) / 0.10);
    z += 0.065 * bump2(ex / 0.10, ey / 0.06);
    // The nose: a ridge that rises from between the eyes to the tip, and ends there.
    let top = eyes.height + 0.08;
    if y < top + 0.02 && y > nose.tip - 0.25 && ax < 0.4 {
        let along = ((top - y) / (top - nose.tip)).clamp(0.0, 1.0);
        let rise = nose.height * along * (0.35 + 0.65 * along) + nose.hump * bump((along - 0.45) / 0.2);
        let end = smooth(nose.tip - 0.17, nose.tip + 0.02 + nose.upturn * 0.5, y);
        let half = lerp(nose.bridge, nose.wings * 0.62, along * along);
        z += rise * end * bump(ax / half);
        z += nose.ball * bump2(ax / 0.075, (y - nose.tip) / 0.07);
        z += 0.085 * bump2((ax - nose.wings * 0.78) / 0.048, (y - nose.tip + 0.045) / 0.05);
    }
    z += head.cheekbone * bump2((ax - 0.42) / 0.16, (y - eyes.height + 0.24) / 0.13);
    let smile = expression.smile.max(0.0);
    z += (head.cheek + 0.045 * smile) * bump2((ax - 0.36) / 0.17, (y - mouth.height - 0.16) / 0.17);
    // The mouth: the bulge of the teeth, two lips, and the dip below them.
    let my = y - mouth.height - expression.lift(person, x);
    if my.abs() < 0.5 {
        z += 0.05 * bump2(ax / 0.24, my / 0.14);
        let middle = bump(ax / (mouth.half_width * 0.5));
        z += (0.02 + 0.35 * mouth.upper) * middle * bump((my - mouth.upper * 0.55) / (mouth.upper * 0.7));
        let lower = my + expression.mouth_open + mouth.lower * 0.55;
        z += (0.02 + 0.40 * mouth.lower) * middle * bump(lower / (mouth.lower * 0.7));
        z -= 0.04 * bump2(ax / 0.17, (my + expression.mouth_open + mouth.lower + 0.075) / 0.045);
        z -= 0.22
            * expression.mouth_open
            * bump2(ax / mouth.half_width, (my + 0.5 * expression.mouth_open) / 0.05);
    }
    z += (0.03 + head.chin_forward) * bump2(ax / 0.15, (y + 0.86 + expression.mouth_open * 0.7) / 0.11);
    if let Some(beard) = &person.beard {
        z += beard.length * beard_cover(person, expression, x, y);
    }
    z
}

/// How much of the skin a beard covers at (`x`, `y`) of the front, in [0, 1].
pub(super) fn beard_cover(person: &Person, expression: &Expression, x: f32, y: f32) -> f32 {
    let Some(beard) = &person.beard else { return 0.0 };
    let (nose, mouth) = (&person.nose, &person.mouth);
    let ax = x.abs();
    let my = y - mouth.height - expression.lift(person, x);
    let base = nose.tip - 0.1;
    let between = (y - mouth.height - mouth.upper) / (base - mouth.height - mouth.upper).max(0.03);
    let moustache =
        smooth(-0.15, 0.2, between) * smooth(1.05, 0.7, between) * smooth(1.25, 1.0, ax / mouth.half_width);
    let lip = expression.mouth_open + mouth.lower;
    let chin = bump2(ax / (mouth.half_width * 0.75), (my + lip + 0.19) / 0.13) * 1.6;
    let corners =
        bump2((ax - mouth.half_width * 1.12) / 0.05, (my + 0.1) / 0.13) * beard.chin.min(beard.moustache);
    let line = lerp(mouth.height - 0.12, -0.12, smooth(0.18, 0.62, ax));
    // Stubble thins out upwards; a beard is trimmed to a line.
    let fade = if beard.length > 0.0 { 0.06 } else { 0.16 };
    let cheeks = smooth(fade, -fade, y - line);
    let cover =
        (moustache * beard.moustache).max(chin.min(1.0) * beard.chin).max(corners).max(cheeks * beard.cheeks);
    // The lips, and what is between them, stay bare.
    let bare = ax < mouth.half_width && my < mouth.upper * 0.9 && my > -lip * 1.05;
    if bare { 0.0 } else { cover }
}

/// Adds the head, with about `detail` columns around it.
pub(super) fn add(
    mesh: &mut Mesh,
    person: &Person,
    skull: &Skull,
    expression: &Expression,
    detail: usize,
    to_world: &Affine3A,
) {
    let grid = Grid { rows: detail, cols: detail, wraps: true, open: false, material: Material::Face };
    let columns: Vec<(f32, f32)> = (0..grid.cols)
        .map(|col| {
            // Columns crowd at the front, where the features are.
            let t = 2.0 * col as f32 / grid.cols as f32 - 1.0;
            let (sin, cos) = (PI * t * (0.42 + 0.58 * t * t)).sin_cos();
            // Slightly squarer than an ellipse: a face is flatter than a ball.
            (sin.signum() * sin.abs().powf(0.92), cos.signum() * cos.abs().powf(0.86))
        })
        .collect();
    let rows: Vec<(f32, Section)> = (0..grid.rows)
        .map(|row| {
            let y = (FRAC_PI_2 * (2.0 * row as f32 / (grid.rows - 1) as f32 - 1.0)).sin();
            (y, skull.section(y))
        })
        .collect();
    mesh.add_grid(&grid, to_world, |row, col| {
        let ((y, section), (sin, cos)) = (rows[row], columns[col]);
        let mut p = section.point(sin, cos, y, 0.0);
        let front = smooth(0.05, 0.5, cos);
        if front > 0.0 {
            // The jaw swings down from below the upper lip; the relief is that of the moved point.
            let jaw = smooth(person.mouth.height, person.mouth.height - 0.22, y);
            p.y -= expression.mouth_open * 0.75 * jaw * front;
            p.z += front * relief(person, expression, p.x, p.y);
        }
        (p, p)
    });
}
