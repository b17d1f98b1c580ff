use std::collections::HashSet;

use super::*;
use crate::interchange::safetensors::StateDict;
use crate::nn::network::architectures;

/// A small network called `arch`, with weights that are all the same.
fn small(arch: &str) -> (Network, StateDict) {
    let width = if arch == "mobilefacenet" { 8 } else { 4 };
    let network = Network { input: [32, 48], width, embedding: 6, ..Network::named(arch).unwrap() };
    let mut dict = StateDict::default();
    for spec in network.parameters().unwrap() {
        dict.insert(spec.name.clone(), spec.shape.dims(), vec![0.5; spec.shape.elements()]);
    }
    (network, dict)
}

fn graph(arch: &str, options: Options) -> GraphProto {
    let (network, dict) = small(arch);
    let (model, _) = build(&network, &dict, "test", &[], options).unwrap();
    // What is read back is what was written.
    let read = ModelProto::decode(model.encode_to_vec().as_slice()).unwrap();
    assert_eq!(read, model);
    model.graph.unwrap()
}

fn count(graph: &GraphProto, operator: &str) -> usize {
    graph.node.iter().filter(|node| node.op_type == operator).count()
}

/// Every input is made before it is taken, everything made is taken, and names are unique.
fn check(graph: &GraphProto) {
    let mut known: HashSet<&str> = graph.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(known.len(), graph.initializer.len(), "constants of one name");
    known.insert(INPUT);
    let mut taken = HashSet::new();
    for node in &graph.node {
        for input in &node.input {
            assert!(known.contains(input.as_str()), "{} takes {input}", node.name);
            taken.insert(input.as_str());
        }
        for output in &node.output {
            assert!(known.insert(output), "{output} is made twice");
        }
    }
    taken.insert(OUTPUT);
    let idle: Vec<_> = known.difference(&taken).collect();
    assert!(idle.is_empty(), "{idle:?} are not taken");
}

#[test]
fn graphs_hang_together_whatever_the_options() {
    for arch in architectures() {
        for bits in 0..8 {
            let options = Options { flip: bits & 1 > 0, f16: bits & 2 > 0, fold: bits & 4 > 0 };
            check(&graph(arch, options));
        }
    }
}

#[test]
fn all_batch_norms_fold_but_those_before_padding() {
    let options = Options { fold: true, ..Options::default() };
    for (arch, blocks) in [("ir50", 24), ("iresnet50", 24), ("mobilefacenet", 0)] {
        assert!(count(&graph(arch, Options::default()), "BatchNormalization") > blocks);
        assert_eq!(count(&graph(arch, options), "BatchNormalization"), blocks, "{arch}");
    }
}

#[test]
fn half_precision_is_only_storage_and_only_of_matrices() {
    let plain = graph("iresnet18", Options::default());
    let half = graph("iresnet18", Options { f16: true, ..Options::default() });
    let layers = count(&plain, "Conv") + count(&plain, "Gemm");
    assert_eq!(count(&half, "Cast"), layers);
    let halves = half.initializer.iter().filter(|tensor| tensor.data_type == FLOAT16).count();
    assert_eq!(halves, layers);
}

#[test]
fn what_cannot_be_exported_is_named() {
    let (network, dict) = small("ir18");
    let refused = |dict: &StateDict, options: Options, parts: &[&str]| {
        let error = build(&network, dict, "w.safetensors", &[], options).err().unwrap().to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    };
    let with = |name: &str, shape: &[usize], value: f32| {
        let mut dict = dict.clone();
        dict.insert(name, shape, vec![value; shape.iter().product()]);
        dict
    };
    let options = Options::default();
    let mut missing = dict.clone();
    missing.tensors.remove("layer2.0.conv1.weight");
    refused(&missing, options, &["w.safetensors", "layer2.0.conv1.weight", "nothing", "[8, 4, 3, 3]"]);
    refused(&with("prelu.weight", &[5], 0.5), options, &["prelu.weight", "[5]", "[4]"]);
    refused(&with("bn1.bias", &[4], f32::NAN), options, &["bn1.bias", "element 0", "NaN"]);
    refused(&with("bn1.running_var", &[4], -0.5), options, &["bn1.running_var", "-0.5", "variances"]);
    let large = with("conv1.weight", &[4, 3, 3, 3], 7e4);
    assert!(build(&network, &large, "", &[], options).is_ok());
    refused(&large, Options { f16: true, ..options }, &["conv1.weight", "70000", "65504"]);
}
