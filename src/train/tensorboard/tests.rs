//! Event files, read by a reader that shares nothing with the writer: a bitwise CRC and a walk over the wire format.

use super::*;

/// CRC-32C by its definition.
fn crc_by_bits(data: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for &byte in data {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

fn unmasked(masked: u32) -> u32 {
    masked.wrapping_sub(0xa282_ead8).rotate_left(15)
}

/// The data of the TFRecords, whose checksums must be right.
fn frames(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let data = &bytes[12..12 + length];
        assert_eq!(unmasked(word(8)), crc_by_bits(&bytes[..8]), "checksum of a length");
        assert_eq!(unmasked(word(12 + length)), crc_by_bits(data), "checksum of data");
        found.push(data.to_vec());
        bytes = &bytes[16 + length..];
    }
    found
}

/// A field on the wire.
#[derive(Clone, Debug, PartialEq)]
enum Wire {
    Varint(u64),
    Fixed64(u64),
    Bytes(Vec<u8>),
    Fixed32(u32),
}

/// The fields of a message, in order.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Wire)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let length = bytes.iter().position(|byte| byte & 0x80 == 0).unwrap() + 1;
        let groups = bytes[..length].iter().rev();
        let value = groups.fold(0, |value, byte| (value << 7) | u64::from(byte & 0x7f));
        *bytes = &bytes[length..];
        value
    }
    fn take<'a>(bytes: &mut &'a [u8], count: usize) -> &'a [u8] {
        let (taken, rest) = bytes.split_at(count);
        *bytes = rest;
        taken
    }
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let value = match key & 7 {
            0 => Wire::Varint(varint(&mut bytes)),
            1 => Wire::Fixed64(u64::from_le_bytes(take(&mut bytes, 8).try_into().unwrap())),
            2 => {
                let length = varint(&mut bytes) as usize;
                Wire::Bytes(take(&mut bytes, length).to_vec())
            }
            5 => Wire::Fixed32(u32::from_le_bytes(take(&mut bytes, 4).try_into().unwrap())),
            kind => panic!("wire type {kind}"),
        };
        found.push((key >> 3, value));
    }
    found
}

/// The only field `number` of a message, if it has one.
fn field(message: &[u8], number: u64) -> Option<Wire> {
    let mut found = fields(message).into_iter().filter(|field| field.0 == number).map(|field| field.1);
    let first = found.next();
    assert_eq!(found.next(), None, "field {number} twice");
    first
}

fn bytes(message: &[u8], number: u64) -> Option<Vec<u8>> {
    field(message, number).map(|field| match field {
        Wire::Bytes(bytes) => bytes,
        other => panic!("field {number} is {other:?}"),
    })
}

fn string(message: &[u8], number: u64) -> Option<String> {
    bytes(message, number).map(|bytes| String::from_utf8(bytes).unwrap())
}

/// The step of an event; a field that is 0 is not on the wire.
fn step(event: &[u8]) -> u64 {
    field(event, 2).map_or(0, |step| match step {
        Wire::Varint(step) => step,
        other => panic!("step {other:?}"),
    })
}

/// Tag and value of the scalars of an event.
fn scalars(event: &[u8]) -> Vec<(String, f32)> {
    let summary = bytes(event, 5).unwrap();
    fields(&summary)
        .into_iter()
        .map(|(number, value)| {
            let Wire::Bytes(value) = value else { panic!("{value:?}") };
            assert_eq!(number, 1);
            let Some(Wire::Fixed32(bits)) = field(&value, 2) else { panic!("no simple value in {value:?}") };
            (string(&value, 1).unwrap(), f32::from_bits(bits))
        })
        .collect()
}

fn read(file: &EventFile) -> Vec<Vec<u8>> {
    frames(&std::fs::read(&file.path).unwrap())
}

fn step_point() -> StepPoint {
    StepPoint {
        step: 20,
        epoch: 1,
        loss: 0.5,
        lr: 0.125,
        images_per_second: 250.0,
        grad_norm: f64::NAN,
        loss_scale: 1024.0,
        data_wait: 0.25,

        device_wait: 0.9,
        skipped: 2,
    }
}

