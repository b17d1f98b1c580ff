//! What `conv2d` and its two gradients share: geometry, choice of kernels, and the launches of the implicit matrix
//! product.
//!
//! Layouts: x `[N, H, W, Cin]`, weight `[KH, KW, Cin / groups, Cout]`, y `[N, OH, OW, Cout]`. Seen as a matrix product
//! the weight is the row-major K x Cout matrix, and no reordering is needed.
//!
//! The kernels of the implicit matrix product only know channels in vectors of four. Where the channels of a group are
//! no multiple of four (an image's three colours), operands are copied to scratch buffers that are filled up with zeros.

use crate::caps::Caps;
use crate::kernel::{Kernel, Needs, ParamBlock, read, write};
use crate::op::{Lowering, Operand};
use crate::ops::conv2d::{Conv2d, signed};
use crate::ops::cooperative::{Jobs, Matrices};
use crate::ops::depthwise::MOST_TAPS;
use crate::ops::moments::Parts;
use crate::ops::winograd;
use crate::{DType, Error, Result, Shape, TensorDesc};

/// Which kernels compute a convolution. The results differ only by rounding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Variant {
    /// The one that suits shape and adapter.
    #[default]
    Auto,
    /// An implicit matrix product, tiled through workgroup memory: for GPUs. `None` lets the shape choose the tile.
    Tiled(Option<Tile>),
    /// An implicit matrix product in registers that shares operands by subgroup broadcasts: for CPU adapters.
    /// Adapters whose subgroups do not allow it take [`Variant::Tiled`].
    Subgroup,
    /// An implicit matrix product on cooperative matrices, for GPUs with such units. `None` lets the shape choose the jobs
    /// of a workgroup. Adapters without them take [`Variant::Tiled`].
    Cooperative(Option<Jobs>),
    /// Winograd's minimal filtering, for 3x3 windows with stride 1 of 32-bit elements. Others are done as by
    /// [`Variant::Auto`], and so is the gradient of the weight.
    Winograd,
    /// The definition, one invocation an output element: for few channels a group.
    Direct,
    /// Strips of pixels of vectors of channels: where every channel is convolved by itself. What it cannot do is done as
    /// in [`Variant::Direct`].
    Depthwise,
}

/// The part of a matrix product's result that one workgroup makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    rows: u32,
    columns: u32,
    /// Whether an invocation holds 8 columns rather than 4.
    wide: bool,
}

impl Tile {
    /// Every tile, the largest first. An invocation holds 8 rows x 4 or 8 columns, so these are 32 to 256 invocations. Of two
    /// tiles of one size the rule takes the wide one; the narrow one is among what may be chosen by measuring.
    pub const ALL: [Self; 8] = [
        Self::new(128, 128, true),
        Self::new(128, 64, true),
        Self::new(128, 64, false),
        Self::new(64, 64, true),
        Self::new(64, 64, false),
        Self::new(128, 32, false),
        Self::new(64, 32, false),
        Self::new(32, 32, false),
    ];

    const fn new(rows: u32, columns: u32, wide: bool) -> Self {
        Self { rows, columns, wide }
    }

    /// Workgroups below which a smaller tile is taken: about twice the number of cores of a large GPU.
    const ENOUGH: usize = 256;

    /// The largest tile that makes enough workgroups, where a tile makes `groups` for each of its blocks.
    fn choose(rows: usize, columns: usize, groups: usize) -> Self {
        let fits = |tile: &&Self| {
            (tile.columns == 32 || columns > tile.columns as usize / 2)
                && tile.row_blocks(rows) * tile.column_blocks(columns) * groups >= Self::ENOUGH
        };
        Self::ALL.iter().find(fits).copied().unwrap_or(Self::new(32, 32, false))
    }

    /// Invocations of a workgroup, as the kernels count them.
    pub(super) fn invocations(&self) -> u32 {
        let columns = if self.wide { 8 } else { 4 };
        self.rows / 8 * (self.columns / columns)
    }

