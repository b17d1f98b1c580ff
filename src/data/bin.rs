//! Verification sets: `lfw.bin`, `cfp_fp.bin`, `agedb_30.bin` and their kin.
//!
//! Such a file is a pickle of (2N encoded images, N booleans); pair i is the images 2i and 2i + 1. Twenty years
//! of Python have written them: images are byte strings, bytearrays or arrays of uint8, booleans are plain, NumPy
//! scalars or an array. These are read and nothing else; nothing in the file is ever run ([`crate::pickle`]).

mod writer;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use super::{Image, decode, pairs};
use crate::pickle::{Id, Node, Pickle};
use crate::{Error, Result};

/// Pairs of images and whether the two show the same person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerificationSet {
    /// The file's name without its extension.
    pub name: String,
    /// Encoded images, `[2N]`; an image that occurs more than once is held once.
    pub images: Vec<Arc<[u8]>>,
    /// Whether the images 2i and 2i + 1 show the same person, `[N]`.
    pub issame: Vec<bool>,
}

impl VerificationSet {
    /// Reads the set in the `.bin` file at `path`.
    ///
    /// # Errors
    /// A file that cannot be read, a pickle of anything else, and lists whose lengths do not fit.
    pub fn open_bin(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(|source| Error::io(path, source))?;
        let (images, issame) = read_bin(&bytes).map_err(|fault| {
            let place = match fault.offset {
                Some(offset) => format!("{}, byte {offset}", path.display()),
                None => path.display().to_string(),
            };
            Error::data(
                place,
                fault.found,
                fault.expected,
                "check where the file comes from; nothing in it was run",
            )
        })?;
        Ok(Self { name: stem(path), images, issame })
    }

    /// Reads the set that the text file at `path` lists, a pair a line: two paths and 1 (same) or 0, separated by
    /// tabs, or by spaces if a line has no tab. Empty lines and lines that start with `#` are left out. A relative
    /// path is looked for in the list's own folder, then in the current one.
    ///
    /// # Errors
    /// A line of another form, by its number; an image that cannot be read; a list without pairs.
    pub fn open_pairs(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let (images, issame) = pairs::read(path)?;
        Ok(Self { name: stem(path), images, issame })
    }

    /// Image `index` at `size` = `[H, W]`, scaled by its short side and cropped at the centre if it has another.
    ///
    /// # Errors
    /// An image that cannot be decoded, by its number.
    pub fn decode(&self, index: usize, size: [usize; 2]) -> Result<Image> {
        let encoded = self.images.get(index).map(AsRef::as_ref).unwrap_or_default();
        decode::decode(encoded, size, true, || format!("{}, image {index}", self.name))
    }
}

/// The pickle's protocol by its first bytes: those from 2 on say theirs, the older ones do not.
pub fn protocol(start: &[u8]) -> u8 {
    match start {
        &[0x80, protocol, ..] => protocol,
        _ => 0,
    }
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// Why a file was refused.
#[derive(Debug, PartialEq, Eq)]
struct Fault {
    offset: Option<usize>,
    found: String,
    expected: String,
}

/// Images `[2N]` and whether each pair of them is of one person `[N]`.
pub(super) type Contents = (Vec<Arc<[u8]>>, Vec<bool>);

fn read_bin(bytes: &[u8]) -> Result<Contents, Fault> {
    let pickle =
        Pickle::parse(bytes, |module, name| Import::find(module, name).is_some()).map_err(|fault| Fault {
            offset: Some(fault.offset),
            found: fault.found,
            expected: fault.expected,
        })?;
    let reader = Reader { pickle: &pickle, limit: bytes.len() };
    let Some(&[images, issame]) = pickle.sequence(pickle.root()) else {
        return Err(reader.refuse(pickle.root(), "(list of images, list of booleans)"));
    };
    let (images, issame) = (reader.images(images)?, reader.booleans(issame)?);
    if images.len() != 2 * issame.len() {
        return Err(Fault {
            offset: None,
            found: format!("{} images and {} booleans", images.len(), issame.len()),
            expected: "two images a boolean".to_owned(),
        });
    }
    Ok((images, issame))
}

/// Everything that such a file may refer to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Import {
    /// How Python 3 spells bytes in the protocols 0 to 2, which have none: as Latin-1 to be encoded.
    Encode,
    Bytes,
    Bytearray,
    Reconstruct,
    NdArray,
    Dtype,
    Scalar,
}

