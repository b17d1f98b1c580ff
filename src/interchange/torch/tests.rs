use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::interchange::safetensors::{StateDict, Value};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/torch")
}

/// An archive of stored entries. `change` may alter the directory and what follows it.
fn zipped(entries: &[(&str, &[u8])], change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, contents) in entries {
        let at = file.len() as u32;
        let sizes = [(contents.len() as u32).to_le_bytes(); 2].concat();
        let name_length = (name.len() as u16).to_le_bytes();
        for (out, head, tail) in [
            (&mut file, &b"PK\x03\x04\x14\0\0\0\0\0\0\0\0\0\0\0\0\0"[..], &b"\0\0"[..]),
            (&mut directory, b"PK\x01\x02\x14\0\x14\0\0\0\0\0\0\0\0\0\0\0\0\0", &[0; 12]),
        ] {
            out.extend_from_slice(head);
            out.extend_from_slice(&sizes);
            out.extend_from_slice(&name_length);
            out.extend_from_slice(tail);
        }
        directory.extend_from_slice(&at.to_le_bytes());
        for out in [&mut file, &mut directory] {
            out.extend_from_slice(name.as_bytes());
        }
        file.extend_from_slice(contents);
    }
    let (start, size, count) = (file.len() as u32, directory.len() as u32, entries.len() as u16);
    directory.extend_from_slice(b"PK\x05\x06\0\0\0\0");
    directory.extend_from_slice(&[count.to_le_bytes(); 2].concat());
    directory.extend_from_slice(&[size.to_le_bytes(), start.to_le_bytes()].concat());
    directory.extend_from_slice(&[0; 2]);
    change(&mut directory);
    [file, directory].concat()
}

fn open_bytes(bytes: &[u8]) -> Result<TorchFile> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.pth");
    std::fs::write(&path, bytes).unwrap();
    TorchFile::open(&path, None)
}

/// Opens an archive of this pickle and a storage `0` of the eight floats 0 to 7.
fn open(pickle: &[u8]) -> Result<TorchFile> {
    let storage: Vec<u8> = (0..8).flat_map(|value| (value as f32).to_le_bytes()).collect();
    open_bytes(&zipped(&[("archive/data.pkl", pickle), ("archive/data/0", &storage)], |_| {}))
}

/// What refused it, with the hint.
fn refused(pickle: &[u8]) -> String {
    match open(pickle) {
        Ok(file) => panic!("accepted {}: {:?}", pickle.escape_ascii(), file.names().collect::<Vec<_>>()),
        Err(error) => format!("{error}; {}", error.hint().unwrap_or_default()),
    }
}

fn text(value: &str) -> Vec<u8> {
    [b"X", &(value.len() as u32).to_le_bytes()[..], value.as_bytes()].concat()
}

fn int(value: i64) -> Vec<u8> {
    [b"\x8a\x08", &value.to_le_bytes()[..]].concat()
}

fn tuple(items: &[Vec<u8>]) -> Vec<u8> {
    [b"(", items.concat().as_slice(), b"t"].concat()
}

fn ints(values: &[i64]) -> Vec<u8> {
    tuple(&values.iter().map(|&value| int(value)).collect::<Vec<_>>())
}

fn persistent(kind: &str, class: &str, key: &str, count: i64) -> Vec<u8> {
    let items = [text(kind), class.as_bytes().to_vec(), text(key), text("cpu"), int(count)];
    [tuple(&items), b"Q".to_vec()].concat()
}

fn tensor_of(storage: Vec<u8>, offset: i64, size: &[i64], stride: &[i64]) -> Vec<u8> {
    let args = tuple(&[storage, int(offset), ints(size), ints(stride), b"\x89N".to_vec()]);
    [b"ctorch._utils\n_rebuild_tensor_v2\n", args.as_slice(), b"R"].concat()
}

fn floats(offset: i64, size: &[i64], stride: &[i64]) -> Vec<u8> {
    tensor_of(persistent("storage", "ctorch\nFloatStorage\n", "0", 8), offset, size, stride)
}

