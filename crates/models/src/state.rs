//! Parameters of a module by name, in the layout of published checkpoints.
//!
//! Convolution weights are kept as `[out, rows, columns, in]` in memory and are `[out, in, rows,
//! columns]` here, so that what is written loads into the reference implementations as it is.

use crate::weight::{packable, replace_by};
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{DType, Tensor, TensorData};
use calotype_kernels::{Element, parallel_for, threads};
use calotype_ops::{PackedWeight, StoredInt8, StoredType, WeightUse};
use half::{bf16, f16};
use std::borrow::Cow;
use std::sync::{Mutex, PoisonError};

/// A parameter or a value that belongs to it (gradient, moment, average), in checkpoint layout.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedValues {
    /// Dotted module path, equal to the checkpoint key.
    pub name: String,
    /// Shape in checkpoint layout.
    pub shape: Vec<usize>,
    /// Elements in row-major order.
    pub values: Vec<f32>,
}

/// Why a value could not become a parameter.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum StateError {
    /// The source has no such key.
    #[error("{source_name} has no tensor `{name}`")]
    Missing {
        /// The place where the values were looked up.
        source_name: String,
        /// The key.
        name: String,
    },
    /// The source's tensor has another shape.
    #[error("{source_name}: tensor `{name}` has shape {found:?}, the model needs {needed:?}")]
    Shape {
        /// The place where the values were looked up.
        source_name: String,
        /// The key.
        name: String,
        /// Shape in the source.
        found: Vec<usize>,
        /// Shape of the model's parameter, in checkpoint layout.
        needed: Vec<usize>,
    },
    /// The source's tensor is not of floats.
    #[error("{source_name}: tensor `{name}` has elements of type {dtype}, the model needs f64, f32, f16 or bf16")]
    Dtype {
        /// The place where the values were looked up.
        source_name: String,
        /// The key.
        name: String,
        /// Type of the elements.
        dtype: &'static str,
    },
    /// The source gave more or fewer bytes than the shape asks for.
    #[error("{source_name}: tensor `{name}` has {found} bytes, its shape asks for {needed}")]
    Bytes {
        /// The place where the values were looked up.
        source_name: String,
        /// The key.
        name: String,
        /// Bytes in the source.
        found: usize,
        /// Bytes of all elements.
        needed: usize,
    },
}

/// A tensor as a checkpoint stores it.
#[derive(Clone, Debug)]
pub struct StoredTensor<'a> {
    /// Its origin, for messages.
    pub source_name: &'a str,
    /// Type of the elements: `F64`, `F32`, `F16` or `BF16`.
    pub dtype: DType,
    /// Shape in checkpoint layout.
    pub shape: Vec<usize>,
    /// Row-major elements, little-endian; they need not be aligned.
    pub bytes: Cow<'a, [u8]>,
}

/// What a checkpoint stores for a parameter.
#[derive(Clone, Debug)]
pub enum Stored<'a> {
    /// Its elements.
    Tensor(StoredTensor<'a>),
    /// Numbers in 8 bits.
    Quantised(QuantisedTensor<'a>),
}

/// The weight of a layer in 8 bits: `number * scale[output]`, for inputs that were divided by `smooth[input]`.
#[derive(Clone, Debug)]
pub struct QuantisedTensor<'a> {
    /// The numbers, of type `I8`.
    pub numbers: StoredTensor<'a>,
    /// `[out]`
    pub scales: Vec<f32>,
    /// `[in]`; none: inputs are not divided.
    pub smooth: Option<Vec<f32>>,
}

/// The weights that numbers in 8 bits stand for, in the same order, `[out, in, …]`: `number * scale[out] / smooth[in]`.
///
/// # Panics
/// If there are not as many numbers for each scale, or for each of the factors in one of these.
pub fn int8_values(numbers: &[u8], scales: &[f32], smooth: Option<&[f32]>) -> Vec<f32> {
    if numbers.is_empty() {
        return Vec::new();
    }
    let (row, inputs) = (numbers.len() / scales.len().max(1), smooth.map_or(1, <[f32]>::len));
    assert!(row * scales.len() == numbers.len() && row.is_multiple_of(inputs), "numbers do not go with their scales");
    let taps = row / inputs;
    let factors: Option<Vec<f32>> = smooth.map(|smooth| smooth.iter().map(|smooth| 1.0 / smooth).collect());
    let value = |(at, &number): (usize, &u8)| {
        let factor = factors.as_ref().map_or(1.0, |factors| factors[at % row / taps]);
        f32::from(number as i8) * scales[at / row] * factor
    };
    numbers.iter().enumerate().map(value).collect()
}

