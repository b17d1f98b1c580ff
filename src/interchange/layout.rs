//! The release's network and InsightFace's as each other, where they compute the same.
//!
//! Both are the same residual network but for three things, and in evaluation each can be written as the other where
//! values are zero:
//!
//! - the second convolution of a layer's first block has stride 2. The release's is 2x2 without padding, InsightFace's 3x3
//!   with a padding of 1: a 2x2 kernel is a 3x3 one whose first row and column are zero;
//! - the convolution of a shortcut has stride 2 too. The release's is 2x2, InsightFace's 1x1: a 1x1 kernel is a 2x2 one that is
//!   zero but for its first element;
//! - the release's last layer is a convolution over all that is left, without a bias; InsightFace's a linear layer over the
//!   same values in the same order, with one. As a batch norm follows, y = (Wx + b - mean) / sqrt(var + eps) * weight + bias,
//!   the layer's bias b goes into the running mean: mean - b.

use super::recognise::{Expected, tensors};
use super::safetensors::Sink;
use super::tensor_file::TensorSource;
use crate::nn::{Family, Network};
use crate::{Error, Result};

/// A tensor of the network in its other form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// The tensor that it is made from; none for one that is zero.
    pub source: Option<String>,
    /// Whether it may be left out where there is no such tensor: a counter of batches.
    pub optional: bool,
    edit: Edit,
}

/// What becomes of the values.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Edit {
    /// Nothing, but perhaps for the shape.
    Same,
    /// A square kernel gets another size: `from` x `from` becomes `to` x `to`, and the element (a, b) is then
    /// (a + shift, b + shift).
    Window { from: usize, to: usize, shift: isize },
    /// They are all zero.
    Zero,
    /// Those of another tensor are subtracted.
    Less(String),
}

/// Names of the parts of a block: the release's and InsightFace's.
const OF_BLOCKS: &[(&str, &str)] = &[("bn0", "bn1"), ("bn1", "bn2"), ("bn2", "bn3")];
/// Names of the network's last layers.
const AT_THE_END: &[(&str, &str)] = &[("bn4", "bn2"), ("fc5", "fc"), ("bn5", "features")];

/// What makes the network `from` one of the family `to`, tensor by tensor, and the network that it then is.
///
/// # Errors
/// A network that has one form only.
pub fn plan(from: &Network, to: Family) -> Result<(Network, Vec<Step>)> {
    if from.family == Family::MobileFaceNet || to == Family::MobileFaceNet {
        return Err(Error::usage(
            "a mobilefacenet has one layout only",
            "leave --layout out; it is for the release's networks (ir50) and InsightFace's (iresnet50)",
        ));
    }
    let other = Network { family: to, ..from.clone() };
    let step = |tensor: Expected| {
        let Expected { name, shape, optional } = tensor;
        let source = if from.family == to { name.clone() } else { source_of(&name, to) };
        let edit = if from.family == to { Edit::Same } else { edit_of(&name, to) };
        let source = (edit != Edit::Zero).then_some(source);
        Step { name, shape, source, optional, edit }
    };
    let steps = tensors(&other)?.into_iter().map(step).collect();
    Ok((other, steps))
}

/// The name in the other family of the tensor that is `name` in the family `to`.
fn source_of(name: &str, to: Family) -> String {
    let (prefix, rest, pairs) = match block_of(name) {
        Some((prefix, rest)) => (prefix, rest, OF_BLOCKS),
        None => ("", name, AT_THE_END),
    };
    let (part, tail) = rest.split_once('.').unwrap_or((rest, ""));
    // The first batch norm has the same name in both, and the last but one has another.
    let other = pairs.iter().find_map(|&(release, insightface)| match to {
        Family::Ir => (release == part).then_some(insightface),
        _ => (insightface == part).then_some(release),
    });
    format!("{prefix}{}.{tail}", other.unwrap_or(part))
}

/// The prefix `layer1.0.` of a name in a block, and what is behind it.
fn block_of(name: &str) -> Option<(&str, &str)> {
    let rest = name.strip_prefix("layer")?;
    let dot = rest.find('.')?;
    let end = dot + 1 + rest.get(dot + 1..)?.find('.')? + 1 + "layer".len();
    name.split_at_checked(end)
}

/// What is done to make the tensor that is `name` in the family `to`.
fn edit_of(name: &str, to: Family) -> Edit {
    let first = block_of(name).filter(|(prefix, _)| prefix.ends_with(".0.")).map(|(_, part)| part);
    match (to, first, name) {
        (Family::Ir, Some("conv2.weight"), _) => Edit::Window { from: 3, to: 2, shift: -1 },
        (Family::Ir, Some("downsample.0.weight"), _) => Edit::Window { from: 1, to: 2, shift: 0 },
        (Family::Ir, _, "bn5.running_mean") => Edit::Less("fc.bias".to_owned()),
        (Family::IResNet, Some("conv2.weight"), _) => Edit::Window { from: 2, to: 3, shift: 1 },
        (Family::IResNet, Some("downsample.0.weight"), _) => Edit::Window { from: 2, to: 1, shift: 0 },
        (Family::IResNet, _, "fc.bias") => Edit::Zero,
        _ => Edit::Same,
    }
}

