//! Tensors on the host: [`HostTensor`] holds what the GPU holds, [`Array`] is what references compute with.

use std::borrow::Cow;

use half::f16;

use crate::{DType, Error, Result, Shape, TensorDesc};

/// The elements of a [`HostTensor`].
#[derive(Clone, Debug, PartialEq)]
pub enum HostData {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// 16-bit floats.
    F16(Vec<f16>),
    /// 32-bit unsigned integers.
    U32(Vec<u32>),
}

impl HostData {
    fn not(&self, wanted: &str) -> Error {
        let (found, remedy) = match self {
            Self::F32(_) => ("an f32", "read it with as_f32"),
            Self::F16(_) => ("an f16", "read it with data()"),
            Self::U32(_) => ("a u32", "read it with as_u32"),
        };
        Error::graph(format!("{found} tensor was read as {wanted}"), remedy)
    }
}

/// A dense row-major tensor in host memory, with the element types of the GPU.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    shape: Shape,
    data: HostData,
}

impl HostTensor {
    /// A tensor of floats. Fails where the number of values is not that of the shape.
    pub fn from_f32(shape: impl Into<Shape>, values: Vec<f32>) -> Result<Self> {
        let shape = shape.into();
        check_len(&shape, values.len())?;
        Ok(Self { shape, data: HostData::F32(values) })
    }

    /// A tensor of 16-bit floats. Fails where the number of values is not that of the shape.
    pub fn from_f16(shape: impl Into<Shape>, values: Vec<f16>) -> Result<Self> {
        let shape = shape.into();
        check_len(&shape, values.len())?;
        Ok(Self { shape, data: HostData::F16(values) })
    }

    /// A tensor of unsigned integers. Fails where the number of values is not that of the shape.
    pub fn from_u32(shape: impl Into<Shape>, values: Vec<u32>) -> Result<Self> {
        let shape = shape.into();
        check_len(&shape, values.len())?;
        Ok(Self { shape, data: HostData::U32(values) })
    }

    /// A tensor of `desc` from its little-endian bytes, as read back from the GPU.
    pub fn from_bytes(desc: &TensorDesc, bytes: &[u8]) -> Result<Self> {
        // An odd number of 16-bit elements is filled up.
        let used = desc.shape.elements() * desc.dtype.bytes();
        let bytes = bytes.get(..used).filter(|_| bytes.len() as u64 == desc.bytes()).unwrap_or(&[]);
        check_len(&desc.shape, bytes.len() / desc.dtype.bytes())?;
        let data = match desc.dtype {
            DType::F32 => HostData::F32(bytemuck::pod_collect_to_vec(bytes)),
            DType::F16 => HostData::F16(bytemuck::pod_collect_to_vec(bytes)),
            DType::U32 => HostData::U32(bytemuck::pod_collect_to_vec(bytes)),
        };
        Ok(Self { shape: desc.shape.clone(), data })
    }

    /// Zeros of the given shape and type.
    pub fn zeros(desc: &TensorDesc) -> Self {
        let n = desc.shape.elements();
        let data = match desc.dtype {
            DType::F32 => HostData::F32(vec![0.0; n]),
            DType::F16 => HostData::F16(vec![f16::ZERO; n]),
            DType::U32 => HostData::U32(vec![0; n]),
        };
        Self { shape: desc.shape.clone(), data }
    }

    /// The shape.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Shape and element type.
    pub fn desc(&self) -> TensorDesc {
        let dtype = match self.data {
            HostData::F32(_) => DType::F32,
            HostData::F16(_) => DType::F16,
            HostData::U32(_) => DType::U32,
        };
        TensorDesc { shape: self.shape.clone(), dtype }
    }

    /// The elements.
    pub fn data(&self) -> &HostData {
        &self.data
    }

    /// The elements as 32-bit floats; an error where they are anything else.
    pub fn as_f32(&self) -> Result<&[f32]> {
        match &self.data {
            HostData::F32(values) => Ok(values),
            other => Err(other.not("f32")),
        }
    }