/// In which precision parameters are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightPrecision {
    /// All in `f32`, as training needs them.
    #[default]
    F32,
    /// For inference: those of rank two and more, which are nearly all, in `bf16`; the rest in `f32`. The weights of layers
    /// are kept packed where the device multiplies with packed ones ([`LayerWeight`](crate::LayerWeight)).
    Bf16,
}

/// Follows a traversal and knows the dotted path.
#[derive(Default)]
pub struct Path(Vec<String>);

impl Path {
    /// Enters a field of a container, as Burn's traversals name both. The variant of an enum is no part of the path.
    pub fn push(&mut self, name: &str, container: &str) {
        self.0.push(if container.starts_with("Enum:") { String::new() } else { name.to_owned() });
    }

    /// Leaves the innermost field.
    pub fn pop(&mut self) {
        self.0.pop();
    }

    /// The dotted path.
    pub fn name(&self) -> String {
        let fields: Vec<&str> = self.0.iter().map(String::as_str).filter(|name| !name.is_empty()).collect();
        fields.join(".")
    }
}

/// The shape that a parameter of `shape` has in a checkpoint.
pub fn checkpoint_shape(shape: &[usize]) -> Vec<usize> {
    match *shape {
        [o, h, w, i] => vec![o, i, h, w],
        _ => shape.to_vec(),
    }
}

/// Reorders values of a parameter of `shape` (in memory) into checkpoint layout.
pub fn to_checkpoint(values: &[f32], shape: &[usize]) -> Vec<f32> {
    match *shape {
        [o, h, w, i] => permute(values, [o, h, w, i], [0, 3, 1, 2]),
        _ => values.to_vec(),
    }
}

/// Reorders checkpoint values into the memory layout of a parameter of `shape` (in memory).
pub fn from_checkpoint(values: &[f32], shape: &[usize]) -> Vec<f32> {
    match *shape {
        [o, h, w, i] => permute(values, [o, i, h, w], [0, 2, 3, 1]),
        _ => values.to_vec(),
    }
}

/// Row-major values of `dims` with the axes in the order `axes`.
fn permute(values: &[f32], dims: [usize; 4], axes: [usize; 4]) -> Vec<f32> {
    let mut strides = [1usize; 4];
    for d in (0..3).rev() {
        strides[d] = strides[d + 1] * dims[d + 1];
    }
    let (size, stride) = (axes.map(|a| dims[a]), axes.map(|a| strides[a]));
    let mut out = Vec::with_capacity(values.len());
    for a in 0..size[0] {
        for b in 0..size[1] {
            for c in 0..size[2] {
                let start = a * stride[0] + b * stride[1] + c * stride[2];
                out.extend((0..size[3]).map(|d| values[start + d * stride[3]]));
            }
        }
    }
    out
}

/// The elements of a float tensor as `f32`, in row-major order.
pub fn values_of<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

/// All parameters of a module in traversal order, in checkpoint layout.
pub fn collect<M: Module>(module: &M) -> Vec<NamedValues> {
    struct Collect {
        path: Path,
        out: Vec<NamedValues>,
    }
    impl ModuleVisitor for Collect {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.push(name, container);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let tensor = param.val();
            let shape = tensor.dims();
            self.out.push(NamedValues {
                name: self.path.name(),
                shape: checkpoint_shape(&shape),
                values: to_checkpoint(&values_of(tensor.inner()), &shape),
            });
        }
    }
    let mut visitor = Collect { path: Path::default(), out: Vec::new() };
    module.visit(&mut visitor);
    visitor.out
}

/// Names and checkpoint shapes of all parameters, in traversal order.
pub fn layout<M: Module>(module: &M) -> Vec<(String, Vec<usize>)> {
    struct Layout {
        path: Path,
        out: Vec<(String, Vec<usize>)>,
    }
    impl ModuleVisitor for Layout {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.push(name, container);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.out.push((self.path.name(), checkpoint_shape(&param.lazy_shape())));
        }
    }
    let mut visitor = Layout { path: Path::default(), out: Vec::new() };
    module.visit(&mut visitor);
    visitor.out
}

