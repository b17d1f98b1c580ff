//! Tensors as a pickle describes them: a storage outside of it, an offset, sizes and strides, all of them checked.

use crate::pickle::{Id, Node, Pickle, qualified};

/// The type of an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// 64-bit float.
    F64,
    /// 32-bit float.
    F32,
    /// 16-bit float of IEEE 754.
    F16,
    /// Brain float.
    Bf16,
    /// 64-bit integer.
    I64,
    /// 32-bit integer.
    I32,
    /// 16-bit integer.
    I16,
    /// 8-bit integer.
    I8,
    /// 32-bit unsigned integer.
    U32,
    /// 16-bit unsigned integer.
    U16,
    /// 8-bit unsigned integer.
    U8,
    /// A byte that is 0 or 1.
    Bool,
}

impl Element {
    /// The element of a storage class such as `FloatStorage`.
    fn of_storage(class: &str) -> Option<Self> {
        Some(match class {
            "DoubleStorage" => Self::F64,
            "FloatStorage" => Self::F32,
            "HalfStorage" => Self::F16,
            "BFloat16Storage" => Self::Bf16,
            "LongStorage" => Self::I64,
            "IntStorage" => Self::I32,
            "ShortStorage" => Self::I16,
            "CharStorage" => Self::I8,
            "ByteStorage" => Self::U8,
            "BoolStorage" => Self::Bool,
            _ => return None,
        })
    }

    /// The element that PyTorch's `dtype` of this name stands for.
    fn of_dtype(name: &str) -> Option<Self> {
        Some(match name {
            "float64" | "double" => Self::F64,
            "float32" | "float" => Self::F32,
            "float16" | "half" => Self::F16,
            "bfloat16" => Self::Bf16,
            "int64" | "long" => Self::I64,
            "int32" | "int" => Self::I32,
            "int16" | "short" => Self::I16,
            "int8" => Self::I8,
            "uint32" => Self::U32,
            "uint16" => Self::U16,
            "uint8" => Self::U8,
            "bool" => Self::Bool,
            _ => return None,
        })
    }

    /// Bytes of an element.
    pub fn width(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 | Self::U16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    /// Whether it is read as a float rather than as an integer.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F64 | Self::F32 | Self::F16 | Self::Bf16)
    }

    /// The elements in `bytes`, little-endian, appended to `out`; nothing for integers.
    pub fn floats(self, bytes: &[u8], out: &mut Vec<f32>) {
        match self {
            Self::F64 => decode(bytes, out, |b| f64::from_le_bytes(b) as f32),
            Self::F32 => decode(bytes, out, f32::from_le_bytes),
            Self::F16 => decode(bytes, out, |b| half::f16::from_le_bytes(b).to_f32()),
            Self::Bf16 => decode(bytes, out, |b| half::bf16::from_le_bytes(b).to_f32()),
            _ => {}
        }
    }

    /// The same for integers; nothing for floats.
    pub fn integers(self, bytes: &[u8], out: &mut Vec<i64>) {
        match self {
            Self::I64 => decode(bytes, out, i64::from_le_bytes),
            Self::I32 => decode(bytes, out, |b| i32::from_le_bytes(b).into()),
            Self::I16 => decode(bytes, out, |b| i16::from_le_bytes(b).into()),
            Self::I8 => decode(bytes, out, |b| i8::from_le_bytes(b).into()),
            Self::U32 => decode(bytes, out, |b| u32::from_le_bytes(b).into()),
            Self::U16 => decode(bytes, out, |b| u16::from_le_bytes(b).into()),
            Self::U8 => decode(bytes, out, |b| u8::from_le_bytes(b).into()),
            Self::Bool => decode(bytes, out, |b| (u8::from_le_bytes(b) != 0).into()),
            Self::F64 | Self::F32 | Self::F16 | Self::Bf16 => {}
        }
    }
}

fn decode<T, const N: usize>(bytes: &[u8], out: &mut Vec<T>, of: impl Fn([u8; N]) -> T) {
    out.extend(bytes.as_chunks::<N>().0.iter().map(|chunk| of(*chunk)));
}

/// Elements of a storage, seen with sizes and strides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// The storage's name in the archive.
    pub storage: String,
    /// The bytes that the storage is said to have.
    pub storage_bytes: usize,
    /// The type of its elements.
    pub element: Element,
    /// Extents.
    pub shape: Vec<usize>,
    /// The distances in the storage between neighbours along each extent, in elements.
    pub strides: Vec<usize>,
    /// The first element's place in the storage.
    pub offset: usize,
    /// The product of the extents.
    pub elements: usize,
}

