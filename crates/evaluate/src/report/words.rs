//! Where a model is bad: words of captions whose pictures score low.

use std::collections::{BTreeMap, BTreeSet};

/// Words in fewer captions than this say nothing.
const FEWEST: usize = 8;
/// So many standard errors a word's mean has to lie off: with thousands of words, two would come by chance.
const ERRORS: f64 = 3.0;

/// A word, and how its captions' pictures score against all.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Word {
    pub(super) word: String,
    /// Number of captions with it.
    pub(super) captions: usize,
    /// Mean of their values, less the mean of all.
    pub(super) difference: f64,
    /// Standard error of that mean.
    pub(super) error: f64,
}

/// Words whose captions have values below the mean of all by more than chance, the lowest first, at most `most`. NaN values count
/// as not measured.
pub(super) fn lowest(captions: &[String], values: &[f64], most: usize) -> Vec<Word> {
    let scored = || captions.iter().zip(values).filter(|(_, value)| value.is_finite());
    let mut by_word: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for (caption, value) in scored() {
        for word in words(caption) {
            by_word.entry(word).or_default().push(*value);
        }
    }
    let count = scored().count();
    let mean = mean(&scored().map(|(_, value)| *value).collect::<Vec<_>>());
    // Those of most captions say nothing either.
    let all = by_word.into_iter().filter(|(_, values)| values.len() >= FEWEST && 2 * values.len() <= count);
    let mut found: Vec<Word> = all.map(|(word, values)| word_of(word, &values, mean)).collect();
    found.retain(|word| word.difference < -ERRORS * word.error && word.difference < 0.0);
    found.sort_by(|a, b| a.difference.total_cmp(&b.difference));
    found.truncate(most);
    found
}

fn word_of(word: String, values: &[f64], mean_of_all: f64) -> Word {
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    let (captions, count) = (values.len(), values.len() as f64);
    Word { word, captions, difference: mean - mean_of_all, error: (squares / (count - 1.0) / count).sqrt() }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The words of a caption, each once, in small letters.
fn words(caption: &str) -> BTreeSet<String> {
    let lower = caption.to_lowercase();
    let words = lower.split(|letter: char| !(letter.is_alphanumeric() || letter == '\'' || letter == '-'));
    let words = words.map(|word| word.trim_matches(['\'', '-']));
    words.filter(|word| !word.is_empty()).map(str::to_owned).collect()
}
