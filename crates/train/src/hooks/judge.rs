//! Images drawn by the model of the moment, judged by a recipe of `calotype evaluate`.

use super::{Hook, HookContext, crossed};
use crate::config::{DataSettings, SettingError, TrainingRecipe, check};
use crate::stages::{StageContext, export_new};
use crate::task::{BoxError, Task};
use crate::trainer::TrainError;
use burn::tensor::Device;
use calotype_core::StopFlag;
use calotype_data::Slice;
use calotype_evaluate::sweep::{self, KeptCheckpoints, SubStage, Sweep, SweepEnd, SweepError, SweepRecipe};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Name of the evaluations in the logs.
pub(crate) const JUDGED: &str = "judged";

/// `[hooks.judge]`: what `calotype evaluate` does with a checkpoint, now and then with the model of the moment. Figures are logged as
/// `judged/fid` and so on, under the names that `figures.json` has; images, tables and the report are in the run's folder `judged`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JudgeSettings {
    /// Samples seen between two evaluations; by default as the rules of `[mlperf]` have it, in whole batches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every: Option<u64>,
    /// What is drawn and how it is judged: an evaluation recipe, which its `base` may name.
    pub recipe: SweepRecipe,
}

impl JudgeSettings {
    pub(crate) fn validate(&self) -> Result<(), SettingError> {
        const KEY: &str = "hooks.judge.recipe";
        check(self.every != Some(0), "hooks.judge.every", || "must be at least 1".to_owned())?;
        let SweepRecipe { model, run, pictures, at, averaged, sampler, .. } = &self.recipe;
        check((model, run, pictures) == (&None, &None, &None) && at.is_empty() && *averaged, KEY, || {
            "judges the run itself, with averaged weights where it has some: leave out model, run, pictures, at and averaged"
                .to_owned()
        })?;
        check(sampler.guidance.len() == 1, KEY, || {
            format!(
                "names {} guidance scales; a figure of the logs is of one: sampler.guidance = [7.5]",
                sampler.guidance.len()
            )
        })?;
        let recipe = self.of_run(Path::new("the run")).map_err(in_recipe)?;
        recipe.validate().and_then(|()| sweep::check_metrics(&recipe)).map_err(in_recipe)
    }

    /// Refuses the name of a figure that is not logged. Before the networks are there, distances have two names.
    pub(super) fn check_figure(&self, key: &'static str, figure: &str) -> Result<(), SettingError> {
        // What is wrong with the recipe is told under its own key.
        let names = self.of_run(Path::new("the run")).and_then(|recipe| sweep::figure_names(&recipe));
        let Ok(names) = names else { return Ok(()) };
        check(names.contains(figure), key, || {
            let known: Vec<String> = names.iter().map(|name| format!("{JUDGED}/{name}")).collect();
            format!("`{JUDGED}/{figure}` is no number of [hooks.judge], which logs {}", known.join(", "))
        })
    }

    /// The recipe, of a run in a folder.
    fn of_run(&self, folder: &Path) -> Result<SweepRecipe, SweepError> {
        SweepRecipe { run: Some(folder.display().to_string()), ..self.recipe.clone() }.with_paths()
    }
}

/// The key of an evaluation recipe that is at fault, or what else is.
fn in_recipe(error: SweepError) -> SettingError {
    let problem = match error {
        SweepError::Setting { key, problem } => format!("`{key}` {problem}"),
        error => error.to_string(),
    };
    SettingError { key: "hooks.judge.recipe", problem }
}

pub(super) struct Judge(JudgeSettings);

impl Judge {
    pub(super) fn open(settings: &JudgeSettings, _: &DataSettings) -> Result<Self, TrainError> {
        Ok(Self(settings.clone()))
    }

    /// Samples between two evaluations.
    fn distance<R: TrainingRecipe>(&self, recipe: &R) -> Option<u64> {
        let batch = recipe.config().run.batch_size as u64;
        self.0.every.or_else(|| Some(recipe.mlperf()?.interval(batch)))
    }

