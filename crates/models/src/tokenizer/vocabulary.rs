//! Byte-pair encoding: words to token ids, by a table of merges.

use super::TokenizerError;
use serde_json::Value;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::path::Path;

/// The merges of CLIP's vocabulary in their order, each as the ids of the two tokens it joins (two little-endian
/// `u16`). See NOTICE for their origin.
static CLIP_MERGES: &[u8] = include_bytes!("clip_merges.bin");

/// The end of a word's last symbol in vocabulary files.
const END_OF_WORD: &str = "</w>";

/// A token of a word: its id and how many bytes of the word it stands for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Symbol {
    pub id: i32,
    pub bytes: usize,
}

/// Pairs of ids to (rank, id of the pair joined).
type Merges = HashMap<(i32, i32), (u32, i32)>;

/// Ids of bytes, of bytes that end a word, and of merged pairs.
pub(super) struct Vocabulary {
    inner: [i32; 256],
    last: [i32; 256],
    merges: Merges,
    pub start: i32,
    pub end: i32,
}

impl Vocabulary {
    /// CLIP's own vocabulary of 49,408 tokens: 256 bytes, 256 bytes at the end of a word, merges in their order, start
    /// and end of text.
    pub fn clip() -> Self {
        let (mut inner, mut last) = ([0; 256], [0; 256]);
        for (id, (byte, _)) in byte_symbols().into_iter().enumerate() {
            inner[byte as usize] = id as i32;
            last[byte as usize] = id as i32 + 256;
        }
        let merges = Self::clip_merges().enumerate();
        let merges: Merges =
            merges.map(|(rank, [a, b])| ((a as i32, b as i32), (rank as u32, rank as i32 + 512))).collect();
        let start = 512 + merges.len() as i32;
        Self { inner, last, merges, start, end: start + 1 }
    }

    /// All tokens of CLIP's own vocabulary by their ids, as vocabulary files spell them.
    pub fn clip_tokens() -> Vec<String> {
        let bytes = byte_symbols();
        let inner = bytes.iter().map(|(_, symbol)| symbol.to_string());
        let last = bytes.iter().map(|(_, symbol)| format!("{symbol}{END_OF_WORD}"));
        let mut tokens: Vec<String> = inner.chain(last).collect();
        for [a, b] in Self::clip_merges() {
            tokens.push(format!("{}{}", tokens[a], tokens[b]));
        }
        tokens.extend([super::START.to_owned(), super::END.to_owned()]);
        tokens
    }

    /// The merges of CLIP's own vocabulary in their order, as ids.
    pub fn clip_merges() -> impl Iterator<Item = [usize; 2]> {
        let (pairs, _) = CLIP_MERGES.as_chunks::<4>();
        let id = |bytes| usize::from(u16::from_le_bytes(bytes));
        pairs.iter().map(move |&[a, b, c, d]| [id([a, b]), id([c, d])])
    }

    /// A vocabulary in the texts of transformers' files, each with the path that messages name: `vocab.json` (token to
    /// id) and `merges.txt` (two tokens a line).
    pub fn parse(
        (vocab_path, vocab): (&Path, &str),
        (merges_path, merges): (&Path, &str),
    ) -> Result<Self, TokenizerError> {
        let ids: HashMap<String, i32> = super::parse_json(vocab_path, vocab)?;
        // A vocabulary that is not CLIP's is said before its merges are.
        let without = Self::of(vocab_path, &ids, Merges::new())?;
        Ok(Self { merges: parse_merges(merges_path, merges, &ids)?, ..without })
    }

    /// The vocabulary and merges in the text of a `tokenizer.json`.
    pub fn parse_tokenizer(path: &Path, text: &str) -> Result<Self, TokenizerError> {
        #[derive(serde::Deserialize)]
        struct File {
            model: Model,
        }
        #[derive(serde::Deserialize)]
        struct Model {
            vocab: HashMap<String, i32>,
            merges: Vec<Pair>,
        }
        check_kind(path, &super::parse_json(path, text)?)?;
        /// A list of two tokens, or, in older files, both in one text.
        #[derive(serde::Deserialize)]
        #[serde(untagged)]
        enum Pair {
            Tokens([String; 2]),
            Line(String),
        }
        let File { model: Model { vocab, merges } } = super::parse_json(path, text)?;
        let lines = merges.into_iter().map(|pair| match pair {
            Pair::Tokens([a, b]) => format!("{a} {b}"),
            Pair::Line(line) => line,
        });
        let merges = parse_merges(path, &lines.collect::<Vec<_>>().join("\n"), &vocab)?;
        Self::of(path, &vocab, merges)
    }

    fn of(path: &Path, ids: &HashMap<String, i32>, merges: Merges) -> Result<Self, TokenizerError> {
        let special = |token: &str| {
            ids.get(token)
                .copied()
                .ok_or_else(|| TokenizerError::MissingToken { path: path.into(), token: token.into() })
        };
        let (start, end) = (special(super::START)?, special(super::END)?);
        // Bytes that the vocabulary lacks are unknown tokens, for which transformers' CLIP takes the end of text.
        let (mut inner, mut last) = ([end; 256], [end; 256]);
        for (byte, symbol) in byte_symbols() {
            inner[byte as usize] = ids.get(&symbol.to_string()).copied().unwrap_or(end);
            last[byte as usize] = ids.get(&format!("{symbol}{END_OF_WORD}")).copied().unwrap_or(end);
        }
        Ok(Self { inner, last, merges, start, end })
    }

