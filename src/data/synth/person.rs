//! Who somebody is: everything about a face that does not change from picture to picture.
//!
//! Lengths are in head units: the crown is at y = 1, the chin at y = -1, x runs to the picture's right and z towards
//! the viewer. Colours are linear RGB.

use super::dice::{Dice, Stream};
use super::maths::lerp;
use glam::Vec3;

/// The skull and the jaw.
pub(super) struct HeadShape {
    /// Half width at the cheekbones.
    pub width: f32,
    /// From the axis to the face, and to the back of the head.
    pub front: f32,
    pub back: f32,
    /// Width at the corners of the jaw, and at the chin, as shares of what an ellipsoid would have.
    pub jaw: f32,
    pub chin: f32,
    /// Exponent of the lower outline: 2 is round, more is square.
    pub squareness: f32,
    pub chin_forward: f32,
    pub cheekbone: f32,
    pub cheek: f32,
    pub brow_ridge: f32,
}

pub(super) struct Eyes {
    pub height: f32,
    /// Half the distance between the centres.
    pub spacing: f32,
    pub half_width: f32,
    /// Heights of the lids above and below the centre line when open.
    pub upper: f32,
    pub lower: f32,
    /// Radians; positive lifts the outer corners.
    pub tilt: f32,
    pub iris: Vec3,
    pub iris_radius: f32,
    /// Distance of the lid's crease above the lid.
    pub crease: f32,
    pub socket: f32,
    /// Strength of lashes and of the shadow on the lid.
    pub lashes: f32,
    pub lid: Vec3,
}

pub(super) struct Brows {
    /// Above the eye's centre.
    pub height: f32,
    pub thickness: f32,
    pub half_width: f32,
    pub arch: f32,
    /// Positive lifts the outer ends.
    pub tilt: f32,
    pub density: f32,
    pub colour: Vec3,
}

pub(super) struct Nose {
    /// y of the tip.
    pub tip: f32,
    pub bridge: f32,
    /// Half width at the wings.
    pub wings: f32,
    pub height: f32,
    pub hump: f32,
    pub upturn: f32,
    pub ball: f32,
}

pub(super) struct Mouth {
    pub height: f32,
    pub half_width: f32,
    pub upper: f32,
    pub lower: f32,
    /// Lift of the corners at rest.
    pub curve: f32,
    pub colour: Vec3,
}

pub(super) struct Ears {
    pub size: f32,
    pub stick_out: f32,
}

/// The outline of the hair, as the height of its lower edge in each direction, and its volume.
pub(super) struct Hair {
    pub colour: Vec3,
    /// y of the hairline at the forehead's middle, the lift at its corners, and its slant from side to side.
    pub hairline: f32,
    pub recession: f32,
    pub slant: f32,
    /// Azimuth at which the hairline turns down to the sides.
    pub opening: f32,
    /// y of the edge at the temples, over the ears, and at the nape.
    pub temple: f32,
    pub side: f32,
    pub nape: f32,
    /// Thickness on top, and at the sides.
    pub top: f32,
    pub sides: f32,
    /// How far long hair falls straight instead of following the head.
    pub fall: f32,
    /// Depth and frequency of locks or curls.
    pub curl: f32,
    pub frequency: f32,
    /// A knot on top of the head: its radius.
    pub bun: Option<f32>,
    pub salt: u32,
}

/// Coverage of the parts of a beard, each in [0, 1].
pub(super) struct Beard {
    pub moustache: f32,
    pub chin: f32,
    pub cheeks: f32,
    /// Thickness, 0 for stubble.
    pub length: f32,
}

pub(super) struct Glasses {
    pub half_width: f32,
    pub half_height: f32,
    /// Exponent of the rim's outline: 2 is round, more is rectangular.
    pub squareness: f32,
    pub rim: f32,
    pub colour: Vec3,
}

pub(super) struct Skin {
    pub colour: Vec3,
    pub ruddiness: f32,
    pub freckles: f32,
    /// Depth of wrinkles.
    pub lines: f32,
    pub shine: f32,
    pub salt: u32,
}

pub(super) struct Mole {
    pub x: f32,
    pub y: f32,
    pub radius: f32,
}

/// A person.
pub(super) struct Person {
    pub head: HeadShape,
    pub eyes: Eyes,
    pub brows: Brows,
    pub nose: Nose,
    pub mouth: Mouth,
    pub ears: Ears,
    pub hair: Option<Hair>,
    pub beard: Option<Beard>,
    pub glasses: Option<Glasses>,
    pub skin: Skin,
    pub moles: Vec<Mole>,
}

