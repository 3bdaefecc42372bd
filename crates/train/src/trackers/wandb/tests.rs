use super::*;
use proptest::prelude::*;

fn settings() -> WandbSettings {
    toml::from_str("project = \"p\"\nname = \"n\"\ntags = [\"a\"]").unwrap()
}

/// All records of all folders, in the order of their times.
fn records(folder: &Path) -> Vec<Vec<Kind>> {
    let read = |run: &OfflineRun| {
        let content = fs::read(run.path.join(log_name(&run.id))).unwrap();
        let framed = log::records(&content).unwrap();
        assert_eq!(framed.last().unwrap().range.end, content.len());
        framed.iter().map(|framed| Record::decode(framed.data.as_slice()).unwrap().kind.unwrap()).collect()
    };
    offline_runs(&folder.join(FOLDER)).unwrap().iter().map(read).collect()
}

/// The rows without their times.
fn rows(records: &[Vec<Kind>]) -> Vec<Vec<(String, String)>> {
    let row = |kind: &Kind| match kind {
        Kind::History(history) => {
            let items = history.item.iter().map(|item| (item.nested_key.join("."), item.value_json.clone()));
            Some(items.filter(|(key, _)| key != "_timestamp" && key != "_runtime").collect())
        }
        _ => None,
    };
    records.iter().flatten().filter_map(row).collect()
}

fn pair(key: &str, value: &str) -> (String, String) {
    (key.to_owned(), value.to_owned())
}

#[test]
fn a_run_has_the_records_that_the_client_writes() {
    let folder = tempfile::tempdir().unwrap();
    let mut tracker = Wandb::open(&settings(), folder.path(), 0).unwrap();
    for event in [
        Event::RunStart { samples: 0, config: "seed = 1\n[data]\npath = \"x\"\n" },
        Event::Scalars { samples: 8, values: &[("loss", 0.5), ("rate", f64::NAN)] },
        Event::Evaluation { samples: 8, name: "validation", values: &[("loss", 0.25)] },
        Event::Image { samples: 8, tag: "a/../b: c", width: 1, height: 1, rgb: &[1, 2, 3] },
        Event::Scalars { samples: 16, values: &[("loss", f64::INFINITY)] },
        Event::RunEnd { samples: 16, outcome: RunOutcome::Finished },
    ] {
        tracker.event(&event).unwrap();
    }
    tracker.sync().unwrap();
    let files = tracker.path().parent().unwrap().join("files");
    assert_eq!(fs::read_to_string(files.join("recipe.toml")).unwrap(), "seed = 1\n[data]\npath = \"x\"\n");
    let all = records(folder.path());
    let [records] = &all[..] else { panic!("{all:?}") };
    let Kind::Header(header) = &records[0] else { panic!() };
    assert!(header.version_info.as_ref().unwrap().producer.starts_with("calotype "));
    let Kind::Run(run) = &records[1] else { panic!() };
    assert_eq!((run.project.as_str(), run.display_name.as_str(), run.resume), ("p", "n", false));
    assert_eq!((run.run_id.len(), &run.tags[..]), (8, &["a".to_owned()][..]));
    let config = run.config.as_ref().unwrap().update.iter().map(|item| pair(&item.key, &item.value_json));
    assert_eq!(config.collect::<Vec<_>>(), [pair("data", "{\"path\":\"x\"}"), pair("seed", "1")]);
    let found = rows(&all);
    assert_eq!(found.len(), 2);
    assert_eq!(found[0][..3], [pair("loss", "0.5"), pair("rate", "NaN"), pair("validation/loss", "0.25")]);
    assert_eq!(found[0][3], pair("a/../b: c._type", "\"image-file\""));
    assert_eq!(*found[0].last().unwrap(), pair("_step", "8"));
    assert_eq!(found[1], [pair("loss", "Infinity"), pair("_step", "16")]);
    let listed = records.iter().filter_map(|kind| match kind {
        Kind::Files(files) => Some(files.files[0].path.clone()),
        _ => None,
    });
    let listed: Vec<String> = listed.collect();
    assert!(listed[1].starts_with("media/images/a/_/b- c_8_") && listed[1].ends_with(".png"), "{listed:?}");
    let image = image::open(files.join(&listed[1])).unwrap().to_rgb8();
    assert_eq!(image.into_raw(), [1, 2, 3]);
    assert!(matches!(records.last(), Some(Kind::Exit(Exit { exit_code: 0, .. }))));
}

