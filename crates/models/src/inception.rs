//! Inception v3 (Szegedy et al. 2016) as the Fréchet inception distance uses it: the weights that TensorFlow published in
//! December 2015, in the structure that pytorch-fid gave them in PyTorch. It differs from torchvision's network in its
//! pooling branches: averages leave out what lies beyond the edges, and the last block takes a maximum.
//!
//! Beside it stands the network of Keras' applications, which has averages everywhere ([`KerasInceptionConfig`]).

#![allow(non_snake_case, reason = "the network's fields have the names of its checkpoint")]

use crate::init::Init;
use crate::layers::{Conv2d, Linear};
use crate::state;
use crate::{ConfigError, InputError};
use burn::module::{Module, Param};
use burn::tensor::{DType, Int, Tensor};
use calotype_ops::{self as ops, Activation, Conv2dGeometry, PoolGeometry, Pooling, Weight, pool2d};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// Side of the images that the network was trained on.
const SIDE: usize = 299;
/// Smallest side from which every layer gets a pixel.
const LEAST_SIDE: usize = 75;
/// Epsilon of the batch norms.
const NORM_EPS: f32 = 1e-3;
/// Features of an image.
pub const FEATURES: usize = 2048;

/// The network's only choice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InceptionConfig {
    /// Classes of the logits; the published weights have 1008.
    pub labels: usize,
}

impl Default for InceptionConfig {
    fn default() -> Self {
        Self { labels: 1008 }
    }
}

impl InceptionConfig {
    /// The network with random weights and neutral norms, under the keys of pytorch-fid's checkpoint; only
    /// `num_batches_tracked`, which nothing reads, is not among them.
    pub fn init(&self, init: &mut Init) -> Inception {
        Inception::new(&mut Builder { init, norms: Norms::Scaled }, self.labels, Pooling::Max)
    }
}

/// Inception v3 as Keras' applications have it: norms without a scale, and an average in the last block, too. TensorFlow's
/// averages leave out what lies beyond the edges, so that this is the only difference of structure to the network of the
/// Fréchet distance. It takes images of `-1..1` where it was trained as Keras' documentation says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KerasInceptionConfig {
    /// Outputs of the first dense layer behind the features: the classes, or the width of a layer in front of them.
    pub outputs: usize,
}

impl KerasInceptionConfig {
    /// The network with random weights and neutral norms, under the keys of pytorch-fid's; `fc` is its first dense layer.
    ///
    /// # Errors
    /// [`ConfigError`] if it has no outputs.
    pub fn init(&self, init: &mut Init) -> Result<Inception, ConfigError> {
        ConfigError::check(self.outputs > 0, "outputs", || "a dense layer needs outputs".into())?;
        Ok(Inception::new(&mut Builder { init, norms: Norms::Unscaled }, self.outputs, Pooling::Average))
    }
}

/// The batch norms of a network.
#[derive(Clone, Copy)]
enum Norms {
    /// With scale and shift.
    Scaled,
    /// With a shift only.
    Unscaled,
    /// None, but room in the convolutions into which they are folded.
    Folded,
}

/// Makes the layers.
struct Builder<'a, 'b> {
    init: &'a mut Init<'b>,
    norms: Norms,
}

impl Builder<'_, '_> {
    /// A convolution whose output keeps the input's size.
    fn same(&mut self, inputs: usize, outputs: usize, kernel: [usize; 2]) -> BasicConv {
        let [rows, columns] = kernel.map(|n| n / 2);
        let geometry = Conv2dGeometry { stride: 1, padding: [rows, rows, columns, columns] };
        self.conv(inputs, outputs, kernel, geometry)
    }

    fn pointwise(&mut self, inputs: usize, outputs: usize) -> BasicConv {
        self.same(inputs, outputs, [1, 1])
    }

    /// A 3x3 convolution without padding.
    fn inner(&mut self, inputs: usize, outputs: usize, stride: usize) -> BasicConv {
        self.conv(inputs, outputs, [3, 3], Conv2dGeometry { stride, padding: [0; 4] })
    }

