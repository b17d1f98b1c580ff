//! Stochastic gradient descent with momentum over a flat arena, in place: one or two launches for all parameters.
//!
//! PyTorch's rule (`torch.optim.SGD` without dampening or Nesterov): `g = scale * grad + weight_decay * w`,
//! `v = momentum * v + g`, `w = w - lr * v`. `v` starts at 0, which is PyTorch's first step, `v = g`.
//! The first weights may have a floor that they never fall below: `w = max(w, floor)` after the step.
//! A scale of 0 leaves weights and momentum as they are: the step is not taken (see [`step_factor`](super::step_factor)).
//! Learning rate and scale are tensors: they change from step to step, and the scale is computed on the GPU.

use std::sync::Arc;

use crate::case::{Case, LARGE_VECTOR, OpEntry, constant, floats, normal};
use crate::host::Array;
use crate::kernel::{Kernel, Needs, ParamBlock, read, write};
use crate::op::{Bound, Cost, Lowering, Op, Operand, Record, TensorId};
use crate::{Error, Result, TensorDesc};

crate::param_block! {
    /// Parameters of `sgd.wgsl` and `sgd_tail.wgsl`.
    pub struct SgdParams {
        /// Vectors of four elements; elements in the tail.
        len: u32,
        /// Factor of the velocity.
        momentum: f32,
        /// Factor of the weight that is added to the gradient.
        weight_decay: f32,
        /// 1: the gradient is multiplied by the scale.
        scaled: u32,
        /// Of the elements, the first ones that never fall below the floor.
        floored: u32,
        /// The floor.
        floor: f32,
    }
}

static VECTORS: Kernel = Kernel {
    shader: "sgd",
    entry: "main",
    params: SgdParams::FIELDS,
    bindings: &[write("weight"), read("grad"), write("velocity"), read("lr"), read("scale")],
    constants: &["WORKGROUP"],
    needs: Needs::Nothing,
};

static TAIL: Kernel = Kernel {
    shader: "sgd_tail",
    entry: "main",
    params: SgdParams::FIELDS,
    bindings: &[write("weight"), read("grad"), write("velocity"), read("lr"), read("scale")],
    constants: &["WORKGROUP"],
    needs: Needs::Nothing,
};

/// The registry's entry.
pub const ENTRY: OpEntry = OpEntry { name: "sgd", cases, kernels: &[&VECTORS, &TAIL] };

/// Vectors of a workgroup.
const WORKGROUP: u64 = 256;
/// Elements of a workgroup of the tail.
const TAIL_WORKGROUP: u64 = 64;

/// Records one step: updates the persistent `weight` and `velocity` with `grad`, all f32 of one shape, by the learning
/// rate `lr` f32 `[1]`. The gradient is multiplied by `scale` f32 `[1]` where there is one (see
/// [`step_factor`](super::step_factor)).
pub fn sgd(
    record: &mut dyn Record,
    weight: TensorId,
    grad: TensorId,
    velocity: TensorId,
    lr: TensorId,
    scale: Option<TensorId>,
    config: Sgd,
) -> Result<()> {
    let mut inputs = vec![weight, grad, velocity, lr];
    inputs.extend(scale);
    record.push(Arc::new(config), &inputs)?;
    Ok(())
}

/// The op `sgd`: `weight, grad, velocity, lr` and perhaps `scale`; no outputs.
#[derive(Debug, Clone, Copy)]
pub struct Sgd {
    /// Factor of the velocity.
    pub momentum: f32,
    /// Factor of the weight that is added to the gradient.
    pub weight_decay: f32,
    /// A floor of the first elements, for example of PReLU slopes that have to stay positive.
    pub floor: Option<Floor>,
}

/// The first elements of a tensor, and what they never fall below.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Floor {
    /// How many.
    pub elements: usize,
    /// What they never fall below.
    pub least: f32,
}

