//! The cleaning of a prompt before it is cut into words: open_clip's repairs (those of the Python library ftfy, then
//! HTML entities and white space) and transformers' normalization.

use htmlize::ENTITIES;
use regex::{Captures, Regex};
use std::borrow::Cow;
use std::sync::LazyLock;
use unicode_normalization::UnicodeNormalization;

/// References to characters as Python's `html.unescape` sees them: the semicolon may be missing.
static REFERENCE: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"&(#[0-9]+;?|#[xX][0-9a-fA-F]+;?|[^\t\n\x0c <&#;]{1,32};?)"));
/// Entities that cannot be meant as anything else.
static SURE_REFERENCE: LazyLock<Regex> = LazyLock::new(|| pattern("&#?[0-9A-Za-z]{1,24};"));
static TERMINAL_ESCAPE: LazyLock<Regex> = LazyLock::new(|| pattern(r"\x1b\[(?:\d|;)*[a-zA-Z]"));

/// The characters of Windows-1252 at 0x80 to 0x9f, where Latin-1 has control characters; the same character where it has
/// nothing.
const WINDOWS_1252: [char; 32] = [
    '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž', '\u{8f}', '\u{90}', '‘', '’',
    '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}', 'ž', 'Ÿ',
];

/// Ligatures and digraphs of Latin letters, with what they are written for.
const LIGATURES: [(char, &str); 22] = [
    ('Ĳ', "IJ"),
    ('ĳ', "ij"),
    ('ŉ', "ʼn"),
    ('Ǳ', "DZ"),
    ('ǲ', "Dz"),
    ('ǳ', "dz"),
    ('Ǆ', "DŽ"),
    ('ǅ', "Dž"),
    ('ǆ', "dž"),
    ('Ǉ', "LJ"),
    ('ǈ', "Lj"),
    ('ǉ', "lj"),
    ('Ǌ', "NJ"),
    ('ǋ', "Nj"),
    ('ǌ', "nj"),
    ('ﬀ', "ff"),
    ('ﬁ', "fi"),
    ('ﬂ', "fl"),
    ('ﬃ', "ffi"),
    ('ﬄ', "ffl"),
    ('ﬅ', "ſt"),
    ('ﬆ', "st"),
];

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("the pattern is valid")
}

/// A prompt as open_clip's tokenizer cleans it: repaired, entities decoded twice, white space single, lower case.
pub(super) fn open_clip(text: &str) -> String {
    let text = repair(text);
    let text = unescape(&unescape(&text)).into_owned();
    let words: Vec<&str> = text.split(is_space).filter(|word| !word.is_empty()).collect();
    words.join(" ").to_lowercase()
}

/// A stretch of a prompt as transformers' CLIP tokenizer cleans it: composed characters (NFC), one blank for any run of white
/// space (Unicode's, which is not that of Python's `str.split`), lower case.
///
/// Characters become lower case one by one: a sigma at the end of a word is none of its own.
pub(super) fn transformers(text: &str) -> String {
    let mut after_space = false;
    let single = |c: char| {
        let (before, space) = (after_space, c.is_whitespace());
        after_space = space;
        (!(before && space)).then_some(if space { ' ' } else { c })
    };
    text.nfc().filter_map(single).flat_map(char::to_lowercase).collect()
}

/// White space as Python's `str.split` understands it.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// ftfy's `fix_text`, line by line, but for rare encodings: see [`decode_again`]. From the first line with a `<` on,
/// entities are left alone: it may be HTML.
fn repair(text: &str) -> String {
    let mut entities = true;
    let line = |line: &str| {
        entities &= !line.contains('<');
        repair_line(line, entities)
    };
    text.split_inclusive('\n').map(line).collect()
}

/// Repairs a line until there is nothing left to repair.
fn repair_line(line: &str, entities: bool) -> String {
    let mut text = line.to_owned();
    loop {
        let decoded = if entities { unescape_sure(&text) } else { Cow::Borrowed(text.as_str()) };
        let mut decoded = decoded.into_owned();
        while let Some(better) = decode_again(&decoded) {
            decoded = better;
        }
        let mut plain = String::with_capacity(decoded.len());
        decoded.chars().for_each(|c| push_plain(&mut plain, c));
        let plain = plain.replace("\r\n", "\n").replace(['\r', '\u{2028}', '\u{2029}'], "\n");
        let plain = TERMINAL_ESCAPE.replace_all(&plain, "");
        let fixed: String = plain.chars().filter(|&c| !is_stray_control(c)).nfc().collect();
        if fixed == text {
            return fixed;
        }
        text = fixed;
    }
}

