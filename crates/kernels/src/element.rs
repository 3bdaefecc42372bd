//! Storage types of activations.

use half::bf16;

use crate::interface::Compiled;
use crate::simd::Simd;

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::bf16 {}
}

/// Vector access to a storage type; the crate's own business.
pub trait Lanes: Sized {
    /// Reads `S::LANES` values from the beginning of `from`.
    fn load<S: Simd>(s: S, from: &[Self]) -> S::V;
    /// Reads `from.len() < S::LANES` values; the other lanes are zero.
    fn load_part<S: Simd>(s: S, from: &[Self]) -> S::V;
    /// Writes `S::LANES` values to the beginning of `to`.
    fn store<S: Simd>(s: S, v: S::V, to: &mut [Self]);
    /// [`Lanes::store`] past the caches, see [`Simd::stream`].
    fn stream<S: Simd>(s: S, v: S::V, to: &mut [Self]);
    /// Writes the first `to.len() < S::LANES` lanes.
    fn store_part<S: Simd>(s: S, v: S::V, to: &mut [Self]);
}

/// A storage type of activations and their gradients: [`f32`] or [`bf16`].
///
/// Arithmetic is always done in f32; an element is converted when it is read and rounded to nearest even when it is
/// written. The trait is sealed.
pub trait Element:
    Copy + Send + Sync + bytemuck::Pod + PartialEq + std::fmt::Debug + sealed::Sealed + Lanes + Compiled<Self> + 'static
{
    /// The value zero.
    const ZERO: Self;
    /// Name of the type as checkpoints and reports write it: `"f32"` or `"bf16"`.
    const NAME: &'static str;
    /// Largest relative error of one rounding to this type.
    const EPSILON: f32;
    /// True if the type is [`bf16`].
    const IS_HALF: bool;
    /// Exact conversion to f32.
    fn to_f32(self) -> f32;
    /// Conversion from f32, rounding to nearest even.
    fn from_f32(value: f32) -> Self;

    /// The slice as what it is, if the type is [`bf16`].
    #[inline(always)]
    fn as_half(slice: &[Self]) -> Option<&[bf16]> {
        if Self::IS_HALF { Some(bytemuck::cast_slice(slice)) } else { None }
    }

    /// The slice as what it is, if the type is [`f32`].
    #[inline(always)]
    fn as_wide(slice: &[Self]) -> Option<&[f32]> {
        if Self::IS_HALF { None } else { Some(bytemuck::cast_slice(slice)) }
    }

    /// [`Element::as_half`] for writing.
    #[inline(always)]
    fn as_half_mut(slice: &mut [Self]) -> Option<&mut [bf16]> {
        if Self::IS_HALF { Some(bytemuck::cast_slice_mut(slice)) } else { None }
    }
}

impl Element for f32 {
    const ZERO: Self = 0.0;
    const NAME: &'static str = "f32";
    const EPSILON: f32 = f32::EPSILON / 2.0;
    const IS_HALF: bool = false;
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        value
    }
}

impl Element for bf16 {
    const ZERO: Self = bf16::ZERO;
    const NAME: &'static str = "bf16";
    const EPSILON: f32 = 1.0 / 256.0;
    const IS_HALF: bool = true;
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits((self.to_bits() as u32) << 16)
    }
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        bf16::from_bits(crate::simd::round_to_bf16(value))
    }
}

impl Lanes for f32 {
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[f32]) -> S::V {
        s.load(from)
    }
    #[inline(always)]
    fn load_part<S: Simd>(s: S, from: &[f32]) -> S::V {
        s.load_part(from)
    }
    #[inline(always)]
    fn store<S: Simd>(s: S, v: S::V, to: &mut [f32]) {
        s.store(v, to);
    }
    #[inline(always)]
    fn stream<S: Simd>(s: S, v: S::V, to: &mut [f32]) {
        s.stream(v, to);
    }
    #[inline(always)]
    fn store_part<S: Simd>(s: S, v: S::V, to: &mut [f32]) {
        s.store_part(v, to);
    }
}

impl Lanes for bf16 {
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[bf16]) -> S::V {
        s.load_bf16(from)
    }
    #[inline(always)]
    fn load_part<S: Simd>(s: S, from: &[bf16]) -> S::V {
        s.load_bf16_part(from)
    }
    #[inline(always)]
    fn store<S: Simd>(s: S, v: S::V, to: &mut [bf16]) {
        s.store_bf16(v, to);
    }
    #[inline(always)]
    fn stream<S: Simd>(s: S, v: S::V, to: &mut [bf16]) {
        s.stream_bf16(v, to);
    }
    #[inline(always)]
    fn store_part<S: Simd>(s: S, v: S::V, to: &mut [bf16]) {
        s.store_bf16_part(v, to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounding_agrees_with_the_half_crate() {
        let mut bits = 0u32;
        loop {
            let value = f32::from_bits(bits);
            let (ours, theirs) = (<bf16 as Element>::from_f32(value), bf16::from_f32(value));
            assert!(ours.to_bits() == theirs.to_bits(), "{bits:08x}: {ours:?} and {theirs:?}");
            match bits.checked_add(9973) {
                Some(next) => bits = next,
                None => break,
            }
        }
    }
}
