//! The lists of IJB-B and IJB-C, as InsightFace hands them out.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::identify;
use crate::data::align::landmarks;
use crate::data::align::{Points, TARGET_SIDE, fit_or_explain};
use crate::{Error, Result};

/// Which of the two sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// IARPA Janus Benchmark-B.
    Ijbb,
    /// IARPA Janus Benchmark-C.
    Ijbc,
}

impl Target {
    /// What InsightFace calls it, and the folder that it is in.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ijbb => "IJBB",
            Self::Ijbc => "IJBC",
        }
    }

    /// What the names of its lists begin with.
    fn prefix(self) -> &'static str {
        match self {
            Self::Ijbb => "ijbb",
            Self::Ijbc => "ijbc",
        }
    }

    /// What its galleries are called.
    fn galleries(self) -> [&'static str; 2] {
        match self {
            Self::Ijbb => ["S1", "S2"],
            Self::Ijbc => ["G1", "G2"],
        }
    }
}

/// The images of the templates, in the order of the lists.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Faces {
    /// Names of the images in `loose_crop`.
    pub names: Vec<String>,
    /// Their landmarks.
    pub points: Vec<Points>,
    /// The detector's scores.
    pub detector: Vec<f32>,
    /// The template that each is of.
    pub templates: Vec<u32>,
    /// The photo or video that each is from.
    pub medias: Vec<u32>,
}

/// Pairs of templates.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pairs {
    /// One template of each pair.
    pub first: Vec<u32>,
    /// The other one.
    pub second: Vec<u32>,
    /// Whether they are of one person.
    pub same: Vec<bool>,
}

/// A gallery, or the probes: templates and the persons that they show. A template may be listed once for each of its images.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Roster {
    /// What it is called.
    pub name: String,
    /// The templates.
    pub templates: Vec<u32>,
    /// The person of each.
    pub subjects: Vec<u32>,
}

impl Roster {
    /// Template and person, each template once, ascending; the first line of a template tells its person.
    pub fn unique(&self) -> Vec<(u32, u32)> {
        let mut all: Vec<(u32, u32)> =
            self.templates.iter().copied().zip(self.subjects.iter().copied()).collect();
        all.sort_by_key(|(template, _)| *template);
        all.dedup_by_key(|(template, _)| *template);
        all
    }
}

/// The lists of the 1:N protocol.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Identification {
    /// The galleries.
    pub galleries: Vec<Roster>,
    /// The probes.
    pub probes: Roster,
}

/// All lists of a set.
#[derive(Debug)]
pub struct Meta {
    /// The folder of the images.
    pub crops: PathBuf,
    /// The list with the landmarks, for messages.
    pub faces_list: PathBuf,
    /// The images.
    pub faces: Faces,
    /// The pairs of the 1:1 protocol.
    pub pairs: Pairs,
    /// The lists of the 1:N protocol, where all three of them are there.
    pub identification: Option<Identification>,
    /// What the user should know about the lists.
    pub remarks: Vec<String>,
}

/// The error for a template that is in a list, but of which there is no image.
pub(super) fn unknown_template(place: String, template: u32) -> Error {
    Error::data(
        place,
        format!("template {template}"),
        "a template of the list of faces (..._face_tid_mid.txt)",
        "use lists of one release",
    )
}

impl Meta {
    /// Reads and checks the lists of `target` in `root`: a folder that has `meta` and `loose_crop`, or has them in a folder
    /// of the target's name.
    ///
    /// # Errors
    /// A list of the 1:1 protocol that is not there; lines that are not as they should be; faces and templates of different
    /// numbers; landmarks that no face can be aligned by; pairs of one kind only; empty galleries or probes, and those
    /// without mates; templates without faces; images that are not there.
    pub fn read(root: &Path, target: Target) -> Result<Self> {
        let folders = [root.to_path_buf(), root.join(target.name()), root.join(target.name().to_lowercase())];
        let folder = folders.into_iter().find(|folder| folder.join("meta").is_dir()).ok_or_else(|| {
            Error::data(
                root.display().to_string(),
                format!("no folder meta, neither there nor in {}", target.name()),
                "the folders meta and loose_crop of InsightFace's release of the set",
                "name that folder with --ijb, and the set with --target",
            )
        })?;
        let list = |rest: &str| folder.join("meta").join(format!("{}_{rest}", target.prefix()));
        let crops = folder.join("loose_crop");
        let mut remarks = Vec::new();
        let faces_list = list("name_5pts_score.txt");
        let faces = read_faces(&faces_list, &list("face_tid_mid.txt"), &mut remarks)?;
        check_images(&crops, &faces, &faces_list)?;
        let mut known = faces.templates.clone();
        known.par_sort_unstable();
        known.dedup();
        let pairs = read_pairs(&list("template_pair_label.txt"), &known)?;
        let identification = read_identification(&list, target, &known, &mut remarks)?;
        Ok(Self { crops, faces_list, faces, pairs, identification, remarks })
    }
}

