//! What the fuzz targets share: a file whose content changes with every input, and a reader of all of its tensors.

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use calotype_weights::{ReadOptions, TensorSource};

static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    // Memory is a faster place for files that live for microseconds.
    let memory = PathBuf::from("/dev/shm");
    let parent = if memory.is_dir() { memory } else { std::env::temp_dir() };
    let folder = parent.join(format!("calotype-fuzz-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder for the inputs");
    folder
});

/// Writes an input to a file. Every process has one file of each name, which the next input replaces.
pub fn input_file(name: &str, content: &[u8]) -> PathBuf {
    let path = FOLDER.join(name);
    fs::write(&path, content).expect("room for the input");
    path
}

/// Both ways of reading pickles.
pub fn options() -> [ReadOptions; 2] {
    [false, true].map(|skip_unknown_objects| ReadOptions { skip_unknown_objects })
}

/// Reads every tensor, twice with its pages given back in between, and compares lengths and content.
pub fn read_all(source: &dyn TensorSource) {
    for entry in source.entries() {
        let Ok(first) = source.tensor(&entry.name).map(|tensor| tensor.into_owned()) else { continue };
        assert_eq!(Some(first.data.len()), first.dtype.bytes_of(&first.shape));
        assert_eq!((first.dtype, &first.shape), (entry.dtype, &entry.shape));
        source.release(&entry.name);
        assert!(source.tensor(&entry.name).is_ok_and(|second| second == first));
    }
}
