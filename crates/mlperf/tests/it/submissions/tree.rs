//! Trees made of LoadGen's own logs (tests/golden/loadgen), and changes of them.

use calotype_mlperf::inference::*;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// A log that LoadGen 6.0.17 wrote.
pub fn captured(scenario: &str, mode: &str, name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/loadgen");
    fs::read_to_string(folder.join(scenario).join(mode).join(name)).unwrap()
}

/// A log in which a key has another value, as JSON.
pub fn set(log: &str, key: &str, value: &str) -> String {
    let change = |line: &str| {
        if !line.contains(&format!("\"key\": \"{key}\"")) {
            return line.to_owned();
        }
        let start = line.find("\"value\": ").unwrap() + "\"value\": ".len();
        let end = line.find(", \"time_ms\"").unwrap();
        format!("{}{value}{}", &line[..start], &line[end..])
    };
    let changed: String = log.split_inclusive('\n').map(change).collect();
    assert!(changed != log || log.contains(&format!("\"key\": \"{key}\", \"value\": {value},")), "there is no {key}");
    changed
}

/// A log without the lines of a key.
pub fn without(log: &str, key: &str) -> String {
    log.split_inclusive('\n').filter(|line| !line.contains(&format!("\"key\": \"{key}\""))).collect()
}

/// A description that says everything.
pub fn system(system_type: &str) -> InferenceSystem {
    let mut system = InferenceSystem::default();
    for name in InferenceSystem::names() {
        *system.field(name).unwrap() = "N/A".to_owned();
    }
    for (name, value) in [
        ("system_name", "a box"),
        ("status", "available"),
        ("system_type", system_type),
        ("number_of_nodes", "1"),
        ("host_processors_per_node", "1"),
        ("host_processor_core_count", "2"),
        ("accelerators_per_node", "0"),
        ("hw_notes", ""),
        ("framework", "Calotype"),
    ] {
        *system.field(name).unwrap() = value.to_owned();
    }
    system
}

/// The captured logs with a round's seeds; `whole` ones as if they had been of the benchmark's sizes.
fn log(round: Round, scenario: &str, mode: &str, whole: bool) -> String {
    let mut log = captured(scenario, mode, DETAIL);
    for (key, seed) in round.seeds().named() {
        log = set(&log, key, &seed.to_string());
    }
    if whole {
        for (key, value) in [
            ("effective_performance_sample_count", "5000"),
            ("effective_accuracy_sample_count", "5000"),
            ("qsl_reported_total_count", "5000"),
            ("effective_min_duration_ms", "600000"),
        ] {
            log = set(&log, key, value);
        }
        if scenario == "Offline" {
            log = set(&log, "effective_samples_per_query", "5000");
        }
    }
    log
}

/// Writes a folder of runs, as `calotype mlperf inference` does.
pub fn runs_at(folder: &Path, round: Round, scenarios: &[&str], whole: bool) {
    let put = |name: String, content: &[u8]| {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    };
    for scenario in scenarios {
        let performance = log(round, scenario, "performance", whole);
        let accuracy = log(round, scenario, "accuracy", whole);
        let lower = scenario.to_lowercase();
        put(format!("{lower}/performance/run_1/{DETAIL}"), performance.as_bytes());
        put(format!("{lower}/performance/run_1/{SUMMARY}"), captured(scenario, "performance", SUMMARY).as_bytes());
        put(format!("{lower}/accuracy/{DETAIL}"), accuracy.as_bytes());
        put(format!("{lower}/accuracy/{SUMMARY}"), captured(scenario, "accuracy", SUMMARY).as_bytes());
        put(format!("{lower}/accuracy/{ACCURACY_LOG}"), captured("Offline", "accuracy", ACCURACY_LOG).as_bytes());
        let figures = "Accuracy Results: {'FID_SCORE': '23.5', 'CLIP_SCORE': '31.75'}\n";
        put(format!("{lower}/accuracy/{ACCURACY}"), figures.as_bytes());
        for image in round.images().into_iter().flatten() {
            put(format!("{lower}/accuracy/images/{image}.png"), b"a picture");
        }
        put(format!("{lower}/accuracy/images/captions.txt"), b"1  a caption\n");
        if whole {
            for test in ["TEST01", "TEST04"] {
                put(format!("{lower}/{test}/performance/run_1/{DETAIL}"), performance.as_bytes());
                put(format!("{lower}/{test}/performance/run_1/{SUMMARY}"), b"a report\n");
                put(format!("{lower}/{test}/verify_performance.txt"), b"TEST PASS\n");
            }
            put(format!("{lower}/TEST01/verify_accuracy.txt"), b"Accuracy check pass\nTEST PASS\n");
            put(format!("{lower}/TEST01/accuracy/{ACCURACY_LOG}"), b"[\n]\n");
        }
    }
}

/// A submission's tree.
#[derive(Clone)]
pub struct Tree {
    pub round: Round,
    pub division: InferenceDivision,
    pub files: BTreeMap<String, Vec<u8>>,
    /// What is no file's content: folders, links, sizes.
    pub after: Vec<fn(&Path)>,
}

