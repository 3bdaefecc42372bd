//! Names that were meant when others were written, and patterns of names.

use regex::Regex;

use crate::{Error, Result};

/// The name that `written` most probably stands for, if any is near.
pub(crate) fn nearest<'a>(written: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let lower = written.to_lowercase();
    names
        .map(|name| (strsim::damerau_levenshtein(&lower, &name.to_lowercase()), name))
        .filter(|(distance, name)| *distance <= (name.len().max(written.len()) / 3).max(1))
        .min()
        .map(|(_, name)| name)
}

/// Reach of `*` in a pattern of paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Star {
    /// Over folders, too, as in Python's fnmatch and so in patterns of files of repositories.
    Everywhere,
    /// Within one name, as in a shell; `**` reaches over folders.
    InName,
}

/// A pattern with `*`, `?`, `[abc]` and `[!abc]` as a regular expression for whole paths with slashes.
///
/// # Errors
/// [`Error::Usage`] if it is no pattern.
pub(crate) fn pattern(text: &str, star: Star) -> Result<Regex> {
    let any = if star == Star::Everywhere { "." } else { "[^/]" };
    let mut regex = String::from("(?s)^");
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let mut length = c.len_utf8();
        match c {
            '*' if star == Star::InName && rest.starts_with("**/") => {
                regex.push_str("(?:.*/)?");
                length = 3;
            }
            '*' if rest.starts_with("**") => {
                regex.push_str(".*");
                length = 2;
            }
            '*' => regex.extend([any, "*"]),
            '?' => regex.push_str(any),
            '[' => length = class(rest, &mut regex),
            c => regex.push_str(&regex::escape(c.encode_utf8(&mut [0; 4]))),
        }
        rest = &rest[length..];
    }
    regex.push('$');
    Regex::new(&regex)
        .map_err(|_| Error::Usage(format!("`{text}` is no pattern of paths; write it as in data/*.parquet")))
}

/// Appends the set of characters that `rest` begins with, and tells its length; a bracket that is not closed is plain.
fn class(rest: &str, regex: &mut String) -> usize {
    let negated = rest[1..].starts_with(['!', '^']);
    let inside = 1 + usize::from(negated);
    // A closing bracket in first place belongs to the set.
    let skip = rest[inside..].chars().next().map_or(0, char::len_utf8);
    let Some(length) = rest[inside + skip..].find(']').map(|at| at + skip) else {
        regex.push_str("\\[");
        return 1;
    };
    regex.push_str(if negated { "[^" } else { "[" });
    for c in rest[inside..inside + length].chars() {
        if !(c.is_alphanumeric() || c == '-') {
            regex.push('\\');
        }
        regex.push(c);
    }
    regex.push(']');
    inside + length + 1
}

/// True if a string is a pattern and not a plain name.
pub(crate) fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_python_or_as_in_a_shell() {
        use Star::{Everywhere, InName};
        for (text, star, path, matches) in [
            ("*.parquet", Everywhere, "data/train/a.parquet", true),
            ("*.parquet", InName, "data/train/a.parquet", false),
            ("data/*.parquet", InName, "data/a.parquet", true),
            ("**/*.parquet", InName, "a.parquet", true),
            ("**/*.parquet", InName, "data/train/a.parquet", true),
            ("data/**", InName, "data/train/a.parquet", true),
            ("part-0000?.tar", InName, "part-00007.tar", true),
            ("part-0000?.tar", InName, "part-0000/.tar", false),
            ("part-[0-3]*", InName, "part-2.tar", true),
            ("part-[!0-3]*", InName, "part-2.tar", false),
            ("a[]x]b", InName, "a]b", true),
            ("a[b", InName, "a[b", true),
            ("a.b", InName, "axb", false),
            ("*.JSON", Everywhere, "a.json", false),
            ("[&&a]", InName, "&", true),
        ] {
            assert_eq!(pattern(text, star).unwrap().is_match(path), matches, "{text} on {path}");
        }
        assert!(pattern("[z-a]", InName).is_err());
    }

    #[test]
    fn near_names_are_found_and_far_ones_are_not() {
        let names = ["WIDTH", "HEIGHT", "NSFW"];
        assert_eq!(nearest("widht", names.into_iter()), Some("WIDTH"));
        assert_eq!(nearest("aesthetic", names.into_iter()), None);
    }
}