    fn conv(
        &mut self,
        inputs: usize,
        outputs: usize,
        [rows, columns]: [usize; 2],
        geometry: Conv2dGeometry,
    ) -> BasicConv {
        let shape = [outputs, rows, columns, inputs];
        let init = &mut *self.init;
        let scaled = match self.norms {
            Norms::Folded => {
                let (weight, bias) = (init.constant(shape, 0.0), init.constant([outputs], 0.0));
                return BasicConv { conv: Conv2d::from_parameters(weight, Some(bias), geometry), bn: None };
            }
            Norms::Scaled => true,
            Norms::Unscaled => false,
        };
        let weight = init.fan_in_uniform(shape, rows * columns * inputs);
        let bn = Some(BatchNorm::new(init, outputs, scaled));
        BasicConv { conv: Conv2d::from_parameters(weight, None, geometry), bn }
    }
}

/// Batch normalisation with the statistics of the training.
#[derive(Module, Debug)]
pub(crate) struct BatchNorm {
    weight: Option<Param<Tensor<1>>>,
    bias: Param<Tensor<1>>,
    running_mean: Param<Tensor<1>>,
    running_var: Param<Tensor<1>>,
}

impl BatchNorm {
    /// A neutral one, with a learned scale or without.
    pub(crate) fn new(init: &mut Init, channels: usize, scaled: bool) -> Self {
        Self {
            weight: scaled.then(|| init.constant([channels], 1.0)),
            bias: init.constant([channels], 0.0),
            running_mean: init.constant([channels], 0.0),
            running_var: init.constant([channels], 1.0),
        }
    }

    /// The factor and the summand of each channel that it amounts to.
    pub(crate) fn scale_and_shift(&self) -> (Tensor<1>, Tensor<1>) {
        let deviation = self.running_var.val().add_scalar(NORM_EPS).sqrt();
        let scale = match &self.weight {
            Some(weight) => weight.val() / deviation,
            None => deviation.recip(),
        };
        let shift = self.bias.val() - self.running_mean.val() * scale.clone();
        (scale, shift)
    }
}

/// A convolution, its norm and a ReLU. The norm may be folded into the convolution, which then has a bias.
#[derive(Module, Debug)]
struct BasicConv {
    conv: Conv2d,
    bn: Option<BatchNorm>,
}

impl BasicConv {
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let (weight, bias) = self.affine();
        ops::conv2d_relu(x, weight, bias, self.conv.geometry())
    }

    /// Behind an average over windows around every pixel. Both are linear, and averages of the few outputs take less than those of the
    /// inputs; in `f32`, where features are compared with other programs', the order stays.
    fn forward_averaged(&self, x: Tensor<4>) -> Tensor<4> {
        if x.dtype() == DType::F32 {
            return self.forward(around(&x, Pooling::Average));
        }
        let (weight, bias) = self.affine();
        let y = ops::conv2d(x, weight, bias, None, None, self.conv.geometry());
        ops::activation(around(&y, Pooling::Average), Activation::Relu)
    }

    /// Weight and bias of the convolution with its norm.
    fn affine(&self) -> (Weight<4>, Option<Tensor<1>>) {
        match &self.bn {
            None => (self.conv.weight.val(), self.conv.bias.as_ref().map(Param::val)),
            Some(bn) => {
                let (scale, shift) = bn.scale_and_shift();
                let [outputs] = scale.dims();
                let weight = self.conv.weight.tensor() * scale.reshape([outputs, 1, 1, 1]);
                (weight.into(), Some(shift))
            }
        }
    }
}

/// Layers one after the other.
fn chain(layers: &[&BasicConv], x: &Tensor<4>) -> Tensor<4> {
    layers.iter().fold(x.clone(), |x, layer| layer.forward(x))
}

/// The channels of all branches.
fn join<const N: usize>(branches: [Tensor<4>; N]) -> Tensor<4> {
    Tensor::cat(Vec::from(branches), 3)
}

/// Windows of 3x3 around every pixel.
fn around(x: &Tensor<4>, kind: Pooling) -> Tensor<4> {
    pool2d(x.clone(), kind, PoolGeometry { size: 3, stride: 1, padding: 1 })
}

