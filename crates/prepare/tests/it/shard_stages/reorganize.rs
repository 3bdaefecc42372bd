use std::fs;

use calotype_data::Quarantine;
use calotype_prepare::Error;
use calotype_prepare::reorganize::ReorganizeError;

use super::{contents, data, keys, names, samples, shards, text, write_tar};

#[test]
fn shards_of_equal_counts_whatever_the_slices() {
    let dir = tempfile::tempdir().unwrap();
    let (input, out) = (dir.path().join("in"), dir.path().join("out"));
    shards(&input, &[7, 1, 0, 9, 5]);
    let account =
        data(&["reorganize", text(&input), text(&out), "--samples-per-shard", "4", "--prefix", "cats"]).unwrap();
    assert_eq!((account.taken, account.written, account.left_out_in_all()), (22, 22, 0), "{account}");
    let shard_names: Vec<String> = (0..6).map(|n| format!("cats-{n:06}.tar")).collect();
    assert_eq!(names(&out), shard_names);
    let all: Vec<String> = shard_names.iter().flat_map(|name| keys(&out.join(name))).collect();
    assert_eq!(all, (0..22).map(|i| format!("{i:09}:png,txt")).collect::<Vec<_>>());
    assert_eq!(keys(&out.join("cats-000005.tar")).len(), 2);
    // The same in three slices, in any order, one of them twice.
    let sliced = dir.path().join("sliced");
    let mut sum = 0;
    for id in ["2", "0", "0", "1"] {
        let args = ["reorganize", text(&input), text(&sliced), "--samples-per-shard", "4", "--prefix", "cats"];
        let account = data(&[&args[..], &["--task-id", id, "--task-count", "3"]].concat()).unwrap();
        sum += account.taken;
    }
    assert_eq!(contents(&sliced), contents(&out));
    assert!(sum > 22, "the repeated slice tells its account again");
}

#[test]
fn parts_are_chosen_and_what_lacks_them_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let (input, out) = (dir.path().join("in"), dir.path().join("out"));
    let mut members = samples(0, 3);
    members.retain(|(name, _)| name != "000000001.txt");
    members.push(("./000000009.txt".to_owned(), b"a".to_vec()));
    members.push(("./000000009.PNG".to_owned(), b"b".to_vec()));
    members.push(("000000009.json".to_owned(), b"{}".to_vec()));
    members.push(("without.txt".to_owned(), b"an image".to_vec()));
    members.push(("README".to_owned(), b"no sample".to_vec()));
    // Longer than a USTAR header allows.
    let long = format!("{}/{}", "d".repeat(90), "k".repeat(150));
    members.push((format!("{long}.png"), b"b".to_vec()));
    members.push((format!("{long}.txt"), b"b".to_vec()));
    write_tar(&input.join("a.tar"), &members);
    let account = data(&["reorganize", text(&input), text(&out), "--extensions", ".png,txt"]).unwrap();
    assert_eq!((account.taken, account.written), (6, 4), "{account}");
    assert_eq!(account.left_out["no part `txt`"], 1);
    assert_eq!(account.left_out["no part `png`"], 1);
    let expected = ["000000000:png,txt", "000000002:png,txt", "000000009:png,txt", &format!("{long}:png,txt")];
    assert_eq!(keys(&out.join("shard-000000.tar")), expected);
}

#[test]
fn keys_that_repeat_are_counted_or_kept_apart() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("in");
    write_tar(&input.join("a.tar"), &samples(0, 2));
    write_tar(&input.join("deep/b.tar"), &samples(1, 2));
    let out = dir.path().join("out");
    let account = data(&["reorganize", text(&input), text(&out)]).unwrap();
    assert_eq!((account.taken, account.written, account.left_out["duplicate key"]), (4, 3, 1), "{account}");
    let out = dir.path().join("prefixed");
    let account = data(&["reorganize", text(&input), text(&out), "--prefix-keys"]).unwrap();
    assert_eq!((account.taken, account.written), (4, 4), "{account}");
    let all = keys(&out.join("shard-000000.tar"));
    assert_eq!(all[1..3], ["a.tar/000000001:png,txt", "deep/b.tar/000000001:png,txt"]);
}