    /// The token of a byte inside a word.
    pub fn inner_id(&self, byte: u8) -> i32 {
        self.inner[byte as usize]
    }

    /// The tokens of one word. Of all neighbours that can be joined those of the lowest rank are, the first of them
    /// first, until none can.
    pub fn encode(&self, word: &[u8]) -> Vec<Symbol> {
        let Some(end) = word.len().checked_sub(1) else { return Vec::new() };
        let id = |(i, &byte): (usize, &u8)| if i == end { self.last } else { self.inner }[byte as usize];
        let mut symbols: Vec<Symbol> = word.iter().enumerate().map(|b| Symbol { id: id(b), bytes: 1 }).collect();
        // A symbol that was joined to the one before it has no bytes left. Neighbours are found by these links.
        let mut next: Vec<usize> = (1..=word.len()).collect();
        let mut before: Vec<usize> = (0..word.len()).map(|i| i.wrapping_sub(1)).collect();
        let mut queue = BinaryHeap::new();
        let offer = |queue: &mut BinaryHeap<_>, symbols: &[Symbol], at: usize, then: usize| {
            let pair = symbols.get(at).zip(symbols.get(then)).map(|(a, b)| (a.id, b.id));
            if let Some((pair, &(rank, _))) = pair.and_then(|pair| Some((pair, self.merges.get(&pair)?))) {
                queue.push(Reverse((rank, at, pair)));
            }
        };
        (0..end).for_each(|i| offer(&mut queue, &symbols, i, i + 1));
        while let Some(Reverse((_, at, pair))) = queue.pop() {
            let then = next[at];
            let stale = symbols[at].bytes == 0 || symbols.get(then).is_none_or(|b| (symbols[at].id, b.id) != pair);
            if stale {
                continue;
            }
            symbols[at] = Symbol { id: self.merges[&pair].1, bytes: symbols[at].bytes + symbols[then].bytes };
            symbols[then].bytes = 0;
            next[at] = next[then];
            if let Some(link) = before.get_mut(next[at]) {
                *link = at;
            }
            offer(&mut queue, &symbols, before[at], at);
            offer(&mut queue, &symbols, at, next[at]);
        }
        symbols.retain(|symbol| symbol.bytes > 0);
        symbols
    }
}

/// The printable character that stands for each byte in vocabulary files, in the order of their ids: bytes that print
/// in Latin-1 stand for themselves, the others for the characters from U+0100 on.
fn byte_symbols() -> Vec<(u8, char)> {
    let prints = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..);
    let printing = (0..=255u8).filter(prints).map(|byte| (byte, char::from(byte)));
    let others = (0..=255u8).filter(|byte| !prints(byte)).zip('\u{100}'..);
    printing.chain(others).collect()
}

/// Refuses a `tokenizer.json` that does something else than CLIP's: another model, another cleaning, other words.
fn check_kind(path: &Path, file: &Value) -> Result<(), TokenizerError> {
    let not_clip = |problem: String| Err(TokenizerError::NotClip { path: path.into(), problem });
    let name = |value: &Value| value.get("type").and_then(Value::as_str).unwrap_or("none").to_owned();
    let model = file.get("model").unwrap_or(&Value::Null);
    match model.get("type").and_then(Value::as_str) {
        None | Some("BPE") => {}
        Some(other) => return not_clip(format!("its model is {other}")),
    }
    if let Some(suffix) = model.get("end_of_word_suffix").filter(|suffix| *suffix != END_OF_WORD) {
        return not_clip(format!("its words end in {suffix}, not in {END_OF_WORD:?}"));
    }
    // The steps of each part, and those that it must have. A file without the part says nothing about it.
    for (part, list, known, needed) in [
        ("normalizer", "normalizers", &["NFC", "Replace", "Lowercase"][..], "Lowercase"),
        ("pre_tokenizer", "pretokenizers", &["Split", "ByteLevel"], "ByteLevel"),
    ] {
        let Some(value) = file.get(part) else { continue };
        let steps = match value.get(list).and_then(Value::as_array) {
            Some(steps) => steps.iter().map(name).collect(),
            None => vec![name(value)],
        };
        if let Some(other) = steps.iter().find(|step| !known.contains(&step.as_str())) {
            return not_clip(format!("its {part} has the step {other}, and CLIP's has {}", known.join(", ")));
        }
        if !steps.iter().any(|step| step == needed) {
            return not_clip(format!("its {part} lacks the step {needed}"));
        }
    }
    Ok(())
}

fn parse_merges(path: &Path, text: &str, ids: &HashMap<String, i32>) -> Result<Merges, TokenizerError> {
    let mut merges = HashMap::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with("#version"))
    {
        let bad =
            |problem: &str| TokenizerError::BadMerge { path: path.into(), line: number + 1, problem: problem.into() };
        let (first, second) =
            line.split_once(' ').ok_or_else(|| bad("two tokens and a space between them expected"))?;
        let id =
            |token: &str| ids.get(token).copied().ok_or_else(|| bad(&format!("{token:?} is not in the vocabulary")));
        let pair = (id(first)?, id(second)?);
        merges.insert(pair, (merges.len() as u32, id(&format!("{first}{second}"))?));
    }
    Ok(merges)
}
