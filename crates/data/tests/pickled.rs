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