    /// The elements as 32-bit floats, without a copy; an error where they are anything else.
    pub fn into_f32(self) -> Result<Vec<f32>> {
        match self.data {
            HostData::F32(values) => Ok(values),
            other => Err(other.not("f32")),
        }
    }

    /// The elements as unsigned integers; an error where they are anything else.
    pub fn as_u32(&self) -> Result<&[u32]> {
        match &self.data {
            HostData::U32(values) => Ok(values),
            other => Err(other.not("u32")),
        }
    }

    /// The elements as bytes, in the layout of the GPU but for what fills up an odd number of 16-bit ones.
    pub fn bytes(&self) -> &[u8] {
        match &self.data {
            HostData::F32(values) => bytemuck::cast_slice(values),
            HostData::F16(values) => bytemuck::cast_slice(values),
            HostData::U32(values) => bytemuck::cast_slice(values),
        }
    }

    /// The elements as bytes, as many as a buffer holds: an odd number of 16-bit ones is filled up.
    pub fn padded_bytes(&self) -> Cow<'_, [u8]> {
        let bytes = self.bytes();
        if bytes.len().is_multiple_of(4) {
            return bytes.into();
        }
        let mut padded = bytes.to_vec();
        padded.resize(bytes.len().next_multiple_of(4), 0);
        padded.into()
    }

    /// The tensor with its floats rounded to 16 bits; integers as they are.
    pub fn to_half(&self) -> Self {
        let data = match &self.data {
            HostData::F32(values) => HostData::F16(values.iter().map(|&v| f16::from_f32(v)).collect()),
            other => other.clone(),
        };
        Self { shape: self.shape.clone(), data }
    }
}

/// A tensor whose elements are all f64: what references compute with, so that rounding in the reference never
/// hides an error of a kernel and finite differences have digits to spare. A u32 element is exact as an f64.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// The extents.
    pub shape: Shape,
    /// The elements, row-major.
    pub data: Vec<f64>,
}

impl Array {
    /// An array with the given elements. The lengths must agree: references are called by the runtime, which checks.
    pub fn new(shape: impl Into<Shape>, data: Vec<f64>) -> Self {
        let shape = shape.into();
        debug_assert_eq!(shape.elements(), data.len(), "array {shape} from {} values", data.len());
        Self { shape, data }
    }

    /// An array of zeros.
    pub fn zeros(shape: impl Into<Shape>) -> Self {
        let shape = shape.into();
        let n = shape.elements();
        Self { shape, data: vec![0.0; n] }
    }

    /// An array of `shape` whose element `i` is `f(i)`.
    pub fn from_fn(shape: impl Into<Shape>, f: impl FnMut(usize) -> f64) -> Self {
        let shape = shape.into();
        let data = (0..shape.elements()).map(f).collect();
        Self { shape, data }
    }

    /// The only element of a one-element array; NaN where there is none, so that a mistake is seen.
    pub fn item(&self) -> f64 {
        self.data.first().copied().unwrap_or(f64::NAN)
    }
}

impl From<&HostTensor> for Array {
    fn from(tensor: &HostTensor) -> Self {
        let data = match &tensor.data {
            HostData::F32(values) => values.iter().map(|&v| f64::from(v)).collect(),
            HostData::F16(values) => values.iter().map(|&v| f64::from(v)).collect(),
            HostData::U32(values) => values.iter().map(|&v| f64::from(v)).collect(),
        };
        Self { shape: tensor.shape.clone(), data }
    }
}

fn check_len(shape: &Shape, found: usize) -> Result<()> {
    if shape.elements() == found {
        return Ok(());
    }
    Err(Error::graph(
        format!("a tensor of shape {shape} needs {} values; found {found}", shape.elements()),
        "give as many values as the shape has elements",
    ))
}