/// Replaces every parameter of a module by what `lookup` gives for its key, in checkpoint layout.
///
/// # Errors
/// The first error of `lookup` ends the loading.
pub fn load<M: Module, E>(module: M, mut lookup: impl FnMut(&str, &[usize]) -> Result<Vec<f32>, E>) -> Result<M, E> {
    replace(module, |name, shape, _| {
        let values = lookup(name, &checkpoint_shape(shape))?;
        Ok(TensorData::new(from_checkpoint(&values, shape), shape.to_vec()).into())
    })
}

/// As [`load`]; parameters for which `lookup` gives nothing stay as they are.
///
/// # Errors
/// The first error of `lookup` ends the loading.
pub fn load_some<M: Module, E>(
    module: M,
    mut lookup: impl FnMut(&str, &[usize]) -> Result<Option<Vec<f32>>, E>,
) -> Result<M, E> {
    replace(module, |name, shape, _| {
        let values = lookup(name, &checkpoint_shape(shape))?;
        Ok(match values {
            Some(values) => TensorData::new(from_checkpoint(&values, shape), shape.to_vec()).into(),
            None => Loaded::Kept,
        })
    })
}

/// Replaces every parameter of a module by the stored tensor that `lookup` gives for its key and checkpoint shape.
///
/// Elements are converted and put in order on their way from the stored bytes to the parameter: for a module of
/// [`crate::Init::placeholders`], memory never holds more than the parameters so far. With [`WeightPrecision::Bf16`], weights
/// of layers go from the stored bytes to their packed form in one pass.
///
/// # Errors
/// The first error of `lookup`, or [`StateError`] for a tensor that does not fit, ends the loading.
pub fn load_with<'a, M: Module, E: From<StateError>>(
    module: M,
    precision: WeightPrecision,
    mut lookup: impl FnMut(&str, &[usize]) -> Result<StoredTensor<'a>, E>,
) -> Result<M, E> {
    load_stored(module, precision, |name, needed| lookup(name, needed).map(Stored::Tensor))
}

/// As [`load_with`], for weights of layers that may be stored in 8 bits. These are multiplied in 8 bits with activations of any type
/// where the device takes packed weights, and are what they stand for elsewhere.
///
/// # Errors
/// As of [`load_with`].
pub fn load_stored<'a, M: Module, E: From<StateError>>(
    module: M,
    precision: WeightPrecision,
    mut lookup: impl FnMut(&str, &[usize]) -> Result<Stored<'a>, E>,
) -> Result<M, E> {
    replace(module, |name, shape, usage| {
        let needed = checkpoint_shape(shape);
        let stored = match lookup(name, &needed)? {
            Stored::Tensor(stored) => stored,
            Stored::Quantised(quantised) => match usage.and_then(|usage| int8_parameter(&quantised, shape, usage)) {
                Some(packed) => return Ok(Loaded::Packed(packed)),
                None => quantised
                    .dequantised(shape)
                    .map_err(|misfit| misfit.at(name, &quantised.numbers, needed.clone()))?,
            },
        };
        let half = precision == WeightPrecision::Bf16 && shape.len() > 1;
        let value = match half {
            true => usage.and_then(|usage| packed_parameter(&stored, shape, usage)).map_or_else(
                || parameter::<bf16>(&stored, shape).map(Loaded::from),
                |packed| Ok(Loaded::Packed(packed)),
            ),
            false => parameter::<f32>(&stored, shape).map(Loaded::from),
        };
        Ok(value.map_err(|misfit| misfit.at(name, &stored, needed))?)
    })
}

/// The module for inference: weights of layers rounded to `bf16` and packed, where the device multiplies with packed ones.
///
/// Not for a module that is trained: packed weights have no gradients.
pub fn packed<M: Module>(module: M) -> M {
    struct Pack;
    impl ModuleMapper for Pack {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            if let Some(usage) = packable(&param) {
                let shape = param.lazy_shape();
                let values = to_checkpoint(&values_of(param.val()), &shape);
                let stored = bytemuck::cast_slice(&values);
                if let Some(packed) = PackedWeight::from_stored(stored, StoredType::F32, &shape, usage) {
                    replace_by(packed);
                }
            }
            param
        }
    }
    module.map(&mut Pack)
}

/// The value that takes the place of a parameter.
enum Loaded {
    /// Itself.
    Kept,
    Data(TensorData),
    Packed(PackedWeight),
}

