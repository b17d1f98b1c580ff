//! A record file as a dataset.

use std::path::Path;

use super::{Entry, Fault, Header, OnFault, REBUILD, RecordFile};
use crate::data::{Dataset, Image, Options, check_label, decode, no_such_index, other_size};
use crate::{Error, Result};

/// The labelled images of a record file, in either of the field's two forms.
///
/// - **InsightFace**: record 0 holds no image but the labels [a, b]; the images are the records with the keys
///   1..a, and the keys a..b describe one identity each.
/// - **im2rec**: every record is an image, in the order of the index.
#[derive(Debug)]
pub struct RecordDataset {
    file: RecordFile,
    images: Vec<Entry>,
    options: Options,
    num_classes: usize,
}

/// What `property` says: `classes,height,width`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Property {
    /// The number of classes.
    pub classes: usize,
    /// The size of the images, `[H, W]`.
    pub size: [usize; 2],
}

impl RecordDataset {
    /// Opens the record file at `path`, its `.idx` beside it (or without one, see [`RecordFile::open`]) and, if the
    /// file is named `train.rec`, the `property` file in its folder if there is one.
    ///
    /// The number of classes is `options.num_classes`, else the one in `property`, else the number of identity
    /// records, else the largest label of all records plus one.
    ///
    /// # Errors
    /// Besides those of [`RecordFile::open`]: no images, a damaged record 0, image keys that the index lacks, more
    /// identities than `options.num_classes`, a `property` that is malformed, contradicts the records, or has
    /// another size than `options` without `resize`.
    pub fn open(path: &Path, options: &Options) -> Result<Self> {
        let file = RecordFile::open(path)?;
        let Selection { images, identities, .. } = select_images(&file, &mut Err)?;
        let identities = (!identities.is_empty()).then_some(identities.len());
        if images.is_empty() {
            return Err(Error::data(path.display().to_string(), "no images", "at least one", REBUILD));
        }
        if let (Some(classes), Some(identities)) = (options.num_classes, identities)
            && classes < identities
        {
            return Err(Error::usage(
                format!(
                    "data.num_classes is {classes}, but {} holds {identities} identities",
                    path.display()
                ),
                "leave data.num_classes out to have the identities counted",
            ));
        }
        let property = read_property(path)?;
        if let Some(property) = &property {
            check_property(&path.with_file_name("property"), property, identities, options)?;
        }
        let known = options.num_classes.or(property.map(|property| property.classes)).or(identities);
        let num_classes = match known {
            Some(classes) => classes,
            None => count_classes(&file, &images)?,
        };
        Ok(Self { file, images, options: options.clone(), num_classes })
    }

    fn entry(&self, index: usize) -> Result<Entry> {
        self.images.get(index).copied().ok_or_else(|| no_such_index(index, self.images.len()))
    }
}

impl Dataset for RecordDataset {
    fn len(&self) -> usize {
        self.images.len()
    }

    fn num_classes(&self) -> usize {
        self.num_classes
    }

    fn label(&self, index: usize) -> Result<u32> {
        let entry = self.entry(index)?;
        check_label(class(&self.file, entry)?, self.num_classes, || self.file.place(entry))
    }

    fn load(&self, index: usize) -> Result<Image> {
        let entry = self.entry(index)?;
        let payload = self.file.payload(entry)?;
        let header = Header::parse(&payload).map_err(|fault| self.file.error(entry, fault))?;
        decode::decode(header.image, self.options.size, self.options.resize, || self.file.place(entry))
    }

    fn load_into(&self, index: usize, size: [usize; 2], slot: &mut [u8]) -> Result<()> {
        if size != self.options.size {
            return Err(other_size(self.options.size, size, || self.name(index)));
        }
        let entry = self.entry(index)?;
        // The payload of a record in one part is borrowed from the map.
        let payload = self.file.payload(entry)?;
        let header = Header::parse(&payload).map_err(|fault| self.file.error(entry, fault))?;
        decode::decode_into(header.image, size, self.options.resize, slot, || self.file.place(entry))
    }

    fn name(&self, index: usize) -> String {
        self.images.get(index).map_or_else(
            || format!("image {index}"),
            |entry| format!("{}:{}", self.file.path().display(), entry.key),
        )
    }
}

