//! The byte-pair tokenizer of CLIP, exact against open_clip and transformers.

mod added;
mod cleaning;
mod files;
mod vocabulary;

pub use files::{TokenizerExportError, clip_files};

use added::AddedToken;
use regex::Regex;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use vocabulary::Vocabulary;

/// Start of text, as transformers' vocabularies spell it.
const START: &str = "<|startoftext|>";
/// End of text, as transformers' vocabularies spell it.
const END: &str = "<|endoftext|>";

/// Words of open_clip: markers, English endings, runs of letters, single digits, runs of anything else.
static OPEN_CLIP_WORD: LazyLock<Regex> = LazyLock::new(|| {
    let pattern = r"(?i)<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+";
    Regex::new(pattern).expect("the pattern is valid")
});

/// Words of transformers: the same without ignoring case; what looks like a marker, but is none, is three words.
static TRANSFORMERS_WORD: LazyLock<Regex> = LazyLock::new(|| {
    let pattern = r"(<\|)((?:start|end)oftext)(\|>)|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+";
    Regex::new(pattern).expect("the pattern is valid")
});

/// The token that fills a row behind the end of the text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Padding {
    /// Id 0, as open_clip pads.
    #[default]
    Zero,
    /// The end of text again, as transformers pads for Stable Diffusion 1 and the first encoder of SDXL.
    EndOfText,
    /// The token `!`, as transformers pads for Stable Diffusion 2 and the second encoder of SDXL. There it is a special
    /// token: with [`Cleaning::Transformers`], every `!` of a prompt becomes one token of this id, `!!!` three.
    Exclamation,
}

/// The cleaning of a prompt before it is cut into words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cleaning {
    /// Lower case and nothing else.
    #[default]
    Lowercase,
    /// open_clip's: repair of broken text (the library ftfy), HTML entities, white space, lower case. Of ftfy's repairs
    /// of wrongly decoded text, those of whole lines of UTF-8 read as Latin-1 or Windows-1252 are made.
    OpenClip,
    /// transformers' (of its fast tokenizer, the only one since version 5): composed characters (NFC), single blanks, lower
    /// case.
    Transformers,
}

/// The differences between tokenizers with the same vocabulary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TokenizerOptions {
    /// The filling of the row behind the text.
    pub padding: Padding,
    /// The cleaning that comes first.
    pub cleaning: Cleaning,
}

impl TokenizerOptions {
    /// `open_clip.get_tokenizer`'s.
    pub const OPEN_CLIP: Self = Self { padding: Padding::Zero, cleaning: Cleaning::OpenClip };
    /// `transformers.CLIPTokenizer`'s, padding with the end of text: Stable Diffusion 1, first encoder of SDXL.
    pub const TRANSFORMERS: Self = Self { padding: Padding::EndOfText, cleaning: Cleaning::Transformers };
    /// `transformers.CLIPTokenizer`'s, padding with `!`: Stable Diffusion 2, second encoder of SDXL.
    pub const TRANSFORMERS_EXCLAMATION: Self = Self { padding: Padding::Exclamation, cleaning: Cleaning::Transformers };
}

/// A tokenizer's files that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A file cannot be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A file is not JSON of the right form.
    #[error("{}: not the JSON of a tokenizer: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The place and the reason.
        source: serde_json::Error,
    },
    /// A folder without a vocabulary.
    #[error("{}: there is neither vocab.json with merges.txt nor tokenizer.json", path.display())]
    NoVocabulary {
        /// The folder.
        path: PathBuf,
    },
    /// The vocabulary lacks a token that every CLIP vocabulary has.
    #[error("{}: there is no token {token:?}; is this the vocabulary of a CLIP tokenizer?", path.display())]
    MissingToken {
        /// The vocabulary.
        path: PathBuf,
        /// The token.
        token: String,
    },
    /// A line of the merges is none.
    #[error("{}, line {line}: {problem}", path.display())]
    BadMerge {
        /// The file of merges.
        path: PathBuf,
        /// Number of the line, from 1.
        line: usize,
        /// The fault.
        problem: String,
    },
    /// The folder's tokenizer pads in a way that no CLIP model is known to.
    #[error("{}: pads with {token:?}; known are {END:?} and \"!\"", path.display())]
    UnknownPadding {
        /// The file that says so.
        path: PathBuf,
        /// The token.
        token: String,
    },
    /// A `tokenizer.json` of another kind of tokenizer.
    #[error("{}: {problem}; CLIP's byte-pair encoding is the only one that is read", path.display())]
    NotClip {
        /// The file.
        path: PathBuf,
        /// What is not CLIP's.
        problem: String,
    },
    /// An added token that is none.
    #[error("{}: the added token {token} {problem}", path.display())]
    AddedToken {
        /// The file.
        path: PathBuf,
        /// The token, as JSON.
        token: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A word that the tokenizer has as an added token already.
    #[error("`{word}` is an added token of the tokenizer already; choose another word for the embedding (FILE=WORD)")]
    WordTaken {
        /// The word.
        word: String,
    },
    /// Rows without room for a start, a token and an end.
    #[error("{}: {length} tokens are too few for a row; at least 3 are needed", path.display())]
    ShortRows {
        /// The file that says so.
        path: PathBuf,
        /// Tokens in a row.
        length: usize,
    },
}

