//! The update of the empirical prototypes (Fan et al., arXiv 2405.12447), in place and without a gradient.
//!
//! For sample `i` of class `y`, with `x_i` its normalised embedding and `c = x_i . Q[y]`:
//!
//! `Q[y] <- n(a Q[y] + (1 - a) x_i)`, `n(v) = v / max(|v|, 1e-12)`, and the part that is kept
//! `a = c / (1 + |c|)` (softsign), `sigmoid(c - 1)`, `sigmoid(c)` (the paper's form) or 0 (direct).
//!
//! `Q` is `[C, D]`, `x` `[B, D]`, labels `[B]`. Several samples of a class: [`Duplicates`]. A sample whose label is no
//! class changes nothing.

use epl_runtime::case::{Case, Input, OpEntry, constant, integers, matrix, normal, words};
use epl_runtime::host::Array;
use epl_runtime::kernel::{Kernel, Needs, ParamBlock, read, write};
use epl_runtime::op::{Bound, Cost, Lowering, Op, Operand, Record, TensorId, push_many};
use epl_runtime::{DType, Error, Result, TensorDesc};

use super::rows::{check_labels, label, sigmoid, unit_rows};
use super::settings::{Duplicates, EplUpdate};

epl_runtime::param_block! {
    /// Parameters of `epl_update.wgsl`.
    pub struct EplUpdateParams {
        /// Samples.
        rows: u32,
        /// First class of the range of the prototypes that is bound.
        first: u32,
        /// Classes of that range.
        classes: u32,
        /// Elements of an embedding.
        dim: u32,
        /// How much is kept: 0 softsign, 1 sigmoid, 2 sigmoid of the paper, 3 nothing.
        rule: u32,
        /// 1 where every sample of a class counts, 0 where only the last does.
        sequential: u32,
    }
}

static EPL_UPDATE: Kernel = Kernel {
    shader: "epl_update",
    entry: "main",
    params: EplUpdateParams::FIELDS,
    bindings: &[read("x"), read("labels"), write("queue")],
    constants: &["WORKGROUP"],
    needs: Needs::Nothing,
};

/// The registry's entry.
pub const ENTRY: OpEntry = OpEntry { name: "epl_update", cases, kernels: &[&EPL_UPDATE] };

/// Invocations that share a sample.
const WORKGROUP: f64 = 128.0;

/// The least norm by which the new prototype is divided.
const NORM_EPSILON: f64 = 1e-12;

/// Records the update of `queue` `[C, D]` (persistent) by `x` `[B, D]`, normalised embeddings, of the classes `labels`
/// u32 `[B]`. Ops recorded later see the updated prototypes.
pub fn epl_update(
    record: &mut dyn Record,
    op: UpdatePrototypes,
    queue: TensorId,
    x: TensorId,
    labels: TensorId,
) -> Result<()> {
    let [] = push_many(record, op, &[queue, x, labels])?;
    Ok(())
}

/// The op `epl_update`.
#[derive(Debug, Clone, Copy)]
pub struct UpdatePrototypes {
    /// How much of the old prototype is kept.
    pub update: EplUpdate,
    /// What several samples of one class do.
    pub duplicates: Duplicates,
}

impl UpdatePrototypes {
    /// The part of the old prototype that is kept, given its product with the sample.
    fn kept(&self, product: f64) -> f64 {
        match self.update {
            EplUpdate::Softsign => product / (1.0 + product.abs()),
            EplUpdate::Sigmoid => sigmoid(product - 1.0),
            EplUpdate::SigmoidPaper => sigmoid(product),
            EplUpdate::Direct => 0.0,
        }
    }
}

