//! The table of sizes: what each kernel came to in the compilers' hands, kept in the repository so that growth is seen.
//!
//! A row is a kernel in one form, with the number of its variants; a column is a figure, of the variant that has the most of it. Only
//! what the same version of a tool counted is compared.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use anyhow::{Context as _, Result, bail};

/// A figure may be this many times what it was.
const GROWTH: f64 = 1.10;
/// And grow by this much in any case: small kernels change by a few instructions for nothing.
const SLACK: u64 = 8;
/// Columns of which any growth counts: what does not fit into registers.
const SPILLS: &str = "spill";

/// Figures by column, and how many variants they are the most of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    pub variants: u64,
    pub figures: BTreeMap<String, u64>,
}

/// The table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// By column, the tool that counted and its version.
    pub tools: BTreeMap<String, String>,
    /// By kernel.
    pub rows: BTreeMap<String, Row>,
}

impl Sizes {
    /// Enters a variant of `kernel`.
    pub fn count(&mut self, kernel: &str) {
        self.rows.entry(kernel.to_owned()).or_default().variants += 1;
    }

    /// Enters a figure of a variant.
    pub fn enter(&mut self, kernel: &str, column: &str, figure: u64) {
        let most =
            self.rows.entry(kernel.to_owned()).or_default().figures.entry(column.to_owned()).or_default();
        *most = figure.max(*most);
    }

    /// This table, with the columns of `old` that it lacks, because their tool was left out.
    pub fn completed(mut self, old: &Self) -> Self {
        for (column, tool) in
            old.tools.iter().filter(|(column, _)| !self.tools.contains_key(*column)).collect::<Vec<_>>()
        {
            self.tools.insert(column.clone(), tool.clone());
            for (kernel, row) in &mut self.rows {
                if let Some(figure) = old.rows.get(kernel).and_then(|row| row.figures.get(column)) {
                    row.figures.insert(column.clone(), *figure);
                }
            }
        }
        self
    }

    /// What differs from `old` so that somebody should look: growth, and kernels that are in one table alone.
    pub fn faults(&self, old: &Self) -> Vec<String> {
        let mut faults = Vec::new();
        for (kernel, row) in &self.rows {
            let Some(before) = old.rows.get(kernel) else {
                faults.push(format!("{kernel}: not in the table"));
                continue;
            };
            for (column, &figure) in &row.figures {
                let same_tool = self.tools.get(column) == old.tools.get(column);
                let Some(&was) = before.figures.get(column).filter(|_| same_tool) else { continue };
                let allowed = match column.contains(SPILLS) {
                    true => was,
                    false => ((was as f64 * GROWTH) as u64).max(was + SLACK),
                };
                if figure > allowed {
                    faults.push(format!("{kernel}: {column} {was} -> {figure}"));
                }
            }
        }
        let gone = old.rows.keys().filter(|kernel| !self.rows.contains_key(*kernel));
        faults.extend(gone.map(|kernel| format!("{kernel}: in the table, and no such kernel")));
        faults
    }

    /// How the figures changed altogether, by column: those of `old` and of this table, where the same tool counted both.
    pub fn sums(&self, old: &Self) -> Vec<(String, u64, u64)> {
        let sum = |table: &Self, column: &str| {
            table.rows.values().filter_map(|row| row.figures.get(column)).sum::<u64>()
        };
        let same = self.tools.iter().filter(|(column, tool)| old.tools.get(*column) == Some(tool));
        same.map(|(column, _)| (column.clone(), sum(old, column), sum(self, column))).collect()
    }

