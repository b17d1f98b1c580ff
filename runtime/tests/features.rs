//! Every optional feature is left alone in turn: what makes use of it does without, and says the same.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;

use epl_runtime::caps::MatrixSides;
use epl_runtime::case::{Input, normal};
use epl_runtime::inspect::node_seconds;
use epl_runtime::op::push_one;
use epl_runtime::ops::matmul::{MatMul, Variant};
use epl_runtime::{Device, DeviceOptions, Feature, Graph, Session, SessionOptions, Store, TensorDesc};

fn device(without: Vec<Feature>, cache: Option<&std::path::Path>) -> Arc<Device> {
    let cache = cache.map(std::path::Path::to_path_buf);
    Device::open(&DeviceOptions { without, cache, ..DeviceOptions::default() }).unwrap()
}

/// A session of `x [40, 36]` times `y [36, 52]`, and the product.
fn product(device: &Arc<Device>) -> (Session, Vec<f32>) {
    let mut graph = Graph::new();
    let x = graph.input("x", TensorDesc::f32([40, 36])).unwrap();
    let y = graph.input("y", TensorDesc::f32([36, 52])).unwrap();
    let op = MatMul { transpose_a: false, transpose_b: false, sum_batch: false, variant: Variant::Auto };
    let z = push_one(&mut graph, op, &[x, y]).unwrap();
    graph.fetch(z);
    let mut session = Session::new(&graph, &Store::new(device), SessionOptions::default()).unwrap();
    let drawn: [Input; 2] = [normal([40, 36], 1.0, 1), normal([36, 52], 1.0, 2)];
    let [a, b] = drawn.map(|input| input.tensor());
    let found = session.run(&[(x, &a), (y, &b)]).unwrap();
    let values = found[0].as_f32().unwrap().to_vec();
    (session, values)
}

#[test]
fn each_feature_that_is_left_alone_is_done_without() {
    let (_, expected) = product(&device(Vec::new(), None));
    let all = device(Vec::new(), None).caps().clone();
    for feature in Feature::ALL {
        let device = device(vec![feature], None);
        let (session, found) = product(&device);
        for (got, want) in found.iter().zip(&expected) {
            assert!((got - want).abs() <= 1e-4 * (1.0 + want.abs()), "{feature}: {got} {want}");
        }
        let caps = device.caps();
        assert_eq!(caps.subgroups.is_none(), feature == Feature::Subgroups || all.subgroups.is_none());
        assert_eq!(caps.f16, all.f16 && feature != Feature::F16);
        if [Feature::Matrices, Feature::Subgroups].contains(&feature) {
            assert_eq!(caps.matrices, MatrixSides::default(), "matrices need subgroups");
        }
        // Without the GPU's clock the host's is taken.
        let times = node_seconds(&session, 2).unwrap();
        assert!(times.seconds.iter().all(|&seconds| seconds > 0.0), "{feature}: {times:?}");
        if feature == Feature::Timestamps {
            assert!(!times.gpu_clock && !device.has_timestamps());
        }
    }
}

#[test]
fn without_a_pipeline_cache_nothing_is_kept_and_all_is_compiled() {
    let folder = std::env::temp_dir().join(format!("epl-features-{}", std::process::id()));
    drop(std::fs::remove_dir_all(&folder));
    let (_, found) = product(&device(vec![Feature::PipelineCache], Some(&folder)));
    assert!(!found.is_empty());
    let files = std::fs::read_dir(&folder).map_or(0, Iterator::count);
    assert_eq!(files, 0, "no file of pipelines");
    drop(std::fs::remove_dir_all(&folder));
}