    fn row_blocks(&self, rows: usize) -> usize {
        rows.div_ceil(self.rows as usize)
    }

    fn column_blocks(&self, columns: usize) -> usize {
        columns.div_ceil(self.columns as usize)
    }

    fn constants(&self) -> [(&'static str, f64); 3] {
        let wide = f64::from(u8::from(self.wide));
        [("ROWS", f64::from(self.rows)), ("COLUMNS", f64::from(self.columns)), ("WIDE", wide)]
    }
}

impl std::fmt::Display for Tile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}", self.rows, self.columns)?;
        // Tiles of 32 columns have the narrow form alone. A choice is kept by this name, so each tile needs its own.
        if !self.wide && self.columns > 32 { f.write_str(" narrow") } else { Ok(()) }
    }
}

/// The kernels that a [`Variant`] means for a shape on an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Path {
    Tiled(Option<Tile>),
    /// With the size of a subgroup.
    Subgroup(u32),
    Cooperative(Matrices),
    Winograd,
    Direct,
    Depthwise,
}

/// Sizes of a convolution; channels are those of one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    pub batch: usize,
    pub in_size: [usize; 2],
    pub out_size: [usize; 2],
    pub kernel: [usize; 2],
    pub stride: [usize; 2],
    /// Top and left.
    pub padding: [usize; 2],
    pub groups: usize,
    pub group_in: usize,
    pub group_out: usize,
}

impl Geometry {
    /// The geometry of a convolution that [`Geometry::check`] accepted.
    pub fn of(conv: &Conv2d, x: &Shape, weight: &Shape) -> Self {
        let [top, bottom, left, right] = conv.padding;
        let out = |size: usize, padding: usize, kernel: usize, stride: usize| {
            (size + padding).saturating_sub(kernel) / stride.max(1) + 1
        };
        Self {
            batch: x.dim(0),
            in_size: [x.dim(1), x.dim(2)],
            out_size: [
                out(x.dim(1), top + bottom, weight.dim(0), conv.stride[0]),
                out(x.dim(2), left + right, weight.dim(1), conv.stride[1]),
            ],
            kernel: [weight.dim(0), weight.dim(1)],
            stride: conv.stride,
            padding: [top, left],
            groups: conv.groups.max(1),
            group_in: weight.dim(2),
            group_out: weight.dim(3) / conv.groups.max(1),
        }
    }

    /// The geometry, or an error that names what does not fit.
    pub fn check(op: &str, conv: &Conv2d, x: &TensorDesc, weight: &TensorDesc) -> Result<Self> {
        let wrong = |found: String, expected: String| Err(Error::shape(op, found, expected));
        if conv.groups == 0 || conv.stride.contains(&0) {
            return wrong(
                format!("stride {:?}, {} groups", conv.stride, conv.groups),
                "a stride and a number of groups of at least 1".into(),
            );
        }
        let four = |desc: &TensorDesc| desc.shape.rank() == 4 && desc.shape.elements() > 0;
        if !four(x) || !four(weight) || !x.is_float() || !weight.is_float() {
            return wrong(
                format!("x {x}, weight {weight}"),
                "x [N, H, W, Cin] and weight [KH, KW, Cin / groups, Cout] of floats, none empty".into(),
            );
        }
        let (channels, groups) = (x.shape.last(), conv.groups);
        if !channels.is_multiple_of(groups) || !weight.shape.last().is_multiple_of(groups) {
            return wrong(
                format!("x {x}, weight {weight}"),
                format!("channels, the last extents, that are multiples of the {groups} groups"),
            );
        }
        if weight.shape.dim(2) != channels / groups {
            return wrong(
                format!("x {x}, weight {weight}, {groups} groups"),
                format!("weight [KH, KW, {}, Cout]", channels / groups),
            );
        }
        let [top, bottom, left, right] = conv.padding;
        let padded = [x.shape.dim(1) + top + bottom, x.shape.dim(2) + left + right];
        if padded[0] < weight.shape.dim(0) || padded[1] < weight.shape.dim(1) {
            return wrong(
                format!(
                    "a {}x{} kernel on x {x} with padding {:?}",
                    weight.shape.dim(0),
                    weight.shape.dim(1),
                    conv.padding
                ),
                format!("a kernel of at most {}x{}, or more padding", padded[0], padded[1]),
            );
        }
        Ok(Self::of(conv, &x.shape, &weight.shape))
    }

