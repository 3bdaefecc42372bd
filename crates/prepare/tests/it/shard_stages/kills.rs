use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::{contents, data, names, shards, text};

/// Starts the stage and kills it once `out` holds `files` tar files, half written ones included.
fn killed_at(args: &[&str], out: &Path, files: usize) {
    let mut child =
        Command::new(crate::program()).args(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let written = || {
        std::fs::read_dir(out).map_or(0, |entries| {
            entries.filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().contains(".tar")).count()
        })
    };
    while child.try_wait().unwrap().is_none() && written() < files {
        std::thread::sleep(Duration::from_micros(200));
    }
    // It may have ended by itself, which is one of the moments.
    let _ = child.kill();
    child.wait().unwrap();
}

#[test]
fn a_reorganization_that_is_killed_again_and_again_ends_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (input, calm, killed) = (dir.path().join("in"), dir.path().join("calm"), dir.path().join("killed"));
    shards(&input, &[90, 40, 70, 60, 80]);
    let args = |out: &Path| ["reorganize", text(&input), text(out), "--samples-per-shard", "7"].map(str::to_owned);
    let run = |out: &Path| data(&args(out).each_ref().map(String::as_str)).unwrap();
    let undisturbed = run(&calm);
    for files in [1, 2, 9, 23, 40] {
        killed_at(&args(&killed).each_ref().map(String::as_str), &killed, files);
    }
    let account = run(&killed);
    assert_eq!((account.taken, account.written), (undisturbed.taken, undisturbed.written));
    assert_eq!(contents(&killed), contents(&calm));
}

#[test]
fn a_merge_that_is_killed_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (calm, killed) = (dir.path().join("calm"), dir.path().join("killed"));
    for folder in [&calm, &killed] {
        shards(folder, &[20, 20, 20, 20, 3, 7, 11, 13, 9, 17, 5, 2, 8, 19]);
    }
    data(&["index", text(&calm), "--merge", "--wdinfo"]).unwrap();
    for files in [15, 16, 18, 15, 10] {
        let args = ["index", text(&killed), "--merge", "--wdinfo"];
        // Half written shards and the journal add to the files of the folder.
        killed_at(&args, &killed, files);
    }
    data(&["index", text(&killed), "--merge", "--wdinfo"]).unwrap();
    assert_eq!(names(&killed), names(&calm));
    assert_eq!(contents(&killed), contents(&calm));
}