impl Step {
    /// Whether the values must have zeros that only a look at them shows.
    fn cuts(&self) -> bool {
        matches!(self.edit, Edit::Window { from, to, .. } if to < from)
    }

    /// The tensors that are read.
    pub fn sources(&self) -> impl Iterator<Item = &str> {
        let less = match &self.edit {
            Edit::Less(other) => Some(other.as_str()),
            _ => None,
        };
        self.source.as_deref().into_iter().chain(less)
    }

    /// Writes the tensor, made from those of `source`; `place` names them in errors.
    ///
    /// # Errors
    /// A tensor that is missing, a kernel with values where the other network has none, and what the sink fails with.
    pub fn write(&self, source: &dyn TensorSource, place: &str, sink: &mut Sink<'_>) -> Result<()> {
        const PIECE: usize = 1 << 20;
        match (&self.edit, &self.source) {
            (Edit::Same, Some(name)) => {
                source.for_each_part(name, PIECE, &mut |_, values| sink.write(bytemuck::cast_slice(values)))
            }
            (Edit::Window { from, to, shift }, Some(name)) => {
                let values = resize(&source.floats_of(name)?, *from, *to, *shift);
                sink.write(bytemuck::cast_slice(&values.ok_or_else(|| disagree(place, name))?))
            }
            (Edit::Less(other), Some(name)) => {
                let mut values = source.floats_of(name)?;
                let less = source.floats_of(other)?;
                values.iter_mut().zip(less).for_each(|(value, less)| *value -= less);
                sink.write(bytemuck::cast_slice(&values))
            }
            (Edit::Zero, _) | (_, None) => {
                let zeros = vec![0.0_f32; self.shape.iter().product()];
                sink.write(bytemuck::cast_slice(&zeros))
            }
        }
    }
}

/// Checks that the tensors of `source` can be written in the other form, before any is.
///
/// # Errors
/// The first kernel that has values where the other network has none, by name.
pub fn check(steps: &[Step], source: &dyn TensorSource, place: &str) -> Result<()> {
    for step in steps.iter().filter(|step| step.cuts()) {
        if let (Edit::Window { from, to, shift }, Some(name)) = (&step.edit, &step.source)
            && resize(&source.floats_of(name)?, *from, *to, *shift).is_none()
        {
            return Err(disagree(place, name));
        }
    }
    Ok(())
}

fn disagree(place: &str, name: &str) -> Error {
    Error::data(
        format!("{place}: tensor {name}"),
        "values where the kernel of the other network has none: the networks do not agree there",
        "zeros in what is left out",
        "use the weights with their own network; only retraining makes them those of the other",
    )
}

