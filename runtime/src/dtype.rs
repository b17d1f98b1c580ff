//! Element types, and the description of a tensor.

use std::fmt;

use crate::Shape;

/// The element type of a tensor on the GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit IEEE floating point.
    F32,
    /// 16-bit IEEE floating point: how mixed precision stores activations and copies of weights. Kernels compute with
    /// what they load from it in 32 bits.
    F16,
    /// 32-bit unsigned integer: labels, flags, seeds, and four packed bytes of an image.
    U32,
}

impl DType {
    /// Bytes an element.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 | Self::U32 => 4,
            Self::F16 => 2,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::U32 => "u32",
        })
    }
}

/// Shape and element type of a tensor.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TensorDesc {
    /// The extents.
    pub shape: Shape,
    /// The element type.
    pub dtype: DType,
}

impl TensorDesc {
    /// An f32 tensor.
    pub fn f32(shape: impl Into<Shape>) -> Self {
        Self { shape: shape.into(), dtype: DType::F32 }
    }

    /// An f16 tensor.
    pub fn f16(shape: impl Into<Shape>) -> Self {
        Self { shape: shape.into(), dtype: DType::F16 }
    }

    /// A u32 tensor.
    pub fn u32(shape: impl Into<Shape>) -> Self {
        Self { shape: shape.into(), dtype: DType::U32 }
    }

    /// The tensor with elements of another type.
    pub fn with(&self, dtype: DType) -> Self {
        Self { shape: self.shape.clone(), dtype }
    }

    /// Whether the elements are floats, of either width.
    pub fn is_float(&self) -> bool {
        matches!(self.dtype, DType::F32 | DType::F16)
    }

    /// Bytes of the whole tensor, filled up to the four that buffers and bindings are multiples of.
    pub fn bytes(&self) -> u64 {
        (self.shape.elements() as u64 * self.dtype.bytes() as u64).next_multiple_of(4)
    }
}

impl fmt::Display for TensorDesc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.dtype, self.shape)
    }
}
