//! Pickled arrays and lists of shards, both ways against Python and NumPy (`make_pickles.py`).

use std::path::{Path, PathBuf};

use calotype_data::npy::NpyArray;
use calotype_data::pickled::{PickledArrays, read_arrays, write_arrays};
use calotype_data::wdinfo::WdInfo;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pickles").join(name)
}

fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(golden(name)).unwrap()
}

/// The arrays of `make_pickles.py`.
fn arrays() -> PickledArrays {
    let grid = || (0..6).map(|i| i as f32 - 2.5).collect::<Vec<_>>();
    let moments: Vec<f32> = (0..32).map(|i| i as f32 / 4.0).collect();
    let rows = [
        ("autoencoderkl_image", NpyArray::f16_from_f32(&[8, 2, 2], &moments)),
        ("clip-vit-large-patch14_text", NpyArray::from_f32(&[2, 3], grid())),
        ("big_endian", NpyArray::from_f32(&[2, 3], grid())),
        ("big_endian_ints", NpyArray::from_i64(&[2], vec![1, -2])),
        ("fortran", NpyArray::from_f32(&[2, 3], grid())),
        ("strided", NpyArray::from_f32(&[2, 2], vec![6.0, 9.0, 18.0, 21.0])),
        ("scalar", NpyArray::from_i64(&[], vec![7])),
        ("empty", NpyArray::from_f32(&[2, 0, 3], vec![])),
    ];
    rows.into_iter().map(|(name, array)| (name.to_owned(), array.unwrap())).collect()
}

fn wdinfo() -> WdInfo {
    WdInfo::new(["last_few_00000.tar", "00001.tar", "00000.tar"].map(str::to_owned).to_vec(), 1000)
}

/// Compares with a file that Python has read; on request, writes the file that Python is to read.
fn compare_or_write(name: &str, written: &[u8]) {
    if std::env::var_os("CALOTYPE_WRITE_GOLDEN").is_some() {
        std::fs::write(golden(name), written).unwrap();
    }
    assert!(bytes(name) == written, "{name} differs from what Python has read");
}

#[test]
fn arrays_of_both_numpys_and_all_protocols_are_read() {
    for numpy in [1, 2] {
        for protocol in 2..=5 {
            let name = format!("np{numpy}_p{protocol}.pickle");
            assert_eq!(read_arrays("a", &bytes(&name)).unwrap(), arrays(), "{name}");
        }
    }
}

#[test]
fn written_pickles_are_those_that_python_has_read() {
    let written = write_arrays(&arrays());
    assert_eq!(read_arrays("a", &written).unwrap(), arrays());
    compare_or_write("calotype.pickle", &written);
    compare_or_write("calotype_wdinfo.pkl", &wdinfo().to_pickle());
}

#[test]
fn doubles_are_read() {
    let read = read_arrays("a", &bytes("float64.pickle")).unwrap();
    assert_eq!(read["double"].to_f64().unwrap(), [0.0]);
}

#[test]
fn bf16_is_widened_for_python() {
    let array = NpyArray::bf16_from_f32(&[2], &[1.5, -3e38]).unwrap();
    let written = write_arrays(&PickledArrays::from([("states".to_owned(), array.clone())]));
    let read = read_arrays("a", &written).unwrap();
    assert_eq!(read["states"], NpyArray::from_f32(&[2], array.to_f32().unwrap()).unwrap());
}

#[test]
fn lists_of_shards_come_back_in_both_forms() {
    for name in ["wdinfo_p2.pkl", "wdinfo_p4.pkl", "wdinfo_numpy.pkl", "calotype_wdinfo.pkl"] {
        assert_eq!(WdInfo::read(&golden(name)).unwrap(), wdinfo(), "{name}");
    }
    let dir = tempfile::tempdir().unwrap();
    for name in ["wdinfo.json", "wdinfo.pkl"] {
        wdinfo().write(&dir.path().join(name)).unwrap();
        assert_eq!(WdInfo::read(&dir.path().join(name)).unwrap(), wdinfo(), "{name}");
    }
    let large = WdInfo::new(vec!["a.tar".to_owned()], 5_000_000_000);
    assert_eq!(WdInfo::from_pickle(&large.to_pickle()).unwrap(), large);
}

/// A pickle of protocol 4 of the operations given.
fn pickle(operations: &[&[u8]]) -> Vec<u8> {
    [&[b"\x80\x04".as_slice()], operations, &[b"."]].concat().concat()
}

const RECONSTRUCT: &[u8] = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R";
const F4: &[u8] =
    b"cnumpy\ndtype\nX\x02\0\0\0f4\x89\x88\x87R(K\x03X\x01\0\0\0<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb";

/// An array of four bytes with `shape` and `bytes` as given.
fn array(shape: &[u8], bytes: &[u8]) -> Vec<u8> {
    [RECONSTRUCT, b"(K\x01", shape, F4, b"\x89", bytes, b"tb"].concat()
}

