//! Cases: concrete inputs for an op, written once and used for correctness, gradients, speed and coverage.

use std::sync::Arc;

use crate::caps::Caps;
use crate::host::HostTensor;
use crate::op::Op;
use crate::{DType, Shape, TensorDesc};

/// The largest activations of IR-50 at a batch of 32, 98 MiB in 32 bits: more than the caches of most GPUs hold of one operand,
/// and of any beside the result, and less than the least that an adapter lets one bind.
pub const LARGE_IMAGES: &[usize] = &[32, 112, 112, 64];

/// Elements of a vector that are as many bytes.
pub const LARGE_VECTOR: usize = 24 << 20;

/// How far a kernel's result may be from the f64 reference: for each element,
/// `|got - want| <= relative * max(|want|, rms(want)) + rounding * |want| + absolute`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Error allowed relative to the larger of the element and the tensor's root mean square.
    pub relative: f64,
    /// Error allowed relative to the element itself: of its rounding to the type that it is stored in.
    pub rounding: f64,
    /// Error allowed besides.
    pub absolute: f64,
}

impl Default for Tolerance {
    fn default() -> Self {
        // GPUs may flush numbers below the smallest normal one to zero; nothing else is excused.
        Self { relative: 1e-5, rounding: 0.0, absolute: f64::from(f32::MIN_POSITIVE) }
    }
}

/// An input of a case: a description that is only turned into numbers where they are needed, so that listing the
/// cases (those for measuring speed are large) costs nothing.
#[derive(Clone, Debug)]
pub struct Input {
    desc: TensorDesc,
    fill: Fill,
    shift: f32,
}

#[derive(Clone, Debug)]
enum Fill {
    Values(HostTensor),
    Constant(f32),
    Uniform { low: f32, high: f32, seed: u64 },
    Normal { deviation: f32, seed: u64 },
    Integers { limit: u32, seed: u64 },
}

impl Input {
    /// Shape and element type.
    pub fn desc(&self) -> &TensorDesc {
        &self.desc
    }

    /// The same values rounded to 16 bits, and stored so.
    pub fn half(mut self) -> Self {
        self.desc.dtype = DType::F16;
        self
    }

    /// The same values with `by` added to each float.
    pub fn shifted(mut self, by: f32) -> Self {
        self.shift += by;
        self
    }

    /// The numbers, the same each time.
    pub fn tensor(&self) -> HostTensor {
        let wide = self.wide();
        if self.desc.dtype == DType::F16 { wide.to_half() } else { wide }
    }

    /// The numbers, floats in 32 bits.
    fn wide(&self) -> HostTensor {
        let count = self.desc.shape.elements();
        let state = |seed: u64, salt: u64| seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ salt;
        let floats = |mut draw: Box<dyn FnMut() -> f32>| {
            HostTensor::from_f32(self.desc.shape.clone(), (0..count).map(|_| draw() + self.shift).collect())
        };
        let made = match self.fill {
            Fill::Values(ref tensor) => return tensor.clone(),
            Fill::Constant(value) => floats(Box::new(move || value)),
            Fill::Uniform { low, high, seed } => {
                let mut state = state(seed, 0x5851_f42d);
                floats(Box::new(move || low + (high - low) * unit(&mut state) as f32))
            }
            Fill::Normal { deviation, seed } => {
                let mut state = state(seed, 0x1405_7b7e);
                floats(Box::new(move || {
                    let radius = (-2.0 * (1.0 - unit(&mut state)).ln()).sqrt();
                    let angle = std::f64::consts::TAU * unit(&mut state);
                    deviation * (radius * angle.cos()) as f32
                }))
            }
            Fill::Integers { limit, seed } => {
                let mut state = state(seed, 0x0bad_cafe);
                let draw = |_| (split_mix(&mut state) % u64::from(limit.max(1))) as u32;
                HostTensor::from_u32(self.desc.shape.clone(), (0..count).map(draw).collect())
            }
        };
        // As many values were made as the shape has elements, so that nothing is left to go wrong.
        made.unwrap_or_else(|_| HostTensor::zeros(&self.desc.with(DType::F32)))
    }
}

impl From<HostTensor> for Input {
    fn from(tensor: HostTensor) -> Self {
        Self { desc: tensor.desc(), fill: Fill::Values(tensor), shift: 0.0 }
    }
}

/// Concrete inputs for an op.
#[derive(Clone, Debug)]
pub struct Case {
    /// What is special about the case.
    pub label: String,
    /// The op.
    pub op: Arc<dyn Op>,
    /// Its inputs.
    pub inputs: Vec<Input>,
    /// How exact the kernel must be.
    pub tolerance: Tolerance,
    /// Inputs whose gradient is compared with finite differences; empty where the op has no gradient or where the
    /// case is too large or not smooth enough for it.
    pub differentiate: Vec<usize>,
    /// Step of the central differences. Smaller than the distance to a kink.
    pub epsilon: f64,
    /// Relative tolerance of the comparison with finite differences, as in [`Tolerance`].
    pub gradient_tolerance: f64,
    /// Whether the case is meant for measuring speed: realistic sizes, left out of the tests.
    pub perf: bool,
    /// Whether its sizes are for GPUs alone.
    pub large: bool,
}

impl Case {
    /// A case with the default tolerance and no gradient check.
    pub fn new(label: impl Into<String>, op: impl Op, inputs: Vec<Input>) -> Self {
        Self::shared(label, Arc::new(op), inputs)
    }

