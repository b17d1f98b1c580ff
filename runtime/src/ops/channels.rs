//! The channels of a convolution's operands, filled up to the multiples of four that its kernels ask for.

use crate::Result;
use crate::kernel::{Kernel, Needs, ParamBlock, read, write};
use crate::op::{Lowering, Operand};
use crate::ops::convolution::Geometry;

crate::param_block! {
    /// Parameters of `conv2d_pad.wgsl`.
    pub struct PadParams {
        /// Invocations: one for four values of the inner extent.
        len: u32,
        /// Groups of channels.
        groups: u32,
        /// Outer extent of the source.
        from_a: u32,
        /// Inner extent of the source.
        from_b: u32,
        /// Outer extent of the result.
        to_a: u32,
        /// Inner extent of the result.
        to_b: u32,
    }
}

/// `conv2d_pad.wgsl`
pub(super) static PAD: Kernel = Kernel {
    shader: "conv2d_pad",
    entry: "main",
    params: PadParams::FIELDS,
    bindings: &[read("input"), write("output")],
    constants: &["WORKGROUP"],
    needs: Needs::Nothing,
};

/// A tensor `[rows, a, groups, b]` whose extents `a` and `b` may be filled up with zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Channels {
    pub rows: usize,
    pub groups: usize,
    pub a: usize,
    pub b: usize,
}

impl Channels {
    pub fn elements(&self) -> usize {
        self.rows * self.a * self.groups * self.b
    }

    /// Activations of `pixels`.
    pub fn activations(pixels: usize, groups: usize, group_channels: usize) -> Self {
        Self { rows: pixels, groups, a: 1, b: group_channels }
    }

    /// The weights of a convolution.
    pub fn weights(geometry: &Geometry) -> Self {
        Self { rows: geometry.taps(), groups: geometry.groups, a: geometry.group_in, b: geometry.group_out }
    }

    /// `from`, or a copy of it whose channels are filled up to `aligned`.
    pub fn pad(&self, lowering: &mut Lowering<'_>, from: Operand, aligned: &Self) -> Result<Operand> {
        if self == aligned {
            return Ok(from);
        }
        let to = lowering.scratch(aligned.elements());
        self.copy(lowering, from, to, aligned)?;
        Ok(to)
    }

    /// Where to write a result that is wanted in `to`: there, or to a scratch buffer of the `aligned` extents, from
    /// which [`Channels::copy`] then has to crop it.
    pub fn target(&self, lowering: &mut Lowering<'_>, to: Operand, aligned: &Self) -> Operand {
        if self == aligned { to } else { lowering.scratch(aligned.elements()) }
    }

    /// Copies a tensor of these extents to one of the extents `result`. Nothing is done where that is the same buffer.
    pub fn copy(&self, lowering: &mut Lowering<'_>, from: Operand, to: Operand, result: &Self) -> Result<()> {
        if from == to {
            return Ok(());
        }
        lowering.size(self.elements().max(result.elements()))?;
        let invocations = result.rows * result.a * result.groups * result.b.div_ceil(4);
        let params = PadParams {
            len: lowering.size(invocations)?,
            groups: lowering.size(self.groups)?,
            from_a: lowering.size(self.a)?,
            from_b: lowering.size(self.b)?,
            to_a: lowering.size(result.a)?,
            to_b: lowering.size(result.b)?,
        };
        let grid = lowering.fold(invocations.div_ceil(256))?;
        lowering.dispatch(&PAD, &[("WORKGROUP", 256.0)], &params, &[from, to], grid)
    }
}
