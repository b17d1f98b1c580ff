//! Whether an adapter has done what it was given: a kernel at the end of each submission that says so.

use crate::kernel::{Kernel, Needs, ParamBlock, write};

crate::param_block! {
    /// Parameters of `receipt.wgsl`: the token of a step, which is uploaded with its inputs.
    pub struct ReceiptParams {
        /// Its lower word.
        low: u32,
        /// Its upper word.
        high: u32,
    }
}

pub(crate) static RECEIPT: Kernel = Kernel {
    shader: "receipt",
    entry: "main",
    params: ReceiptParams::FIELDS,
    bindings: &[write("receipt")],
    constants: &[],
    needs: Needs::Nothing,
};
