//! Configurations in YAML, as PyYAML and OmegaConf write them and people correct them: blocks of mappings and lists, scalars plain
//! and in quotes, texts over several lines, lists and mappings in brackets. Words and numbers mean what they mean in YAML
//! 1.1, with OmegaConf's numbers (`1e-5` is one). Anchors, tags and several documents are refused.

use std::collections::BTreeSet;
use std::fmt;

/// A value of a configuration.
#[derive(Clone, Debug, PartialEq)]
pub enum Yaml {
    /// Nothing.
    Null,
    /// True or false.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Another number.
    Float(f64),
    /// A text.
    Text(String),
    /// A list.
    List(Vec<Yaml>),
    /// Values by name, in the order of the file.
    Map(Vec<(String, Yaml)>),
}

/// A text that is no configuration that is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct YamlFault {
    /// The line, from 1.
    pub line: usize,
    /// The fault.
    pub problem: &'static str,
}

impl fmt::Display for YamlFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.problem)
    }
}

impl std::error::Error for YamlFault {}

impl Yaml {
    /// Reads a text.
    ///
    /// # Errors
    /// [`YamlFault`] with the line of what is malformed, nested too deeply, there twice, or not read (anchors, tags, documents).
    pub fn parse(text: &str) -> Result<Self, YamlFault> {
        if text.len() > LONGEST {
            return Err(YamlFault { line: 1, problem: "longer than any configuration" });
        }
        let mut parser = Parser { lines: lines_of(text)?, at: 0, depth: 0 };
        let value = parser.block(0)?;
        match parser.next_line() {
            None => Ok(value),
            Some(line) => Err(line.fault("it stands further left than what it should belong to, or is no part of it")),
        }
    }

    /// The value of a name of a mapping; none if there is none, or this is no mapping.
    pub fn get(&self, name: &str) -> Option<&Self> {
        let Self::Map(entries) = self else { return None };
        entries.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    /// A number.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Int(number) => Some(*number as f64),
            Self::Float(number) => Some(*number),
            _ => None,
        }
    }

    /// A text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// The deepest nesting.
const DEEPEST: usize = 48;
/// Bytes of the longest text.
const LONGEST: usize = 1 << 20;
/// The most lines that a text in quotes goes over.
const MOST_LINES: usize = 100;

/// A line without its indentation.
#[derive(Clone, Copy)]
struct Line<'a> {
    number: usize,
    /// Columns in front of `text`.
    indent: usize,
    text: &'a str,
}

impl Line<'_> {
    fn fault(self, problem: &'static str) -> YamlFault {
        YamlFault { line: self.number, problem }
    }

    /// Nothing, or a comment.
    fn is_empty(self) -> bool {
        self.text.trim().is_empty() || self.text.starts_with('#')
    }

    fn refuse_tab(self) -> Parsed<()> {
        let is_indented = self.text.starts_with('\t');
        if is_indented { Err(self.fault("indented by a tab; only blanks indent")) } else { Ok(()) }
    }

    fn is_item(self) -> bool {
        self.text == "-" || self.text.starts_with("- ")
    }
}

fn lines_of(text: &str) -> Result<Vec<Line<'_>>, YamlFault> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let text = text.strip_suffix('\n').unwrap_or(text);
    let mut lines: Vec<Line<'_>> = Vec::new();
    for (at, line) in text.split('\n').enumerate() {
        let line = line.strip_suffix('\r').unwrap_or(line);
        let text = line.trim_start_matches(' ');
        let found = Line { number: at + 1, indent: line.len() - text.len(), text };
        let starts = found.indent == 0 && (text == "---" || text.starts_with("--- "));
        match () {
            () if starts && text == "---" && lines.iter().all(|line| line.is_empty()) => {}
            () if starts => return Err(found.fault("a second document; only one is read")),
            () if found.indent == 0 && text.starts_with('%') => {
                return Err(found.fault("a directive, which is not read"));
            }
            () if found.indent == 0 && text == "..." => break,
            () => lines.push(found),
        }
    }
    Ok(lines)
}

