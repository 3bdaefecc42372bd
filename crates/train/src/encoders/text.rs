//! Captions to the states that condition a network.

use super::{EncoderError, Frozen};
use crate::settings::Precision;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use calotype_diffusion::prompts;
use calotype_models::tokenizer::{ClipTokenizer, TokenizerOptions, Tokens};
use calotype_models::{ClipConfig, ClipTextEncoder, InputError, TextEncoderConfig, TextStates};
use calotype_weights::layout::{Checkpoint, Component};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;

/// Which states are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StatesChoice {
    /// What the checkpoint's family takes: SDXL `penultimate`, all others `last`.
    #[default]
    Auto,
    /// Behind the last layer and the final norm: Stable Diffusion 1, and 2 in diffusers' layout.
    Last,
    /// Without the last layer, with the final norm: Stable Diffusion 2 with the whole tower of OpenCLIP, as in MLPerf.
    PenultimateNormed,
    /// Without the last layer and the final norm: both towers of Stable Diffusion XL.
    Penultimate,
}

/// Which tokenizer is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenizerChoice {
    /// The checkpoint's own, or that of its family; for a folder that training wrote, that of training.
    #[default]
    Auto,
    /// open_clip's: pads with 0.
    OpenClip,
    /// transformers' of Stable Diffusion 1: pads with the end of text.
    Transformers,
    /// transformers' of Stable Diffusion 2: pads with `!`.
    TransformersExclamation,
}

/// A text encoder and what is taken of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextSettings {
    /// Checkpoint of any layout, or a folder of a CLIP model that training wrote.
    pub model: String,
    /// Which text encoder of the checkpoint.
    #[serde(default = "first")]
    pub component: Component,
    /// Which states.
    #[serde(default)]
    pub states: StatesChoice,
    /// Which tokenizer.
    #[serde(default)]
    pub tokenizer: TokenizerChoice,
    /// Precision of activations.
    #[serde(default)]
    pub precision: Precision,
}

pub(crate) fn first() -> Component {
    Component::TextEncoder
}

/// A text encoder with its tokenizer. Its weights are read at its first use.
#[derive(Debug)]
pub struct TextTower {
    frozen: Frozen<TextEncoderConfig, ClipTextEncoder>,
    tokenizer: Arc<ClipTokenizer>,
    which: TextStates,
    dtype: DType,
    device: Device,
}

/// Captions, encoded.
#[derive(Debug)]
pub struct TextEncoding {
    /// `[captions, tokens, channels]`, `f32`.
    pub states: Tensor<3>,
    /// The projected state at the end of each text, not normalised, `[captions, projection]`, `f32`; where the encoder
    /// has a projection and it was asked for.
    pub pooled: Option<Tensor<2>>,
}

impl TextTower {
    /// Opens the encoder that settings name, without reading its weights into memory.
    ///
    /// # Errors
    /// [`EncoderError`].
    pub fn open(settings: &TextSettings, device: &Device) -> Result<Self, EncoderError> {
        let path = Path::new(&settings.model);
        let own = |config: ClipConfig| TextEncoderConfig { text: config.text, projection: Some(config.projection) };
        let frozen =
            Frozen::open(path, settings.component, own, TextEncoderConfig::from_transformers, |c, init| c.init(init))?;
        let checkpoint = frozen.checkpoint.as_deref();
        Ok(Self {
            which: states(settings.states, checkpoint),
            tokenizer: Arc::new(tokenizer(settings, &frozen.config, checkpoint)?),
            dtype: settings.precision.dtype(device),
            device: device.clone(),
            frozen,
        })
    }

    /// `[tokens, channels]` of a caption's states.
    pub fn shape(&self) -> [usize; 2] {
        [self.tokenizer.context_length(), self.frozen.config.text.channels]
    }

    /// Length of the pooled state; none where the encoder has no projection.
    pub fn pooled_length(&self) -> Option<usize> {
        self.frozen.config.projection
    }

