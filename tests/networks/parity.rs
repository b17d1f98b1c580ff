//! Embeddings, gradients and running statistics against PyTorch in f64.

use std::collections::BTreeMap;
use std::path::Path;

use epl::eval::embedder::Embedder;
use epl::model::{Model, ModelSpec};
use epl::nn::Network;
use epl::nn::input::record_images;
use epl::nn::network::architectures;
use epl::nn::record::Mode;
use epl_runtime::autodiff::backward_from;
use epl_runtime::{DType, Device, DeviceOptions, Graph, Session, SessionOptions, TensorDesc};
use serde::Deserialize;

use super::formula::{images, small, state_dict, uniform};

const TRAINING_IMAGES: usize = 4;

#[derive(Deserialize)]
struct Fixture {
    input: [usize; 2],
    embedding: usize,
    networks: BTreeMap<String, Expected>,
    elements: BTreeMap<String, usize>,
}

#[derive(Deserialize)]
struct Expected {
    blocks: [usize; 4],
    /// Of the first images, evaluated.
    embedding: Vec<Vec<f64>>,
    /// Two numbers a parameter, see [`projection`].
    #[serde(default)]
    gradients: BTreeMap<String, [f64; 2]>,
    /// The same of the running statistics after a training step.
    #[serde(default)]
    statistics: BTreeMap<String, [f64; 2]>,
}

