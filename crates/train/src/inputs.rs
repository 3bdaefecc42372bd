//! What diffusion training takes from a dataset's samples: moments of latents or images, and states of captions or the
//! captions.

use crate::captions::{CaptionReader, CaptionSettings};
use crate::config::{SettingError, caption_part, check, is_usual};
use crate::frozen::FrozenAutoencoder;
use crate::images::Images;
use crate::precache::{InputRange, MOMENTS, STATES};
use crate::stages::{CONDITIONING, StageError};
use crate::task::BoxError;
use crate::tasks::diffusion::DiffusionRecipe;
use burn::tensor::Device;
use calotype_data::npy::NpyArray;
use calotype_data::pickled::{PickledArrays, read_arrays};
use calotype_data::{Error, SampleRef, Source};
use calotype_models::state::values_of;
use calotype_models::tokenizer::{ClipTokenizer, Tokens};
use calotype_pipeline::encoders::TextEncoder;
use calotype_weights::{NamedTensor, TensorFile, TensorFileError, TensorSource, write_safetensors};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where training finds moments and states in a sample.
///
/// An address is a part's extension (`npy`, `states.npy`), or, for pickled dictionaries of arrays as NeMo writes them,
/// the extension and the array's name: `pickle:autoencoderkl_image`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InputSettings {
    /// Address of the autoencoder's moments, `[2 · latent, height, width]`, with or without a leading axis of one.
    pub moments: String,
    /// Addresses of precached states of captions, `[tokens, channels]`; those of several text encoders are joined along
    /// the channels. By default `states.npy`, unless the recipe names a text encoder (`[text]`), which then encodes the
    /// captions during training. With both, the encoder only says what an empty caption's states are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub states: Option<Vec<String>>,
    /// Side in pixels of images, which the recipe's `autoencoder` then encodes during training in the run's precision, without
    /// gradients, in place of precached moments. The table `data.augment` says how they become squares.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolution: Option<usize>,
    /// Which numbers the autoencoder is given for the levels of these images: `minus_one_one`, what it was trained with, or
    /// `mlperf_zero_one`, as MLPerf Training's reference and MosaicML's diffusion-benchmark do by mistake ([`InputRange`]).
    #[serde(skip_serializing_if = "is_usual")]
    pub input_range: InputRange,
}

impl Default for InputSettings {
    fn default() -> Self {
        Self { moments: MOMENTS.to_owned(), states: None, resolution: None, input_range: InputRange::MinusOneOne }
    }
}

impl InputSettings {
    /// Addresses of the precached hidden states.
    pub fn state_addresses(&self) -> Vec<String> {
        self.states.clone().unwrap_or_else(|| vec![STATES.to_owned()])
    }
}

/// Where an array is in a sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArrayAddress {
    part: String,
    /// Name in the pickled dictionary.
    entry: Option<String>,
}

impl ArrayAddress {
    /// Of `part` or `part:name`.
    pub fn parse(text: &str) -> Self {
        match text.split_once(':') {
            Some((part, entry)) => Self { part: part.to_owned(), entry: Some(entry.to_owned()) },
            None => Self { part: text.to_owned(), entry: None },
        }
    }
}

/// The arrays of a sample. Pickles are read once.
pub struct Arrays<'a> {
    sample: &'a SampleRef<'a>,
    pickles: BTreeMap<String, PickledArrays>,
}

impl<'a> Arrays<'a> {
    /// Of this sample.
    pub fn of(sample: &'a SampleRef<'a>) -> Self {
        Self { sample, pickles: BTreeMap::new() }
    }

    /// One array.
    ///
    /// # Errors
    /// [`Error::MissingPart`], [`Error::Npy`], [`Error::Pickled`].
    pub fn get(&mut self, address: &ArrayAddress) -> Result<NpyArray, Error> {
        let Some(entry) = &address.entry else { return self.sample.array(&address.part) };
        if !self.pickles.contains_key(&address.part) {
            let arrays = read_arrays(self.sample.key(), self.sample.part(&address.part)?)?;
            self.pickles.insert(address.part.clone(), arrays);
        }
        let arrays = &self.pickles[&address.part];
        arrays.get(entry).cloned().ok_or_else(|| Error::MissingPart {
            key: self.sample.key().to_owned(),
            part: format!("{}:{entry}", address.part),
            present: arrays.keys().map(|name| format!("{}:{name}", address.part)).collect::<Vec<_>>().join(", "),
        })
    }
}

