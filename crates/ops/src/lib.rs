//! The operations that carry the work of a latent diffusion model, as Burn tensor functions.
//!
//! Activations are channels-last: images `[batch, height, width, channels]`, token sequences
//! `[batch, tokens, channels]` (the same memory). Weights, their gradients, norm parameters and
//! optimizer state are `f32`; activations and their gradients are `f32` or `bf16`, and every
//! operation returns the dtype of its first activation. Accumulation, statistics and softmax are
//! always `f32`.
//!
//! Each operation of [`functions`](crate) has two bodies:
//!
//! - [`portable`]: Burn tensor operations, differentiated by Burn. It runs on every device, and it
//!   is the oracle that the tests hold the other body against.
//! - `flex`: on Burn's CPU backend, the kernels of `calotype-kernels` with hand-written backward.
//!
//! The device of the first argument decides; [`force_portable`] overrides it for tests.

mod element;
mod flex;
mod functions;
pub mod in_backward;
mod optimizer;
pub mod packed;
pub mod parallel;
mod peaks;
pub mod portable;
mod precision;
pub mod profile;
mod recompute;
mod weight;

pub use calotype_kernels::{Activation, AdamW, MOMENT_BLOCK, MomentKind, Pooling, Sgd, StoredType};
pub use flex::DiffusionOps;
pub use functions::*;
pub use optimizer::{
    EightBitMoment, EightBitState, ParameterState, StepParams, Update, adamw_step, adamw_steps_in_eight_bits, ema_step,
    optimizer_step, optimizer_steps, sum_of_squares, sums_of_squares,
};
pub use peaks::Peaks;
pub use precision::Precision;
pub use recompute::{Inputs, MapInput, joined, recomputed};
pub use weight::{PackedWeight, StoredInt8, Weight, WeightUse};

use burn::backend::DispatchDevice;
use burn::tensor::Device;
use std::cell::Cell;

/// Geometry of a two-dimensional convolution on `[batch, height, width, channels]` images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2dGeometry {
    /// Step of the window in both directions, in pixels.
    pub stride: usize,
    /// Zero rows and columns added at the `[top, bottom, left, right]`.
    pub padding: [usize; 4],
}

impl Conv2dGeometry {
    /// Stride 1 and `kernel / 2` zeros on every side: the output has the input's size.
    pub fn same(kernel: usize) -> Self {
        let p = kernel / 2;
        Self { stride: 1, padding: [p, p, p, p] }
    }

    /// The Stable Diffusion UNet's downsampling: 3x3, stride 2, one zero on every side.
    pub fn downsample() -> Self {
        Self { stride: 2, padding: [1, 1, 1, 1] }
    }

    /// The Stable Diffusion autoencoder's downsampling: 3x3, stride 2, zeros only at the bottom
    /// and the right (`pad (0, 1, 0, 1)` in the reference).
    pub fn downsample_asymmetric() -> Self {
        Self { stride: 2, padding: [0, 1, 0, 1] }
    }

    /// Non-overlapping patches of `size` pixels, as a vision transformer embeds them.
    pub fn patches(size: usize) -> Self {
        Self { stride: size, padding: [0; 4] }
    }

    /// Output `[height, width]` for an input of `[height, width]` and a `[rows, columns]` kernel.
    ///
    /// # Panics
    /// If the kernel is larger than the padded input.
    pub fn output_size(&self, input: [usize; 2], kernel: [usize; 2]) -> [usize; 2] {
        let [top, bottom, left, right] = self.padding;
        let size = |n: usize, a: usize, b: usize, k: usize| {
            assert!(n + a + b >= k, "conv2d: kernel {k} is larger than the padded input {}", n + a + b);
            (n + a + b - k) / self.stride + 1
        };
        [size(input[0], top, bottom, kernel[0]), size(input[1], left, right, kernel[1])]
    }
}

/// Geometry of a pooling with square windows on `[batch, height, width, channels]` images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolGeometry {
    /// Side of a window in pixels.
    pub size: usize,
    /// Step of the window in both directions, in pixels.
    pub stride: usize,
    /// Pixels that windows reach over every edge; less than `size`.
    pub padding: usize,
}

thread_local! {
    static FORCE_PORTABLE: Cell<bool> = const { Cell::new(false) };
}

/// Runs `body` with every operation of this thread on its portable body, on any device.
///
/// For tests and for judging a device: the portable body is the specification of the operation.
pub fn force_portable<R>(body: impl FnOnce() -> R) -> R {
    /// Puts the flag back even when the body panics: a test may go on after a caught panic.
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            FORCE_PORTABLE.set(self.0);
        }
    }
    let _restore = Restore(FORCE_PORTABLE.replace(true));
    body()
}

/// True if tensors of `device` go through the CPU kernels.
pub fn uses_kernels(device: &Device) -> bool {
    if FORCE_PORTABLE.get() {
        return false;
    }
    match device.as_dispatch() {
        DispatchDevice::Flex(_) => true,
        DispatchDevice::Autodiff(inner) => matches!(**inner, DispatchDevice::Flex(_)),
        #[allow(unreachable_patterns, reason = "other variants exist only with other devices' features")]
        _ => false,
    }
}
