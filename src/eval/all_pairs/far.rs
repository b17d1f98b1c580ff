//! False-accept rates as people write them.

use std::str::FromStr;

/// A false-accept rate between 0 and 1, as a decimal number: 1e-6 of a million pairs is one, not a hair less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Far {
    digits: u64,
    /// The rate is `digits / 10^exponent`.
    exponent: u32,
}

/// Digits and exponent beyond this are of no use, and their products with numbers of pairs stay far below 2^128.
const MOST: u32 = 15;

impl Far {
    /// 10^-`decade`, for a decade from 1 to 15.
    pub fn decade(decade: u32) -> Self {
        Self { digits: 1, exponent: decade.clamp(1, MOST) }
    }

    /// The rates 1e-6 to 1e-1.
    pub fn decades() -> Vec<Self> {
        (1..=6).rev().map(Self::decade).collect()
    }

    /// The rate.
    pub fn value(&self) -> f64 {
        // Both are exact, so that this is the f64 nearest to the decimal number.
        self.digits as f64 / 10f64.powi(self.exponent as i32)
    }

    /// Of `impostors` pairs as many as may be accepted: the product rounded down, exactly.
    pub fn allowed(&self, impostors: u64) -> u64 {
        let product = u128::from(self.digits) * u128::from(impostors) / 10u128.pow(self.exponent);
        u64::try_from(product).unwrap_or(u64::MAX)
    }

    /// The least number of impostor pairs of which one may be accepted.
    pub fn least_impostors(&self) -> u64 {
        let least = 10u128.pow(self.exponent).div_ceil(u128::from(self.digits.max(1)));
        u64::try_from(least).unwrap_or(u64::MAX)
    }
}

impl FromStr for Far {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("expected a rate between 0 and 1 of at most {MOST} digits, such as 1e-4 or 0.003");
        let (mantissa, power) = match text.trim().split_once(['e', 'E']) {
            Some((mantissa, power)) => (mantissa, power.parse::<i32>().map_err(|_| wrong())?),
            None => (text.trim(), 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let fraction = fraction.trim_end_matches('0');
        let all = format!("{whole}{fraction}");
        if all.is_empty() || all.len() > MOST as usize + 1 || !all.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(wrong());
        }
        let mut digits: u64 = all.parse().map_err(|_| wrong())?;
        let mut exponent = i64::from(fraction.len() as u32) - i64::from(power);
        while digits > 0 && digits.is_multiple_of(10) {
            digits /= 10;
            exponent -= 1;
        }
        match u32::try_from(exponent) {
            Ok(exponent) if digits > 0 && exponent <= MOST && digits < 10u64.pow(exponent) => {
                Ok(Self { digits, exponent })
            }
            _ => Err(wrong()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_as_decimals_and_multiply_exactly() {
        for (text, value, impostors, allowed) in [
            ("1e-6", 1e-6, 1_000_000, 1),
            ("1e-6", 1e-6, 999_999, 0),
            ("0.29", 0.29, 100, 29),
            ("0.1", 0.1, 10, 1),
            ("2.5E-3", 2.5e-3, 4000, 10),
            ("0.0010", 1e-3, 5999, 5),
            ("1e-15", 1e-15, u64::MAX, 18446),
        ] {
            let far: Far = text.parse().unwrap();
            assert_eq!((far.value(), far.allowed(impostors)), (value, allowed), "{text}");
        }
        assert_eq!(Far::decade(6).least_impostors(), 1_000_000);
        assert_eq!("0.3".parse::<Far>().unwrap().least_impostors(), 4);
        assert_eq!(
            Far::decades().iter().map(Far::value).collect::<Vec<_>>(),
            [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1]
        );
        for text in
            ["", "0", "1", "1.0", "2", "-0.1", "nan", "1e", "e-3", "1e-99", "1e5", "0x1", "1e-6%", "."]
        {
            assert!(text.parse::<Far>().is_err(), "{text}");
        }
    }
}
