//! A run before it begins: everything that can be found out without a checkpoint.

use crate::draw::Artist;
use crate::drawing::is_made;
use crate::error::InferenceError;
use crate::layout::Layout;
use crate::recipe::{LoadSettings, Recipe};
use crate::run::Processes;
use crate::samples::Samples;
use crate::unofficial::unofficial;
use burn::tensor::Device;
use calotype_loadgen::{Effective, LoadgenError, Mode, Scenario, Seeds, UserConf};
use calotype_mlperf::inference::{self as mlperf, Round};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A run of one scenario in one mode.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What is drawn and how.
    pub recipe: Recipe,
    /// The recipe's text.
    pub text: String,
    /// How queries come.
    pub scenario: Scenario,
    /// What is found out.
    pub mode: Mode,
    /// What LoadGen is told.
    pub conf: UserConf,
    /// What LoadGen makes of it.
    pub effective: Effective,
    /// An audit's configuration.
    pub audit_conf: Option<PathBuf>,
    /// The captions.
    pub samples: Arc<Samples>,
    /// Where files lie.
    pub layout: Layout,
    /// What is not as the benchmark asks, in sentences.
    pub unofficial: Vec<String>,
}

/// Where a run's wishes come from, besides the recipe.
#[derive(Clone, Debug, Default)]
pub struct Wishes<'a> {
    /// A file in LoadGen's form, which the recipe's `[load]` gives way to.
    pub user_conf: Option<&'a Path>,
    /// Values that hold in any case.
    pub load: LoadSettings,
    /// An audit's configuration.
    pub audit_conf: Option<&'a Path>,
}

impl Plan {
    /// Makes a plan; files are read, but nothing is written and no checkpoint opened.
    ///
    /// # Errors
    /// [`InferenceError`] for a recipe, captions or a configuration that cannot be.
    pub fn new(
        (recipe, text): (&Recipe, &str),
        (scenario, mode): (Scenario, Mode),
        wishes: &Wishes<'_>,
        out: &Path,
    ) -> Result<Self, InferenceError> {
        recipe.validate()?;
        if mode == Mode::FindPeak && scenario != Scenario::Server {
            return Err(LoadgenError::NoPeak(scenario.official()).into());
        }
        let conf = configuration(recipe, scenario, wishes)?;
        let effective = Effective::of(scenario, &conf);
        if mode == Mode::FindPeak {
            can_find_peak(&conf, &effective)?;
        }
        let audit_conf = wishes.audit_conf.map(Path::to_owned);
        if let Some(path) = audit_conf.clone().filter(|path| !path.is_file()) {
            return Err(InferenceError::File {
                path,
                problem: "there is no such file, which --audit-conf names".to_owned(),
            });
        }
        let samples = Samples::read(recipe)?;
        let mut found = unofficial(recipe, scenario, mode, &effective);
        found.extend(samples.notes.clone());
        if let Some(path) = &audit_conf {
            found.push(format!(
                "an audit's configuration holds ({}): the result is for the audit alone",
                path.display()
            ));
        }
        Ok(Self {
            recipe: recipe.clone(),
            text: text.to_owned(),
            scenario,
            mode,
            conf,
            effective,
            audit_conf,
            samples: Arc::new(samples),
            layout: Layout::new(out, scenario, mode),
            unofficial: found,
        })
    }

    /// Finds out what a run would find out once it opens networks and sockets, without reading weights: the workers' addresses, the
    /// model, the pictures' size, the sampler and the latents. A recipe may still lack its model.
    ///
    /// # Errors
    /// As of [`Artist::check`]; [`InferenceError::Setting`] for an address that is none.
    pub fn check(&self, processes: &Processes, device: &Device) -> Result<(), InferenceError> {
        if let Processes::Workers(addresses) = processes {
            addresses.iter().try_for_each(|address| check_address(address))?;
        }
        let made = self.layout.model();
        match &self.recipe.model {
            Some(path) => Artist::check(Path::new(path), &self.recipe, device),
            None if is_made(&made) => Artist::check(&made, &self.recipe, device),
            None => Artist::check_unmade(&self.recipe, device),
        }
    }

    /// LoadGen's seeds, where they are not those that it has itself.
    pub fn seeds(&self) -> Option<Seeds> {
        let round = self.recipe.round;
        let mlperf::Seeds { library, sample_index, schedule } = round.seeds();
        (round != Round::default()).then_some(Seeds { library, sample: sample_index, schedule })
    }

    /// Samples that LoadGen issues at least: in accuracy mode each once.
    pub fn issued(&self) -> u64 {
        match self.mode {
            Mode::Accuracy => self.samples.len() as u64,
            _ => self.effective.samples(self.scenario),
        }
    }