impl From<TensorData> for Loaded {
    fn from(data: TensorData) -> Self {
        Self::Data(data)
    }
}

/// Replaces every parameter of a module by what `value` gives for its key, its shape in memory, and its use, if it can be packed.
fn replace<M: Module, E>(
    module: M,
    value: impl FnMut(&str, &[usize], Option<WeightUse>) -> Result<Loaded, E>,
) -> Result<M, E> {
    struct Replace<F, E> {
        path: Path,
        value: F,
        error: Option<E>,
    }
    impl<F: FnMut(&str, &[usize], Option<WeightUse>) -> Result<Loaded, E>, E> ModuleMapper for Replace<F, E> {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.push(name, container);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            if self.error.is_some() {
                return param;
            }
            match (self.value)(&self.path.name(), &param.lazy_shape(), packable(&param)) {
                Ok(Loaded::Kept) => param,
                Ok(Loaded::Data(data)) => with_data(param, data),
                Ok(Loaded::Packed(packed)) => {
                    replace_by(packed);
                    param
                }
                Err(error) => {
                    self.error = Some(error);
                    param
                }
            }
        }
    }
    let mut mapper = Replace { path: Path::default(), value, error: None };
    let module = module.map(&mut mapper);
    match mapper.error {
        Some(error) => Err(error),
        None => Ok(module),
    }
}

/// A parameter with another value, in the precision of `data`.
fn with_data<const D: usize>(param: Param<Tensor<D>>, data: TensorData) -> Param<Tensor<D>> {
    let (id, tensor, mapper) = param.consume();
    let (device, grad) = (tensor.device(), tensor.is_require_grad());
    drop(tensor);
    let dtype = data.dtype();
    let tensor = Tensor::from_data(data, (&device, dtype)).set_require_grad(grad);
    Param::from_mapped_value(id, tensor, mapper)
}

/// The stored elements of a layer's weight, packed; none if they do not fit, or are not packed on this processor.
fn packed_parameter(stored: &StoredTensor<'_>, shape: &[usize], usage: WeightUse) -> Option<PackedWeight> {
    let dtype = match stored.dtype {
        DType::F64 => StoredType::F64,
        DType::F32 => StoredType::F32,
        DType::F16 => StoredType::F16,
        DType::BF16 => StoredType::BF16,
        _ => return None,
    };
    if stored.shape != checkpoint_shape(shape) {
        return None;
    }
    PackedWeight::from_stored(&stored.bytes, dtype, shape, usage)
}

/// Numbers in 8 bits, packed; none if they do not fit.
fn int8_parameter(stored: &QuantisedTensor<'_>, shape: &[usize], usage: WeightUse) -> Option<PackedWeight> {
    let QuantisedTensor { numbers, scales, smooth } = stored;
    if numbers.dtype != DType::I8 || numbers.shape != checkpoint_shape(shape) {
        return None;
    }
    let stored = StoredInt8 { bytes: &numbers.bytes, scales, smooth: smooth.as_deref() };
    PackedWeight::from_int8(&stored, shape, usage)
}

impl<'a> QuantisedTensor<'a> {
    /// The weights that the numbers stand for, for a parameter of `shape` (in memory).
    fn dequantised(&self, shape: &[usize]) -> Result<StoredTensor<'a>, Misfit> {
        let (numbers, needed) = (&self.numbers, shape.iter().product::<usize>());
        let [outputs, inputs] = [0, 1].map(|axis| numbers.shape.get(axis).copied().unwrap_or(1));
        if numbers.dtype != DType::I8 {
            return Err(Misfit::Dtype);
        }
        let fits = self.scales.len() == outputs && self.smooth.as_ref().is_none_or(|smooth| smooth.len() == inputs);
        if numbers.shape != checkpoint_shape(shape) || !fits {
            return Err(Misfit::Shape);
        }
        if numbers.bytes.len() != needed {
            return Err(Misfit::Bytes { needed });
        }
        let values = int8_values(&numbers.bytes, &self.scales, self.smooth.as_deref());
        let bytes = values.into_iter().flat_map(f32::to_le_bytes).collect();
        Ok(StoredTensor { dtype: DType::F32, bytes: Cow::Owned(bytes), ..numbers.clone() })
    }
}

