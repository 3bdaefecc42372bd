//! The numbers of samples' classes.

use crate::config::{DataSettings, SettingError, check};
use crate::stages::StageError;
use crate::task::BoxError;
use calotype_data::source::folder::META_CLASSES;
use calotype_data::{SampleRef, Source, source};
use calotype_evaluate::EvaluateError;
use calotype_evaluate::vision::labelled::{check_folders, class_text, numbers_of};
use calotype_models::ConfigError;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The part that folders of classes give their samples, and shards by custom.
pub(crate) const USUAL_PART: &str = "cls";

/// Instead of a part: the class is what a sample's key begins with, as ImageNet names its images (`n01440764_10026`).
const KEY: &str = "key";

/// How the number of a sample's class is found.
#[derive(Clone, Debug)]
pub(crate) struct Classes {
    part: String,
    /// Names of the classes; empty where nobody says them.
    names: Vec<String>,
    labels: usize,
    /// Of the dataset's own numbers, those among the names; none if they are the same.
    numbers: Option<Vec<usize>>,
}

impl Classes {
    /// For `labels` classes. They are called as `given`, or else as the dataset says: folders of classes by their names in order, as
    /// torchvision's `class_to_idx`, and shards of one class each by the names of their files, in order.
    ///
    /// # Errors
    /// [`StageError::Config`] if there are not as many classes as `labels`; [`StageError::Setting`] where classes are told by keys, and
    /// nobody names them; [`StageError::Dataset`] for folders of classes that are
    /// empty, differ in case alone, or are not those that were given.
    pub fn open(
        part: &str,
        given: &[String],
        data: &DataSettings,
        source: &dyn Source,
        labels: usize,
    ) -> Result<Self, StageError> {
        let own = match part {
            USUAL_PART => own_classes(source),
            KEY if given.is_empty() => Some(shard_names(source)?),
            _ => None,
        };
        if part == USUAL_PART {
            check_alike(data)?;
            let folders = own.iter().flat_map(|own| data.specs().into_iter().map(move |(spec, _)| (spec, own)));
            folders.into_iter().try_for_each(|(spec, own)| check_folders(spec, own)).map_err(dataset)?;
        }
        let numbers = match &own {
            Some(own) if part == USUAL_PART && !given.is_empty() => numbers_among(own, given, source)?,
            _ => None,
        };
        let names = if given.is_empty() { own.unwrap_or_default() } else { given.to_vec() };
        check_given(given, labels)?;
        if !names.is_empty() && names.len() != labels {
            let problem = format!("the dataset has {} classes", names.len());
            return Err(ConfigError { field: "labels", problem }.into());
        }
        Ok(Self { part: part.to_owned(), names, labels, numbers })
    }

    /// The same classes in other samples, those of an evaluation, whose folders may be in another order, or be fewer.
    ///
    /// # Errors
    /// [`StageError::Data`] if the samples cannot be opened; [`StageError::Dataset`] for folders of classes that are empty, or none of
    /// these classes.
    pub fn in_other(&self, path: &str, data: &DataSettings) -> Result<Self, StageError> {
        if self.part != USUAL_PART {
            return Ok(self.clone());
        }
        let source = source::open(path, &data.source)?;
        let own = own_classes(&*source);
        own.as_ref().map_or(Ok(()), |own| check_folders(path, own)).map_err(dataset)?;
        let numbers = match own {
            Some(own) if !self.names.is_empty() => numbers_among(&own, &self.names, &*source)?,
            _ => None,
        };
        Ok(Self { numbers, ..self.clone() })
    }