struct Parser<'a> {
    lines: Vec<Line<'a>>,
    /// The line that is read next.
    at: usize,
    depth: usize,
}

type Parsed<T> = Result<T, YamlFault>;

impl<'a> Parser<'a> {
    /// The next line with content, passing over others.
    fn next_line(&mut self) -> Option<Line<'a>> {
        while self.lines.get(self.at).is_some_and(|line| line.is_empty()) {
            self.at += 1;
        }
        self.lines.get(self.at).copied()
    }

    fn deeper<T>(&mut self, line: Line<'a>, inner: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        if self.depth == DEEPEST {
            return Err(line.fault("nested too deeply"));
        }
        self.depth += 1;
        let value = inner(self);
        self.depth -= 1;
        value
    }

    /// A value that begins on a line of its own, at column `least` or further right; nothing if no such line follows.
    fn block(&mut self, least: usize) -> Parsed<Yaml> {
        let Some(line) = self.next_line().filter(|line| line.indent >= least) else { return Ok(Yaml::Null) };
        self.deeper(line, |parser| {
            line.refuse_tab()?;
            if line.is_item() {
                return parser.list(line.indent);
            }
            if key_of(line)?.is_some() {
                return parser.map(line.indent);
            }
            parser.at += 1;
            // Lines that belong to it may stand as far left as itself.
            parser.inline(line.text, line, least.checked_sub(1))
        })
    }

    fn list(&mut self, indent: usize) -> Parsed<Yaml> {
        let mut items = Vec::new();
        while let Some(line) = self.next_line().filter(|line| line.indent == indent && line.is_item()) {
            let rest = line.text[1..].trim_start_matches(' ');
            if rest.is_empty() || rest.starts_with('#') {
                self.at += 1;
                items.push(self.block(indent + 1)?);
                continue;
            }
            // What follows the dash begins a block in its own column.
            let column = indent + line.text.len() - rest.len();
            self.lines[self.at] = Line { indent: column, text: rest, ..line };
            items.push(self.block(indent + 1)?);
        }
        self.no_orphan(indent)?;
        Ok(Yaml::List(items))
    }

    fn map(&mut self, indent: usize) -> Parsed<Yaml> {
        let (mut entries, mut names) = (Vec::new(), BTreeSet::new());
        while let Some(line) = self.next_line().filter(|line| line.indent == indent && !line.is_item()) {
            line.refuse_tab()?;
            let Some((key, rest)) = key_of(line)? else {
                return Err(line.fault("no `name: value`, among lines that are"));
            };
            if !names.insert(key.clone()) {
                return Err(line.fault("a name that stands there twice"));
            }
            self.at += 1;
            let value = if rest.is_empty() || rest.starts_with('#') {
                let items = self.next_line().filter(|next| next.indent == indent && next.is_item());
                // A list may begin in the column of its name.
                if items.is_some() { self.deeper(line, |parser| parser.list(indent))? } else { self.block(indent + 1)? }
            } else {
                self.inline(rest, line, Some(indent))?
            };
            entries.push((key, value));
        }
        self.no_orphan(indent)?;
        Ok(Yaml::Map(entries))
    }

    /// What follows a block must not stand further right than it.
    fn no_orphan(&mut self, indent: usize) -> Parsed<()> {
        match self.next_line() {
            Some(line) if line.indent > indent => Err(line.fault("indented as part of nothing")),
            _ => Ok(()),
        }
    }

    /// A value that begins within a line; what stands further right than `parent` (anywhere, if there is none) may go on with it.
    fn inline(&mut self, text: &'a str, line: Line<'a>, parent: Option<usize>) -> Parsed<Yaml> {
        match text.as_bytes().first() {
            Some(b'"' | b'\'') => self.quoted(text, line),
            Some(b'[' | b'{') => self.brackets(text, line),
            Some(b'|' | b'>') => self.text_block(text, line, parent),
            Some(b'&' | b'*') => {
                Err(line.fault("an anchor or alias (`&`, `*`), which is not read; write the value out"))
            }
            Some(b'!') => Err(line.fault("a tag (`!`), which is not read")),
            Some(b'@' | b'`' | b'%') => Err(line.fault("a value that begins with a reserved sign; put it in quotes")),
            _ => self.plain(text, line, parent),
        }
    }

    /// A plain scalar, and the lines that go on with it.
    fn plain(&mut self, text: &'a str, line: Line<'a>, parent: Option<usize>) -> Parsed<Yaml> {
        let first = without_comment(text);
        let mut whole = first.to_owned();
        let mut commented = first.len() < text.trim_end().len();
        while let Some(next) = self.lines.get(self.at).copied() {
            let belongs = parent.is_none_or(|parent| next.indent > parent);
            if next.is_empty() || !belongs || commented {
                break;
            }
            if key_of(next)?.is_some() {
                return Err(next.fault("a `name: value` where a text goes on"));
            }
            let more = without_comment(next.text);
            commented = more.len() < next.text.trim_end().len();
            whole.push(' ');
            whole.push_str(more);
            self.at += 1;
        }
        if whole.contains(": ") {
            return Err(line.fault("a second `: ` in a value; put the value in quotes"));
        }
        Ok(scalar(&whole))
    }

    /// A scalar in quotes, which may go over lines.
    fn quoted(&mut self, text: &'a str, line: Line<'a>) -> Parsed<Yaml> {
        let mut whole = text.to_owned();
        for _ in 0..MOST_LINES {
            if let Some((value, rest)) = unquote(&whole, line)? {
                let rest = rest.trim_start();
                return match rest.is_empty() || rest.starts_with('#') {
                    true => Ok(Yaml::Text(value)),
                    false => Err(line.fault("something stands behind the closing quote")),
                };
            }
            let Some(next) = self.lines.get(self.at) else { break };
            whole.push('\n');
            whole.push_str(next.text);
            self.at += 1;
        }
        Err(line.fault("a quote that is not closed"))
    }

    /// A list or mapping in brackets, which may go over lines.
    fn brackets(&mut self, text: &'a str, line: Line<'a>) -> Parsed<Yaml> {
        let mut whole = text.to_owned();
        for _ in 0..MOST_LINES {
            match (flow(&whole, line), self.lines.get(self.at)) {
                (Err(YamlFault { problem: UNCLOSED, .. }), Some(next)) => {
                    whole.push('\n');
                    whole.push_str(next.text);
                    self.at += 1;
                }
                (found, _) => return found,
            }
        }
        Err(line.fault(UNCLOSED))
    }

    /// A text whose lines follow (`|`, `>`).
    fn text_block(&mut self, text: &'a str, line: Line<'a>, parent: Option<usize>) -> Parsed<Yaml> {
        let header = without_comment(text);
        let (folds, end) = (header.starts_with('>'), &header[1..]);
        if !matches!(end, "" | "-" | "+") {
            return Err(line.fault("a header of a text that is not read; it is |, |-, |+, >, >- or >+"));
        }
        let mut lines: Vec<Line<'a>> = Vec::new();
        while let Some(next) = self.lines.get(self.at).copied() {
            if !next.text.is_empty() && parent.is_some_and(|parent| next.indent <= parent) {
                break;
            }
            lines.push(next);
            self.at += 1;
        }
        let indent = lines.iter().find(|line| !line.text.is_empty()).map_or(0, |line| line.indent);
        let mut whole = String::new();
        for (at, next) in lines.iter().enumerate() {
            if !next.text.is_empty() && next.indent < indent {
                return Err(next.fault("further left than the first line of its text"));
            }
            let after_empty = at > 0 && lines[at - 1].text.is_empty();
            match () {
                () if at == 0 || (folds && !after_empty && next.text.is_empty()) => {}
                () if folds && !after_empty => whole.push(' '),
                () => whole.push('\n'),
            }
            whole.extend(std::iter::repeat_n(' ', next.indent.saturating_sub(indent)));
            whole.push_str(next.text);
        }
        let kept = whole.trim_end_matches('\n');
        Ok(Yaml::Text(match end {
            "-" => kept.to_owned(),
            "+" => whole + "\n",
            _ if kept.is_empty() => String::new(),
            _ => format!("{kept}\n"),
        }))
    }
}

