//! Any network that gives features of pictures (`--features PATH`), told apart by what the file holds, each behind the
//! preparation that it was published with. A distance on its features has its name: it is no FID.
//!
//! | network | picture | features |
//! |---|---|---|
//! | DINOv2 | squeezed to 224x224 by Pillow's bicubic, ImageNet's mean and deviation (dgm-eval, Stein et al. 2023) | normalised class token |
//! | ViT | as its `preprocessor_config.json` says, else squeezed by torch's bilinear, to -1..1 | normalised class token |
//! | CLIP's image tower | open_clip's | projection |
//! | EfficientNet-Lite | middle of 7/8 of the shorter side (TensorFlow's `crop_padding` of 32), here by Pillow's bicubic; less 127, by 128 | means of the head |
//! | Inception v3 of Keras | nsfwjs 4.4: bilinear with corners aligned, without smoothing, to 299x299 of 0..1 | means of the last block |
//! | Inception v3 of the FID | pytorch-fid's | `pool3` |

use super::clip::encode_images;
use super::framing::{Framing, Half, Resampler, View};
use super::{FeatureEntry, FeatureKey, Features, ImageRows, NetworkFingerprint, Preparation};
use crate::error::misfit;
use crate::{EvaluateError, Result};
use burn::tensor::{DType, Device, Tensor};
use calotype_checkpoints::{Checkpoint, Component, ImageProcessor, NetworkConfig};
use calotype_data::image::{Filter, RgbImage};
use calotype_models::state::values_of;
use calotype_models::{
    Dinov2, Dinov2Config, EfficientNetLite, EfficientNetLiteConfig, Inception, InceptionConfig, InputError,
    KerasInceptionConfig, efficientnet, inception,
};
use calotype_pipeline::batches::stack;
use calotype_pipeline::encoders::{ImageEncoder, ImageEncoderKind, ImageInput, ImageOutput};
use calotype_pipeline::network::{Network, Placement};
use rayon::prelude::*;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Its row of the table.
pub const ENTRY: FeatureEntry = FeatureEntry {
    network: "custom",
    about: "the network of --features: DINOv2, ViT, CLIP's image tower, EfficientNet-Lite, Inception v3 of the FID or of Keras",
    preparations: &[
        Preparation { name: "auto", about: "as the network's figures were published" },
        Preparation {
            name: "processor",
            about: "as the checkpoint's preprocessor_config.json says, as transformers 5",
        },
    ],
    open: |networks, preparation| {
        let Some(path) = &networks.features else {
            let problem = "these metrics need a network of features: give its file or folder by --features";
            return Err(EvaluateError::Usage(problem.to_owned()));
        };
        let precision = networks.precision;
        let network = networks.shared(path, || CustomNetwork::open(path, precision, &networks.device))?;
        Ok(Box::new(CustomFeatures::new(network, preparation)?))
    },
};

/// Side of the pictures that DINOv2's figures were published with.
const DINOV2_SIDE: usize = 224;
/// Mean of ImageNet's pictures.
const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
/// Their deviation.
const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];
/// Side of the pictures that Inception v3 was trained with.
const INCEPTION_SIDE: usize = 299;

/// A network of one of the kinds that are known.
enum Model {
    Dinov2(Arc<Dinov2>),
    EfficientNetLite(Arc<EfficientNetLite>),
    KerasInception(Inception),
    Inception(Inception),
    /// CLIP's image tower or a ViT, with the preparation that is its own.
    Encoder(ImageEncoder, Framing),
}

/// The network of a file, with what its preparation needs.
pub struct CustomNetwork {
    path: PathBuf,
    model: Model,
    /// For the names of figures.
    name: String,
    width: usize,
    weights: String,
    processor: Option<ImageProcessor>,
    device: Device,
    dtype: DType,
}

