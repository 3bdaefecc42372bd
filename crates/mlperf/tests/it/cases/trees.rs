//! Submissions.

use super::edits::*;
use super::{Case, Run, What, flux, stable_diffusion, system, ten};
use calotype_mlperf::*;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

fn tree(logs: &[String], benchmark: &str, description: &str) -> BTreeMap<String, Vec<u8>> {
    let logs = logs.iter().enumerate();
    let mut files: BTreeMap<_, _> = logs
        .map(|(run, log)| (format!("results/box/{benchmark}/result_{run}.txt"), log.clone().into_bytes()))
        .collect();
    files.insert("systems/box.json".to_owned(), description.to_owned().into_bytes());
    files
}

/// The files that `write_package` makes of logs.
fn written(logs: &[String]) -> BTreeMap<String, Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let paths: Vec<_> = (0..logs.len()).map(|run| folder.path().join(format!("{run}.log"))).collect();
    paths.iter().zip(logs).for_each(|(path, log)| fs::write(path, log).unwrap());
    let root = folder.path().join("tree");
    let (system, benchmark) = (system(Division::Closed), Benchmark::StableDiffusion);
    let package = NewPackage { benchmark, system: &system, logs: &paths, implementation: ("calotype", &paths[..1]) };
    write_package(&root, &package).unwrap();
    files_of(&root).into_iter().map(|name| (name.clone(), fs::read(root.join(name)).unwrap())).collect()
}

/// Names of all files of a folder and those within, sorted.
pub fn files_of(root: &Path) -> Vec<String> {
    let mut files = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            match entry.is_dir() {
                true => folders.push(entry),
                false => files.push(entry.strip_prefix(root).unwrap().to_str().unwrap().to_owned()),
            }
        }
    }
    files.sort();
    files
}

