//! Triangles of the scene, made of bent grids and ellipsoids.

use glam::{Affine3A, Vec3};
use std::f32::consts::{PI, TAU};

/// What a triangle is made of; the paint depends on it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Material {
    /// The head, whose paint is the face.
    Face,
    /// Ears, neck and hands.
    Skin,
    Hair,
    /// What the shoulders wear.
    Cloth,
    /// Frames of glasses.
    Frame,
    /// Lenses of sunglasses.
    Lens,
    /// A scarf, a mask or a hat.
    Wrap,
}

#[derive(Clone, Copy)]
pub(super) struct Vertex {
    pub world: Vec3,
    /// Unit outward normal in the world.
    pub normal: Vec3,
    /// Where paint is looked up: for [`Material::Face`] the position in head units.
    pub local: Vec3,
}

#[derive(Clone, Copy)]
pub(super) struct Triangle {
    pub corners: [u32; 3],
    pub material: Material,
    /// Whether the inside can be seen, and so must be drawn.
    pub open: bool,
}

#[derive(Default)]
pub(super) struct Mesh {
    pub vertices: Vec<Vertex>,
    pub triangles: Vec<Triangle>,
}

/// A grid of vertices: columns run to the right and rows run up as seen from outside.
pub(super) struct Grid {
    pub rows: usize,
    pub cols: usize,
    /// Whether the last column is joined to the first.
    pub wraps: bool,
    /// Whether the inside can be seen.
    pub open: bool,
    pub material: Material,
}

impl Mesh {
    /// Adds a grid. `at(row, col)` gives the position, in the frame that `to_world` starts from, and the paint's position.
    pub fn add_grid(
        &mut self,
        grid: &Grid,
        to_world: &Affine3A,
        mut at: impl FnMut(usize, usize) -> (Vec3, Vec3),
    ) {
        let Grid { rows, cols, wraps, open, material } = *grid;
        let first = self.vertices.len();
        self.vertices.reserve(rows * cols);
        for row in 0..rows {
            for col in 0..cols {
                let (position, local) = at(row, col);
                let world = to_world.transform_point3(position);
                self.vertices.push(Vertex { world, normal: Vec3::ZERO, local });
            }
        }
        let added = &mut self.vertices[first..];
        for row in 0..rows {
            for col in 0..cols {
                let (left, right) = match wraps {
                    true => ((col + cols - 1) % cols, (col + 1) % cols),
                    false => (col.saturating_sub(1), (col + 1).min(cols - 1)),
                };
                let (below, above) = (row.saturating_sub(1), (row + 1).min(rows - 1));
                // At a pole a row collapses to a point; the neighbouring row still turns around it.
                let level = if row == 0 {
                    above
                } else if row + 1 == rows {
                    below
                } else {
                    row
                };
                let across = added[level * cols + right].world - added[level * cols + left].world;
                let up = added[above * cols + col].world - added[below * cols + col].world;
                added[row * cols + col].normal = across.cross(up).normalize_or(Vec3::Z);
            }
        }
        let last = if wraps { cols } else { cols.saturating_sub(1) };
        let index = |row: usize, col: usize| (first + row * cols + col % cols) as u32;
        for row in 0..rows.saturating_sub(1) {
            for col in 0..last {
                let (a, b) = (index(row, col), index(row, col + 1));
                let (c, d) = (index(row + 1, col + 1), index(row + 1, col));
                self.triangles.push(Triangle { corners: [a, b, c], material, open });
                self.triangles.push(Triangle { corners: [a, c, d], material, open });
            }
        }
    }

    /// Adds an ellipsoid whose paint's position is its own position before `to_world`.
    pub fn add_ellipsoid(&mut self, radii: Vec3, segments: usize, material: Material, to_world: &Affine3A) {
        let grid = Grid { rows: segments / 2 + 2, cols: segments, wraps: true, open: false, material };
        let rows = grid.rows;
        self.add_grid(&grid, to_world, |row, col| {
            let (sin_up, cos_up) = (PI * (row as f32 / (rows - 1) as f32 - 0.5)).sin_cos();
            let (sin, cos) = (TAU * col as f32 / segments as f32).sin_cos();
            let position = radii * Vec3::new(cos_up * sin, sin_up, cos_up * cos);
            (position, position)
        });
    }
}
