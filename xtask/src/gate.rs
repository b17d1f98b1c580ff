//! `cargo xtask gate`: every shader in the hands of the compilers of all backends.
//!
//! The tests write every variant of every kernel in every language (`tests/portability/export.rs`), and each compiler is asked
//! about each of them. What they refuse is listed, and what their results came to is compared with the table in the repository.

mod asking;
mod modules;
mod sizes;
mod tools;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::stage::{Stages, cargo, duration, run, say};
use asking::{Answers, Request, Tool, ask};
use modules::{Hlsl, Needs, Variant};
use sizes::Sizes;

pub const HELP: &str = "\
Usage: cargo xtask gate [OPTIONS]

Hands every shader, with every set of constants that some adapter gives it, to the compilers of all backends,
and compares the sizes of what they make with those in tests/gate/sizes.tsv.

  spirv-val  SPIRV-Tools' validator, on what naga writes for Vulkan; built with the gate from a crate
  dxc        Microsoft's compiler, on what naga writes for Direct3D 12; downloaded from PyPI with pip
  metal      Apple's compiler, on what naga writes for Metal; part of Xcode, so on macOS only
  tint       Chrome's WGSL compiler, on the text of the shaders; found on the path
  radv       Mesa's compiler for AMD GPUs, on the SPIR-V: registers and spills, without a GPU; Linux only,
             and on Debian and Ubuntu installed where it is missing

Options:
  --without TOOLS  leaves some of them out, with commas between
  --only PART      only modules whose name has PART in it; sizes are then only shown
  --bless          writes tests/gate/sizes.tsv anew instead of comparing with it
  --tint PATH      the program tint [default: the one on the path]
  --dxc PATH       DXC's library [default: the one that is downloaded]
  --radv PATH      the manifest of Mesa's driver for AMD [default: the system's radeon_icd*.json]
  --help           this text

Examples:
  cargo xtask gate
  cargo xtask gate --without tint,radv --only conv2d
";

const TOOLS: [&str; 5] = ["spirv-val", "dxc", "metal", "tint", "radv"];

/// How much of a message is shown, and how many messages of a tool.
const MESSAGE: usize = 600;
const MESSAGES: usize = 20;

/// What was asked for.
#[derive(Debug, Default, PartialEq)]
struct Options {
    without: Vec<String>,
    only: Option<String>,
    bless: bool,
    tint: Option<PathBuf>,
    dxc: Option<PathBuf>,
    radv: Option<PathBuf>,
}

impl Options {
    /// Reads the arguments.
    ///
    /// # Errors
    /// In words, what is wrong with them.
    fn parse(arguments: &[String]) -> std::result::Result<Self, String> {
        let mut options = Self::default();
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().cloned().ok_or(format!("`{argument}` takes a value"));
            match argument.as_str() {
                "--without" => {
                    options.without = value()?.split(',').map(String::from).collect();
                    if let Some(word) = options.without.iter().find(|word| !TOOLS.contains(&word.as_str())) {
                        return Err(format!("`{word}` is none of {}", TOOLS.join(", ")));
                    }
                }
                "--only" => options.only = Some(value()?),
                "--bless" => options.bless = true,
                "--tint" => options.tint = Some(value()?.into()),
                "--dxc" => options.dxc = Some(value()?.into()),
                "--radv" => options.radv = Some(value()?.into()),
                unknown => return Err(format!("there is no option `{unknown}`")),
            }
        }
        if options.bless && options.only.is_some() {
            return Err("a table of sizes of some modules only is not written".into());
        }
        Ok(options)
    }

    fn wants(&self, tool: &str) -> bool {
        !self.without.iter().any(|without| without == tool)
    }
}

/// Modules that are wrong: a tool that takes its own is broken, or is not asked as it should be.
const WRONG: [(&str, &[u8]); 4] = [
    // Not a word of the memory model that every module has.
    ("wrong.spv", &[3, 2, 0x23, 7, 0, 3, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]),
    ("wrong.hlsl", b"[numthreads(1, 1, 1)] void main() { absent(); }"),
    ("wrong.metal", b"kernel void main_() { absent(); }"),
    (
        "wrong.wgsl",
        b"@compute @workgroup_size(64) fn main(@builtin(local_invocation_index) i: u32) {
            if i < 3u { workgroupBarrier(); }
        }",
    ),
];
const WRONG_ID: &str = "wrong";

