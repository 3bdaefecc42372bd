//! CPU kernels for training and running latent diffusion models: matrix products, convolution, attention,
//! normalization, activations, losses, optimizer steps; forward and backward. Plain slices and shapes, no framework.
//!
//! # Layout
//!
//! Channels come last: images are `[batch, height, width, channels]`, token sequences `[batch, tokens, channels]`,
//! which is the same memory. Linear weights are `[out, in]`, convolution weights
//! `[out_channels, kernel height, kernel width, in_channels]`. Activations and their gradients are f32 or bf16
//! ([`Element`]); weights, their gradients, normalization parameters and optimizer state are f32. Sums, statistics and
//! the softmax are always f32 or f64; what a kernel stores is rounded once. Gradients are overwritten, not added to.
//!
//! # Determinism
//!
//! For the same inputs, instruction set and shapes, every result is the same to the last bit for any number of
//! threads: work is cut, and partial sums are added, in ways that depend on shapes alone. Different instruction sets
//! differ in the last bits, because their vectors have different widths and not all have fused multiply-add.
//!
//! # Dispatch
//!
//! A kernel is written once over a token of an instruction set (AVX-512 with and without BF16, AVX2 with FMA, portable Rust)
//! and compiled for each; [`isa_name`] tells which one this process uses. The token is the proof that the processor has the
//! instructions. All matrix products, those inside convolution and attention too, end in one register-tile function
//! per instruction set, behind the `MicroKernel` trait.

#![deny(missing_docs)]

mod activation;
mod attention;
#[cfg(target_arch = "x86_64")]
mod attention16;
mod conv;
mod element;
mod gemm;
mod interface;
mod linear;
mod math;
mod norm;
mod optimizer;
mod packed;
mod peak;
mod pointwise;
mod pool;
mod product;
#[cfg(target_arch = "x86_64")]
mod product16;
mod product8;
mod quantise8;
mod resample;
mod scratch;
mod simd;
mod stored;
mod stream;
mod threads;
mod tile;
#[cfg(target_arch = "x86_64")]
mod tile16;
mod tile8;
#[cfg(target_arch = "x86_64")]
mod winograd16;

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests8;

pub use activation::Activation;
pub use attention::AttentionShape;
pub use conv::Conv2dShape;
pub use element::Element;
pub use gemm::{Layout, Matrix};
pub use half::{bf16, f16};
pub use interface::*;
pub use optimizer::{
    AdamW, MOMENT_BLOCK, MomentKind, QuantisedMoment, Sgd, Stepped, SteppedInEightBits, adamw_step,
    adamw_step_in_eight_bits, ema_step, quantise_moment, sgd_step, sums_of_squares, widen_moment,
};
pub use packed::{
    PackedWeights, conv2d_backward_input_packed, conv2d_forward_packed, conv2d_relu_forward_packed,
    linear_backward_input_packed, linear_forward_packed, linear_geglu_forward_packed,
};
pub use peak::{ArithmeticPeak, MemoryBandwidth, bf16_peaks, f32_peak, memory_bandwidth};
pub use pointwise::{bf16_to_f32, f32_to_bf16};
pub use pool::{Pool2dShape, Pooling};
pub use product::RowCount;
pub use product8::{QuantisedWeights, StoredWeight8, int8_isa_name};
pub use quantise8::quantise_rows;
pub use simd::{ISA_LEVELS, isa_name, multiplies_bf16};
pub use stored::{StoredType, StoredWeight};
pub use threads::{parallel_for, set_threads, threads};
