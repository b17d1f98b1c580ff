//! The sheet of sample faces and their nearest prototypes.

use std::io::Cursor;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::{ImageFormat, RgbImage};
use maud::{Markup, html};

use super::{FaceRow, NearestPrototype, Report};

impl Report {
    pub(super) fn sample_faces(&self) -> Markup {
        let right =
            self.faces.iter().filter(|row| row.nearest.first().is_some_and(|first| first.right)).count();
        html! {
            h2 { "Sample faces" }
            @if self.faces.is_empty() {
                p.missing { "No sample faces were recorded." }
            } @else {
                p.note {
                    "Each face, and the prototypes nearest to its embedding: a face of their class and the cosine, nearest first. "
                    "\u{2713} is the right class, \u{2717} a class that is nearer than the right one. The nearest is right for "
                    (right) " of " (self.faces.len()) "."
                }
                div.card { @for row in &self.faces { (face_row(row)) } }
            }
        }
    }
}

fn face_row(row: &FaceRow) -> Markup {
    html! {
        div.face-row {
            figure.face.query {
                (picture(&row.face, &row.name))
                figcaption { span.name title=(row.name) { (row.name) } }
            }
            div.nearest {
                @let own = row.nearest.iter().position(|prototype| prototype.right);
                @for (rank, prototype) in row.nearest.iter().enumerate() {
                    (nearest(prototype, own.is_none_or(|own| rank < own)))
                }
            }
        }
    }
}

/// One prototype. Another class is an error only where it is nearer than the right one.
fn nearest(prototype: &NearestPrototype, nearer_than_right: bool) -> Markup {
    let (class, mark, word) = match (prototype.right, nearer_than_right) {
        (true, _) => ("right", "\u{2713} ", "the right class"),
        (false, true) => ("wrong", "\u{2717} ", "another class, nearer than the right one"),
        (false, false) => ("other", "", "another class"),
    };
    let cosine = cosine(prototype.cosine);
    html! {
        figure class=(format!("face {class}")) {
            (picture(&prototype.exemplar, &prototype.name))
            figcaption {
                span.score title=(format!("{word}; cosine {cosine}")) { (mark) (cosine) }
                span.name title=(prototype.name) { (prototype.name) }
            }
        }
    }
}

/// A cosine to two digits.
pub(super) fn cosine(value: f64) -> String {
    if value.is_finite() {
        // Rounded before it is formatted, or -0.004 would be minus zero.
        format!("{:.2}", (value * 100.0).round() / 100.0 + 0.0).replace('-', "\u{2212}")
    } else {
        "not finite".to_owned()
    }
}

/// The picture as a PNG within the page; a picture without pixels is said to be missing.
pub(super) fn picture(image: &RgbImage, name: &str) -> Markup {
    let mut png = Cursor::new(Vec::new());
    let encoded =
        image.width() > 0 && image.height() > 0 && image.write_to(&mut png, ImageFormat::Png).is_ok();
    html! {
        @if encoded {
            img src=(format!("data:image/png;base64,{}", STANDARD.encode(png.get_ref())))
                width=(image.width()) height=(image.height()) alt=(name);
        } @else {
            span.missing { "no picture" }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_within_the_page_and_read_back() {
        let image = RgbImage::from_fn(5, 3, |x, y| image::Rgb([x as u8 * 40, y as u8 * 90, 7]));
        let html = picture(&image, "a \"quoted\" <name>").0;
        assert!(html.contains("alt=\"a &quot;quoted&quot; &lt;name&gt;\""), "{html}");
        let data = html.split("base64,").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
        let png = STANDARD.decode(data).unwrap();
        assert_eq!(image::load_from_memory(&png).unwrap().to_rgb8(), image);
    }

    #[test]
    fn an_empty_picture_is_said_to_be_missing() {
        assert!(picture(&RgbImage::new(0, 0), "x").0.contains("no picture"));
    }

    #[test]
    fn right_and_wrong_are_marked_and_counted() {
        let face = RgbImage::new(2, 2);
        let prototype = |right, cosine| NearestPrototype {
            exemplar: face.clone(),
            name: "someone".to_owned(),
            cosine,
            right,
        };
        let row = |first| FaceRow {
            face: face.clone(),
            name: "someone".to_owned(),
            nearest: vec![prototype(first, 0.714), prototype(!first, -0.1), prototype(false, f64::NAN)],
        };
        let report = Report { faces: vec![row(true), row(true), row(false)], ..Report::default() };
        let html = report.sample_faces().0;
        assert!(html.contains("The nearest is right for 2 of 3."), "{html}");
        assert_eq!(html.matches("\u{2713} ").count(), 3 + 1, "one a row, and the legend");
        assert_eq!(html.matches("\u{2717} ").count(), 1 + 1, "one mistake, and its legend");
        assert!(
            html.contains("\u{2713} 0.71")
                && html.contains("\u{2717} 0.71")
                && html.contains(">\u{2212}0.10<")
        );
        assert!(!html.contains("NaN"));
    }
}
