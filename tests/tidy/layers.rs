//! The layers of the crates, and what each file names of its own crate.

use std::collections::HashMap;

use crate::File;
use crate::source::{Tokens, tokens};

/// The modules of a crate, lowest layer first.
pub struct Crate {
    /// What others call it; with `extern crate self` its own files may as well.
    pub name: &'static str,
    /// The folder of its `lib.rs`.
    pub folder: &'static str,
    /// A module may name those of its own layer and of lower ones.
    pub layers: &'static [&'static [&'static str]],
}

/// The layers. Errors are named by everyone, so they are at the bottom.
pub const CRATES: [Crate; 2] = [
    Crate {
        name: "epl_runtime",
        folder: "runtime/src",
        layers: &[
            &["shape", "dtype", "host", "error"],
            &[
                "adapters",
                "buffer",
                "caps",
                "counters",
                "device",
                "emulate",
                "faults",
                "features",
                "guard",
                "health",
                "kernel",
                "pipeline_file",
                "pipelines",
                "probe",
                "reopen",
                "store",
            ],
            &["op", "case", "choice", "ops"],
            &["graph", "autodiff", "memory", "plan", "slots", "flight", "pace", "session"],
            &["interpret", "inspect", "check", "tune"],
        ],
    },
    Crate {
        name: "epl",
        folder: "src",
        layers: &[
            &["error", "pickle"],
            &["nn"],
            &["head"],
            &["data", "interchange", "checkpoint", "config"],
            &["model"],
            &["eval"],
            &["report"],
            &["train"],
            &["cli"],
        ],
    },
];

impl Crate {
    fn layer(&self, module: &str) -> Option<usize> {
        self.layers.iter().position(|modules| modules.contains(&module))
    }
}

/// A path in a file, such as `crate::graph::Graph`.
struct Reference {
    segments: Vec<String>,
    /// What it is called here: its last segment, or what stands after `as`.
    name: String,
    line: usize,
}

/// Reads the path, or the tree of paths in braces, that begins at `at`; returns where it ends.
fn paths(tokens: &Tokens, mut at: usize, prefix: &[String], found: &mut Vec<Reference>) -> usize {
    if tokens.is(at, "{") {
        at += 1;
        while at < tokens.count() && !tokens.is(at, "}") {
            at = paths(tokens, at, prefix, found);
            while at < tokens.count() && !tokens.is(at, ",") && !tokens.is(at, "}") {
                at += 1;
            }
            at += usize::from(tokens.is(at, ","));
        }
        return at + 1;
    }
    let mut segments = prefix.to_vec();
    segments.push(tokens.word(at).to_owned());
    if tokens.is(at + 1, "::") && !tokens.is(at + 2, "<") {
        return paths(tokens, at + 2, &segments, found);
    }
    let named = if tokens.is(at + 1, "as") {
        tokens.word(at + 2)
    } else if tokens.is(at, "self") {
        prefix.last().map_or("self", String::as_str)
    } else {
        tokens.word(at)
    };
    found.push(Reference { name: named.to_owned(), segments, line: tokens.line(at) });
    at + 1
}

/// The names at the root of the crate that come from its modules, by re-export in `lib.rs` or by
/// `#[macro_export]`, each with its module; `None` for what comes from another crate.
pub type Exports = HashMap<String, Option<String>>;

/// The exports of a crate, given the files of all crates.
pub fn exports(krate: &Crate, files: &[File]) -> Exports {
    let mut exports = Exports::new();
    for file in files {
        let Some(module) = module(krate, &file.path) else { continue };
        let tokens = tokens(&file.path, &file.text);
        for at in tokens.find(&["macro_export"]) {
            let name =
                (at..tokens.count()).find(|&at| tokens.is(at, "macro_rules")).map(|at| tokens.word(at + 2));
            exports.extend(name.map(|name| (name.to_owned(), Some(module[0].to_owned()))));
        }
        if module == ["lib"] {
            let mut found = Vec::new();
            for at in tokens.find(&["use"]) {
                paths(&tokens, at + 1, &[], &mut found);
            }
            exports.extend(found.into_iter().map(|Reference { segments, name, .. }| {
                let mut path = segments.into_iter().filter(|segment| segment != "crate" && segment != "self");
                (name, path.next().filter(|module| krate.layer(module).is_some()))
            }));
        }
    }
    exports
}

/// The module path that a file of this crate defines; `lib` for the crate's root.
fn module<'a>(krate: &Crate, path: &'a str) -> Option<Vec<&'a str>> {
    let inside = path.strip_prefix(krate.folder)?.strip_prefix('/')?.strip_suffix(".rs")?;
    Some(inside.strip_suffix("/mod").unwrap_or(inside).split('/').collect())
}

/// The paths of a file that start at its crate's root, as segments below the root, with their lines.
fn references(krate: &Crate, module: &[&str], tokens: &Tokens) -> Vec<(Vec<String>, usize)> {
    let mut inside: Vec<String> = module.iter().map(|&name| name.to_owned()).collect();
    // Inline modules that are open: the number of open braces where each began.
    let (mut open, mut inline) = (0, Vec::new());
    let mut found = Vec::new();
    for at in 0..tokens.count() {
        let starts_path = tokens.is(at + 1, "::") && !(at > 0 && tokens.is(at - 1, "::"));
        match tokens.word(at) {
            "{" => open += 1,
            "}" => {
                open -= 1;
                if inline.last() == Some(&open) {
                    inline.pop();
                    inside.pop();
                }
            }
            "mod" if tokens.is(at + 2, "{") => {
                inline.push(open);
                inside.push(tokens.word(at + 1).to_owned());
            }
            word if starts_path && (["crate", "super", "self"].contains(&word) || word == krate.name) => {
                let mut paths_here = Vec::new();
                paths(tokens, at, &[], &mut paths_here);
                found.extend(
                    paths_here.into_iter().map(|path| (from_root(krate, &inside, path.segments), path.line)),
                );
            }
            _ => {}
        }
    }
    found
}

