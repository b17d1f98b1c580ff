//! Matrix product: `C = op(A) op(B) (+ bias)`, where `op` is the identity or the transpose.
//!
//! `A` is `[..batch, M, K]`, or `[..batch, K, M]` where it is transposed; `B` is `[..batch, K, N]` or
//! `[..batch, N, K]`; `C` is `[..batch, M, N]`. An operand of two dimensions is shared by the whole batch of the
//! other. The optional `bias` `[N]` is added to every row of `C`. With `sum_batch` the products are added over the
//! batch, `C` is `[M, N]`: what the gradient of a shared operand needs.
//!
//! Gradients, with `D` the gradient of `C`: `d op(A) = D op(B)^T`, `d op(B) = op(A)^T D`, `d bias = sum of the rows
//! of D`.
//!
//! A product whose output is too small to fill the adapter is split along K: each part writes its own `C`, and
//! `sum_rows` adds them in order.

use std::sync::Arc;

use crate::case::{Case, OpEntry};
use crate::host::Array;
use crate::kernel::{Kernel, Needs, ParamBlock, read, write};
use crate::op::{Bound, Cost, Gradient, Lowering, Op, Operand, Record, TensorId, push_one};
use crate::ops::{matmul_cases, sum_rows};
use crate::{Caps, DType, Error, Result, Shape, TensorDesc};

crate::param_block! {
    /// Parameters of every `matmul*.wgsl`.
    pub struct MatMulParams {
        /// Rows of `C`.
        m: u32,
        /// Columns of `C`.
        n: u32,
        /// Terms of each sum.
        k: u32,
        /// Products.
        batch: u32,
        /// Parts that each sum is split into.
        splits: u32,
        /// Terms in each part but perhaps the last.
        k_per_split: u32,
        /// Elements from one matrix of `a` to the next; 0 where one is shared.
        a_stride: u32,
        /// Elements from one matrix of `b` to the next; 0 where one is shared.
        b_stride: u32,
        /// 1 where `bias` is added.
        has_bias: u32,
    }
}

const TRANSPOSES: &[&str] = &["TRANSPOSE_A", "TRANSPOSE_B"];
const TRANSPOSES_AND_LANES: &[&str] = &["TRANSPOSE_A", "TRANSPOSE_B", "LANES"];

const TILED_KERNEL: Kernel = Kernel {
    shader: "matmul",
    entry: "main",
    params: MatMulParams::FIELDS,
    bindings: &[read("a"), read("b"), read("bias"), write("c")],
    constants: TRANSPOSES,
    needs: Needs::Nothing,
};
static TILED: Kernel = TILED_KERNEL;
static TILED_SCALAR: Kernel = Kernel { shader: "matmul_scalar", ..TILED_KERNEL };
static LARGE: Kernel = Kernel { shader: "matmul_large", ..TILED_KERNEL };
static REGISTER: Kernel =
    Kernel { shader: "matmul_register", constants: TRANSPOSES_AND_LANES, ..TILED_KERNEL };
static SUBGROUP: Kernel = Kernel {
    shader: "matmul_subgroup",
    constants: TRANSPOSES_AND_LANES,
    needs: Needs::Subgroups,
    ..TILED_KERNEL
};

/// Lanes of a workgroup of `matmul_register.wgsl`.
const REGISTER_LANES: usize = 8;

const KERNELS: [&Kernel; 6] = [&TILED, &TILED_SCALAR, &LARGE, &REGISTER, &SUBGROUP, &sum_rows::KERNEL];

/// The registry's entry.
pub const ENTRY: OpEntry = OpEntry { name: "matmul", cases, kernels: &KERNELS };

/// Which kernel computes a product. Where the shapes or the adapter do not allow the one asked for, the general kernel
/// of the same family (`TiledScalar`, `Register`) takes its place, so that any choice works everywhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Variant {
    /// The one that suits the shapes and the adapter.
    #[default]
    Auto,
    /// 64 x 64 tiles in workgroup memory, 4 x 4 elements an invocation, vec4 loads: needs the contiguous extents of
    /// `a` and `b` to be multiples of 4.
    Tiled,
    /// As `Tiled`, with scalar loads, for any extents.
    TiledScalar,
    /// 128 x 128 tiles, 8 x 8 elements an invocation; needs what `Tiled` needs.
    Large,
    /// 8 x 4 elements an invocation and no workgroup memory: for CPU adapters.
    Register,
    /// 16 x 4 elements an invocation, one subgroup a workgroup, which reads rows of `a` once and broadcasts them:
    /// for CPU adapters. Needs subgroups of one fixed size of at least 8, and the contiguous extent of `b` to be a
    /// multiple of 4.
    Subgroup,
}