/// What the `property` file says that goes with the record file at `path`: only `train.rec` has one, of another record
/// file in the same folder it says nothing.
///
/// # Errors
/// A file that cannot be read, and one of another form.
pub(super) fn read_property(path: &Path) -> Result<Option<Property>> {
    if path.file_name().is_none_or(|name| name != "train.rec") {
        return Ok(None);
    }
    let property = path.with_file_name("property");
    match std::fs::read_to_string(&property) {
        Ok(text) => parse_property(&property, &text).map(Some),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::io(&property, source)),
    }
}

pub(super) fn class(file: &RecordFile, entry: Entry) -> Result<u32> {
    let payload = file.payload(entry)?;
    Header::parse(&payload).and_then(|header| header.class()).map_err(|fault| file.error(entry, fault))
}

fn count_classes(file: &RecordFile, images: &[Entry]) -> Result<usize> {
    let mut classes = 0;
    for &entry in images {
        classes = classes.max(class(file, entry)? as usize + 1);
    }
    Ok(classes)
}

/// What the records of a file are.
#[derive(Debug)]
pub(super) struct Selection {
    /// The images.
    pub images: Vec<Entry>,
    /// InsightFace's form: the records of the identities, which hold no image.
    pub identities: Vec<Entry>,
    /// Whether the file has InsightFace's form.
    pub insightface: bool,
}

/// Sorts the records of `file` into images and identities. Faults that `on_fault` lets pass leave records out.
pub(super) fn select_images(file: &RecordFile, on_fault: OnFault<'_>) -> Result<Selection> {
    let all = || Selection { images: file.entries().to_vec(), identities: Vec::new(), insightface: false };
    let Some(&zero) = file.entries().iter().find(|entry| entry.key == 0) else {
        return Ok(all());
    };
    let bounds = match bounds(file, zero) {
        Ok(bounds) => bounds,
        Err(error) => {
            on_fault(error)?;
            // Whatever holds an image is one then.
            let holds_image = |entry: &&Entry| {
                let payload = file.payload(**entry).ok();
                payload.is_none_or(|payload| {
                    Header::parse(&payload).is_ok_and(|header| !header.image.is_empty())
                })
            };
            let rest = file.entries().iter().filter(|&&entry| entry != zero);
            return Ok(Selection { images: rest.filter(holds_image).copied().collect(), ..all() });
        }
    };
    let Some((images_end, identities_end)) = bounds else { return Ok(all()) };
    let mut by_key = file.entries().to_vec();
    by_key.sort_by_key(|entry| entry.key);
    for pair in by_key.windows(2).filter(|pair| pair[0].key == pair[1].key) {
        on_fault(Error::data(
            file.place(pair[1]),
            "the same key twice in the index",
            "every key once",
            "delete the .idx file to have the records found by a pass over the .rec file",
        ))?;
    }
    by_key.dedup_by_key(|entry| entry.key);
    let find = |key: u64| by_key.binary_search_by_key(&key, |entry| entry.key).ok().map(|at| by_key[at]);
    let holds_image = |key: u64| -> Result<bool> {
        let Some(entry) = find(key) else { return Ok(false) };
        let payload = file.payload(entry)?;
        Ok(!Header::parse(&payload).map_err(|fault| file.error(entry, fault))?.image.is_empty())
    };
    let end =
        exact_end(images_end, holds_image).or_else(|error| on_fault(error).map(|()| images_end as u64))?;
    let within = |first: u64, end: u64| {
        let place = |key: u64| by_key.partition_point(|entry| entry.key < key);
        by_key.get(place(first)..place(end)).unwrap_or_default()
    };
    let images = within(1, end);
    // Where the next key should be that is not there.
    let mut expected = 1;
    for key in images.iter().map(|entry| entry.key).chain([end]) {
        if key != expected {
            let missing = if key == expected + 1 {
                format!("key {expected}")
            } else {
                format!("keys {expected} to {}", key - 1)
            };
            on_fault(Error::data(
                format!("{}, {missing}", file.path().display()),
                "no such key in the index".to_owned(),
                format!("the image keys 1 to {}, as record 0 says", end - 1),
                REBUILD,
            ))?;
        }
        expected = key + 1;
    }
    // The identities' own records are counted, not computed from the rounded ends.
    let identities = within(end, (identities_end as u64 + spacing(identities_end) - 1).max(end));
    Ok(Selection { images: images.to_vec(), identities: identities.to_vec(), insightface: true })
}