/// Resolves a leading `crate`, `self` or name of the crate, and every leading `super`.
fn from_root(krate: &Crate, inside: &[String], segments: Vec<String>) -> Vec<String> {
    let mut base = inside.to_vec();
    let mut rest = segments.into_iter().peekable();
    match rest.next_if(|word| ["crate", "self"].contains(&word.as_str()) || word == krate.name) {
        Some(word) if word != "self" => base.clear(),
        _ => {}
    }
    while rest.next_if(|word| word == "super").is_some() {
        base.pop();
    }
    base.extend(rest);
    base
}

/// What a file names of higher layers, and names that are in no layer.
pub fn check(krate: &Crate, exports: &Exports, path: &str, text: &str) -> Vec<String> {
    // The roots of the library and of the binary stand above all layers.
    let Some(module) = module(krate, path).filter(|module| module != &["lib"] && module != &["main"]) else {
        return Vec::new();
    };
    let own = module[0];
    let hint = "add it to the layers in tests/tidy/layers.rs";
    let Some(own_layer) = krate.layer(own) else {
        return vec![format!("{path}: the module `{own}` is in no layer; {hint}")];
    };
    let mut offenders = Vec::new();
    for (segments, line) in references(krate, &module, &tokens(path, text)) {
        let target = segments.first().map_or("the root", String::as_str);
        let target_module = match exports.get(target) {
            Some(None) => continue,
            Some(Some(module)) => module,
            None => target,
        };
        let full = format!("crate::{}", segments.join("::"));
        match krate.layer(target_module) {
            Some(layer) if layer <= own_layer => {}
            Some(layer) => offenders.push(format!(
                "{path}:{line}: `{own}` (layer {own_layer}) names `{full}` of `{target_module}` (layer {layer})"
            )),
            None => offenders.push(format!("{path}:{line}: `{full}`: `{target_module}` is in no layer; {hint}")),
        }
    }
    offenders
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIB: &str = "mod low; mod high; pub use low::{Error, Result as Outcome}; pub use crate::high::Graph;\n\
                       pub use outside; pub use outside::Name;";
    const HIGH: &str = "#[macro_export]\nmacro_rules! raise { () => {} }";

    fn found(path: &str, text: &str) -> Vec<String> {
        let layers: &[&[&str]] = &[&["low", "lower"], &["middle"], &["high"]];
        let krate = Crate { name: "named", folder: "a/src", layers };
        let file = |path: &str, text: &str| File { path: path.to_owned(), text: text.to_owned() };
        let files =
            [file("a/src/lib.rs", LIB), file("a/src/high.rs", HIGH), file("b/src/lib.rs", "use x::low;")];
        check(&krate, &exports(&krate, &files), path, text)
    }

    #[test]
    fn own_and_lower_layers_are_allowed() {
        let text = "use crate::{Error, Outcome, Name, outside::x, low::{self, shape}, middle};\nuse super::other;\n\
                    pub(crate) fn f() -> crate::low::Thing { self::g::<crate::Error>() } // crate::high\n\
                    mod tests { use super::*; const DOCUMENT: &str = \"crate::high\"; }\n fn h(self) {}";
        assert_eq!(found("a/src/middle/part.rs", text), Vec::<String>::new());
        assert_eq!(found("a/src/low.rs", "use crate::lower::Pair;"), Vec::<String>::new());
        assert_eq!(found("a/src/lib.rs", "use crate::high::Graph;"), Vec::<String>::new());
        assert_eq!(found("b/src/low.rs", "use crate::high::Graph;"), Vec::<String>::new());
    }

    #[test]
    fn every_way_to_name_a_higher_layer_is_found() {
        for text in [
            "use crate::high::Graph;",
            "use crate::Graph;",
            "use crate::{Error, high as other};",
            "use named::high::Graph;",
            "crate::raise! {}",
            "use crate::{low::Shape, high::{Graph, Node}};",
            "use super::super::high::Graph;",
            "fn f() { let x = vec![crate::high::f()]; }",
            "mod tests { mod inner { fn f() { super::super::super::super::high::f() } } }",
            "mod tests { fn f() {} } use super::super::high;",
        ] {
            let offenders = found("a/src/middle/part.rs", text);
            assert!(!offenders.is_empty(), "{text}");
            assert!(offenders.iter().all(|line| line.contains("(layer 2)")), "{text}: {offenders:?}");
        }
        assert_eq!(
            found("a/src/low/mod.rs", "\nuse super::middle::f;"),
            ["a/src/low/mod.rs:2: `low` (layer 0) names `crate::middle::f` of `middle` (layer 1)"]
        );
    }

    #[test]
    fn what_is_in_no_layer_is_found() {
        let unknown = found("a/src/new.rs", "");
        assert_eq!(unknown.len(), 1);
        assert!(unknown[0].contains("`new` is in no layer; add it to"), "{unknown:?}");
        for text in ["use crate::new::X;", "use crate::*;", "fn f() { crate::exported!() }"] {
            assert_eq!(found("a/src/low.rs", text).len(), 1, "{text}");
        }
    }
}