    /// BLAKE3 of the weights, see [`Frozen::weights`].
    pub fn weights(&self) -> &str {
        &self.frozen.weights
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &ClipTokenizer {
        &self.tokenizer
    }

    /// The tokenizer, for other threads.
    pub fn shared_tokenizer(&self) -> Arc<ClipTokenizer> {
        Arc::clone(&self.tokenizer)
    }

    /// What shapes its output, to be recorded.
    pub fn facts(&self) -> Value {
        json!({
            "weights": self.frozen.weights,
            "config": self.frozen.config,
            "states": self.which,
            "tokenizer": self.tokenizer.options(),
            "tokens": self.tokenizer.context_length(),
            "precision": self.dtype.name(),
        })
    }

    /// The states of rows of tokens, and their pooled states if `pooled`.
    ///
    /// # Errors
    /// [`EncoderError`]: the weights cannot be read, the tokens do not fit the encoder, or it has no projection.
    pub fn encode(&mut self, rows: &[Tokens], pooled: bool) -> Result<TextEncoding, EncoderError> {
        let ids: Vec<i32> = rows.iter().flat_map(|row| row.ids.iter().copied()).collect();
        let ids = TensorData::new(ids, [rows.len(), self.tokenizer.context_length()]);
        let ids = Tensor::<2, Int>::from_data(ids, &self.device);
        let (path, which, dtype) = (self.frozen.path.clone(), self.which, self.dtype);
        let network = self.frozen.network(&self.device, dtype)?;
        let misfit = |source| EncoderError::Input { path: path.clone(), source };
        if !pooled {
            let states = network.text_model.conditioning(ids, dtype, which).map_err(misfit)?;
            return Ok(TextEncoding { states: states.cast(DType::F32), pooled: None });
        }
        let mut output = network.forward(ids.clone(), dtype).map_err(misfit)?;
        let Some(pooled) = output.text_embeds.take() else {
            let problem = "this text encoder has no projection, so there are no pooled states: leave out pooled_part";
            return Err(EncoderError::Output { path, problem: problem.to_owned() });
        };
        let layers = output.hidden_states.len() - 1;
        if which.skip > layers {
            return Err(misfit(InputError::Skip { skip: which.skip, layers }));
        }
        let states = match which {
            TextStates { skip: 0, final_norm: true } => output.last_hidden_state,
            TextStates { skip, final_norm: false } => output.hidden_states.swap_remove(layers - skip),
            // The norm of a layer that is not the last needs a pass of its own; no published model takes such states
            // together with pooled ones.
            which => network.text_model.conditioning(ids, dtype, which).map_err(misfit)?,
        };
        Ok(TextEncoding { states: states.cast(DType::F32), pooled: Some(pooled.cast(DType::F32)) })
    }
}

fn states(choice: StatesChoice, checkpoint: Option<&Checkpoint>) -> TextStates {
    match (choice, checkpoint) {
        (StatesChoice::Auto, Some(checkpoint)) => prompts::conditioning_states(checkpoint, 0),
        (StatesChoice::Auto, None) | (StatesChoice::Last, _) => TextStates::LAST,
        (StatesChoice::PenultimateNormed, _) => TextStates::PENULTIMATE_NORMED,
        (StatesChoice::Penultimate, _) => TextStates::PENULTIMATE,
    }
}

fn tokenizer(
    settings: &TextSettings,
    config: &TextEncoderConfig,
    checkpoint: Option<&Checkpoint>,
) -> Result<ClipTokenizer, EncoderError> {
    let options = match (settings.tokenizer, checkpoint) {
        (TokenizerChoice::Auto, Some(checkpoint)) => return Ok(prompts::tokenizer(checkpoint, settings.component)?),
        (TokenizerChoice::Auto, None) => TokenizerOptions::default(),
        (TokenizerChoice::OpenClip, _) => TokenizerOptions::OPEN_CLIP,
        (TokenizerChoice::Transformers, _) => TokenizerOptions::TRANSFORMERS,
        (TokenizerChoice::TransformersExclamation, _) => TokenizerOptions::TRANSFORMERS_EXCLAMATION,
    };
    Ok(ClipTokenizer::with_options(config.text.context_length, options))
}
