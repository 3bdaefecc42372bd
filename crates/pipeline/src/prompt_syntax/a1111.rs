//! AUTOMATIC1111's weights (version 1.10: `modules/prompt_parser.py`, `modules/sd_hijack_clip.py`): round brackets weigh
//! 1.1, square ones 1 / 1.1, `(words:1.3)` what they say; a backslash takes a bracket for itself; `BREAK` ends a row. Rows
//! hold 75 tokens; where one is full and a comma is near its end, what follows the comma goes into the next.

use super::fragment::{Fragment, SyntaxError};

/// The weight of round brackets.
const ROUND: f64 = 1.1;
/// The weight of square ones.
const SQUARE: f64 = 1.0 / 1.1;

/// What stands for the word `BREAK`: the reference tells it from text by the weight, which brackets around it change.
pub const BREAK: (&str, f64) = ("BREAK", -1.0);

/// The fragments of a prompt, neighbours of equal weight as one; a [`Fragment`] of text `BREAK` and weight -1 ends a row.
///
/// # Errors
/// [`SyntaxError::Weight`] for a weight such as `1.2.3`.
pub fn parse(prompt: &str) -> Result<Vec<Fragment>, SyntaxError> {
    let mut found: Vec<Fragment> = Vec::new();
    let (mut round, mut square): (Vec<usize>, Vec<usize>) = (Vec::new(), Vec::new());
    let multiply = |found: &mut Vec<Fragment>, from: usize, by: f64| {
        found[from..].iter_mut().for_each(|fragment| fragment.weight *= by);
    };
    let mut rest = prompt;
    while !rest.is_empty() {
        let (piece, behind) = next_piece(rest);
        rest = behind;
        match piece {
            Piece::Escaped(text) => push(&mut found, text, 1.0),
            Piece::Mark('(') => round.push(found.len()),
            Piece::Mark('[') => square.push(found.len()),
            Piece::Weight(weight, _) if !round.is_empty() => {
                let weight = number(weight)?;
                multiply(&mut found, round.pop().unwrap_or_default(), weight);
            }
            Piece::Mark(')') if !round.is_empty() => multiply(&mut found, round.pop().unwrap_or_default(), ROUND),
            Piece::Mark(']') if !square.is_empty() => multiply(&mut found, square.pop().unwrap_or_default(), SQUARE),
            Piece::Mark(mark) => push(&mut found, mark.encode_utf8(&mut [0; 4]), 1.0),
            Piece::Text(text) | Piece::Weight(_, text) => push_text(&mut found, text),
        }
    }
    // Brackets that are never closed count to the end.
    round.into_iter().for_each(|from| multiply(&mut found, from, ROUND));
    square.into_iter().for_each(|from| multiply(&mut found, from, SQUARE));
    if found.is_empty() {
        push(&mut found, "", 1.0);
    }
    match found.iter().find(|fragment| !(fragment.weight as f32).is_finite()) {
        None => Ok(merged(found)),
        Some(fragment) => Err(SyntaxError::Weight { weight: fragment.weight.to_string() }),
    }
}