/// What text encoders make of the empty caption, padding and all: shape and values by address.
pub type EmptyCaption = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// What stands in a precached dataset's [`CONDITIONING`] file, beside its samples.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conditioning {
    /// The empty caption, for dropout and guidance.
    pub empty: EmptyCaption,
    /// What latents are multiplied by.
    pub scale_factor: Option<f64>,
}

/// What names of the empty caption's tensors begin with.
const EMPTY: &str = "empty.";
/// Name of the scale factor's tensor.
const SCALE_FACTOR: &str = "scale_factor";

impl Conditioning {
    /// Reads the file of a dataset's folder; nothing is known where there is none.
    ///
    /// # Errors
    /// [`TensorFileError`] naming the file.
    pub fn read(folder: &Path) -> Result<Self, TensorFileError> {
        let path = folder.join(CONDITIONING);
        if !path.is_file() {
            return Ok(Self::default());
        }
        let file = TensorFile::open(path)?;
        let mut found = Self::default();
        for info in file.entries() {
            let values = file.get(&info.name)?.to_f32_vec_finite()?;
            match info.name.strip_prefix(EMPTY) {
                Some(address) => drop(found.empty.insert(address.to_owned(), (info.shape, values))),
                None if info.name == SCALE_FACTOR => found.scale_factor = values.first().map(|&s| f64::from(s)),
                None => {}
            }
        }
        Ok(found)
    }

    /// Reads the file of the first source that is a folder with one; sources that were encoded alike have equal ones.
    fn of_sources(specs: &[(&str, f64)]) -> Result<Self, TensorFileError> {
        let folders = specs.iter().map(|(spec, _)| Path::new(*spec));
        folders.into_iter().find(|path| path.join(CONDITIONING).is_file()).map_or(Ok(Self::default()), Self::read)
    }

    /// Writes the file into a dataset's folder, atomically.
    ///
    /// # Errors
    /// [`TensorFileError`] naming the file.
    pub fn write(&self, folder: &Path) -> Result<(), TensorFileError> {
        let scale = self.scale_factor.map(|scale| [scale as f32]);
        let empty = self.empty.iter();
        let mut tensors: Vec<NamedTensor<'_>> = empty
            .map(|(address, (shape, values))| NamedTensor::from_f32(format!("{EMPTY}{address}"), shape.clone(), values))
            .collect();
        tensors.extend(scale.as_ref().map(|scale| NamedTensor::from_f32(SCALE_FACTOR, [1], scale)));
        write_safetensors(&folder.join(CONDITIONING), &tensors, &BTreeMap::new())
    }
}

/// Shapes of what training takes of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatentShape {
    /// `[height, width, channels]` of a latent.
    pub latent: [usize; 3],
    /// `[tokens, channels]` of a caption's states.
    pub states: [usize; 2],
}

/// Precached states of one text encoder.
#[derive(Clone, Debug)]
struct StatesPart {
    address: ArrayAddress,
    tokens: usize,
    channels: usize,
    /// Those of the empty caption, `[tokens, channels]`, where they are known.
    empty: Option<Vec<f32>>,
}

/// A sample's caption, encoded or as tokens.
#[derive(Clone, Debug)]
pub enum Condition {
    /// States, `[tokens, channels]`.
    States(Vec<f32>),
    /// Tokens, for the text encoder.
    Tokens(Tokens),
    /// A dropped caption whose states are zeros, with tokens that stand in its place in the text encoder's batch.
    Zeros(Tokens),
}