pub fn trees(cases: &mut Vec<Case>) {
    power(cases);
    use Ruleset::{V4_0, V5_0, V5_1, V6_1};
    let mut push = |name: &str, ruleset, strict, files, bypass, says: &[&'static str]| {
        let (name, says) = (format!("tree/{name}"), says.to_vec());
        cases.push(Case { name, ruleset, strict, what: What::Tree(files, bypass), says });
    };
    let none = Bypass::default();
    let good = ten(&stable_diffusion(2_048_000));
    let fast = ten(&stable_diffusion(1_024_000));
    let closed = serde_json::to_string(&system(Division::Closed)).unwrap();
    let open = serde_json::to_string(&system(Division::Open)).unwrap();
    let sd = |logs: &[String]| tree(logs, "stable_diffusion", &closed);
    let described = |description: &str| tree(&good, "stable_diffusion", description);
    let changed = |which: &[usize], change: &dyn Fn(&str) -> String| {
        let mut logs = good.clone();
        which.iter().for_each(|&run| logs[run] = change(&logs[run]));
        sd(&logs)
    };
    let with_file = |name: &str, content: &str| {
        let mut files = sd(&good);
        files.insert(name.to_owned(), content.as_bytes().to_vec());
        files
    };
    push("good", V5_0, false, sd(&good), none, &[]);
    push("good 4.0", V4_0, false, sd(&ten(&stable_diffusion(2_560_000))), none, &[]);
    push("faster", V5_0, false, sd(&ten(&stable_diffusion(1_945_600))), none, &[]);
    push("good flux1", V5_1, false, tree(&ten(&flux(8_388_608)), "flux1", &closed), none, &[]);
    push(
        "good flux1 6.1",
        V6_1,
        false,
        tree(&ten(&Run { disclosed: true, ..flux(7_340_032) }), "flux1", &closed),
        none,
        &[],
    );
    push("written", V5_0, false, written(&good), none, &[]);
    push("nine runs", V5_0, false, sd(&good[..9]), none, &["there are 9 result files, where 10 are needed"]);
    push(
        "eleven runs",
        V5_0,
        false,
        sd(&[&good[..], &ten(&Run { seed: 0, ..stable_diffusion(2_560_000) })[..1]].concat()),
        none,
        &["there are 11 result files"],
    );
    push(
        "misnamed run",
        V5_0,
        false,
        {
            let mut files = sd(&good[..9]);
            files.insert("results/box/stable_diffusion/result9.txt".to_owned(), good[9].clone().into_bytes());
            files
        },
        none,
        &["there are 9 result files", "result9.txt: it is no result file"],
    );
    push(
        "another file",
        V5_0,
        false,
        with_file("results/box/stable_diffusion/notes.md", "x"),
        none,
        &["notes.md: it is no result file"],
    );
    let same_seed = |log: &str| value(log, "seed", "0");
    push(
        "seed twice",
        V5_0,
        false,
        changed(&[3], &same_seed),
        none,
        &["result_3.txt line", "the seed 0 of", "result_0.txt"],
    );
    push(
        "seed twice, elsewhere",
        V5_0,
        false,
        changed(&[3], &|log| with(&same_seed(log), "seed", "\"lineno\": ", "\"lineno\": 9")),
        none,
        &[],
    );
    push(
        "no seed",
        V5_0,
        false,
        changed(&[3], &|log| without(log, "seed")),
        none,
        &["error: ", "result_3.txt: no `seed` is logged"],
    );
    push(
        "two seeds",
        V5_0,
        false,
        changed(&[3], &|log| again(log, "seed", |line| line.replace("\"value\": 3", "\"value\": 99"))),
        none,
        &["2 seeds are logged"],
    );
    push(
        "seed twice in a run",
        V5_0,
        false,
        changed(&[3], &|log| again(log, "seed", str::to_owned)),
        none,
        &["the seed 3 of"],
    );
    push(
        "seed in words",
        V5_0,
        false,
        changed(&[3], &|log| value(log, "seed", "\"three\"")),
        none,
        &["the seed \"three\" is no whole number"],
    );
    push("seed as text", V5_0, false, changed(&[3], &|log| value(log, "seed", "\"3\"")), none, &[]);
    push(
        "seed without place",
        V5_0,
        false,
        changed(&[3], &|log| with(log, "seed", "\"lineno\"", "\"line\"")),
        none,
        &["no `file` or no `lineno`"],
    );
    push(
        "seed twice, bypassed",
        V5_0,
        false,
        changed(&[3], &same_seed),
        Bypass { seeds: true, rcp: false },
        &["warning: "],
    );
    let parameters = |place: &str, text: &str| {
        let mut files = changed(&[3], &same_seed);
        files.insert(format!("{place}/package_checker_params"), text.as_bytes().to_vec());
        files
    };
    push(
        "seed twice, bypass in the result",
        V5_0,
        false,
        parameters("results/box/stable_diffusion", "seed-checker-bypass"),
        none,
        &[],
    );
    push(
        "seed twice, bypass of the system",
        V5_0,
        false,
        parameters("results/box", "rcp-bypass\nseed-checker-bypass"),
        none,
        &[],
    );
    push(
        "seed twice, bypass with a line break",
        V5_0,
        false,
        parameters("results/box", "seed-checker-bypass\n"),
        none,
        &["the official checker does not see the option seed-checker-bypass"],
    );
    let broken = |log: &str| value(log, "opt_adamw_beta_1", "0.8");
    push(
        "one bad log",
        V5_0,
        false,
        changed(&[3], &broken),
        none,
        &["warning: ", "result_3.txt line", "one run breaks the rules, as one of ten may"],
    );
    push("two bad logs", V5_0, false, changed(&[3, 4], &broken), none, &["2 runs break the rules, where one may"]);
    push(
        "one log with a cut line",
        V5_0,
        false,
        changed(&[3], &|log| inserted(log, ":::MLLOG {\"time")),
        none,
        &["seeds are not looked for in a log with a damaged line"],
    );
    push(
        "one log that breaks off",
        V5_0,
        false,
        changed(&[3], &|log| inserted(log, ":::MLLOG []")),
        none,
        &["fatal: ", "result_3.txt line 2"],
    );
    let repeated = |log: &str| again(log, "train_samples", str::to_owned);
    push("repeated keys", V5_0, false, changed(&[3, 4], &repeated), none, &["warning: "]);
    push(
        "repeated keys, strict",
        V5_0,
        true,
        changed(&[3, 4], &repeated),
        none,
        &["error: ", "2 runs break the rules"],
    );
    push("one repeated key, strict", V5_0, true, changed(&[3], &repeated), none, &["one run breaks the rules"]);
    push("one aborted", V5_0, false, changed(&[3], &|log| log.replace("success", "aborted")), none, &[]);
    push(
        "two aborted",
        V5_0,
        false,
        changed(&[3, 4], &|log| log.replace("success", "aborted")),
        none,
        &["2 runs did not converge"],
    );
    push("too fast", V5_0, false, sd(&fast), none, &["are not believed"]);
    push(
        "too fast, bypassed",
        V5_0,
        false,
        sd(&fast),
        Bypass { rcp: true, seeds: false },
        &["warning: ", "are not believed"],
    );
    push("too fast, open", V5_0, false, tree(&fast, "stable_diffusion", &open), none, &[]);
    push(
        "no reference points",
        V5_0,
        false,
        sd(&ten(&Run { batch: 4096, ..stable_diffusion(4_608_000) })),
        none,
        &["no reference points up to batch size 4096"],
    );
    push(
        "no reference points, bypassed",
        V5_0,
        false,
        sd(&ten(&Run { batch: 4096, ..stable_diffusion(4_608_000) })),
        Bypass { rcp: true, seeds: false },
        &[],
    );
    push(
        "two batch sizes",
        V5_0,
        false,
        changed(&[3], &|log| value(log, "global_batch_size", "256")),
        Bypass { rcp: true, seeds: true },
        &["fatal: "],
    );
    push(
        "unknown benchmark",
        V5_0,
        false,
        tree(&good, "sd2", &closed),
        none,
        &["round 5.0.0 has no benchmark sd2; its results are passed over"],
    );
    push(
        "no results",
        V5_0,
        false,
        BTreeMap::from([("systems/box.json".to_owned(), closed.clone().into_bytes())]),
        none,
        &["results: cannot be read"],
    );
    push(
        "no systems",
        V5_0,
        false,
        {
            let mut files = sd(&good);
            files.remove("systems/box.json");
            files
        },
        none,
        &["fatal: ", "box.json: the system has results, but no usable description"],
    );
    push(
        "description without a field",
        V5_0,
        false,
        described(&closed.replace("\"cooling\"", "\"coolness\"")),
        none,
        &["it has no cooling"],
    );
    push(
        "description without division",
        V5_0,
        false,
        described(&closed.replace("\"division\"", "\"section\"")),
        none,
        &["fatal: ", "it has no division"],
    );
    push(
        "unknown availability",
        V5_0,
        false,
        described(&closed.replace("Available on-premise", "onprem")),
        none,
        &["`status` is \"onprem\"", "Available cloud"],
    );
    push(
        "number in the description",
        V5_0,
        false,
        described(&closed.replace("\"host_processor_core_count\":\"2\"", "\"host_processor_core_count\":2")),
        none,
        &["`host_processor_core_count` is 2, where the official checker only takes text"],
    );
    push(
        "harmless number in the description",
        V5_0,
        false,
        described(&closed.replace("\"number_of_nodes\":\"1\"", "\"number_of_nodes\":1")),
        none,
        &[],
    );
    push("damaged description", V5_0, false, described(&closed[..40]), none, &["box.json: it is not JSON"]);
    let other = tree(&ten(&flux(8_388_608)), "flux1", &closed);
    push(
        "benchmark of another round",
        V5_0,
        false,
        other,
        none,
        &["round 5.0.0 has no benchmark flux1; its results are passed over"],
    );
    let marked = format!("\u{feff}{closed}");
    push(
        "description with a mark",
        V5_0,
        false,
        described(&marked),
        none,
        &["it is not JSON", "without a byte-order mark"],
    );
    push(
        "description of nothing",
        V5_0,
        false,
        with_file("systems/other.json", "{}"),
        none,
        &["other.json: it has no submitter, division"],
    );
}