/// The ends of the image keys and of the identity keys that record 0 holds in InsightFace's form.
fn bounds(file: &RecordFile, zero: Entry) -> Result<Option<(f32, f32)>> {
    let payload = file.payload(zero)?;
    let header = Header::parse(&payload).map_err(|fault| file.error(zero, fault))?;
    // im2rec can spell an image's labels with a flag too, but then an image follows.
    if header.flag == 0 || !header.image.is_empty() {
        return Ok(None);
    }
    let bounds = header.label(0).zip(header.label(1)).filter(|&(images_end, identities_end)| {
        images_end >= 1.0
            && identities_end >= images_end
            && identities_end < 1e15
            && images_end.fract() == 0.0
    });
    if bounds.is_none() {
        let found = format!("labels {:?} and {:?} without an image", header.label(0), header.label(1));
        let expected = "an image, or the ends a <= b of the image keys and of the identity keys";
        return Err(file.error(zero, Fault::new(found, expected)));
    }
    Ok(bounds)
}

/// How far the integers that are stored as `value` may lie from it: at most half of this if it is the nearest f32, and
/// less than this if it is the next lower one, as our own writer stores it. One for what is stored exactly.
fn spacing(value: f32) -> u64 {
    if value < 16_777_216.0 { 1 } else { (value.next_up() - value) as u64 }
}

/// The end of the image keys. Beyond 2^24 the f32 in record 0 may have been rounded (data sets of 17 and 42
/// million images exist), and what the records near it hold decides.
fn exact_end(stored: f32, holds_image: impl Fn(u64) -> Result<bool>) -> Result<u64> {
    let (stored, spacing) = (stored as u64, spacing(stored));
    let mut end = stored - spacing / 2;
    while end < stored + spacing - 1 && holds_image(end)? {
        end += 1;
    }
    Ok(end)
}

fn parse_property(path: &Path, text: &str) -> Result<Property> {
    let fields: Vec<Option<usize>> = text.trim().split(',').map(|field| field.trim().parse().ok()).collect();
    match fields.as_slice() {
        &[Some(classes), Some(height), Some(width)] if classes > 0 && height > 0 && width > 0 => {
            Ok(Property { classes, size: [height, width] })
        }
        _ => Err(Error::data(
            path.display().to_string(),
            format!("`{}`", text.trim().chars().take(60).collect::<String>()),
            "classes,height,width (as in 10572,112,112)",
            "correct the file or remove it",
        )),
    }
}

