//! What readers of TOML and JSON say about a wrong value, in words of the file instead of Rust's; and what the system says of a file,
//! without its number.

/// Starts of serde's messages that name what was found.
const FOUND: [&str; 2] = ["invalid type: ", "invalid value: "];
/// What stands between the found and the wanted.
const EXPECTED: &str = ", expected ";

/// What unsigned integers take.
const COUNT: &str = "a whole number, such as 4";
/// The same where a negative number stands.
const NOT_NEGATIVE: &str = "a whole number that is not negative, such as 4";

/// What serde expects, and what a file's reader is told. Names of integers come before those they begin with.
const TAKES: [(&[&str], &str); 10] = [
    (&["u8", "u16", "u32", "u64", "u128", "usize"], COUNT),
    (&["i8", "i16", "i32", "i64", "i128", "isize"], "a whole number, such as 4 or -4"),
    (&["f32", "f64", "a float", "floating point number"], "a number, such as 0.5"),
    (&["a boolean", "bool"], "true or false"),
    (
        &["a string", "a borrowed string", "string", "str", "path string", "a character"],
        "text in quotes, such as \"name\"",
    ),
    (&["a sequence", "sequence", "a tuple"], "a list, such as [1, 2] or [\"a\", \"b\"]"),
    (&["a map", "map"], "a table of keys and values"),
    (&["unit", "null"], "nothing"),
    (&["variant identifier", "string or table"], "the name of a kind, in quotes"),
    (&["any valid TOML value", "any valid JSON value"], "any value"),
];

/// Words in front of a type's name where a table is expected.
const TABLES: [&str; 6] = [
    "struct variant ",
    "newtype struct ",
    "unit struct ",
    "internally tagged enum ",
    "adjacently tagged enum ",
    "struct ",
];

/// A message in which every remark of serde's is said in plain words: what the key takes, with an example, and what stands
/// there instead; and without the system's numbers of errors. Everything else stays as it is.
///
/// ```
/// use calotype_core::words::plain;
///
/// assert_eq!(
///     plain("key `samples`: invalid type: string \"many\", expected u64"),
///     "key `samples`: instead of \"many\" it takes a whole number, such as 4"
/// );
/// assert_eq!(plain("cannot read a: Is a directory (os error 21)"), "cannot read a: Is a directory");
/// assert_eq!(plain("missing field `size` at line 3 column 1"), "the key `size` is missing (line 3, column 1)");
/// ```
pub fn plain(message: &str) -> String {
    let mut out = String::with_capacity(message.len());
    let mut rest = message;
    while !rest.is_empty() {
        match translated(rest) {
            Some((words, behind)) => {
                out.push_str(&words);
                rest = behind;
            }
            None => {
                let mut characters = rest.chars();
                out.extend(characters.next());
                rest = characters.as_str();
            }
        }
    }
    out
}

/// The translation of the remark that a text begins with, and the text behind it.
fn translated(text: &str) -> Option<(String, &str)> {
    if let Some(rest) = FOUND.iter().find_map(|start| text.strip_prefix(start)) {
        let (found, rest) = found(rest)?;
        let (takes, rest) = takes(rest.strip_prefix(EXPECTED)?);
        // Whether 0 is taken says the check behind the reader's, if the number has to be larger.
        let takes = if takes == COUNT && found.starts_with('-') { NOT_NEGATIVE } else { takes.as_str() };
        return Some((format!("instead of {found} it takes {takes}"), rest));
    }
    if let Some(rest) = text.strip_prefix("invalid length ") {
        let (length, rest) = rest.split_once(EXPECTED)?;
        let (takes, rest) = takes(rest);
        return length
            .parse::<u64>()
            .ok()
            .map(|length| (format!("instead of {length} entries it takes {takes}"), rest));
    }
    if let Some(rest) = text.strip_prefix("unknown variant `") {
        let (name, rest) = rest.split_once('`')?;
        return Some((format!("instead of `{name}` it takes "), rest.strip_prefix(EXPECTED)?));
    }
    if let Some(rest) = text.strip_prefix("unknown field `") {
        let (name, rest) = rest.split_once('`')?;
        let rest = rest.strip_prefix(EXPECTED)?;
        return Some((format!("the key `{name}` is not known; known: "), rest.strip_prefix("one of ").unwrap_or(rest)));
    }
    if let Some(rest) = text.strip_prefix("missing field `") {
        let (name, rest) = rest.split_once('`')?;
        return Some((format!("the key `{name}` is missing"), rest));
    }
    if let Some(rest) = text.strip_prefix("duplicate field `") {
        let (name, rest) = rest.split_once('`')?;
        return Some((format!("the key `{name}` stands there twice"), rest));
    }
    if let Some(rest) = text.strip_prefix("data did not match any variant of untagged enum ") {
        return Some(("it has none of the forms that can stand there".to_owned(), behind_name(rest)));
    }
    if let Some(rest) = text.strip_prefix("wanted exactly 1 element, more than 1 element") {
        return Some(("several kinds stand there, of which it takes one: leave the others out".to_owned(), rest));
    }
    if let Some(rest) = text.strip_prefix("wanted exactly 1 element, found 0 elements") {
        return Some(("it takes one kind, and none stands there".to_owned(), rest));
    }
    if let Some((_, rest)) = text.strip_prefix(" (os error ").and_then(number)
        && let Some(behind) = rest.strip_prefix(')')
    {
        return Some((String::new(), behind));
    }
    if let Some(rest) = text.strip_prefix("EOF while parsing ") {
        let end = rest.find(" at line").unwrap_or(rest.len());
        return Some((format!("the text ends inside {}", &rest[..end]), &rest[end..]));
    }
    place(text)
}

