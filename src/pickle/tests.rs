use super::machine::MAX_VALUES;
use super::text::{byte_literal, raw_unicode};
use super::*;
use proptest::prelude::*;

fn parse(input: &[u8]) -> Result<Pickle<'_>, Fault> {
    Pickle::parse(input, |module, _| module == "good")
}

/// The value as Python would print it.
fn show(pickle: &Pickle<'_>, id: Id) -> String {
    let list = |items: &[Id]| items.iter().map(|&item| show(pickle, item)).collect::<Vec<_>>().join(", ");
    match pickle.node(id) {
        Node::Int(value) => value.to_string(),
        Node::Float(value) => format!("{value:?}"),
        Node::Bytes(bytes) => format!("b'{}'", bytes.escape_ascii()),
        Node::Str(text) => format!("'{text}'"),
        Node::Tuple(items) => format!("({})", list(items)),
        Node::List(items) => format!("[{}]", list(items)),
        Node::Set(items) => format!("set({})", list(items)),
        Node::Dict(entries) => {
            let entry = |&(key, value): &(Id, Id)| format!("{}: {}", show(pickle, key), show(pickle, value));
            format!("{{{}}}", entries.iter().map(entry).collect::<Vec<_>>().join(", "))
        }
        Node::Object(_) => {
            let (module, name, args, object) = pickle.call(id).unwrap();
            let state = object.state.map_or(String::new(), |state| format!(" <- {}", show(pickle, state)));
            format!("{module}.{name}({}){state}", list(args))
        }
        _ => pickle.describe(id),
    }
}

fn read(input: &[u8]) -> String {
    let pickle = parse(input).unwrap_or_else(|fault| panic!("{fault:?}"));
    show(&pickle, pickle.root())
}

fn refused(input: &[u8]) -> Fault {
    parse(input).err().unwrap_or_else(|| panic!("accepted {}", input.escape_ascii()))
}

#[test]
fn every_kind_of_value_is_read() {
    // Written with Python 3.11's pickle at the protocols 0 to 4, and by hand where Python never writes it.
    for (input, expected) in [
        (&b"(lp0\nI1\naI-7\naI01\naI00\naNa."[..], "[1, -7, True, False, None]"),
        (b"(L123L\nL-5\nF1.5\nt.", "(123, -5, 1.5)"),
        (b"\x80\x02(K\xffM\x01\x02J\xff\xff\xff\xff\x88\x89Nt.", "(255, 513, -1, True, False, None)"),
        (b"\x80\x02(\x8a\x00\x8a\x01\xff\x8a\x02\xff\x00\x8b\x01\x00\x00\x00\x7ft.", "(0, -1, 255, 127)"),
        (b"\x80\x02G\x3f\xf8\x00\x00\x00\x00\x00\x00.", "1.5"),
        (
            b"(S'a\\n\\\\\\'\\x00\\xff'\nS\"it's\"\nVx\\u005cu0041\xe9\\U0001f600\nt.",
            "(b'a\\n\\\\\\'\\x00\\xff', b'it\\'s', 'x\\u0041é😀')",
        ),
        (
            b"(U\x02abT\x01\x00\x00\x00cC\x01dB\x01\x00\x00\x00e\x8e\x01\0\0\0\0\0\0\0ft.",
            "(b'ab', b'c', b'd', b'e', b'f')",
        ),
        (b"(X\x02\0\0\0\xc3\xa9\x8c\x01b\x8d\x01\0\0\0\0\0\0\0ct.", "('é', 'b', 'c')"),
        (b"\x80\x02K\x01K\x02\x86q\x00K\x03\x85h\x00K\x04h\x00\x87.", "((1, 2), 4, (1, 2))"),
        (b"((dI1\nI2\ns(dI3\nI4\nst.", "({1: 2}, {3: 4})"),
        (b"\x80\x02}(K\x01K\x02K\x03K\x04u.", "{1: 2, 3: 4}"),
        (b"(I1\nI2\nd.", "{1: 2}"),
        (b"\x80\x04\x95\x0c\0\0\0\0\0\0\0(\x8f\x94(K\x01K\x02\x90(K\x03\x91t.", "(set(1, 2), set(3))"),
        (b"\x80\x04]\x94(\x8c\x01a\x94h\x01j\x01\0\0\0e.", "['a', 'a', 'a']"),
        (b"(lp7\nI1\nar\x00\x01\x00\x00j\x00\x01\x00\x00\x86.", "([1], [1])"),
        (b"cgood\nthing\n(I1\ntRI2\nb.", "good.thing(1) <- 2"),
        (b"\x80\x04\x8c\x04good\x8c\x01x\x93K\x01\x85}\x92.", "good.x(1)"),
        (b"\x80\x04\x8c\x04good\x8c\x01x\x93)\x81.", "good.x()"),
        (b"(I1\nigood\nold\n.", "good.old(1)"),
        (b"(cgood\nold\nI1\no.", "good.old(1)"),
        (b"Pname\n.", "a reference to something outside the pickle"),
        (b"I1\nQ.", "a reference to something outside the pickle"),
        (b"I1\nI2\n0(I3\n1(02\x86.", "(1, 1)"),
    ] {
        assert_eq!(read(input), expected, "{}", input.escape_ascii());
    }
}

#[test]
fn objects_collect_items_and_entries() {
    let input = b"cgood\nx\n)R(I1\nI2\ne(I3\nI4\nuI5\na.";
    let pickle = parse(&[&input[..], b"what follows"].concat()).map(|pickle| pickle.length());
    assert_eq!(pickle, Ok(input.len()));
    let pickle = parse(input).unwrap();
    let (_, _, _, object) = pickle.call(pickle.root()).unwrap();
    assert_eq!((object.items.len(), object.entries.len()), (3, 1));
}

