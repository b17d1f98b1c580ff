//! Groups of a set's images, such as by race or by age: a CSV file of two columns, image or identity and group, below a
//! row of titles. The pairs of a group are those of its images; an image may be in several groups.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::Path;

use crate::{Error, Result};

/// Some images of a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// What the file calls it.
    pub name: String,
    /// The images, ascending, each once.
    pub rows: Vec<u32>,
}

/// Which image a name is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Image {
    One(u32),
    Several,
}

/// What the images of a set and their identities can be called.
#[derive(Debug, Default)]
pub struct Names {
    /// By path, and by path from the set's folder on.
    images: HashMap<String, Image>,
    /// By the last folder and the file name.
    short: HashMap<String, Image>,
    identities: HashMap<String, Vec<u32>>,
}

impl Names {
    /// Adds image `row`, which is at `path` and of the person `identity`. It can be called by its path, by its path from
    /// `root` on where that is a folder that it is in, and by its last folder and file name where no other has these.
    pub fn insert(&mut self, row: u32, path: &str, root: Option<&Path>, identity: &str) {
        let path = tidy(path);
        let mut parts = path.rsplitn(3, '/');
        if let (Some(file), Some(folder)) = (parts.next(), parts.next()) {
            call(&mut self.short, format!("{folder}/{file}"), row);
        }
        if let Some(root) = root.map(|root| tidy(&root.to_string_lossy())) {
            let inside =
                path.strip_prefix(root.trim_end_matches('/')).and_then(|rest| rest.strip_prefix('/'));
            if let Some(inside) = inside {
                call(&mut self.images, inside.to_owned(), row);
            }
        }
        call(&mut self.images, path, row);
        self.identities.entry(identity.to_owned()).or_default().push(row);
    }

    /// The images that `name` stands for: one, or all of an identity.
    fn find(&self, name: &str) -> std::result::Result<&[u32], &'static str> {
        match self.images.get(name).or_else(|| self.short.get(name)) {
            Some(Image::One(row)) => Ok(std::slice::from_ref(row)),
            Some(Image::Several) => Err("the name of several images"),
            None => self
                .identities
                .get(name)
                .map(Vec::as_slice)
                .ok_or("neither an image nor an identity of the set"),
        }
    }

    /// The groups in the file at `path`, in the order in which they come first. A relative path of an image may also be
    /// one from the file's own folder on.
    ///
    /// # Errors
    /// A file that cannot be read, is no CSV file of two columns or names nothing; a name that is not in the set, or is
    /// of several images, by its line.
    pub fn read_groups(&self, path: &Path) -> Result<Vec<Group>> {
        let file = std::fs::File::open(path).map_err(|source| Error::io(path, source))?;
        let hint = "give two columns, image or identity and group, below a row of titles";
        let fault = |line: u64, found: String, expected: &str| {
            Error::data(format!("{}, line {line}", path.display()), found, expected, hint)
        };
        let mut reader = csv::ReaderBuilder::new().flexible(true).trim(csv::Trim::All).from_reader(file);
        let titles = reader.headers().cloned().unwrap_or_default();
        let title = titles.get(0).unwrap_or_default();
        let beside_file = tidy(&path.parent().unwrap_or(Path::new("")).join(title).to_string_lossy());
        if !title.is_empty() && (self.find(&tidy(title)).is_ok() || self.find(&beside_file).is_ok()) {
            let found = format!("`{title}`, which is in the set, where the titles of the columns should be");
            return Err(fault(1, found, "a row of titles, such as `image,group`"));
        }
        let mut groups: Vec<Group> = Vec::new();
        let mut places: HashMap<String, usize> = HashMap::new();
        let folder = path.parent().unwrap_or(Path::new(""));
        for record in reader.records() {
            let record = record.map_err(|error| match error.into_kind() {
                csv::ErrorKind::Io(source) => Error::io(path, source),
                kind => {
                    Error::data(path.display().to_string(), format!("{kind:?}"), "a CSV file in UTF-8", hint)
                }
            })?;
            let line = record.position().map_or(0, csv::Position::line);
            let (name, group) = match (record.get(0), record.get(1), record.len()) {
                (Some(name), Some(group), 2) if !name.is_empty() && !group.is_empty() => (name, group),
                _ => {
                    let found: String =
                        record.iter().collect::<Vec<_>>().join(",").chars().take(80).collect();
                    return Err(fault(line, format!("`{found}`"), "an image or identity, and a group"));
                }
            };
            let beside = || self.find(&tidy(&folder.join(name).to_string_lossy()));
            let rows = self.find(&tidy(name)).or_else(|why| beside().map_err(|_| why)).map_err(|why| {
                fault(line, format!("`{name}`, {why}"), "the path of one image, or the name of an identity")
            })?;
            let place = *places.entry(group.to_owned()).or_insert_with(|| {
                groups.push(Group { name: group.to_owned(), rows: Vec::new() });
                groups.len() - 1
            });
            if let Some(group) = groups.get_mut(place) {
                group.rows.extend(rows);
            }
        }
        if groups.is_empty() {
            return Err(Error::data(path.display().to_string(), "no groups", "at least one", hint));
        }
        for group in &mut groups {
            group.rows.sort_unstable();
            group.rows.dedup();
        }
        Ok(groups)
    }
}