    /// Reads a table.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &str) -> Result<Self> {
        let mut sizes = Self::default();
        let mut lines = text.lines();
        let mut header = None;
        for line in lines.by_ref() {
            let Some(comment) = line.strip_prefix("# ") else {
                header = Some(line);
                break;
            };
            if let Some((column, tool)) = comment.split_once(": ") {
                sizes.tools.insert(column.to_owned(), tool.to_owned());
            }
        }
        let columns: Vec<&str> = header.context("no line with the columns")?.split('\t').collect();
        let ["kernel", "variants", columns @ ..] = columns.as_slice() else {
            bail!("the columns do not begin with kernel and variants");
        };
        for line in lines {
            let cells: Vec<&str> = line.split('\t').collect();
            let [kernel, variants, cells @ ..] = cells.as_slice() else { bail!("`{line}` is no row") };
            if cells.len() != columns.len() {
                bail!("`{line}` has {} figures of {}", cells.len(), columns.len());
            }
            let mut row = Row { variants: variants.parse()?, ..Row::default() };
            for (column, cell) in columns.iter().zip(cells).filter(|(_, cell)| **cell != "-") {
                let figure = cell.parse().with_context(|| format!("`{cell}` in the row of {kernel}"))?;
                row.figures.insert((*column).to_owned(), figure);
            }
            sizes.rows.insert((*kernel).to_owned(), row);
        }
        Ok(sizes)
    }

    /// The table as a file.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for (column, tool) in &self.tools {
            // Writing to a `String` cannot fail.
            let _ = writeln!(text, "# {column}: {tool}");
        }
        let columns: BTreeSet<&String> = self.tools.keys().collect();
        let heads = columns.iter().fold("kernel\tvariants".to_owned(), |line, column| line + "\t" + column);
        let _ = writeln!(text, "{heads}");
        for (kernel, row) in &self.rows {
            let _ = write!(text, "{kernel}\t{}", row.variants);
            for column in &columns {
                match row.figures.get(*column) {
                    Some(figure) => {
                        let _ = write!(text, "\t{figure}");
                    }
                    None => text.push_str("\t-"),
                }
            }
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn table(figures: &[(&str, &str, u64)]) -> Sizes {
        let mut sizes = Sizes::default();
        for (kernel, column, figure) in figures {
            sizes.count(kernel);
            sizes.enter(kernel, column, *figure);
            sizes.tools.insert((*column).into(), "tool 1".into());
        }
        sizes
    }

    #[test]
    fn a_table_is_what_was_written() {
        let mut sizes = table(&[("conv", "spirv", 400), ("conv", "spirv", 300), ("conv.f16", "dxil", 5)]);
        sizes.count("fill");
        assert_eq!((sizes.rows["conv"].variants, sizes.rows["conv"].figures["spirv"]), (2, 400));
        assert_eq!(Sizes::parse(&sizes.to_text()).unwrap(), sizes);
        for bad in [
            "",
            "# a: b\n",
            "kernel\n",
            "kernel\tvariants\tspirv\nconv\t1\n",
            "kernel\tvariants\tx\nconv\t1\ty\n",
        ] {
            assert!(Sizes::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn growth_is_found() {
        let old = table(&[("conv", "spirv", 400), ("fill", "spirv", 20), ("conv", "spills", 0)]);
        let new = |figures: &[(&str, &str, u64)]| table(figures).faults(&old);
        assert!(new(&[("conv", "spirv", 440), ("fill", "spirv", 28), ("conv", "spills", 0)]).is_empty());
        assert_eq!(new(&[("conv", "spirv", 441), ("fill", "spirv", 20)]), ["conv: spirv 400 -> 441"]);
        assert_eq!(new(&[("conv", "spirv", 400), ("fill", "spirv", 29)]), ["fill: spirv 20 -> 29"]);
        assert_eq!(new(&[("conv", "spills", 1), ("fill", "spirv", 1)]), ["conv: spills 0 -> 1"]);
        assert_eq!(new(&[("conv", "spirv", 1)]), ["fill: in the table, and no such kernel"]);
        assert_eq!(table(&[("new", "spirv", 1)]).faults(&old).len(), 3);
        // Another version of the tool counts differently.
        let mut other = table(&[("conv", "spirv", 4000), ("fill", "spirv", 20)]);
        other.tools.insert("spirv".into(), "tool 2".into());
        assert!(other.faults(&old).is_empty() && other.sums(&old).is_empty());
        assert_eq!(table(&[("conv", "spirv", 4)]).sums(&old), [("spirv".into(), 420, 4)]);
    }

    #[test]
    fn columns_of_tools_that_were_left_out_stay() {
        let old = table(&[("conv", "spirv", 400), ("conv", "dxil", 70), ("gone", "dxil", 7)]);
        let new = table(&[("conv", "spirv", 300), ("fill", "spirv", 3)]).completed(&old);
        assert_eq!((new.rows["conv"].figures["spirv"], new.rows["conv"].figures["dxil"]), (300, 70));
        assert!(!new.rows.contains_key("gone") && new.tools.contains_key("dxil"));
    }
}
