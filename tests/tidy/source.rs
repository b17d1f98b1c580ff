//! A Rust source file as a flat list of words: comments and white space are gone, strings are single
//! words, so that a rule neither objects to a comment nor misses code because of its layout.

use proc_macro2::{Delimiter, Spacing, TokenStream, TokenTree};

/// The words of a file with their lines.
pub struct Tokens {
    words: Vec<(String, usize)>,
}

/// Splits a file into words.
///
/// # Panics
/// The file is not Rust.
pub fn tokens(path: &str, text: &str) -> Tokens {
    let stream: TokenStream = text.parse().unwrap_or_else(|error| panic!("{path}: {error}"));
    let mut words = Vec::new();
    flatten(stream, &mut words);
    Tokens { words }
}

fn flatten(stream: TokenStream, words: &mut Vec<(String, usize)>) {
    let mut joint = false;
    for tree in stream {
        let line = tree.span().start().line;
        match tree {
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::None => ("", ""),
                };
                words.push((open.to_owned(), group.span_open().start().line));
                flatten(group.stream(), words);
                words.push((close.to_owned(), group.span_close().start().line));
            }
            TokenTree::Ident(name) => words.push((name.to_string(), line)),
            TokenTree::Literal(literal) => words.push((literal.to_string(), line)),
            TokenTree::Punct(punct) => {
                // `::` is one word, and the `!` of `!=` must not look like that of a macro.
                match words.last_mut() {
                    Some((last, _)) if joint && [":", "!"].contains(&last.as_str()) => {
                        last.push(punct.as_char())
                    }
                    _ => words.push((punct.as_char().to_string(), line)),
                }
                joint = punct.spacing() == Spacing::Joint;
                continue;
            }
        }
        joint = false;
    }
}

impl Tokens {
    /// The number of words.
    pub fn count(&self) -> usize {
        self.words.len()
    }

    /// The word at `at`; empty past the end.
    pub fn word(&self, at: usize) -> &str {
        self.words.get(at).map_or("", |(word, _)| word)
    }

    /// The line, from 1, of the word at `at`.
    pub fn line(&self, at: usize) -> usize {
        self.words.get(at).map_or(0, |(_, line)| *line)
    }

    /// Whether the word at `at` is `word`; `"*` stands for any string.
    pub fn is(&self, at: usize, word: &str) -> bool {
        if word == "\"*" { self.word(at).starts_with('"') } else { self.word(at) == word }
    }

    /// Where these words follow one another.
    pub fn find(&self, pattern: &[&str]) -> Vec<usize> {
        let matches = |at: usize| pattern.iter().enumerate().all(|(offset, word)| self.is(at + offset, word));
        (0..self.count()).filter(|at| matches(*at)).collect()
    }
}