impl Tensor {
    /// Whether its elements lie one after another in the storage.
    pub fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.elements == 0
            || self.shape.iter().zip(&self.strides).rev().all(|(&size, &stride)| {
                let fits = size == 1 || stride == expected;
                expected *= size;
                fits
            })
    }

    /// Calls `each` with the place in the storage of every element, in the order of the tensor.
    pub fn for_each_place<E>(&self, mut each: impl FnMut(usize) -> Result<(), E>) -> Result<(), E> {
        let mut index = vec![0; self.shape.len()];
        let mut place = self.offset;
        for _ in 0..self.elements {
            each(place)?;
            // Counts up the last index; where it is full it starts anew and the one before counts up.
            for ((at, &size), &stride) in index.iter_mut().zip(&self.shape).zip(&self.strides).rev() {
                *at += 1;
                place += stride;
                if *at < size {
                    break;
                }
                *at = 0;
                place -= size * stride;
            }
        }
        Ok(())
    }
}

/// The most dimensions of a tensor; PyTorch has the same bound.
const MAX_RANK: usize = 16;
/// The longest name of a storage or of its class: a tensor keeps a copy, and many tensors may have one name.
const MAX_NAME: usize = 256;
/// How deep the wrappers of a tensor (parameter, subclass) may be nested.
const MAX_WRAPPERS: usize = 8;

/// The tensor that the value `id` is, `None` for a value that is no tensor, and why it cannot be read.
pub fn tensor(pickle: &Pickle<'_>, id: Id) -> Option<Result<Tensor, String>> {
    let mut id = id;
    for _ in 0..MAX_WRAPPERS {
        let (module, name, args, _) = pickle.call(id)?;
        match (module, name, args) {
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state", &[data, ..])
            | ("torch.nn.parameter", "Parameter" | "Buffer", &[data, ..]) => id = data,
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2" | "_rebuild_tensor_v3", args) => {
                return Some(dense(pickle, args, name == "_rebuild_tensor_v3"));
            }
            // A tensor of a subclass: the function that rebuilds it, the class, the function's arguments, its state.
            ("torch._tensor", "_rebuild_from_type_v2", &[function, _, args, ..]) => {
                let (&Node::Global("torch._utils", name), Some(args)) =
                    (pickle.node(function), pickle.sequence(args))
                else {
                    return Some(Err("a tensor of a class of its own".to_owned()));
                };
                match (name, args) {
                    ("_rebuild_tensor" | "_rebuild_tensor_v2" | "_rebuild_tensor_v3", args) => {
                        return Some(dense(pickle, args, name == "_rebuild_tensor_v3"));
                    }
                    ("_rebuild_parameter" | "_rebuild_parameter_with_state", &[data, ..]) => id = data,
                    _ => return Some(Err(format!("a tensor made by {}", qualified("torch._utils", name)))),
                }
            }
            ("torch._utils", kind, _) if kind.starts_with("_rebuild_") => return Some(Err(unusual(kind))),
            _ => return None,
        }
    }
    Some(Err("a tensor wrapped too often".to_owned()))
}

fn unusual(kind: &str) -> String {
    match kind {
        "_rebuild_sparse_tensor" | "_rebuild_sparse_csr_tensor" => "a sparse tensor".to_owned(),
        "_rebuild_qtensor" => "a quantised tensor".to_owned(),
        "_rebuild_meta_tensor_no_storage" => "a tensor without values (of the meta device)".to_owned(),
        "_rebuild_nested_tensor" => "a nested tensor".to_owned(),
        _ => "a tensor of an unknown kind".to_owned(),
    }
}