/// Square kernels `[.., from, from]` as `[.., to, to]`; `None` where a value that is not zero would be left out.
fn resize(values: &[f32], from: usize, to: usize, shift: isize) -> Option<Vec<f32>> {
    let mut out = vec![0.0; values.len() / (from * from) * to * to];
    for (kernel, new) in values.chunks_exact(from * from).zip(out.chunks_exact_mut(to * to)) {
        for (at, &value) in kernel.iter().enumerate() {
            let place = |index: usize| index.checked_add_signed(shift).filter(|&index| index < to);
            match place(at / from).zip(place(at % from)) {
                Some((row, column)) => *new.get_mut(row * to + column)? = value,
                None if value == 0.0 => {}
                None => return None,
            }
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interchange::safetensors::StateDict;

    fn describe(family: Family) -> Network {
        Network { family, input: [32, 16], embedding: 3, width: 2, blocks: [2, 1, 1, 1], dropout: 0.0 }
    }

    /// A state dict whose values tell their tensor and their place in it.
    fn network(family: Family) -> StateDict {
        let mut dict = StateDict::default();
        for (at, tensor) in tensors(&describe(family)).unwrap().into_iter().enumerate() {
            if !tensor.optional {
                let count: usize = tensor.shape.iter().product();
                let values = (0..count).map(|value| 1.0 + at as f32 + value as f32 / 1024.0).collect();
                dict.insert(tensor.name, &tensor.shape, values);
            }
        }
        dict
    }

    fn converted(dict: &StateDict, from: Family, to: Family) -> Result<StateDict> {
        let (other, steps) = plan(&describe(from), to)?;
        assert_eq!(other, describe(to));
        check(&steps, dict, "w")?;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.safetensors");
        let steps: Vec<_> = steps.into_iter().filter(|step| !step.optional).collect();
        let more: Vec<_> = steps.iter().map(|step| (step.name.as_str(), step.shape.clone())).collect();
        StateDict::default().write_with(&path, &more, |name, sink| {
            steps.iter().find(|step| step.name == name).unwrap().write(dict, "w", sink)
        })?;
        StateDict::read(&path)
    }

    /// Sets to zero what the other network has no place for.
    fn zero(dict: &mut StateDict, window: usize, part: &str, keep: impl Fn(usize, usize) -> bool) {
        for (name, (_, value)) in &mut dict.tensors {
            if block_of(name).is_some_and(|(block, rest)| block.ends_with(".0.") && rest == part) {
                let crate::interchange::safetensors::Value::F32(values) = value else { panic!("{name}") };
                for (at, value) in values.iter_mut().enumerate() {
                    let at = at % (window * window);
                    if !keep(at / window, at % window) {
                        *value = 0.0;
                    }
                }
            }
        }
    }

    #[test]
    fn a_network_goes_to_the_other_layout_and_back() {
        let mut release = network(Family::Ir);
        zero(&mut release, 2, "downsample.0.weight", |row, column| row == 0 && column == 0);
        let insightface = converted(&release, Family::Ir, Family::IResNet).unwrap();
        let floats = |name: &str| insightface.floats(name).unwrap();
        assert_eq!(floats("fc.bias"), (&[3][..], &[0.0; 3][..]));
        assert_eq!(floats("fc.weight").0, [3, 16 * 2]);
        assert_eq!(floats("fc.weight").1, release.floats("fc5.weight").unwrap().1);
        assert_eq!(floats("layer1.1.bn3.bias"), release.floats("layer1.1.bn2.bias").unwrap());
        assert_eq!(floats("bn1.bias"), release.floats("bn1.bias").unwrap());
        assert_eq!(floats("bn2.bias"), release.floats("bn4.bias").unwrap());
        let kernel = &floats("layer2.0.conv2.weight").1[..9];
        let small = &release.floats("layer2.0.conv2.weight").unwrap().1[..4];
        assert_eq!(kernel, [0.0, 0.0, 0.0, 0.0, small[0], small[1], 0.0, small[2], small[3]]);
        assert_eq!(converted(&insightface, Family::IResNet, Family::Ir).unwrap(), release);

        let mut insightface = network(Family::IResNet);
        zero(&mut insightface, 3, "conv2.weight", |row, column| row > 0 && column > 0);
        let release = converted(&insightface, Family::IResNet, Family::Ir).unwrap();
        let mean = |dict: &StateDict, name: &str| dict.floats(name).unwrap().1.to_vec();
        let bias = mean(&insightface, "fc.bias");
        let means = mean(&insightface, "features.running_mean");
        let expected: Vec<f32> = means.iter().zip(&bias).map(|(mean, bias)| mean - bias).collect();
        assert_eq!(mean(&release, "bn5.running_mean"), expected);
        let again = converted(&release, Family::Ir, Family::IResNet).unwrap();
        for (name, value) in &insightface.tensors {
            if !["fc.bias", "features.running_mean"].contains(&name.as_str()) {
                assert_eq!(again.tensors.get(name), Some(value), "{name}");
            }
        }
    }

    #[test]
    fn values_without_a_place_are_refused_by_name() {
        for (from, to, name) in [
            (Family::Ir, Family::IResNet, "layer1.0.downsample.0.weight"),
            (Family::IResNet, Family::Ir, "layer1.0.conv2.weight"),
        ] {
            let error = converted(&network(from), from, to).unwrap_err();
            let text = error.to_string();
            assert!(text.contains(name) && text.contains("networks do not agree there"), "{text}");
        }
        // One value in the last kernel of the last layer is enough, and NaN is a value.
        for value in [1e-30, f32::NAN] {
            let mut release = network(Family::Ir);
            zero(&mut release, 2, "downsample.0.weight", |row, column| row == 0 && column == 0);
            let (_, found) = release.tensors.get_mut("layer4.0.downsample.0.weight").unwrap();
            let crate::interchange::safetensors::Value::F32(values) = found else { panic!("floats") };
            *values.last_mut().unwrap() = value;
            let error = converted(&release, Family::Ir, Family::IResNet).unwrap_err();
            assert!(error.to_string().contains("layer4.0.downsample.0.weight"), "{error}");
        }
    }

    #[test]
    fn the_same_layout_is_no_work_and_mobilefacenet_has_one() {
        let release = network(Family::Ir);
        assert_eq!(converted(&release, Family::Ir, Family::Ir).unwrap(), release);
        let mobile = Network { family: Family::MobileFaceNet, ..describe(Family::Ir) };
        assert_eq!(plan(&mobile, Family::Ir).unwrap_err().exit_code(), 2);
    }
}
