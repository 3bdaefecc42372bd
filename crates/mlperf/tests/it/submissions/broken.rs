//! The table.

use super::tree::{set, without};
use super::{Case, Tree};
use calotype_mlperf::inference::*;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

type Edit = fn(&mut Tree);

const ROUNDS: [Round; 2] = [Round::V5_1, Round::V6_1];
const SCENARIOS: [&str; 2] = ["Offline", "SingleStream"];

/// Changes a value of the Offline run's performance log.
fn performance(tree: &mut Tree, key: &str, value: &str) {
    let name = tree.performance("Offline");
    tree.edit(&name, |log| set(log, key, value));
}

/// Makes an error of a line.
fn error(log: &str) -> String {
    log.replacen("\"is_error\": false", "\"is_error\": true", 1)
}

fn cut(log: &str) -> String {
    format!("{log}:::MLLOG {{\"key\": \"cut\n")
}

fn described(tree: &mut Tree, field: &str, value: Value) {
    let name = tree.system();
    tree.field(&name, field, value);
}

fn implemented(tree: &mut Tree, field: &str, value: Value) {
    let name = tree.implementation("Offline");
    tree.field(&name, field, value);
}

/// Changes of short runs in the open division, and what our findings have to say where they refuse.
const SHORT: &[(&str, &str, Edit)] = &[
    ("good", "", |_| {}),
    ("no user.conf", "user.conf: it is missing", |tree| tree.remove(&tree.setting("Offline", "user.conf"))),
    ("empty README", "README.md: it is empty", |tree| tree.put(&tree.setting("Offline", "README.md"), "")),
    ("no implementation", "the description of the implementation is missing", |tree| {
        tree.remove(&tree.implementation("Offline"))
    }),
    ("empty transformations", "`weight_transformations` is \"\"", |tree| {
        implemented(tree, "weight_transformations", json!(""))
    }),
    ("no weight types", "weight_data_types", |tree| implemented(tree, "weight_data_types", Value::Null)),
    ("implementation cut", "it is not JSON", |tree| tree.put(&tree.implementation("Offline"), "{")),
    ("no sources", "there are no sources", |tree| {
        let folder = if tree.round == Round::V5_1 { "code" } else { "src" };
        tree.remove(&format!("{}/{folder}/", tree.top()));
    }),
    ("no description", "the description of the system is missing", |tree| {
        tree.remove(&tree.system());
        tree.put(&format!("{}/systems/README.md", tree.top()), "none\n");
    }),
    ("description cut", "it is not JSON", |tree| tree.put(&tree.system(), "{")),
    ("status in words", "`status` is `on sale`", |tree| described(tree, "status", json!("on sale"))),
    ("status a number", "where a text is needed", |tree| described(tree, "status", json!(1))),
    ("other system type", "`system_type` is \"phone\"", |tree| described(tree, "system_type", json!("phone"))),
    ("no cooling", "it has no cooling", |tree| described(tree, "cooling", Value::Null)),
    ("empty networking", "host_networking say nothing", |tree| described(tree, "host_networking", json!(""))),
    ("no accelerators as a number", "accelerators_per_node say nothing", |tree| {
        described(tree, "accelerators_per_node", json!(0))
    }),
    ("another submitter", "`submitter` is `Others`", |tree| described(tree, "submitter", json!("Others"))),
    ("submitter in capitals", "", |tree| described(tree, "submitter", json!("TEAM"))),
    ("another division", "`division` is `closed`", |tree| described(tree, "division", json!("closed"))),
    ("division in capitals", "`division` is `Open`", |tree| described(tree, "division", json!("Open"))),
    ("nodes in words", "where the checker's summary needs a whole number", |tree| {
        described(tree, "number_of_nodes", json!("one"))
    }),
    ("name a number", "where the checker's summary needs a text", |tree| described(tree, "system_name", json!(7))),
    ("network false", "it has no network_type", |tree| described(tree, "is_network", json!("false"))),
    ("network true", "it has no network_type", |tree| described(tree, "is_network", json!("true"))),
    ("network a truth value", "where a text is needed", |tree| described(tree, "is_network", json!(false))),
    ("no performance log", "mlperf_log_detail.txt", |tree| tree.remove(&tree.performance("Offline"))),
    ("no performance report", "mlperf_log_summary.txt is missing", |tree| {
        tree.remove(&tree.result("Offline", "performance/run_1/mlperf_log_summary.txt"));
    }),
    ("no performance", "performance/run_1", |tree| tree.remove(&tree.result("Offline", "performance/"))),
    ("no accuracy detail", "mlperf_log_detail.txt", |tree| tree.remove(&tree.accuracy("Offline", DETAIL))),
    ("no logs", "mlperf_log_detail.txt", |tree| {
        tree.remove(&tree.performance("Offline"));
        tree.remove(&tree.accuracy("Offline", DETAIL));
    }),
    ("no logs of SingleStream", "mlperf_log_detail.txt", |tree| {
        tree.remove(&tree.performance("SingleStream"));
        tree.remove(&tree.accuracy("SingleStream", DETAIL));
    }),
    ("no figures", "accuracy.txt: it is missing", |tree| tree.remove(&tree.accuracy("Offline", ACCURACY))),
    ("no answers", "mlperf_log_accuracy.json", |tree| tree.remove(&tree.accuracy("Offline", ACCURACY_LOG))),
    ("answers in full", "", |tree| tree.put(&tree.accuracy("Offline", ACCURACY_LOG), &"x".repeat(10_241))),
    ("no hash", "", |tree| {
        tree.put(&tree.accuracy("Offline", ACCURACY), "{'FID_SCORE': '23.5', 'CLIP_SCORE': '31.75'}\n")
    }),
    ("empty figures", "there is no CLIP_SCORE", |tree| tree.put(&tree.accuracy("Offline", ACCURACY), "\nhash=0a\n")),
    ("figure with two points", "is no number", |tree| {
        tree.put(&tree.accuracy("Offline", ACCURACY), "{'CLIP_SCORE': 3.1.7}\nhash=0a\n")
    }),
    ("figures outside", "", |tree| {
        tree.put(&tree.accuracy("Offline", ACCURACY), "{'FID_SCORE': '90', 'CLIP_SCORE': '15.5'}\nhash=0a\n");
    }),
    ("error in performance", "", |tree| tree.edit(&tree.performance("Offline"), error)),
    ("error in accuracy", "LoadGen met an error", |tree| tree.edit(&tree.accuracy("Offline", DETAIL), error)),
    ("performance cut", "is not JSON", |tree| tree.edit(&tree.performance("Offline"), cut)),
    ("accuracy cut", "is not JSON", |tree| tree.edit(&tree.accuracy("Offline", DETAIL), cut)),
    ("text before the log", "its first line is not one of LoadGen's", |tree| {
        tree.edit(&tree.performance("Offline"), |log| format!("started\n{log}"));
    }),
    ("another seed", "", |tree| performance(tree, "effective_qsl_rng_seed", "7")),
    ("invalid", "", |tree| performance(tree, "result_validity", "\"INVALID\"")),
    ("no result", "`result_samples_per_second` is missing", |tree| {
        tree.edit(&tree.performance("Offline"), |log| without(log, "result_samples_per_second"));
    }),
    ("result of 0", "a result of 0 counts as none", |tree| performance(tree, "result_samples_per_second", "0")),
    ("no scenario", "`effective_scenario` is missing", |tree| {
        tree.edit(&tree.performance("Offline"), |log| without(log, "effective_scenario"));
    }),
    ("no least duration", "`effective_min_duration_ms` is missing", |tree| {
        tree.edit(&tree.performance("Offline"), |log| without(log, "effective_min_duration_ms"));
    }),
    ("run of another scenario", "", |tree| {
        let server = super::captured("Server", "performance", DETAIL);
        tree.put(&tree.performance("Offline"), &server);
    }),
    ("inferred", "", |tree| {
        let single = super::captured("SingleStream", "performance", DETAIL);
        tree.put(&tree.performance("Offline"), &single);
    }),
    ("another file of performance", "notes.txt is too much", |tree| {
        tree.put(&tree.result("Offline", "performance/run_1/notes.txt"), "x")
    }),
    ("trace of performance", "", |tree| {
        tree.put(&tree.result("Offline", "performance/run_1/mlperf_log_trace.json"), "x")
    }),
    ("another file of accuracy", "coco-results.json is too much", |tree| {
        tree.put(&tree.accuracy("Offline", "coco-results.json"), "x")
    }),
    ("file in the root", "stands beside the folders", |tree| tree.put("notes.txt", "x")),
    ("page in the root", "", |tree| tree.put("README.md", "x")),
    ("file in the division", "stands beside the folders", |tree| tree.put("open/README.md", "x")),
    ("another folder", "", |tree| tree.put("drafts/a.txt", "x")),
    ("name with a blank", "its name holds a blank", |tree| {
        tree.put(&format!("{}/documentation/a b.md", tree.top()), "x")
    }),
    ("hidden file", "its name begins with a point", |tree| tree.put(&format!("{}/.gitignore", tree.top()), "x")),
    ("cache of Python", "it is a cache of Python", |tree| {
        tree.put(&format!("{}/documentation/__pycache__/a.pyc", tree.top()), "x")
    }),
    ("empty folder", "the folder is empty", |tree| {
        tree.after.push(|root| fs::create_dir_all(root.join("open/Team/documentation/empty")).unwrap());
    }),
    ("large file", "50 MiB are allowed", |tree| tree.after.push(large)),
    ("link to nowhere", "the link leads nowhere", |tree| tree.after.push(|root| link(root, "nowhere"))),
    ("link from its folder", "the link leads nowhere, seen from the tree's root", |tree| {
        tree.after.push(|root| link(root, "box.json"))
    }),
    ("no images", "", |tree| tree.remove(&tree.accuracy("Offline", "images/"))),
    ("unknown model", "`sdxl` is no benchmark", |tree| renamed(tree, "sdxl")),
    ("mapped model", "", |tree| {
        renamed(tree, "sdxl");
        tree.put(&format!("{}/model_mapping.json", tree.top()), "{\"sdxl\": \"stable-diffusion-xl\"}");
    }),
    ("mapping cut", "it is not JSON", |tree| tree.put(&format!("{}/model_mapping.json", tree.top()), "{")),
    ("system without results", "there are no results of this system", |tree| {
        tree.put(&format!("{}/systems/other.json", tree.top()), "{}")
    }),
    ("no results", "the submitter has none", |tree| tree.remove(&format!("{}/results/", tree.top()))),
    ("scenario in small letters", "", |tree| {
        tree.rename(&tree.result("Offline", ""), &tree.result("offline", ""));
        if tree.round == Round::V5_1 {
            tree.rename(&tree.setting("Offline", ""), &tree.setting("offline", ""));
        }
    }),
    ("early stopping", "", |tree| {
        tree.edit(&tree.performance("SingleStream"), |log| set(log, "early_stopping_met", "false"));
    }),
];

