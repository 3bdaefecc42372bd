//! Frozen encoders' outputs as a dataset: moments of images, states of captions, features.

use crate::captions::{CaptionReader, CaptionSettings};
use crate::config::{SettingError, caption_part, image_parts, is_usual, yes};
use crate::encoders::{DatasetEncoders, EncoderEntry};
use crate::images::image_bytes;
use crate::inputs::EmptyCaption;
use crate::recipe::OUT;
use crate::stages::StageError;
use crate::task::BoxError;
use burn::tensor::Device;
use calotype_checkpoints::{Checkpoint, Component, SCALE_UNKNOWN};
use calotype_data::image::{Background, DecodeNotes, DecodeOptions, Filter, RgbImage};
use calotype_data::npy::{NpyArray, NpyData, NpyError};
use calotype_data::pickled::{PICKLE_PART, PickledArrays, write_arrays};
use calotype_data::precache::{PrecacheLayout, SampleEncoder};
use calotype_data::{Dataset, Sample, SampleRef, SourceOptions};
use calotype_models::state::values_of;
use calotype_models::tokenizer::Tokens;
use calotype_ops::Precision;
use calotype_pipeline::encoders::image::ImageInput;
use calotype_pipeline::encoders::text::{HiddenStates, TextSettings, TokenizerChoice, first};
use calotype_pipeline::encoders::{EncoderError, ImageEncoder, ImageEncoderKind, ImageOutput, TextEncoder};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Usual extension of the autoencoder's moments, as in MLPerf.
pub const MOMENTS: &str = "npy";
/// Usual extension of the text tower's states.
pub const STATES: &str = "states.npy";

/// Version of what an identity stands for.
const IDENTITY_VERSION: u32 = 1;

/// Which numbers an autoencoder is given for the levels 0 to 255.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InputRange {
    /// -1 to 1: what autoencoders are trained with.
    #[default]
    MinusOneOne,
    /// 0 to 1: what MLPerf Training's Stable Diffusion gave its autoencoder by mistake, and keeps, since the published
    /// moments were made so (mlcommons/training issue 721).
    MlperfZeroOne,
}

impl InputRange {
    /// The numbers of level 0 and of level 255.
    pub fn ends(self) -> (f32, f32) {
        match self {
            Self::MinusOneOne => (-1.0, 1.0),
            Self::MlperfZeroOne => (0.0, 1.0),
        }
    }

    pub(crate) fn of(self, side: usize) -> ImageInput {
        let (low, high) = self.ends();
        ImageInput::in_range(side, low, high)
    }
}

/// How images are resized.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResizeFilter {
    /// Pillow's bicubic.
    #[default]
    Bicubic,
    /// Pillow's bilinear.
    Bilinear,
    /// Pillow's Lanczos.
    Lanczos,
    /// Pillow's box.
    Box,
    /// Pillow's nearest.
    Nearest,
    /// Bicubic in floats, never rounded to levels: torchvision's `Resize` of tensors, behind `ToTensor`.
    TorchBicubic,
}

impl ResizeFilter {
    /// Pillow's filter; none if levels are not rounded.
    pub(crate) fn of_levels(self) -> Option<Filter> {
        match self {
            ResizeFilter::Bicubic => Some(Filter::Bicubic),
            ResizeFilter::Bilinear => Some(Filter::Bilinear),
            ResizeFilter::Lanczos => Some(Filter::Lanczos3),
            ResizeFilter::Box => Some(Filter::Box),
            ResizeFilter::Nearest => Some(Filter::Nearest),
            ResizeFilter::TorchBicubic => None,
        }
    }
}

/// In which form the arrays of a sample are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ArrayLayout {
    /// A `.npy` part for each array, as in MLPerf.
    #[default]
    Parts,
    /// One part `pickle`: a pickled dictionary of all arrays, by the encoders' names, as NeMo's precached shards.
    Nemo,
}

/// Type of an array's numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ArrayType {
    /// 32 bits.
    #[default]
    F32,
    /// IEEE 754's 16 bits.
    F16,
    /// The upper 16 bits of `f32`; `.npy` files mark it as `ml_dtypes` does.
    Bf16,
}