/// Turns prompts into token ids: start, text, end, padding.
pub struct ClipTokenizer {
    vocabulary: Vocabulary,
    options: TokenizerOptions,
    context_length: usize,
    /// Tokens that are found before the prompt is cut into words. Only [`Cleaning::Transformers`] looks for them.
    added: Vec<AddedToken>,
}

impl std::fmt::Debug for ClipTokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { options, context_length, .. } = self;
        f.debug_struct("ClipTokenizer")
            .field("options", options)
            .field("context_length", context_length)
            .finish_non_exhaustive()
    }
}

/// One prompt as the text tower takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// `context_length` ids; after the end token, padding.
    pub ids: Vec<i32>,
    /// Position of the end token.
    pub end: usize,
    /// Number of the text's tokens that did not fit and were left out.
    pub truncated: usize,
    /// The cleaned text of the tokens left out; empty if all fit.
    pub lost: String,
}

/// A token of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextToken {
    /// Its id.
    pub id: i32,
    /// Whether a word ends with it.
    pub ends_word: bool,
}

/// The tokens of a text without start, end and padding.
struct Encoded {
    /// The text after cleaning, which the tokens point into.
    text: String,
    tokens: Vec<Token>,
}

struct Token {
    id: i32,
    /// The beginning of the token in the cleaned text.
    at: usize,
    /// True if a word begins with it.
    begins_word: bool,
}

/// A stretch of the cleaned text that is encoded by itself.
struct Word {
    range: Range<usize>,
    /// The tokens, if the word is a marker or an added token and no text.
    marker: Option<Vec<i32>>,
}

impl ClipTokenizer {
    /// Tokens of CLIP's own vocabulary.
    pub const VOCABULARY: usize = 49_408;

    /// CLIP's vocabulary, [`Cleaning::Lowercase`] and [`Padding::Zero`]. `context_length`, at least 3, counts the start
    /// and end tokens.
    pub fn new(context_length: usize) -> Self {
        Self::with_options(context_length, TokenizerOptions::default())
    }

    /// CLIP's vocabulary with other options.
    pub fn with_options(context_length: usize, options: TokenizerOptions) -> Self {
        Self::new_with(Vocabulary::clip(), options, context_length, Vec::new())
    }

    /// With the markers, and `!` where it is special, among the added tokens, unless `added` describes them.
    fn new_with(
        vocabulary: Vocabulary,
        options: TokenizerOptions,
        context_length: usize,
        mut added: Vec<AddedToken>,
    ) -> Self {
        let exclamation = (options.padding == Padding::Exclamation).then(|| ("!", vocabulary.inner_id(b'!')));
        for (content, id) in [(START, vocabulary.start), (END, vocabulary.end)].into_iter().chain(exclamation) {
            if !added.iter().any(|token| token.is(content)) {
                added.push(AddedToken::special(content, id));
            }
        }
        Self { vocabulary, options, context_length, added }
    }

    /// Adds a word that stands for several ids, as learned embeddings are: it is found wherever the cleaned prompt holds it,
    /// and a row is never cut inside of it by [`chunks`](Self::chunks).
    ///
    /// # Errors
    /// [`TokenizerError::WordTaken`] if there is an added token of that text.
    pub fn add_word(&mut self, word: &str, ids: Vec<i32>) -> Result<(), TokenizerError> {
        if self.added.iter().any(|token| token.is(word)) {
            return Err(TokenizerError::WordTaken { word: word.into() });
        }
        self.added.push(AddedToken::word(word, ids));
        Ok(())
    }

