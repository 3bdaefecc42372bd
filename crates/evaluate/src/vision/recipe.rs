//! Recipes of evaluations of vision models.

use super::accuracy::{Ranked, accuracy};
use super::captioned::Captioned;
use super::classifier::{Classifier, ZERO_SHOT_SCALE, ZeroShot};
use super::labelled::{Labelled, LabelledSettings};
use super::linear_probe::linear_probe;
use super::lists::{class_names, templates};
use super::model::{Placing, open_clip, open_features, open_head};
use super::preparation::ClassifierInput;
use super::prepared::PrepareSettings;
use super::report::write_tables;
use super::retrieval::retrieval;
use crate::figure::{self, Figure};
use crate::{EvaluateError, Result};
use burn::tensor::Device;
use calotype_checkpoints::Checkpoint;
use calotype_data::Control;
use calotype_data::source::{SourceOptions, open};
use calotype_metrics::LogisticOptions;
use calotype_ops::Precision;
use serde::{Deserialize, Serialize};
use std::path::Path;

calotype_core::names! {
    /// What a vision model is judged by.
    Kind, "evaluation of vision models" {
        /// Top-k accuracy of a classifier with a head of classes.
        Classification = "classification",
        /// Top-k accuracy of CLIP with texts for the classes.
        ZeroShot = "zero_shot",
        /// Recall at k of CLIP, pictures to captions and back.
        Retrieval = "retrieval",
        /// Top-k accuracy of a linear classifier on frozen features.
        LinearProbe = "linear_probe",
    }
}

/// The values of `kind` in recipes of vision models.
pub const KINDS: &[Kind] = Kind::ALL;

/// An evaluation of a vision model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// What the model is judged by.
    pub kind: Kind,
    /// A checkpoint in any layout, or the folder of a training run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The pictures that it is judged by.
    pub data: LabelledSettings,
    /// The pictures that a linear probe learns from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train: Option<LabelledSettings>,
    /// Names of the classes: several, or the name of a built-in list (`imagenet`), or a file. A head of classes and folders
    /// of classes say their own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<String>,
    /// Texts around the class names of `zero_shot`: with `{}` in their place, names of built-in lists (`openai`, `simple`),
    /// or files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub templates: Vec<String>,
    /// How pictures are prepared for a head of classes. CLIP has its own preparation.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub preparation: ClassifierInput,
    /// Precision of the network.
    #[serde(default)]
    pub precision: Precision,
    /// Pictures that the network looks at at once; figures do not depend on it.
    pub batch_size: usize,
    /// Ranks that count as right.
    #[serde(default = "usual_ranks")]
    pub ks: Vec<usize>,
    /// How a linear probe is fitted.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub probe: ProbeSettings,
    /// A line that is printed at the end, with figures in the place of their names: `{top_1}`, or with their variant,
    /// `{image_to_text.recall_at_1}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<String>,
    /// What is made first.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub prepare: PrepareSettings,
}

/// The fit of a linear probe; see [`LogisticOptions`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProbeSettings {
    /// Inverse strength of the regularisation.
    pub c: f64,
    /// Most steps of L-BFGS.
    pub max_iterations: usize,
    /// The largest component of the gradient at which the fit ends.
    pub tolerance: f64,
}

impl Default for ProbeSettings {
    fn default() -> Self {
        let LogisticOptions { c, max_iterations, tolerance } = LogisticOptions::default();
        Self { c, max_iterations, tolerance }
    }
}

fn usual_ranks() -> Vec<usize> {
    vec![1, 5]
}

fn is_usual<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// What an evaluation found.
pub struct Outcome {
    /// The figures.
    pub figures: Vec<Figure>,
    /// Each picture with its best classes; empty for a retrieval.
    pub pictures: Vec<Ranked>,
    /// Names of the classes.
    pub names: Vec<String>,
    /// The recipe's line with its figures.
    pub line: Option<String>,
    /// What is worth knowing besides, in sentences.
    pub notices: Vec<String>,
}

impl Outcome {
    /// Writes the figures, and the tables of pictures and classes where there are classes, into a folder.
    ///
    /// # Errors
    /// [`EvaluateError::Io`].
    pub fn write(&self, folder: &Path) -> Result<()> {
        figure::write(folder, &self.figures)?;
        if self.pictures.is_empty() { Ok(()) } else { write_tables(folder, &self.pictures, &self.names) }
    }
}

fn wrong<T>(key: &str, problem: &str) -> Result<T> {
    Err(EvaluateError::Usage(format!("key `{key}` {problem}")))
}

