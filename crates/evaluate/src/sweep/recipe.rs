//! The recipe of a sweep: what is drawn, by which sampler, and how it is judged.

use super::SweepError;
use crate::MetricSettings;
use calotype_checkpoints::OpenOptions;
use calotype_core::{absence, names};
use calotype_diffusion::{Caching, Spacing};
use calotype_ops::Precision;
use calotype_pipeline::NoiseKind;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The value of `kind` in the recipes of sweeps.
pub const KIND: &str = "text_to_image";

/// At the beginning of a path in a recipe: what the key `model` says.
const MODEL: &str = "{model}";

/// What is judged, how it is drawn, and how it is judged.
///
/// One of `model`, `run` and `pictures` says what is judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SweepRecipe {
    /// [`KIND`].
    pub kind: String,
    /// A checkpoint in any layout, or the folder of a finished run or quickstart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The folder of a training run, whose kept checkpoints are judged one after another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// Of the run's checkpoints, those of so many samples; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub at: Vec<u64>,
    /// Whether the run's averaged weights are judged, where it has some.
    #[serde(default = "yes")]
    pub averaged: bool,
    /// A folder of pictures that were made elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pictures: Option<String>,
    /// Seed of the noise; see [`SeedRule`].
    pub seed: u64,
    /// Captions that are taken, from the first on, and pictures that are drawn.
    pub images: usize,
    /// Pictures drawn at a time; they do not depend on it.
    pub batch_size: usize,
    /// Pictures that a process takes at a time: the unit in which work is shared out and features are kept.
    #[serde(default = "block_size")]
    pub block_size: usize,
    /// Sides of the pictures in pixels; those that the checkpoint was made for if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<usize>,
    /// Precision of the networks that draw.
    #[serde(default)]
    pub precision: Precision,
    /// Whether pictures stay once they are scored. Those that the report shows do in any case.
    #[serde(default = "yes")]
    pub keep_pictures: bool,
    /// Where the captions are.
    pub captions: CaptionSettings,
    /// How pictures are drawn.
    pub sampler: SamplerSettings,
    /// The noise that they begin with.
    #[serde(default)]
    pub noise: NoiseSettings,
    /// How they are judged.
    pub judge: JudgeSettings,
    /// What the report shows.
    #[serde(default)]
    pub report: ReportSettings,
    /// Knowledge about the checkpoint that it does not hold, such as `family = "mlperf-sd2"`.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub open: OpenOptions,
}

/// Where captions are; see [`Captions::read`](super::Captions::read).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaptionSettings {
    /// COCO's table (`.tsv`), a text file with one on each line, a folder of text files, shards, or a folder of images.
    pub path: String,
    /// The column of the captions in tables; the usual names if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<String>,
}

/// The sampler, on the schedule of the checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SamplerSettings {
    /// Our name or diffusers'; the checkpoint's own if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Sampling steps.
    pub steps: usize,
    /// Classifier-free guidance scales; pictures are drawn and judged for each. 1 and less is none.
    pub guidance: Vec<f32>,
    /// What the pictures should not show; the empty prompt if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub negative: Option<String>,
    /// DDIM's share of fresh noise, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta: Option<f64>,
    /// The timesteps that are visited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spacing: Option<Spacing>,
    /// Added to the timesteps of the leading spacing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps_offset: Option<usize>,
    /// The timesteps themselves, `steps` of them, from noise to image, as few-step students are trained on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub timesteps: Vec<f64>,
    /// Deep features that are kept between steps (`interval`, `branch`); none: every step computes the whole UNet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caching: Option<Caching>,
}

names! {
    /// Which seed a picture's noise is drawn by.
    #[derive(Default)]
    SeedRule, "seed rule" {
        /// The recipe's, with the picture's number among all.
        #[default]
        Picture = "picture",
        /// The recipe's, and nothing else: all pictures begin with one latent, as in MLPerf Inference.
        Fixed = "fixed",
        /// NeMo's (v1.23, `generate_fid_images.py`): each task of each node draws the noise of its part of the pictures, one after
        /// another, from one generator of seed `seed + 10 task + 100 node`. Who draws a picture here does not matter.
        Nemo = "nemo",
        /// That of other revisions of the same script: each task counts the pictures of its part, and each has a generator of its
        /// own, of seed `seed + 10 task + 100 node + 1000 picture`.
        NemoPicture = "nemo-picture",
    }
}