fn renamed(tree: &mut Tree, name: &str) {
    for folder in ["results", "measurements", "code", "src"] {
        let from = match folder {
            "results" | "measurements" => format!("{}/{folder}/box/{BENCHMARK}/", tree.top()),
            _ => format!("{}/{folder}/{BENCHMARK}/", tree.top()),
        };
        if tree.files.keys().any(|file| file.starts_with(&from)) {
            tree.rename(&from, &from.replace(BENCHMARK, name));
        }
    }
}

fn large(root: &Path) {
    fs::create_dir_all(root.join("open/Team/documentation")).unwrap();
    fs::File::create(root.join("open/Team/documentation/a.bin")).unwrap().set_len((50 << 20) + 1).unwrap();
}

fn link(root: &Path, target: &str) {
    #[cfg(unix)]
    std::os::unix::fs::symlink(target, root.join("open/Team/systems/link.txt")).unwrap();
    #[cfg(not(unix))]
    panic!("{} to {target}", root.display());
}

/// Changes of runs of full size in the closed division.
const CLOSED: &[(&str, &str, Edit)] = &[
    ("good", "", |_| {}),
    ("scenario missing", "SingleStream", |tree| {
        for name in
            [tree.result("SingleStream", ""), tree.setting("SingleStream", ""), tree.test("SingleStream", "TEST01", "")]
        {
            if tree.files.keys().any(|file| file.starts_with(&name)) {
                tree.remove(&name);
            }
        }
    }),
    ("scenario too much", "neither needed nor allowed", |tree| {
        let copied: Vec<_> = tree.files.iter().filter(|(name, _)| name.contains("/Offline/")).collect();
        let copied: Vec<_> = copied
            .into_iter()
            .map(|(name, content)| (name.replace("Offline", "MultiStream"), content.clone()))
            .collect();
        tree.files.extend(copied);
    }),
    ("few samples", "where 5000 and more is needed", |tree| {
        performance(tree, "effective_performance_sample_count", "4999")
    }),
    ("small query", "where 5000 and more is needed", |tree| performance(tree, "effective_samples_per_query", "50")),
    ("short", "where 600000 and more is needed", |tree| performance(tree, "effective_min_duration_ms", "1000")),
    ("another seed", "where round", |tree| performance(tree, "effective_schedule_rng_seed", "7")),
    ("seed a text", "where round", |tree| performance(tree, "effective_schedule_rng_seed", "\"7\"")),
    ("invalid", "LoadGen's verdict is \"INVALID\"", |tree| performance(tree, "result_validity", "\"INVALID\"")),
    ("errors counted", "LoadGen met 2 errors", |tree| performance(tree, "num_errors", "2")),
    ("error in performance", "LoadGen met an error", |tree| tree.edit(&tree.performance("Offline"), error)),
    ("early stopping", "early stopping does not hold", |tree| {
        tree.edit(&tree.performance("SingleStream"), |log| set(log, "early_stopping_met", "false"));
    }),
    ("part of the data set", "where the data set has 5000 samples", |tree| {
        let name = tree.accuracy("Offline", DETAIL);
        tree.edit(&name, |log| {
            set(&set(log, "qsl_reported_total_count", "50"), "effective_accuracy_sample_count", "50")
        });
    }),
    ("figures outside", "where 31.68631873 to 31.81331801 is needed", |tree| {
        tree.put(&tree.accuracy("Offline", ACCURACY), "{'FID_SCORE': '23.5', 'CLIP_SCORE': '31.9'}\nhash=0a\n");
    }),
    ("figures at the limits", "", |tree| {
        tree.put(
            &tree.accuracy("Offline", ACCURACY),
            "{'FID_SCORE': '23.95007626', 'CLIP_SCORE': '31.68631873'}\nhash=0a\n",
        );
    }),
    ("no hash", "there is no line hash=", |tree| {
        tree.put(&tree.accuracy("Offline", ACCURACY), "{'FID_SCORE': '23.5', 'CLIP_SCORE': '31.75'}\n");
    }),
    ("answers in full", "where 10240 are allowed", |tree| {
        tree.put(&tree.accuracy("Offline", ACCURACY_LOG), &"x".repeat(10_241))
    }),
    ("error in accuracy", "LoadGen met an error", |tree| tree.edit(&tree.accuracy("Offline", DETAIL), error)),
    ("no TEST01", "TEST01", |tree| tree.remove(&tree.test("Offline", "TEST01", ""))),
    ("no TEST04", "TEST04", |tree| tree.remove(&tree.test("Offline", "TEST04", ""))),
    ("slower test", "by its verdict, the speed of the test does not pass", |tree| {
        tree.put(&tree.test("Offline", "TEST04", "verify_performance.txt"), "TEST FAIL\n");
    }),
    ("no verdict on speed", "the verdict is missing", |tree| {
        tree.remove(&tree.test("Offline", "TEST04", "verify_performance.txt"))
    }),
    ("no verdict on figures", "the verdict is missing", |tree| {
        tree.remove(&tree.test("Offline", "TEST01", "verify_accuracy.txt"))
    }),
    ("other answers", "baseline_accuracy.txt is missing", |tree| {
        tree.put(&tree.test("Offline", "TEST01", "verify_accuracy.txt"), "TEST FAIL\n");
    }),
    ("other answers, alike figures", "", |tree| compared(tree, "{'FID_SCORE': '23.6', 'CLIP_SCORE': '31.7'}\n")),
    ("other answers, other figures", "may lie between", |tree| {
        compared(tree, "{'FID_SCORE': '29', 'CLIP_SCORE': '31.7'}\n")
    }),
    ("other answers, no figures", "there is no FID_SCORE to compare", |tree| {
        compared(tree, "{'CLIP_SCORE': '31.7'}\n")
    }),
    ("verdict within a line", "baseline_accuracy.txt is missing", |tree| {
        tree.put(&tree.test("Offline", "TEST01", "verify_accuracy.txt"), "so: TEST PASS\n")
    }),
    ("test of few samples", "where 5000 and more is needed", |tree| {
        tree.edit(&tree.test("Offline", "TEST04", &format!("performance/run_1/{DETAIL}")), |log| {
            set(log, "effective_performance_sample_count", "1")
        });
    }),
    ("log of TEST01 cut", "is not JSON", |tree| {
        tree.edit(&tree.test("Offline", "TEST01", &format!("performance/run_1/{DETAIL}")), cut)
    }),
    ("log of TEST04 cut", "is not JSON", |tree| {
        tree.edit(&tree.test("Offline", "TEST04", &format!("performance/run_1/{DETAIL}")), cut)
    }),
    ("no calibration", "calibration.md: it is missing", |tree| tree.remove(&format!("{}/documentation/", tree.top()))),
    ("over a network", "`is_network` does not suit", |tree| described(tree, "is_network", json!("true"))),
    ("for data centres", "neither needed nor allowed|only for edge systems", |tree| {
        described(tree, "system_type", json!("datacenter"))
    }),
    ("unknown system type", "`system_type` is \"phone\"", |tree| described(tree, "system_type", json!("phone"))),
    ("unknown model", "`sdxl` is no benchmark", |tree| renamed(tree, "sdxl")),
];

