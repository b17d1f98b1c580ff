//! Batch norms folded into the convolutions and linear layers beside them, in f64.
//!
//! In evaluation a batch norm is `y = s x + t` with a scale and a shift a channel. After a layer it always folds: `s` goes into
//! the layer's rows, `t` into its bias. Before a layer it folds where the layer pads nothing: a padded zero is not `t`.
//! What remains are the first batch norms of residual blocks, whose input is a sum and whose output is padded.

use super::nodes::{Nodes, Weight};
use super::proto::NodeProto;
use crate::nn::layers::BATCH_NORM_EPS;

/// Folds all that fold; returns how many.
pub fn fold(graph: &mut Nodes<'_>) -> usize {
    let mut folded = 0;
    while let Some((norm, layer, side)) = find(&graph.nodes) {
        if !apply(graph, norm, layer, side) {
            break;
        }
        folded += 1;
    }
    folded
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    /// The batch norm comes after the layer.
    After,
    /// The batch norm comes before it.
    Before,
}

/// The next batch norm that folds, and the layer that it folds into.
fn find(nodes: &[NodeProto]) -> Option<(usize, usize, Side)> {
    nodes.iter().enumerate().filter(|(_, node)| node.op_type == "BatchNormalization").find_map(|(norm, _)| {
        if let Some(layer) = across(nodes, norm, producer).filter(|&at| is_layer(&nodes[at])) {
            return Some((norm, layer, Side::After));
        }
        let layer = across(nodes, norm, consumer)?;
        (is_layer(&nodes[layer]) && pads_nothing(&nodes[layer])).then_some((norm, layer, Side::Before))
    })
}

fn is_layer(node: &NodeProto) -> bool {
    node.op_type == "Conv" || node.op_type == "Gemm"
}

fn pads_nothing(node: &NodeProto) -> bool {
    let of = |name: &str| node.attribute.iter().find(|attribute| attribute.name == name);
    let padded = of("pads").is_some_and(|pads| pads.ints.iter().any(|&pad| pad != 0));
    // The channels that a grouped layer sees are not those of the batch norm.
    let grouped = of("group").is_some_and(|group| group.i != Some(1));
    !padded && !grouped
}

/// Where `step` leads from node `at`, or from the flattening that it leads to: that keeps the channels apart.
fn across(
    nodes: &[NodeProto],
    at: usize,
    step: impl Fn(&[NodeProto], usize) -> Option<usize>,
) -> Option<usize> {
    let next = step(nodes, at)?;
    if nodes.get(next)?.op_type == "Flatten" { step(nodes, next) } else { Some(next) }
}

/// The node that makes the first input of node `at` and of no other.
fn producer(nodes: &[NodeProto], at: usize) -> Option<usize> {
    let input = nodes.get(at)?.input.first()?;
    let made = nodes.iter().position(|node| node.output.first() == Some(input))?;
    (consumers(nodes, made).count() == 1).then_some(made)
}

/// The node that takes the output of node `at`, where it is one.
fn consumer(nodes: &[NodeProto], at: usize) -> Option<usize> {
    let mut all = consumers(nodes, at);
    let first = all.next()?;
    all.next().is_none().then_some(first)
}

fn consumers(nodes: &[NodeProto], at: usize) -> impl Iterator<Item = usize> {
    let output = nodes.get(at).and_then(|node| node.output.first());
    let takes = move |node: &NodeProto| node.input.iter().any(|input| Some(input) == output);
    nodes.iter().enumerate().filter(move |(_, node)| takes(node)).map(|(index, _)| index)
}

/// Scale and shift a channel of a batch norm.
fn scale_and_shift(graph: &Nodes<'_>, norm: usize) -> Option<Vec<(f64, f64)>> {
    let names = graph.nodes.get(norm)?.input.get(1..5)?;
    let part = |name: &String| graph.weights.iter().find(|weight| weight.name == *name);
    let [weight, bias, mean, var] = [part(&names[0])?, part(&names[1])?, part(&names[2])?, part(&names[3])?]
        .map(|weight| weight.values.iter().map(|&value| f64::from(value)));
    let channels = weight.zip(bias).zip(mean.zip(var)).map(|((weight, bias), (mean, var))| {
        let scale = weight / (var + f64::from(BATCH_NORM_EPS)).sqrt();
        (scale, bias - mean * scale)
    });
    Some(channels.collect())
}

/// Folds batch norm `norm` into layer `layer`; whether the graph was as expected.
fn apply(graph: &mut Nodes<'_>, norm: usize, layer: usize, side: Side) -> bool {
    let Some(channels) = scale_and_shift(graph, norm) else { return false };
    let Some(node) = graph.nodes.get(layer) else { return false };
    let (weight_name, bias_name) =
        (node.input.get(1).cloned().unwrap_or_default(), node.input.get(2).cloned());
    let bias = bias_name.as_ref().and_then(|name| graph.weights.iter().find(|weight| weight.name == *name));
    let bias: Option<Vec<f64>> = bias.map(|bias| bias.values.iter().map(|&b| f64::from(b)).collect());
    let Some(weight) = graph.weights.iter_mut().find(|weight| weight.name == weight_name) else {
        return false;
    };
    let rows = weight.shape.first().copied().unwrap_or(0);
    let mut bias = bias.unwrap_or_else(|| vec![0.0; rows]);
    let row = weight.values.len() / rows.max(1);
    match side {
        Side::After => {
            if channels.len() != rows {
                return false;
            }
            let outputs = weight.values.chunks_exact_mut(row.max(1)).zip(&mut bias).zip(&channels);
            for ((values, bias), &(scale, shift)) in outputs {
                values.iter_mut().for_each(|value| *value = (f64::from(*value) * scale) as f32);
                *bias = *bias * scale + shift;
            }
        }
        Side::Before => {
            // A row is of the channels, each with all its pixels.
            let pixels = row / channels.len().max(1);
            if pixels * channels.len() != row {
                return false;
            }
            for (values, bias) in weight.values.chunks_exact_mut(row.max(1)).zip(&mut bias) {
                for (values, &(scale, shift)) in values.chunks_exact_mut(pixels.max(1)).zip(&channels) {
                    for value in values {
                        *bias += f64::from(*value) * shift;
                        *value = (f64::from(*value) * scale) as f32;
                    }
                }
            }
        }
    }
    let bias: Vec<f32> = bias.into_iter().map(|value| value as f32).collect();
    let name = bias_name.unwrap_or_else(|| format!("{}.bias", weight_name.trim_end_matches(".weight")));
    match graph.weights.iter_mut().find(|weight| weight.name == name) {
        Some(weight) => weight.values = bias,
        None => graph.weights.push(Weight { name: name.clone(), shape: vec![rows], values: bias }),
    }
    if let Some(node) = graph.nodes.get_mut(layer) {
        node.input.truncate(2);
        node.input.push(name);
    }
    remove(graph, norm);
    true
}

/// Takes node `norm` out, with its constants: what took its output takes its input.
fn remove(graph: &mut Nodes<'_>, norm: usize) {
    if norm >= graph.nodes.len() {
        return;
    }
    let node = graph.nodes.remove(norm);
    let constants = node.input.get(1..).unwrap_or_default();
    graph.weights.retain(|weight| !constants.contains(&weight.name));
    let (Some(from), Some(to)) = (node.output.first(), node.input.first()) else { return };
    graph.rename(from, to);
}