#[test]
fn damaged_shards_are_named_or_salvaged() {
    let dir = tempfile::tempdir().unwrap();
    let (input, out) = (dir.path().join("in"), dir.path().join("out"));
    shards(&input, &[3, 3]);
    let whole = fs::read(input.join("00000.tar")).unwrap();
    // Cut in the data of the third sample's caption.
    fs::write(input.join("00000.tar"), &whole[..whole.len() - 1024 - 700]).unwrap();
    fs::write(input.join("00002.tar"), b"").unwrap();
    let error = data(&["reorganize", text(&input), text(&out)]).unwrap_err();
    assert!(matches!(&error, Error::Reorganize(ReorganizeError::Corrupt { count: 2, .. })), "{error}");
    assert!(error.to_string().contains("00000.tar is truncated"), "{error}");
    assert!(names(&out).is_empty());
    let out = dir.path().join("salvaged");
    let account = data(&["reorganize", text(&input), text(&out), "--skip-corrupt"]).unwrap();
    assert_eq!((account.taken, account.written), (6, 5), "{account}");
    assert_eq!(account.left_out["cut by the damage of its shard"], 1);
    assert_eq!(account.notes.iter().filter(|note| note.starts_with("damaged: ")).count(), 2, "{account}");
}

#[test]
fn the_layout_of_nemo_with_marks_and_merges() {
    let dir = tempfile::tempdir().unwrap();
    let (input, out, merged) = (dir.path().join("in"), dir.path().join("out"), dir.path().join("merged"));
    shards(&input, &[3, 4, 2, 6]);
    let args = ["reorganize", text(&input), text(&out), "--layout", "nemo", "--samples-per-shard", "4"];
    for id in ["0", "1"] {
        data(&[&args[..], &["--task-id", id, "--task-count", "2"]].concat()).unwrap();
    }
    let expected = [
        "task0000/00000.tar",
        "task0000/00001.tar",
        "task0000/00001.tar.INCOMPLETE",
        "task0000/log.txt",
        "task0001/00000.tar",
        "task0001/00001.tar",
        "task0001/log.txt",
    ];
    assert_eq!(names(&out), expected);
    let log = |task: &str| fs::read_to_string(out.join(task).join("log.txt")).unwrap();
    assert_eq!(log("task0000"), "Last tar 1 only has 3 files!");
    assert_eq!(log("task0001"), "Last tar 2 only has 0 files!");
    fs::write(out.join("task0001/00000.tar.INCOMPLETE"), b"").unwrap();
    data(&["reorganize", text(&out), text(&merged), "--merge", "--samples-per-shard", "4"]).unwrap();
    let expected = ["last_few_00000.tar", "last_few_00001.tar", "last_few_00001.tar.INCOMPLETE", "log.txt"];
    assert_eq!(names(&merged), expected);
    assert_eq!(keys(&merged.join("last_few_00001.tar")).len(), 3);
}

#[test]
fn parts_of_the_sources_are_joined_by_key() {
    let dir = tempfile::tempdir().unwrap();
    let (source, encoded) = (dir.path().join("source"), dir.path().join("encoded"));
    shards(&source.join("part_000"), &[2, 2]);
    let moments = |key: &str| (format!("{key}.npy"), b"moments".to_vec());
    write_tar(&encoded.join("a.tar"), &["000000003", "000000000", "000000007"].map(moments));
    let out = dir.path().join("by key");
    let join = ["--join", text(&source), "--join-extensions", "txt"];
    let args = ["reorganize", text(&encoded), text(&out)];
    let account = data(&[&args[..], &join[..]].concat()).unwrap();
    assert_eq!((account.written, account.left_out["no part `txt` in its source"]), (2, 1), "{account}");
    assert_eq!(keys(&out.join("shard-000000.tar")), ["000000003:npy,txt", "000000000:npy,txt"]);

    let keys_of_nemo = ["part_000/00001.tar/000000003", "part_000/00000.tar/000000001", "../../etc/passwd.tar/a"];
    write_tar(
        &dir.path().join("encoded 2/a.tar"),
        &keys_of_nemo[..2].iter().map(|key| moments(key)).collect::<Vec<_>>(),
    );
    let out = dir.path().join("by shard");
    let args = ["reorganize", text(&dir.path().join("encoded 2")).to_owned().leak(), text(&out)];
    let account = data(&[&args[..], &join[..], &["--extensions", "npy"]].concat()).unwrap();
    assert_eq!((account.taken, account.written), (2, 2), "{account}");
    let expected = ["part_000/00001.tar/000000003:npy,txt", "part_000/00000.tar/000000001:npy,txt"];
    assert_eq!(keys(&out.join("shard-000000.tar")), expected);
}

