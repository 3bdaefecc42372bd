//! What a folder holds, told by files that only one kind of folder has: nothing is written among something else.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

/// The resolved recipe of a run or an evaluation.
pub const RECIPE: &str = "recipe.toml";
/// What a quickstart was begun with.
pub const QUICKSTART: &str = "quickstart.json";
/// What an evaluation of pictures draws.
pub const DRAWING: &str = "drawing.json";
/// Values of `kind` in the recipes of evaluations; those of all others train. The first is that of drawn pictures.
pub const EVALUATIONS: [&str; 5] = ["text_to_image", "classification", "zero_shot", "retrieval", "linear_probe"];
/// Extensions of images that are read.
pub const IMAGE_EXTENSIONS: [&str; 6] = ["png", "jpg", "jpeg", "webp", "gif", "bmp"];

/// Extensions of shards and tables of samples.
const SHARDS: [&str; 5] = ["tar", "tgz", "tar.gz", "mds", "parquet"];
/// Files of which each alone shows a model.
const MODELS: [&str; 4] = ["model_index.json", "calotype.json", "unet/config.json", "trained_together.json"];
/// Files of a training checkpoint, together.
const CHECKPOINT: [&str; 3] = ["state.json", "tensors.safetensors", "manifest.json"];

/// What a folder holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// A quickstart.
    Quickstart,
    /// An evaluation of pictures.
    Evaluation,
    /// An evaluation of a vision model.
    VisionEvaluation,
    /// A training run.
    Run,
    /// A model.
    Model,
    /// A training checkpoint.
    Checkpoint,
    /// Folders of runs, quickstarts or training checkpoints.
    Runs,
    /// Shards or tables of samples.
    Shards,
    /// Images that this program has drawn into it, under their numbers.
    Drawn,
    /// Other images.
    Images,
}

/// What was found in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What it holds.
    pub content: Content,
    /// The file or folder that shows it.
    pub name: String,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.content {
            Content::Quickstart => "a quickstart",
            Content::Evaluation | Content::VisionEvaluation => "an evaluation",
            Content::Run => "a training run",
            Content::Model => "a model",
            Content::Checkpoint => "a training checkpoint",
            Content::Runs => return write!(f, "a folder of runs ({}, …)", self.name),
            Content::Shards => "samples",
            Content::Drawn | Content::Images => "images",
        };
        write!(f, "{what} ({})", self.name)
    }
}

/// What a folder holds; none if it is not there, cannot be read, or holds nothing that is known.
pub fn content(folder: &Path) -> Option<Found> {
    let found = |content: Content, name: &str| Some(Found { content, name: name.to_owned() });
    let has = |name: &str| folder.join(name).is_file();
    if has(DRAWING) {
        return found(Content::Evaluation, DRAWING);
    }
    if has(QUICKSTART) {
        return found(Content::Quickstart, QUICKSTART);
    }
    if has(RECIPE) {
        return found(content_of_recipe(folder), RECIPE);
    }
    if let Some(name) = MODELS.into_iter().find(|name| has(name)) {
        return found(Content::Model, name);
    }
    if CHECKPOINT.into_iter().all(has) {
        return found(Content::Checkpoint, CHECKPOINT[0]);
    }
    let names = names_in(folder);
    if let Some(name) = names.iter().find(|name| name.ends_with(".safetensors")).filter(|_| has("config.json")) {
        return found(Content::Model, &format!("config.json, {name}"));
    }
    if let Some(name) = names.iter().find(|name| is_run(&folder.join(name))) {
        return found(Content::Runs, name);
    }
    let samples = |extensions: &[&str]| {
        let fits = |name: &&String| {
            let name = name.to_lowercase();
            extensions.iter().any(|it| name.strip_suffix(it).is_some_and(|stem| stem.ends_with('.')))
        };
        names.iter().find(fits)
    };
    if let Some(name) = samples(&SHARDS) {
        return found(Content::Shards, name);
    }
    match names.iter().find(|name| is_drawn(name)) {
        Some(name) => found(Content::Drawn, name),
        None => samples(&IMAGE_EXTENSIONS).and_then(|name| found(Content::Images, name)),
    }
}

