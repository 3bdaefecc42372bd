//! Reading and making Flex tensors as typed slices.

use burn::backend::flex::{FlexTensor, Layout};
use burn::tensor::{Bytes, DType, Shape};
use calotype_kernels::Element as KernelElement;
use half::bf16;

/// An activation type that both Burn and the kernels know.
pub(crate) trait Activations: KernelElement + burn::tensor::Element {}
impl Activations for f32 {}
impl Activations for bf16 {}

/// A tensor whose elements are one contiguous slice.
pub(crate) struct Dense(FlexTensor);

impl Dense {
    pub(crate) fn new(tensor: FlexTensor) -> Self {
        let dense = tensor.layout().contiguous_offsets().is_some();
        Self(if dense { tensor } else { tensor.to_contiguous() })
    }

    /// The elements in row-major order.
    ///
    /// # Panics
    /// If the tensor's dtype is not `T`'s.
    pub(crate) fn slice<T: Activations>(&self) -> &[T] {
        self.0
            .as_slice::<T>()
            .unwrap_or_else(|| panic!("operation got a {:?} tensor where {:?} was needed", self.0.dtype(), T::dtype()))
    }

    pub(crate) fn dims(&self) -> &[usize] {
        self.0.layout().shape()
    }

    pub(crate) fn shape(&self) -> Shape {
        self.0.layout().shape().clone()
    }

    pub(crate) fn dtype(&self) -> DType {
        self.0.dtype()
    }
}

/// A new contiguous tensor from its elements in row-major order.
pub(crate) fn tensor<T: Activations>(data: Vec<T>, shape: impl Into<Shape>) -> FlexTensor {
    FlexTensor::new(Bytes::from_elems(data), Layout::contiguous(shape.into()), T::dtype())
}

/// Room for `n` elements that a kernel will overwrite.
pub(crate) fn room<T: Activations>(n: usize) -> Vec<T> {
    vec![T::ZERO; n]
}

/// Runs the body with `T` bound to the activation type of a dtype.
macro_rules! by_dtype {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            burn::tensor::DType::F32 => {
                type $T = f32;
                $body
            }
            burn::tensor::DType::BF16 => {
                type $T = half::bf16;
                $body
            }
            other => panic!("operations take f32 or bf16 activations, not {other:?}"),
        }
    };
}
pub(crate) use by_dtype;