    pub fn in_channels(&self) -> usize {
        self.groups * self.group_in
    }

    pub fn out_channels(&self) -> usize {
        self.groups * self.group_out
    }

    pub fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    pub fn in_pixels(&self) -> usize {
        self.batch * self.in_size[0] * self.in_size[1]
    }

    pub fn out_pixels(&self) -> usize {
        self.batch * self.out_size[0] * self.out_size[1]
    }

    /// Shape of y.
    pub fn out_shape(&self) -> Shape {
        Shape::from([self.batch, self.out_size[0], self.out_size[1], self.out_channels()])
    }

    /// The same convolution with as few pixels as it can have. Where the window is the whole image (a fully connected
    /// layer) that is a 1x1 convolution of one pixel with all values as channels; the layouts agree. Its input gradient
    /// then has no phases in which most taps fall outside.
    pub fn flattened(&self) -> Self {
        if self.kernel != self.in_size
            || self.padding != [0, 0]
            || self.out_size != [1, 1]
            || self.groups != 1
        {
            return *self;
        }
        Self {
            in_size: [1, 1],
            kernel: [1, 1],
            stride: [1, 1],
            group_in: self.taps() * self.group_in,
            ..*self
        }
    }

    /// The geometry with the channels of a group filled up to multiples of four.
    pub fn aligned(&self) -> Self {
        Self {
            group_in: self.group_in.next_multiple_of(4),
            group_out: self.group_out.next_multiple_of(4),
            ..*self
        }
    }

    /// Floating-point operations of the convolution, and of either gradient. Padding counts as if it were computed.
    pub fn flops(&self) -> f64 {
        2.0 * self.out_pixels() as f64 * (self.taps() * self.group_in) as f64 * self.out_channels() as f64
    }

    /// Calls `term` for each product `x[i] * weight[j]` in `y[k]`, with the arguments i, j, k: the definition of all
    /// three ops, for references.
    pub fn for_each_term(&self, mut term: impl FnMut(usize, usize, usize)) {
        let [in_height, in_width] = self.in_size;
        let [out_height, out_width] = self.out_size;
        let [kernel_height, kernel_width] = self.kernel;
        for pixel in 0..self.out_pixels() {
            let (n, oy, ox) =
                (pixel / out_width / out_height, pixel / out_width % out_height, pixel % out_width);
            for ky in 0..kernel_height {
                for kx in 0..kernel_width {
                    let (iy, ix) = (oy * self.stride[0] + ky, ox * self.stride[1] + kx);
                    let (Some(iy), Some(ix)) =
                        (iy.checked_sub(self.padding[0]), ix.checked_sub(self.padding[1]))
                    else {
                        continue;
                    };
                    if iy >= in_height || ix >= in_width {
                        continue;
                    }
                    let in_pixel = (n * in_height + iy) * in_width + ix;
                    for o in 0..self.out_channels() {
                        let group = o / self.group_out;
                        for i in 0..self.group_in {
                            term(
                                in_pixel * self.in_channels() + group * self.group_in + i,
                                ((ky * kernel_width + kx) * self.group_in + i) * self.out_channels() + o,
                                pixel * self.out_channels() + o,
                            );
                        }
                    }
                }
            }
        }
    }

