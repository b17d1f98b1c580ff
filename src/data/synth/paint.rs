//! The colours of a face, found from the place on its front.

use super::head::beard_cover;
use super::maths::{bump, bump2, floor, lattice, lerp, noise, smooth};
use super::person::Person;
use super::scene::{Expression, Scene};
use glam::{Vec2, Vec3};

/// How a place reflects light.
pub(super) struct Surface {
    pub albedo: Vec3,
    /// Strength of the highlight.
    pub gloss: f32,
    /// How much of the surrounding light gets there.
    pub open: f32,
    /// How much light bleeds through, as in skin.
    pub soft: f32,
    /// Added to the normal, in the head's frame.
    pub bend: Vec3,
    /// Light of its own: the glint of an eye.
    pub glint: f32,
}

impl Surface {
    /// A rough surface.
    pub fn matt(albedo: Vec3) -> Self {
        Self { albedo, gloss: 0.0, open: 1.0, soft: 0.0, bend: Vec3::ZERO, glint: 0.0 }
    }

    fn cover(&mut self, colour: Vec3, coverage: f32) {
        self.albedo = self.albedo.lerp(colour, coverage);
    }

    fn darken(&mut self, share: f32) {
        // Creases of skin go reddish brown, not grey.
        self.albedo *= Vec3::new(1.0 - 0.8 * share, 1.0 - share, 1.0 - share);
    }
}

/// Paints one picture's face.
pub(super) struct FacePaint<'a> {
    person: &'a Person,
    expression: &'a Expression,
    /// Width of an edge's ramp: about one sample, in head units.
    ramp: f32,
    /// Direction to the lamp in the head's frame.
    lamp: Vec3,
}

impl<'a> FacePaint<'a> {
    /// `sample` is the width of a sample in head units.
    pub fn new(person: &'a Person, scene: &'a Scene, sample: f32) -> Self {
        let lamp = scene.rotation().inverse() * scene.lamp;
        Self { person, expression: &scene.expression, ramp: sample.max(0.004), lamp }
    }

    /// 1 where `inside` (a signed distance) is positive, 0 where it is negative.
    fn edge(&self, inside: f32) -> f32 {
        (0.5 + inside / (1.5 * self.ramp)).clamp(0.0, 1.0)
    }

    /// A line of half width `half` at distance `distance`; one thinner than a sample is fainter instead.
    fn line(&self, distance: f32, half: f32) -> f32 {
        let wide = half.max(0.6 * self.ramp);
        (half / wide) * (1.0 - smooth(0.4 * wide, 1.6 * wide, distance.abs()))
    }

    /// The surface at `p` of the head, in head units.
    pub fn at(&self, p: Vec3) -> Surface {
        let person = self.person;
        let mut surface = self.skin(p);
        if p.z < 0.0 {
            return surface;
        }
        self.lines(&mut surface, p);
        self.nostrils(&mut surface, p);
        let cover = beard_cover(person, self.expression, p.x, p.y) * smooth(0.0, 0.25, p.z);
        if cover > 0.0 {
            let strand = noise(p.x * 60.0, p.y * 22.0, person.skin.salt);
            let patchy = (cover * (0.75 + 0.5 * strand)).min(1.0);
            surface.cover(person.brows.colour * (0.6 + 0.8 * strand), patchy);
            surface.gloss *= 1.0 - cover;
            surface.soft *= 1.0 - cover;
        }
        self.mouth(&mut surface, p);
        self.brow(&mut surface, p);
        self.eye(&mut surface, p);
        surface
    }

