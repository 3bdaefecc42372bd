//! Folders that appear completely or not at all.

use crate::error::LayoutError;
use calotype_core::durable;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The fate of a folder that stands at the output's path already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Placement {
    /// Nothing may stand there.
    #[default]
    New,
    /// A folder that stands there is replaced as a whole.
    Replace,
    /// The output goes into the folder that stands there: folders and files of the same names are replaced one by one,
    /// `model_index.json` last; everything else stays.
    Into,
}

/// Written last and taken away first: without it, a folder is no whole pipeline.
pub(crate) const INDEX: &str = "model_index.json";

/// Fills a hidden folder beside `out` (within it for [`Placement::Into`]), which then takes its place.
pub(crate) fn write_folder<T>(
    out: &Path,
    placement: Placement,
    fill: impl FnOnce(&Path) -> Result<T, LayoutError>,
) -> Result<T, LayoutError> {
    let there = fs::symlink_metadata(out).is_ok();
    if there && placement == Placement::New {
        return Err(LayoutError::Exists { path: out.to_owned() });
    }
    let into = there && placement == Placement::Into;
    let hidden = if into { out.join(hidden_name("export", "tmp")) } else { sibling(out, "tmp")? };
    let parent = durable::parent_folder(&hidden);
    fs::create_dir_all(parent).map_err(failed(parent, "make it"))?;
    fs::create_dir(&hidden).map_err(failed(&hidden, "make it"))?;
    let written = fill(&hidden).and_then(|value| {
        durable::sync_folder(&hidden).map_err(failed(&hidden, "synchronise it"))?;
        if into {
            move_entries(&hidden, out)?
        } else {
            take_place(&hidden, out, there)?
        }
        Ok(value)
    });
    if written.is_err() || into {
        // The first error is the one to report.
        let _ = fs::remove_dir_all(&hidden);
    }
    written
}

/// A text file in a folder that is being filled.
pub(crate) fn write_text(path: &Path, text: &str) -> Result<(), LayoutError> {
    let write = || {
        fs::create_dir_all(durable::parent_folder(path))?;
        durable::replace_file(path, |writer| writer.write_all(text.as_bytes()))
    };
    write().map_err(failed(path, "write it"))
}

/// Gives the hidden folder its name. An old folder of that name stands aside until the new one is in its place.
fn take_place(hidden: &Path, out: &Path, there: bool) -> Result<(), LayoutError> {
    let parent = durable::parent_folder(out);
    let old = sibling(out, "old")?;
    if there {
        fs::rename(out, &old).map_err(failed(out, "move the old folder aside"))?;
    }
    if let Err(error) = fs::rename(hidden, out) {
        if there {
            let _ = fs::rename(&old, out);
        }
        return Err(failed(out, "give the folder its name")(error));
    }
    durable::sync_folder(parent).map_err(failed(parent, "synchronise it"))?;
    if there {
        let removed = if old.is_dir() { fs::remove_dir_all(&old) } else { fs::remove_file(&old) };
        removed.map_err(failed(&old, "remove the old folder"))?;
    }
    Ok(())
}

/// Moves everything of the hidden folder to its place in `out`.
fn move_entries(hidden: &Path, out: &Path) -> Result<(), LayoutError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(hidden).map_err(failed(hidden, "list it"))? {
        names.push(entry.map_err(failed(hidden, "list it"))?.file_name());
    }
    names.sort_by_key(|name| (name == INDEX, name.clone()));
    let index = out.join(INDEX);
    if index.exists() {
        fs::remove_file(&index).map_err(failed(&index, "remove the old file"))?;
        durable::sync_folder(out).map_err(failed(out, "synchronise it"))?;
    }
    for name in names {
        let (from, to) = (hidden.join(&name), out.join(&name));
        take_place(&from, &to, fs::symlink_metadata(&to).is_ok())?;
    }
    Ok(())
}

fn failed(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> LayoutError {
    let path = path.to_owned();
    move |source| LayoutError::Io { path, action, source }
}

fn hidden_name(name: &str, extension: &str) -> String {
    format!(".{name}.{}.{extension}", std::process::id())
}

/// A hidden name beside the output.
fn sibling(out: &Path, extension: &str) -> Result<PathBuf, LayoutError> {
    let name = out
        .file_name()
        .map(OsString::from)
        .ok_or_else(|| failed(out, "write to a path without a name")(io::Error::from(io::ErrorKind::InvalidInput)))?;
    Ok(out.with_file_name(hidden_name(&name.to_string_lossy(), extension)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(text: &'static str) -> impl Fn(&Path) -> Result<(), LayoutError> {
        move |folder| {
            write_text(&folder.join("unet/config.json"), text)?;
            write_text(&folder.join(INDEX), text)
        }
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn folders_are_replaced_as_a_whole_or_in_part() {
        let root = tempfile::tempdir().unwrap();
        let out = root.path().join("a/model");
        write_folder(&out, Placement::New, fill("1")).unwrap();
        assert!(matches!(write_folder(&out, Placement::New, fill("2")), Err(LayoutError::Exists { .. })));
        fs::write(out.join("other"), "kept").unwrap();
        write_folder(&out, Placement::Into, fill("2")).unwrap();
        assert_eq!(names(&out), [INDEX, "other", "unet"]);
        assert_eq!(fs::read_to_string(out.join("unet/config.json")).unwrap(), "2");
        write_folder(&out, Placement::Replace, fill("3")).unwrap();
        assert_eq!(names(&out), [INDEX, "unet"]);
        assert_eq!(fs::read_to_string(out.join(INDEX)).unwrap(), "3");
        assert_eq!(names(root.path().join("a").as_path()), ["model"]);
    }

    #[test]
    fn a_failure_leaves_what_was_there() {
        let root = tempfile::tempdir().unwrap();
        let out = root.path().join("model");
        write_folder(&out, Placement::New, fill("1")).unwrap();
        for placement in [Placement::Into, Placement::Replace] {
            let failing = |folder: &Path| {
                fill("2")(folder)?;
                Err::<(), _>(LayoutError::Exists { path: folder.to_owned() })
            };
            write_folder(&out, placement, failing).unwrap_err();
            assert_eq!(names(&out), [INDEX, "unet"]);
            assert_eq!(fs::read_to_string(out.join("unet/config.json")).unwrap(), "1");
            assert_eq!(names(root.path()), ["model"]);
        }
    }
}