    /// What `variant` means here, for operands of `element`.
    pub fn path(&self, variant: Variant, caps: &Caps, element: DType) -> Path {
        let cooperative =
            |jobs| Matrices::new(caps, element, jobs).map_or(Path::Tiled(None), Path::Cooperative);
        // Broadcasts come from the first 8 invocations, and a workgroup is one full subgroup, which only a fixed size
        // promises.
        let subgroup = caps
            .subgroups
            .filter(|sizes| sizes.min == sizes.max && sizes.min >= 8 && sizes.max <= caps.max_invocations)
            .map_or(Path::Tiled(None), |sizes| Path::Subgroup(sizes.max));
        let depthwise = self.groups > 1
            && [self.group_in, self.group_out] == [1, 1]
            && self.groups.is_multiple_of(4)
            && self.kernel[1] <= MOST_TAPS;
        match variant {
            Variant::Winograd if winograd::suits(self, element) => Path::Winograd,
            // There is no rule that leads back here, since it would have suited.
            Variant::Winograd => self.path(Variant::Auto, caps, element),
            Variant::Auto | Variant::Depthwise if depthwise => Path::Depthwise,
            Variant::Depthwise => Path::Direct,
            Variant::Auto if self.groups > 1 && self.group_in.min(self.group_out) < 8 => Path::Direct,
            Variant::Auto if winograd::is_the_rule(self, caps, element) => Path::Winograd,
            Variant::Auto if caps.cpu => subgroup,
            // With 32-bit elements the tiled kernel is the rule until they have been compared.
            Variant::Auto if element == DType::F16 && Matrices::suit(self.group_in, self.group_out) => {
                cooperative(None)
            }
            Variant::Auto => Path::Tiled(None),
            Variant::Tiled(tile) => Path::Tiled(tile),
            Variant::Cooperative(jobs) => cooperative(jobs),
            Variant::Subgroup => subgroup,
            Variant::Direct => Path::Direct,
        }
    }
}

crate::param_block! {
    /// Parameters of `conv2d.wgsl` and `conv2d_subgroup.wgsl`. Vectors are of four channels.
    ///
    /// The results form a grid of pixels; result `(qy, qx)` reads inputs from `q * stride + origin` on, and is written
    /// to `q * out_step + out_first`.
    pub struct ProductParams {
        /// Results of all images.
        pixels: u32,
        /// Results of an image's column.
        grid_height: u32,
        /// Results of an image's row.
        grid_width: u32,
        /// Height of x.
        in_height: u32,
        /// Width of x.
        in_width: u32,
        /// Vectors of an input pixel.
        in_vectors: u32,
        /// Those of one group.
        group_in_vectors: u32,
        /// Height of y.
        out_height: u32,
        /// Width of y.
        out_width: u32,
        /// Vectors of an output pixel.
        out_vectors: u32,
        /// Those of one group.
        group_out_vectors: u32,
        /// Workgroups along the output channels of a group.
        blocks_per_group: u32,
        /// Kernel rows.
        taps_y: u32,
        /// Kernel columns; at least 1.
        taps_x: u32,
        /// Input rows between neighbouring results.
        stride_y: u32,
        /// Input columns between neighbouring results.
        stride_x: u32,
        /// Input row of the first result's first tap.
        origin_y: i32,
        /// Input column of the first result's first tap.
        origin_x: i32,
        /// Rows of y between neighbouring results.
        out_step_y: u32,
        /// Columns of y between neighbouring results.
        out_step_x: u32,
        /// Row of y of the first result.
        out_first_y: u32,
        /// Column of y of the first result.
        out_first_x: u32,
        /// First vector of the weights.
        weight_first: u32,
    }
}