fn dict(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let entries: Vec<u8> =
        entries.iter().flat_map(|(name, value)| [text(name), value.clone()].concat()).collect();
    [b"}(", entries.as_slice(), b"u"].concat()
}

fn pickled(value: &[u8]) -> Vec<u8> {
    [b"\x80\x02", value, b"."].concat()
}

/// A state dict of one good tensor and a value.
fn beside(value: &[u8]) -> Vec<u8> {
    pickled(&dict(&[("w", floats(0, &[2], &[1])), ("x", value.to_vec())]))
}

#[test]
fn what_pytorch_wrote_is_read_to_the_bit() {
    let mut count = 0;
    for entry in std::fs::read_dir(fixtures()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "safetensors") {
            continue;
        }
        count += 1;
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let key = (name == "two_keys").then_some("critic");
        let file = TorchFile::open(&path.with_extension("pth"), key)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let expected = StateDict::read(&path).unwrap();
        assert_eq!(file.names().collect::<Vec<_>>(), expected.tensors.keys().collect::<Vec<_>>(), "{name}");
        for (tensor, (shape, value)) in &expected.tensors {
            let (found, kind) = file.describe(tensor).unwrap();
            assert_eq!(found, shape, "{name}: {tensor}");
            match value {
                Value::F32(values) => {
                    let bits =
                        |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
                    assert_eq!(bits(&file.floats_of(tensor).unwrap()), bits(values), "{name}: {tensor}");
                    let mut pieces = Vec::new();
                    let mut each = |first: usize, part: &[f32]| {
                        assert!(first == pieces.len() && part.len() <= 3);
                        pieces.extend_from_slice(part);
                        Ok(())
                    };
                    file.for_each_part(tensor, 3, &mut each).unwrap();
                    assert_eq!(bits(&pieces), bits(values), "{name}: {tensor}");
                    assert!(kind == Kind::Float && file.integers(tensor).is_err());
                }
                Value::I64(values) => {
                    assert_eq!(file.integers(tensor).unwrap(), *values, "{name}: {tensor}");
                    assert!(kind == Kind::Integer && file.floats_of(tensor).is_err());
                }
            }
        }
    }
    assert_eq!(count, 14, "all of them are looked at");
}

#[test]
fn what_a_checkpoint_holds_is_named() {
    let open = |name: &str, key| TorchFile::open(&fixtures().join(name), key);
    let plain = open("state_dict.pth", None).unwrap();
    assert_eq!((plain.key(), plain.other_keys().len(), plain.other_names().len()), ("", 0, 0));
    let mixed = open("checkpoint.pth", Some(".")).unwrap();
    assert_eq!(mixed.other_names(), ["epoch", "best", "history", "when", "state_dict", "optimizer"]);
    let checkpoint = open("checkpoint.pth", None).unwrap();
    assert_eq!((checkpoint.key(), checkpoint.other_keys().len()), ("state_dict", 1), "rng lies at the top");
    let module = open("checkpoint_module.pth", None).unwrap();
    assert_eq!((module.key(), module.other_keys()), ("model", &["ema".to_owned()][..]));
    assert_eq!(open("checkpoint_module.pth", Some("ema")).unwrap().names().count(), 1);
    assert_eq!(open("checkpoint.pth", Some(".")).unwrap().names().collect::<Vec<_>>(), ["rng"]);
    for key in [None, Some("nobody")] {
        let error = open("two_keys.pth", key).unwrap_err();
        let told = format!("{error}; {}", error.hint().unwrap());
        assert!(told.contains("generator, critic") && told.contains("key"), "{told}");
    }
}