impl ArrayType {
    fn array(self, shape: &[usize], values: &[f32]) -> Result<NpyArray, NpyError> {
        match self {
            Self::F32 => NpyArray::from_f32(shape, values.to_vec()),
            Self::F16 => NpyArray::f16_from_f32(shape, values),
            Self::Bf16 => NpyArray::bf16_from_f32(shape, values),
        }
    }
}

/// What kind of network an encoder is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EncoderKind {
    /// A KL autoencoder: images to moments of latents.
    Autoencoder,
    /// A CLIP text tower: captions to states, and to a pooled state.
    Text,
    /// A CLIP image tower: images to embeddings.
    ClipImage,
    /// A ViT classifier: images to the states in front of its classifier.
    Vit,
}

impl EncoderKind {
    /// The network that is taken of a checkpoint.
    pub fn component(self) -> Component {
        match self {
            Self::Autoencoder => Component::Vae,
            Self::Text => Component::TextEncoder,
            Self::ClipImage => Component::ImageEncoder,
            Self::Vit => Component::Classifier,
        }
    }

    fn image(self) -> Option<ImageEncoderKind> {
        match self {
            Self::Autoencoder => Some(ImageEncoderKind::Autoencoder),
            Self::ClipImage => Some(ImageEncoderKind::Clip),
            Self::Vit => Some(ImageEncoderKind::Classifier),
            Self::Text => None,
        }
    }
}

/// One encoder of a precache recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncoderSettings {
    /// What kind of network.
    pub kind: EncoderKind,
    /// Checkpoint of any layout, or a folder of a model that training wrote.
    pub model: String,
    /// Which text encoder of a checkpoint that has two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub component: Option<Component>,
    /// Extension of the output's part; by default the encoder's name and `.npy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<String>,
    /// Type of the output's numbers.
    #[serde(default)]
    pub dtype: ArrayType,
    /// Precision of activations; by default the recipe's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precision: Option<Precision>,
    /// Images: what is taken of the network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<ImageOutput>,
    /// Images: whether the array has a leading axis of one, as MLPerf's moments `[1, 8, 64, 64]`.
    #[serde(default)]
    pub batch_axis: bool,
    /// Texts: which states are taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub states: Option<HiddenStates>,
    /// Texts: which tokenizer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<TokenizerChoice>,
    /// Texts: whether the states behind the end of the text are left out. Training puts those of the empty prompt in
    /// their place, which are not the same: a token's states depend on all tokens before it.
    #[serde(default)]
    pub without_padding: bool,
    /// Texts: extension of the part (in NeMo's layout: the name) of the pooled and projected state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pooled_part: Option<String>,
}

/// Encodes a dataset of captioned images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrecacheRecipe {
    /// The images: a folder of shards, images or parquet files, or a pattern or list of shards, here or elsewhere.
    pub source: String,
    /// Folder to write.
    pub out: String,
    /// Side of the images that autoencoders take, in pixels.
    pub resolution: usize,
    /// How images are resized; the shorter side to `resolution`, then the middle is cut out.
    #[serde(default)]
    pub filter: ResizeFilter,
    /// Which numbers autoencoders take.
    #[serde(default)]
    pub input_range: InputRange,
    /// Extensions of the image's part; the first one that a sample has is taken.
    #[serde(default = "image_parts")]
    pub images: Vec<String>,
    /// Whether images are turned upright, as their EXIF orientation says.
    #[serde(default = "yes")]
    pub orient: bool,
    /// What stands behind transparent pixels: `white`, `black`, `grey`, a colour such as `#c0ffee`, or `keep hidden colours`.
    #[serde(default)]
    pub background: Background,
    /// Extension of the caption's part, or a sentence with names in braces, such as `a photo of {class}`
    /// ([`CaptionReader::new`]).
    #[serde(default = "caption_part")]
    pub caption: String,
    /// What is made of it; nothing random, for captions are encoded once.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub captions: CaptionSettings,
    /// Parts that are kept as they are, where a sample has them.
    #[serde(default = "kept_parts")]
    pub keep: Vec<String>,
    /// In which form arrays are kept.
    #[serde(default)]
    pub layout: ArrayLayout,
    /// Samples encoded at a time.
    pub batch_size: usize,
    /// Samples of one shard.
    pub shard_samples: usize,
    /// Precision of the encoders' activations.
    #[serde(default)]
    pub precision: Precision,
    /// How the source is read.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub source_options: SourceOptions,
    /// The encoders, by name.
    pub encoders: BTreeMap<String, EncoderSettings>,
}