fn read_faces(faces_list: &Path, media_list: &Path, remarks: &mut Vec<String>) -> Result<Faces> {
    let (listed, rejected) = landmarks::read(faces_list)?;
    if let Some(first) = rejected.into_iter().next() {
        return Err(first.error);
    }
    let mut faces = Faces::default();
    let mut lines = Vec::with_capacity(listed.len());
    for found in listed {
        let Some(score) = found.score.filter(|score| score.is_finite()) else {
            return Err(Error::data(
                format!("{}, line {}", faces_list.display(), found.line),
                match found.score {
                    Some(score) => format!("the score {score}"),
                    None => "ten numbers".to_owned(),
                },
                "a name, ten numbers and the detector's score",
                "use the unaltered list",
            ));
        };
        lines.push(found.line);
        faces.names.push(found.name);
        faces.points.push(found.points);
        faces.detector.push(score);
    }
    let text = read_bytes(media_list)?;
    let mut other_names = None;
    for (line, fields) in self::lines::<3>(media_list, &text, Form::Named) {
        let (name, [_, template, medium]) = fields?;
        let at = faces.templates.len();
        if faces.names.get(at).is_some_and(|other| other.as_bytes() != name) {
            other_names.get_or_insert((line, String::from_utf8_lossy(name).into_owned()));
        }
        faces.templates.push(template);
        faces.medias.push(medium);
    }
    if faces.templates.len() != faces.names.len() {
        return Err(Error::data(
            media_list.display().to_string(),
            format!("{} faces", faces.templates.len()),
            format!("{}, as {} has", faces.names.len(), faces_list.display()),
            "use both lists of one release",
        ));
    }
    check_landmarks(faces_list, &lines, &faces)?;
    if let Some((line, name)) = other_names {
        remarks.push(format!(
            "{}, line {line}: the image is called {name}, and otherwise in {}; the faces of both lists are matched by their \
             order",
            media_list.display(),
            faces_list.display()
        ));
    }
    Ok(faces)
}

/// Refuses landmarks that no face can be aligned by, before any image is embedded. `lines` are those of the faces.
fn check_landmarks(list: &Path, lines: &[usize], faces: &Faces) -> Result<()> {
    faces.points.par_iter().zip(&faces.names).zip(lines).try_for_each(|((points, name), line)| {
        // Whether there is a transform does not depend on the side.
        let place = || format!("{}, line {line} ({name})", list.display());
        fit_or_explain(points, TARGET_SIDE, place).map(drop)
    })
}

/// Refuses faces whose images are not there.
fn check_images(crops: &Path, faces: &Faces, list: &Path) -> Result<()> {
    let missing: Vec<&String> = faces
        .names
        .par_iter()
        .filter(|name| !landmarks::inside(name).is_some_and(|inside| crops.join(inside).is_file()))
        .collect();
    let Some(first) = missing.first() else { return Ok(()) };
    let at = faces.names.iter().position(|name| name == *first).unwrap_or(0);
    Err(Error::data(
        format!("{}, face {} ({first})", list.display(), at + 1),
        format!("{} of {} images that are not in {}", missing.len(), faces.names.len(), crops.display()),
        "an image for every face",
        "unpack all of loose_crop",
    ))
}

fn read_pairs(path: &Path, known: &[u32]) -> Result<Pairs> {
    let text = read_bytes(path)?;
    let mut pairs = Pairs::default();
    for (line, fields) in lines::<3>(path, &text, Form::Numbers) {
        let (_, [first, second, label]) = fields?;
        for template in [first, second] {
            if known.binary_search(&template).is_err() {
                return Err(unknown_template(format!("{}, line {line}", path.display()), template));
            }
        }
        if label > 1 {
            return Err(Error::data(
                format!("{}, line {line}", path.display()),
                format!("label {label}"),
                "1 for one person, 0 for two",
                "use the unaltered list",
            ));
        }
        pairs.first.push(first);
        pairs.second.push(second);
        pairs.same.push(label == 1);
    }
    let matching = pairs.same.iter().filter(|same| **same).count();
    if matching == 0 || matching == pairs.same.len() {
        return Err(Error::data(
            path.display().to_string(),
            format!("{matching} matching pairs of {}", pairs.same.len()),
            "matching and other pairs",
            "use the unaltered list of pairs",
        ));
    }
    Ok(pairs)
}

