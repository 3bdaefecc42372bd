//! A tree as an archive.

use super::tree::SubmissionError;
use calotype_core::durable;
use flate2::Compression;
use flate2::write::GzEncoder;
use std::io;
use std::path::Path;
use tar::{Builder, EntryType, Header};
use walkdir::WalkDir;

/// Writes a tree's files into a gzip-compressed archive, under their names in the tree: sorted, without owners and times, so that the
/// same tree gives the same bytes.
///
/// # Errors
/// [`SubmissionError::Io`], which names the archive or the file.
pub fn pack(root: &Path, archive: &Path) -> Result<(), SubmissionError> {
    durable::replace_file(archive, |writer| {
        let mut builder = Builder::new(GzEncoder::new(writer, Compression::default()));
        for entry in WalkDir::new(root).min_depth(1).sort_by_file_name() {
            let entry = entry.map_err(io::Error::from)?;
            let name = entry.path().strip_prefix(root).unwrap_or(entry.path());
            let is_folder = entry.file_type().is_dir();
            let content = if is_folder { Vec::new() } else { std::fs::read(entry.path())? };
            let mut header = Header::new_gnu();
            header.set_entry_type(if is_folder { EntryType::Directory } else { EntryType::Regular });
            header.set_mode(if is_folder { 0o755 } else { 0o644 });
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, name, content.as_slice())?;
        }
        builder.into_inner()?.finish().map(|_| ())
    })
    .map_err(|source| SubmissionError::Io { file: archive.to_owned(), action: "write it", source })
}