/// Runs the gate; `Err` of the first kind for wrong usage, in words.
pub fn gate(root: &Path, arguments: &[String]) -> std::result::Result<Result<()>, String> {
    if arguments.iter().any(|argument| argument == "--help" || argument == "-h") {
        print!("{HELP}");
        return Ok(Ok(()));
    }
    let options = Options::parse(arguments)?;
    Ok(pass(root, &options))
}

/// A compiler and what it is asked.
struct Examination {
    name: &'static str,
    /// Which column of the table of sizes a figure of the tool is; the others are not kept.
    columns: &'static [(&'static str, &'static str)],
    tool: Tool,
    requests: Vec<Request>,
    /// Whether the tool knows cooperative matrices.
    matrices: bool,
    /// Variants that the tool is not asked about, by the reason.
    not_applicable: BTreeMap<&'static str, usize>,
}

fn pass(root: &Path, options: &Options) -> Result<()> {
    let folder = root.join("target").join("gate");
    let mut stages = Stages::default();
    let mut examinations = Vec::new();
    stages.run("Tools", || {
        let of_driver = |tool: &&str| !["metal", "tint"].contains(tool) && options.wants(tool);
        let needs_driver = TOOLS.iter().any(of_driver);
        let driver = if needs_driver { tools::driver(root)? } else { PathBuf::new() };
        examinations = examinations_of(options, &driver, &folder)?;
        Ok(())
    })?;
    let written = folder.join("variants");
    stages.run("Variants", || {
        // Of an older run there may be files that nothing names any more.
        let _ = std::fs::remove_dir_all(&written);
        run(cargo(root)
            .env("EPL_GATE_OUT", &written)
            .args(["test", "--package", "epl", "--test", "portability", "--", "--quiet"])
            .args(["--ignored", "--exact", "export::every_variant_is_written"]))
    })?;
    let mut variants = modules::read(&written)?;
    if let Some(part) = &options.only {
        variants.retain(|variant| variant.module.contains(part.as_str()));
        if variants.is_empty() {
            bail!("no module has `{part}` in its name");
        }
    }
    for (name, bytes) in WRONG {
        std::fs::write(written.join(name), bytes)?;
    }
    let mut sizes = Sizes::default();
    enter_files(&variants, &mut sizes)?;
    let mut refused = 0;
    let mut table = format!(
        "{:<10} {:>7} {:>7} {:>14} {:>13}  {}\n",
        "tool", "checked", "refused", "not applicable", "time", "which it is"
    );
    for examination in &mut examinations {
        examination.fill(&variants, &written);
        let mut answers = Answers::default();
        stages.run(examination.name, || {
            answers = ask(examination.name, &examination.tool, &examination.requests)?;
            examination.tell(&mut answers)
        })?;
        refused += examination.report(&variants, &answers);
        examination.enter(&variants, &answers, &mut sizes);
        table += &examination.line(&answers);
    }
    say(format_args!("\n{} variants of {} kernels\n{table}", variants.len(), sizes.rows.len()));
    for examination in &examinations {
        for (reason, count) in &examination.not_applicable {
            say(format_args!("{}: {count} variants were not asked about: {reason}", examination.name));
        }
    }
    let grown = compare(root, options, sizes)?;
    match (refused, grown) {
        (0, 0) => Ok(()),
        (0, grown) => bail!("{grown} sizes to look at; `cargo xtask gate --bless` takes them as they are"),
        (refused, _) => bail!("{refused} modules were refused"),
    }
}

/// Those of the tools that are wanted.
fn examinations_of(options: &Options, driver: &Path, folder: &Path) -> Result<Vec<Examination>> {
    let mut all = Vec::new();
    let mut add = |name, columns, (tool, matrices)| {
        let not_applicable = BTreeMap::new();
        all.push(Examination { name, columns, tool, requests: Vec::new(), matrices, not_applicable });
    };
    if options.wants("spirv-val") {
        add("spirv-val", &[], (tools::spirv_val(driver), true));
    }
    if options.wants("dxc") {
        let tool = tools::dxc(driver, options.dxc.as_deref(), &folder.join("dxc"))?;
        add("dxc", &[("instructions", "dxil instructions")], (tool, false));
    }
    if options.wants("metal") {
        if cfg!(target_os = "macos") {
            add("metal", &[], (tools::metal()?, true));
        } else {
            say("metal is left out: Apple's compiler runs on macOS alone");
        }
    }
    if options.wants("tint") {
        add("tint", &[], (tools::tint(options.tint.as_deref())?, false));
    }
    if options.wants("radv") {
        if cfg!(target_os = "linux") {
            for (name, families) in tools::FAMILIES {
                let tool = tools::radv(driver, options.radv.as_deref(), families)?;
                add(name, columns_of(name), tool);
            }
        } else {
            say("radv is left out: Mesa's driver compiles without a GPU on Linux alone");
        }
    }
    Ok(all)
}