    /// A vocabulary of transformers' two files, `vocab.json` and `merges.txt`. Bytes that it lacks become the end of
    /// text, which is the unknown token there.
    ///
    /// # Errors
    /// A file cannot be read, or is not what its name says.
    pub fn from_files(
        vocab: &Path,
        merges: &Path,
        context_length: usize,
        options: TokenizerOptions,
    ) -> Result<Self, TokenizerError> {
        let vocabulary = Vocabulary::parse((vocab, &read(vocab)?), (merges, &read(merges)?))?;
        Ok(Self::new_with(vocabulary, options, context_length, Vec::new()))
    }

    /// The tokenizer of a checkpoint in diffusers' layout (`tokenizer/`, `tokenizer_2/`): vocabulary and merges (of
    /// `vocab.json` and `merges.txt`, or of `tokenizer.json`), added tokens (of these, `tokenizer_config.json` and
    /// `added_tokens.json`), and from `tokenizer_config.json` and `special_tokens_map.json`, as far as they are there,
    /// padding and context length (else 77). Cleaning is transformers'.
    ///
    /// # Errors
    /// A file cannot be read or is not what its name says; the padding is not one of CLIP's.
    pub fn from_folder(folder: &Path) -> Result<Self, TokenizerError> {
        let text = |name: &str| folder.join(name).exists().then(|| read(&folder.join(name))).transpose();
        let texts = TokenizerTexts::NAMES.map(text);
        let [vocab, merges, tokenizer, config, special_tokens, added_tokens] = texts;
        Self::from_texts(&TokenizerTexts {
            folder: folder.to_owned(),
            vocab: vocab?.as_deref(),
            merges: merges?.as_deref(),
            tokenizer: tokenizer?.as_deref(),
            config: config?.as_deref(),
            special_tokens: special_tokens?.as_deref(),
            added_tokens: added_tokens?.as_deref(),
        })
    }

    /// As [`from_folder`](Self::from_folder), of files that are in memory.
    ///
    /// # Errors
    /// A text is not what its file's name says; the padding is not one of CLIP's.
    pub fn from_texts(texts: &TokenizerTexts<'_>) -> Result<Self, TokenizerError> {
        if !texts.has_vocabulary() {
            return Err(TokenizerError::NoVocabulary { path: texts.folder.clone() });
        }
        Self::from_texts_or(texts, TokenizerOptions::TRANSFORMERS, 77)
    }

    /// As [`from_texts`](Self::from_texts); what the files do not say is CLIP's vocabulary, the padding of `usual` and
    /// `context_length`.
    ///
    /// # Errors
    /// As of [`from_texts`](Self::from_texts), but for files without a vocabulary.
    pub fn from_texts_or(
        texts: &TokenizerTexts<'_>,
        usual: TokenizerOptions,
        context_length: usize,
    ) -> Result<Self, TokenizerError> {
        let settings = FolderSettings::read(texts)?;
        let padding = settings.padding.unwrap_or(usual.padding);
        let options = TokenizerOptions { padding, cleaning: Cleaning::Transformers };
        let at = |name: &str| texts.folder.join(name);
        let vocabulary = match (texts.vocab, texts.merges, texts.tokenizer) {
            (Some(vocab), Some(merges), _) => {
                Vocabulary::parse((&at("vocab.json"), vocab), (&at("merges.txt"), merges))?
            }
            (_, _, Some(tokenizer)) => Vocabulary::parse_tokenizer(&at("tokenizer.json"), tokenizer)?,
            _ => Vocabulary::clip(),
        };
        let length = settings.context_length.unwrap_or(context_length);
        Ok(Self::new_with(vocabulary, options, length, added::read(texts)?))
    }

    /// Ids in every row.
    pub fn context_length(&self) -> usize {
        self.context_length
    }

    /// The options it was made with.
    pub fn options(&self) -> TokenizerOptions {
        self.options
    }