impl Op for Sgd {
    fn name(&self) -> &'static str {
        "sgd"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let wrong = |found: String, expected: String| Err(Error::shape("sgd", found, expected));
        let [weight, grad, velocity, scalars @ ..] = inputs else {
            return wrong(format!("{} inputs", inputs.len()), "weight, grad, velocity, lr".into());
        };
        if *weight != TensorDesc::f32(weight.shape.clone()) || weight.shape.elements() == 0 {
            return wrong(format!("weight {weight}"), "an f32 tensor that is not empty".into());
        }
        if grad != weight || velocity != weight {
            return wrong(format!("grad {grad}, velocity {velocity}"), format!("{weight}, as weight"));
        }
        if self.floor.is_some_and(|floor| floor.elements > weight.shape.elements()) {
            return wrong(format!("{:?} of {weight}", self.floor), "a floor for no more elements".into());
        }
        if !(1..=2).contains(&scalars.len()) || scalars.iter().any(|s| *s != TensorDesc::f32([1])) {
            return wrong(format!("{scalars:?} after velocity"), "lr f32[1] and perhaps scale f32[1]".into());
        }
        Ok(Vec::new())
    }

    fn updates(&self) -> &'static [usize] {
        &[0, 2]
    }

    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        let caps = lowering.caps();
        let lr = Operand::Input(3);
        let scaled = lowering.input(4).is_ok();
        // A kernel has one set of bindings: without a scale, the learning rate fills its place and is not read there.
        let scale = if scaled { Operand::Input(4) } else { lr };
        let Floor { elements, least } = self.floor.unwrap_or(Floor { elements: 0, least: 0.0 });
        // For the `len` items of `width` elements from byte `offset` on.
        let params = |len: u64, width: u64, offset: u64, lowering: &Lowering<'_>| -> Result<SgdParams> {
            let floored = (elements as u64).saturating_sub(offset / 4).min(len * width);
            let len = lowering.size(usize::try_from(len).unwrap_or(usize::MAX))?;
            Ok(SgdParams {
                len,
                momentum: self.momentum,
                weight_decay: self.weight_decay,
                scaled: u32::from(scaled),
                floored: lowering.size(usize::try_from(floored).unwrap_or(usize::MAX))?,
                floor: least,
            })
        };
        let bindings = |range: (u64, u64)| {
            let part = |i| Bound { operand: Operand::Input(i), range: Some(range) };
            let whole = |operand| Bound { operand, range: None };
            [part(0), part(1), part(2), whole(lr), whole(scale)]
        };
        for (offset, length) in caps.ranges(lowering.input(0)?) {
            // The tail is a binding of its own, so it begins where a binding may.
            let tail = if length % 16 == 0 { 0 } else { length % caps.range_alignment() };
            let vectors = (length - tail) / 16;
            if vectors > 0 {
                let grid = lowering.fold(vectors.div_ceil(WORKGROUP) as usize)?;
                lowering.dispatch_ranges(
                    &VECTORS,
                    &[("WORKGROUP", WORKGROUP as f64)],
                    &params(vectors, 4, offset, lowering)?,
                    &bindings((offset, length - tail)),
                    grid,
                )?;
            }
            if tail > 0 {
                let grid = lowering.fold((tail / 4).div_ceil(TAIL_WORKGROUP) as usize)?;
                lowering.dispatch_ranges(
                    &TAIL,
                    &[("WORKGROUP", TAIL_WORKGROUP as f64)],
                    &params(tail / 4, 1, offset + length - tail, lowering)?,
                    &bindings((offset + length - tail, tail)),
                    grid,
                )?;
            }
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let [weight, grad, velocity, lr, ..] = inputs else { return Vec::new() };
        let scale = inputs.get(4).map_or(1.0, Array::item);
        if scale == 0.0 {
            return vec![weight.clone(), velocity.clone()];
        }
        let (momentum, decay) = (f64::from(self.momentum), f64::from(self.weight_decay));
        let v = Array::from_fn(weight.shape.clone(), |i| {
            momentum * velocity.data[i] + scale * grad.data[i] + decay * weight.data[i]
        });
        let Floor { elements, least } = self.floor.unwrap_or(Floor { elements: 0, least: 0.0 });
        let kept = |i: usize, w: f64| if i < elements && w < f64::from(least) { f64::from(least) } else { w };
        let w = Array::from_fn(weight.shape.clone(), |i| kept(i, weight.data[i] - lr.item() * v.data[i]));
        vec![w, v]
    }

    fn cost(&self, inputs: &[TensorDesc], _outputs: &[TensorDesc]) -> Cost {
        let [weight, _, velocity, ..] = inputs else { return Cost::default() };
        let flops = 7.0 * weight.shape.elements() as f64;
        // Weight and velocity are written as well as read.
        Cost::once(flops, inputs, &[weight.clone(), velocity.clone()])
    }
}

