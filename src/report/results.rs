//! The page of an evaluation: what was measured, as tables and ROC curves.

use std::path::Path;

use maud::{Markup, html};

use super::chart::{Axis, Chart, Series, Width};
use super::scale::Spacing;
use super::{fact_table, page};
use crate::Result;
use crate::interchange::files::write_atomically;

/// A table of results.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ResultTable {
    /// Heading.
    pub title: String,
    /// How to read it; may be empty.
    pub reading: String,
    /// Titles of the columns, the first of which names the row.
    pub columns: Vec<String>,
    /// Cells.
    pub rows: Vec<Vec<String>>,
}

/// What the curves of a chart are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CurveKind {
    /// Receiver operating characteristic: FAR and TAR.
    #[default]
    Roc,
    /// Identification in a gallery that need not have the person: FPIR and TPIR.
    Identification,
    /// Cumulative match characteristic: ranks from 1, and the share of searches that succeed at them.
    Cmc,
}

/// Curves of rates in one chart, ROC curves unless `kind` says otherwise.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RocChart {
    /// Heading.
    pub title: String,
    /// Names, and points (FAR, TAR) in ascending order; fractions, and for a CMC the rank in place of the FAR.
    pub curves: Vec<(String, Vec<(f64, f64)>)>,
    /// What they are.
    pub kind: CurveKind,
}

/// Results of an evaluation protocol.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct EvaluationPage {
    /// The protocol.
    pub protocol: String,
    /// Heading of the page.
    pub title: String,
    /// Rows of the summary: what, and its value.
    pub facts: Vec<(String, String)>,
    /// Tables, in order.
    pub tables: Vec<ResultTable>,
    /// Charts, in order.
    pub charts: Vec<RocChart>,
}

impl EvaluationPage {
    /// The page: HTML with its style sheet and charts inline. It has no script and needs no network.
    pub fn render(&self) -> String {
        let charts: Vec<Chart> =
            self.charts.iter().filter(|chart| !chart.curves.is_empty()).map(roc_chart).collect();
        let width = if charts.len() > 1 { Width::Half } else { Width::Full };
        let only_roc = self.charts.iter().all(|chart| chart.kind == CurveKind::Roc);
        let heading = if only_roc { "Receiver operating characteristic" } else { "Curves" };
        let body = html! {
            h2 { "Evaluation" }
            (fact_table(&self.facts))
            h2 { "Results" }
            @for table in &self.tables { (result_table(table)) }
            h2 { (heading) }
            @if charts.is_empty() { p.missing { "There are no curves." } }
            div.pair[charts.len() > 1] {
                @for chart in &charts { div.card { h3 { (chart.title) } (chart.render(width)) } }
            }
        };
        page(&self.protocol, &self.title, &body)
    }

    /// Writes the page to `path`, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) naming the file that could not be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        write_atomically(path, self.render().as_bytes())
    }
}

fn result_table(table: &ResultTable) -> Markup {
    html! {
        div.card {
            h3 { (table.title) }
            @if !table.reading.is_empty() { p.reading { (table.reading) } }
            div.scroll {
                table.figures {
                    thead { tr { @for column in &table.columns { th scope="col" { (column) } } } }
                    tbody {
                        @for row in &table.rows {
                            tr {
                                @for (index, cell) in row.iter().enumerate() {
                                    @if index == 0 { th scope="row" { (cell) } } @else { td { (cell) } }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn roc_chart(roc: &RocChart) -> Chart {
    let rates = roc.curves.iter().flat_map(|(_, points)| points.iter().map(|point| point.0));
    let smallest = rates.filter(|far| *far > 0.0).fold(0.1, f64::min);
    // The decade below the smallest rate, which is where a rate of 0 goes; at most nine decades are shown.
    let low = 10_f64.powf(smallest.max(1e-9).log10().floor());
    let ranks = roc.curves.iter().flat_map(|(_, points)| points.last()).map(|point| point.0);
    let (low, high, x, y) = match roc.kind {
        CurveKind::Roc => (low, 1.0, "FAR", "TAR, %"),
        CurveKind::Identification => (low, 1.0, "FPIR", "TPIR, %"),
        CurveKind::Cmc => (1.0, ranks.fold(10.0, f64::max), "rank", "searches that succeed, %"),
    };
    let series = roc.curves.iter().enumerate().map(|(colour, (name, points))| {
        let points = points.iter().map(|&(far, tar)| (far.max(low), 100.0 * tar)).collect();
        Series { stepped: true, ..Series::line(name.clone(), colour, points) }
    });
    Chart {
        title: roc.title.clone(),
        x: Axis { spacing: Spacing::Log, ends: Some((low, high)), ..Axis::linear(x) },
        y: Axis::linear(y).possible(0.0, 100.0),
        height: 340.0,
        bands: Vec::new(),
        marks: Vec::new(),
        series: series.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_its_tables_and_curves_and_needs_nothing_else() {
        let curve = vec![(0.0, 0.25), (2e-5, 0.5), (1.0, 1.0)];
        let mut page = EvaluationPage {
            protocol: "All pairs".into(),
            title: "faces <1>".into(),
            facts: vec![("weights".into(), "w & v".into())],
            tables: vec![ResultTable {
                title: "Rates".into(),
                reading: "Higher is better.".into(),
                columns: vec!["FAR".into(), "TAR".into()],
                rows: vec![vec!["1e-6".into(), "12.5 %".into()]],
            }],
            charts: vec![RocChart {
                title: "All".into(),
                curves: vec![("all".into(), curve)],
                ..RocChart::default()
            }],
        };
        let html = page.render();
        for part in [
            "faces &lt;1&gt;",
            "w &amp; v",
            "<th scope=\"row\">1e-6</th><td>12.5 %</td>",
            "<svg",
            "Higher is better.",
        ] {
            assert!(html.contains(part), "{part}: {html}");
        }
        assert!(!html.contains("http://") && !html.contains("https://") && !html.contains("<script"));
        assert!(!html.contains("NaN"));
        let chart = roc_chart(&page.charts[0]);
        assert_eq!((chart.x.ends, chart.series[0].points[0]), (Some((1e-5, 1.0)), (1e-5, 25.0)));
        assert!(html.contains("Receiver operating characteristic"));
        let cmc = RocChart {
            title: "CMC".into(),
            curves: vec![("all".into(), vec![(1.0, 0.5), (2.0, 0.75), (2000.0, 1.0)])],
            kind: CurveKind::Cmc,
        };
        let chart = roc_chart(&cmc);
        assert_eq!(
            (chart.x.ends, chart.x.title, chart.series[0].points[1]),
            (Some((1.0, 2000.0)), "rank", (2.0, 75.0))
        );
        let identification = RocChart { kind: CurveKind::Identification, ..page.charts[0].clone() };
        assert_eq!(roc_chart(&identification).y.title, "TPIR, %");
        page.charts = vec![cmc];
        assert!(page.render().contains("<h2>Curves</h2>"));
        page.charts.clear();
        assert!(page.render().contains("There are no curves."));
    }
}
