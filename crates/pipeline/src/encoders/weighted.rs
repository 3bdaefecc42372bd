//! Hidden states of prompts whose words have weights.

use super::{EncoderError, TextEncoder};
use crate::prompt_syntax::{Fragment, PromptSyntax, Weighted, WeightedRow, a1111, a1111_rows, compel, compel_rows};
use crate::prompts::{CutPrompt, EncodedPrompt, PromptOptions};
use burn::tensor::{Tensor, TensorData};
use calotype_models::TextStates;
use calotype_models::tokenizer::Tokens;

impl TextEncoder {
    /// The hidden states of a prompt in a syntax with weights, and what was cut from it.
    pub(super) fn encode_weighted(
        &self,
        prompt: &str,
        options: &PromptOptions,
    ) -> Result<(EncodedPrompt, Option<CutPrompt>), EncoderError> {
        let states = self.prompt_states(options);
        let wrong = |source| EncoderError::Prompt { prompt: prompt.to_owned(), source };
        match options.syntax {
            PromptSyntax::Plain | PromptSyntax::A1111 => {
                let rows = a1111_rows(self.tokenizer(), &a1111::parse(prompt).map_err(wrong)?);
                Ok((self.emphasised(&rows, states)?, None))
            }
            PromptSyntax::Compel => {
                let fragments = compel::parse(prompt).map_err(wrong)?;
                let encoded = self.blended(prompt, &fragments, states, options.long_prompts)?;
                let cut = if options.long_prompts { None } else { self.cut_of(prompt, &fragments) };
                Ok((encoded, cut))
            }
        }
    }

    /// AUTOMATIC1111's "Original" emphasis: states times their weights, then times what brings each row's mean back.
    fn emphasised(&self, rows: &[WeightedRow], states: TextStates) -> Result<EncodedPrompt, EncoderError> {
        let (mut hidden, mut pooled) = (Vec::new(), None);
        for row in rows {
            let encoding = self.encode_as(std::slice::from_ref(&row.tokens), self.wants_pooled(), states)?;
            // That of the first row stands for the whole.
            pooled = pooled.or(encoding.pooled);
            let z = encoding.states;
            if row.is_plain() {
                hidden.push(z);
                continue;
            }
            let weighted = z.clone() * column(&row.weights, &z);
            let back = z.mean() / weighted.clone().mean();
            hidden.push(weighted * back.reshape([1, 1, 1]));
        }
        Ok(EncodedPrompt { hidden_states: Tensor::cat(hidden, 1), pooled })
    }

    /// compel's: states moved away from those of an empty prompt, and blended with those in which fragments of less weight
    /// than 1 are hidden.
    fn blended(
        &self,
        prompt: &str,
        fragments: &[Fragment],
        states: TextStates,
        long: bool,
    ) -> Result<EncodedPrompt, EncoderError> {
        let Weighted { rows, without } = compel_rows(self.tokenizer(), fragments, long);
        let tokens: Vec<Tokens> = rows.iter().map(|row| row.tokens.clone()).collect();
        let plain = rows.iter().all(WeightedRow::is_plain);
        let empty = match plain {
            true => None,
            false => Some(self.encode_as(&[self.tokenizer().encode("")], false, states)?.states),
        };
        let moved = |z: Tensor<3>| match &empty {
            None => z,
            Some(empty) => moved_from(empty, &rows, z),
        };
        let mut sum = moved(self.encode_as(&tokens, false, states)?.states);
        let mut shares = 1.0;
        for (share, hidden) in &without {
            sum = sum + moved(self.encode_without(&tokens, hidden, states)?).mul_scalar(*share);
            shares += share;
        }
        let [count, length, channels] = sum.dims();
        let hidden_states = sum.div_scalar(shares).reshape([1, count * length, channels]);
        // compel takes the pooled state of the text as it was written, signs and all.
        let pooled = match self.wants_pooled() {
            true => self.encode_as(&[self.tokenizer().encode(prompt)], true, states)?.pooled,
            false => None,
        };
        Ok(EncodedPrompt { hidden_states, pooled })
    }

    /// What does not fit into one row of a prompt without its syntax.
    fn cut_of(&self, prompt: &str, fragments: &[Fragment]) -> Option<CutPrompt> {
        let texts: Vec<&str> = fragments.iter().map(|fragment| fragment.text.as_str()).collect();
        let row = self.tokenizer().encode(&texts.join(" "));
        (row.truncated > 0).then(|| CutPrompt { prompt: prompt.to_owned(), tokens: row.truncated, lost: row.lost })
    }
}

/// `empty + (z - empty) * weight` where a weight is not 1.
///
/// # Shapes
/// `empty`: `[1, tokens, channels]`, `z`: `[rows, tokens, channels]`, to the same
fn moved_from(empty: &Tensor<3>, rows: &[WeightedRow], z: Tensor<3>) -> Tensor<3> {
    let moved: Vec<Tensor<3>> = rows
        .iter()
        .enumerate()
        .map(|(number, row)| {
            let own = z.clone().narrow(0, number, 1);
            let more: Vec<f32> = row.weights.iter().map(|weight| weight - 1.0).collect();
            // The same sum, in which a weight of 1 changes no bit.
            own.clone() + (own.clone() - empty.clone()) * column(&more, &own)
        })
        .collect();
    Tensor::cat(moved, 0)
}

/// Numbers of tokens as `[1, tokens, 1]`.
fn column(values: &[f32], like: &Tensor<3>) -> Tensor<3> {
    Tensor::from_data(TensorData::new(values.to_vec(), [1, values.len(), 1]), &like.device())
}