fn kept_parts() -> Vec<String> {
    vec![caption_part()]
}

impl PrecacheRecipe {
    /// How images are decoded.
    pub fn decode(&self) -> DecodeOptions {
        DecodeOptions { orient: self.orient, background: self.background, ..DecodeOptions::default() }
    }

    /// How the output is cut into shards.
    pub fn shards(&self) -> PrecacheLayout {
        PrecacheLayout { batch: self.batch_size, shard_samples: self.shard_samples }
    }

    /// Checks what the types cannot.
    ///
    /// # Errors
    /// [`SettingError`] naming the key.
    pub fn validate(&self) -> Result<(), SettingError> {
        let bad = |key: &'static str, problem: String| Err(SettingError { key, problem });
        for (key, path) in [("source", &self.source), ("out", &self.out)] {
            if path.starts_with(OUT) {
                return bad(
                    key,
                    format!(
                        "is `{path}`, in the folder of a run whose [prepare] takes this recipe; by itself it needs {key}=FOLDER"
                    ),
                );
            }
        }
        for (key, value) in [("batch_size", self.batch_size), ("shard_samples", self.shard_samples)] {
            if value == 0 {
                return bad(key, "must be at least 1".to_owned());
            }
        }
        if self.captions.is_random() {
            return bad(
                "captions",
                "are encoded once: shuffle_tags and tag_dropout are of training with [text], which encodes captions in each \
                 epoch"
                    .to_owned(),
            );
        }
        if self.encoders.is_empty() {
            return bad("encoders", "names no encoder; add one as [encoders.NAME] with kind and model".to_owned());
        }
        let mut taken: BTreeMap<&str, &str> = self.keep.iter().map(|part| (part.as_str(), "keep")).collect();
        if self.layout == ArrayLayout::Nemo {
            taken.clear();
        }
        let names: Vec<(&str, String)> = self.outputs();
        for (encoder, output) in &names {
            if let Some(other) = taken.insert(output, *encoder) {
                return bad(
                    "encoders",
                    format!("`{encoder}` writes `{output}`, which `{other}` has already; set part"),
                );
            }
        }
        self.encoders.iter().try_for_each(|(name, encoder)| encoder.validate(name, self.layout))
    }

    /// Names of the arrays that are written, with their encoders'.
    fn outputs(&self) -> Vec<(&str, String)> {
        let of = |(name, encoder): (&'_ String, &EncoderSettings)| {
            let main = encoder.output_name(name, self.layout);
            [Some(main), encoder.pooled_part.clone()].into_iter().flatten().collect::<Vec<_>>()
        };
        self.encoders
            .iter()
            .flat_map(|(name, encoder)| of((name, encoder)).into_iter().map(|n| (name.as_str(), n)))
            .collect()
    }
}

impl EncoderSettings {
    /// Part, or name in the dictionary, of the output.
    fn output_name(&self, name: &str, layout: ArrayLayout) -> String {
        match layout {
            ArrayLayout::Nemo => name.to_owned(),
            ArrayLayout::Parts => self.part.clone().unwrap_or_else(|| format!("{name}.npy")),
        }
    }

