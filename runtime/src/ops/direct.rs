//! The direct kernels of `conv2d` and of its input gradient, one invocation an output element: for few channels a group.

use crate::Result;
use crate::kernel::Kernel;
use crate::op::{Lowering, Operand};
use crate::ops::convolution::Geometry;

crate::param_block! {
    /// Parameters of `conv2d_direct.wgsl` and `conv2d_grad_input.wgsl`.
    pub struct DirectParams {
        /// Elements of the result.
        len: u32,
        /// Height of x.
        in_height: u32,
        /// Width of x.
        in_width: u32,
        /// Input channels of a group.
        group_in: u32,
        /// Height of y.
        out_height: u32,
        /// Width of y.
        out_width: u32,
        /// Output channels of a group.
        group_out: u32,
        /// Groups.
        groups: u32,
        /// Kernel rows.
        kernel_height: u32,
        /// Kernel columns.
        kernel_width: u32,
        /// Stride along the height.
        stride_y: u32,
        /// Stride along the width.
        stride_x: u32,
        /// Rows of zeros above x.
        pad_top: u32,
        /// Columns of zeros left of x.
        pad_left: u32,
    }
}

impl DirectParams {
    /// The parameters for a result of `len` elements.
    pub(super) fn new(lowering: &Lowering<'_>, geometry: &Geometry, len: usize) -> Result<Self> {
        Ok(Self {
            len: lowering.size(len)?,
            in_height: lowering.size(geometry.in_size[0])?,
            in_width: lowering.size(geometry.in_size[1])?,
            group_in: lowering.size(geometry.group_in)?,
            out_height: lowering.size(geometry.out_size[0])?,
            out_width: lowering.size(geometry.out_size[1])?,
            group_out: lowering.size(geometry.group_out)?,
            groups: lowering.size(geometry.groups)?,
            kernel_height: lowering.size(geometry.kernel[0])?,
            kernel_width: lowering.size(geometry.kernel[1])?,
            stride_y: lowering.size(geometry.stride[0])?,
            stride_x: lowering.size(geometry.stride[1])?,
            pad_top: lowering.size(geometry.padding[0])?,
            pad_left: lowering.size(geometry.padding[1])?,
        })
    }
}

/// Invocations of a workgroup of the direct kernels.
pub(super) const DIRECT_WORKGROUP: usize = 64;

/// Dispatches `kernel`, one of the two direct kernels with [`DirectParams`], for a result of `len` elements.
pub(super) fn lower_direct(
    lowering: &mut Lowering<'_>,
    kernel: &'static Kernel,
    geometry: &Geometry,
    len: usize,
    operands: [Operand; 3],
) -> Result<()> {
    let params = DirectParams::new(lowering, geometry, len)?;
    let grid = lowering.fold(len.div_ceil(DIRECT_WORKGROUP))?;
    lowering.dispatch(kernel, &[("WORKGROUP", DIRECT_WORKGROUP as f64)], &params, &operands, grid)
}