fn read_identification(
    list: &dyn Fn(&str) -> PathBuf,
    target: Target,
    known: &[u32],
    remarks: &mut Vec<String>,
) -> Result<Option<Identification>> {
    let galleries = target.galleries().map(|name| (name, list(&format!("1N_gallery_{name}.csv"))));
    let probes = list("1N_probe_mixed.csv");
    let files = galleries.iter().map(|(_, path)| path).chain([&probes]);
    let missing: Vec<String> =
        files.filter(|path| !path.exists()).map(|path| path.display().to_string()).collect();
    if !missing.is_empty() {
        remarks.push(format!("no 1:N protocol, as there is no {}", missing.join(" and no ")));
        return Ok(None);
    }
    let mut lists =
        Identification { probes: read_roster("probes", &probes, known)?, ..Identification::default() };
    let mut person_in: HashMap<u32, (&str, u32)> = HashMap::new();
    for (name, path) in &galleries {
        let roster = read_roster(name, path, known)?;
        for (template, subject) in roster.unique() {
            if let Some((other, first)) = person_in.insert(subject, (name, template)) {
                return Err(Error::data(
                    path.display().to_string(),
                    format!(
                        "person {subject} in template {template}, and in template {first} of gallery {other}"
                    ),
                    "one template a person in all galleries",
                    "use the unaltered lists",
                ));
            }
        }
        lists.galleries.push(roster);
    }
    let searched: HashSet<u32> = lists.probes.subjects.iter().copied().collect();
    for ((_, path), gallery) in galleries.iter().zip(&lists.galleries) {
        if !gallery.subjects.iter().any(|subject| searched.contains(subject)) {
            return Err(identify::no_person(path.display().to_string()));
        }
    }
    if let Some((template, subject)) = identify::without_mate(&lists) {
        return Err(identify::no_mate(probes.display().to_string(), template, subject));
    }
    Ok(Some(lists))
}

fn read_roster(name: &str, path: &Path, known: &[u32]) -> Result<Roster> {
    let text = read_bytes(path)?;
    let mut roster = Roster { name: name.to_owned(), ..Roster::default() };
    let mut person_of: HashMap<u32, u32> = HashMap::new();
    for (line, fields) in lines::<2>(path, &text, Form::Csv) {
        let (_, [template, subject]) = fields?;
        let place = || format!("{}, line {line}", path.display());
        if known.binary_search(&template).is_err() {
            return Err(unknown_template(place(), template));
        }
        let before = *person_of.entry(template).or_insert(subject);
        if before != subject {
            return Err(Error::data(
                place(),
                format!("template {template} of person {subject}, and before of person {before}"),
                "one person a template",
                "use the unaltered list",
            ));
        }
        roster.templates.push(template);
        roster.subjects.push(subject);
    }
    if roster.templates.is_empty() {
        return Err(identify::empty_list(path.display().to_string()));
    }
    Ok(roster)
}

fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|source| Error::io(path, source))
}

/// How the fields of a list are separated.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// By white space, numbers only.
    Numbers,
    /// By white space, the name of a file in front.
    Named,
    /// By commas, behind a line of names of columns; some releases have more columns than are of use.
    Csv,
}

/// The first field as text, and all as numbers; a name counts as 0.
type Row<'t, const N: usize> = (&'t [u8], [u32; N]);

/// The lines of a list that hold anything, with their numbers from 1. These lists have up to 16 million lines.
fn lines<'t, const N: usize>(
    path: &'t Path,
    text: &'t [u8],
    form: Form,
) -> impl Iterator<Item = (usize, Result<Row<'t, N>>)> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let lines = (1..).zip(text.split(|byte| *byte == b'\n')).skip(usize::from(form == Form::Csv));
    lines.filter(|(_, line)| !line.trim_ascii().is_empty()).map(move |(number, line)| {
        let row = parse(line, form).ok_or_else(|| {
            let text = String::from_utf8_lossy(line.trim_ascii());
            let expected = match form {
                Form::Numbers => "three numbers",
                Form::Named => "a name and two numbers",
                Form::Csv => "a template and a person, then whatever else",
            };
            Error::data(
                format!("{}, line {number}", path.display()),
                format!("`{}`", text.chars().take(80).collect::<String>()),
                expected,
                "use the unaltered list",
            )
        });
        (number, row)
    })
}

fn parse<const N: usize>(line: &[u8], form: Form) -> Option<Row<'_, N>> {
    let is_end = |byte: &u8| if form == Form::Csv { *byte == b',' } else { byte.is_ascii_whitespace() };
    let fields = line.trim_ascii().split(is_end).map(<[u8]>::trim_ascii);
    let mut fields = fields.filter(|field| form == Form::Csv || !field.is_empty());
    let mut name = None;
    let mut numbers = [0; N];
    for number in &mut numbers {
        let field = fields.next()?;
        if name.is_none() {
            name = Some(field);
            if form == Form::Named {
                continue;
            }
        }
        *number = std::str::from_utf8(field).ok()?.parse().ok()?;
    }
    let is_all = form == Form::Csv || fields.next().is_none();
    name.filter(|_| is_all).map(|name| (name, numbers))
}
