//! Weights and images as a formula of their names, the same as in `tests/reference/networks.py`.

use epl::data::Image;
use epl::interchange::safetensors::StateDict;
use epl::nn::{Network, ParameterSpec};

#[path = "../common/uniform.rs"]
mod uniform;

pub use uniform::uniform;

/// Height and width of the images.
pub const INPUT: [usize; 2] = [32, 48];

/// The values of a parameter. `names` are those of the whole network.
fn parameter(spec: &ParameterSpec, names: &[&str]) -> Vec<f32> {
    let (name, dims) = (spec.name.as_str(), spec.shape.dims());
    let u = uniform(name, spec.shape.elements());
    if name.ends_with("running_var") {
        u.map(|u| 0.5 + 0.5 * u).collect()
    } else if name.ends_with("running_mean") || name.ends_with("bias") {
        u.map(|u| 0.125 * (2.0 * u - 1.0)).collect()
    } else if dims.len() > 1 {
        let bound = (6.0 / dims[1..].iter().product::<usize>() as f64).sqrt() as f32;
        u.map(|u| bound * (2.0 * u - 1.0)).collect()
    } else if names.contains(&name.replace(".weight", ".running_var").as_str()) {
        u.map(|u| 0.5 + 0.5 * u).collect()
    } else {
        u.map(|u| 0.25 + 0.25 * u).collect()
    }
}

/// All parameters of a network.
pub fn state_dict(network: &Network) -> StateDict {
    let specs = network.parameters().unwrap();
    let names: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
    let mut dict = StateDict::default();
    for spec in &specs {
        dict.insert(spec.name.clone(), spec.shape.dims(), parameter(spec, &names));
    }
    dict
}

/// The first `count` images.
pub fn images(count: usize) -> Vec<Image> {
    let [height, width] = INPUT;
    let bytes: Vec<u8> =
        uniform("images", count * height * width * 3).map(|u| (u * 256.0).floor() as u8).collect();
    let image = |rgb: &[u8]| Image { rgb: rgb.to_vec(), height, width };
    bytes.chunks_exact(height * width * 3).map(image).collect()
}

/// The network called `arch`, small, but as deep as its name says.
pub fn small(arch: &str, embedding: usize) -> Network {
    let width = if arch == "mobilefacenet" { 16 } else { 8 };
    Network { input: INPUT, width, embedding, dropout: 0.0, ..Network::named(arch).unwrap() }
}