    /// [`Self::new`] of an op that others have as well.
    pub fn shared(label: impl Into<String>, op: Arc<dyn Op>, inputs: Vec<Input>) -> Self {
        Self {
            label: label.into(),
            op,
            inputs,
            tolerance: Tolerance::default(),
            differentiate: Vec::new(),
            epsilon: 1e-4,
            gradient_tolerance: 1e-5,
            perf: false,
            large: false,
        }
    }

    /// Whether a case is for an adapter: whether that has 16-bit floats where the case stores any, and is no CPU where the case
    /// is large.
    pub fn runs_on(&self, caps: &Caps) -> bool {
        if self.large && caps.cpu {
            return false;
        }
        let inputs: Vec<TensorDesc> = self.inputs.iter().map(|input| input.desc.clone()).collect();
        let outputs = self.op.infer(&inputs).unwrap_or_default();
        caps.f16 || inputs.iter().chain(&outputs).all(|desc| desc.dtype != DType::F16)
    }

    /// The case with `inputs` stored in 16 bits. Its gradient is that of the case in 32 bits and is not compared again.
    pub fn half(mut self, inputs: &[usize]) -> Self {
        self.label = format!("{}, f16", self.label);
        self.differentiate.clear();
        for &index in inputs {
            if let Some(input) = self.inputs.get_mut(index) {
                *input = input.clone().half();
            }
        }
        self
    }

    /// Compares the gradients of these inputs with finite differences.
    pub fn differentiate(mut self, inputs: &[usize]) -> Self {
        self.differentiate = inputs.to_vec();
        self
    }

    /// Sets the relative tolerance. The caller gives the reason in a comment.
    pub fn relative(mut self, relative: f64) -> Self {
        self.tolerance.relative = relative;
        self
    }

    /// Sets the absolute tolerance. The caller gives the reason in a comment.
    pub fn absolute(mut self, absolute: f64) -> Self {
        self.tolerance.absolute = absolute;
        self
    }

    /// Sets the step of the finite differences.
    pub fn epsilon(mut self, epsilon: f64) -> Self {
        self.epsilon = epsilon;
        self
    }

    /// Sets the tolerance of the comparison with finite differences. The caller gives the reason in a comment.
    pub fn gradient_tolerance(mut self, relative: f64) -> Self {
        self.gradient_tolerance = relative;
        self
    }

    /// Marks the case as one for measuring speed only.
    pub fn perf(mut self) -> Self {
        self.perf = true;
        self
    }

    /// Marks the case as one for measuring the speed of GPUs only: of sizes that none of their caches holds, so that bandwidth
    /// is that of memory, and on which a CPU would work for long.
    pub fn perf_large(mut self) -> Self {
        self.large = true;
        self.perf()
    }
}

/// A 64-bit mix (SplitMix64, Steele et al. 2014): small, seedable, the same everywhere.
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn unit(state: &mut u64) -> f64 {
    (split_mix(state) >> 11) as f64 / (1u64 << 53) as f64
}

/// Uniform values in `low..high`, the same for the same seed.
pub fn uniform(shape: impl Into<Shape>, low: f32, high: f32, seed: u64) -> Input {
    Input { desc: TensorDesc::f32(shape), fill: Fill::Uniform { low, high, seed }, shift: 0.0 }
}

/// Normal values with the given standard deviation (Box-Muller), the same for the same seed.
pub fn normal(shape: impl Into<Shape>, deviation: f32, seed: u64) -> Input {
    Input { desc: TensorDesc::f32(shape), fill: Fill::Normal { deviation, seed }, shift: 0.0 }
}

/// Integers in `0..limit`, the same for the same seed.
pub fn integers(shape: impl Into<Shape>, limit: u32, seed: u64) -> Input {
    Input { desc: TensorDesc::u32(shape), fill: Fill::Integers { limit, seed }, shift: 0.0 }
}

/// All elements `value`.
pub fn constant(shape: impl Into<Shape>, value: f32) -> Input {
    Input { desc: TensorDesc::f32(shape), fill: Fill::Constant(value), shift: 0.0 }
}

/// The given floats as a one-dimensional tensor.
pub fn floats(values: &[f32]) -> Input {
    matrix([values.len()], values)
}

/// The given floats as a tensor of `shape`, which must have as many elements.
pub fn matrix(shape: impl Into<Shape>, values: &[f32]) -> Input {
    let shape = shape.into();
    debug_assert_eq!(shape.elements(), values.len(), "values for a tensor of shape {shape}");
    let zeros = HostTensor::zeros(&TensorDesc::f32(shape.clone()));
    HostTensor::from_f32(shape, values.to_vec()).unwrap_or(zeros).into()
}

/// The given integers as a one-dimensional tensor.
pub fn words(values: &[u32]) -> Input {
    let zeros = HostTensor::zeros(&TensorDesc::u32([values.len()]));
    HostTensor::from_u32([values.len()], values.to_vec()).unwrap_or(zeros).into()
}

/// An op as the registry knows it.
#[derive(Clone, Copy)]
pub struct OpEntry {
    /// The op's name.
    pub name: &'static str,
    /// Its cases.
    pub cases: fn() -> Vec<Case>,
    /// Every kernel that it may dispatch.
    pub kernels: &'static [&'static crate::kernel::Kernel],
}
