//! What a sample's caption is: a part's text, its first line, a sentence made of its class or name; its tags shuffled and
//! dropped.

use crate::config::{SettingError, check};
use crate::task::BoxError;
use calotype_core::names::nearest;
use calotype_core::{Purpose, Stream};
use calotype_data::source::folder::META_CLASSES;
use calotype_data::{Error, SampleRef};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// How captions are read beside the key `caption`: table `data.captions`. Tags are what stands between commas. What is random is a
/// function of the run's seed and the sample's position.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CaptionSettings {
    /// Whether only the first line is the caption, as kohya's sd-scripts read caption files.
    pub first_line: bool,
    /// Whether the tags behind the kept ones come in a random order (kohya's `shuffle_caption`).
    pub shuffle_tags: bool,
    /// Tags at the beginning that are neither moved nor dropped (kohya's `keep_tokens`).
    pub keep_tags: usize,
    /// Probability of leaving out each of the other tags (kohya's `caption_tag_dropout_rate`).
    pub tag_dropout: f64,
}

impl CaptionSettings {
    /// Checks what the types cannot.
    ///
    /// # Errors
    /// [`SettingError`] naming the key.
    pub fn validate(&self) -> Result<(), SettingError> {
        check((0.0..=1.0).contains(&self.tag_dropout), "data.captions.tag_dropout", || {
            format!("{} is no probability; use 0 to 1", self.tag_dropout)
        })?;
        check(self.keep_tags == 0 || self.is_random(), "data.captions.keep_tags", || {
            "keeps tags in their places, but nothing moves or drops them: set shuffle_tags or tag_dropout too"
                .to_owned()
        })
    }

    /// Whether captions differ from epoch to epoch.
    pub fn is_random(&self) -> bool {
        self.shuffle_tags || self.tag_dropout > 0.0
    }
}

/// Where captions come from: the key `caption`.
#[derive(Clone, Debug, PartialEq)]
enum Text {
    /// Of a part.
    Part(String),
    /// Made of these pieces.
    Template(Vec<Piece>),
}

#[derive(Clone, Debug, PartialEq)]
enum Piece {
    Plain(String),
    /// Name of the sample's class.
    Class,
    /// Last piece of the sample's key, without underscores and hyphens.
    File,
    /// The text of a part.
    Part(String),
}

/// Reads captions; can be shared between threads.
#[derive(Clone, Debug)]
pub struct CaptionReader {
    text: Text,
    settings: CaptionSettings,
    classes: Vec<String>,
    seed: u64,
    /// Whether an empty caption was told.
    told: Arc<AtomicBool>,
}

impl CaptionReader {
    /// Of a part (`txt`), or of a template: `a photo of {class}`, in which `{class}` is the name of the sample's class (part
    /// `cls`; without names, its text), `{file}` the file's name, and any other name in braces the text of that part.
    /// A dataset's `meta` tells the names of classes.
    ///
    /// # Errors
    /// [`SettingError`] for a template that cannot be.
    pub fn new(
        caption: &str,
        settings: &CaptionSettings,
        meta: &Map<String, Value>,
        seed: u64,
    ) -> Result<Self, SettingError> {
        let names = meta.get(META_CLASSES).and_then(Value::as_array);
        let classes = names.into_iter().flatten().filter_map(|name| name.as_str().map(words)).collect();
        settings.validate()?;
        Ok(Self { text: Text::parse(caption)?, settings: settings.clone(), classes, seed, told: Arc::default() })
    }

