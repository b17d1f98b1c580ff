//! `report.html`: what a training run did, on one page that needs nothing but itself.

mod chart;
mod faces;
mod noise;
mod points;
mod prototypes;
mod results;
mod scale;
mod sections;
mod verification;

use std::path::Path;

use maud::{DOCTYPE, Markup, PreEscaped, html};

pub use noise::{NoiseRow, NoiseSheet, OtherPrototype, Portrait};
pub use points::{EvalPoint, FaceRow, NearestPrototype, PERCENTILES, Percentiles, PrototypePoint, StepPoint};

pub use results::{CurveKind, EvaluationPage, ResultTable, RocChart};
pub use verification::{BestEvaluation, best_evaluation};

use crate::Result;
use crate::interchange::files::write_atomically;

/// Everything that a report shows. Whatever is empty is left out, and the page says so.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Report {
    /// Heading of the page.
    pub title: String,
    /// Rows of the summary table: what, and its value.
    pub facts: Vec<(String, String)>,
    /// The logged steps, in order.
    pub steps: Vec<StepPoint>,
    /// The evaluations, in order; several sets at the same step are several points.
    pub evals: Vec<EvalPoint>,
    /// What the prototypes did, a point an epoch.
    pub prototypes: Vec<PrototypePoint>,
    /// Sample faces and their nearest prototypes.
    pub faces: Vec<FaceRow>,
    /// File name of the weights of the last epoch, if they were kept.
    pub last_weights: Option<String>,
    /// File name of the weights of the [best](best_evaluation) epoch, if they were kept.
    pub best_weights: Option<String>,
    /// The resolved configuration.
    pub config_toml: String,
}

impl Report {
    /// The page: HTML with its style sheet, charts and pictures inline. It follows the light or dark preference of
    /// its reader, and has no script.
    pub fn render(&self) -> String {
        let body = html! {
            (self.tiles())
            (self.summary())
            (self.training())
            (self.verification())
            (self.prototypes())
            (self.sample_faces())
            (self.configuration())
        };
        page("Training report", &self.title, &body)
    }

    /// Writes the page to `path`: beside it first, then renamed, so that a reader never sees half a page.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) naming the file that could not be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        write_atomically(path, self.render().as_bytes())
    }

    fn summary(&self) -> Markup {
        html! {
            h2 { "Run" }
            @if self.facts.is_empty() {
                p.missing { "No facts about the run were recorded." }
            } @else {
                (fact_table(&self.facts))
            }
        }
    }

    fn configuration(&self) -> Markup {
        html! {
            h2 { "Configuration" }
            @if self.config_toml.trim().is_empty() {
                p.missing { "The configuration was not recorded." }
            } @else {
                div.card { details { summary { "config.toml, every default written out" } pre { (self.config_toml) } } }
            }
        }
    }
}

/// A table of what, and its value.
fn fact_table(facts: &[(String, String)]) -> Markup {
    html! {
        div.card {
            table.facts {
                tbody { @for (name, value) in facts { tr { th scope="row" { (name) } td { (value) } } } }
            }
        }
    }
}

/// A page of its own: HTML with the style sheet inline, and without a script.
fn page(eyebrow: &str, title: &str, body: &Markup) -> String {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) }
                // An icon of its own keeps browsers from asking a server for one.
                link rel="icon" href="data:,";
                style { (PreEscaped(include_str!("style.css"))) }
            }
            body {
                main {
                    header { p.eyebrow { (eyebrow) } h1 { (title) } }
                    (body)
                    footer { "Written by epl " (env!("CARGO_PKG_VERSION")) "." }
                }
            }
        }
    }
    .into_string()
}

#[cfg(test)]
mod tests;