fn check_property(
    path: &Path,
    property: &Property,
    identities: Option<usize>,
    options: &Options,
) -> Result<()> {
    if let Some(identities) = identities
        && options.num_classes.is_none()
        && identities != property.classes
    {
        return Err(Error::data(
            path.display().to_string(),
            format!("{} classes", property.classes),
            format!("the {identities} identities of the record file"),
            "correct the file, or set data.num_classes to say which is right",
        ));
    }
    let ([height, width], [expected_height, expected_width]) = (property.size, options.size);
    if !options.resize && property.size != options.size {
        return Err(Error::data(
            path.display().to_string(),
            format!("images of {height} x {width} (height x width)"),
            format!("the input size, {expected_height} x {expected_width}"),
            "set model.input to the size of the images, or set data.resize = true",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{payload, write};
    use super::*;
    use crate::data::open;
    use std::cell::Cell;
    use std::path::PathBuf;

    fn png(value: u8) -> Vec<u8> {
        let mut bytes = std::io::Cursor::new(Vec::new());
        image::RgbImage::from_pixel(2, 2, image::Rgb([value, 1, 2]))
            .write_to(&mut bytes, image::ImageFormat::Png)
            .unwrap();
        bytes.into_inner()
    }

    fn options() -> Options {
        Options { size: [2, 2], ..Options::default() }
    }

    /// InsightFace's form: three images of two identities, with one label of either spelling.
    fn insightface(folder: &Path) -> (PathBuf, Vec<(u64, Vec<u8>)>) {
        let records = vec![
            (0, payload(&[4.0, 6.0], 0.0, b"")),
            (1, payload(&[], 0.0, &png(10))),
            (2, payload(&[0.0, 5.0], 9.0, &png(11))),
            (3, payload(&[1.0], 9.0, &png(12))),
            (4, payload(&[1.0, 3.0], 0.0, b"")),
            (5, payload(&[3.0, 4.0], 0.0, b"")),
        ];
        let path = folder.join("train.rec");
        write(&path, &records);
        (path, records)
    }

    fn contents(dataset: &dyn Dataset) -> Vec<(u32, u8)> {
        (0..dataset.len()).map(|i| (dataset.label(i).unwrap(), dataset.load(i).unwrap().rgb[0])).collect()
    }

    #[test]
    fn insightface_form_with_and_without_index_and_property() {
        let folder = tempfile::tempdir().unwrap();
        let (path, _) = insightface(folder.path());
        let expected = [(0, 10), (0, 11), (1, 12)];
        for property in [None, Some("2,2,2\n")] {
            if let Some(text) = property {
                std::fs::write(folder.path().join("property"), text).unwrap();
            }
            let dataset = open(folder.path(), &options()).unwrap();
            assert_eq!((contents(dataset.as_ref()), dataset.num_classes()), (expected.to_vec(), 2));
            assert!(dataset.name(1).ends_with("train.rec:2"));
            assert!(dataset.label(3).is_err());
        }
        std::fs::remove_file(path.with_extension("idx")).unwrap();
        let dataset = open(&path, &options()).unwrap();
        assert_eq!((contents(dataset.as_ref()), dataset.num_classes()), (expected.to_vec(), 2));
    }

    #[test]
    fn the_index_may_be_in_any_order_and_a_missing_key_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let (path, mut records) = insightface(folder.path());
        records.reverse();
        write(&path, &records);
        assert_eq!(contents(open(&path, &options()).unwrap().as_ref()), [(0, 10), (0, 11), (1, 12)]);

        let index = std::fs::read_to_string(path.with_extension("idx")).unwrap();
        let without = index.lines().filter(|line| !line.starts_with('2')).collect::<Vec<_>>().join("\n");
        std::fs::write(path.with_extension("idx"), without).unwrap();
        let error = open(&path, &options()).err().unwrap().to_string();
        assert!(error.contains("key 2") && error.contains("1 to 3"), "{error}");

        std::fs::write(path.with_extension("idx"), format!("{index}3\t0\n")).unwrap();
        let error = open(&path, &options()).err().unwrap().to_string();
        assert!(error.contains("key 3") && error.contains("twice"), "{error}");
    }

    #[test]
    fn im2rec_form_takes_every_record_in_the_order_of_the_index() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("flat.rec");
        for (first, second) in [
            (payload(&[], 2.0, &png(10)), payload(&[], 0.0, &png(11))),
            (payload(&[2.0], 0.0, &png(10)), payload(&[0.0, 4.0], 0.0, &png(11))),
        ] {
            for keys in [[0, 1], [1, 0], [8, 5]] {
                write(&path, &[(keys[0], first.clone()), (keys[1], second.clone())]);
                let dataset = open(&path, &options()).unwrap();
                assert_eq!((contents(dataset.as_ref()), dataset.num_classes()), (vec![(2, 10), (0, 11)], 3));
            }
        }
    }

    #[test]
    fn labels_are_checked_against_the_classes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("flat.rec");
        write(&path, &[(0, payload(&[], 0.0, &png(1))), (1, payload(&[], 5.0, &png(2)))]);
        let dataset = open(&path, &Options { num_classes: Some(5), ..options() }).unwrap();
        let error = dataset.label(1).unwrap_err();
        assert!(error.to_string().contains("key 1") && error.to_string().contains("label 5"), "{error}");
        assert!(error.hint().unwrap().contains("at least 6"));

        write(&path, &[(0, payload(&[], 0.0, &png(1))), (1, payload(&[], 0.5, &png(2)))]);
        let error = open(&path, &options()).err().unwrap().to_string();
        assert!(error.contains("key 1") && error.contains("label 0.5"), "{error}");
    }

    #[test]
    fn property_is_checked() {
        let folder = tempfile::tempdir().unwrap();
        let (path, _) = insightface(folder.path());
        let property = folder.path().join("property");
        let message = |text: &str, options: &Options| {
            std::fs::write(&property, text).unwrap();
            open(&path, options).err().map(|error| error.to_string())
        };
        let found = message("3,2,2", &options()).unwrap();
        assert!(
            found.contains("property") && found.contains("3 classes") && found.contains("2 identities"),
            "{found}"
        );
        assert_eq!(message("3,2,2", &Options { num_classes: Some(2), ..options() }), None);
        let found = message("2,112,96", &options()).unwrap();
        assert!(found.contains("112 x 96") && found.contains("2 x 2"), "{found}");
        assert_eq!(message("2,112,96", &Options { resize: true, ..options() }), None);
        let found = message("2,2,2", &Options { num_classes: Some(1), ..options() }).unwrap();
        assert!(found.contains("2 identities"), "{found}");
        for text in ["2,2", "a,2,2", "", "2,2,2,2", "0,2,2"] {
            assert!(message(text, &options()).unwrap().contains("classes,height,width"), "{text}");
        }
        // Another record file in the folder is not what it describes.
        write(&folder.path().join("flat.rec"), &[(0, payload(&[], 4.0, &png(1)))]);
        assert_eq!(open(folder.path().join("flat.rec"), &options()).unwrap().num_classes(), 5);
    }

    /// A sparse file: its holes take no room on the disk.
    #[cfg(all(unix, target_pointer_width = "64"))]
    #[test]
    fn records_beyond_four_gib_are_found() {
        use std::io::{Seek, SeekFrom, Write};
        const FOUR_GIB: u64 = 1 << 32;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("train.rec");
        let mut file = std::fs::File::create(&path).unwrap();
        file.set_len(FOUR_GIB + (300 << 20)).unwrap();
        let mut index = String::new();
        // Before the boundary, across it, and twice behind it.
        let offsets =
            [0, 1 << 20, FOUR_GIB - 20, FOUR_GIB + 4096, FOUR_GIB + (299 << 20), FOUR_GIB + (200 << 20)];
        let records = [
            payload(&[5.0, 6.0], 0.0, b""),
            payload(&[], 0.0, &png(10)),
            payload(&[], 0.0, &png(11)),
            payload(&[], 0.0, &png(12)),
            payload(&[], 0.0, &png(13)),
            payload(&[1.0, 5.0], 0.0, b""),
        ];
        for (key, (offset, payload)) in offsets.iter().zip(&records).enumerate() {
            let mut writer = super::super::testing::Writer::default();
            writer.push(payload);
            file.seek(SeekFrom::Start(*offset)).unwrap();
            file.write_all(&writer.bytes).unwrap();
            index.push_str(&format!("{key}\t{offset}\n"));
        }
        std::fs::write(path.with_extension("idx"), index).unwrap();
        let dataset = open(&path, &options()).unwrap();
        assert_eq!(contents(dataset.as_ref()), [(0, 10), (0, 11), (0, 12), (0, 13)]);
        assert_eq!(dataset.num_classes(), 1);
        let mut slot = [0; 12];
        dataset.load_into(3, [2, 2], &mut slot).unwrap();
        assert_eq!(slot[0], 13);

        // What lies in a hole is named by its whole offset.
        let hole = FOUR_GIB + 8192;
        std::fs::write(path.with_extension("idx"), format!("0\t0\n1\t{hole}\n")).unwrap();
        let error = RecordFile::open(&path).unwrap();
        let error = error.payload(error.entries()[1]).unwrap_err().to_string();
        assert!(error.contains(&format!("byte {hole}")), "{error}");
    }

    #[test]
    fn a_malformed_record_zero_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("train.rec");
        for labels in
            [&[3.0][..], &[0.0, 3.0], &[3.0, 2.0], &[f32::NAN, 4.0], &[2.5, 4.0], &[2.0, f32::INFINITY]]
        {
            write(&path, &[(0, payload(labels, 0.0, b"")), (1, payload(&[], 0.0, &png(1)))]);
            let error = open(&path, &options()).err().unwrap().to_string();
            assert!(error.contains("key 0, byte 0"), "{labels:?}: {error}");
        }
    }

    #[test]
    fn a_file_without_images_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("train.rec");
        write(&path, &[(0, payload(&[1.0, 1.0], 0.0, b""))]);
        let error = open(&path, &options()).err().unwrap().to_string();
        assert!(error.contains("train.rec: found no images"), "{error}");
    }

    #[test]
    fn a_rounded_end_is_settled_by_the_records() {
        // 2^24 + 1 is stored as 2^24, 2^24 + 3 as 2^24 + 4.
        for exact in [16_777_215_u64, 16_777_216, 16_777_217, 16_777_219, 42_000_001, 42_000_003] {
            let reads = Cell::new(0);
            let nearest = exact as f32;
            let below = if nearest as u64 > exact { nearest.next_down() } else { nearest };
            for stored in [nearest, below] {
                reads.set(0);
                let end = exact_end(stored, |key| {
                    reads.set(reads.get() + 1);
                    Ok(key < exact)
                });
                assert_eq!(end.unwrap(), exact);
                assert!(reads.get() <= 6);
            }
        }
        assert_eq!(exact_end(301.0, |_| Err(Error::usage("not read", ""))).unwrap(), 301);
    }
}
