//! CLIP's text towers: ViT-L/14's, OpenCLIP's ViT-H/14 and bigG/14, and their like.

use crate::init::Init;
use crate::layers::{Embedding, LayerNorm, Linear};
use crate::parallel::TensorParallel;
use crate::recompute::Recompute;
use crate::transformer::{Encoder, HiddenActivation, Sizes};
use crate::transformers::{activation, has_architecture, is_whole_clip, without};
use crate::{ConfigError, InputError};
use burn::module::Module;
use burn::tensor::{DType, Int, Tensor, TensorData};
use calotype_core::fields::{Fields, FieldsError};
use serde::{Deserialize, Serialize};

/// The end token in configurations that transformers wrote before version 4.31: not the real one, but a sign that the
/// row's greatest id marks the end.
const LEGACY_END_TOKEN: u32 = 2;

/// The score of a key that is not looked at.
const HIDDEN: f32 = -1e30;

/// The text tower; defaults are OpenCLIP ViT-H/14's, as Stable Diffusion 2 uses it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TextConfig {
    /// Entries of the token table.
    pub vocab_size: usize,
    /// Tokens of a prompt, start and end included.
    pub context_length: usize,
    /// Width of the states.
    pub channels: usize,
    /// Width between the two linear layers of a block; none: four times `channels`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mlp_channels: Option<usize>,
    /// Transformer layers.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Activation of the feed-forward layers.
    pub activation: HiddenActivation,
    /// Epsilon of the layer norms.
    pub norm_eps: f32,
    /// Id of the end-of-text token, at whose first place the pooled output is read; with 2, which old configurations of
    /// transformers hold by mistake, it is read where the greatest id of a row stands first.
    pub end_token: u32,
}

impl Default for TextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 49_408,
            context_length: 77,
            channels: 1024,
            mlp_channels: None,
            layers: 24,
            heads: 16,
            activation: HiddenActivation::Gelu,
            norm_eps: 1e-5,
            end_token: 49_407,
        }
    }
}

impl TextConfig {
    /// Checks that heads divide channels and that a prompt has room.
    ///
    /// # Errors
    /// [`ConfigError`] naming the first field at fault.
    pub fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::check(self.heads > 0 && self.channels.is_multiple_of(self.heads), "text.heads", || {
            format!("{} heads do not divide {} channels", self.heads, self.channels)
        })?;
        ConfigError::check(self.context_length >= 3, "text.context_length", || {
            "needs room for start, one token and end".into()
        })
    }

    /// The tower with random weights, initialised as the CLIP reference does.
    ///
    /// # Errors
    /// As [`TextConfig::validate`].
    pub fn init(&self, init: &mut Init) -> Result<TextModel, ConfigError> {
        self.validate()?;
        let sizes = Sizes {
            channels: self.channels,
            mlp_channels: self.mlp_channels.unwrap_or(4 * self.channels),
            layers: self.layers,
            heads: self.heads,
            activation: self.activation,
            norm_eps: self.norm_eps,
        };
        Ok(TextModel {
            embeddings: TextEmbeddings {
                token_embedding: Embedding::new(init, self.vocab_size, self.channels, 0.02),
                position_embedding: Embedding::new(init, self.context_length, self.channels, 0.01),
            },
            encoder: Encoder::new(init, sizes),
            final_layer_norm: LayerNorm::with_eps(init, self.channels, self.norm_eps),
            end_token: self.end_token,
        })
    }

    /// From the fields of a `CLIPTextConfig` of transformers.
    ///
    /// # Errors
    /// [`FieldsError`] with every field that is malformed, absurdly large, or would change results and is not supported.
    pub fn from_transformers(config: &serde_json::Value) -> Result<Self, FieldsError> {
        let mut fields = Fields::new("CLIPTextModel", config);
        fields.kind("model_type", &["clip_text_model"]);
        let text = Self::read(&mut fields);
        fields.finish_checked(text, Self::validate)
    }

    pub(crate) fn read(fields: &mut Fields<'_>) -> Self {
        without(fields, &["attention_dropout"]);
        Self {
            vocab_size: fields.size("vocab_size", 49_408),
            context_length: fields.size("max_position_embeddings", 77),
            channels: fields.size("hidden_size", 512),
            mlp_channels: Some(fields.size("intermediate_size", 2048)),
            layers: fields.count("num_hidden_layers", 12),
            heads: fields.size("num_attention_heads", 8),
            activation: activation(fields, HiddenActivation::QuickGelu),
            norm_eps: fields.number("layer_norm_eps", 1e-5) as f32,
            // One id: a list of several is not supported.
            end_token: fields.get("eos_token_id", 49_407),
        }
    }
}