/// The variants among which a tuner may choose, by name.
const NAMES: [(&str, Variant); 5] = [
    ("tiled", Variant::Tiled),
    ("tiled scalar", Variant::TiledScalar),
    ("large", Variant::Large),
    ("register", Variant::Register),
    ("subgroup", Variant::Subgroup),
];

/// Attributes of a matrix product, and the op.
///
/// ```
/// use epl_runtime::ops::matmul::MatMul;
/// let linear = MatMul { transpose_b: true, ..MatMul::default() };
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MatMul {
    /// `a` is stored `[..batch, K, M]`.
    pub transpose_a: bool,
    /// `b` is stored `[..batch, N, K]`.
    pub transpose_b: bool,
    /// Adds the products over the batch.
    pub sum_batch: bool,
    /// The kernel; every variant computes the same up to rounding.
    pub variant: Variant,
}

/// Records `op(a) op(b) (+ bias)`; see the module for the shapes.
pub fn matmul(
    record: &mut dyn Record,
    a: TensorId,
    b: TensorId,
    bias: Option<TensorId>,
    attributes: MatMul,
) -> Result<TensorId> {
    match bias {
        Some(bias) => push_one(record, attributes, &[a, b, bias]),
        None => push_one(record, attributes, &[a, b]),
    }
}

/// The extents of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extents {
    m: usize,
    n: usize,
    k: usize,
    batch: usize,
    /// Whether `a`, `b` have a matrix for each product of the batch.
    batched: [bool; 2],
}

/// `(outer dimensions, rows, columns)` of a stack of matrices.
fn matrices(shape: &Shape) -> Option<(&[usize], usize, usize)> {
    let (outer, inner) = shape.dims().split_last_chunk::<2>().map(|(outer, inner)| (outer, *inner))?;
    Some((outer, inner[0], inner[1]))
}

/// A launch: the kernel, its tile and how the sums are split.
#[derive(Clone, Copy, Debug)]
struct Launch {
    kernel: &'static Kernel,
    tile_m: usize,
    tile_n: usize,
    splits: usize,
    k_per_split: usize,
}