/// A name and what follows its colon, if the line begins with one.
fn key_of(line: Line<'_>) -> Parsed<Option<(String, &str)>> {
    let text = line.text;
    if text == "?" || text.starts_with("? ") {
        return Err(line.fault("a name on a line of its own (`?`), which is not read"));
    }
    let after = |rest: &str| rest.is_empty() || rest.starts_with(' ');
    if text.starts_with(['"', '\'']) {
        let Some((key, rest)) = unquote(text, line)? else { return Ok(None) };
        let rest = rest.trim_start_matches(' ').strip_prefix(':').filter(|rest| after(rest));
        return Ok(rest.map(|rest| (key, rest.trim_start_matches(' '))));
    }
    if text.starts_with(['[', '{', '#', '|', '>', '&', '*', '!']) {
        return Ok(None);
    }
    let end = text.match_indices(':').map(|(at, _)| at).find(|at| after(&text[at + 1..]));
    let comment = text.find(" #").unwrap_or(text.len());
    Ok(end
        .filter(|end| *end < comment)
        .map(|end| (text[..end].trim_end().to_owned(), text[end + 1..].trim_start_matches(' '))))
}

/// A plain scalar without the comment behind it, and without blanks at its end.
fn without_comment(text: &str) -> &str {
    text.find(" #").map_or(text, |at| &text[..at]).trim_end()
}

