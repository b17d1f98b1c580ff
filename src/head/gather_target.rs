//! The cosine of each row's own class: `y_i = cosines[i, labels[i]]`, `[B, C], [B] -> [B]`, for logs.
//!
//! A row whose label is no class gives 0. There is no gradient: the losses find their target themselves.

use epl_runtime::case::{Case, OpEntry, integers, uniform, words};
use epl_runtime::host::Array;
use epl_runtime::kernel::{Kernel, ParamBlock, read, write};
use epl_runtime::op::{Cost, Lowering, Op, Operand, Record, TensorId, push_one};
use epl_runtime::{Error, Result, TensorDesc};

use super::rows::{Rows, label};

epl_runtime::param_block! {
    /// Parameters of `gather_target.wgsl`.
    pub struct GatherTargetParams {
        /// Samples.
        rows: u32,
        /// Classes.
        classes: u32,
    }
}

static GATHER_TARGET: Kernel = Kernel {
    shader: "gather_target",
    entry: "main",
    params: GatherTargetParams::FIELDS,
    bindings: &[read("cosines"), read("labels"), write("y")],
    constants: &["WORKGROUP"],
    subgroups: false,
};

/// The registry's entry.
pub const ENTRY: OpEntry = OpEntry { name: "gather_target", cases, kernels: &[&GATHER_TARGET] };

const WORKGROUP: usize = 64;

/// Records `cosines[i, labels[i]]`: `cosines` `[B, C]`, `labels` u32 `[B]` -> `[B]`.
pub fn gather_target(record: &mut dyn Record, cosines: TensorId, labels: TensorId) -> Result<TensorId> {
    push_one(record, GatherTarget, &[cosines, labels])
}

/// The op `gather_target`.
#[derive(Debug, Clone, Copy)]
pub struct GatherTarget;

impl Op for GatherTarget {
    fn name(&self) -> &'static str {
        "gather_target"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let [cosines, labels] = inputs else {
            return Err(Error::shape(self.name(), format!("{} inputs", inputs.len()), "cosines, labels"));
        };
        let Rows { rows, .. } = Rows::check(self.name(), cosines, labels)?;
        Ok(vec![TensorDesc::f32([rows])])
    }

    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        let Rows { rows, classes } = Rows::of(lowering)?;
        let params = GatherTargetParams { rows: lowering.size(rows)?, classes: lowering.size(classes)? };
        let grid = lowering.fold(rows.div_ceil(WORKGROUP))?;
        let operands = [Operand::Input(0), Operand::Input(1), Operand::Output(0)];
        lowering.dispatch(&GATHER_TARGET, &[("WORKGROUP", WORKGROUP as f64)], &params, &operands, grid)
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let (cosines, labels) = (&inputs[0], &inputs[1]);
        let classes = cosines.shape.last();
        vec![Array::from_fn(labels.shape.clone(), |i| match label(labels, i, classes) {
            Some(y) => cosines.data[i * classes + y],
            None => 0.0,
        })]
    }

    fn cost(&self, _inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Cost {
        // A cosine and a label are read and a cosine is written a row; the other cosines are not touched.
        Cost { flops: 0.0, bytes: 3.0 * outputs.iter().map(|y| y.bytes() as f64).sum::<f64>() }
    }
}

fn cases() -> Vec<Case> {
    vec![
        Case::new("odd sizes", GatherTarget, vec![uniform([67, 13], -1.0, 1.0, 1), integers([67], 13, 2)]),
        Case::new("one of one", GatherTarget, vec![uniform([1, 1], -1.0, 1.0, 1), words(&[0])]),
        Case::new(
            "labels that are no class",
            GatherTarget,
            vec![uniform([4, 3], -1.0, 1.0, 1), words(&[2, 3, u32::MAX, 0])],
        ),
        Case::new(
            "perf",
            GatherTarget,
            vec![uniform([128, 10_572], -1.0, 1.0, 1), integers([128], 10_572, 2)],
        )
        .perf(),
    ]
}