impl Person {
    /// The person whose number is `identity` among all that `seed` makes.
    pub fn sample(seed: u64, identity: u64) -> Self {
        let dice = &mut Dice::new(Stream::Person, seed, identity, 0);
        // Two hidden traits tie features together the way people's features are; every one still varies on its own.
        let masculinity = dice.unit();
        let age = dice.unit() * dice.unit();
        let melanin = dice.unit();
        let skin = sample_skin(dice, melanin, age);
        let hair_colour = sample_hair_colour(dice, melanin, age);
        let head = HeadShape {
            width: dice.range(0.66, 0.82),
            front: dice.range(0.74, 0.86),
            back: dice.range(0.82, 1.0),
            jaw: lerp(dice.range(0.74, 0.98), 0.96, masculinity * 0.35),
            chin: dice.range(0.62, 1.0),
            squareness: lerp(dice.range(1.9, 2.9), 3.0, masculinity * 0.3),
            chin_forward: dice.range(-0.02, 0.11),
            cheekbone: dice.range(0.0, 0.075),
            cheek: dice.range(-0.05, 0.06),
            brow_ridge: dice.range(0.0, 0.03) + 0.045 * masculinity,
        };
        let eyes = sample_eyes(dice, &head, skin.colour, masculinity);
        let brows = Brows {
            height: dice.range(0.165, 0.245),
            thickness: lerp(dice.range(0.016, 0.05), 0.052, masculinity * 0.4),
            half_width: dice.range(0.15, 0.225),
            arch: dice.range(0.0, 0.07),
            tilt: dice.range(-0.16, 0.22),
            density: dice.range(0.55, 1.0),
            colour: hair_colour.lerp(Vec3::new(0.03, 0.02, 0.014), 0.55),
        };
        let nose = Nose {
            tip: dice.range(-0.36, -0.2),
            bridge: dice.range(0.055, 0.095),
            wings: dice.range(0.09, 0.175),
            height: dice.range(0.16, 0.28),
            hump: dice.range(-0.035, 0.05),
            upturn: dice.range(-0.02, 0.05),
            ball: dice.range(0.02, 0.075),
        };
        let mouth = sample_mouth(dice, &nose, skin.colour, masculinity);
        let ears = Ears { size: dice.range(0.15, 0.25), stick_out: dice.range(0.1, 0.65) };
        let hair = sample_hair(dice, hair_colour, masculinity, age);
        let beard = sample_beard(dice, masculinity);
        let glasses = dice.chance(0.2).then(|| sample_glasses(dice, &eyes));
        let moles = (0..[0, 0, 0, 1, 1, 2, 3][dice.below(7) as usize])
            .map(|_| Mole {
                x: dice.range(-0.5, 0.5),
                y: dice.range(-0.85, 0.5),
                radius: dice.range(0.016, 0.032),
            })
            .collect();
        Self { head, eyes, brows, nose, mouth, ears, hair, beard, glasses, skin, moles }
    }
}

fn sample_skin(dice: &mut Dice, melanin: f32, age: f32) -> Skin {
    const TONES: [Vec3; 5] = [
        Vec3::new(0.80, 0.56, 0.45),
        Vec3::new(0.69, 0.43, 0.30),
        Vec3::new(0.51, 0.29, 0.18),
        Vec3::new(0.28, 0.14, 0.078),
        Vec3::new(0.12, 0.060, 0.036),
    ];
    let at = melanin * 3.999;
    let tone = TONES[at as usize].lerp(TONES[at as usize + 1], at.fract());
    let tint = Vec3::new(1.0, dice.range(0.94, 1.07), dice.range(0.86, 1.14));
    let freckled = dice.chance(if melanin < 0.5 { 0.3 } else { 0.08 });
    Skin {
        colour: tone * tint,
        ruddiness: dice.range(0.1, 1.0),
        freckles: if freckled { dice.range(0.25, 0.7) } else { 0.0 },
        lines: (age * 1.3).min(1.0),
        shine: dice.range(0.05, 0.22),
        salt: dice.below(u32::MAX),
    }
}

