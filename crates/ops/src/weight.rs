//! Weights of layers, as tensors or in the form alone that the kernels multiply with.

use burn::tensor::{DType, Device, Tensor, TensorData};
use calotype_kernels::{PackedWeights, QuantisedWeights, StoredType, StoredWeight, StoredWeight8};
use half::bf16;
use std::borrow::Cow;
use std::sync::Arc;

/// The operation that a weight is multiplied in, which decides how it is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightUse {
    /// [`crate::linear`].
    Linear,
    /// [`crate::linear_geglu`]: values and gates stand side by side.
    LinearGeglu,
    /// [`crate::conv2d`].
    Conv2d,
}

/// The type of the packed numbers.
#[derive(Clone, Debug)]
enum Packing {
    /// `bf16`, for activations of that type.
    Half(Arc<PackedWeights>),
    /// 8 bits, for activations of any type.
    Int8(Arc<QuantisedWeights>),
}

/// The numbers of a weight in 8 bits, as a checkpoint stores them.
#[derive(Clone, Copy, Debug)]
pub struct StoredInt8<'a> {
    /// `[out, in]` or `[out, in, rows, columns]`, two's complement.
    pub bytes: &'a [u8],
    /// What the numbers of an output are multiplied by, `[out]`.
    pub scales: &'a [f32],
    /// What inputs are divided by before they are quantised, `[in]`; none: nothing.
    pub smooth: Option<&'a [f32]>,
}

/// Outputs, inputs and kernel of a weight of `shape`, if its rank goes with the use.
fn sizes(shape: &[usize], usage: WeightUse) -> Option<(usize, usize, [usize; 2])> {
    match (usage, shape) {
        (WeightUse::Linear | WeightUse::LinearGeglu, &[outputs, inputs]) => Some((outputs, inputs, [1, 1])),
        (WeightUse::Conv2d, &[outputs, rows, columns, inputs]) => Some((outputs, inputs, [rows, columns])),
        _ => None,
    }
}

/// A weight in the order in which products read it, and in no other: for inference on the CPU.
///
/// Clones share the memory. Its numbers are those of the `bf16` tensor that it was packed from, or numbers in 8 bits with their scales,
/// which are multiplied with activations that are quantised, too.
#[derive(Clone, Debug)]
pub struct PackedWeight {
    packing: Packing,
    /// As the tensor's would be: `[out, in]` or `[out, rows, columns, in]`.
    shape: Vec<usize>,
}

impl PackedWeight {
    /// Packs a weight of `shape`, `[out, in]` or `[out, rows, columns, in]`, from the elements that a checkpoint stores for it,
    /// `[out, in]` or `[out, in, rows, columns]`, little-endian and in any alignment; they are rounded to nearest even. Works on all
    /// threads, with the same bits for any number of them.
    ///
    /// `None` if the processor does not multiply `bf16`, the rank does not go with the use, or there are not as many bytes as the
    /// shape needs: the weight is a tensor then, or an error.
    pub fn from_stored(bytes: &[u8], dtype: StoredType, shape: &[usize], usage: WeightUse) -> Option<Self> {
        let (outputs, inputs, kernel) = sizes(shape, usage)?;
        let needed = shape.iter().try_fold(dtype.size(), |product, &size| product.checked_mul(size));
        if needed != Some(bytes.len()) {
            return None;
        }
        let stored = StoredWeight { bytes, dtype, outputs, inputs, taps: kernel[0] * kernel[1] };
        let packed = match usage {
            WeightUse::Conv2d => PackedWeights::for_stored_conv(&stored, kernel),
            WeightUse::Linear => PackedWeights::for_stored_linear(&stored),
            WeightUse::LinearGeglu => {
                PackedWeights::for_stored_geglu(&stored).or_else(|| PackedWeights::for_stored_linear(&stored))
            }
        };
        Some(Self { packing: Packing::Half(Arc::new(packed?)), shape: shape.to_vec() })
    }

