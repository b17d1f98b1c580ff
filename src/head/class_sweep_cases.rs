//! Cases of [`class_sweep`](super::class_sweep).

use epl_runtime::case::{Case, Input, constant, integers, normal, words};

use super::class_sweep::{ClassLoss, ClassSweep};
use super::margin_loss::{MarginLoss, TargetMargin, every_target};
use super::rows::unit_rows;
use super::settings::ArcMode;
use super::uniface_loss::UniFaceLoss;

/// Every loss; classes that end within a tile, at its end and just past it; labels at every edge, twice in a batch, and
/// such as are no class; all classes and a list of them.
pub(super) fn cases() -> Vec<Case> {
    let margin = |target, scale, k| ClassLoss::Margin(MarginLoss { target, scale, k });
    let uniface = |scale, k| ClassLoss::UniFace(UniFaceLoss { margin: 0.4, scale, k });
    let subtract = TargetMargin::Subtract(0.4);
    let case = |label: &str, loss, [rows, classes, dim]: [usize; 3]| {
        let op = ClassSweep { loss, sampled: false, tile: Some(64) };
        Case::new(label, op, inputs(&loss, [rows, classes, dim], None)).relative(EXPONENTS)
    };
    let sampled = |label: &str, loss, [rows, classes, dim]: [usize; 3], listed: &[u32]| {
        let op = ClassSweep { loss, sampled: true, tile: Some(64) };
        Case::new(label, op, inputs(&loss, [rows, classes, dim], Some(listed))).relative(EXPONENTS)
    };
    let mut cases = Vec::new();
    for target in every_target() {
        let loss = margin(target, 64.0, 0.0);
        cases.push(case(&format!("{target:?}, several tiles"), loss, [13, 203, 20]));
        // Straight-through is no derivative. A small scale keeps every probability large enough for differences.
        if !matches!(target, TargetMargin::Arc(_, ArcMode::StraightThrough)) {
            let small = case(&format!("{target:?}, small scale"), margin(target, 4.0, 0.0), [5, 67, 8]);
            cases.push(small.differentiate(&[1]).epsilon(1e-6));
        }
    }
    let every_third: Vec<u32> = (0..100).map(|i| 3 * i + 1).collect();
    let mut edges =
        case("labels in the first and the last tile, twice", margin(subtract, 64.0, 0.0), [6, 130, 8]);
    edges.inputs[2] = words(&[0, 129, 63, 64, 129, 0]);
    let mut foreign = case("labels that are no class", margin(subtract, 64.0, 0.0), [4, 70, 4]);
    foreign.inputs[2] = words(&[70, 0, u32::MAX, 69]);
    let mut foreign_uniface = case("UniFace, labels that are no class", uniface(64.0, 0.0), [4, 70, 4]);
    foreign_uniface.inputs[2] = words(&[70, 0, u32::MAX, 69]);
    let mut ends =
        sampled("sampled, the ends of the list", margin(subtract, 64.0, 0.0), [5, 301, 12], &every_third);
    ends.inputs[2] = words(&[0, 99, 63, 64, 99]);
    // Sums long enough to be split, with a workspace that the tiles share.
    let loss = margin(subtract, 64.0, 0.0);
    let op = ClassSweep { loss, sampled: false, tile: Some(1024) };
    let split = Case::new("tiles of split sums", op, inputs(&loss, [4, 2300, 8], None)).relative(EXPONENTS);
    let mut zeros = case("prototypes of nothing but zeros", margin(subtract, 64.0, 0.0), [3, 65, 4]);
    zeros.inputs[0] = constant([65, 4], 0.0);
    let mut huge = case("huge prototypes", margin(subtract, 64.0, 0.0), [3, 65, 4]);
    huge.inputs[0] = normal([65, 4], 1e30, 1);
    let mut tiny = case("tiny prototypes", margin(subtract, 64.0, 0.0), [3, 65, 4]);
    tiny.inputs[0] = normal([65, 4], 1e-10, 1);
    cases.extend([
        edges,
        tiny,
        foreign,
        zeros,
        huge,
        case("adaptive", margin(TargetMargin::Subtract(0.0), 64.0, 0.7), [9, 300, 16]),
        case(
            "adaptive, ArcFace",
            margin(TargetMargin::Arc(0.4, ArcMode::StraightThrough), 64.0, 0.7),
            [9, 200, 16],
        ),
        case("one class", margin(subtract, 64.0, 0.0), [3, 1, 8]),
        case("two classes", margin(subtract, 64.0, 0.0), [3, 2, 8]),
        case("exactly one tile", margin(subtract, 64.0, 0.0), [17, 64, 12]),
        case("one element", margin(subtract, 64.0, 0.0), [1, 1, 4]),
        sampled("sampled", margin(subtract, 64.0, 0.0), [7, 301, 12], &every_third),
        split,
        ends,
        sampled("sampled, UniFace", uniface(64.0, 0.0), [7, 301, 12], &every_third),
        case("UniFace, several tiles", uniface(64.0, 0.0), [13, 203, 20]),
        case("UniFace, adaptive", uniface(64.0, 0.7), [9, 300, 16]),
        case("UniFace, small scale", uniface(4.0, 0.0), [5, 67, 8]).differentiate(&[1, 3]).epsilon(1e-6),
        case("UniFace, one class", uniface(64.0, 0.0), [3, 1, 8]),
        foreign_uniface,
    ]);
    for classes in [10_572, 85_742] {
        let loss = margin(subtract, 64.0, 0.0);
        let op = ClassSweep { loss, sampled: false, tile: None };
        let operands = inputs(&loss, [128, classes, 512], None);
        cases.push(Case::new(format!("perf, {classes} classes"), op, operands).perf());
    }
    cases
}

/// The exponent is a scaled cosine of up to 100, rounded to 24 bits: 100 * 2^-24 relative to its power, twice, as in
/// `margin_loss_grad`; and the sums that the largest cosine so far has scaled have a rounding more for each tile.
const EXPONENTS: f64 = 3e-5;

/// Prototypes, unit embeddings, labels, and UniFace's bias and the list of classes where there are any.
fn inputs(loss: &ClassLoss, [rows, classes, dim]: [usize; 3], listed: Option<&[u32]>) -> Vec<Input> {
    let participants = listed.map_or(classes, <[u32]>::len);
    let mut inputs = vec![
        normal([classes, dim], 1.0 / (dim as f32).sqrt(), 1),
        unit_rows(rows, dim, 2),
        integers([rows], participants as u32, 3),
    ];
    if matches!(loss, ClassLoss::UniFace(_)) {
        // About where it starts from, and inside the clip at a small scale as well.
        inputs.push(constant([1], if loss.scale() > 10.0 { 6.5 } else { 0.25 }));
    }
    inputs.extend(listed.map(words));
    inputs
}