impl ProductParams {
    /// The parameters of a convolution itself.
    pub(super) fn forward(lowering: &Lowering<'_>, aligned: &Geometry) -> Result<Self> {
        // A window may begin up to a whole kernel outside x.
        let origin = |padding: usize| -> Result<i32> { Ok(-signed(lowering, padding)?) };
        Ok(Self {
            pixels: lowering.size(aligned.out_pixels())?,
            grid_height: lowering.size(aligned.out_size[0])?,
            grid_width: lowering.size(aligned.out_size[1])?,
            in_height: lowering.size(aligned.in_size[0])?,
            in_width: lowering.size(aligned.in_size[1])?,
            in_vectors: lowering.size(aligned.in_channels() / 4)?,
            group_in_vectors: lowering.size(aligned.group_in / 4)?,
            out_height: lowering.size(aligned.out_size[0])?,
            out_width: lowering.size(aligned.out_size[1])?,
            out_vectors: lowering.size(aligned.out_channels() / 4)?,
            group_out_vectors: lowering.size(aligned.group_out / 4)?,
            blocks_per_group: 0,
            taps_y: lowering.size(aligned.kernel[0])?,
            taps_x: lowering.size(aligned.kernel[1])?,
            stride_y: lowering.size(aligned.stride[0])?,
            stride_x: lowering.size(aligned.stride[1])?,
            origin_y: origin(aligned.padding[0])?,
            origin_x: origin(aligned.padding[1])?,
            out_step_y: 1,
            out_step_x: 1,
            out_first_y: 0,
            out_first_x: 0,
            weight_first: 0,
        })
    }
}

/// `conv2d.wgsl`
pub(super) static TILED: Kernel = TILED_KERNEL;

const TILED_KERNEL: Kernel = Kernel {
    shader: "conv2d",
    entry: "main",
    params: ProductParams::FIELDS,
    bindings: &[read("x"), read("weight"), write("y"), write("partial")],
    constants: &["ROWS", "COLUMNS", "WIDE", "MOMENTS"],
    needs: Needs::Nothing,
};

/// `conv2d_cooperative.wgsl` on matrices of 8 x 8.
pub(super) static COOPERATIVE_8: Kernel = COOPERATIVE_KERNEL;

/// `conv2d_cooperative.wgsl` on matrices of 16 x 16.
pub(super) static COOPERATIVE_16: Kernel = Kernel { needs: Needs::Matrices(16), ..COOPERATIVE_KERNEL };

const COOPERATIVE_KERNEL: Kernel = Kernel {
    shader: "conv2d_cooperative",
    constants: &["JOBS_Y", "JOBS_X", "STEP", "WORKGROUP", "MOMENTS"],
    needs: Needs::Matrices(8),
    ..TILED_KERNEL
};

/// `conv2d_subgroup.wgsl`
pub(super) static SUBGROUP: Kernel = Kernel {
    shader: "conv2d_subgroup",
    entry: "main",
    params: ProductParams::FIELDS,
    bindings: &[read("x"), read("weight"), write("y")],
    constants: &["WORKGROUP", "WIDE"],
    needs: Needs::Subgroups,
};

/// `conv2d_subgroup_strip.wgsl`
pub(super) static STRIP: Kernel = Kernel {
    shader: "conv2d_subgroup_strip",
    entry: "main",
    params: ProductParams::FIELDS,
    bindings: &[read("x"), read("weight"), write("y")],
    constants: &["WORKGROUP"],
    needs: Needs::Subgroups,
};

/// Pixels of an invocation of `conv2d_subgroup.wgsl` and `conv2d_subgroup_strip.wgsl`.
const SUBGROUP_PIXELS: usize = 8;

/// How the output channels of a group are divided among workgroups of the subgroup kernels: whether a workgroup takes
/// 16 of them rather than 8, and the number of workgroups.
pub(super) fn subgroup_columns(group_out: usize) -> (bool, usize) {
    let wide = group_out > 8;
    (wide, group_out.div_ceil(if wide { 16 } else { 8 }))
}