    /// What would run, in lines.
    pub fn describe(&self) -> String {
        let Recipe { width, height, steps, guidance, serve, round, variant, model, random, .. } = &self.recipe;
        let model = match (model, random) {
            (Some(model), _) => model.clone(),
            (None, Some(family)) => format!("random weights of {family}, made in {}", self.layout.model().display()),
            (None, None) => "none: give one with --model".to_owned(),
        };
        let least = match (self.mode, self.scenario) {
            (Mode::Accuracy, _) | (_, Scenario::Offline) => "",
            _ => " at least",
        };
        let mut lines = vec![
            format!("scenario     {}, {} mode", self.scenario.official(), self.mode),
            format!("model        {model}"),
            format!("benchmark    round {round}, variant {variant}, {} captions", self.samples.len()),
            format!("pictures     {width}x{height}, {steps} steps, guidance {guidance}"),
            format!("samples      {} are issued{least}", self.issued()),
        ];
        if self.mode != Mode::Accuracy {
            lines.push(format!(
                "duration     at least {} s; how long a picture takes is not known",
                self.effective.min_duration_ms as f64 / 1e3
            ));
        }
        lines.push(format!(
            "served       {} at a time by {} thread{}, {} at a time by the autoencoder",
            serve.batch_size,
            serve.workers,
            if serve.workers == 1 { "" } else { "s" },
            serve.decode_batch
        ));
        lines.push(format!("logs         {}", self.layout.logs().display()));
        lines.push(format!(
            "loadgen      {}",
            calotype_loadgen::version().unwrap_or_else(|| "not in this build: a run is refused".to_owned())
        ));
        match self.unofficial.is_empty() {
            true => lines.push("official     by its settings; the rest is for the submission's checks".to_owned()),
            false => lines.extend(self.unofficial.iter().map(|text| format!("unofficial   {text}"))),
        }
        lines.join("\n")
    }
}

/// Refuses a worker's address that cannot be one.
fn check_address(address: &str) -> Result<(), InferenceError> {
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
    match address.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && is_port(port) => Ok(()),
        _ => Err(InferenceError::setting(format!("--workers {address}: write it as HOST:PORT, such as 10.0.0.2:4242"))),
    }
}

/// Refuses a search for the peak that would not end: LoadGen doubles the rate until the latency is broken, and where it issues the same few
/// queries at any rate, they may be done in time however fast they come.
fn can_find_peak(conf: &UserConf, effective: &Effective) -> Result<(), InferenceError> {
    if conf.value(Scenario::Server, "target_qps").is_none() {
        return Err(InferenceError::setting(
            "a search for the peak begins at a rate that is known to be valid: give it with --qps",
        ));
    }
    let (duration, latency) = (effective.min_duration_ms as f64 / 1e3, effective.target_latency_ns as f64 / 1e9);
    if duration < latency {
        return Err(InferenceError::setting(format!(
            "a search for the peak with a least duration of {duration} s may not end: give --time at least the latency that is allowed, \
             {latency} s (--max-latency)"
        )));
    }
    Ok(())
}

/// What LoadGen is told: the file's lines; the recipe's wishes, as far as the file says nothing of them; and what holds in any case.
fn configuration(recipe: &Recipe, scenario: Scenario, wishes: &Wishes<'_>) -> Result<UserConf, InferenceError> {
    let file = match wishes.user_conf {
        Some(path) => UserConf::read(path).map_err(LoadgenError::from)?,
        None => UserConf::default(),
    };
    let mut conf = file.clone();
    for (key, value) in recipe.load.lines(scenario) {
        if file.value(scenario, key).is_none() {
            conf = conf.with(scenario, key, value);
        }
    }
    Ok(wishes.load.lines(scenario).into_iter().fold(conf, |conf, (key, value)| conf.with(scenario, key, value)))
}

impl LoadSettings {
    /// The lines of user.conf for a scenario; values that it has no use for are left out.
    pub fn lines(&self, scenario: Scenario) -> Vec<(&'static str, f64)> {
        let rated = matches!(scenario, Scenario::Server | Scenario::Offline);
        let whole = |value: Option<u64>| value.map(|value| value as f64);
        let all = [
            ("target_qps", self.target_qps.filter(|_| rated)),
            ("target_latency", self.target_latency_ms.filter(|_| scenario != Scenario::Offline)),
            ("min_duration", whole(self.min_duration_ms)),
            ("max_duration", whole(self.max_duration_ms)),
            ("min_query_count", whole(self.min_query_count)),
            ("max_query_count", whole(self.max_query_count)),
            ("samples_per_query", whole(self.samples_per_query).filter(|_| scenario == Scenario::MultiStream)),
            ("performance_sample_count_override", whole(self.performance_sample_count)),
        ];
        all.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
    }
}
