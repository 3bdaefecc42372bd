//! Numbers as Python's `str` writes them, for files that are compared with those of the reference's scripts.

/// A double: the shortest digits that read back as the same number.
pub(crate) fn float(value: f64) -> String {
    if value.is_nan() {
        return "nan".to_owned();
    }
    // Rust's `Debug` changes to exponents at the same sizes, and writes them shorter: e16 and e-5 for e+16 and e-05.
    let text = format!("{value:?}");
    match text.split_once('e') {
        None => text,
        Some((digits, exponent)) => match exponent.strip_prefix('-') {
            Some(exponent) => format!("{digits}e-{exponent:0>2}"),
            None => format!("{digits}e+{exponent:0>2}"),
        },
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn numbers_are_pythons() {
        // Python 3.11's str() of each.
        for (value, text) in [
            (0.0, "0.0"),
            (9_262_043.0, "9262043.0"),
            (81.4046, "81.4046"),
            (1e9 / 9_262_043.0, "107.96754020684206"),
            (23.909064176163497, "23.909064176163497"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (-2.5e-7, "-2.5e-07"),
            (f64::INFINITY, "inf"),
            (f64::NAN, "nan"),
        ] {
            assert_eq!(super::float(value), text);
        }
    }
}
