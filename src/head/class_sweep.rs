//! A head's loss and its gradient with respect to the embeddings, without a matrix of samples and classes: the classes
//! go by in tiles.
//!
//! With `t_j = x . n(w_j)`, the cosines of the normalised embedding `x` and the prototypes, the loss is that of
//! [`MarginLoss`] or [`UniFaceLoss`], whose formulas are there. `w` is `[C, D]`, `x` `[B, D]`, labels `[B]`.
//!
//! One pass gives both. For a softmax, with `p` the largest cosine so far and `S = sum of e^{s (t_j - p)}`, both brought
//! up to date with every tile (online softmax: Milakov and Gimelshein, arXiv 1805.02867), the sum of the gradient
//! `sum of e^{s (t_j - p)} n(w_j)` is kept beside them in the same way, as attention does with its values (Dao et al.,
//! arXiv 2205.14135). So no tile is looked at twice for it. A binary cross-entropy needs no maximum and is simply
//! summed.
//!
//! The prototypes' own gradient is never a tensor: see [`class_update`](super::class_update).

use epl_runtime::case::{Case, OpEntry};
use epl_runtime::host::Array;
use epl_runtime::kernel::{Kernel, Needs, ParamBlock, read, write};
use epl_runtime::op::{Bound, Cost, Gradient, Lowering, Op, Operand, Record, TensorId, push_many};
use epl_runtime::ops::matmul::{MatMul, Product};
use epl_runtime::ops::reshape::reshape;
use epl_runtime::ops::scale_rows::scale_rows;
use epl_runtime::ops::sum_all::sum_all;
use epl_runtime::{DType, Error, Result, TensorDesc};

use super::class_sweep_cases;
use super::margin_loss::{MarginLoss, MarginLossGrad};
use super::rows::{check_labels, label, sigmoid};
use super::tiles::{self, Cosines, Operands, Tile, Walk, row_workgroup};
use super::uniface_loss::{UniFaceLoss, UniFaceLossGrad};

epl_runtime::param_block! {
    /// Parameters of `class_sweep_target.wgsl`.
    pub struct TargetParams {
        /// Samples.
        rows: u32,
        /// First class of the tile.
        first: u32,
        /// Classes of the tile.
        classes: u32,
        /// Vectors of four elements of an embedding.
        dim: u32,
        /// 1 for the first tile.
        initial: u32,
    }
}

epl_runtime::param_block! {
    /// Parameters of `class_sweep_margin.wgsl`.
    pub struct MarginTileParams {
        /// Samples.
        rows: u32,
        /// First class of the tile.
        first: u32,
        /// Classes of the tile.
        classes: u32,
        /// 1 for the first tile.
        initial: u32,
        /// Scale of the cosines.
        scale: f32,
    }
}

epl_runtime::param_block! {
    /// Parameters of `class_sweep_uniface.wgsl`.
    pub struct UniFaceTileParams {
        /// Samples.
        rows: u32,
        /// First class of the tile.
        first: u32,
        /// Classes of the tile.
        classes: u32,
        /// Classes that take part.
        all: u32,
        /// 1 for the first tile.
        initial: u32,
        /// Scale of the cosines.
        scale: f32,
        /// Factor of the target's cosine, `1 - k`.
        keep: f32,
        /// The margin.
        margin: f32,
    }
}

epl_runtime::param_block! {
    /// Parameters of `class_sweep_add.wgsl`.
    pub struct AddParams {
        /// Vectors of four elements.
        len: u32,
        /// Those of a row.
        dim: u32,
        /// 1 where the sum so far is scaled.
        decayed: u32,
    }
}

epl_runtime::param_block! {
    /// Parameters of `class_sweep_finish.wgsl`.
    pub struct FinishParams {
        /// Samples.
        rows: u32,
        /// Classes that take part.
        classes: u32,
        /// Vectors of four elements of an embedding.
        dim: u32,
        /// The target's margin, as in `margin_loss.wgsl`.
        rule: u32,
        /// Scale of the cosines.
        scale: f32,
        /// Factor of the target's cosine, `1 - k`.
        keep: f32,
        /// The margin.
        margin: f32,
        /// Its cosine.
        cos_margin: f32,
        /// Its sine.
        sin_margin: f32,
    }
}

static TARGET: Kernel = Kernel {
    shader: "class_sweep_target",
    entry: "main",
    params: TargetParams::FIELDS,
    bindings: &[
        read("prototypes"),
        read("inverse"),
        read("x"),
        read("labels"),
        write("unit"),
        write("cosine"),
    ],
    constants: &["WORKGROUP"],
    needs: Needs::Nothing,
};

