//! Augmentations in TOML: a name, which stands for the defaults, or a table of a kind and its parameters.
//!
//! The defaults are for aligned faces. The alignment is what a network builds upon, so changes of geometry are small:
//! what a face detector's landmarks are off by. Crop, jitter and low resolution come with the probability 0.2, and jitter
//! and low resolution with the strength, that AdaFace is trained with (Kim et al. 2022, arXiv 2204.00964). Nothing but
//! mirroring is on unless it is listed.

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Augment, Change, Fill};

/// Names of the kinds, as [`Kind`] has them.
const KINDS: [&str; 10] =
    ["mirror", "crop", "shift", "scale", "rotate", "jitter", "grey", "blur", "low_resolution", "erase"];

/// Most pixels of a shift, and largest standard deviation of a blur: beyond them nothing of a face is left.
const MAX_SHIFT: u32 = 256;
const MAX_SIGMA: f64 = 16.0;
const MAX_RATIO: f64 = 10.0;
const MAX_SCALE: f64 = 4.0;

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Mirror,
    Crop,
    Shift,
    Scale,
    Rotate,
    Jitter,
    Grey,
    Blur,
    LowResolution,
    Erase,
}

/// The table as written: a kind, and keys of which each kind has some.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Table {
    kind: Option<Kind>,
    #[serde(skip_serializing_if = "Option::is_none")]
    probability: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scale: Option<[f64; 2]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    range: Option<[f64; 2]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    area: Option<[f64; 2]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio: Option<[f64; 2]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resize: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pixels: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    degrees: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    brightness: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    contrast: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    saturation: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hue: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sigma: Option<[f64; 2]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fill: Option<Fill>,
}

impl From<Augment> for Table {
    /// Every parameter written out.
    fn from(augment: Augment) -> Self {
        let mut table = Self { probability: Some(augment.probability), ..Self::default() };
        table.kind = Some(match augment.change {
            Change::Mirror => Kind::Mirror,
            Change::Crop { scale, ratio, resize } => {
                (table.scale, table.ratio, table.resize) = (Some(scale), Some(ratio), Some(resize));
                Kind::Crop
            }
            Change::Shift { pixels } => {
                table.pixels = Some(pixels);
                Kind::Shift
            }
            Change::Scale { range } => {
                table.range = Some(range);
                Kind::Scale
            }
            Change::Rotate { degrees } => {
                table.degrees = Some(degrees);
                Kind::Rotate
            }
            Change::Jitter { brightness, contrast, saturation, hue } => {
                (table.brightness, table.contrast) = (Some(brightness), Some(contrast));
                (table.saturation, table.hue) = (Some(saturation), Some(hue));
                Kind::Jitter
            }
            Change::Grey => Kind::Grey,
            Change::Blur { sigma } => {
                table.sigma = Some(sigma);
                Kind::Blur
            }
            Change::LowResolution { scale } => {
                table.scale = Some(scale);
                Kind::LowResolution
            }
            Change::Erase { area, ratio, fill } => {
                (table.area, table.ratio, table.fill) = (Some(area), Some(ratio), Some(fill));
                Kind::Erase
            }
        });
        table
    }
}

impl Table {
    /// The augmentation, with defaults where the table has no value; or the reason that it is none.
    fn augment(self) -> Result<Augment, String> {
        let Some(kind) = self.kind else {
            return Err(format!(
                "found a table without the key `kind`; expected one of {}",
                KINDS.join(", ")
            ));
        };
        let default = |probability: f64, change| Augment { probability, change };
        let augment = match kind {
            Kind::Mirror => default(0.5, Change::Mirror),
            Kind::Crop => default(0.2, Change::Crop { scale: [0.8, 1.0], ratio: [0.9, 1.1], resize: true }),
            Kind::Shift => default(0.5, Change::Shift { pixels: 3 }),
            Kind::Scale => default(0.5, Change::Scale { range: [0.95, 1.05] }),
            Kind::Rotate => default(0.5, Change::Rotate { degrees: 5.0 }),
            Kind::Jitter => {
                default(0.2, Change::Jitter { brightness: 0.5, contrast: 0.5, saturation: 0.5, hue: 0.0 })
            }
            Kind::Grey => default(0.1, Change::Grey),
            Kind::Blur => default(0.1, Change::Blur { sigma: [0.3, 1.5] }),
            Kind::LowResolution => default(0.2, Change::LowResolution { scale: [0.2, 1.0] }),
            Kind::Erase => {
                default(0.2, Change::Erase { area: [0.02, 0.2], ratio: [0.3, 3.3], fill: Fill::Noise })
            }
        };
        augment.with(&self)
    }
}

/// Replaces `place` by the value of a key of the table, and notes that the kind takes the key.
fn take<T: Copy>(place: &mut T, key: &'static str, value: Option<T>, taken: &mut Vec<&'static str>) {
    taken.push(key);
    *place = value.unwrap_or(*place);
}