/// The content of quotes and what follows them; none if they are not closed.
fn unquote<'t>(text: &'t str, line: Line<'_>) -> Parsed<Option<(String, &'t str)>> {
    let Some(quote) = text.chars().next() else { return Ok(None) };
    let double = quote == '"';
    let mut value = String::new();
    let mut rest = text[1..].char_indices().peekable();
    while let Some((at, sign)) = rest.next() {
        match sign {
            '\'' if !double && rest.peek().is_some_and(|(_, next)| *next == '\'') => {
                rest.next();
                value.push('\'');
            }
            sign if sign == quote => return Ok(Some((value, &text[1 + at + 1..]))),
            '\\' if double => match escaped(&mut rest) {
                None => return Ok(None),
                Some(None) => return Err(line.fault("an escape in quotes that is not known")),
                Some(Some(sign)) => value.extend(sign),
            },
            '\n' => fold(&mut value, &mut rest),
            sign => value.push(sign),
        }
    }
    Ok(None)
}

/// A line's end within quotes is a blank, and a line's end for each empty line behind it.
fn fold(value: &mut String, rest: &mut std::iter::Peekable<std::str::CharIndices<'_>>) {
    value.truncate(value.trim_end_matches([' ', '\t']).len());
    let mut empty = 0;
    while let Some((_, sign)) = rest.next_if(|(_, sign)| matches!(sign, '\n' | ' ' | '\t')) {
        empty += usize::from(sign == '\n');
    }
    if empty == 0 { value.push(' ') } else { value.extend(std::iter::repeat_n('\n', empty)) }
}

/// What an escape stands for: nothing yet if the text ends, no sign for the end of a line, and none known for others.
#[allow(clippy::option_option)]
fn escaped(rest: &mut std::iter::Peekable<std::str::CharIndices<'_>>) -> Option<Option<Option<char>>> {
    let (_, sign) = rest.next()?;
    let digits = match sign {
        'x' => 2,
        'u' => 4,
        'U' => 8,
        '\n' => {
            while rest.next_if(|(_, sign)| matches!(sign, ' ' | '\t')).is_some() {}
            return Some(Some(None));
        }
        sign => {
            const SIGNS: [(char, char); 17] = [
                ('n', '\n'),
                ('t', '\t'),
                ('r', '\r'),
                ('0', '\0'),
                ('a', '\x07'),
                ('b', '\x08'),
                ('v', '\x0b'),
                ('f', '\x0c'),
                ('e', '\x1b'),
                ('_', '\u{a0}'),
                ('N', '\u{85}'),
                ('L', '\u{2028}'),
                ('P', '\u{2029}'),
                (' ', ' '),
                ('"', '"'),
                ('/', '/'),
                ('\\', '\\'),
            ];
            return Some(SIGNS.iter().find(|(known, _)| *known == sign).map(|(_, sign)| Some(*sign)));
        }
    };
    let mut code = 0u32;
    for _ in 0..digits {
        let (_, digit) = rest.next()?;
        let Some(digit) = digit.to_digit(16) else { return Some(None) };
        code = code.checked_mul(16).and_then(|code| code.checked_add(digit)).unwrap_or(u32::MAX);
    }
    Some(char::from_u32(code).map(Some))
}

