//! Lists of pairs in text: two paths and 0 or 1 a line.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::bin::Contents;
use crate::{Error, Result};

/// Reads a list; see [`super::VerificationSet::open_pairs`]. An image that is listed more than once is read once.
pub(super) fn read(path: &Path) -> Result<Contents> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::io(path, source))?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut known: HashMap<PathBuf, Arc<[u8]>> = HashMap::new();
    let (mut images, mut issame) = (Vec::new(), Vec::new());
    for (number, line) in text.lines().enumerate() {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((first, second, same)) = parse_line(line) else {
            return Err(Error::data(
                format!("{}, line {}", path.display(), number + 1),
                format!("`{}`", line.chars().take(120).collect::<String>()),
                "two paths and 0 or 1",
                "separate the three by tabs if a path holds a space",
            ));
        };
        for listed in [first, second] {
            let beside = folder.join(listed);
            let file = if beside.exists() { beside } else { PathBuf::from(listed) };
            let image = match known.get(&file) {
                Some(image) => Arc::clone(image),
                None => {
                    let image: Arc<[u8]> =
                        std::fs::read(&file).map_err(|source| Error::io(&file, source))?.into();
                    known.insert(file, Arc::clone(&image));
                    image
                }
            };
            images.push(image);
        }
        issame.push(same);
    }
    if issame.is_empty() {
        return Err(Error::data(
            path.display().to_string(),
            "no pairs",
            "two paths and 0 or 1 a line",
            "add pairs",
        ));
    }
    Ok((images, issame))
}

fn parse_line(line: &str) -> Option<(&str, &str, bool)> {
    let fields: Vec<&str> = if line.contains('\t') {
        line.split('\t').map(str::trim).collect()
    } else {
        line.split_whitespace().collect()
    };
    let &[first, second, same] = fields.as_slice() else { return None };
    let same = match same {
        "0" => false,
        "1" => true,
        _ => return None,
    };
    (!first.is_empty() && !second.is_empty()).then_some((first, second, same))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::VerificationSet;

    #[test]
    fn pairs_are_read_from_the_lists_folder() {
        let folder = tempfile::tempdir().unwrap();
        for (file, contents) in [("a.png", "A"), ("b c.png", "B"), ("d.png", "D")] {
            std::fs::write(folder.path().join(file), contents).unwrap();
        }
        let list = folder.path().join("mine.txt");
        let absolute = folder.path().join("d.png");
        let text =
            format!("# comment\n\na.png d.png 1\r\na.png\tb c.png\t0\n{}\ta.png\t1\n", absolute.display());
        std::fs::write(&list, text).unwrap();
        let set = VerificationSet::open_pairs(&list).unwrap();
        let images: Vec<&[u8]> = set.images.iter().map(AsRef::as_ref).collect();
        assert_eq!(images, [b"A", b"D", b"A", b"B", b"D", b"A"]);
        assert_eq!((set.name.as_str(), set.issame), ("mine", vec![true, false, true]));
        assert!(Arc::ptr_eq(&set.images[0], &set.images[2]));

        for (text, expected) in [
            ("a.png d.png 1\na.png b c.png 0\n", "line 2"),
            ("a.png d.png 2\n", "line 1"),
            ("a.png 1\n", "line 1"),
            ("a.png none.png 1\n", "none.png"),
            ("# nothing\n", "no pairs"),
        ] {
            std::fs::write(&list, text).unwrap();
            let error = read(&list).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
