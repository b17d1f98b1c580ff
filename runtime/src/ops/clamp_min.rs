//! A lower bound on a persistent tensor, in place: `w = max(w, minimum)`. A NaN stays one.

use std::sync::Arc;

use crate::case::{Case, LARGE_VECTOR, OpEntry, constant, normal};
use crate::host::Array;
use crate::kernel::{Kernel, Needs, ParamBlock, write};
use crate::op::{Bound, Cost, Lowering, Op, Operand, Record, TensorId};
use crate::{Error, Result, TensorDesc};

crate::param_block! {
    /// Parameters of `clamp_min.wgsl`.
    pub struct ClampMinParams {
        /// Elements.
        len: u32,
        /// The lower bound.
        minimum: f32,
    }
}

static KERNEL: Kernel = Kernel {
    shader: "clamp_min",
    entry: "main",
    params: ClampMinParams::FIELDS,
    bindings: &[write("weight")],
    constants: &["WORKGROUP"],
    needs: Needs::Nothing,
};

/// The registry's entry.
pub const ENTRY: OpEntry = OpEntry { name: "clamp_min", cases, kernels: &[&KERNEL] };

/// Elements of a workgroup.
const WORKGROUP: u64 = 256;

/// Records `weight = max(weight, minimum)` on a persistent f32 tensor of any shape.
pub fn clamp_min(record: &mut dyn Record, weight: TensorId, minimum: f32) -> Result<()> {
    record.push(Arc::new(ClampMin { minimum }), &[weight])?;
    Ok(())
}

/// The op `clamp_min`: updates its one input; no outputs.
#[derive(Debug, Clone, Copy)]
pub struct ClampMin {
    /// The lower bound.
    pub minimum: f32,
}

impl Op for ClampMin {
    fn name(&self) -> &'static str {
        "clamp_min"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let [weight] = inputs else {
            return Err(Error::shape("clamp_min", format!("{} inputs", inputs.len()), "weight"));
        };
        if *weight != TensorDesc::f32(weight.shape.clone()) || weight.shape.elements() == 0 {
            return Err(Error::shape(
                "clamp_min",
                format!("weight {weight}"),
                "an f32 tensor that is not empty",
            ));
        }
        Ok(Vec::new())
    }

    fn updates(&self) -> &'static [usize] {
        &[0]
    }

    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        for (offset, length) in lowering.caps().ranges(lowering.input(0)?) {
            let elements = (length / 4) as usize;
            let params = ClampMinParams { len: lowering.size(elements)?, minimum: self.minimum };
            let grid = lowering.fold(elements.div_ceil(WORKGROUP as usize))?;
            let bound = Bound { operand: Operand::Input(0), range: Some((offset, length)) };
            lowering.dispatch_ranges(&KERNEL, &[("WORKGROUP", WORKGROUP as f64)], &params, &[bound], grid)?;
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let minimum = f64::from(self.minimum);
        inputs
            .iter()
            .map(|w| {
                Array::from_fn(w.shape.clone(), |i| if w.data[i] < minimum { minimum } else { w.data[i] })
            })
            .collect()
    }

    fn cost(&self, inputs: &[TensorDesc], _outputs: &[TensorDesc]) -> Cost {
        // Read and written.
        Cost::once(inputs.iter().map(|w| w.shape.elements() as f64).sum(), inputs, inputs)
    }
}

fn cases() -> Vec<Case> {
    let case = |label: &str, len: usize, minimum: f32| {
        Case::new(label, ClampMin { minimum }, vec![normal([len], 0.5, 1)])
    };
    vec![
        case("one element", 1, 1.0),
        case("odd size", 1027, 0.01),
        case("negative bound", 300, -0.25),
        Case::new("perf", ClampMin { minimum: 0.01 }, vec![constant([4 << 20], 1.0)]).perf(),
        Case::new("perf, large", ClampMin { minimum: 0.01 }, vec![constant([LARGE_VECTOR], 1.0)])
            .perf_large(),
    ]
}
