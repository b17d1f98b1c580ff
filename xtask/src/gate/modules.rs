//! The table of variants that the tests write, and what each compiler is asked about one.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// A kernel with the constants of one of its uses, as files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Variant {
    pub id: String,
    /// As `epl ops dump` names it.
    pub module: String,
    pub entry: String,
    /// `NAME=VALUE`, with commas between; empty where it has none.
    pub constants: String,
    pub needs: Needs,
    pub spirv: PathBuf,
    /// With checks of bounds and loops, as tests run it.
    pub spirv_checked: PathBuf,
    pub hlsl: Option<Hlsl>,
    pub msl: Option<PathBuf>,
    pub wgsl: PathBuf,
}

/// The text for DXC.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hlsl {
    pub plain: PathBuf,
    pub checked: PathBuf,
    pub entry: String,
    /// `cs_6_0` or `cs_6_2`.
    pub profile: String,
}

/// What an adapter must have for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Needs {
    #[default]
    Nothing,
    Subgroups,
    /// Cooperative matrices of so many rows.
    Matrices(u32),
}

impl Variant {
    /// The variant's name for people.
    pub fn title(&self) -> String {
        match self.constants.as_str() {
            "" => self.module.clone(),
            constants => format!("{} ({constants})", self.module),
        }
    }
}

/// Reads the table in `folder`.
///
/// # Errors
/// It is not there, or is another table.
pub fn read(folder: &Path) -> Result<Vec<Variant>> {
    let path = folder.join("variants.tsv");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let variants: Vec<Variant> =
        text.lines().skip(1).map(|line| parse(folder, line)).collect::<Result<_>>()?;
    if variants.is_empty() {
        bail!("{} lists no variant", path.display());
    }
    Ok(variants)
}

fn parse(folder: &Path, line: &str) -> Result<Variant> {
    let cells: Vec<&str> = line.split('\t').collect();
    let &[
        id,
        module,
        entry,
        constants,
        needs,
        spirv,
        spirv_checked,
        hlsl,
        hlsl_checked,
        hlsl_entry,
        model,
        msl,
        wgsl,
    ] = cells.as_slice()
    else {
        bail!("a table of variants with {} columns", cells.len());
    };
    let file = |name: &str| (name != "-").then(|| folder.join(name));
    let needs = match (needs, needs.strip_prefix("matrices").and_then(|side| side.parse().ok())) {
        ("-", _) => Needs::Nothing,
        ("subgroups", _) => Needs::Subgroups,
        (_, Some(side)) => Needs::Matrices(side),
        (other, None) => bail!("a variant that needs `{other}`"),
    };
    Ok(Variant {
        id: id.into(),
        module: module.into(),
        entry: entry.into(),
        constants: constants.trim_matches('-').into(),
        needs,
        spirv: folder.join(spirv),
        spirv_checked: folder.join(spirv_checked),
        hlsl: file(hlsl).zip(file(hlsl_checked)).map(|(plain, checked)| Hlsl {
            plain,
            checked,
            entry: hlsl_entry.into(),
            profile: format!("cs_{model}"),
        }),
        msl: file(msl),
        wgsl: folder.join(wgsl),
    })
}

/// Instructions of a module in SPIR-V (specification, 2.3): the length of each is in its first word.
///
/// # Errors
/// The file is not there or is no SPIR-V.
pub fn spirv_instructions(path: &Path) -> Result<u64> {
    const HEADER: usize = 5;
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let words: Vec<u32> = bytes.as_chunks::<4>().0.iter().map(|&word| u32::from_le_bytes(word)).collect();
    let (mut at, mut count) = (HEADER, 0);
    while let Some(word) = words.get(at) {
        let length = (word >> 16) as usize;
        if length == 0 {
            bail!("{} is no SPIR-V", path.display());
        }
        at += length;
        count += 1;
    }
    Ok(count)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_read() {
        let row = "0007\tconv.f16\tmain\tA=1,B=2\t-\ta.spv\tb.spv\ta.hlsl\tb.hlsl\tmain_\t6_2\t-\tconv.wgsl";
        let variant = parse(Path::new("out"), row).unwrap();
        assert_eq!((variant.title().as_str(), variant.msl), ("conv.f16 (A=1,B=2)", None));
        assert_eq!(variant.hlsl.unwrap().profile, "cs_6_2");
        let matrices = row.replace("\t-\ta.spv", "\tmatrices16\ta.spv").replace("a.hlsl", "-");
        let variant = parse(Path::new("out"), &matrices).unwrap();
        assert_eq!((variant.needs, variant.hlsl), (Needs::Matrices(16), None));
        assert!(parse(Path::new("out"), "0007\tconv").is_err());
        assert!(parse(Path::new("out"), &row.replace("\t-\ta.spv", "\trays\ta.spv")).is_err());
    }
}
