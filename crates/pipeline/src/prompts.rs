//! From prompts to the hidden states that condition a UNet.

use crate::error::PipelineError;
use crate::prompt_syntax::PromptSyntax;
use crate::request::Request;
use burn::tensor::Tensor;
use calotype_models::AddedConditions;
use std::collections::BTreeMap;

/// Options of encoding prompts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PromptOptions {
    /// Layers of the text encoders that are left out besides those that the family leaves out.
    pub clip_skip: usize,
    /// Encode prompts of any length, in rows of 75 tokens whose hidden states are joined, instead of cutting them.
    pub long_prompts: bool,
    /// What brackets and signs mean; prompts in [`PromptSyntax::A1111`] are never cut.
    pub syntax: PromptSyntax,
}

/// The hidden states that condition the UNet on one prompt.
#[derive(Clone, Debug)]
pub struct EncodedPrompt {
    /// Hidden states of the prompt, `[1, tokens, channels]`, `f32`.
    pub hidden_states: Tensor<3>,
    /// The projected state of the whole prompt, `[1, channels]`, `f32`; SDXL's second encoder has one.
    pub pooled: Option<Tensor<2>>,
}

impl EncodedPrompt {
    /// All zeros, of the same shape: what SDXL takes for an empty prompt.
    pub fn zeros(&self) -> Self {
        let pooled = self.pooled.as_ref().map(Tensor::zeros_like);
        Self { hidden_states: self.hidden_states.zeros_like(), pooled }
    }

    /// Tokens of the hidden states.
    pub fn tokens(&self) -> usize {
        self.hidden_states.dims()[1]
    }

    /// The same with the hidden states of an empty prompt behind it until it has `tokens`.
    pub fn padded(&self, empty: &Self, tokens: usize) -> Self {
        let missing = tokens.saturating_sub(self.tokens()).div_ceil(empty.tokens().max(1));
        let mut parts = vec![self.hidden_states.clone()];
        parts.extend(std::iter::repeat_n(empty.hidden_states.clone(), missing));
        Self { hidden_states: Tensor::cat(parts, 1), pooled: self.pooled.clone() }
    }

    /// Its channels in front of those of another encoder, whose pooled state goes before.
    pub(crate) fn beside(self, other: Self) -> Self {
        Self {
            hidden_states: Tensor::cat(vec![self.hidden_states, other.hidden_states], 2),
            pooled: other.pooled.or(self.pooled),
        }
    }

    /// The hidden states of several images, `[images, tokens, channels]`; all have as many tokens.
    pub(crate) fn batch(all: &[Self]) -> Tensor<3> {
        Tensor::cat(all.iter().map(|prompt| prompt.hidden_states.clone()).collect(), 0)
    }

    /// The added conditions of several images, with the same numbers for each; none if they have no pooled states.
    pub(crate) fn added(all: &[Self], numbers: &[f32]) -> Option<AddedConditions> {
        let pooled: Option<Vec<_>> = all.iter().map(|prompt| prompt.pooled.clone()).collect();
        let text_embeds = Tensor::cat(pooled?, 0);
        Some(AddedConditions { text_embeds, time_ids: numbers.repeat(all.len()) })
    }
}

/// A prompt that was longer than a text encoder's context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CutPrompt {
    /// The prompt.
    pub prompt: String,
    /// Tokens that were left out.
    pub tokens: usize,
    /// Their text.
    pub lost: String,
}

/// Prompts by their text, with the empty one.
#[derive(Clone, Debug)]
pub struct EncodedPrompts {
    pub(crate) by_text: BTreeMap<String, EncodedPrompt>,
    pub(crate) empty: EncodedPrompt,
    /// Prompts of which the end was left out.
    pub cut: Vec<CutPrompt>,
    /// True if zeros stand for a negative prompt that is not given.
    pub(crate) zeros_for_no_negative: bool,
}

impl EncodedPrompts {
    /// A prompt, if it was encoded.
    pub fn get(&self, prompt: &str) -> Option<&EncodedPrompt> {
        if prompt.is_empty() { Some(&self.empty) } else { self.by_text.get(prompt) }
    }

    /// The conditions of a request with and without its prompt, padded to as many tokens.
    ///
    /// # Errors
    /// [`PipelineError::Setting`] for a prompt that was not encoded.
    pub(crate) fn of(&self, request: &Request) -> Result<[EncodedPrompt; 2], PipelineError> {
        let find = |prompt: &str| {
            let missing = || PipelineError::setting(format!("the prompt `{prompt}` was not encoded"));
            self.get(prompt).ok_or_else(missing)
        };
        let with = find(&request.prompt)?;
        let without = match &request.negative {
            None if self.zeros_for_no_negative => &self.empty.zeros(),
            None => &self.empty,
            Some(negative) => find(negative)?,
        };
        let tokens = with.tokens().max(without.tokens());
        Ok([with, without].map(|prompt| prompt.padded(&self.empty, tokens)))
    }
}
