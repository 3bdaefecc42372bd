//! From prompts to the states that condition a UNet.

use crate::loading::{LoadError, Loader};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use calotype_models::tokenizer::{ClipTokenizer, TokenizerError, TokenizerOptions, Tokens};
use calotype_models::{AddedConditions, ClipTextEncoder};
use calotype_models::{InputError, TextOutput, TextStates};
use calotype_weights::layout::{Checkpoint, Component, Family};
use std::collections::BTreeMap;

/// Prompts that the text encoders cannot take.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// A text encoder could not be loaded.
    #[error(transparent)]
    Load(Box<LoadError>),
    /// The checkpoint's own tokenizer cannot be used.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The tokenizer does not fit the text encoder.
    #[error("{component}: {source}; the tokenizer does not belong to this text encoder")]
    Encoder {
        /// The text encoder.
        component: Component,
        /// What does not fit.
        source: InputError,
    },
}

impl From<LoadError> for PromptError {
    fn from(error: LoadError) -> Self {
        Self::Load(Box::new(error))
    }
}

/// What a UNet is told about one picture.
#[derive(Clone, Debug)]
pub struct Conditioning {
    /// States of the prompt, `[1, tokens, channels]`, `f32`.
    pub states: Tensor<3>,
    /// The projected state of the whole prompt, `[1, channels]`, `f32`; SDXL's second encoder has one.
    pub pooled: Option<Tensor<2>>,
}

impl Conditioning {
    /// All zeros, of the same shape: what SDXL takes for an empty prompt.
    pub fn zeros(&self) -> Self {
        Self { states: self.states.zeros_like(), pooled: self.pooled.as_ref().map(Tensor::zeros_like) }
    }

    /// Tokens of the states.
    pub fn tokens(&self) -> usize {
        self.states.dims()[1]
    }

    /// The same with the states of an empty prompt behind it until it has `tokens`.
    pub fn padded(&self, empty: &Self, tokens: usize) -> Self {
        let missing = tokens.saturating_sub(self.tokens()).div_ceil(empty.tokens().max(1));
        let mut parts = vec![self.states.clone()];
        parts.extend(std::iter::repeat_n(empty.states.clone(), missing));
        Self { states: Tensor::cat(parts, 1), pooled: self.pooled.clone() }
    }

    /// The states of several pictures, `[pictures, tokens, channels]`; all have as many tokens.
    pub fn batch(all: &[Self]) -> Tensor<3> {
        Tensor::cat(all.iter().map(|c| c.states.clone()).collect(), 0)
    }

    /// The added conditions of several pictures, with the same numbers for each; none if they have no pooled states.
    pub fn added(all: &[Self], numbers: &[f32]) -> Option<AddedConditions> {
        let pooled: Option<Vec<_>> = all.iter().map(|c| c.pooled.clone()).collect();
        let text_embeds = Tensor::cat(pooled?, 0);
        Some(AddedConditions { text_embeds, time_ids: numbers.repeat(all.len()) })
    }
}

/// A prompt that was longer than a text encoder's context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlong {
    /// The prompt.
    pub prompt: String,
    /// Tokens that were left out.
    pub tokens: usize,
    /// Their text.
    pub lost: String,
}

/// How prompts are encoded.
#[derive(Clone, Copy, Debug)]
pub struct PromptOptions {
    /// Layers of the text encoders that are left out besides those that the family leaves out.
    pub clip_skip: usize,
    /// Encode prompts of any length, in rows of 75 tokens whose states are joined, instead of cutting them.
    pub chunked: bool,
    /// Type of the activations.
    pub dtype: DType,
}

/// Encodes every prompt once, in batches, with all text encoders of a checkpoint; the encoders are dropped afterwards.
///
/// # Errors
/// [`PromptError`].
pub fn encode_prompts(
    loader: &Loader,
    prompts: &[&str],
    options: &PromptOptions,
) -> Result<(BTreeMap<String, Conditioning>, Vec<Overlong>), PromptError> {
    let checkpoint = loader.checkpoint;
    let mut encoded: BTreeMap<String, Conditioning> = BTreeMap::new();
    let mut overlong = Vec::new();
    let mut unique: Vec<&str> = prompts.to_vec();
    unique.sort_unstable();
    unique.dedup();
    let held = checkpoint.components();
    let towers: Vec<Component> =
        [Component::TextEncoder, Component::TextEncoder2].into_iter().filter(|c| held.contains(c)).collect();
    // Without any, the first one is asked for, whose error says what there is.
    let towers = if towers.is_empty() { vec![Component::TextEncoder] } else { towers };
    for component in towers {
        let tokenizer = tokenizer(checkpoint, component)?;
        let (_, encoder) = loader.text_encoder(component)?;
        let tower = Tower { component, tokenizer, encoder, which: conditioning_states(checkpoint, options.clip_skip) };
        for (prompt, (here, cut)) in unique.iter().zip(tower.encode(&unique, options, loader.device)?) {
            overlong.extend(cut.filter(|new: &Overlong| !overlong.iter().any(|o: &Overlong| o.prompt == new.prompt)));
            let joined = match encoded.remove(*prompt) {
                None => here,
                Some(before) => Conditioning {
                    states: Tensor::cat(vec![before.states, here.states], 2),
                    pooled: here.pooled.or(before.pooled),
                },
            };
            encoded.insert((*prompt).to_owned(), joined);
        }
    }
    Ok((encoded, overlong))
}