    /// Packs a weight of `shape`, `[out, in]` or `[out, rows, columns, in]`, that is stored in 8 bits. Works on all threads, on every
    /// processor.
    ///
    /// `None` if the rank does not go with the use, there are not as many numbers as the shape needs, or sums have more than 65,536 terms:
    /// the weight is multiplied as what it stands for then, or is an error.
    pub fn from_int8(stored: &StoredInt8, shape: &[usize], usage: WeightUse) -> Option<Self> {
        let (outputs, inputs, kernel) = sizes(shape, usage)?;
        let StoredInt8 { bytes, scales, smooth } = *stored;
        let needed = shape.iter().try_fold(1, |product: usize, &size| product.checked_mul(size));
        if needed != Some(bytes.len()) || scales.len() != outputs || smooth.is_some_and(|s| s.len() != inputs) {
            return None;
        }
        let stored = StoredWeight8 { bytes, scales, smooth, outputs, inputs, kernel };
        let packed = match usage {
            WeightUse::LinearGeglu => QuantisedWeights::for_geglu(&stored).or_else(|| QuantisedWeights::new(&stored)),
            WeightUse::Linear | WeightUse::Conv2d => QuantisedWeights::new(&stored),
        };
        Some(Self { packing: Packing::Int8(Arc::new(packed?)), shape: shape.to_vec() })
    }

    /// The shape of the tensor that it stands for: `[out, in]` or `[out, rows, columns, in]`.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Memory that it takes, in bytes.
    pub fn bytes(&self) -> usize {
        match &self.packing {
            Packing::Half(packed) => packed.bytes(),
            Packing::Int8(packed) => packed.bytes(),
        }
    }

    /// True if its numbers are in 8 bits.
    pub fn is_int8(&self) -> bool {
        matches!(self.packing, Packing::Int8(_))
    }

    /// The tensor that it stands for, `bf16`, or `f32` for one in 8 bits: a copy, which takes as much memory again, or four times.
    ///
    /// # Panics
    /// If `D` is not the rank of [`PackedWeight::shape`].
    pub fn tensor<const D: usize>(&self, device: &Device) -> Tensor<D> {
        let shape: [usize; D] =
            self.shape.as_slice().try_into().unwrap_or_else(|_| panic!("rank {D} of a weight of {:?}", self.shape));
        match &self.packing {
            Packing::Half(packed) => Tensor::from_data(TensorData::new(plain(packed), shape), (device, DType::BF16)),
            Packing::Int8(packed) => Tensor::from_data(TensorData::new(packed.unpack(), shape), (device, DType::F32)),
        }
    }

    /// The packed weights, if they are `bf16` and were packed for GEGLU or for what else is wanted.
    pub(crate) fn packed(&self, gated: bool) -> Option<&PackedWeights> {
        match &self.packing {
            Packing::Half(packed) => (packed.is_gated() == gated).then_some(&**packed),
            Packing::Int8(_) => None,
        }
    }

    /// The weights in 8 bits, if they were packed for GEGLU or for what else is wanted.
    pub(crate) fn int8(&self, gated: bool) -> Option<&QuantisedWeights> {
        match &self.packing {
            Packing::Int8(packed) => (packed.is_gated() == gated).then_some(&**packed),
            Packing::Half(_) => None,
        }
    }

    /// The numbers as `f32`, in the tensor's order.
    pub(crate) fn wide(&self) -> Cow<'static, [f32]> {
        match &self.packing {
            Packing::Half(packed) => plain(packed).into_iter().map(bf16::to_f32).collect(),
            Packing::Int8(packed) => packed.unpack().into(),
        }
    }
}

fn plain(packed: &PackedWeights) -> Vec<bf16> {
    // None were packed in another way, see `PackedWeight::from_stored`.
    packed.unpack().unwrap_or_default()
}

/// The weight of a layer: a tensor, which can be trained, or packed for inference.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "one a layer; a tensor behind a pointer would cost each call")]
pub enum Weight<const D: usize> {
    /// A tensor, `f32`, or `bf16` for inference.
    Plain(Tensor<D>),
    /// Packed, on the CPU.
    Packed(PackedWeight),
}

impl<const D: usize> From<Tensor<D>> for Weight<D> {
    fn from(tensor: Tensor<D>) -> Self {
        Self::Plain(tensor)
    }
}

impl<const D: usize> From<PackedWeight> for Weight<D> {
    fn from(packed: PackedWeight) -> Self {
        Self::Packed(packed)
    }
}

impl<const D: usize> Weight<D> {
    /// The tensor; a packed weight is unpacked to `device`.
    pub fn into_tensor(self, device: &Device) -> Tensor<D> {
        match self {
            Self::Plain(tensor) => tensor,
            Self::Packed(packed) => packed.tensor(device),
        }
    }
}
