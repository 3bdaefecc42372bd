//! compel's weights (version 2.5.1): `word++` weighs 1.1², `word--` 0.9², `(some words)1.3` and `"some words"1.3` what they
//! say, `word.attend(1.3)` likewise. A weight moves hidden states away from those of an empty prompt; one below 1 also
//! blends in the states of the same prompt in which nothing looks at the words (downweight mode `MASK`).
//!
//! compel's grammar tries its rules in an order and takes the first that fits, without going back; so does this one.

use super::fragment::{Fragment, SyntaxError};
use std::collections::HashMap;

/// The weight of one plus.
const PLUS: f64 = 1.1;
/// The weight of one minus.
const MINUS: f64 = 0.9;
/// Most brackets inside each other.
const DEEPEST: usize = 32;
/// Characters that mean something.
const SYNTAX: [char; 8] = ['(', ')', '"', ',', '.', '+', '-', '='];
/// Operators that are no weights.
const OPERATORS: [&str; 4] = [".swap", ".blend", ".and", ".add"];

/// A part of a prompt.
#[derive(Clone, Debug)]
enum Node {
    Text(String),
    Weighted(f64, Vec<Node>),
}

/// Nodes, and where they end.
type Found = Option<(Vec<Node>, usize)>;

/// The fragments of a prompt, neighbours of equal weight joined by a space.
///
/// # Errors
/// [`SyntaxError::Operator`] for blends, conjunctions, swaps and adapters; [`SyntaxError::Deep`].
pub fn parse(prompt: &str) -> Result<Vec<Fragment>, SyntaxError> {
    let prompt = spaced(prompt);
    if let Some(operator) = OPERATORS[1..].iter().find(|operator| prompt.contains(&format!("){operator}("))) {
        return Err(SyntaxError::Operator { operator });
    }
    let nodes = Parser { text: &prompt, brackets: HashMap::new(), depth: 0 }.prompt()?;
    let mut all = Vec::new();
    flatten(&nodes, 1.0, &mut all);
    let all = joined(all);
    match all.iter().find(|fragment| !(fragment.weight as f32).is_finite()) {
        None if all.is_empty() => Ok(vec![Fragment { text: String::new(), weight: 1.0 }]),
        None => Ok(all),
        Some(fragment) => Err(SyntaxError::Weight { weight: fragment.weight.to_string() }),
    }
}

/// The prompt with a space behind each comma.
fn spaced(prompt: &str) -> String {
    let mut out = String::with_capacity(prompt.len());
    let mut characters = prompt.chars().peekable();
    while let Some(character) = characters.next() {
        out.push(character);
        if character == ','
            && let Some(next) = characters.next_if(|next| !next.is_whitespace())
        {
            out.push(' ');
            out.push(next);
        }
    }
    out
}

fn flatten(nodes: &[Node], weight: f64, all: &mut Vec<Fragment>) {
    for node in nodes {
        match node {
            Node::Text(text) => all.push(Fragment { text: without_escapes(text), weight }),
            Node::Weighted(by, inner) => flatten(inner, weight * by, all),
        }
    }
}

fn joined(all: Vec<Fragment>) -> Vec<Fragment> {
    let mut out: Vec<Fragment> = Vec::with_capacity(all.len());
    for fragment in all {
        match out.last_mut() {
            Some(last) if last.weight == fragment.weight => {
                last.text = without_escapes(&format!("{} {}", last.text, fragment.text));
            }
            _ => out.push(fragment),
        }
    }
    out
}

fn unescaped(text: &str) -> Node {
    Node::Text(without_escapes(text))
}

/// A text without the backslashes before brackets and quotes. compel does this whenever it makes a fragment: of two
/// backslashes before a bracket, none is left.
fn without_escapes(text: &str) -> String {
    text.replace(r"\(", "(").replace(r"\)", ")").replace("\\\"", "\"")
}

struct Parser<'a> {
    text: &'a str,
    /// What stands in brackets that begin at a byte: several rules ask for it.
    brackets: HashMap<usize, Found>,
    depth: usize,
}