fn cases() -> Vec<Case> {
    let case = |label: &str, len: usize, scale: Option<f32>, op: Sgd| {
        let mut inputs =
            vec![normal([len], 0.1, 1), normal([len], 3.0, 2), normal([len], 2.0, 3), floats(&[0.05])];
        inputs.extend(scale.map(|scale| floats(&[scale])));
        Case::new(label, op, inputs)
    };
    let usual = Sgd { momentum: 0.9, weight_decay: 5e-4, floor: None };
    let floored = |elements: usize| Sgd { floor: Some(Floor { elements, least: 0.01 }), ..usual };
    let (flat, large) = (constant([4 << 20], 0.1), constant([LARGE_VECTOR], 0.1));
    vec![
        case("one element", 1, None, usual),
        case("tail alone", 63, Some(0.25), usual),
        case("vectors and tail", 1027, None, usual),
        case("vectors and tail, scaled", 4097, Some(0.125), usual),
        case("vectors alone", 1028, Some(1.0), usual),
        case("a step that is not taken", 1027, Some(0.0), usual),
        Case::new(
            "a step that is not taken, not finite",
            usual,
            vec![
                normal([70], 0.1, 1),
                constant([70], f32::NAN),
                normal([70], 2.0, 3),
                floats(&[0.05]),
                floats(&[0.0]),
            ],
        ),
        case("no momentum, no decay", 333, None, Sgd { momentum: 0.0, weight_decay: 0.0, floor: None }),
        case("a floor within the vectors", 1027, None, floored(70)),
        case("a floor for all but the last", 1027, Some(0.5), floored(1026)),
        case("a floor for all, and no step", 1027, Some(0.0), floored(1027)),
        Case::new("perf", usual, vec![flat.clone(), flat.clone(), flat, floats(&[0.05])]).perf(),
        Case::new("perf, large", usual, vec![large.clone(), large.clone(), large, floats(&[0.05])])
            .perf_large(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Caps;

    #[test]
    fn every_element_is_covered_once_within_the_binding_limit() {
        let caps = Caps { max_binding_bytes: 1000, offset_alignment: 256, ..Caps::WEBGPU };
        for len in [1, 3, 63, 64, 65, 191, 192, 193, 500, 767, 768] {
            let flat = TensorDesc::f32([len]);
            let inputs = [flat.clone(), flat.clone(), flat, TensorDesc::f32([1])];
            let op =
                Sgd { momentum: 0.9, weight_decay: 0.0, floor: Some(Floor { elements: 300, least: 0.0 }) };
            let lowered = Lowering::run(&op, &caps, &inputs, &[]).unwrap();
            let (mut end, mut floored) = (0, 0);
            for dispatch in &lowered.dispatches {
                let (offset, bytes) = dispatch.bindings[0].range.unwrap();
                let params: SgdParams = bytemuck::pod_read_unaligned(&dispatch.params);
                let element = if dispatch.kernel.shader == "sgd" { 16 } else { 4 };
                assert_eq!(offset, end, "{len} elements");
                assert_eq!(offset % 256, 0, "{len} elements");
                assert!(bytes <= 1000);
                assert_eq!(bytes, u64::from(params.len) * element);
                floored += params.floored * u32::from(params.floored <= bytes as u32 / 4);
                end = offset + bytes;
            }
            assert_eq!(end, 4 * len as u64);
            assert_eq!(floored as usize, len.min(300), "{len} elements");
        }
    }

    #[test]
    fn two_steps_by_hand() {
        let op = Sgd { momentum: 0.5, weight_decay: 0.1, floor: None };
        let array = |v: f64| Array::new([1], vec![v]);
        // g = 2 + 0.1; v = 2.1; w = 1 - 0.1 * 2.1
        let first = op.reference(&[array(1.0), array(2.0), array(0.0), array(0.1)]);
        assert!((first[0].item() - 0.79).abs() < 1e-6 && (first[1].item() - 2.1).abs() < 1e-6);
        // g = 0.5 * 2 + 0.079; v = 1.05 + 1.079; w = 0.79 - 0.2129
        let second = op.reference(&[first[0].clone(), array(2.0), first[1].clone(), array(0.1), array(0.5)]);
        assert!((second[0].item() - 0.5771).abs() < 1e-6 && (second[1].item() - 2.129).abs() < 1e-6);
    }
}