static MARGIN: Kernel = Kernel {
    shader: "class_sweep_margin",
    entry: "main",
    params: MarginTileParams::FIELDS,
    bindings: &[read("inverse"), read("labels"), write("tile"), write("running"), write("decay")],
    constants: &["WORKGROUP"],
    needs: Needs::Nothing,
};

static UNIFACE: Kernel = Kernel {
    shader: "class_sweep_uniface",
    entry: "main",
    params: UniFaceTileParams::FIELDS,
    bindings: &[
        read("inverse"),
        read("labels"),
        read("bias"),
        write("tile"),
        write("loss"),
        write("cosine"),
        write("dbias"),
    ],
    constants: &["WORKGROUP"],
    needs: Needs::Nothing,
};

static ADD: Kernel = Kernel {
    shader: "class_sweep_add",
    entry: "main",
    params: AddParams::FIELDS,
    bindings: &[read("share"), read("decay"), write("dx")],
    constants: &["WORKGROUP"],
    needs: Needs::Nothing,
};

static FINISH: Kernel = Kernel {
    shader: "class_sweep_finish",
    entry: "main",
    params: FinishParams::FIELDS,
    bindings: &[read("labels"), read("unit"), read("cosine"), write("running"), write("dx"), write("loss")],
    constants: &["WORKGROUP"],
    needs: Needs::Nothing,
};

/// The registry's entry.
pub const ENTRY: OpEntry = OpEntry {
    name: "class_sweep",
    cases,
    kernels: &tiles::kernels::<5, 13>([&TARGET, &MARGIN, &UNIFACE, &ADD, &FINISH]),
};

/// The loss of a head.
#[derive(Debug, Clone, Copy)]
pub enum ClassLoss {
    /// Softmax with a margin on the target.
    Margin(MarginLoss),
    /// Binary cross-entropy of every class with one bias.
    UniFace(UniFaceLoss),
}

impl ClassLoss {
    /// An error unless the attributes are numbers that a loss can have.
    pub(super) fn check(&self, op: &str) -> Result<()> {
        match self {
            Self::Margin(loss) => loss.check(op),
            Self::UniFace(loss) => loss.check_attributes(op),
        }
    }

    /// Factor of the cosines in the exponents.
    pub(super) fn scale(&self) -> f32 {
        match self {
            Self::Margin(loss) => loss.scale,
            Self::UniFace(loss) => loss.scale,
        }
    }
}

/// The op `class_sweep`: `table [C, D], x [B, D], labels u32 [B]`, for UniFace then `bias [1]`, where classes are sampled
/// then `classes u32 [S]` -> `loss [B], cosine [B], dx [B, D]`, and of a softmax `state [B, 4]`, of UniFace `dbias [B]`.
///
/// `cosine` is that of a sample and its class, without any margin, 0 where the label is no class; `dx` is `d loss_i / d x_i`.
/// `state` is `(p, log S, s q, -s q z')` as in `shaders/class_sweep_finish.wgsl`, for the gradient of the prototypes, and
/// `dbias` `d loss_i / d b`. Losses have a gradient, the other outputs none.
#[derive(Debug, Clone, Copy)]
pub struct ClassSweep {
    /// The loss.
    pub loss: ClassLoss,
    /// Whether only the classes of a list take part; labels are then places in it.
    pub sampled: bool,
    /// Classes of a tile; by default what suits the adapter.
    pub tile: Option<usize>,
}

/// What [`class_sweep`] gives.
#[derive(Debug, Clone, Copy)]
pub struct Swept {
    /// The rows' losses `[B]`.
    pub loss: TensorId,
    /// Cosine of each sample and the prototype of its class, `[B]`.
    pub cosine: TensorId,
    /// What [`class_update`](super::class_update::class_update) needs of a softmax, `[B, 4]`; of UniFace `d loss_i / d b`.
    pub state: TensorId,
}

/// Records [`ClassSweep`]. `bias` is UniFace's, `classes` the list of those that take part where they are sampled.
pub fn class_sweep(
    record: &mut dyn Record,
    op: ClassSweep,
    [table, x, labels]: [TensorId; 3],
    bias: Option<TensorId>,
    classes: Option<TensorId>,
) -> Result<Swept> {
    let mut inputs = vec![table, x, labels];
    inputs.extend(bias);
    inputs.extend(classes);
    let [loss, cosine, _dx, state] = push_many(record, op, &inputs)?;
    Ok(Swept { loss, cosine, state })
}

