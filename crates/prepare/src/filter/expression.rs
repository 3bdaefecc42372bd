//! Conditions over the columns of a table, as text: `WIDTH >= 512 and lower(LICENSE) like 'cc-by%'`.
//!
//! The grammar, from what binds least to what binds most:
//!
//! ```text
//! any      = all { "or" all }
//! all      = not { "and" not }
//! not      = "not" not | test
//! test     = sum [ ("=" | "==" | "!=" | "<>" | "<" | "<=" | ">" | ">=") sum
//!                | ["not"] "in" "(" literal { "," literal } ")"
//!                | ["not"] ("like" | "ilike" | "matches") text
//!                | ["not"] "between" sum "and" sum
//!                | "is" ["not"] "null" ]
//! sum      = product { ("+" | "-") product }
//! product  = sign { ("*" | "/") sign }
//! sign     = "-" sign | value
//! value    = number | text | "true" | "false" | column | function "(" any { "," any } ")" | "(" any ")"
//! ```
//!
//! Texts stand in single or double quotes (a quote inside is written twice), columns whose names are no plain words in
//! backticks. Keywords and functions may be written in capitals. `like` knows `%` and `_`, `ilike` is the same without
//! regard to case, `matches` searches for a regular expression.
//!
//! [`Expression::parse`] knows nothing of a table; `check.rs` binds an expression to the columns of one.

use std::ops::Range;

use regex::Regex;

/// Deepest nesting of an expression, counted in operators. It bounds the recursion of everything that walks one.
const DEEPEST: usize = 100;

/// A condition, read but not yet bound to the columns of a table.
#[derive(Clone, Debug)]
pub struct Expression {
    pub(super) text: String,
    pub(super) root: Node,
}

/// A fault of an expression, with its place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}\n    {excerpt}\n    {}^ character {character}", " ".repeat(*column))]
pub struct ExpressionError {
    message: String,
    /// The part of the text around the mistake.
    excerpt: String,
    /// Characters of the excerpt before the mistake.
    column: usize,
    /// Place of the mistake in the whole text, in characters from 1.
    character: usize,
}

