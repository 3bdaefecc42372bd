//! Lists of class names and of templates for prompts.

use crate::{EvaluateError, Result};
use calotype_core::decode_text;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// What a class name takes the place of in a template.
pub const PLACE: &str = "{}";

/// Lists that are built in: name, what they are, content.
type BuiltIn = [(&'static str, &'static str); 1];

/// Names of ImageNet's 1,000 classes in the order of their numbers, as open_clip 3.3 has them. Two names stand for two
/// classes each: missile and sunglasses.
const CLASSES: BuiltIn = [("imagenet", include_str!("../../data/imagenet_classes.txt"))];

/// Templates by name, as open_clip 3.3 has them: the 80 that CLIP's figures on ImageNet are published with (Radford et al.
/// 2021), and the seven that do about as well.
const TEMPLATES: [(&str, &str); 2] = [
    ("openai", include_str!("../../data/openai_templates.txt")),
    ("simple", include_str!("../../data/simple_templates.txt")),
];

/// The names of classes that texts say: one alone is the name of a built-in list (`imagenet`) or a file, several are the
/// names themselves. A file has a name on each line, or holds JSON: a list of names, or an object of names by number, where
/// a name may be the last of several texts (`{"0": ["n01440764", "tench"]}`).
///
/// # Errors
/// [`EvaluateError::File`] for a file that is no such list, naming the line; [`EvaluateError::Usage`] for fewer than two
/// classes or an empty name; [`EvaluateError::Io`].
pub fn class_names(texts: &[String]) -> Result<Vec<String>> {
    let names = match texts {
        [one] => match CLASSES.iter().find(|(name, _)| name == one) {
            Some((_, list)) => lines(list),
            None => read(one, "a list of class names", &CLASSES)?,
        },
        several => several.to_vec(),
    };
    if names.len() < 2 {
        let found = names.len();
        return Err(EvaluateError::Usage(format!(
            "{found} class{} cannot be told apart: name at least two classes",
            if found == 1 { "" } else { "es" }
        )));
    }
    match names.iter().position(|name| name.trim().is_empty()) {
        Some(number) => Err(EvaluateError::Usage(format!("the name of class {number} is empty"))),
        None => Ok(names),
    }
}

/// The templates that texts say: each is one itself, which holds `{}` once in the place of the class name, or the name of a
/// built-in list (`openai`, `simple`), or a file with one on each line.
///
/// # Errors
/// [`EvaluateError::Usage`] or [`EvaluateError::File`] for what is no template; [`EvaluateError::Io`].
pub fn templates(texts: &[String]) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for text in texts {
        match TEMPLATES.iter().find(|(name, _)| name == text) {
            Some((_, list)) => all.extend(lines(list)),
            None if text.contains(PLACE) => all.push(text.clone()),
            None => all.extend(read(text, "a template with {} in the place of the class name", &TEMPLATES)?),
        }
    }
    if all.is_empty() {
        return Err(EvaluateError::Usage("there is no template: \"a photo of a {}.\" is a common one".to_owned()));
    }
    match all.iter().find(|template| template.matches(PLACE).count() != 1) {
        Some(template) => Err(EvaluateError::Usage(format!(
            "the template `{template}` has to hold {PLACE} once, in the place of the class name"
        ))),
        None => Ok(all),
    }
}

/// The text that a template makes of a class name.
pub fn filled(template: &str, name: &str) -> String {
    template.replacen(PLACE, name, 1)
}

fn lines(list: &str) -> Vec<String> {
    list.lines().map(str::to_owned).collect()
}

fn read(path: &str, what: &str, built_in: &[(&str, &str)]) -> Result<Vec<String>> {
    let file = Path::new(path);
    if !file.exists() {
        let known: Vec<&str> = built_in.iter().map(|(name, _)| *name).collect();
        return Err(EvaluateError::Usage(format!(
            "`{path}` is no {}, no built-in list ({}) and no file",
            what.trim_start_matches("a "),
            known.join(", ")
        )));
    }
    let bytes = calotype_core::read_input(file).map_err(EvaluateError::io("read", file))?;
    parse(&bytes).map_err(|detail| EvaluateError::File { path: file.to_owned(), detail })
}

/// The texts of a list's file; see [`class_names`].
///
/// # Errors
/// What is wrong with it, in words.
pub fn parse(bytes: &[u8]) -> std::result::Result<Vec<String>, String> {
    let text = decode_text(bytes).map_err(|fault| fault.to_string())?;
    let found = match text.trim_start().starts_with(['[', '{']) {
        // A template may begin with its place.
        true if !text.trim_start().starts_with(PLACE) => of_json(&text)?,
        _ => of_lines(&text)?,
    };
    if found.is_empty() { Err("is empty; it needs a text on each line".to_owned()) } else { Ok(found) }
}

fn of_lines(text: &str) -> std::result::Result<Vec<String>, String> {
    let mut found = Vec::new();
    for (number, line) in text.trim_end().lines().enumerate() {
        match line.trim() {
            "" => return Err(format!("line {} is empty, and the number of a line is that of a class", number + 1)),
            line => found.push(line.to_owned()),
        }
    }
    Ok(found)
}