    /// The id that fills rows.
    pub fn padding_id(&self) -> i32 {
        match self.options.padding {
            Padding::Zero => 0,
            Padding::EndOfText => self.vocabulary.end,
            Padding::Exclamation => self.vocabulary.inner_id(b'!'),
        }
    }

    /// Encodes one prompt; text over the context length is cut, counted in [`Tokens::truncated`] and kept in
    /// [`Tokens::lost`].
    pub fn encode(&self, prompt: &str) -> Tokens {
        let Encoded { text, tokens } = self.encode_text(prompt);
        let kept = tokens.len().min(self.room());
        let lost = tokens.get(kept).map_or("", |first| &text[text.floor_char_boundary(first.at)..]);
        Tokens { truncated: tokens.len() - kept, lost: lost.into(), ..self.frame(&tokens[..kept]) }
    }

    /// Encodes a prompt of any length as one row or more, each with start, end and padding, as web interfaces do. All
    /// tokens are kept in their order. A row ends at the end of a word; only a word that fills more than a row is
    /// divided.
    pub fn chunks(&self, prompt: &str) -> Vec<Tokens> {
        let tokens = self.encode_text(prompt).tokens;
        let (mut rows, mut rest) = (Vec::new(), tokens.as_slice());
        while rest.len() > self.room() {
            let room = self.room().max(1);
            let fits = |&at: &usize| rest[at].begins_word;
            let (row, behind) = rest.split_at((1..=room).rev().find(fits).unwrap_or(room));
            rows.push(self.frame(row));
            rest = behind;
        }
        if rows.is_empty() || !rest.is_empty() {
            rows.push(self.frame(rest));
        }
        rows
    }

    /// The tokens of a text of any length, without start, end and padding: for prompts that are put together of pieces.
    pub fn text_tokens(&self, text: &str) -> Vec<TextToken> {
        let tokens = self.encode_text(text).tokens;
        let ends = tokens.iter().skip(1).map(|next| next.begins_word).chain([true]);
        tokens.iter().zip(ends).map(|(token, ends_word)| TextToken { id: token.id, ends_word }).collect()
    }

    /// A row of tokens of text, with start, end and padding; those beyond [`room`](Self::room) are left out.
    pub fn row(&self, ids: impl IntoIterator<Item = i32>) -> Tokens {
        let mut all = vec![self.vocabulary.start];
        all.extend(ids.into_iter().take(self.room()));
        all.push(self.vocabulary.end);
        let end = all.len() - 1;
        all.resize(self.context_length, self.padding_id());
        Tokens { ids: all, end, truncated: 0, lost: String::new() }
    }

    /// Tokens of text in a row.
    pub fn room(&self) -> usize {
        self.context_length.saturating_sub(2)
    }

    /// A row of tokens that fit.
    fn frame(&self, tokens: &[Token]) -> Tokens {
        self.row(tokens.iter().map(|token| token.id))
    }

    fn encode_text(&self, prompt: &str) -> Encoded {
        let (text, words) = self.words(prompt);
        let mut tokens = Vec::new();
        for Word { range, marker } in words {
            let mut at = range.start;
            if let Some(ids) = marker {
                tokens.extend(ids.into_iter().enumerate().map(|(i, id)| Token { id, at, begins_word: i == 0 }));
                continue;
            }
            for symbol in self.vocabulary.encode(&text.as_bytes()[range.clone()]) {
                tokens.push(Token { id: symbol.id, at, begins_word: at == range.start });
                at += symbol.bytes;
            }
        }
        Encoded { text, tokens }
    }

    /// The cleaned text and its words.
    fn words(&self, prompt: &str) -> (String, Vec<Word>) {
        match self.options.cleaning {
            Cleaning::Lowercase => self.open_clip_words(prompt.to_lowercase()),
            Cleaning::OpenClip => self.open_clip_words(cleaning::open_clip(prompt)),
            Cleaning::Transformers => self.transformers_words(prompt),
        }
    }

    fn open_clip_words(&self, text: String) -> (String, Vec<Word>) {
        let marker = |word: &str| match word {
            "<start_of_text>" => Some(vec![self.vocabulary.start]),
            "<end_of_text>" => Some(vec![self.vocabulary.end]),
            _ => None,
        };
        let words = OPEN_CLIP_WORD.find_iter(&text).map(|m| Word { range: m.range(), marker: marker(m.as_str()) });
        let words = words.collect();
        (text, words)
    }

