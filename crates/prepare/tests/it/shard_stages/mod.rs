//! The stages that reorganize, index and check shards: real images, real files, real kills.

mod check;
mod index;
mod kills;
mod reorganize;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use calotype_data::Control;
use calotype_data::emoji::{pairs, render};
use calotype_data::image::PngEffort;
use calotype_data::webdataset::TarShard;
use calotype_prepare::{Account, DataStage, Error};
use clap::Parser;

/// The command line of the stages.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    stage: DataStage,
}

/// Runs a stage; `args` as on the command line.
fn data(args: &[&str]) -> Result<Account, Error> {
    let cli = Cli::try_parse_from([&["data"], args].concat()).map_err(|error| Error::Usage(error.to_string()))?;
    cli.stage.run(&mut Control::default())
}

/// Path as text.
fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Real images as PNG, `count` of them.
fn images(count: usize) -> Vec<Vec<u8>> {
    let one = |image| render(image, [200, 220, 240], 24).unwrap().encode_png(PngEffort::Fast).unwrap();
    pairs().iter().take(count).map(one).collect()
}

/// Writes a tar of `members` (name, bytes), as any other program would.
fn write_tar(path: &Path, members: &[(String, Vec<u8>)]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut tar = tar::Builder::new(fs::File::create(path).unwrap());
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(1);
        tar.append_data(&mut header, name, bytes.as_slice()).unwrap();
    }
    tar.finish().unwrap();
}

/// Members of samples `first..first + count`, each an image and a caption.
fn samples(first: usize, count: usize) -> Vec<(String, Vec<u8>)> {
    let images = images(8);
    let one = |i: usize| {
        let image = images[i % images.len()].clone();
        [(format!("{i:09}.png"), image), (format!("{i:09}.txt"), format!("caption {i}").into_bytes())]
    };
    (first..first + count).flat_map(one).collect()
}

/// A folder of shards `00000.tar`, ... with so many samples each, numbered through.
fn shards(folder: &Path, counts: &[usize]) {
    let mut first = 0;
    for (number, count) in counts.iter().enumerate() {
        write_tar(&folder.join(format!("{number:05}.tar")), &samples(first, *count));
        first += count;
    }
}

/// Keys of a shard with their parts' names.
fn keys(shard: &Path) -> Vec<String> {
    let shard = TarShard::open(shard).unwrap();
    assert!(shard.damage().is_none(), "{shard:?}");
    let shown = |sample: calotype_data::SampleRef<'_>| {
        let parts: Vec<&str> = sample.parts().map(|(part, _)| part).collect();
        format!("{}:{}", sample.key(), parts.join(","))
    };
    shard.samples().map(shown).collect()
}

/// All files below a folder with their contents, without the accounts of slices and hidden files.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = walkdir::WalkDir::new(folder).into_iter().map(Result::unwrap);
    let files = entries.filter(|entry| entry.file_type().is_file()).map(|entry| entry.into_path());
    let hidden = |path: &Path| path.iter().any(|part| part.to_string_lossy().starts_with('.'));
    let visible = files.filter(|path| !hidden(path.strip_prefix(folder).unwrap()));
    visible.map(|path| (path.strip_prefix(folder).unwrap().to_path_buf(), fs::read(&path).unwrap())).collect()
}

/// Names of the visible files below a folder.
fn names(folder: &Path) -> Vec<String> {
    contents(folder).keys().map(|path| path.to_string_lossy().into_owned()).collect()
}