impl MatMul {
    /// The extents of the product of `a` and `b` and the outer dimensions of the result, or what does not fit.
    fn extents<'s>(&self, a: &'s Shape, b: &'s Shape) -> Result<(Extents, &'s [usize])> {
        let wrong = |expected: String| {
            let stored = |t: bool| if t { " (transposed)" } else { "" };
            let found = format!("a {a}{} and b {b}{}", stored(self.transpose_a), stored(self.transpose_b));
            Err(Error::shape("matmul", found, expected))
        };
        let (Some((outer_a, rows_a, columns_a)), Some((outer_b, rows_b, columns_b))) =
            (matrices(a), matrices(b))
        else {
            return wrong("at least two dimensions each".into());
        };
        let (m, k) = if self.transpose_a { (columns_a, rows_a) } else { (rows_a, columns_a) };
        let (n, k_b) = if self.transpose_b { (rows_b, columns_b) } else { (columns_b, rows_b) };
        if k != k_b {
            return wrong(format!("equal inner extents, not {k} and {k_b}"));
        }
        if !outer_a.is_empty() && !outer_b.is_empty() && outer_a != outer_b {
            return wrong("equal batch dimensions, or one operand without any".into());
        }
        let outer = if outer_a.is_empty() { outer_b } else { outer_a };
        let batch = outer.iter().product();
        if m * n * k * batch == 0 {
            return wrong("no empty dimension".into());
        }
        let batched = [!outer_a.is_empty(), !outer_b.is_empty()];
        Ok((Extents { m, n, k, batch, batched }, outer))
    }

    /// The same product with the batch folded into M or K, where the memory layout allows it: fewer, larger products.
    fn fold(&self, extents: Extents) -> Extents {
        let Extents { m, n, k, batch, batched } = extents;
        match batched {
            _ if batch == 1 => Extents { batched: [false, false], ..extents },
            [true, false] if !self.transpose_a && !self.sum_batch => {
                Extents { m: m * batch, n, k, batch: 1, batched: [false, false] }
            }
            [true, true] if self.transpose_a && !self.transpose_b && self.sum_batch => {
                Extents { m, n, k: k * batch, batch: 1, batched: [false, false] }
            }
            _ => extents,
        }
    }

    /// Lanes of a workgroup of the subgroup kernel, where the adapter allows it.
    fn lanes(&self, caps: &Caps) -> Option<usize> {
        caps.subgroups
            .filter(|sizes| sizes.min == sizes.max && (8..=caps.max_invocations).contains(&sizes.min))
            .map(|sizes| sizes.min as usize)
    }

    /// The product with the variant that was chosen, where one was and the product was not recorded for another.
    fn chosen(&self, lowering: &Lowering<'_>) -> Self {
        let found = lowering.choice().filter(|_| self.variant == Variant::Auto);
        let named = found.and_then(|name| NAMES.iter().find(|(known, _)| *known == name));
        named.map_or(*self, |(_, variant)| Self { variant: *variant, ..*self })
    }

    /// Chooses kernel and split: a function of the extents and the adapter alone.
    fn launch(&self, caps: &Caps, extents: &Extents) -> Launch {
        let Extents { m, n, k, batch, .. } = *extents;
        let aligned_a = (if self.transpose_a { m } else { k }).is_multiple_of(4);
        let aligned_b = (if self.transpose_b { k } else { n }).is_multiple_of(4);
        let lanes = self.lanes(caps);
        let wanted = match self.variant {
            Variant::Auto if caps.cpu => Variant::Subgroup,
            // Fewer large tiles than this would leave a large GPU idle.
            Variant::Auto if m.div_ceil(128) * n.div_ceil(128) * batch >= 256 => Variant::Large,
            Variant::Auto => Variant::Tiled,
            variant => variant,
        };
        let (kernel, tile_m, tile_n): (&'static Kernel, usize, usize) = match (wanted, lanes) {
            (Variant::Subgroup, Some(lanes)) if aligned_b => (&SUBGROUP, 16, 4 * lanes),
            (Variant::Subgroup | Variant::Register, _) => (&REGISTER, 8, 4 * REGISTER_LANES),
            (Variant::Large, _) if aligned_a && aligned_b => (&LARGE, 128, 128),
            (Variant::Tiled, _) if aligned_a && aligned_b => (&TILED, 64, 64),
            _ => (&TILED_SCALAR, 64, 64),
        };
        let tiles = m.div_ceil(tile_m) * n.div_ceil(tile_n) * batch;
        let (groups, shortest): (usize, usize) = if caps.cpu { (8, 256) } else { (256, 128) };
        let parts = (groups / tiles).clamp(1, k.div_ceil(shortest));
        // A multiple of every kernel's step of k, so that only the last part has a tail.
        let k_per_split = k.div_ceil(parts).next_multiple_of(32);
        Launch { kernel, tile_m, tile_n, splits: k.div_ceil(k_per_split), k_per_split }
    }
}

impl MatMul {
    fn dispatch(
        &self,
        lowering: &mut Lowering<'_>,
        launch: &Launch,
        params: &MatMulParams,
        bindings: &[Bound; 4],
    ) -> Result<()> {
        let constants = [
            ("TRANSPOSE_A", f64::from(u8::from(self.transpose_a))),
            ("TRANSPOSE_B", f64::from(u8::from(self.transpose_b))),
            ("LANES", launch.tile_n as f64 / 4.0),
        ];
        let constants = constants.get(..launch.kernel.constants.len()).unwrap_or(&constants);
        let (m, n) = (params.m as usize, params.n as usize);
        let tiles = m.div_ceil(launch.tile_m) * n.div_ceil(launch.tile_n) * params.batch as usize;
        let grid = lowering.fold(tiles * launch.splits)?;
        lowering.dispatch_ranges(launch.kernel, constants, params, bindings, grid)
    }
}

/// One product `C = op(A) op(B)` as a part of another op's work: `C` is `[M, N]`, its operands are any that the op has,
/// or ranges of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Product {
    /// Which operands are transposed, and the kernel.
    pub attributes: MatMul,
    /// Rows of `C`.
    pub m: usize,
    /// Columns of `C`.
    pub n: usize,
    /// Terms of each sum.
    pub k: usize,
}

