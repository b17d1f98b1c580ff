//! Rules of this repository that the compiler does not check. No GPU is needed.
//!
//! Each rule has a checker over a file's path and text, a test that applies it to the whole tree, and
//! a test that it objects to a bad example.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "this is a test; its helpers are too"
)]

mod documents;
mod layers;
mod source;

use std::fs;
use std::path::PathBuf;

use source::{Tokens, tokens};

/// The longest source file that is still read as a whole.
const MAX_LINES: usize = 600;

/// Words of the application, which the runtime does not know.
const APPLICATION_WORDS: [&str; 4] = ["face", "faces", "prototype", "prototypes"];

/// The repository's root. Cargo names it when the test runs as well, which counts where the checkout
/// was moved or shares its build folder with another one.
fn root() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

/// A text file: its path from the root with `/` on every platform, and its contents.
struct File {
    path: String,
    text: String,
}

/// The files with one of `extensions`, sorted by path. Build outputs, runs, hidden folders and what
/// is linked in from elsewhere are left out.
fn files(extensions: &[&str]) -> Vec<File> {
    let root = root();
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let entry = entry.unwrap();
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            let name = entry.file_name().into_string().unwrap_or_default();
            if kind.is_dir() && !name.starts_with('.') && !["target", "runs"].contains(&name.as_str()) {
                folders.push(path);
            } else if kind.is_file() && extensions.iter().any(|e| path.extension().is_some_and(|x| x == *e)) {
                let parts = path.strip_prefix(&root).unwrap().iter();
                let path_from_root = parts.map(|part| part.to_str().unwrap()).collect::<Vec<_>>().join("/");
                found.push(File { text: fs::read_to_string(&path).unwrap(), path: path_from_root });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn rust_files() -> Vec<File> {
    let found = files(&["rs"]);
    for expected in ["src/lib.rs", "runtime/src/lib.rs", "shaders/lib.rs", "xtask/src/main.rs"] {
        assert!(found.iter().any(|file| file.path == expected), "the walk over the tree missed {expected}");
    }
    found
}

/// Applies a checker to files and fails with the rule's reason and every offender.
fn check(reason: &str, files: &[File], checker: impl Fn(&str, &str) -> Vec<String>) {
    verdict(reason, &files.iter().flat_map(|file| checker(&file.path, &file.text)).collect::<Vec<_>>());
}

fn verdict(reason: &str, offenders: &[String]) {
    assert!(offenders.is_empty(), "{reason}\n  {}\n", offenders.join("\n  "));
}

/// Differences between the shader files `(name, text)` and the table `(name, source)`.
fn shader_table(files: &[(&str, &str)], table: &[(&str, &str)]) -> Vec<String> {
    let mut offenders = Vec::new();
    for pair in table.windows(2) {
        if pair[0].0 >= pair[1].0 {
            offenders.push(format!("shaders/lib.rs: `{}` stands before `{}`", pair[0].0, pair[1].0));
        }
    }
    for (name, text) in files {
        match table.iter().find(|(listed, _)| listed == name) {
            None => offenders.push(format!("shaders/{name}.wgsl: not in the table of shaders/lib.rs")),
            Some((_, source)) if source != text => {
                offenders.push(format!("shaders/lib.rs: `{name}` has the source of another file"));
            }
            Some(_) => {}
        }
    }
    for (name, _) in table.iter().filter(|(name, _)| !files.iter().any(|(file, _)| file == name)) {
        offenders.push(format!("shaders/lib.rs: `{name}` has no file shaders/{name}.wgsl"));
    }
    offenders
}

#[test]
fn every_shader_is_in_the_table() {
    let files = files(&["wgsl"]);
    let mut shaders = Vec::new();
    let mut offenders = Vec::new();
    for File { path, text } in &files {
        match path.strip_prefix("shaders/").and_then(|name| name.strip_suffix(".wgsl")) {
            Some(name) if !name.contains('/') => shaders.push((name, text.as_str())),
            _ => offenders.push(format!("{path}: shaders live in shaders/, without subfolders")),
        }
    }
    offenders.extend(shader_table(&shaders, epl_shaders::SHADERS));
    verdict(
        "Shaders are found by a binary search in the table of shaders/lib.rs, so it must list every file, sorted.",
        &offenders,
    );
}

#[test]
fn a_wrong_shader_table_is_found() {
    let files = [("add", "1"), ("mul", "2")];
    assert!(shader_table(&files, &files).is_empty());
    assert_eq!(shader_table(&files, &files[..1]), ["shaders/mul.wgsl: not in the table of shaders/lib.rs"]);
    assert_eq!(shader_table(&files[..1], &files), ["shaders/lib.rs: `mul` has no file shaders/mul.wgsl"]);
    assert_eq!(
        shader_table(&files, &[("mul", "2"), ("add", "1")]),
        ["shaders/lib.rs: `mul` stands before `add`"]
    );
    assert_eq!(
        shader_table(&files, &[("add", "1"), ("mul", "1")]),
        ["shaders/lib.rs: `mul` has the source of another file"]
    );
}

/// Whether kernels may be declared in this file: those of ops, and those by which the runtime finds out about an adapter.
fn holds_ops(path: &str) -> bool {
    let is_module = path.ends_with("/mod.rs");
    path.ends_with(".rs")
        && (path.starts_with("runtime/src/ops/") && !is_module
            || path.starts_with("runtime/src/probe/")
            || path.starts_with("src/head/")
            || path.starts_with("src/eval/ops/"))
}

/// The names that kernel declarations (`shader: "name"`) in a file mention.
fn declared_shaders(path: &str, text: &str) -> Vec<String> {
    if !holds_ops(path) {
        return Vec::new();
    }
    let tokens = tokens(path, text);
    let declarations = tokens.find(&["shader", ":", "\"*"]);
    declarations.iter().map(|at| tokens.word(at + 2).trim_matches('"').to_owned()).collect()
}

#[test]
fn every_shader_has_an_op() {
    let declared: Vec<String> =
        rust_files().iter().flat_map(|file| declared_shaders(&file.path, &file.text)).collect();
    let orphans: Vec<String> = epl_shaders::SHADERS
        .iter()
        .filter(|(name, _)| !declared.iter().any(|declared| declared == name))
        .map(|(name, _)| format!("shaders/{name}.wgsl"))
        .collect();
    verdict(
        "A shader without an op has no reference, no cases and no user. Declare its kernel (shader: \"name\") in \
         runtime/src/ops/, src/head/ or src/eval/ops/, or remove it.",
        &orphans,
    );
}

#[test]
fn kernel_declarations_are_found() {
    let text = "// shader: \"comment\"\nconst K: Kernel = Kernel { shader: \"prelu\", entry: \"main\" };";
    assert_eq!(declared_shaders("runtime/src/ops/prelu.rs", text), ["prelu"]);
    assert_eq!(declared_shaders("src/head/margin.rs", text), ["prelu"]);
    assert!(declared_shaders("runtime/src/ops/mod.rs", text).is_empty());
    assert!(declared_shaders("runtime/src/kernel.rs", text).is_empty());
}

/// An op without cases.
fn ops_without_cases(path: &str, text: &str) -> Vec<String> {
    if !holds_ops(path) {
        return Vec::new();
    }
    let tokens = tokens(path, text);
    let ops = tokens.find(&["Op", "for"]);
    if tokens.find(&["fn", "cases"]).is_empty() {
        ops.iter()
            .map(|at| format!("{path}:{}: an op, but the file has no `fn cases`", tokens.line(*at)))
            .collect()
    } else {
        Vec::new()
    }
}

#[test]
fn every_op_has_cases() {
    check(
        "An op's cases are what checks it against its reference, its gradient and its bandwidth.",
        &rust_files(),
        ops_without_cases,
    );
}

#[test]
fn an_op_without_cases_is_found() {
    let (op, cases) = ("impl crate::op::Op for Prelu {", "fn cases(&self) -> Vec<Case> { vec![] }");
    let path = "runtime/src/ops/prelu.rs";
    let found = ops_without_cases(path, &format!("{op} /* {cases} */ }}"));
    assert_eq!(found, ["runtime/src/ops/prelu.rs:1: an op, but the file has no `fn cases`"]);
    assert!(ops_without_cases(path, &format!("{op} {cases} }}")).is_empty());
    assert!(ops_without_cases(path, "fn helper() {}").is_empty());
    assert_eq!(ops_without_cases("src/head/epl.rs", "impl<'a> Op for Update<'a> {}").len(), 1);
    assert_eq!(ops_without_cases("src/head/mod.rs", "impl Op for Update {}").len(), 1);
}

#[test]
fn modules_name_only_lower_layers() {
    let files = rust_files();
    let offenders = layers::CRATES.iter().flat_map(|krate| {
        let exports = layers::exports(krate, &files);
        files.iter().flat_map(move |file| layers::check(krate, &exports, &file.path, &file.text))
    });
    verdict(
        "A module may name its own layer and lower ones: so each layer can be read, tested and changed without \
         those above it. Move what is shared down; a test that needs a higher layer belongs in tests/.",
        &offenders.collect::<Vec<_>>(),
    );
}

/// Words of the application in the runtime; identifiers are split at `_` and before capitals.
fn application_words(path: &str, text: &str) -> Vec<String> {
    if !path.starts_with("runtime/") {
        return Vec::new();
    }
    let mut offenders = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let mut spaced = String::with_capacity(line.len());
        let mut previous_is_lower = false;
        for character in line.chars() {
            if previous_is_lower && character.is_uppercase() {
                spaced.push(' ');
            }
            spaced.push(character);
            previous_is_lower = character.is_lowercase();
        }
        for word in spaced.split(|character: char| !character.is_alphabetic()) {
            if APPLICATION_WORDS.contains(&word.to_lowercase().as_str()) {
                offenders.push(format!("{path}:{number}: {word}"));
            }
        }
    }
    offenders
}

#[test]
fn the_runtime_does_not_know_the_application() {
    check(
        "The runtime is for any network: what it needs to know about the application comes in as tensors and ops.",
        &files(&["rs", "toml"]),
        application_words,
    );
}

#[test]
fn words_of_the_application_are_found() {
    let found = |text: &str| application_words("runtime/src/op.rs", text);
    assert!(found("the interface of a surface; interFace_s // typeface").len() == 1, "camel case is split");
    assert!(found("the interface of a surface // typefaces, prototyped").is_empty());
    assert_eq!(found("ok\n/// A Face."), ["runtime/src/op.rs:2: Face"]);
    assert_eq!(found("let update_prototypes = PrototypeBank::new(FACES);").len(), 3);
    assert!(application_words("src/head/epl.rs", "face").is_empty());
}

/// A file that is too long.
fn length(path: &str, text: &str) -> Vec<String> {
    let lines = text.lines().count();
    if lines > MAX_LINES { vec![format!("{path}: {lines} lines")] } else { Vec::new() }
}

#[test]
fn files_are_short() {
    let reason =
        format!("Files of more than {MAX_LINES} lines are not read as a whole; split them by subject.");
    check(&reason, &files(&["rs", "wgsl"]), length);
}

#[test]
fn a_long_file_is_found() {
    assert!(length("a.rs", &"\n".repeat(MAX_LINES)).is_empty());
    assert_eq!(length("a.rs", &"\n".repeat(MAX_LINES + 1)), ["a.rs: 601 lines"]);
}

/// Tests switched off without a reason.
fn ignored_without_reason(path: &str, text: &str) -> Vec<String> {
    let tokens = tokens(path, text);
    let bare = tokens.find(&["#", "[", "ignore", "]"]);
    let empty = tokens.find(&["#", "[", "ignore", "=", "\"\""]);
    let conditional = tokens.find(&["#", "[", "cfg_attr"]).into_iter().filter(|&at| {
        let end = (at..).find(|&at| tokens.is(at, "]") || at >= tokens.count()).unwrap_or(at);
        (at..end).any(|at| tokens.is(at, "ignore") && (!tokens.is(at + 1, "=") || tokens.is(at + 2, "\"\"")))
    });
    let mut found: Vec<usize> = bare.into_iter().chain(empty).chain(conditional).collect();
    found.sort_unstable();
    found.iter().map(|at| format!("{path}:{}", tokens.line(*at))).collect()
}

#[test]
fn ignored_tests_have_a_reason() {
    check(
        "A test that is switched off silently is forgotten: write #[ignore = \"why, and how to run it\"].",
        &rust_files(),
        ignored_without_reason,
    );
}

#[test]
fn an_ignored_test_without_reason_is_found() {
    let found = |attribute: &str| ignored_without_reason("a.rs", &format!("\n{attribute}\nfn f() {{}}"));
    for attribute in ["#[ignore]", "#[ ignore = \"\" ]", "#[cfg_attr(windows, ignore)]"] {
        assert_eq!(found(attribute), ["a.rs:2"], "{attribute}");
    }
    for attribute in ["#[ignore = \"slow\"]", "#[cfg_attr(windows, ignore = \"slow\")]", "// #[ignore]"] {
        assert!(found(attribute).is_empty(), "{attribute}");
    }
}

/// Code that is announced instead of written.
fn stubs(path: &str, text: &str) -> Vec<String> {
    let tokens = tokens(path, text);
    let names = ["todo", "unimplemented"];
    let found = names.iter().flat_map(|name| tokens.find(&[name, "!"]).into_iter().map(move |at| (at, name)));
    found.map(|(at, name)| format!("{path}:{}: {name}!", tokens.line(at))).collect()
}

#[test]
fn there_are_no_stubs() {
    check("What is in the tree works; what does not yet is not in the tree.", &rust_files(), stubs);
}

#[test]
fn a_stub_is_found() {
    let text = "fn f() {\n    if g() { todo!() } else { std::unimplemented!(\"x\") }\n}";
    assert_eq!(stubs("a.rs", text), ["a.rs:2: todo!", "a.rs:2: unimplemented!"]);
    assert!(
        stubs("a.rs", "// todo!()\nconst S: &str = \"todo!()\"; fn todo() -> bool { todo != 1 }").is_empty()
    );
}

/// Text that is not WGSL as it stands, or not for every compiler.
fn foreign_wgsl(path: &str, text: &str) -> Vec<String> {
    let mut offenders = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let code = line.split("//").next().unwrap_or_default().trim_start();
        let mut statement = code.split([' ', ',', ';', '\t']);
        if line.contains('$') {
            offenders.push(format!("{path}:{number}: `$`: a value from outside is an `override` constant"));
        }
        if line.contains("#ifdef") || line.contains("#import") || code.starts_with('#') {
            offenders.push(format!("{path}:{number}: a preprocessor's directive"));
        }
        if statement.next() == Some("enable") && statement.any(|word| word == "subgroups") {
            offenders
                .push(format!("{path}:{number}: `enable subgroups`, which naga refuses and does not need"));
        }
    }
    offenders
}

