//! Residual blocks and resampling of the UNet and the autoencoder.

use crate::init::Init;
use crate::layers::{Conv2d, GroupNorm, Linear};
use burn::module::Module;
use burn::tensor::Tensor;
use calotype_ops::{Activation, Conv2dGeometry, activation, upsample_nearest2x};

/// Group count and epsilon of the norms in a block.
#[derive(Clone, Copy, Debug)]
pub struct NormOptions {
    /// Number of channel groups.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f32,
}

/// `ResnetBlock2D`: norm, SiLU, convolution, plus the time embedding; norm, SiLU, convolution, plus
/// the input (through a 1x1 convolution where the channels change).
#[derive(Module, Debug)]
pub struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
}

impl ResnetBlock {
    /// `time_channels` is `None` in the autoencoder.
    pub fn new(
        init: &mut Init,
        inputs: usize,
        outputs: usize,
        time_channels: Option<usize>,
        norm: NormOptions,
    ) -> Self {
        Self {
            norm1: GroupNorm::new(init, inputs, norm.groups, norm.eps),
            conv1: Conv2d::same(init, inputs, outputs, 3),
            time_emb_proj: time_channels.map(|c| Linear::new(init, c, outputs)),
            norm2: GroupNorm::new(init, outputs, norm.groups, norm.eps),
            conv2: Conv2d::same(init, outputs, outputs, 3),
            conv_shortcut: (inputs != outputs).then(|| Conv2d::same(init, inputs, outputs, 1)),
        }
    }

    /// Starts the block as the identity (or its shortcut): the last convolution is zero, as the
    /// LDM reference initialises its UNet.
    pub fn zero_last(mut self, init: &mut Init) -> Self {
        let [outputs, _, _, inputs] = self.conv2.weight.dims();
        self.conv2 = Conv2d::zero(init, inputs, outputs, 3);
        self
    }

    /// # Shapes
    /// `x`: `[batch, height, width, in]`, `time`: `[batch, time channels]`, after its SiLU;
    /// returns `[batch, height, width, out]`
    pub fn forward(&self, x: Tensor<4>, time: Option<Tensor<2>>) -> Tensor<4> {
        let shift = match (&self.time_emb_proj, time) {
            (Some(projection), Some(time)) => Some(projection.forward(time)),
            _ => None,
        };
        let h = self.conv1.forward_with(self.norm1.forward_silu(x.clone()), shift, None);
        let residual = match &self.conv_shortcut {
            Some(shortcut) => shortcut.forward(x),
            None => x,
        };
        self.conv2.forward_with(self.norm2.forward_silu(h), None, Some(residual))
    }
}

/// Halves height and width by a strided convolution.
#[derive(Module, Debug)]
pub struct Downsample {
    conv: Conv2d,
}

impl Downsample {
    /// With one zero on every side (UNet).
    pub fn symmetric(init: &mut Init, channels: usize) -> Self {
        Self { conv: Conv2d::new(init, channels, channels, 3, Conv2dGeometry::downsample()) }
    }

    /// With zeros at the bottom and right only (autoencoder).
    pub fn asymmetric(init: &mut Init, channels: usize) -> Self {
        let geometry = Conv2dGeometry::downsample_asymmetric();
        Self { conv: Conv2d::new(init, channels, channels, 3, geometry) }
    }

    /// # Shapes
    /// `[batch, height, width, channels]` to half the height and width
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        self.conv.forward(x)
    }
}

/// Doubles height and width by nearest neighbours and a convolution.
#[derive(Module, Debug)]
pub struct Upsample {
    conv: Conv2d,
}

impl Upsample {
    /// Keeps the channels.
    pub fn new(init: &mut Init, channels: usize) -> Self {
        Self { conv: Conv2d::same(init, channels, channels, 3) }
    }

    /// # Shapes
    /// `[batch, height, width, channels]` to twice the height and width
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        self.conv.forward(upsample_nearest2x(x))
    }

    /// To the size of an image that [`Downsample::symmetric`] made `x` of: for an odd size, the last row or column of the
    /// doubled image is left out before the convolution.
    ///
    /// # Shapes
    /// `[batch, height, width, channels]` to `[batch, size[0], size[1], channels]`
    pub fn forward_to(&self, x: Tensor<4>, [height, width]: [usize; 2]) -> Tensor<4> {
        let doubled = upsample_nearest2x(x);
        let [_, h, w, _] = doubled.dims();
        let doubled = if h > height { doubled.narrow(1, 0, height) } else { doubled };
        let doubled = if w > width { doubled.narrow(2, 0, width) } else { doubled };
        self.conv.forward(doubled)
    }
}

/// The SiLU that precedes every block's time projection; computed once for all blocks.
pub fn activated_time(time: Tensor<2>) -> Tensor<2> {
    activation(time, Activation::Silu)
}