/// What is said of brackets or of a quote within them, of which the end is not there.
const UNCLOSED: &str = "brackets that are not closed";

/// A list or mapping in brackets.
fn flow(text: &str, line: Line<'_>) -> Parsed<Yaml> {
    let mut flow = Flow { rest: text, line };
    let value = flow.value(0)?;
    let rest = flow.rest.trim_start();
    match rest.is_empty() || rest.starts_with('#') {
        true => Ok(value),
        false => Err(line.fault("something stands behind the closing bracket")),
    }
}

struct Flow<'t, 'l> {
    rest: &'t str,
    line: Line<'l>,
}

impl<'t> Flow<'t, '_> {
    fn takes(&mut self, sign: char) -> bool {
        self.rest = self.rest.trim_start();
        let rest = self.rest.strip_prefix(sign);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn value(&mut self, depth: usize) -> Parsed<Yaml> {
        if depth == DEEPEST {
            return Err(self.line.fault("nested too deeply"));
        }
        if self.takes('[') {
            let mut items = Vec::new();
            while !self.takes(']') {
                items.push(self.value(depth + 1)?);
                self.separator(']')?;
            }
            return Ok(Yaml::List(items));
        }
        if self.takes('{') {
            let (mut entries, mut names) = (Vec::new(), BTreeSet::new());
            while !self.takes('}') {
                let key = self.scalar()?.0.to_owned();
                let value = if self.takes(':') { self.value(depth + 1)? } else { Yaml::Null };
                if !names.insert(key.clone()) {
                    return Err(self.line.fault("a name that stands there twice"));
                }
                entries.push((key, value));
                self.separator('}')?;
            }
            return Ok(Yaml::Map(entries));
        }
        let (text, is_quoted) = self.scalar()?;
        Ok(if is_quoted { Yaml::Text(text) } else { scalar(&text) })
    }

    fn separator(&mut self, end: char) -> Parsed<()> {
        self.rest = self.rest.trim_start();
        match self.takes(',') || self.rest.starts_with(end) {
            true => Ok(()),
            false if self.rest.is_empty() => Err(self.line.fault(UNCLOSED)),
            false => Err(self.line.fault("no comma between two values in brackets")),
        }
    }

    /// A scalar, and whether it stood in quotes.
    fn scalar(&mut self) -> Parsed<(String, bool)> {
        self.rest = self.rest.trim_start();
        if self.rest.starts_with(['"', '\'']) {
            let Some((text, rest)) = unquote(self.rest, self.line)? else {
                return Err(self.line.fault(UNCLOSED));
            };
            self.rest = rest;
            return Ok((text, true));
        }
        let is_end = |(at, sign): &(usize, char)| match sign {
            ',' | '[' | ']' | '{' | '}' => true,
            ':' => self.rest[at + 1..].starts_with([' ', ',', ']', '}', '\n']) || self.rest.len() == at + 1,
            _ => false,
        };
        // An interpolation has braces of its own.
        let begins = self.rest.starts_with("${");
        let end = match begins {
            true => self.rest.find('}').map_or(self.rest.len(), |at| at + 1),
            false => self.rest.char_indices().find(is_end).map_or(self.rest.len(), |(at, _)| at),
        };
        let text: &'t str = self.rest;
        self.rest = &text[end..];
        let found = text[..end].trim_end();
        match found.as_bytes().first() {
            None if text.is_empty() => Err(self.line.fault(UNCLOSED)),
            None => Err(self.line.fault("nothing between two commas in brackets")),
            Some(b'&' | b'*' | b'!') => Err(self.line.fault("an anchor, alias or tag, which is not read")),
            Some(_) => Ok((found.replace('\n', " "), false)),
        }
    }
}