impl Op for UpdatePrototypes {
    fn name(&self) -> &'static str {
        "epl_update"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let [queue, x, labels] = inputs else {
            return Err(Error::shape(self.name(), format!("{} inputs", inputs.len()), "queue, x, labels"));
        };
        match (queue.shape.dims(), x.shape.dims()) {
            (&[_, dim], &[rows, found])
                if found == dim && queue.dtype == DType::F32 && x.dtype == DType::F32 =>
            {
                check_labels(self.name(), labels, rows)?;
            }
            _ => {
                let found = format!("queue {queue}, x {x}");
                return Err(Error::shape(self.name(), found, "queue f32[C, D], x f32[B, D]"));
            }
        }
        Ok(Vec::new())
    }

    fn updates(&self) -> &'static [usize] {
        &[0]
    }

    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        let (queue, x) = (lowering.input(0)?, &lowering.input(1)?.shape);
        lowering.size(queue.shape.dim(0))?;
        lowering.size(x.elements())?;
        let grid = lowering.fold(x.dim(0))?;
        // Prototypes beyond the binding limit go in ranges: a launch does the samples whose class is in its own.
        for range in lowering.caps().row_ranges(queue) {
            lowering.size(range.rows * queue.shape.dim(1))?;
            let params = EplUpdateParams {
                rows: lowering.size(x.dim(0))?,
                first: lowering.size(range.first)?,
                classes: lowering.size(range.rows)?,
                dim: lowering.size(queue.shape.dim(1))?,
                rule: match self.update {
                    EplUpdate::Softsign => 0,
                    EplUpdate::Sigmoid => 1,
                    EplUpdate::SigmoidPaper => 2,
                    EplUpdate::Direct => 3,
                },
                sequential: u32::from(self.duplicates == Duplicates::Sequential),
            };
            let bindings = [
                Operand::Input(1).into(),
                Operand::Input(2).into(),
                Bound::part(Operand::Input(0), range.offset, range.bytes),
            ];
            let constants = [("WORKGROUP", WORKGROUP)];
            lowering.dispatch_ranges(&EPL_UPDATE, &constants, &params, &bindings, grid)?;
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let (old, x, labels) = (&inputs[0], &inputs[1], &inputs[2]);
        let (classes, dim) = (old.shape.dim(0), old.shape.dim(1));
        let mut queue = old.clone();
        for i in 0..labels.data.len() {
            let Some(y) = label(labels, i, classes) else { continue };
            let sample = &x.data[i * dim..(i + 1) * dim];
            let from = match self.duplicates {
                // Every sample starts from the old prototype, so that the last of its class overwrites the others.
                Duplicates::Last => &old.data[y * dim..(y + 1) * dim],
                Duplicates::Sequential => &queue.data[y * dim..(y + 1) * dim],
            };
            let product: f64 = sample.iter().zip(from).map(|(x, q)| x * q).sum();
            let kept = self.kept(product);
            let mixed: Vec<f64> = sample.iter().zip(from).map(|(x, q)| kept * q + (1.0 - kept) * x).collect();
            let square = mixed.iter().map(|v| v * v).sum::<f64>();
            if !square.is_finite() {
                continue;
            }
            let norm = square.sqrt().max(NORM_EPSILON);
            for (d, v) in mixed.iter().enumerate() {
                queue.data[y * dim + d] = v / norm;
            }
        }
        vec![queue]
    }

    fn cost(&self, inputs: &[TensorDesc], _outputs: &[TensorDesc]) -> Cost {
        let (elements, rows) = inputs.get(1).map_or((0, 0), |x| (x.shape.elements(), x.shape.dim(0)));
        // A sample and its label are read, and a prototype is read and written.
        Cost { flops: 8.0 * elements as f64, bytes: (12 * elements + 4 * rows) as f64 }
    }
}

/// Four samples, of which the second and the third overflowed.
fn spoiled() -> Input {
    let mut rows = vec![0.25; 4 * 7];
    (rows[9], rows[16]) = (f32::INFINITY, f32::NAN);
    matrix([4, 7], &rows)
}