fn compared(tree: &mut Tree, test: &str) {
    tree.put(&tree.test("Offline", "TEST01", "verify_accuracy.txt"), "TEST FAIL\n");
    tree.put(
        &tree.test("Offline", "TEST01", "accuracy/baseline_accuracy.txt"),
        "{'FID_SCORE': '23.5', 'CLIP_SCORE': '31.75'}\n",
    );
    tree.put(&tree.test("Offline", "TEST01", "accuracy/compliance_accuracy.txt"), test);
}

/// The table of all cases.
pub fn cases() -> Vec<Case> {
    use InferenceDivision::{Closed, Open};
    let mut cases = Vec::new();
    let mut push = |name: String, round, short, tree: Tree, says| cases.push(Case { name, round, short, tree, says });
    for round in ROUNDS {
        let short = Tree::written(round, Open, "edge", &SCENARIOS, false);
        let closed = Tree::written(round, Closed, "edge", &SCENARIOS, true);
        for (kind, base, edits, is_short) in [("short", &short, SHORT, true), ("closed", &closed, CLOSED, false)] {
            for (name, says, edit) in edits {
                let mut tree = base.clone();
                edit(&mut tree);
                push(format!("{round}/{kind}/{name}"), round, is_short, tree, says);
            }
        }
        push(format!("{round}/open/short run"), round, false, short, "where 5000 and more is needed");
        let all = ["Offline", "Server", "SingleStream", "MultiStream"];
        push(
            format!("{round}/open/all scenarios"),
            round,
            false,
            Tree::written(round, Open, "datacenter,edge", &all, true),
            "",
        );
        let mut slow = Tree::written(round, Open, "datacenter", &["Offline", "Server"], true);
        let server = slow.performance("Server");
        slow.edit(&server, |log| set(log, "effective_target_latency_ns", "30000000000"));
        push(format!("{round}/open/slow server"), round, false, slow, "where 20000000000 and less is needed");
    }
    for round in [Round::V4_1, Round::V6_0] {
        push(format!("{round}/short/good"), round, true, Tree::written(round, Open, "edge", &["Offline"], false), "");
        push(format!("{round}/open/good"), round, false, Tree::written(round, Open, "edge", &["Offline"], true), "");
        let mut tree = Tree::written(round, Open, "edge", &["Offline"], true);
        tree.remove(&tree.accuracy("Offline", "images/"));
        push(format!("{round}/open/no images"), round, false, tree, "there is no folder images");
    }
    let mut tree = Tree::written(Round::V4_1, Open, "edge", &["Offline"], true);
    tree.put(&tree.accuracy("Offline", ACCURACY), "{'FID_SCORE': 23.5, 'CLIP_SCORE': 31.75}\nhash=0a\n");
    push("v4.1/open/figures without quotes".to_owned(), Round::V4_1, false, tree, "");
    let closed = Tree::written(Round::V4_1, Closed, "edge", &SCENARIOS, true);
    push("v4.1/closed/figures in quotes".to_owned(), Round::V4_1, false, closed, "CLIP_SCORE is in quotes");
    let mut tree = Tree::written(Round::V4_1, Open, "edge", &["Offline"], false);
    tree.remove(&tree.setting("Offline", "mlperf.conf"));
    push("v4.1/short/no mlperf.conf".to_owned(), Round::V4_1, true, tree, "mlperf.conf: it is missing");
    let mut tree = Tree::written(Round::V4_1, Open, "edge", &["Offline"], false);
    tree.remove(&tree.implementation("Offline"));
    push(
        "v4.1/short/no implementation".to_owned(),
        Round::V4_1,
        true,
        tree,
        "the description of the implementation is missing",
    );
    let mut tree = Tree::written(Round::V4_1, Open, "edge", &["Offline"], true);
    tree.edit(&tree.accuracy("Offline", DETAIL), error);
    push("v4.1/open/error in accuracy".to_owned(), Round::V4_1, false, tree, "");
    cases
}
