//! Single files that a command is told to write: what stands there before is found out first, so that nothing is lost silently.

use crate::durable::{end_of_links, parent_folder};
use std::fs;
use std::path::Path;

/// Refuses a place where a single file cannot be written, or where something is that the command does not write: `what` are its files
/// in words (`a table of classes`), and `is_own` tells them by their content. Those are replaced, and so are empty files; devices and
/// named pipes are written to. Links are followed.
///
/// # Errors
/// What is wrong with the place, and what to do about it; the path is in front.
pub fn check_file(path: &Path, what: &str, is_own: impl FnOnce(&Path) -> bool) -> Result<(), String> {
    let refuse = |problem: String| Err(format!("{}: {problem}", path.display()));
    let end = match end_of_links(path) {
        Ok(end) => end,
        Err(error) => return refuse(format!("{error}; name another file")),
    };
    let folder = parent_folder(&end);
    match fs::metadata(&end) {
        Ok(found) if found.is_dir() => refuse("a folder is there; name a file".to_owned()),
        Ok(found) if !found.is_file() || found.len() == 0 || is_own(&end) => Ok(()),
        Ok(_) => refuse(format!(
            "something is there already that is not {what}, and would be lost; choose another file, or move it away"
        )),
        Err(_) if end.file_name().is_none() => refuse("is no name of a file; name one".to_owned()),
        Err(_) if !folder.is_dir() => refuse(format!("there is no folder {}; make it first", folder.display())),
        Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_command_does_not_write_stays() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let is_table = |path: &Path| fs::read(path).is_ok_and(|bytes| bytes.starts_with(b"name,"));
        let said = |path: &Path| check_file(path, "a table", is_table).err().unwrap_or_default();
        fs::write(at("own"), "name,age\n").unwrap();
        fs::write(at("empty"), "").unwrap();
        fs::write(at("letter"), "Dear all").unwrap();
        for free in ["own", "empty", "new"] {
            assert_eq!(said(&at(free)), "", "{free}");
        }
        let refused = said(&at("letter"));
        assert!(refused.contains("letter: something is there already that is not a table"), "{refused}");
        assert!(said(folder.path()).ends_with("a folder is there; name a file"));
        assert!(
            said(&at("none/file")).contains("there is no folder") && said(&at("letter/file")).contains("make it first")
        );
        assert!(said(Path::new("/")).contains("name a file"));
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_and_pipes_written_to() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("letter"), "Dear all").unwrap();
        nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        for (link, to) in [("a", "letter"), ("b", "pipe"), ("c", "new"), ("d", "none/new"), ("round", "round")] {
            symlink(to, at(link)).unwrap();
        }
        // What is no file is not looked into.
        let check = |name: &str| check_file(&at(name), "a table", |path| fs::read(path).is_err());
        assert!(check("pipe").is_ok() && check("b").is_ok() && check("c").is_ok());
        assert!(check("a").unwrap_err().contains("is not a table"));
        assert!(check("d").unwrap_err().contains("make it first"));
        assert!(check("round").unwrap_err().contains("circle"));
    }
}