/// The noise that pictures begin with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NoiseSettings {
    /// The generator.
    pub generator: NoiseKind,
    /// Which seed it has for a picture.
    pub seeds: SeedRule,
    /// Tasks of a node (`ntasks_per_node`), for NeMo's seeds.
    pub tasks: usize,
    /// Nodes (`nnodes_per_cfg`), for NeMo's seeds.
    pub nodes: usize,
}

impl Default for NoiseSettings {
    /// NeMo's sizes are those of its launcher's `evaluation/stable_diffusion/fid_clip`.
    fn default() -> Self {
        Self { generator: NoiseKind::default(), seeds: SeedRule::default(), tasks: 8, nodes: 1 }
    }
}

/// What a picture's noise is drawn from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PictureNoise {
    /// A stream of its own, by seed and number, as a [`Request`](calotype_pipeline::Request) takes them.
    Own {
        /// The seed.
        seed: u64,
        /// The number among all of the seed.
        number: u64,
    },
    /// The stream of a task, in which the noise of pictures before it comes first.
    OfTask {
        /// The seed.
        seed: u64,
        /// Pictures before it.
        before: u64,
    },
}

impl NoiseSettings {
    /// What the noise of picture `index` of `images` is drawn from.
    pub fn of(&self, seed: u64, index: usize, images: usize) -> PictureNoise {
        let (node, index_of_node, of_node) = part_of(index, images, self.nodes);
        let (task, picture, _) = part_of(index_of_node, of_node, self.tasks);
        let of_task = seed.wrapping_add(10 * task as u64 + 100 * node as u64);
        match self.seeds {
            SeedRule::Picture => PictureNoise::Own { seed, number: index as u64 },
            SeedRule::Fixed => PictureNoise::Own { seed, number: 0 },
            SeedRule::Nemo => PictureNoise::OfTask { seed: of_task, before: picture as u64 },
            SeedRule::NemoPicture => PictureNoise::Own { seed: of_task.wrapping_add(1000 * picture as u64), number: 0 },
        }
    }
}

/// NeMo's division of `count` things into `parts`, of which the last one takes what is left: the part of thing `index`, its number
/// there, and how many things the part has.
fn part_of(index: usize, count: usize, parts: usize) -> (usize, usize, usize) {
    let last = parts.max(1) - 1;
    let size = count / (last + 1);
    let part = index.checked_div(size).map_or(last, |part| part.min(last));
    let length = if part == last { count - last * size } else { size };
    (part, index - part * size, length)
}

/// How pictures are judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JudgeSettings {
    /// Names of metrics, as `calotype evaluate pictures --metrics` takes them; `fid:clean-fid` chooses the variant of this one alone.
    pub metrics: Vec<String>,
    /// The pictures that they are compared with: a folder, shards, or statistics (`.npz`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// Pictures of the reference that are taken, from the first on; all if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference_images: Option<usize>,
    /// The Inception network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inception: Option<String>,
    /// The CLIP model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip: Option<String>,
    /// Any other network of image features.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<String>,
    /// Precision of the networks but Inception, which always runs in `f32`.
    #[serde(default = "single")]
    pub precision: Precision,
    /// Definitions, seeds and sizes of subsets.
    #[serde(default)]
    pub settings: MetricSettings,
}

/// What the report shows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReportSettings {
    /// Pictures of each grid.
    pub pictures: usize,
    /// Somebody else's curve: a table with the columns `cfg`, `fid` and `clip_score`, or a folder with NeMo's two tables.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference_curve: Option<String>,
    /// The folder of another evaluation that this one is compared with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline: Option<String>,
}

impl Default for ReportSettings {
    fn default() -> Self {
        Self { pictures: 12, reference_curve: None, baseline: None }
    }
}

fn yes() -> bool {
    true
}

fn single() -> Precision {
    Precision::F32
}

/// Small enough for 64 processes to share 30,000 pictures evenly.
fn block_size() -> usize {
    64
}

