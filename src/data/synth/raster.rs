//! Which triangle each sample of the picture sees, and which places the lamp does not reach.

use super::mesh::{Material, Mesh, Triangle};
use glam::{Mat3, Vec2, Vec3};

/// A perspective view along -z, with `rows` by `cols` samples.
pub(super) struct View {
    pub rows: usize,
    pub cols: usize,
    /// Samples to a unit at z = 0.
    pub scale: f32,
    /// Where the middle of the picture looks, at z = 0.
    pub centre: Vec2,
}

impl View {
    /// Distance of the eye from the origin.
    const DISTANCE: f32 = 7.0;

    /// Column, row (downwards) and z of a point.
    pub fn project(&self, p: Vec3) -> Vec3 {
        let near = Self::DISTANCE / (Self::DISTANCE - p.z);
        let x = self.cols as f32 * 0.5 + (p.x * near - self.centre.x) * self.scale;
        let y = self.rows as f32 * 0.5 - (p.y * near - self.centre.y) * self.scale;
        Vec3::new(x, y, p.z)
    }
}

/// What a sample sees: a triangle (`u32::MAX` for the background) and the weights of its last two corners.
#[derive(Clone, Copy)]
pub(super) struct Hit {
    depth: f32,
    pub triangle: u32,
    pub second: f32,
    pub third: f32,
}

impl Hit {
    /// The triangle's number where nothing is in front of the background.
    pub const NONE: u32 = u32::MAX;
}

/// Calls `plot` for every sample whose centre lies in the projected triangle: index, z, and the last two corners' weights.
fn scan(corners: [Vec3; 3], rows: usize, cols: usize, mut plot: impl FnMut(usize, f32, f32, f32)) {
    let [a, b, c] = corners;
    let (ab, ac) = (b - a, c - a);
    let area = ab.x * ac.y - ab.y * ac.x;
    if area.abs() < 1e-7 {
        return;
    }
    let low = a.min(b).min(c);
    let high = a.max(b).max(c);
    // `as` rounds down and saturates, so that what lies outside the picture becomes an empty range.
    let (first_row, end_row) = ((low.y + 0.5) as usize, ((high.y + 0.5) as usize).min(rows));
    let (first_col, end_col) = ((low.x + 0.5) as usize, ((high.x + 0.5) as usize).min(cols));
    if first_row >= end_row || first_col >= end_col {
        return;
    }
    let inverse = 1.0 / area;
    let (second_step, third_step) = (ac.y * inverse, -ab.y * inverse);
    for row in first_row..end_row {
        let dy = row as f32 + 0.5 - a.y;
        for col in first_col..end_col {
            let dx = col as f32 + 0.5 - a.x;
            let second = dx * second_step - dy * ac.x * inverse;
            let third = dx * third_step + dy * ab.x * inverse;
            if second >= 0.0 && third >= 0.0 && second + third <= 1.0 {
                plot(row * cols + col, a.z + second * ab.z + third * ac.z, second, third);
            }
        }
    }
}

/// The nearest triangle at every sample of `view`, row-major.
pub(super) fn visible(mesh: &Mesh, view: &View) -> Vec<Hit> {
    let nothing = Hit { depth: f32::NEG_INFINITY, triangle: Hit::NONE, second: 0.0, third: 0.0 };
    let mut hits = vec![nothing; view.rows * view.cols];
    let projected: Vec<Vec3> = mesh.vertices.iter().map(|v| view.project(v.world)).collect();
    for (number, triangle) in mesh.triangles.iter().enumerate() {
        let corners = triangle.corners.map(|corner| projected[corner as usize]);
        let [a, b, c] = corners;
        // Seen from outside the corners turn anticlockwise; rows count downwards.
        let back = (b.x - a.x) * (c.y - a.y) - (b.y - a.y) * (c.x - a.x) > 0.0;
        if back && !triangle.open {
            continue;
        }
        scan(corners, view.rows, view.cols, |at, depth, second, third| {
            if depth > hits[at].depth {
                hits[at] = Hit { depth, triangle: number as u32, second, third };
            }
        });
    }
    hits
}

/// Depths as the lamp sees them: a shadow map with an orthographic projection.
pub(super) struct Shadows {
    depths: Vec<f32>,
    side: usize,
    /// Rows are the map's axes and the direction to the lamp.
    axes: Mat3,
}

impl Shadows {
    /// Half the side of the square that the map covers, in head units.
    const REACH: f32 = 1.7;
    /// How far behind the map's surface a place must lie to be in shadow; covers the map's coarseness.
    const BIAS: f32 = 0.06;

    /// The map of `mesh` for a lamp in direction `lamp` (a unit vector), with `side` by `side` texels.
    pub fn cast(mesh: &Mesh, lamp: Vec3, side: usize) -> Self {
        let right = lamp.any_orthonormal_vector();
        let axes = Mat3::from_cols(right, lamp.cross(right), lamp).transpose();
        let mut map = Self { depths: vec![f32::NEG_INFINITY; side * side], side, axes };
        let projected: Vec<Vec3> = mesh.vertices.iter().map(|v| map.project(v.world)).collect();
        let casts = |t: &&Triangle| !matches!(t.material, Material::Frame | Material::Cloth);
        for triangle in mesh.triangles.iter().filter(casts) {
            let depths = &mut map.depths;
            scan(triangle.corners.map(|corner| projected[corner as usize]), side, side, |at, depth, _, _| {
                depths[at] = depths[at].max(depth);
            });
        }
        map
    }

    fn project(&self, p: Vec3) -> Vec3 {
        let p = self.axes * p;
        let texels = self.side as f32 / (2.0 * Self::REACH);
        Vec3::new((p.x + Self::REACH) * texels, (p.y + Self::REACH) * texels, p.z)
    }

    /// Share of the lamp's light that reaches `place`, from four texels around it.
    pub fn light(&self, place: Vec3, normal: Vec3) -> f32 {
        // Starting a little outside the surface keeps it from shading itself.
        let p = self.project(place + normal * 0.035);
        let (x, y) = (p.x - 0.5, p.y - 0.5);
        if x < 0.0 || y < 0.0 || x >= (self.side - 1) as f32 || y >= (self.side - 1) as f32 {
            return 1.0;
        }
        let (col, row) = (x as usize, y as usize);
        let (fx, fy) = (x - col as f32, y - row as f32);
        let clear = |row: usize, col: usize| {
            let behind = self.depths[row * self.side + col] - p.z - Self::BIAS;
            1.0 - (behind * 20.0).clamp(0.0, 1.0)
        };
        let near = clear(row, col) * (1.0 - fx) + clear(row, col + 1) * fx;
        let far = clear(row + 1, col) * (1.0 - fx) + clear(row + 1, col + 1) * fx;
        near * (1.0 - fy) + far * fy
    }
}