impl Import {
    fn find(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("_codecs", "encode") => Self::Encode,
            // Python 2's spelling, which Python 3 writes too up to protocol 2, and Python 3's.
            ("__builtin__" | "builtins", "bytes") => Self::Bytes,
            ("__builtin__" | "builtins", "bytearray") => Self::Bytearray,
            // NumPy 2 renamed its core.
            ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct") => Self::Reconstruct,
            ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar") => Self::Scalar,
            ("numpy", "ndarray") => Self::NdArray,
            ("numpy", "dtype") => Self::Dtype,
            _ => return None,
        })
    }
}

/// The element types of arrays that are read, both of one byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Element {
    U8,
    Bool,
}

const BYTES: &str = "an image as bytes, bytearray or array of uint8";
const BOOLEAN: &str = "a boolean";

struct Reader<'p, 'a> {
    pickle: &'p Pickle<'a>,
    /// The most bytes that the distinct images may take together: no more than the file, or some string in it
    /// stands for many images, which no writer does.
    limit: usize,
}

impl Reader<'_, '_> {
    fn refuse(&self, id: Id, expected: &str) -> Fault {
        Fault { offset: None, found: self.pickle.describe(id), expected: expected.to_owned() }
    }

    fn images(&self, list: Id) -> Result<Vec<Arc<[u8]>>, Fault> {
        let Some(items) = self.pickle.sequence(list) else {
            return Err(self.refuse(list, "a list of images"));
        };
        let mut known: HashMap<Id, Arc<[u8]>> = HashMap::new();
        let mut total = 0;
        let mut images = Vec::with_capacity(items.len());
        for &item in items {
            if let Some(image) = known.get(&item) {
                images.push(Arc::clone(image));
                continue;
            }
            let image: Arc<[u8]> = self.image(item).ok_or_else(|| self.refuse(item, BYTES))?.into();
            total += image.len();
            if total > self.limit {
                return Err(Fault {
                    offset: None,
                    found: format!("images of more than {} bytes, the length of the file", self.limit),
                    expected: "images that are held in the file".to_owned(),
                });
            }
            known.insert(item, Arc::clone(&image));
            images.push(image);
        }
        Ok(images)
    }

    fn image(&self, id: Id) -> Option<Vec<u8>> {
        self.bytes(id).or_else(|| self.bytearray(id)).or_else(|| self.array(id, Element::U8))
    }

    /// A byte string in any spelling.
    fn bytes(&self, id: Id) -> Option<Vec<u8>> {
        if let Node::Bytes(bytes) = self.pickle.node(id) {
            return Some(bytes.to_vec());
        }
        match self.call(id)? {
            (Import::Encode, &[text, encoding]) => self.latin1(text, encoding),
            (Import::Bytes, []) => Some(Vec::new()),
            _ => None,
        }
    }

    fn bytearray(&self, id: Id) -> Option<Vec<u8>> {
        match self.call(id)? {
            (Import::Bytearray, []) => Some(Vec::new()),
            (Import::Bytearray, &[bytes]) => self.bytes(bytes),
            (Import::Bytearray, &[text, encoding]) => self.latin1(text, encoding),
            _ => None,
        }
    }

    fn latin1(&self, text: Id, encoding: Id) -> Option<Vec<u8>> {
        let Node::Str(text) = self.pickle.node(text) else { return None };
        let encoding = match self.pickle.node(encoding) {
            Node::Str(name) => name.as_bytes(),
            Node::Bytes(name) => name,
            _ => return None,
        };
        if encoding != b"latin1" && encoding != b"latin-1" {
            return None;
        }
        text.chars().map(|char| u8::try_from(u32::from(char)).ok()).collect()
    }

    /// The data of an array of `element`, whatever its shape.
    fn array(&self, id: Id, element: Element) -> Option<Vec<u8>> {
        let (Import::Reconstruct, &[class, ..]) = self.call(id)? else { return None };
        if self.import(class)? != Import::NdArray {
            return None;
        }
        let &[_version, shape, dtype, _fortran, data] = self.state(id)? else { return None };
        let length = self.pickle.sequence(shape)?.iter().try_fold(1_usize, |length, &size| {
            let Node::Int(size) = *self.pickle.node(size) else { return None };
            length.checked_mul(usize::try_from(size).ok()?)
        })?;
        let data = self.bytes(data)?;
        (self.element(dtype)? == element && data.len() == length).then_some(data)
    }

    fn element(&self, dtype: Id) -> Option<Element> {
        let (Import::Dtype, &[kind, ..]) = self.call(dtype)? else { return None };
        let kind = match self.pickle.node(kind) {
            Node::Str(kind) => kind.as_bytes(),
            Node::Bytes(kind) => kind,
            _ => return None,
        };
        match kind {
            b"u1" | b"|u1" => Some(Element::U8),
            b"b1" | b"|b1" => Some(Element::Bool),
            _ => None,
        }
    }