/// Of the driver's figures those that are kept.
fn columns_of(name: &str) -> &'static [(&'static str, &'static str)] {
    match name {
        "vega" => &[
            ("Instructions", "vega instructions"),
            ("VGPRs", "vega VGPRs"),
            ("Spilled VGPRs", "vega VGPR spills"),
            ("Spilled SGPRs", "vega SGPR spills"),
        ],
        _ => &[
            ("Instructions", "rdna3 instructions"),
            ("VGPRs", "rdna3 VGPRs"),
            ("Spilled VGPRs", "rdna3 VGPR spills"),
            ("Spilled SGPRs", "rdna3 SGPR spills"),
        ],
    }
}

impl Examination {
    /// Decides what is asked; `folder` is where the modules are.
    fn fill(&mut self, variants: &[Variant], folder: &Path) {
        let wrong = |name: &str| folder.join(name);
        let wrong = Variant {
            id: WRONG_ID.into(),
            entry: "main".into(),
            spirv: wrong("wrong.spv"),
            spirv_checked: wrong("wrong.spv"),
            hlsl: Some(Hlsl {
                plain: wrong("wrong.hlsl"),
                checked: wrong("wrong.hlsl"),
                entry: "main".into(),
                profile: "cs_6_0".into(),
            }),
            msl: Some(wrong("wrong.metal")),
            wgsl: wrong("wrong.wgsl"),
            ..Variant::default()
        };
        // A driver's compiler takes what is valid, and does what it likes with the rest.
        if ["spirv-val", "dxc", "metal", "tint"].contains(&self.name) {
            self.requests.extend(requests(self.name, self.matrices, &wrong).unwrap_or_default());
        }
        for variant in variants {
            match requests(self.name, self.matrices, variant) {
                Ok(requests) => self.requests.extend(requests),
                Err(reason) => *self.not_applicable.entry(reason).or_default() += 1,
            }
        }
    }

    /// Takes the answers about the wrong modules out.
    ///
    /// # Errors
    /// The tool has nothing against one.
    fn tell(&self, answers: &mut Answers) -> Result<()> {
        let asked = self.requests.iter().filter(|request| request.id.starts_with(WRONG_ID));
        for request in asked {
            if !matches!(answers.by_id.remove(&request.id), Some(Err(_))) {
                bail!("{} takes a module that is wrong", self.name);
            }
        }
        Ok(())
    }

    /// Prints what is refused, and returns how much that is.
    fn report(&self, variants: &[Variant], answers: &Answers) -> usize {
        let refused: Vec<_> =
            answers.by_id.iter().filter_map(|(id, answer)| Some((id, answer.as_ref().err()?))).collect();
        for (id, reason) in refused.iter().take(MESSAGES) {
            let variant = variants.iter().find(|variant| id.starts_with(&variant.id));
            let title = variant.map_or_else(String::new, Variant::title);
            let shown: String = reason.chars().take(MESSAGE).collect();
            say(format_args!("{} refuses {id} {title}: {shown}", self.name));
        }
        if refused.len() > MESSAGES {
            say(format_args!("and {} more", refused.len() - MESSAGES));
        }
        refused.len()
    }

    /// Enters the figures that are kept.
    fn enter(&self, variants: &[Variant], answers: &Answers, sizes: &mut Sizes) {
        for variant in variants {
            let Some(Ok(figures)) = answers.by_id.get(&variant.id) else { continue };
            for (figure, column) in self.columns {
                if let Some(value) = figures.get(*figure) {
                    sizes.enter(&kernel(variant), column, *value);
                    sizes.tools.insert((*column).to_owned(), answers.version.clone());
                }
            }
        }
    }

