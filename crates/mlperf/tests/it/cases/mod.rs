//! Good and bad logs, results and trees: each rule broken once. The tests hold our verdicts against the official checkers' (golden
//! file), and the example `cases` writes them all down for those checkers.

mod edits;
mod flux;
mod logs;
mod runs;
mod stable_diffusion;
pub mod trees;

use calotype_mlperf::*;
use serde_json::json;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// What a case consists of.
pub enum What {
    /// A log.
    Log(Vec<u8>),
    /// Logs of a result, for the reference points.
    Runs(Vec<String>, RcpSet),
    /// Files of a submission.
    Tree(BTreeMap<String, Vec<u8>>, Bypass),
    /// Files of a tree, for the repository's rules.
    Repository(BTreeMap<String, Vec<u8>>),
}

/// A case.
pub struct Case {
    pub name: String,
    pub ruleset: Ruleset,
    pub strict: bool,
    pub what: What,
    /// What the findings have to say.
    pub says: Vec<&'static str>,
}

impl Case {
    pub fn kind(&self) -> &'static str {
        match self.what {
            What::Log(_) => "log",
            What::Runs(..) => "runs",
            What::Tree(..) => "tree",
            What::Repository(_) => "repository",
        }
    }

    /// Writes the case into a folder.
    pub fn write(&self, folder: &Path) {
        let write = |name: &str, content: &[u8]| {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        };
        fs::create_dir_all(folder).unwrap();
        match &self.what {
            What::Log(log) => write("log.txt", log),
            What::Runs(logs, _) => {
                logs.iter().enumerate().for_each(|(run, log)| write(&format!("result_{run}.txt"), log.as_bytes()));
            }
            What::Tree(files, _) | What::Repository(files) => {
                files.iter().for_each(|(name, content)| write(name, content));
            }
        }
    }

    /// Our verdict, as the golden file has it, and the findings as text.
    pub fn judge(&self, folder: &Path) -> (serde_json::Value, String) {
        match &self.what {
            What::Log(_) => {
                let report = check_log(&folder.join("log.txt"), self.ruleset).unwrap();
                (json!({ "verdict": report.verdict(self.strict), "keys": self.keys(&report) }), report.to_string())
            }
            What::Runs(_, set) => match check_rcp(folder, self.ruleset, *set) {
                Err(error) => (json!({ "verdict": Verdict::Stop }), error.to_string()),
                Ok(found) => {
                    let verdict = found.report.verdict(false);
                    let basis = found.basis.as_ref().map(Basis::name);
                    (json!({ "verdict": verdict, "basis": basis, "scaling": found.scaling }), found.to_string())
                }
            },
            What::Tree(_, bypass) => match check_package(folder, self.ruleset, *bypass, self.strict) {
                Err(error) => (json!({ "verdict": Verdict::Stop }), error.to_string()),
                Ok(found) => {
                    let (scaling, minutes) = found.results.first().map(|found| (found.scaling, found.minutes)).unzip();
                    let judged =
                        json!({ "verdict": found.verdict(), "scaling": scaling, "minutes": minutes.flatten() });
                    (judged, found.report.to_string())
                }
            },
            What::Repository(_) => {
                let report = check_repository(folder).unwrap();
                (json!({ "verdict": report.verdict(false) }), report.to_string())
            }
        }
    }

    /// Keys of the rules that are broken.
    fn keys(&self, report: &Report) -> Vec<&'static str> {
        let least = if self.strict { Severity::Warning } else { Severity::Error };
        let broken = report.findings.iter().filter(|finding| finding.severity >= least);
        let mut keys: Vec<_> = broken.filter_map(|finding| finding.key).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }
}

thread_local! {
    static TIME: Cell<i64> = const { Cell::new(0) };
}

/// A second later with every line.
fn clock() -> i64 {
    TIME.set(TIME.get() + 1000);
    TIME.get()
}

/// A run to be written down.
#[derive(Clone)]
pub struct Run {
    pub benchmark: Benchmark,
    pub division: Division,
    pub seed: u64,
    pub batch: u64,
    /// Samples and results of each evaluation.
    pub evaluations: Vec<Scores>,
    pub status: RunStatus,
    pub disclosed: bool,
}

pub fn fid_and_clip(samples: u64, fid: f64, clip: f64) -> Scores {
    Scores { samples, results: vec![(Metric::Fid, fid), (Metric::Clip, clip)] }
}

/// A Stable Diffusion run that converges after some samples, at batch 512.
pub fn stable_diffusion(converged: u64) -> Run {
    Run {
        benchmark: Benchmark::StableDiffusion,
        division: Division::Closed,
        seed: 7,
        batch: 512,
        evaluations: vec![fid_and_clip(converged - 512_000, 98.62, 0.149), fid_and_clip(converged, 77.91, 0.17)],
        status: RunStatus::Success,
        disclosed: false,
    }
}

