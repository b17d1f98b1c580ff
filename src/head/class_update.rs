//! The prototypes' step of gradient descent, tile by tile, right after each tile's gradient: it is never stored whole.
//!
//! For the cosines `t_j = x . n(w_j)` of [`class_sweep`](super::class_sweep), with `d_ij` the gradient of the loss of the
//! step with respect to `t_j` of sample `i`:
//!
//! `g_j = sum over i of d_ij x_i`, and through the normalisation `grad_j = (g_j - n_j (n_j . g_j)) / |w_j|` with
//! `n_j = w_j / |w_j|` (`g_j / eps` where `|w_j| <= eps`).
//!
//! Then PyTorch's rule, as in the runtime's op `sgd`: `v = momentum v + scale grad + weight_decay w`, `w = w - lr v`.
//! A scale of 0 leaves everything as it is. Where classes are sampled, the rows of those that take part are read and written, and no others: neither momentum
//! nor decay touches them.

use std::sync::Arc;

use epl_runtime::case::{Case, OpEntry};
use epl_runtime::host::Array;
use epl_runtime::kernel::{Kernel, Needs, ParamBlock, read, write};
use epl_runtime::op::{Bound, Cost, Lowering, Op, Operand, Record, TensorId};
use epl_runtime::ops::grad_norm;
use epl_runtime::ops::matmul::{MatMul, Product};
use epl_runtime::ops::sgd::Sgd;
use epl_runtime::{Error, Result, TensorDesc};

use super::class_sweep::{ClassLoss, check_classes, check_operands};
use super::class_update_cases;
use super::rows::{check_finite, label};
use super::tiles::{self, Cosines, Operands, PROTOTYPE_EPSILON, Tile, Walk, row_workgroup};
use super::uniface_loss::UniFaceLossGrad;

epl_runtime::param_block! {
    /// Parameters of `class_update_margin.wgsl`.
    pub struct MarginGradParams {
        /// Samples.
        rows: u32,
        /// First class of the tile.
        first: u32,
        /// Classes of the tile.
        classes: u32,
        /// Scale of the cosines.
        scale: f32,
        /// Gradient of the loss of the step with respect to that of a row.
        upstream: f32,
    }
}

epl_runtime::param_block! {
    /// Parameters of `class_update_uniface.wgsl`.
    pub struct UniFaceGradParams {
        /// Samples.
        rows: u32,
        /// First class of the tile.
        first: u32,
        /// Classes of the tile.
        classes: u32,
        /// Classes that take part.
        all: u32,
        /// Scale of the cosines.
        scale: f32,
        /// Factor of the target's cosine, `1 - k`.
        keep: f32,
        /// The margin.
        margin: f32,
        /// Gradient of the loss of the step with respect to that of a row.
        upstream: f32,
    }
}

epl_runtime::param_block! {
    /// Parameters of `class_update_sgd.wgsl`.
    pub struct RowSgdParams {
        /// Classes of the tile.
        rows: u32,
        /// The first one's place among all that take part.
        first: u32,
        /// Vectors of four elements of a prototype.
        dim: u32,
        /// First class of the range that is bound.
        range_first: u32,
        /// Classes of that range.
        range_rows: u32,
        /// 1 where the classes that take part are listed.
        sampled: u32,
        /// The first workgroup's place among the partial sums.
        partial_first: u32,
        /// 0 where only the norm is wanted.
        applied: u32,
        /// The least norm by which a prototype is divided.
        eps: f32,
        /// Factor of the velocity.
        momentum: f32,
        /// Factor of the weight that is added to the gradient.
        weight_decay: f32,
        /// 1: the gradient is multiplied by the scale.
        scaled: u32,
    }
}

static MARGIN_GRAD: Kernel = Kernel {
    shader: "class_update_margin",
    entry: "main",
    params: MarginGradParams::FIELDS,
    bindings: &[read("inverse"), read("labels"), read("state"), write("tile")],
    constants: &["WORKGROUP"],
    needs: Needs::Nothing,
};

static UNIFACE_GRAD: Kernel = Kernel {
    shader: "class_update_uniface",
    entry: "main",
    params: UniFaceGradParams::FIELDS,
    bindings: &[read("inverse"), read("labels"), read("bias"), write("tile")],
    constants: &["WORKGROUP"],
    needs: Needs::Nothing,
};

