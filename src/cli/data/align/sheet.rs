//! The picture of an alignment: originals with their landmarks beside the aligned faces with the target points.

use image::imageops::{self, FilterType};
use image::{Rgb, RgbImage};

use crate::data::Image;
use crate::data::align::{Points, target};

/// Side of a cell in pixels.
const CELL: u32 = 224;
/// Pixels between an original and its aligned face.
const GAP: u32 = 4;
/// Pixels between faces, and around all of them: so many more that the two pictures of a face are seen as a pair.
const BETWEEN: u32 = 28;
/// Width of the frame of an odd face.
const FRAME: u32 = 4;
/// Width of the two pictures of a face.
const PAIR: u32 = 2 * CELL + GAP;
/// Faces in a row, each with two cells.
const COLUMNS: u32 = 4;
/// The colours of the landmarks in their order, so that exchanged ones are seen.
const COLOURS: [Rgb<u8>; 5] =
    [Rgb([230, 60, 60]), Rgb([60, 120, 255]), Rgb([80, 220, 80]), Rgb([255, 170, 40]), Rgb([200, 90, 255])];
const BACKGROUND: Rgb<u8> = Rgb([255; 3]);
/// The frame of a face whose landmarks look mirrored.
const ODD: Rgb<u8> = Rgb([230, 0, 0]);

/// A face on the sheet.
pub struct Face {
    /// The original.
    pub image: Image,
    /// Its landmarks.
    pub points: Points,
    /// The aligned face.
    pub aligned: Image,
    /// Whether the landmarks look like those of a mirrored face.
    pub odd: bool,
}

/// Draws `faces`, four in a row; a single empty row where there is none.
pub fn draw(faces: &[Face]) -> Image {
    let columns = COLUMNS.min(faces.len().max(1) as u32);
    let rows = (faces.len() as u32).div_ceil(COLUMNS).max(1);
    let (width, height) = (columns * (PAIR + BETWEEN) + BETWEEN, rows * (CELL + BETWEEN) + BETWEEN);
    let mut sheet = RgbImage::from_pixel(width, height, BACKGROUND);
    for (at, face) in (0..).zip(faces) {
        let (row, column) = (at / COLUMNS, at % COLUMNS);
        let (left, top) = (BETWEEN + column * (PAIR + BETWEEN), BETWEEN + row * (CELL + BETWEEN));
        if face.odd {
            fill(&mut sheet, [left - FRAME, top - FRAME], [PAIR + 2 * FRAME, CELL + 2 * FRAME], ODD);
        }
        let goal = target(face.aligned.height);
        place(&mut sheet, &face.image, &face.points, [left, top]);
        place(&mut sheet, &face.aligned, &goal, [left + CELL + GAP, top]);
    }
    let (width, height) = (width as usize, height as usize);
    Image { rgb: sheet.into_raw(), height, width }
}

/// Puts `image`, scaled to the cell at `[left, top]`, with `points` on it.
fn place(sheet: &mut RgbImage, image: &Image, points: &Points, [left, top]: [u32; 2]) {
    let scale = f64::from(CELL) / image.height.max(image.width).max(1) as f64;
    let scaled = |side: usize| ((side as f64 * scale).round() as u32).clamp(1, CELL);
    let (width, height) = (scaled(image.width), scaled(image.height));
    let mut picture = imageops::resize(&RgbImage::from(image.clone()), width, height, FilterType::Triangle);
    for (point, colour) in points.iter().zip(COLOURS) {
        // The centre of the first pixel is (0, 0).
        let [x, y] = point.map(|coordinate| (coordinate + 0.5) * scale - 0.5);
        dot(&mut picture, x, y, colour);
    }
    fill(sheet, [left, top], [CELL, CELL], BACKGROUND);
    let middle = |start: u32, side: u32| i64::from(start + (CELL - side) / 2);
    imageops::replace(sheet, &picture, middle(left, width), middle(top, height));
}

fn fill(sheet: &mut RgbImage, [left, top]: [u32; 2], [width, height]: [u32; 2], colour: Rgb<u8>) {
    let (right, bottom) = ((left + width).min(sheet.width()), (top + height).min(sheet.height()));
    (top..bottom).for_each(|y| (left..right).for_each(|x| sheet.put_pixel(x, y, colour)));
}

/// A dot of three pixels with a dark edge, as far as it is on the picture.
fn dot(picture: &mut RgbImage, x: f64, y: f64, colour: Rgb<u8>) {
    let reach = 5;
    if !(-10.0..1e5).contains(&x) || !(-10.0..1e5).contains(&y) {
        return;
    }
    let (middle_x, middle_y) = (x.round() as i64, y.round() as i64);
    for dy in -reach..=reach {
        for dx in -reach..=reach {
            let square = dx * dx + dy * dy;
            let colour = if square <= 10 { colour } else { Rgb([0; 3]) };
            let (Ok(x), Ok(y)) = (u32::try_from(middle_x + dx), u32::try_from(middle_y + dy)) else {
                continue;
            };
            if square <= 18 && x < picture.width() && y < picture.height() {
                picture.put_pixel(x, y, colour);
            }
        }
    }
}
