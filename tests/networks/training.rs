//! Every kind of network with every head: training steps on a few images that it must learn.

use epl::config::Precision;
use epl::data::Batch;
use epl::head::{EplSettings, HeadKind, HeadSettings};
use epl::model::{Head, Model, ModelSpec};
use epl::nn::{Family, Network};
use epl::train::step::{StepOptions, StepResult, record_step};
use epl_runtime::{Device, DeviceOptions, Session, SessionOptions};

use super::formula::{INPUT, images};

const BATCH: usize = 4;
const CLASSES: usize = 5;
const STEPS: u64 = 12;

#[test]
fn every_network_learns_with_every_head() {
    let device = Device::open(&DeviceOptions::default()).unwrap();
    let pixels: Vec<u8> = images(BATCH).into_iter().flat_map(|image| image.rgb).collect();
    let batch = Batch {
        images: pixels,
        labels: vec![0, 1, 3, 4],
        mirror: vec![0; BATCH],
        indices: (0..BATCH).collect(),
        epoch: 1,
        number: 0,
    };
    for family in Family::ALL {
        let width = 4 * family.width_step();
        let network = Network { family, input: INPUT, width, blocks: [1; 4], embedding: 12, dropout: 0.1 };
        let arch = family.depths()[0].0;
        for kind in [HeadKind::Softmax, HeadKind::CosFace, HeadKind::ArcFace, HeadKind::UniFace] {
            for epl in [None, Some(EplSettings::default())] {
                // A scale at which a loss of so few steps and classes moves.
                let settings = HeadSettings { kind, scale: 8.0, epl, ..HeadSettings::default() };
                let head = Head { settings, classes: CLASSES };
                let spec = ModelSpec::new(arch, network.clone(), Some(head)).unwrap();
                let model = Model::new(spec, &device, 1).unwrap();
                let options = StepOptions {
                    batch: BATCH,
                    accumulate: 1,
                    momentum: 0.9,
                    weight_decay: 5e-4,
                    clip_norm: 5.0,
                    clip_head: true,
                    halt: true,
                    empirical: epl.is_some(),
                    precision: Precision::F32,
                    seed: 1,
                };
                let step = record_step(&model.spec, &options).unwrap();
                let mut session = Session::new(&step.graph, &model.store, SessionOptions::default()).unwrap();
                for index in 0..STEPS {
                    step.inputs.write(&mut session, &batch, index, 1, 0.05, None).unwrap();
                    session.step().unwrap();
                }
                let done = session.flush().unwrap();
                let results: Vec<StepResult> =
                    done.iter().map(|done| StepResult::unpack(&done.values).unwrap()).collect();
                assert!(results.iter().all(|result| result.nonfinite == 0 && result.loss.is_finite()));
                let mean = |results: &[StepResult]| {
                    results.iter().map(|result| result.loss).sum::<f32>() / results.len() as f32
                };
                let (first, last) = (mean(&results[..2]), mean(&results[results.len() - 2..]));
                let what = format!("{family:?}, {kind:?}, EPL {}", epl.is_some());
                assert!(last < 0.9 * first, "{what}: the loss goes from {first} to {last}");
            }
        }
    }
}