/// What a plain scalar means.
fn scalar(text: &str) -> Yaml {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Yaml::Null,
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => return Yaml::Bool(true),
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => return Yaml::Bool(false),
        _ => {}
    }
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let digits = unsigned.replace('_', "");
    let minus = text.starts_with('-');
    if unsigned.starts_with(|sign: char| sign.is_ascii_digit()) && digits.bytes().all(|byte| byte.is_ascii_digit()) {
        // A leading zero is YAML 1.1's sign of base eight, which nobody means: the text stays as it is.
        if digits == "0" || !digits.starts_with('0') {
            return digits.parse().map_or_else(
                |_| digits.parse().map_or_else(|_| Yaml::Text(text.to_owned()), |n: f64| Yaml::Float(signed(n, minus))),
                |number: i64| Yaml::Int(if minus { -number } else { number }),
            );
        }
    }
    // A sign behind the prefix would be read as one.
    let hexadecimal = unsigned.strip_prefix("0x").filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
    if let Some(Ok(number)) = hexadecimal.map(|digits| i64::from_str_radix(digits, 16)) {
        return Yaml::Int(if minus { -number } else { number });
    }
    match unsigned {
        ".inf" | ".Inf" | ".INF" => return Yaml::Float(signed(f64::INFINITY, minus)),
        ".nan" | ".NaN" | ".NAN" => return Yaml::Float(f64::NAN),
        _ => {}
    }
    // Rust reads `inf` and `nan` as numbers, too.
    let is_number = unsigned.starts_with(|sign: char| sign.is_ascii_digit() || sign == '.')
        && unsigned
            .bytes()
            .all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'E' | b'+' | b'-' | b'_'));
    match digits.parse::<f64>() {
        Ok(number) if is_number => Yaml::Float(signed(number, minus)),
        _ => Yaml::Text(text.to_owned()),
    }
}

