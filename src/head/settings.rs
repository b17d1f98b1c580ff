//! What a head can be told. The serde names are those of the configuration and of the weights' metadata.

use serde::{Deserialize, Serialize};

/// The margin loss. `t_j` is the cosine of the embedding and prototype `j`, `y` the sample's class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeadKind {
    /// Normalised softmax: cross-entropy of `s t_j`, no margin.
    Softmax,
    /// Softmax with the target `t_y - m` (Wang et al., arXiv 1801.09414).
    CosFace,
    /// Softmax with the target `cos(arccos(t_y) + m)` (Deng et al., arXiv 1801.07698); see [`ArcMode`].
    ArcFace,
    /// Binary cross-entropy of every class with one learned bias (Zhou et al., ICCV 2023).
    UniFace,
}

/// How ArcFace's target `arc(c) = c cos m - sqrt(1 - c^2) sin m` is used where it is not monotonic, and what
/// gradient it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ArcMode {
    /// Value `arc(c)`, gradient 1 with respect to `c`.
    #[default]
    StraightThrough,
    /// `arc(c)` only where `c > 0`, else `c`.
    Easy,
    /// `c - m sin m` where `c < cos(pi - m)`, else `arc(c)`.
    Hard,
    /// `arc(c)` everywhere, with its own gradient.
    Exact,
}

/// How much of the old empirical prototype is kept, `a`, given `c = n(x) . Q[y]`:
/// `Q[y] <- n(a Q[y] + (1 - a) n(x))`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EplUpdate {
    /// `a = c / (1 + |c|)`; what the published models were trained with.
    #[default]
    Softsign,
    /// `a = sigmoid(c - 1)`; the released code's alternative.
    Sigmoid,
    /// `a = sigmoid(c)`; the form in the paper (arXiv 2405.12447).
    SigmoidPaper,
    /// `a = 0`: the newest feature replaces the old prototype.
    Direct,
}

/// What several samples of one class in a batch do to its empirical prototype.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Duplicates {
    /// Only the last of them in batch order counts.
    #[default]
    Last,
    /// Each is applied, in batch order, to the result of the one before.
    Sequential,
}

/// Empirical prototype learning on top of a head.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EplSettings {
    /// The update of the empirical prototypes.
    pub update: EplUpdate,
    /// What happens to a class that occurs more than once in a batch.
    pub duplicates: Duplicates,
    /// Factor of the adaptive margin: the empirical branch's target is `u_y - k detach(u_y)`. In `[0, 1]`.
    pub k: f64,
    /// First epoch, counted from 1, whose loss has the empirical branch. The empirical prototypes themselves
    /// are updated from the first step on.
    pub start_epoch: u32,
}

impl Default for EplSettings {
    fn default() -> Self {
        Self { update: EplUpdate::default(), duplicates: Duplicates::default(), k: 0.7, start_epoch: 4 }
    }
}

/// How the cosines of a batch and all classes are computed. Both give the same up to rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeadForm {
    /// What fits the adapter, and of that the faster.
    #[default]
    Auto,
    /// All at once: matrices of samples and classes, and the gradient of the prototypes, exist.
    Materialized,
    /// Classes in tiles: nothing grows with their number but the prototypes and their momentum.
    Tiled,
}

/// A head: the loss, its margin and scale, and whether it learns empirical prototypes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HeadSettings {
    /// The margin loss.
    pub kind: HeadKind,
    /// The margin `m`: a cosine for CosFace and UniFace, an angle in radians for ArcFace. Softmax has none and
    /// ignores it; use [`HeadSettings::effective_margin`].
    pub margin: f64,
    /// The scale `s` of the cosines (the radius of the hypersphere).
    pub scale: f64,
    /// ArcFace only.
    pub arc_mode: ArcMode,
    /// How the cosines are computed.
    pub form: HeadForm,
    /// Share of the classes that take part in a step, in `(0, 1]`: those of the batch, and a random sample of the others
    /// (Partial FC, arXiv 2010.05222).
    pub sample_rate: f64,
    /// Empirical prototype learning; `None` is the plain head.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epl: Option<EplSettings>,
}

impl Default for HeadSettings {
    fn default() -> Self {
        Self {
            kind: HeadKind::CosFace,
            margin: 0.4,
            scale: 64.0,
            arc_mode: ArcMode::default(),
            form: HeadForm::default(),
            sample_rate: 1.0,
            epl: None,
        }
    }
}

impl HeadSettings {
    /// The margin that the loss uses: [`HeadSettings::margin`], but 0 for [`HeadKind::Softmax`].
    pub fn effective_margin(&self) -> f64 {
        match self.kind {
            HeadKind::Softmax => 0.0,
            HeadKind::CosFace | HeadKind::ArcFace | HeadKind::UniFace => self.margin,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_configuration() {
        let name = |value: serde_json::Value| value.as_str().map(str::to_owned).unwrap();
        let json = |value: HeadKind| name(serde_json::to_value(value).unwrap());
        let kinds = [HeadKind::Softmax, HeadKind::CosFace, HeadKind::ArcFace, HeadKind::UniFace];
        assert_eq!(kinds.map(json), ["softmax", "cosface", "arcface", "uniface"]);
        let json = |value: ArcMode| name(serde_json::to_value(value).unwrap());
        let modes = [ArcMode::StraightThrough, ArcMode::Easy, ArcMode::Hard, ArcMode::Exact];
        assert_eq!(modes.map(json), ["straight-through", "easy", "hard", "exact"]);
        let json = |value: EplUpdate| name(serde_json::to_value(value).unwrap());
        let updates = [EplUpdate::Softsign, EplUpdate::Sigmoid, EplUpdate::SigmoidPaper, EplUpdate::Direct];
        assert_eq!(updates.map(json), ["softsign", "sigmoid", "sigmoid-paper", "direct"]);
        let json = |value: Duplicates| name(serde_json::to_value(value).unwrap());
        assert_eq!([Duplicates::Last, Duplicates::Sequential].map(json), ["last", "sequential"]);
    }

    #[test]
    fn softmax_has_no_margin() {
        let mut head = HeadSettings::default();
        assert_eq!(head.effective_margin(), 0.4);
        head.kind = HeadKind::Softmax;
        assert_eq!(head.effective_margin(), 0.0);
    }
}
