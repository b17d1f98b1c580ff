//! The contact sheet of samples whose labels may be wrong: each beside an example of the class that it is filed under and
//! one of the class that it looks like, so that a person can decide at a glance.

use std::path::Path;

use image::RgbImage;
use maud::{Markup, html};

use super::faces::{cosine, picture};
use super::{fact_table, page};
use crate::Result;
use crate::interchange::files::write_atomically;

/// A picture and what it is called.
#[derive(Debug, Clone, PartialEq)]
pub struct Portrait {
    /// The picture, as the network sees it.
    pub picture: RgbImage,
    /// Its path, or its file and key.
    pub name: String,
}

/// The class that a sample looks like.
#[derive(Debug, Clone, PartialEq)]
pub struct OtherPrototype {
    /// The class.
    pub class: u32,
    /// Cosine of the sample and its prototype.
    pub cosine: f64,
    /// A good example of the class; `None` where the data has no sample of it.
    pub example: Option<Portrait>,
}

/// A sample whose label may be wrong.
#[derive(Debug, Clone, PartialEq)]
pub struct NoiseRow {
    /// The sample.
    pub sample: Portrait,
    /// The class that it is filed under.
    pub label: u32,
    /// Cosine of the sample and that class's prototype.
    pub cosine: f64,
    /// A good example of that class; `None` where the sample is its only one.
    pub example: Option<Portrait>,
    /// The other class that it looks like most; `None` where there is no other.
    pub other: Option<OtherPrototype>,
}

impl NoiseRow {
    /// Whether the other class is nearer than its own.
    fn is_nearer_to_other(&self) -> bool {
        self.other.as_ref().is_some_and(|other| other.cosine > self.cosine)
    }
}

/// The contact sheet.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct NoiseSheet {
    /// Heading of the page.
    pub title: String,
    /// Rows of the summary table: what, and its value.
    pub facts: Vec<(String, String)>,
    /// The samples, the worst first.
    pub rows: Vec<NoiseRow>,
}

impl NoiseSheet {
    /// The page: HTML with its pictures inline, which needs nothing but itself.
    pub fn render(&self) -> String {
        let nearer = self.rows.iter().filter(|row| row.is_nearer_to_other()).count();
        let body = html! {
            (fact_table(&self.facts))
            h2 { "Samples that agree least with their class" }
            p.note {
                "Left the sample; then an example of the class that it is filed under, and one of the other class that it looks "
                "like most, each with the cosine of the sample and the prototype of that class. \u{2717} marks the other class "
                "where it is nearer than the own one, which it is for " (nearer) " of " (self.rows.len()) ". A sample that "
                "resembles neither may be a hard one, or show somebody who is not in the data."
            }
            @if self.rows.is_empty() {
                p.missing { "There is no sample to show." }
            } @else {
                div.card.contacts { @for (index, row) in self.rows.iter().enumerate() { (noise_row(index + 1, row)) } }
            }
        };
        page("Label noise", &self.title, &body)
    }

    /// Writes the page to `path`, so that a reader never sees half of it.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) naming the file that could not be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        write_atomically(path, self.render().as_bytes())
    }
}

fn noise_row(rank: usize, row: &NoiseRow) -> Markup {
    let nearer = row.is_nearer_to_other();
    html! {
        div.face-row {
            figure.face.query {
                (picture(&row.sample.picture, &row.sample.name))
                figcaption { span.name title=(row.sample.name) { (rank) ". " (ending(&row.sample.name)) } }
            }
            div.nearest {
                (class_figure("other", "", "filed as", row.label, row.cosine, row.example.as_ref()))
                @if let Some(other) = &row.other {
                    @let (kind, mark) = if nearer { ("wrong", "\u{2717} ") } else { ("other", "") };
                    (class_figure(kind, mark, "looks like", other.class, other.cosine, other.example.as_ref()))
                }
            }
        }
    }
}

fn class_figure(
    kind: &str,
    mark: &str,
    role: &str,
    class: u32,
    value: f64,
    example: Option<&Portrait>,
) -> Markup {
    html! {
        figure class=(format!("face labelled {kind}")) {
            @match example {
                Some(example) => (picture(&example.picture, &example.name)),
                None => span.missing { "no other sample" },
            }
            figcaption {
                span.score { (mark) (cosine(value)) }
                span.name { (role) " " (class) }
                @if let Some(example) = example { span.name title=(example.name) { (ending(&example.name)) } }
            }
        }
    }
}

/// The last two parts of a path: with one folder an identity, whose picture it is. Other names stay as they are.
fn ending(name: &str) -> &str {
    name.rmatch_indices(['/', '\\']).nth(1).map_or(name, |(at, _)| &name[at + 1..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn portrait(name: &str) -> Portrait {
        Portrait { picture: RgbImage::from_pixel(4, 4, image::Rgb([9, 9, 9])), name: name.to_owned() }
    }

    fn row(cosine: f64, other: f64) -> NoiseRow {
        NoiseRow {
            sample: portrait("data/faces/s<1>/3.png"),
            label: 12,
            cosine,
            example: Some(portrait("data/faces/s1/1.png")),
            other: Some(OtherPrototype { class: 34, cosine: other, example: Some(portrait("s7/2.png")) }),
        }
    }

    #[test]
    fn each_sample_is_beside_both_classes() {
        let sheet = NoiseSheet {
            title: "a <b>".to_owned(),
            rows: vec![row(-0.1, 0.7), row(0.2, 0.1)],
            ..NoiseSheet::default()
        };
        let html = sheet.render();
        assert_eq!(html.matches("data:image/png;base64,").count(), 2 * 3);
        assert_eq!(html.matches("filed as 12").count(), 2);
        assert_eq!(html.matches("looks like 34").count(), 2);
        assert!(html.contains("which it is for 1 of 2"), "{html}");
        assert_eq!(html.matches("\u{2717} 0.70").count(), 1, "only where the other class is nearer");
        assert!(html.contains(">\u{2212}0.10<") && html.contains("a &lt;b&gt;"), "{html}");
        assert!(html.contains("1. s&lt;1&gt;/3.png"), "{html}");
        for word in ["http:", "https:", "<script", "@import", "url("] {
            assert!(!html.contains(word), "{word}");
        }
    }

    #[test]
    fn what_is_missing_is_said() {
        let alone = NoiseRow { example: None, other: None, ..row(0.5, 0.1) };
        let html = NoiseSheet { rows: vec![alone], ..NoiseSheet::default() }.render();
        assert!(html.contains("no other sample") && !html.contains("looks like 34"), "{html}");
        assert!(NoiseSheet::default().render().contains("There is no sample to show."));
    }

    #[test]
    fn names_keep_their_last_two_parts() {
        assert_eq!(ending("a/b/c.png"), "b/c.png");
        assert_eq!(ending("a\\b\\c.png"), "b\\c.png");
        assert_eq!((ending("b/c.png"), ending("train.rec, key 7")), ("b/c.png", "train.rec, key 7"));
    }
}
