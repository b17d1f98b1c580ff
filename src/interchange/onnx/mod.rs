//! Networks as ONNX models for deployment: standard operators only, any batch, one input and one output.
//!
//! Input `input` `[N, 3, H, W]` f32, RGB, (x/255 - 0.5)/0.5; output `embedding` `[N, D]` f32, not normalised. That is what
//! InsightFace's and most other tools take an ArcFace model to be.

mod fold;
mod nodes;
mod proto;

use std::path::Path;

use prost::Message;

use self::nodes::{Edge, Nodes, Weight};
pub use self::proto::OPSET;
use self::proto::{
    Attribute, FLOAT, FLOAT16, GraphProto, INT64, IR_VERSION, ModelProto, NodeProto, OperatorSetId,
    StringStringEntry, TensorProto, ValueInfo,
};
use crate::interchange::files::write_atomically;
use crate::interchange::tensor_file::TensorSource;
use crate::nn::Network;
use crate::{Error, Result};

/// Name of the input.
pub const INPUT: &str = "input";
/// Name of the output.
pub const OUTPUT: &str = "embedding";

/// Most bytes of a model: protocol buffers end there.
const MOST_BYTES: usize = i32::MAX as usize;

/// What to export.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Add the embedding of the mirrored image, as the field's evaluations do.
    pub flip: bool,
    /// Store the weights of convolutions and linear layers as f16; what computes with them gets them as f32.
    pub f16: bool,
    /// Fold batch norms into the layers beside them, where that is exact.
    pub fold: bool,
}

/// What was exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exported {
    /// Nodes of the graph.
    pub nodes: usize,
    /// Batch norms that were folded.
    pub folded: usize,
    /// Elements of all constants.
    pub parameters: usize,
    /// Bytes of the file.
    pub bytes: usize,
}

/// Writes the backbone `network` with the weights of `source`, which errors call `place`, to `path`; with `metadata`.
///
/// # Errors
/// A tensor that is missing, of another shape, or not finite; with f16, one with an element beyond 65504; a model of more
/// than 2 GiB; and a file that cannot be written.
pub fn export(
    path: &Path,
    network: &Network,
    source: &dyn TensorSource,
    place: &str,
    metadata: &[(String, String)],
    options: Options,
) -> Result<Exported> {
    let (model, folded) = build(network, source, place, metadata, options)?;
    let bytes = model.encoded_len();
    if bytes > MOST_BYTES {
        return Err(Error::data(
            place,
            format!("a model of {bytes} bytes"),
            format!("at most {MOST_BYTES}, where protocol buffers end"),
            "export with --f16, which takes half the room",
        ));
    }
    let graph = model.graph.as_ref();
    let elements = |tensor: &TensorProto| tensor.dims.iter().map(|&dim| dim as usize).product::<usize>();
    let exported = Exported {
        nodes: graph.map_or(0, |graph| graph.node.len()),
        folded,
        parameters: graph.map_or(0, |graph| graph.initializer.iter().map(elements).sum()),
        bytes,
    };
    write_atomically(path, &model.encode_to_vec())?;
    Ok(exported)
}

/// The model, and the number of batch norms that were folded.
fn build(
    network: &Network,
    source: &dyn TensorSource,
    place: &str,
    metadata: &[(String, String)],
    options: Options,
) -> Result<(ModelProto, usize)> {
    network.validate()?;
    let mut graph = Nodes::new(source, place);
    let images = graph.outside(INPUT);
    let images = if options.flip { with_mirrored(&mut graph, images) } else { images };
    let embedding = network.forward(&mut graph, images)?;
    let folded = if options.fold { fold::fold(&mut graph) } else { 0 };
    let infinite = graph.weights.iter().find(|weight| weight.values.iter().any(|value| !value.is_finite()));
    if let Some(weight) = infinite {
        return Err(Error::data(
            format!("{place}: tensor {}", weight.name),
            "values beyond f32 once the batch norm beside it is folded into it",
            "finite numbers",
            "export without --fold",
        ));
    }
    if options.flip {
        sum_halves(&mut graph, embedding);
    } else {
        let last = graph.name(embedding).to_owned();
        graph.rename(&last, OUTPUT);
    }
    let initializer = constants(&mut graph, options)?;

    let metadata =
        metadata.iter().map(|(key, value)| StringStringEntry { key: key.clone(), value: value.clone() });
    let flip = StringStringEntry { key: "flip".into(), value: options.flip.to_string() };
    let [height, width] = network.input;
    let model = ModelProto {
        ir_version: IR_VERSION,
        producer_name: "epl".into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        opset_import: vec![OperatorSetId { domain: String::new(), version: OPSET }],
        metadata_props: metadata.chain([flip]).collect(),
        graph: Some(GraphProto {
            node: graph.nodes,
            name: "backbone".into(),
            initializer,
            input: vec![ValueInfo::batch_of(INPUT, &[3, height, width])],
            output: vec![ValueInfo::batch_of(OUTPUT, &[network.embedding])],
        }),
    };
    Ok((model, folded))
}