impl Product {
    /// Kernels that the op has to name among its own.
    pub const KERNELS: [&'static Kernel; 6] = KERNELS;

    fn launch(&self, caps: &Caps) -> Launch {
        let Self { m, n, k, .. } = *self;
        self.attributes.launch(caps, &Extents { m, n, k, batch: 1, batched: [false, false] })
    }

    /// Bytes of the workspace that [`Self::lower`] asks for: 0 where the sums are not split.
    pub fn scratch_bytes(&self, caps: &Caps) -> u64 {
        match self.launch(caps).splits {
            1 => 0,
            splits => (splits * self.m * self.n * 4) as u64,
        }
    }

    /// Appends the launches of the product of `a` and `b` to `c`, which may be longer than the product. `scratch` has at
    /// least [`Self::scratch_bytes`] bytes.
    pub fn lower(
        &self,
        lowering: &mut Lowering<'_>,
        [a, b]: [Bound; 2],
        c: Operand,
        scratch: Option<Operand>,
    ) -> Result<()> {
        let launch = self.launch(lowering.caps());
        let to = match (launch.splits, scratch) {
            (1, _) => c,
            (_, Some(scratch)) => scratch,
            (splits, None) => {
                let found = format!("a product in {splits} parts without a workspace");
                return Err(Error::shape("matmul", found, "a workspace of scratch_bytes"));
            }
        };
        let (parts, elements) = (launch.splits, self.m * self.n);
        lowering.size(parts * elements)?;
        let params = MatMulParams {
            m: lowering.size(self.m)?,
            n: lowering.size(self.n)?,
            k: lowering.size(self.k)?,
            batch: 1,
            splits: lowering.size(parts)?,
            k_per_split: lowering.size(launch.k_per_split)?,
            a_stride: 0,
            b_stride: 0,
            has_bias: 0,
        };
        self.attributes.dispatch(lowering, &launch, &params, &[a, b, a, to.into()])?;
        if parts > 1 {
            sum_rows::lower_sum(lowering, to, c, parts, elements, 1.0)?;
        }
        Ok(())
    }
}

impl Op for MatMul {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let (a, b, bias) = match inputs {
            [a, b] => (a, b, None),
            [a, b, bias] => (a, b, Some(bias)),
            _ => {
                return Err(Error::shape(
                    "matmul",
                    format!("{} inputs", inputs.len()),
                    "a, b and maybe bias",
                ));
            }
        };
        if [a, b].iter().any(|desc| desc.dtype != DType::F32) {
            return Err(Error::shape("matmul", format!("a {a} and b {b}"), "f32, all that its kernels know"));
        }
        let (Extents { m, n, .. }, outer) = self.extents(&a.shape, &b.shape)?;
        if let Some(bias) = bias.filter(|bias| **bias != TensorDesc::f32([n])) {
            return Err(Error::shape("matmul", format!("bias {bias}"), format!("f32[{n}]")));
        }
        if bias.is_some() && self.sum_batch {
            return Err(Error::shape("matmul", "a bias with sum_batch", "one of the two"));
        }
        let outer = if self.sum_batch { &[] } else { outer };
        Ok(vec![TensorDesc::f32([outer, &[m, n]].concat())])
    }

    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        let (a, b) = (&lowering.input(0)?.shape, &lowering.input(1)?.shape);
        let extents = self.fold(self.extents(a, b)?.0);
        let Extents { m, n, k, batch, batched } = extents;
        let launch = self.chosen(lowering).launch(lowering.caps(), &extents);
        let has_bias = lowering.input(2).is_ok();

