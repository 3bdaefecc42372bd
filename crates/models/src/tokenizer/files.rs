//! A CLIP tokenizer as the files that transformers and diffusers read.

use super::vocabulary::Vocabulary;
use super::{Cleaning, END, Padding, START, TokenizerOptions};
use serde_json::{Value, json};

/// Options or lengths for which transformers has no CLIP tokenizer.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("tokenizer option `{option}`: {problem}")]
pub struct TokenizerExportError {
    /// The option.
    pub option: &'static str,
    /// The reason, and the options that can be written.
    pub problem: String,
}

/// Names and texts of the files of a tokenizer with CLIP's own vocabulary, for prompts of `context_length` tokens
/// (start and end included): `vocab.json`, `merges.txt`, `tokenizer_config.json` and `special_tokens_map.json`.
///
/// transformers' `CLIPTokenizer` makes the same ids of them as [`super::ClipTokenizer`] with these options.
///
/// # Errors
/// [`TokenizerExportError`] naming `cleaning` if it is not [`Cleaning::Transformers`], `padding` if it is
/// [`Padding::Zero`], which is no token of its own there, and `context_length` below 3.
pub fn clip_files(
    options: TokenizerOptions,
    context_length: usize,
) -> Result<Vec<(&'static str, String)>, TokenizerExportError> {
    let refuse = |option, problem: String| Err(TokenizerExportError { option, problem });
    if options.cleaning != Cleaning::Transformers {
        let problem =
            format!("{:?} is not what transformers does; only its own cleaning can be written", options.cleaning);
        return refuse("cleaning", problem);
    }
    if context_length < 3 {
        return refuse("context_length", format!("{context_length} leaves no room for start, one token and end"));
    }
    let padding = match options.padding {
        Padding::EndOfText => END,
        Padding::Exclamation => "!",
        Padding::Zero => {
            let problem = "id 0 is the token `!` there, which is special then: choose exclamation or end-of-text";
            return refuse("padding", problem.into());
        }
    };
    let tokens = Vocabulary::clip_tokens();
    let vocabulary: serde_json::Map<String, Value> =
        tokens.iter().zip(0u32..).map(|(token, id)| (token.clone(), id.into())).collect();
    let merges: Vec<String> = Vocabulary::clip_merges().map(|[a, b]| format!("{} {}", tokens[a], tokens[b])).collect();
    // In the files of CLIP's original, markers are normalised and padding is not.
    let special = |token: &str| json!({ "content": token, "lstrip": false, "normalized": token != "!", "rstrip": false, "single_word": false });
    let map = json!({
        "bos_token": special(START), "eos_token": special(END), "pad_token": padding, "unk_token": special(END),
    });
    let config = json!({
        "add_prefix_space": false,
        "bos_token": START,
        "do_lower_case": true,
        "eos_token": END,
        "errors": "replace",
        "model_max_length": context_length,
        "pad_token": padding,
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": END,
    });
    Ok(vec![
        ("vocab.json", Value::Object(vocabulary).to_string()),
        ("merges.txt", format!("#version: 0.2\n{}\n", merges.join("\n"))),
        ("tokenizer_config.json", format!("{config:#}\n")),
        ("special_tokens_map.json", format!("{map:#}\n")),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ClipTokenizer;

    #[test]
    fn written_files_are_the_embedded_tokenizer() {
        let folder = tempfile::tempdir().unwrap();
        for (options, length) in
            [(TokenizerOptions::TRANSFORMERS, 77), (TokenizerOptions::TRANSFORMERS_EXCLAMATION, 24)]
        {
            for (name, text) in clip_files(options, length).unwrap() {
                std::fs::write(folder.path().join(name), text).unwrap();
            }
            let read = ClipTokenizer::from_folder(folder.path()).unwrap();
            assert_eq!((read.options(), read.context_length()), (options, length));
            let own = ClipTokenizer::with_options(length, options);
            for prompt in
                ["", "A photo of a Cat!!", "naïve café — 12345 🏳️‍🌈", "<|endoftext|> it's", "donaudampfschifffahrt"]
            {
                assert_eq!(read.encode(prompt), own.encode(prompt), "{prompt}");
            }
        }
    }

    #[test]
    fn what_transformers_has_not_is_named() {
        let option = |options, length| clip_files(options, length).unwrap_err().option;
        assert_eq!(option(TokenizerOptions::OPEN_CLIP, 77), "cleaning");
        let zero = TokenizerOptions { padding: Padding::Zero, ..TokenizerOptions::TRANSFORMERS };
        assert_eq!(option(zero, 77), "padding");
        assert_eq!(option(TokenizerOptions::TRANSFORMERS, 2), "context_length");
    }
}
