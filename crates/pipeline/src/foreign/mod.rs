//! Settings inside PNG files of other programs, as far as they map to ours: AUTOMATIC1111's web interface and its relatives
//! ([`a1111`]), and ComfyUI ([`comfy`]). What does not map is said.

pub mod a1111;
pub mod comfy;

use crate::settings_text::{GenerationRecord, RecordedRequest, RecordedSettings};
use calotype_ops::Precision;
use std::path::PathBuf;

/// What a file of another program says.
#[derive(Clone, Debug, PartialEq)]
pub struct ForeignRecord {
    /// The program.
    pub program: &'static str,
    /// The checkpoint, as it is called there.
    pub model: Option<String>,
    /// Prompts.
    pub request: RecordedRequest,
    /// What maps to our settings; the sampler is chosen by name.
    pub settings: RecordedSettings,
    /// The sampler and its schedule, as [`ForeignSampler`](calotype_diffusion::samplers::ForeignSampler) reads them.
    pub sampler: Option<String>,
    /// What of it does not map, in sentences.
    pub rest: Vec<String>,
}

impl ForeignRecord {
    fn new(program: &'static str) -> Self {
        let settings = RecordedSettings { long_prompts: true, ..RecordedSettings::default() };
        Self { program, model: None, request: RecordedRequest::default(), settings, sampler: None, rest: Vec::new() }
    }

    /// Notes a sentence, once.
    fn say(&mut self, sentence: impl Into<String>) {
        let sentence = sentence.into();
        if !self.rest.contains(&sentence) {
            self.rest.push(sentence);
        }
    }

    /// Notes a setting that cannot be read.
    fn malformed(&mut self, name: &str, value: &str) {
        self.say(format!("`{name}` is `{value}`, which cannot be read"));
    }

    /// A sampler by its name there, if there is such a one here.
    fn set_sampler(&mut self, name: &str, schedule: Option<&str>) {
        use calotype_diffusion::samplers::ForeignSampler;
        let whole = schedule.map_or_else(|| name.to_owned(), |schedule| format!("{name} {schedule}"));
        let parsed = ForeignSampler::parse(&whole);
        let parsed = match (parsed, schedule) {
            (Ok(None) | Err(_), Some(schedule)) if matches!(ForeignSampler::parse(name), Ok(Some(_))) => {
                self.say(format!(
                    "the schedule `{schedule}` has no counterpart here: the sampler's usual one is taken"
                ));
                self.sampler = Some(name.to_owned());
                return;
            }
            (parsed, _) => parsed,
        };
        match parsed {
            Ok(Some(_)) => self.sampler = Some(whole),
            _ => self.say(format!("the sampler `{whole}` is none of ours: the checkpoint's own is taken")),
        }
    }

    /// The same as a record of a checkpoint.
    pub fn record(&self, model: impl Into<PathBuf>, precision: Precision) -> GenerationRecord {
        let record = GenerationRecord::new(model, precision);
        GenerationRecord { request: self.request.clone(), settings: self.settings.clone(), ..record }
    }
}