    /// The caption of the sample at a position of the run.
    ///
    /// # Errors
    /// Name the sample whose part is missing or is no text.
    pub fn read(&self, position: u64, sample: &SampleRef<'_>) -> Result<String, BoxError> {
        let text = match &self.text {
            Text::Part(part) => match sample.text(part) {
                Ok(text) => text.to_owned(),
                Err(error) => {
                    let advice = "captions stand in files beside the images (a.png and a.txt) or in a metadata.jsonl when they are \
                                  converted, or are made of names: caption = \"a photo of {class}\" or \"{file}\"";
                    return Err(advised(error, |_| advice.to_owned()).into());
                }
            },
            Text::Template(pieces) => {
                pieces.iter().map(|piece| self.piece(piece, sample)).collect::<Result<String, BoxError>>()?
            }
        };
        let text = text.trim();
        if text.is_empty() && !self.told.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                sample = sample.key(),
                "an empty caption, which is taken as it is: an image without words; `calotype data check` names all of them, and with \
                 --quarantine has training leave them out"
            );
        }
        let text = if self.settings.first_line { text.lines().next().unwrap_or_default().trim() } else { text };
        Ok(if self.settings.is_random() { self.varied(position, text) } else { text.to_owned() })
    }

    fn piece(&self, piece: &Piece, sample: &SampleRef<'_>) -> Result<String, BoxError> {
        Ok(match piece {
            Piece::Plain(text) => text.clone(),
            Piece::Part(part) => {
                let text =
                    sample.text(part).map_err(|error| advised(error, |present| names_in_braces(part, present)))?;
                text.trim().to_owned()
            }
            Piece::File => words(sample.key().rsplit('/').next().unwrap_or_default()),
            Piece::Class => {
                let asked = |_: &str| {
                    "the key `caption` asks for it by {class}: classes are folders of images, or a column `label` of their metadata"
                        .to_owned()
                };
                let class = sample.text("cls").map_err(|error| advised(error, asked))?.trim();
                let name = class.parse::<usize>().ok().and_then(|class| self.classes.get(class));
                name.cloned().unwrap_or_else(|| words(class))
            }
        })
    }

    /// The tags in the position's order, without those that it drops.
    fn varied(&self, position: u64, text: &str) -> String {
        let mut random = Stream::new(self.seed, Purpose::CaptionTags, position);
        let tags: Vec<&str> = text.split(',').map(str::trim).filter(|tag| !tag.is_empty()).collect();
        let (kept, others) = tags.split_at(self.settings.keep_tags.min(tags.len()));
        let mut others = others.to_vec();
        if self.settings.shuffle_tags {
            for last in (1..others.len()).rev() {
                others.swap(last, random.below(last as u64 + 1) as usize);
            }
        }
        others.retain(|_| self.settings.tag_dropout == 0.0 || random.uniform_f64() >= self.settings.tag_dropout);
        kept.iter().chain(&others).copied().collect::<Vec<_>>().join(", ")
    }
}

/// The error of a part that is missing, with what to do about it, which is made of the parts that there are; others as they are.
fn advised(error: Error, advice: impl Fn(&str) -> String) -> Error {
    match error {
        Error::MissingPart { key, part, present } => {
            let present = format!("{present}; {}", advice(&present));
            Error::MissingPart { key, part, present }
        }
        other => other,
    }
}

/// What a caption's name in braces may have been meant to be, where a sample has no such part.
fn names_in_braces(name: &str, present: &str) -> String {
    let known = ["class", "file"].into_iter().chain(present.split(", "));
    let meant = nearest(name, known).map_or_else(String::new, |name| format!(" (did you mean {{{name}}}?)"));
    format!(
        "the key `caption` asks for it by {{{name}}}{meant}: in braces stand class, file, for the file's name, or the extension of a part"
    )
}

/// What is to be said of captions that were cut to a number of tokens; none if none was.
pub(crate) fn cut_captions(count: u64, tokens: usize) -> Option<String> {
    match count {
        0 => None,
        1 => Some(format!("1 caption was longer than {tokens} tokens and was cut")),
        _ => Some(format!("{count} captions were longer than {tokens} tokens and were cut")),
    }
}