/// The images, and after them all of them mirrored left to right: one pass of the network for both.
fn with_mirrored(graph: &mut Nodes<'_>, images: Edge) -> Edge {
    let constants = MIRROR.map(|(name, _)| name.to_owned());
    let mirrored = graph.push("Slice", "mirror", &[images], &constants, Vec::new());
    graph.push("Concat", "mirror", &[images, mirrored], &[], vec![Attribute::int("axis", 0)])
}

/// Start, end, axis and step of the slice that mirrors.
const MIRROR: [(&str, i64); 4] =
    [("mirror.start", -1), ("mirror.end", i64::MIN), ("mirror.axis", 3), ("mirror.step", -1)];

/// The embeddings of the images plus those of the mirrored ones, as the output.
fn sum_halves(graph: &mut Nodes<'_>, embeddings: Edge) {
    let halves = ["mirror/Split.0", "mirror/Split.1"].map(str::to_owned).to_vec();
    graph.nodes.push(NodeProto {
        input: vec![graph.name(embeddings).to_owned()],
        output: halves.clone(),
        name: "mirror/Split".into(),
        op_type: "Split".into(),
        attribute: vec![Attribute::int("axis", 0)],
    });
    graph.nodes.push(NodeProto {
        input: halves,
        output: vec![OUTPUT.into()],
        name: "mirror/Add".into(),
        op_type: "Add".into(),
        attribute: Vec::new(),
    });
}

/// The constants as the file has them.
fn constants(graph: &mut Nodes<'_>, options: Options) -> Result<Vec<TensorProto>> {
    let mut initializer = Vec::with_capacity(graph.weights.len());
    let mut casts = Vec::new();
    for Weight { name, shape, values } in std::mem::take(&mut graph.weights) {
        let dims = shape.iter().map(|&dim| dim as i64).collect();
        // Vectors (slopes, batch norms, biases) are little, and some of them have a wide range.
        if !options.f16 || shape.iter().filter(|&&extent| extent > 1).count() < 2 {
            let raw_data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            initializer.push(TensorProto { dims, data_type: FLOAT, name, raw_data });
            continue;
        }
        if let Some(value) = values.iter().find(|value| half::f16::from_f32(**value).is_infinite()) {
            return Err(Error::data(
                format!("tensor {name}"),
                format!("{value}"),
                format!("at most {} in magnitude, as f16 has it", half::f16::MAX),
                "export without --f16",
            ));
        }
        let raw_data = values.iter().flat_map(|&value| half::f16::from_f32(value).to_le_bytes()).collect();
        let stored = format!("{name}.f16");
        initializer.push(TensorProto { dims, data_type: FLOAT16, name: stored.clone(), raw_data });
        casts.push(NodeProto {
            input: vec![stored],
            name: format!("{name}/Cast"),
            output: vec![name],
            op_type: "Cast".into(),
            attribute: vec![Attribute::int("to", i64::from(FLOAT))],
        });
    }
    if options.flip {
        initializer.extend(MIRROR.map(|(name, value)| TensorProto {
            dims: vec![1],
            data_type: INT64,
            name: name.into(),
            raw_data: value.to_le_bytes().to_vec(),
        }));
    }
    casts.append(&mut graph.nodes);
    graph.nodes = casts;
    Ok(initializer)
}

#[cfg(test)]
mod tests;