    /// Added tokens are found in the prompt as it is, then in what cleaning leaves of the stretches between them; the rest is
    /// cut into words.
    fn transformers_words(&self, prompt: &str) -> (String, Vec<Word>) {
        let (mut text, mut words) = (String::with_capacity(prompt.len()), Vec::new());
        let marker = |token: usize| Some(self.added[token].ids.clone());
        for (range, token) in added::split(prompt, &self.added, false) {
            let start = text.len();
            if let Some(token) = token {
                text.push_str(&prompt[range]);
                words.push(Word { range: start..text.len(), marker: marker(token) });
                continue;
            }
            let cleaned = cleaning::transformers(&prompt[range]);
            for (range, token) in added::split(&cleaned, &self.added, true) {
                let at = start + range.start;
                match token {
                    Some(token) => words.push(Word { range: at..start + range.end, marker: marker(token) }),
                    None => words.extend(
                        transformers_words(&cleaned[range])
                            .map(|word| Word { range: at + word.start..at + word.end, marker: None }),
                    ),
                }
            }
            text.push_str(&cleaned);
        }
        (text, words)
    }
}

/// The places of the words of a cleaned stretch.
fn transformers_words(text: &str) -> impl Iterator<Item = Range<usize>> {
    TRANSFORMERS_WORD.captures_iter(text).flat_map(|found| {
        let parts = (1..4).filter_map(|i| Some(found.get(i)?.range()));
        let whole = found.get(1).is_none().then(|| found.get(0).map(|m| m.range())).flatten();
        parts.chain(whole).collect::<Vec<_>>()
    })
}

/// Name of the file with a tokenizer's settings.
const CONFIG: &str = "tokenizer_config.json";
/// Name of the file with a tokenizer's special tokens.
const SPECIAL_TOKENS: &str = "special_tokens_map.json";

/// The texts of a tokenizer's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenizerTexts<'a> {
    /// The folder that messages name.
    pub folder: PathBuf,
    /// `vocab.json`, if it is there.
    pub vocab: Option<&'a str>,
    /// `merges.txt`, if it is there.
    pub merges: Option<&'a str>,
    /// `tokenizer.json`, which transformers writes from version 5 on, if it is there; used where one of the two above is
    /// missing.
    pub tokenizer: Option<&'a str>,
    /// `tokenizer_config.json`, if it is there.
    pub config: Option<&'a str>,
    /// `special_tokens_map.json`, if it is there.
    pub special_tokens: Option<&'a str>,
    /// `added_tokens.json`, if it is there.
    pub added_tokens: Option<&'a str>,
}

impl TokenizerTexts<'_> {
    /// The files' names, in the order of the fields.
    pub const NAMES: [&'static str; 6] =
        ["vocab.json", "merges.txt", "tokenizer.json", CONFIG, SPECIAL_TOKENS, "added_tokens.json"];

    /// True if the files hold a vocabulary.
    pub fn has_vocabulary(&self) -> bool {
        self.tokenizer.is_some() || self.vocab.is_some() && self.merges.is_some()
    }
}

/// Settings in a tokenizer's files, beside its vocabulary.
struct FolderSettings {
    padding: Option<Padding>,
    context_length: Option<usize>,
}

impl FolderSettings {
    fn read(texts: &TokenizerTexts<'_>) -> Result<Self, TokenizerError> {
        let json = |path: &Path, text: Option<&str>| match text {
            Some(text) => parse_json::<serde_json::Value>(path, text),
            None => Ok(serde_json::Value::Null),
        };
        let (config_path, map_path) = (texts.folder.join(CONFIG), texts.folder.join(SPECIAL_TOKENS));
        let config = json(&config_path, texts.config)?;
        let map = json(&map_path, texts.special_tokens)?;
        // transformers lets the map decide, unless the configuration lists the added tokens itself.
        let listed = config.get("added_tokens_decoder").is_some();
        let (path, token) = match (pad_token(&map), pad_token(&config)) {
            (Some(token), other) if !listed || other.is_none() => (map_path, Some(token)),
            (_, Some(token)) => (config_path.clone(), Some(token)),
            _ => (map_path, None),
        };
        let padding = match token {
            None => None,
            Some(END) => Some(Padding::EndOfText),
            Some("!") => Some(Padding::Exclamation),
            Some(token) => return Err(TokenizerError::UnknownPadding { path, token: token.into() }),
        };
        // transformers writes an absurdly large number for "no limit", as a float.
        let length = config.get("model_max_length").and_then(serde_json::Value::as_u64);
        let length = length.and_then(|length| usize::try_from(length).ok());
        let context_length = length.filter(|&length| length < 1 << 20);
        if let Some(length) = context_length.filter(|&length| length < 3) {
            return Err(TokenizerError::ShortRows { path: config_path, length });
        }
        Ok(Self { padding, context_length })
    }
}