#[test]
fn shaders_are_plain_wgsl() {
    check(
        "A shader is valid WGSL as it stands, for naga and for every tool that reads WGSL.",
        &files(&["wgsl"]),
        foreign_wgsl,
    );
}

#[test]
fn foreign_text_in_a_shader_is_found() {
    let found = |text: &str| foreign_wgsl("shaders/a.wgsl", text).len();
    for bad in ["const A = $TILE;", "  #ifdef F16", "#import x", "#define A", "enable subgroups;"] {
        assert_eq!(found(bad), 1, "{bad}");
    }
    assert_eq!(found("enable f16, subgroups;"), 1);
    assert_eq!(
        found("enable f16;\n// see the WGSL specification; this would enable subgroups\nlet x = 1;"),
        0
    );
}

#[test]
fn documents_name_files_that_exist() {
    let root = root();
    let exists = |path: &str| root.join(path).exists();
    let documents: Vec<File> = files(&["md"])
        .into_iter()
        .filter(|file| !file.path.contains('/') || file.path.starts_with("docs/"))
        .collect();
    assert!(documents.iter().any(|file| file.path == "README.md"), "the walk over the tree missed README.md");
    check(
        "A document that names a file which is not there misleads. Paths in inline code are written from the \
         repository's root, links from the document.",
        &documents,
        |path, text| documents::missing_files(path, text, &exists),
    );
}

#[test]
fn tokens_know_their_lines() {
    let tokens: Tokens = tokens("a.rs", "// one\nfn two() {\n    three!(\"4\")\n}");
    assert_eq!(tokens.find(&["three", "!", "("]).iter().map(|at| tokens.line(*at)).collect::<Vec<_>>(), [3]);
}
