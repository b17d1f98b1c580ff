//! The files that a Markdown document names.

use pulldown_cmark::{Event, Options, Parser, Tag};

/// Top folders of this repository: inline code that starts with one of them names a file.
const FOLDERS: [&str; 10] =
    [".cargo", ".ci", ".github", "docs", "examples", "runtime", "shaders", "src", "tests", "xtask"];

/// Kinds of files that name a file of this repository wherever they are said to be.
const EXTENSIONS: [&str; 3] = [".rs", ".wgsl", ".md"];

/// The files named in inline code and links, but not in fenced blocks, for which `exists` says no.
pub fn missing_files(path: &str, text: &str, exists: &dyn Fn(&str) -> bool) -> Vec<String> {
    let mut offenders = Vec::new();
    for (event, range) in Parser::new_ext(text, Options::ENABLE_TABLES).into_offset_iter() {
        let named = match &event {
            Event::Code(code) => {
                code.split_whitespace().filter_map(file_in_code).map(str::to_owned).collect()
            }
            Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                link_target(path, dest_url).into_iter().collect()
            }
            _ => Vec::new(),
        };
        let line = 1 + text[..range.start].matches('\n').count();
        let missing = named.into_iter().filter(|name| !exists(name));
        offenders.extend(missing.map(|name| format!("{path}:{line}: `{name}` does not exist")));
    }
    offenders
}

/// The file that a word of inline code names, if it looks like one; a line number may follow it.
fn file_in_code(word: &str) -> Option<&str> {
    let word = word.split([':', '#']).next()?.trim_end_matches([',', ';', '.', '/']);
    let plain = word.chars().all(|c| c.is_ascii_alphanumeric() || "._-/".contains(c));
    let (first, _) = word.split_once('/')?;
    let ours = FOLDERS.contains(&first) || EXTENSIONS.iter().any(|extension| word.ends_with(extension));
    (plain && ours).then_some(word)
}

/// Where a link inside the repository leads, from its root; `None` for the web and for the same page.
fn link_target(document: &str, link: &str) -> Option<String> {
    let link = link.split('#').next()?;
    if link.is_empty() || link.contains(':') {
        return None;
    }
    let mut parts: Vec<&str> = document.split('/').collect();
    parts.pop();
    for part in link.trim_end_matches('/').split('/') {
        match part {
            "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

#[test]
fn a_missing_file_is_found_in_code_and_in_links() {
    let exists = |path: &str| ["src/lib.rs", "README.md", "docs/epl.md", ".ci/run"].contains(&path);
    let found = |text: &str| missing_files("docs/a.md", text, &exists);
    assert_eq!(found("one\n\n`src/gone.rs`"), ["docs/a.md:3: `src/gone.rs` does not exist"]);
    assert_eq!(found("| a |\n|---|\n| `head/epl.rs:3` |"), ["docs/a.md:3: `head/epl.rs` does not exist"]);
    for bad in [
        "`shaders/gone`",
        "`cat docs/gone.md`",
        "[x](gone.md)",
        "[x](../gone#part)",
        "[x][y]\n\n[y]: gone/z.toml",
    ] {
        assert_eq!(found(bad).len(), 1, "{bad}");
    }
    for good in [
        "`src/lib.rs`, `src/lib.rs:12`, `.ci/run`, [x](epl.md#part), [x](../README.md), [x](#part)",
        "`images/s`, `runs/name/report.html`, `shaders/*.wgsl`, `lib.rs`, `sum|none`, <https://example.com/a.md>",
        "```\nsrc/gone.rs\n```",
    ] {
        assert_eq!(found(good), Vec::<String>::new(), "{good}");
    }
}