    fn validate(&self, name: &str, layout: ArrayLayout) -> Result<(), SettingError> {
        let text = self.kind == EncoderKind::Text;
        let (kind, other) = if text { ("a text encoder", "images") } else { ("an encoder of images", "texts") };
        // Settings that say nothing here, as they were misunderstood.
        let idle = [
            (text && self.output.is_some(), "output"),
            (text && self.batch_axis, "batch_axis"),
            (!text && self.component.is_some(), "component"),
            (!text && self.states.is_some(), "states"),
            (!text && self.tokenizer.is_some(), "tokenizer"),
            (!text && self.without_padding, "without_padding"),
            (!text && self.pooled_part.is_some(), "pooled_part"),
        ];
        let bad = |problem: String| Err(SettingError { key: "encoders", problem });
        if let Some((_, key)) = idle.iter().find(|(set, _)| *set) {
            return bad(format!("`{name}` is {kind}, and `{key}` is a setting of encoders of {other}; remove it"));
        }
        if layout == ArrayLayout::Nemo && self.part.is_some() {
            return bad(format!(
                "`{name}`: the arrays of a pickle have no parts; rename the encoder, and remove `part`"
            ));
        }
        if layout == ArrayLayout::Nemo && self.dtype == ArrayType::Bf16 {
            return bad(format!("`{name}`: NumPy cannot unpickle bf16 by itself; use dtype f16 or f32"));
        }
        Ok(())
    }

    fn text(&self, precision: Precision) -> TextSettings {
        TextSettings {
            model: self.model.clone(),
            component: self.component.unwrap_or_else(first),
            states: self.states.unwrap_or_default(),
            tokenizer: self.tokenizer.unwrap_or_default(),
            precision,
        }
    }
}

enum Network {
    Image(Box<ImageEncoder>),
    Text(Box<TextEncoder>),
}

/// An encoder with the settings of its output.
struct Encoder {
    name: String,
    settings: EncoderSettings,
    network: Network,
}

/// All encoders of a recipe. Their weights are read when the first batch comes.
pub struct Encoders {
    recipe: PrecacheRecipe,
    encoders: Vec<Encoder>,
    captions: CaptionReader,
    identity: String,
    description: Map<String, Value>,
    /// Captions that were longer than an encoder's context.
    truncated: u64,
    /// Images that were turned, and transparent ones.
    notes: DecodeNotes,
}

/// Named arrays of one sample.
type Arrays = Vec<(String, NpyArray)>;

impl Encoders {
    /// Opens all encoders that a recipe names. `meta` is that of the source, which may name classes for captions.
    ///
    /// # Errors
    /// [`StageError::Encoder`] naming the model; [`StageError::Setting`] for captions that cannot be.
    pub fn open(recipe: &PrecacheRecipe, meta: &Map<String, Value>, device: &Device) -> Result<Self, StageError> {
        // Of the keys below the table `data` of a training recipe.
        let own = |wrong: SettingError| SettingError { key: wrong.key.trim_start_matches("data."), ..wrong };
        let captions = CaptionReader::new(&recipe.caption, &recipe.captions, meta, 0).map_err(own)?;
        let encoders = recipe
            .encoders
            .iter()
            .map(|(name, settings)| Encoder::open(name, settings, recipe, device))
            .collect::<Result<Vec<_>, EncoderError>>()?;
        let description = describe(recipe, &encoders);
        let identity = identity(&encoders, &description);
        Ok(Self {
            recipe: recipe.clone(),
            encoders,
            captions,
            identity,
            description,
            truncated: 0,
            notes: DecodeNotes::default(),
        })
    }

    /// Captions that were cut so far.
    pub fn truncated(&self) -> u64 {
        self.truncated
    }

    /// What was changed of the images so far, in sentences.
    pub fn image_notes(&self) -> Vec<String> {
        self.notes.sentences(&self.recipe.decode())
    }

    /// What latents are multiplied by for diffusion, where an autoencoder says so.
    ///
    /// # Errors
    /// [`EncoderError`] if its checkpoint cannot be opened.
    pub fn scaling_factor(&self) -> Result<Option<f64>, EncoderError> {
        for encoder in &self.encoders {
            let Network::Image(network) = &encoder.network else { continue };
            if let Some(scale) = network.scaling_factor() {
                let config = Checkpoint::open(&encoder.settings.model)?.component(Component::Vae)?.config;
                let measured = config.get(SCALE_UNKNOWN).is_none();
                return Ok(measured.then_some(f64::from(scale)));
            }
        }
        Ok(None)
    }

