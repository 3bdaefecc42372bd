use std::fs;

use calotype_data::wdinfo::WdInfo;
use calotype_data::{Dataset, DatasetIndex, Quarantine};
use calotype_prepare::Error;
use calotype_prepare::index::IndexError;

use super::{data, keys, names, samples, shards, text, write_tar};

fn last_note(account: &calotype_prepare::Account) -> &str {
    account.notes.iter().find(|note| note.contains("of them read")).unwrap()
}

#[test]
fn only_what_is_new_or_changed_is_read() {
    let dir = tempfile::tempdir().unwrap();
    shards(dir.path(), &[4, 4, 4]);
    let account = data(&["index", text(dir.path())]).unwrap();
    assert_eq!((account.taken, account.written), (12, 12));
    assert_eq!(last_note(&account), "12 samples in 3 shards, 3 of them read, the others unchanged");
    let index = DatasetIndex::read(dir.path()).unwrap().unwrap();
    assert!(index.shards.iter().all(|shard| shard.blake3.is_some() && shard.samples == 4));
    assert_eq!(Dataset::open(dir.path()).unwrap().len(), 12);

    let again = data(&["index", text(dir.path())]).unwrap();
    assert_eq!(last_note(&again), "12 samples in 3 shards, 0 of them read, the others unchanged");
    write_tar(&dir.path().join("00003.tar"), &samples(12, 2));
    let more = data(&["index", text(dir.path())]).unwrap();
    assert_eq!(last_note(&more), "14 samples in 4 shards, 1 of them read, the others unchanged");
    fs::remove_file(dir.path().join("00000.tar")).unwrap();
    let fewer = data(&["index", text(dir.path())]).unwrap();
    assert_eq!(last_note(&fewer), "10 samples in 3 shards, 0 of them read, the others unchanged");
    let all = data(&["index", text(dir.path()), "--reread"]).unwrap();
    assert_eq!(last_note(&all), "10 samples in 3 shards, 3 of them read, the others unchanged");
}

#[test]
fn lists_of_nemo_hold_full_shards_and_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    shards(dir.path(), &[4, 4, 2, 4, 3]);
    let account = data(&["index", text(dir.path()), "--wdinfo"]).unwrap();
    assert_eq!(account.written, 17);
    assert!(account.notes.iter().any(|note| note.contains("5 samples in 2 shards of other counts")), "{account}");
    for name in ["wdinfo.json", "wdinfo.pkl"] {
        let info = WdInfo::read(&dir.path().join(name)).unwrap();
        assert_eq!(info, WdInfo::new(["00000.tar", "00001.tar", "00003.tar"].map(str::to_owned).to_vec(), 4));
    }
    write_tar(&dir.path().join("00001.tar"), &samples(4, 3));
    let error = data(&["index", text(dir.path())]).unwrap_err();
    assert!(matches!(&error, Error::Index(IndexError::WdInfo { shard, .. }) if shard == "00001.tar"), "{error}");
    assert!(error.to_string().contains("holds 3"), "{error}");
}

#[test]
fn shards_that_are_not_full_are_replaced_by_full_ones() {
    let dir = tempfile::tempdir().unwrap();
    shards(dir.path(), &[4, 4, 2, 4, 3, 4]);
    fs::write(dir.path().join("00005.tar.INCOMPLETE"), b"").unwrap();
    data(&["index", text(dir.path())]).unwrap();
    let mut index = DatasetIndex::read(dir.path()).unwrap().unwrap();
    index.meta.insert("licence".to_owned(), "CC0".into());
    index.write(dir.path()).unwrap();
    let mut list = Quarantine::new();
    for (shard, key) in [("00000.tar", "000000001"), ("00002.tar", "000000009"), ("00005.tar", "000000020")] {
        list.insert(shard, key, "ugly");
    }
    list.write(dir.path()).unwrap();
    let account = data(&["index", text(dir.path()), "--merge", "--wdinfo"]).unwrap();
    assert_eq!((account.taken, account.written), (21, 21), "{account}");
    let list = Quarantine::read(dir.path()).unwrap();
    let listed: Vec<String> = list.records().map(|record| format!("{} {}", record.shard, record.key)).collect();
    let expected = ["00000.tar 000000001", "last_few_00000.tar 000000009", "last_few_00002.tar 000000020"];
    assert_eq!(listed, expected);
    let expected = [
        "00000.tar",
        "00001.tar",
        "00003.tar",
        "index.json",
        "last_few_00000.tar",
        "last_few_00001.tar",
        "last_few_00002.tar",
        "last_few_00002.tar.INCOMPLETE",
        "quarantine.json",
        "wdinfo.json",
        "wdinfo.pkl",
    ];
    let visible: Vec<String> = names(dir.path()).into_iter().filter(|name| !name.starts_with('.')).collect();
    assert_eq!(visible, expected);
    assert_eq!(keys(&dir.path().join("last_few_00002.tar")), ["000000020:png,txt"]);
    assert_eq!(WdInfo::read(&dir.path().join("wdinfo.pkl")).unwrap().total_key_count, 20);
    assert_eq!(DatasetIndex::read(dir.path()).unwrap().unwrap().meta["licence"], "CC0");
    assert!(!dir.path().join(".merge.json").exists());
    // One shard that is not full has nothing to be merged with.
    let again = data(&["index", text(dir.path()), "--merge"]).unwrap();
    assert!(!again.notes.iter().any(|note| note.contains("merged into")), "{again}");
}