impl Parser<'_> {
    /// A whole prompt. What fits no rule is a word up to the next space.
    fn prompt(&mut self) -> Result<Vec<Node>, SyntaxError> {
        let (mut nodes, mut at) = (Vec::new(), 0);
        loop {
            at = self.past_space(at);
            if at == self.text.len() {
                return Ok(nodes);
            }
            self.refuse_adapter(at)?;
            let found = match self.attention(at)? {
                Some(found) => Some(found),
                None => self.group(at)?,
            };
            let (some, end) = found.unwrap_or_else(|| {
                let rest = &self.text[at..];
                let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
                (vec![unescaped(&rest[..end])], at + end)
            });
            nodes.extend(some);
            at = end;
        }
    }

    /// What stands in brackets and quotes: weights, groups, words without signs, commas and full stops.
    fn inner(&mut self, mut at: usize) -> Result<(Vec<Node>, usize), SyntaxError> {
        let mut nodes = Vec::new();
        loop {
            let start = self.past_space(at);
            self.refuse_adapter(start)?;
            let found = match self.attention(start)? {
                Some(found) => Some(found),
                None => match self.group(start)? {
                    Some(found) => Some(found),
                    None => self.word(start).or_else(|| {
                        let mark = self.text[start..].chars().next().filter(|c| matches!(c, ',' | '.'))?;
                        Some((vec![Node::Text(mark.to_string())], start + 1))
                    }),
                },
            };
            let Some((some, end)) = found else { return Ok((nodes, at)) };
            nodes.extend(some);
            at = end;
        }
    }

    /// Something with a weight behind it.
    fn attention(&mut self, at: usize) -> Result<Found, SyntaxError> {
        let group = self.group(at)?;
        let is_group = group.is_some();
        let Some((nodes, end)) = group.or_else(|| self.word(at)) else { return Ok(None) };
        self.refuse_operator(end)?;
        let explicit = self.literal(end, ".attend").and_then(|at| self.literal(at, "("));
        let explicit = explicit.and_then(|at| self.weight(self.past_space(at), true));
        if let Some((weight, behind)) = explicit
            && let Some(end) = self.literal(behind, ")")
        {
            return Ok(Some((vec![Node::Weighted(weight, nodes)], end)));
        }
        let weight = self.weight(end, is_group);
        Ok(weight.map(|(weight, end)| (vec![Node::Weighted(weight, nodes)], end)))
    }

    /// A group in quotes or brackets.
    fn group(&mut self, at: usize) -> Result<Found, SyntaxError> {
        match self.text.as_bytes().get(at) {
            Some(b'"') => self.quoted(at),
            Some(b'(') => self.bracketed(at),
            _ => Ok(None),
        }
    }

    fn bracketed(&mut self, at: usize) -> Result<Found, SyntaxError> {
        if let Some(known) = self.brackets.get(&at) {
            return Ok(known.clone());
        }
        self.deeper()?;
        let (nodes, end) = self.inner(at + 1)?;
        self.depth -= 1;
        let found = self.literal(end, ")").map(|end| (nodes, end));
        self.brackets.insert(at, found.clone());
        Ok(found)
    }

    /// A text in quotes, which may hold others behind backslashes; it must fit the rules as a whole.
    fn quoted(&mut self, at: usize) -> Result<Found, SyntaxError> {
        if let Some(known) = self.brackets.get(&at) {
            return Ok(known.clone());
        }
        let found = match quoted_text(&self.text[at..]) {
            None => None,
            Some((text, length)) if text.trim().is_empty() => Some((vec![Node::Text(String::new())], at + length)),
            Some((text, length)) => {
                self.deeper()?;
                let text = text.replace('"', "\\\"");
                let mut parser = Parser { text: &text, brackets: HashMap::new(), depth: self.depth };
                let (nodes, end) = parser.inner(0)?;
                self.depth -= 1;
                (parser.past_space(end) == text.len()).then_some((nodes, at + length))
            }
        };
        self.brackets.insert(at, found.clone());
        Ok(found)
    }

    fn deeper(&mut self) -> Result<(), SyntaxError> {
        self.depth += 1;
        if self.depth > DEEPEST { Err(SyntaxError::Deep { most: DEEPEST }) } else { Ok(()) }
    }

    /// A word without signs that mean something: they may stand behind a backslash, and plus and minus before a letter.
    fn word(&self, at: usize) -> Found {
        let rest = &self.text[at..];
        let is_plain = |c: char| !c.is_whitespace() && !SYNTAX.contains(&c);
        let mut length = 0;
        loop {
            let mut characters = rest[length..].chars();
            let (first, next) = (characters.next(), characters.next());
            length += match (first, next) {
                (Some('\\'), Some(next)) if SYNTAX.contains(&next) => 2,
                (Some('+' | '-'), Some(next)) if is_plain(next) => 1,
                (Some(first), _) if is_plain(first) => first.len_utf8(),
                _ => break,
            };
        }
        (length > 0).then(|| (vec![unescaped(&rest[..length])], at + length))
    }

    /// Pluses, minuses or, where `numbers` are allowed, a number.
    fn weight(&self, at: usize, numbers: bool) -> Option<(f64, usize)> {
        let rest = &self.text[at..];
        for (sign, base) in [('+', PLUS), ('-', MINUS)] {
            let count = rest.len() - rest.trim_start_matches(sign).len();
            if count > 0 {
                return Some((base.powi(i32::try_from(count).ok()?), at + count));
            }
        }
        let digits = |text: &str| text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let whole = digits(rest);
        let length = match rest[whole..].strip_prefix('.') {
            Some(behind) if whole + digits(behind) > 0 => whole + 1 + digits(behind),
            _ => whole,
        };
        let number = rest[..length].parse().ok().filter(|_| numbers)?;
        Some((number, at + length))
    }

    /// The end of a literal that may follow a space.
    fn literal(&self, at: usize, literal: &str) -> Option<usize> {
        let at = self.past_space(at);
        self.text[at..].starts_with(literal).then_some(at + literal.len())
    }

    fn past_space(&self, at: usize) -> usize {
        let rest = &self.text[at..];
        at + rest.len() - rest.trim_start().len()
    }

    fn refuse_operator(&self, at: usize) -> Result<(), SyntaxError> {
        let called = |operator: &&&str| self.literal(at, operator).and_then(|at| self.literal(at, "(")).is_some();
        match OPERATORS[..1].iter().find(called) {
            Some(operator) => Err(SyntaxError::Operator { operator }),
            None => Ok(()),
        }
    }

    fn refuse_adapter(&self, at: usize) -> Result<(), SyntaxError> {
        for operator in ["withLora", "useLora"] {
            if self.literal(at, operator).and_then(|at| self.literal(at, "(")).is_some() {
                return Err(SyntaxError::Operator { operator });
            }
        }
        Ok(())
    }
}