/// What a sample's latent is made of.
#[derive(Clone, Debug)]
pub enum LatentInput {
    /// Moments, `[2 · channels, height, width]`.
    Moments(Vec<f32>),
    /// An image for the autoencoder, `[side, side, 3]`.
    Pixels(Vec<f32>),
}

calotype_core::names! {
    /// What stands in the place of a dropped caption's states.
    DroppedCaption, "dropped caption" {
        /// Those of the empty caption (Ho & Salimans 2022, section 3.2, as Stable Diffusion's guidance has it).
        Empty = "empty",
        /// Zeros, as in the training of Stable Diffusion XL. Whoever samples then needs them without a caption, too:
        /// `force_zeros_for_empty_prompt` of diffusers' pipelines.
        Zeros = "zeros",
    }
}

#[allow(clippy::derivable_impls, reason = "the table of names declares the type")]
impl Default for DroppedCaption {
    fn default() -> Self {
        Self::Empty
    }
}

/// How a sample is read.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// Its position in the run.
    pub position: u64,
    /// Whether its caption is dropped.
    pub drop: bool,
    /// Whether it counts for [`SampleReader::notices`].
    pub counted: bool,
}

/// Reads what training takes of a sample; can be shared between threads.
#[derive(Clone, Debug)]
pub struct SampleReader {
    latents: Latents,
    shape: LatentShape,
    captions: Captions,
    dropped: DroppedCaption,
}

#[derive(Clone, Debug)]
enum Latents {
    Precached(ArrayAddress),
    Encoded(Box<Images>),
}

#[derive(Clone, Debug)]
enum Captions {
    Precached(Vec<StatesPart>),
    Encoded { reader: CaptionReader, tokenizer: Arc<ClipTokenizer> },
}

impl SampleReader {
    /// Shapes of what it reads.
    pub fn shape(&self) -> LatentShape {
        self.shape
    }

    /// What was changed of the images that counted, in sentences.
    pub fn notices(&self) -> Vec<String> {
        match &self.latents {
            Latents::Precached(_) => Vec::new(),
            Latents::Encoded(images) => images.notices(),
        }
    }

    /// What the latent is made of, and the caption.
    ///
    /// # Errors
    /// Name the sample whose parts are missing, or not as the recipe says.
    pub fn read(&self, how: Reading, sample: &SampleRef<'_>) -> Result<(LatentInput, Condition), BoxError> {
        let mut arrays = Arrays::of(sample);
        let latent = match &self.latents {
            Latents::Precached(address) => LatentInput::Moments(self.moments(address, sample, &mut arrays)?),
            Latents::Encoded(images) => LatentInput::Pixels(images.read_counting(how.counted, how.position, sample)?),
        };
        Ok((latent, self.condition(how, sample, &mut arrays)?))
    }

    fn moments(
        &self,
        address: &ArrayAddress,
        sample: &SampleRef<'_>,
        arrays: &mut Arrays<'_>,
    ) -> Result<Vec<f32>, BoxError> {
        let moments = arrays.get(address)?;
        if latent_of(moments.shape()) != Some(self.shape.latent) {
            let [height, width, channels] = self.shape.latent;
            let (key, found) = (sample.key(), moments.shape());
            let needed = [2 * channels, height, width];
            return Err(format!("sample `{key}` has moments of shape {found:?} instead of {needed:?}").into());
        }
        let moments = moments.to_f32()?;
        if moments.iter().any(|value| !value.is_finite()) {
            return Err(format!("sample `{}` has moments that are not finite", sample.key()).into());
        }
        Ok(moments)
    }

    fn condition(&self, how: Reading, sample: &SampleRef<'_>, arrays: &mut Arrays<'_>) -> Result<Condition, BoxError> {
        let zeros = how.drop && self.dropped == DroppedCaption::Zeros;
        Ok(match &self.captions {
            Captions::Encoded { tokenizer, .. } if zeros => Condition::Zeros(tokenizer.encode("")),
            Captions::Encoded { reader, tokenizer } => {
                let caption = if how.drop { String::new() } else { reader.read(how.position, sample)? };
                Condition::Tokens(tokenizer.encode(&caption))
            }
            Captions::Precached(_) if zeros => Condition::States(vec![0.0; self.shape.states.iter().product()]),
            Captions::Precached(parts) => {
                let states = parts.iter().map(|part| part.read(sample, arrays, how.drop));
                Condition::States(join_channels(&states.collect::<Result<Vec<_>, _>>()?, parts))
            }
        })
    }
}

