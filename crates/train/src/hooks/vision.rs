//! The vision model of the moment, judged by recipes of `calotype evaluate`.

use super::{Hook, HookContext, crossed};
use crate::config::{DataSettings, SettingError, check};
use crate::stages::{StageContext, export_new};
use crate::task::{BoxError, Task};
use crate::trainer::TrainError;
use calotype_collective::CollectiveError;
use calotype_data::{Control, Error};
use calotype_evaluate::EvaluateError;
use calotype_evaluate::vision::Recipe;
use calotype_evaluate::vision::recipe::Kind;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

/// Name of the evaluations in the logs.
const VISION: &str = "vision";
const KEY: &str = "hooks.vision.recipes";
/// Folder of the model while it is judged, inside the run's own.
const MODEL: &str = ".vision";

/// `[hooks.vision]`: what `calotype evaluate` does with a vision model, now and then with the model of the moment (with averaged
/// weights, where the recipe averages): CLIP's accuracy without training on the classes and its retrieval, a classifier's accuracy, linear
/// probes. Figures are logged under the recipe's name here, as `vision/zero_shot_top_1` of a recipe `zero_shot`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VisionSettings {
    /// Samples seen between two evaluations.
    pub every: u64,
    /// How the model is judged: evaluation recipes by a name for each, which the `base` of each may name.
    pub recipes: BTreeMap<String, Recipe>,
}

/// A recipe that is at fault.
fn in_recipe(name: &str, error: &EvaluateError) -> SettingError {
    SettingError { key: KEY, problem: format!("`{name}`: {error}") }
}

impl VisionSettings {
    pub(crate) fn validate(&self) -> Result<(), SettingError> {
        check(self.every > 0, "hooks.vision.every", || "must be at least 1".to_owned())?;
        check(!self.recipes.is_empty(), KEY, || {
            "is empty: add a recipe, such as [hooks.vision.recipes.zero_shot] with base = \"evaluation/clip/imagenet_zeroshot\""
                .to_owned()
        })?;
        for (name, recipe) in &self.recipes {
            check(recipe.model.is_none() && recipe.prepare == Default::default(), KEY, || {
                format!("`{name}` judges the run itself, by pictures that are there: leave out its model and prepare")
            })?;
            recipe.validate().map_err(|error| in_recipe(name, &error))?;
        }
        Ok(())
    }

    /// Refuses evaluations that the model of a task does not go through.
    pub(crate) fn check_task(&self, task: &str) -> Result<(), SettingError> {
        let kinds: &[Kind] = match task {
            "clip" => &[Kind::ZeroShot, Kind::Retrieval, Kind::LinearProbe],
            "vit" => &[Kind::Classification, Kind::LinearProbe],
            _ => &[],
        };
        check(!kinds.is_empty(), "hooks.vision", || {
            format!("judges vision models, and a run of kind `{task}` trains none: leave this table out")
        })?;
        let other = self.recipes.iter().find(|(_, recipe)| !kinds.contains(&recipe.kind));
        other.map_or(Ok(()), |(name, recipe)| {
            let known: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
            let problem = format!(
                "`{name}` is of kind `{}`, and the model of a run of kind `{task}` is judged by {}",
                recipe.kind,
                known.join(", ")
            );
            Err(SettingError { key: KEY, problem })
        })
    }

    /// Opens what the evaluations take, of which the path of the pictures `is_given`.
    pub(super) fn check_inputs(&self, is_given: impl Fn(&str) -> bool) -> Result<(), SettingError> {
        let mut given = self.recipes.iter().filter(|(_, recipe)| is_given(&recipe.data.path));
        given.try_for_each(|(name, recipe)| recipe.check_inputs().map_err(|error| in_recipe(name, &error)))
    }

    /// Refuses the name of a figure that is not logged.
    pub(super) fn check_figure(&self, key: &'static str, figure: &str) -> Result<(), SettingError> {
        let names: Vec<String> = self.recipes.iter().flat_map(|(name, recipe)| figures(name, recipe)).collect();
        check(names.iter().any(|name| name == figure), key, || {
            let known: Vec<String> = names.iter().map(|name| format!("{VISION}/{name}")).collect();
            format!("`{VISION}/{figure}` is no number of [hooks.vision], which logs {}", known.join(", "))
        })
    }
}