    /// Address ([`crate::inputs::ArrayAddress`]) of the first autoencoder's moments.
    pub fn moments(&self) -> Option<String> {
        let moments = self.encoders.iter().find(|encoder| encoder.settings.kind == EncoderKind::Autoencoder)?;
        Some(self.address(&moments.settings.output_name(&moments.name, self.recipe.layout)))
    }

    fn address(&self, output: &str) -> String {
        match self.recipe.layout {
            ArrayLayout::Parts => output.to_owned(),
            ArrayLayout::Nemo => format!("{PICKLE_PART}:{output}"),
        }
    }

    /// Which checkpoints they are of.
    pub fn record(&self) -> DatasetEncoders {
        let entry = |encoder: &Encoder| {
            let settings = &encoder.settings;
            let text = settings.kind == EncoderKind::Text;
            EncoderEntry {
                kind: settings.kind,
                component: settings.component.unwrap_or_else(|| settings.kind.component()),
                path: PathBuf::from(&settings.model),
                weights: encoder.weights().to_owned(),
                output: self.address(&settings.output_name(&encoder.name, self.recipe.layout)),
                states: settings.states.filter(|_| text),
                tokenizer: settings.tokenizer.filter(|_| text),
                resolution: encoder.input().map(|input| input.side),
            }
        };
        DatasetEncoders(self.encoders.iter().map(|encoder| (encoder.name.clone(), entry(encoder))).collect())
    }

    /// What each text encoder makes of the empty caption, padding and all, by address.
    ///
    /// # Errors
    /// [`EncoderError`].
    pub fn empty_captions(&mut self) -> Result<EmptyCaption, EncoderError> {
        let mut empty = Vec::new();
        let layout = self.recipe.layout;
        for encoder in &mut self.encoders {
            let Network::Text(tower) = &mut encoder.network else { continue };
            let rows = [tower.tokenizer().encode("")];
            let encoding = tower.encode(&rows, encoder.settings.pooled_part.is_some())?;
            empty.push((
                encoder.settings.output_name(&encoder.name, layout),
                tower.shape().to_vec(),
                values_of(encoding.states),
            ));
            if let (Some(pooled), Some(part)) = (encoding.pooled, &encoder.settings.pooled_part) {
                empty.push((part.clone(), vec![pooled.dims()[1]], values_of(pooled)));
            }
        }
        Ok(empty.into_iter().map(|(output, shape, values)| (self.address(&output), (shape, values))).collect())
    }

    fn encode_all(&mut self, batch: &[Sample]) -> Result<Vec<Arrays>, BoxError> {
        let inputs: Vec<ImageInput> = self.encoders.iter().filter_map(Encoder::input).collect();
        let mut images = prepare_images(batch, (&self.recipe, &self.notes), &inputs)?.into_iter();
        let mut arrays: Vec<Arrays> = vec![Vec::new(); batch.len()];
        for encoder in &mut self.encoders {
            let encoded = match &mut encoder.network {
                Network::Image(network) => {
                    let images = images.next().ok_or("there are fewer prepared images than encoders of images")?;
                    let (shape, values) = network.encode(&images)?;
                    encoder.image_arrays(batch, &shape, &values, self.recipe.layout)?
                }
                Network::Text(_) => {
                    let (encoded, cut) = encoder.text_arrays(batch, &self.recipe, &self.captions)?;
                    self.truncated += cut;
                    encoded
                }
            };
            arrays.iter_mut().zip(encoded).for_each(|(all, of_encoder)| all.extend(of_encoder));
        }
        Ok(arrays)
    }

    fn finish(&self, sample: &Sample, arrays: Arrays) -> Sample {
        let mut out = Sample::new(sample.key.clone());
        for part in &self.recipe.keep {
            if let Some(bytes) = sample.parts.get(part) {
                out = out.with(part.clone(), bytes.clone());
            }
        }
        match self.recipe.layout {
            ArrayLayout::Parts => arrays.into_iter().fold(out, |out, (part, array)| out.with(part, array.to_bytes())),
            ArrayLayout::Nemo => {
                let arrays: PickledArrays = arrays.into_iter().collect();
                out.with(PICKLE_PART, write_arrays(&arrays))
            }
        }
    }
}

