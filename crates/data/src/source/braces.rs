//! Brace expansion of file names, as bash and the `webdataset` library (package `braceexpand`) do it.
//!
//! `{a,b}` is a list, also nested and with empty items; `{00000..00831}` a range, padded to the wider of its ends if one
//! of them begins with a zero; `{0..10..2}` a range with a step; `{a..e}` a range of letters. Braces that hold neither
//! stay as they are. A backslash takes the meaning from the character after it. Unlike in bash, unbalanced braces are
//! an error.

use crate::{Error, Result};

/// Most names that patterns may expand to.
pub const MOST_NAMES: usize = 1_000_000;

/// Most bytes of all names together.
const MOST_BYTES: usize = 1 << 27;

/// Depth to which braces may be nested.
const DEEPEST: usize = 32;

/// Expands the braces of `pattern`; a pattern without any gives itself.
///
/// # Errors
/// [`Error::BadPattern`] for unbalanced or too deeply nested braces, for numbers beyond 64 bits, and for more than
/// [`MOST_NAMES`] names or 128 MiB of them.
pub fn expand(pattern: &str) -> Result<Vec<String>> {
    let expanded = Expander { depth: 0 }.pattern(pattern).map_err(|detail| bad(pattern, detail))?;
    Ok(expanded.iter().map(|name| unescape(name)).collect())
}

/// Splits `spec` at `::` outside of braces and expands each part.
///
/// # Errors
/// As [`expand`]; [`Error::BadPattern`] for an empty part.
pub fn expand_all(spec: &str) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for pattern in spec.split("::") {
        if pattern.is_empty() {
            return Err(bad(spec, "empty between two `::`".to_owned()));
        }
        names.extend(expand(pattern)?);
        if names.len() > MOST_NAMES {
            return Err(bad(spec, too_many()));
        }
    }
    Ok(names)
}

/// True if a name has braces or `::`, so that [`expand_all`] does more than copy it.
pub fn is_pattern(spec: &str) -> bool {
    spec.contains('{') || spec.contains("::")
}

type Expanded = std::result::Result<Vec<String>, String>;

struct Expander {
    depth: usize,
}

impl Expander {
    /// Texts and brace groups, one after the other: the product of their expansions, the last one turning fastest.
    fn pattern(&self, text: &str) -> Expanded {
        let mut names = vec![String::new()];
        let mut rest = text;
        while let Some((before, inside, after)) = split_group(rest)? {
            names = product(names, vec![before.to_owned()])?;
            names = product(names, self.group(inside)?)?;
            rest = after;
        }
        product(names, vec![rest.to_owned()])
    }

    /// Expands the content of a pair of braces.
    fn group(&self, inside: &str) -> Expanded {
        if self.depth == DEEPEST {
            return Err(format!("braces nested deeper than {DEEPEST}"));
        }
        let inner = Expander { depth: self.depth + 1 };
        if let Some(range) = range(inside) {
            return range;
        }
        let items = split_list(inside);
        if items.len() == 1 {
            let kept = product(vec!["{".to_owned()], inner.pattern(inside)?)?;
            return product(kept, vec!["}".to_owned()]);
        }
        let (mut names, mut bytes) = (Vec::new(), 0);
        for item in items {
            let expanded = inner.pattern(item)?;
            bytes += expanded.iter().map(String::len).sum::<usize>();
            names.extend(expanded);
            within_limits(names.len(), bytes)?;
        }
        Ok(names)
    }
}