/// ` at line 3 column 4`.
fn place(text: &str) -> Option<(String, &str)> {
    let (line, rest) = number(text.strip_prefix(" at line ")?)?;
    let (column, rest) = number(rest.strip_prefix(" column ")?)?;
    // A value that was in memory already has no place.
    Some((if line == "0" { String::new() } else { format!(" (line {line}, column {column})") }, rest))
}

fn number(text: &str) -> Option<(&str, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

/// What serde found, as it is written in a file, and the text behind it.
fn found(text: &str) -> Option<(String, &str)> {
    if text.starts_with("string \"") {
        let literal = &text["string ".len()..];
        let end = end_of_literal(literal)?;
        return Some((literal[..end].to_owned(), &literal[end..]));
    }
    for kind in ["integer `", "floating point `", "boolean `", "character `"] {
        if let Some(rest) = text.strip_prefix(kind) {
            let (value, rest) = rest.split_once('`')?;
            return Some((value.to_owned(), rest));
        }
    }
    let (kind, _) = text.split_once(EXPECTED)?;
    let words = match kind {
        "map" | "struct" | "struct variant" => "a table",
        "sequence" | "tuple" | "tuple struct" | "tuple variant" => "a list",
        "unit value" | "unit" | "null" | "Option value" => "nothing (null)",
        "unit variant" | "newtype variant" => "a name",
        _ if kind.len() > 40 || kind.contains('\n') => return None,
        other => other,
    };
    Some((words.to_owned(), &text[kind.len()..]))
}

/// Length of the quoted text that a text begins with, its quotes included.
fn end_of_literal(text: &str) -> Option<usize> {
    let mut escaped = false;
    for (place, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some(place + 1),
            _ => {}
        }
    }
    None
}

/// What a key takes, and the text behind it. What a type says in words of its own is left as it is.
fn takes(text: &str) -> (String, &str) {
    for table in TABLES {
        if let Some(rest) = text.strip_prefix(table) {
            return ("a table of keys and values".to_owned(), behind_elements(behind_name(rest)));
        }
    }
    for start in ["an array of length ", "a tuple of size "] {
        if let Some((length, rest)) = text.strip_prefix(start).and_then(number) {
            return (format!("a list of {length} entries"), rest);
        }
    }
    if let Some(rest) = text.strip_prefix("newtype variant") {
        return ("a table of the kind's settings, such as { kind = { setting = 1 } }".to_owned(), rest);
    }
    for prefix in ["enum ", "tuple struct ", "tuple variant "] {
        if let Some(rest) = text.strip_prefix(prefix) {
            let words = if prefix == "enum " { "a name in quotes, or a table" } else { "a list, such as [1, 2]" };
            return (words.to_owned(), behind_elements(behind_name(rest)));
        }
    }
    for (names, words) in TAKES {
        let behind = names.iter().find_map(|name| {
            let rest = text.strip_prefix(name)?;
            // `a string` is a whole type, `a string of digits` a type's own words.
            let whole = rest.is_empty() || rest.starts_with([',', ';', ')', '\n']) || rest.starts_with(" at line ");
            whole.then_some(rest)
        });
        if let Some(rest) = behind {
            return (words.to_owned(), rest);
        }
    }
    (String::new(), text)
}

/// The text behind a type's name.
fn behind_name(text: &str) -> &str {
    let end = text.find(|c: char| !(c.is_alphanumeric() || "_:<>".contains(c))).unwrap_or(text.len());
    &text[end..]
}