impl SampleEncoder for Encoders {
    fn identity(&self) -> String {
        self.identity.clone()
    }

    fn description(&self) -> Map<String, Value> {
        self.description.clone()
    }

    fn setting(&self, path: &str) -> String {
        match path.strip_prefix(TRANSFORM).and_then(|rest| rest.strip_prefix('.')) {
            Some(IMAGES_FACT) => "images".to_owned(),
            Some(key) => key.to_owned(),
            None => format!("encoders.{path}"),
        }
    }

    fn encode(&mut self, batch: &[Sample]) -> Result<Vec<Sample>, BoxError> {
        let arrays = self.encode_all(batch)?;
        Ok(batch.iter().zip(arrays).map(|(sample, arrays)| self.finish(sample, arrays)).collect())
    }
}

impl Encoder {
    fn open(
        name: &str,
        settings: &EncoderSettings,
        recipe: &PrecacheRecipe,
        device: &Device,
    ) -> Result<Self, EncoderError> {
        let precision = settings.precision.unwrap_or(recipe.precision);
        let network = match settings.kind.image() {
            None => Network::Text(Box::new(TextEncoder::open(&settings.text(precision), device)?)),
            Some(kind) => Network::Image(Box::new(ImageEncoder::open(
                Path::new(&settings.model),
                kind,
                settings.output.unwrap_or_default(),
                recipe.input_range.of(recipe.resolution),
                precision.dtype(device),
                device,
            )?)),
        };
        Ok(Self { name: name.to_owned(), settings: settings.clone(), network })
    }

    fn input(&self) -> Option<ImageInput> {
        match &self.network {
            Network::Image(network) => Some(*network.input()),
            Network::Text(_) => None,
        }
    }

    fn weights(&self) -> &str {
        match &self.network {
            Network::Image(network) => network.weights(),
            Network::Text(tower) => tower.weights(),
        }
    }

    fn image_arrays(
        &self,
        batch: &[Sample],
        shape: &[usize],
        values: &[f32],
        layout: ArrayLayout,
    ) -> Result<Vec<Arrays>, BoxError> {
        let output = self.settings.output_name(&self.name, layout);
        let whole = if self.settings.batch_axis { [&[1], shape].concat() } else { shape.to_vec() };
        let rows = values.chunks_exact(shape.iter().product::<usize>().max(1));
        batch
            .iter()
            .zip(rows)
            .map(|(sample, row)| Ok(vec![(output.clone(), self.array(sample, &whole, row)?)]))
            .collect()
    }

    /// The arrays, and how many captions were cut.
    fn text_arrays(
        &mut self,
        batch: &[Sample],
        recipe: &PrecacheRecipe,
        reader: &CaptionReader,
    ) -> Result<(Vec<Arrays>, u64), BoxError> {
        let Network::Text(tower) = &mut self.network else { return Ok((Vec::new(), 0)) };
        let captions = batch.iter().map(|sample| reader.read(0, &SampleRef::from(sample)));
        let captions = captions.collect::<Result<Vec<_>, _>>()?;
        let rows: Vec<Tokens> = captions.iter().map(|caption| tower.tokenizer().encode(caption)).collect();
        let encoding = tower.encode(&rows, self.settings.pooled_part.is_some())?;
        let [tokens, channels] = tower.shape();
        let output = self.settings.output_name(&self.name, recipe.layout);
        let states = values_of(encoding.states);
        let pooled = encoding.pooled.map(|pooled| (pooled.dims()[1], values_of(pooled)));
        let mut arrays = Vec::with_capacity(batch.len());
        for (number, (sample, states)) in batch.iter().zip(states.chunks_exact(tokens * channels)).enumerate() {
            let kept = if self.settings.without_padding { (rows[number].end + 1).min(tokens) } else { tokens };
            let mut of_sample =
                vec![(output.clone(), self.array(sample, &[kept, channels], &states[..kept * channels])?)];
            if let (Some(part), Some((length, values))) = (&self.settings.pooled_part, &pooled) {
                let row = &values[number * length..(number + 1) * length];
                of_sample.push((part.clone(), self.array(sample, &[*length], row)?));
            }
            arrays.push(of_sample);
        }
        Ok((arrays, rows.iter().filter(|row| row.truncated > 0).count() as u64))
    }