    fn booleans(&self, list: Id) -> Result<Vec<bool>, Fault> {
        if let Some(bytes) = self.array(list, Element::Bool) {
            return Ok(bytes.into_iter().map(|byte| byte != 0).collect());
        }
        let Some(items) = self.pickle.sequence(list) else {
            return Err(self.refuse(list, "a list or an array of booleans"));
        };
        items.iter().map(|&item| self.boolean(item).ok_or_else(|| self.refuse(item, BOOLEAN))).collect()
    }

    fn boolean(&self, id: Id) -> Option<bool> {
        match *self.pickle.node(id) {
            Node::Bool(value) => return Some(value),
            // Hand-made sets have these for booleans.
            Node::Int(0) => return Some(false),
            Node::Int(1) => return Some(true),
            _ => {}
        }
        let (Import::Scalar, &[dtype, data]) = self.call(id)? else { return None };
        match (self.element(dtype)?, self.bytes(data)?.as_slice()) {
            (Element::Bool, &[value]) => Some(value != 0),
            _ => None,
        }
    }

    fn call(&self, id: Id) -> Option<(Import, &[Id])> {
        let (module, name, args, _) = self.pickle.call(id)?;
        Some((Import::find(module, name)?, args))
    }

    fn state(&self, id: Id) -> Option<&[Id]> {
        let (_, _, _, object) = self.pickle.call(id)?;
        self.pickle.sequence(object.state?)
    }