fn dense(pickle: &Pickle<'_>, args: &[Id], with_dtype: bool) -> Result<Tensor, String> {
    let &[storage, offset, size, stride, ref rest @ ..] = args else {
        return Err("a tensor without a storage, an offset, sizes and strides".to_owned());
    };
    let Node::Persistent(reference) = *pickle.node(storage) else {
        return Err(format!("{} instead of a storage", pickle.describe(storage)));
    };
    let (class, key, count) = reference_of(pickle, reference)?;
    // Version 3 names the elements' type after requires_grad and the hooks; its storage is one of bytes.
    let dtype = if with_dtype { rest.get(2).copied() } else { None };
    let of_dtype = |name: &str| {
        Element::of_dtype(name).ok_or_else(|| format!("elements of {}", qualified("torch", name)))
    };
    let of_class = || Element::of_storage(class).ok_or_else(|| format!("elements of a {class}"));
    let (element, width) = match dtype.map(|id| pickle.node(id)) {
        Some(&Node::Global("torch", name)) if class == "UntypedStorage" => (of_dtype(name)?, 1),
        Some(&Node::Global("torch", name)) => (of_dtype(name)?, of_class()?.width()),
        Some(_) => return Err("a type of elements that is unknown".to_owned()),
        None => {
            let element = of_class()?;
            (element, element.width())
        }
    };
    let storage_bytes = count.checked_mul(width);
    let storage_bytes = storage_bytes.ok_or_else(|| format!("a storage of {count} elements"))?;
    let shape = numbers(pickle, size).ok_or_else(|| "sizes that are not numbers of 0 or more".to_owned())?;
    let strides =
        numbers(pickle, stride).ok_or_else(|| "strides that are not numbers of 0 or more".to_owned())?;
    let offset =
        number(pickle, offset).ok_or_else(|| "an offset that is not a number of 0 or more".to_owned())?;
    if shape.len() != strides.len() || shape.len() > MAX_RANK {
        return Err(format!("{} sizes and {} strides", shape.len(), strides.len()));
    }
    let large = || format!("shape {shape:?} with strides {strides:?}");
    // As if every extent were at least 1, so that no product of some of them overflows either.
    let most = shape.iter().try_fold(1_usize, |product, &size| product.checked_mul(size.max(1)));
    let most = most.filter(|&most| most <= usize::MAX / 16).ok_or_else(large)?;
    let elements = if shape.contains(&0) { 0 } else { most };
    let reach = shape
        .iter()
        .zip(&strides)
        .try_fold(0_usize, |reach, (&size, &stride)| reach.checked_add(stride.checked_mul(size.max(1) - 1)?));
    let last = reach.and_then(|reach| reach.checked_add(offset)).ok_or_else(large)?;
    let held = storage_bytes / element.width();
    if elements > 0 && last >= held {
        return Err(format!("{} from {offset} on in a storage of {held} elements", large()));
    }
    // The walk goes a step past the end of each extent before it turns back.
    let past = shape
        .iter()
        .zip(&strides)
        .try_fold(last, |sum, (&size, &stride)| sum.checked_add(stride.checked_mul(size)?));
    past.ok_or_else(large)?;
    Ok(Tensor { storage: key.to_owned(), storage_bytes, element, shape, strides, offset, elements })
}

/// What a reference to something outside the pickle says: the class of a storage, its name in the archive, and its number
/// of elements.
///
/// # Errors
/// A reference to anything else.
pub fn reference_of<'p>(pickle: &'p Pickle<'_>, id: Id) -> Result<(&'p str, &'p str, usize), String> {
    let other = || "a reference to something that is not a storage".to_owned();
    let Some(&[kind, class, key, _location, count]) = pickle.sequence(id) else { return Err(other()) };
    if text(pickle, kind) != Some("storage") {
        return Err(other());
    }
    let &Node::Global(module, class) = pickle.node(class) else { return Err(other()) };
    if !matches!(module, "torch" | "torch.storage" | "torch.cuda") || !class.ends_with("Storage") {
        return Err(format!("a storage of class {}", qualified(module, class)));
    }
    let key = text(pickle, key).ok_or_else(other)?;
    if key.len() > MAX_NAME || class.len() > MAX_NAME {
        return Err(format!("a storage with a name of {} bytes", key.len().max(class.len())));
    }
    let count = number(pickle, count).ok_or_else(|| format!("storage {key} without a number of elements"))?;
    Ok((class, key, count))
}

fn text<'p>(pickle: &'p Pickle<'_>, id: Id) -> Option<&'p str> {
    match pickle.node(id) {
        Node::Str(text) => Some(text),
        _ => None,
    }
}

fn number(pickle: &Pickle<'_>, id: Id) -> Option<usize> {
    match *pickle.node(id) {
        Node::Int(value) => usize::try_from(value).ok(),
        _ => None,
    }
}

/// A tuple of numbers, plain or as `torch.Size`.
fn numbers(pickle: &Pickle<'_>, id: Id) -> Option<Vec<usize>> {
    let items = match pickle.call(id) {
        Some(("torch", "Size", &[items], _)) => pickle.sequence(items)?,
        _ => pickle.sequence(id)?,
    };
    items.iter().take(MAX_RANK + 1).map(|&item| number(pickle, item)).collect()
}