fn sample_hair_colour(dice: &mut Dice, melanin: f32, age: f32) -> Vec3 {
    const DARK: [Vec3; 4] = [
        Vec3::new(0.010, 0.009, 0.010),
        Vec3::new(0.022, 0.014, 0.010),
        Vec3::new(0.045, 0.024, 0.014),
        Vec3::new(0.085, 0.043, 0.022),
    ];
    const LIGHT: [Vec3; 6] = [
        Vec3::new(0.17, 0.095, 0.046),
        Vec3::new(0.36, 0.23, 0.10),
        Vec3::new(0.58, 0.44, 0.24),
        Vec3::new(0.30, 0.085, 0.022),
        Vec3::new(0.14, 0.035, 0.016),
        Vec3::new(0.24, 0.15, 0.085),
    ];
    const DYED: [Vec3; 4] = [
        Vec3::new(0.05, 0.12, 0.36),
        Vec3::new(0.55, 0.14, 0.30),
        Vec3::new(0.06, 0.26, 0.20),
        Vec3::new(0.25, 0.06, 0.34),
    ];
    let natural = if dice.chance(0.35 + 0.55 * melanin) { dice.pick(DARK) } else { dice.pick(LIGHT) };
    let colour = if dice.chance(0.04) { dice.pick(DYED) } else { natural * dice.range(0.8, 1.25) };
    let grey = if age > 0.45 && dice.chance(0.75) { dice.range(0.4, 1.0) } else { 0.0 };
    colour.lerp(Vec3::splat(dice.range(0.28, 0.62)), grey)
}

fn sample_eyes(dice: &mut Dice, head: &HeadShape, skin: Vec3, masculinity: f32) -> Eyes {
    const IRISES: [Vec3; 7] = [
        Vec3::new(0.045, 0.020, 0.010),
        Vec3::new(0.10, 0.045, 0.018),
        Vec3::new(0.16, 0.085, 0.030),
        Vec3::new(0.14, 0.16, 0.065),
        Vec3::new(0.075, 0.17, 0.10),
        Vec3::new(0.10, 0.21, 0.38),
        Vec3::new(0.20, 0.26, 0.31),
    ];
    let half_width = dice.range(0.120, 0.165);
    let made_up = dice.chance(0.55 * (1.0 - masculinity));
    let shadow = dice.colour(0.25, 0.9);
    Eyes {
        height: dice.range(-0.01, 0.09),
        spacing: head.width * dice.range(0.385, 0.465),
        half_width,
        upper: half_width * dice.range(0.36, 0.66),
        lower: half_width * dice.range(0.20, 0.40),
        tilt: dice.range(-0.13, 0.2),
        iris: if luminous(skin) || dice.chance(0.1) {
            dice.pick(IRISES)
        } else {
            IRISES[dice.below(3) as usize]
        },
        iris_radius: dice.range(0.056, 0.072),
        crease: dice.range(0.0, 0.055),
        socket: dice.range(0.03, 0.12),
        lashes: if made_up { 1.0 } else { dice.range(0.25, 0.7) },
        lid: if made_up { skin * shadow } else { skin * Vec3::new(0.86, 0.78, 0.76) },
    }
}

/// Whether light eyes are as common as dark ones with this skin.
fn luminous(skin: Vec3) -> bool {
    skin.y > 0.3
}

fn sample_mouth(dice: &mut Dice, nose: &Nose, skin: Vec3, masculinity: f32) -> Mouth {
    const LIPSTICKS: [Vec3; 4] = [
        Vec3::new(0.45, 0.025, 0.035),
        Vec3::new(0.52, 0.12, 0.15),
        Vec3::new(0.24, 0.02, 0.06),
        Vec3::new(0.50, 0.16, 0.09),
    ];
    let bare = skin * Vec3::new(0.88, 0.52, 0.54) + Vec3::new(0.03, 0.0, 0.004);
    let painted = dice.chance(0.5 * (1.0 - masculinity));
    Mouth {
        height: nose.tip - dice.range(0.26, 0.36),
        half_width: dice.range(0.18, 0.295),
        upper: dice.range(0.022, 0.066),
        lower: dice.range(0.035, 0.082),
        curve: dice.range(-0.03, 0.035),
        colour: if painted { bare.lerp(dice.pick(LIPSTICKS), dice.range(0.4, 0.85)) } else { bare },
    }
}