/// What to say of a folder that holds something else than what a command writes, or that cannot be one because a file is in its place;
/// nothing of one that holds none of it.
///
/// # Errors
/// What is there, behind the folder's path.
pub fn check_folder(folder: &Path, own: &[Content]) -> Result<(), String> {
    if let Some(file) = file_in_place(folder) {
        let (folder, file) = (folder.display(), file.display());
        return Err(format!("{folder}: {file} is a file, and what is written needs a folder; choose another folder"));
    }
    match content(folder).filter(|found| !own.contains(&found.content)) {
        None => Ok(()),
        Some(found) => Err(format!(
            "{} holds {found}, and what is written would lie among it; choose another folder",
            folder.display()
        )),
    }
}

/// A folder that is made before all is found out that could speak against what is to be in it.
#[derive(Debug)]
pub struct NewFolder {
    path: PathBuf,
    was_there: bool,
}

impl NewFolder {
    /// Makes it, with those above it; one that is there already is used.
    ///
    /// # Errors
    /// As of [`fs::create_dir_all`].
    pub fn make(path: &Path) -> io::Result<Self> {
        let was_there = path.exists();
        fs::create_dir_all(path)?;
        Ok(Self { path: path.to_owned(), was_there })
    }

    /// Takes back what was written into it before a failure: these files, and folders that are empty then; at last the folder, if
    /// it was made and nothing else is in it. What cannot be removed stays, and the next start tells of it.
    pub fn take_back<P: AsRef<Path>>(self, written: impl IntoIterator<Item = P>) {
        for path in written.into_iter().map(|name| self.path.join(name)) {
            let _ = if path.is_dir() { fs::remove_dir(&path) } else { fs::remove_file(&path) };
        }
        if !self.was_there {
            let _ = fs::remove_dir(&self.path);
        }
    }
}

/// What is no folder where a folder is to be, or above it.
pub fn file_in_place(folder: &Path) -> Option<&Path> {
    folder.ancestors().find(|path| path.exists()).filter(|path| !path.is_dir())
}

/// The key `kind` of the recipe in a folder, which stands in front of all tables; none if there is none that can be read.
pub fn kind_in(folder: &Path) -> Option<String> {
    let lines = BufReader::new(File::open(folder.join(RECIPE)).ok()?).lines();
    let mut head = lines.map_while(Result::ok).take_while(|line| !line.trim_start().starts_with('['));
    head.find_map(|line| {
        let (key, value) = line.split_once('=')?;
        (key.trim() == "kind").then(|| value.trim().trim_matches(['"', '\'']).to_owned())
    })
}

fn content_of_recipe(folder: &Path) -> Content {
    match kind_in(folder).and_then(|kind| EVALUATIONS.into_iter().position(|known| known == kind)) {
        Some(0) => Content::Evaluation,
        Some(_) => Content::VisionEvaluation,
        None => Content::Run,
    }
}

/// Whether a folder is that of a run that has begun, a quickstart or a training checkpoint.
fn is_run(folder: &Path) -> bool {
    let has = |name: &str| folder.join(name).is_file();
    let begun = || folder.join("checkpoints").is_dir() || has("result.json");
    has(RECIPE) && begun() || has(QUICKSTART) || CHECKPOINT.into_iter().all(has)
}

/// Whether an image's name is one that `generate` gives: at least five digits.
fn is_drawn(name: &str) -> bool {
    name.strip_suffix(".png").is_some_and(|stem| stem.len() >= 5 && stem.bytes().all(|byte| byte.is_ascii_digit()))
}

