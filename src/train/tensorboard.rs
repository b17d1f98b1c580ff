//! TensorBoard event files: the figures of a run where practitioners are used to look at them.
//!
//! A file is a sequence of TFRecords, each an `Event` message of TensorFlow's `event.proto`. Only the fields that are
//! written are declared here, with the numbers that they have there.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;

use crate::report::{EvalPoint, PERCENTILES, Percentiles, PrototypePoint, StepPoint};
use crate::train::metrics::Record;
use crate::{Error, Result};

/// How the names of all event files begin; TensorBoard asks for `tfevents` in them.
const PREFIX: &str = "events.out.tfevents.";

/// Stands in a name where others write the host.
const WRITER: &str = "epl";

/// Appends events to a file. Each record's events reach the operating system whole before a call returns.
#[derive(Debug)]
pub struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// Starts a file in `folder` with the configuration as a text. With `resumed`, the number of steps that were done
    /// before, TensorBoard forgets what earlier files of the folder have beyond that step.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file or the folder.
    pub fn create(folder: &Path, config_toml: &str, resumed: Option<u64>) -> Result<Self> {
        let path = next_path(folder)?;
        File::create_new(&path).map_err(|source| Error::io(&path, source))?;
        let mut this = Self::on(&path)?;
        let mut events = vec![Event::now(0, What::FileVersion("brain.Event:2".to_owned()))];
        if let Some(step) = resumed {
            // TensorBoard forgets what is at the step of a start and later; what is at `step` itself is to stay.
            let start = SessionLog { status: SessionStatus::Start.into() };
            events.push(Event::now(step + 1, What::SessionLog(start)));
        }
        let config = Summary { value: vec![text("config", config_toml)] };
        events.push(Event::now(resumed.unwrap_or(0), What::Summary(config)));
        this.append(&events)?;
        Ok(this)
    }

    /// Appends to a file that exists.
    pub(super) fn on(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().append(true).open(path).map_err(|source| Error::io(path, source))?;
        Ok(Self { path: path.to_path_buf(), file })
    }

    /// Appends what was measured.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file.
    pub fn record(&mut self, record: &Record) -> Result<()> {
        let (step, value) = match record {
            Record::Step(point) => (point.step, of_step(point)),
            Record::Eval(point) => (point.step, of_evaluation(point)),
            Record::Prototypes(point) => (point.step, of_prototypes(point)),
        };
        self.append(&[Event::now(step, What::Summary(Summary { value }))])
    }

    fn append(&mut self, events: &[Event]) -> Result<()> {
        let bytes: Vec<u8> = events.iter().flat_map(|event| framed(&event.encode_to_vec())).collect();
        self.file.write_all(&bytes).map_err(|source| Error::io(&self.path, source))
    }
}

/// Removes the event files that earlier runs of this program left in `folder`; those of others stay.
///
/// # Errors
/// [`Error::Io`] naming the file that could not be removed, or the folder.
pub fn remove_event_files(folder: &Path) -> Result<()> {
    for (_, path) in event_files(folder)? {
        std::fs::remove_file(&path).map_err(|source| Error::io(&path, source))?;
    }
    Ok(())
}

/// The event files of this program in `folder`, each with the second in its name.
fn event_files(folder: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let at = |source| Error::io(folder, source);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(at)? {
        let entry = entry.map_err(at)?;
        let name = entry.file_name();
        let middle = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        if let Some((second, rest)) = middle.and_then(|middle| middle.split_once('.'))
            && let Ok(second) = second.parse()
            && rest.strip_prefix(WRITER).is_some_and(|rest| rest.starts_with('.'))
        {
            found.push((second, entry.path()));
        }
    }
    Ok(found)
}

/// The path of a new file. TensorBoard reads the files of a folder in the order of their names, so a later one must
/// have a larger name even within a second, or where the clock was set back.
fn next_path(folder: &Path) -> Result<PathBuf> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let last = event_files(folder)?.into_iter().map(|(second, _)| second).max();
    let second = last.map_or(now, |last| now.max(last.saturating_add(1)));
    Ok(folder.join(format!("{PREFIX}{second:010}.{WRITER}.{}", std::process::id())))
}

/// A TFRecord: length, its checksum, the data, their checksum; all numbers little-endian.
fn framed(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &masked_crc(&length).to_le_bytes(), data, &masked_crc(data).to_le_bytes()].concat()
}

/// TensorFlow's checksum: CRC-32C, rotated and shifted so that data which hold checksums do not confuse it.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn of_step(point: &StepPoint) -> Vec<Value> {
    let mut values = vec![scalar("train/loss", point.loss)];
    values.extend(measured("train/lr", point.lr));
    values.extend(measured("train/grad_norm", point.grad_norm));
    values.extend(measured("train/loss_scale", point.loss_scale));
    values.push(scalar("train/skipped", point.skipped as f64));
    values.push(scalar("train/epoch", f64::from(point.epoch)));
    values.extend(measured("train/images_per_second", point.images_per_second));
    values.extend(measured("train/data_wait", point.data_wait));
    values.extend(measured("train/device_wait", point.device_wait));
    values
}