    fn skin(&self, p: Vec3) -> Surface {
        let Person { skin, eyes, nose, mouth, moles, .. } = self.person;
        let ax = p.x.abs();
        let mut surface = Surface { gloss: skin.shine, soft: 1.0, ..Surface::matt(skin.colour) };
        let cheeks = bump2((ax - 0.4) / 0.2, (p.y - mouth.height - 0.24) / 0.16);
        let tip = bump2(p.x / 0.12, (p.y - nose.tip) / 0.1);
        let red = skin.ruddiness * (0.55 * cheeks + 0.45 * tip);
        surface.albedo *= Vec3::new(1.0 + 0.06 * red, 1.0 - 0.26 * red, 1.0 - 0.22 * red);
        let mottle = noise(p.x * 7.0 + p.z * 3.0, p.y * 7.0, skin.salt) - 0.5;
        surface.albedo *= 1.0 + 0.09 * mottle;
        // The T-zone shines more.
        surface.gloss *= 0.7 + 0.8 * bump2(p.x / 0.2, (p.y - 0.25) / 0.45);
        if skin.freckles > 0.0 && ax < 0.65 && p.y > mouth.height && p.y < eyes.height + 0.3 {
            let (gx, gy) = (p.x * 17.0, p.y * 17.0);
            let (ix, iy) = (floor(gx), floor(gy));
            let centre = Vec2::new(lattice(ix, iy, skin.salt), lattice(iy, ix, skin.salt ^ 1)) * 0.5 + 0.25;
            let size = 0.16 + 0.2 * lattice(ix, iy, skin.salt ^ 2);
            let away = Vec2::new(gx - ix as f32, gy - iy as f32).distance(centre);
            let here = bump2(ax / 0.4, (p.y - eyes.height + 0.2) / 0.22) * skin.freckles;
            let spot = smooth(size + 0.12, size - 0.08, away);
            surface.albedo *=
                Vec3::new(1.0 - 0.45 * spot * here, 1.0 - 0.7 * spot * here, 1.0 - 0.8 * spot * here);
        }
        for mole in moles {
            let away = Vec2::new(p.x - mole.x, p.y - mole.y).length();
            if away < mole.radius * 2.0 && p.z > 0.0 {
                surface
                    .cover(skin.colour * Vec3::new(0.22, 0.14, 0.12), 0.85 * self.edge(mole.radius - away));
            }
        }
        surface
    }

    /// Wrinkles, and the shadows that even young faces have around the eyes and beside the nose.
    fn lines(&self, surface: &mut Surface, p: Vec3) {
        let Person { skin, eyes, nose, mouth, .. } = self.person;
        let expression = self.expression;
        let ax = p.x.abs();
        // From the wing of the nose to beyond the corner of the mouth.
        let from = Vec2::new(nose.wings + 0.035, nose.tip - 0.03);
        let to = Vec2::new(expression.mouth_half_width(self.person) + 0.055, mouth.height - 0.02);
        let along = ((p.y - from.y) / (to.y - from.y)).clamp(-0.3, 1.3);
        let x = lerp(from.x, to.x, along) + 0.03 * along * (1.0 - along);
        let depth =
            (0.10 + 0.32 * skin.lines + 0.22 * expression.smile.max(0.0)) * bump((along - 0.45) / 0.4);
        surface.darken(depth * bump((ax - x) / 0.022));
        let (ex, ey) = (ax - eyes.spacing, p.y - eyes.height);
        if ex.abs() < 0.35 && ey.abs() < 0.3 {
            let hollow = bump2((ax - eyes.spacing * 0.72) / 0.10, (ey - 0.03) / 0.10);
            surface.darken((0.10 + 2.2 * eyes.socket) * hollow);
            let bag = bump((ex * ex * 1.2 - ey - eyes.lower - 0.055) / 0.028) * bump(ex / 0.09);
            surface.darken((0.08 + 0.28 * skin.lines) * bag);
        }
        if skin.lines > 0.2 && p.y > eyes.height + 0.28 {
            let wave = (p.y - eyes.height) * 62.0 + 1.2 * noise(p.x * 4.0, 0.0, skin.salt);
            let strength = (skin.lines - 0.2) * 0.22 + 1.5 * expression.brow_raise.max(0.0);
            let across = bump2(p.x / 0.3, (p.y - eyes.height - 0.42) / 0.09);
            surface.darken(strength * across * (0.5 + 0.5 * wave.sin()).powi(3));
        }
    }