    /// An array whose numbers are all finite, in its own type too.
    fn array(&self, sample: &Sample, shape: &[usize], values: &[f32]) -> Result<NpyArray, BoxError> {
        let array = self.settings.dtype.array(shape, values)?;
        let finite = match array.data() {
            NpyData::F16(values) => values.iter().all(|value| value.is_finite()),
            _ => values.iter().all(|value| value.is_finite()),
        };
        if finite {
            return Ok(array);
        }
        let (key, name, dtype) = (&sample.key, &self.name, self.settings.dtype);
        let advice = "check the image and the model, or take dtype f32 and precision f32";
        Err(format!("encoder `{name}` gave numbers that are not finite as {dtype:?} for sample `{key}`: {advice}")
            .into())
    }
}

/// The images of a batch as every encoder takes them: one list for each of `inputs`.
fn prepare_images(
    batch: &[Sample],
    (recipe, notes): (&PrecacheRecipe, &DecodeNotes),
    inputs: &[ImageInput],
) -> Result<Vec<Vec<Vec<f32>>>, BoxError> {
    if inputs.is_empty() {
        return Ok(Vec::new());
    }
    let one = |sample: &Sample| -> Result<Vec<Vec<f32>>, BoxError> {
        let bytes = image_bytes(&SampleRef::from(sample), &recipe.images)?;
        let (image, found) = RgbImage::decode_noting(&sample.key, bytes, &recipe.decode())?;
        notes.add(&found);
        Ok(inputs.iter().map(|input| input.prepare(&image, recipe.filter.of_levels())).collect::<Result<_, _>>()?)
    };
    let threads = calotype_kernels::threads().clamp(1, batch.len().max(1));
    let each = batch.len().div_ceil(threads).max(1);
    let prepared: Vec<Result<Vec<Vec<Vec<f32>>>, BoxError>> = std::thread::scope(|scope| {
        let some = |samples: &[Sample]| samples.iter().map(one).collect();
        let workers: Vec<_> = batch.chunks(each).map(|samples| scope.spawn(move || some(samples))).collect();
        workers.into_iter().map(|worker| worker.join().unwrap_or_else(|_| Err("decoding panicked".into()))).collect()
    });
    let mut of_input: Vec<Vec<Vec<f32>>> = vec![Vec::with_capacity(batch.len()); inputs.len()];
    for samples in prepared {
        for sample in samples? {
            of_input.iter_mut().zip(sample).for_each(|(all, image)| all.push(image));
        }
    }
    Ok(of_input)
}

/// Fact of a description that holds the recipe's own keys, beside those of encoders.
const TRANSFORM: &str = "transform";

/// What it calls the key `images`: the name is part of the identity of datasets that exist.
const IMAGES_FACT: &str = "pictures";

/// All that shapes the output.
fn describe(recipe: &PrecacheRecipe, encoders: &[Encoder]) -> Map<String, Value> {
    let of = |encoder: &Encoder| {
        let mut facts = match &encoder.network {
            Network::Image(network) => network.facts(),
            Network::Text(tower) => tower.facts(),
        };
        let settings = &encoder.settings;
        facts["kind"] = json!(settings.kind);
        facts["name"] = json!(settings.output_name(&encoder.name, recipe.layout));
        facts["dtype"] = json!(settings.dtype);
        facts["without_padding"] = json!(settings.without_padding);
        facts["pooled"] = json!(settings.pooled_part);
        facts["batch_axis"] = json!(settings.batch_axis);
        (encoder.name.clone(), facts)
    };
    let mut description: Map<String, Value> = encoders.iter().map(of).collect();
    let mut transform = json!({
        "version": IDENTITY_VERSION,
        "filter": recipe.filter,
        "fit": "shorter side, then centre crop",
        IMAGES_FACT: recipe.images,
        "caption": recipe.caption,
        "keep": recipe.keep,
        "layout": recipe.layout,
    });
    // Only where they are not the usual ones: datasets that exist keep their identity.
    if recipe.decode() != DecodeOptions::default() {
        transform["orient"] = json!(recipe.orient);
        transform["background"] = json!(recipe.background);
    }
    // Datasets that exist were made without.
    if recipe.captions != CaptionSettings::default() {
        transform["captions"] = json!(recipe.captions);
    }
    description.insert(TRANSFORM.to_owned(), transform);
    description
}

