use std::fs;
use std::io::Cursor;
use std::path::Path;

use calotype_data::npy::NpyArray;
use calotype_data::pickled::write_arrays;
use calotype_data::{Dataset, Quarantine};
use calotype_prepare::check::{CheckError, Problem};
use calotype_prepare::{Account, Error};
use image::{DynamicImage, ImageFormat};

use super::{data, images, samples, shards, text, write_tar};

type Members = Vec<(String, Vec<u8>)>;

/// A JPEG of a real image.
fn jpeg() -> Vec<u8> {
    let image = image::load_from_memory(&images(1)[0]).unwrap();
    let mut bytes = Cursor::new(Vec::new());
    DynamicImage::ImageRgb8(image.to_rgb8()).write_to(&mut bytes, ImageFormat::Jpeg).unwrap();
    bytes.into_inner()
}

fn png(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    DynamicImage::new_rgb8(width, height).write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// Moments like those of MLPerf, all of `value`.
fn moments(shape: &[usize], value: f32) -> Vec<u8> {
    NpyArray::from_f32(shape, vec![value; shape.iter().product()]).unwrap().to_bytes()
}

fn pickled(value: f32) -> Vec<u8> {
    let image = NpyArray::f16_from_f32(&[8, 2, 2], &[value; 32]).unwrap();
    let text = NpyArray::from_f32(&[3, 4], vec![1.0; 12]).unwrap();
    write_arrays(&[("autoencoderkl_image".to_owned(), image), ("clip_text".to_owned(), text)].into())
}

/// Good samples of every kind, so many that single ones are odd.
fn good() -> Members {
    let mut members = Members::new();
    for i in 0..30 {
        let key = format!("good{i:02}");
        members.push((format!("{key}.jpg"), jpeg()));
        members.push((format!("{key}.json"), format!("{{\"n\": {i}}}").into_bytes()));
        members.push((format!("{key}.npy"), moments(&[1, 8, 2, 2], 0.5)));
        members.push((format!("{key}.pickle"), pickled(0.5)));
        members.push((format!("{key}.txt"), format!("caption {i}").into_bytes()));
    }
    members
}

/// Good samples and one of which `parts` replace the good ones; a part without bytes is absent.
fn with_one(parts: &[(&str, Option<Vec<u8>>)]) -> Members {
    let mut members = good();
    for (part, bytes) in [
        ("jpg", Some(jpeg())),
        ("json", Some(b"{}".to_vec())),
        ("npy", Some(moments(&[1, 8, 2, 2], 0.5))),
        ("pickle", Some(pickled(0.5))),
        ("txt", Some(b"a caption".to_vec())),
    ] {
        let replaced = parts.iter().find(|(name, _)| *name == part).map_or(bytes, |(_, bytes)| bytes.clone());
        members.extend(replaced.map(|bytes| (format!("bad.{part}"), bytes)));
    }
    members
}

fn check(folder: &Path, more: &[&str]) -> Result<Account, Error> {
    data(&[&["check", text(folder)], more].concat())
}

/// The kinds of problems of the samples, and the details, by the JSON report.
fn findings(folder: &Path, more: &[&str]) -> Vec<(String, String, String)> {
    let json = folder.join("account");
    let _ = check(folder, &[&["--findings", text(&json)], more].concat());
    let account: serde_json::Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    let of = |finding: &serde_json::Value, field: &str| finding[field].as_str().unwrap().to_owned();
    let all = account["findings"].as_array().unwrap();
    all.iter().map(|finding| (of(finding, "problem"), of(finding, "key"), of(finding, "detail"))).collect()
}

#[test]
fn good_data_pass() {
    let dir = tempfile::tempdir().unwrap();
    write_tar(&dir.path().join("a.tar"), &good());
    data(&["index", text(dir.path())]).unwrap();
    let account = check(dir.path(), &["--min-side", "20", "--max-aspect", "2"]).unwrap();
    assert_eq!((account.taken, account.written), (30, 30), "{account}");
    assert!(!account.to_string().contains("checksum"), "{account}");
}

#[test]
fn every_kind_of_problem_is_found_by_its_name() {
    let some = |part: &'static str, bytes: &[u8]| vec![(part, Some(bytes.to_vec()))];
    let cut = |bytes: Vec<u8>, length: usize| bytes[..bytes.len() - length].to_vec();
    type Row = (Vec<(&'static str, Option<Vec<u8>>)>, &'static str, &'static str);
    let rows: Vec<Row> = vec![
        (some("jpg", &cut(jpeg(), 40)), "bad-image", "truncated: the JPEG has no end marker"),
        (some("jpg", &jpeg()[..100]), "bad-image", "image cannot be used"),
        (some("jpg", b"<html>not found</html>"), "bad-image", "none of PNG"),
        (some("jpg", b""), "bad-image", "none of PNG"),
        (some("jpg", &cut(png(30, 30), 30)), "bad-image", "image cannot be used"),
        (some("jpg", &png(30, 9)), "small-image", "30 x 9 pixels"),
        (some("jpg", &png(100, 20)), "long-image", "100 x 20 pixels"),
        (some("txt", b" \n"), "empty-caption", "`txt` is empty"),
        (some("txt", b"caf\xe9"), "bad-caption", "byte 3 is 0xe9"),
        (some("json", b"{\"a\": "), "bad-json", "EOF"),
        (some("json", b"{} {}"), "bad-json", "trailing"),
        (some("npy", &cut(moments(&[1, 8, 2, 2], 0.5), 4)), "bad-array", "needs 128 bytes of data, 124"),
        (some("npy", b"PK"), "bad-array", "not a .npy array"),
        (some("npy", &moments(&[1, 8, 2, 2], f32::NAN)), "not-finite", "`npy`"),
        (some("npy", &moments(&[1, 8, 2, 2], f32::INFINITY)), "not-finite", "`npy`"),
        (some("npy", &moments(&[1, 8, 2, 2], 0.0)), "zero-array", "`npy`"),
        (some("npy", &moments(&[8, 2, 2], 0.5)), "odd-array", "is <f4 [8, 2, 2], most are <f4 [1, 8, 2, 2]"),
        (some("pickle", &pickled(f32::NAN)), "not-finite", "`autoencoderkl_image`"),
        (some("pickle", &pickled(0.0)), "zero-array", "`autoencoderkl_image`"),
        (some("pickle", b"\x80\x04cos\nsystem\n."), "bad-array", "names `os.system`"),
        (some("pickle", &cut(pickled(1.0), 3)), "bad-array", "truncated"),
        (some("pickle", b"\x80\x04}."), "missing-part", "no `autoencoderkl_image`"),
        (vec![("txt", None)], "missing-part", "no `txt`, which most samples have"),
        (vec![("jpg", None)], "missing-part", "no image, which most samples have"),
    ];
    for (parts, problem, detail) in rows {
        let dir = tempfile::tempdir().unwrap();
        write_tar(&dir.path().join("a.tar"), &with_one(&parts));
        let found = findings(dir.path(), &["--min-side", "10", "--max-aspect", "3"]);
        let named = found.iter().find(|(kind, key, _)| kind == problem && key == "bad");
        assert!(named.is_some_and(|(_, _, found)| found.contains(detail)), "{problem} {detail}: {found:?}");
        assert!(found.iter().all(|(_, key, _)| key == "bad"), "{problem}: {found:?}");
        assert!(!findings(dir.path(), &["--ignore", problem]).iter().any(|(kind, ..)| kind == problem), "{problem}");
    }
}

/// Samples of which every one has a part of those that `parts` gives for its number.
fn captioned(count: usize, parts: impl Fn(usize) -> Vec<&'static str>) -> Members {
    let bytes = |i: usize, part: &str| match part {
        "txt" => format!("caption {i}").into_bytes(),
        part if part.ends_with("jpg") => jpeg(),
        _ => png(24, 24),
    };
    let sample = |i: usize| {
        let parts = parts(i).into_iter();
        parts.map(move |part| (format!("{i:04}.{part}"), bytes(i, part))).collect::<Vec<_>>()
    };
    (0..count).flat_map(sample).collect()
}

#[test]
fn types_of_images_are_one_part() {
    let dir = tempfile::tempdir().unwrap();
    let mixed = |i: usize| if i % 10 == 3 { vec!["jpg", "mask.jpg", "txt"] } else { vec!["mask.png", "png", "txt"] };
    write_tar(&dir.path().join("a.tar"), &captioned(40, mixed));
    let account = check(dir.path(), &["--quarantine"]).unwrap();
    assert_eq!((account.taken, account.written), (40, 40), "{account}");
    assert!(Quarantine::read(dir.path()).unwrap().is_empty());
    // Two images of a sample are no image of another.
    let without = |i: usize| if i == 3 { vec!["mask.jpg", "txt"] } else { vec!["jpg", "mask.png", "png", "txt"] };
    write_tar(&dir.path().join("a.tar"), &captioned(40, without));
    let found = findings(dir.path(), &[]);
    let named = |(problem, key, detail): &(String, String, String)| format!("{problem} {key} {detail}");
    assert_eq!(
        found.iter().map(named).collect::<Vec<_>>(),
        ["missing-part 0003 no image, which most samples have"],
        "no sample needs a second type"
    );
    let mask = |i: usize| if i == 5 { vec!["png"] } else { vec!["png", "mask.png"] };
    write_tar(&dir.path().join("a.tar"), &captioned(40, mask));
    assert_eq!(findings(dir.path(), &[])[0].2, "no image `mask`, which most samples have");
}

#[test]
fn missing_captions_are_counted_and_quarantined_where_most_images_have_one() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let with = |captions: usize| {
        let parts = move |i: usize| if i < captions { vec!["png", "txt"] } else { vec!["png"] };
        write_tar(&folder.join("a.tar"), &captioned(40, parts));
        check(folder, &[]).unwrap()
    };
    let account = with(30);
    assert_eq!((account.taken, account.written), (40, 30), "{account}");
    let text = account.to_string();
    assert!(text.starts_with("check: 40 read, 30 good, "), "{text}");
    assert!(text.contains("faulty:       10  missing part") && !text.contains("left out:"), "{text}");
    assert!(text.contains("10 of 40 images have no caption"), "{text}");
    assert!(text.contains("training meets these samples all the same; --quarantine"), "{text}");
    let account = check(folder, &["--quarantine"]).unwrap();
    assert!(!account.to_string().contains("all the same"), "{account}");
    assert_eq!((Quarantine::read(folder).unwrap().len(), Dataset::open(folder).unwrap().len()), (10, 40));
    assert!(!check(folder, &[]).unwrap().to_string().contains("all the same"), "they are listed");
    assert_eq!(check(folder, &["--ignore", "missing-part"]).unwrap().written, 40);
    // A few captions make no rule, but are told; so is a single image without.
    let account = with(10);
    assert_eq!(account.written, 40, "{account}");
    assert!(account.to_string().contains("30 of 40 images have no caption"), "{account}");
    assert!(with(39).to_string().contains("1 of 40 images has no caption"));
}

#[test]
fn datasets_of_other_kinds_are_told_the_way_to_shards() {
    let dir = tempfile::tempdir().unwrap();
    let (photos, tars, mds) = (dir.path().join("photos"), dir.path().join("tars"), dir.path().join("mds"));
    fs::create_dir_all(&photos).unwrap();
    fs::write(photos.join("a.png"), png(9, 9)).unwrap();
    shards(&tars, &[3]);
    data(&["convert", text(&tars), text(&mds), "--to", "mds"]).unwrap();
    for (path, holds) in [(&photos, "holds images"), (&mds, "holds MDS shards")] {
        let out = dir.path().join("out");
        for words in [vec!["check", text(path)], vec!["index", text(path)], vec!["reorganize", text(path), text(&out)]]
        {
            let error = data(&words).unwrap_err();
            let told = error.to_string();
            assert!(error.is_usage() && told.contains(holds) && told.contains("calotype data convert"), "{told}");
        }
    }
}

#[test]
fn keys_and_contents_that_repeat_are_found_across_shards_and_folders() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    write_tar(&one.join("a.tar"), &samples(0, 3));
    write_tar(&one.join("b.tar"), &samples(2, 3));
    write_tar(&two.join("c.tar"), &samples(9, 1));
    let account = data(&["check", text(&one), text(&two), "--duplicates"]).unwrap();
    // Samples 0 to 7 have different images, and 9 has that of 1.
    assert_eq!((account.taken, account.written), (7, 5), "{account}");
    let text = account.to_string();
    assert!(text.contains("b.tar 000000002: is in a.tar too"), "{text}");
    assert!(text.contains("c.tar 000000009: has the content of sample 1 of a.tar"), "{text}");
    assert!(text.contains("1  odd     duplicate key"), "{text}");
}

/// Training refuses such a shard whatever a quarantine says, so that nothing is promised of one.
#[test]
fn a_key_twice_in_one_shard_is_a_fault_of_the_shard() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, out) = (dir.path().join("set"), dir.path().join("out"));
    write_tar(&folder.join("a.tar"), &[samples(0, 3), samples(1, 1)].concat());
    write_tar(&folder.join("b.tar"), &samples(2, 2));
    let error = check(&folder, &["--quarantine"]).unwrap_err();
    let told = error.to_string();
    assert!(matches!(error, Error::Check(CheckError::Corrupt { corrupt: 1, .. })) && !error.is_usage(), "{told}");
    for part in [
        "1  corrupt shard with a key more than once",
        "a.tar: `000000001` is there more than once (1 sample with",
        "1  odd     duplicate key",
        "b.tar 000000002: is in a.tar too",
        "`data reorganize`, which puts samples together and keeps the first of equal keys",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    let list = Quarantine::read(&folder).unwrap();
    assert!(list.len() == 1 && list.contains("b.tar", "000000002"), "{list:?}");
    let refused = Dataset::open(&folder).and_then(Dataset::without_quarantined).map(|_| ()).unwrap_err().to_string();
    assert!(
        refused.contains("duplicate key `000000001`") && refused.contains("`calotype data reorganize`"),
        "{refused}"
    );
    // What the advice says helps, and keeps what the quarantine leaves.
    let account = data(&["reorganize", text(&folder), text(&out)]).unwrap();
    assert_eq!((account.taken, account.written, account.left_out["duplicate key"]), (6, 4, 1), "{account}");
    assert_eq!(Dataset::open(&out).unwrap().len(), 4);
    assert_eq!(check(&out, &[]).unwrap().written, 4);
    // Keys that two shards have are left out, and the rest is read.
    write_tar(&folder.join("a.tar"), &samples(0, 3));
    assert_eq!(check(&folder, &["--quarantine"]).unwrap().written, 4);
    assert_eq!(Dataset::open(&folder).unwrap().without_quarantined().unwrap().len(), 4);
}

