//! The cosine of each sample and the prototype of its own class: `cosine_i = x_i . n(w_{y_i})`, for logs.
//!
//! `table [C, D], x [B, D], labels u32 [B] -> [B]`, with `x` of unit length and `n(v) = v / max(|v|, 1e-12)`. Only the rows of
//! the batch's classes are read. A label that is no class gives 0. There is no gradient: the losses find their target
//! themselves.

use epl_runtime::case::{Case, OpEntry, constant, integers, normal, words};
use epl_runtime::host::Array;
use epl_runtime::kernel::{Kernel, Needs, ParamBlock, read, write};
use epl_runtime::op::{Bound, Cost, Lowering, Op, Operand, Record, TensorId, push_one};
use epl_runtime::{DType, Error, Result, TensorDesc};

use super::rows::{check_labels, label, unit_rows};
use super::tiles::PROTOTYPE_EPSILON;

epl_runtime::param_block! {
    /// Parameters of `target_cosine.wgsl`.
    pub struct TargetCosineParams {
        /// Samples.
        rows: u32,
        /// Elements of an embedding.
        dim: u32,
        /// First class of the table's range that is bound.
        first: u32,
        /// Classes of that range.
        classes: u32,
        /// 1 for the first range.
        initial: u32,
        /// The least norm by which a prototype is divided.
        eps: f32,
    }
}

static TARGET_COSINE: Kernel = Kernel {
    shader: "target_cosine",
    entry: "main",
    params: TargetCosineParams::FIELDS,
    bindings: &[read("table"), read("x"), read("labels"), write("cosine")],
    constants: &["WORKGROUP"],
    needs: Needs::Nothing,
};

/// The registry's entry.
pub const ENTRY: OpEntry = OpEntry { name: "target_cosine", cases, kernels: &[&TARGET_COSINE] };

/// Invocations that share a sample.
const WORKGROUP: f64 = 64.0;

/// Records the cosine of each row of `x` `[B, D]` and row `labels[i]` of `table` `[C, D]` -> `[B]`.
pub fn target_cosine(
    record: &mut dyn Record,
    table: TensorId,
    x: TensorId,
    labels: TensorId,
) -> Result<TensorId> {
    push_one(record, TargetCosine, &[table, x, labels])
}

/// The op `target_cosine`.
#[derive(Debug, Clone, Copy)]
pub struct TargetCosine;

impl Op for TargetCosine {
    fn name(&self) -> &'static str {
        "target_cosine"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let [table, x, labels] = inputs else {
            return Err(Error::shape(self.name(), format!("{} inputs", inputs.len()), "table, x, labels"));
        };
        match (table.shape.dims(), x.shape.dims()) {
            (&[_, dim], &[rows, found])
                if found == dim && table.dtype == DType::F32 && x.dtype == DType::F32 =>
            {
                check_labels(self.name(), labels, rows)?;
                Ok(vec![TensorDesc::f32([rows])])
            }
            _ => {
                let found = format!("table {table}, x {x}");
                Err(Error::shape(self.name(), found, "table f32[C, D], x f32[B, D]"))
            }
        }
    }

    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        let (table, x) = (lowering.input(0)?, &lowering.input(1)?.shape);
        lowering.size(table.shape.dim(0))?;
        lowering.size(x.elements())?;
        let grid = lowering.fold(x.dim(0))?;
        for (index, range) in lowering.caps().row_ranges(table).into_iter().enumerate() {
            lowering.size(range.rows * x.dim(1))?;
            let params = TargetCosineParams {
                rows: lowering.size(x.dim(0))?,
                dim: lowering.size(x.dim(1))?,
                first: lowering.size(range.first)?,
                classes: lowering.size(range.rows)?,
                initial: u32::from(index == 0),
                eps: PROTOTYPE_EPSILON,
            };
            let bindings = [
                Bound::part(Operand::Input(0), range.offset, range.bytes),
                Operand::Input(1).into(),
                Operand::Input(2).into(),
                Operand::Output(0).into(),
            ];
            let constants = [("WORKGROUP", WORKGROUP)];
            lowering.dispatch_ranges(&TARGET_COSINE, &constants, &params, &bindings, grid)?;
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let (table, x, labels) = (&inputs[0], &inputs[1], &inputs[2]);
        let (classes, dim) = (table.shape.dim(0), table.shape.dim(1));
        vec![Array::from_fn([x.shape.dim(0)], |i| {
            let Some(y) = label(labels, i, classes) else { return 0.0 };
            let prototype = &table.data[y * dim..(y + 1) * dim];
            let norm = prototype.iter().map(|v| v * v).sum::<f64>().sqrt();
            let product: f64 = x.data[i * dim..(i + 1) * dim].iter().zip(prototype).map(|(x, w)| x * w).sum();
            product / norm.max(f64::from(PROTOTYPE_EPSILON))
        })]
    }

    fn cost(&self, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Cost {
        let x = inputs.get(1).map_or(0, |x| x.shape.elements()) as f64;
        // Each sample and the row of its class are read.
        let rows: f64 = outputs.iter().map(|cosine| cosine.shape.elements() as f64).sum();
        Cost { flops: 4.0 * x, bytes: 8.0 * x + 8.0 * rows }
    }
}

fn cases() -> Vec<Case> {
    let case = |label: &str, [rows, classes, dim]: [usize; 3]| {
        let inputs = vec![
            normal([classes, dim], 1.0, 1),
            unit_rows(rows, dim, 2),
            integers([rows], classes as u32, 3),
        ];
        Case::new(label, TargetCosine, inputs)
    };
    let with = |label: &str, sizes, change: fn(&mut Case)| {
        let mut case = case(label, sizes);
        change(&mut case);
        case
    };
    vec![
        case("odd sizes", [13, 37, 19]),
        case("one element", [1, 1, 1]),
        case("longer than a workgroup", [131, 5, 131]),
        with("labels that are no class", [4, 5, 7], |case| case.inputs[2] = words(&[5, 0, u32::MAX, 4])),
        with("nothing but zeros", [2, 3, 5], |case| case.inputs[0] = constant([3, 5], 0.0)),
        with("huge", [2, 3, 5], |case| case.inputs[0] = normal([3, 5], 1e30, 1)),
        with("tiny", [2, 3, 5], |case| case.inputs[0] = normal([3, 5], 1e-30, 1)),
        case("perf", [512, 10_572, 512]).perf(),
    ]
}