fn fixture() -> Fixture {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/networks.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn network(arch: &str, expected: &Expected, fixture: &Fixture) -> Network {
    let name = arch.split(',').next().unwrap();
    let network = Network { blocks: expected.blocks, ..small(name, fixture.embedding) };
    assert_eq!(network.input, fixture.input);
    network
}

fn model(arch: &str, network: Network) -> Model {
    let device = Device::open(&DeviceOptions::default()).unwrap();
    let dict = state_dict(&network);
    let model = Model::allocate(ModelSpec::new(arch, network, None).unwrap(), &device).unwrap();
    assert_eq!(model.load(&dict, "formula").unwrap(), Vec::<String>::new());
    model
}

#[test]
fn full_size_networks_have_as_many_parameters() {
    let fixture = fixture();
    assert_eq!(fixture.elements.len(), architectures().len());
    for (arch, &elements) in &fixture.elements {
        let parameters = Network::named(arch).unwrap().parameters().unwrap();
        let found: usize = parameters
            .iter()
            .filter(|spec| !spec.name.contains("running"))
            .map(|spec| spec.shape.elements())
            .sum();
        assert_eq!(found, elements, "{arch}");
    }
}

#[test]
fn embeddings_are_those_of_pytorch() {
    let fixture = fixture();
    let names = fixture.networks.keys();
    assert!(architectures().iter().all(|arch| names.clone().any(|name| name == arch)));
    for (arch, expected) in &fixture.networks {
        let model = model(arch, network(arch, expected, &fixture));
        let images = images(expected.embedding.len());
        let mut embedder = Embedder::new(&model, images.len()).unwrap();
        let got = embedder.embed(images.len(), &|i| Ok(images[i].clone()), false, &mut |_| {}).unwrap();
        let want: Vec<f64> = expected.embedding.concat();
        assert_eq!(got.len(), want.len());
        let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
        let difference = square(&mut got.iter().zip(&want).map(|(&g, w)| f64::from(g) - w));
        let relative = difference / square(&mut want.iter().copied());
        println!("{arch}: {relative:.1e}");
        assert!(relative < 1e-4, "{arch}: {relative:e}");
    }
}

/// The product of a tensor with a formula of its name, and the sum of its magnitudes.
fn projection(name: &str, values: &[f32]) -> [f64; 2] {
    let direction = uniform(&format!("{name}.projection"), values.len());
    let product = values.iter().zip(direction).map(|(&v, u)| f64::from(v) * (2.0 * f64::from(u) - 1.0)).sum();
    [product, values.iter().map(|&v| f64::from(v).abs()).sum()]
}

#[test]
fn gradients_and_statistics_are_those_of_pytorch() {
    let fixture = fixture();
    let mut trained = 0;
    for (arch, expected) in fixture.networks.iter().filter(|(_, expected)| !expected.gradients.is_empty()) {
        trained += 1;
        let model = model(arch, network(arch, expected, &fixture));
        let network = &model.spec.network;
        let mut graph = Graph::new();
        let parameters = model.spec.parameters.declare(&mut graph).unwrap();
        let input = record_images(&mut graph, TRAINING_IMAGES, network.input).unwrap();
        let normalized = input.normalized(&mut graph, 0, TRAINING_IMAGES, DType::F32).unwrap();
        let seed = graph.input("seed", TensorDesc::u32([2])).unwrap();
        let mode = Mode::Train { seed, first: 0, statistics: true };
        let output = network.record(&mut graph, &parameters, normalized, mode).unwrap();
        let shape = [TRAINING_IMAGES, network.embedding];
        let upstream = graph.input("upstream", TensorDesc::f32(shape)).unwrap();
        let entries = model.spec.parameters.entries().iter();
        let trainable: Vec<_> = entries.filter(|entry| entry.spec.role.is_trained()).collect();
        let wrt: Vec<_> = trainable.iter().map(|entry| parameters.get(&entry.spec.name).unwrap()).collect();
        let gradients = backward_from(&mut graph, output, upstream, &wrt).unwrap();
        for &gradient in &gradients {
            graph.keep(gradient);
        }
        let mut session = Session::new(&graph, &model.store, SessionOptions::default()).unwrap();
        let pixels: Vec<u8> = images(TRAINING_IMAGES).into_iter().flat_map(|image| image.rgb).collect();
        let values: Vec<f32> = uniform("upstream", shape.iter().product()).map(|u| 2.0 * u - 1.0).collect();
        session.write(input.bytes, &pixels).unwrap();
        session.write(input.mirror, bytemuck::cast_slice(&[0u32; TRAINING_IMAGES])).unwrap();
        session.write(upstream, bytemuck::cast_slice(&values)).unwrap();
        session.write(seed, bytemuck::cast_slice(&[1u32, 0])).unwrap();
        session.step().unwrap();

        assert_eq!(trainable.len(), expected.gradients.len(), "{arch}");
        // A bias before a batch norm has no gradient but rounding: errors are measured against what is typical for
        // tensors of the network, if that is more than the tensor's own.
        let mut magnitudes: Vec<f64> = expected.gradients.values().map(|[_, sum]| *sum).collect();
        magnitudes.sort_by(f64::total_cmp);
        let typical = magnitudes[magnitudes.len() / 2];
        let mut worst = 0.0f64;
        // PyTorch's own f32 differs from its f64 by up to 1e-4 in this measure.
        let mut compare = |name: &str, got: [f64; 2], want: [f64; 2], scale: f64| {
            for (got, want) in got.into_iter().zip(want) {
                let error = (got - want).abs() / scale;
                worst = worst.max(error);
                assert!(error < 5e-4, "{arch} {name}: {got} instead of {want} ({error:e} of {scale})");
            }
        };
        for (entry, &gradient) in trainable.iter().zip(&gradients) {
            let name = &entry.spec.name;
            let got = entry.spec.to_state_dict(session.read(gradient).unwrap().as_f32().unwrap());
            let want = expected.gradients[name];
            compare(name, projection(name, &got), want, want[1].max(1e-2 * typical));
        }
        let mut statistics = 0;
        for entry in model.spec.parameters.entries() {
            let name = &entry.spec.name;
            let Some(&want) = expected.statistics.get(name) else { continue };
            let got = model.spec.parameters.read(&model.store, name).unwrap();
            compare(name, projection(name, &got), want, want[1]);
            statistics += 1;
        }
        assert_eq!(statistics, expected.statistics.len());
        println!("{arch}: {} gradients, {statistics} statistics, worst {worst:.1e}", gradients.len());
    }
    assert_eq!(trained, 3);
}
