//! Pictures with the numbers of their classes.

use crate::{EvaluateError, Result};
use calotype_data::image::{DecodeNotes, DecodeOptions, RgbImage};
use calotype_data::source::folder::{IMAGE_EXTENSIONS, META_CLASSES};
use calotype_data::source::{SourceKind, SourceOptions, detect, open};
use calotype_data::{SampleRef, Source};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where pictures with classes are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelledSettings {
    /// A folder with one folder for each class, as ImageNet's validation set is laid out; shards, parquet files, or whatever
    /// else samples are read from.
    pub path: String,
    /// Part of a sample that holds its class, a number from 0 or a name; `json.FIELD` is a field of part `json`. Folders of
    /// classes have their number among all, in the order of their names, as `cls`.
    #[serde(default = "usual_part")]
    pub class: String,
}

fn usual_part() -> String {
    "cls".to_owned()
}

impl LabelledSettings {
    /// The usual part of a dataset.
    pub fn new(path: impl Into<String>) -> Self {
        Self { path: path.into(), class: usual_part() }
    }
}

/// A picture of a known class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelledPicture {
    /// Its name.
    pub name: String,
    /// Its pixels.
    pub image: RgbImage,
    /// Number of its class.
    pub class: usize,
}

/// Pictures of known classes, in the order of their source. Pixels are taken as they are stored, as all peers take them:
/// Pillow's `convert("RGB")`.
pub struct Labelled {
    source: Arc<dyn Source>,
    class: String,
    /// Names of the classes to tell apart.
    names: Vec<String>,
    /// Of the source's own numbers, those among the names; none if samples hold these themselves.
    numbers: Option<Vec<usize>>,
    decode: DecodeOptions,
    notes: DecodeNotes,
}

impl Labelled {
    /// Opens pictures of the classes `names`. Where the source names its classes, as folders do, all of them have to be among
    /// `names`; if none is, there have to be as many, and they are taken in their order, as ImageNet's folders (`n01440764`,
    /// …) stand for its classes.
    ///
    /// # Errors
    /// [`EvaluateError::Data`] if there are no pictures; [`EvaluateError::File`] for folders of classes without pictures, with
    /// names that differ in case alone, or that do not fit `names`.
    pub fn open(settings: &LabelledSettings, names: &[String]) -> Result<Self> {
        let source = open(&settings.path, &SourceOptions::default())?;
        let numbers = match own_classes(&*source) {
            Some(own) if settings.class == usual_part() => {
                check_folders(&settings.path, &own)?;
                let numbers = numbers_of(&own, names);
                Some(numbers.map_err(|detail| EvaluateError::File { path: source.name().into(), detail })?)
            }
            _ => None,
        };
        let (decode, notes) = (DecodeOptions::as_stored(), DecodeNotes::default());
        Ok(Self { source, class: settings.class.clone(), names: names.to_vec(), numbers, decode, notes })
    }

    /// The names of the classes that a source says itself, or that its samples hold as text; for what has no other list.
    ///
    /// # Errors
    /// As [`Labelled::open`], and for samples without a class.
    pub fn names_in(settings: &LabelledSettings) -> Result<Vec<String>> {
        let source = open(&settings.path, &SourceOptions::default())?;
        if let (Some(own), true) = (own_classes(&*source), settings.class == usual_part()) {
            check_folders(&settings.path, &own)?;
            return Ok(own);
        }
        let mut found = BTreeSet::new();
        for number in 0..source.len() {
            let held = source.get(number)?;
            let class = class_text(&held.sample(), &settings.class).map_err(|detail| bad(&*source, &detail))?;
            found.insert(class);
        }
        // Numbers are named by themselves, without gaps.
        let most = found.iter().map(|class| class.parse::<usize>().ok()).collect::<Option<Vec<_>>>();
        Ok(match most.map(|numbers| numbers.into_iter().max().unwrap_or(0)) {
            Some(most) if most < MOST_NUMBERED => (0..=most).map(|number| number.to_string()).collect(),
            Some(most) => {
                return Err(bad(
                    &*source,
                    &format!("class {most} is beyond the {MOST_NUMBERED} classes that are counted"),
                ));
            }
            None => found.into_iter().collect(),
        })
    }

