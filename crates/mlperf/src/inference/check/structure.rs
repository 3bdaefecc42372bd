//! Names, sizes and links of everything in a tree.

use super::{Judge, Listing};
use crate::finding::Severity;
use crate::log::ReadError;
use calotype_core::system::format_bytes;
use std::fs;
use std::path::Path;
use walkdir::WalkDir;

/// Largest file: 50 MiB.
const LARGEST: u64 = 50 << 20;

impl Judge<'_> {
    /// Whether no files stand beside the folders, in the root and in a division; the checkers up to v5.1 read no further otherwise.
    pub(super) fn only_folders(&mut self, division: &Path) -> Result<bool, ReadError> {
        let may_stay = |name: &String| name.ends_with(".md") || name.ends_with(".pdf");
        let root =
            Listing::of(self.root)?.files.into_iter().filter(|name| !may_stay(name)).map(|name| self.root.join(name));
        let own = Listing::of(division)?.files.into_iter().map(|name| division.join(name));
        let files: Vec<_> = root.chain(own).collect();
        for file in &files {
            self.error(
                file,
                "the file stands beside the folders of divisions or submitters",
                "move it into the submitter's folder, or remove it",
            );
        }
        Ok(files.is_empty())
    }

    /// Judges names, sizes and links below a submitter's folder, and tells whether something is wrong. The checkers up to v5.1 read no
    /// further then; those since v6.0 do not look, but the repository of results still has these rules.
    pub(super) fn structure(&mut self, folder: &Path) -> Result<bool, ReadError> {
        let severity = if self.round.by_package() { Severity::Advice } else { Severity::Error };
        let mut found = false;
        for entry in WalkDir::new(folder).sort_by_file_name() {
            let entry = entry.map_err(|error| {
                let file = error.path().unwrap_or(folder).to_owned();
                ReadError { file, source: error.into() }
            })?;
            if let Some((problem, remedy)) = self.flaw(&entry) {
                self.add(severity, entry.path(), problem, remedy);
                found = true;
            }
        }
        Ok(found)
    }

    fn flaw(&self, entry: &walkdir::DirEntry) -> Option<(String, &'static str)> {
        let path = entry.path();
        let is_folder = entry.file_type().is_dir();
        if entry.path_is_symlink() && !path.is_dir() {
            // The official checker follows a link from the tree's root, not from where the link is.
            let target = fs::read_link(path).unwrap_or_default();
            if !self.root.join(target).exists() {
                return Some((
                    "the link leads nowhere, seen from the tree's root".to_owned(),
                    "put the file in its place",
                ));
            }
        }
        let name = entry.file_name().to_string_lossy();
        if name.starts_with('.') {
            return Some(("its name begins with a point".to_owned(), "rename or remove it"));
        }
        if name.contains(' ') {
            return Some(("its name holds a blank".to_owned(), "rename it"));
        }
        if is_folder && name.ends_with("__pycache__") {
            return Some(("it is a cache of Python".to_owned(), "remove it"));
        }
        if is_folder && fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none()) {
            return Some(("the folder is empty".to_owned(), "remove it"));
        }
        let size = fs::metadata(path).map_or(0, |metadata| metadata.len());
        (!is_folder && size > LARGEST)
            .then(|| (format!("it has {}, where 50 MiB are allowed", format_bytes(size)), "shorten or remove it"))
    }
}