impl CustomNetwork {
    /// Opens the network that a file or folder holds; `dtype` is that of activations, but for convolutional networks, which
    /// run in `f32`.
    ///
    /// # Errors
    /// [`EvaluateError::Usage`] if it holds none that gives features of pictures; [`EvaluateError::Encoder`].
    pub fn open(path: &Path, dtype: DType, device: &Device) -> Result<Self> {
        let checkpoint = Checkpoint::open(path)?;
        let processor = checkpoint.image_processor()?;
        let components = checkpoint.components();
        let opening = Opening { path, checkpoint: &checkpoint, dtype, device };
        let found = match components[..] {
            [Component::Dinov2] => opening.dinov2()?,
            [Component::EfficientNetLite] => opening.efficientnet_lite()?,
            [Component::KerasInception] => opening.keras_inception()?,
            [Component::Inception] => opening.inception()?,
            [Component::Clip | Component::ImageEncoder] => opening.clip()?,
            [Component::Classifier] => opening.vit(processor.as_ref())?,
            _ => {
                let names: Vec<&str> = components.iter().map(|component| component.name()).collect();
                return Err(EvaluateError::Usage(format!(
                    "{} holds {}, which gives no features of pictures; --features takes {}",
                    path.display(),
                    names.join(", "),
                    ENTRY.about.trim_start_matches("the network of --features: ")
                )));
            }
        };
        let Found { model, name, width, weights } = found;
        let (path, device) = (path.to_owned(), device.clone());
        Ok(Self { path, model, name, width, weights, processor, device, dtype })
    }

    /// Number type of the activations.
    fn precision(&self) -> DType {
        match self.model {
            Model::Dinov2(_) | Model::Encoder(..) => self.dtype,
            Model::EfficientNetLite(_) | Model::KerasInception(_) | Model::Inception(_) => DType::F32,
        }
    }

    fn component(&self) -> Component {
        match self.model {
            Model::Dinov2(_) => Component::Dinov2,
            Model::EfficientNetLite(_) => Component::EfficientNetLite,
            Model::KerasInception(_) => Component::KerasInception,
            Model::Inception(_) => Component::Inception,
            Model::Encoder(..) => Component::ImageEncoder,
        }
    }
}

/// What was found in a file.
struct Found {
    model: Model,
    name: String,
    width: usize,
    weights: String,
}

/// A file that is being opened.
struct Opening<'a> {
    path: &'a Path,
    checkpoint: &'a Checkpoint,
    dtype: DType,
    device: &'a Device,
}

impl Opening<'_> {
    /// A network and its hash, with its weights.
    fn network<C: NetworkConfig>(&self, component: Component, dtype: DType) -> Result<(Network<C>, String)> {
        let placement = Placement { device: self.device.clone(), dtype, adapters: None };
        let network = Network::<C>::open(self.checkpoint, component, &placement)?;
        let weights = network.hash()?;
        Ok((network, weights))
    }

    fn dinov2(&self) -> Result<Found> {
        let (network, weights) = self.network::<Dinov2Config>(Component::Dinov2, self.dtype)?;
        let config = network.config();
        let (width, name) = (config.channels, dinov2_name(config));
        Ok(Found { model: Model::Dinov2(network.get()?), name, width, weights })
    }

    fn efficientnet_lite(&self) -> Result<Found> {
        let (network, weights) = self.network::<EfficientNetLiteConfig>(Component::EfficientNetLite, DType::F32)?;
        let name = format!("efficientnet-lite{}", network.config().variant);
        Ok(Found { model: Model::EfficientNetLite(network.get()?), name, width: efficientnet::FEATURES, weights })
    }

    fn keras_inception(&self) -> Result<Found> {
        let (network, weights) = self.network::<KerasInceptionConfig>(Component::KerasInception, DType::F32)?;
        let model = Model::KerasInception(network.get()?.folded());
        Ok(Found { model, name: "keras-inception-v3".to_owned(), width: inception::FEATURES, weights })
    }

    fn inception(&self) -> Result<Found> {
        let (network, weights) = self.network::<InceptionConfig>(Component::Inception, DType::F32)?;
        let model = Model::Inception(network.get()?.folded());
        Ok(Found { model, name: "inception-v3".to_owned(), width: inception::FEATURES, weights })
    }

    fn clip(&self) -> Result<Found> {
        let encoder = self.encoder(ImageEncoderKind::Clip, ImageOutput::Auto)?;
        let side = encoder.input().side;
        let facts = encoder.facts();
        let vision = &facts["config"]["vision"];
        let width = facts["config"]["projection"].as_u64().or(vision["channels"].as_u64()).unwrap_or(0);
        let name = format!("clip-vit-{}-{}", size_name(number(&vision["channels"])), vision["patch_size"]);
        let view = View::Shorter(side, Half::Even);
        let framing = Framing { view, resampler: Resampler::Pillow(Filter::Bicubic) };
        Ok(Self::encoder_found(encoder, framing, name, width as usize))
    }

    fn vit(&self, processor: Option<&ImageProcessor>) -> Result<Found> {
        let encoder = self.encoder(ImageEncoderKind::Classifier, ImageOutput::Pooled)?;
        let side = encoder.input().side;
        let facts = encoder.facts();
        let channels = number(&facts["config"]["channels"]);
        let name = format!("vit-{}-{}", size_name(channels), facts["config"]["patch_size"]);
        let framing = match processor {
            Some(processor) => followed(self.path, processor, side)?,
            None => Framing { view: View::Whole, resampler: Resampler::Torch(Filter::Bilinear) },
        };
        Ok(Self::encoder_found(encoder, framing, name, channels))
    }

    fn encoder(&self, kind: ImageEncoderKind, output: ImageOutput) -> Result<ImageEncoder> {
        // The network says size and normalisation itself.
        let input = ImageInput::in_range(0, 0.0, 1.0);
        Ok(ImageEncoder::open(self.path, kind, output, input, self.dtype, self.device)?)
    }

    fn encoder_found(encoder: ImageEncoder, framing: Framing, name: String, width: usize) -> Found {
        let weights = encoder.weights().to_owned();
        Found { model: Model::Encoder(encoder, framing), name, width, weights }
    }
}