fn of_json(text: &str) -> std::result::Result<Vec<String>, String> {
    match serde_json::from_str(text).map_err(|error| format!("is no JSON: {error}"))? {
        Value::Array(items) => {
            let named = |(number, item): (usize, &Value)| {
                name(item).ok_or_else(|| format!("entry {number} is {item}, no name"))
            };
            items.iter().enumerate().map(named).collect()
        }
        Value::Object(items) => {
            let mut numbered = BTreeMap::new();
            for (key, item) in &items {
                let number = key.parse::<usize>().map_err(|_| format!("key `{key}` is no number of a class"))?;
                let name = name(item).ok_or_else(|| format!("class {number} is {item}, no name"))?;
                if numbered.insert(number, name).is_some() {
                    return Err(format!("class {number} stands there twice"));
                }
            }
            match numbered.keys().enumerate().find(|(expected, number)| expected != *number) {
                Some((missing, _)) => Err(format!("class {missing} is missing; numbers begin at 0 and have no gaps")),
                None => Ok(numbered.into_values().collect()),
            }
        }
        _ => Err("holds neither a list nor an object".to_owned()),
    }
}

/// A text, or the last of several.
fn name(item: &Value) -> Option<String> {
    match item {
        Value::Array(items) => items.last()?.as_str().map(str::to_owned),
        item => item.as_str().map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(list: &[&str]) -> Vec<String> {
        list.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn built_in_lists_are_the_published_ones() {
        let names = class_names(&texts(&["imagenet"])).unwrap();
        assert_eq!((names.len(), names[0].as_str(), names[999].as_str()), (1000, "tench", "toilet paper"));
        let twice: Vec<usize> =
            (0..1000).filter(|&i| names.iter().filter(|name| **name == names[i]).count() > 1).collect();
        assert_eq!(twice, [657, 744, 836, 837]);
        let all = templates(&texts(&["openai"])).unwrap();
        assert_eq!((all.len(), all[0].as_str(), all[79].as_str()), (80, "a bad photo of a {}.", "a tattoo of the {}."));
        assert_eq!(templates(&texts(&["simple"])).unwrap().len(), 7);
        assert_eq!(filled(&all[0], "tench"), "a bad photo of a tench.");
    }

    #[test]
    fn lists_are_read_from_files() {
        let folder = tempfile::tempdir().unwrap();
        for (content, names) in [
            ("cat\ndog\r\nred fox\n\n", &["cat", "dog", "red fox"][..]),
            ("\u{feff}cat\ndog", &["cat", "dog"]),
            (r#"["cat", "dog"]"#, &["cat", "dog"]),
            (r#"{"1": "dog", "0": "cat"}"#, &["cat", "dog"]),
            (r#"{"0": ["n01", "cat"], "1": ["n02", "dog"]}"#, &["cat", "dog"]),
        ] {
            let file = folder.path().join("classes");
            std::fs::write(&file, content).unwrap();
            let given = file.to_str().unwrap().to_owned();
            assert_eq!(class_names(&[given]).unwrap(), names, "{content}");
        }
        let file = folder.path().join("templates.txt");
        std::fs::write(&file, "{} in a box\na {}.\n").unwrap();
        let given = [file.to_str().unwrap().to_owned(), "the {}".to_owned()];
        assert_eq!(templates(&given).unwrap(), ["{} in a box", "a {}.", "the {}"]);
        assert_eq!(class_names(&texts(&["cat", "dog"])).unwrap(), ["cat", "dog"]);
    }

    #[test]
    fn malformed_lists_are_refused_with_their_fault() {
        for (content, part) in [
            ("", "is empty"),
            ("\n\n", "is empty"),
            ("cat\n\ndog\n", "line 2 is empty"),
            ("[1, 2]", "entry 0 is 1, no name"),
            ("[[\"a\"], []]", "entry 1 is [], no name"),
            ("[\"cat\"", "is no JSON"),
            (r#"{"0": "cat", "2": "dog"}"#, "class 1 is missing"),
            (r#"{"0": "cat", "00": "dog"}"#, "class 0 stands there twice"),
            (r#"{"cat": 0}"#, "key `cat` is no number"),
            (r#"{"0": null}"#, "class 0 is null"),
        ] {
            let fault = parse(content.as_bytes()).unwrap_err();
            assert!(fault.contains(part), "{content}: {fault}");
        }
        assert!(parse(b"cat\xff\ndog").unwrap_err().contains("UTF-8"));
        for (given, part) in [
            (&["cat"][..], "`cat` is no list of class names, no built-in list (imagenet) and no file"),
            (&[], "0 classes cannot be told apart"),
            (&["cat", " "], "the name of class 1 is empty"),
        ] {
            let error = class_names(&texts(given)).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        for (given, part) in [
            (&[][..], "there is no template"),
            (&["a photo"], "`a photo` is no template with {}"),
            (&["{} and {}"], "has to hold {} once"),
        ] {
            let error = templates(&texts(given)).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("one.txt");
        std::fs::write(&file, "cat\n").unwrap();
        let error = class_names(&[file.to_str().unwrap().to_owned()]).unwrap_err().to_string();
        assert!(error.contains("1 class cannot be told apart"), "{error}");
    }
}