impl StatesPart {
    /// `[tokens, channels]`, the tokens behind the text's end filled in where they were left out.
    fn read(&self, sample: &SampleRef<'_>, arrays: &mut Arrays<'_>, drop: bool) -> Result<Vec<f32>, BoxError> {
        if let (true, Some(empty)) = (drop, &self.empty) {
            return Ok(empty.clone());
        }
        let array = arrays.get(&self.address)?;
        let (key, needed) = (sample.key(), [self.tokens, self.channels]);
        let misfit = |detail: &str| -> BoxError {
            format!("sample `{key}` has states of shape {:?} instead of {needed:?}{detail}", array.shape()).into()
        };
        let &[tokens, channels] = array.shape() else { return Err(misfit("")) };
        if channels != self.channels || tokens > self.tokens {
            return Err(misfit(""));
        }
        let mut states = array.to_f32()?;
        if tokens < self.tokens {
            let missing = "; the empty caption's states, which stand for tokens that were left out, are not known: copy \
                           conditioning.safetensors of the dataset too, or name its text encoder in [text]";
            let empty = self.empty.as_ref().ok_or_else(|| misfit(missing))?;
            states.extend_from_slice(&empty[tokens * channels..]);
        }
        Ok(states)
    }
}

/// States of several encoders side by side in each token.
fn join_channels(states: &[Vec<f32>], parts: &[StatesPart]) -> Vec<f32> {
    if let [one] = states {
        return one.clone();
    }
    let tokens = parts.first().map_or(0, |part| part.tokens);
    let mut joined = Vec::with_capacity(states.iter().map(Vec::len).sum());
    for token in 0..tokens {
        for (states, part) in states.iter().zip(parts) {
            joined.extend_from_slice(&states[token * part.channels..(token + 1) * part.channels]);
        }
    }
    joined
}

/// `[height, width, channels]` of the latent whose moments have a shape.
fn latent_of(shape: &[usize]) -> Option<[usize; 3]> {
    match *shape {
        [1, channels, height, width] | [channels, height, width] if channels > 0 && channels % 2 == 0 => {
            Some([height, width, channels / 2])
        }
        _ => None,
    }
}

/// All that diffusion training needs to know of its dataset.
#[derive(Debug)]
pub struct DiffusionInputs {
    /// Reads samples.
    pub reader: SampleReader,
    /// What latents are multiplied by.
    pub scale_factor: f64,
    /// Encodes captions during training; none where their states are precached.
    pub text: Option<TextEncoder>,
    /// Encodes images during training; none where their moments are precached.
    pub autoencoder: Option<FrozenAutoencoder>,
}

