//! Everything but the head and the hair: ears, neck, shoulders, glasses, and what covers the face.

use super::hair;
use super::head::Skull;
use super::maths::{bump2, lerp, noise};
use super::mesh::{Grid, Material, Mesh};
use super::person::{Glasses, Hair, Person};
use super::scene::{Occluder, Scene};
use glam::{Affine3A, Quat, Vec3};
use std::f32::consts::{PI, TAU};

/// Adds ears, in the head's frame.
pub(super) fn add_ears(mesh: &mut Mesh, person: &Person, skull: &Skull, to_world: &Affine3A) {
    let (ears, y) = (&person.ears, person.eyes.height - 0.1);
    for side in [-1.0, 1.0] {
        let turn =
            Quat::from_rotation_y(side * (0.35 + 0.5 * ears.stick_out)) * Quat::from_rotation_z(side * -0.12);
        let place = Vec3::new(side * (skull.section(y).width * 0.985 + 0.05 * ears.stick_out), y, -0.1);
        let frame = *to_world * Affine3A::from_rotation_translation(turn, place);
        let radii = Vec3::new(ears.size * 0.28, ears.size, ears.size * 0.55);
        mesh.add_ellipsoid(radii, 12, Material::Skin, &frame);
    }
}

/// Adds the neck and the shoulders, in the body's frame.
pub(super) fn add_body(mesh: &mut Mesh, person: &Person, to_world: &Affine3A) {
    let grid = Grid { rows: 6, cols: 16, wraps: true, open: false, material: Material::Skin };
    let radius = 0.30 + 0.28 * (person.head.jaw - 0.7) + 0.1 * person.head.width;
    mesh.add_grid(&grid, to_world, |row, col| {
        let y = lerp(-1.6, -0.45, row as f32 / 5.0);
        let (sin, cos) = (TAU * col as f32 / 16.0).sin_cos();
        let flare = 1.0 + 0.6 * ((-1.15 - y).max(0.0));
        let p = Vec3::new(radius * flare * sin, y, -0.12 + radius * cos);
        (p, p)
    });
    let shoulders = *to_world * Affine3A::from_translation(Vec3::new(0.0, -1.95, -0.2));
    mesh.add_ellipsoid(Vec3::new(1.55, 0.72, 0.62), 20, Material::Cloth, &shoulders);
}

/// A point of a lens's outline at angle `turn`, as shares of its half width and half height.
fn rim(turn: f32, squareness: f32) -> (f32, f32) {
    let (sin, cos) = turn.sin_cos();
    let bend = |v: f32| v.signum() * v.abs().powf(2.0 / squareness);
    (bend(cos), bend(sin))
}

/// Adds glasses, in the head's frame; the lenses too if they are dark.
pub(super) fn add_glasses(
    mesh: &mut Mesh,
    person: &Person,
    skull: &Skull,
    glasses: &Glasses,
    dark: bool,
    to_world: &Affine3A,
) {
    let (eyes, head) = (&person.eyes, &person.head);
    let front = head.front + 0.04 + 0.4 * person.nose.height.min(0.3);
    // Frames follow the face around.
    let bent = |x: f32, y: f32| Vec3::new(x, y, front - 0.30 * x * x);
    let middle = eyes.height - 0.02;
    for side in [-1.0, 1.0] {
        let centre = side * (eyes.spacing + 0.015);
        let grid = Grid { rows: 2, cols: 28, wraps: true, open: true, material: Material::Frame };
        let outline = |scale_out: f32, turn: f32| {
            let (u, v) = rim(turn, glasses.squareness);
            bent(
                centre + u * (glasses.half_width + scale_out),
                middle + v * (glasses.half_height + scale_out),
            )
        };
        mesh.add_grid(&grid, to_world, |row, col| {
            let p = outline(if row == 0 { 0.0 } else { glasses.rim }, -TAU * col as f32 / 28.0);
            (p, p)
        });
        if dark {
            let lens = Grid { material: Material::Lens, ..grid };
            mesh.add_grid(&lens, to_world, |row, col| {
                let p = if row == 0 { bent(centre, middle) } else { outline(0.0, -TAU * col as f32 / 28.0) };
                (p, p)
            });
        }
        let arm = Grid { rows: 2, cols: 5, wraps: false, open: true, material: Material::Frame };
        let (from, to) =
            (bent(centre + side * (glasses.half_width + glasses.rim * 0.5), middle + 0.04), -0.15);
        let ear = skull.section(middle).width + 0.03;
        mesh.add_grid(&arm, to_world, |row, col| {
            let along = col as f32 / 4.0;
            let x = lerp(from.x, side * ear, (along * 2.5).min(1.0));
            let p = Vec3::new(x, from.y + (row as f32 - 0.5) * 0.045, lerp(from.z, to, along));
            (p, p)
        });
    }
    let gap = (eyes.spacing + 0.015 - glasses.half_width).max(0.02);
    let bridge = Grid { rows: 2, cols: 5, wraps: false, open: true, material: Material::Frame };
    mesh.add_grid(&bridge, to_world, |row, col| {
        let u = col as f32 / 2.0 - 1.0;
        let y = middle + 0.045 + 0.03 * (1.0 - u * u) + (row as f32 - 0.5) * glasses.rim;
        let p = bent(u * gap, y) + Vec3::Z * 0.02;
        (p, p)
    });
}

