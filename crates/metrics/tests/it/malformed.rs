//! Saved sums of features that are damaged.

use calotype_metrics::GaussianAccumulator;

/// Sums of one whole leaf of 2 features and three rows more.
fn saved() -> Vec<u8> {
    let mut accumulator = GaussianAccumulator::new(2).unwrap();
    let features: Vec<f32> = (0..2 * 2051).map(|index| (index % 13) as f32).collect();
    accumulator.push(&features).unwrap();
    accumulator.to_bytes()
}

/// Where the fields lie: after the line, five numbers, the leaf's level, its mean and its triangle of 2 columns.
const WIDTH: usize = 20;
const LEAF_ROWS: usize = 28;
const NEXT: usize = 36;
const PARTS: usize = 44;
const FIRST: usize = 52;
const LEVEL: usize = 60;
const MEAN: usize = 68;
const TRIANGLE: usize = 84;
const SECOND: usize = 116;
const KIND: usize = 124;
const ROWS: usize = 132;
const VALUES: usize = 140;

#[test]
fn damaged_sums_are_refused() {
    let good = saved();
    assert!(GaussianAccumulator::from_bytes(&good).is_ok());
    assert_eq!(good.len(), VALUES + 3 * 2 * 4);
    let with = |at: usize, value: [u8; 8]| {
        let mut bytes = good.clone();
        bytes[at..at + 8].copy_from_slice(&value);
        bytes
    };
    let number = |at: usize, value: u64| with(at, value.to_le_bytes());
    let table = [
        ("another file", number(0, 7), "byte 0: these are no saved sums"),
        ("no width", number(WIDTH, 0), "byte 20: a width of 0"),
        ("a width beyond memory", number(WIDTH, u64::MAX), "byte 20: a width of"),
        ("a width beyond the file", number(WIDTH, 1 << 20), "it was cut off"),
        ("other leaves", number(LEAF_ROWS, 1024), "byte 28: leaves of 1024 rows"),
        ("a next row beyond all", number(NEXT, u64::MAX), "byte 36: row"),
        ("more parts", number(PARTS, u64::MAX), "it was cut off"),
        ("fewer parts", number(PARTS, 1), "byte 116: 48 bytes too many"),
        ("sums between leaves", number(FIRST, 5), "byte 52: sums of level 0 that begin with row 5"),
        (
            "sums between leaves of their level",
            with(FIRST, 2048u64.to_le_bytes()),
            "byte 116: a part that begins with row 2048",
        ),
        ("an endless level", number(LEVEL, 99), "byte 52: sums of level 98"),
        ("a mean that is no number", with(MEAN, f64::NAN.to_le_bytes()), "byte 68: NaN"),
        ("a sum without bound", with(TRIANGLE + 8, f64::INFINITY.to_le_bytes()), "byte 92: inf"),
        ("rows twice", number(SECOND, 2000), "byte 116"),
        ("rows over the end of a leaf", number(SECOND, 4094), "byte 116: 3 rows from row 4094 on"),
        ("rows that are sums", number(KIND, 1), "it was cut off"),
        ("no rows", number(ROWS, 0), "byte 116: 0 rows"),
        ("a whole leaf of rows", number(ROWS, 2048), "byte 116: 2048 rows"),
        ("more rows than there are", number(ROWS, 4), "byte 140: 32 bytes should follow, and 24 do"),
        ("a value that is no number", with(VALUES, [0, 0, 0x80, 0x7f, 0, 0, 0, 0]), "byte 140: inf"),
        ("more bytes", [good.as_slice(), &[0]].concat(), "byte 164: 1 bytes too many"),
    ];
    for (what, bytes, expected) in table {
        let error = GaussianAccumulator::from_bytes(&bytes).unwrap_err().to_string();
        assert!(error.contains(expected), "{what}: {error}");
    }
    for length in 0..good.len() {
        assert!(GaussianAccumulator::from_bytes(&good[..length]).is_err(), "{length} bytes");
    }
}