impl DiffusionInputs {
    /// Looks at the first sample of a recipe's dataset, and at what lies beside the dataset.
    ///
    /// # Errors
    /// [`StageError`]: parts are missing or of the wrong shape, the text encoder cannot be loaded, or the recipe asks
    /// for what is not known.
    pub fn open(recipe: &DiffusionRecipe, dataset: &dyn Source, device: &Device) -> Result<Self, StageError> {
        let inputs = &recipe.inputs;
        let conditioning = Conditioning::of_sources(&recipe.data.specs())?;
        let wrong = |source: BoxError| StageError::Dataset { path: PathBuf::from(dataset.name()), source };
        let held = dataset.get(0)?;
        let sample = held.sample();
        let mut arrays = Arrays::of(&sample);
        let autoencoder = FrozenAutoencoder::of(recipe, device)?;
        let (latents, latent) = match &autoencoder {
            None => {
                let moments = ArrayAddress::parse(&inputs.moments);
                check_encoded(&sample, &moments, recipe).map_err(wrong)?;
                let latent = first_latent(&sample, &mut arrays, &moments).map_err(wrong)?;
                (Latents::Precached(moments), latent)
            }
            Some(autoencoder) => {
                let images = Images::in_range(&recipe.data, autoencoder.side(), recipe.run.seed, inputs.input_range)?;
                images.read(0, &sample).map_err(|error| wrong(error.into()))?;
                (Latents::Encoded(Box::new(images)), autoencoder.latent())
            }
        };
        let known = autoencoder.as_ref().and_then(FrozenAutoencoder::scale_factor).or(conditioning.scale_factor);
        let scale_factor = scale_factor(recipe, known)?;
        let tower = recipe.text.as_ref().map(|text| TextEncoder::open(text, device)).transpose()?;
        let (states, captions, text) = match (tower, &inputs.states) {
            (Some(tower), None) => {
                let tokenizer = tower.shared_tokenizer();
                let (data, seed) = (&recipe.data, recipe.run.seed);
                let reader = CaptionReader::new(&data.caption, &data.captions, dataset.meta(), seed)?;
                (tower.shape(), Captions::Encoded { reader, tokenizer }, Some(tower))
            }
            (tower, addresses) => {
                let usual = recipe.data.captions == CaptionSettings::default() && recipe.data.caption == caption_part();
                check(usual, "data.caption", || {
                    "and data.captions have no effect: captions are precached; set them in the precache recipe"
                        .to_owned()
                })?;
                let default = [STATES.to_owned()];
                let addresses = addresses.as_deref().unwrap_or(&default);
                let mut empty = conditioning.empty;
                if let Some(mut tower) = tower {
                    empty.extend(empty_of(&mut tower, addresses)?);
                }
                let parts = addresses.iter().map(|address| first_states(&sample, &mut arrays, address, &empty));
                let parts = parts.collect::<Result<Vec<_>, _>>().map_err(wrong)?;
                check_parts(&parts, recipe)?;
                let channels = parts.iter().map(|part| part.channels).sum();
                ([parts[0].tokens, channels], Captions::Precached(parts), None)
            }
        };
        let dropped = recipe.objective.dropped_caption;
        let reader = SampleReader { latents, shape: LatentShape { latent, states }, captions, dropped };
        Ok(Self { reader, scale_factor, text, autoencoder })
    }
}

fn scale_factor(recipe: &DiffusionRecipe, known: Option<f64>) -> Result<f64, SettingError> {
    recipe.objective.scale_factor.or(known).ok_or_else(|| SettingError {
        key: "objective.scale_factor",
        problem: match recipe.inputs.resolution {
            None => format!("is not set, and there is no {CONDITIONING} beside the data that tells it; {SCALES}"),
            Some(_) => format!("is not set, and the autoencoder's configuration does not tell it; {SCALES}"),
        },
    })
}

/// What to do about a scale that is not known.
const SCALES: &str = "set what latents are multiplied by (0.18215 for Stable Diffusion 1 and 2, 0.13025 for XL)";

/// The empty caption's states of the recipe's text encoder, for its only address.
fn empty_of(tower: &mut TextEncoder, addresses: &[String]) -> Result<EmptyCaption, StageError> {
    let [address] = addresses else {
        let problem = "stands for one text encoder, but inputs.states names several".to_owned();
        return Err(SettingError { key: "text", problem }.into());
    };
    let rows = [tower.tokenizer().encode("")];
    let states = values_of(tower.encode(&rows, false)?.states);
    Ok(BTreeMap::from([(address.clone(), (tower.shape().to_vec(), states))]))
}