/// The name in the logs of a figure of a recipe.
fn name_of(recipe: &str, kind: Kind, variant: &str, metric: &str) -> String {
    match kind {
        Kind::Retrieval => format!("{recipe}_{variant}_{metric}"),
        Kind::Classification | Kind::ZeroShot | Kind::LinearProbe => format!("{recipe}_{metric}"),
    }
}

/// The names of a recipe's figures in the logs; ranks beyond the number of classes or pictures have none.
fn figures(name: &str, recipe: &Recipe) -> Vec<String> {
    let (variants, metric): (&[&str], &str) = match recipe.kind {
        Kind::Retrieval => (&["image_to_text", "text_to_image"], "recall_at"),
        Kind::Classification | Kind::ZeroShot | Kind::LinearProbe => (&[""], "top"),
    };
    let of = |variant: &str| -> Vec<String> {
        recipe.ks.iter().map(|k| name_of(name, recipe.kind, variant, &format!("{metric}_{k}"))).collect()
    };
    variants.iter().flat_map(|variant| of(variant)).collect()
}

pub(super) struct Vision(VisionSettings);

impl Vision {
    pub(super) fn open(settings: &VisionSettings, _: &DataSettings) -> Result<Self, TrainError> {
        Ok(Self(settings.clone()))
    }

    /// The figures of all recipes of the model in a folder; none if a stop was asked for meanwhile.
    fn judge(&self, model: &Path, stage: &StageContext<'_>, watch: &Watch<'_>) -> Result<Option<Figures>, BoxError> {
        let mut found = Vec::new();
        for (name, recipe) in &self.0.recipes {
            let recipe = Recipe { model: Some(model.display().to_string()), ..recipe.clone() };
            let mut control = Control::default().with_stop(|| watch.stops());
            let outcome = match recipe.run(stage.folder, stage.device, &mut control) {
                Ok(outcome) => outcome,
                Err(EvaluateError::Data(Error::Interrupted { .. })) => return Ok(None),
                Err(error) => return Err(in_recipe(name, &error).into()),
            };
            let named = outcome.figures.into_iter();
            found.extend(named.map(|found| (name_of(name, recipe.kind, &found.variant, &found.metric), found.value)));
        }
        Ok(Some(found))
    }

    /// Writes the model, and judges it; in one process, while the others [wait](Watch::wait).
    fn judge_first<T: Task>(
        &self,
        context: &HookContext<'_, T>,
        watch: &Watch<'_>,
    ) -> Result<Option<Figures>, BoxError> {
        let folder = context.stage.folder.join(MODEL);
        remove_model(&folder)?;
        export_new(context.task, context.model(), &folder)?;
        let judged = self.judge(&folder, context.stage, watch);
        remove_model(&folder)?;
        judged
    }
}

/// Named figures.
type Figures = Vec<(String, f64)>;

/// What the processes tell each other while one of them judges: none waits for longer than for some pictures, and a stop that any is
/// asked for ends the evaluation.
struct Watch<'a> {
    stage: &'a StageContext<'a>,
    failure: RefCell<Option<CollectiveError>>,
}

impl Watch<'_> {
    /// Whether it is done, was left, and whether a stop was asked for, anywhere.
    fn ask(&self, done: bool, left: bool) -> Result<[bool; 3], CollectiveError> {
        let mut words = [done, left, self.stage.stop.is_set()].map(|word| f32::from(u8::from(word)));
        self.stage.collective.all_reduce_sum(&mut words)?;
        Ok(words.map(|word| word > 0.0))
    }

    /// Whether the evaluation is to be left: a stop was asked for, or a process is gone.
    fn stops(&self) -> bool {
        match self.ask(false, false) {
            Ok([_, _, stop]) => stop,
            Err(error) => {
                *self.failure.borrow_mut() = Some(error);
                true
            }
        }
    }

    /// Waits for the end of the evaluation in another process; whether that left it.
    fn wait(&self) -> Result<bool, CollectiveError> {
        loop {
            if let [true, left, _] = self.ask(false, false)? {
                return Ok(left);
            }
        }
    }

    /// Tells the others that it is done, or was left.
    fn end(self, left: bool) -> Result<(), CollectiveError> {
        match self.failure.take() {
            Some(error) => Err(error),
            None => self.ask(true, left).map(drop),
        }
    }
}

