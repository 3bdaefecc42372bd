//! The names that a pickle may mention, and what they stand for. Nothing outside these tables is ever looked up.

use crate::tensor_file::Dtype;

/// Meaning of a name on the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// `torch._utils._rebuild_tensor` and `_rebuild_tensor_v2`: a view of a typed storage.
    Tensor,
    /// `torch._utils._rebuild_tensor_v3`: a view of an untyped storage with the element type beside it.
    TypedTensor,
    /// `torch._utils._rebuild_parameter` and its variant with attributes: the tensor itself.
    Parameter,
    /// A class of storages, by its place in [`STORAGES`].
    Storage(u8),
    /// A `torch.dtype`, by its place in [`TORCH_DTYPES`].
    TorchDtype(u8),
    /// `torch.Size`: a tuple.
    Size,
    /// `collections.OrderedDict`.
    OrderedDict,
    /// `collections.defaultdict`.
    DefaultDict,
    /// `torch.nn.ParameterDict`, which keeps its parameters in its state: a dictionary of that state.
    ParameterDict,
    /// numpy's maker of an empty array, which a state then fills.
    NumpyReconstruct,
    /// numpy's maker of an array from its bytes.
    NumpyFromBuffer,
    /// numpy's maker of one number.
    NumpyScalar,
    /// `numpy.dtype`.
    NumpyDtype,
    /// `_codecs.encode`: how protocol 2 writes bytes.
    Encode,
    /// `bytes` or `bytearray`.
    Bytes,
    /// `set` or `frozenset`.
    Set,
    /// A type that is only mentioned.
    Type,
}

/// One row of the list: modules (a name moved over the versions), attribute, meaning.
type Row = (&'static [&'static str], &'static str, Known);

const TORCH_UTILS: &[&str] = &["torch._utils"];
const NUMPY_MULTIARRAY: &[&str] = &["numpy.core.multiarray", "numpy._core.multiarray"];
const NUMPY_NUMERIC: &[&str] = &["numpy.core.numeric", "numpy._core.numeric"];
const BUILTINS: &[&str] = &["builtins", "__builtin__"];
const COLLECTIONS: &[&str] = &["collections"];

const NAMES: [Row; 31] = [
    (TORCH_UTILS, "_rebuild_tensor", Known::Tensor),
    (TORCH_UTILS, "_rebuild_tensor_v2", Known::Tensor),
    (TORCH_UTILS, "_rebuild_tensor_v3", Known::TypedTensor),
    (TORCH_UTILS, "_rebuild_parameter", Known::Parameter),
    (TORCH_UTILS, "_rebuild_parameter_with_state", Known::Parameter),
    (&["torch"], "Size", Known::Size),
    (&["torch.storage"], "TypedStorage", Known::Type),
    (COLLECTIONS, "OrderedDict", Known::OrderedDict),
    (COLLECTIONS, "defaultdict", Known::DefaultDict),
    (&["torch.nn.modules.container"], "ParameterDict", Known::ParameterDict),
    (NUMPY_MULTIARRAY, "_reconstruct", Known::NumpyReconstruct),
    (NUMPY_MULTIARRAY, "scalar", Known::NumpyScalar),
    (NUMPY_NUMERIC, "_frombuffer", Known::NumpyFromBuffer),
    (&["numpy"], "ndarray", Known::Type),
    (&["numpy"], "dtype", Known::NumpyDtype),
    (&["_codecs"], "encode", Known::Encode),
    (BUILTINS, "bytes", Known::Bytes),
    (BUILTINS, "bytearray", Known::Bytes),
    (BUILTINS, "set", Known::Set),
    (BUILTINS, "frozenset", Known::Set),
    // Mentioned by `defaultdict(int)` and its like, never called.
    (BUILTINS, "int", Known::Type),
    (BUILTINS, "long", Known::Type),
    (BUILTINS, "float", Known::Type),
    (BUILTINS, "bool", Known::Type),
    (BUILTINS, "str", Known::Type),
    (BUILTINS, "unicode", Known::Type),
    (BUILTINS, "list", Known::Type),
    (BUILTINS, "dict", Known::Type),
    (BUILTINS, "tuple", Known::Type),
    (&["torch"], "Tensor", Known::Type),
    (&["torch.nn.parameter"], "Parameter", Known::Type),
];