#[test]
fn checksums_are_those_of_the_standard() {
    // RFC 3720, appendix B.4, and the check value of CRC-32C.
    for (data, crc) in
        [(&[0_u8; 32][..], 0x8a91_36aa), (&[0xff; 32], 0x62a8_ab43), (b"123456789", 0xe306_9283)]
    {
        assert_eq!((crc_by_bits(data), unmasked(masked_crc(data))), (crc, crc));
    }
}

/// What TensorBoard's own writer makes of the same events.
#[test]
fn records_are_those_of_tensorboard() {
    let start = SessionLog { status: SessionStatus::Start.into() };
    let loss = Summary { value: vec![scalar("train/loss", 0.5)] };
    for (step, what, expected) in [
        (
            0,
            What::FileVersion("brain.Event:2".to_owned()),
            "1800000000000000a37f4b2209000000000000f83f1a0d627261696e2e4576656e743a322a28646c",
        ),
        (41, What::SessionLog(start), "0f000000000000006d532b0909000000000000f83f10293a020801a6ac353d"),
        (
            20,
            What::Summary(loss),
            "200000000000000029eda95009000000000000f83f10142a130a110a0a747261696e2f6c6f7373150000003f0ebeff11",
        ),
    ] {
        let event = Event { wall_time: 1.5, step, what: Some(what) };
        let found: String = framed(&event.encode_to_vec()).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(found, expected);
    }
}

#[test]
fn a_file_begins_with_its_version_and_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let toml = "[train]\nout = \"a `b` <c>\"\n";
    let file = EventFile::create(folder.path(), toml, None).unwrap();
    let name = file.path.file_name().unwrap().to_str().unwrap();
    assert!(name.starts_with("events.out.tfevents.") && name.contains(".epl."), "{name}");
    let events = read(&file);
    assert_eq!(events.len(), 2);
    assert_eq!(string(&events[0], 3).unwrap(), "brain.Event:2");
    let Some(Wire::Fixed64(seconds)) = field(&events[0], 1) else { panic!("no wall time") };
    assert!(f64::from_bits(seconds) > 1.7e9);

    let value = bytes(&bytes(&events[1], 5).unwrap(), 1).unwrap();
    assert_eq!(string(&value, 1).unwrap(), "config");
    let tensor = bytes(&value, 8).unwrap();
    assert_eq!(field(&tensor, 1), Some(Wire::Varint(7)), "a string");
    assert_eq!(string(&tensor, 8).unwrap(), "    [train]\n    out = \"a `b` <c>\"\n");
    let metadata = bytes(&value, 9).unwrap();
    assert_eq!(string(&bytes(&metadata, 1).unwrap(), 1).unwrap(), "text");
    assert_eq!(field(&metadata, 4), Some(Wire::Varint(2)), "data of the class tensor");
}

#[test]
fn records_become_scalars_at_their_step() {
    let folder = tempfile::tempdir().unwrap();
    let mut file = EventFile::create(folder.path(), "", None).unwrap();
    file.record(&Record::Step(step_point())).unwrap();
    file.record(&Record::Step(StepPoint { loss: f64::NAN, ..step_point() })).unwrap();
    file.record(&Record::Eval(EvalPoint {
        step: 40,
        epoch: 1,
        set: "cfp_fp".to_owned(),
        accuracy: 0.75,
        accuracy_std: 0.125,
        tar_at_far_1e3: 0.5,
        auc: 0.875,
        eer: 0.25,
        threshold: f64::NAN,
        roc: Vec::new(),
    }))
    .unwrap();
    let events = read(&file).split_off(2);
    assert_eq!(events.iter().map(|event| step(event)).collect::<Vec<_>>(), [20, 20, 40]);
    let expected: Vec<(String, f32)> = [
        ("train/loss", 0.5),
        ("train/lr", 0.125),
        ("train/loss_scale", 1024.0),
        ("train/skipped", 2.0),
        ("train/epoch", 1.0),
        ("train/images_per_second", 250.0),
        ("train/data_wait", 0.25),
        ("train/device_wait", 0.9),
    ]
    .map(|(tag, value)| (tag.to_owned(), value))
    .to_vec();
    assert_eq!(scalars(&events[0]), expected, "a norm that was not measured is left out");
    assert!(scalars(&events[1])[0].1.is_nan(), "a loss that is not finite is shown as such");
    let expected = [
        ("eval/cfp_fp/accuracy", 0.75),
        ("eval/cfp_fp/accuracy_std", 0.125),
        ("eval/cfp_fp/tar_at_far_1e-3", 0.5),
        ("eval/cfp_fp/auc", 0.875),
        ("eval/cfp_fp/eer", 0.25),
    ];
    assert_eq!(scalars(&events[2]), expected.map(|(tag, value)| (tag.to_owned(), value)));
}