impl ClassSweep {
    /// Index of the list of classes among the inputs.
    fn classes_input(&self) -> Option<usize> {
        self.sampled.then_some(match self.loss {
            ClassLoss::Margin(_) => 3,
            ClassLoss::UniFace(_) => 4,
        })
    }

    fn lower_margin(&self, loss: &MarginLoss, lowering: &mut Lowering<'_>) -> Result<()> {
        let (walk, mut shares) = self.walk(lowering)?;
        let decay = lowering.workspace(4 * walk.samples as u64);
        let unit = lowering.workspace(4 * (walk.samples * walk.dim) as u64);
        let (x, labels, [loss_out, cosine, dx, state]) = (Operand::Input(1), Operand::Input(2), OUTPUTS);
        let rows = lowering.size(walk.samples)?;
        let dim = lowering.size(walk.dim / 4)?;
        let grid = lowering.fold(walk.samples)?;
        let row_constants = [("WORKGROUP", row_workgroup(lowering.caps(), 256.0))];
        let vector_constants = [("WORKGROUP", row_workgroup(lowering.caps(), 64.0))];
        for (index, tile) in walk.tiles.iter().enumerate() {
            let prototypes = walk.begin(lowering, tile)?;
            let (first, classes) = (lowering.size(tile.first)?, lowering.size(tile.rows)?);
            let initial = u32::from(index == 0);
            let params = TargetParams { rows, first, classes, dim, initial };
            let bindings =
                [prototypes, walk.inverse.into(), x.into(), labels.into(), unit.into(), cosine.into()];
            lowering.dispatch_ranges(&TARGET, &vector_constants, &params, &bindings, grid)?;
            let params = MarginTileParams { rows, first, classes, initial, scale: loss.scale };
            let operands = [walk.inverse, labels, walk.products, state, decay];
            lowering.dispatch(&MARGIN, &row_constants, &params, &operands, grid)?;
            shares.add(lowering, &walk, tile, prototypes, Some(decay))?;
        }
        let margin = f64::from(loss.margin());
        let params = FinishParams {
            rows,
            classes: lowering.size(walk.classes)?,
            dim,
            rule: loss.rule(),
            scale: loss.scale,
            keep: loss.keep(),
            margin: loss.margin(),
            cos_margin: margin.cos() as f32,
            sin_margin: margin.sin() as f32,
        };
        let operands = [labels, unit, cosine, state, dx, loss_out];
        lowering.dispatch(&FINISH, &vector_constants, &params, &operands, grid)
    }

    fn lower_uniface(&self, loss: &UniFaceLoss, lowering: &mut Lowering<'_>) -> Result<()> {
        let (walk, mut shares) = self.walk(lowering)?;
        let (labels, bias, [loss_out, cosine, _, dbias]) = (Operand::Input(2), Operand::Input(3), OUTPUTS);
        let grid = lowering.fold(walk.samples)?;
        let constants = [("WORKGROUP", row_workgroup(lowering.caps(), 256.0))];
        for (index, tile) in walk.tiles.iter().enumerate() {
            let prototypes = walk.begin(lowering, tile)?;
            let params = UniFaceTileParams {
                rows: lowering.size(walk.samples)?,
                first: lowering.size(tile.first)?,
                classes: lowering.size(tile.rows)?,
                all: lowering.size(walk.classes)?,
                initial: u32::from(index == 0),
                scale: loss.scale,
                keep: loss.keep(),
                margin: loss.margin,
            };
            let operands = [walk.inverse, labels, bias, walk.products, loss_out, cosine, dbias];
            lowering.dispatch(&UNIFACE, &constants, &params, &operands, grid)?;
            shares.add(lowering, &walk, tile, prototypes, None)?;
        }
        Ok(())
    }

    fn walk(&self, lowering: &mut Lowering<'_>) -> Result<(Walk, Shares)> {
        let operands = Operands { table: 0, x: 1, classes: self.classes_input() };
        let walk = Walk::new(lowering, operands, self.tile)?;
        let shares = Shares::new(lowering, &walk);
        Ok((walk, shares))
    }
}

/// The outputs of the op.
const OUTPUTS: [Operand; 4] =
    [Operand::Output(0), Operand::Output(1), Operand::Output(2), Operand::Output(3)];

/// The gradient of the embeddings, tile by tile: output 2 is the sum of the tiles' products `[B, T] [T, D]`.
struct Shares {
    /// The product of one tile; the first goes to the output itself.
    share: Option<Operand>,
    scratch: Option<Operand>,
    begun: bool,
}

