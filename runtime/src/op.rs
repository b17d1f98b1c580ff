//! The op trait: what an operation must say about itself, and how it becomes kernel dispatches.
//!
//! An op is plain data (its attributes). It never touches the GPU: [`Op::lower`] describes dispatches, the session
//! runs them. Its operands are *inputs* and *outputs*; an input named in [`Op::updates`] is also written in place.

use std::any::Any;
use std::fmt::Debug;
use std::sync::Arc;

use crate::caps::Caps;
use crate::host::Array;
use crate::kernel::{Kernel, ParamBlock};
use crate::{DType, Error, Result, TensorDesc};

/// A tensor of a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TensorId(pub(crate) u32);

/// Work done by one execution of an op, for rooflines: the least that any implementation must do.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Floating-point operations (a multiply-add counts as two).
    pub flops: f64,
    /// Bytes read and written, every operand once.
    pub bytes: f64,
}

impl Cost {
    /// The cost of an op that touches each operand once and does `flops` operations.
    pub fn once(flops: f64, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Self {
        let bytes = inputs.iter().chain(outputs).map(|desc| desc.bytes() as f64).sum();
        Self { flops, bytes }
    }
}

/// A differentiable operation with GPU kernels and a CPU reference.
pub trait Op: Any + Debug + Send + Sync {
    /// The op's name: that of its Rust file and of its main shader.
    fn name(&self) -> &'static str;

    /// The outputs for these inputs, or an error that names what does not fit.
    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>>;

    /// Indices of inputs that the op updates in place (running statistics, weights). They must be persistent.
    fn updates(&self) -> &'static [usize] {
        &[]
    }

    /// Whether output 0 is input 0 under another shape: it then shares its memory and the op dispatches nothing.
    fn aliases_input(&self) -> bool {
        false
    }

    /// How output 0 can be made again, bit for bit, for less than what keeping it for the gradients of the ops that take it
    /// costs: where a few operations an element do it. [`backward`](crate::autodiff::backward) then has it made again.
    fn again(&self) -> Option<Again> {
        None
    }

    /// The dispatches that compute the outputs. Every element of every output must be written.
    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()>;

    /// Names of other ways to compute the op for these inputs on an adapter with `caps` than that of its rules, for a tuner to
    /// try: [`Lowering::choice`] is then one of them. Their results may differ by rounding alone.
    fn variants(&self, _caps: &Caps, _inputs: &[TensorDesc]) -> Vec<String> {
        Vec::new()
    }

    /// The same op on about half as much, with the extents that its kernels are chosen by: what a tuner compares with the
    /// reference, and times where the op itself takes too much memory. `None` where it cannot be less.
    fn smaller(&self, _inputs: &[TensorDesc]) -> Option<(Arc<dyn Op>, Vec<TensorDesc>)> {
        None
    }

    /// Records the ops that turn gradients of the outputs into gradients of the inputs.
    /// The default says that the op has no gradient.
    fn gradient(&self, _gradient: &mut Gradient<'_>) -> Result<()> {
        Err(Error::graph(
            format!("op {} has no gradient", self.name()),
            "keep it out of the path from the loss to the trained tensors",
        ))
    }

    /// The outputs, then the new values of the updated inputs in the order of [`Op::updates`], by naive loops in f64.
    fn reference(&self, inputs: &[Array]) -> Vec<Array>;

    /// The work of one execution.
    fn cost(&self, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Cost;
}

/// How an op's output 0 can be made again.
#[derive(Clone, Debug)]
pub struct Again {
    /// The op that does it, with one output.
    pub op: Arc<dyn Op>,
    /// What it takes: inputs of the first op, and its further outputs. No workspaces.
    pub operands: Vec<Operand>,
}

/// Something that ops can be recorded into. The graph implements it; ops and builders only know this much.
pub trait Record {
    /// Appends an op and returns its outputs. Fails where the inputs do not fit the op.
    fn push(&mut self, op: Arc<dyn Op>, inputs: &[TensorId]) -> Result<Vec<TensorId>>;

    /// Shape and element type of a tensor.
    fn desc(&self, tensor: TensorId) -> &TensorDesc;
}

/// Appends an op with exactly one output.
pub fn push_one(record: &mut dyn Record, op: impl Op, inputs: &[TensorId]) -> Result<TensorId> {
    let name = op.name();
    match record.push(Arc::new(op), inputs)?.as_slice() {
        [output] => Ok(*output),
        outputs => Err(Error::shape(name, format!("{} outputs", outputs.len()), "one output")),
    }
}

/// Appends an op with exactly `N` outputs.
pub fn push_many<const N: usize>(
    record: &mut dyn Record,
    op: impl Op,
    inputs: &[TensorId],
) -> Result<[TensorId; N]> {
    let name = op.name();
    let outputs = record.push(Arc::new(op), inputs)?;
    <[TensorId; N]>::try_from(outputs.as_slice())
        .map_err(|_| Error::shape(name, format!("{} outputs", outputs.len()), format!("{N} outputs")))
}

/// What an op's gradient sees: the forward op's operands, the gradients that arrive, and where to leave its own.
pub struct Gradient<'a> {
    pub(crate) record: &'a mut dyn Record,
    pub(crate) inputs: &'a [TensorId],
    pub(crate) outputs: &'a [TensorId],
    pub(crate) upstream: &'a [Option<TensorId>],
    pub(crate) needed: &'a [bool],
    pub(crate) result: Vec<Option<TensorId>>,
}