/// The text of a quotation at the start, and its length with the quotes; a quote behind a backslash is part of it.
fn quoted_text(text: &str) -> Option<(String, usize)> {
    let (mut inner, mut at) = (String::new(), 1);
    loop {
        let rest = text.get(at..)?;
        if let Some(behind) = rest.strip_prefix("\\\"") {
            inner.push('"');
            at = text.len() - behind.len();
            continue;
        }
        match rest.chars().next()? {
            '"' => return Some((inner, at + 1)),
            '\n' | '\r' => return None,
            other => {
                inner.push(other);
                at += other.len_utf8();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(prompt: &str) -> Vec<(String, f64)> {
        let round = |weight: f64| (weight * 1e6).round() / 1e6;
        parse(prompt).unwrap().into_iter().map(|fragment| (fragment.text, round(fragment.weight))).collect()
    }

    /// Prompts and what `compel.PromptParser` 2.5.1 makes of them (`make_prompt_weights.py --table` prints it).
    #[test]
    fn prompts_are_taken_apart_as_by_compel() {
        let table = include_str!("../../tests/golden/compel_prompts.jsonl");
        assert!(table.lines().count() > 100);
        for line in table.lines() {
            let (prompt, fragments): (String, Vec<(String, f64)>) = serde_json::from_str(line).unwrap();
            assert_eq!(found(&prompt), fragments, "{prompt}");
        }
    }

    #[test]
    fn other_operators_are_refused_by_name() {
        for (prompt, operator) in [
            ("(a, b).blend(1, 2)", ".blend"),
            ("(\"a\", \"b\").and()", ".and"),
            ("a cat.swap(dog)", ".swap"),
            ("a (big cat) .swap (dog)", ".swap"),
            ("a withLora(x, 0.5)", "withLora"),
            ("useLora(x)", "useLora"),
        ] {
            let error = parse(prompt).unwrap_err();
            assert_eq!(error, SyntaxError::Operator { operator }, "{prompt}");
        }
        assert_eq!(parse(&"(".repeat(99)), Err(SyntaxError::Deep { most: DEEPEST }));
        assert!(matches!(parse(&format!("(a)1{}", "0".repeat(99))), Err(SyntaxError::Weight { .. })));
        // Without an end, in time that does not grow with the power of its depth.
        assert_eq!(found(&"(a ".repeat(30)).len(), 1);
    }
}