/// A name as words: `golden_retriever-02` is `golden retriever 02`.
fn words(name: &str) -> String {
    name.split(['_', '-', ' ']).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

impl Text {
    fn parse(caption: &str) -> Result<Self, SettingError> {
        let wrong = |problem: String| SettingError { key: "data.caption", problem };
        if !caption.contains(['{', '}']) {
            let part = !caption.is_empty() && !caption.contains(char::is_whitespace);
            return match part {
                true => Ok(Self::Part(caption.to_owned())),
                false => Err(wrong(format!(
                    "`{caption}` is neither the extension of a part, such as txt, nor has it a name in braces, such as \
                     \"a photo of {{class}}\""
                ))),
            };
        }
        let mut pieces = Vec::new();
        let mut rest = caption;
        while !rest.is_empty() {
            let start = rest.find(['{', '}']).unwrap_or(rest.len());
            if start > 0 {
                pieces.push(Piece::Plain(rest[..start].to_owned()));
                rest = &rest[start..];
                continue;
            }
            let name = rest.strip_prefix('{').and_then(|inside| inside.split_once('}'));
            let Some((name, behind)) = name.filter(|(name, _)| !name.is_empty() && !name.contains('{')) else {
                let names = "write names of class, file or a part in braces, such as \"a photo of {class}\"";
                return Err(wrong(format!("`{caption}` has braces without a name; {names}")));
            };
            pieces.push(match name {
                "class" => Piece::Class,
                "file" => Piece::File,
                part => Piece::Part(part.to_owned()),
            });
            rest = behind;
        }
        Ok(Self::Template(pieces))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use calotype_data::Sample;

    fn captions(caption: &str, settings: CaptionSettings) -> CaptionReader {
        let classes = vec!["golden retriever".to_owned(), "tabby cat".to_owned()];
        CaptionReader { text: Text::parse(caption).unwrap(), settings, classes, seed: 3, told: Arc::default() }
    }

    fn sample(text: &str) -> Sample {
        Sample::new("animals/my_old-dog.02").with("txt", text).with("cls", "1").with("tag", "wet")
    }

    fn read(captions: &CaptionReader, position: u64, text: &str) -> String {
        captions.read(position, &SampleRef::from(&sample(text))).unwrap()
    }

    #[test]
    fn captions_are_parts_lines_and_sentences() {
        let plain = CaptionSettings::default();
        let first = CaptionSettings { first_line: true, ..plain.clone() };
        for (caption, settings, expected) in [
            ("txt", &plain, "a dog\nsecond line"),
            ("txt", &first, "a dog"),
            ("a photo of {class}", &plain, "a photo of tabby cat"),
            ("{file}", &plain, "my old dog.02"),
            ("{tag} {class}: {txt}", &first, "wet tabby cat: a dog"),
        ] {
            assert_eq!(read(&captions(caption, settings.clone()), 0, " a dog\nsecond line \n"), expected, "{caption}");
        }
        let nameless = CaptionReader { classes: Vec::new(), ..captions("{class}", plain.clone()) };
        assert_eq!(read(&nameless, 0, ""), "1");
        let error = captions("{json}", plain).read(0, &SampleRef::from(&sample(""))).unwrap_err().to_string();
        assert!(error.contains("json") && error.contains("my_old-dog.02"), "{error}");
        let lacking = |caption: &str, sample: &Sample| {
            let reader = captions(caption, CaptionSettings::default());
            let error = reader.read(0, &SampleRef::from(sample)).unwrap_err();
            assert!(matches!(error.downcast_ref(), Some(Error::MissingPart { .. })), "{error}");
            error.to_string()
        };
        let error = lacking("a {fil}", &sample(""));
        assert!(error.contains("no part `fil`") && error.contains("key `caption` asks for it by {fil}"), "{error}");
        assert!(error.contains("did you mean {file}?"), "{error}");
        assert!(lacking("{tga}", &sample("")).contains("did you mean {tag}?"));
        let bare = Sample::new("bare").with("png", "");
        assert!(lacking("{class}", &bare).contains("key `caption` asks for it by {class}"));
        assert!(lacking("txt", &bare).contains("it has: png; captions stand in files beside the images"));
    }

    #[test]
    fn templates_that_cannot_be_are_refused() {
        for wrong in ["", "a photo", "a photo of {", "}", "{}", "{a{b}}", "{class"] {
            let error = Text::parse(wrong).unwrap_err().to_string();
            assert!(error.contains("`data.caption`") && error.contains("{class}"), "{wrong}: {error}");
        }
        let wrong = CaptionSettings { tag_dropout: 1.5, ..CaptionSettings::default() };
        assert!(wrong.validate().unwrap_err().to_string().contains("tag_dropout"));
        let wrong = CaptionSettings { keep_tags: 2, ..CaptionSettings::default() };
        assert!(wrong.validate().unwrap_err().to_string().contains("keep_tags"));
    }

    #[test]
    fn tags_are_shuffled_and_dropped_by_position() {
        let text = "1girl, red hair, hat, , long coat, street, night";
        let settings = CaptionSettings { shuffle_tags: true, keep_tags: 1, ..CaptionSettings::default() };
        let shuffled = captions("txt", settings.clone());
        let orders: std::collections::BTreeSet<String> = (0..40).map(|at| read(&shuffled, at, text)).collect();
        assert!(orders.len() > 20);
        for order in &orders {
            let mut tags: Vec<&str> = order.split(", ").collect();
            assert_eq!(tags[0], "1girl");
            tags.sort_unstable();
            assert_eq!(tags, ["1girl", "hat", "long coat", "night", "red hair", "street"]);
        }
        assert_eq!(read(&shuffled, 7, text), read(&shuffled, 7, text));
        let dropped = captions("txt", CaptionSettings { shuffle_tags: false, tag_dropout: 0.5, ..settings });
        let left: usize = (0..200).map(|at| read(&dropped, at, text).split(", ").count() - 1).sum();
        assert!((400..600).contains(&left), "{left} of 1000");
        assert!((0..200).all(|at| read(&dropped, at, text).starts_with("1girl")));
        let all = captions("txt", CaptionSettings { tag_dropout: 1.0, ..CaptionSettings::default() });
        assert_eq!(read(&all, 0, text), "");
    }
}