static ROW_SGD: Kernel = Kernel {
    shader: "class_update_sgd",
    entry: "main",
    params: RowSgdParams::FIELDS,
    bindings: &[
        read("grad"),
        read("classes"),
        read("lr"),
        read("scale"),
        write("weight"),
        write("velocity"),
        write("partial"),
    ],
    constants: &["WORKGROUP"],
    needs: Needs::Nothing,
};

const KERNELS: &[&Kernel] =
    &tiles::kernels::<4, 12>([&MARGIN_GRAD, &UNIFACE_GRAD, &ROW_SGD, &grad_norm::FINISH]);

/// The registry's entry for [`ClassUpdate`].
pub const ENTRY: OpEntry = OpEntry { name: "class_update", cases, kernels: KERNELS };
/// The registry's entry for [`ClassGradNorm`].
pub const NORM_ENTRY: OpEntry = OpEntry { name: "class_grad_norm", cases: norm_cases, kernels: KERNELS };

/// Invocations of an elementwise kernel.
const WORKGROUP: usize = 256;

/// Workgroups that share the rows of a tile in the last kernel, at most; each leaves one sum of squares.
const SGD_GROUPS: usize = 4096;

/// The tensors that a step of the prototypes reads and writes.
#[derive(Debug, Clone, Copy)]
pub struct UpdateOperands {
    /// The prototypes `[C, D]`, persistent.
    pub weight: TensorId,
    /// Their velocity `[C, D]`, persistent.
    pub velocity: TensorId,
    /// The normalised embeddings `[B, D]`.
    pub x: TensorId,
    /// Labels u32 `[B]`; places in `classes` where these are sampled.
    pub labels: TensorId,
    /// Of a softmax what [`class_sweep`](super::class_sweep::class_sweep) has left, `[B, 4]`; UniFace's bias `[1]`.
    pub context: TensorId,
    /// The learning rate `[1]`.
    pub lr: TensorId,
    /// The classes that take part, u32 `[S]`, ascending; `None` where all do.
    pub classes: Option<TensorId>,
}

/// The op `class_update`: `weight, velocity, x, labels, context, lr`, then `classes` where they are sampled and perhaps
/// `scale [1]`, a factor of the gradient -> `norm [1]`, the L2 norm of the gradient before that factor.
#[derive(Debug, Clone, Copy)]
pub struct ClassUpdate {
    /// The loss.
    pub loss: ClassLoss,
    /// Gradient of the loss of the step with respect to that of a row: 1/B, or 1/2B with two branches.
    pub upstream: f32,
    /// Momentum and weight decay.
    pub rule: Sgd,
    /// Whether only the classes of a list take part.
    pub sampled: bool,
    /// Classes of a tile; by default what suits the adapter.
    pub tile: Option<usize>,
}

/// The op `class_grad_norm`: the norm that [`ClassUpdate`] would give, and no update. For clipping, which has to know the
/// norm of the whole gradient before any of it is applied. It shares the kernels of the update, which bind prototypes and
/// velocity for writing, and writes neither.
#[derive(Debug, Clone, Copy)]
pub struct ClassGradNorm(pub ClassUpdate);

/// Records [`ClassUpdate`] and returns the norm `[1]`.
pub fn class_update(
    record: &mut dyn Record,
    op: ClassUpdate,
    operands: UpdateOperands,
    scale: Option<TensorId>,
) -> Result<TensorId> {
    one_output(record, Arc::new(op), &operands, scale)
}

/// Records [`ClassGradNorm`] and returns the norm `[1]`.
pub fn class_grad_norm(
    record: &mut dyn Record,
    op: ClassUpdate,
    operands: UpdateOperands,
) -> Result<TensorId> {
    one_output(record, Arc::new(ClassGradNorm(op)), &operands, None)
}

fn one_output(
    record: &mut dyn Record,
    op: Arc<dyn Op>,
    operands: &UpdateOperands,
    scale: Option<TensorId>,
) -> Result<TensorId> {
    let name = op.name();
    let UpdateOperands { weight, velocity, x, labels, context, lr, classes } = *operands;
    let mut inputs = vec![weight, velocity, x, labels, context, lr];
    inputs.extend(classes);
    inputs.extend(scale);
    match record.push(op, &inputs)?.as_slice() {
        [norm] => Ok(*norm),
        outputs => Err(Error::shape(name, format!("{} outputs", outputs.len()), "one output")),
    }
}

