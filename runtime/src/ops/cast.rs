//! A tensor with elements of the other width of float: `y = x`, f32 rounded to f16, or f16 as the f32 that it is.
//! Its gradient is that of `y`, cast back.
//!
//! To f16 by way of WGSL's conversion: to one of the two nearest values, which of them the adapter says; what is too large
//! becomes an infinity.

use crate::case::{Case, OpEntry, floats, normal};
use crate::host::Array;
use crate::kernel::{Kernel, Needs, ParamBlock, read, write};
use crate::op::{Bound, Cost, Gradient, Lowering, Op, Operand, Record, TensorId, push_one};
use crate::{DType, Error, Result, TensorDesc};

crate::param_block! {
    /// Parameters of `cast_to_half.wgsl`, `cast_to_single.wgsl` and their forms for vectors.
    pub struct CastParams {
        /// Elements, or vectors of four of them.
        len: u32,
        /// Elements or vectors that one workgroup casts.
        per_workgroup: u32,
    }
}

const KERNEL: Kernel = Kernel {
    shader: "cast_to_half",
    entry: "main",
    params: CastParams::FIELDS,
    bindings: &[read("x"), write("y")],
    constants: &["WORKGROUP"],
    needs: Needs::Nothing,
};
static TO_HALF: Kernel = KERNEL;
static TO_HALF_VEC4: Kernel = Kernel { shader: "cast_to_half_vec4", ..KERNEL };
static TO_SINGLE: Kernel = Kernel { shader: "cast_to_single", ..KERNEL };
static TO_SINGLE_VEC4: Kernel = Kernel { shader: "cast_to_single_vec4", ..KERNEL };

/// The registry's entry.
pub const ENTRY: OpEntry =
    OpEntry { name: "cast", cases, kernels: &[&TO_HALF, &TO_HALF_VEC4, &TO_SINGLE, &TO_SINGLE_VEC4] };

/// Invocations of a workgroup, and how many elements or vectors it casts, on a GPU.
const WORKGROUP: [usize; 2] = [256, 1024];
/// The same on a CPU adapter: one subgroup of llvmpipe, which then walks memory without gaps.
const CPU_WORKGROUP: [usize; 2] = [8, 1024];

/// Records `x` with elements of type `to`, [`DType::F16`] or [`DType::F32`]; `x` itself where it has them.
pub fn cast(record: &mut dyn Record, x: TensorId, to: DType) -> Result<TensorId> {
    if record.desc(x).dtype == to {
        return Ok(x);
    }
    push_one(record, Cast { to }, &[x])
}

/// The op `cast`.
#[derive(Debug, Clone, Copy)]
pub struct Cast {
    /// The type of the result.
    pub to: DType,
}

impl Op for Cast {
    fn name(&self) -> &'static str {
        "cast"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        match inputs {
            [x] if x.is_float()
                && x.shape.elements() > 0
                && x.with(self.to).is_float()
                && x.dtype != self.to =>
            {
                Ok(vec![x.with(self.to)])
            }
            other => Err(Error::shape(
                "cast",
                format!("{other:?} to {}", self.to),
                "an f32 tensor to f16, or an f16 tensor to f32, not empty",
            )),
        }
    }

    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        let elements = lowering.input(0)?.shape.elements();
        let (width, kernel) = match (elements.is_multiple_of(4), self.to) {
            (true, DType::F16) => (4, &TO_HALF_VEC4),
            (true, _) => (4, &TO_SINGLE_VEC4),
            (false, DType::F16) => (1, &TO_HALF),
            (false, _) => (1, &TO_SINGLE),
        };
        let [workgroup, per_workgroup] = if lowering.caps().cpu { CPU_WORKGROUP } else { WORKGROUP };
        // In parts that a binding holds, each beginning where a binding may, on both sides.
        let unit = lowering.caps().range_alignment() as usize;
        let part = (lowering.caps().max_binding_bytes as usize / 4 / unit).max(1) * unit;
        let bytes = |dtype: DType, count: usize| (count * dtype.bytes()) as u64;
        let [from, to] = [lowering.input(0)?.dtype, self.to];
        for first in (0..elements).step_by(part) {
            let count = part.min(elements - first);
            let len = count / width;
            let params =
                CastParams { len: lowering.size(len)?, per_workgroup: lowering.size(per_workgroup)? };
            let bound = |operand, dtype| {
                Bound::part(operand, bytes(dtype, first), bytes(dtype, count).next_multiple_of(4))
            };
            let bindings = [bound(Operand::Input(0), from), bound(Operand::Output(0), to)];
            let grid = lowering.fold(len.div_ceil(per_workgroup))?;
            lowering.dispatch_ranges(kernel, &[("WORKGROUP", workgroup as f64)], &params, &bindings, grid)?;
        }
        Ok(())
    }

    fn gradient(&self, gradient: &mut Gradient<'_>) -> Result<()> {
        let x = gradient.input(0)?;
        if let Some(dy) = gradient.upstream(0) {
            let to = gradient.record().desc(x).dtype;
            let dx = cast(gradient.record(), dy, to)?;
            gradient.set(0, dx);
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        // In f64 nothing is rounded; what is compared with it allows for that.
        vec![inputs[0].clone()]
    }

    fn cost(&self, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Cost {
        Cost::once(0.0, inputs, outputs)
    }
}

fn cases() -> Vec<Case> {
    let case = |label: &str, shape: &[usize], to: DType| {
        Case::new(label, Cast { to }, vec![normal(shape.to_vec(), 1.0, 1)])
    };
    vec![
        case("to f16, odd sizes", &[3, 7, 11], DType::F16).differentiate(&[0]),
        case("to f16, vectors, several workgroups", &[3, 5, 7, 444], DType::F16),
        case("to f16, one element", &[1], DType::F16),
        Case::new(
            "to f16, extremes",
            Cast { to: DType::F16 },
            vec![floats(&[65504.0, -65504.0, 1e6, -1e6, 1e-30, 6.1e-5, 0.0, -0.0])],
        ),
        case("to f32, odd sizes", &[3, 7, 11], DType::F32).half(&[0]),
        case("to f32, vectors, several workgroups", &[3, 5, 7, 444], DType::F32).half(&[0]),
        case("perf, to f16", &[32, 112, 112, 64], DType::F16).perf(),
        case("perf, to f32", &[32, 112, 112, 64], DType::F32).half(&[0]).perf(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Caps;

    #[test]
    fn every_element_is_cast_once_within_the_binding_limit() {
        let caps = Caps { max_binding_bytes: 5000, f16: true, ..Caps::WEBGPU };
        for (len, to) in [(1, DType::F16), (1023, DType::F32), (1024, DType::F16), (5003, DType::F32)] {
            let from = if to == DType::F16 { DType::F32 } else { DType::F16 };
            let x = TensorDesc::f32([len]).with(from);
            let lowered =
                Lowering::run(&Cast { to }, &caps, std::slice::from_ref(&x), &[x.with(to)]).unwrap();
            let mut ends = [0, 0];
            for dispatch in &lowered.dispatches {
                assert!(dispatch.half);
                for (bound, end) in dispatch.bindings.iter().zip(&mut ends) {
                    let (offset, bytes) = bound.range.unwrap();
                    assert_eq!((offset, offset % 256), (*end, 0));
                    assert!(bytes <= caps.max_binding_bytes);
                    *end = offset + bytes;
                }
            }
            assert_eq!(ends, [x.bytes(), x.with(to).bytes()]);
        }
    }
}
