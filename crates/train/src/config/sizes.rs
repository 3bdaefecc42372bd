//! Bounds of a network's sizes, which are checked before a network is built: those within which its configuration is read back once it
//! is written.

use calotype_core::fields::{MOST, MOST_LAYERS, MOST_LEVELS};
use calotype_models::ConfigError;
use std::ops::RangeInclusive;

/// Pixels of a square image's side at most: one of these takes 3 GiB.
pub(crate) const MOST_SIDE: usize = 1 << 14;

/// Residual blocks of a level at most.
pub(crate) const MOST_RESNETS: usize = 16;
/// Blocks of a level's transformer at most.
pub(crate) const MOST_TRANSFORMERS: usize = 64;

/// Fails with a [`ConfigError`] unless a field's value is in these bounds.
fn check_within(field: &'static str, value: usize, bounds: RangeInclusive<usize>) -> Result<(), ConfigError> {
    if bounds.contains(&value) {
        return Ok(());
    }
    let problem = format!("is {value}; it takes a whole number from {} to {}", bounds.start(), bounds.end());
    Err(ConfigError { field, problem })
}

/// Checks extents: pixels, channels, heads, entries of tables.
///
/// # Errors
/// [`ConfigError`] naming the first field at fault.
pub(crate) fn check_extents<const N: usize>(extents: [(&'static str, usize); N]) -> Result<(), ConfigError> {
    extents.into_iter().try_for_each(|(field, extent)| check_within(field, extent, 1..=MOST))
}

/// Checks the side of square images.
///
/// # Errors
/// [`ConfigError`] naming the field.
pub(crate) fn check_side(field: &'static str, side: usize) -> Result<(), ConfigError> {
    check_within(field, side, 1..=MOST_SIDE)
}

/// Checks a number of layers.
///
/// # Errors
/// [`ConfigError`] naming the field.
pub(crate) fn check_layers(field: &'static str, layers: usize) -> Result<(), ConfigError> {
    check_within(field, layers, 1..=MOST_LAYERS)
}

/// Checks a number of blocks in a level: 1 to `most`.
///
/// # Errors
/// [`ConfigError`] naming the field.
pub(crate) fn check_blocks(field: &'static str, blocks: usize, most: usize) -> Result<(), ConfigError> {
    check_within(field, blocks, 1..=most)
}

/// Checks a number of tokens in front of others.
///
/// # Errors
/// [`ConfigError`] naming the field.
pub(crate) fn check_tokens(field: &'static str, tokens: usize) -> Result<(), ConfigError> {
    check_within(field, tokens, 0..=MOST_LAYERS)
}

/// Checks the channels of a network's levels.
///
/// # Errors
/// [`ConfigError`] naming the field.
pub(crate) fn check_levels(field: &'static str, levels: &[usize]) -> Result<(), ConfigError> {
    let count = levels.len();
    if !(1..=MOST_LEVELS).contains(&count) {
        return Err(ConfigError { field, problem: format!("has {count} levels; it takes 1 to {MOST_LEVELS}") });
    }
    levels.iter().try_for_each(|&channels| check_within(field, channels, 1..=MOST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_out_of_bounds_are_named() {
        assert_eq!(check_extents([("channels", 1), ("heads", MOST)]), Ok(()));
        let error = check_extents([("channels", 1), ("heads", 0)]).unwrap_err().to_string();
        assert_eq!(error, "heads: is 0; it takes a whole number from 1 to 1048576");
        assert!(check_extents([("labels", MOST + 1)]).is_err());
        assert!(check_layers("layers", 0).is_err() && check_layers("layers", 1_000_000_000).is_err());
        assert_eq!((check_layers("layers", 256), check_tokens("class_tokens", 0)), (Ok(()), Ok(())));
        assert!(check_side("image_size", 0).is_err() && check_side("image_size", 1_000_000_000).is_err());
        assert_eq!(check_levels("block_out_channels", &[32, 64]), Ok(()));
        for levels in [&[][..], &[0], &[8; 9]] {
            assert!(check_levels("block_out_channels", levels).is_err(), "{levels:?}");
        }
    }
}
