//! Verification sets in memory, through a network on the GPU.

use std::path::Path;

use epl::data::Image;
use epl::eval::embedder::Embedder;
use epl::eval::pairs::{PairSet, balanced_pairs};
use epl::head::HeadKind;
use epl::model::Model;
use epl::train::trainer::spec_of;

use super::{IDENTITIES, IMAGES, config, device, faces, head};

/// Embedding each image once for all its pairs gives what embedding it for each pair gives.
#[test]
fn pairs_that_share_images_are_verified_as_if_they_did_not() {
    let data = faces();
    let images: Vec<Image> = (0..data.len()).map(|index| data.load(index).unwrap()).collect();
    let (pairs, issame) = balanced_pairs(IDENTITIES as usize, IMAGES as usize);
    let repeated = pairs.iter().flatten().map(|&index| images[index].clone()).collect();
    let repeated = PairSet::from_images("faces", repeated, issame.clone());
    let shared = PairSet::from_indices("faces", images, pairs, issame).unwrap();
    assert!(shared.images() * 10 < repeated.images());

    let config = config(Path::new("unwritten"), head(HeadKind::CosFace, false), 1);
    let model = Model::new(spec_of(&config, IDENTITIES as usize).unwrap(), &device(), 1).unwrap();
    let mut embedder = Embedder::new(&model, 16).unwrap();
    let shared = shared.evaluate(&mut embedder, &mut |_| {}).unwrap();
    assert_eq!(shared, repeated.evaluate(&mut embedder, &mut |_| {}).unwrap());
    // Faces are alike even to a network that has learned nothing; a mixed-up pairing would not show that.
    assert!(shared.auc > 0.6, "{}", shared.auc);
}