    fn line(&self, answers: &Answers) -> String {
        let refused = answers.by_id.values().filter(|answer| answer.is_err()).count();
        format!(
            "{:<10} {:>7} {:>7} {:>14} {:>13}  {}\n",
            self.name,
            answers.by_id.len(),
            refused,
            self.not_applicable.values().sum::<usize>(),
            duration(answers.time),
            answers.version
        )
    }
}

/// A kernel in one of its forms, as the table of sizes names it.
fn kernel(variant: &Variant) -> String {
    match variant.entry.as_str() {
        "main" => variant.module.clone(),
        entry => format!("{}/{entry}", variant.module),
    }
}

/// What a tool is asked about a variant: in the form that training runs, under the variant's own number, and in the one with checks.
///
/// # Errors
/// Why it is not asked.
fn requests(
    tool: &str,
    matrices: bool,
    variant: &Variant,
) -> std::result::Result<Vec<Request>, &'static str> {
    let path = |path: &Path| path.to_string_lossy().into_owned();
    let request = |suffix: &str, words: Vec<String>| Request { id: format!("{}{suffix}", variant.id), words };
    match (tool, variant.needs) {
        // Direct3D 12 and WebGPU have none, nor has every GPU and version of a driver.
        (_, Needs::Matrices(_)) if !matrices => Err("it has no cooperative matrices"),
        ("spirv-val", _) => Ok(vec![
            request("", vec![path(&variant.spirv), variant.entry.clone()]),
            request("-checked", vec![path(&variant.spirv_checked), variant.entry.clone()]),
        ]),
        ("dxc", _) => {
            let hlsl = variant.hlsl.as_ref().ok_or("there is no HLSL of them")?;
            let words = |file: &Path| vec![path(file), hlsl.entry.clone(), hlsl.profile.clone()];
            Ok(vec![request("", words(&hlsl.plain)), request("-checked", words(&hlsl.checked))])
        }
        ("metal", _) => {
            let msl = variant.msl.as_ref().ok_or("Metal has no matrices of 16x16")?;
            // The language that naga is told to write: `METAL_LANGUAGE` in tests/portability/modules.rs.
            let words = ["-sdk", "macosx", "metal", "-std=macos-metal2.3", "-c", "-o", nowhere()];
            let mut words = words.map(String::from).to_vec();
            words.push(path(msl));
            Ok(vec![request("", words)])
        }
        ("tint", _) => {
            // It has rules for all that it reads; what it writes is not looked at.
            let words = ["--format", "wgsl", "--output-name", nowhere(), "--entry-point", &variant.entry];
            let mut words = words.map(String::from).to_vec();
            words.push(path(&variant.wgsl));
            Ok(vec![request("", words)])
        }
        (_, Needs::Matrices(8)) => Err("no GPU of AMD has matrices of 8x8"),
        _ => Ok(vec![request("", vec![path(&variant.spirv), variant.entry.clone()])]),
    }
}

/// The file that keeps nothing.
fn nowhere() -> &'static str {
    if cfg!(windows) { "NUL" } else { "/dev/null" }
}

/// Enters what is known without a tool: instructions of SPIR-V, bytes of MSL.
fn enter_files(variants: &[Variant], sizes: &mut Sizes) -> Result<()> {
    for variant in variants {
        let kernel = kernel(variant);
        sizes.count(&kernel);
        sizes.enter(&kernel, "spirv instructions", modules::spirv_instructions(&variant.spirv)?);
        if let Some(msl) = &variant.msl {
            let bytes = std::fs::metadata(msl).with_context(|| msl.display().to_string())?.len();
            sizes.enter(&kernel, "msl bytes", bytes);
        }
    }
    for column in ["spirv instructions", "msl bytes"] {
        sizes.tools.insert(column.to_owned(), "naga".into());
    }
    Ok(())
}