/// A short hash of the description, and the encoders in words, so that a difference can be seen.
fn identity(encoders: &[Encoder], description: &Map<String, Value>) -> String {
    let hash = blake3::hash(Value::Object(description.clone()).to_string().as_bytes()).to_hex();
    let name = |value: Value| value.as_str().unwrap_or_default().to_owned();
    let words = encoders.iter().map(|encoder| {
        let (kind, dtype) = (name(json!(encoder.settings.kind)), name(json!(encoder.settings.dtype)));
        let side = encoder.input().map(|input| format!(" of {} pixels", input.side)).unwrap_or_default();
        let padding = if encoder.settings.without_padding { " without padding" } else { "" };
        format!("{}: {kind} {}{side} to {dtype}{padding}", encoder.name, &encoder.weights()[..12])
    });
    format!("{} ({})", &hash[..16], words.collect::<Vec<_>>().join("; "))
}

/// Samples whose means the latents' deviation is measured on.
const MEASURED: usize = 4096;

/// One over the standard deviation of a precached dataset's latent means, so that scaled latents have deviation one
/// (Rombach et al. 2022, appendix G); 0.18215 in Stable Diffusion. `moments` is the arrays' address.
///
/// # Errors
/// Those of reading samples; latents that do not differ, or are not finite.
pub fn measure_scale_factor(dataset: &Dataset, moments: &str) -> Result<f64, BoxError> {
    let address = crate::inputs::ArrayAddress::parse(moments);
    let mut deviation = Deviation::default();
    for i in evenly_spread(dataset.len(), MEASURED) {
        let sample = dataset.get(i)?;
        let moments = crate::inputs::Arrays::of(&sample).get(&address)?.to_f32()?;
        deviation.add(&moments[..moments.len() / 2]);
    }
    deviation.scale().ok_or_else(|| {
        format!("the latents in `{moments}` do not differ or are not finite, so that they have no scale").into()
    })
}

/// At most `most` of the numbers `0..all`, evenly spread from 0 on.
pub(crate) fn evenly_spread(all: usize, most: usize) -> Vec<usize> {
    (0..all).step_by(all.div_ceil(most).max(1)).collect()
}

/// The standard deviation of numbers that come in parts.
#[derive(Debug, Default)]
pub(crate) struct Deviation {
    sum: f64,
    squares: f64,
    count: f64,
}

impl Deviation {
    /// Below this, numbers do not differ.
    const LEAST: f64 = 1e-6;

    pub(crate) fn add(&mut self, values: &[f32]) {
        for &value in values {
            self.sum += f64::from(value);
            self.squares += f64::from(value).powi(2);
            self.count += 1.0;
        }
    }

    /// One over the deviation; none of numbers that do not differ, or are not finite.
    pub(crate) fn scale(&self) -> Option<f64> {
        let mean = self.sum / self.count;
        let deviation = (self.squares / self.count - mean * mean).max(0.0).sqrt();
        (deviation.is_finite() && deviation > Self::LEAST).then(|| 1.0 / deviation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_one_over_the_deviation() {
        let mut deviation = Deviation::default();
        assert_eq!(deviation.scale(), None, "of nothing");
        deviation.add(&[3.0, 3.0]);
        assert_eq!(deviation.scale(), None, "numbers that do not differ");
        deviation.add(&[7.0, 7.0]);
        assert_eq!(deviation.scale(), Some(0.5));
        deviation.add(&[f32::INFINITY]);
        assert_eq!(deviation.scale(), None);
        assert_eq!(evenly_spread(10, 4), [0, 3, 6, 9]);
        assert_eq!((evenly_spread(3, 4), evenly_spread(0, 4)), (vec![0, 1, 2], vec![]));
    }
}