/// Workgroups along rows and along the columns of one group, and the constants, for the tile to take.
pub(super) fn tile_grid(
    tile: Option<Tile>,
    rows: usize,
    columns: usize,
    groups: usize,
) -> (usize, usize, [(&'static str, f64); 3]) {
    let tile = tile.unwrap_or_else(|| Tile::choose(rows, columns, groups));
    (tile.row_blocks(rows), tile.column_blocks(columns), tile.constants())
}

/// Whether `conv2d_subgroup_strip.wgsl` can do a product, and without computing many pixels right of the image.
fn suits_strips(params: &ProductParams) -> bool {
    let unused = params.grid_width.next_multiple_of(SUBGROUP_PIXELS as u32) - params.grid_width;
    params.taps_x == 3
        && params.stride_x == 1
        && params.group_out_vectors <= 2
        && unused * 4 <= params.grid_width
}

/// Dispatches the implicit matrix product that `params` describe (all but `blocks_per_group`). Where `moments` are wanted of a
/// result that lies as the pixels do, gives the parts of it whose moments the kernel leaves, if it can.
pub(super) fn lower_product(
    lowering: &mut Lowering<'_>,
    path: Path,
    mut params: ProductParams,
    groups: usize,
    operands: [Operand; 3],
    moments: bool,
) -> Result<Option<Parts>> {
    let pixels = params.pixels as usize;
    let group_out = params.group_out_vectors as usize * 4;
    let flag = ("MOMENTS", f64::from(u8::from(moments)));
    // The kernel, workgroups along the pixels and along the channels of a group, and the constants; and the pixels of a part,
    // where the kernel can leave moments, and such parts of a workgroup.
    let (kernel, pixel_blocks, blocks, constants, parts) = match path {
        Path::Subgroup(size) if suits_strips(&params) => {
            let width = params.grid_width as usize;
            let strips = pixels / width * width.div_ceil(SUBGROUP_PIXELS);
            (&STRIP, strips.div_ceil(size as usize), 1, vec![("WORKGROUP", f64::from(size))], None)
        }
        Path::Subgroup(size) => {
            let (wide, blocks) = subgroup_columns(group_out);
            let constants = vec![("WORKGROUP", f64::from(size)), ("WIDE", f64::from(u8::from(wide)))];
            (&SUBGROUP, pixels.div_ceil(size as usize * SUBGROUP_PIXELS), blocks, constants, None)
        }
        Path::Tiled(tile) => {
            let tile = tile.unwrap_or_else(|| Tile::choose(pixels, group_out, groups));
            let constants = tile.constants().into_iter().chain([flag]).collect();
            let rows = tile.rows as usize;
            (&TILED, tile.row_blocks(pixels), tile.column_blocks(group_out), constants, Some([rows, 1]))
        }
        Path::Cooperative(matrices) => {
            let mut blocks = matrices.blocks(lowering.caps(), pixels, group_out, groups)?;
            blocks.constants.push(flag);
            let kernel = matrices.kernel([&COOPERATIVE_8, &COOPERATIVE_16]);
            (kernel, blocks.rows, blocks.columns, blocks.constants, Some(blocks.job_rows))
        }
        Path::Winograd => return winograd::lower(lowering, &params, operands).map(|()| None),
        Path::Direct | Path::Depthwise => {
            return Err(Error::graph("a direct convolution is no matrix product", "use its own kernel"));
        }
    };
    params.blocks_per_group = lowering.size(blocks)?;
    let [x, y, _] = lowering.fold(pixel_blocks)?;
    let grid = [lowering.size(groups * blocks)?, x, y];
    let Some([rows, parts]) = parts else {
        return lowering.dispatch(kernel, &constants, &params, &operands, grid).map(|()| None);
    };
    let channels = params.out_vectors as usize * 4;
    let count = pixels.div_ceil(rows).min(pixel_blocks * parts);
    // Without moments nothing is written there, but a kernel has one set of bindings.
    let bytes = if moments { 8 * count * channels } else { 16 };
    let partial = lowering.workspace(bytes as u64);
    let [x, weight, y] = operands;
    lowering.dispatch(kernel, &constants, &params, &[x, weight, y, partial], grid)?;
    Ok(moments.then_some(Parts { partial, count, rows }))
}
