//! What lies beside the samples of a folder and is not read with them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::folder::IMAGE_EXTENSIONS;
use super::{SourceKind, extension_of, files_below};
use crate::{Result, told};

/// Files that hold samples of another kind than those that a folder is read for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Beside {
    pub images: Vec<PathBuf>,
    /// Tar shards, but for those of gzip: beside images lies what they were unpacked from.
    pub shards: Vec<PathBuf>,
    /// Parquet files, but for those that are named as a tar shard: img2dataset writes them about each.
    pub tables: Vec<PathBuf>,
}

impl Beside {
    /// Of a folder and those below it, read as `kind`.
    pub fn of(folder: &Path, kind: SourceKind) -> Result<Self> {
        let mut beside = Self::default();
        let files = files_below(folder)?.files;
        let stems: BTreeSet<PathBuf> =
            files.iter().filter(|path| is_tar(path)).map(|path| path.with_extension("")).collect();
        for path in files {
            let extension = extension_of(&path).unwrap_or_default();
            match () {
                () if IMAGE_EXTENSIONS.contains(&extension.as_str()) && kind != SourceKind::Imagefolder => {
                    beside.images.push(path);
                }
                () if is_tar(&path) && kind != SourceKind::Webdataset => beside.shards.push(path),
                () if extension == "parquet"
                    && kind != SourceKind::Parquet
                    && !stems.contains(&path.with_extension("")) =>
                {
                    beside.tables.push(path);
                }
                () => {}
            }
        }
        Ok(beside)
    }

    /// In sentences, each with an example.
    pub fn sentences(&self, kind: SourceKind) -> Vec<String> {
        let read = match kind {
            SourceKind::Webdataset => "tar shards",
            SourceKind::Mds => "MDS shards",
            SourceKind::Parquet => "parquet files",
            SourceKind::Imagefolder => "images",
        };
        let all = [("image", &self.images), ("tar shard", &self.shards), ("parquet file", &self.tables)];
        let sentence = |(what, files): (&str, &Vec<PathBuf>)| {
            let first = files.first()?.display();
            let (count, s, is) = match files.len() {
                1 => (1, "", "is"),
                count => (count, "s", "are"),
            };
            Some(format!(
                "{count} {what}{s} {is} not read, such as {first}: the folder's samples are its {read}; give each kind a folder of its own"
            ))
        };
        all.into_iter().filter_map(sentence).collect()
    }
}

fn is_tar(path: &Path) -> bool {
    extension_of(path).as_deref() == Some("tar")
}

/// Warns, once, of files of samples that are not read with those of a folder, which is read as `kind`. What cannot be listed is not
/// looked for.
pub fn tell_beside(folder: &Path, kind: SourceKind) {
    if !folder.is_dir() || !told::first_time(folder, "what lies beside") {
        return;
    }
    for sentence in Beside::of(folder, kind).map(|beside| beside.sentences(kind)).unwrap_or_default() {
        tracing::warn!(folder = %folder.display(), "{sentence}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn samples_of_another_kind_are_told() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("deep")).unwrap();
        let files =
            ["0.tar", "0.parquet", "0_stats.json", "1.tar", "a.PNG", "a.txt", "deep/b.jpg", "x.parquet", "y.tar.gz"];
        files.iter().for_each(|name| fs::write(folder.path().join(name), "").unwrap());
        let names = |files: &[PathBuf]| -> Vec<String> {
            files.iter().map(|path| path.strip_prefix(folder.path()).unwrap().display().to_string()).collect()
        };
        let found = Beside::of(folder.path(), SourceKind::Webdataset).unwrap();
        assert_eq!(names(&found.images), ["a.PNG", "deep/b.jpg"]);
        assert_eq!((found.shards.len(), names(&found.tables)), (0, vec!["x.parquet".to_owned()]));
        let told = found.sentences(SourceKind::Webdataset);
        assert!(
            told[0].starts_with("2 images are not read, such as ") && told[0].contains("its tar shards"),
            "{told:?}"
        );
        assert!(told[1].starts_with("1 parquet file is not read"), "{told:?}");
        let found = Beside::of(folder.path(), SourceKind::Imagefolder).unwrap();
        assert_eq!((found.images.len(), names(&found.shards)), (0, vec!["0.tar".to_owned(), "1.tar".to_owned()]));
        let found = Beside::of(folder.path(), SourceKind::Parquet).unwrap();
        assert_eq!((found.images.len(), found.shards.len(), found.tables.len()), (2, 2, 0));
        let only = tempfile::tempdir().unwrap();
        fs::write(only.path().join("0.tar"), "").unwrap();
        fs::write(only.path().join("index.json"), "").unwrap();
        assert_eq!(Beside::of(only.path(), SourceKind::Webdataset).unwrap(), Beside::default());
    }
}