/// Adds what covers the face. `head` and `picture` are the frames of the head and of the picture.
pub(super) fn add_occluder(
    mesh: &mut Mesh,
    person: &Person,
    skull: &Skull,
    scene: &Scene,
    detail: usize,
    head: &Affine3A,
) {
    match scene.occluder {
        None => {}
        Some(Occluder::Hand { palm, turn }) => add_hand(mesh, palm, turn),
        Some(Occluder::Cloth { top, tied, .. }) => add_cloth(mesh, person, skull, top, tied, detail, head),
        Some(Occluder::Hat { edge, thickness, .. }) => {
            let hat = Hair {
                colour: Vec3::ZERO,
                hairline: edge,
                recession: 0.0,
                slant: 0.0,
                opening: 1.0,
                temple: edge - 0.1,
                side: edge - 0.18,
                nape: edge - 0.4,
                top: thickness + 0.12,
                sides: person.hair.as_ref().map_or(0.0, |h| h.sides) + 0.09 + thickness * 0.4,
                fall: 0.0,
                curl: 0.008,
                frequency: 4.0,
                bun: None,
                salt: 0,
            };
            hair::add(mesh, skull, &hat, Material::Wrap, detail, head);
        }
        Some(Occluder::Sunglasses { half_height, squareness }) => {
            let glasses = Glasses {
                half_width: (person.eyes.spacing - 0.04).min(0.25),
                half_height,
                squareness,
                rim: 0.03,
                colour: Vec3::splat(0.015),
            };
            add_glasses(mesh, person, skull, &glasses, true, head);
        }
    }
}

/// Cloth around the lower face: a ring behind the nose's tip if it is low, in front of it if it is high.
fn add_cloth(
    mesh: &mut Mesh,
    person: &Person,
    skull: &Skull,
    top: f32,
    tied: bool,
    detail: usize,
    head: &Affine3A,
) {
    let (rows, cols) = (detail / 3 + 4, detail / 2 + 8);
    let grid = Grid { rows, cols, wraps: tied, open: true, material: Material::Wrap };
    let bottom = if tied { -1.4 } else { -0.98 };
    let reach = if tied { PI } else { 1.35 };
    let nose = &person.nose;
    mesh.add_grid(&grid, head, |row, col| {
        let share = row as f32 / (rows - 1) as f32;
        let across =
            if tied { 2.0 * col as f32 / cols as f32 } else { 2.0 * col as f32 / (cols - 1) as f32 } - 1.0;
        let turn = reach * across;
        let (sin, cos) = turn.sin_cos();
        // A mask is tallest over the nose; a scarf hangs level.
        let top = if tied { top } else { top - 0.22 * across * across };
        let bottom = if tied { bottom } else { bottom + 0.30 * across * across };
        let y = lerp(bottom, top, share);
        let ring = skull.section(y.max(-0.8));
        let folds = if tied { 0.07 * (noise(turn * 2.0, y * 9.0, 7) - 0.5) } else { 0.0 };
        let mut p = ring.point(sin, cos, y, if tied { 0.13 } else { 0.05 } + folds);
        p.z += (nose.height + 0.05) * bump2(p.x / 0.2, (y - nose.tip + 0.02) / 0.2);
        p.z += 0.10 * bump2(p.x / 0.3, (y - person.mouth.height) / 0.2);
        p.z += (0.10 + person.head.chin_forward) * bump2(p.x / 0.24, (y + 0.92) / 0.16);
        (p, p)
    });
}

/// A palm and four fingers in front of the picture.
fn add_hand(mesh: &mut Mesh, palm: Vec3, turn: f32) {
    let frame = Affine3A::from_rotation_translation(Quat::from_rotation_z(turn), palm);
    mesh.add_ellipsoid(Vec3::new(0.30, 0.34, 0.13), 14, Material::Skin, &frame);
    for finger in 0..4 {
        let across = finger as f32 - 1.5;
        let length = [0.34, 0.40, 0.38, 0.29][finger];
        let place = Vec3::new(across * 0.15, 0.25 + length * 0.8, 0.02);
        let spread = Affine3A::from_rotation_translation(Quat::from_rotation_z(-across * 0.09), place);
        mesh.add_ellipsoid(Vec3::new(0.078, length, 0.08), 12, Material::Skin, &(frame * spread));
    }
    let thumb = Vec3::new(-turn.signum() * 0.34, 0.02, 0.03);
    let spread = Affine3A::from_rotation_translation(Quat::from_rotation_z(turn.signum() * 0.7), thumb);
    mesh.add_ellipsoid(Vec3::new(0.085, 0.28, 0.085), 12, Material::Skin, &(frame * spread));
}