/// Storage classes of `torch`, with their element type or the name of one that is not read. The untyped one, which
/// lives in `torch.storage`, counts in bytes.
pub(super) const STORAGES: [(&str, Result<Dtype, &str>); 18] = [
    ("UntypedStorage", Ok(Dtype::U8)),
    ("DoubleStorage", Ok(Dtype::F64)),
    ("FloatStorage", Ok(Dtype::F32)),
    ("HalfStorage", Ok(Dtype::F16)),
    ("BFloat16Storage", Ok(Dtype::BF16)),
    ("LongStorage", Ok(Dtype::I64)),
    ("IntStorage", Ok(Dtype::I32)),
    ("ShortStorage", Ok(Dtype::I16)),
    ("CharStorage", Ok(Dtype::I8)),
    ("ByteStorage", Ok(Dtype::U8)),
    ("BoolStorage", Ok(Dtype::Bool)),
    ("ComplexFloatStorage", Err("complex64")),
    ("ComplexDoubleStorage", Err("complex128")),
    ("QInt8Storage", Err("qint8")),
    ("QUInt8Storage", Err("quint8")),
    ("QInt32Storage", Err("qint32")),
    ("QUInt4x2Storage", Err("quint4x2")),
    ("QUInt2x4Storage", Err("quint2x4")),
];

/// `torch.dtype`s by name.
pub(super) const TORCH_DTYPES: [(&str, Result<Dtype, &str>); 24] = [
    ("float64", Ok(Dtype::F64)),
    ("float32", Ok(Dtype::F32)),
    ("float16", Ok(Dtype::F16)),
    ("bfloat16", Ok(Dtype::BF16)),
    ("float8_e4m3fn", Ok(Dtype::F8E4M3)),
    ("float8_e5m2", Ok(Dtype::F8E5M2)),
    ("int64", Ok(Dtype::I64)),
    ("int32", Ok(Dtype::I32)),
    ("int16", Ok(Dtype::I16)),
    ("int8", Ok(Dtype::I8)),
    ("uint64", Ok(Dtype::U64)),
    ("uint32", Ok(Dtype::U32)),
    ("uint16", Ok(Dtype::U16)),
    ("uint8", Ok(Dtype::U8)),
    ("bool", Ok(Dtype::Bool)),
    ("complex32", Err("complex32")),
    ("complex64", Err("complex64")),
    ("complex128", Err("complex128")),
    ("float8_e4m3fnuz", Err("float8_e4m3fnuz")),
    ("float8_e5m2fnuz", Err("float8_e5m2fnuz")),
    ("float8_e8m0fnu", Err("float8_e8m0fnu")),
    ("qint8", Err("qint8")),
    ("quint8", Err("quint8")),
    ("qint32", Err("qint32")),
];

/// The storage class of `torch` for elements of a type, where there is one.
pub(crate) fn storage_class(dtype: Dtype) -> Option<&'static str> {
    // The first of them counts in bytes, whatever the elements are.
    STORAGES[1..].iter().find(|row| row.1 == Ok(dtype)).map(|row| row.0)
}

/// Meaning of `module.name`; `None` if it is not on the list.
pub(super) fn lookup(module: &str, name: &str) -> Option<Known> {
    let row = NAMES.iter().find(|row| row.1 == name && row.0.contains(&module));
    row.map(|row| row.2).or_else(|| storage(module, name)).or_else(|| {
        let index = TORCH_DTYPES.iter().position(|row| module == "torch" && row.0 == name)?;
        Some(Known::TorchDtype(index as u8))
    })
}

fn storage(module: &str, name: &str) -> Option<Known> {
    let index = STORAGES.iter().position(|row| row.0 == name)?;
    let home = if index == 0 { module == "torch.storage" || module == "torch" } else { module == "torch" };
    home.then_some(Known::Storage(index as u8))
}

impl Known {
    /// Name in messages.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Storage(index) => STORAGES[index as usize].0,
            Self::TorchDtype(index) => TORCH_DTYPES[index as usize].0,
            Self::Type => "a type",
            _ => NAMES.iter().find(|row| row.2 == self).map_or("a type", |row| row.1),
        }
    }
}