    /// Draws and judges. None if a stop was asked for meanwhile; what is done by then is not done again.
    fn judge<T: Task>(&self, context: &HookContext<'_, T>) -> Result<Option<SweepEnd>, BoxError> {
        let stage = context.stage;
        let out = stage.folder.join(JUDGED);
        let recipe = self.0.of_run(stage.folder)?;
        let text = toml::to_string_pretty(&recipe)?;
        // Processes that end at different images would wait for each other.
        let never = StopFlag::new_unhooked();
        let sweep = Sweep {
            recipe: &recipe,
            text: &text,
            out: &out,
            device: stage.device,
            stop: if stage.collective.world() == 1 { stage.stop } else { &never },
            collective: stage.collective,
            slices: &[Slice::ALL],
            stages: SubStage::ALL.iter().copied().collect(),
            run: Some(&Moment { context, scores: out.join("scores") }),
            follow: false,
        };
        match sweep.run() {
            Ok(end) => Ok(Some(end)),
            Err(SweepError::Interrupted { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl<T: Task> Hook<T> for Judge {
    fn check(&self, recipe: &T::Recipe) -> Result<Vec<String>, TrainError> {
        let wrong = |key, problem: String| Err(SettingError { key, problem }.into());
        if self.distance(recipe).is_none() {
            return wrong("hooks.judge.every", "is missing: say after how many samples the model is judged".to_owned());
        }
        // Nothing runs there: networks are only looked for.
        let checked = self.0.of_run(Path::new("the run")).and_then(|recipe| sweep::check(&recipe, &Device::default()));
        checked.map_err(in_recipe)?;
        Ok(Vec::new())
    }

    fn begin(&self, stage: &StageContext<'_>) -> Result<(), BoxError> {
        match stage.collective.is_first() {
            true => Ok(sweep::remove_leftovers(&stage.folder.join(JUDGED))?),
            false => Ok(()),
        }
    }

    /// The distance of evaluations may follow from the recipe, which only a call of [`Hook::run`] has.
    fn due(&self, _: u64, _: u64) -> bool {
        true
    }

    fn run(&mut self, context: &mut HookContext<'_, T>) -> Result<(), BoxError> {
        let batch = context.recipe.config().run.batch_size as u64;
        let Some(every) = self.distance(context.recipe) else { return Ok(()) };
        if !crossed(context.samples.saturating_sub(batch), context.samples, every) {
            return Ok(());
        }
        let Some(end) = self.judge(context)? else {
            context.stop_asked()?;
            return Ok(());
        };
        let of_now = end.figures.into_iter().filter(|(samples, _)| *samples == Some(context.samples));
        let mut found: Vec<(String, f64)> = Vec::new();
        for figure in of_now.flat_map(|(_, figures)| figures) {
            // A metric in several definitions has the first one's value.
            if !found.iter().any(|(name, _)| *name == figure.metric) {
                found.push((figure.metric, figure.value));
            }
        }
        context.log(JUDGED, found);
        Ok(())
    }
}

/// The model of the moment, behind those that were judged before.
struct Moment<'a, 'b, T: Task> {
    context: &'a HookContext<'b, T>,
    /// Where the figures of earlier ones are.
    scores: PathBuf,
}

impl<T: Task> KeptCheckpoints for Moment<'_, '_, T> {
    fn saved(&self) -> Result<Vec<(u64, PathBuf)>, BoxError> {
        let now = self.context.samples;
        let mut all = vec![now];
        if self.scores.is_dir() {
            for entry in std::fs::read_dir(&self.scores)? {
                let samples: Option<u64> = entry?.file_name().to_str().and_then(|name| name.parse().ok());
                all.extend(samples.filter(|samples| *samples < now));
            }
        }
        all.sort_unstable();
        Ok(all.into_iter().map(|samples| (samples, self.context.stage.folder.to_owned())).collect())
    }

    fn is_finished(&self) -> bool {
        true
    }

    fn write_model(&self, samples: u64, _: bool, out: &Path) -> Result<(), BoxError> {
        if samples != self.context.samples {
            return Err(format!(
                "the run has gone on since {samples} samples, and what was drawn then is not complete"
            )
            .into());
        }
        Ok(export_new(self.context.task, self.context.model(), out)?)
    }
}