#[test]
fn bad_settings_are_the_command_lines_fault() {
    let dir = tempfile::tempdir().unwrap();
    let (input, out) = (dir.path().join("in"), dir.path().join("out"));
    shards(&input, &[3]);
    fs::create_dir_all(dir.path().join("empty")).unwrap();
    let cases: [(&[&str], &str); 7] = [
        (&[text(&input), text(&out), "--prefix", "../evil"], "`../evil` cannot begin a file name"),
        (&[text(&input), text(&out), "--prefix", "/abs"], "`/abs` cannot begin a file name"),
        (&[text(&input), text(&out), "--prefix", "a/b"], "`a/b` cannot begin a file name"),
        (&[text(&input), text(&input)], "lies in the input"),
        (&[text(&dir.path().join("empty")).to_owned().leak(), text(&out)], "no *.tar in"),
        (&[text(&input), text(&out), "--merge"], "no *.tar with a mark"),
        (&[text(&input), text(&out), "--samples-per-shard", "0"], "at least 1"),
    ];
    for (args, message) in cases {
        let error = data(&[&["reorganize"], args].concat()).unwrap_err();
        assert!(error.is_usage() && error.to_string().contains(message), "{error}");
    }
    assert!(!out.exists());
    // Shards of somebody else's stay as they are, and alone.
    let foreign = dir.path().join("foreign");
    shards(&foreign, &[2]);
    let error = data(&["reorganize", text(&input), text(&foreign)]).unwrap_err();
    assert!(error.is_usage() && error.to_string().contains("holds shards that were made of other inputs"), "{error}");
    assert!(!foreign.join(".slices").exists() && names(&foreign) == ["00000.tar"]);
    data(&["reorganize", text(&input), text(&out)]).unwrap();
    let error = data(&["reorganize", text(&input), text(&out), "--samples-per-shard", "2"]).unwrap_err();
    assert!(matches!(error, Error::Reorganize(ReorganizeError::OtherPlan { .. })) && error.is_usage(), "{error}");
}

#[test]
fn samples_in_quarantine_are_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let (input, out) = (dir.path().join("in"), dir.path().join("out"));
    shards(&input.join("deep"), &[3, 3]);
    let mut list = Quarantine::new();
    list.insert("deep/00000.tar", "000000001", "ugly");
    list.write(&input).unwrap();
    let mut list = Quarantine::new();
    list.insert("00001.tar", "000000003", "ugly");
    list.write(&input.join("deep")).unwrap();
    let account = data(&["reorganize", text(&input), text(&out)]).unwrap();
    assert_eq!((account.taken, account.written, account.left_out["in quarantine"]), (6, 4, 2), "{account}");
    Quarantine::new().write(&input).unwrap();
    let error = data(&["reorganize", text(&input), text(&out)]).unwrap_err();
    assert!(matches!(error, Error::Reorganize(ReorganizeError::OtherPlan { .. })), "{error}");
}

#[test]
fn shards_that_are_gone_are_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("in");
    shards(&input, &[3, 4, 2, 6]);
    for (layout, gone, cut) in
        [("flat", "shard-000001.tar", "shard-000002.tar"), ("nemo", "task0000/00001.tar", "task0000/00002.tar")]
    {
        let out = dir.path().join(layout);
        let args = ["reorganize", text(&input), text(&out), "--layout", layout, "--samples-per-shard", "4"];
        let account = data(&args).unwrap();
        let whole = contents(&out);
        fs::remove_file(out.join(gone)).unwrap();
        fs::write(out.join(cut), "cut").unwrap();
        let again = data(&args).unwrap();
        assert_eq!((again.taken, again.written, again.bytes), (account.taken, account.written, account.bytes));
        assert_eq!(contents(&out), whole);
    }
}