impl Gradient<'_> {
    /// The recorder to append gradient ops to.
    pub fn record(&mut self) -> &mut dyn Record {
        self.record
    }

    /// Input `index` of the forward op.
    pub fn input(&self, index: usize) -> Result<TensorId> {
        self.inputs.get(index).copied().ok_or_else(|| out_of_range("input", index))
    }

    /// Output `index` of the forward op.
    pub fn output(&self, index: usize) -> Result<TensorId> {
        self.outputs.get(index).copied().ok_or_else(|| out_of_range("output", index))
    }

    /// The gradient of the loss with respect to output `index`; `None` where the loss does not depend on it.
    pub fn upstream(&self, index: usize) -> Option<TensorId> {
        self.upstream.get(index).copied().flatten()
    }

    /// Whether the gradient of input `index` is wanted. Where it is not, no op should be recorded for it.
    pub fn needs(&self, index: usize) -> bool {
        self.needed.get(index).copied().unwrap_or(false)
    }

    /// Leaves `gradient` as the gradient of input `index`.
    pub fn set(&mut self, index: usize, gradient: TensorId) {
        if let Some(slot) = self.result.get_mut(index) {
            *slot = Some(gradient);
        }
    }
}

fn out_of_range(what: &str, index: usize) -> Error {
    Error::graph(format!("{what} {index} does not exist"), "check the op's gradient")
}

/// A buffer that a dispatch binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// Input `i` of the op.
    Input(usize),
    /// Output `i` of the op.
    Output(usize),
    /// Workspace `i`, as returned by [`Lowering::workspace`].
    Workspace(usize),
}

/// An operand, or a part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// The operand.
    pub operand: Operand,
    /// First byte and number of bytes, where only a part is bound.
    pub range: Option<(u64, u64)>,
}

impl Bound {
    /// `bytes` bytes of `operand` from `offset` on.
    pub fn part(operand: Operand, offset: u64, bytes: u64) -> Self {
        Self { operand, range: Some((offset, bytes)) }
    }
}

impl From<Operand> for Bound {
    fn from(operand: Operand) -> Self {
        Self { operand, range: None }
    }
}

/// One kernel launch of an op.
#[derive(Clone, Debug)]
pub struct Dispatch {
    /// The kernel.
    pub kernel: &'static Kernel,
    /// Whether the kernel's elements are stored in 16 bits.
    pub half: bool,
    /// Values of `override` constants.
    pub constants: Vec<(&'static str, f64)>,
    /// The bytes of the parameter block.
    pub params: Vec<u8>,
    /// The operands, in the order of the kernel's bindings.
    pub bindings: Vec<Bound>,
    /// Workgroups.
    pub grid: [u32; 3],
}

/// What [`Op::lower`] sees and fills.
pub struct Lowering<'a> {
    caps: &'a Caps,
    op: &'static str,
    inputs: &'a [TensorDesc],
    outputs: &'a [TensorDesc],
    element: DType,
    choice: Option<&'a str>,
    dispatches: Vec<Dispatch>,
    workspaces: Vec<u64>,
}

/// What an op was lowered to.
#[derive(Clone, Debug, Default)]
pub struct Lowered {
    /// The launches, in order.
    pub dispatches: Vec<Dispatch>,
    /// Bytes of each workspace.
    pub workspaces: Vec<u64>,
}

impl<'a> Lowering<'a> {
    /// Lowers `op` for the given operands on an adapter with `caps`, as its rules say.
    pub fn run(op: &dyn Op, caps: &Caps, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Result<Lowered> {
        Self::run_choice(op, caps, inputs, outputs, None)
    }

    /// [`Lowering::run`], with the variant `choice`, one of [`Op::variants`]. Another name means nothing to the op.
    pub fn run_choice(
        op: &dyn Op,
        caps: &Caps,
        inputs: &[TensorDesc],
        outputs: &[TensorDesc],
        choice: Option<&str>,
    ) -> Result<Lowered> {
        let half = inputs.iter().chain(outputs).any(|desc| desc.dtype == DType::F16);
        let mut lowering = Lowering {
            choice,
            caps,
            op: op.name(),
            inputs,
            outputs,
            element: if half { DType::F16 } else { DType::F32 },
            dispatches: Vec::new(),
            workspaces: Vec::new(),
        };
        op.lower(&mut lowering)?;
        Ok(Lowered { dispatches: lowering.dispatches, workspaces: lowering.workspaces })
    }

    /// What the adapter can do.
    pub fn caps(&self) -> &'a Caps {
        self.caps
    }

