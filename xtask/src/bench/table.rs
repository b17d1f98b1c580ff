//! The results, as a table of ratios and as JSON.

use std::fmt::{self, Display};

use anyhow::Result;
use serde_json::{Value, json};

use super::items::Item;
use super::side::{Measured, Side};

/// What the sides needed for an item.
pub struct Row {
    name: String,
    flops: f64,
    sides: Vec<std::result::Result<Measured, String>>,
}

impl Row {
    /// Whether side `index` can still be asked.
    pub fn is_open(&self, index: usize) -> bool {
        self.sides.get(index).is_some_and(std::result::Result::is_ok)
    }

    /// Enters what side `index` answered; an error stays.
    pub fn enter(&mut self, index: usize, answer: Result<Measured>) {
        let Some(entry) = self.sides.get_mut(index) else { return };
        match (entry.as_mut(), answer) {
            (Ok(all), Ok(more)) => {
                all.seconds.extend(more.seconds);
                all.kernels = more.kernels.or(all.kernels);
                all.bytes = more.bytes.or(all.bytes);
            }
            (Ok(_), Err(error)) => *entry = Err(format!("{error:#}")),
            (Err(_), _) => {}
        }
    }
}

/// All results.
pub struct Results {
    sides: Vec<(String, Value)>,
    rows: Vec<Row>,
}

impl Results {
    /// Of these sides, the first of which is ours.
    pub fn new(sides: &[Side]) -> Self {
        Self {
            sides: sides.iter().map(|side| (side.name().to_owned(), side.hello().clone())).collect(),
            rows: Vec::new(),
        }
    }

    /// An empty row for `item`.
    pub fn row(&self, item: &Item) -> Row {
        Row {
            name: item.name.clone(),
            flops: item.flops,
            sides: vec![Ok(Measured::default()); self.sides.len()],
        }
    }

    /// Adds a row.
    pub fn push(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// Everything, for scripts.
    pub fn to_json(&self, commit: Option<&str>) -> String {
        let side = |(name, hello): &(String, Value)| json!({"name": name, "hello": hello});
        let row = |row: &Row| {
            let answers = row.sides.iter().zip(&self.sides).map(|(answer, (name, _))| match answer {
                Ok(found) => json!({
                    "side": name, "seconds": found.seconds, "kernels": found.kernels, "bytes": found.bytes,
                }),
                Err(error) => json!({"side": name, "error": error}),
            });
            json!({"item": row.name, "flops": row.flops, "sides": answers.collect::<Vec<_>>()})
        };
        let all = json!({
            "commit": commit,
            "sides": self.sides.iter().map(side).collect::<Vec<_>>(),
            "items": self.rows.iter().map(row).collect::<Vec<_>>(),
        });
        format!("{all:#}\n")
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Half the distance between the quartiles, as a share of the median.
fn spread(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |share: f64| sorted.get(((sorted.len() - 1) as f64 * share).round() as usize).copied();
    match (at(0.25), at(0.75)) {
        (Some(low), Some(high)) => (high - low) / 2.0 / median(values),
        _ => f64::NAN,
    }
}

/// Milliseconds to three digits.
fn milliseconds(seconds: f64) -> String {
    let ms = seconds * 1e3;
    let digits = if ms < 10.0 { 2 } else { usize::from(ms < 100.0) };
    format!("{ms:.digits$}")
}

impl Display for Results {
    /// A table of Markdown, which can be read as it is. The ratio is the peer's time over ours: above 1, ours is faster.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ours = self.sides.first().map_or("", |(name, _)| name.as_str());
        let peers = self.sides.get(1..).unwrap_or_default();
        write!(f, "| item | {ours}, ms | spread | GFLOP/s | outside kernels |")?;
        peers.iter().try_for_each(|(name, _)| write!(f, " {name}, ms | ratio |"))?;
        write!(f, "\n|---|---|---|---|---|")?;
        peers.iter().try_for_each(|_| write!(f, "---|---|"))?;
        let mut errors = Vec::new();
        for row in &self.rows {
            write!(f, "\n| {} |", row.name)?;
            let mut first = None;
            for (index, answer) in row.sides.iter().enumerate() {
                match answer {
                    Ok(found) if index == 0 => {
                        let seconds = median(&found.seconds);
                        first = Some(seconds);
                        let rate = match row.flops {
                            0.0 => "-".into(),
                            flops => format!("{:.1}", flops / seconds / 1e9),
                        };
                        let outside = found.kernels.map_or("-".into(), |kernels| {
                            format!("{:.0} %", (1.0 - kernels / seconds).max(0.0) * 100.0)
                        });
                        let spread = spread(&found.seconds) * 100.0;
                        write!(f, " {} | {spread:.0} % | {rate} | {outside} |", milliseconds(seconds))?;
                    }
                    Ok(found) => {
                        let seconds = median(&found.seconds);
                        let ratio = first.map_or("-".into(), |first| format!("{:.2}", seconds / first));
                        write!(f, " {} | {ratio} |", milliseconds(seconds))?;
                    }
                    Err(error) => {
                        let name = self.sides.get(index).map_or("", |(name, _)| name.as_str());
                        errors.push(format!("{}, {name}: {error}", row.name));
                        let cells = if index == 0 { " - | - | - | - |" } else { " - | - |" };
                        write!(f, "{cells}")?;
                    }
                }
            }
        }
        errors.iter().try_for_each(|error| write!(f, "\n\nnot measured: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(seconds: &[f64], kernels: Option<f64>) -> Result<Measured> {
        Ok(Measured { seconds: seconds.to_vec(), kernels, bytes: None })
    }

    #[test]
    fn ratios_are_of_medians_and_faults_are_told() {
        let sides = ["epl", "burn", "pytorch"].map(|name| (name.to_owned(), json!({"version": "1"})));
        let mut results = Results { sides: sides.to_vec(), rows: Vec::new() };
        let empty = || Ok(Measured::default());
        let mut row = Row { name: "product".into(), flops: 2e9, sides: vec![empty(), empty(), empty()] };
        row.enter(0, found(&[0.02, 0.01], Some(0.009)));
        row.enter(0, found(&[0.01], None));
        row.enter(1, found(&[0.05], None));
        row.enter(2, Err(anyhow::anyhow!("out of memory")));
        // An error stays, whatever comes after it.
        row.enter(2, found(&[0.001], None));
        assert!(row.is_open(1) && !row.is_open(2));
        results.push(row);
        let text = results.to_string();
        assert!(text.contains("| product | 10.0 | 50 % | 200.0 | 10 % | 50.0 | 5.00 | - | - |"), "{text}");
        assert!(text.contains("not measured: product, pytorch: out of memory"), "{text}");
        let json: Value = serde_json::from_str(&results.to_json(Some("abc"))).unwrap_or_default();
        assert_eq!(json["items"][0]["sides"][2]["error"], "out of memory");
        assert_eq!(json["items"][0]["sides"][0]["seconds"].as_array().map(Vec::len), Some(3));
        assert_eq!(json["commit"], "abc");
    }

    #[test]
    fn figures_are_readable() {
        assert_eq!([0.0012, 0.0123, 1.5].map(milliseconds), ["1.20", "12.3", "1500"]);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert!(median(&[]).is_nan());
    }
}