/// Indices of the inputs.
const WEIGHT: usize = 0;
const VELOCITY: usize = 1;
const X: usize = 2;
pub(super) const LABELS: usize = 3;
const CONTEXT: usize = 4;
const LR: usize = 5;

impl ClassUpdate {
    fn classes_input(&self) -> Option<usize> {
        self.sampled.then_some(LR + 1)
    }

    fn scale_input(&self, inputs: usize) -> Option<usize> {
        let place = LR + 1 + usize::from(self.sampled);
        (inputs > place).then_some(place)
    }

    fn check(&self, op: &'static str, inputs: &[TensorDesc], most: usize) -> Result<Vec<TensorDesc>> {
        let wrong = |found: String, expected: &str| Err(Error::shape(op, found, expected));
        self.loss.check(op)?;
        check_finite(op, "upstream", self.upstream)?;
        let [weight, velocity, x, labels, context, lr, rest @ ..] = inputs else {
            return wrong(format!("{} inputs", inputs.len()), "weight, velocity, x, labels, context, lr");
        };
        let (rows, all, _) = check_operands(op, weight, x, labels)?;
        if velocity != weight {
            return wrong(format!("velocity {velocity}"), "the shape of the weight");
        }
        let expected = match self.loss {
            ClassLoss::Margin(_) => TensorDesc::f32([rows, 4]),
            ClassLoss::UniFace(_) => TensorDesc::f32([1]),
        };
        if *context != expected {
            return wrong(format!("context {context}"), &expected.to_string());
        }
        let scales = match (self.sampled, rest) {
            (false, scales) => scales,
            (true, [classes, scales @ ..]) => {
                check_classes(op, classes, all)?;
                scales
            }
            (true, []) => return wrong("no classes".into(), "the classes that take part"),
        };
        if scales.len() > most || scales.iter().chain([lr]).any(|scalar| *scalar != TensorDesc::f32([1])) {
            return wrong(format!("lr {lr}, {scales:?}"), "lr f32[1] and perhaps scale f32[1]");
        }
        Ok(vec![TensorDesc::f32([1])])
    }

    fn lower(&self, lowering: &mut Lowering<'_>, applied: bool) -> Result<()> {
        let operands = Operands { table: WEIGHT, x: X, classes: self.classes_input() };
        let walk = Walk::new(lowering, operands, self.tile)?;
        let longest = walk.tiles.iter().map(|tile| tile.rows).max().unwrap_or(1);
        let grad = lowering.workspace(4 * (longest * walk.dim) as u64);
        let scratch = walk.scratch_for(lowering, Self::product);
        let launches: Vec<(Tile, Vec<SgdLaunch>)> = self.launches(&walk);
        let groups: usize = launches.iter().flat_map(|(_, parts)| parts).map(|part| part.groups).sum();
        let partial = lowering.workspace(8 * groups as u64);
        let mut placed = 0;
        for (tile, parts) in &launches {
            walk.begin(lowering, tile)?;
            self.lower_grad(lowering, &walk, tile)?;
            let operands = [walk.products.into(), Operand::Input(X).into()];
            Self::product(&walk, tile).lower(lowering, operands, grad, scratch)?;
            for part in parts {
                self.lower_sgd(lowering, &walk, tile, part, [grad, partial], (placed, applied))?;
                placed += part.groups;
            }
        }
        grad_norm::lower_finish(lowering, &grad_norm::FINISH, partial, Operand::Output(0), groups)
    }

    /// `g [T, D] = d [B, T] transposed, times x [B, D]`.
    fn product(walk: &Walk, tile: &Tile) -> Product {
        let attributes = MatMul { transpose_a: true, ..MatMul::default() };
        Product { attributes, m: tile.rows, n: walk.dim, k: walk.samples }
    }