/// The padding token, which is written as itself or as an object with its `content`.
fn pad_token(settings: &serde_json::Value) -> Option<&str> {
    let token = settings.get("pad_token")?;
    token.as_str().or_else(|| token.get("content")?.as_str())
}

fn read(path: &Path) -> Result<String, TokenizerError> {
    calotype_core::read_text(path).map_err(|source| TokenizerError::Read { path: path.into(), source })
}

fn parse_json<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, TokenizerError> {
    serde_json::from_str(text).map_err(|source| TokenizerError::Json { path: path.into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    // Golden ids from open_clip 3.3.0: `open_clip.tokenize(text)[0]`.
    #[test]
    fn encodes_like_open_clip() {
        let tokens = ClipTokenizer::new(8).encode("a photo of a cat");
        assert_eq!(tokens.ids, [49406, 320, 1125, 539, 320, 2368, 49407, 0]);
        assert_eq!((tokens.end, tokens.truncated, tokens.lost.as_str()), (6, 0, ""));
    }

    #[test]
    fn reports_what_does_not_fit() {
        let tokens = ClipTokenizer::new(5).encode("A photo of a Cat");
        assert_eq!(tokens.ids, [49406, 320, 1125, 539, 49407]);
        assert_eq!((tokens.end, tokens.truncated, tokens.lost.as_str()), (4, 2, "a cat"));
    }

    #[test]
    fn empty_prompt_is_start_and_end() {
        for (options, padding) in [
            (TokenizerOptions::OPEN_CLIP, 0),
            (TokenizerOptions::TRANSFORMERS, 49407),
            (TokenizerOptions::TRANSFORMERS_EXCLAMATION, 0),
        ] {
            let tokenizer = ClipTokenizer::with_options(4, options);
            assert_eq!(tokenizer.encode("").ids, [49406, 49407, padding, padding]);
            assert_eq!(tokenizer.chunks(" \t"), [tokenizer.encode("")]);
        }
    }

    #[test]
    fn chunks_keep_all_tokens_and_whole_words() {
        let tokenizer = ClipTokenizer::with_options(7, TokenizerOptions::TRANSFORMERS);
        let long = ClipTokenizer::with_options(77, TokenizerOptions::TRANSFORMERS);
        for prompt in
            ["a photo of a donaudampfschifffahrt, a cat and 12345678 dogs", "x", "a b c d e", "a b c d e f", "🏳️‍🌈🏳️‍🌈"]
        {
            let chunks = tokenizer.chunks(prompt);
            let joined: Vec<i32> = chunks.iter().flat_map(|c| &c.ids[1..c.end]).copied().collect();
            let whole = long.encode(prompt);
            assert_eq!(joined, whole.ids[1..whole.end], "{prompt}");
            assert!(chunks.iter().all(|c| c.ids.len() == 7 && c.ids[0] == 49406 && c.ids[c.end] == 49407 && c.end > 1));
        }
        let ends: Vec<usize> = tokenizer.chunks("photo cat dog tree donau x").iter().map(|c| c.end).collect();
        assert_eq!(ends, [5, 4], "donau is two tokens, which stay together");
    }

    #[test]
    fn a_cut_inside_a_character_loses_the_whole_character() {
        let tokens = ClipTokenizer::new(4).encode("ab ⸻");
        assert!(tokens.truncated > 0 && tokens.lost.ends_with('⸻'), "{tokens:?}");
    }

    #[test]
    fn long_words_take_no_quadratic_time() {
        let tokens = ClipTokenizer::new(77).encode(&"ab".repeat(500_000));
        assert!(tokens.truncated > 100_000);
    }
}