    fn import(&self, id: Id) -> Option<Import> {
        match self.pickle.node(id) {
            Node::Global(module, name) => Import::find(module, name),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::PathBuf;

    fn fixtures() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/bin")
    }

    fn refused(bytes: &[u8]) -> Fault {
        read_bin(bytes).unwrap_err()
    }

    #[test]
    fn every_python_every_protocol_and_every_type() {
        let expected = std::fs::read_to_string(fixtures().join("expected.json")).unwrap();
        let expected: serde_json::Value = serde_json::from_str(&expected).unwrap();
        let images: Vec<Vec<u8>> = serde_json::from_value(expected["images"].clone()).unwrap();
        let issame: Vec<bool> = serde_json::from_value(expected["issame"].clone()).unwrap();
        let mut files = 0;
        for entry in std::fs::read_dir(fixtures()).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "bin") {
                let set = VerificationSet::open_bin(&path).unwrap_or_else(|error| panic!("{error}"));
                assert_eq!(set.issame, issame, "{}", path.display());
                assert!(
                    set.images.iter().map(AsRef::as_ref).eq(images.iter().map(Vec::as_slice)),
                    "{}",
                    path.display()
                );
                assert_eq!(set.name, path.file_stem().unwrap().to_str().unwrap());
                assert_eq!(set.decode(0, [2, 2]).unwrap().rgb, set.decode(0, [4, 4]).unwrap().rgb[..12]);
                files += 1;
            }
        }
        assert_eq!(files, expected["files"], "fixtures read");
    }

    #[test]
    fn what_is_not_a_verification_set_is_refused_with_what_it_is() {
        for (input, found) in [
            (&b"I1\n."[..], "the integer 1"),
            (b"(lp0\n.", "a list of 0"),
            (b"\x80\x02]]]\x87.", "a tuple of 3"),
            (b"\x80\x02K\x01]\x86.", "the integer 1"),
            (b"\x80\x03]C\x01aa]\x86.", "1 images and 0 booleans"),
            (b"\x80\x03](C\x01aC\x01be]K\x02a\x86.", "the integer 2"),
            (b"\x80\x03](C\x01aX\x01\0\0\0be]\x88a\x86.", "a string of 1 bytes"),
            (b"\x80\x03](C\x01acnumpy\nndarray\ne]\x88a\x86.", "numpy.ndarray"),
            (
                b"\x80\x02](U\x01ac_codecs\nencode\nX\x02\0\0\0\xc4\x80X\x06\0\0\0latin1\x86Re]\x88a\x86.",
                "_codecs.encode",
            ),
            (
                b"\x80\x02](U\x01ac_codecs\nencode\nX\x01\0\0\0aX\x05\0\0\0rot13\x86Re]\x88a\x86.",
                "_codecs.encode",
            ),
        ] {
            let fault = refused(input);
            assert!(fault.found.contains(found), "{}: {fault:?}", input.escape_ascii());
        }
    }

    #[test]
    fn nothing_can_be_run() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("evil.bin");
        for attack in [
            &b"cos\nsystem\n(S'touch ran'\ntR."[..],
            b"\x80\x02c__builtin__\neval\nX\x01\0\0\x001\x85R.",
            b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x02ls\x85R.",
            b"\x80\x04\x8c\x05numpy\x8c\x04load\x93\x8c\x02ls\x85R.",
            b"\x80\x02c_codecs\nlookup\nX\x01\0\0\x001\x85R.",
        ] {
            std::fs::write(&path, attack).unwrap();
            let error = VerificationSet::open_bin(&path).unwrap_err();
            assert!(error.to_string().contains("evil.bin, byte"), "{error}");
            assert!(error.to_string().contains("a reference to"), "{error}");
        }
    }

    #[test]
    fn arrays_must_be_what_they_say() {
        // numpy.core.multiarray._reconstruct(ndarray, (0,), b'b') with the state given.
        let array = |state: &[u8]| {
            let start = b"\x80\x03](C\x01acnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R(";
            [&start[..], state, b"tbe]\x88a\x86."].concat()
        };
        let dtype =
            |kind: &str| [format!("cnumpy\ndtype\nX\x02\0\0\0{kind}").as_bytes(), b"\x89\x88\x87R"].concat();
        let good = array(&[&b"K\x01K\x02\x85"[..], &dtype("u1"), b"\x89C\x02xy"].concat());
        assert_eq!(read_bin(&good).unwrap().0[1].as_ref(), b"xy");
        for bad in [
            [&b"K\x01K\x03\x85"[..], &dtype("u1"), b"\x89C\x02xy"].concat(),
            [&b"K\x01J\xff\xff\xff\xff\x85"[..], &dtype("u1"), b"\x89C\x02xy"].concat(),
            [&b"K\x01K\x02\x85"[..], &dtype("f4"), b"\x89C\x02xy"].concat(),
            [&b"K\x01K\x02\x85"[..], &dtype("b1"), b"\x89C\x02xy"].concat(),
            [&b"K\x01K\x02\x85"[..], &dtype("u1"), b"\x89K\x02"].concat(),
            [&b"K\x02\x85"[..], &dtype("u1"), b"\x89C\x02xy"].concat(),
        ] {
            assert!(refused(&array(&bad)).found.contains("_reconstruct"), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn an_image_may_be_shared_but_not_multiplied() {
        let shared = read_bin(b"\x80\x03](C\x03abcq\x00h\x00h\x00h\x00e](\x88\x88e\x86.").unwrap();
        assert_eq!(shared.0.len(), 4);
        assert!(Arc::ptr_eq(&shared.0[0], &shared.0[3]));
        // One string behind many separate byte arrays.
        let mut bomb = b"\x80\x02](X\x64\0\0\0".to_vec();
        bomb.extend_from_slice(&[b'a'; 100]);
        bomb.extend_from_slice(b"q\x000X\x06\0\0\0latin1q\x010c_codecs\nencode\nq\x020");
        bomb.extend_from_slice(&b"h\x02h\x00h\x01\x86R".repeat(40));
        bomb.extend_from_slice(b"e](\x88\x88e\x86.");
        assert!(refused(&bomb).found.contains("the length of the file"));
        // An array whose data is itself.
        let cyclic = b"\x80\x03](C\x01acnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87Rq\x00\
            (K\x01K\x01\x85h\x00\x89h\x00tbe]\x88a\x86.";
        assert!(refused(cyclic).found.contains("_reconstruct"));
    }

    #[test]
    fn an_image_that_cannot_be_decoded_is_named() {
        let set =
            VerificationSet { name: "lfw".to_owned(), images: vec![b"x"[..].into(); 2], issame: vec![true] };
        assert!(set.decode(1, [2, 2]).unwrap_err().to_string().contains("lfw, image 1"));
        assert!(set.decode(9, [2, 2]).is_err());
    }

    proptest! {
        #[test]
        fn a_damaged_file_never_panics(at in 0.0..1.0_f64, byte in any::<u8>(), cut in any::<bool>(), which in 0..64_usize) {
            let mut paths: Vec<PathBuf> =
                std::fs::read_dir(fixtures()).unwrap().map(|entry| entry.unwrap().path()).collect();
            paths.sort();
            let mut bytes = std::fs::read(&paths[which % paths.len()]).unwrap();
            let at = (at * bytes.len() as f64) as usize;
            bytes[at] = byte;
            if cut {
                bytes.truncate(at + 1);
            }
            let _ = read_bin(&bytes);
        }
    }
}