impl Shares {
    const WORKGROUP: usize = 256;

    fn new(lowering: &mut Lowering<'_>, walk: &Walk) -> Self {
        let several = walk.tiles.len() > 1;
        let share = several.then(|| lowering.workspace(4 * (walk.samples * walk.dim) as u64));
        let scratch = walk.scratch_for(lowering, Self::product);
        Self { share, scratch, begun: false }
    }

    fn product(walk: &Walk, tile: &Tile) -> Product {
        Product { attributes: MatMul::default(), m: walk.samples, n: walk.dim, k: tile.rows }
    }

    /// Adds the tile's factors times its prototypes, after the sum so far was brought up to date by `decay`.
    fn add(
        &mut self,
        lowering: &mut Lowering<'_>,
        walk: &Walk,
        tile: &Tile,
        prototypes: Bound,
        decay: Option<Operand>,
    ) -> Result<()> {
        let dx = OUTPUTS[2];
        let share = self.share.filter(|_| self.begun);
        let operands = [walk.products.into(), prototypes];
        Self::product(walk, tile).lower(lowering, operands, share.unwrap_or(dx), self.scratch)?;
        self.begun = true;
        let Some(share) = share else { return Ok(()) };
        let len = walk.samples * walk.dim / 4;
        let params = AddParams {
            len: lowering.size(len)?,
            dim: lowering.size(walk.dim / 4)?,
            decayed: u32::from(decay.is_some()),
        };
        // A kernel has one set of bindings: without a factor, something that is not read fills its place.
        let operands = [share, decay.unwrap_or(walk.inverse), dx];
        let constants = [("WORKGROUP", Self::WORKGROUP as f64)];
        let grid = lowering.fold(len.div_ceil(Self::WORKGROUP))?;
        lowering.dispatch(&ADD, &constants, &params, &operands, grid)
    }
}

/// The sizes of operands `table [C, D], x [B, D], labels u32 [B]` of op `op`, where they fit: (B, C, D). The kernels take
/// vectors of four elements.
pub(super) fn check_operands(
    op: &str,
    table: &TensorDesc,
    x: &TensorDesc,
    labels: &TensorDesc,
) -> Result<(usize, usize, usize)> {
    match (table.shape.dims(), x.shape.dims()) {
        (&[classes, dim], &[rows, found])
            if found == dim
                && dim.is_multiple_of(4)
                && table.dtype == DType::F32
                && x.dtype == DType::F32 =>
        {
            check_labels(op, labels, rows)?;
            Ok((rows, classes, dim))
        }
        _ => {
            let expected = "table f32[C, D], x f32[B, D] with D a multiple of 4";
            Err(Error::shape(op, format!("table {table}, x {x}"), expected))
        }
    }
}

/// An error unless `classes` can list some of `all` classes.
pub(super) fn check_classes(op: &str, classes: &TensorDesc, all: usize) -> Result<()> {
    match classes.shape.dims() {
        &[count] if classes.dtype == DType::U32 && (1..=all).contains(&count) => Ok(()),
        _ => Err(Error::shape(op, format!("classes {classes}"), format!("u32[S] of at most {all} classes"))),
    }
}

