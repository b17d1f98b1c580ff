//! What `epl plan` tells is what a run allocates, to the byte.

use std::path::PathBuf;

use epl::config::Config;
use epl::eval::embedder::Embedder;
use epl::head::{EplSettings, HeadForm};
use epl::model::Model;
use epl::train::plan::plan;
use epl::train::step::record_step;
use epl::train::trainer::{spec_of, step_options};
use epl_runtime::{Session, SessionOptions};

use super::fresh_device;

#[test]
fn the_planned_peak_is_what_is_allocated_to_the_byte() {
    const CLASSES: usize = 300;
    let mut config = Config::default();
    config.model.arch = "ir18".into();
    config.model.input = [32, 32];
    config.model.width = 8;
    config.model.embedding = 64;
    config.data.train = "data".into();
    config.train.out = "out".into();
    config.train.batch_size = 5;
    config.train.eval = vec![PathBuf::from("lfw.bin")];
    config.head.epl = Some(EplSettings::default());
    for form in [HeadForm::Materialized, HeadForm::Tiled] {
        config.head.form = form;
        let device = fresh_device();
        device.finish().unwrap();
        let before = device.buffer_bytes();
        let found = plan(&config, CLASSES, device.caps(), None).unwrap();
        assert_eq!(found.bytes.values().sum::<u64>(), found.peak_bytes, "{found:?}");
        assert_eq!(device.buffer_bytes(), before, "a plan allocates nothing");

        let model = Model::new(spec_of(&config, CLASSES).unwrap(), &device, 1).unwrap();
        let recorded = record_step(&model.spec, &step_options(&config, true)).unwrap();
        let session = Session::new(&recorded.graph, &model.store, SessionOptions::default()).unwrap();
        device.finish().unwrap();
        let trained = device.buffer_bytes() - before;
        assert_eq!(trained, session.plan().memory.total(), "{form:?}");
        assert_eq!(trained, found.peak_bytes - found.bytes["evaluation"], "{form:?}");

        let embedder = Embedder::new(&model, 64).unwrap();
        device.finish().unwrap();
        assert_eq!(device.buffer_bytes() - before, found.peak_bytes, "{form:?}");
        assert!(found.bytes["evaluation"] > 0);
        drop((embedder, session, model));
    }
}
