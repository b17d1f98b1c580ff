//! The number of infinities and NaNs in several tensors taken together -> u32 `[1]`: 0 where a step may be taken.
//!
//! Integers are added, so any order gives the same count; two stages, as in [`grad_norm`](super::grad_norm).

use std::sync::Arc;

use crate::case::{Case, Input, LARGE_VECTOR, OpEntry, constant, floats, normal};
use crate::host::Array;
use crate::kernel::{Kernel, Needs, ParamBlock, read, write};
use crate::op::{Cost, Lowering, Op, Record, TensorId};
use crate::ops::grad_norm::{FinishParams, ShareParams, check_inputs, lower_reduction};
use crate::{Error, Result, TensorDesc};

static COUNT: Kernel = Kernel {
    shader: "check_finite",
    entry: "main",
    params: ShareParams::FIELDS,
    bindings: &[read("x"), write("partial")],
    constants: &["WORKGROUP"],
    needs: Needs::Nothing,
};

static FINISH: Kernel = Kernel {
    shader: "check_finite_finish",
    entry: "main",
    params: FinishParams::FIELDS,
    bindings: &[read("partial"), write("count")],
    constants: &["WORKGROUP"],
    needs: Needs::Nothing,
};

/// The registry's entry.
pub const ENTRY: OpEntry = OpEntry { name: "check_finite", cases, kernels: &[&COUNT, &FINISH] };

/// Records the count of infinities and NaNs in `tensors`, f32 of any shapes, taken together: -> u32 `[1]`.
pub fn check_finite(record: &mut dyn Record, tensors: &[TensorId]) -> Result<TensorId> {
    match record.push(Arc::new(CheckFinite), tensors)?.as_slice() {
        [count] => Ok(*count),
        outputs => Err(Error::shape("check_finite", format!("{} outputs", outputs.len()), "one output")),
    }
}

/// The op `check_finite`: any number of tensors -> count.
#[derive(Debug, Clone, Copy)]
pub struct CheckFinite;

impl Op for CheckFinite {
    fn name(&self) -> &'static str {
        "check_finite"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        check_inputs("check_finite", inputs)?;
        Ok(vec![TensorDesc::u32([1])])
    }

    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        let inputs = (0..).take_while(|&i| lowering.input(i).is_ok()).count();
        lower_reduction(lowering, inputs, &COUNT, &FINISH, 4)
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let count = inputs.iter().flat_map(|x| &x.data).filter(|v| !v.is_finite()).count();
        vec![Array::new([1], vec![count as f64])]
    }

    fn cost(&self, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Cost {
        Cost::once(0.0, inputs, outputs)
    }
}

/// Values of which every `every`-th is not finite.
fn spoilt(len: usize, every: usize) -> Input {
    let bad = [f32::INFINITY, f32::NAN, f32::NEG_INFINITY, -f32::NAN, f32::from_bits(0x7f80_0001)];
    let mut values: Vec<f32> = (0..len).map(|i| (i as f32).sin()).collect();
    for (i, value) in values.iter_mut().step_by(every).enumerate() {
        *value = bad[i % bad.len()];
    }
    floats(&values)
}

fn cases() -> Vec<Case> {
    // A count is exact.
    let case = |label: &str, inputs| Case::new(label, CheckFinite, inputs).relative(0.0);
    vec![
        case("one infinity", vec![floats(&[f32::INFINITY])]),
        case(
            "extremes that are finite",
            vec![floats(&[f32::MAX, f32::MIN, f32::MIN_POSITIVE, 1e-45, -0.0, 0.0, 1.0])],
        ),
        case("none", vec![normal([5003], 1e30, 1)]),
        case("some", vec![spoilt(10_007, 97)]),
        case("all", vec![spoilt(1027, 1)]),
        case("several tensors", vec![spoilt(4099, 5), normal([3, 7], 1.0, 1), spoilt(1, 1)]),
        case("perf", vec![constant([4 << 20], 1.0)]).perf(),
        // Read alone, one vector would fit the largest caches.
        case("perf, large", vec![constant([LARGE_VECTOR], 1.0), constant([LARGE_VECTOR], 1.0)]).perf_large(),
    ]
}
