//! What docs/training.md shows must work, and so must the configurations in examples/configs. Needs no GPU.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::PathBuf;

use epl::config::{Config, HeadKind, LearningRate};
use epl::head::EplSettings;
use pulldown_cmark::{CodeBlockKind, Event, Parser, Tag, TagEnd};

const GUIDE: &str = include_str!("../docs/training.md");

/// The configurations, by name.
fn configurations() -> Vec<(String, Config)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples/configs");
    let mut found: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            assert_eq!(path.extension().unwrap(), "toml", "{}", path.display());
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let config = Config::load(&path, &[]).unwrap_or_else(|error| panic!("{name}: {error}"));
            (name, config)
        })
        .collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

#[test]
fn the_ready_configurations_are_those_that_were_published() {
    let found = configurations();
    let names: Vec<_> = found.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["casia-cosface", "casia-epl", "glint360k", "ms1mv3", "webface12m", "webface4m"]);
    for (name, config) in &found {
        let casia = name.starts_with("casia");
        let images = config.train.batch_size * config.train.accumulate;
        let epochs = config.train.epochs;
        assert_eq!((images, epochs), if casia { (512, 28) } else { (1024, 20) }, "{name}");
        // The rate as it is used, after all scaling.
        let rate = LearningRate::new(&config.optim, &config.train);
        assert_eq!(rate.lr(0, 1000), 0.1, "{name}");
        let half = rate.lr(u64::from(epochs) * 1000 / 2, 1000);
        assert!((half - if casia { 0.1 } else { 0.025 }).abs() < 1e-12, "{name}: {half}");
        assert_eq!(config.optim.weight_decay, if name == "glint360k" { 1e-4 } else { 5e-4 }, "{name}");
        let head = if name == "ms1mv3" { (HeadKind::ArcFace, 0.5) } else { (HeadKind::CosFace, 0.4) };
        assert_eq!((config.head.kind, config.head.margin), head, "{name}");
        assert_eq!(config.head.epl.is_some(), name == "casia-epl", "{name}");
        assert_eq!(config.train.out, PathBuf::from("runs").join(name));
        assert!(GUIDE.contains(&format!("`examples/configs/{name}.toml`")), "{name} is not in the guide");
    }
    // The two are there to be compared.
    let [mut plain, mut epl] = [0, 1].map(|index| found[index].1.clone());
    (plain.head.epl, epl.head.epl) = (None, None);
    (plain.train.out, epl.train.out) = Default::default();
    assert_eq!(plain, epl);
}

/// The lines of code blocks, and inline code.
fn code() -> (Vec<String>, Vec<String>) {
    let (mut lines, mut inline, mut inside) = (Vec::new(), Vec::new(), false);
    for event in Parser::new_ext(GUIDE, pulldown_cmark::Options::ENABLE_TABLES) {
        match event {
            Event::Start(Tag::CodeBlock(kind)) => inside = matches!(kind, CodeBlockKind::Indented),
            Event::End(TagEnd::CodeBlock) => inside = false,
            Event::Text(text) if inside => lines.extend(text.lines().map(str::to_owned)),
            Event::Code(text) => inline.push(text.to_string()),
            _ => {}
        }
    }
    (lines, inline)
}

#[test]
fn the_commands_of_the_guide_are_understood() {
    let (lines, inline) = code();
    let mut command = epl::cli::command();
    command.build();
    let shown: Vec<_> = lines.iter().filter_map(|line| Some(&line[line.find("epl ")?..])).collect();
    let shown: Vec<_> = shown.into_iter().filter(|line| !line.contains(".jsonl")).collect();
    assert!(shown.len() >= 8, "{shown:?}");
    for line in &shown {
        let words = line.split(['#', '>']).next().unwrap().trim_end_matches(" 2").split_whitespace();
        command.try_get_matches_from_mut(words).unwrap_or_else(|error| panic!("`{line}`: {error}"));
    }
    for text in inline.iter().filter_map(|text| text.strip_prefix("epl ")) {
        let mut below = &command;
        for word in text.split(' ').take_while(|word| word.chars().all(|c| c.is_ascii_lowercase())) {
            below = below.find_subcommand(word).unwrap_or_else(|| panic!("`epl {text}` does not exist"));
        }
    }
}

#[test]
fn the_keys_of_the_guide_exist() {
    let (_, inline) = code();
    let table = toml::Table::try_from(Config::default()).unwrap();
    let mut checked = 0;
    for text in &inline {
        let key = text.split([' ', '=']).next().unwrap();
        let Some((section, name)) = key.split_once('.') else { continue };
        if name.contains('.') || !["model", "head", "data", "optim", "train"].contains(&section) {
            continue;
        }
        // Files are named like keys.
        if ["safetensors", "rec", "idx"].contains(&name) {
            continue;
        }
        assert!(table[section].get(name).is_some(), "`{text}`: there is no key {key}");
        if text.contains(" = ") {
            let required = ["data.train=faces".to_owned(), "train.out=run".to_owned(), text.clone()];
            Config::from_toml("", &required).unwrap_or_else(|error| panic!("`{text}`: {error}"));
        }
        checked += 1;
    }
    assert!(checked > 20, "{checked}");
}

/// The keys of a table, and of the tables in it, with the values.
fn leaves(prefix: &str, table: &toml::Table, found: &mut Vec<(String, String)>) {
    for (name, value) in table {
        match value {
            toml::Value::Table(inner) if name != "schedule" => {
                leaves(&format!("{prefix}{name}."), inner, found)
            }
            value => found.push((format!("{prefix}{name}"), value.to_string())),
        }
    }
}

#[test]
fn every_key_is_explained_with_its_default() {
    const REFERENCE: &str = include_str!("../docs/configuration.md");
    let mut config = Config::default();
    config.head.epl = Some(EplSettings::default());
    let table: toml::Table = toml::to_string(&config).unwrap().parse().unwrap();
    let mut keys = Vec::new();
    leaves("", &table, &mut keys);
    assert!(keys.len() > 30);
    for (key, default) in keys {
        let (section, name) = key.rsplit_once('.').unwrap();
        let start =
            REFERENCE.find(&format!("`[{section}]`")).unwrap_or_else(|| panic!("no section {section}"));
        let row = REFERENCE[start..].lines().find(|line| line.starts_with(&format!("| `{name}` |")));
        let row = row.unwrap_or_else(|| panic!("{key} is not explained"));
        let told = row.split('|').nth(2).unwrap().trim().trim_matches('`');
        let same = match (told.parse::<f64>(), default.parse::<f64>()) {
            (Ok(told), Ok(default)) => told == default,
            _ => told == default || matches!(told, "required" | "multistep"),
        };
        assert!(same, "{key}: {told} in the documentation, {default} in the program");
    }
    for name in ["blocks", "init", "num_classes"] {
        assert!(REFERENCE.contains(&format!("| `{name}` |")), "{name}");
    }
}