impl Op for ClassSweep {
    fn name(&self) -> &'static str {
        "class_sweep"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        self.loss.check(self.name())?;
        let uniface = matches!(self.loss, ClassLoss::UniFace(_));
        let [table, x, labels, rest @ ..] = inputs else {
            return Err(Error::shape(self.name(), format!("{} inputs", inputs.len()), "table, x, labels"));
        };
        let (rows, all, dim) = check_operands(self.name(), table, x, labels)?;
        if rest.len() != usize::from(uniface) + usize::from(self.sampled) {
            let expected = "table, x, labels, UniFace's bias, and the classes where they are sampled";
            return Err(Error::shape(self.name(), format!("{} inputs", inputs.len()), expected));
        }
        if let (true, Some(bias)) = (uniface, rest.first())
            && *bias != TensorDesc::f32([1])
        {
            return Err(Error::shape(self.name(), format!("bias {bias}"), "bias f32[1]"));
        }
        if let (true, Some(classes)) = (self.sampled, rest.last()) {
            check_classes(self.name(), classes, all)?;
        }
        let row = TensorDesc::f32([rows]);
        let last = if uniface { row.clone() } else { TensorDesc::f32([rows, 4]) };
        Ok(vec![row.clone(), row, TensorDesc::f32([rows, dim]), last])
    }

    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        match &self.loss {
            ClassLoss::Margin(loss) => self.lower_margin(loss, lowering),
            ClassLoss::UniFace(loss) => self.lower_uniface(loss, lowering),
        }
    }

    fn gradient(&self, gradient: &mut Gradient<'_>) -> Result<()> {
        if gradient.needs(0) {
            return Err(Error::graph(
                "the gradient of prototypes that are walked in tiles is not a tensor",
                "leave them out of the trained tensors and record class_update",
            ));
        }
        let Some(dloss) = gradient.upstream(0) else { return Ok(()) };
        if gradient.needs(1) {
            let dx = gradient.output(2)?;
            let dx = scale_rows(gradient.record(), dx, dloss)?;
            gradient.set(1, dx);
        }
        if matches!(self.loss, ClassLoss::UniFace(_)) && gradient.needs(3) {
            let dbias = gradient.output(3)?;
            let record = gradient.record();
            let rows = record.desc(dbias).shape.dim(0);
            let column = reshape(record, dbias, [rows, 1])?;
            let scaled = scale_rows(record, column, dloss)?;
            let dbias = sum_all(record, scaled, 1.0)?;
            gradient.set(3, dbias);
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let (x, labels) = (&inputs[1], &inputs[2]);
        let cosines = Cosines::new(&inputs[0], x, self.classes_input().map(|index| &inputs[index]));
        let (rows, classes) = (x.shape.dim(0), cosines.classes.len());
        let ones = Array::from_fn([rows], |_| 1.0);
        let cosine = Array::from_fn([rows], |i| {
            label(labels, i, classes).map_or(0.0, |y| cosines.values.data[i * classes + y])
        });
        let (loss, dcosines, last) = match &self.loss {
            ClassLoss::Margin(op) => {
                let operands = [cosines.values.clone(), labels.clone()];
                let [loss, peak, log_sum] = three(op.reference(&operands));
                let [cosines, labels] = operands;
                let state = Array::from_fn([rows, 4], |index| {
                    let (i, what) = (index / 4, index % 4);
                    let push = label(&labels, i, classes).map_or((0.0, 0.0), |y| {
                        let (z, slope) = op.target(cosines.data[i * classes + y]);
                        let scale = f64::from(op.scale);
                        let wrong = sigmoid(scale * (peak.data[i] - z) + log_sum.data[i]);
                        (scale * wrong, -scale * wrong * slope)
                    });
                    [peak.data[i], log_sum.data[i], push.0, push.1][what]
                });
                let dcosines = MarginLossGrad(*op).reference(&[cosines, labels, peak, log_sum, ones]);
                (loss, dcosines, state)
            }
            ClassLoss::UniFace(op) => {
                let operands = [cosines.values.clone(), labels.clone(), inputs[3].clone()];
                let loss = op.reference(&operands).remove(0);
                let [cosines, labels, bias] = operands;
                // The gradient of the bias is a sum over the rows; each row's is that of the row alone.
                let dbias = Array::from_fn([rows], |i| {
                    let only = Array::from_fn([rows], |row| f64::from(u8::from(row == i)));
                    let operands = [cosines.clone(), labels.clone(), bias.clone(), only];
                    UniFaceLossGrad(*op).reference(&operands)[1].item()
                });
                (loss, UniFaceLossGrad(*op).reference(&[cosines, labels, bias, ones]), dbias)
            }
        };
        let dx = cosines.times_unit(&dcosines[0]);
        vec![loss, cosine, dx, last]
    }

    fn cost(&self, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Cost {
        let classes = self.classes_input().and_then(|index| inputs.get(index)).or(inputs.first());
        let classes = classes.map_or(0, |desc| desc.shape.dim(0)) as f64;
        let elements = inputs.get(1).map_or(0, |x| x.shape.elements()) as f64;
        // Two products of B x C x D, and each prototype read once.
        let dim = inputs.first().map_or(0, |table| table.shape.dim(1)) as f64;
        let of_rows = inputs.iter().skip(1).chain(outputs).map(|desc| desc.bytes() as f64).sum::<f64>();
        Cost { flops: 4.0 * elements * classes, bytes: 4.0 * classes * dim + of_rows }
    }
}

/// The first three of some arrays; empty ones where there are fewer.
fn three(arrays: Vec<Array>) -> [Array; 3] {
    let mut arrays = arrays.into_iter();
    std::array::from_fn(|_| arrays.next().unwrap_or_else(|| Array::zeros([1])))
}

fn cases() -> Vec<Case> {
    class_sweep_cases::cases()
}