/// Positions of unescaped braces and commas, with the depth before each.
fn marks(text: &str) -> impl Iterator<Item = (usize, u8, i64)> {
    let mut depth = 0i64;
    let mut escaped = false;
    text.bytes().enumerate().filter_map(move |(at, byte)| {
        if std::mem::take(&mut escaped) {
            return None;
        }
        let before = depth;
        match byte {
            b'\\' => escaped = true,
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        matches!(byte, b'{' | b'}' | b',').then_some((at, byte, before))
    })
}

/// Text before the first group, inside and after it; `None` if there is no group.
fn split_group(text: &str) -> std::result::Result<Option<(&str, &str, &str)>, String> {
    let mut open = None;
    for (at, byte, depth) in marks(text) {
        match (byte, depth) {
            (b'{', 0) => open = Some(at),
            (b'}', 1) => return Ok(open.map(|open| (&text[..open], &text[open + 1..at], &text[at + 1..]))),
            (b'}', 0) => return Err("a `}` without a `{` before it; write `\\}` for the character".to_owned()),
            _ => {}
        }
    }
    match open {
        Some(_) => Err("a `{` without its `}`; write `\\{` for the character".to_owned()),
        None => Ok(None),
    }
}

/// Items between the commas of a list.
fn split_list(text: &str) -> Vec<&str> {
    let commas = marks(text).filter(|(_, byte, depth)| (*byte, *depth) == (b',', 0)).map(|(at, ..)| at);
    let mut items = Vec::new();
    let mut start = 0;
    for comma in commas {
        items.push(&text[start..comma]);
        start = comma + 1;
    }
    items.push(&text[start..]);
    items
}

/// A range of numbers or letters; `None` if it is none.
fn range(text: &str) -> Option<Expanded> {
    let mut words = text.split("..");
    let (first, last, step) = (words.next()?, words.next()?, words.next());
    if words.next().is_some() || !step.is_none_or(is_integer) {
        return None;
    }
    let step = match step.map(|step| step.parse::<i64>()) {
        None => 1,
        // The sign is of no meaning, and a step of nothing is one, as in the library.
        Some(Ok(step)) => step.unsigned_abs().max(1),
        Some(Err(_)) => return Some(Err(format!("the step of `{text}` is out of range"))),
    };
    match (first.as_bytes(), last.as_bytes()) {
        ([a], [b]) if a.is_ascii_alphabetic() && b.is_ascii_alphabetic() => Some(letters(*a, *b, step)),
        _ if is_integer(first) && is_integer(last) => Some(numbers(first, last, step)),
        _ => None,
    }
}

fn is_integer(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

fn numbers(first: &str, last: &str, step: u64) -> Expanded {
    let out_of_range = |_| format!("`{first}..{last}` is out of range");
    let (from, to): (i64, i64) = (first.parse().map_err(out_of_range)?, last.parse().map_err(out_of_range)?);
    let padded = |text: &str| text.trim_start_matches('-').starts_with('0') && !matches!(text, "0" | "-0");
    let width = if padded(first) || padded(last) { first.len().max(last.len()) } else { 0 };
    let count = from.abs_diff(to) / step;
    within_limits(usize::try_from(count).unwrap_or(usize::MAX).saturating_add(1), 0)?;
    // Products of steps may leave 64 bits before the last name is reached.
    let step = i128::from(step) * if from <= to { 1 } else { -1 };
    Ok((0..=i128::from(count)).map(|i| format!("{:0width$}", i128::from(from) + i * step)).collect())
}

/// Letters stand in the order A to Z, a to z.
fn letters(first: u8, last: u8, step: u64) -> Expanded {
    let alphabet: Vec<u8> = (b'A'..=b'Z').chain(b'a'..=b'z').collect();
    let place = |letter: u8| alphabet.iter().position(|other| *other == letter).unwrap_or(0);
    let (from, to) = (place(first), place(last));
    let step = usize::try_from(step).unwrap_or(usize::MAX);
    let name = |letter: &u8| char::from(*letter).to_string();
    Ok(match from <= to {
        true => alphabet[from..=to].iter().step_by(step).map(name).collect(),
        false => alphabet[to..=from].iter().rev().step_by(step).map(name).collect(),
    })
}

fn product(left: Vec<String>, right: Vec<String>) -> Expanded {
    if let [only] = &left[..]
        && only.is_empty()
    {
        return Ok(right);
    }
    let bytes = |names: &[String]| names.iter().map(String::len).sum::<usize>();
    within_limits(
        left.len().saturating_mul(right.len()),
        bytes(&left).saturating_mul(right.len()).saturating_add(bytes(&right).saturating_mul(left.len())),
    )?;
    Ok(left.iter().flat_map(|start| right.iter().map(move |end| format!("{start}{end}"))).collect())
}

fn within_limits(names: usize, bytes: usize) -> std::result::Result<(), String> {
    if names > MOST_NAMES || bytes > MOST_BYTES {
        return Err(too_many());
    }
    Ok(())
}

fn too_many() -> String {
    format!("expands to more than {MOST_NAMES} names, or 128 MiB of them")
}

fn unescape(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut escaped = false;
    for c in name.chars() {
        if c == '\\' && !escaped {
            escaped = true;
            continue;
        }
        escaped = false;
        out.push(c);
    }
    if escaped {
        out.push('\\');
    }
    out
}

fn bad(pattern: &str, detail: String) -> Error {
    Error::BadPattern { pattern: pattern.chars().take(200).collect(), detail }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_expand_as_the_braceexpand_package_does() {
        let table: &[(&str, &[&str])] = &[
            ("plain.tar", &["plain.tar"]),
            ("a{1..3}", &["a1", "a2", "a3"]),
            ("x-{008..011}.tar", &["x-008.tar", "x-009.tar", "x-010.tar", "x-011.tar"]),
            ("{07..10}", &["07", "08", "09", "10"]),
            ("{4..1}", &["4", "3", "2", "1"]),
            ("{2..-1}", &["2", "1", "0", "-1"]),
            ("{-01..1}", &["-01", "000", "001"]),
            ("{0..10..5}", &["0", "5", "10"]),
            ("{10..0..-4}", &["10", "6", "2"]),
            ("{1..2..0}", &["1", "2"]),
            ("{5..5}", &["5"]),
            ("{0..2}", &["0", "1", "2"]),
            ("{a..g..2}", &["a", "c", "e", "g"]),
            ("{c..A..10}", &["c", "S", "I"]),
            ("index.html{,.backup}", &["index.html", "index.html.backup"]),
            ("p{2.{5..7},3.{2,3}}", &["p2.5", "p2.6", "p2.7", "p3.2", "p3.3"]),
            ("{a,b}{1,2}", &["a1", "a2", "b1", "b2"]),
            ("{only}", &["{only}"]),
            ("{o{1,2}}", &["{o1}", "{o2}"]),
            ("{}", &["{}"]),
            ("{a..}", &["{a..}"]),
            ("\\{1,2\\}", &["{1,2}"]),
            ("{a\\,b,c}", &["a,b", "c"]),
            ("ü{1,2}", &["ü1", "ü2"]),
        ];
        for (pattern, names) in table {
            assert_eq!(expand(pattern).unwrap(), *names, "{pattern}");
        }
        assert_eq!(expand("{00000..00831}.tar").unwrap().len(), 832);
        assert_eq!(expand_all("a{1,2}::b").unwrap(), ["a1", "a2", "b"]);
    }

    #[test]
    fn bad_patterns_are_named() {
        let deep = "{".repeat(40) + ",x" + &"}".repeat(40);
        for (pattern, part) in [
            ("{1{2,3}", "without its `}`"),
            ("a}b", "without a `{`"),
            ("{1..99999999999999999999}", "out of range"),
            ("{1..2..99999999999999999999}", "out of range"),
            ("{0..9223372036854775807}", "more than"),
            ("{-9223372036854775808..9223372036854775807}", "more than"),
            ("{1..9999}{1..9999}{1..9999}", "more than"),
            (deep.as_str(), "nested deeper"),
        ] {
            let error = expand(pattern).unwrap_err();
            assert!(matches!(error, Error::BadPattern { .. }) && error.to_string().contains(part), "{error}");
        }
        assert!(matches!(expand_all("a::"), Err(Error::BadPattern { .. })));
    }
}