#[test]
fn an_interrupted_run_leaves_the_rows_of_an_uninterrupted_one() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = Wandb::open(&settings(), folder.path(), 0).unwrap();
    first.event(&Event::RunStart { samples: 0, config: "" }).unwrap();
    for samples in [8, 16, 24, 32] {
        first.event(&Event::Scalars { samples, values: &[("loss", samples as f64)] }).unwrap();
    }
    // Killed with half a record on disk.
    first.sync().unwrap();
    let path = first.path().to_owned();
    drop(first);
    let mut content = fs::read(&path).unwrap();
    content.extend_from_slice(&[1, 2, 3, 4, 200, 0, 1, 9, 9]);
    fs::write(&path, content).unwrap();

    let mut second = Wandb::open(&settings(), folder.path(), 16).unwrap();
    assert_eq!(log_name(&second.id), path.file_name().unwrap().to_str().unwrap(), "the same id");
    second.event(&Event::RunStart { samples: 16, config: "" }).unwrap();
    second.event(&Event::Scalars { samples: 24, values: &[("loss", -24.0)] }).unwrap();
    second.event(&Event::RunEnd { samples: 24, outcome: RunOutcome::Interrupted }).unwrap();
    let all = records(folder.path());
    assert_eq!(all.len(), 2);
    assert!(all[1].iter().any(|kind| matches!(kind, Kind::Run(run) if run.resume)));
    let steps: Vec<String> = rows(&all).into_iter().map(|row| row[0].1.clone()).collect();
    assert_eq!(steps, ["8.0", "16.0", "-24.0"]);
    assert!(matches!(all[1].last(), Some(Kind::Exit(Exit { exit_code: 255, .. }))));
}

#[test]
fn a_log_that_was_changed_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let tracker = Wandb::open(&settings(), folder.path(), 0).unwrap();
    let path = tracker.path().to_owned();
    drop(tracker);
    let mut content = fs::read(&path).unwrap();
    content[20] ^= 1;
    fs::write(&path, &content).unwrap();
    let error = Wandb::open(&settings(), folder.path(), 0).unwrap_err().to_string();
    assert!(error.contains(path.to_str().unwrap()) && error.contains("checksum of the fragment at byte 7"), "{error}");
    // A record that is no message of protobuf.
    let mut content = log::HEADER.to_vec();
    content.extend(log::frame(content.len(), &[0xff; 4]));
    assert!(check_log(&content).unwrap_err().contains("the record at byte 7 is none of wandb's"));
}

#[test]
fn times_are_dates() {
    for (seconds, stamp) in [
        (0, "19700101_000000"),
        (951_782_399, "20000228_235959"),
        (951_782_400, "20000229_000000"),
        (951_868_800, "20000301_000000"),
        (1_709_164_800, "20240229_000000"),
        (1_796_046_782, "20261130_135302"),
        (4_107_542_400, "21000301_000000"),
    ] {
        assert_eq!(time_stamp(seconds), stamp);
    }
}

#[test]
fn names_that_the_server_refuses_are_refused() {
    for (text, key) in [
        ("project = \"\"", "trackers.wandb.project"),
        ("project = \"a/b\"", "trackers.wandb.project"),
        ("project = \"p\"\nid = \"a:b\"", "trackers.wandb.id"),
    ] {
        let settings: WandbSettings = toml::from_str(text).unwrap();
        assert_eq!(settings.validate().unwrap_err().key, key);
    }
    assert!(settings().validate().is_ok());
    assert!(toml::from_str::<WandbSettings>("project = \"p\"\nprojct = \"q\"").is_err());
}

proptest! {
    /// Whatever stands in a log, reading it ends with records or with what is wrong.
    #[test]
    fn no_log_is_too_much(noise in proptest::collection::vec(any::<u8>(), 0..300), at in 0usize..300, value: u8) {
        let _ = check_log(&noise);
        let mut log = log::HEADER.to_vec();
        log.extend(log::frame(log.len(), &noise));
        let _ = check_log(&log);
        log.extend_from_slice(&noise);
        if let Some(byte) = log.get_mut(at) {
            *byte = value;
        }
        let _ = check_log(&log);
    }
}