    fn nostrils(&self, surface: &mut Surface, p: Vec3) {
        let (skin, nose) = (&self.person.skin, &self.person.nose);
        let ax = p.x.abs();
        if ax > 0.3 || (p.y - nose.tip).abs() > 0.25 {
            return;
        }
        let hole = bump2((ax - nose.wings * 0.48) / (nose.wings * 0.24), (p.y - nose.tip + 0.085) / 0.019);
        surface.cover(skin.colour * Vec3::new(0.16, 0.07, 0.06), (1.3 * hole).min(0.85));
        surface.darken(0.42 * bump2((ax - nose.wings - 0.005) / 0.02, (p.y - nose.tip + 0.055) / 0.05));
    }

    fn mouth(&self, surface: &mut Surface, p: Vec3) {
        let (mouth, expression) = (&self.person.mouth, self.expression);
        let half = expression.mouth_half_width(self.person);
        let u = p.x / half;
        let y = p.y - mouth.height - expression.lift(self.person, p.x);
        if u.abs() > 1.25 || y.abs() > 0.4 {
            return;
        }
        let arch = (1.0 - u * u).max(0.0);
        let round = arch.sqrt();
        let gap = expression.mouth_open * round;
        // A cupid's bow above, a full curve below; a smile stretches both.
        let stretch = 1.0 - 0.22 * expression.smile.max(0.0);
        let bow = 1.0 + 0.22 * bump((u.abs() - 0.27) / 0.16) - 0.16 * bump(u / 0.12);
        let top = mouth.upper * stretch * bow * round * round.sqrt();
        let bottom = -gap - mouth.lower * stretch * round;
        let lips = self.edge(top - y).min(self.edge(y - bottom)) * self.edge((1.02 - u.abs()) * half);
        let shade = if y > -0.5 * gap { 0.84 } else { 1.0 };
        surface.cover(mouth.colour * shade, lips * 0.92);
        surface.gloss = lerp(surface.gloss, 0.32, lips);
        if expression.mouth_open > 0.0 {
            let inside = self.edge(-y).min(self.edge(y + gap));
            surface.cover(Vec3::new(0.05, 0.012, 0.012), inside);
            let teeth = self.edge(y + gap * 0.12).max(self.edge(-y))
                * self.edge(y + gap * 0.12 + 0.055)
                * self.edge(0.8 - u.abs());
            let ridge = 1.0 - 0.12 * bump((((u * 4.5).fract() + 1.0).fract() - 0.5) / 0.06);
            surface.cover(Vec3::new(0.68, 0.64, 0.56) * ridge, inside * teeth * smooth(0.02, 0.05, gap));
            surface.soft *= 1.0 - inside;
        } else {
            let closed = self.line(y + 0.006 * bump(u / 0.2), 0.011) * smooth(1.1, 0.95, u.abs());
            surface.cover(mouth.colour * Vec3::new(0.22, 0.14, 0.14), 0.85 * closed);
        }
        let corner = bump2((u.abs() - 1.02) * half / 0.025, y / 0.025);
        surface.darken(0.45 * corner);
    }

    fn brow(&self, surface: &mut Surface, p: Vec3) {
        let (brows, eyes) = (&self.person.brows, &self.person.eyes);
        let u = (p.x.abs() - eyes.spacing - 0.015) / brows.half_width;
        let raise = self.expression.brow_raise;
        let line = eyes.height
            + brows.height
            + raise
            + brows.tilt * u * brows.half_width
            + brows.arch * (1.0 - (u - 0.25) * (u - 0.25))
            - 0.05 * smooth(0.4, 1.1, u)
            - 0.5 * brows.arch;
        let v = p.y - line;
        if u.abs() > 1.15 || v.abs() > 0.12 {
            return;
        }
        let half = brows.thickness * smooth(1.12, 0.3, u) * smooth(-1.15, -0.75, u);
        let strands = noise(p.x.abs() * 26.0 - p.y * 18.0, p.y * 9.0, 3);
        let cover = smooth(half * 1.45, half * 0.55, v.abs()) * (half / self.ramp).min(1.0);
        surface.cover(
            brows.colour * (0.7 + 0.6 * strands),
            cover * (brows.density * (0.8 + 0.4 * strands)).min(1.0),
        );
        surface.gloss *= 1.0 - cover;
    }

