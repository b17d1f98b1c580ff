//! What README.md shows must work: its configurations parse, its commands exist. Needs no GPU.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use epl::config::Config;
use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

const README: &str = include_str!("../README.md");

/// The fenced blocks in `language`, in order.
fn blocks(language: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut inside = false;
    for event in Parser::new(README) {
        match event {
            Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(info))) if &*info == language => {
                inside = true;
                found.push(String::new());
            }
            Event::End(TagEnd::CodeBlock) => inside = false,
            Event::Text(text) if inside => found.last_mut().unwrap().push_str(&text),
            _ => {}
        }
    }
    found
}

#[test]
fn the_minimal_configuration_is_complete() {
    let blocks = blocks("toml");
    let config = Config::from_toml(&blocks[0], &[]).unwrap();
    // What the text says of it.
    assert_eq!((config.model.arch.as_str(), config.head.epl), ("ir50", None));
}

#[test]
fn every_other_configuration_lacks_only_the_required_keys() {
    let blocks = blocks("toml");
    assert!(blocks.len() > 1, "README.md has one configuration block");
    let required = ["data.train=faces", "train.out=run"].map(String::from);
    for block in &blocks[1..] {
        let config = Config::from_toml(block, &required).unwrap_or_else(|error| panic!("{error}\n{block}"));
        assert!(config.head.epl.is_some(), "the block shows how EPL is switched on");
    }
}

/// The commands `epl ...` in inline code, as words up to the first argument.
fn commands() -> Vec<Vec<String>> {
    Parser::new_ext(README, Options::ENABLE_TABLES)
        .filter_map(|event| match event {
            Event::Code(code) => code.strip_prefix("epl ").map(str::to_owned),
            _ => None,
        })
        .map(|rest| {
            let name = |word: &&str| {
                word.chars().all(|c| c.is_ascii_lowercase() || c == '-') && !word.starts_with('-')
            };
            rest.split(' ').take_while(name).map(str::to_owned).collect()
        })
        .collect()
}

#[test]
fn the_commands_exist_and_none_is_left_out() {
    let mut root = epl::cli::command();
    root.build();
    let shown = commands();
    for words in shown.iter().filter(|words| !words.is_empty()) {
        let mut command = &root;
        for word in words {
            let below = command.find_subcommand(word);
            command = below.unwrap_or_else(|| panic!("README.md: `epl {}` does not exist", words.join(" ")));
        }
    }
    for command in root.get_subcommands().filter(|command| command.get_name() != "help") {
        let listed = shown.iter().any(|words| words.first().is_some_and(|word| word == command.get_name()));
        assert!(listed, "README.md does not name `epl {}`", command.get_name());
    }
}
