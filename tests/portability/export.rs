//! Every variant as files, for the compilers of `cargo xtask gate`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use epl_runtime::kernel::Needs;

use super::modules::{half_floats, translate};
use super::variants::visit_variants;

/// The first line of the table of variants.
const COLUMNS: &str = "id\tmodule\tentry\tconstants\tneeds\tspirv\tspirv_checked\thlsl\thlsl_checked\thlsl_entry\tshader_model\tmsl\twgsl";

/// Writes every variant in every language, with and without checks, and a table of them: `variants.tsv`, where a cell names a file
/// and `-` stands for what there is none of.
#[test]
#[ignore = "writes files for `cargo xtask gate`, which runs it with EPL_GATE_OUT"]
fn every_variant_is_written() {
    let folder = PathBuf::from(std::env::var_os("EPL_GATE_OUT").expect("EPL_GATE_OUT names a folder"));
    std::fs::create_dir_all(&folder).unwrap();
    let mut table = format!("{COLUMNS}\n");
    let mut faults = Vec::new();
    let mut id = 0;
    visit_variants(&mut faults, &mut |used| {
        if !used.first {
            return Vec::new();
        }
        let entry = used.kernel.entry;
        let (plain, checked) =
            match (translate(used.module, entry, false), translate(used.module, entry, true)) {
                (Ok(plain), Ok(checked)) => (plain, checked),
                (Err(error), _) | (_, Err(error)) => return vec![error],
            };
        let file = |extension: &str, bytes: &[u8]| write(&folder, &format!("{id:04}.{extension}"), bytes);
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        let none = || "-".to_owned();
        let module = &used.variant.module;
        let text = used.kernel.source_for(used.half).expect("the shader is in the table");
        let text = with_constants(&text, &used.variant.constants());
        // tint wants to be told of subgroups, where naga does not know the word.
        let wgsl = match used.kernel.needs {
            Needs::Subgroups => format!("enable subgroups;\n{text}"),
            _ => text,
        };
        let wgsl = file("wgsl", wgsl.as_bytes());
        let hlsl = plain.hlsl.as_ref().map_or_else(none, |(_, text)| file("hlsl", text.as_bytes()));
        let hlsl_checked =
            checked.hlsl.as_ref().map_or_else(none, |(_, text)| file("checked.hlsl", text.as_bytes()));
        let hlsl_entry = plain.hlsl.as_ref().map_or_else(none, |(entry, _)| entry.clone());
        let msl = plain.msl.as_ref().map_or_else(none, |text| file("metal", text.as_bytes()));
        let constants: Vec<String> =
            used.variant.constants().iter().map(|(name, value)| format!("{name}={value}")).collect();
        let constants = if constants.is_empty() { none() } else { constants.join(",") };
        let needs = match used.kernel.needs {
            Needs::Nothing => none(),
            Needs::Subgroups => "subgroups".into(),
            Needs::Matrices(side) => format!("matrices{side}"),
        };
        let model = if half_floats(used.module) { "6_2" } else { "6_0" };
        let (spirv, spirv_checked) =
            (file("spv", &words(&plain.spir_v)), file("checked.spv", &words(&checked.spir_v)));
        writeln!(
            table,
            "{id:04}\t{module}\t{entry}\t{constants}\t{needs}\t{spirv}\t{spirv_checked}\t{hlsl}\t{hlsl_checked}\
             \t{hlsl_entry}\t{model}\t{msl}\t{wgsl}"
        )
        .unwrap();
        id += 1;
        Vec::new()
    });
    super::report(&faults);
    write(&folder, "variants.tsv", table.as_bytes());
}

/// Writes a file and returns its name.
fn write(folder: &Path, name: &str, bytes: &[u8]) -> String {
    std::fs::write(folder.join(name), bytes).unwrap();
    name.to_owned()
}

/// The text of a shader with its `override` constants as `const`, those of `constants` with these values: so a compiler that only
/// knows the text computes with them. What it would have said of an `override` it says of a `const`.
fn with_constants(text: &str, constants: &[(&str, f64)]) -> String {
    let line = |line: &str| {
        let Some(declaration) = line.strip_prefix("override ") else { return line.to_owned() };
        let (name, rest) = declaration.split_once(':').expect("an override has a type");
        let (ty, _) = rest.trim().trim_end_matches(';').split_once(" =").expect("an override has a default");
        let Some((_, value)) = constants.iter().find(|(constant, _)| *constant == name) else {
            return format!("const {declaration}");
        };
        match ty {
            "bool" => format!("const {name}: bool = {};", *value != 0.0),
            "u32" | "i32" | "f32" => format!("const {name}: {ty} = {ty}({value:?});"),
            other => panic!("an override of the type {other}"),
        }
    };
    text.lines().map(|text| line(text) + "\n").collect()
}

#[test]
fn constants_are_written_into_the_text() {
    let text = "// override\noverride A: u32 = 8u;\noverride B: bool = false;\noverride C: u32 = A * 2u;\nfn main() {}\n";
    assert_eq!(
        with_constants(text, &[("A", 16.0), ("B", 1.0)]),
        "// override\nconst A: u32 = u32(16.0);\nconst B: bool = true;\nconst C: u32 = A * 2u;\nfn main() {}\n"
    );
    let text = "override A: u32 = 8u;\noverride B: f32 = 1.0;\n";
    assert_eq!(with_constants(text, &[("B", -0.5)]), "const A: u32 = 8u;\nconst B: f32 = f32(-0.5);\n");
}