/// What lies in a folder and is not hidden, in the order of names.
fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.retain(|name| !name.starts_with('.'));
    names.sort_unstable();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_told_by_what_they_alone_have() {
        type Case = (&'static [(&'static str, &'static str)], Option<Content>);
        let cases: [Case; 18] = [
            (&[], None),
            (&[("notes.txt", ""), (".lock", ""), (".hidden.png", "")], None),
            (&[("drawing.json", "{}"), ("recipe.toml", "kind = \"text_to_image\"")], Some(Content::Evaluation)),
            (&[("recipe.toml", "# by hand\nkind = \"text_to_image\"\n")], Some(Content::Evaluation)),
            (&[("recipe.toml", "kind = 'zero_shot'\n[data]\n")], Some(Content::VisionEvaluation)),
            (&[("recipe.toml", "kind = \"diffusion\"\n[a]\nkind = \"zero_shot\"\n")], Some(Content::Run)),
            (&[("recipe.toml", ""), ("a.png", "")], Some(Content::Run)),
            (&[("quickstart.json", "{}"), ("model_index.json", "{}")], Some(Content::Quickstart)),
            (&[("unet/config.json", "{}")], Some(Content::Model)),
            (&[("config.json", "{}"), ("model.safetensors", "")], Some(Content::Model)),
            (&[("config.json", "{}")], None),
            (&[("state.json", "{}"), ("tensors.safetensors", ""), ("manifest.json", "")], Some(Content::Checkpoint)),
            (&[("8/state.json", "{}"), ("8/tensors.safetensors", ""), ("8/manifest.json", "")], Some(Content::Runs)),
            (&[("one/recipe.toml", ""), ("one/result.json", "{}")], Some(Content::Runs)),
            (&[("one/recipe.toml", "")], None),
            (&[("a.png", ""), ("x.TAR.GZ", "")], Some(Content::Shards)),
            (&[("a.png", ""), ("00000.png", "")], Some(Content::Drawn)),
            (&[("a.JPG", ""), ("a.txt", ""), ("001.png", "")], Some(Content::Images)),
        ];
        for (files, wanted) in cases {
            let folder = tempfile::tempdir().unwrap();
            for (name, text) in files {
                let path = folder.path().join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            assert_eq!(content(folder.path()).map(|found| found.content), wanted, "{files:?}");
        }
        assert_eq!(content(Path::new("/no/such/folder")), None);
    }

    #[test]
    fn a_new_folder_is_taken_back_unless_something_else_is_in_it() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("new");
        let begin = || {
            let folder = NewFolder::make(&path).unwrap();
            fs::create_dir_all(path.join(".slices/0")).unwrap();
            fs::write(path.join("recipe.toml"), "").unwrap();
            folder
        };
        let written = [".slices/0", ".slices", "recipe.toml", "absent"];
        begin().take_back(written);
        assert!(!path.exists());
        let folder = begin();
        fs::write(path.join("notes.txt"), "").unwrap();
        folder.take_back(written);
        assert_eq!(names_in(&path), ["notes.txt"]);
        fs::remove_file(path.join("notes.txt")).unwrap();
        begin().take_back(written);
        assert!(path.is_dir() && names_in(&path).is_empty(), "it was there before");
    }

    #[test]
    fn what_is_there_is_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("cat.jpg"), "").unwrap();
        let said = check_folder(folder.path(), &[Content::Drawn]).unwrap_err();
        assert!(said.contains("holds images (cat.jpg)") && said.contains("choose another folder"), "{said}");
        assert_eq!(check_folder(folder.path(), &[Content::Images]), Ok(()));
        assert_eq!(check_folder(&folder.path().join("new"), &[]), Ok(()));
        assert_eq!(check_folder(Path::new("new/folder"), &[]), Ok(()));
        for below in ["cat.jpg", "cat.jpg/run"] {
            let said = check_folder(&folder.path().join(below), &[Content::Run]).unwrap_err();
            assert!(
                said.contains(below) && said.contains("cat.jpg is a file, and what is written needs a folder"),
                "{said}"
            );
        }
    }
}