/// The states of a text tower that condition a UNet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextStates {
    /// Number of the last layers that are left out ("clip skip").
    pub skip: usize,
    /// True if the tower's final norm is applied.
    pub final_norm: bool,
}

impl TextStates {
    /// All layers and the final norm: Stable Diffusion 1, and 2 in diffusers' layout, whose tower has one layer less.
    pub const LAST: Self = Self { skip: 0, final_norm: true };
    /// Without the last layer, with the final norm: Stable Diffusion 2 with OpenCLIP's whole tower.
    pub const PENULTIMATE_NORMED: Self = Self { skip: 1, final_norm: true };
    /// Without the last layer and the final norm (`hidden_states[-2]`): both towers of Stable Diffusion XL.
    pub const PENULTIMATE: Self = Self { skip: 1, final_norm: false };
}

/// Outputs of a text tower for prompts.
#[derive(Debug)]
pub struct TextOutput {
    /// The states behind the last layer and the final norm, `[batch, tokens, channels]`.
    pub last_hidden_state: Tensor<3>,
    /// The states in front of the first layer and behind every layer, without the final norm: `layers + 1` tensors
    /// `[batch, tokens, channels]`.
    pub hidden_states: Vec<Tensor<3>>,
    /// `last_hidden_state` at the end of the text, `[batch, channels]`.
    pub pooler_output: Tensor<2>,
    /// The pooled output in the space common with images, not normalised, `[batch, projection]`; where there is a
    /// projection.
    pub text_embeds: Option<Tensor<2>>,
}

#[derive(Module, Debug)]
struct TextEmbeddings {
    token_embedding: Embedding,
    position_embedding: Embedding,
}

/// The text tower (`CLIPTextModel` of transformers).
#[derive(Module, Debug)]
pub struct TextModel {
    embeddings: TextEmbeddings,
    encoder: Encoder,
    final_layer_norm: LayerNorm,
    #[module(skip)]
    end_token: u32,
}

impl TextModel {
    pub(crate) fn part_of(self, parallel: &TensorParallel) -> Self {
        Self { encoder: self.encoder.part_of(parallel), ..self }
    }

    /// The same tower, of which training computes some blocks twice.
    #[must_use]
    pub fn recomputing(self, recompute: Option<Recompute>) -> Self {
        Self { encoder: self.encoder.recomputing(recompute), ..self }
    }

    /// The normalised last hidden states, which condition the UNet, computed with activations of type `dtype`.
    ///
    /// # Shapes
    /// `[batch, tokens]` to `[batch, tokens, channels]`
    ///
    /// # Panics
    /// If a row is longer than the tower's context or an id is not in its table; [`TextModel::forward`] checks that.
    pub fn states(&self, ids: Tensor<2, Int>, dtype: DType) -> Tensor<3> {
        self.select(ids, dtype, TextStates::LAST)
    }

    /// The states that condition a UNet, computed with activations of type `dtype`; layers that are skipped are not
    /// computed.
    ///
    /// # Shapes
    /// `[batch, tokens]` to `[batch, tokens, channels]`
    ///
    /// # Errors
    /// [`InputError`] for ids that the tower cannot take, or if there are not as many layers to skip.
    pub fn conditioning(&self, ids: Tensor<2, Int>, dtype: DType, which: TextStates) -> Result<Tensor<3>, InputError> {
        self.check(&ids)?;
        let layers = self.encoder.depth();
        if which.skip > layers {
            return Err(InputError::Skip { skip: which.skip, layers });
        }
        Ok(self.select(ids, dtype, which))
    }

