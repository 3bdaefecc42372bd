//! The embedded images.

use std::collections::{BTreeMap, HashSet};

use calotype_data::emoji::{self, BACKGROUNDS, Split};
use calotype_data::image::RgbImage;
use calotype_data::{Control, Dataset, Error, ShardLimits};
use rayon::prelude::*;

#[test]
fn there_are_1694_images_with_unique_names() {
    let pairs = emoji::pairs();
    assert_eq!(pairs.len(), 1694);
    assert_eq!(pairs.iter().map(|p| p.name).collect::<HashSet<_>>().len(), 1694);
    assert_eq!(pairs.iter().map(|p| p.slug).collect::<HashSet<_>>().len(), 1694);
    assert_eq!((pairs[0].name, pairs[0].slug, pairs[0].group), ("grinning face", "1f600", "Smileys & Emotion"));
    for pair in pairs {
        let image = calotype_data::image::RgbaImage::decode(pair.slug, pair.png).unwrap();
        assert_eq!((image.width(), image.height()), (72, 72), "{}", pair.name);
    }
}

#[test]
fn a_tenth_of_the_combinations_is_held_out() {
    let held_out = emoji::combinations(Split::HeldOut, None).unwrap();
    let train = emoji::combinations(Split::Train, None).unwrap();
    assert_eq!((held_out.len(), train.len()), (1355, 13552 - 1355));
    let mut colours = BTreeMap::new();
    for (_, colour) in &held_out {
        *colours.entry(*colour).or_insert(0) += 1;
    }
    assert_eq!(colours.values().copied().collect::<Vec<usize>>(), [170, 170, 170, 169, 169, 169, 169, 169]);
    assert_eq!(held_out.iter().map(|(image, _)| image).collect::<HashSet<_>>().len(), 1355);
    let train: HashSet<_> = train.into_iter().collect();
    assert!(held_out.iter().all(|both| !train.contains(both)));
}

#[test]
fn a_subset_keeps_the_rule() {
    let train = emoji::combinations(Split::Train, Some(100)).unwrap();
    let held_out = emoji::combinations(Split::HeldOut, Some(100)).unwrap();
    assert_eq!(train.len() + held_out.len(), 800);
    assert!((70..=90).contains(&held_out.len()), "{}", held_out.len());
    assert!(held_out.iter().all(|(image, colour)| emoji::held_out_colour(*image) == Some(*colour)));
    assert!(matches!(emoji::combinations(Split::Train, Some(1695)), Err(Error::InvalidArgument { .. })));
    assert!(matches!(emoji::combinations(Split::Train, Some(0)), Err(Error::InvalidArgument { .. })));
}

#[test]
fn backgrounds_are_far_apart_and_recognised() {
    for (a, (_, first)) in BACKGROUNDS.iter().enumerate() {
        for (_, second) in &BACKGROUNDS[..a] {
            let square: i32 = first.iter().zip(second).map(|(x, y)| (i32::from(*x) - i32::from(*y)).pow(2)).sum();
            assert!(square >= 109 * 109, "{first:?} {second:?} {square}");
        }
        let plain = RgbImage::filled(8, 5, *first).unwrap();
        assert_eq!(emoji::background_of(&plain), a);
    }
    for side in [32, 64] {
        let wrong: Vec<String> =
            (0..emoji::pairs().len()).into_par_iter().flat_map_iter(|i| wrong_at(i, side)).collect();
        assert!(wrong.is_empty(), "{} of 13552 wrong at {side}: {wrong:?}", wrong.len());
    }
}

/// Backgrounds of image `i` that are not recognised.
fn wrong_at(i: usize, side: usize) -> Vec<String> {
    let image = &emoji::pairs()[i];
    let wrong =
        |number: &usize| emoji::background_of(&emoji::render(image, BACKGROUNDS[*number].1, side).unwrap()) != *number;
    (0..8).filter(wrong).map(|number| format!("{} on {}", image.name, BACKGROUNDS[number].0)).collect()
}

#[test]
fn captions_are_english() {
    assert_eq!(emoji::caption("red apple", "blue"), "red apple on a blue background");
    assert_eq!(emoji::caption("red apple", "orange"), "red apple on an orange background");
}

#[test]
fn the_dataset_is_written_and_is_the_same_again() {
    let dir = tempfile::tempdir().unwrap();
    let limits = ShardLimits { samples: 100, bytes: 1 << 30 };
    let mut last = (0, 0);
    let mut control = Control::default().with_progress(|_, done, total| last = (done, total));
    let index =
        emoji::write_dataset(dir.path().join("a"), 32, limits, Split::HeldOut, Some(200), &mut control).unwrap();
    drop(control);
    assert_eq!(last, (index.samples, index.samples));
    let again =
        emoji::write_dataset(dir.path().join("b"), 32, limits, Split::HeldOut, Some(200), &mut Control::default());
    assert_eq!(again.unwrap(), index);
    let dataset = Dataset::open(dir.path().join("a")).unwrap();
    dataset.verify(&mut Control::default()).unwrap();
    for sample in dataset.iter() {
        let sample = sample.unwrap();
        let image = RgbImage::decode(sample.key(), sample.part("png").unwrap()).unwrap();
        let facts: serde_json::Value = serde_json::from_str(sample.text("json").unwrap()).unwrap();
        let colour = facts["colour"].as_str().unwrap();
        assert_eq!((image.width(), image.height()), (32, 32));
        assert_eq!(BACKGROUNDS[emoji::background_of(&image)].0, colour);
        assert_eq!(sample.key(), format!("{}-{colour}", facts["codepoints"].as_str().unwrap()));
        assert_eq!(sample.text("txt").unwrap(), emoji::caption(facts["name"].as_str().unwrap(), colour));
    }
}

#[test]
fn a_stop_is_obeyed() {
    let dir = tempfile::tempdir().unwrap();
    let mut control = Control::default().with_stop(|| true);
    let result = emoji::write_dataset(dir.path(), 16, ShardLimits::default(), Split::Train, Some(9), &mut control);
    assert!(matches!(result, Err(Error::Interrupted { done: 0, .. })));
    assert!(matches!(Dataset::open(dir.path()), Err(Error::Unfinished { .. })));
    emoji::write_dataset(dir.path(), 16, ShardLimits::default(), Split::Train, Some(9), &mut Control::default())
        .unwrap();
}
