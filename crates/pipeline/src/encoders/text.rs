//! Captions to the hidden states that condition a network.

use super::{EncoderError, open_network};
use crate::batches::token_ids;
use crate::network::{Network, Placement};
use crate::prompt_syntax::PromptSyntax;
use crate::prompts::{CutPrompt, EncodedPrompt, PromptOptions};
use burn::tensor::{DType, Device, Tensor};
use calotype_checkpoints::{Checkpoint, Component, Facts};
use calotype_models::tokenizer::{ClipTokenizer, TokenizerOptions, Tokens};
use calotype_models::{ClipTextEncoder, InputError, TextEncoderConfig, TextStates};
use calotype_ops::Precision;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;

/// The hidden states that are taken of a text encoder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HiddenStates {
    /// Those that the checkpoint's family takes: SDXL `penultimate`, all others `last`.
    #[default]
    Auto,
    /// Behind the last layer and the final norm: Stable Diffusion 1, and 2 in diffusers' layout.
    Last,
    /// Without the last layer, with the final norm: Stable Diffusion 2 with the whole tower of OpenCLIP, as in MLPerf.
    PenultimateNormed,
    /// Without the last layer and the final norm: both towers of Stable Diffusion XL.
    Penultimate,
}

/// The tokenizer of a text encoder.
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
    /// The text encoder of the checkpoint.
    #[serde(default = "first")]
    pub component: Component,
    /// The hidden states that are taken.
    #[serde(default)]
    pub states: HiddenStates,
    /// The tokenizer.
    #[serde(default)]
    pub tokenizer: TokenizerChoice,
    /// Precision of activations.
    #[serde(default)]
    pub precision: Precision,
}

/// The first text encoder, the default of recipes.
pub fn first() -> Component {
    Component::TextEncoder
}

/// Most rows of tokens that are encoded at once.
const ROWS: usize = 16;

/// A text encoder with its tokenizer and the hidden states that are taken of it. Its weights are read at its first use.
#[derive(Debug)]
pub struct TextEncoder {
    network: Network<TextEncoderConfig>,
    component: Component,
    tokenizer: Arc<ClipTokenizer>,
    states: TextStates,
    dtype: DType,
    device: Device,
    weights: String,
}

/// Captions, encoded.
#[derive(Debug)]
pub struct TextEncoding {
    /// Hidden states, `[captions, tokens, channels]`, `f32`.
    pub states: Tensor<3>,
    /// The projected state at the end of each text, not normalised, `[captions, projection]`, `f32`; where the encoder
    /// has a projection and it was asked for.
    pub pooled: Option<Tensor<2>>,
}

impl TextEncoder {
    /// Opens the encoder that settings name, without reading its weights into memory; they are hashed.
    ///
    /// # Errors
    /// [`EncoderError`]: the path is no checkpoint with this encoder, or its tokenizer cannot be used.
    pub fn open(settings: &TextSettings, device: &Device) -> Result<Self, EncoderError> {
        let path = Path::new(&settings.model);
        let placement = Placement { device: device.clone(), dtype: settings.precision.dtype(device), adapters: None };
        let (network, checkpoint) = open_network::<TextEncoderConfig>(path, settings.component, &placement)?;
        Ok(Self {
            states: hidden_states(settings.states, settings.component, &checkpoint),
            tokenizer: Arc::new(tokenizer(settings, network.config(), &checkpoint)?),
            component: settings.component,
            dtype: placement.dtype,
            device: placement.device,
            weights: network.hash()?,
            network,
        })
    }

    /// A text encoder of a checkpoint with its family's hidden states and tokenizer, for a pipeline.
    ///
    /// # Errors
    /// As of [`open`](Self::open).
    pub fn from_checkpoint(
        checkpoint: &Checkpoint,
        component: Component,
        placement: &Placement,
    ) -> Result<Self, EncoderError> {
        let network = Network::open(checkpoint, component, placement)?;
        Ok(Self {
            states: hidden_states(HiddenStates::Auto, component, checkpoint),
            tokenizer: Arc::new(checkpoint.tokenizer(component)?),
            component,
            dtype: placement.dtype,
            device: placement.device.clone(),
            weights: String::new(),
            network,
        })
    }