/// The text behind ` with 3 elements`.
fn behind_elements(text: &str) -> &str {
    let behind = text.strip_prefix(" with ").and_then(number).and_then(|(_, rest)| rest.strip_prefix(" element"));
    behind.map_or(text, |rest| rest.strip_prefix('s').unwrap_or(rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Recipe {
        samples: u64,
        #[serde(default)]
        shift: i32,
        #[serde(default)]
        rate: f32,
        #[serde(default)]
        on: bool,
        #[serde(default)]
        name: String,
        #[serde(default)]
        sizes: Vec<usize>,
        #[serde(default)]
        pair: [u8; 2],
        #[serde(default)]
        inner: Option<Box<Recipe>>,
        #[serde(default)]
        kind: Kind,
        #[serde(default)]
        shape: Option<Shape>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "snake_case")]
    #[allow(dead_code)]
    enum Shape {
        Round(Box<Recipe>),
        Square(Box<Recipe>),
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Kind {
        #[default]
        Small,
        Large,
    }

    #[derive(Debug, Deserialize)]
    #[serde(untagged)]
    #[allow(dead_code)]
    enum Either {
        Number(u64),
        List(Vec<u64>),
    }

    /// Rust's own words that a reader of a recipe must not meet.
    const RUST: [&str; 11] =
        ["u64", "usize", "i32", "f32", "struct", "enum", "sequence", "expected", "invalid type", "variant", "field"];

    #[test]
    fn every_remark_of_the_readers_of_toml_and_json_is_translated() {
        for (text, part) in [
            ("samples = \"ma\\\"ny, expected u64\"", "it takes a whole number, such as 4"),
            ("samples = -2", "instead of -2 it takes a whole number that is not negative, such as 4"),
            ("samples = 1.5", "instead of 1.5 it takes a whole number"),
            ("samples = true", "instead of true it takes"),
            ("samples = [1]", "instead of a list it takes"),
            ("samples = {}", "instead of a table it takes"),
            ("samples = 1\nshift = 'x'", "it takes a whole number, such as 4 or -4"),
            ("samples = 1\nrate = 'x'", "it takes a number, such as 0.5"),
            ("samples = 1\non = 1", "instead of 1 it takes true or false"),
            ("samples = 1\nname = 3", "instead of 3 it takes text in quotes"),
            ("samples = 1\nsizes = 3", "instead of 3 it takes a list, such as [1, 2]"),
            ("samples = 1\npair = [1]", "instead of 1 entries it takes a list of 2 entries"),
            ("samples = 1\ninner = 3", "instead of 3 it takes a table of keys and values"),
            ("samples = 1\nkind = 'lage'", "instead of `lage` it takes `small` or `large`"),
            ("samples = 1\nshape = 'round'", "instead of a name it takes a table of the kind's settings"),
            ("samples = 1\nshape = { round = { samples = 1 }, square = { samples = 1 } }", "several kinds stand there"),
            ("samples = 1\nsampels = 2", "the key `sampels` is not known; known: `samples`"),
            ("rate = 1.0", "the key `samples` is missing"),
        ] {
            let error = toml::from_str::<Recipe>(text).unwrap_err();
            let words = plain(error.message());
            assert!(words.contains(part), "{text}: {} became {words}", error.message());
            let outside = words.replace("ma\\\"ny, expected u64", "").replace("such as", "");
            assert!(!RUST.iter().any(|word| outside.contains(word)), "{text}: {words}");
        }
        for (text, part) in [
            (r#"{"samples": null}"#, "instead of nothing (null) it takes a whole number, such as 4 (line 1, column "),
            (r#"{"samples": 1, "samples": 2}"#, "the key `samples` stands there twice (line 1"),
            (r#"{"samples": 1, "inner": []}"#, "a table of keys and values"),
            (r#"{"samples": 1"#, "the text ends inside an object (line 1"),
            (r#"{"samples": 1, "kind": 4}"#, ""),
        ] {
            let error = serde_json::from_str::<Recipe>(text).unwrap_err().to_string();
            let words = plain(&format!("index.json is damaged ({error}); copy it again"));
            assert!(words.contains(part), "{text}: {error} became {words}");
            assert!(words.starts_with("index.json is damaged (") && words.ends_with("); copy it again"), "{words}");
            assert!(!["u64", "struct", "invalid type"].iter().any(|word| words.contains(word)), "{words}");
        }
        let error = serde_json::from_str::<Either>("\"x\"").unwrap_err().to_string();
        assert_eq!(plain(&error), "it has none of the forms that can stand there");
        let error = serde_json::from_value::<Recipe>(serde_json::json!({ "samples": "x" })).unwrap_err().to_string();
        assert_eq!(plain(&error), "instead of \"x\" it takes a whole number, such as 4");
    }

    #[test]
    fn everything_else_stays() {
        for text in [
            "",
            "a file is not there",
            "invalid type: ",
            "invalid type: string \"open",
            "invalid length many, expected u64",
            "unknown variant `x",
            "missing field `x",
            "at line 3 column",
            "a picture (os error",
            " (os error 2",
            " (os error x)",
            "größer ` at line 9 of column",
        ] {
            assert_eq!(plain(text), text);
        }
        let own = "invalid type: integer `3`, expected the path of a checkpoint, or a table with `path`";
        assert_eq!(plain(own), "instead of 3 it takes the path of a checkpoint, or a table with `path`");
    }
}