impl Recipe {
    /// Checks what the recipe says by itself.
    ///
    /// # Errors
    /// [`EvaluateError::Usage`] naming the first key at fault.
    pub fn validate(&self) -> Result<()> {
        if self.batch_size == 0 {
            return wrong("batch_size", "must be at least 1");
        }
        if self.ks.is_empty() || self.ks.contains(&0) {
            return wrong("ks", "names the ranks that count, such as [1, 5], each at least 1");
        }
        let (kind, only) = (self.kind, |set: bool, kind: Kind| !set || self.kind == kind);
        for (fits, key, of) in [
            (only(self.train.is_some(), Kind::LinearProbe), "train", Kind::LinearProbe),
            (only(!is_usual(&self.probe), Kind::LinearProbe), "probe", Kind::LinearProbe),
            (only(!self.templates.is_empty(), Kind::ZeroShot), "templates", Kind::ZeroShot),
            (only(!is_usual(&self.preparation), Kind::Classification), "preparation", Kind::Classification),
        ] {
            if !fits {
                return wrong(key, &format!("is of `{of}`, and this is `{kind}`: leave it out"));
            }
        }
        match kind {
            Kind::LinearProbe if self.train.is_none() => {
                wrong("train", "is missing: the pictures that the probe learns from")
            }
            Kind::ZeroShot if self.classes.is_empty() => {
                wrong("classes", "is missing: names of classes, the name of a built-in list (imagenet), or a file")
            }
            Kind::ZeroShot if self.templates.is_empty() => {
                wrong("templates", "is missing: texts with {}, or the name of a built-in list (openai, simple)")
            }
            Kind::Retrieval if !self.classes.is_empty() => {
                wrong("classes", "has no effect on a retrieval: leave it out")
            }
            _ => self.check_line(),
        }
    }

    /// A line with names of figures that there will not be would be found out after the work.
    fn check_line(&self) -> Result<()> {
        let Some(line) = &self.line else { return Ok(()) };
        let names: Vec<String> = match self.kind {
            Kind::Retrieval => ["image_to_text", "text_to_image"]
                .iter()
                .flat_map(|variant| self.ks.iter().map(move |k| format!("{{{variant}.recall_at_{k}}}")))
                .collect(),
            _ => self.ks.iter().map(|k| format!("{{top_{k}}}")).collect(),
        };
        let rest = names.iter().fold(line.clone(), |line, name| line.replace(name, ""));
        match rest.contains(['{', '}']) {
            true => {
                wrong("line", &format!("`{line}` names a figure that there is not; there are {}", names.join(", ")))
            }
            false => Ok(()),
        }
    }

    /// Opens what the evaluation takes beside its model: names of classes, templates, pictures.
    ///
    /// # Errors
    /// [`EvaluateError`] naming what cannot be read or does not fit.
    pub fn check_inputs(&self) -> Result<()> {
        match self.kind {
            Kind::ZeroShot => {
                templates(&self.templates)?;
                Labelled::open(&self.data, &class_names(&self.classes)?).map(drop)
            }
            Kind::Retrieval => Captioned::open(&self.data.path).map(drop),
            // The head of a classifier may be what names the classes.
            Kind::Classification | Kind::LinearProbe => {
                for data in std::iter::once(&self.data).chain(&self.train) {
                    open(&data.path, &SourceOptions::default())?;
                }
                Ok(())
            }
        }
    }

    /// The path of the model.
    ///
    /// # Errors
    /// [`EvaluateError::Usage`] if the recipe does not say it, as published ones do not.
    pub fn model(&self) -> Result<&str> {
        match &self.model {
            Some(model) => Ok(model),
            None => wrong("model", "is missing: give model=PATH, a checkpoint in any layout"),
        }
    }

    /// Judges the model. `out` is the folder of the evaluation, below which what `prepare` names is made.
    ///
    /// # Errors
    /// [`EvaluateError`]: the recipe is at fault, something cannot be read, or `control` stops the work.
    pub fn run(&self, out: &Path, device: &Device, control: &mut Control<'_>) -> Result<Outcome> {
        self.validate()?;
        let model = self.model()?;
        let train = self.train.iter().map(|train| train.path.as_str());
        let paths: Vec<&str> = train.chain([model, self.data.path.as_str()]).collect();
        self.prepare.make(out, &paths, control)?;
        let placing = Placing { device: device.clone(), dtype: self.precision.dtype(device) };
        let mut outcome = match self.kind {
            Kind::Classification => {
                let head = open_head(&Checkpoint::open(model)?, &self.classes, self.preparation, &placing)?;
                self.by_classes(&head, control)?
            }
            Kind::ZeroShot => {
                let clip = open_clip(&Checkpoint::open(model)?, &placing)?;
                let (names, templates) = (class_names(&self.classes)?, templates(&self.templates)?);
                self.by_classes(&ZeroShot::new(clip, ZERO_SHOT_SCALE, names, templates)?, control)?
            }
            Kind::Retrieval => {
                let clip = open_clip(&Checkpoint::open(model)?, &placing)?;
                let pictures = Captioned::open(&self.data.path)?;
                let found = retrieval(&clip, &pictures, (&self.ks, self.batch_size), control)?;
                Outcome { figures: found.figures, notices: found.notices, ..Outcome::empty() }
            }
            Kind::LinearProbe => self.probe(Path::new(model), &placing, control)?,
        };
        outcome.line = self.line.as_ref().map(|line| filled(line, &outcome.figures));
        Ok(outcome)
    }