/// UTF-8 that was once read as Latin-1 or Windows-1252 (`cafÃ©`), read rightly; nothing if `text` is no such thing.
///
/// ftfy also repairs stretches of a text, lost bytes, and mix-ups with eight rarer encodings.
fn decode_again(text: &str) -> Option<String> {
    if text.is_ascii() {
        return None;
    }
    let latin_1 = |c: char| u8::try_from(c).ok();
    let windows_1252 = |c: char| match WINDOWS_1252.iter().position(|&w| w == c) {
        Some(i) => Some(0x80 + i as u8),
        None => latin_1(c).filter(|byte| !(0x80..=0x9f).contains(byte)),
    };
    let read = |bytes: Option<Vec<u8>>| bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    read(text.chars().map(latin_1).collect()).or_else(|| read(text.chars().map(windows_1252).collect()))
}

/// Appends a character in its plainest form: no C1 control, no ligature, normal width, straight quotes.
fn push_plain(out: &mut String, c: char) {
    match c {
        '\u{80}'..='\u{9f}' => out.push(WINDOWS_1252[c as usize - 0x80]),
        '\u{3000}' => out.push(' '),
        '\u{ff01}'..='\u{ffef}' => out.extend([c].into_iter().nfkc().map(straight)),
        _ => match LIGATURES.iter().find(|(ligature, _)| *ligature == c) {
            Some((_, letters)) => out.extend(letters.chars().map(straight)),
            None => out.push(straight(c)),
        },
    }
}

fn straight(c: char) -> char {
    match c {
        '\u{2bc}' | '\u{2018}'..='\u{201b}' => '\'',
        '\u{201c}'..='\u{201f}' => '"',
        _ => c,
    }
}

/// Control characters that show nothing and divide nothing.
fn is_stray_control(c: char) -> bool {
    let ascii = matches!(c, '\0'..='\u{8}' | '\u{b}' | '\u{e}'..='\u{1f}' | '\u{7f}');
    ascii || matches!(c, '\u{206a}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffc}')
}

/// An entity of HTML 5 by its name without the ampersand.
fn entity(name: &str) -> Option<&'static str> {
    ENTITIES.get(format!("&{name}").as_bytes()).and_then(|bytes| std::str::from_utf8(bytes).ok())
}

/// Decodes references that end in a semicolon, also by names of one case written in capitals.
fn unescape_sure(text: &str) -> Cow<'_, str> {
    SURE_REFERENCE.replace_all(text, |found: &Captures| {
        let whole = &found[0];
        let name = &whole[1..];
        if let Some(value) = entity(name) {
            return value.to_owned();
        }
        if name.starts_with('#') {
            let value = unescape(whole);
            return if value.contains(';') { whole.to_owned() } else { value.into_owned() };
        }
        let small = name.to_ascii_lowercase();
        let shouted = name == name.to_ascii_uppercase() && unescape(whole) == whole;
        entity(&small).filter(|_| shouted).map_or_else(|| whole.to_owned(), str::to_uppercase)
    })
}

/// Python's `html.unescape`: numeric references, names, and names with something behind them.
fn unescape(text: &str) -> Cow<'_, str> {
    REFERENCE.replace_all(text, |found: &Captures| {
        let name = &found[1];
        match name.strip_prefix('#') {
            Some(number) => numeric_reference(number.trim_end_matches(';')),
            None => named_reference(name),
        }
    })
}

fn named_reference(name: &str) -> String {
    let mut ends = (2..=name.len()).rev().filter(|&end| name.is_char_boundary(end));
    let known = ends.find_map(|end| Some(format!("{}{}", entity(&name[..end])?, &name[end..])));
    known.unwrap_or_else(|| format!("&{name}"))
}

/// The character of a reference by number, with HTML's replacements; none for code points that mean nothing.
fn numeric_reference(number: &str) -> String {
    let (digits, radix) = match number.strip_prefix(['x', 'X']) {
        Some(digits) => (digits, 16),
        None => (number, 10),
    };
    let digits = digits.trim_start_matches('0');
    // What does not fit is beyond Unicode.
    let code = if digits.is_empty() { 0 } else { u32::from_str_radix(digits, radix).unwrap_or(u32::MAX) };
    match code {
        0x0d => "\r".into(),
        0x80..=0x9f => WINDOWS_1252[code as usize - 0x80].into(),
        0x01..=0x08 | 0x0b | 0x0e..=0x1f | 0x7f | 0xfdd0..=0xfdef => String::new(),
        _ if code <= 0x10_ffff && code & 0xfffe == 0xfffe => String::new(),
        0 => '\u{fffd}'.into(),
        _ => char::from_u32(code).unwrap_or('\u{fffd}').into(),
    }
}