#[test]
fn shards_that_two_paths_name_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, shard) = (dir.path().join("set"), dir.path().join("set/a.tar"));
    write_tar(&shard, &samples(0, 3));
    let elsewhere = tempfile::tempdir().unwrap();
    let out = elsewhere.path().join("out");
    for (one, two) in [(&folder, &folder), (&folder, &shard), (&shard, &shard), (&dir.path().to_owned(), &folder)] {
        for command in
            [vec!["check", text(one), text(two), "--quarantine"], vec!["reorganize", text(one), text(two), text(&out)]]
        {
            let error = data(&command).unwrap_err();
            let told = error.to_string();
            assert!(
                error.is_usage() && told.contains("is named twice") && told.contains("name each shard once"),
                "{told}"
            );
        }
    }
    assert!(!folder.join("quarantine.json").exists() && !out.exists(), "all would have been listed as duplicates");
}

#[test]
fn a_quarantine_is_written_and_read_by_training() {
    let dir = tempfile::tempdir().unwrap();
    write_tar(&dir.path().join("a.tar"), &with_one(&[("jpg", Some(jpeg()[..200].to_vec()))]));
    let error = check(dir.path(), &[]).unwrap_err();
    assert!(matches!(error, Error::Check(CheckError::Corrupt { corrupt: 1, .. })) && !error.is_usage());
    let message = error.to_string();
    assert!(message.contains("1  corrupt image that cannot be decoded"), "{message}");
    assert!(message.contains("a.tar bad: ") && message.contains("--quarantine"), "{message}");
    let account = check(dir.path(), &["--quarantine"]).unwrap();
    assert_eq!((account.taken, account.written, account.left_out_in_all()), (31, 30, 1), "{account}");
    let list = Quarantine::read(dir.path()).unwrap();
    assert!(list.len() == 1 && list.contains("a.tar", "bad"));
    // What is listed does no harm any more.
    assert_eq!(check(dir.path(), &[]).unwrap().left_out_in_all(), 1);
    // A check of another shard leaves the list as it is, but for its own samples.
    write_tar(&dir.path().join("b.tar"), &[("z.txt".to_owned(), b"\xff".to_vec())]);
    check(&dir.path().join("b.tar"), &["--quarantine"]).unwrap();
    let list = Quarantine::read(dir.path()).unwrap();
    assert!(list.len() == 2 && list.contains("a.tar", "bad") && list.contains("b.tar", "z"));
}