    /// Number of pictures.
    pub fn len(&self) -> usize {
        self.source.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Some of the pictures, decoded by all threads.
    ///
    /// # Errors
    /// [`EvaluateError::Data`] for a picture that cannot be read, [`EvaluateError::File`] for one without a class of those
    /// that there are; both name it.
    pub fn pictures(&self, numbers: Range<usize>) -> Result<Vec<LabelledPicture>> {
        numbers.into_par_iter().map(|number| self.picture(number)).collect()
    }

    fn picture(&self, number: usize) -> Result<LabelledPicture> {
        let held = self.source.get(number)?;
        let sample = held.sample();
        let class = self.class_of(&sample).map_err(|detail| bad(&*self.source, &detail))?;
        // Without any, the error of the usual one names the parts that there are.
        let bytes =
            IMAGE_EXTENSIONS.iter().find_map(|part| sample.part(part).ok()).map_or_else(|| sample.part("png"), Ok)?;
        let (image, found) = RgbImage::decode_noting(sample.key(), bytes, &self.decode)?;
        self.notes.add(&found);
        Ok(LabelledPicture { name: sample.key().to_owned(), image, class })
    }

    fn class_of(&self, sample: &SampleRef<'_>) -> std::result::Result<usize, String> {
        let text = class_text(sample, &self.class)?;
        let wrong = |problem: &str| format!("sample `{}` has `{text}` in `{}`, {problem}", sample.key(), self.class);
        if let Ok(number) = text.parse::<usize>() {
            let known = self.numbers.as_ref().map_or(self.names.len(), Vec::len);
            let outside = || wrong(&format!("and classes are numbered from 0 to {}", known - 1));
            return match &self.numbers {
                Some(numbers) => numbers.get(number).copied().ok_or_else(outside),
                None if number < known => Ok(number),
                None => Err(outside()),
            };
        }
        let mut found = self.names.iter().enumerate().filter(|(_, name)| **name == text).map(|(number, _)| number);
        match (found.next(), found.next()) {
            (Some(number), None) => Ok(number),
            (Some(_), Some(_)) => Err(wrong("the name of several classes: give their numbers")),
            (None, _) => Err(wrong("which is neither the number nor the name of a class")),
        }
    }

    /// What was left out, and what decoding changed, in sentences.
    pub fn notices(&self) -> Vec<String> {
        let left_out = self.source.left_out();
        let left_out = left_out.iter().map(|(reason, count)| format!("{count} images: {reason}"));
        left_out.chain(self.notes.sentences(&self.decode)).collect()
    }
}

/// Most classes that are named by their numbers alone.
const MOST_NUMBERED: usize = 1 << 20;

fn bad(source: &dyn Source, detail: &str) -> EvaluateError {
    EvaluateError::File { path: source.name().into(), detail: detail.to_owned() }
}

fn own_classes(source: &dyn Source) -> Option<Vec<String>> {
    let names = source.meta().get(META_CLASSES)?.as_array()?;
    names.iter().map(|name| name.as_str().map(str::to_owned)).collect()
}

/// The class that a sample holds: the text of a part, or of a field of part `json` (`json.FIELD`).
///
/// # Errors
/// A sentence that names the sample, where there is none.
pub fn class_text(sample: &SampleRef<'_>, part: &str) -> std::result::Result<String, String> {
    let Some(field) = part.strip_prefix("json.") else {
        return match sample.text(part) {
            Ok(text) => Ok(text.trim().to_owned()),
            Err(error) => Err(format!(
                "{error}; pictures of known classes lie in one folder for each class, or hold the number of their class"
            )),
        };
    };
    let fields: Value = sample.text("json").map_err(|error| error.to_string()).and_then(|text| {
        serde_json::from_str(text)
            .map_err(|error| format!("sample `{}`: part `json` is no JSON: {error}", sample.key()))
    })?;
    match &fields[field] {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Null => Err(format!("sample `{}` has no field `{field}` in part `json`", sample.key())),
        other => {
            Err(format!("sample `{}` has {other} in `{part}`, which is neither a number nor a name", sample.key()))
        }
    }
}

/// Refuses folders of classes whose number would be another one than the reader expects: one without pictures, and two whose
/// names differ in case alone. Other paths than those of such folders pass.
///
/// # Errors
/// [`EvaluateError::File`] naming the folder.
pub fn check_folders(path: &str, classes: &[String]) -> Result<()> {
    let folder = Path::new(path);
    if !folder.is_dir() || detect(path)? != Some(SourceKind::Imagefolder) {
        return Ok(());
    }
    let wrong = |path: PathBuf, detail: String| Err(EvaluateError::File { path, detail });
    let entries = std::fs::read_dir(folder).map_err(EvaluateError::io("read", folder))?;
    let mut folders = Vec::new();
    for entry in entries {
        let entry = entry.map_err(EvaluateError::io("read", folder))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_dir() && !name.starts_with('.') {
            folders.push(name);
        }
    }
    folders.sort_unstable();
    if let Some(empty) = folders.iter().find(|name| !classes.contains(name)) {
        let detail = "a class without pictures, so that the classes behind it would have other numbers: remove this folder, or \
                      put its pictures there";
        return wrong(folder.join(empty), detail.to_owned());
    }
    let mut lower = BTreeMap::new();
    for name in &folders {
        if let Some(other) = lower.insert(name.to_lowercase(), name) {
            return wrong(
                folder.to_owned(),
                format!("the classes `{other}` and `{name}` differ in case alone: are they one?"),
            );
        }
    }
    Ok(())
}

/// The number among `names` of each of a source's classes; in their order, if none is among them and there are as many.
///
/// # Errors
/// A sentence that says what does not fit.
pub fn numbers_of(own: &[String], names: &[String]) -> std::result::Result<Vec<usize>, String> {
    let number = |name: &String| names.iter().position(|known| known == name);
    let found: Vec<Option<usize>> = own.iter().map(number).collect();
    let known = found.iter().flatten().count();
    if known == 0 && own.len() == names.len() {
        return Ok((0..own.len()).collect());
    }
    if known == 0 {
        let (own, names) = (own.len(), names.len());
        return Err(format!(
            "has {own} classes, where {names} are told apart, and none by one of their names: give all {names} of them, or call \
             the folders by the names of the classes"
        ));
    }
    for (name, number) in own.iter().zip(&found) {
        match number {
            None => return Err(format!("`{name}` is none of the {} classes that are told apart", names.len())),
            Some(number) if names[number + 1..].contains(name) => {
                return Err(format!("`{name}` is the name of several classes: give their numbers, in shards"));
            }
            Some(_) => {}
        }
    }
    Ok(found.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use calotype_data::image::PngEffort;
    use calotype_data::{Sample, ShardLimits, ShardWriter};

    fn png(level: u8) -> Vec<u8> {
        RgbImage::filled(4, 4, [level; 3]).unwrap().encode_png(PngEffort::Fast).unwrap()
    }

    /// A folder with pictures, by their paths.
    fn folder(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (number, file) in files.iter().enumerate() {
            let path = folder.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, png(number as u8)).unwrap();
        }
        folder
    }

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    fn classes(folder: &Path, list: &[&str]) -> Result<Vec<usize>> {
        let labelled = Labelled::open(&LabelledSettings::new(folder.to_str().unwrap()), &names(list))?;
        Ok(labelled.pictures(0..labelled.len())?.into_iter().map(|picture| picture.class).collect())
    }

    #[test]
    fn folders_are_classes_by_name_or_in_their_order() {
        let folder = folder(&["cat/a.png", "cat/b.png", "dog/a.png"]);
        assert_eq!(classes(folder.path(), &["dog", "cow", "cat"]).unwrap(), [2, 2, 0]);
        assert_eq!(classes(folder.path(), &["first", "second"]).unwrap(), [0, 0, 1]);
        assert_eq!(
            Labelled::names_in(&LabelledSettings::new(folder.path().to_str().unwrap())).unwrap(),
            ["cat", "dog"]
        );
        let labelled =
            Labelled::open(&LabelledSettings::new(folder.path().to_str().unwrap()), &names(&["cat", "dog"])).unwrap();
        let pictures = labelled.pictures(1..3).unwrap();
        assert_eq!((pictures[0].name.as_str(), pictures[1].name.as_str()), ("cat/b", "dog/a"));
        assert_eq!(pictures[1].image.pixel(0, 0), [2; 3]);
    }

    #[test]
    fn folders_that_do_not_fit_are_refused() {
        let refused = |folder: &tempfile::TempDir, list: &[&str], part: &str| {
            let error = classes(folder.path(), list).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains(folder.path().to_str().unwrap()), "{error}");
        };
        let two = folder(&["cat/a.png", "dog/a.png"]);
        refused(&two, &["x", "y", "z"], "has 2 classes, where 3 are told apart");
        refused(&two, &["cat", "y"], "`dog` is none of the 2 classes");
        refused(&two, &["cat", "dog", "cat"], "`cat` is the name of several classes");
        std::fs::create_dir(two.path().join("cow")).unwrap();
        refused(&two, &["cat", "dog"], "cow: a class without pictures");
        let cases = folder(&["Cat/a.png", "cat/a.png"]);
        refused(&cases, &["Cat", "cat"], "`Cat` and `cat` differ in case alone");
        refused(&folder(&["a.png", "b.png"]), &["a", "b"], "one folder for each class");
        let none = tempfile::tempdir().unwrap();
        refused(&none, &["a", "b"], "no images");
    }

