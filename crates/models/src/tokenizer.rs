//! The byte-pair tokenizer of CLIP.

use instant_clip_tokenizer::{Token, Tokenizer};

/// Turns prompts into token ids: start, text, end, padding.
pub struct ClipTokenizer {
    tokenizer: Tokenizer,
    context_length: usize,
}

impl std::fmt::Debug for ClipTokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClipTokenizer").field("context_length", &self.context_length).finish_non_exhaustive()
    }
}

/// One prompt as the text tower takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// `context_length` ids; after the end token, padding.
    pub ids: Vec<i32>,
    /// Position of the end token.
    pub end: usize,
    /// How many tokens of the text did not fit and were left out.
    pub truncated: usize,
}

impl ClipTokenizer {
    /// Padding is id 0, as OpenCLIP pads.
    pub const PAD: i32 = 0;

    /// `context_length` counts the start and end tokens.
    pub fn new(context_length: usize) -> Self {
        Self { tokenizer: Tokenizer::new(), context_length }
    }

    /// Ids in every row.
    pub fn context_length(&self) -> usize {
        self.context_length
    }

    /// Encodes one prompt; text over the context length is cut and counted in
    /// [`Tokens::truncated`].
    pub fn encode(&self, text: &str) -> Tokens {
        let mut tokens = vec![self.tokenizer.start_of_text()];
        self.tokenizer.encode(text, &mut tokens);
        let room = self.context_length - 1;
        let truncated = tokens.len().saturating_sub(room);
        tokens.truncate(room);
        tokens.push(self.tokenizer.end_of_text());
        let end = tokens.len() - 1;
        let mut ids: Vec<i32> = tokens.into_iter().map(|t: Token| i32::from(t.to_u16())).collect();
        ids.resize(self.context_length, Self::PAD);
        Tokens { ids, end, truncated }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Golden ids from open_clip 3.3.0: `open_clip.tokenize(text)[0]`.
    #[test]
    fn encodes_like_open_clip() {
        let tokens = ClipTokenizer::new(8).encode("a photo of a cat");
        assert_eq!(tokens.ids, [49406, 320, 1125, 539, 320, 2368, 49407, 0]);
        assert_eq!((tokens.end, tokens.truncated), (6, 0));
    }

    #[test]
    fn reports_what_does_not_fit() {
        let tokens = ClipTokenizer::new(5).encode("a photo of a cat");
        assert_eq!(tokens.ids, [49406, 320, 1125, 539, 49407]);
        assert_eq!((tokens.end, tokens.truncated), (4, 2));
    }

    #[test]
    fn empty_prompt_is_start_and_end() {
        let tokens = ClipTokenizer::new(4).encode("");
        assert_eq!(tokens.ids, [49406, 49407, 0, 0]);
    }
}