impl Augment {
    /// This augmentation with the values that `table` gives; or the reason that it does not fit.
    fn with(mut self, table: &Table) -> Result<Self, String> {
        let taken = &mut Vec::new();
        take(&mut self.probability, "probability", table.probability, taken);
        match &mut self.change {
            Change::Mirror | Change::Grey => {}
            Change::Crop { scale, ratio, resize } => {
                take(scale, "scale", table.scale, taken);
                take(ratio, "ratio", table.ratio, taken);
                take(resize, "resize", table.resize, taken);
            }
            Change::Shift { pixels } => take(pixels, "pixels", table.pixels, taken),
            Change::Scale { range } => take(range, "range", table.range, taken),
            Change::Rotate { degrees } => take(degrees, "degrees", table.degrees, taken),
            Change::Jitter { brightness, contrast, saturation, hue } => {
                take(brightness, "brightness", table.brightness, taken);
                take(contrast, "contrast", table.contrast, taken);
                take(saturation, "saturation", table.saturation, taken);
                take(hue, "hue", table.hue, taken);
            }
            Change::Blur { sigma } => take(sigma, "sigma", table.sigma, taken),
            Change::LowResolution { scale } => take(scale, "scale", table.scale, taken),
            Change::Erase { area, ratio, fill } => {
                take(area, "area", table.area, taken);
                take(ratio, "ratio", table.ratio, taken);
                take(fill, "fill", table.fill, taken);
            }
        }
        let given = [
            ("scale", table.scale.is_some()),
            ("range", table.range.is_some()),
            ("area", table.area.is_some()),
            ("ratio", table.ratio.is_some()),
            ("resize", table.resize.is_some()),
            ("pixels", table.pixels.is_some()),
            ("degrees", table.degrees.is_some()),
            ("brightness", table.brightness.is_some()),
            ("contrast", table.contrast.is_some()),
            ("saturation", table.saturation.is_some()),
            ("hue", table.hue.is_some()),
            ("sigma", table.sigma.is_some()),
            ("fill", table.fill.is_some()),
        ];
        match given.iter().find(|(key, given)| *given && !taken.contains(key)) {
            None => Ok(self),
            Some((key, _)) => Err(format!(
                "found the key `{key}`, which kind \"{}\" does not have; expected {}",
                self.name(),
                taken.join(", ")
            )),
        }
    }

    /// The kind's name in a configuration.
    pub fn name(&self) -> &'static str {
        KINDS.get(self.change.stream() as usize).copied().unwrap_or_default()
    }

    /// The augmentation of this name with its defaults.
    pub fn named(name: &str) -> Option<Self> {
        let kind = Kind::deserialize(serde::de::value::StrDeserializer::<serde::de::value::Error>::new(name));
        Table { kind: Some(kind.ok()?), ..Table::default() }.augment().ok()
    }

    /// Every kind with its defaults.
    pub fn defaults() -> impl Iterator<Item = Self> {
        KINDS.iter().filter_map(|name| Self::named(name))
    }

    /// The first parameter that is out of range.
    pub fn out_of_range(&self) -> Option<OutOfRange> {
        let mut checks = vec![single("probability", self.probability, [0.0, 1.0])];
        match self.change {
            Change::Mirror | Change::Grey => {}
            Change::Crop { scale, ratio, .. } => {
                checks.push(pair("scale", scale, [0.0, 1.0]));
                checks.push(pair("ratio", ratio, [1.0 / MAX_RATIO, MAX_RATIO]));
            }
            Change::Shift { pixels } => {
                checks.push(single("pixels", f64::from(pixels), [1.0, f64::from(MAX_SHIFT)]));
            }
            Change::Scale { range } => checks.push(pair("range", range, [1.0 / MAX_SCALE, MAX_SCALE])),
            Change::Rotate { degrees } => checks.push(single("degrees", degrees, [0.0, 180.0])),
            Change::Jitter { brightness, contrast, saturation, hue } => {
                checks.push(single("brightness", brightness, [0.0, 1.0]));
                checks.push(single("contrast", contrast, [0.0, 1.0]));
                checks.push(single("saturation", saturation, [0.0, 1.0]));
                checks.push(single("hue", hue, [0.0, 0.5]));
            }
            Change::Blur { sigma } => checks.push(pair("sigma", sigma, [0.0, MAX_SIGMA])),
            Change::LowResolution { scale } => checks.push(pair("scale", scale, [0.0, 1.0])),
            Change::Erase { area, ratio, .. } => {
                checks.push(pair("area", area, [0.0, 1.0]));
                checks.push(pair("ratio", ratio, [1.0 / MAX_RATIO, MAX_RATIO]));
            }
        }
        checks.into_iter().flatten().next()
    }
}

/// A parameter that is out of range: its key, and words for what was found and what was expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutOfRange {
    /// The key within the augmentation's table.
    pub key: &'static str,
    /// The value.
    pub found: String,
    /// The range.
    pub expected: String,
}

fn single(key: &'static str, value: f64, [low, high]: [f64; 2]) -> Option<OutOfRange> {
    let expected = || format!("{low} to {high}");
    (!(low..=high).contains(&value)).then(|| OutOfRange {
        key,
        found: value.to_string(),
        expected: expected(),
    })
}

/// A range of its own; zero, which nothing can be reduced to or divided by, is left out.
fn pair(key: &'static str, [from, to]: [f64; 2], [low, high]: [f64; 2]) -> Option<OutOfRange> {
    let ok = from > 0.0 && from >= low && from <= to && to <= high;
    (!ok).then(|| OutOfRange {
        key,
        found: format!("[{from}, {to}]"),
        expected: if low > 0.0 {
            format!("two ascending numbers from {low} to {high}")
        } else {
            format!("two ascending numbers above 0, at most {high}")
        },
    })
}

impl Serialize for Augment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // What every version has written for the default stays as it was.
        if Self::named("mirror").as_ref() == Some(self) {
            return serializer.serialize_str("mirror");
        }
        Table::from(*self).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Augment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Augment;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the name of an augmentation or a table with its kind")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Augment, E> {
        Augment::named(name).ok_or_else(|| E::unknown_variant(name, &KINDS))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Augment, A::Error> {
        let table = Table::deserialize(MapAccessDeserializer::new(map))?;
        table.augment().map_err(A::Error::custom)
    }
}