impl Tree {
    /// The tree that `write_submission` makes of runs.
    pub fn written(
        round: Round,
        division: InferenceDivision,
        system_type: &str,
        scenarios: &[&str],
        whole: bool,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let runs = folder.path().join("runs");
        runs_at(&runs, round, scenarios, whole);
        let conf = folder.path().join("mlperf.conf");
        fs::write(&conf, "*.*.min_duration = 600000\n").unwrap();
        let root = folder.path().join("tree");
        let measurements = Measurements {
            input_data_types: "bf16".to_owned(),
            retraining: "no".to_owned(),
            starting_weights_filename: "sd_xl_base_1.0.safetensors".to_owned(),
            weight_data_types: "bf16".to_owned(),
            weight_transformations: "rounded to bf16".to_owned(),
        };
        let written = write_submission(
            &root,
            &NewSubmission {
                round,
                division,
                submitter: "Team",
                system: &system(system_type),
                folder: "box",
                implementation: "calotype",
                runs: &runs,
                measurements: &measurements,
                sources: &[],
                mlperf_conf: Some(&conf),
                readme: "calotype mlperf inference sdxl",
            },
        )
        .unwrap();
        assert_eq!(written.scenarios.len(), scenarios.len());
        let files = crate::cases::trees::files_of(&root);
        let files = files.into_iter().map(|name| (name.clone(), fs::read(root.join(name)).unwrap())).collect();
        let mut tree = Self { round, division, files, after: Vec::new() };
        if division != InferenceDivision::Open {
            tree.put(&format!("{}/documentation/calibration.md", tree.top()), "Nothing was calibrated.\n");
        }
        tree
    }

    fn is_new(&self) -> bool {
        matches!(self.round, Round::V6_0 | Round::V6_1)
    }

    /// The submitter's folder.
    pub fn top(&self) -> String {
        format!("{}/Team", self.division)
    }

    pub fn system(&self) -> String {
        format!("{}/systems/box.json", self.top())
    }

    /// A file below a scenario's results.
    pub fn result(&self, scenario: &str, file: &str) -> String {
        format!("{}/results/box/{BENCHMARK}/{scenario}/{file}", self.top())
    }

    pub fn performance(&self, scenario: &str) -> String {
        self.result(scenario, &format!("performance/run_1/{DETAIL}"))
    }

    pub fn accuracy(&self, scenario: &str, file: &str) -> String {
        self.result(scenario, &format!("accuracy/{file}"))
    }

    /// A file beside a scenario's settings.
    pub fn setting(&self, scenario: &str, file: &str) -> String {
        let folder = if self.is_new() { "results" } else { "measurements" };
        format!("{}/{folder}/box/{BENCHMARK}/{scenario}/{file}", self.top())
    }

    pub fn implementation(&self, scenario: &str) -> String {
        match self.is_new() {
            true => self.setting(scenario, "measurements.json"),
            false => self.setting(scenario, &format!("box_calotype_{scenario}.json")),
        }
    }

    /// A file of an audit test.
    pub fn test(&self, scenario: &str, test: &str, file: &str) -> String {
        let folder = if self.is_new() { "results" } else { "compliance" };
        format!("{}/{folder}/box/{BENCHMARK}/{scenario}/{test}/{file}", self.top())
    }

    pub fn put(&mut self, name: &str, content: &str) {
        self.files.insert(name.to_owned(), content.as_bytes().to_vec());
    }

    /// Removes files by the beginning of their names.
    pub fn remove(&mut self, beginning: &str) {
        let before = self.files.len();
        self.files.retain(|name, _| !name.starts_with(beginning));
        assert!(self.files.len() < before, "there is no {beginning}");
    }

    pub fn edit(&mut self, name: &str, change: impl FnOnce(&str) -> String) {
        let content = self.files.get_mut(name).unwrap_or_else(|| panic!("there is no {name}"));
        let changed = change(std::str::from_utf8(content).unwrap());
        *content = changed.into_bytes();
    }

    /// Sets a field of a JSON file; `null` removes it.
    pub fn field(&mut self, name: &str, field: &str, value: serde_json::Value) {
        self.edit(name, |text| {
            let mut fields: serde_json::Map<_, _> = serde_json::from_str(text).unwrap();
            match value.is_null() {
                true => drop(fields.remove(field).unwrap()),
                false => drop(fields.insert(field.to_owned(), value)),
            }
            serde_json::Value::from(fields).to_string()
        });
    }

    /// Moves files to other beginnings of names.
    pub fn rename(&mut self, from: &str, to: &str) {
        let moved: Vec<_> = self.files.keys().filter(|name| name.starts_with(from)).cloned().collect();
        assert!(!moved.is_empty(), "there is no {from}");
        for name in moved {
            let content = self.files.remove(&name).unwrap();
            self.files.insert(name.replacen(from, to, 1), content);
        }
    }

    /// Writes the tree into a folder.
    pub fn write(&self, folder: &Path) {
        fs::create_dir_all(folder).unwrap();
        for (name, content) in &self.files {
            let path: PathBuf = folder.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        self.after.iter().for_each(|after| after(folder));
    }
}