/// The maxima of every other 3x3 window.
fn halve(x: Tensor<4>) -> Tensor<4> {
    pool2d(x, Pooling::Max, PoolGeometry { size: 3, stride: 2, padding: 0 })
}

/// 35x35 pixels: 1x1, 5x5 and two 3x3 convolutions, and an average.
#[derive(Module, Debug)]
struct BlockA {
    branch1x1: BasicConv,
    branch5x5_1: BasicConv,
    branch5x5_2: BasicConv,
    branch3x3dbl_1: BasicConv,
    branch3x3dbl_2: BasicConv,
    branch3x3dbl_3: BasicConv,
    branch_pool: BasicConv,
}

impl BlockA {
    fn new(b: &mut Builder, inputs: usize, pooled: usize) -> Self {
        Self {
            branch1x1: b.pointwise(inputs, 64),
            branch5x5_1: b.pointwise(inputs, 48),
            branch5x5_2: b.same(48, 64, [5, 5]),
            branch3x3dbl_1: b.pointwise(inputs, 64),
            branch3x3dbl_2: b.same(64, 96, [3, 3]),
            branch3x3dbl_3: b.same(96, 96, [3, 3]),
            branch_pool: b.pointwise(inputs, pooled),
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        join([
            self.branch1x1.forward(x.clone()),
            chain(&[&self.branch5x5_1, &self.branch5x5_2], &x),
            chain(&[&self.branch3x3dbl_1, &self.branch3x3dbl_2, &self.branch3x3dbl_3], &x),
            self.branch_pool.forward_averaged(x),
        ])
    }
}

/// From 35x35 to 17x17 pixels.
#[derive(Module, Debug)]
struct BlockB {
    branch3x3: BasicConv,
    branch3x3dbl_1: BasicConv,
    branch3x3dbl_2: BasicConv,
    branch3x3dbl_3: BasicConv,
}

impl BlockB {
    fn new(b: &mut Builder, inputs: usize) -> Self {
        Self {
            branch3x3: b.inner(inputs, 384, 2),
            branch3x3dbl_1: b.pointwise(inputs, 64),
            branch3x3dbl_2: b.same(64, 96, [3, 3]),
            branch3x3dbl_3: b.inner(96, 96, 2),
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        join([
            self.branch3x3.forward(x.clone()),
            chain(&[&self.branch3x3dbl_1, &self.branch3x3dbl_2, &self.branch3x3dbl_3], &x),
            halve(x),
        ])
    }
}

/// 17x17 pixels: 7x7 convolutions as rows and columns, and an average.
#[derive(Module, Debug)]
struct BlockC {
    branch1x1: BasicConv,
    branch7x7_1: BasicConv,
    branch7x7_2: BasicConv,
    branch7x7_3: BasicConv,
    branch7x7dbl_1: BasicConv,
    branch7x7dbl_2: BasicConv,
    branch7x7dbl_3: BasicConv,
    branch7x7dbl_4: BasicConv,
    branch7x7dbl_5: BasicConv,
    branch_pool: BasicConv,
}

impl BlockC {
    fn new(b: &mut Builder, inner: usize) -> Self {
        const INPUTS: usize = 768;
        Self {
            branch1x1: b.pointwise(INPUTS, 192),
            branch7x7_1: b.pointwise(INPUTS, inner),
            branch7x7_2: b.same(inner, inner, [1, 7]),
            branch7x7_3: b.same(inner, 192, [7, 1]),
            branch7x7dbl_1: b.pointwise(INPUTS, inner),
            branch7x7dbl_2: b.same(inner, inner, [7, 1]),
            branch7x7dbl_3: b.same(inner, inner, [1, 7]),
            branch7x7dbl_4: b.same(inner, inner, [7, 1]),
            branch7x7dbl_5: b.same(inner, 192, [1, 7]),
            branch_pool: b.pointwise(INPUTS, 192),
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let double = [
            &self.branch7x7dbl_1,
            &self.branch7x7dbl_2,
            &self.branch7x7dbl_3,
            &self.branch7x7dbl_4,
            &self.branch7x7dbl_5,
        ];
        join([
            self.branch1x1.forward(x.clone()),
            chain(&[&self.branch7x7_1, &self.branch7x7_2, &self.branch7x7_3], &x),
            chain(&double, &x),
            self.branch_pool.forward_averaged(x),
        ])
    }
}

/// From 17x17 to 8x8 pixels.
#[derive(Module, Debug)]
struct BlockD {
    branch3x3_1: BasicConv,
    branch3x3_2: BasicConv,
    branch7x7x3_1: BasicConv,
    branch7x7x3_2: BasicConv,
    branch7x7x3_3: BasicConv,
    branch7x7x3_4: BasicConv,
}

impl BlockD {
    fn new(b: &mut Builder, inputs: usize) -> Self {
        Self {
            branch3x3_1: b.pointwise(inputs, 192),
            branch3x3_2: b.inner(192, 320, 2),
            branch7x7x3_1: b.pointwise(inputs, 192),
            branch7x7x3_2: b.same(192, 192, [1, 7]),
            branch7x7x3_3: b.same(192, 192, [7, 1]),
            branch7x7x3_4: b.inner(192, 192, 2),
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let long = [&self.branch7x7x3_1, &self.branch7x7x3_2, &self.branch7x7x3_3, &self.branch7x7x3_4];
        join([chain(&[&self.branch3x3_1, &self.branch3x3_2], &x), chain(&long, &x), halve(x)])
    }
}

/// 8x8 pixels: 3x3 convolutions that end in a row and a column side by side, and a pooling.
#[derive(Module, Debug)]
struct BlockE {
    branch1x1: BasicConv,
    branch3x3_1: BasicConv,
    branch3x3_2a: BasicConv,
    branch3x3_2b: BasicConv,
    branch3x3dbl_1: BasicConv,
    branch3x3dbl_2: BasicConv,
    branch3x3dbl_3a: BasicConv,
    branch3x3dbl_3b: BasicConv,
    branch_pool: BasicConv,
}

impl BlockE {
    fn new(b: &mut Builder, inputs: usize) -> Self {
        Self {
            branch1x1: b.pointwise(inputs, 320),
            branch3x3_1: b.pointwise(inputs, 384),
            branch3x3_2a: b.same(384, 384, [1, 3]),
            branch3x3_2b: b.same(384, 384, [3, 1]),
            branch3x3dbl_1: b.pointwise(inputs, 448),
            branch3x3dbl_2: b.same(448, 384, [3, 3]),
            branch3x3dbl_3a: b.same(384, 384, [1, 3]),
            branch3x3dbl_3b: b.same(384, 384, [3, 1]),
            branch_pool: b.pointwise(inputs, 192),
        }
    }

