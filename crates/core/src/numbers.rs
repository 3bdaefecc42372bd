//! Numbers of command lines: bounds that hold wherever such a number is asked for, and messages that say what is taken.

use std::fmt::Display;
use std::str::FromStr;

/// A whole number of at least 1: samples, threads, pixels.
///
/// # Errors
/// What is taken, in words.
pub fn count<T: FromStr + PartialOrd + From<u8>>(text: &str) -> Result<T, String> {
    let text = text.trim();
    match text.parse::<T>() {
        Ok(number) if number >= T::from(1) => Ok(number),
        Err(_) if is_digits(text) => Err("the number is too large".to_owned()),
        _ => Err("it takes a whole number of at least 1, such as 4".to_owned()),
    }
}

/// True for a whole number without a sign, of any size.
fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// A number that is neither infinite nor NaN.
///
/// # Errors
/// What is taken, in words.
pub fn finite<T: FromStr + Copy + Into<f64>>(text: &str) -> Result<T, String> {
    let number = text.trim().parse::<T>().ok().filter(|number| (*number).into().is_finite());
    number.ok_or_else(|| "it takes a number, such as 7.5".to_owned())
}

/// A share: 0 to 1.
///
/// # Errors
/// What is taken, in words.
pub fn share(text: &str) -> Result<f64, String> {
    bounded(text, 0.0..=1.0, "it takes a share from 0 to 1, such as 0.6")
}

/// A finite number of at least 0: seconds, ratios, thresholds.
///
/// # Errors
/// What is taken, in words.
pub fn not_negative(text: &str) -> Result<f64, String> {
    bounded(text, 0.0..=f64::MAX, "it takes a number of at least 0, such as 1.5")
}

fn bounded(text: &str, bounds: std::ops::RangeInclusive<f64>, takes: impl Display) -> Result<f64, String> {
    text.trim().parse().ok().filter(|number| bounds.contains(number)).ok_or_else(|| takes.to_string())
}

/// What standard parsers say of a wrong number, in other words; none for messages that are not theirs.
pub fn standard_message(message: &str) -> Option<&'static str> {
    const TOLD: [(&str, &str); 8] = [
        ("invalid digit found in string", "it takes a whole number, such as 4"),
        ("cannot parse integer from empty string", "it takes a whole number, such as 4"),
        ("number too large to fit in target type", "the number is too large"),
        ("number too small to fit in target type", "the number is too small"),
        ("number would be zero for non-zero type", "it takes a whole number of at least 1, such as 4"),
        ("invalid float literal", "it takes a number, such as 0.5"),
        ("cannot parse float from empty string", "it takes a number, such as 0.5"),
        ("provided string was not `true` or `false`", "it takes true or false"),
    ];
    TOLD.iter().find(|(standard, _)| *standard == message).map(|(_, told)| *told)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_hold() {
        assert_eq!(count::<usize>(" 3"), Ok(3));
        for bad in ["0", "-1", "1.5", "", "many", "-99999999999999999999"] {
            assert!(count::<usize>(bad).unwrap_err().contains("at least 1"), "{bad}");
        }
        for large in ["99999999999999999999", " 18446744073709551616 "] {
            assert_eq!(count::<usize>(large), Err("the number is too large".to_owned()), "{large}");
        }
        assert_eq!(count::<u32>("4294967296"), Err("the number is too large".to_owned()));
        assert_eq!(finite::<f32>("-7.5"), Ok(-7.5));
        for bad in ["nan", "inf", "-infinity", "x", "1e39"] {
            assert!(finite::<f32>(bad).is_err(), "{bad}");
        }
        assert_eq!((share("0"), share("1")), (Ok(0.0), Ok(1.0)));
        assert!(["1.01", "-0.1", "nan"].iter().all(|bad| share(bad).is_err()));
        assert!(not_negative("inf").is_err() && not_negative("-1").is_err() && not_negative("2").is_ok());
    }

    #[test]
    fn messages_of_the_standard_library_are_known() {
        let messages = [
            "x".parse::<u32>().unwrap_err().to_string(),
            "".parse::<u32>().unwrap_err().to_string(),
            "99999999999".parse::<u32>().unwrap_err().to_string(),
            "-99999999999".parse::<i32>().unwrap_err().to_string(),
            "0".parse::<std::num::NonZero<u32>>().unwrap_err().to_string(),
            "x".parse::<f64>().unwrap_err().to_string(),
            "".parse::<f64>().unwrap_err().to_string(),
            "x".parse::<bool>().unwrap_err().to_string(),
        ];
        for message in messages {
            assert!(standard_message(&message).is_some(), "{message}");
        }
        assert_eq!(standard_message("other"), None);
    }
}
