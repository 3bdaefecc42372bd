//! The captions that samples are.

use crate::benchmark::CAPTIONS_SHA256;
use crate::error::InferenceError;
use crate::latents::hex;
use crate::recipe::Recipe;
use calotype_evaluate::sweep::{self, Caption, Captions};
use calotype_loadgen::Library;
use sha2::{Digest, Sha256};
use std::path::Path;

/// The samples of a run, by number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Samples {
    captions: Captions,
    /// The samples that performance runs take.
    performance: usize,
    /// Sentences on what is not the benchmark's.
    pub notes: Vec<String>,
}

impl Samples {
    /// Reads the recipe's captions.
    ///
    /// # Errors
    /// [`InferenceError::Captions`] for a file that is no list of captions, naming its line, and for too few.
    pub fn read(recipe: &Recipe) -> Result<Self, InferenceError> {
        let wanted = recipe.variant.samples().or(recipe.captions.count);
        if recipe.captions.made_up {
            let captions = Captions::new(made_up(wanted.unwrap_or(TRIAL)));
            let notes =
                vec![format!("{} captions are made up; the benchmark's are those of COCO", captions.list.len())];
            return Ok(Self::of(captions, recipe, notes));
        }
        let Some(path) = &recipe.captions.path else {
            return Err(InferenceError::setting(
                "there are no captions: name their list with --captions, or for trials take captions.made_up=true",
            ));
        };
        let settings = sweep::CaptionSettings { path: path.clone(), column: recipe.captions.column.clone() };
        let mut list = Captions::read_all(&settings)?.list;
        let there = list.len();
        if let Some(wanted) = wanted.filter(|wanted| there < *wanted) {
            let whose = if recipe.captions.count.is_some() { "captions.count" } else { recipe.variant.name() };
            let problem = format!("holds {there} captions, and {whose} asks for {wanted}");
            return Err(InferenceError::File { path: path.into(), problem });
        }
        list.truncate(wanted.unwrap_or(there));
        let captions = Captions::new(list);
        let notes = notes(Path::new(path), &captions)?;
        Ok(Self::of(captions, recipe, notes))
    }

    fn of(captions: Captions, recipe: &Recipe, notes: Vec<String>) -> Self {
        let asked = recipe.load.performance_sample_count.and_then(|count| usize::try_from(count).ok());
        let performance = asked.unwrap_or(captions.list.len()).min(captions.list.len());
        Self { captions, performance, notes }
    }

    /// The caption of a sample.
    pub fn caption(&self, sample: usize) -> Option<&str> {
        self.captions.list.get(sample).map(|caption| caption.text.as_str())
    }

    /// The number of samples.
    pub fn len(&self) -> usize {
        self.captions.list.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.captions.list.is_empty()
    }

    /// The captions with the names of what they describe, and their SHA-256.
    pub fn captions(&self) -> &Captions {
        &self.captions
    }
}

impl Library for Samples {
    fn name(&self) -> &str {
        "coco-2014"
    }

    fn total(&self) -> usize {
        self.len()
    }

    fn performance(&self) -> usize {
        self.performance
    }
}

/// Says where captions are not the published list, or not all of it.
fn notes(path: &Path, captions: &Captions) -> Result<Vec<String>, InferenceError> {
    let published = match path.is_file() {
        true => {
            let bytes = std::fs::read(path).map_err(InferenceError::io("read", path))?;
            hex(&Sha256::digest(bytes)) == CAPTIONS_SHA256
        }
        false => false,
    };
    let shown = path.display();
    Ok(match published {
        true => Vec::new(),
        false => vec![format!(
            "{} captions are of {shown}, which is not the published captions_source.tsv (SHA-256 {CAPTIONS_SHA256})",
            captions.list.len()
        )],
    })
}

/// Captions for trials, where nobody says how many.
const TRIAL: usize = 50;

/// Captions for trials, all different up to 5,000.
fn made_up(count: usize) -> Vec<Caption> {
    const LOOKS: [&str; 10] = ["red", "blue", "old", "small", "wooden", "wet", "striped", "broken", "shiny", "green"];
    const THINGS: [&str; 10] =
        ["bicycle", "cat", "boat", "umbrella", "teapot", "bench", "dog", "clock", "kite", "sandwich"];
    const PLACES: [&str; 10] = [
        "on a table",
        "in a park",
        "at night",
        "near the sea",
        "under a tree",
        "in the snow",
        "by a window",
        "on a bridge",
        "in a kitchen",
        "beside a road",
    ];
    const NUMBERS: [&str; 5] = ["A", "Two of a", "The other", "One more", "Again a"];
    let caption = |number: usize| {
        let pick = |list: &[&'static str], by: usize| list[number / by % list.len()];
        let text =
            format!("{} {} {} {}.", pick(&NUMBERS, 1000), pick(&LOOKS, 1), pick(&THINGS, 10), pick(&PLACES, 100));
        Caption { name: number.to_string(), text }
    };
    (0..count).map(caption).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn made_up_captions_differ() {
        let all = made_up(5000);
        assert_eq!(all.iter().map(|caption| &caption.text).collect::<BTreeSet<_>>().len(), 5000);
        assert_eq!(
            (all[0].text.as_str(), all[1].text.as_str()),
            ("A red bicycle on a table.", "A blue bicycle on a table.")
        );
    }
}
