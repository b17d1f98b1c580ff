//! The gradients of [batch normalisation in training](super::batch_norm), in two ops, each one pass over the activations, with
//! that of a PReLU which follows it inside. With `h = (x - mean) * inv_std`, `z = h * weight + bias`, sums over the `R` rows of
//! `[R, C]`, and `dz = dy`, or where there is a PReLU `dz = z > 0 ? dy : slope * dy`:
//!
//! - `batch_norm_grad_weight`: `dweight = sum dz * h`, `dbias = sum dz`, and `dslope = sum dy * min(z, 0)`
//! - `batch_norm_grad_input`: `dx = weight * inv_std * (dz - dbias / R - h * dweight / R)`
//!
//! x, dy and dx are `[..., C]`, all f32 or all f16; the constants f32 `[5, C]`, as `batch_norm` keeps them, and the sums f32 `[C]`.

use crate::case::{Case, Input, LARGE_IMAGES, OpEntry, matrix, normal, uniform};
use crate::host::Array;
use crate::kernel::{Kernel, Needs, ParamBlock, read, write};
use crate::op::{Cost, Lowering, Op, Operand};
use crate::ops::batch_norm::{check, constants, example};
use crate::ops::sum_rows;
use crate::ops::walk::{RowsParams, Walk};
use crate::{Error, Result, TensorDesc};

const CONSTANTS: &[&str] = &["COLUMNS", "LANES", "PRELU"];

const GRAD_WEIGHT_KERNEL: Kernel = Kernel {
    shader: "batch_norm_grad_weight",
    entry: "main",
    params: RowsParams::FIELDS,
    bindings: &[
        read("x"),
        read("constants"),
        read("dy"),
        write("partial_weight"),
        write("partial_bias"),
        write("partial_slope"),
    ],
    constants: CONSTANTS,
    needs: Needs::Nothing,
};
static GRAD_WEIGHT: Kernel = GRAD_WEIGHT_KERNEL;
static GRAD_WEIGHT_VEC4: Kernel = Kernel { shader: "batch_norm_grad_weight_vec4", ..GRAD_WEIGHT_KERNEL };

const GRAD_INPUT_KERNEL: Kernel = Kernel {
    shader: "batch_norm_grad_input",
    entry: "main",
    params: RowsParams::FIELDS,
    bindings: &[read("x"), read("constants"), read("dy"), read("dweight"), read("dbias"), write("dx")],
    constants: CONSTANTS,
    needs: Needs::Nothing,
};
static GRAD_INPUT: Kernel = GRAD_INPUT_KERNEL;
static GRAD_INPUT_VEC4: Kernel = Kernel { shader: "batch_norm_grad_input_vec4", ..GRAD_INPUT_KERNEL };

/// The registry's entry for [`BatchNormGradInput`].
pub const INPUT_ENTRY: OpEntry =
    OpEntry { name: "batch_norm_grad_input", cases: input_cases, kernels: &[&GRAD_INPUT, &GRAD_INPUT_VEC4] };
/// The registry's entry for [`BatchNormGradWeight`].
pub const WEIGHT_ENTRY: OpEntry = OpEntry {
    name: "batch_norm_grad_weight",
    cases,
    kernels: &[&GRAD_WEIGHT, &GRAD_WEIGHT_VEC4, &sum_rows::KERNEL],
};

/// The settings of a kernel.
fn settings(walk: &Walk, prelu: bool) -> Vec<(&'static str, f64)> {
    walk.constants().into_iter().chain([("PRELU", f64::from(u8::from(prelu)))]).collect()
}

/// The constants of the channel of element `i`, for references.
fn of_channel(constants: &Array, i: usize) -> [f64; 5] {
    let channels = constants.shape.last();
    std::array::from_fn(|row| constants.data[row * channels + i % channels])
}

/// The op `batch_norm_grad_weight`: `x, constants, dy -> dweight, dbias`, and `dslope` with a PReLU.
#[derive(Debug, Clone, Copy)]
pub struct BatchNormGradWeight {
    /// Whether a PReLU follows in the same pass.
    pub prelu: bool,
}