/// Lets `row` be called `name`, if nothing else is.
fn call(names: &mut HashMap<String, Image>, name: String, row: u32) {
    match names.entry(name) {
        Entry::Vacant(slot) => drop(slot.insert(Image::One(row))),
        Entry::Occupied(mut slot) if *slot.get() != Image::One(row) => drop(slot.insert(Image::Several)),
        Entry::Occupied(_) => {}
    }
}

/// A path as names are compared: with `/`, and without a leading `./`.
fn tidy(path: &str) -> String {
    let path = path.replace('\\', "/");
    path.strip_prefix("./").map(str::to_owned).unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        let mut names = Names::default();
        let images = [
            ("set/a/1.png", "a"),
            ("set/a/2.png", "a"),
            ("set/b/1.png", "b"),
            ("other/b/1.png", "b"),
            ("x/d/1.png", "d"),
            ("y/d/1.png", "d"),
        ];
        for (row, (path, identity)) in images.into_iter().enumerate() {
            names.insert(row as u32, path, Some(Path::new("./set/")), identity);
        }
        names
    }

    fn read(text: &[u8]) -> Result<Vec<Group>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("groups.csv");
        std::fs::write(&path, text).unwrap();
        names().read_groups(&path)
    }

    #[test]
    fn images_and_identities_are_found_by_what_they_are_called() {
        let text = b"image,group\r\na/1.png,young\n\"set/b/1.png\",old\n b , all\na,all\na/2.png,all\n./set/a/2.png,old\nb/1.png,old\n";
        let groups = read(text).unwrap();
        let group = |name: &str, rows: &[u32]| Group { name: name.to_owned(), rows: rows.to_vec() };
        assert_eq!(groups, [group("young", &[0]), group("old", &[1, 2]), group("all", &[0, 1, 2, 3])]);

        let folder = tempfile::tempdir().unwrap();
        let mut names = Names::default();
        names.insert(5, &folder.path().join("faces/c/9.png").to_string_lossy(), None, "c");
        let list = folder.path().join("g.csv");
        std::fs::write(&list, "x,y\nfaces/c/9.png,g\n").unwrap();
        assert_eq!(names.read_groups(&list).unwrap(), [group("g", &[5])], "from the file's folder on");
    }

    #[test]
    fn what_is_not_a_list_of_groups_is_refused_by_line() {
        for (text, words) in [
            (&b""[..], "no groups"),
            (b"image,group\n", "no groups"),
            (b"image,group\na/1.png\n", "line 2"),
            (b"image,group\na/1.png,g\na/1.png,g,h\n", "line 3"),
            (b"image,group\n,g\n", "line 2"),
            (b"image,group\na/1.png,\n", "line 2"),
            (b"image,group\na/3.png,g\n", "`a/3.png`, neither an image nor an identity"),
            (b"image,group\nd/1.png,g\n", "`d/1.png`, the name of several images"),
            (b"image,group\n\xff\xfe,g\n", "UTF-8"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains("groups.csv"), "{text:?}: {error}");
        }
        assert!(names().read_groups(Path::new("no/such.csv")).is_err());
    }
}