/// Removes the model that was judged, or that a killed process has left.
fn remove_model(folder: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

impl<T: Task> Hook<T> for Vision {
    fn check(&self, _: &T::Recipe) -> Result<Vec<String>, TrainError> {
        self.0.check_inputs(|_| true)?;
        Ok(Vec::new())
    }

    fn begin(&self, stage: &StageContext<'_>) -> Result<(), BoxError> {
        if stage.collective.is_first() {
            remove_model(&stage.folder.join(MODEL))?;
        }
        Ok(())
    }

    fn due(&self, before: u64, samples: u64) -> bool {
        crossed(before, samples, self.0.every)
    }

    fn wants_whole_model(&self) -> bool {
        true
    }

    fn run(&mut self, context: &mut HookContext<'_, T>) -> Result<(), BoxError> {
        let watch = Watch { stage: context.stage, failure: RefCell::default() };
        let left = if context.stage.collective.is_first() {
            let found = self.judge_first(context, &watch);
            let left = matches!(found, Ok(None));
            watch.end(left)?;
            found?.into_iter().for_each(|found| context.log(VISION, found));
            left
        } else {
            watch.wait()?
        };
        if left {
            context.stop_asked()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ZERO_SHOT: &str = "kind = 'zero_shot'\nclasses = ['red', 'blue']\ntemplates = ['{}']\nbatch_size = 4\nks = [1]\n\
                             data = { path = 'x' }\n";

    fn read(recipes: &str) -> VisionSettings {
        toml::from_str(&format!("every = 8\n[recipes]\n{recipes}")).unwrap()
    }

    #[test]
    fn what_cannot_be_is_named() {
        let zero_shot = format!("[recipes.zero]\n{ZERO_SHOT}");
        let settings = read(&zero_shot);
        assert_eq!(settings.validate(), Ok(()));
        assert_eq!(settings.check_task("clip"), Ok(()));
        let problem = settings.check_task("vit").unwrap_err();
        assert!(problem.key == KEY && problem.problem.contains("`zero` is of kind `zero_shot`"), "{problem}");
        assert_eq!(settings.check_task("diffusion").unwrap_err().key, "hooks.vision");
        for (recipes, part) in [
            (String::new(), "is empty"),
            (format!("{zero_shot}\nmodel = 'm'"), "judges the run itself"),
            (zero_shot.replace("batch_size = 4", "batch_size = 0"), "`batch_size`"),
        ] {
            let recipes =
                recipes.replacen("data = { path = 'x' }\n\nmodel = 'm'", "model = 'm'\ndata = { path = 'x' }\n", 1);
            let problem = read(&recipes).validate().unwrap_err();
            assert!(problem.key == KEY && problem.problem.contains(part), "{problem}");
        }
        let never: VisionSettings = toml::from_str(&format!("every = 0\n[recipes]\n{zero_shot}")).unwrap();
        assert_eq!(never.validate().unwrap_err().key, "hooks.vision.every");
        assert!(toml::from_str::<VisionSettings>("every = 1").is_err());
    }

    #[test]
    fn figures_have_the_names_that_are_logged() {
        let retrieval = "[recipes.r]\nkind = 'retrieval'\nbatch_size = 4\nks = [1, 5]\ndata = { path = 'x' }\n";
        let settings = read(&format!("[recipes.zero]\n{ZERO_SHOT}{retrieval}"));
        for name in ["zero_top_1", "r_image_to_text_recall_at_1", "r_text_to_image_recall_at_5"] {
            assert_eq!(settings.check_figure("k", name), Ok(()), "{name}");
        }
        let problem = settings.check_figure("k", "zero_top_5").unwrap_err().problem;
        assert!(problem.contains("vision/zero_top_1, ") || problem.ends_with("vision/zero_top_1"), "{problem}");
    }
}