fn signed(number: f64, minus: bool) -> f64 {
    if minus { -number } else { number }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Yaml {
        Yaml::Text(text.to_owned())
    }

    fn map(entries: &[(&str, Yaml)]) -> Yaml {
        Yaml::Map(entries.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect())
    }

    /// The values that PyYAML 6.0.3 reads (with OmegaConf 2.3's numbers).
    #[test]
    fn scalars_are_those_of_omegaconf() {
        for (written, value) in [
            ("12", Yaml::Int(12)),
            ("-3", Yaml::Int(-3)),
            ("0", Yaml::Int(0)),
            ("0x1F", Yaml::Int(31)),
            ("-0x-8000000000000000", text("-0x-8000000000000000")),
            ("1_000", Yaml::Int(1000)),
            ("1e-5", Yaml::Float(1e-5)),
            ("1.0e-05", Yaml::Float(1e-5)),
            (".5", Yaml::Float(0.5)),
            ("-.inf", Yaml::Float(f64::NEG_INFINITY)),
            ("True", Yaml::Bool(true)),
            ("off", Yaml::Bool(false)),
            ("null", Yaml::Null),
            ("~", Yaml::Null),
            ("", Yaml::Null),
            ("bf16-mixed", text("bf16-mixed")),
            ("${trainer.precision}", text("${trainer.precision}")),
            ("inf", text("inf")),
            ("1.2.3", text("1.2.3")),
            ("a # comment", text("a")),
            ("a#b", text("a#b")),
            ("http://x/y", text("http://x/y")),
            ("'it''s'", text("it's")),
            ("\"a\\tb\\u00e9\"", text("a\tbé")),
            ("'12'", text("12")),
            ("[]", Yaml::List(vec![])),
            ("{}", map(&[])),
            ("[ 0, 'a, b', x]  # three", Yaml::List(vec![Yaml::Int(0), text("a, b"), text("x")])),
            ("{a: 1, b: [2, ${c}]}", map(&[("a", Yaml::Int(1)), ("b", Yaml::List(vec![Yaml::Int(2), text("${c}")]))])),
        ] {
            assert_eq!(Yaml::parse(&format!("k: {written}")).unwrap(), map(&[("k", value)]), "{written}");
        }
    }

    #[test]
    fn blocks_are_nested_by_indentation() {
        let found = Yaml::parse(
            "# a comment\n---\nmodel:\n  sizes:\n  - 1\n  -   name: a\n      value: b\n  -\n    - 2\n  optim:\n    lr: 0.1 # rate\n\n  'quoted \
             name': x\nempty:\nlast: a text\n  that goes on\n\ttabbed: 1\n",
        );
        assert_eq!(found.unwrap_err().line, 17);
        let found = Yaml::parse(
            "# a comment\n---\nmodel:\n  sizes:\n  - 1\n  -   name: a\n      value: b\n  -\n    - 2\n  optim:\n    lr: 0.1 # rate\n\n  'quoted \
             name': x\nempty:\nlast: a text\n  that goes on\r\n...\nignored",
        )
        .unwrap();
        let sizes = Yaml::List(vec![
            Yaml::Int(1),
            map(&[("name", text("a")), ("value", text("b"))]),
            Yaml::List(vec![Yaml::Int(2)]),
        ]);
        let model = map(&[("sizes", sizes), ("optim", map(&[("lr", Yaml::Float(0.1))])), ("quoted name", text("x"))]);
        let expected = map(&[("model", model), ("empty", Yaml::Null), ("last", text("a text that goes on"))]);
        assert_eq!(found, expected);
        assert_eq!(found.get("model").and_then(|model| model.get("optim")?.get("lr")?.as_f64()), Some(0.1));
    }

    #[test]
    fn texts_go_over_lines() {
        let found = Yaml::parse(
            "a: \"one\n  two\\\n  three\n\n  four\"\nb: 'x\n  y'\nc: |\n  k: v\n\n   z\nd: >-\n  p\n  q\n\n  r\ne: |+\n  s\n\nf: 1\n",
        )
        .unwrap();
        for (name, value) in [
            ("a", text("one twothree\nfour")),
            ("b", text("x y")),
            ("c", text("k: v\n\n z\n")),
            ("d", text("p q\nr")),
            ("e", text("s\n\n")),
            ("f", Yaml::Int(1)),
        ] {
            assert_eq!(found.get(name), Some(&value), "{name}");
        }
    }

    #[test]
    fn what_is_not_read_is_named_with_its_line() {
        let deep = "[".repeat(200);
        for (text, line, part) in [
            ("a: 1\na: 2", 2, "twice"),
            ("a: {b: 1, b: 2}", 1, "twice"),
            ("a: &x 1\nb: *x", 1, "anchor"),
            ("a: [*x]", 1, "anchor"),
            ("a: !!python/object:os.system x", 1, "tag"),
            ("a: 1\n---\nb: 2", 2, "second document"),
            ("%YAML 1.1\n---\na: 1", 1, "directive"),
            ("? a\n: b", 1, "`?`"),
            ("a: 'x", 1, "not closed"),
            ("a: 'x' y", 1, "behind the closing quote"),
            ("a: \"\\q\"", 1, "escape"),
            ("a: [1, 2", 1, "not closed"),
            ("a: [1 2]\nb: [1,, 2]", 2, "nothing between"),
            ("a: ['x' 2]", 1, "no comma"),
            ("a: [1]x", 1, "behind the closing bracket"),
            ("a:\n\tb: 1", 2, "tab"),
            ("a: 1\n  b: 2", 2, "where a text goes on"),
            ("a:\n    b: 1\n  c: 2", 3, "part of"),
            ("a: b: c", 1, "second `: `"),
            ("a: 1\nb", 2, "no `name: value`"),
            ("a: @x", 1, "reserved"),
            ("a: |2\n  x", 1, "header"),
            ("  a: 1\nb: 2", 2, "further left"),
            (&format!("a: {deep}"), 1, "nested too deeply"),
            (&"- ".repeat(200), 1, "nested too deeply"),
            (&"a".repeat(2 << 20), 1, "longer than any"),
        ] {
            let fault = Yaml::parse(text).unwrap_err();
            assert!(fault.line == line && fault.problem.contains(part), "{text:.40}: {fault}");
        }
    }
}
