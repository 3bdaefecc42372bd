//! Which paths lie in which folders.

use std::path::{Component, Path, PathBuf};

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
}