/// A part of an expression and the bytes of the text that it stands for.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub kind: Kind,
    pub span: Range<usize>,
    depth: usize,
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    Literal(Literal),
    Column(String),
    Not(Box<Node>),
    Negate(Box<Node>),
    All(Vec<Node>),
    Any(Vec<Node>),
    Compare(Comparison, Box<Node>, Box<Node>),
    Arithmetic(Arithmetic, Box<Node>, Box<Node>),
    In(Box<Node>, Vec<(Literal, Range<usize>)>),
    IsNull(Box<Node>),
    /// True if the regular expression is found in the text.
    Search(Box<Node>, Regex),
    Call(Function, Vec<Node>),
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Literal {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arithmetic {
    Add,
    Subtract,
    Multiply,
    Divide,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Function {
    Length,
    Lower,
    Upper,
    Abs,
    Min,
    Max,
    Coalesce,
}

/// Name, function, and the fewest and most arguments it takes.
pub(super) const FUNCTIONS: [(&str, Function, usize, usize); 7] = [
    ("length", Function::Length, 1, 1),
    ("lower", Function::Lower, 1, 1),
    ("upper", Function::Upper, 1, 1),
    ("abs", Function::Abs, 1, 1),
    ("min", Function::Min, 2, usize::MAX),
    ("max", Function::Max, 2, usize::MAX),
    ("coalesce", Function::Coalesce, 2, usize::MAX),
];

const COMPARISONS: [(&str, Comparison); 8] = [
    ("=", Comparison::Equal),
    ("==", Comparison::Equal),
    ("!=", Comparison::NotEqual),
    ("<>", Comparison::NotEqual),
    ("<", Comparison::Less),
    ("<=", Comparison::LessOrEqual),
    (">", Comparison::Greater),
    (">=", Comparison::GreaterOrEqual),
];

/// Longest first, so that `<=` is not read as `<`.
const SYMBOLS: [&str; 15] = ["<=", ">=", "<>", "!=", "==", "=", "<", ">", "(", ")", ",", "+", "-", "*", "/"];

/// A test by a pattern, and the regular expression that the pattern stands for.
type PatternTest = (&'static str, fn(&str) -> String);

const PATTERNS: [PatternTest; 3] =
    [("like", |text| like(text, "(?s)")), ("ilike", |text| like(text, "(?si)")), ("matches", str::to_owned)];

const KEYWORDS: [&str; 12] =
    ["and", "or", "not", "in", "is", "null", "like", "ilike", "matches", "between", "true", "false"];

impl Expression {
    /// Reads an expression.
    ///
    /// # Errors
    /// [`ExpressionError`] with the place of the first thing that cannot be read.
    pub fn parse(text: &str) -> Result<Self, ExpressionError> {
        let tokens = tokens(text)?;
        let mut parser = Parser { text, tokens, next: 0, open: 0 };
        let root = parser.any()?;
        match parser.peek() {
            Token::End => Ok(Expression { text: text.to_owned(), root }),
            token => Err(parser.error(format!("an operator was expected here, not {}", token.describe()))),
        }
    }

    /// The text as it was given.
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl ExpressionError {
    pub(super) fn new(text: &str, at: usize, message: impl Into<String>) -> Self {
        /// Characters shown before and after the mistake.
        const AROUND: usize = 60;
        let before = text.get(..at).unwrap_or(text).chars().count();
        let first = before.saturating_sub(AROUND);
        // One character each, so that the mark below stands under the mistake.
        let plain = |c: char| if c.is_control() { ' ' } else { c };
        let excerpt = text.chars().skip(first).take(2 * AROUND).map(plain).collect();
        ExpressionError { message: message.into(), excerpt, column: before - first, character: before + 1 }
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Literal(Literal),
    /// A plain word, as written.
    Word(String),
    /// A name in backticks.
    Quoted(String),
    Symbol(&'static str),
    End,
}

impl Token {
    fn describe(&self) -> String {
        match self {
            Token::Literal(Literal::Text(text)) => format!("the text '{text}'"),
            Token::Literal(Literal::Int(number)) => format!("the number {number}"),
            Token::Literal(Literal::Float(number)) => format!("the number {number}"),
            Token::Literal(_) => "a literal".to_owned(),
            Token::Word(word) => format!("`{word}`"),
            Token::Quoted(name) => format!("column `{name}`"),
            Token::Symbol(symbol) => format!("`{symbol}`"),
            Token::End => "the end".to_owned(),
        }
    }
}

fn tokens(text: &str) -> Result<Vec<(Token, Range<usize>)>, ExpressionError> {
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(first) = text[at..].chars().next() {
        if first.is_whitespace() {
            at += first.len_utf8();
            continue;
        }
        let (token, end) = token(text, at, first)?;
        tokens.push((token, at..end));
        at = end;
    }
    tokens.push((Token::End, text.len()..text.len()));
    Ok(tokens)
}

/// The token that begins with the character `first` at `at`, and where it ends.
fn token(text: &str, at: usize, first: char) -> Result<(Token, usize), ExpressionError> {
    let rest = &text[at..];
    let starts_number = |rest: &str| rest.starts_with(|c: char| c.is_ascii_digit());
    if starts_number(rest) || (first == '.' && starts_number(&rest[1..])) {
        return number(text, at);
    }
    if matches!(first, '\'' | '"' | '`') {
        let (content, end) = quoted(text, at, first)?;
        let token = if first == '`' { Token::Quoted(content) } else { Token::Literal(Literal::Text(content)) };
        return Ok((token, end));
    }
    if first.is_alphabetic() || first == '_' {
        let length = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
        return Ok((Token::Word(rest[..length].to_owned()), at + length));
    }
    match SYMBOLS.iter().find(|symbol| rest.starts_with(**symbol)) {
        Some(symbol) => Ok((Token::Symbol(symbol), at + symbol.len())),
        None => Err(ExpressionError::new(text, at, format!("the character `{first}` means nothing here"))),
    }
}

fn number(text: &str, at: usize) -> Result<(Token, usize), ExpressionError> {
    let bytes = text.as_bytes();
    let digits = |mut end: usize| {
        while bytes.get(end).is_some_and(u8::is_ascii_digit) {
            end += 1;
        }
        end
    };
    let mut end = digits(at);
    let whole = end;
    if bytes.get(end) == Some(&b'.') {
        end = digits(end + 1);
    }
    if matches!(bytes.get(end), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
        let exponent = digits(end + 1 + sign);
        if exponent > end + 1 + sign {
            end = exponent;
        }
    }
    if text[end..].starts_with(|c: char| c.is_alphanumeric() || c == '_' || c == '.') {
        return Err(ExpressionError::new(
            text,
            at,
            "this is neither a number nor a name; put `backticks` around a name",
        ));
    }
    let written = &text[at..end];
    let literal = if end == whole {
        // Columns have at most 64 bits.
        written.parse().ok().filter(|number| *number <= i128::from(u64::MAX)).map(Literal::Int)
    } else {
        written.parse().ok().filter(|number: &f64| number.is_finite()).map(Literal::Float)
    };
    let literal = literal.ok_or_else(|| ExpressionError::new(text, at, "this number is too large"))?;
    Ok((Token::Literal(literal), end))
}

/// Text between quotes, where two quotes mean one, and its end.
fn quoted(text: &str, at: usize, quote: char) -> Result<(String, usize), ExpressionError> {
    let mut content = String::new();
    let mut rest = text[at + 1..].char_indices().peekable();
    while let Some((offset, c)) = rest.next() {
        if c != quote {
            content.push(c);
        } else if rest.next_if(|(_, next)| *next == quote).is_some() {
            content.push(quote);
        } else {
            return Ok((content, at + 1 + offset + 1));
        }
    }
    Err(ExpressionError::new(text, at, format!("this {quote} is never closed")))
}

struct Parser<'a> {
    text: &'a str,
    tokens: Vec<(Token, Range<usize>)>,
    next: usize,
    /// Parentheses, signs and negations around the present place.
    open: usize,
}

impl Parser<'_> {
    /// The token at hand; [`Token::End`] is never passed.
    fn peek(&self) -> &Token {
        &self.tokens[self.next].0
    }

    fn span(&self) -> Range<usize> {
        self.tokens[self.next].1.clone()
    }

    fn advance(&mut self) {
        self.next = (self.next + 1).min(self.tokens.len() - 1);
    }

    fn error(&self, message: impl Into<String>) -> ExpressionError {
        ExpressionError::new(self.text, self.span().start, message)
    }

    fn is_word(&self, word: &str) -> bool {
        matches!(self.peek(), Token::Word(found) if found.eq_ignore_ascii_case(word))
    }

    fn take_word(&mut self, word: &str) -> bool {
        let found = self.is_word(word);
        if found {
            self.advance();
        }
        found
    }

    fn take_symbol(&mut self, symbol: &str) -> bool {
        let found = matches!(self.peek(), Token::Symbol(found) if *found == symbol);
        if found {
            self.advance();
        }
        found
    }

    fn expect_symbol(&mut self, symbol: &str) -> Result<(), ExpressionError> {
        match self.take_symbol(symbol) {
            true => Ok(()),
            false => Err(self.error(format!("`{symbol}` was expected here, not {}", self.peek().describe()))),
        }
    }

    /// A node that ends with the token before the one at hand.
    fn node(&self, kind: Kind, start: usize) -> Result<Node, ExpressionError> {
        let deepest = |nodes: &[Node]| nodes.iter().map(|node| node.depth).max().unwrap_or(0);
        let inner = match &kind {
            Kind::Literal(_) | Kind::Column(_) => 0,
            Kind::Not(a) | Kind::Negate(a) | Kind::In(a, _) | Kind::IsNull(a) | Kind::Search(a, _) => a.depth,
            Kind::Compare(_, a, b) | Kind::Arithmetic(_, a, b) => a.depth.max(b.depth),
            Kind::All(nodes) | Kind::Any(nodes) | Kind::Call(_, nodes) => deepest(nodes),
        };
        if inner >= DEEPEST {
            return Err(self.too_deep(start));
        }
        let end = self.tokens[self.next.saturating_sub(1)].1.end;
        Ok(Node { kind, span: start..end, depth: inner + 1 })
    }

    fn too_deep(&self, at: usize) -> ExpressionError {
        let message =
            format!("more than {DEEPEST} operators inside each other; give the parts as conditions of their own");
        ExpressionError::new(self.text, at, message)
    }

    /// Runs `inner` one level deeper.
    fn nested<T>(&mut self, inner: impl FnOnce(&mut Self) -> Result<T, ExpressionError>) -> Result<T, ExpressionError> {
        if self.open >= DEEPEST {
            return Err(self.too_deep(self.span().start));
        }
        self.open += 1;
        let result = inner(self);
        self.open -= 1;
        result
    }

    fn any(&mut self) -> Result<Node, ExpressionError> {
        self.chain("or", Kind::Any, Self::all)
    }

    fn all(&mut self) -> Result<Node, ExpressionError> {
        self.chain("and", Kind::All, Self::negation)
    }

    /// `part { word part }`, as one node.
    fn chain(
        &mut self,
        word: &str,
        kind: fn(Vec<Node>) -> Kind,
        part: fn(&mut Self) -> Result<Node, ExpressionError>,
    ) -> Result<Node, ExpressionError> {
        let start = self.span().start;
        let first = part(self)?;
        if !self.is_word(word) {
            return Ok(first);
        }
        let mut parts = vec![first];
        while self.take_word(word) {
            parts.push(part(self)?);
        }
        self.node(kind(parts), start)
    }

    fn negation(&mut self) -> Result<Node, ExpressionError> {
        let start = self.span().start;
        if !self.take_word("not") {
            return self.test();
        }
        let inner = self.nested(Self::negation)?;
        self.node(Kind::Not(Box::new(inner)), start)
    }

    fn test(&mut self) -> Result<Node, ExpressionError> {
        let start = self.span().start;
        let left = self.sum()?;
        if let Token::Symbol(symbol) = *self.peek()
            && let Some((_, comparison)) = COMPARISONS.iter().find(|(written, _)| *written == symbol)
        {
            self.advance();
            let right = self.sum()?;
            return self.node(Kind::Compare(*comparison, Box::new(left), Box::new(right)), start);
        }
        if self.take_word("is") {
            let negated = self.take_word("not");
            if !self.take_word("null") {
                return Err(self.error("`null` was expected after `is`"));
            }
            let kind = Kind::IsNull(Box::new(left));
            return self.negated(negated, kind, start);
        }
        let negated = self.take_word("not");
        match self.membership(left, start)? {
            Ok(kind) => self.negated(negated, kind, start),
            Err(_) if negated => Err(self.error("`in`, `like`, `matches` or `between` was expected after `not`")),
            Err(left) => Ok(left),
        }
    }

    fn negated(&mut self, negated: bool, kind: Kind, start: usize) -> Result<Node, ExpressionError> {
        let node = self.node(kind, start)?;
        if negated { self.node(Kind::Not(Box::new(node)), start) } else { Ok(node) }
    }

    /// The tests that are words; `left` is handed back where there is none.
    fn membership(&mut self, left: Node, start: usize) -> Result<Result<Kind, Node>, ExpressionError> {
        if self.take_word("in") {
            return Ok(Ok(Kind::In(Box::new(left), self.list()?)));
        }
        if self.take_word("between") {
            let low = self.sum()?;
            if !self.take_word("and") {
                return Err(self.error("`and` was expected between the two ends of `between`"));
            }
            let high = self.sum()?;
            let above = Kind::Compare(Comparison::GreaterOrEqual, Box::new(left.clone()), Box::new(low));
            let below = Kind::Compare(Comparison::LessOrEqual, Box::new(left), Box::new(high));
            return Ok(Ok(Kind::All(vec![self.node(above, start)?, self.node(below, start)?])));
        }
        for (word, pattern) in PATTERNS {
            if self.take_word(word) {
                let Token::Literal(Literal::Text(text)) = self.peek() else {
                    return Err(self.error(format!("a text in quotes was expected after `{word}`")));
                };
                let compiled = Regex::new(&pattern(text)).map_err(|error| {
                    // The crate's messages have several lines with a drawing; the last one says what is wrong.
                    let reason = error.to_string();
                    let reason = reason.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
                    self.error(format!("this is no regular expression: {reason}"))
                })?;
                self.advance();
                return Ok(Ok(Kind::Search(Box::new(left), compiled)));
            }
        }
        Ok(Err(left))
    }

    /// `( literal { , literal } )`.
    fn list(&mut self) -> Result<Vec<(Literal, Range<usize>)>, ExpressionError> {
        self.expect_symbol("(")?;
        let mut list = Vec::new();
        loop {
            let start = self.span().start;
            let negative = self.take_symbol("-");
            let literal = match (self.peek().clone(), negative) {
                (Token::Literal(literal @ (Literal::Int(_) | Literal::Float(_))), true) => negate(literal),
                (Token::Literal(literal), false) => literal,
                _ if self.is_word("true") || self.is_word("false") => Literal::Bool(self.is_word("true")),
                _ if self.is_word("null") => return Err(self.error("a list cannot hold null; add `or ... is null`")),
                (token, _) => {
                    return Err(self.error(format!("a text or number was expected here, not {}", token.describe())));
                }
            };
            list.push((literal, start..self.span().end));
            self.advance();
            if !self.take_symbol(",") {
                self.expect_symbol(")")?;
                return Ok(list);
            }
        }
    }

    fn sum(&mut self) -> Result<Node, ExpressionError> {
        self.left_to_right(&[("+", Arithmetic::Add), ("-", Arithmetic::Subtract)], Self::product)
    }

    fn product(&mut self) -> Result<Node, ExpressionError> {
        self.left_to_right(&[("*", Arithmetic::Multiply), ("/", Arithmetic::Divide)], Self::sign)
    }

    fn left_to_right(
        &mut self,
        operators: &[(&str, Arithmetic)],
        operand: fn(&mut Self) -> Result<Node, ExpressionError>,
    ) -> Result<Node, ExpressionError> {
        let start = self.span().start;
        let mut left = operand(self)?;
        while let Token::Symbol(symbol) = *self.peek()
            && let Some((_, operator)) = operators.iter().find(|(written, _)| *written == symbol)
        {
            self.advance();
            let right = operand(self)?;
            left = self.node(Kind::Arithmetic(*operator, Box::new(left), Box::new(right)), start)?;
        }
        Ok(left)
    }

    fn sign(&mut self) -> Result<Node, ExpressionError> {
        let start = self.span().start;
        if !self.take_symbol("-") {
            return self.value();
        }
        let inner = self.nested(Self::sign)?;
        match inner.kind {
            Kind::Literal(literal @ (Literal::Int(_) | Literal::Float(_))) => {
                self.node(Kind::Literal(negate(literal)), start)
            }
            _ => self.node(Kind::Negate(Box::new(inner)), start),
        }
    }

    fn value(&mut self) -> Result<Node, ExpressionError> {
        let start = self.span().start;
        if self.take_symbol("(") {
            let mut inner = self.nested(Self::any)?;
            self.expect_symbol(")")?;
            inner.span.start = start;
            inner.span.end = self.tokens[self.next - 1].1.end;
            return Ok(inner);
        }
        let kind = match self.peek().clone() {
            Token::Literal(literal) => Kind::Literal(literal),
            Token::Quoted(name) => Kind::Column(name),
            Token::Word(word) => match word.to_ascii_lowercase().as_str() {
                "true" => Kind::Literal(Literal::Bool(true)),
                "false" => Kind::Literal(Literal::Bool(false)),
                "null" => Kind::Literal(Literal::Null),
                keyword if KEYWORDS.contains(&keyword) => return Err(self.no_value()),
                _ if self.tokens.get(self.next + 1).is_some_and(|(next, _)| *next == Token::Symbol("(")) => {
                    return self.call(&word, start);
                }
                _ => Kind::Column(word),
            },
            Token::Symbol(_) | Token::End => return Err(self.no_value()),
        };
        self.advance();
        self.node(kind, start)
    }

    fn no_value(&self) -> ExpressionError {
        self.error(format!("a column, number or text was expected here, not {}", self.peek().describe()))
    }

    fn call(&mut self, name: &str, start: usize) -> Result<Node, ExpressionError> {
        let known = FUNCTIONS.iter().find(|(known, ..)| known.eq_ignore_ascii_case(name));
        let Some((_, function, fewest, most)) = known else {
            let names: Vec<&str> = FUNCTIONS.iter().map(|(known, ..)| *known).collect();
            return Err(self.error(format!("there is no function `{name}`; there are {}", names.join(", "))));
        };
        self.advance();
        self.expect_symbol("(")?;
        let mut arguments = Vec::new();
        if !self.take_symbol(")") {
            loop {
                arguments.push(self.nested(Self::any)?);
                if !self.take_symbol(",") {
                    break;
                }
            }
            self.expect_symbol(")")?;
        }
        if arguments.len() < *fewest || arguments.len() > *most {
            let wanted = if fewest == most { format!("{fewest}") } else { format!("{fewest} or more") };
            let message = format!("`{name}` takes {wanted}, not {} arguments", arguments.len());
            return Err(ExpressionError::new(self.text, start, message));
        }
        self.node(Kind::Call(*function, arguments), start)
    }
}

fn negate(literal: Literal) -> Literal {
    match literal {
        Literal::Int(number) => Literal::Int(-number),
        Literal::Float(number) => Literal::Float(-number),
        other => other,
    }
}

/// The regular expression of SQL's `like`.
fn like(pattern: &str, flags: &str) -> String {
    let mut regex = format!("{flags}^");
    for c in pattern.chars() {
        match c {
            '%' => regex.push_str(".*"),
            '_' => regex.push('.'),
            c => regex.push_str(&regex::escape(c.encode_utf8(&mut [0; 4]))),
        }
    }
    regex.push('$');
    regex
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_expressions_are_named_with_their_place() {
        for (text, message, character) in [
            ("", "a column, number or text was expected here, not the end", 1),
            ("   ", "not the end", 4),
            ("WIDTH >=", "expected here, not the end", 9),
            ("WIDTH 512", "an operator was expected here, not the number 512", 7),
            ("WIDTH >= 512 HEIGHT", "an operator was expected here, not `HEIGHT`", 14),
            ("and WIDTH", "not `and`", 1),
            ("(WIDTH > 1", "`)` was expected here, not the end", 11),
            ("WIDTH > 1)", "an operator was expected here, not `)`", 10),
            ("TEXT = 'abc", "this ' is never closed", 8),
            ("`WIDTH > 1", "this ` is never closed", 1),
            ("WIDTH > 1 # 2", "the character `#` means nothing here", 11),
            ("WIDTH & 1", "the character `&` means nothing here", 7),
            ("WIDTH > 12px", "neither a number nor a name", 9),
            ("WIDTH > 1.2.3", "neither a number nor a name", 9),
            ("WIDTH > 99999999999999999999", "this number is too large", 9),
            ("x > 1e999", "this number is too large", 5),
            ("WIDTH in 3", "`(` was expected here, not the number 3", 10),
            ("WIDTH in ()", "a text or number was expected here, not `)`", 11),
            ("WIDTH in (1, HEIGHT)", "a text or number was expected here, not `HEIGHT`", 14),
            ("WIDTH in (1, null)", "a list cannot hold null", 14),
            ("WIDTH in (1", "`)` was expected here, not the end", 12),
            ("WIDTH is 3", "`null` was expected after `is`", 10),
            ("WIDTH not 3", "was expected after `not`", 11),
            ("TEXT like TEXT", "a text in quotes was expected after `like`", 11),
            ("TEXT matches '['", "no regular expression", 14),
            ("TEXT matches '(?<x'", "no regular expression", 14),
            ("x between 1 or 2", "`and` was expected between", 13),
            ("size(TEXT) > 3", "there is no function `size`; there are length, lower", 1),
            ("length() > 3", "`length` takes 1, not 0 arguments", 1),
            ("max(WIDTH) > 3", "`max` takes 2 or more, not 1 arguments", 1),
            ("lower(TEXT, 3) = 'a'", "`lower` takes 1, not 2 arguments", 1),
            ("länge > 3 ? 4", "the character `?`", 11),
        ] {
            let error = Expression::parse(text).expect_err(text);
            assert!(error.to_string().contains(message), "{text}: {error}");
            assert_eq!(error.character, character, "{text}: {error}");
        }
    }

    #[test]
    fn errors_draw_a_mark_under_the_mistake() {
        let error = Expression::parse("WIDTH >= 512 HEIGHT").unwrap_err().to_string();
        let lines: Vec<&str> = error.lines().collect();
        assert_eq!(lines[1..], ["    WIDTH >= 512 HEIGHT", "                 ^ character 14"]);
        let long = format!("{} and )", vec!["WIDTH > 1"; 100].join(" and "));
        let error = Expression::parse(&long).unwrap_err().to_string();
        assert!(error.lines().all(|line| line.chars().count() < 140), "{error}");
    }

    #[test]
    fn depth_is_bounded_but_length_is_not() {
        let nested = |levels: usize| format!("{}x{} > 0", "(".repeat(levels), ")".repeat(levels));
        assert!(Expression::parse(&nested(90)).is_ok());
        let sum = |terms: usize| format!("{} > 0", vec!["x"; terms].join(" + "));
        assert!(Expression::parse(&sum(90)).is_ok());
        for text in
            [nested(100_000), sum(100_000), "not ".repeat(100_000), "- ".repeat(100_000), "abs(".repeat(100_000)]
        {
            let error = Expression::parse(&text).unwrap_err().to_string();
            assert!(error.contains("operators inside each other"), "{error}");
        }
        let clauses = vec!["x > 0"; 50_000].join(" and ");
        assert!(Expression::parse(&clauses).is_ok());
        let list = format!("x in ({})", vec!["'a'"; 50_000].join(", "));
        assert!(Expression::parse(&list).is_ok());
    }
}