/// A text encoder with what belongs to it.
struct Tower {
    component: Component,
    tokenizer: ClipTokenizer,
    encoder: ClipTextEncoder,
    which: TextStates,
}

/// Most rows of tokens that are encoded at once.
const ROWS: usize = 16;

impl Tower {
    /// What each prompt becomes, and what was cut from it.
    fn encode(
        &self,
        prompts: &[&str],
        options: &PromptOptions,
        device: &Device,
    ) -> Result<Vec<(Conditioning, Option<Overlong>)>, PromptError> {
        let rows_of = |prompt: &&str| match options.chunked {
            true => self.tokenizer.chunks(prompt),
            false => vec![self.tokenizer.encode(prompt)],
        };
        let rows: Vec<Vec<Tokens>> = prompts.iter().map(rows_of).collect();
        let (mut states, mut pooled) = (Vec::new(), Vec::new());
        for some in rows.concat().chunks(ROWS) {
            let (of_rows, of_ends) = self.states(some, options.dtype, device)?;
            states.push(of_rows.cast(DType::F32));
            pooled.extend(of_ends);
        }
        let states = Tensor::cat(states, 0);
        let pooled = (!pooled.is_empty()).then(|| Tensor::cat(pooled, 0));
        let [_, tokens, channels] = states.dims();
        let mut first = 0;
        let of_prompt = |(prompt, rows): (&&str, &Vec<Tokens>)| {
            let here = states.clone().narrow(0, first, rows.len()).reshape([1, rows.len() * tokens, channels]);
            let pooled = pooled.clone().map(|pooled| pooled.narrow(0, first, 1));
            first += rows.len();
            let cut = rows.iter().find(|row| row.truncated > 0).map(|row| Overlong {
                prompt: (*prompt).to_owned(),
                tokens: row.truncated,
                lost: row.lost.clone(),
            });
            (Conditioning { states: here, pooled }, cut)
        };
        Ok(prompts.iter().zip(&rows).map(of_prompt).collect())
    }

    /// States and, where the encoder has a projection, the pooled states of rows of tokens.
    fn states(
        &self,
        rows: &[Tokens],
        dtype: DType,
        device: &Device,
    ) -> Result<(Tensor<3>, Option<Tensor<2>>), PromptError> {
        let ids: Vec<i32> = rows.iter().flat_map(|row| row.ids.iter().copied()).collect();
        let ids = TensorData::new(ids, [rows.len(), self.tokenizer.context_length()]);
        let ids = Tensor::<2, Int>::from_data(ids, device);
        let misfit = |source| PromptError::Encoder { component: self.component, source };
        if self.which.final_norm {
            let states = self.encoder.text_model.conditioning(ids, dtype, self.which).map_err(misfit)?;
            return Ok((states, None));
        }
        let TextOutput { mut hidden_states, text_embeds, .. } = self.encoder.forward(ids, dtype).map_err(misfit)?;
        let layers = hidden_states.len() - 1;
        if self.which.skip > layers {
            return Err(misfit(InputError::Skip { skip: self.which.skip, layers }));
        }
        let pooled = text_embeds.map(|pooled| pooled.cast(DType::F32));
        Ok((hidden_states.swap_remove(layers - self.which.skip), pooled))
    }
}

/// Which states condition the UNet: diffusers' choice for the family, without `clip_skip` layers more.
pub fn conditioning_states(checkpoint: &Checkpoint, clip_skip: usize) -> TextStates {
    let base =
        if checkpoint.family().is_some_and(Family::is_sdxl) { TextStates::PENULTIMATE } else { TextStates::LAST };
    TextStates { skip: base.skip + clip_skip, ..base }
}

/// The checkpoint's own tokenizer, or the one that its family was trained with.
///
/// # Errors
/// Its own is there and cannot be used.
pub fn tokenizer(checkpoint: &Checkpoint, component: Component) -> Result<ClipTokenizer, TokenizerError> {
    let folder = if component == Component::TextEncoder2 { "tokenizer_2" } else { "tokenizer" };
    let own = checkpoint.path().join(folder);
    if own.join("vocab.json").is_file() {
        return ClipTokenizer::from_folder(&own);
    }
    let exclamation = component == Component::TextEncoder2 || checkpoint.family().is_some_and(Family::is_sd2);
    let options = if exclamation { TokenizerOptions::TRANSFORMERS_EXCLAMATION } else { TokenizerOptions::TRANSFORMERS };
    Ok(ClipTokenizer::with_options(77, options))
}