fn number(value: &serde_json::Value) -> usize {
    value.as_u64().unwrap_or(0) as usize
}

/// The letter of a ViT's size, by its width; others are named by that.
fn size_name(channels: usize) -> String {
    match channels {
        384 => "s".to_owned(),
        768 => "b".to_owned(),
        1024 => "l".to_owned(),
        1280 => "h".to_owned(),
        1408 | 1536 => "g".to_owned(),
        1664 => "bigg".to_owned(),
        other => format!("w{other}"),
    }
}

/// The name under which facebookresearch/dinov2 publishes the network.
fn dinov2_name(config: &Dinov2Config) -> String {
    let registers = if config.registers > 0 { format!("-reg{}", config.registers) } else { String::new() };
    format!("dinov2-vit{}{}{registers}", size_name(config.channels), config.patch_size)
}

/// The preparation of a file, if it can be followed.
fn followed(path: &Path, processor: &ImageProcessor, side: usize) -> Result<Framing> {
    Framing::of_processor(processor, side).ok_or_else(|| EvaluateError::File {
        path: path.join(ImageProcessor::FILE),
        detail: format!(
            "its preparation ({:?}, {:?}, cut to {:?}) gives no square of {side} pixels by bilinear or bicubic resizing, which \
             is what can be followed",
            processor.resize, processor.filter, processor.crop
        ),
    })
}

/// How a picture becomes numbers.
enum Steps {
    /// A square of `side` pixels, levels from `low` (0) to `high` (255) in each channel.
    Square { framing: Framing, side: usize, low: [f32; 3], high: [f32; 3] },
    /// TensorFlow.js' `resizeBilinear` with `alignCorners`, of 0..1.
    AlignedCorners,
    /// pytorch-fid's, which the network does.
    Inside,
}

impl Steps {
    /// Those with which the network's figures were published.
    fn published(network: &CustomNetwork) -> Self {
        match &network.model {
            Model::Dinov2(_) => {
                let framing = Framing { view: View::Whole, resampler: Resampler::Pillow(Filter::Bicubic) };
                Self::normalised(framing, DINOV2_SIDE, IMAGENET_MEAN, IMAGENET_STD)
            }
            Model::EfficientNetLite(_) => {
                let side = lite_side(&network.name);
                let view = View::Shorter(side + 32, Half::Even);
                let framing = Framing { view, resampler: Resampler::Pillow(Filter::Bicubic) };
                Self::Square { framing, side, low: [-127.0 / 128.0; 3], high: [1.0; 3] }
            }
            Model::KerasInception(_) => Self::AlignedCorners,
            Model::Inception(_) => Self::Inside,
            Model::Encoder(encoder, framing) => {
                let input = encoder.input();
                Self::Square { framing: *framing, side: input.side, low: input.low, high: input.high }
            }
        }
    }

    /// Those of the checkpoint's own file.
    fn of_processor(network: &CustomNetwork) -> Result<Self> {
        let Some(processor) = &network.processor else {
            return Err(EvaluateError::Usage(format!(
                "{}: there is no {} beside the weights, which custom/processor follows; custom/auto does without",
                network.path.display(),
                ImageProcessor::FILE
            )));
        };
        let own = match &network.model {
            Model::Encoder(encoder, _) => Some(encoder.input().side),
            Model::Inception(_) => {
                return Err(EvaluateError::Usage(
                    "the Inception network of the FID has no processor's file".to_owned(),
                ));
            }
            _ => None,
        };
        let side = own.or(processor.output_size().map(|[height, _]| height)).unwrap_or(DINOV2_SIDE);
        let framing = followed(&network.path, processor, side)?;
        Ok(Self::normalised(framing, side, processor.mean, processor.std))
    }