    /// An encoder around a network that is in memory, without autodiff; `path` is what errors name, `dtype` the type of the
    /// activations.
    pub fn from_network(
        path: &Path,
        (config, network): (TextEncoderConfig, ClipTextEncoder),
        tokenizer: ClipTokenizer,
        states: TextStates,
        (device, dtype): (&Device, DType),
    ) -> Self {
        Self {
            network: Network::loaded(path, config, network),
            component: Component::TextEncoder,
            tokenizer: Arc::new(tokenizer),
            states,
            dtype,
            device: device.clone(),
            weights: String::new(),
        }
    }

    /// Reads the weights now and lets go of the file.
    ///
    /// # Errors
    /// [`EncoderError::Load`] if they cannot be read.
    pub fn keep(self) -> Result<Self, EncoderError> {
        Ok(Self { network: self.network.keep()?, ..self })
    }

    /// Reads the weights, if they are not in memory.
    ///
    /// # Errors
    /// [`EncoderError::Load`] if they cannot be read.
    pub fn read(&self) -> Result<(), EncoderError> {
        Ok(self.network.get().map(drop)?)
    }

    /// Takes the weights out of memory, if they can be read again.
    pub fn release(&self) {
        self.network.release();
    }

    /// `[tokens, channels]` of a caption's hidden states.
    pub fn shape(&self) -> [usize; 2] {
        [self.tokenizer.context_length(), self.network.config().text.channels]
    }

    /// Length of the pooled state; none where the encoder has no projection.
    pub fn pooled_length(&self) -> Option<usize> {
        self.network.config().projection
    }