    fn by_classes(&self, classifier: &dyn Classifier, control: &mut Control<'_>) -> Result<Outcome> {
        let pictures = Labelled::open(&self.data, classifier.names())?;
        let found = accuracy(classifier, self.kind.name(), &pictures, (&self.ks, self.batch_size), control)?;
        Ok(Outcome {
            figures: found.figures,
            pictures: found.pictures,
            names: classifier.names().to_vec(),
            notices: found.notices,
            ..Outcome::empty()
        })
    }

    fn probe(&self, model: &Path, placing: &Placing, control: &mut Control<'_>) -> Result<Outcome> {
        let Some(train) = &self.train else {
            return wrong("train", "is missing: the pictures that the probe learns from");
        };
        let names = if self.classes.is_empty() { Labelled::names_in(train)? } else { class_names(&self.classes)? };
        let both = [&Labelled::open(train, &names)?, &Labelled::open(&self.data, &names)?];
        let features = open_features(model, placing)?;
        let ProbeSettings { c, max_iterations, tolerance } = self.probe;
        let options = LogisticOptions { c, max_iterations, tolerance };
        let found = linear_probe(&*features, &names, both, &options, (&self.ks, self.batch_size), control)?;
        let (figures, pictures, notices) = (found.figures, found.pictures, found.notices);
        Ok(Outcome { figures, pictures, names, notices, ..Outcome::empty() })
    }
}

impl Outcome {
    fn empty() -> Self {
        let (figures, pictures, names, notices) = Default::default();
        Self { figures, pictures, names, line: None, notices }
    }
}

/// A line with the figures in the place of their names, to four places behind the point, as NeMo prints them.
fn filled(line: &str, figures: &[Figure]) -> String {
    figures.iter().fold(line.to_owned(), |line, figure| {
        let value = format!("{:.4}", figure.value);
        let Figure { metric, variant, .. } = figure;
        line.replace(&format!("{{{variant}.{metric}}}"), &value).replace(&format!("{{{metric}}}"), &value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = "kind = \"zero_shot\"\nclasses = [\"imagenet\"]\ntemplates = [\"openai\"]\nbatch_size = 8\n\
                           [data]\npath = \"imagenet/val\"\n";

    #[test]
    fn a_recipe_survives_toml() {
        let recipe: Recipe = toml::from_str(MINIMAL).unwrap();
        recipe.validate().unwrap();
        assert_eq!((recipe.ks.as_slice(), recipe.data.class.as_str()), (&[1, 5][..], "cls"));
        assert_eq!(toml::from_str::<Recipe>(&toml::to_string(&recipe).unwrap()).unwrap(), recipe);
        assert!(toml::from_str::<Recipe>(&format!("{MINIMAL}kla = 1")).is_err());
    }

    #[test]
    fn impossible_settings_name_their_key() {
        type Change = fn(&mut Recipe);
        let cases: [(Change, &str); 13] = [
            (|r| r.batch_size = 0, "batch_size"),
            (|r| r.ks = vec![], "ks"),
            (|r| r.ks = vec![1, 0], "ks"),
            (|r| r.classes = vec![], "classes"),
            (|r| r.templates = vec![], "templates"),
            (|r| r.train = Some(LabelledSettings::new("x")), "train"),
            (|r| r.probe.c = 2.0, "probe"),
            (|r| r.preparation = ClassifierInput::Nemo, "preparation"),
            (|r| r.kind = Kind::Classification, "templates"),
            (|r| (r.kind, r.templates) = (Kind::LinearProbe, vec![]), "train"),
            (|r| (r.kind, r.templates) = (Kind::Retrieval, vec![]), "classes"),
            (|r| r.line = Some("{top_3}".to_owned()), "line"),
            (|r| r.line = Some("{recall_at_1}".to_owned()), "line"),
        ];
        for (number, (change, key)) in cases.into_iter().enumerate() {
            let mut recipe: Recipe = toml::from_str(MINIMAL).unwrap();
            change(&mut recipe);
            let error = recipe.validate().unwrap_err();
            assert!(error.is_usage() && error.to_string().starts_with(&format!("key `{key}` ")), "{number}: {error}");
        }
        let recipe: Recipe = toml::from_str(MINIMAL).unwrap();
        let error = recipe.run(Path::new("x"), &Device::flex(), &mut Control::default()).err().unwrap();
        assert!(error.to_string().contains("key `model` is missing"), "{error}");
    }
}