    /// The same with tokens hidden from all others, as an attention mask of transformers hides them: `hidden` says for each
    /// token of each row whether no token looks at it. They have states of their own all the same.
    ///
    /// # Shapes
    /// `ids`: `[batch, tokens]`, `hidden`: `batch` rows of `tokens`; to `[batch, tokens, channels]`
    ///
    /// # Errors
    /// As of [`TextModel::conditioning`]; [`InputError::Tokens`] for rows of `hidden` of another length.
    pub fn conditioning_without(
        &self,
        ids: Tensor<2, Int>,
        hidden: &[Vec<bool>],
        dtype: DType,
        which: TextStates,
    ) -> Result<Tensor<3>, InputError> {
        self.check(&ids)?;
        let ([batch, tokens], layers) = (ids.dims(), self.encoder.depth());
        if which.skip > layers {
            return Err(InputError::Skip { skip: which.skip, layers });
        }
        if hidden.len() != batch || hidden.iter().any(|row| row.len() != tokens) {
            let tokens = hidden.iter().map(Vec::len).find(|length| *length != tokens).unwrap_or(0);
            return Err(InputError::Tokens { tokens, context: ids.dims()[1] });
        }
        let score = |row: &[bool], query: usize, key: usize| if key > query || row[key] { HIDDEN } else { 0.0 };
        let mask: Vec<f32> = hidden
            .iter()
            .flat_map(|row| (0..tokens * tokens).map(move |i| score(row, i / tokens, i % tokens)))
            .collect();
        let mask = Tensor::from_data(TensorData::new(mask, [batch, 1, tokens, tokens]), &ids.device());
        let x = self.encoder.forward_masked(self.embed(ids, dtype), &mask, layers - which.skip);
        Ok(if which.final_norm { self.final_layer_norm.forward(x) } else { x })
    }

    /// All outputs but the projected one, computed with activations of type `dtype`.
    ///
    /// The end of a text is where its end token stands first; at the first token of a row without one, as in the
    /// reference.
    ///
    /// # Shapes
    /// `ids`: `[batch, tokens]`
    ///
    /// # Errors
    /// [`InputError`] for ids that the tower cannot take.
    pub fn forward(&self, ids: Tensor<2, Int>, dtype: DType) -> Result<TextOutput, InputError> {
        let rows = self.check(&ids)?;
        let hidden_states = self.encoder.all_states(self.embed(ids, dtype), true);
        let last = hidden_states[hidden_states.len() - 1].clone();
        let last_hidden_state = self.final_layer_norm.forward(last);
        let ends: Vec<usize> = rows.iter().map(|row| end_of(row, self.end_token)).collect();
        let pooler_output = pooled(last_hidden_state.clone(), &ends);
        Ok(TextOutput { last_hidden_state, hidden_states, pooler_output, text_embeds: None })
    }

    fn select(&self, ids: Tensor<2, Int>, dtype: DType, which: TextStates) -> Tensor<3> {
        let x = self.encoder.forward(self.embed(ids, dtype), true, self.encoder.depth() - which.skip);
        if which.final_norm { self.final_layer_norm.forward(x) } else { x }
    }

    fn embed(&self, ids: Tensor<2, Int>, dtype: DType) -> Tensor<3> {
        let [_, tokens] = ids.dims();
        let positions = self.embeddings.position_embedding.weight.val().narrow(0, 0, tokens);
        let x = self.embeddings.token_embedding.forward(ids) + positions.unsqueeze();
        x.cast(dtype)
    }

    /// The ids as rows, if the tower can take them.
    fn check(&self, ids: &Tensor<2, Int>) -> Result<Vec<Vec<i64>>, InputError> {
        let [_, tokens] = ids.dims();
        let [context, _] = self.embeddings.position_embedding.weight.dims();
        let [vocabulary, _] = self.embeddings.token_embedding.weight.dims();
        if tokens == 0 || tokens > context {
            return Err(InputError::Tokens { tokens, context });
        }
        let values: Vec<i64> = ids.to_data().iter::<i64>().collect();
        let unknown = |&id: &i64| usize::try_from(id).map_or(true, |id| id >= vocabulary);
        if let Some(i) = values.iter().position(unknown) {
            let (row, token) = (i / tokens, i % tokens);
            return Err(InputError::TokenId { row, token, id: values[i], vocabulary });
        }
        Ok(values.chunks(tokens).map(<[i64]>::to_vec).collect())
    }
}

