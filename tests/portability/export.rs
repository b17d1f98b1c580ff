//! Every variant as files, for the compilers of `cargo xtask gate`.

use std::collections::BTreeMap;
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
    let mut texts: BTreeMap<String, String> = BTreeMap::new();
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
        let half = used.half;
        let text = texts.entry(module.clone()).or_insert_with(|| {
            let text = used.kernel.source_for(half).expect("the shader is in the table");
            // tint wants to be told of subgroups, where naga does not know the word.
            match used.kernel.needs {
                Needs::Subgroups => format!("enable subgroups;\n{text}"),
                _ => text.into_owned(),
            }
        });
        let wgsl = write(&folder, &format!("{module}.wgsl"), text.as_bytes());
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
