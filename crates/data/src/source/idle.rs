//! Settings of a source that have no effect on it: they are refused, for who gives one expects another dataset.

use std::path::Path;

use super::{SourceKind, SourceOptions, extension_of, files_below, kind_of, metadata, synthetic};
use crate::{Error, Result};

/// Keys that have an effect on shards and made-up samples.
const NONE: &[&str] = &[];
/// On parquet files.
const OF_PARQUET: &[&str] = &["image_column", "caption_column", "key_column", "captions"];
/// On folders of images with a metadata table.
const OF_TABLES: &[&str] = &["caption_column", "captions"];
/// On other folders of images.
const OF_FILES: &[&str] = &["caption_extensions"];

/// A setting that changes nothing of what is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Idle {
    /// Its key in [`SourceOptions`].
    pub key: &'static str,
    /// What the source is, in words.
    pub what: &'static str,
    /// Keys that have an effect on such.
    pub works: &'static [&'static str],
}

impl Idle {
    /// Fault and remedy, with keys as `spelled` has them.
    pub fn sentence(&self, spelled: impl Fn(&str) -> String) -> String {
        let works: Vec<String> = self.works.iter().map(|key| spelled(key)).collect();
        let others = match works.as_slice() {
            [] => String::new(),
            [one] => format!(" ({one} has one)"),
            [all @ .., last] => format!(" ({} and {last} have one)", all.join(", ")),
        };
        format!("{} has no effect on {}{others}; leave it out", spelled(self.key), self.what)
    }
}

/// The settings of columns and captions that are not the usual ones.
fn given(options: &SourceOptions) -> Vec<&'static str> {
    let usual = SourceOptions::default();
    let given = [
        ("image_column", options.image_column.is_some()),
        ("caption_column", options.caption_column.is_some()),
        ("key_column", options.key_column.is_some()),
        ("captions", options.captions != usual.captions),
        ("caption_extensions", options.caption_extensions != usual.caption_extensions),
    ];
    given.into_iter().filter_map(|(key, is_given)| is_given.then_some(key)).collect()
}

/// The first setting of columns and captions that a source does not follow.
///
/// # Errors
/// [`Error::BadSource`], [`Error::BadIndex`] and [`Error::Io`], as of [`open`](super::open).
pub fn idle(spec: &str, options: &SourceOptions) -> Result<Option<Idle>> {
    let given = given(options);
    if given.is_empty() {
        return Ok(None);
    }
    let (what, works) = followed(spec, options)?;
    Ok(given.into_iter().find(|key| !works.contains(key)).map(|key| Idle { key, what, works }))
}

/// Refuses a setting that none of some sources follows, as the table of a recipe has one of each for all.
///
/// # Errors
/// [`Error::BadSource`] naming the first source and the setting; those of [`idle`].
pub fn refuse_idle<'a>(specs: impl IntoIterator<Item = &'a str>, options: &SourceOptions) -> Result<()> {
    let given = given(options);
    if given.is_empty() {
        return Ok(());
    }
    let specs: Vec<&str> = specs.into_iter().collect();
    let sources = specs.iter().map(|spec| followed(spec, options)).collect::<Result<Vec<_>>>()?;
    let key = given.into_iter().find(|key| !sources.iter().any(|(_, works)| works.contains(key)));
    match (key, specs.first(), sources.first()) {
        (Some(key), Some(spec), Some(&(what, works))) => {
            let detail = Idle { key, what, works }.sentence(|key| format!("the setting `{key}`"));
            Err(Error::BadSource { spec: (*spec).to_owned(), detail })
        }
        _ => Ok(()),
    }
}

/// What a source is, and the settings that it follows.
fn followed(spec: &str, options: &SourceOptions) -> Result<(&'static str, &'static [&'static str])> {
    let path = Path::new(spec);
    let kind = match options.kind {
        _ if synthetic::is_synthetic(spec) => return Ok(("made-up samples", NONE)),
        Some(kind) => kind,
        None if path.exists() => kind_of(spec, path)?,
        // Patterns and addresses are told by their names.
        None if extension_of(path).as_deref() == Some("parquet") => SourceKind::Parquet,
        None => SourceKind::Webdataset,
    };
    Ok(match kind {
        SourceKind::Webdataset => ("tar shards, whose samples have their captions as parts", NONE),
        SourceKind::Mds => ("MDS shards, whose samples have their captions as columns", NONE),
        SourceKind::Parquet => ("parquet files", OF_PARQUET),
        SourceKind::Imagefolder if has_table(path)? => ("a folder of images with a metadata table", OF_TABLES),
        SourceKind::Imagefolder => ("a folder of images without a metadata table", OF_FILES),
    })
}

fn has_table(path: &Path) -> Result<bool> {
    Ok(path.is_file() || files_below(path)?.files.iter().any(|file| metadata::is_metadata(file)))
}
