//! The COCO stage against pandas (`make_coco.py`), with images from a folder and from an archive, and killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use calotype_data::Control;
use calotype_data::image::{Filter, RgbImage};
use calotype_prepare::coco::{self, Annotation, CocoArgs, Fit, List};
use calotype_prepare::slices::SliceArgs;
use calotype_prepare::{Account, Error};
use sha2::{Digest, Sha256};

const WORDS: [&str; 7] = ["a cat", " two\ndogs\n", "the \"big\" one", "tab\there", "caf\u{e9} \u{3000}", "\u{1e}x", ""];

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The table of `make_coco.py`, as COCO's file.
fn annotations(n: usize) -> String {
    let images = (n / 4).max(1);
    let annotations: Vec<_> = (0..n)
        .map(|i| {
            serde_json::json!({
                "image_id": i * 7919 % images * 3 + 1,
                "id": i * 104_729 % n + 10,
                "caption": format!("{} {i}{}", WORDS[i % 7], WORDS[i % 5]),
            })
        })
        .collect();
    let images: Vec<_> = (0..images)
        .map(|p| {
            serde_json::json!({
                "license": 1, "id": p * 3 + 1, "height": 480 + p % 7, "width": 640 - p % 9,
                "file_name": format!("{p}.jpg"), "coco_url": format!("http://x/{p}"),
            })
        })
        .collect();
    serde_json::json!({ "info": {}, "images": images, "annotations": annotations }).to_string()
}

fn args(annotations: &Path, out: &Path) -> CocoArgs {
    CocoArgs {
        annotations: annotations.to_owned(),
        out: out.to_owned(),
        images: None,
        list: List::Training,
        count: Some(20),
        seed: 2023,
        published: None,
        size: 24,
        fit: Fit::Stretch,
        quality: 90,
        slices: SliceArgs::default(),
    }
}

fn run(args: &CocoArgs) -> Result<Account, Error> {
    coco::run(args, &mut Control::default())
}

#[test]
fn orders_and_lists_are_those_of_pandas() {
    let golden = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/coco.txt")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("captions.json");
    for line in golden.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let n: usize = words[1].parse().unwrap();
        if words[0] == "order" {
            let order = coco::pandas_order(2023, n);
            let bytes: Vec<u8> = order.iter().flat_map(|i| (*i as u32).to_le_bytes()).collect();
            assert_eq!(hex(&bytes), words[2], "{line}");
            continue;
        }
        fs::write(&file, annotations(n)).unwrap();
        let (list, name) = match words[0] {
            "training" => (List::Training, "val2014_30k.tsv"),
            _ => (List::Sdxl, "captions.tsv"),
        };
        let out = dir.path().join(line);
        let account = run(&CocoArgs { list, count: Some(words[2].parse().unwrap()), ..args(&file, &out) }).unwrap();
        assert_eq!(account.written.to_string(), words[2]);
        assert_eq!(hex(&fs::read(out.join(name)).unwrap()), words[3], "{line}");
    }
    assert_eq!(golden.lines().count(), 11);
}

/// COCO's files for 20 images of 25, of which one is missing and one is no image.
fn images(dir: &Path) -> (PathBuf, Vec<u64>) {
    let json = dir.join("captions.json");
    fs::write(&json, annotations(100)).unwrap();
    let folder = dir.join("val2014");
    fs::create_dir_all(&folder).unwrap();
    let table: serde_json::Value = serde_json::from_str(&annotations(100)).unwrap();
    let rows: Vec<Annotation> = serde_json::from_value(table["annotations"].clone()).unwrap();
    let ids: Vec<u64> = coco::training_subset(&rows, 2023, 20).iter().map(|row| row.image_id).collect();
    for (number, id) in ids.iter().enumerate() {
        let data = (0..40 * 30 * 3).map(|i| (i * (number + 3) / 7 % 256) as u8).collect();
        let jpeg = RgbImage::new(40, 30, data).unwrap().encode_jpeg(95).unwrap();
        match number {
            4 => {}
            9 => fs::write(folder.join(coco::file_name(*id)), &jpeg[..jpeg.len() / 2]).unwrap(),
            _ => fs::write(folder.join(coco::file_name(*id)), jpeg).unwrap(),
        }
    }
    (json, ids)
}

fn contents(out: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for folder in [out.to_owned(), out.join("images_24")] {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_file() {
                files.push((entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()));
            }
        }
    }
    files.sort();
    files
}