fn of_evaluation(point: &EvalPoint) -> Vec<Value> {
    [
        ("accuracy", point.accuracy),
        ("accuracy_std", point.accuracy_std),
        ("tar_at_far_1e-3", point.tar_at_far_1e3),
        ("auc", point.auc),
        ("eer", point.eer),
        ("threshold", point.threshold),
    ]
    .into_iter()
    .filter_map(|(name, value)| measured(&format!("eval/{}/{name}", point.set), value))
    .collect()
}

fn of_prototypes(point: &PrototypePoint) -> Vec<Value> {
    let quantities: [(_, _, Option<Percentiles>); 8] = [
        ("cos_weight", point.cos_weight, point.cos_weight_percentiles),
        ("cos_empirical", point.cos_empirical, point.cos_empirical_percentiles),
        ("cos_before_update", point.cos_before_update, point.cos_before_update_percentiles),
        ("adaptive_margin", point.adaptive_margin, point.adaptive_margin_percentiles),
        ("angle_degrees", point.angle_degrees, point.angle_degrees_percentiles),
        ("drift_degrees", point.drift_degrees, point.drift_degrees_percentiles),
        ("hard_share", point.hard_share, None),
        ("classes_unvisited", point.classes_unvisited.map_or(f64::NAN, |left| left as f64), None),
    ];
    let mut values = Vec::new();
    for (name, mean, percentiles) in quantities {
        values.extend(measured(&format!("prototypes/{name}"), mean));
        for (percent, value) in PERCENTILES.iter().zip(percentiles.into_iter().flatten()) {
            // A group of their own: they are many, and would hide the means.
            values.extend(measured(&format!("prototypes_percentiles/{name}/p{percent:02}"), value));
        }
    }
    values
}

/// A scalar, unless it was not measured.
fn measured(tag: &str, value: f64) -> Option<Value> {
    value.is_finite().then(|| scalar(tag, value))
}

fn scalar(tag: &str, value: f64) -> Value {
    Value { tag: tag.to_owned(), metadata: None, data: Some(Data::SimpleValue(value as f32)) }
}

/// A text, which TensorBoard renders as Markdown: indented by four columns it is shown as it is.
fn text(tag: &str, text: &str) -> Value {
    let verbatim: String = text.lines().map(|line| format!("    {line}\n")).collect();
    let plugin = PluginData { plugin_name: "text".to_owned() };
    let metadata = SummaryMetadata { plugin_data: Some(plugin), data_class: DataClass::Tensor.into() };
    let tensor = TensorProto {
        dtype: DataType::String.into(),
        tensor_shape: Some(TensorShape {}),
        string_val: vec![verbatim.into_bytes()],
    };
    Value { tag: tag.to_owned(), metadata: Some(metadata), data: Some(Data::Tensor(tensor)) }
}

#[derive(Clone, PartialEq, Message)]
struct Event {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "What", tags = "3, 5, 7")]
    what: Option<What>,
}

impl Event {
    fn now(step: u64, what: What) -> Self {
        let wall_time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64());
        Self { wall_time, step: i64::try_from(step).unwrap_or(i64::MAX), what: Some(what) }
    }
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
    #[prost(message, tag = "7")]
    SessionLog(SessionLog),
}

#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(enumeration = "SessionStatus", tag = "1")]
    status: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
enum SessionStatus {
    Unspecified = 0,
    Start = 1,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(message, optional, tag = "9")]
    metadata: Option<SummaryMetadata>,
    #[prost(oneof = "Data", tags = "2, 8")]
    data: Option<Data>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Data {
    #[prost(float, tag = "2")]
    SimpleValue(f32),
    #[prost(message, tag = "8")]
    Tensor(TensorProto),
}

#[derive(Clone, PartialEq, Message)]
struct SummaryMetadata {
    #[prost(message, optional, tag = "1")]
    plugin_data: Option<PluginData>,
    #[prost(enumeration = "DataClass", tag = "4")]
    data_class: i32,
}

#[derive(Clone, PartialEq, Message)]
struct PluginData {
    #[prost(string, tag = "1")]
    plugin_name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
enum DataClass {
    Unknown = 0,
    Tensor = 2,
}

#[derive(Clone, PartialEq, Message)]
struct TensorProto {
    #[prost(enumeration = "DataType", tag = "1")]
    dtype: i32,
    #[prost(message, optional, tag = "2")]
    tensor_shape: Option<TensorShape>,
    #[prost(bytes = "vec", repeated, tag = "8")]
    string_val: Vec<Vec<u8>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
enum DataType {
    Invalid = 0,
    String = 7,
}

/// No dimensions: a single value.
#[derive(Clone, Copy, PartialEq, Message)]
struct TensorShape {}

#[cfg(test)]
mod tests;
