//! One picture of one person: builds the scene, finds what each sample sees, and lights it.

use super::head::Skull;
use super::maths::{lerp, noise, smooth};
use super::mesh::{Material, Mesh, Vertex};
use super::paint::{FacePaint, Surface};
use super::person::Person;
use super::raster::{Hit, Shadows, View, visible};
use super::scene::{Occluder, Scene};
use super::sensor::Light;
use super::{hair, head, props};
use glam::{Affine3A, Quat, Vec2, Vec3};

/// Head units from the top to the bottom of a picture.
const FIELD: f32 = 2.3;

/// Samples a pixel in each direction.
const SAMPLES: usize = 2;

/// Renders `person` in `scene` as linear light with `rows` by `cols` pixels.
pub(super) fn render(person: &Person, scene: &Scene, rows: usize, cols: usize) -> Light {
    let shorter = rows.min(cols);
    let detail = (shorter / 2 + 20).clamp(36, 96);
    let rotation = scene.rotation();
    let mesh = build(person, scene, detail, rotation);
    // Crops are aligned: the middle of the face is in the middle of the picture, but for the jitter.
    let middle = rotation * Vec3::new(0.0, -0.03, 0.42);
    let view = View {
        rows: rows * SAMPLES,
        cols: cols * SAMPLES,
        scale: (shorter * SAMPLES) as f32 / FIELD * scene.camera.zoom,
        centre: Vec2::new(middle.x, middle.y) * 1.06 + scene.camera.shift,
    };
    let hits = visible(&mesh, &view);
    let shadows = Shadows::cast(&mesh, scene.lamp, (shorter / 2 + 16).clamp(32, 88));
    let shader = Shader {
        person,
        scene,
        rotation,
        paint: FacePaint::new(person, scene, 1.0 / view.scale),
        shadows,
        half: (scene.lamp + Vec3::Z).normalize_or(Vec3::Z),
    };
    let mut pixels = Vec::with_capacity(rows * cols);
    for row in 0..rows {
        for col in 0..cols {
            let at = SAMPLES * (row * view.cols + col);
            let place =
                Vec2::new(col as f32 - 0.5 * cols as f32, row as f32 - 0.5 * rows as f32) / shorter as f32;
            let block = [hits[at], hits[at + 1], hits[at + view.cols], hits[at + view.cols + 1]];
            pixels.push(pixel(&shader, &mesh, &block, place));
        }
    }
    Light { rows, cols, pixels }
}

/// The light of a pixel from its two by two samples; `place` is where the background is looked up.
fn pixel(shader: &Shader, mesh: &Mesh, block: &[Hit; SAMPLES * SAMPLES], place: Vec2) -> Vec3 {
    let material = |hit: &Hit| mesh.triangles.get(hit.triangle as usize).map(|t| t.material);
    let first = material(&block[0]);
    if block[1..].iter().all(|hit| material(hit) == first) {
        // Within one material the paint's own soft edges suffice: a diagonal stands for all four.
        return match first {
            None => backdrop(shader.scene, place),
            Some(_) => 0.5 * (shader.light(mesh, &block[0]) + shader.light(mesh, &block[3])),
        };
    }
    let light = |hit: &Hit| {
        if hit.triangle == Hit::NONE { backdrop(shader.scene, place) } else { shader.light(mesh, hit) }
    };
    0.25 * block.iter().map(light).sum::<Vec3>()
}

fn build(person: &Person, scene: &Scene, detail: usize, rotation: Quat) -> Mesh {
    let mut mesh = Mesh::default();
    let to_world = Affine3A::from_quat(rotation);
    let skull = Skull::new(&person.head);
    head::add(&mut mesh, person, &skull, &scene.expression, detail, &to_world);
    props::add_ears(&mut mesh, person, &skull, &to_world);
    props::add_body(&mut mesh, person, &Affine3A::from_quat(scene.body_rotation()));
    if let Some(hair) = &person.hair {
        hair::add(&mut mesh, &skull, hair, Material::Hair, detail, &to_world);
    }
    let sunglasses = matches!(scene.occluder, Some(Occluder::Sunglasses { .. }));
    if let Some(glasses) = person.glasses.as_ref().filter(|_| !sunglasses) {
        props::add_glasses(&mut mesh, person, &skull, glasses, false, &to_world);
    }
    props::add_occluder(&mut mesh, person, &skull, scene, detail, &to_world);
    mesh
}

/// The background's light at `place`, in picture heights from the middle.
fn backdrop(scene: &Scene, place: Vec2) -> Vec3 {
    let background = &scene.background;
    let mut colour = background.top.lerp(background.bottom, place.y + 0.5);
    for blob in &background.blobs {
        colour = colour.lerp(
            blob.colour,
            0.8 * smooth(blob.radius * 1.2, blob.radius * 0.7, place.distance(blob.centre)),
        );
    }
    let grain = noise(place.x * 14.0, place.y * 14.0, background.salt) - 0.5;
    colour * (1.0 + background.texture * grain) * (scene.sky + 0.4 * scene.lamp_colour)
}

struct Shader<'a> {
    person: &'a Person,
    scene: &'a Scene,
    rotation: Quat,
    paint: FacePaint<'a>,
    shadows: Shadows,
    /// Between the lamp and the viewer.
    half: Vec3,
}