/// Tells a dataset of images, which nobody encoded yet, from one that only lacks something.
fn check_encoded(sample: &SampleRef<'_>, moments: &ArrayAddress, recipe: &DiffusionRecipe) -> Result<(), BoxError> {
    let has = |wanted: &str| sample.parts().any(|(part, _)| part == wanted);
    let image = recipe.data.images.iter().find(|part| has(part));
    match image.filter(|_| !has(&moments.part)) {
        None => Ok(()),
        Some(image) => {
            let source = recipe.data.specs().first().map_or("FOLDER", |(path, _)| path);
            Err(format!(
                "the samples are images (`{image}`) without moments of latents (`{}`): encode them once and train on the \
                 result: calotype data precache RECIPE source={source} out=encoded, then data.path=encoded (recipes: \
                 data/precache/quickstart, data/precache/nemo_sd, data/precache/sdxl); or encode them in every epoch: \
                 inputs.resolution=PIXELS and autoencoder=CHECKPOINT",
                moments.part
            )
            .into())
        }
    }
}

fn first_latent(
    sample: &SampleRef<'_>,
    arrays: &mut Arrays<'_>,
    moments: &ArrayAddress,
) -> Result<[usize; 3], BoxError> {
    let array = arrays.get(moments)?;
    latent_of(array.shape()).ok_or_else(|| {
        let (key, found) = (sample.key(), array.shape());
        format!("sample `{key}` has moments of shape {found:?}; needed is [2 * latent channels, height, width]").into()
    })
}

fn first_states(
    sample: &SampleRef<'_>,
    arrays: &mut Arrays<'_>,
    address: &str,
    empty: &EmptyCaption,
) -> Result<StatesPart, BoxError> {
    let (key, place) = (sample.key(), ArrayAddress::parse(address));
    let array = arrays.get(&place)?;
    let &[tokens, channels] = array.shape() else {
        let found = array.shape();
        return Err(
            format!("sample `{key}` has states of shape {found:?} in {address}; needed is [tokens, channels]").into()
        );
    };
    match empty.get(address) {
        None => Ok(StatesPart { address: place, tokens, channels, empty: None }),
        Some((shape, values)) if shape.len() == 2 && shape[1] == channels && shape[0] >= tokens => {
            Ok(StatesPart { address: place, tokens: shape[0], channels, empty: Some(values.clone()) })
        }
        Some((shape, _)) => {
            let found = array.shape();
            Err(format!(
                "sample `{key}` has states of shape {found:?} in {address}, those of the empty caption have {shape:?}"
            )
            .into())
        }
    }
}

