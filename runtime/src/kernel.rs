//! Kernels: a WGSL entry point, declared once in Rust beside the op that uses it, and checked against the WGSL.
//!
//! Every kernel has its parameter block at `@group(0) @binding(0)` (a uniform buffer) and its tensors at bindings
//! 1, 2, ... of the same group (storage buffers), in the order of [`Kernel::bindings`].

use std::borrow::Cow;

use bytemuck::Pod;

use crate::caps::Caps;
use crate::dtype::DType;

/// How a kernel uses a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// `var<storage, read>`
    Read,
    /// `var<storage, read_write>`
    ReadWrite,
}

/// A storage binding of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The name of the WGSL variable.
    pub name: &'static str,
    /// Its access mode.
    pub access: Access,
}

/// A binding that the kernel reads.
pub const fn read(name: &'static str) -> Binding {
    Binding { name, access: Access::Read }
}

/// A binding that the kernel writes (and may read).
pub const fn write(name: &'static str) -> Binding {
    Binding { name, access: Access::ReadWrite }
}

/// The type of a field of a parameter block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldType {
    /// `u32`
    U32,
    /// `i32`
    I32,
    /// `f32`
    F32,
}

/// Rust types that a parameter block may hold, and what they are in WGSL.
pub trait FieldOf {
    /// The WGSL type.
    const TYPE: FieldType;
}
impl FieldOf for u32 {
    const TYPE: FieldType = FieldType::U32;
}
impl FieldOf for i32 {
    const TYPE: FieldType = FieldType::I32;
}
impl FieldOf for f32 {
    const TYPE: FieldType = FieldType::F32;
}

/// A field of a parameter block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name, the same in Rust and WGSL.
    pub name: &'static str,
    /// Its type.
    pub ty: FieldType,
    /// Its offset in bytes.
    pub offset: usize,
}

/// A `#[repr(C)]` struct of scalars that a kernel takes as its uniform parameter block.
/// Made by [`param_block!`](crate::param_block).
pub trait ParamBlock: Pod {
    /// The fields, in order.
    const FIELDS: &'static [Field];
}

/// Declares a parameter block: a `#[repr(C)]` Pod struct and the table of its fields, which a test compares
/// with the WGSL struct of the kernel.
///
/// ```
/// epl_runtime::param_block! {
///     /// Parameters of the kernel `scale`.
///     pub struct ScaleParams {
///         /// Number of elements.
///         len: u32,
///         /// Factor.
///         factor: f32,
///     }
/// }
/// ```
#[macro_export]
macro_rules! param_block {
    ($(#[$meta:meta])* $vis:vis struct $name:ident { $($(#[$fmeta:meta])* $field:ident : $ty:ty),* $(,)? }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, $crate::bytemuck::Pod, $crate::bytemuck::Zeroable)]
        #[bytemuck(crate = "epl_runtime::bytemuck")]
        $vis struct $name { $($(#[$fmeta])* pub $field: $ty),* }

        impl $crate::kernel::ParamBlock for $name {
            const FIELDS: &'static [$crate::kernel::Field] = &[$($crate::kernel::Field {
                name: stringify!($field),
                ty: <$ty as $crate::kernel::FieldOf>::TYPE,
                offset: ::std::mem::offset_of!($name, $field),
            }),*];
        }
    };
}

/// A compute entry point as Rust sees it. Declared as a `static` beside the op that dispatches it.
#[derive(Debug)]
pub struct Kernel {
    /// The shader's name in `epl_shaders::SHADERS`.
    pub shader: &'static str,
    /// The entry point.
    pub entry: &'static str,
    /// The fields of the parameter block at binding 0.
    pub params: &'static [Field],
    /// The storage bindings at 1, 2, ...
    pub bindings: &'static [Binding],
    /// The names of the `override` constants that a dispatch may set.
    pub constants: &'static [&'static str],
    /// What the adapter must have.
    pub needs: Needs,
}

/// An optional feature that a kernel needs; it may only be dispatched where the adapter has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Needs {
    /// Nothing beyond WebGPU.
    Nothing,
    /// Subgroup operations.
    Subgroups,
    /// Cooperative matrices of so many rows and columns: the kernel is that form of its shader.
    Matrices(u32),
}

impl Needs {
    /// Whether an adapter has it, for elements that are stored, and multiplied, as `element`.
    pub fn met_by(self, caps: &Caps, element: DType) -> bool {
        match self {
            Self::Nothing => true,
            Self::Subgroups => caps.subgroups.is_some(),
            Self::Matrices(side) => caps.matrix_side(element) == Some(side),
        }
    }
}

impl std::fmt::Display for Needs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Nothing => write!(f, "nothing"),
            Self::Subgroups => write!(f, "subgroups"),
            Self::Matrices(side) => write!(f, "cooperative matrices of {side}x{side}"),
        }
    }
}

impl Kernel {
    /// The WGSL source, or `None` if the shader table has no such name (a test makes sure that it has).
    pub fn source(&self) -> Option<&'static str> {
        epl_shaders::source(self.shader)
    }

    /// Whether the kernel can store its elements in 16 bits: where its source has the line [`epl_shaders::ELEMENT`].
    pub fn has_half(&self) -> bool {
        self.source().is_some_and(epl_shaders::has_half)
    }

    /// Which form of its shader the kernel is, for elements that are stored in 16 bits, or in 32.
    pub fn form(&self, half: bool) -> epl_shaders::Form {
        epl_shaders::Form { half, large_matrices: self.needs == Needs::Matrices(16) }
    }

    /// The WGSL source for elements that are stored in 16 bits, or in 32.
    pub fn source_for(&self, half: bool) -> Option<Cow<'static, str>> {
        Some(self.form(half).of(self.source()?))
    }

    /// What that source is called in `epl_shaders::modules`.
    pub fn module_name(&self, half: bool) -> String {
        self.form(half).name(self.shader)
    }

    /// The forms that the kernel has, each as whether elements are stored in 16 bits: no unit multiplies large matrices of
    /// 32-bit elements.
    pub fn halves(&self) -> impl Iterator<Item = bool> + use<> {
        let (half, large) = (self.has_half(), self.needs == Needs::Matrices(16));
        [false, true].into_iter().filter(move |&wanted| if wanted { half } else { !large })
    }
}
