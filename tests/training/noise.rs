//! Wrong labels are found: on drawn faces, of which it is known who is in the picture.

use std::sync::Arc;

use epl::config::HeadKind;
use epl::data::synth::{SynthConfig, draw_all};
use epl::data::{Dataset, InMemory};
use epl::eval::embedder::Embedder;
use epl::eval::noise::{Prototypes, Ranking, labels, rank};
use epl::interchange::safetensors::StateDict;
use epl::model::{HEAD_QUEUE, HEAD_WEIGHT, Model};
use epl::train::trainer::spec_of;
use epl::train::{RunOptions, Silent, run_on};

use super::{config, device, head};

#[test]
fn mislabelled_faces_rank_at_the_top() {
    const SIZE: [usize; 2] = [32, 32];
    let faces = SynthConfig {
        seed: 11,
        identities: 12,
        first_identity: 0,
        images_per_identity: 20,
        size: SIZE,
        hard_share: 0.0,
        mislabelled_share: 0.1,
    };
    let samples = draw_all(&faces, &|_| {});
    let shown: Vec<u32> = samples.iter().map(|sample| sample.shown_identity).collect();
    let wrong: Vec<bool> = samples.iter().map(|sample| sample.shown_identity != sample.label).collect();
    let count = wrong.iter().filter(|&&wrong| wrong).count();
    let samples = samples.into_iter().map(|sample| (sample.rgb, sample.label)).collect();
    let data: Arc<dyn Dataset> = Arc::new(InMemory::new(SIZE, samples, None).unwrap());
    // A tenth of 240, give or take: were the order one of chance, as few of the first would be wrong.
    assert!((15..40).contains(&count), "{count}");

    let folder = tempfile::tempdir().unwrap();
    let mut config = config(&folder.path().join("run"), head(HeadKind::CosFace, true), 12);
    config.model.input = SIZE;
    config.model.embedding = 32;
    config.train.batch_size = 24;
    run_on(config.clone(), &device(), data.clone(), Vec::new(), &RunOptions::default(), &mut Silent).unwrap();

    let weights = StateDict::read(&config.train.out.join("model.safetensors")).unwrap();
    let classes = data.num_classes();
    let model = Model::new(spec_of(&config, classes).unwrap(), &device(), 1).unwrap();
    model.load(&weights, "weights").unwrap();
    let mut embedder = Embedder::new(&model, 64).unwrap();
    let labels = labels(data.as_ref(), classes, None, "faces").unwrap();
    let found = |ranking: &Ranking, first: usize| {
        ranking.order.iter().take(first).filter(|&&index| wrong[index]).count()
    };
    let mut against = |prototypes: &Prototypes| {
        let mut done = 0;
        let ranking =
            rank(&mut embedder, data.as_ref(), labels.clone(), prototypes, count, &mut |at| done = at)
                .unwrap();
        assert_eq!((done, ranking.order.len(), ranking.suspects.len()), (data.len(), data.len(), count));
        for (suspect, &index) in ranking.suspects.iter().zip(&ranking.order) {
            assert_eq!((suspect.index, suspect.cosine), (index, ranking.cosines[index]));
        }
        let named = ranking.suspects.iter().filter(|suspect| {
            wrong[suspect.index] && suspect.other.is_some_and(|other| other.class == shown[suspect.index])
        });
        let figures = (found(&ranking, count), found(&ranking, 2 * count), named.count());
        println!(
            "{}: {count} of {} wrong; in as many, in twice as many, named: {figures:?}",
            prototypes.name(),
            data.len()
        );
        figures
    };
    let stored = |name| Prototypes::take(&weights, &[name], config.model.embedding, "weights").unwrap();

    // A queue is where the last samples of its class were, and a wrong one among them spoils the whole class.
    let (_, in_twice, _) = against(&stored(HEAD_QUEUE));
    assert!(in_twice * 3 > count * 2, "queue: {in_twice} of {count}");
    let (in_as_many, ..) = against(&stored(HEAD_WEIGHT));
    assert!(in_as_many * 2 > count, "weight: {in_as_many} of {count}");

    let means = {
        let mut embedder = Embedder::new(&model, 64).unwrap();
        Prototypes::means(&mut embedder, data.as_ref(), &labels, classes, &mut |_| {}).unwrap()
    };
    let (in_as_many, in_twice, named) = against(&means);
    assert!(in_as_many * 5 > count * 3, "means: {in_as_many} of {count}");
    assert!(in_twice * 5 > count * 4, "means: {in_twice} of {count}");
    assert!(named * 2 > count, "the person that is shown is named for {named} of {count}");
}