fn check_parts(parts: &[StatesPart], recipe: &DiffusionRecipe) -> Result<(), SettingError> {
    let Some(first) = parts.first() else {
        return Err(SettingError { key: "inputs.states", problem: "is empty; name the states' parts".to_owned() });
    };
    if let Some(other) = parts.iter().find(|part| part.tokens != first.tokens) {
        let problem =
            format!("names states of {} and of {} tokens, which cannot be joined", first.tokens, other.tokens);
        return Err(SettingError { key: "inputs.states", problem });
    }
    let objective = &recipe.objective;
    let needs_empty = objective.caption_dropout > 0.0 && objective.dropped_caption == DroppedCaption::Empty;
    if needs_empty && parts.iter().any(|part| part.empty.is_none()) {
        let problem = format!(
            "needs the states of the empty caption, and there is no {CONDITIONING} beside the data that tells them; set \
             it to 0, or objective.dropped_caption to \"zeros\", or name the data's text encoder in [text] together with inputs.states"
        );
        return Err(SettingError { key: "objective.caption_dropout", problem });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use calotype_data::Sample;

    fn array(shape: &[usize], first: f32) -> Vec<u8> {
        let count = shape.iter().product::<usize>();
        NpyArray::from_f32(shape, (0..count).map(|i| first + i as f32).collect()).unwrap().to_bytes()
    }

    /// Reads moments of 2x2 latents of one channel, and states of three tokens of two channels.
    fn reader(empty: Option<Vec<f32>>) -> SampleReader {
        let part = StatesPart { address: ArrayAddress::parse("states.npy"), tokens: 3, channels: 2, empty };
        let shape = LatentShape { latent: [2, 2, 1], states: [3, 2] };
        SampleReader {
            latents: Latents::Precached(ArrayAddress::parse("npy")),
            shape,
            captions: Captions::Precached(vec![part]),
            dropped: DroppedCaption::Empty,
        }
    }

    fn sample(moments: &[usize], states: &[usize]) -> Sample {
        Sample::new("a").with("npy", array(moments, 0.0)).with("states.npy", array(states, 10.0))
    }

    fn states(reader: &SampleReader, sample: &Sample, drop: bool) -> Result<Vec<f32>, String> {
        match reader.read(Reading { position: 0, drop, counted: false }, &SampleRef::from(sample)) {
            Ok((LatentInput::Moments(moments), Condition::States(states))) => {
                assert_eq!(moments, (0..8).map(|i| i as f32).collect::<Vec<_>>());
                Ok(states)
            }
            Ok(_) => Err("an image, or tokens".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn states_are_completed_and_dropped_by_those_of_the_empty_caption() {
        let empty: Vec<f32> = (0..6).map(|i| -(i as f32)).collect();
        let known = reader(Some(empty.clone()));
        for moments in [&[2, 2, 2][..], &[1, 2, 2, 2]] {
            let whole = sample(moments, &[3, 2]);
            assert_eq!(states(&known, &whole, false).unwrap(), [10.0, 11.0, 12.0, 13.0, 14.0, 15.0]);
            assert_eq!(states(&known, &whole, true).unwrap(), empty);
        }
        let short = sample(&[2, 2, 2], &[1, 2]);
        assert_eq!(states(&known, &short, false).unwrap(), [10.0, 11.0, -2.0, -3.0, -4.0, -5.0]);
        let error = states(&reader(None), &short, false).unwrap_err();
        assert!(error.contains("`a`") && error.contains("conditioning.safetensors"), "{error}");
        // Zeros need to know nothing of the empty caption.
        let zeros = SampleReader { dropped: DroppedCaption::Zeros, ..reader(None) };
        assert_eq!(states(&zeros, &short, true).unwrap(), [0.0; 6]);
        assert_eq!(states(&zeros, &sample(&[2, 2, 2], &[3, 2]), false).unwrap()[0], 10.0);
    }

    #[test]
    fn what_a_sample_lacks_is_named() {
        let reader = reader(Some(vec![0.0; 6]));
        let error = |sample: &Sample| states(&reader, sample, false).unwrap_err();
        assert!(error(&sample(&[2, 2, 4], &[3, 2])).contains("moments of shape [2, 2, 4] instead of [2, 2, 2]"));
        assert!(error(&sample(&[2, 2, 2], &[4, 2])).contains("states of shape [4, 2] instead of [3, 2]"));
        assert!(error(&sample(&[2, 2, 2], &[3, 4])).contains("`a`"));
        assert!(error(&sample(&[2, 2, 2], &[6])).contains("[6] instead of"));
        assert!(error(&Sample::new("b").with("npy", array(&[2, 2, 2], 0.0))).contains("`b` has no part `states.npy`"));
        let bad = Sample::new("c").with("npy", array(&[2, 2, 2], f32::NAN)).with("states.npy", array(&[3, 2], 0.0));
        assert!(error(&bad).contains("`c` has moments that are not finite"));
    }

    #[test]
    fn states_of_several_encoders_lie_side_by_side() {
        let part = |channels| StatesPart { address: ArrayAddress::parse("x"), tokens: 2, channels, empty: None };
        let joined = join_channels(&[vec![1.0, 2.0], vec![3.0, 4.0, 5.0, 6.0]], &[part(1), part(2)]);
        assert_eq!(joined, [1.0, 3.0, 4.0, 2.0, 5.0, 6.0]);
        let address = ArrayAddress::parse("pickle:autoencoderkl_image");
        assert_eq!((address.part.as_str(), address.entry.as_deref()), ("pickle", Some("autoencoderkl_image")));
        assert_eq!((latent_of(&[8, 4, 6]), latent_of(&[1, 8, 4, 6])), (Some([4, 6, 4]), Some([4, 6, 4])));
        assert_eq!((latent_of(&[7, 4, 6]), latent_of(&[2, 8, 4, 6]), latent_of(&[8])), (None, None, None));
    }
}