    fn forward(&self, x: Tensor<4>, pooling: Pooling) -> Tensor<4> {
        let single = self.branch3x3_1.forward(x.clone());
        let double = chain(&[&self.branch3x3dbl_1, &self.branch3x3dbl_2], &x);
        join([
            self.branch1x1.forward(x.clone()),
            self.branch3x3_2a.forward(single.clone()),
            self.branch3x3_2b.forward(single),
            self.branch3x3dbl_3a.forward(double.clone()),
            self.branch3x3dbl_3b.forward(double),
            match pooling {
                Pooling::Average => self.branch_pool.forward_averaged(x),
                Pooling::Max => self.branch_pool.forward(around(&x, pooling)),
            },
        ])
    }
}

/// The network, with the field names of its published keys.
#[derive(Module, Debug)]
pub struct Inception {
    Conv2d_1a_3x3: BasicConv,
    Conv2d_2a_3x3: BasicConv,
    Conv2d_2b_3x3: BasicConv,
    Conv2d_3b_1x1: BasicConv,
    Conv2d_4a_3x3: BasicConv,
    Mixed_5b: BlockA,
    Mixed_5c: BlockA,
    Mixed_5d: BlockA,
    Mixed_6a: BlockB,
    Mixed_6b: BlockC,
    Mixed_6c: BlockC,
    Mixed_6d: BlockC,
    Mixed_6e: BlockC,
    Mixed_7a: BlockD,
    Mixed_7b: BlockE,
    Mixed_7c: BlockE,
    fc: Linear,
    /// Of the last block.
    #[module(skip)]
    last: Pooling,
}

/// Outputs of the network for images.
#[derive(Debug)]
pub struct InceptionOutput {
    /// The means of the last block's channels (`pool3`), `[batch, 2048]`, `f32`.
    pub features: Tensor<2>,
    /// Logits of the classes, `[batch, labels]`, `f32`.
    pub logits: Tensor<2>,
}

impl Inception {
    fn new(b: &mut Builder, labels: usize, last: Pooling) -> Self {
        Self {
            Conv2d_1a_3x3: b.inner(3, 32, 2),
            Conv2d_2a_3x3: b.inner(32, 32, 1),
            Conv2d_2b_3x3: b.same(32, 64, [3, 3]),
            Conv2d_3b_1x1: b.pointwise(64, 80),
            Conv2d_4a_3x3: b.inner(80, 192, 1),
            Mixed_5b: BlockA::new(b, 192, 32),
            Mixed_5c: BlockA::new(b, 256, 64),
            Mixed_5d: BlockA::new(b, 288, 64),
            Mixed_6a: BlockB::new(b, 288),
            Mixed_6b: BlockC::new(b, 128),
            Mixed_6c: BlockC::new(b, 160),
            Mixed_6d: BlockC::new(b, 160),
            Mixed_6e: BlockC::new(b, 192),
            Mixed_7a: BlockD::new(b, 768),
            Mixed_7b: BlockE::new(b, 1280),
            Mixed_7c: BlockE::new(b, 2048),
            fc: Linear::new(b.init, FEATURES, labels),
            last,
        }
    }

