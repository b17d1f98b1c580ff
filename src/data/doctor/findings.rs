//! What single images and the files show.

use std::collections::HashMap;
use std::path::PathBuf;

use super::{Checking, Look, Mark, Report, Severity, Trouble, TroubleKind};
use crate::Error;
use crate::data::identities;
use crate::data::stored::Source;

/// From this share of colour images with more blue than red in their middle on, the channels look swapped.
const SWAPPED: f64 = 0.7;

/// Fewer colour images than this say nothing about the order of the channels.
const ENOUGH: usize = 20;

/// Sets with fewer grey images than this share are colour sets.
const MOSTLY: f64 = 0.5;

/// Faults that were found when the data set was opened, and files that do not belong to it.
pub(super) fn of_files(report: &mut Report, faults: Vec<Error>, skipped: &[PathBuf]) {
    let mark = |fault: Error| match fault {
        Error::Data { place, found, expected, .. } => {
            Mark::place(place, format!("found {found}; expected {expected}"))
        }
        other => Mark::place("", other.to_string()),
    };
    report.add(
        Severity::Error,
        "structure",
        "faults in the folder, the index or the record file's structure",
        "training stops at the first: repair or remove them, or save what is whole with `epl data pack --skip-damaged`",
        faults.into_iter().map(mark).collect(),
    );
    // What epl itself writes there.
    let own = |path: &&PathBuf| {
        !path
            .file_name()
            .is_some_and(|name| name == identities::FILE || name == "truth.csv" || name == "verification.bin")
    };
    report.add(
        Severity::Warning,
        "skipped",
        "files that are no images and are left out",
        "look whether they should be images",
        skipped.iter().filter(own).map(|path| Mark::place(path.display().to_string(), "")).collect(),
    );
}

/// What could not be read.
pub(super) fn of_troubles(report: &mut Report, troubles: &mut [Trouble]) {
    troubles.sort_by_key(|trouble| trouble.image);
    for (wanted, kind, what, advice) in [
        (
            TroubleKind::Damaged,
            "damaged",
            "records or files that cannot be read",
            "copy the data again, or leave them out with `epl data pack --skip-damaged`",
        ),
        (
            TroubleKind::Undecodable,
            "undecodable",
            "images that cannot be decoded",
            "replace or remove them, or leave them out with `epl data pack --skip-damaged`",
        ),
        (TroubleKind::Label, "label", "labels that are no class", "correct the labels"),
    ] {
        let marks = troubles.iter().filter(|trouble| trouble.kind == wanted);
        let marks =
            marks.map(|trouble| Mark::image(trouble.image as usize, trouble.message.as_str())).collect();
        report.add(Severity::Error, kind, what, advice, marks);
    }
}

/// Images of another size than the network's input, and a `property` that says another one. Returns the size.
pub(super) fn of_sizes(
    report: &mut Report,
    looks: &[Look],
    source: &Source,
    checking: &Checking,
) -> Option<[usize; 2]> {
    let marks = wrong_sizes(looks, checking.size)?;
    let (size, marks) = marks;
    if let Source::Records(records) = source
        && let Some(property) = records.property()
        && property.size != size
    {
        let [height, width] = property.size;
        report.add(
            if checking.resize { Severity::Warning } else { Severity::Error },
            "property-size",
            format!("files that say another size than the images have, {} x {}", size[0], size[1]),
            "correct property (classes,height,width)",
            vec![Mark::place(
                records.file().path().with_file_name("property").display().to_string(),
                format!("{height} x {width}"),
            )],
        );
    }
    if !checking.resize {
        report.add(
            Severity::Error,
            "size",
            format!("images of another size than {} x {} (height x width)", size[0], size[1]),
            "align them to the input size, pack them anew with `epl data pack --size`, or train with data.resize = true",
            marks,
        );
    }
    Some(size)
}

/// The size that counts, and the images that have another.
pub(super) fn wrong_sizes(looks: &[Look], size: Option<[usize; 2]>) -> Option<([usize; 2], Vec<Mark>)> {
    let size = size.or_else(|| {
        let mut counts: HashMap<[usize; 2], usize> = HashMap::new();
        for size in looks.iter().filter_map(Look::size) {
            *counts.entry(size).or_default() += 1;
        }
        // The larger of two that are as frequent, so that the answer does not depend on a hash.
        counts.into_iter().max_by_key(|&(size, count)| (count, size)).map(|(size, _)| size)
    })?;
    let sized = looks.iter().enumerate().filter_map(|(index, look)| Some((index, look.size()?)));
    let wrong = sized.filter(|&(_, found)| found != size);
    Some((
        size,
        wrong.map(|(index, [height, width])| Mark::image(index, format!("{height} x {width}"))).collect(),
    ))
}

/// Pictures that show nothing, have no colour among others that have, are turned, or seem to have red and
/// blue swapped.
pub(super) fn of_pictures(report: &mut Report, looks: &[Look]) {
    let those = |is: fn(&Look) -> bool| -> Vec<Mark> {
        let found = looks.iter().enumerate().filter(|(_, look)| look.is_decoded() && is(look));
        found.map(|(index, _)| Mark::image(index, "")).collect()
    };
    report.decoded = looks.iter().filter(|look| look.is_decoded()).count();
    report.add(
        Severity::Warning,
        "blank",
        "images that show next to nothing",
        "remove them",
        those(Look::is_blank),
    );
    report.add(
        Severity::Warning,
        "turned",
        "images that an Exif note turns, which other programs may not heed",
        "store them upright",
        those(Look::is_turned),
    );
    let grey = those(|look| look.is_grey() && !look.is_blank());
    if (grey.len() as f64) < MOSTLY * report.decoded as f64 {
        report.add(
            Severity::Warning,
            "grey",
            "images without colour among images with colour",
            "nothing, if few; else consider data of one kind",
            grey,
        );
    }
    let tints = || looks.iter().filter(|look| look.is_decoded() && !look.is_grey()).map(Look::tint);
    let (colour, blue) = (tints().count(), tints().filter(|&tint| tint < 0).count());
    if colour >= ENOUGH && blue as f64 > SWAPPED * colour as f64 {
        let detail = format!("{blue} of {colour} colour images have more blue than red in their middle");
        report.add(
            Severity::Warning,
            "bgr",
            "sign that red and blue are swapped",
            "look at some images: skin of every colour is redder than blue in most light, so that few faces have more \
             blue in their middle. If people look blue, the images were written in the order BGR: write them anew. It \
             is a guess: blue light, infrared cameras and pictures of other things than faces look the same",
            vec![Mark::place("", detail)],
        );
    }
}