    fn normalised(framing: Framing, side: usize, mean: [f32; 3], deviation: [f32; 3]) -> Self {
        let ImageInput { low, high, .. } = ImageInput::normalised(side, mean, deviation);
        Self::Square { framing, side, low, high }
    }

    fn describe(&self) -> (String, String) {
        match self {
            Self::Square { framing, side, low, high } => {
                (format!("{}; levels from {low:?} to {high:?}", framing.describe(*side)), framing.rounding())
            }
            Self::AlignedCorners => (
                format!(
                    "bilinear with corners aligned, not antialiased, to {INCEPTION_SIDE}x{INCEPTION_SIDE}; levels from 0 to 1"
                ),
                "none".to_owned(),
            ),
            Self::Inside => (
                format!(
                    "torch bilinear, corners not aligned, not antialiased, to {INCEPTION_SIDE}x{INCEPTION_SIDE}; 2 x / 255 - 1"
                ),
                "none".to_owned(),
            ),
        }
    }
}

/// Side of the pictures of an EfficientNet-Lite, by its name.
fn lite_side(name: &str) -> usize {
    let variant = name.bytes().last().map_or(0, |digit| usize::from(digit.saturating_sub(b'0')));
    EfficientNetLiteConfig { variant, ..EfficientNetLiteConfig::default() }.side()
}

/// A picture in 0..1 as TensorFlow.js 4 resizes it with `alignCorners`: between the nearest pixels, of which the first and the
/// last keep their places.
fn aligned_corners(image: &RgbImage, side: usize) -> Vec<f32> {
    let (width, height, data) = (image.width(), image.height(), image.data());
    let step = |from: usize| (from - 1) as f64 / (side.max(2) - 1) as f64;
    let places = |from: usize| -> Vec<(usize, usize, f64)> {
        let place = |at: usize| {
            let exact = step(from) * at as f64;
            (exact as usize, (exact.ceil() as usize).min(from - 1), exact.fract())
        };
        (0..side).map(place).collect()
    };
    let columns = places(width);
    let mut out = Vec::with_capacity(side * side * 3);
    for (top, bottom, down) in places(height) {
        for &(left, right, along) in &columns {
            for channel in 0..3 {
                let level = |y: usize, x: usize| f64::from(f32::from(data[3 * (y * width + x) + channel]) / 255.0);
                let upper = level(top, left) + (level(top, right) - level(top, left)) * along;
                let lower = level(bottom, left) + (level(bottom, right) - level(bottom, left)) * along;
                out.push((upper + (lower - upper) * down) as f32);
            }
        }
    }
    out
}

/// The network behind one preparation.
pub struct CustomFeatures {
    network: Arc<CustomNetwork>,
    key: FeatureKey,
    steps: Steps,
    fingerprint: NetworkFingerprint,
}

impl CustomFeatures {
    /// The network behind a preparation of [`ENTRY`].
    ///
    /// # Errors
    /// [`EvaluateError::Usage`] or [`EvaluateError::File`] if there is no `preprocessor_config.json`, or none that can be
    /// followed.
    pub fn new(network: Arc<CustomNetwork>, preparation: &Preparation) -> Result<Self> {
        let steps = match preparation.name {
            "processor" => Steps::of_processor(&network)?,
            _ => Steps::published(&network),
        };
        let (resize, rounding) = steps.describe();
        let fingerprint = NetworkFingerprint {
            network: network.name.clone(),
            weights: network.weights.clone(),
            official: false,
            resize,
            rounding,
            precision: network.precision().name().to_owned(),
        };
        Ok(Self { network, key: FeatureKey::new(ENTRY.network, preparation.name), steps, fingerprint })
    }

    /// Pictures of one size as a tensor, and what `run` makes of it.
    fn run(
        &self,
        prepared: &[Vec<f32>],
        [height, width]: [usize; 2],
        run: impl FnOnce(Tensor<4>) -> std::result::Result<Tensor<2>, InputError>,
    ) -> Result<Vec<f32>> {
        let lines = prepared.iter().map(Vec::as_slice);
        let batch = stack(lines, &[height, width, 3], self.network.precision(), &self.network.device);
        let features = run(batch).map_err(misfit(&self.network.path, self.network.component()))?;
        Ok(values_of(features.cast(DType::F32)))
    }