    /// The same network with every batch norm folded into its convolution: faster, and for inference only, as its keys
    /// are not the checkpoint's any more.
    pub fn folded(&self) -> Self {
        let labels = self.labels();
        let device = self.fc.weight.device();
        let mut init = Init::new(0, &device);
        let room = Self::new(&mut Builder { init: &mut init, norms: Norms::Folded }, labels, self.last);
        let named = state::collect(self).into_iter().map(|tensor| (tensor.name, tensor.values));
        let parameters = Parameters(named.collect());
        let folded = state::load(room, |name, _| Ok::<_, std::convert::Infallible>(parameters.folded(name)));
        folded.unwrap_or_else(|never| match never {})
    }

    /// Features and logits as pytorch-fid computes them: images of any size are resized to 299x299, bilinearly and
    /// without smoothing, and mapped to `-1..1`. The images' dtype is the precision of the pass.
    ///
    /// # Shapes
    /// `images`: `[batch, height, width, 3]` in `0..1`
    ///
    /// # Errors
    /// [`InputError`] if the images do not have three channels, or no pixels.
    pub fn forward(&self, images: Tensor<4>) -> Result<InceptionOutput, InputError> {
        check_colours(&images, 1)?;
        let dtype = images.dtype();
        let images = resize_bilinear(images.cast(DType::F32), [SIDE, SIDE]);
        self.forward_resized(images.mul_scalar(2.0).sub_scalar(1.0).cast(dtype))
    }

    /// Features and logits of images that are resized and normalised already.
    ///
    /// # Shapes
    /// `images`: `[batch, height, width, 3]` in `-1..1`, with sides of at least 75
    ///
    /// # Errors
    /// [`InputError`] if the images do not have three channels, or are too small.
    pub fn forward_resized(&self, images: Tensor<4>) -> Result<InceptionOutput, InputError> {
        check_colours(&images, LEAST_SIDE)?;
        let x = chain(&[&self.Conv2d_1a_3x3, &self.Conv2d_2a_3x3, &self.Conv2d_2b_3x3], &images);
        let x = chain(&[&self.Conv2d_3b_1x1, &self.Conv2d_4a_3x3], &halve(x));
        let x = [&self.Mixed_5b, &self.Mixed_5c, &self.Mixed_5d].into_iter().fold(halve(x), |x, b| b.forward(x));
        let x = self.Mixed_6a.forward(x);
        let blocks = [&self.Mixed_6b, &self.Mixed_6c, &self.Mixed_6d, &self.Mixed_6e];
        let x = blocks.into_iter().fold(x, |x, block| block.forward(x));
        let x = self.Mixed_7b.forward(self.Mixed_7a.forward(x), Pooling::Average);
        // The maximum is an oversight of the network's export that all published distances share.
        let x = self.Mixed_7c.forward(x, self.last).cast(DType::F32);
        let [batch, rows, columns, channels] = x.dims();
        let features = x.reshape([batch, rows * columns, channels]).mean_dim(1).reshape([batch, channels]);
        let logits = self.fc.forward(features.clone());
        Ok(InceptionOutput { features, logits })
    }