fn is_usual<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// What a recipe judges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Judged<'a> {
    /// One checkpoint.
    Model(&'a str),
    /// The kept checkpoints of a training run.
    Run(&'a str),
    /// Pictures that were made elsewhere.
    Pictures(&'a str),
}

impl SweepRecipe {
    /// What is judged.
    ///
    /// # Errors
    /// [`SweepError::Setting`] unless one of `model`, `run` and `pictures` is given; a `model` beside one of the others only names
    /// the folder that `{model}` stands for ([`idle_model`](Self::idle_model)).
    pub fn judged(&self) -> Result<Judged<'_>, SweepError> {
        match (&self.model, &self.run, &self.pictures) {
            (_, Some(run), None) => Ok(Judged::Run(run)),
            (_, None, Some(pictures)) => Ok(Judged::Pictures(pictures)),
            (Some(model), None, None) => Ok(Judged::Model(model)),
            (None, None, None) => Err(setting(
                "model",
                "is missing; say what is judged: model=CHECKPOINT, run=RUN (its kept checkpoints) or pictures=FOLDER",
            )),
            (_, Some(_), Some(_)) => Err(setting("pictures", "and `run` exclude each other; give one of them")),
        }
    }

    /// The same with the model's path in the place of `{model}` at the beginning of paths.
    ///
    /// # Errors
    /// [`SweepError::Setting`] naming the key of a path that needs `model`, which is not given.
    pub fn with_paths(mut self) -> Result<Self, SweepError> {
        let model = self.model.clone();
        let put = |key: &'static str, path: &mut String| -> Result<(), SweepError> {
            let Some(rest) = path.strip_prefix(MODEL).filter(|rest| rest.is_empty() || rest.starts_with('/')) else {
                return Ok(());
            };
            let needed = || setting(key, "is below {model}, and there is none: give model=PATH, or this path");
            *path = format!("{}{rest}", model.as_ref().ok_or_else(needed)?);
            Ok(())
        };
        put("captions.path", &mut self.captions.path)?;
        let judge = &mut self.judge;
        let optional = [
            ("judge.reference", &mut judge.reference),
            ("judge.inception", &mut judge.inception),
            ("judge.clip", &mut judge.clip),
            ("judge.features", &mut judge.features),
        ];
        for (key, path) in optional {
            path.as_mut().map_or(Ok(()), |path| put(key, path))?;
        }
        Ok(self)
    }

    /// The `model` that is neither judged nor looked into: something else is judged, and no path of the recipe lies in it.
    pub fn idle_model(&self) -> Option<&str> {
        let model = self.model.as_deref()?;
        let is_judged = self.run.is_none() && self.pictures.is_none();
        (!is_judged && !self.looks_below(model)).then_some(model)
    }

    /// Whether a path of the recipe lies in the folder that `model` names, or is to.
    fn looks_below(&self, model: &str) -> bool {
        let judge = &self.judge;
        let optional = [&judge.reference, &judge.inception, &judge.clip, &judge.features];
        let mut paths = optional.into_iter().flatten().chain([&self.captions.path]).map(Path::new);
        paths.any(|path| path.starts_with(model) || path.starts_with(MODEL))
    }

    /// Refuses a model of which nothing is there.
    ///
    /// # Errors
    /// [`SweepError::Setting`].
    pub(super) fn check_model(&self) -> Result<(), SweepError> {
        match &self.model {
            Some(path) if self.idle_model().is_none() && !Path::new(path).exists() => Err(setting(
                "model",
                format!(
                    "there is nothing at {path}{}; name a checkpoint, or the folder of a finished run or quickstart",
                    absence(Path::new(path))
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Refuses captions of which nothing is there; addresses and patterns are left to who opens them.
    ///
    /// # Errors
    /// [`SweepError::Setting`].
    pub(super) fn check_captions(&self) -> Result<(), SweepError> {
        let path = &self.captions.path;
        if path.contains([':', '{', '*']) || Path::new(path).exists() {
            return Ok(());
        }
        let below = self.model.as_ref().filter(|model| Path::new(path).starts_with(model));
        let hint = below.map_or(String::new(), |model| {
            format!(
                ": the recipe looks for captions in the model's folder, as a quickstart leaves them, and {model} is none; name one by \
                 model=QUICKSTART, or what else the recipe takes of it: captions.path, judge.reference, judge.clip, judge.features"
            )
        });
        let hint = if hint.is_empty() { "; name a list of captions, or captioned samples".to_owned() } else { hint };
        let near = absence(Path::new(path));
        Err(setting("captions.path", format!("there is nothing at {path}{near}{hint}")))
    }

    /// Checks what the recipe says by itself.
    ///
    /// # Errors
    /// [`SweepError::Setting`] naming the first key at fault.
    pub fn validate(&self) -> Result<(), SweepError> {
        let check =
            |right: bool, key: &'static str, problem: &str| if right { Ok(()) } else { Err(setting(key, problem)) };
        check(self.kind == KIND, "kind", &format!("is `{}`, and a sweep's is `{KIND}`", self.kind))?;
        let judged = self.judged()?;
        check(self.images > 0, "images", "must be at least 1")?;
        check(self.batch_size > 0, "batch_size", "must be at least 1")?;
        check(self.block_size > 0, "block_size", "must be at least 1")?;
        check(self.size != Some(0), "size", "must be at least 1")?;
        check(self.at.is_empty() || matches!(judged, Judged::Run(_)), "at", "is of `run`, which is not given")?;
        check(self.sampler.steps > 0, "sampler.steps", "must be at least 1")?;
        let kept = self.sampler.caching.is_none_or(|caching| caching.interval > 0);
        check(kept, "sampler.caching.interval", "must be at least 1, which keeps nothing")?;
        let scales = &self.sampler.guidance;
        check(!scales.is_empty(), "sampler.guidance", "names no scale; write a list such as [2.0, 7.5]")?;
        check(scales.iter().all(|scale| scale.is_finite()), "sampler.guidance", "must be finite numbers")?;
        let unguided = scales.iter().filter(|scale| **scale <= 1.0).count();
        check(unguided <= 1, "sampler.guidance", "names several scales of 1 and less, which are all without guidance")?;
        let twice = |(at, scale): (usize, &f32)| scales[..at].contains(scale);
        check(!scales.iter().enumerate().any(twice), "sampler.guidance", "names a scale twice")?;
        let is_torch = self.noise.generator == NoiseKind::TorchCpu;
        check(
            is_torch || self.noise.seeds != SeedRule::Nemo,
            "noise.seeds",
            "`nemo` needs noise.generator = \"torch-cpu\"",
        )?;
        check(self.noise.tasks > 0, "noise.tasks", "must be at least 1")?;
        check(self.noise.nodes > 0, "noise.nodes", "must be at least 1")?;
        check(self.judge.reference_images != Some(0), "judge.reference_images", "must be at least 1")?;
        check(!self.judge.metrics.is_empty(), "judge.metrics", "names no metric")
    }
}

/// A key that cannot be followed.
pub(crate) fn setting(key: &'static str, problem: impl Into<String>) -> SweepError {
    SweepError::Setting { key, problem: problem.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = "kind = \"text_to_image\"\nseed = 1\nimages = 4\nbatch_size = 2\n[captions]\npath = \"c.tsv\"\n[sampler]\n\
                           steps = 2\nguidance = [2, 7.5]\n[judge]\nmetrics = [\"fid\"]\n";

    fn recipe(change: impl FnOnce(&mut SweepRecipe)) -> SweepRecipe {
        let mut recipe: SweepRecipe = toml::from_str(MINIMAL).unwrap();
        recipe.model = Some("m".to_owned());
        change(&mut recipe);
        recipe
    }

    #[test]
    fn a_recipe_survives_toml() {
        let read = recipe(|_| {});
        assert_eq!(read.sampler.guidance, [2.0, 7.5]);
        assert!(read.averaged && read.keep_pictures && read.validate().is_ok());
        assert_eq!(toml::from_str::<SweepRecipe>(&toml::to_string(&read).unwrap()).unwrap(), read);
        assert!(toml::from_str::<SweepRecipe>(&format!("{MINIMAL}[other]\nkey = 1")).is_err());
    }

    #[test]
    fn impossible_settings_name_their_key() {
        type Change = fn(&mut SweepRecipe);
        let cases: [(Change, &str); 17] = [
            (|r| r.kind = "x".to_owned(), "kind"),
            (|r| r.model = None, "model"),
            (|r| (r.run, r.pictures) = (Some("r".to_owned()), Some("p".to_owned())), "pictures"),
            (|r| r.images = 0, "images"),
            (|r| r.batch_size = 0, "batch_size"),
            (|r| r.block_size = 0, "block_size"),
            (|r| r.size = Some(0), "size"),
            (|r| r.at = vec![8], "at"),
            (|r| r.sampler.steps = 0, "sampler.steps"),
            (|r| r.sampler.caching = Some(Caching { interval: 0, branch: 0 }), "sampler.caching.interval"),
            (|r| r.sampler.guidance = vec![], "sampler.guidance"),
            (|r| r.sampler.guidance = vec![2.0, 2.0], "sampler.guidance"),
            (|r| r.sampler.guidance = vec![f32::NAN], "sampler.guidance"),
            (|r| r.noise.seeds = SeedRule::Nemo, "noise.seeds"),
            (|r| r.noise.tasks = 0, "noise.tasks"),
            (|r| r.judge.reference_images = Some(0), "judge.reference_images"),
            (|r| r.judge.metrics = vec![], "judge.metrics"),
        ];
        for (change, key) in cases {
            match recipe(change).validate() {
                Err(SweepError::Setting { key: found, .. }) => assert_eq!(found, key),
                other => panic!("{key}: {other:?}"),
            }
        }
    }

    #[test]
    fn paths_lie_below_the_model() {
        let below = |model: Option<&str>, path: &str| {
            let recipe = recipe(|r| {
                r.model = model.map(str::to_owned);
                r.captions.path = path.to_owned();
                r.judge.clip = Some(path.to_owned());
            });
            recipe.with_paths().map(|r| (r.captions.path, r.judge.clip.unwrap_or_default()))
        };
        let both = |path: &str| (path.to_owned(), path.to_owned());
        assert_eq!(below(Some("runs/q"), "{model}/clip").unwrap(), both("runs/q/clip"));
        assert_eq!(below(Some("runs/q"), "{model}").unwrap(), both("runs/q"));
        assert_eq!(below(Some("runs/q"), "{models}/a").unwrap(), both("{models}/a"));
        assert_eq!(below(None, "a").unwrap(), both("a"));
        assert!(below(None, "{model}/a").unwrap_err().to_string().contains("captions.path"));
    }

    #[test]
    fn a_model_beside_a_run_is_the_folder_of_paths() {
        let of_run = |path: &str| recipe(|r| (r.run, r.captions.path) = (Some("r".to_owned()), path.to_owned()));
        for path in ["{model}/dataset", "m/dataset", "m"] {
            assert_eq!(of_run(path).idle_model(), None, "{path}");
            assert_eq!(of_run(path).judged().unwrap(), Judged::Run("r"));
        }
        for path in ["captions.tsv", "models/dataset", "{models}/a"] {
            assert_eq!(of_run(path).idle_model(), Some("m"), "{path}");
        }
        let of_pictures = |clip: &str| recipe(|r| (r.pictures, r.judge.clip) = (Some("p".into()), Some(clip.into())));
        assert_eq!(of_pictures("m/clip").idle_model(), None);
        assert_eq!(of_pictures("clip").idle_model(), Some("m"));
        assert_eq!(recipe(|_| {}).idle_model(), None, "it is judged itself");
    }

    #[test]
    fn seeds_follow_their_rule() {
        let settings = |seeds| NoiseSettings { seeds, ..NoiseSettings::default() };
        let own = |seed, number| PictureNoise::Own { seed, number };
        assert_eq!(settings(SeedRule::Picture).of(123, 7, 10), own(123, 7));
        assert_eq!(settings(SeedRule::Fixed).of(123, 7, 10), own(123, 0));
        let all = |seeds, tasks, nodes, images| {
            let settings = NoiseSettings { tasks, nodes, ..settings(seeds) };
            (0..images).map(|index| settings.of(123, index, images)).collect::<Vec<_>>()
        };
        let nemo = |tasks, nodes, images| -> Vec<u64> {
            let seed = |noise: PictureNoise| match noise {
                PictureNoise::Own { seed, number: 0 } => seed,
                other => panic!("{other:?}"),
            };
            all(SeedRule::NemoPicture, tasks, nodes, images).into_iter().map(seed).collect()
        };
        // The numbers of NeMo's lines, worked out in Python for its integer divisions and open last parts.
        assert_eq!(nemo(1, 1, 3), [123, 1123, 2123]);
        assert_eq!(nemo(2, 1, 5), [123, 1123, 133, 1133, 2133]);
        assert_eq!(nemo(2, 2, 7), [123, 133, 1133, 223, 1223, 233, 1233]);
        // More tasks than pictures: the last one draws all.
        assert_eq!(nemo(8, 1, 3), [193, 1193, 2193]);
        assert_eq!(nemo(1, 4, 2), [423, 1423]);
        // The same parts, each from one generator.
        let of_task = |seed, before| PictureNoise::OfTask { seed, before };
        let expected = [of_task(123, 0), of_task(133, 0), of_task(133, 1), of_task(223, 0), of_task(223, 1)];
        assert_eq!(all(SeedRule::Nemo, 2, 2, 7)[..5], expected);
    }
}