    /// For each tile the ranges of the prototypes that may have rows of it.
    fn launches(&self, walk: &Walk) -> Vec<(Tile, Vec<SgdLaunch>)> {
        let of_tile = |tile: &Tile| {
            let overlaps = |first: usize, rows: usize| {
                self.sampled || (first < tile.first + tile.rows && tile.first < first + rows)
            };
            let groups = tile.rows.min(SGD_GROUPS);
            walk.ranges
                .iter()
                .filter(|range| overlaps(range.first, range.rows))
                .map(|range| SgdLaunch {
                    first: range.first,
                    rows: range.rows,
                    bytes: (range.offset, range.bytes),
                    groups,
                })
                .collect()
        };
        walk.tiles.iter().map(|tile| (*tile, of_tile(tile))).collect()
    }

    /// Turns the tile's products into the gradient of its cosines, in place.
    fn lower_grad(&self, lowering: &mut Lowering<'_>, walk: &Walk, tile: &Tile) -> Result<()> {
        let rows = lowering.size(walk.samples)?;
        let (first, classes) = (lowering.size(tile.first)?, lowering.size(tile.rows)?);
        let operands = [walk.inverse, Operand::Input(LABELS), Operand::Input(CONTEXT), walk.products];
        let constants = [("WORKGROUP", WORKGROUP as f64)];
        let grid = lowering.fold((walk.samples * tile.rows).div_ceil(WORKGROUP))?;
        match &self.loss {
            ClassLoss::Margin(loss) => {
                let params =
                    MarginGradParams { rows, first, classes, scale: loss.scale, upstream: self.upstream };
                lowering.dispatch(&MARGIN_GRAD, &constants, &params, &operands, grid)
            }
            ClassLoss::UniFace(loss) => {
                let params = UniFaceGradParams {
                    rows,
                    first,
                    classes,
                    all: lowering.size(walk.classes)?,
                    scale: loss.scale,
                    keep: loss.keep(),
                    margin: loss.margin,
                    upstream: self.upstream,
                };
                lowering.dispatch(&UNIFACE_GRAD, &constants, &params, &operands, grid)
            }
        }
    }

    fn lower_sgd(
        &self,
        lowering: &mut Lowering<'_>,
        walk: &Walk,
        tile: &Tile,
        part: &SgdLaunch,
        [grad, partial]: [Operand; 2],
        (placed, applied): (usize, bool),
    ) -> Result<()> {
        let scale = self.scale_input(lowering.inputs());
        let params = RowSgdParams {
            rows: lowering.size(tile.rows)?,
            first: lowering.size(tile.first)?,
            dim: lowering.size(walk.dim / 4)?,
            range_first: lowering.size(part.first)?,
            range_rows: lowering.size(part.rows)?,
            sampled: u32::from(self.sampled),
            partial_first: lowering.size(placed)?,
            applied: u32::from(applied),
            eps: PROTOTYPE_EPSILON,
            momentum: self.rule.momentum,
            weight_decay: self.rule.weight_decay,
            scaled: u32::from(scale.is_some()),
        };
        // A kernel has one set of bindings: what is not there is replaced by something that is not read for it.
        let or_labels = |index: Option<usize>| Bound::from(Operand::Input(index.unwrap_or(LABELS)));
        let lr = Operand::Input(LR);
        let range = |index| Bound::part(Operand::Input(index), part.bytes.0, part.bytes.1);
        let bindings = [
            grad.into(),
            or_labels(self.classes_input()),
            lr.into(),
            scale.map_or(lr, Operand::Input).into(),
            range(WEIGHT),
            range(VELOCITY),
            partial.into(),
        ];
        let constants = [("WORKGROUP", row_workgroup(lowering.caps(), 64.0))];
        let grid = [lowering.size(part.groups)?, 1, 1];
        lowering.dispatch_ranges(&ROW_SGD, &constants, &params, &bindings, grid)
    }