#[test]
fn imports_that_are_not_allowed_are_refused_where_they_stand() {
    for input in [
        &b"I1\ncos\nsystem\n(S'true'\ntR."[..],
        b"I1\n(S'true'\nios\nsystem\n.",
        b"I1\n\x8c\x02os\x8c\x06system\x93.",
    ] {
        let fault = refused(input);
        assert!(fault.found.contains("os.system"), "{fault:?}");
        assert!(fault.offset >= 3 && input[fault.offset] != b'R', "{fault:?}");
    }
}

#[test]
fn nonsense_is_refused() {
    for input in [
        &b""[..],
        b"I1\n",
        b".",
        b"(.",
        b"I1\n(.",
        b"a.",
        b"I1\nI2\na.",
        b"]e.",
        b"t.",
        b"I1\n(I2\n\x86.",
        b"g0\n.",
        b"p0\n.",
        b"I\n.",
        b"I1.5\n.",
        b"L99999999999999999999L\n.",
        b"\x8a\x09\0\0\0\0\0\0\0\0\x01.",
        b"Sabc\n.",
        b"S'\n.",
        b"S'\\q'\n.",
        b"S'\\x0'\n.",
        b"V\\u12\n.",
        b"V\\ud800\n.",
        b"X\x01\0\0\0\xff.",
        b"X\xff\xff\xff\xff.",
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff.",
        b"\x95\xff\0\0\0\0\0\0\0I1\n.",
        b"\x80\x05I1\n.",
        b"I1\n)R.",
        b"\x8c\x04good\x8c\x01xK\x01\x85}\x92.",
        b"cgood\nx\n)}I1\nI2\ns\x92.",
        b"cgood\nx\nI1\nR.",
        b"I1\nI2\nb.",
        b"}(I1\nu.",
        b"}I1\nI2\nI3\nu.",
        b"(o.",
        b"\x82\x01.",
        b"\x96\x01\0\0\0\0\0\0\0a.",
        b"\xff.",
    ] {
        refused(input);
    }
    let fault = refused(b"\x80\x05N.");
    assert!(fault.found.contains("protocol 5") && fault.expected.contains("protocol=4"), "{fault:?}");
    assert_eq!(refused(b"NNN\xff").offset, 3);
}

#[test]
fn shared_and_cyclic_values_cost_nothing() {
    // Forty doublings: 2^40 elements if they were copied.
    let mut input = b"\x80\x02]".to_vec();
    for _ in 0..40 {
        input.extend_from_slice(b"2\x86");
    }
    input.push(b'.');
    assert!(parse(&input).is_ok());
    let cyclic = parse(b"]q\x00h\x00a.").unwrap();
    assert_eq!(cyclic.sequence(cyclic.root()).unwrap(), [cyclic.root()]);
}

#[test]
fn values_are_limited() {
    let input = vec![b')'; MAX_VALUES + 1];
    assert_eq!(refused(&input).offset, MAX_VALUES);
}

#[test]
fn literals_of_protocol_0() {
    assert_eq!(byte_literal(b"''"), Some(vec![]));
    assert_eq!(byte_literal(b"'"), None);
    assert_eq!(byte_literal(b"'a\\'"), None);
    assert_eq!(byte_literal(b"'a\""), None);
    assert_eq!(raw_unicode(b"a\\b\\"), Some("a\\b\\".to_owned()));
    assert_eq!(raw_unicode(b"\\u00ff\xff"), Some("ÿÿ".to_owned()));
    assert_eq!(raw_unicode(b"\\u00f"), None);
    assert_eq!(raw_unicode(b"\\U00110000"), None);
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(input in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse(&input);
    }

    #[test]
    fn arbitrary_instructions_never_panic(input in prop::collection::vec(prop::sample::select(INSTRUCTIONS), 0..60)) {
        let input = input.concat();
        if let Ok(pickle) = parse(&input) {
            let _ = pickle.describe(pickle.root());
            let _ = pickle.call(pickle.root());
        }
    }
}

const INSTRUCTIONS: &[&[u8]] = &[
    b"(",
    b"0",
    b"1",
    b"2",
    b"N",
    b"I1\n",
    b"K\x01",
    b"S'a'\n",
    b"Vb\n",
    b"C\x01c",
    b"\x8c\x01d",
    b")",
    b"t",
    b"\x86",
    b"]",
    b"l",
    b"a",
    b"e",
    b"}",
    b"d",
    b"s",
    b"u",
    b"\x8f",
    b"\x90",
    b"\x91",
    b"q\x00",
    b"h\x00",
    b"\x94",
    b"cgood\nx\n",
    b"\x93",
    b"R",
    b"\x81",
    b"\x92",
    b"o",
    b"b",
    b"Q",
    b".",
];

#[test]
fn stack_marks_and_memo_are_bounded_as_values_are() {
    // Each of these instructions is a byte and makes no value.
    for (start, again) in [(&b"N"[..], b'2'), (b"", b'('), (b"N", 0x94)] {
        let most = [start, &vec![again; MAX_VALUES - 2], b"."].concat();
        if let Err(fault) = parse(&most) {
            assert!(!fault.found.contains("entries at once"), "{fault:?}");
        }
        let fault = refused(&[start, &vec![again; MAX_VALUES + 2], b"."].concat());
        assert!(fault.found.contains("entries at once"), "{fault:?}");
    }
}