/// The first place of a text's end token.
fn end_of(row: &[i64], end_token: u32) -> usize {
    let end = match end_token {
        LEGACY_END_TOKEN => row.iter().copied().max().unwrap_or(0),
        id => i64::from(id),
    };
    row.iter().position(|&id| id == end).unwrap_or(0)
}

/// The state of each row's end token.
///
/// # Shapes
/// `[batch, tokens, channels]` and `batch` positions to `[batch, channels]`
pub(crate) fn pooled(states: Tensor<3>, ends: &[usize]) -> Tensor<2> {
    let [batch, tokens, channels] = states.dims();
    let rows: Vec<i32> = (0..batch).map(|i| (i * tokens + ends[i]) as i32).collect();
    let index = Tensor::<1, Int>::from_data(rows.as_slice(), &states.device());
    states.reshape([batch * tokens, channels]).select(0, index)
}

/// A text tower as a text-to-image model uses it, with its projection where there is one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TextEncoderConfig {
    /// The tower.
    pub text: TextConfig,
    /// Dimension of the space common with images; none where the tower has no projection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub projection: Option<usize>,
}

impl TextEncoderConfig {
    /// From the `config.json` of a `CLIPTextModel`, a `CLIPTextModelWithProjection` (told by `architectures`) or a
    /// whole `CLIPModel`, as transformers writes them.
    ///
    /// # Errors
    /// [`FieldsError`] with every field that is malformed, absurdly large, or would change results and is not supported.
    pub fn from_transformers(config: &serde_json::Value) -> Result<Self, FieldsError> {
        let mut fields = Fields::new("CLIPTextModel", config);
        fields.kind("model_type", &["clip_text_model", "clip"]);
        let projection = fields.size("projection_dim", 512);
        let encoder = if is_whole_clip(&mut fields) {
            Self { text: fields.nested("text_config", TextConfig::read), projection: Some(projection) }
        } else {
            let projected = has_architecture(&mut fields, "CLIPTextModelWithProjection");
            Self { text: TextConfig::read(&mut fields), projection: projected.then_some(projection) }
        };
        fields.finish_checked(encoder, |encoder| encoder.text.validate())
    }

    /// The encoder with random weights, initialised as the CLIP reference does.
    ///
    /// # Errors
    /// As [`TextConfig::validate`].
    pub fn init(&self, init: &mut Init) -> Result<ClipTextEncoder, ConfigError> {
        let text_model = self.text.init(init)?;
        let text_projection = self.projection.map(|n| projection(init, self.text.channels, n));
        Ok(ClipTextEncoder { text_model, text_projection })
    }
}

/// The map from a tower's pooled state to the common space.
pub(crate) fn projection(init: &mut Init, inputs: usize, outputs: usize) -> Linear {
    Linear::from_parameters(init.normal([outputs, inputs], (inputs as f32).powf(-0.5)), None)
}

/// A text tower with or without projection (`CLIPTextModelWithProjection`, or `CLIPTextModel` under the keys of its
/// published checkpoints, which begin with `text_model.`).
#[derive(Module, Debug)]
pub struct ClipTextEncoder {
    /// The tower.
    pub text_model: TextModel,
    text_projection: Option<Linear>,
}

impl ClipTextEncoder {
    /// All outputs, computed with activations of type `dtype`.
    ///
    /// # Shapes
    /// `ids`: `[batch, tokens]`
    ///
    /// # Errors
    /// [`InputError`] for ids that the tower cannot take.
    pub fn forward(&self, ids: Tensor<2, Int>, dtype: DType) -> Result<TextOutput, InputError> {
        let mut output = self.text_model.forward(ids, dtype)?;
        output.text_embeds = self.text_projection.as_ref().map(|p| p.forward(output.pooler_output.clone()));
        Ok(output)
    }
}
