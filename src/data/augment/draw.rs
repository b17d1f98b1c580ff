//! Random numbers that are a function of their address, and functions that give the same bits on every platform.

use std::f64::consts::{FRAC_PI_2, LN_2};

/// The SplitMix64 step: an avalanche over 64 bits (Steele, Lea, Flood 2014).
pub fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(GOLDEN);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// 64 random bits as a number in [0, 1).
pub fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

/// The random numbers of one augmentation of one sample in one epoch.
#[derive(Debug)]
pub struct Draw(u64);

impl Draw {
    pub fn new(seed: u64, epoch: u32, index: usize, stream: u64) -> Self {
        // Any constant keeps this apart from what else is drawn from the seed.
        let seeded = mix(seed ^ 0x6175_676d_656e_7473);
        Self(mix(mix(mix(seeded ^ stream) ^ u64::from(epoch)) ^ index as u64))
    }

    /// 64 random bits.
    pub fn next(&mut self) -> u64 {
        let drawn = mix(self.0);
        self.0 = self.0.wrapping_add(GOLDEN);
        drawn
    }

    /// Uniform in `[low, high)`, or `low` where both are equal.
    pub fn between(&mut self, [low, high]: [f64; 2]) -> f64 {
        low + (high - low) * unit(self.next())
    }

    /// Between two positive numbers, uniform in the logarithm.
    pub fn between_ratios(&mut self, [low, high]: [f64; 2]) -> f64 {
        exp(self.between([ln(low), ln(high)]))
    }

    /// Uniform in `0..bound`; the bias is below 2^-32 for any bound that occurs.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    pub fn chance(&mut self, probability: f64) -> bool {
        unit(self.next()) < probability
    }
}

/// Sine and cosine of an angle in degrees; exact at multiples of 90.
pub fn sin_cos(degrees: f64) -> (f64, f64) {
    let quarters = (degrees / 90.0).round();
    let x = (degrees - 90.0 * quarters) / 90.0 * FRAC_PI_2;
    // Taylor series on [-pi/4, pi/4]; the first term left out is below 2^-53.
    let (mut sine, mut cosine, mut term) = (0.0, 0.0, 1.0);
    for power in 0..18 {
        match power % 4 {
            0 => cosine += term,
            1 => sine += term,
            2 => cosine -= term,
            _ => sine -= term,
        }
        term *= x / f64::from(power + 1);
    }
    match (quarters as i64).rem_euclid(4) {
        0 => (sine, cosine),
        1 => (cosine, -sine),
        2 => (-sine, -cosine),
        _ => (-cosine, sine),
    }
}

/// e^x.
pub fn exp(x: f64) -> f64 {
    let halvings = (x / LN_2).round();
    let rest = x - halvings * LN_2;
    let (mut sum, mut term) = (0.0, 1.0);
    for power in 1..18 {
        sum += term;
        term *= rest / f64::from(power);
    }
    // Powers of two are exact.
    sum * 2_f64.powi(halvings.clamp(-1000.0, 1000.0) as i32)
}

/// The natural logarithm of a positive number.
pub fn ln(x: f64) -> f64 {
    let (mut x, mut twos) = (x.clamp(f64::MIN_POSITIVE, f64::MAX), 0.0);
    while x > 1.5 {
        x /= 2.0;
        twos += 1.0;
    }
    while x < 0.75 {
        x *= 2.0;
        twos -= 1.0;
    }
    // ln x = 2 artanh((x - 1) / (x + 1)).
    let ratio = (x - 1.0) / (x + 1.0);
    let (mut sum, mut power) = (0.0, ratio);
    for odd in (1..40).step_by(2) {
        sum += power / f64::from(odd);
        power *= ratio * ratio;
    }
    2.0 * sum + twos * LN_2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_functions_agree_with_the_platform() {
        for step in -400..=400 {
            let x = f64::from(step) * 0.9;
            let (sine, cosine) = sin_cos(x);
            assert!((sine - x.to_radians().sin()).abs() < 1e-14, "{x}");
            assert!((cosine - x.to_radians().cos()).abs() < 1e-14, "{x}");
            let x = f64::from(step) * 0.05;
            assert!((exp(x) / x.exp() - 1.0).abs() < 1e-14, "{x}");
            assert!((ln(x.exp()) - x).abs() < 1e-13, "{x}");
        }
        assert_eq!(sin_cos(90.0), (1.0, 0.0));
        assert_eq!(sin_cos(-90.0), (-1.0, 0.0));
        assert_eq!(sin_cos(180.0).1, -1.0);
    }

    #[test]
    fn draws_are_uniform_and_their_addresses_independent() {
        let mut counts = [0_u32; 7];
        let mut sum = 0.0;
        for index in 0..14_000 {
            let draw = &mut Draw::new(1, 2, index, 3);
            counts[draw.below(7) as usize] += 1;
            sum += draw.between([2.0, 4.0]);
        }
        // 2000 expected, standard deviation 41; the mean's is 0.005.
        assert!(counts.iter().all(|count| (1830..2170).contains(count)), "{counts:?}");
        assert!((sum / 14_000.0 - 3.0).abs() < 0.02);
        let first = |seed, epoch, index, stream| Draw::new(seed, epoch, index, stream).next();
        let all =
            [first(1, 2, 3, 4), first(2, 2, 3, 4), first(1, 3, 3, 4), first(1, 2, 4, 4), first(1, 2, 3, 5)];
        for (at, value) in all.iter().enumerate() {
            assert!(!all[at + 1..].contains(value));
        }
    }
}
