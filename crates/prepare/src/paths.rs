//! Which paths lie in which folders.

use std::path::{Component, Path, PathBuf};

use calotype_core::folders::{Content, check_folder};

use crate::{Error, Result};

/// Refuses the folder of something else than samples as that of a dataset.
///
/// # Errors
/// [`Error::Usage`] naming what is there.
pub(crate) fn check_out(folder: &Path) -> Result<()> {
    check_folder(folder, &[Content::Shards]).map_err(Error::Usage)
}

/// True if `path`, which need not exist, is `folder` or lies below it.
pub(crate) fn lies_in(path: &Path, folder: &Path) -> bool {
    resolved(path).starts_with(resolved(folder))
}

/// An absolute path without links and `..`, as far as its folders are there.
fn resolved(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let mut whole = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(whole.pop()),
            other => whole.push(other),
        }
        whole = whole.canonicalize().unwrap_or(whole);
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_compared_by_what_they_lead_to() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("images/deep")).unwrap();
        std::os::unix::fs::symlink(at("images"), at("link")).unwrap();
        for (path, folder, expected) in [
            ("images", "images", true),
            ("images/out", "images", true),
            ("link/out/more", "images", true),
            ("images/out", "link", true),
            ("images/../images/./out", "images", true),
            ("images/deep/../../out", "images", false),
            ("link/../out", "images", false),
            ("images2", "images", false),
            ("images", "images/deep", false),
        ] {
            assert_eq!(lies_in(&at(path), &at(folder)), expected, "{path} in {folder}");
        }
    }
    #[test]
    fn datasets_go_into_no_folder_of_something_else() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for (name, file) in
            [("shards", "a.tar"), ("images", "a.jpg"), ("run", "recipe.toml"), ("model", "model_index.json")]
        {
            std::fs::create_dir(at(name)).unwrap();
            std::fs::write(at(name).join(file), "").unwrap();
        }
        assert!(check_out(&at("new")).is_ok() && check_out(&at("shards")).is_ok());
        for (name, said) in [("images", "images (a.jpg)"), ("run", "a training run"), ("model", "a model")] {
            let error = check_out(&at(name)).unwrap_err();
            assert!(error.is_usage() && error.to_string().contains(said), "{error}");
        }
    }
}