fn cases() -> Vec<Case> {
    let op = |update, duplicates| UpdatePrototypes { update, duplicates };
    let (last, sequential) = (Duplicates::Last, Duplicates::Sequential);
    let mut cases = Vec::new();
    for update in [EplUpdate::Softsign, EplUpdate::Sigmoid, EplUpdate::SigmoidPaper, EplUpdate::Direct] {
        for duplicates in [last, sequential] {
            cases.push(Case::new(
                format!("{update:?}, {duplicates:?}"),
                op(update, duplicates),
                vec![normal([11, 67], 1.0, 1), unit_rows(23, 67, 2), integers([23], 11, 3)],
            ));
        }
    }
    cases.extend([
        Case::new(
            "one class in a batch longer than a workgroup",
            op(EplUpdate::Softsign, sequential),
            vec![normal([2, 5], 1.0, 1), unit_rows(131, 5, 2), integers([131], 1, 3)],
        ),
        Case::new(
            "the last of many",
            op(EplUpdate::Softsign, last),
            vec![normal([3, 5], 1.0, 1), unit_rows(299, 5, 2), integers([299], 3, 3)],
        ),
        Case::new(
            "labels that are no class",
            op(EplUpdate::Softsign, sequential),
            vec![normal([3, 7], 1.0, 1), unit_rows(4, 7, 2), words(&[3, u32::MAX, 1, 4])],
        ),
        Case::new(
            "samples that are not finite",
            op(EplUpdate::Softsign, sequential),
            vec![normal([3, 7], 1.0, 1), spoiled(), words(&[1, 0, 1, 2])],
        ),
        Case::new(
            "one element",
            op(EplUpdate::Softsign, last),
            vec![normal([1, 1], 1.0, 1), unit_rows(1, 1, 2), words(&[0])],
        ),
        Case::new(
            "nothing but zeros",
            op(EplUpdate::Sigmoid, last),
            vec![constant([2, 9], 0.0), constant([1, 9], 0.0), words(&[1])],
        ),
        Case::new(
            "perf",
            op(EplUpdate::Softsign, last),
            vec![normal([10_572, 512], 1.0, 1), unit_rows(512, 512, 2), integers([512], 10_572, 3)],
        )
        .perf(),
    ]);
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Class 0 starts at (0, 2), class 1 at (1, 0); the samples are along the first axis and both are of class 0.
    fn update(update: EplUpdate, duplicates: Duplicates, samples: &[f64]) -> Vec<f64> {
        let rows = samples.len() / 2;
        let inputs = [
            Array::new([2, 2], vec![0.0, 2.0, 1.0, 0.0]),
            Array::new([rows, 2], samples.to_vec()),
            Array::zeros([rows]),
        ];
        let queue = UpdatePrototypes { update, duplicates }.reference(&inputs).remove(0).data;
        assert_eq!(&queue[2..], [1.0, 0.0], "class 1 has no sample");
        queue[..2].to_vec()
    }

    fn near(found: &[f64], expected: [f64; 2]) {
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{found:?}, {expected:?}");
    }

    #[test]
    fn softsign_keeps_more_of_the_prototype_the_more_alike_the_sample_is() {
        near(&update(EplUpdate::Softsign, Duplicates::Last, &[1.0, 0.0]), [1.0, 0.0]);
        // c = 2 * 0.8 = 1.6, a = 1.6 / 2.6: a (0, 2) + (1 - a) (0.6, 0.8) = (0.6, 4.0) / 2.6.
        let norm = (0.6f64.powi(2) + 16.0).sqrt();
        near(&update(EplUpdate::Softsign, Duplicates::Last, &[0.6, 0.8]), [0.6 / norm, 4.0 / norm]);
    }

    #[test]
    fn softsign_subtracts_an_opposed_prototype() {
        // c = -2, a = -2/3: -2/3 (0, 2) + 5/3 (0, -1) = (0, -3).
        near(&update(EplUpdate::Softsign, Duplicates::Last, &[0.0, -1.0]), [0.0, -1.0]);
    }

    #[test]
    fn the_sigmoids_keep_what_their_names_say() {
        // c = 0: sigmoid(-1) of (0, 2) and sigmoid(1) of (1, 0); and one half of each.
        let a = 1.0 / (1.0 + 1f64.exp());
        let norm = (4.0 * a * a + (1.0 - a) * (1.0 - a)).sqrt();
        near(&update(EplUpdate::Sigmoid, Duplicates::Last, &[1.0, 0.0]), [(1.0 - a) / norm, 2.0 * a / norm]);
        let norm = 1.25f64.sqrt();
        near(&update(EplUpdate::SigmoidPaper, Duplicates::Last, &[1.0, 0.0]), [0.5 / norm, 1.0 / norm]);
    }

    #[test]
    fn the_last_of_two_samples_wins_or_both_are_applied() {
        let samples = [1.0, 0.0, 0.6, 0.8];
        let alone = update(EplUpdate::Softsign, Duplicates::Last, &[0.6, 0.8]);
        assert_eq!(update(EplUpdate::Softsign, Duplicates::Last, &samples), alone);
        // The first makes it (1, 0); then c = 0.6, a = 0.375: (0.375 + 0.375, 0.5), whose length is sqrt(0.8125).
        let norm = 0.8125f64.sqrt();
        near(&update(EplUpdate::Softsign, Duplicates::Sequential, &samples), [0.75 / norm, 0.5 / norm]);
        near(&update(EplUpdate::Direct, Duplicates::Sequential, &samples), [0.6, 0.8]);
    }
}