/// The next piece of a prompt.
enum Piece<'a> {
    /// A bracket or backslash behind a backslash, or nothing behind one that stands before something else.
    Escaped(&'a str),
    /// A bracket.
    Mark(char),
    /// `:1.2)`: the number, and the whole.
    Weight(&'a str, &'a str),
    /// Text without brackets, backslashes and colons; or a single colon.
    Text(&'a str),
}

fn next_piece(rest: &str) -> (Piece<'_>, &str) {
    const SPECIAL: [char; 6] = ['\\', '(', ')', '[', ']', ':'];
    let mut characters = rest.chars();
    match characters.next() {
        Some('\\') => {
            let escaped = characters.next().filter(|c| matches!(c, '\\' | '(' | ')' | '[' | ']'));
            let end = 1 + escaped.map_or(0, char::len_utf8);
            (Piece::Escaped(&rest[1..end]), &rest[end..])
        }
        Some(mark @ ('(' | ')' | '[' | ']')) => (Piece::Mark(mark), &rest[1..]),
        Some(':') => match weight_length(rest) {
            Some((number, length)) => (Piece::Weight(number, &rest[..length]), &rest[length..]),
            None => (Piece::Text(&rest[..1]), &rest[1..]),
        },
        _ => {
            let (text, behind) = rest.split_at(rest.find(SPECIAL).unwrap_or(rest.len()));
            (Piece::Text(text), behind)
        }
    }
}

/// The number of `:1.2)`, and the length of the whole, if the text begins so.
pub(super) fn weight_length(text: &str) -> Option<(&str, usize)> {
    let inner = text.strip_prefix(':')?.trim_start();
    let signed = inner.strip_prefix(['+', '-']).unwrap_or(inner);
    let digits = signed.find(|c: char| c != '.' && !c.is_ascii_digit()).unwrap_or(signed.len());
    if digits == 0 {
        return None;
    }
    let number = &inner[..inner.len() - signed.len() + digits];
    let behind = inner[number.len()..].trim_start().strip_prefix(')')?;
    Some((number, text.len() - behind.len()))
}

fn number(text: &str) -> Result<f64, SyntaxError> {
    text.parse().map_err(|_| SyntaxError::Weight { weight: text.to_owned() })
}

fn push(found: &mut Vec<Fragment>, text: &str, weight: f64) {
    found.push(Fragment { text: text.to_owned(), weight });
}

/// Text, divided at the word `BREAK`.
fn push_text(found: &mut Vec<Fragment>, text: &str) {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut rest = text;
    let mut from = 0;
    while let Some(step) = rest[from..].find(BREAK.0) {
        let (at, end) = (from + step, from + step + BREAK.0.len());
        let inside = rest[..at].ends_with(is_word) || rest[end..].starts_with(is_word);
        if inside {
            from = end;
            continue;
        }
        push(found, rest[..at].trim_end(), 1.0);
        push(found, BREAK.0, BREAK.1);
        rest = rest[end..].trim_start();
        from = 0;
    }
    push(found, rest, 1.0);
}

/// Neighbours of equal weight as one.
fn merged(found: Vec<Fragment>) -> Vec<Fragment> {
    let mut all: Vec<Fragment> = Vec::with_capacity(found.len());
    for fragment in found {
        match all.last_mut() {
            Some(last) if last.weight == fragment.weight => last.text.push_str(&fragment.text),
            _ => all.push(fragment),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(prompt: &str) -> Vec<(String, f64)> {
        let round = |weight: f64| (weight * 1e6).round() / 1e6;
        parse(prompt).unwrap().into_iter().map(|fragment| (fragment.text, round(fragment.weight))).collect()
    }

    /// The examples of the web interface's own documentation and tests (`parse_prompt_attention`, version 1.10), and what the
    /// restatement of it in `make_prompt_weights.py` gives.
    #[test]
    fn brackets_weigh_what_they_weigh_there() {
        for (prompt, expected) in [
            ("normal text", &[("normal text", 1.0)][..]),
            ("an (important) word", &[("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
            ("(unbalanced", &[("unbalanced", 1.1)]),
            (r"\(literal\]", &[("(literal]", 1.0)]),
            ("(unnecessary)(parens)", &[("unnecessaryparens", 1.1)]),
            (
                "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
                &[
                    ("a ", 1.0),
                    ("house", 1.573),
                    (" ", 1.1),
                    ("on", 1.0),
                    (" a ", 1.1),
                    ("hill", 0.55),
                    (", sun, ", 1.1),
                    ("sky", 1.4641),
                    (".", 1.1),
                ],
            ),
            ("", &[("", 1.0)]),
            ("[a]", &[("a", 0.909091)]),
            ("a) b] :c", &[("a) b] :c", 1.0)]),
            ("x:1.2)", &[("x:1.2)", 1.0)]),
            ("(x : 1.2 )", &[("x ", 1.2)]),
            ("(x:-.5)", &[("x", -0.5)]),
            ("(x:y)", &[("x:y", 1.1)]),
            (r"a\b\\", &[(r"ab\", 1.0)]),
            ("a BREAK b", &[("a", 1.0), ("BREAK", -1.0), ("b", 1.0)]),
            ("a BREAK BREAK b", &[("a", 1.0), ("BREAK", -1.0), ("", 1.0), ("BREAK", -1.0), ("b", 1.0)]),
            ("aBREAK BREAKb BREAK_", &[("aBREAK BREAKb BREAK_", 1.0)]),
            ("(a BREAK b)", &[("a", 1.1), ("BREAK", -1.1), ("b", 1.1)]),
            ("()", &[("", 1.0)]),
        ] {
            let expected: Vec<_> = expected.iter().map(|(text, weight)| ((*text).to_owned(), *weight)).collect();
            assert_eq!(found(prompt), expected, "{prompt}");
        }
    }

    #[test]
    fn malformed_weights_are_named() {
        for (prompt, weight) in [("(a:1.2.3)", "1.2.3"), ("(a:.)", "."), ("(a:+..)", "+.."), ("((a:1):1..)", "1..")] {
            assert_eq!(parse(prompt), Err(SyntaxError::Weight { weight: weight.to_owned() }), "{prompt}");
        }
    }
}