    /// Logits without their bias, `[batch, labels]`, of [`InceptionOutput::features`]: what torch-fidelity computes the
    /// Inception score of (`logits_unbiased`).
    pub fn unbiased_logits(&self, features: Tensor<2>) -> Tensor<2> {
        ops::linear(features, self.fc.weight.val(), None, None)
    }

    /// Number of its classes.
    pub fn labels(&self) -> usize {
        let [labels, _] = self.fc.weight.dims();
        labels
    }
}

/// A network's parameters in checkpoint layout, by key.
struct Parameters(HashMap<String, Vec<f32>>);

impl Parameters {
    /// A parameter of the folded network.
    fn folded(&self, name: &str) -> Vec<f32> {
        let Some((layer, kind)) = name.split_once(".conv.") else {
            return self.get(name).to_vec();
        };
        let of = |field: &str| self.get(&format!("{layer}.bn.{field}"));
        let weights = of("weight");
        let weight = |channel: usize| weights.get(channel).copied().unwrap_or(1.0);
        let variances = of("running_var").iter().enumerate();
        let scale: Vec<f32> = variances.map(|(channel, v)| weight(channel) / (v + NORM_EPS).sqrt()).collect();
        if kind == "bias" {
            let statistics = of("bias").iter().zip(of("running_mean")).zip(&scale);
            return statistics.map(|((bias, mean), scale)| bias - mean * scale).collect();
        }
        let mut weight = self.get(name).to_vec();
        let outputs = weight.len() / scale.len().max(1);
        for (weight, scale) in weight.chunks_mut(outputs.max(1)).zip(scale) {
            weight.iter_mut().for_each(|w| *w *= scale);
        }
        weight
    }

    fn get(&self, name: &str) -> &[f32] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }
}

fn check_colours(images: &Tensor<4>, least: usize) -> Result<(), InputError> {
    let [_, height, width, channels] = images.dims();
    if height >= least && width >= least && channels == 3 {
        return Ok(());
    }
    Err(InputError::Small { found: [height, width, channels], least })
}

/// Bilinear interpolation between the two nearest lines and columns, also where images shrink: torch's `interpolate`
/// with `mode = "bilinear"`, `align_corners = False`, `antialias = False`.
///
/// # Shapes
/// `[batch, height, width, channels]` to `[batch, size[0], size[1], channels]`
fn resize_bilinear(x: Tensor<4>, size: [usize; 2]) -> Tensor<4> {
    (0..2).fold(x, |x, axis| interpolate(x, axis + 1, size[axis]))
}

fn interpolate(x: Tensor<4>, axis: usize, size: usize) -> Tensor<4> {
    let n = x.dims()[axis];
    if n == size {
        return x;
    }
    let device = x.device();
    let scale = n as f32 / size as f32;
    let place = |i: usize| ((i as f32 + 0.5) * scale - 0.5).max(0.0);
    let first: Vec<i32> = (0..size).map(|i| place(i) as i32).collect();
    let second: Vec<i32> = first.iter().map(|&i| (i + 1).min(n as i32 - 1)).collect();
    let share: Vec<f32> = (0..size).map(|i| place(i).fract()).collect();
    let mut shape = [1; 4];
    shape[axis] = size;
    let share = Tensor::<1>::from_data(share.as_slice(), &device).reshape(shape);
    let line = |at: &[i32]| x.clone().select(axis, Tensor::<1, Int>::from_data(at, &device));
    let (a, b) = (line(&first), line(&second));
    a * share.clone().neg().add_scalar(1.0) + b * share
}