impl Shader<'_> {
    /// The light that a sample gets.
    fn light(&self, mesh: &Mesh, hit: &Hit) -> Vec3 {
        let triangle = mesh.triangles[hit.triangle as usize];
        let [a, b, c] = triangle.corners.map(|corner| mesh.vertices[corner as usize]);
        let first = 1.0 - hit.second - hit.third;
        let blend = |of: fn(&Vertex) -> Vec3| of(&a) * first + of(&b) * hit.second + of(&c) * hit.third;
        let (place, local) = (blend(|v| v.world), blend(|v| v.local));
        let mut normal = blend(|v| v.normal).normalize_or(Vec3::Z);
        // The inside of an open shell is lit as seen, and gets less light.
        let inside = triangle.open && normal.z < 0.0;
        if inside {
            normal = -normal;
        }
        let mut surface = self.surface(triangle.material, local);
        if inside {
            surface.open *= 0.45;
        }
        if surface.bend != Vec3::ZERO {
            normal = (normal + self.rotation * surface.bend).normalize_or(normal);
        }
        let scene = self.scene;
        let facing = normal.dot(scene.lamp);
        let reach = if facing < -0.25 { 0.0 } else { self.shadows.light(place, normal) };
        // Light that enters skin comes out around the terminator, red most of all.
        let wrap = Vec3::new(0.22, 0.09, 0.05) * surface.soft;
        let diffuse = ((Vec3::splat(facing) + wrap) / (Vec3::ONE + wrap)).max(Vec3::ZERO);
        let reached = Vec3::splat(reach) + wrap * (1.0 - reach) * 0.6;
        let bounce = surface.albedo * scene.lamp_colour * (0.12 * surface.soft);
        let around = (scene.ground.lerp(scene.sky, 0.5 + 0.5 * normal.y) + bounce) * surface.open;
        let key = scene.lamp_colour * diffuse * reached * lerp(0.6, 1.0, surface.open);
        let highlight = match triangle.material {
            Material::Hair => self.strand_highlight(normal, local),
            _ => surface.gloss * normal.dot(self.half).max(0.0).powi(24),
        };
        // Towards grazing angles every surface mirrors the surroundings.
        let rim = (1.0 - normal.z.clamp(0.0, 1.0)).powi(4) * (0.04 + 0.25 * surface.gloss);
        surface.albedo * (key + around)
            + scene.lamp_colour * (highlight * reach)
            + around * rim
            + (scene.lamp_colour + scene.sky) * (0.6 * surface.glint)
    }

    /// Highlight of hair: brightest where the strands run across the half vector (Kajiya and Kay, 1989).
    fn strand_highlight(&self, normal: Vec3, local: Vec3) -> f32 {
        let down = -(self.rotation * Vec3::Y);
        let strand = (down - normal * normal.dot(down)).normalize_or(down);
        let along = strand.dot(self.half) + 0.25 * (noise(local.x * 22.0, local.y, 5) - 0.5);
        let across = (1.0 - along * along).max(0.0);
        0.085 * across.powi(12) * normal.dot(self.scene.lamp).max(0.0)
    }

    fn surface(&self, material: Material, local: Vec3) -> Surface {
        let (person, scene) = (self.person, self.scene);
        match material {
            Material::Face => {
                let mut surface = self.paint.at(local);
                // Little of the sky reaches the underside of the jaw.
                surface.open = lerp(0.45, 1.0, smooth(-0.1, 0.45, local.z + 0.3 * (local.y + 1.0)));
                surface
            }
            Material::Skin => {
                let shade = lerp(0.55, 1.0, smooth(-0.55, -1.0, local.y).max(smooth(-0.5, -0.4, local.y)));
                let tint = Vec3::new(1.0, 0.93, 0.92);
                Surface { gloss: 0.06, soft: 1.0, open: shade, ..Surface::matt(person.skin.colour * tint) }
            }
            Material::Hair => {
                let (colour, frequency) =
                    person.hair.as_ref().map_or((Vec3::ZERO, 1.0), |h| (h.colour, h.frequency));
                let strand = noise(local.x * (14.0 + frequency), local.y * 2.2, 17);
                let fine = noise(local.x * 46.0, local.y * 5.0, 23);
                let colour = colour * (0.45 + 0.7 * strand + 0.4 * fine);
                Surface { open: 0.85, ..Surface::matt(colour) }
            }
            Material::Cloth => Surface::matt(stripes(scene.clothes, scene.clothes_stripes, local.x)),
            Material::Frame => {
                let colour = person.glasses.as_ref().map_or(Vec3::splat(0.015), |g| g.colour);
                Surface { gloss: 0.35, ..Surface::matt(colour) }
            }
            Material::Lens => Surface { gloss: 0.06, ..Surface::matt(Vec3::splat(0.012)) },
            Material::Wrap => match scene.occluder {
                Some(
                    Occluder::Cloth { colour, stripes: count, .. }
                    | Occluder::Hat { colour, stripes: count, .. },
                ) => {
                    let weave = 0.85 + 0.3 * noise(local.x * 30.0, local.y * 30.0, 29);
                    Surface::matt(stripes(colour, count, local.y) * weave)
                }
                _ => Surface::matt(Vec3::splat(0.2)),
            },
        }
    }
}

/// `colour`, or `colour` and its opposite in `count` stripes a unit.
fn stripes(colour: Vec3, count: f32, at: f32) -> Vec3 {
    if count > 0.0 && (at * count).rem_euclid(1.0) < 0.4 { Vec3::splat(0.75) - colour } else { colour }
}
