//! Seeded random draws, each stream addressed by what it is for.

use glam::Vec3;
use rand::Rng;
use rand_pcg::Pcg64Mcg;

/// What a stream of draws decides. Streams are independent, so that adding a draw to one leaves the others alone.
#[derive(Clone, Copy)]
pub(super) enum Stream {
    /// Geometry and colouring of a person.
    Person = 1,
    /// Which identity a sample shows, and whether it is hard.
    Choice = 2,
    /// Pose, light, expression, occlusion, background.
    Scene = 3,
    /// Sensor noise.
    Sensor = 4,
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): a bijection that mixes every bit of `x` into every other.
pub(super) fn splitmix64(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// One stream of draws.
pub(super) struct Dice(Pcg64Mcg);

impl Dice {
    /// The stream of `purpose` for (`seed`, `identity`, `index`). `identity` counts across configurations.
    pub fn new(purpose: Stream, seed: u64, identity: u64, index: u64) -> Self {
        let low = [purpose as u64, identity, index]
            .into_iter()
            .fold(splitmix64(seed), |h, part| splitmix64(h ^ part));
        let high = splitmix64(low);
        Self(Pcg64Mcg::new((u128::from(high) << 64) | u128::from(low)))
    }

    /// Uniform in [0, 1).
    pub fn unit(&mut self) -> f32 {
        (self.0.next_u32() >> 8) as f32 / (1 << 24) as f32
    }

    /// Uniform in [low, high).
    pub fn range(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.unit()
    }

    /// True with probability `p`.
    pub fn chance(&mut self, p: f32) -> bool {
        self.unit() < p
    }

    /// Uniform in 0..n; 0 where n is 0.
    pub fn below(&mut self, n: u32) -> u32 {
        ((u64::from(self.0.next_u32()) * u64::from(n)) >> 32) as u32
    }

    /// One of `options`, uniformly.
    pub fn pick<T: Copy, const N: usize>(&mut self, options: [T; N]) -> T {
        options[self.below(N as u32) as usize]
    }

    /// Roughly normal with mean 0 and variance 1, within ±3.5: the sum of four uniforms (Irwin-Hall), so that no draw
    /// is far enough out to break the geometry.
    pub fn normal(&mut self) -> f32 {
        let bits = self.0.next_u64();
        let sum: u64 = (0..4).map(|k| (bits >> (16 * k)) & 0xffff).sum();
        (sum as f32 / 65_535.0 - 2.0) * 1.732_050_8
    }

    /// A linear colour whose channels are uniform in [low, high).
    pub fn colour(&mut self, low: f32, high: f32) -> Vec3 {
        Vec3::new(self.range(low, high), self.range(low, high), self.range(low, high))
    }
}
