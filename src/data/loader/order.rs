//! The order of an epoch.

use rand::Rng;
use rand_pcg::Pcg64;

use super::LoaderOptions;
use crate::data::augment::mix;

/// The order of an epoch's samples: a Fisher-Yates shuffle by a generator seeded with seed and epoch.
pub fn order(len: usize, options: &LoaderOptions, epoch: u32) -> Vec<u32> {
    let mut order: Vec<u32> = (0..len).map(|index| index as u32).collect();
    if options.shuffle {
        let mut random = Pcg64::new(u128::from(mix(options.seed)), u128::from(epoch));
        for last in (1..len).rev() {
            // Multiply and shift: the bias is below 2^-32, and the draw is fixed by the generator alone,
            // whatever the sampling of a later version of the rand crate.
            let drawn = (u128::from(random.next_u64()) * (last as u128 + 1)) >> 64;
            order.swap(last, drawn as usize);
        }
    }
    order
}
