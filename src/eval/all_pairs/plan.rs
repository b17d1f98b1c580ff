//! What a set of some size will take, before there is one.

use std::sync::Arc;
use std::time::Instant;

use epl_runtime::{Caps, Device};
use serde::Serialize;

use super::sweep::{panel_rows, windows};
use super::{Far, Limits, Members, Unit, evaluate};
use crate::{Error, Result};

/// The work of one pass over all pairs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// Images.
    pub images: usize,
    /// Length of an embedding.
    pub dimension: usize,
    /// Pairs.
    pub pairs: u64,
    /// Embeddings of a panel.
    pub panel: usize,
    /// Steps, of two panels each.
    pub steps: u64,
    /// Floating-point operations of the products.
    pub flops: f64,
    /// Bytes that go to the device.
    pub upload_bytes: f64,
    /// Bytes of the embeddings on the host.
    pub host_bytes: u64,
}

impl Plan {
    /// The plan of `images` embeddings of `dimension` on an adapter with `caps`.
    ///
    /// # Errors
    /// Fewer than two images, or more than 32 bits can number; a dimension of 0.
    pub fn new(caps: &Caps, images: usize, dimension: usize) -> Result<Self> {
        if images < 2 || u32::try_from(images).is_err() || dimension == 0 {
            return Err(Error::usage(
                format!("{images} images with embeddings of {dimension} have no pairs to plan for"),
                "give 2 to 4294967295 images and a dimension above 0",
            ));
        }
        let panel = panel_rows(caps, images, dimension);
        let panels = images.div_ceil(panel) as u64;
        let steps = panels * (panels + 1) / 2;
        let panel_elements = (panel * dimension) as f64;
        Ok(Self {
            images,
            dimension,
            pairs: images as u64 * (images as u64 - 1) / 2,
            panel,
            steps,
            flops: steps as f64 * 2.0 * panel as f64 * panel_elements,
            upload_bytes: steps as f64 * 2.0 * 4.0 * panel_elements,
            host_bytes: (images * dimension * 4) as u64,
        })
    }
}

/// How long steps took, and what that makes of a plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Timing {
    /// Embeddings that were measured with.
    pub images: usize,
    /// Pairs a second of the counting pass, of those that count.
    pub pairs_per_second: f64,
    /// Operations a second of the products, in units of 10^9.
    pub gflops: f64,
    /// Seconds of a step of two panels.
    pub step_seconds: f64,
    /// Seconds of one pass of the plan.
    pub pass_seconds: f64,
}

/// Panels of the sample.
const SAMPLE_PANELS: usize = 3;

/// Times the counting pass over a few panels of the size that `plan` has, of embeddings that are made up, once to warm up
/// and once to measure.
///
/// # Errors
/// Those of the device.
pub fn measure(device: &Arc<Device>, plan: &Plan) -> Result<Timing> {
    let images = (SAMPLE_PANELS * plan.panel).min(plan.images);
    let mut state = 1u64;
    let values = (0..images * plan.dimension).map(|_| {
        // Knuth's multiplier; the upper bits are random enough for a load.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    });
    let unit = Unit::new("the sample", values.collect(), plan.dimension)?;
    let labels: Vec<u32> = (0..images as u32).map(|row| row / 4).collect();
    let members = Members::new(&unit, &labels, 0..images as u32);
    let limits = Limits { panel: Some(plan.panel), ..Limits::default() };
    // Without rates there is the counting pass alone.
    let none: [Far; 0] = [];
    evaluate(device, &members, &none, &limits, &mut |_| {})?;
    let start = Instant::now();
    evaluate(device, &members, &none, &limits, &mut |_| {})?;
    let seconds = start.elapsed().as_secs_f64();
    let steps = windows(images, plan.panel).len() as f64;
    let step_seconds = seconds / steps;
    Ok(Timing {
        images,
        pairs_per_second: members.pairs().iter().sum::<u64>() as f64 / seconds,
        gflops: plan.flops / plan.steps as f64 * steps / seconds / 1e9,
        step_seconds,
        pass_seconds: step_seconds * plan.steps as f64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_million_faces_are_five_hundred_billion_pairs() {
        let plan = Plan::new(&Caps::WEBGPU, 1_000_000, 512).unwrap();
        assert_eq!((plan.pairs, plan.panel, plan.steps), (499_999_500_000, 16_384, 62 * 63 / 2));
        // A multiply-add a pair and dimension, and a little in vain on the diagonal and at the edge.
        let least = 2.0 * 512.0 * plan.pairs as f64;
        assert!((1.0..1.06).contains(&(plan.flops / least)), "{}", plan.flops / least);
        assert!(Plan::new(&Caps::WEBGPU, 1, 512).is_err() && Plan::new(&Caps::WEBGPU, 9, 0).is_err());
    }
}