#[test]
fn what_nemo_has_merged_counts_once() {
    let dir = tempfile::tempdir().unwrap();
    shards(dir.path(), &[4, 3, 1]);
    for name in ["00001.tar", "00002.tar"] {
        fs::write(dir.path().join(format!("{name}.INCOMPLETE")), b"").unwrap();
    }
    // NeMo leaves the marked shards where they are.
    write_tar(&dir.path().join("last_few_00000.tar"), &samples(4, 4));
    let account = data(&["index", text(dir.path()), "--wdinfo"]).unwrap();
    assert_eq!((account.taken, account.written, account.left_out_in_all()), (12, 8, 4), "{account}");
    let info = WdInfo::read(&dir.path().join("wdinfo.json")).unwrap();
    assert_eq!(info.tar_files, ["00000.tar", "last_few_00000.tar"]);
    // And again without reading anything.
    let account = data(&["index", text(dir.path())]).unwrap();
    assert_eq!((account.taken, account.written, account.left_out_in_all()), (12, 8, 4), "{account}");
    assert!(last_note(&account).contains("0 of them read"), "{account}");
}

#[test]
fn faults_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = data(&["index", text(dir.path())]).unwrap_err();
    assert!(error.is_usage() && error.to_string().contains("holds no *.tar files"), "{error}");
    write_tar(&dir.path().join("task0000/00000.tar"), &samples(0, 1));
    let error = data(&["index", text(dir.path())]).unwrap_err();
    assert!(error.to_string().contains("each of its subfolders"), "{error}");
    shards(dir.path(), &[2, 2]);
    write_tar(&dir.path().join("00002.tar"), &samples(3, 2));
    let error = data(&["index", text(dir.path())]).unwrap_err();
    assert!(error.to_string().contains("duplicate key `000000003`"), "{error}");
    let error = data(&["index", text(dir.path()), "--merge", "--chunk-size", "9"]).unwrap_err();
    assert!(error.to_string().contains("1 samples: duplicate key"), "{error}");
    fs::write(dir.path().join("00002.tar"), [7; 3000]).unwrap();
    let error = data(&["index", text(dir.path())]).unwrap_err();
    assert!(matches!(&error, Error::Index(IndexError::Damaged { count: 1, .. })), "{error}");
    assert!(error.to_string().contains("00002.tar"), "{error}");
    assert!(!dir.path().join("index.json").exists());
    let error = data(&["index", text(&dir.path().join("absent"))]).unwrap_err();
    assert!(error.to_string().contains("does not exist"), "{error}");
    let error = data(&["index", text(&dir.path().join("00000.tar"))]).unwrap_err();
    let told = error.to_string();
    assert!(error.is_usage() && told.contains("00000.tar is a file; name the folder"), "{told}");
    assert!(!told.contains("does not exist") && !told.contains("did you mean"), "{told}");
    let error = data(&["index", text(dir.path()), "--chunk-size", "5"]).unwrap_err();
    assert!(error.is_usage() && error.to_string().contains("no effect without --wdinfo or --merge"), "{error}");
}
