//! Weights as checkpoints store them.

#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx512, Simd};
#[cfg(target_arch = "x86_64")]
use half::bf16;

/// Type of a stored weight's elements, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredType {
    /// IEEE double precision.
    F64,
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of single precision.
    BF16,
}

impl StoredType {
    /// Bytes of an element.
    pub fn size(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }
}

/// The weight of a layer as checkpoints store it: `[outputs, inputs, kernel height, kernel width]`, row-major.
#[derive(Clone, Copy, Debug)]
pub struct StoredWeight<'a> {
    /// The elements; they need not be aligned.
    pub bytes: &'a [u8],
    /// Type of the elements.
    pub dtype: StoredType,
    /// Outputs of the layer.
    pub outputs: usize,
    /// Inputs of the layer: features, or channels.
    pub inputs: usize,
    /// Kernel height times kernel width, 1 for linear layers.
    pub taps: usize,
}

impl StoredWeight<'_> {
    /// Elements of an output's weights.
    pub(crate) fn row_len(&self) -> usize {
        self.inputs * self.taps
    }

    pub(crate) fn check(&self, op: &str, taps: usize) {
        let needed = self.outputs * self.row_len() * self.dtype.size();
        assert!(self.bytes.len() == needed, "{op}: the weight has {} bytes, its sizes say {needed}", self.bytes.len());
        assert!(self.taps == taps, "{op}: the weight has {} taps, not {taps}", self.taps);
    }
}

#[cfg(target_arch = "x86_64")]
impl StoredWeight<'_> {
    /// Writes the weights of an output as `[taps, inputs]`, rounded to nearest even; `room` is for as many elements.
    #[inline(always)]
    pub(crate) fn read_row(&self, s: Avx512, row: usize, to: &mut [bf16], room: &mut [bf16]) {
        let len = self.row_len() * self.dtype.size();
        let bytes = &self.bytes[row * len..][..len];
        if self.taps == 1 {
            return round(s, self.dtype, bytes, to);
        }
        round(s, self.dtype, bytes, room);
        let pixels = room.chunks_exact(self.taps);
        // One pass over the stored row for each tap: it stays in the nearest cache.
        for (tap, to) in to.chunks_exact_mut(self.inputs.max(1)).enumerate() {
            to.iter_mut().zip(pixels.clone()).for_each(|(to, pixel)| *to = pixel[tap]);
        }
    }
}

/// Rounds stored elements to bf16.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn round(s: Avx512, dtype: StoredType, bytes: &[u8], to: &mut [bf16]) {
    match dtype {
        StoredType::BF16 => bytemuck::cast_slice_mut::<bf16, u8>(to).copy_from_slice(bytes),
        StoredType::F64 => {
            let (elements, _) = bytes.as_chunks::<8>();
            let values = elements.iter().map(|&element| f64::from_le_bytes(element) as f32);
            to.iter_mut().zip(values).for_each(|(to, value)| *to = bf16::from_f32(value));
        }
        StoredType::F32 => round_16::<64>(
            bytes,
            to,
            #[inline(always)]
            |part, to| s.store_bf16(s.load(&bytemuck::pod_read_unaligned::<[f32; 16]>(part)), to),
        ),
        StoredType::F16 => round_16::<32>(
            bytes,
            to,
            #[inline(always)]
            |part, to| s.store_bf16(s.load_f16(part), to),
        ),
    }
}

/// Rounds 16 elements of `BYTES` bytes at a time by `round`, the last ones with others that nobody reads.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn round_16<const BYTES: usize>(bytes: &[u8], to: &mut [bf16], round: impl Fn(&[u8; BYTES], &mut [bf16])) {
    let (parts, rest) = bytes.as_chunks::<BYTES>();
    let mut runs = to.chunks_exact_mut(16);
    for (part, to) in parts.iter().zip(&mut runs) {
        round(part, to);
    }
    if !rest.is_empty() {
        let (mut part, mut rounded) = ([0; BYTES], [bf16::ZERO; 16]);
        part[..rest.len()].copy_from_slice(rest);
        round(&part, &mut rounded);
        let to = runs.into_remainder();
        to.copy_from_slice(&rounded[..to.len()]);
    }
}
