//! Configurations in YAML, as PyYAML and OmegaConf write them and people correct them. Words and numbers mean what they mean in YAML
//! 1.1, with OmegaConf's numbers (`1e-5` is one). Anchors, tags and several documents are refused: no configuration needs them, and
//! aliases make small files large.

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError};
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
    pub problem: String,
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
            return Err(fault(1, "longer than any configuration"));
        }
        let mut builder = Builder::default();
        // The parser's own lines end with the text, one below its last line's end.
        let last = text.lines().count().max(1);
        for event in Parser::new_from_str(text.strip_prefix('\u{feff}').unwrap_or(text)) {
            let (event, span) =
                event.map_err(|error: ScanError| fault(error.marker().line().min(last), error.info()))?;
            builder.take(event, span.start.line().min(last))?;
        }
        Ok(builder.whole.unwrap_or(Self::Null))
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

fn fault(line: usize, problem: &str) -> YamlFault {
    YamlFault { line: line.max(1), problem: problem.to_owned() }
}

/// A list or mapping of which the end is not read yet.
enum Open {
    List(Vec<Yaml>),
    Map {
        entries: Vec<(String, Yaml)>,
        names: BTreeSet<String>,
        /// The name whose value is read next.
        name: Option<String>,
    },
}

/// Puts values together.
#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    whole: Option<Yaml>,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, line: usize) -> Result<(), YamlFault> {
        let (anchor, tag) = match &event {
            Event::Scalar(_, _, anchor, tag) => (*anchor, tag.is_some()),
            Event::SequenceStart(anchor, tag) | Event::MappingStart(anchor, tag) => (*anchor, tag.is_some()),
            Event::Alias(anchor) => (*anchor, false),
            _ => (0, false),
        };
        match event {
            _ if anchor != 0 => {
                Err(fault(line, "an anchor or alias (`&`, `*`), which is not read; write the value out"))
            }
            _ if tag => Err(fault(line, "a tag (`!`), which is not read")),
            Event::Scalar(text, style, ..) => self.scalar(&text, style, line),
            Event::SequenceStart(..) => self.begin(Open::List(Vec::new()), line),
            Event::MappingStart(..) => {
                self.begin(Open::Map { entries: Vec::new(), names: BTreeSet::new(), name: None }, line)
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(line),
            Event::DocumentStart(_) if self.whole.is_some() => Err(fault(line, "a second document; only one is read")),
            _ => Ok(()),
        }
    }

    fn scalar(&mut self, text: &str, style: ScalarStyle, line: usize) -> Result<(), YamlFault> {
        match self.open.last_mut() {
            Some(Open::Map { names, name: name @ None, .. }) => {
                if !names.insert(text.to_owned()) {
                    return Err(fault(line, "a name that stands there twice"));
                }
                *name = Some(text.to_owned());
                Ok(())
            }
            _ => self.place(if style == ScalarStyle::Plain { scalar(text) } else { Yaml::Text(text.to_owned()) }, line),
        }
    }

    fn begin(&mut self, open: Open, line: usize) -> Result<(), YamlFault> {
        if self.open.len() == DEEPEST {
            return Err(fault(line, "nested too deeply"));
        }
        if let Some(Open::Map { name: None, .. }) = self.open.last() {
            return Err(fault(line, "a list or mapping where a name is to be"));
        }
        self.open.push(open);
        Ok(())
    }

    fn end(&mut self, line: usize) -> Result<(), YamlFault> {
        match self.open.pop() {
            Some(Open::List(items)) => self.place(Yaml::List(items), line),
            Some(Open::Map { entries, .. }) => self.place(Yaml::Map(entries), line),
            None => Ok(()),
        }
    }

    fn place(&mut self, value: Yaml, line: usize) -> Result<(), YamlFault> {
        match self.open.last_mut() {
            None => self.whole = Some(value),
            Some(Open::List(items)) => items.push(value),
            Some(Open::Map { entries, name, .. }) => match name.take() {
                Some(name) => entries.push((name, value)),
                None => return Err(fault(line, "a value without a name")),
            },
        }
        Ok(())
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
            ("{a: 1, b: [2, c]}", map(&[("a", Yaml::Int(1)), ("b", Yaml::List(vec![Yaml::Int(2), text("c")]))])),
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
        // The text whose third line cannot belong to it.
        assert_eq!(found.unwrap_err().line, 15);
        let found = Yaml::parse(
            "# a comment\n---\nmodel:\n  sizes:\n  - 1\n  -   name: a\n      value: b\n  -\n    - 2\n  optim:\n    lr: 0.1 # rate\n\n  'quoted \
             name': x\nempty:\nlast: a text\n  that goes on\r\n...\n",
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
        // A problem without words is told in those of the parser.
        for (text, line, part) in [
            ("a: 1\na: 2", 2, "twice"),
            ("a: {b: 1, b: 2}", 1, "twice"),
            ("a: &x 1\nb: *x", 1, "anchor"),
            ("a: [*x]", 1, ""),
            ("a: !!python/object:os.system x", 1, "tag"),
            ("a: 1\n---\nb: 2", 2, "second document"),
            ("a: 1\n...\nb", 3, "second document"),
            ("? [a]\n: b", 1, "where a name is to be"),
            ("a: 'x", 1, ""),
            ("a: 'x' y", 1, ""),
            ("a: \"\\q\"", 1, ""),
            ("a: [1, 2", 1, ""),
            ("a: [1]\nb: [1,, 2]", 2, ""),
            // PyYAML reads interpolations between brackets in quotes alone, too.
            ("a: [${b}]", 1, ""),
            ("a: ['x' 2]", 1, ""),
            ("a: [1]x", 1, ""),
            ("a:\n\tb: 1", 2, ""),
            ("a: 1\n  b: 2", 2, ""),
            ("a:\n    b: 1\n  c: 2", 3, ""),
            ("a: b: c", 1, ""),
            ("a: 1\nb", 2, ""),
            ("a: @x", 1, ""),
            ("  a: 1\nb: 2", 2, ""),
            (&format!("a: {deep}"), 1, "nested too deeply"),
            (&"- ".repeat(200), 1, "nested too deeply"),
            (&"a".repeat(2 << 20), 1, "longer than any"),
        ] {
            let fault = Yaml::parse(text).unwrap_err();
            assert!(fault.line == line && fault.problem.contains(part), "{text:.40}: {fault}");
        }
    }
}
