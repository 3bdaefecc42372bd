//! Picture files that a command line names, and their pixels.

use crate::{EvaluateError, Result};
use calotype_core::absence;
use calotype_data::image::{DecodeNotes, DecodeOptions, RgbImage};
use calotype_data::source::folder::IMAGE_EXTENSIONS;
use rayon::prelude::*;
use std::path::{Path, PathBuf};
use walkdir::WalkDir;

/// The pictures at `paths`, in their order: files as they are, and all pictures in and below folders, in the order of their
/// names.
///
/// # Errors
/// [`EvaluateError::Usage`] for a path where nothing is; [`EvaluateError::File`] for a folder without pictures; [`EvaluateError::Io`].
pub fn picture_files(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        let wrong = |detail: String| EvaluateError::File { path: path.clone(), detail };
        if !path.exists() {
            let problem = format!("{}: there is no such file or folder{}", path.display(), absence(path));
            return Err(EvaluateError::Usage(problem));
        }
        let before = files.len();
        for entry in WalkDir::new(path).follow_links(true).sort_by_file_name() {
            let entry = entry.map_err(|error| wrong(error.to_string()))?;
            if entry.file_type().is_file() && (entry.depth() == 0 || is_picture(entry.path())) {
                files.push(entry.into_path());
            }
        }
        if files.len() == before {
            return Err(wrong(format!("has no pictures; known extensions: {}", IMAGE_EXTENSIONS.join(", "))));
        }
    }
    Ok(files)
}

fn is_picture(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str()).map(str::to_ascii_lowercase);
    extension.is_some_and(|extension| IMAGE_EXTENSIONS.contains(&extension.as_str()))
}

/// The pixels of files, decoded by all threads; what cannot be read is an error of its own, which names the file.
pub fn read_pictures(files: &[PathBuf], decode: &DecodeOptions, notes: &DecodeNotes) -> Vec<Result<RgbImage>> {
    let read = |file: &PathBuf| {
        let bytes = calotype_core::read_input(file).map_err(EvaluateError::io("read", file))?;
        let (image, found) = RgbImage::decode_noting(&file.display().to_string(), &bytes, decode)
            .map_err(|error| error.of_file(file))?;
        notes.add(&found);
        Ok(image)
    };
    files.par_iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use calotype_data::image::PngEffort;

    #[test]
    fn folders_stand_for_the_pictures_below_them() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir_all(at("b/c")).unwrap();
        std::fs::create_dir(at("empty")).unwrap();
        let png = RgbImage::filled(2, 1, [5; 3]).unwrap().encode_png(PngEffort::Fast).unwrap();
        for name in ["b/2.PNG", "b/10.png", "b/c/1.png", "a"] {
            std::fs::write(at(name), &png).unwrap();
        }
        std::fs::write(at("b/text.txt"), "no picture").unwrap();
        std::fs::write(at("b/broken.jpg"), "no picture").unwrap();
        let files = picture_files(&[at("b"), at("a")]).unwrap();
        assert_eq!(files, [at("b/10.png"), at("b/2.PNG"), at("b/broken.jpg"), at("b/c/1.png"), at("a")]);
        let read = read_pictures(&files, &DecodeOptions::default(), &DecodeNotes::default());
        let bad: Vec<String> = read.iter().filter_map(|image| Some(image.as_ref().err()?.to_string())).collect();
        assert_eq!(bad.len(), 1);
        assert!(bad[0].contains("broken.jpg"), "{bad:?}");
        let refused = |path: PathBuf| picture_files(&[path]).unwrap_err().to_string();
        assert!(refused(at("empty")).contains("has no pictures; known extensions: png, jpg"));
        assert!(refused(at("none")).contains("none: there is no such file or folder"));
    }
}
