//! Signs in prompts that mean something to other programs and are drawn as text here.

use super::PromptSyntax;
use super::a1111::weight_length;

/// What a syntax passes over in a prompt, in sentences with what to do: networks in angle brackets, weights, alternatives, names
/// of files of alternatives, and changes on the way.
pub fn unread(prompt: &str, syntax: PromptSyntax) -> Vec<String> {
    let weights = if syntax == PromptSyntax::A1111 { None } else { weight(prompt) };
    let and = if syntax == PromptSyntax::A1111 { conjunction(prompt) } else { None };
    let changes = if syntax == PromptSyntax::A1111 { between(prompt, ['[', ']'], is_change) } else { None };
    [
        (between(prompt, ['<', '>'], is_network), "adapters are given with --lora FILE=WEIGHT"),
        (weights, "--prompt-syntax a1111 takes it as a weight"),
        (
            between(prompt, ['{', '}'], |inside| inside.contains('|')),
            "choices are not made here: write each prompt out",
        ),
        (and, "prompts are not composed here: draw them one by one, or write them as one"),
        (wildcard(prompt), "lists of words are not read here: write each prompt out"),
        (changes, "prompts do not change on the way: only its weight is taken"),
    ]
    .into_iter()
    .filter_map(|(found, remedy)| Some(format!("`{}` is drawn as text; {remedy}", found?)))
    .collect()
}

/// The first text between two brackets whose inside is meant.
fn between(text: &str, [open, close]: [char; 2], is_meant: impl Fn(&str) -> bool) -> Option<&str> {
    text.match_indices(open).find_map(|(from, _)| {
        let inside = &text[from + open.len_utf8()..];
        let end = inside.find([open, close]).filter(|&end| inside[end..].starts_with(close))?;
        is_meant(&inside[..end]).then(|| &text[from..from + open.len_utf8() + end + close.len_utf8()])
    })
}

fn is_network(inside: &str) -> bool {
    let kinds = ["lora", "lyco", "hypernet"];
    inside.split_once(':').is_some_and(|(kind, _)| kinds.contains(&kind.trim().to_lowercase().as_str()))
}

/// `[from:to:when]`, `[to:when]`, `[a|b]`.
fn is_change(inside: &str) -> bool {
    let when = inside.rsplit_once(':').map(|(_, when)| when.trim());
    inside.contains('|') || when.is_some_and(|when| when.parse::<f32>().is_ok())
}

/// The first `(words:1.2)`.
fn weight(text: &str) -> Option<&str> {
    text.match_indices(':').find_map(|(at, _)| {
        let (_, length) = weight_length(&text[at..])?;
        text[..at].rfind('(').map(|from| &text[from..at + length])
    })
}

/// The word `AND`, between whose sides AUTOMATIC1111 draws several prompts at once.
fn conjunction(text: &str) -> Option<&str> {
    const AND: &str = "AND";
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(AND).map(|(at, _)| (at, at + AND.len())).find_map(|(from, to)| {
        let alone = !text[..from].ends_with(is_word) && !text[to..].starts_with(is_word);
        alone.then(|| &text[from..to])
    })
}

/// The first `__name__`.
fn wildcard(text: &str) -> Option<&str> {
    text.match_indices("__").find_map(|(from, _)| {
        let inside = &text[from + 2..];
        let end = inside.find("__").filter(|&end| end > 0 && !inside[..end].contains(char::is_whitespace))?;
        Some(&text[from..from + 2 + end + 2])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_of_other_programs_are_told() {
        use PromptSyntax::{A1111, Compel, Plain};
        for (prompt, syntax, parts) in [
            ("x <lora:foo:0.8>", Plain, &["`<lora:foo:0.8>`", "--lora"][..]),
            ("x <lora:foo:0.8>", A1111, &["`<lora:foo:0.8>`", "--lora"]),
            ("x <LyCO: foo>", Compel, &["--lora"]),
            ("x (y:1.4) z", Plain, &["`(y:1.4)`", "--prompt-syntax a1111"]),
            ("a (é(y: 1.4 ))", Compel, &["`(y: 1.4 )`"]),
            ("{a|b} c", Plain, &["`{a|b}`"]),
            ("a {{b|c} d", Plain, &["`{b|c}`"]),
            ("a __colour__ cat", A1111, &["`__colour__`"]),
            ("a [red:blue:0.5] cat", A1111, &["`[red:blue:0.5]`", "on the way"]),
            ("[a|b]", A1111, &["`[a|b]`"]),
            ("a cat AND a dog", A1111, &["`AND`", "not composed"]),
            ("SAND, AND:1.2 a dog", A1111, &["`AND`"]),
        ] {
            let told = unread(prompt, syntax).join("\n");
            assert!(parts.iter().all(|part| told.contains(part)), "{prompt}: {told}");
        }
    }

    #[test]
    fn plain_texts_and_what_the_syntax_reads_are_not() {
        for prompt in
            ["", "a cat (sleeping) at 10:30", "a < b > c", "{x}", "snake_case __", "a: b", ":1.2)", "[a] 3:2", "<w>"]
        {
            assert_eq!(unread(prompt, PromptSyntax::Plain), Vec::<String>::new(), "{prompt}");
        }
        assert!(unread("a (cat:1.5) [dog] BREAK", PromptSyntax::A1111).is_empty());
        assert!(unread("SAND ANDROID and B_AND", PromptSyntax::A1111).is_empty());
        assert!(unread("a AND b", PromptSyntax::Plain).is_empty());
        assert!(unread("a cat++ (big fox)0.8", PromptSyntax::Compel).is_empty());
        assert!(unread("[a:b:0.5]", PromptSyntax::Plain).is_empty());
    }
}
