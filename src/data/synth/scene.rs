//! What changes from picture to picture: pose, light, expression, occlusion, background and the camera's faults.

use super::dice::Dice;
use super::maths::{luminance, smooth};
use super::person::Person;
use glam::{EulerRot, Quat, Vec2, Vec3};
use std::f32::consts::PI;

/// What the face does.
#[derive(Default)]
pub(super) struct Expression {
    /// Gap between the lips, in head units.
    pub mouth_open: f32,
    /// From -0.4, a frown, to 1, a broad smile.
    pub smile: f32,
    /// Added to the height of the brows.
    pub brow_raise: f32,
    /// Share of the eyes' opening: 0 is shut.
    pub eyes_open: f32,
    /// Where the irises are, from the middle, in head units.
    pub gaze: Vec2,
}

impl Expression {
    /// Half width of the mouth.
    pub fn mouth_half_width(&self, person: &Person) -> f32 {
        person.mouth.half_width * (1.0 + 0.18 * self.smile - 0.5 * self.mouth_open)
    }

    /// How far above its middle the line between the lips runs at `x`.
    pub fn lift(&self, person: &Person, x: f32) -> f32 {
        let u = (x / self.mouth_half_width(person)).clamp(-1.4, 1.4);
        (person.mouth.curve + 0.05 * self.smile) * u * u
    }
}

/// Something in front of the face.
pub(super) enum Occluder {
    /// A hand whose palm is at a place in the picture (head units from its middle), with the fingers' direction.
    Hand { palm: Vec3, turn: f32 },
    /// Cloth around the lower face up to this height; `tied` behind the head (scarf), or only in front (mask).
    Cloth { top: f32, tied: bool, colour: Vec3, stripes: f32 },
    /// A hat down to this height.
    Hat { edge: f32, thickness: f32, colour: Vec3, stripes: f32 },
    /// Sunglasses: half height of the lenses.
    Sunglasses { half_height: f32, squareness: f32 },
}

/// What is behind the head.
pub(super) struct Background {
    pub top: Vec3,
    pub bottom: Vec3,
    pub blobs: [Blob; 4],
    pub salt: u32,
    pub texture: f32,
}

/// A soft spot of the background, in picture heights from the picture's middle.
pub(super) struct Blob {
    pub centre: Vec2,
    pub radius: f32,
    pub colour: Vec3,
}

/// What the camera does to the light it gets. Lengths are shares of the picture's height.
pub(super) struct Camera {
    /// Standard deviation of the defocus.
    pub blur: f32,
    /// Path of the picture during the exposure.
    pub motion: Vec2,
    /// Share of the lines that survive; 1 is all.
    pub resolution: f32,
    /// Standard deviation of the sensor's noise, of full scale.
    pub noise: f32,
    pub exposure: f32,
    pub contrast: f32,
    pub saturation: f32,
    pub white_balance: Vec3,
    /// Misplacement of the crop, in head units, and its scale.
    pub shift: Vec2,
    pub zoom: f32,
}

/// One picture, but for who is in it.
pub(super) struct Scene {
    pub yaw: f32,
    pub pitch: f32,
    pub roll: f32,
    /// Unit vector to the lamp.
    pub lamp: Vec3,
    pub lamp_colour: Vec3,
    pub sky: Vec3,
    pub ground: Vec3,
    pub expression: Expression,
    pub occluder: Option<Occluder>,
    pub background: Background,
    pub clothes: Vec3,
    pub clothes_stripes: f32,
    pub camera: Camera,
}

/// The ways in which a sample can be hard.
#[derive(Clone, Copy, Default)]
struct Hardness {
    pose: bool,
    occlusion: bool,
    blur: bool,
    resolution: bool,
    light: bool,
}

impl Hardness {
    /// At least one way; mostly one or two.
    fn sample(dice: &mut Dice) -> Self {
        let mut ways = Self::default();
        for _ in 0..1 + dice.below(2) {
            match dice.below(5) {
                0 => ways.pose = true,
                1 => ways.occlusion = true,
                2 => ways.blur = true,
                3 => ways.resolution = true,
                _ => ways.light = true,
            }
        }
        ways
    }
}

impl Scene {
    /// Draws a scene.
    pub fn sample(dice: &mut Dice, hard: bool) -> Self {
        let ways = if hard { Hardness::sample(dice) } else { Hardness::default() };
        let (yaw, pitch) = if ways.pose {
            let side = dice.pick([-1.0, 1.0]);
            (side * dice.range(0.65, 1.2), 0.22 * dice.normal())
        } else {
            (0.24 * dice.normal(), 0.12 * dice.normal())
        };
        let expression = sample_expression(dice);
        let occluded = ways.occlusion || dice.chance(0.03);
        let (lamp, lamp_colour, sky, ground) = sample_light(dice, ways.light);
        Self {
            yaw,
            pitch,
            roll: 0.07 * dice.normal(),
            lamp,
            lamp_colour,
            sky,
            ground,
            expression,
            occluder: occluded.then(|| sample_occluder(dice)),
            background: sample_background(dice),
            clothes: dice.colour(0.02, 0.7),
            clothes_stripes: if dice.chance(0.3) { dice.range(4.0, 14.0) } else { 0.0 },
            camera: sample_camera(dice, ways),
        }
    }

    /// Rotation of the head: yaw turns it to the picture's right, then pitch lifts it, then roll tilts the picture.
    pub fn rotation(&self) -> Quat {
        Quat::from_euler(EulerRot::ZXY, self.roll, -self.pitch, self.yaw)
    }

    /// Rotation of the shoulders, which follow the head only in part.
    pub fn body_rotation(&self) -> Quat {
        Quat::from_euler(EulerRot::ZXY, self.roll * 0.3, 0.0, self.yaw * 0.45)
    }
}