    #[test]
    fn samples_say_their_class_by_number_or_name() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, samples: &[Sample]| {
            let path = folder.path().join(name);
            let mut writer = ShardWriter::create(&path, "x", ShardLimits::default()).unwrap();
            samples.iter().for_each(|sample| writer.write(sample).unwrap());
            writer.finish().unwrap();
            path.to_str().unwrap().to_owned()
        };
        let sample = |key: &str| Sample::new(key).with("png", png(9));
        let open = |path: &str, class: &str| {
            let settings = LabelledSettings { path: path.to_owned(), class: class.to_owned() };
            let labelled = Labelled::open(&settings, &names(&["red", "blue", "green"]))?;
            Ok(labelled.pictures(0..labelled.len())?.iter().map(|picture| picture.class).collect::<Vec<_>>())
        };
        let good = write(
            "good",
            &[
                sample("a").with("cls", "2\n").with("json", r#"{"colour": "red", "n": 1}"#),
                sample("b").with("cls", "blue").with("json", r#"{"colour": "green", "n": 0}"#),
            ],
        );
        let found: Result<Vec<usize>> = open(&good, "cls");
        assert_eq!(found.unwrap(), [2, 1]);
        assert_eq!(open(&good, "json.colour").unwrap(), [0, 2]);
        assert_eq!(open(&good, "json.n").unwrap(), [1, 0]);
        let settings = |class: &str| LabelledSettings { path: good.clone(), class: class.to_owned() };
        assert_eq!(Labelled::names_in(&settings("json.colour")).unwrap(), ["green", "red"]);
        assert_eq!(Labelled::names_in(&settings("json.n")).unwrap(), ["0", "1"]);
        for (name, sample, class, part) in [
            ("above", sample("a").with("cls", "3"), "cls", "`3` in `cls`, and classes are numbered from 0 to 2"),
            ("other", sample("a").with("cls", "pink"), "cls", "neither the number nor the name of a class"),
            ("without", sample("a").with("txt", "x"), "cls", "hold the number of their class"),
            ("field", sample("a").with("json", "{}"), "json.n", "has no field `n`"),
            ("list", sample("a").with("json", r#"{"n": []}"#), "json.n", "has [] in `json.n`"),
            ("broken", sample("a").with("json", "{"), "json.n", "is no JSON"),
        ] {
            let path = write(name, &[sample]);
            let error = open(&path, class).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains(name), "{error}");
        }
    }
}