/// A Flux.1 run that converges after some samples, at batch 512.
pub fn flux(converged: u64) -> Run {
    let scores = |samples, loss| Scores { samples, results: vec![(Metric::ValidationLoss, loss)] };
    Run {
        benchmark: Benchmark::Flux1,
        evaluations: vec![scores(converged - 262_144, 0.5871), scores(converged, 0.5859)],
        ..stable_diffusion(converged)
    }
}

/// Settings that the rules have.
pub fn settings(run: &Run) -> Settings {
    let flux = run.benchmark == Benchmark::Flux1;
    Settings {
        seed: run.seed,
        train_samples: if flux { 1_099_776 } else { 6_513_144 },
        eval_samples: if flux { 29_696 } else { 30_000 },
        gradient_accumulation_steps: 1,
        global_batch_size: run.batch,
        optimizer: AdamW {
            beta_1: 0.9,
            beta_2: if flux { 0.95 } else { 0.999 },
            epsilon: 1e-8,
            weight_decay: if flux { 0.1 } else { 0.01 },
            base_learning_rate: if flux { 2e-4 } else { 2.3e-7 * run.batch as f64 },
            warmup_steps: 1000,
            gradient_clip_norm: flux.then_some(1.0),
        },
        disclosure: run.disclosed.then(|| Disclosure {
            linear_precision: "bfloat16".to_owned(),
            attention_precision: "bfloat16".to_owned(),
            communication_precision: "fp32".to_owned(),
            tensor_parallelism: 1,
            pipeline_parallelism: 1,
            context_parallelism: 1,
            expert_parallelism: 1,
            micro_batch_size: 8,
            config_filename: "recipe.toml".to_owned(),
        }),
    }
}

pub fn submission(run: &Run) -> Submission {
    Submission {
        benchmark: run.benchmark,
        division: run.division,
        org: "Calotype".to_owned(),
        platform: "box".to_owned(),
        status: SubmissionStatus::OnPremises,
        poc_name: None,
        poc_email: None,
    }
}

/// Writes a run's log as a trainer does.
pub fn write_run(path: &Path, run: &Run) -> Result<(), LogError> {
    TIME.set(1_700_000_000_000 + 500 * i64::try_from(run.seed).unwrap());
    let mut log = LogWriter::open_with_clock(path, &submission(run), 0, clock)?;
    log.init_start(true)?;
    log.init_stop(&settings(run))?;
    log.run_start()?;
    let mut seen = 0;
    for scores in &run.evaluations {
        log.block_start(seen)?;
        log.training(scores.samples, 0.25, 1e-4)?;
        log.block_stop(scores.samples)?;
        log.eval_start(scores.samples)?;
        for (metric, value) in &scores.results {
            log.eval_accuracy(*metric, *value)?;
        }
        log.eval_stop()?;
        seen = scores.samples;
    }
    log.run_stop(run.status, seen)
}

/// The log of a run, as text.
pub fn log_of(run: &Run) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log.txt");
    write_run(&path, run).unwrap();
    fs::read_to_string(path).unwrap()
}

/// The table of all cases.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    logs::logs(&mut cases);
    stable_diffusion::logs(&mut cases);
    flux::logs(&mut cases);
    runs::runs(&mut cases);
    trees::trees(&mut cases);
    trees::repositories(&mut cases);
    cases
}

fn log_case(cases: &mut Vec<Case>, name: &str, ruleset: Ruleset, log: impl Into<Vec<u8>>, says: &[&'static str]) {
    let (name, says) = (format!("log/{name}"), says.to_vec());
    cases.push(Case { name, ruleset, strict: false, what: What::Log(log.into()), says });
}

/// Ten runs of a kind, each with its own seed.
fn ten(run: &Run) -> Vec<String> {
    (0..10).map(|seed| log_of(&Run { seed, ..run.clone() })).collect()
}

/// A system description that is complete.
pub fn system(division: Division) -> SystemDescription {
    SystemDescription {
        host_processor_model_name: "a processor".to_owned(),
        host_processor_core_count: "2".to_owned(),
        accelerators_per_node: "0".to_owned(),
        framework: "Calotype".to_owned(),
        submitter: "Calotype".to_owned(),
        division: division.name().to_owned(),
        status: "Available on-premise".to_owned(),
        system_name: "box".to_owned(),
        number_of_nodes: "1".to_owned(),
        ..SystemDescription::default()
    }
}