#[test]
fn malformed_pickles_are_named() {
    let whole = write_arrays(&arrays());
    let good = array(b"K\x01\x85", b"C\x04abcd");
    let shared = [
        b"}(X\x01\0\0\0a".as_slice(),
        &array(b"M\x00\x10\x85", &[b"B\0\x40\0\0".as_slice(), &[0; 1 << 14]].concat()),
        b"\x94",
    ]
    .concat();
    let again: Vec<u8> = (0..40u8).flat_map(|i| [b"X\x01\0\0\0".as_slice(), &[b'A' + i], b"h\0"].concat()).collect();
    let table: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", vec![], "truncated"),
        ("cut", whole[..whole.len() - 20].to_vec(), "truncated"),
        ("no end mark", whole[..whole.len() - 1].to_vec(), "truncated"),
        ("bytes behind the end", [&whole[..], b"x"].concat(), "ends after"),
        ("no pickle", b"zip?".to_vec(), "not a pickle operation"),
        ("a npy file", b"\x93NUMPY".to_vec(), "takes a value where there is none"),
        ("zeros", vec![0; 64], "not a pickle operation"),
        ("protocol 9", b"\x80\x09}.".to_vec(), "protocol 9"),
        ("a call", pickle(&[b"cos\nsystem\nX\x02\0\0\0ls\x85R"]), "names `os.system`"),
        ("a call by text", pickle(&[b"X\x02\0\0\0osX\x06\0\0\0system\x93)R"]), "names `os.system`"),
        ("eval", pickle(&[b"cbuiltins\neval\nX\x01\0\0\0a\x85R"]), "names `builtins.eval`"),
        ("a torch storage", pickle(&[b"}X\x01\0\0\0ax\x05Q"]), "not a pickle operation"),
        ("a persistent name", pickle(&[b"Pname\n"]), "persistent"),
        ("an extension", pickle(&[b"\x82\x01"]), "extension registry"),
        ("outside buffers", pickle(&[b"\x97"]), "outside the file"),
        ("a list", pickle(&[b"]"]), "it is a list"),
        ("one array", pickle(&[&good]), "it is an array"),
        ("a number as key", pickle(&[b"}K\x01", &good, b"s"]), "has an integer for a key"),
        ("a text as entry", pickle(&[b"}X\x01\0\0\0aX\x01\0\0\0bs"]), "`a` is a text"),
        ("a number as entry", pickle(&[b"}X\x01\0\0\0aG?\xf8\0\0\0\0\0\0s"]), "`a` is a float"),
        ("a name twice", pickle(&[b"}X\x01\0\0\0a", &good, b"sX\x01\0\0\0a", &good, b"s"]), "`a` is there twice"),
        (
            "too few bytes",
            pickle(&[b"}X\x01\0\0\0a", &array(b"K\x02\x85", b"C\x04abcd"), b"s"]),
            "another number of bytes",
        ),
        (
            "too many bytes",
            pickle(&[b"}X\x01\0\0\0a", &array(b"K\x01\x85", b"C\x05abcde"), b"s"]),
            "another number of bytes",
        ),
        (
            "a negative size",
            pickle(&[b"}X\x01\0\0\0a", &array(b"J\xff\xff\xff\xff\x85", b"C\x04abcd"), b"s"]),
            "a shape that",
        ),
        (
            "a huge size",
            pickle(&[
                b"}X\x01\0\0\0a",
                &array(b"\x8a\x07\0\0\0\0\0\0\x40\x8a\x07\0\0\0\0\0\0\x40\x86", b"C\x00"),
                b"s",
            ]),
            "overflows",
        ),
        ("a text as shape", pickle(&[b"}X\x01\0\0\0a", &array(b"X\x01\0\0\0s", b"C\x04abcd"), b"s"]), "a shape that"),
        (
            "a text as dtype",
            pickle(&[b"}X\x01\0\0\0a", RECONSTRUCT, b"(K\x01K\x01\x85X\x02\0\0\0f4\x89C\x04abcdtbs"]),
            "element type",
        ),
        ("never filled", pickle(&[b"}X\x01\0\0\0a", RECONSTRUCT, b"s"]), "unfilled numpy array"),
        (
            "filled twice",
            pickle(&[b"}X\x01\0\0\0a", &good, b"(K\x01K\x01\x85", F4, b"\x89C\x04abcdtbs"]),
            "already has a state",
        ),
        ("one array forty times", pickle(&[&shared, &again, b"u"]), "more than 4 times"),
        ("objects", bytes("objects.pickle"), "`objects` holds elements of type numpy object"),
        ("deep lists", pickle(&[&b"]".repeat(100_000), &b"a".repeat(99_999)]), "more than the"),
        ("a length beyond the end", b"\x80\x04B\xff\xff\xff\x7f".to_vec(), "truncated"),
    ];
    for (name, bytes, expected) in table {
        let error = read_arrays("cat-7", &bytes).expect_err(name).to_string();
        assert!(error.contains(expected) && error.contains("cat-7"), "{name}: {error}");
    }
}