    /// The norm of the gradient, then the new weight and velocity, in f64.
    fn step(&self, inputs: &[Array]) -> [Array; 3] {
        let (x, labels, context) = (&inputs[X], &inputs[LABELS], &inputs[CONTEXT]);
        let (mut weight, mut velocity) = (inputs[WEIGHT].clone(), inputs[VELOCITY].clone());
        let cosines = Cosines::new(&weight, x, self.classes_input().map(|index| &inputs[index]));
        let (rows, classes, dim) = (x.shape.dim(0), cosines.classes.len(), x.shape.dim(1));
        let upstream = f64::from(self.upstream);
        let dcosines = match &self.loss {
            ClassLoss::Margin(loss) => Array::from_fn([rows, classes], |index| {
                let (i, j) = (index / classes, index % classes);
                let [peak, log_sum, push, pull] = std::array::from_fn(|what| context.data[4 * i + what]);
                if label(labels, i, classes) == Some(j) {
                    return upstream * pull;
                }
                let exponent = f64::from(loss.scale) * (cosines.values.data[index] - peak) - log_sum;
                upstream * push * exponent.exp()
            }),
            ClassLoss::UniFace(loss) => {
                let dloss = Array::from_fn([rows], |_| upstream);
                let operands = [cosines.values.clone(), labels.clone(), context.clone(), dloss];
                UniFaceLossGrad(*loss).reference(&operands).remove(0)
            }
        };
        let scale = self.scale_input(inputs.len()).map_or(1.0, |index| inputs[index].item());
        let lr = inputs[LR].item();
        let (momentum, decay) = (f64::from(self.rule.momentum), f64::from(self.rule.weight_decay));
        let mut squares = 0.0;
        for (j, &class) in cosines.classes.iter().enumerate() {
            let g: Vec<f64> = (0..dim)
                .map(|d| (0..rows).map(|i| dcosines.data[i * classes + j] * x.data[i * dim + d]).sum())
                .collect();
            let unit = &cosines.unit.data[j * dim..(j + 1) * dim];
            let (norm, normal) = cosines.norms[j];
            let along: f64 = if normal { unit.iter().zip(&g).map(|(n, g)| n * g).sum() } else { 0.0 };
            for (d, (n, g)) in unit.iter().zip(&g).enumerate() {
                let grad = (g - n * along) / norm;
                squares += grad * grad;
                let at = class * dim + d;
                if scale != 0.0 {
                    velocity.data[at] = momentum * velocity.data[at] + scale * grad + decay * weight.data[at];
                    weight.data[at] -= lr * velocity.data[at];
                }
            }
        }
        [Array::new([1], vec![squares.sqrt()]), weight, velocity]
    }

    fn cost(&self, inputs: &[TensorDesc]) -> Cost {
        let classes = self.classes_input().and_then(|index| inputs.get(index)).or(inputs.first());
        let classes = classes.map_or(0, |desc| desc.shape.dim(0)) as f64;
        let (samples, dim) =
            inputs.get(X).map_or((0.0, 0.0), |x| (x.shape.dim(0) as f64, x.shape.dim(1) as f64));
        // Two products of B x C x D; prototypes and velocity are read and written.
        Cost { flops: 4.0 * samples * classes * dim, bytes: 16.0 * classes * dim + 4.0 * samples * dim }
    }
}

/// A launch of the last kernel: the classes of a range, its bytes, and workgroups.
#[derive(Debug, Clone, Copy)]
struct SgdLaunch {
    first: usize,
    rows: usize,
    bytes: (u64, u64),
    groups: usize,
}

impl Op for ClassUpdate {
    fn name(&self) -> &'static str {
        "class_update"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        self.check(self.name(), inputs, 1)
    }

    fn updates(&self) -> &'static [usize] {
        &[WEIGHT, VELOCITY]
    }

    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        Self::lower(self, lowering, true)
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        self.step(inputs).to_vec()
    }

    fn cost(&self, inputs: &[TensorDesc], _outputs: &[TensorDesc]) -> Cost {
        Self::cost(self, inputs)
    }
}

impl Op for ClassGradNorm {
    fn name(&self) -> &'static str {
        "class_grad_norm"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        self.0.check(self.name(), inputs, 0)
    }

    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        self.0.lower(lowering, false)
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        self.0.step(inputs).into_iter().take(1).collect()
    }

    fn cost(&self, inputs: &[TensorDesc], _outputs: &[TensorDesc]) -> Cost {
        self.0.cost(inputs)
    }
}

fn cases() -> Vec<Case> {
    class_update_cases::cases()
}

fn norm_cases() -> Vec<Case> {
    class_update_cases::norm_cases()
}