    /// The variant that was chosen, one of [`Op::variants`]; `None` where the op's rules decide.
    pub fn choice(&self) -> Option<&'a str> {
        self.choice
    }

    /// Number of inputs.
    pub fn inputs(&self) -> usize {
        self.inputs.len()
    }

    /// Shape and type of input `index`.
    pub fn input(&self, index: usize) -> Result<&'a TensorDesc> {
        self.inputs.get(index).ok_or_else(|| out_of_range("input", index))
    }

    /// Shape and type of output `index`.
    pub fn output(&self, index: usize) -> Result<&'a TensorDesc> {
        self.outputs.get(index).ok_or_else(|| out_of_range("output", index))
    }

    /// The type of what kernels declare with `Elem`: f16 where any operand of the op is.
    pub fn element(&self) -> DType {
        self.element
    }

    /// Makes it another one for the launches that follow.
    pub fn set_element(&mut self, element: DType) {
        self.element = element;
    }

    /// A scratch buffer of `count` such elements.
    pub fn scratch(&mut self, count: usize) -> Operand {
        self.workspace((count * self.element.bytes()) as u64)
    }

    /// A scratch buffer that lives only during this op.
    pub fn workspace(&mut self, bytes: u64) -> Operand {
        self.workspaces.push(bytes.max(4).next_multiple_of(4));
        Operand::Workspace(self.workspaces.len() - 1)
    }

    /// `count` as u32, as kernels take sizes; an error where it does not fit.
    pub fn size(&self, count: usize) -> Result<u32> {
        u32::try_from(count).map_err(|_| Error::Limit {
            what: format!("op {}: {count} elements do not fit 32-bit indexing", self.op),
            hint: "use a smaller batch".into(),
        })
    }

    /// A grid of at least `groups` workgroups in one dimension, folded into two where the adapter's limit asks for it.
    /// Kernels index with `workgroup_id.x + workgroup_id.y * num_workgroups.x` and guard the tail.
    pub fn fold(&self, groups: usize) -> Result<[u32; 3]> {
        let limit = self.caps.max_grid as usize;
        if groups <= limit {
            return Ok([self.size(groups.max(1))?, 1, 1]);
        }
        let rows = groups.div_ceil(limit);
        if rows > limit {
            return Err(Error::Limit {
                what: format!("op {}: {groups} workgroups are more than a grid holds", self.op),
                hint: "use a smaller batch".into(),
            });
        }
        Ok([self.size(groups.div_ceil(rows))?, self.size(rows)?, 1])
    }

    /// Appends a launch of `kernel` that binds whole operands.
    pub fn dispatch<P: ParamBlock>(
        &mut self,
        kernel: &'static Kernel,
        constants: &[(&'static str, f64)],
        params: &P,
        operands: &[Operand],
        grid: [u32; 3],
    ) -> Result<()> {
        let bindings: Vec<Bound> = operands.iter().map(|&operand| operand.into()).collect();
        self.dispatch_ranges(kernel, constants, params, &bindings, grid)
    }

    /// Appends a launch of `kernel` that may bind parts of operands.
    pub fn dispatch_ranges<P: ParamBlock>(
        &mut self,
        kernel: &'static Kernel,
        constants: &[(&'static str, f64)],
        params: &P,
        bindings: &[Bound],
        grid: [u32; 3],
    ) -> Result<()> {
        let wrong = |found: String, expected: String| Err(Error::shape(self.op, found, expected));
        if bindings.len() != kernel.bindings.len() {
            return wrong(
                format!("{} operands for kernel {}", bindings.len(), kernel.shader),
                format!("{}", kernel.bindings.len()),
            );
        }
        if let Some((name, _)) = constants.iter().find(|(name, _)| !kernel.constants.contains(name)) {
            return wrong(
                format!("constant {name} for kernel {}", kernel.shader),
                "a declared constant".into(),
            );
        }
        if !kernel.needs.met_by(self.caps, self.element) {
            return wrong(
                format!("kernel {} needs {}", kernel.shader, kernel.needs),
                "an adapter with them".into(),
            );
        }
        if grid.iter().any(|&n| n > self.caps.max_grid) {
            return Err(Error::Limit {
                what: format!(
                    "op {}: grid {grid:?} exceeds the adapter's {} workgroups a dimension",
                    self.op, self.caps.max_grid
                ),
                hint: "use a smaller batch".into(),
            });
        }
        // An empty grid would be legal, but it is always the sign of an empty tensor.
        if grid.contains(&0) {
            return wrong(format!("an empty grid {grid:?}"), "at least one workgroup".into());
        }
        let half = self.element == DType::F16 && kernel.has_half();
        if half && !self.caps.f16 {
            return wrong("tensors of 16-bit floats".into(), "an adapter whose shaders have them".into());
        }
        self.dispatches.push(Dispatch {
            kernel,
            half,
            constants: constants.to_vec(),
            params: bytemuck::bytes_of(params).to_vec(),
            bindings: bindings.to_vec(),
            grid,
        });
        Ok(())
    }
}
