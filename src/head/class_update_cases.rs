//! Cases of [`class_update`](super::class_update) and of the norm without an update.

use std::sync::Arc;

use epl_runtime::case::{Case, Input, constant, floats, integers, normal, uniform, words};
use epl_runtime::op::Op;
use epl_runtime::ops::sgd::Sgd;

use super::class_sweep::ClassLoss;
use super::class_update::{ClassGradNorm, ClassUpdate, LABELS};
use super::margin_loss::{MarginLoss, TargetMargin};
use super::rows::unit_rows;
use super::uniface_loss::UniFaceLoss;

const SOFTMAX: ClassLoss =
    ClassLoss::Margin(MarginLoss { target: TargetMargin::Subtract(0.4), scale: 64.0, k: 0.0 });
const UNIFACE: ClassLoss = ClassLoss::UniFace(UniFaceLoss { margin: 0.4, scale: 64.0, k: 0.0 });

fn update(loss: ClassLoss) -> ClassUpdate {
    let rule = Sgd { momentum: 0.9, weight_decay: 5e-4, floor: None };
    ClassUpdate { loss, upstream: 0.125, rule, sampled: false, tile: Some(64) }
}

/// Inputs of a step with a velocity that is under way. `context` is what a forward pass might have left.
fn inputs(loss: &ClassLoss, [rows, classes, dim]: [usize; 3], listed: Option<&[u32]>) -> Vec<Input> {
    let participants = listed.map_or(classes, <[u32]>::len);
    let context = match loss {
        // The largest cosine, the logarithm of a sum, and the two factors: any numbers that keep the exponent in range.
        ClassLoss::Margin(_) => uniform([rows, 4], 0.5, 1.5, 4),
        ClassLoss::UniFace(_) => constant([1], 6.5),
    };
    let mut inputs = vec![
        normal([classes, dim], 1.0 / (dim as f32).sqrt(), 1),
        normal([classes, dim], 0.1, 5),
        unit_rows(rows, dim, 2),
        integers([rows], participants as u32, 3),
        context,
        floats(&[0.1]),
    ];
    inputs.extend(listed.map(words));
    inputs
}

/// Cases of both ops: `wrap` makes the op of an update.
fn both(wrap: impl Fn(ClassUpdate) -> Arc<dyn Op>) -> Vec<Case> {
    let case = |label: &str, op: ClassUpdate, sizes, listed: Option<&[u32]>| {
        let mut case = Case::new(label, op, inputs(&op.loss, sizes, listed));
        case.op = wrap(op);
        // As in `class_sweep`: a scaled cosine in an exponent, rounded to 24 bits.
        case.relative(3e-5)
    };
    let every_third: Vec<u32> = (0..100).map(|i| 3 * i + 1).collect();
    let sampled = |loss| ClassUpdate { sampled: true, ..update(loss) };
    let adaptive = ClassLoss::UniFace(UniFaceLoss { margin: 0.4, scale: 64.0, k: 0.7 });
    let mut ends = case("sampled, the ends of the list", sampled(SOFTMAX), [5, 301, 12], Some(&every_third));
    let mut none = case("labels that are no class, softmax", update(SOFTMAX), [4, 70, 4], None);
    for (case, labels) in [(&mut ends, &[0, 99, 63, 64, 99][..]), (&mut none, &[70, 0, u32::MAX, 69])] {
        if let Some(input) = case.inputs.get_mut(LABELS) {
            *input = words(labels);
        }
    }
    let mut zeros = case("prototypes of nothing but zeros", update(SOFTMAX), [3, 65, 4], None);
    if let Some(weight) = zeros.inputs.first_mut() {
        *weight = constant([65, 4], 0.0);
    }
    let mut huge = case("huge prototypes", update(SOFTMAX), [3, 65, 4], None);
    let mut tiny = case("tiny prototypes", update(SOFTMAX), [3, 65, 4], None);
    // Beyond what is squared as it stands; the gradient of a huge prototype is as small, and so is its norm.
    for (case, deviation) in [(&mut huge, 1e16), (&mut tiny, 1e-11)] {
        if let Some(weight) = case.inputs.first_mut() {
            *weight = normal([65, 4], deviation, 1);
        }
    }
    let mut foreign = case("labels that are no class", update(UNIFACE), [4, 70, 4], None);
    if let Some(labels) = foreign.inputs.get_mut(LABELS) {
        *labels = words(&[70, 0, u32::MAX, 69]);
    }
    vec![
        case("several tiles", update(SOFTMAX), [13, 203, 20], None),
        case("UniFace, several tiles", update(UNIFACE), [13, 203, 20], None),
        case("one class", update(SOFTMAX), [3, 1, 8], None),
        case("one element", update(UNIFACE), [1, 1, 4], None),
        case("exactly one tile", update(SOFTMAX), [17, 64, 12], None),
        case("sampled", sampled(SOFTMAX), [7, 301, 12], Some(&every_third)),
        case("sampled, UniFace", sampled(UNIFACE), [7, 301, 12], Some(&every_third)),
        case("adaptive, UniFace", update(adaptive), [7, 130, 12], None),
        // Sums long enough to be split, with a workspace that the tiles share.
        case("tiles of split sums", ClassUpdate { tile: Some(512), ..update(SOFTMAX) }, [600, 1100, 8], None),
        ends,
        none,
        zeros,
        huge,
        tiny,
        foreign,
    ]
}

/// Cases of [`ClassUpdate`].
pub(super) fn cases() -> Vec<Case> {
    let mut cases = both(|op| Arc::new(op));
    let mut scaled = Case::new("scaled", update(SOFTMAX), inputs(&SOFTMAX, [5, 130, 8], None)).relative(3e-5);
    scaled.inputs.push(floats(&[0.25]));
    cases.push(scaled);
    let some: Vec<u32> = (0..100).map(|i| 2 * i).collect();
    let op = ClassUpdate { sampled: true, ..update(SOFTMAX) };
    let mut scaled =
        Case::new("scaled and sampled", op, inputs(&SOFTMAX, [5, 230, 8], Some(&some))).relative(3e-5);
    scaled.inputs.push(floats(&[0.25]));
    cases.push(scaled);
    let mut skipped =
        Case::new("a step that is not taken", update(SOFTMAX), inputs(&SOFTMAX, [5, 130, 8], None));
    skipped.inputs.push(floats(&[0.0]));
    cases.push(skipped);
    cases.extend([10_572, 85_742].map(|classes| perf(classes, |op| Arc::new(op))));
    cases
}

/// A realistic size, for speed.
fn perf(classes: usize, wrap: impl Fn(ClassUpdate) -> Arc<dyn Op>) -> Case {
    let op = ClassUpdate { tile: None, ..update(SOFTMAX) };
    let operands = inputs(&SOFTMAX, [128, classes, 512], None);
    let mut case = Case::new(format!("perf, {classes} classes"), op, operands).perf();
    case.op = wrap(op);
    case
}

/// Cases of [`ClassGradNorm`].
pub(super) fn norm_cases() -> Vec<Case> {
    let mut cases = both(|op| Arc::new(ClassGradNorm(op)));
    cases.push(perf(10_572, |op| Arc::new(ClassGradNorm(op))));
    cases
}