/// Why a stored tensor is no parameter.
#[derive(Debug)]
enum Misfit {
    Shape,
    Dtype,
    Bytes { needed: usize },
}

impl Misfit {
    fn at(self, name: &str, stored: &StoredTensor<'_>, needed: Vec<usize>) -> StateError {
        let (source_name, name) = (stored.source_name.to_owned(), name.to_owned());
        match self {
            Self::Shape => StateError::Shape { source_name, name, found: stored.shape.clone(), needed },
            Self::Dtype => StateError::Dtype { source_name, name, dtype: stored.dtype.name() },
            Self::Bytes { needed } => StateError::Bytes { source_name, name, found: stored.bytes.len(), needed },
        }
    }
}

/// The stored elements as a parameter of `shape` (in memory).
fn parameter<T: Element + burn::tensor::Element>(
    stored: &StoredTensor<'_>,
    shape: &[usize],
) -> Result<TensorData, Misfit> {
    if stored.shape != checkpoint_shape(shape) {
        return Err(Misfit::Shape);
    }
    let values: Vec<T> = match stored.dtype {
        DType::F64 => convert(&stored.bytes, shape, |b| T::from_f32(f64::from_le_bytes(b) as f32)),
        DType::F32 => convert(&stored.bytes, shape, |b| T::from_f32(f32::from_le_bytes(b))),
        DType::F16 => convert(&stored.bytes, shape, |b| T::from_f32(f16::from_le_bytes(b).to_f32())),
        DType::BF16 => convert(&stored.bytes, shape, |b| T::from_f32(bf16::from_le_bytes(b).to_f32())),
        _ => return Err(Misfit::Dtype),
    }?;
    Ok(TensorData::new(values, shape.to_vec()))
}