impl Op for BatchNormGradWeight {
    fn name(&self) -> &'static str {
        "batch_norm_grad_weight"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let [x, of_channels, dy] = inputs else {
            return Err(Error::shape(self.name(), format!("{} inputs", inputs.len()), "x, constants, dy"));
        };
        check_operands(self.name(), x, of_channels, dy)?;
        let sums = if self.prelu { 3 } else { 2 };
        Ok(vec![TensorDesc::f32([x.shape.last()]); sums])
    }

    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        let x = &lowering.input(0)?.shape;
        let channels = x.last();
        let walk = Walk::reduction(lowering, x)?;
        let sums = if self.prelu { 3 } else { 2 };
        let mut partials = Vec::with_capacity(3);
        for sum in 0..3 {
            partials.push(match sum < sums {
                // Not written, but a kernel has one set of bindings.
                false => lowering.workspace(16),
                true if walk.splits == 1 => Operand::Output(sum),
                true => lowering.workspace(walk.partial_bytes(channels)),
            });
        }
        let inputs = [0, 1, 2].map(Operand::Input);
        let operands = [&inputs[..], &partials].concat();
        let kernel = walk.kernel(&GRAD_WEIGHT, &GRAD_WEIGHT_VEC4);
        lowering.dispatch(kernel, &settings(&walk, self.prelu), &walk.params, &operands, walk.grid)?;
        if walk.splits > 1 {
            for (sum, partial) in partials.into_iter().take(sums).enumerate() {
                sum_rows::lower_sum(lowering, partial, Operand::Output(sum), walk.splits, channels, 1.0)?;
            }
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let [x, constants, dy] = inputs else { return Vec::new() };
        let channels = constants.shape.last();
        let mut sums = vec![Array::zeros([channels]); if self.prelu { 3 } else { 2 }];
        for (i, &d) in dy.data.iter().enumerate() {
            let c = i % channels;
            let [mean, inverse, scale, bias, slope] = of_channel(constants, i);
            let z = (x.data[i] - mean) * scale + bias;
            let dz = if self.prelu && z <= 0.0 { slope * d } else { d };
            sums[0].data[c] += dz * (x.data[i] - mean) * inverse;
            sums[1].data[c] += dz;
            if self.prelu {
                sums[2].data[c] += d * z.min(0.0);
            }
        }
        sums
    }

    fn cost(&self, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Cost {
        let elements = inputs.first().map_or(0, |x| x.shape.elements());
        let flops = if self.prelu { 10.0 } else { 5.0 };
        Cost::once(flops * elements as f64, inputs, outputs)
    }
}

/// The op `batch_norm_grad_input`: `x, constants, dy, dweight, dbias -> dx`. `dweight` and `dbias` are those of this `dy`, also
/// where weight or bias is not trained.
#[derive(Debug, Clone, Copy)]
pub struct BatchNormGradInput {
    /// Whether a PReLU follows in the same pass.
    pub prelu: bool,
}

impl Op for BatchNormGradInput {
    fn name(&self) -> &'static str {
        "batch_norm_grad_input"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let [x, of_channels, dy, dweight, dbias] = inputs else {
            return Err(Error::shape(
                self.name(),
                format!("{} inputs", inputs.len()),
                "x, constants, dy, dweight, dbias",
            ));
        };
        check_operands(self.name(), x, of_channels, dy)?;
        check(self.name(), x, &[("dweight", dweight), ("dbias", dbias)])?;
        Ok(vec![x.clone()])
    }

    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        let walk = Walk::elementwise(lowering, &lowering.input(0)?.shape)?;
        let inputs = [0, 1, 2, 3, 4].map(Operand::Input);
        let operands = [&inputs[..], &[Operand::Output(0)]].concat();
        let kernel = walk.kernel(&GRAD_INPUT, &GRAD_INPUT_VEC4);
        lowering.dispatch(kernel, &settings(&walk, self.prelu), &walk.params, &operands, walk.grid)
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let [x, constants, dy, dweight, dbias] = inputs else { return Vec::new() };
        let channels = constants.shape.last();
        let rows = x.shape.rows() as f64;
        vec![Array::from_fn(x.shape.clone(), |i| {
            let c = i % channels;
            let [mean, inverse, scale, bias, slope] = of_channel(constants, i);
            let z = (x.data[i] - mean) * scale + bias;
            let dz = if self.prelu && z <= 0.0 { slope * dy.data[i] } else { dy.data[i] };
            let h = (x.data[i] - mean) * inverse;
            scale * (dz - dbias.data[c] / rows - h * dweight.data[c] / rows)
        })]
    }

    fn cost(&self, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Cost {
        let elements = inputs.first().map_or(0, |x| x.shape.elements());
        let flops = if self.prelu { 8.0 } else { 5.0 };
        Cost::once(flops * elements as f64, inputs, outputs)
    }
}