        // Parts that are added afterwards, each of `columns` elements.
        let (parts, columns) =
            if self.sum_batch { (batch * launch.splits, m * n) } else { (launch.splits, batch * m * n) };
        lowering.size(parts * columns)?;
        let to =
            if parts > 1 { lowering.workspace((parts * columns * 4) as u64) } else { Operand::Output(0) };
        let stride = |batched: bool, elements: usize| if batched { lowering.size(elements) } else { Ok(0) };
        let params = MatMulParams {
            m: lowering.size(m)?,
            n: lowering.size(n)?,
            k: lowering.size(k)?,
            batch: lowering.size(batch)?,
            splits: lowering.size(launch.splits)?,
            k_per_split: lowering.size(launch.k_per_split)?,
            a_stride: stride(batched[0], m * k)?,
            b_stride: stride(batched[1], n * k)?,
            has_bias: has_bias.into(),
        };
        // Without a bias something must still be bound; the kernel does not read it.
        let bias = Operand::Input(if has_bias { 2 } else { 0 });
        let bindings = [Operand::Input(0), Operand::Input(1), bias, to].map(Bound::from);
        self.dispatch(lowering, &launch, &params, &bindings)?;
        if parts > 1 {
            sum_rows::lower_sum(lowering, to, Operand::Output(0), parts, columns, 1.0)?;
        }
        Ok(())
    }

    fn variants(&self, caps: &Caps, _inputs: &[TensorDesc]) -> Vec<String> {
        if self.variant != Variant::Auto {
            return Vec::new();
        }
        // One that the shapes do not allow is the general one of its family, which is tried once.
        let lanes = self.lanes(caps);
        let possible = |(_, variant): &&(&str, Variant)| *variant != Variant::Subgroup || lanes.is_some();
        NAMES.iter().filter(possible).map(|(name, _)| (*name).to_owned()).collect()
    }

    fn smaller(&self, inputs: &[TensorDesc]) -> Option<(Arc<dyn Op>, Vec<TensorDesc>)> {
        let [a, b, ..] = inputs else { return None };
        let (Extents { m, n, k, .. }, _) = self.extents(&a.shape, &b.shape).ok()?;
        // Half of the longest extent, as far from a multiple of four as it was.
        let longest = m.max(n).max(k);
        let half = longest / 2 / 4 * 4 + longest % 4;
        if longest < 32 {
            return None;
        }
        let [m, n, k] = if k == longest {
            [m, n, half]
        } else if m == longest {
            [half, n, k]
        } else {
            [m, half, k]
        };
        let of = |tensor: &TensorDesc, transposed: bool, [rows, columns]: [usize; 2]| {
            let (outer, ..) = matrices(&tensor.shape)?;
            let inner = if transposed { [columns, rows] } else { [rows, columns] };
            Some(TensorDesc { shape: [outer, &inner].concat().into(), dtype: tensor.dtype })
        };
        let mut less = vec![of(a, self.transpose_a, [m, k])?, of(b, self.transpose_b, [k, n])?];
        less.extend(inputs.get(2).map(|bias| TensorDesc { shape: [n].into(), dtype: bias.dtype }));
        Some((Arc::new(*self), less))
    }

    fn gradient(&self, gradient: &mut Gradient<'_>) -> Result<()> {
        let Some(dc) = gradient.upstream(0) else { return Ok(()) };
        if self.sum_batch {
            return Err(Error::graph(
                "matmul with sum_batch has no gradient",
                "use a product without it, then sum_rows",
            ));
        }
        let (a, b) = (gradient.input(0)?, gradient.input(1)?);
        let (ta, tb) = (self.transpose_a, self.transpose_b);
        let record = gradient.record();
        let [batched_a, batched_b] = [a, b].map(|tensor| record.desc(tensor).shape.rank() > 2);
        let product = |transpose_a: bool, transpose_b: bool, sum_batch: bool| MatMul {
            transpose_a,
            transpose_b,
            sum_batch,
            variant: self.variant,
        };
        if gradient.needs(0) {
            let shared = batched_b && !batched_a;
            let da = if ta {
                matmul(gradient.record(), b, dc, None, product(tb, true, shared))?
            } else {
                matmul(gradient.record(), dc, b, None, product(false, !tb, shared))?
            };
            gradient.set(0, da);
        }
        if gradient.needs(1) {
            let shared = batched_a && !batched_b;
            let db = if tb {
                matmul(gradient.record(), dc, a, None, product(true, ta, shared))?
            } else {
                matmul(gradient.record(), a, dc, None, product(!ta, false, shared))?
            };
            gradient.set(1, db);
        }
        if gradient.needs(2) {
            let dbias = sum_rows::sum_rows(gradient.record(), dc, 1.0)?;
            gradient.set(2, dbias);
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let (a, b) = (&inputs[0], &inputs[1]);
        let Ok((Extents { m, n, k, batch, batched }, outer)) = self.extents(&a.shape, &b.shape) else {
            return Vec::new();
        };
        let outer = if self.sum_batch { &[] } else { outer };
        let mut c = Array::zeros([outer, &[m, n]].concat());
        let element_a = |image: usize, i: usize, p: usize| {
            let matrix = if batched[0] { image * m * k } else { 0 };
            a.data[matrix + if self.transpose_a { p * m + i } else { i * k + p }]
        };
        let element_b = |image: usize, p: usize, j: usize| {
            let matrix = if batched[1] { image * k * n } else { 0 };
            b.data[matrix + if self.transpose_b { j * k + p } else { p * n + j }]
        };
        for image in 0..batch {
            for i in 0..m {
                for j in 0..n {
                    let product: f64 = (0..k).map(|p| element_a(image, i, p) * element_b(image, p, j)).sum();
                    let bias = inputs.get(2).map_or(0.0, |bias| bias.data[j]);
                    let matrix = if self.sum_batch { 0 } else { image * m * n };
                    c.data[matrix + i * n + j] += product + bias;
                }
            }
        }
        vec![c]
    }

    fn cost(&self, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Cost {
        let flops = match inputs {
            [a, b, ..] => self
                .extents(&a.shape, &b.shape)
                .map_or(0.0, |(e, _)| 2.0 * (e.m * e.n) as f64 * (e.k * e.batch) as f64),
            _ => 0.0,
        };
        Cost::once(flops, inputs, outputs)
    }
}

fn cases() -> Vec<Case> {
    matmul_cases::cases()
}