#[test]
fn malformed_lists_of_shards_are_named() {
    let file = |pairs: &str| pickle(&[pairs.as_bytes()]);
    let text = |text: &str| format!("X{}\0\0\0{text}", text.len() as u8 as char);
    let list = |files: &[&str], chunk: &str, total: &str| {
        let files: String = files.iter().map(|file| text(file)).collect();
        format!("}}({}]({files}e{}{chunk}{}{total}u", text("tar_files"), text("chunk_size"), text("total_key_count"))
    };
    let pickles: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", vec![], "truncated"),
        ("JSON", b"{\"tar_files\": []}".to_vec(), "not"),
        ("a call", pickle(&[b"cos\nsystem\nX\x02\0\0\0ls\x85R"]), "names `os.system`"),
        ("a list", pickle(&[b"]"]), "it is a list"),
        ("nothing in it", pickle(&[b"}"]), "key `tar_files` is missing"),
        ("no count", file(&format!("}}{}]s", text("tar_files"))), "key `chunk_size` is missing"),
        ("a text for the list", file(&format!("}}{}{}s", text("tar_files"), text("a"))), "`tar_files` is a text"),
        (
            "numbers in the list",
            file(&format!(
                "}}{}](K\x01es{}K\x01s{}K\x01s",
                text("tar_files"),
                text("chunk_size"),
                text("total_key_count")
            )),
            "`tar_files` holds an integer",
        ),
        ("a text for the size", file(&list(&["a"], &text("1"), "K\x01")), "`chunk_size` is a text"),
        ("no size", file(&list(&["a"], "K\0", "K\0")), "`chunk_size` is 0"),
        ("another total", file(&list(&["a"], "K\x02", "K\x03")), "`total_key_count` is 3"),
        ("a way out", file(&list(&["../a"], "K\x01", "K\x01")), "leads out"),
        ("an absolute path", file(&list(&["/etc/passwd"], "K\x01", "K\x01")), "leads out"),
        ("no name", file(&list(&[""], "K\x01", "K\x01")), "leads out"),
        ("one twice", file(&list(&["a", "a"], "K\x01", "K\x02")), "`a` is there twice"),
        ("bytes behind", [wdinfo().to_pickle(), vec![0]].concat(), "ends after"),
    ];
    for (name, bytes, expected) in pickles {
        let error = WdInfo::from_pickle(&bytes).expect_err(name);
        assert!(error.contains(expected), "{name}: {error}");
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("wdinfo.json");
    for (text, expected) in [
        ("", "EOF"),
        ("[]", "invalid"),
        ("{\"tar_files\": [], \"chunk_size\": 1}", "total_key_count"),
        ("{\"tar_files\": [], \"chunk_size\": -1, \"total_key_count\": 0}", "invalid value"),
        ("{\"tar_files\": [\"a/../../b\"], \"chunk_size\": 1, \"total_key_count\": 1}", "leads out"),
        ("{\"tar_files\": [], \"chunk_size\": 1, \"total_key_count\": 0, \"x\": 1}", "unknown field"),
    ] {
        std::fs::write(&path, text).unwrap();
        let error = WdInfo::read(&path).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("wdinfo.json"), "{text}: {error}");
    }
    let error = WdInfo::read(&dir.path().join("absent.pkl")).unwrap_err().to_string();
    assert!(error.contains("absent.pkl"), "{error}");
}

#[test]
fn damaged_pickles_are_errors_or_other_arrays() {
    let goods = ["np1_p2.pickle", "np2_p4.pickle", "np2_p5.pickle", "calotype.pickle", "wdinfo_p2.pkl"].map(bytes);
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = move |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % below as u64) as usize
    };
    for round in 0..20_000 {
        let mut damaged = goods[round % goods.len()].clone();
        for _ in 0..=next(4) {
            let at = next(damaged.len());
            match next(3) {
                0 => damaged[at] = next(256) as u8,
                1 => drop(damaged.splice(at..at, goods[next(goods.len())].iter().take(next(40)).copied())),
                _ => drop(damaged.drain(at..(at + next(9)).min(damaged.len()))),
            }
            damaged.push(b'.');
        }
        if let Ok(arrays) = read_arrays("a", &damaged) {
            // Compared as bytes: NaN is not equal to itself.
            let written = write_arrays(&arrays);
            assert!(write_arrays(&read_arrays("a", &written).unwrap()) == written);
        }
        if let Ok(info) = WdInfo::from_pickle(&damaged) {
            assert_eq!(WdInfo::from_pickle(&info.to_pickle()), Ok(info));
        }
    }
}
