//! Weights of words in prompts, in the syntaxes of AUTOMATIC1111's web interface and of the compel library.
//!
//! A syntax is parsed into [`Fragment`]s (by files that need no other of this crate, for `fuzz/`), these are put into rows of tokens with a weight each, and
//! [`TextEncoder`](crate::encoders::TextEncoder) changes the hidden states by them: the images of the reference
//! implementations, which say different things by the same number.

pub mod a1111;
pub mod compel;
mod fragment;
mod rows;
pub mod unread;

pub use fragment::{Fragment, SyntaxError};
pub(crate) use rows::{Weighted, a1111_rows, compel_rows};

use calotype_core::names;
use calotype_models::tokenizer::Tokens;

names! {
    /// What brackets and signs in a prompt mean.
    #[derive(Default)]
    PromptSyntax, "prompt syntax" {
        /// Themselves.
        #[default]
        Plain = "plain",
        /// Weights as in AUTOMATIC1111's web interface: `(word)`, `(word:1.2)`, `[word]`, `BREAK`.
        A1111 = "a1111",
        /// Weights as in compel: `word++`, `(some words)1.2`, `word--`.
        Compel = "compel",
    }
}

/// A row of tokens, and how much each of them weighs.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightedRow {
    /// The tokens.
    pub tokens: Tokens,
    /// A weight for each id; start, end and padding have 1.
    pub weights: Vec<f32>,
}

impl WeightedRow {
    /// Whether every token has weight 1.
    pub fn is_plain(&self) -> bool {
        self.weights.iter().all(|weight| *weight == 1.0)
    }
}