    /// Names of the classes; empty where nobody says them.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The number of a sample's class.
    ///
    /// # Errors
    /// A sentence that names the sample.
    pub fn of(&self, sample: &SampleRef<'_>) -> Result<usize, BoxError> {
        let text = match self.part.as_str() {
            KEY => class_of_key(sample.key()).to_owned(),
            part => class_text(sample, part).map_err(|error| {
                format!("{error}; where keys begin with the class (n01440764_10026), set objective.class = \"{KEY}\"")
            })?,
        };
        let named = || self.names.iter().position(|name| *name == text);
        let number = match text.parse::<usize>() {
            Ok(number) => match &self.numbers {
                Some(numbers) => numbers.get(number).copied(),
                None => Some(number).filter(|number| *number < self.labels),
            },
            Err(_) => named(),
        };
        number.ok_or_else(|| {
            let (key, part, last) = (sample.key(), &self.part, self.labels - 1);
            format!(
                "sample `{key}` has `{text}` in `{part}`, which is no class from 0 to {last}{}; model.labels is the number of classes",
                if self.names.is_empty() { "" } else { ", nor the name of one" }
            )
            .into()
        })
    }
}

/// Checks that as many classes are named as a classifier has, where they are named.
///
/// # Errors
/// [`ConfigError`].
pub(crate) fn check_given(given: &[String], labels: usize) -> Result<(), ConfigError> {
    match given.len() {
        0 => Ok(()),
        count if count == labels => Ok(()),
        count => Err(ConfigError { field: "labels", problem: format!("objective.classes names {count} classes") }),
    }
}

/// The number among `names` of each of a source's own classes, if these are others or in another order.
fn numbers_among(own: &[String], names: &[String], source: &dyn Source) -> Result<Option<Vec<usize>>, StageError> {
    if own == names {
        return Ok(None);
    }
    let wrong = |problem: String| StageError::Dataset { path: source.name().into(), source: problem.into() };
    numbers_of(own, names).map(Some).map_err(wrong)
}

/// Refuses several folders of classes of which each numbers its own.
fn check_alike(data: &DataSettings) -> Result<(), StageError> {
    let specs = data.specs();
    let [(first, _), others @ ..] = &specs[..] else { return Ok(()) };
    if others.is_empty() {
        return Ok(());
    }
    let classes_of = |spec: &str| Ok::<_, StageError>(own_classes(&*source::open(spec, &data.source)?));
    let expected = classes_of(first)?;
    for (spec, _) in others {
        if classes_of(spec)? != expected {
            let problem = format!(
                "has other classes than {first}, so that one number would stand for two of them: give all sources the same folders, or \
                 make shards of them that hold numbers of common classes"
            );
            return Err(StageError::Dataset { path: PathBuf::from(spec), source: problem.into() });
        }
    }
    Ok(())
}

fn own_classes(source: &dyn Source) -> Option<Vec<String>> {
    let names = source.meta().get(META_CLASSES)?.as_array()?;
    Some(names.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect())
}

/// The names of a source's shards, without extension, in order.
///
/// # Errors
/// [`SettingError`] if the source does not tell them.
fn shard_names(source: &dyn Source) -> Result<Vec<String>, SettingError> {
    let blocks = source.blocks();
    let mut first = 0;
    let mut names = BTreeSet::new();
    for samples in &blocks {
        let file = source.file_of(first);
        names.extend(Path::new(&file).file_stem().map(|stem| stem.to_string_lossy().into_owned()));
        first += samples;
    }
    check(names.len() == blocks.len(), "objective.classes", || {
        format!(
            "is not set, and {} does not tell its shards, one for each class: name the classes in order",
            source.name()
        )
    })?;
    Ok(names.into_iter().collect())
}

/// The first folder of a key, or else what stands in front of its last `_`.
fn class_of_key(key: &str) -> &str {
    let folder = key.split_once('/').map(|(folder, _)| folder);
    folder.or_else(|| key.rsplit_once('_').map(|(class, _)| class)).unwrap_or(key)
}