    /// BLAKE3, in hexadecimal, of the tensors' names, types, shapes and elements: the same in every layout of checkpoints that
    /// stores the elements unchanged. Empty if the encoder was not made by [`open`](Self::open).
    pub fn weights(&self) -> &str {
        &self.weights
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &ClipTokenizer {
        &self.tokenizer
    }

    /// The tokenizer, for other threads.
    pub fn shared_tokenizer(&self) -> Arc<ClipTokenizer> {
        Arc::clone(&self.tokenizer)
    }

    /// Everything that its output depends on, for records.
    pub fn facts(&self) -> Value {
        json!({
            "weights": self.weights,
            "config": self.network.config(),
            "states": self.states,
            "tokenizer": self.tokenizer.options(),
            "tokens": self.tokenizer.context_length(),
            "precision": self.dtype.name(),
        })
    }

    /// The hidden states of rows of tokens, and their pooled states if `pooled`.
    ///
    /// # Errors
    /// [`EncoderError`]: the weights cannot be read, the tokens do not fit the encoder, or it has no projection.
    pub fn encode(&self, rows: &[Tokens], pooled: bool) -> Result<TextEncoding, EncoderError> {
        self.encode_as(rows, pooled, self.states)
    }

    /// The hidden states of prompts of any number, each as `[1, tokens, channels]`, and what was cut from each. Encoders whose
    /// hidden states have no final norm, which are SDXL's, give the pooled state too, where they have a projection.
    ///
    /// # Errors
    /// As of [`encode`](Self::encode).
    pub fn encode_prompts(
        &self,
        prompts: &[&str],
        options: &PromptOptions,
    ) -> Result<Vec<(EncodedPrompt, Option<CutPrompt>)>, EncoderError> {
        let states = self.prompt_states(options);
        let wants_pooled = self.wants_pooled();
        if options.syntax != PromptSyntax::Plain {
            return prompts.iter().map(|prompt| self.encode_weighted(prompt, options)).collect();
        }
        let rows_of = |prompt: &&str| match options.long_prompts {
            true => self.tokenizer.chunks(prompt),
            false => vec![self.tokenizer.encode(prompt)],
        };
        let rows: Vec<Vec<Tokens>> = prompts.iter().map(rows_of).collect();
        let (mut hidden, mut pooled) = (Vec::new(), Vec::new());
        for some in rows.concat().chunks(ROWS) {
            let encoding = self.encode_as(some, wants_pooled, states)?;
            for row in 0..some.len() {
                hidden.push(encoding.states.clone().narrow(0, row, 1));
                pooled.push(encoding.pooled.clone().map(|pooled| pooled.narrow(0, row, 1)));
            }
        }
        let mut first = 0;
        let of_prompt = |(prompt, rows): (&&str, &Vec<Tokens>)| {
            let own = first..first + rows.len();
            first = own.end;
            let cut = rows.iter().find(|row| row.truncated > 0).map(|row| CutPrompt {
                prompt: (*prompt).to_owned(),
                tokens: row.truncated,
                lost: row.lost.clone(),
            });
            let pooled = pooled[own.start].clone();
            (EncodedPrompt { hidden_states: Tensor::cat(hidden[own].to_vec(), 1), pooled }, cut)
        };
        Ok(prompts.iter().zip(&rows).map(of_prompt).collect())
    }

    /// The hidden states that prompts are encoded to.
    pub(super) fn prompt_states(&self, options: &PromptOptions) -> TextStates {
        TextStates { skip: self.states.skip + options.clip_skip, ..self.states }
    }

    /// Whether prompts have a pooled state.
    pub(super) fn wants_pooled(&self) -> bool {
        !self.states.final_norm && self.pooled_length().is_some()
    }

    /// The hidden states of rows in which no token looks at some, `[rows, tokens, channels]`.
    pub(super) fn encode_without(
        &self,
        rows: &[Tokens],
        hidden: &[Vec<bool>],
        states: TextStates,
    ) -> Result<Tensor<3>, EncoderError> {
        let (ids, _) = token_ids(rows, &self.device);
        let network = self.network.get()?;
        let found = network.text_model.conditioning_without(ids, hidden, self.dtype, states);
        let misfit =
            |source| EncoderError::Input { path: self.network.path().to_owned(), component: self.component, source };
        Ok(found.map_err(misfit)?.cast(DType::F32))
    }

    pub(super) fn encode_as(
        &self,
        rows: &[Tokens],
        pooled: bool,
        states: TextStates,
    ) -> Result<TextEncoding, EncoderError> {
        let (ids, _) = token_ids(rows, &self.device);
        let network = self.network.get()?;
        let path = || self.network.path().to_owned();
        let misfit = |source| EncoderError::Input { path: path(), component: self.component, source };
        if !pooled {
            let states = network.text_model.conditioning(ids, self.dtype, states).map_err(misfit)?;
            return Ok(TextEncoding { states: states.cast(DType::F32), pooled: None });
        }
        let mut output = network.forward(ids.clone(), self.dtype).map_err(misfit)?;
        let Some(pooled) = output.text_embeds.take() else {
            let problem = "this text encoder has no projection, so there are no pooled states: leave out pooled_part";
            return Err(EncoderError::Output { path: path(), problem: problem.to_owned() });
        };
        let layers = output.hidden_states.len() - 1;
        if states.skip > layers {
            return Err(misfit(InputError::Skip { skip: states.skip, layers }));
        }
        let states = match states {
            TextStates { skip: 0, final_norm: true } => output.last_hidden_state,
            TextStates { skip, final_norm: false } => output.hidden_states.swap_remove(layers - skip),
            // The norm of a layer that is not the last needs a pass of its own; no published model takes such states
            // together with pooled ones.
            states => network.text_model.conditioning(ids, self.dtype, states).map_err(misfit)?,
        };
        Ok(TextEncoding { states: states.cast(DType::F32), pooled: Some(pooled.cast(DType::F32)) })
    }
}

fn hidden_states(choice: HiddenStates, component: Component, checkpoint: &Checkpoint) -> TextStates {
    match choice {
        HiddenStates::Auto => Facts::of(checkpoint.family()).text(component).hidden_states,
        HiddenStates::Last => TextStates::LAST,
        HiddenStates::PenultimateNormed => TextStates::PENULTIMATE_NORMED,
        HiddenStates::Penultimate => TextStates::PENULTIMATE,
    }
}

fn tokenizer(
    settings: &TextSettings,
    config: &TextEncoderConfig,
    checkpoint: &Checkpoint,
) -> Result<ClipTokenizer, EncoderError> {
    let options = match settings.tokenizer {
        TokenizerChoice::Auto => return Ok(checkpoint.tokenizer(settings.component)?),
        TokenizerChoice::OpenClip => TokenizerOptions::OPEN_CLIP,
        TokenizerChoice::Transformers => TokenizerOptions::TRANSFORMERS,
        TokenizerChoice::TransformersExclamation => TokenizerOptions::TRANSFORMERS_EXCLAMATION,
    };
    Ok(ClipTokenizer::with_options(config.text.context_length, options))
}