/// Compares the sizes with those in the repository, or writes them there. Returns how many are to be looked at.
fn compare(root: &Path, options: &Options, sizes: Sizes) -> Result<usize> {
    let path = root.join("tests").join("gate").join("sizes.tsv");
    let old = match std::fs::read_to_string(&path) {
        Ok(text) => Sizes::parse(&text).with_context(|| path.display().to_string())?,
        Err(_) => Sizes::default(),
    };
    if options.bless {
        let text = sizes.completed(&old).to_text();
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        say(format_args!("sizes: {}", path.display()));
        return Ok(0);
    }
    if options.only.is_some() {
        say(sizes.to_text());
        return Ok(0);
    }
    for (column, was, is) in sizes.sums(&old) {
        say(format_args!("{column}: {was} -> {is} in all"));
    }
    for (column, tool) in &sizes.tools {
        if let Some(other) = old.tools.get(column).filter(|other| *other != tool) {
            say(format_args!("{column}: not compared, the table has those of {other}"));
        }
    }
    let faults = sizes.faults(&old);
    for fault in &faults {
        say(fault);
    }
    Ok(faults.len())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn parse(text: &str) -> std::result::Result<Options, String> {
        Options::parse(&text.split_whitespace().map(String::from).collect::<Vec<_>>())
    }

    #[test]
    fn options_are_read() {
        let options = parse("--without dxc,tint --only conv --radv a.json").unwrap();
        assert!(!options.wants("tint") && options.wants("radv") && options.radv == Some("a.json".into()));
        assert_eq!(parse("").unwrap(), Options::default());
        for (text, part) in [
            ("--without lint", "`lint` is none of spirv-val"),
            ("--only", "takes a value"),
            ("--fast", "no option `--fast`"),
            ("--bless --only conv", "is not written"),
        ] {
            assert!(parse(text).unwrap_err().contains(part), "{text}");
        }
    }

    #[test]
    fn each_tool_is_asked_what_it_can_know() {
        let mut variant = Variant {
            id: "0001".into(),
            module: "conv.f16".into(),
            entry: "main".into(),
            constants: "A=1,B=2".into(),
            needs: Needs::Subgroups,
            wgsl: "conv.wgsl".into(),
            ..Variant::default()
        };
        assert_eq!(requests("spirv-val", true, &variant).unwrap().len(), 2);
        let asked = &requests("tint", false, &variant).unwrap()[0];
        assert!(asked.words.ends_with(&["main".into(), "conv.wgsl".into()]));
        assert!(requests("dxc", false, &variant).is_err(), "there is no HLSL");
        assert!(requests("metal", true, &variant).is_err(), "there is no MSL");
        variant.msl = Some("conv.metal".into());
        let asked = &requests("metal", true, &variant).unwrap()[0];
        assert!(asked.words.starts_with(&["-sdk".into()]) && asked.words.ends_with(&["conv.metal".into()]));
        variant.needs = Needs::Matrices(16);
        assert!(requests("tint", false, &variant).is_err() && requests("vega", false, &variant).is_err());
        assert_eq!(requests("rdna3", true, &variant).unwrap().len(), 1);
        variant.entry = "combine".into();
        assert_eq!(kernel(&variant), "conv.f16/combine");
    }

    #[test]
    fn a_tool_that_takes_a_wrong_module_is_noticed() {
        let mut examination = Examination {
            name: "tint",
            columns: &[],
            tool: Tool::Once { program: "tint".into() },
            requests: Vec::new(),
            matrices: false,
            not_applicable: BTreeMap::new(),
        };
        examination.fill(&[], Path::new("out"));
        assert_eq!(examination.requests.len(), 1);
        let answered = |answer| {
            let mut answers = Answers::default();
            answers.by_id.insert(WRONG_ID.into(), answer);
            examination.tell(&mut answers).map(|()| answers.by_id.len())
        };
        assert_eq!(answered(Err("not uniform".into())).unwrap(), 0);
        assert!(answered(Ok(BTreeMap::new())).is_err());
    }

    #[test]
    fn refusals_are_counted_and_figures_entered() {
        let variants = [Variant {
            id: "0001".into(),
            module: "conv".into(),
            entry: "main".into(),
            ..Variant::default()
        }];
        let examination = Examination {
            name: "dxc",
            columns: &[("instructions", "dxil instructions")],
            tool: Tool::Once { program: "dxc".into() },
            requests: Vec::new(),
            matrices: false,
            not_applicable: BTreeMap::new(),
        };
        let mut answers = Answers { version: "DXC".into(), ..Answers::default() };
        answers.by_id.insert("0001".into(), Ok(BTreeMap::from([("instructions".into(), 7)])));
        answers.by_id.insert("0001-checked".into(), Err("no".into()));
        let mut sizes = Sizes::default();
        assert_eq!(examination.report(&variants, &answers), 1);
        examination.enter(&variants, &answers, &mut sizes);
        assert_eq!(sizes.rows["conv"].figures["dxil instructions"], 7);
    }
}