fn dataset(error: EvaluateError) -> StageError {
    match error {
        EvaluateError::Data(error) => error.into(),
        EvaluateError::File { path, detail } => StageError::Dataset { path, source: detail.into() },
        other => StageError::Dataset { path: PathBuf::new(), source: other.into() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use calotype_data::image::{PngEffort, RgbImage};
    use calotype_data::{Sample, ShardLimits, ShardWriter};
    use std::fs;

    fn classes(part: &str, names: &[&str], labels: usize) -> Classes {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        Classes { part: part.to_owned(), names, labels, numbers: None }
    }

    #[test]
    fn classes_are_numbers_names_or_beginnings_of_keys() {
        let of = |classes: &Classes, sample: &Sample| classes.of(&SampleRef::from(sample));
        let numbered = classes("cls", &[], 3);
        let with = |text: &str| Sample::new("a").with("cls", text);
        assert_eq!(of(&numbered, &with(" 2\n")).unwrap(), 2);
        for text in ["3", "-1", "cat"] {
            let error = of(&numbered, &with(text)).unwrap_err().to_string();
            assert!(error.contains(&format!("`a` has `{text}`")) && error.contains("from 0 to 2"), "{error}");
        }
        let error = of(&numbered, &Sample::new("a").with("txt", "")).unwrap_err().to_string();
        assert!(error.contains("`a`") && error.contains("objective.class = \"key\""), "{error}");
        let fields = Sample::new("b").with("json", r#"{"colour": "red", "shape": 1, "size": {}}"#);
        let named = classes("json.colour", &["blue", "red"], 2);
        assert_eq!(of(&named, &fields).unwrap(), 1);
        assert_eq!(of(&classes("json.shape", &["x", "y"], 2), &fields).unwrap(), 1);
        for (part, word) in [("json.size", "neither a number nor a name"), ("json.none", "no field `none`")] {
            let error = of(&classes(part, &["x"], 1), &fields).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        let error = of(&classes("json.colour", &["blue"], 1), &fields).unwrap_err().to_string();
        assert!(error.contains("`red`") && error.contains("nor the name of one"), "{error}");
        let synsets = classes("key", &["n01440764", "n01443537"], 2);
        for (key, expected) in [("n01443537_22", 1), ("n01440764/a_b", 0), ("n01440764", 0)] {
            assert_eq!(of(&synsets, &Sample::new(key)).unwrap(), expected, "{key}");
        }
        assert!(of(&synsets, &Sample::new("n02_1")).is_err());
    }

    fn png() -> Vec<u8> {
        RgbImage::filled(8, 8, [1, 2, 3]).unwrap().encode_png(PngEffort::Fast).unwrap()
    }

    fn open(path: &Path, part: &str, given: &[&str], labels: usize) -> Result<Classes, StageError> {
        let data: DataSettings = toml::from_str(&format!("path = {path:?}")).unwrap();
        let given: Vec<String> = given.iter().map(|name| (*name).to_owned()).collect();
        Classes::open(part, &given, &data, &*source::open(&data.path, &data.source).unwrap(), labels)
    }

    /// ImageNet-1k's layout, and the same below `val` with other contents.
    #[test]
    fn folders_of_classes_are_numbered_by_their_names() {
        let folder = tempfile::tempdir().unwrap();
        for (class, file) in [("n02", "b.png"), ("n01", "n01_2.png"), ("n10", "a.png"), ("n02", "deeper/c.png")] {
            let path = folder.path().join(class).join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, png()).unwrap();
        }
        assert_eq!(open(folder.path(), "cls", &[], 3).unwrap().names(), ["n01", "n02", "n10"]);
        let error = open(folder.path(), "cls", &[], 1000).unwrap_err().to_string();
        assert!(error.contains("model.labels") && error.contains("the dataset has 3 classes"), "{error}");
        // In another order, by name.
        let classes = open(folder.path(), "cls", &["n10", "n01", "n02"], 3).unwrap();
        assert_eq!(classes.numbers, Some(vec![1, 2, 0]));
        let error = open(folder.path(), "cls", &["n10", "n01"], 2).unwrap_err().to_string();
        assert!(error.contains(folder.path().to_str().unwrap()), "{error}");
        fs::create_dir(folder.path().join("n03")).unwrap();
        let error = open(folder.path(), "cls", &[], 3).unwrap_err().to_string();
        assert!(error.contains("n03") && error.contains("a class without pictures"), "{error}");
        fs::remove_dir(folder.path().join("n03")).unwrap();
        fs::create_dir(folder.path().join("N01")).unwrap();
        fs::write(folder.path().join("N01/a.png"), png()).unwrap();
        let error = open(folder.path(), "cls", &[], 4).unwrap_err().to_string();
        assert!(error.contains("differ in case alone"), "{error}");
    }

    fn folder_of(classes: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for class in classes {
            fs::create_dir(folder.path().join(class)).unwrap();
            fs::write(folder.path().join(class).join("a.png"), png()).unwrap();
        }
        folder
    }

    /// A folder that lacks a class numbers those behind it otherwise.
    #[test]
    fn evaluations_and_mixtures_keep_the_numbers() {
        let trained = folder_of(&["ant", "bee", "cow"]);
        let classes = open(trained.path(), "cls", &[], 3).unwrap();
        let data: DataSettings = toml::from_str(&format!("path = {:?}", trained.path())).unwrap();
        let other = |folder: &tempfile::TempDir| classes.in_other(folder.path().to_str().unwrap(), &data);
        let fewer = other(&folder_of(&["ant", "cow"])).unwrap();
        let number = |classes: &Classes, text: &str| classes.of(&SampleRef::from(&Sample::new("x").with("cls", text)));
        assert_eq!((number(&fewer, "0").unwrap(), number(&fewer, "1").unwrap()), (0, 2));
        assert!(number(&fewer, "2").is_err());
        assert_eq!(number(&other(&trained).unwrap(), "1").unwrap(), 1);
        let error = other(&folder_of(&["ant", "dog"])).unwrap_err().to_string();
        assert!(error.contains("`dog` is none of the 3 classes"), "{error}");

        let mixed = |first: &tempfile::TempDir, second: &tempfile::TempDir| {
            let paths = [first, second].map(|folder| format!("{{ path = {:?} }}", folder.path())).join(", ");
            let data: DataSettings = toml::from_str(&format!("sources = [{paths}]")).unwrap();
            let source = crate::sources::open_source(&data, None).unwrap();
            Classes::open("cls", &[], &data, &*source, 3).map(|classes| classes.names().to_vec())
        };
        assert_eq!(mixed(&trained, &folder_of(&["ant", "bee", "cow"])).unwrap(), ["ant", "bee", "cow"]);
        let error = mixed(&trained, &folder_of(&["ant", "bee", "dog"])).unwrap_err().to_string();
        assert!(error.contains("has other classes than"), "{error}");
    }

    /// ImageNet-21k as it is published: a tar for each class.
    #[test]
    fn shards_of_one_class_each_are_numbered_by_their_names() {
        let folder = tempfile::tempdir().unwrap();
        for class in ["n02", "n01"] {
            let aside = folder.path().join("aside");
            let mut writer = ShardWriter::create(&aside, "x", ShardLimits::default()).unwrap();
            (0..2).for_each(|n| writer.write(&Sample::new(format!("{class}_{n}")).with("png", png())).unwrap());
            writer.finish().unwrap();
            let shard = fs::read_dir(&aside).unwrap().map(|entry| entry.unwrap().path());
            let shard = shard.into_iter().find(|path| path.extension().is_some_and(|ext| ext == "tar")).unwrap();
            fs::rename(shard, folder.path().join(format!("{class}.tar"))).unwrap();
            fs::remove_dir_all(aside).unwrap();
        }
        let classes = open(folder.path(), "key", &[], 2).unwrap();
        assert_eq!(classes.names(), ["n01", "n02"]);
        assert_eq!(classes.of(&SampleRef::from(&Sample::new("n02_1"))).unwrap(), 1);
        let error = open(folder.path(), "key", &[], 3).unwrap_err().to_string();
        assert!(error.contains("the dataset has 2 classes"), "{error}");
        // A pattern does not tell its shards.
        let pattern = folder.path().join("n{01..02}.tar");
        let error = open(&pattern, "key", &[], 2).unwrap_err().to_string();
        assert!(error.contains("`objective.classes`: is not set"), "{error}");
        assert_eq!(open(&pattern, "key", &["n01", "n02"], 2).unwrap().names(), ["n01", "n02"]);
    }
}