#[test]
fn prototypes_have_means_and_a_group_of_percentiles() {
    let point = PrototypePoint {
        step: 40,
        epoch: 1,
        cos_weight: 0.5,
        cos_weight_percentiles: Some([0.125, 0.25, 0.5, 0.75, 0.875]),
        cos_empirical: f64::NAN,
        cos_empirical_percentiles: None,
        cos_before_update: f64::NAN,
        cos_before_update_percentiles: None,
        adaptive_margin: f64::NAN,
        adaptive_margin_percentiles: None,
        angle_degrees: f64::NAN,
        angle_degrees_percentiles: None,
        drift_degrees: f64::NAN,
        drift_degrees_percentiles: None,
        hard_cosine: 0.3,
        hard_share: 0.0625,
        classes_unvisited: Some(3),
    };
    let found: Vec<_> = of_prototypes(&point).into_iter().map(|value| (value.tag, value.data)).collect();
    let expected = [
        ("prototypes/cos_weight", 0.5),
        ("prototypes_percentiles/cos_weight/p05", 0.125),
        ("prototypes_percentiles/cos_weight/p25", 0.25),
        ("prototypes_percentiles/cos_weight/p50", 0.5),
        ("prototypes_percentiles/cos_weight/p75", 0.75),
        ("prototypes_percentiles/cos_weight/p95", 0.875),
        ("prototypes/hard_share", 0.0625),
        ("prototypes/classes_unvisited", 3.0),
    ];
    assert_eq!(found, expected.map(|(tag, value)| (tag.to_owned(), Some(Data::SimpleValue(value)))));
}

#[test]
fn a_resumed_run_has_a_later_file_that_begins_with_a_start() {
    let folder = tempfile::tempdir().unwrap();
    // The clock was set back since the first part.
    let ahead = folder.path().join(format!("{PREFIX}9000000000.{WRITER}.1"));
    std::fs::write(&ahead, "").unwrap();
    let second = EventFile::create(folder.path(), "", Some(40)).unwrap();
    assert!(second.path > ahead, "TensorBoard reads files by their names: {}", second.path.display());
    let third = EventFile::create(folder.path(), "", Some(60)).unwrap();
    assert!(third.path > second.path, "both within a second");

    let events = read(&second);
    let start = bytes(&events[1], 7).unwrap();
    assert_eq!(field(&start, 1), Some(Wire::Varint(1)), "START");
    // TensorBoard forgets what is at this step and later; step 40 was completed.
    assert_eq!((step(&events[0]), step(&events[1]), step(&events[2])), (0, 41, 40));
}

#[test]
fn only_own_event_files_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    let foreign =
        ["events.out.tfevents.1700000000.host.1", "events.out.tfevents.soon.epl.1", "metrics.jsonl", "epl.1"];
    for name in foreign {
        std::fs::write(folder.path().join(name), "").unwrap();
    }
    drop(EventFile::create(folder.path(), "", None).unwrap());
    drop(EventFile::create(folder.path(), "", Some(1)).unwrap());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), foreign.len() + 2);
    remove_event_files(folder.path()).unwrap();
    let mut left: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    let mut expected = foreign;
    expected.sort_unstable();
    assert_eq!(left, expected);
}
