//! Random data: what was asked for, the same however the work is divided.

use std::fs;
use std::path::Path;

use calotype_data::image::RgbImage;
use calotype_data::mds::MdsDataset;
use calotype_data::{Control, Dataset};
use calotype_prepare::{Account, DataStage, Error};
use clap::Parser;

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    stage: DataStage,
}

fn synth(out: &Path, words: &str) -> Result<Account, Error> {
    let words = ["data", "synth", out.to_str().unwrap()].into_iter().chain(words.split_whitespace());
    let cli = Cli::try_parse_from(words).map_err(|error| Error::Usage(error.to_string()))?;
    cli.stage.run(&mut Control::default())
}

#[test]
fn every_preset_is_made_in_both_layouts() {
    let shapes: [(&str, &[(&str, usize)]); 7] = [
        ("images", &[("png", 0), ("txt", 0)]),
        ("mosaic", &[("caption", 0), ("jpg", 0)]),
        ("mosaic-latents", &[("caption_latents", 2 * 77 * 1024), ("latents_256", 8 * 1024), ("latents_512", 8 * 4096)]),
        ("mlperf", &[("npy", 128 + 4 * 8 * 64), ("txt", 0)]),
        ("nemo", &[("image.npy", 128 + 4 * 64 * 64 * 3), ("txt", 0)]),
        ("nemo-precached", &[("moments.npy", 128 + 2 * 8 * 64), ("text.npy", 128 + 4 * 80 * 768)]),
        ("vit", &[("cls", 0), ("jpg", 0)]),
    ];
    for (preset, parts) in shapes {
        let dir = tempfile::tempdir().unwrap();
        let (tars, mds) = (dir.path().join("tars"), dir.path().join("mds"));
        let words = format!("--preset {preset} --samples 5 --shard-samples 3 --resolution 64 --classes 10");
        assert_eq!(synth(&tars, &words).unwrap().written, 5);
        synth(&mds, &format!("{words} --to mds --hashes xxh64")).unwrap();
        let (tars, mds) = (Dataset::open(&tars).unwrap(), MdsDataset::open(&mds).unwrap());
        assert_eq!((tars.len(), mds.len(), mds.index().shards.len()), (5, 5, 2));
        for i in 0..5 {
            let sample = tars.get(i).unwrap().to_sample();
            assert_eq!(mds.get(i).unwrap(), sample, "{preset}");
            for (part, length) in parts {
                let bytes = sample.part(part).unwrap();
                assert!(*length == 0 || bytes.len() == *length, "{preset} {part}: {}", bytes.len());
                match *part {
                    "png" | "jpg" => {
                        let image = RgbImage::decode(part, bytes).unwrap();
                        assert_eq!((image.width(), image.height()), (64, 64));
                    }
                    "cls" => assert!(sample.text("cls").unwrap().parse::<u64>().unwrap() < 10),
                    "npy" => {
                        let values = sample.array("npy").unwrap().to_f32().unwrap();
                        let mean = values.iter().sum::<f32>() / values.len() as f32;
                        assert!(mean.abs() < 0.2 && values.iter().any(|value| value.abs() > 1.5));
                    }
                    _ => {}
                }
            }
        }
        assert_ne!(tars.get(0).unwrap().to_sample().parts, tars.get(1).unwrap().to_sample().parts);
    }
}

#[test]
fn a_part_depends_on_seed_name_and_number_alone() {
    let dir = tempfile::tempdir().unwrap();
    let read = |name: &str, words: &str| {
        let out = dir.path().join(name);
        synth(&out, words).unwrap();
        let dataset = Dataset::open(&out).unwrap();
        let parts = |i| dataset.get(i).unwrap().part("tokens.npy").unwrap().to_vec();
        (0..dataset.len()).map(parts).collect::<Vec<_>>()
    };
    let part = "--part tokens.npy=array:int64:77:0..128";
    let first = read("a", &format!("--samples 6 {part}"));
    assert_eq!(read("b", &format!("--samples 4 {part} --part txt=text --shard-samples 1")), first[..4]);
    assert_ne!(read("c", &format!("--samples 6 {part} --seed 1")), first);
    let array = calotype_data::npy::NpyArray::from_bytes(&first[0]).unwrap();
    assert_eq!(array.shape(), [77]);
    assert!(array.as_i64().unwrap().iter().all(|token| (0..128).contains(token)));
}

#[test]
fn slices_give_the_same_files() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, sliced) = (dir.path().join("whole"), dir.path().join("sliced"));
    let words = "--samples 20 --shard-samples 3 --resolution 16";
    synth(&whole, words).unwrap();
    for id in [1, 0] {
        synth(&sliced, &format!("{words} --task-id {id} --task-count 2")).unwrap();
    }
    for entry in fs::read_dir(&whole).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file()) {
        assert!(fs::read(&entry).unwrap() == fs::read(sliced.join(entry.file_name().unwrap())).unwrap());
    }
    let other = synth(&whole, "--samples 20 --shard-samples 3 --resolution 16 --seed 5").unwrap_err();
    assert!(other.to_string().contains("already holds index.json"), "{other}");
}

#[test]
fn slips_are_usage_errors() {
    let dir = tempfile::tempdir().unwrap();
    let table = [
        ("--part png", "write NAME=KIND"),
        ("--part png=png:big", "is no kind of part"),
        ("--part a=text --part a=text", "`a` is there twice"),
        ("--samples 0", "at least 1"),
        ("--shard-bytes 1mb", "--shard-samples alone"),
        ("--preset nemo-precached --resolution 4", "is no kind of part"),
    ];
    for (words, expected) in table {
        let error = synth(&dir.path().join("out"), words).unwrap_err();
        assert!(error.is_usage() && error.to_string().contains(expected), "{words}: {error}");
    }
}