/// Elements of `N` bytes in checkpoint layout, read by `read`, in the memory layout of a parameter of `shape`.
fn convert<const N: usize, T: Element>(
    bytes: &[u8],
    shape: &[usize],
    read: impl Fn([u8; N]) -> T + Sync,
) -> Result<Vec<T>, Misfit> {
    let count: usize = shape.iter().product();
    let needed = count * N;
    if bytes.len() != needed {
        return Err(Misfit::Bytes { needed });
    }
    // Output channel by output channel: `[in, taps]` becomes `[taps, in]`.
    let (inputs, taps) = match *shape {
        [_, rows, columns, inputs] => (inputs, rows * columns),
        _ => (shape.last().copied().unwrap_or(1), 1),
    };
    let block = inputs * taps;
    let mut values = vec![T::ZERO; count];
    if count == 0 {
        return Ok(values);
    }
    let (elements, _) = bytes.as_chunks::<N>();
    let fill = |values: &mut [T], elements: &[[u8; N]]| {
        for (values, elements) in values.chunks_exact_mut(block).zip(elements.chunks_exact(block)) {
            for (tap, values) in values.chunks_exact_mut(inputs).enumerate() {
                let column = elements[tap..].iter().step_by(taps);
                values.iter_mut().zip(column).for_each(|(value, &element)| *value = read(element));
            }
        }
    };
    let piece = (count / block).div_ceil(threads()).max((1 << 18) / block).max(1) * block;
    let pieces: Vec<Mutex<_>> = values.chunks_mut(piece).zip(elements.chunks(piece)).map(Mutex::new).collect();
    parallel_for(pieces.len(), |number| {
        // Each piece is locked once; a panic in another one leaves it whole.
        let mut piece = pieces[number].lock().unwrap_or_else(PoisonError::into_inner);
        let (values, elements) = &mut *piece;
        fill(values, elements);
    });
    drop(pieces);
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_elements_of_every_type() {
        let shape = [2, 2, 1, 3];
        let expected: Vec<f32> = (0..12).map(|i| i as f32 / 4.0 - 1.0).collect();
        let in_file = to_checkpoint(&expected, &shape);
        let bytes = |dtype| -> Vec<u8> {
            let each = in_file.iter();
            match dtype {
                DType::F64 => each.flat_map(|&x| f64::from(x).to_le_bytes()).collect(),
                DType::F32 => each.flat_map(|x| x.to_le_bytes()).collect(),
                DType::F16 => each.flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
                _ => each.flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
            }
        };
        for dtype in [DType::F64, DType::F32, DType::F16, DType::BF16] {
            let bytes = Cow::Owned(bytes(dtype));
            let stored = StoredTensor { source_name: "test", dtype, shape: vec![2, 3, 2, 1], bytes };
            let wide = parameter::<f32>(&stored, &shape).expect("fits");
            let half = parameter::<bf16>(&stored, &shape).expect("fits");
            assert_eq!(half.dtype(), DType::BF16);
            for data in [wide, half] {
                assert_eq!(data.iter::<f32>().collect::<Vec<_>>(), expected, "{dtype:?}");
            }
        }
    }

    #[test]
    fn large_tensors_are_converted_in_pieces() {
        let shape = [300, 3, 3, 130];
        let values: Vec<f32> = (0..shape.iter().product()).map(|i: usize| i as f32).collect();
        let bytes: Vec<u8> = to_checkpoint(&values, &shape).iter().flat_map(|x| x.to_le_bytes()).collect();
        assert!(convert(&bytes, &shape, f32::from_le_bytes).expect("fits") == values);
    }

    #[test]
    fn stored_tensors_that_do_not_fit() {
        let stored = |dtype, shape: &[usize], bytes: usize| StoredTensor {
            source_name: "test",
            dtype,
            shape: shape.to_vec(),
            bytes: Cow::Owned(vec![0; bytes]),
        };
        for (stored, part) in [
            (stored(DType::F32, &[2, 3], 24), "has shape [2, 3], the model needs [3, 2]"),
            (stored(DType::I32, &[3, 2], 24), "has elements of type i32"),
            (stored(DType::F32, &[3, 2], 23), "has 23 bytes, its shape asks for 24"),
        ] {
            let misfit = parameter::<f32>(&stored, &[3, 2]).expect_err("does not fit");
            let message = misfit.at("a.weight", &stored, vec![3, 2]).to_string();
            assert!(message.contains(part) && message.contains("`a.weight`"), "{message}");
        }
    }

    #[test]
    fn numbers_in_8_bits_stand_for_weights() {
        let numbers = |shape: &[usize], bytes: &[u8]| StoredTensor {
            source_name: "test",
            dtype: DType::I8,
            shape: shape.to_vec(),
            bytes: Cow::Owned(bytes.to_vec()),
        };
        let stored = QuantisedTensor {
            numbers: numbers(&[2, 2, 1, 2], &[1, 2, 3, 4, 0xff, 0xfe, 0xfd, 0x80]),
            scales: vec![0.5, 2.0],
            smooth: Some(vec![1.0, 4.0]),
        };
        let expected = [0.5, 1.0, 0.375, 0.5, -2.0, -4.0, -1.5, -64.0];
        assert_eq!(int8_values(&stored.numbers.bytes, &stored.scales, stored.smooth.as_deref()), expected);
        let device = burn::tensor::Device::flex();
        let shape = [2, 1, 2, 2];
        let packed = int8_parameter(&stored, &shape, WeightUse::Conv2d).expect("fits");
        assert!(packed.is_int8());
        assert_eq!(values_of(packed.tensor::<4>(&device)), from_checkpoint(&expected, &shape));
        let plain = stored.dequantised(&shape).expect("fits");
        let parameter = parameter::<f32>(&plain, &shape).expect("fits");
        assert_eq!(parameter.iter::<f32>().collect::<Vec<_>>(), from_checkpoint(&expected, &shape));
        let short = QuantisedTensor { scales: vec![0.5], ..stored.clone() };
        assert!(matches!(short.dequantised(&shape), Err(Misfit::Shape)));
        assert!(int8_parameter(&short, &shape, WeightUse::Conv2d).is_none());
        let cut = QuantisedTensor { numbers: numbers(&[2, 2, 1, 2], &[1]), ..stored };
        assert!(matches!(cut.dequantised(&shape), Err(Misfit::Bytes { needed: 8 })));
    }

    #[test]
    fn checkpoint_layout_round_trip() {
        let shape = [2, 3, 4, 5];
        let values: Vec<f32> = (0..120).map(|i| i as f32).collect();
        let out = to_checkpoint(&values, &shape);
        assert_eq!(checkpoint_shape(&shape), [2, 5, 3, 4]);
        // Element (o, i, h, w) = (1, 2, 0, 3) came from (1, 0, 3, 2).
        assert_eq!(out[((5 + 2) * 3) * 4 + 3], values[(3 * 4 + 3) * 5 + 2]);
        assert_eq!(from_checkpoint(&out, &shape), values);
    }
}