#[test]
fn what_is_no_weights_is_refused_by_what_it_is() {
    for (name, words) in [
        ("big_endian", &["byte order", "big"][..]),
        ("script", &["TorchScript", "torch.jit.load"]),
        ("arrays", &["2 NumPy arrays", "from_numpy"]),
        ("empty", &["without tensors"]),
        ("sparse", &["\"w\"", "sparse"]),
        ("complex", &["\"w\"", "ComplexFloatStorage"]),
        ("float8", &["\"w\"", "float8_e4m3fn"]),
        ("evil", &["posix.system", "tries to run something", "not to be trusted"]),
    ] {
        let error = TorchFile::open(&fixtures().join(format!("refused_{name}.pth")), None).unwrap_err();
        let told = format!("{error}; {}", error.hint().unwrap());
        for word in words {
            assert!(told.contains(word), "{name}: {word} is not in: {told}");
        }
    }
    for (name, word) in [("legacy", "before version 1.6"), ("pickled_arrays", "NumPy")] {
        let path = fixtures().join(format!("refused_{name}.pth"));
        let error = crate::interchange::weights::WeightsFile::open(&path).unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[test]
fn whatever_would_run_something_is_refused() {
    let run = b"X\x04\0\0\0true\x85";
    for attack in [
        [&b"cos\nsystem\n"[..], run, b"R"].concat(),
        [&b"cposix\nsystem\n"[..], run, b"R"].concat(),
        [&b"cnt\nsystem\n"[..], run, b"R"].concat(),
        [&b"\x8c\x02os\x8c\x06system\x93"[..], run, b"R"].concat(),
        b"(X\x04\0\0\0trueios\nsystem\n".to_vec(),
        b"(cos\nsystem\nX\x04\0\0\0trueo".to_vec(),
        b"cos\nsystem\n)}\x92".to_vec(),
        b"cos\nsystem\n)\x81".to_vec(),
        [&b"cbuiltins\neval\n"[..], run, b"R"].concat(),
        [&b"c__builtin__\nexec\n"[..], run, b"R"].concat(),
        b"cbuiltins\ngetattr\n".to_vec(),
        [&b"c__builtin__\n__import__\n"[..], run, b"R"].concat(),
        b"csubprocess\nPopen\n".to_vec(),
        b"crunpy\n_run_code\n".to_vec(),
        b"ctorch.hub\nload\n".to_vec(),
        b"ctorch\nload\n".to_vec(),
        b"ctorch.storage\n_load_from_bytes\n(C\x01a\x85R".to_vec(),
        // Hidden in the state of a harmless object, in its arguments, and dropped at once.
        b"cmine\nNet\n)\x81}X\x01\0\0\0acos\nsystem\nsb".to_vec(),
        b"cfunctools\npartial\n(cos\nsystem\ntR".to_vec(),
        [&b"cos\nsystem\n"[..], run, b"R0N"].concat(),
    ] {
        let told = refused(&beside(&attack));
        assert!(told.contains("tries to run something"), "{}: {told}", attack.escape_ascii());
        assert!(told.contains("not to be trusted") && told.contains("byte "), "{told}");
    }
    // Calls that weights do not need, though nobody knows them to be bad.
    for attack in [&b"cmine\nrun\n)R"[..], b"(imine\nrun\n", b"(cmine\nrun\no", b"ctorch._utils\nget\n)R"] {
        let told = refused(&beside(attack));
        assert!(told.contains("a call of ") && told.contains("nothing in the file was run"), "{told}");
    }
    // A call of what a call gave.
    for attack in [&b"cfunctools\npartial\n)R)R"[..], b"\x82\x01", b"\x83\x01\0", b"\x84\x01\0\0\0"] {
        refused(&beside(attack));
    }
    // Objects of any class are data.
    open(&beside(b"cmine\nNet\n)\x81}X\x01\0\0\0aK\x01sb")).unwrap();
}

#[test]
fn what_refers_to_itself_or_repeats_itself_is_bounded() {
    let module = |modules: &[u8]| {
        let state = [&b"(X\x0b\0\0\0_parameters}X\x08\0\0\0_buffers}X\x08\0\0\0_modules"[..], modules, b"d"];
        state.concat()
    };
    // A dict in itself, and a tuple in itself by way of a list: nothing follows them for ever.
    open(&pickled(&[b"}q\0(", text("w").as_slice(), &floats(0, &[2], &[1]), &text("x"), b"h\0u"].concat()))
        .unwrap();
    open(&beside(b"]q\0h\0\x85a")).unwrap();
    // A module in itself.
    let inner = module(&[b"}", text("m").as_slice(), b"h\0s"].concat());
    let told = refused(&pickled(&[b"cmine\nNet\n)\x81q\0", inner.as_slice(), b"b"].concat()));
    assert!(told.contains("contains itself"), "{told}");
    // Sixty modules, each twice in the next: 2^60 names.
    let mut bomb = [b"cmine\nNet\n)\x81", module(b"}").as_slice(), b"bq\0"].concat();
    for _ in 0..60 {
        let twice = [b"}(", text("a").as_slice(), b"h\0", &text("b"), b"h\0u"].concat();
        bomb = [bomb.as_slice(), b"0cmine\nNet\n)\x81", &module(&twice), b"bq\0"].concat();
    }
    let told = refused(&pickled(&bomb));
    assert!(told.contains("refer to each other too often"), "{told}");
    // The same of tuples and lists costs nothing, wherever it stands.
    for (start, double) in [(&b")"[..], &b"2\x86"[..]), (b"]q\0", b"0](h\0h\0eq\0")] {
        let laughs = [start, &double.repeat(80)].concat();
        open(&beside(&laughs)).unwrap();
        refused(&pickled(&laughs));
    }
    // A stack of copies; a thousand names of one long key.
    refused(&pickled(&[&b"N"[..], &b"2".repeat(1 << 20)].concat()));
    // Counts that are not there.
    for huge in [
        &b"X\xff\xff\xff\xff"[..],
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"B\xff\xff\xff\xff",
        b"\x8b\xff\xff\xff\x7f",
    ] {
        refused(&beside(huge));
    }
}

#[test]
fn references_to_anything_but_storages_are_refused() {
    let float = "ctorch\nFloatStorage\n";
    for reference in [
        persistent("module", float, "0", 8),
        persistent("storage", "cmine\nFloatStorage\n", "0", 8),
        persistent("storage", "ctorch\nsave\n", "0", 8),
        persistent("storage", "N", "0", 8),
        persistent("storage", float, "0", -1),
        persistent("storage", float, &"0".repeat(300), 8),
        persistent("storage", &format!("ctorch\n{}Storage\n", "x".repeat(300)), "0", 8),
        b"X\x01\0\0\x000Q".to_vec(),
        b"Pstorage\n".to_vec(),
        b"NQ".to_vec(),
        b")Q".to_vec(),
    ] {
        let told = refused(&beside(&reference));
        assert!(told.contains("references to storages"), "{told}");
    }
    for (storage, word) in [
        (persistent("storage", float, "1", 8), "no \"archive/data/1\""),
        (persistent("storage", float, "../data.pkl", 8), "no \"archive/data/../data.pkl\""),
        (persistent("storage", float, "0", 9), "32 bytes where the pickle says 36"),
        (persistent("storage", float, "0", 7), "32 bytes where the pickle says 28"),
        (persistent("storage", float, "0", i64::MAX), "a storage of"),
        (persistent("storage", "ctorch\nQInt8Storage\n", "0", 32), "QInt8Storage"),
        (b"N".to_vec(), "None instead of a storage"),
    ] {
        let told = refused(&pickled(&dict(&[("w", tensor_of(storage, 0, &[2], &[1]))])));
        assert!(told.contains(word), "{told}");
    }
}

#[test]
fn tensors_stay_within_their_storages() {
    let read = |offset, size: &[i64], stride: &[i64]| {
        let file = open(&pickled(&dict(&[("w", floats(offset, size, stride))])))?;
        file.floats_of("w")
    };
    assert_eq!(read(1, &[2, 3], &[1, 2]).unwrap(), [1.0, 3.0, 5.0, 2.0, 4.0, 6.0]);
    assert_eq!(read(7, &[3, 1], &[0, 100]).unwrap(), [7.0; 3]);
    assert!(read(9, &[0, 4], &[9, 9]).unwrap().is_empty());
    assert_eq!(read(2, &[], &[]).unwrap(), [2.0]);
    assert_eq!(read(0, &[2, 2, 2], &[4, 1, 2]).unwrap(), [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    let huge = 1 << 60;
    for (offset, size, stride) in [
        (0, &[9][..], &[1][..]),
        (8, &[1], &[1]),
        (8, &[], &[]),
        (i64::MAX, &[1], &[1]),
        (0, &[2], &[8]),
        (0, &[2, 2], &[4, 4]),
        (0, &[3], &[i64::MAX]),
        (0, &[i64::MAX], &[i64::MAX]),
        (0, &[huge], &[0]),
        (0, &[1 << 30, 1 << 30], &[0, 0]),
        (0, &[1 << 40, 1 << 40], &[0, 0]),
        (0, &[0, huge, huge], &[1, 1, 1]),
        (0, &[1 << 28], &[0]),
        (-1, &[2], &[1]),
        (0, &[-2], &[1]),
        (0, &[2], &[-1]),
        (0, &[2, 2], &[1]),
        (0, &[1; 65], &[1; 65]),
    ] {
        let error = read(offset, size, stride).unwrap_err();
        assert!(error.hint().unwrap().contains("do not trust it"), "{error}");
    }
    // Many tensors that are each small enough.
    let many: Vec<(String, Vec<u8>)> =
        (0..100).map(|at| (at.to_string(), floats(0, &[1 << 20], &[0]))).collect();
    let many: Vec<(&str, Vec<u8>)> =
        many.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
    assert!(refused(&pickled(&dict(&many))).contains("repeated beyond reason"));
}

#[test]
fn archives_that_two_readers_would_see_differently_are_refused() {
    let pickle = pickled(&dict(&[("w", floats(0, &[8], &[1]))]));
    let storage = [0; 32];
    let good = [("a/data.pkl", pickle.as_slice()), ("a/data/0", &storage)];
    assert_eq!(open_bytes(&zipped(&good, |_| {})).unwrap().names().count(), 1);
    let fails = |bytes: &[u8]| open_bytes(bytes).unwrap_err().to_string();

    let twice = [good[0], good[1], ("a/data/0", &storage)];
    assert!(fails(&zipped(&twice, |_| {})).contains("two entries called \"a/data/0\""));
    for name in ["a/../../etc/passwd", "/etc/passwd", "a\\b", "..", "C:/x", "a/./b", ""] {
        let told = fails(&zipped(&[good[0], good[1], (name, b"x")], |_| {}));
        assert!(told.contains("an entry called"), "{told}");
    }
    let two_tops = [good[0], good[1], ("b/data.pkl", pickle.as_slice())];
    assert!(fails(&zipped(&two_tops, |_| {})).contains("several folders"));
    assert!(fails(&zipped(&[("a/x.npy", b"")], |_| {})).contains("NumPy arrays"));
    assert!(fails(&zipped(&[("a/x", b"")], |_| {})).contains("without data.pkl"));
    assert!(fails(&zipped(&[], |_| {})).contains("without data.pkl"));

    // Fields of the directory's first entry, which starts it, and of its end.
    type Change = fn(&mut Vec<u8>);
    let changes: [(Change, &str); 10] = [
        (|d| d[42] = 1, "no a/data.pkl where"),
        (|d| d[20] ^= 1, "two lengths"),
        (|d| d[8] = 1, "encrypted"),
        (|d| d[10] = 9, "compression 9"),
        (|d| d[46] = b'b', "another name"),
        (|d| d[28] = 200, "damaged directory"),
        (|d| d.truncate(d.len() - 1), "no directory"),
        (|d| d.push(0), "no directory"),
        (|d| *d.iter_mut().rev().nth(13).unwrap() = 1, "a part of an archive"),
        (|d| *d.iter_mut().rev().nth(5).unwrap() ^= 1, "not where the archive says"),
    ];
    for (change, word) in changes {
        let told = fails(&zipped(&good, change));
        assert!(told.contains(word), "{word}: {told}");
    }
    // Both entries at one place.
    let overlapping = zipped(&[("a/data.pkl", &pickle), ("a/data.pkl", &pickle)], |d| {
        let second = 46 + "a/data.pkl".len();
        d[second + 42..second + 46].fill(0);
    });
    assert!(open_bytes(&overlapping).is_err());
    let whole = zipped(&good, |_| {});
    for length in 0..whole.len() {
        assert!(open_bytes(&whole[..length]).is_err(), "{length}");
    }
}

/// The end of an archive, with the fields in their zip64 form.
fn widened(directory: &mut Vec<u8>, start: u64) {
    let end = directory.split_off(directory.len() - 22);
    let size = directory.len() as u64;
    let count = u64::from(u16::from_le_bytes([end[8], end[9]]));
    let end64 = start + size;
    directory.extend_from_slice(b"PK\x06\x06");
    directory.extend_from_slice(&44_u64.to_le_bytes());
    directory.extend_from_slice(&[45, 0, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    directory.extend_from_slice(&[count, count, size, start].map(u64::to_le_bytes).concat());
    directory.extend_from_slice(b"PK\x06\x07\0\0\0\0");
    directory.extend_from_slice(&end64.to_le_bytes());
    directory.extend_from_slice(&1_u32.to_le_bytes());
    directory.extend_from_slice(b"PK\x05\x06\0\0\0\0");
    directory.extend_from_slice(&[0xff; 12]);
    directory.extend_from_slice(&[0; 2]);
}

#[test]
fn zip64_directories_are_read() {
    let pickle = pickled(&dict(&[("w", floats(0, &[8], &[1]))]));
    let good = [("a/data.pkl", pickle.as_slice()), ("a/data/0", &[0; 32])];
    let start = zipped(&good, Vec::clear).len() as u64;
    let wide = zipped(&good, |directory| widened(directory, start));
    assert_eq!(open_bytes(&wide).unwrap().floats_of("w").unwrap(), [0.0; 8]);
    assert!(open_bytes(&zipped(&good, |directory| widened(directory, start - 1))).is_err());
    // A narrow field that says something else than the wide one.
    let mut two = wide;
    let end = two.len();
    two[end - 6..end - 2].fill(7);
    assert!(open_bytes(&two).unwrap_err().to_string().contains("disagree"));
}

#[test]
fn compressed_data_are_as_long_as_they_say() {
    let path = fixtures().join("deflated.pth");
    let whole = std::fs::read(&path).unwrap();
    let archive = Archive::read(&whole).unwrap();
    let entry = archive.get("my weights/data.pkl").unwrap();
    assert!(entry.deflated);
    assert_eq!(entry.unpack(&whole, entry.size).unwrap().len(), entry.size);
    for size in [entry.size - 1, entry.size + 1, usize::MAX / 2] {
        let lying = Entry { size, ..entry.clone() };
        assert!(lying.unpack(&whole, usize::MAX).is_err(), "{size}");
    }
    assert!(entry.unpack(&whole, entry.size - 1).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_changed_byte_never_panics(name in prop::sample::select(vec!["module", "views", "checkpoint"]), at in 0.0..1.0, byte: u8) {
        let mut bytes = std::fs::read(fixtures().join(format!("{name}.pth"))).unwrap();
        let at = (at * bytes.len() as f64) as usize;
        bytes[at] = byte;
        if let Ok(file) = open_bytes(&bytes) {
            for name in file.names() {
                let _ = (file.floats_of(name), file.integers(name));
            }
        }
    }
}
