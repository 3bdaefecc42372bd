//! Reading and making Flex tensors as typed slices.

use burn::backend::flex::{FlexTensor, Layout};
use burn::tensor::{Bytes, DType, Shape};
use calotype_kernels::Element as KernelElement;
use half::bf16;
use std::borrow::Cow;
use std::mem::MaybeUninit;

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

    /// The elements as `f32`: borrowed, or widened from `bf16`.
    pub(crate) fn wide(&self) -> Cow<'_, [f32]> {
        match self.dtype() {
            DType::BF16 => {
                let mut wide = room(self.slice::<bf16>().len());
                calotype_kernels::bf16_to_f32(self.slice(), &mut wide);
                Cow::Owned(wide)
            }
            _ => Cow::Borrowed(self.slice()),
        }
    }

    /// The tensor itself.
    pub(crate) fn tensor(&self) -> &FlexTensor {
        &self.0
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

/// The tensor with its elements as the whole of its storage, as what changes them in place needs: a copy where it is a view of more.
pub(crate) fn whole<T: Activations>(t: FlexTensor) -> FlexTensor {
    match t.layout().contiguous_offsets() {
        Some((0, end)) if t.storage::<T>().len() == end => t,
        _ => {
            let t = Dense::new(t);
            tensor(t.slice::<T>().to_vec(), t.shape())
        }
    }
}

/// Room for `n` elements that a kernel will overwrite; what they are before is unspecified.
///
/// Zeros would cost a pass over the memory, and a quarter of what a training step writes is made here.
pub(crate) fn room<T: Activations>(n: usize) -> Vec<T> {
    let mut data = Vec::<T>::with_capacity(n);
    unspecified(&mut data.spare_capacity_mut()[..n]);
    // SAFETY: the capacity is at least `n`, and `unspecified` has initialised that many elements.
    unsafe { data.set_len(n) };
    data
}

/// Makes memory initialised, with unspecified elements, without touching it.
#[cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), not(miri)))]
fn unspecified<T: Activations>(memory: &mut [MaybeUninit<T>]) {
    // SAFETY: the empty block does nothing. To the compiler it may have written any bytes through the pointer, which the
    // exclusive borrow allows, so from here on the memory is initialised; every bit pattern is an f32 or a bf16.
    unsafe {
        std::arch::asm!("/* {} */", in(reg) memory.as_mut_ptr(), options(nostack, preserves_flags));
    }
}

/// Makes memory initialised, where the compiler cannot be told that it already is.
#[cfg(not(all(any(target_arch = "x86_64", target_arch = "aarch64"), not(miri))))]
fn unspecified<T: Activations>(memory: &mut [MaybeUninit<T>]) {
    memory.fill(MaybeUninit::new(T::ZERO));
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