fn sample_hair(dice: &mut Dice, colour: Vec3, masculinity: f32, age: f32) -> Option<Hair> {
    let short = |dice: &mut Dice| Hair {
        colour,
        hairline: dice.range(0.5, 0.68),
        recession: dice.range(0.0, 0.1) + 0.22 * age * masculinity,
        slant: dice.range(-0.08, 0.08),
        opening: dice.range(0.85, 1.05),
        temple: dice.range(-0.25, 0.15),
        side: dice.range(0.12, 0.24),
        nape: dice.range(-0.6, -0.3),
        top: dice.range(0.07, 0.22),
        sides: dice.range(0.025, 0.09),
        fall: 0.0,
        curl: dice.range(0.0, 0.022),
        frequency: dice.range(5.0, 12.0),
        bun: None,
        salt: dice.below(u32::MAX),
    };
    let long = |dice: &mut Dice| {
        let length = dice.range(-1.5, -0.45);
        Hair {
            opening: dice.range(0.85, 1.15),
            temple: length + dice.range(-0.05, 0.1),
            side: length,
            nape: length - 0.1,
            top: dice.range(0.07, 0.17),
            sides: dice.range(0.07, 0.2),
            fall: dice.range(0.5, 1.0),
            curl: dice.range(0.004, 0.04),
            ..short(dice)
        }
    };
    let fringe = dice.range(0.24, 0.42);
    let style = dice.unit();
    // The hidden trait shifts the shares of the styles: shaved, short, fringed, curly, tied back, long, long with fringe.
    let hair = if style < 0.16 * masculinity {
        if dice.chance(0.5) {
            return None;
        }
        Hair { top: dice.range(0.015, 0.03), sides: dice.range(0.012, 0.022), curl: 0.0, ..short(dice) }
    } else if style < 0.15 + 0.55 * masculinity {
        short(dice)
    } else if style < 0.32 + 0.45 * masculinity {
        // A short cut with a fringe.
        Hair { hairline: fringe, slant: dice.range(-0.22, 0.22), recession: -0.03, ..short(dice) }
    } else if style < 0.40 + 0.42 * masculinity {
        // Tight round curls.
        let volume = dice.range(0.16, 0.36);
        Hair {
            top: volume,
            sides: volume * 0.9,
            side: 0.0,
            nape: -0.7,
            curl: 0.06,
            frequency: 13.0,
            ..short(dice)
        }
    } else if style < 0.52 + 0.36 * masculinity {
        // Tied back.
        let bun = dice.chance(0.6).then(|| dice.range(0.2, 0.34));
        Hair {
            top: dice.range(0.04, 0.08),
            sides: dice.range(0.03, 0.05),
            curl: 0.005,
            side: 0.02,
            bun,
            ..short(dice)
        }
    } else if style < 0.74 + 0.2 * masculinity {
        long(dice)
    } else {
        Hair { hairline: fringe, slant: dice.range(-0.15, 0.15), recession: -0.05, ..long(dice) }
    };
    Some(hair)
}

fn sample_beard(dice: &mut Dice, masculinity: f32) -> Option<Beard> {
    let kind = dice.unit();
    let length = dice.range(0.02, 0.1);
    if masculinity < 0.52 || kind < 0.4 {
        return None;
    }
    Some(if kind < 0.6 {
        let density = dice.range(0.25, 0.5);
        Beard { moustache: density, chin: density, cheeks: density, length: 0.0 }
    } else if kind < 0.8 {
        Beard { moustache: 0.95, chin: 0.95, cheeks: 0.95, length }
    } else if kind < 0.9 {
        Beard { moustache: 0.9, chin: 0.95, cheeks: 0.0, length: length * 0.7 }
    } else {
        Beard { moustache: 0.95, chin: 0.0, cheeks: 0.0, length: 0.02 }
    })
}

fn sample_glasses(dice: &mut Dice, eyes: &Eyes) -> Glasses {
    const FRAMES: [Vec3; 5] = [
        Vec3::new(0.012, 0.012, 0.014),
        Vec3::new(0.07, 0.03, 0.012),
        Vec3::new(0.20, 0.02, 0.025),
        Vec3::new(0.45, 0.40, 0.32),
        Vec3::new(0.03, 0.07, 0.2),
    ];
    Glasses {
        half_width: (eyes.spacing - 0.05).min(dice.range(0.19, 0.25)),
        half_height: dice.range(0.13, 0.21),
        squareness: dice.range(2.0, 6.0),
        rim: dice.range(0.022, 0.045),
        colour: dice.pick(FRAMES),
    }
}
