//! Which network weights are of, from the names and shapes of their tensors.

use std::collections::{BTreeMap, BTreeSet};

use crate::Result;
use crate::nn::{Family, Network};

/// A tensor that a network has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Its name in the state dict.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Whether weights are whole without it: the counters of batches, which nothing computes with.
    pub optional: bool,
}

/// What was recognised, and how the tensors fit it.
#[derive(Clone, Debug, PartialEq)]
pub struct Recognised {
    /// The network. Its input is taken for a square where the weights only tell the product.
    pub network: Network,
    /// The names of its tensors that are missing or have another shape.
    pub missing: Vec<String>,
    /// The names of further tensors.
    pub extra: Vec<String>,
}

/// All tensors of a network, in the order of its state dict.
///
/// # Errors
/// Those of [`Network::parameters`].
pub fn tensors(network: &Network) -> Result<Vec<Expected>> {
    let mut list = Vec::new();
    for spec in network.parameters()? {
        list.push(Expected { name: spec.name.clone(), shape: spec.shape.dims().to_vec(), optional: false });
        if let Some(layer) = spec.name.strip_suffix("running_var") {
            let name = format!("{layer}num_batches_tracked");
            list.push(Expected { name, shape: Vec::new(), optional: true });
        }
    }
    Ok(list)
}

/// Says which network tensors of these names and shapes are of; `None` where they are of none that is known.
pub fn recognise(shapes: &BTreeMap<&str, &[usize]>) -> Option<Recognised> {
    compare(guess(shapes)?, shapes)
}

/// How tensors of these names and shapes fit `network`, which a file says that they are of; `None` where they do not.
pub fn recognise_as(network: Network, shapes: &BTreeMap<&str, &[usize]>) -> Option<Recognised> {
    network.validate().ok()?;
    compare(network, shapes).filter(|found| found.missing.is_empty())
}

fn compare(network: Network, shapes: &BTreeMap<&str, &[usize]>) -> Option<Recognised> {
    let expected = tensors(&network).ok()?;
    let known: BTreeSet<&str> = expected.iter().map(|tensor| tensor.name.as_str()).collect();
    let missing = expected.iter().filter(|tensor| match shapes.get(tensor.name.as_str()) {
        Some(shape) => **shape != tensor.shape && !tensor.optional,
        None => !tensor.optional,
    });
    let missing = missing.map(|tensor| tensor.name.clone()).collect();
    let extra = shapes.keys().filter(|name| !known.contains(**name)).map(|name| (*name).to_owned()).collect();
    Some(Recognised { network, missing, extra })
}