#[test]
fn images_are_resized_by_any_slices_and_what_is_left_out_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let (json, ids) = images(dir.path());
    let images = Some(dir.path().join("val2014"));
    let whole = dir.path().join("whole");
    let account = run(&CocoArgs { images: images.clone(), ..args(&json, &whole) }).unwrap();
    assert_eq!((account.taken, account.written), (20, 18), "{account}");
    let left_out: Vec<_> = account.left_out.iter().map(|(reason, count)| (reason.as_str(), *count)).collect();
    assert_eq!(left_out, [("image cannot be decoded", 1), ("image not there", 1)]);

    let original = fs::read(dir.path().join("val2014").join(coco::file_name(ids[0]))).unwrap();
    let expected = RgbImage::decode("x", &original).unwrap().resize(24, 24, Filter::Bicubic).unwrap();
    let made = fs::read(whole.join("images_24").join(coco::file_name(ids[0]))).unwrap();
    assert_eq!(made, expected.encode_jpeg(90).unwrap());

    let parts = dir.path().join("parts");
    for task in [2, 0, 1] {
        let slices = SliceArgs { task_id: Some(task), task_count: Some(3), tasks: None };
        run(&CocoArgs { images: images.clone(), slices, ..args(&json, &parts) }).unwrap();
    }
    assert!(contents(&parts) == contents(&whole));

    let other = run(&CocoArgs { images, quality: 91, ..args(&json, &whole) }).unwrap_err();
    assert!(other.is_usage() && other.to_string().contains("other settings"), "{other}");
}

#[test]
fn a_killed_stage_is_continued() {
    let dir = tempfile::tempdir().unwrap();
    let (json, _) = images(dir.path());
    let images = dir.path().join("val2014");
    let whole = dir.path().join("whole");
    run(&CocoArgs { images: Some(images.clone()), ..args(&json, &whole) }).unwrap();
    let killed = dir.path().join("killed");
    let program = crate::program();
    for delay in [0, 3, 6, 12, 25] {
        let mut child = Command::new(&program)
            .args(["coco", "--count", "20", "--size", "24", "--quality", "90", "--images"])
            .arg(&images)
            .arg(&json)
            .arg(&killed)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(delay));
        let _ = child.kill();
        child.wait().unwrap();
    }
    run(&CocoArgs { images: Some(images), ..args(&json, &killed) }).unwrap();
    let visible = |files: Vec<(String, Vec<u8>)>| -> Vec<_> {
        files.into_iter().filter(|(name, _)| !name.starts_with('.')).collect()
    };
    assert!(visible(contents(&killed)) == visible(contents(&whole)));
}

#[test]
fn bad_input_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let good = file("good.json", annotations(100).as_bytes());
    let unknown = r#"{"annotations": [{"id": 1, "image_id": 5, "caption": "a"}]}"#;
    let sdxl = |path: PathBuf| CocoArgs { list: List::Sdxl, count: Some(1), ..args(&path, &dir.path().join("out")) };
    let plain = |path: PathBuf| args(&path, &dir.path().join("out"));
    let published = |path: PathBuf| CocoArgs { published: Some(path), ..sdxl(good.clone()) };
    let cases: Vec<(CocoArgs, &str)> = vec![
        (plain(dir.path().join("absent.json")), "cannot open"),
        (plain(file("text.json", b"captions")), "no COCO captions"),
        (plain(file("list.json", b"[]")), "no COCO captions"),
        (plain(file("keys.json", br#"{"annotations": [{"id": 1, "caption": "a"}]}"#)), "image_id"),
        (plain(file("number.json", br#"{"annotations": [{"id": 1, "image_id": -1, "caption": "a"}]}"#)), "-1"),
        (plain(file("short.json", unknown.as_bytes())), "captions of 1 images, the list needs 20"),
        (sdxl(file("unknown.json", unknown.as_bytes())), "image 5"),
        (plain(file("cut.zip", b"PK\x03\x04 and no more")), "no directory"),
        (published(file("list.tsv", b"id\timage_id\n1\t2\n")), "SHA-256"),
        (CocoArgs { list: List::Training, ..published(good.clone()) }, "--list sdxl"),
        (CocoArgs { size: 0, ..plain(good.clone()) }, "--size 0"),
        (CocoArgs { images: Some(dir.path().join("absent")), ..plain(good.clone()) }, "absent"),
        (CocoArgs { images: Some(good.clone()), ..plain(good.clone()) }, "no directory"),
    ];
    for (args, expected) in cases {
        let error = run(&args).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}