#[test]
fn shards_are_compared_with_their_index_and_damage_is_no_matter_of_a_quarantine() {
    let dir = tempfile::tempdir().unwrap();
    shards(dir.path(), &[3, 3, 3]);
    data(&["index", text(dir.path())]).unwrap();
    assert_eq!(Dataset::open(dir.path()).unwrap().len(), 9);
    let mut bytes = fs::read(dir.path().join("00000.tar")).unwrap();
    let caption = bytes.windows(9).position(|window| window == b"caption 1").unwrap();
    bytes[caption] = b'C';
    fs::write(dir.path().join("00000.tar"), &bytes).unwrap();
    fs::write(dir.path().join("00001.tar"), &bytes[..bytes.len() - 2000]).unwrap();
    fs::remove_file(dir.path().join("00002.tar")).unwrap();
    let message = check(dir.path(), &["--quarantine"]).unwrap_err().to_string();
    for part in
        ["has blake3", "is truncated", "is named by the index but absent", "3  corrupt shard not as its index says"]
    {
        assert!(message.contains(part), "{part}: {message}");
    }
    // The list of samples is there all the same.
    assert!(dir.path().join("quarantine.json").exists());
    let error = check(&dir.path().join("absent"), &[]).unwrap_err();
    assert!(error.to_string().contains("absent"), "{error}");
}

#[test]
fn kinds_are_graded() {
    assert!(Problem::BadImage.is_corrupt() && Problem::NotFinite.is_corrupt());
    assert!(!Problem::EmptyCaption.is_corrupt() && !Problem::DuplicateKey.is_corrupt());
    assert!(Problem::RepeatedKey.is_corrupt());
}