fn guess(shapes: &BTreeMap<&str, &[usize]>) -> Option<Network> {
    let shape = |name: &str| shapes.get(name).copied();
    let count = |name: &dyn Fn(usize) -> String| (0..).take_while(|&at| shape(&name(at)).is_some()).count();
    let layers = || [1, 2, 3, 4].map(|layer| count(&|at| format!("layer{layer}.{at}.conv1.weight")));
    let of = |family, input, embedding, width, blocks| Network {
        family,
        input,
        width,
        blocks,
        embedding,
        dropout: Family::dropout(family),
    };
    let network = if let (Some(&[embedding, _, height, width]), Some(&[channels, 3, 3, 3])) =
        (shape("fc5.weight"), shape("conv1.weight"))
    {
        shape("layer1.0.bn0.weight")?;
        let input = [height.checked_mul(16)?, width.checked_mul(16)?];
        of(Family::Ir, input, embedding, channels, layers())
    } else if let (Some(&[embedding, inputs]), Some(&[channels, 3, 3, 3])) =
        (shape("fc.weight"), shape("conv1.weight"))
    {
        shape("layer1.0.bn3.weight")?;
        shape("features.running_mean")?;
        let last = channels.checked_mul(8).filter(|&last| last > 0 && inputs.is_multiple_of(last))?;
        let side = (inputs / last).isqrt();
        if side * side != inputs / last {
            return None;
        }
        let input = [side.checked_mul(16)?; 2];
        of(Family::IResNet, input, embedding, channels, layers())
    } else if let (Some(&[channels, 3, 3, 3]), Some(&[last, 1, height, width]), Some(&[embedding, _])) = (
        shape("layers.0.layers.0.weight"),
        shape("features.layers.0.layers.0.weight"),
        shape("features.layers.2.weight"),
    ) {
        // InsightFace's other scales keep the channels of the last layers and the groups, and are other networks.
        if last != channels.checked_mul(4)? {
            return None;
        }
        let blocks = [1, 3, 5, 7]
            .map(|layer| count(&|at| format!("layers.{layer}.layers.{at}.layers.0.layers.0.weight")));
        let first = if shape("layers.1.layers.0.weight").is_some() { 1 } else { blocks[0] };
        let blocks = [first, blocks[1], blocks[2], blocks[3]];
        let input = [height.checked_mul(16)?, width.checked_mul(16)?];
        of(Family::MobileFaceNet, input, embedding, channels, blocks)
    } else {
        return None;
    };
    // Within the bounds no size can overflow.
    network.validate().is_ok().then_some(network)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn describe(family: Family, blocks: [usize; 4]) -> Network {
        let (width, dropout) = (family.width(), family.dropout());
        Network { family, input: [112, 112], embedding: 512, width, blocks, dropout }
    }

    /// What is recognised in the tensors of `network`, changed by `change`.
    fn of(network: &Network, change: impl FnOnce(&mut BTreeMap<String, Vec<usize>>)) -> Option<Recognised> {
        let mut shapes: BTreeMap<String, Vec<usize>> =
            tensors(network).unwrap().into_iter().map(|tensor| (tensor.name, tensor.shape)).collect();
        change(&mut shapes);
        recognise(&shapes.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())).collect())
    }

    #[test]
    fn networks_are_recognised_by_names_and_shapes() {
        for (network, arch) in [
            (describe(Family::Ir, [3, 4, 14, 3]), "ir50"),
            (describe(Family::Ir, [3, 33, 60, 3]), "ir200"),
            (describe(Family::IResNet, [2, 2, 2, 2]), "iresnet18"),
            (describe(Family::IResNet, [3, 13, 30, 3]), "iresnet100"),
            (describe(Family::IResNet, [6, 26, 60, 6]), "iresnet200"),
            (describe(Family::MobileFaceNet, [1, 4, 6, 2]), "mobilefacenet"),
            (Network { width: 16, ..describe(Family::MobileFaceNet, [2, 8, 12, 4]) }, "mobilefacenet"),
            // Depths that have no name.
            (describe(Family::Ir, [1, 1, 1, 1]), "ir18"),
            (describe(Family::IResNet, [3, 4, 15, 3]), "iresnet50"),
            (
                Network { input: [96, 128], embedding: 7, width: 8, ..describe(Family::Ir, [1, 2, 3, 1]) },
                "ir18",
            ),
            (Network { input: [32, 32], width: 4, ..describe(Family::IResNet, [1, 2, 1, 1]) }, "iresnet18"),
        ] {
            let found = of(&network, |_| {}).unwrap();
            assert_eq!(found.network, network);
            assert_eq!((found.network.arch(), &found.missing, &found.extra), (arch, &vec![], &vec![]));
        }
    }

    #[test]
    fn what_is_missing_and_what_is_more_is_named() {
        let found = of(&describe(Family::IResNet, [2, 2, 2, 2]), |shapes| {
            shapes.remove("layer2.1.prelu.weight");
            shapes.insert("bn2.bias".into(), vec![5]);
            shapes.remove("features.num_batches_tracked");
            shapes.insert("head.kernel".into(), vec![512, 10]);
        });
        let found = found.unwrap();
        assert_eq!(found.missing, ["layer2.1.prelu.weight", "bn2.bias"]);
        assert_eq!(found.extra, ["head.kernel"]);
    }

    #[test]
    fn others_are_not() {
        let ir = describe(Family::Ir, [1, 1, 1, 1]);
        assert_eq!(of(&ir, |shapes| drop(shapes.remove("fc5.weight"))), None);
        assert_eq!(of(&ir, |shapes| drop(shapes.insert("fc5.weight".into(), vec![512, 512, 0, 7]))), None);
        let huge = vec![usize::MAX, 512, usize::MAX, 7];
        assert_eq!(of(&ir, |shapes| drop(shapes.insert("fc5.weight".into(), huge))), None);
        let insightface = describe(Family::IResNet, [1, 1, 1, 1]);
        assert_eq!(of(&insightface, |s| drop(s.insert("fc.weight".into(), vec![512, 512 * 48]))), None);
        // InsightFace's MobileFaceNet with scale=4 is 256 channels wide and ends in 512 all the same.
        let mobile = Network { width: 256, ..describe(Family::MobileFaceNet, [1, 4, 6, 2]) };
        let last = vec![512, 1, 7, 7];
        assert_eq!(of(&mobile, |s| drop(s.insert("features.layers.0.layers.0.weight".into(), last))), None);
        assert_eq!(recognise(&BTreeMap::from([("weight", &[10, 512][..])])), None);
        assert_eq!(recognise(&BTreeMap::new()), None);
    }
}