fn check_operands(op: &str, x: &TensorDesc, of_channels: &TensorDesc, dy: &TensorDesc) -> Result<()> {
    check(op, x, &[])?;
    if *of_channels != constants(x) || dy != x {
        return Err(Error::shape(
            op,
            format!("x {x}, constants {of_channels}, dy {dy}"),
            format!("constants {}, and dy as x", constants(x)),
        ));
    }
    Ok(())
}

const SHAPES: [(&str, &[usize]); 8] = [
    ("vectors, odd sizes", &[17, 7]),
    ("images, odd sizes", &[2, 3, 5, 9]),
    ("one channel", &[1031, 1]),
    ("a tile and one", &[129, 65]),
    ("many splits", &[2, 47, 61, 3]),
    ("channels by four", &[2, 5, 3, 8]),
    ("four channels, many splits", &[2, 67, 71, 4]),
    ("a tile and four", &[37, 260]),
];
const PERF: &[usize] = &[32, 28, 28, 128];

/// x, the constants of its channels, with scales that fit their inverse deviations, and dy.
fn operands(shape: &[usize], mean: f32) -> Vec<Input> {
    let channels = shape.last().copied().unwrap_or(1);
    // One draw for all, so that mean and deviation fit x: the others are whatever comes with it.
    let rows = [
        uniform([channels], mean - 0.1, mean + 0.1, 6),
        uniform([channels], 0.5, 2.0, 7),
        uniform([channels], -1.5, 1.5, 9),
        uniform([channels], -1.0, 1.0, 12),
        uniform([channels], -0.3, 0.9, 13),
    ];
    let values: Vec<f32> = rows.iter().filter_map(|row| row.tensor().into_f32().ok()).flatten().collect();
    vec![example(shape, mean).swap_remove(0), matrix([5, channels], &values), normal(shape.to_vec(), 1.0, 8)]
}

/// The label of a case.
fn label(what: &str, prelu: bool) -> String {
    if prelu { format!("{what}, PReLU") } else { what.to_owned() }
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for prelu in [false, true] {
        // Sums of random signs nearly cancel: the error is relative to the terms, not to the sum.
        let case = |what: &str, shape: &[usize], mean: f32| {
            Case::new(label(what, prelu), BatchNormGradWeight { prelu }, operands(shape, mean)).relative(1e-4)
        };
        cases.extend(SHAPES.into_iter().map(|(what, shape)| case(what, shape, 0.5)));
        cases.push(case("images, odd sizes", &[2, 3, 5, 9], 0.5).half(&[0, 2]));
        cases.push(case("four channels, many splits", &[2, 67, 71, 4], 0.5).half(&[0, 2]));
        cases.push(case("perf", PERF, 0.1).perf());
        cases.push(case("perf", PERF, 0.1).half(&[0, 2]).perf());
        cases.push(case("perf, large", LARGE_IMAGES, 0.1).perf_large());
        cases.push(case("perf, large", LARGE_IMAGES, 0.1).half(&[0, 2]).perf_large());
    }
    // With a PReLU, which side of 0 a value is on would depend on the rounding.
    let far = Case::new("mean far from zero", BatchNormGradWeight { prelu: false }, operands(&[999, 5], 1e4));
    cases.push(far.relative(1e-4));
    cases
}

fn input_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for prelu in [false, true] {
        let case = |what: &str, shape: &[usize], mean: f32| {
            let channels = shape.last().copied().unwrap_or(1);
            let mut inputs = operands(shape, mean);
            inputs.extend([normal([channels], 20.0, 10), normal([channels], 20.0, 11)]);
            Case::new(label(what, prelu), BatchNormGradInput { prelu }, inputs)
        };
        cases.extend(SHAPES.into_iter().map(|(what, shape)| case(what, shape, 0.5)));
        cases.push(case("one row", &[1, 5], 0.5));
        cases.push(case("images, odd sizes", &[2, 3, 5, 9], 0.5).half(&[0, 2]));
        cases.push(case("a tile and four", &[37, 260], 0.5).half(&[0, 2]));
        if !prelu {
            cases.push(case("mean far from zero", &[999, 5], 1e4));
        }
        cases.push(case("perf", PERF, 0.1).perf());
        cases.push(case("perf", PERF, 0.1).half(&[0, 2]).perf());
        cases.push(case("perf, large", LARGE_IMAGES, 0.1).perf_large());
        cases.push(case("perf, large", LARGE_IMAGES, 0.1).half(&[0, 2]).perf_large());
    }
    cases
}