    fn eye(&self, surface: &mut Surface, p: Vec3) {
        let (eyes, expression) = (&self.person.eyes, self.expression);
        let side = p.x.signum();
        let (du, dv) = (p.x.abs() - eyes.spacing, p.y - eyes.height);
        if du.abs() > 0.27 || dv.abs() > 0.2 {
            return;
        }
        let (sin, cos) = eyes.tilt.sin_cos();
        // u runs outwards along the eye, v across it.
        let (u, v) = (du * cos + dv * sin, dv * cos - du * sin);
        let q = u / eyes.half_width;
        let arch = (1.0 - q * q).max(-0.3);
        let upper = lerp(-0.7 * eyes.lower, eyes.upper, expression.eyes_open) * arch * (1.0 - 0.18 * q);
        let lower = -eyes.lower * arch * (1.0 + 0.2 * q);
        let lid = smooth(1.25, 0.85, q.abs()) * smooth(upper + 0.085, upper + 0.01, v) * self.edge(v - lower);
        surface.cover(eyes.lid, 0.65 * lid * if eyes.lashes >= 1.0 { 1.0 } else { 0.5 });
        let crease =
            self.line(v - upper - eyes.crease - 0.018 - 0.012 * arch, 0.010) * smooth(1.2, 0.8, q.abs());
        surface.darken(0.55 * crease);

        let inside = self.edge(upper - v).min(self.edge(v - lower)) * if arch > 0.0 { 1.0 } else { 0.0 };
        if inside > 0.0 {
            let iris = Vec2::new(expression.gaze.x * side, expression.gaze.y + 0.008);
            let away = Vec2::new(u, v) - iris;
            let radius = away.length();
            let edge = eyes.iris_radius;
            let corner = bump2((q + 0.93) / 0.1, v / 0.03);
            let mut colour = Vec3::new(0.72, 0.70, 0.68).lerp(Vec3::new(0.62, 0.30, 0.26), 0.8 * corner);
            let ring = 0.55 + 0.9 * smooth(edge, edge * 0.45, radius);
            let rays = 0.8 + 0.4 * noise(away.y.atan2(away.x) * 5.0, 0.0, 11);
            colour = colour.lerp(eyes.iris * ring * rays, self.edge(edge - radius));
            colour = colour.lerp(Vec3::splat(0.004), self.edge(edge * 0.42 - radius));
            // The lid and its lashes shade the ball.
            colour *= lerp(0.45, 1.0, smooth(0.0, 0.045, upper - v));
            colour *= lerp(0.75, 1.0, smooth(1.0, 0.55, q.abs()));
            surface.cover(colour, inside);
            surface.soft *= 1.0 - inside;
            surface.gloss = lerp(surface.gloss, 0.25, inside);
            surface.bend = Vec3::new(u * side, v, 0.0) * (3.0 * inside);
            let glint =
                iris + Vec2::new(self.lamp.x * side, self.lamp.y).clamp_length_max(0.7) * (0.75 * edge);
            let spot = 0.02_f32.max(0.8 * self.ramp);
            surface.glint = 0.9 * inside * bump2((u - glint.x) / spot, (v - glint.y) / spot);
        }
        let lash = self.line(v - upper - 0.004, 0.011 + 0.007 * eyes.lashes * smooth(-0.8, 0.9, q));
        let reach = smooth(1.28, 1.0, q) * smooth(-1.12, -0.95, q);
        surface.cover(Vec3::new(0.012, 0.008, 0.007), (0.5 + 0.45 * eyes.lashes) * lash * reach);
        let under = self.line(v - lower + 0.004, 0.006) * smooth(1.1, 0.9, q.abs());
        surface.darken(0.45 * under);
    }
}