/// Measurements of power beside a good result.
fn power(cases: &mut Vec<Case>) {
    let closed = serde_json::to_string(&system(Division::Closed)).unwrap();
    let good = tree(&ten(&stable_diffusion(2_048_000)), "stable_diffusion", &closed);
    let mut case = |name: &str, remove: &[&str], add: &[&str], says: &[&'static str]| {
        let mut files = good.clone();
        let place = |file: &str| format!("results/box/stable_diffusion/power/{file}");
        for run in 0..10 {
            for file in ["node_0.txt", "node_1.txt", "sw_0.txt"] {
                files.insert(place(&format!("result_{run}/{file}")), Vec::new());
            }
        }
        remove.iter().for_each(|start| files.retain(|name, _| !name.starts_with(&place(start))));
        files.extend(add.iter().map(|file| (place(file), Vec::new())));
        let (name, says, what) = (format!("power/{name}"), says.to_vec(), What::Tree(files, Bypass::default()));
        cases.push(Case { name, ruleset: Ruleset::V5_0, strict: false, what, says });
    };
    case("good", &[], &[], &[]);
    case("one run without", &["result_3/"], &[], &["result_3: the run's power was not measured", "as one of ten may"]);
    case("two runs without", &["result_3/", "result_4/"], &[], &["2 runs break the rules"]);
    case("another file", &[], &["result_3/notes.txt"], &[]);
    case(
        "wrong numbers",
        &["result_3/node_0", "result_4/node_0"],
        &["result_3/node_2.txt", "result_4/node_7.csv"],
        &["are not numbered from 0 on: `node_2.txt`", "2 runs break"],
    );
    case(
        "repeated number",
        &["result_3/node_0", "result_4/node_0"],
        &["result_3/node_1.csv", "result_4/node_1.csv"],
        &["there are two files of the number of `node_1.csv`"],
    );
    case("no number beside a wrong one", &[], &["result_3/node_9.txt", "result_3/node_b.txt"], &["fatal: "]);
    case(
        "wrong number",
        &["result_3/sw_0"],
        &["result_3/sw_-1"],
        &["1 files of sw are not numbered from 0 on: `sw_-1`"],
    );
    case("no number", &[], &["result_3/node_b.txt"], &["fatal: ", "`node_b.txt` ends with no number"]);
    case("one more node", &[], &["result_3/node_2.txt"], &["a run has 3 nodes, where most have 2"]);
    case(
        "more nodes and switches",
        &[],
        &["result_3/node_2.txt", "result_4/sw_1.txt"],
        &["a run has 2 switches, where most have 1"],
    );
    case("one more in one run", &[], &["result_3/node_2.txt", "result_3/sw_1.txt"], &[]);
    case("taken for another run", &["result_0/"], &["result_1/node_2.txt"], &["a run has 3 nodes"]);
    case("of no run", &["result_"], &["result_x/node_0.txt"], &["fatal: ", "no run has measurements of nodes"]);
}

pub fn repositories(cases: &mut Vec<Case>) {
    let mut case = |name: &str, file: &str, says: &[&'static str]| {
        let files = BTreeMap::from([("systems/box.json".to_owned(), Vec::new()), (file.to_owned(), b"x".to_vec())]);
        let (name, what) = (format!("repository/{name}"), What::Repository(files));
        cases.push(Case { name, ruleset: Ruleset::V5_0, strict: false, what, says: says.to_vec() });
    };
    case("good", "results/box/a.txt", &[]);
    case("hidden file", "results/.a.txt", &[".a.txt: its name begins with a point"]);
    case("hidden folder", "results/.a/b.txt", &["results/.a: its name"]);
    case("blank", "results/a b.txt", &["a b.txt: its name begins with a point or holds a blank"]);
}
