//! The verification protocol against NumPy and scikit-learn, whose numbers `tests/reference/verification.py` wrote.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use epl::eval::verify;

#[path = "common/uniform.rs"]
mod uniform;
use uniform::uniform;

fn fixture() -> Vec<serde_json::Value> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/verification.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The embeddings of a case that is a formula, as `tests/reference/verification.py` has it.
fn large_case(case: &serde_json::Value, name: &str, dim: usize) -> (Vec<f32>, Vec<bool>) {
    let pairs = case["pairs"].as_u64().unwrap() as usize;
    let noise = case["noise"].as_f64().unwrap() as f32;
    let part = |part: &str| -> Vec<f32> {
        uniform(&format!("{name}.{part}"), pairs * dim).map(|u| 2.0 * u - 1.0).collect()
    };
    let issame: Vec<bool> = (0..pairs).map(|pair| pair / 3 % 2 == 0).collect();
    let (first, other) = (part("a"), part("b"));
    let mut embeddings = Vec::with_capacity(2 * pairs * dim);
    for ((first, other), &same) in first.chunks_exact(dim).zip(other.chunks_exact(dim)).zip(&issame) {
        embeddings.extend_from_slice(first);
        embeddings.extend(first.iter().zip(other).map(|(&first, &other)| match same {
            true => first + noise * other,
            false => other + 0.375 * first,
        }));
    }
    (embeddings, issame)
}

#[test]
fn equal_to_the_protocol_in_numpy_and_scikit_learn() {
    for case in fixture() {
        let dim = case["dim"].as_u64().unwrap() as usize;
        let (embeddings, issame) = match case["formula"].as_str() {
            Some(name) => large_case(&case, name, dim),
            None => {
                let issame: Vec<u8> = serde_json::from_value(case["issame"].clone()).unwrap();
                let issame = issame.into_iter().map(|same| same == 1).collect();
                (serde_json::from_value(case["embeddings"].clone()).unwrap(), issame)
            }
        };
        let report = verify("random", &embeddings, dim, &issame).unwrap();
        let number = |key: &str| case[key].as_f64().unwrap();
        assert_eq!(report.accuracy, number("accuracy"));
        assert_eq!(report.accuracy_std, number("accuracy_std"));
        assert_eq!(report.tar_at_far_1e3, number("tar_at_far_1e-3"));
        assert_eq!(report.threshold, number("threshold"));
        // Sums of thousands of terms, which scikit-learn adds in another order.
        assert!((report.auc - number("auc")).abs() < 1e-13, "{} {}", report.auc, number("auc"));
        assert!((report.eer - number("eer")).abs() < 1e-13, "{} {}", report.eer, number("eer"));
    }
}