fn sample_expression(dice: &mut Dice) -> Expression {
    let open = if dice.chance(0.3) { dice.range(0.02, 0.16) } else { 0.0 };
    let smile = if dice.chance(0.5) { dice.range(0.15, 1.0) } else { dice.range(-0.35, 0.15) };
    let blink = if dice.chance(0.05) { 0.0 } else { dice.range(0.78, 1.12) };
    Expression {
        mouth_open: open,
        smile,
        brow_raise: 0.018 * dice.normal() + 0.12 * open,
        eyes_open: blink * (1.0 - 0.22 * smile.max(0.0)),
        gaze: Vec2::new(0.022 * dice.normal(), 0.010 * dice.normal()),
    }
}

fn sample_light(dice: &mut Dice, harsh: bool) -> (Vec3, Vec3, Vec3, Vec3) {
    let warmth = dice.range(-1.0, 1.0);
    let tint = Vec3::new(1.0 + 0.14 * warmth, 1.0, 1.0 - 0.2 * warmth);
    let fill = Vec3::new(1.0 - 0.06 * warmth, 1.0, 1.0 + 0.1 * warmth);
    let (sideways, height) = if harsh {
        (dice.pick([-1.0, 1.0]) * dice.range(0.9, 1.7), dice.range(-0.5, 1.1))
    } else {
        (0.55 * dice.normal(), dice.range(0.0, 0.95))
    };
    let (sin, cos) = sideways.sin_cos();
    let (rise, level) = height.sin_cos();
    let lamp = Vec3::new(sin * level, rise, cos * level);
    let (key, ambient) = if harsh {
        (dice.range(1.0, 1.9), dice.range(0.03, 0.16))
    } else {
        (dice.range(0.5, 1.1), dice.range(0.28, 0.6))
    };
    let ground = ambient * dice.range(0.35, 0.8);
    (lamp, tint * key, fill * ambient, dice.colour(0.75, 1.0) * ground)
}

fn sample_occluder(dice: &mut Dice) -> Occluder {
    let colour = dice.colour(0.02, 0.75);
    let stripes = if dice.chance(0.4) { dice.range(5.0, 16.0) } else { 0.0 };
    match dice.below(5) {
        0 => {
            let side = dice.pick([-1.0, 1.0]);
            let palm = Vec3::new(side * dice.range(0.3, 0.6), dice.range(-0.9, -0.25), 1.2);
            Occluder::Hand { palm, turn: side * dice.range(0.1, 0.9) }
        }
        1 => Occluder::Cloth { top: dice.range(-0.6, -0.15), tied: true, colour, stripes },
        2 => {
            let plain = if dice.chance(0.6) { Vec3::new(0.42, 0.62, 0.72) } else { colour };
            Occluder::Cloth { top: dice.range(-0.22, -0.08), tied: false, colour: plain, stripes: 0.0 }
        }
        3 => {
            Occluder::Hat { edge: dice.range(0.32, 0.5), thickness: dice.range(0.06, 0.16), colour, stripes }
        }
        _ => Occluder::Sunglasses { half_height: dice.range(0.15, 0.21), squareness: dice.range(2.0, 5.0) },
    }
}

fn sample_background(dice: &mut Dice) -> Background {
    // Most places are rather grey; a few are gaudy.
    let vivid = dice.unit() * dice.unit();
    let mut shade = || {
        let colour = dice.colour(0.02, 0.8);
        Vec3::splat(luminance(colour)).lerp(colour, 0.15 + 0.85 * vivid)
    };
    let base = shade();
    let bottom = base.lerp(shade(), 0.6);
    let colours: [Vec3; 4] = std::array::from_fn(|_| shade());
    let blobs = colours.map(|colour| Blob {
        centre: Vec2::new(dice.range(-0.6, 0.6), dice.range(-0.6, 0.6)),
        radius: dice.range(0.08, 0.4),
        colour,
    });
    Background { top: base, bottom, blobs, salt: dice.below(u32::MAX), texture: dice.range(0.0, 0.5) }
}

fn sample_camera(dice: &mut Dice, ways: Hardness) -> Camera {
    let blur = if ways.blur { dice.range(0.018, 0.042) } else { dice.range(0.0, 0.009) };
    let path = if ways.blur && dice.chance(0.5) { dice.range(0.03, 0.09) } else { 0.0 };
    let (sin, cos) = dice.range(0.0, PI).sin_cos();
    // Cheap cameras make more noise where there is little light.
    let noisy = smooth(0.6, 1.0, dice.unit());
    let exposure = if ways.light { dice.range(0.5, 1.7) } else { dice.range(0.75, 1.4) };
    Camera {
        blur: if path > 0.0 { blur * 0.3 } else { blur },
        motion: Vec2::new(cos, sin) * path,
        resolution: if ways.resolution { dice.range(0.16, 0.34) } else { dice.range(0.7, 2.0).min(1.0) },
        noise: if hard_sensor(ways) { dice.range(0.01, 0.06) } else { 0.004 + 0.022 * noisy },
        exposure,
        contrast: dice.range(0.85, 1.15),
        saturation: dice.range(0.65, 1.2),
        white_balance: Vec3::new(1.0 + 0.06 * dice.normal(), 1.0, 1.0 + 0.08 * dice.normal()),
        shift: Vec2::new(0.035 * dice.normal(), 0.035 * dice.normal()),
        zoom: 1.0 + 0.04 * dice.normal(),
    }
}

/// Whether the sensor is at its limit too.
fn hard_sensor(ways: Hardness) -> bool {
    ways.light || ways.resolution
}