    /// The squares' numbers.
    fn prepared(&self, images: &[&RgbImage]) -> Result<Vec<Vec<f32>>> {
        let one = |image: &&RgbImage| match &self.steps {
            Steps::Square { framing, side, low, high } => {
                let square = framing.apply(image, *side)?;
                ImageInput { side: *side, low: *low, high: *high }.prepare(&square, Some(Filter::Bicubic))
            }
            Steps::AlignedCorners => Ok(aligned_corners(image, INCEPTION_SIDE)),
            Steps::Inside => Ok(image.to_f32_hwc(0.0, 1.0)),
        };
        let prepared: Vec<_> = images.par_iter().map(one).collect();
        Ok(prepared.into_iter().collect::<std::result::Result<Vec<_>, calotype_data::Error>>()?)
    }

    fn side(&self) -> [usize; 2] {
        match self.steps {
            Steps::Square { side, .. } => [side; 2],
            Steps::AlignedCorners | Steps::Inside => [INCEPTION_SIDE; 2],
        }
    }

    fn features(&self, images: &[&RgbImage]) -> Result<Vec<f32>> {
        match &self.network.model {
            Model::Encoder(encoder, own) => {
                let framing = match &self.steps {
                    Steps::Square { framing, .. } => framing,
                    Steps::AlignedCorners | Steps::Inside => own,
                };
                encode_images(encoder, images, |image, side| framing.apply(image, side))
            }
            Model::Dinov2(network) => self.run(&self.prepared(images)?, self.side(), |batch| network.pooled(batch)),
            Model::EfficientNetLite(network) => {
                self.run(&self.prepared(images)?, self.side(), |batch| Ok(network.forward(batch)?.features))
            }
            Model::KerasInception(network) => {
                self.run(&self.prepared(images)?, self.side(), |batch| Ok(network.forward_resized(batch)?.features))
            }
            Model::Inception(network) => {
                // The network resizes; neighbours of one size run together.
                let size = |image: &RgbImage| [image.height(), image.width()];
                let mut rows = Vec::new();
                for alike in images.chunk_by(|a, b| size(a) == size(b)) {
                    let prepared = self.prepared(alike)?;
                    rows.extend(self.run(&prepared, size(alike[0]), |batch| Ok(network.forward(batch)?.features))?);
                }
                Ok(rows)
            }
        }
    }
}

impl Features for CustomFeatures {
    fn key(&self) -> &FeatureKey {
        &self.key
    }

    fn fingerprint(&self) -> &NetworkFingerprint {
        &self.fingerprint
    }

    fn width(&self) -> usize {
        self.network.width
    }

    fn images(&self, images: &[&RgbImage]) -> Result<ImageRows> {
        if images.is_empty() {
            return Ok(ImageRows::default());
        }
        Ok(ImageRows { features: self.features(images)?, logits: Vec::new() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn corners_keep_their_places() {
        let image = RgbImage::new(3, 2, (0..18).map(|i| i * 14).collect()).unwrap();
        let found = aligned_corners(&image, 5);
        let level = |y: usize, x: usize| f32::from(image.pixel(x, y)[0]) / 255.0;
        // Every other column is one of the picture's; rows go evenly from the first to the last.
        for (row, column, expected) in [
            (0, 0, level(0, 0)),
            (0, 4, level(0, 2)),
            (4, 0, level(1, 0)),
            (0, 1, (level(0, 0) + level(0, 1)) / 2.0),
            (2, 2, (level(0, 1) + level(1, 1)) / 2.0),
        ] {
            let value = found[3 * (row * 5 + column)];
            assert!((value - expected).abs() < 1e-6, "({row}, {column}): {value} and {expected}");
        }
        assert_eq!(aligned_corners(&RgbImage::filled(1, 1, [255, 0, 51]).unwrap(), 2)[..3], [1.0, 0.0, 0.2]);
    }

    #[test]
    fn names_are_those_of_the_publishers() {
        assert_eq!(dinov2_name(&Dinov2Config { channels: 1024, ..Dinov2Config::default() }), "dinov2-vitl14");
        let registers = Dinov2Config { channels: 1536, registers: 4, ..Dinov2Config::default() };
        assert_eq!(dinov2_name(&registers), "dinov2-vitg14-reg4");
        assert_eq!((lite_side("efficientnet-lite0"), lite_side("efficientnet-lite4")), (224, 300));
    }
}
