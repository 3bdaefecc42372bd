//! Logs as files, and the rules that all benchmarks share.

use super::edits::*;
use super::{Case, What, flux, log_case, log_of, stable_diffusion};
use calotype_mlperf::Ruleset;

pub fn logs(cases: &mut Vec<Case>) {
    use Ruleset::{V4_0, V4_1, V5_0, V5_1};
    let good = log_of(&stable_diffusion(2_560_000));
    let mut case = |name: &str, ruleset, log: String, says: &[&'static str]| log_case(cases, name, ruleset, log, says);
    case("good 4.0", V4_0, good.clone(), &[]);
    case("good 4.1", V4_1, good.clone(), &[]);
    case("good 5.0", V5_0, good.clone(), &[]);
    case("empty", V5_0, String::new(), &["log.txt: there are no log lines in it"]);
    case("other text only", V5_0, "STARTING\nENDING\n".to_owned(), &["there are no log lines"]);
    case("text around", V5_0, format!("STARTING\n0: {}RESULT", good.replace('\n', "\r\n0: ")), &[]);
    case("cut line", V5_0, inserted(&good, ":::MLLOG {\"namespace\": \"\", \"time"), &["line 2: ", "is not JSON"]);
    case("bare mark", V5_0, inserted(&good, ":::MLLOG "), &["line 2: nothing stands behind the mark"]);
    case("list for a line", V5_0, inserted(&good, ":::MLLOG [1]"), &["fatal: ", "line 2: `[1]` is not a JSON object"]);
    let no_metadata = ":::MLLOG {\"time_ms\": 1, \"key\": \"a\", \"value\": 1}";
    case("no metadata", V5_0, inserted(&good, no_metadata), &["fatal: ", "`metadata` is missing"]);
    let bad_time = ":::MLLOG {\"time_ms\": \"soon\", \"key\": \"a\", \"value\": 1, \"metadata\": {}}";
    case("time in words", V5_0, inserted(&good, bad_time), &["`time_ms` is \"soon\""]);
    case("no time", V5_0, inserted(&good, &bad_time.replace("\"soon\"", "null")), &["fatal: ", "`time_ms` is null"]);
    case("time as text", V5_0, inserted(&good, &bad_time.replace("soon", "12.5")), &[]);
    let number_key = ":::MLLOG {\"time_ms\": 1, \"key\": 3, \"value\": NaN, \"metadata\": 4}";
    case("unknown keys", V5_0, inserted(&good, number_key), &[]);

    for key in [
        "submission_division",
        "cache_clear",
        "init_start",
        "init_stop",
        "run_start",
        "run_stop",
        "eval_accuracy",
        "train_samples",
        "eval_samples",
        "submission_benchmark",
        "gradient_accumulation_steps",
    ] {
        case(&format!("without {key}"), V5_0, without(&good, key), &["is missing; "]);
    }
    for key in ["submission_org", "submission_platform", "submission_status"] {
        case(&format!("4.0 without {key}"), V4_0, without(&good, key), &["is missing; log"]);
        case(&format!("5.0 without {key}"), V5_0, without(&good, key), &[]);
    }
    case("4.1 without submission_status", V4_1, without(&good, "submission_status"), &[]);
    case("4.1 without submission_org", V4_1, without(&good, "submission_org"), &["`submission_org` is missing"]);
    case("5.1 without submission_org", V5_1, without(&log_of(&flux(8_388_608)), "submission_org"), &["is missing"]);
    let blocks = without(&without(&good, "block_start"), "block_stop");
    case("without blocks", V5_0, blocks.clone(), &["neither `block_start` nor `epoch_start` is there"]);
    let evaluations = without(&without(&good, "eval_start"), "eval_stop");
    case("without eval_start", V5_0, evaluations, &[]);
    let neither = without(&without(&blocks, "eval_start"), "eval_stop");
    case("without blocks and eval_start", V5_0, neither, &["neither `eval_start` nor `block_start`"]);
    let epochs = good.replace("\"block_st", "\"epoch_st");
    case("epochs by samples 5.0", V5_0, epochs.clone(), &[]);
    case("epochs by samples 4.1", V4_1, epochs.clone(), &["the metadata of `epoch_start` has no `epoch_num`"]);
    let numbered =
        with(&with(&epochs, "epoch_start", "samples_count", "epoch_num"), "epoch_stop", "samples_count", "epoch_num");
    case("epochs by number 4.0", V4_0, numbered, &[]);

    case("seed twice", V5_0, again(&good, "seed", str::to_owned), &[]);
    case("train_samples twice", V5_0, again(&good, "train_samples", str::to_owned), &["warning: ", "is there 2 times"]);
    let different = again(&good, "train_samples", |line| line.replace("6513144", "1"));
    case("train_samples two values", V5_0, different, &["2 times with different values: 6513144 in line"]);
    let second = again(&good, "submission_division", |line| line.replace("closed", "open"));
    case("two divisions", V5_0, second, &["`submission_division` is there 2 times with different values"]);
    case(
        "unknown division",
        V5_0,
        value(&good, "submission_division", "\"ajar\""),
        &["fatal: ", "neither closed nor open"],
    );
    case(
        "division is a number",
        V5_0,
        value(&good, "submission_division", "3"),
        &["fatal: ", "is 3, which is neither"],
    );
    case(
        "late division",
        V5_0,
        moved(&good, "submission_division", "run_start"),
        &["`init_stop` comes before `submission_division`"],
    );
    case(
        "unknown benchmark",
        V5_0,
        value(&good, "submission_benchmark", "\"sd\""),
        &["round 5.0.0 has no benchmark \"sd\"", "stable_diffusion"],
    );
    case(
        "another benchmark",
        V5_0,
        value(&good, "submission_benchmark", "\"bert\""),
        &["\"bert\" is not a benchmark whose rules are known here"],
    );
    case(
        "stable_diffusion 5.1",
        V5_1,
        good.clone(),
        &["round 5.1.0 has no benchmark", "by the rules of 4.0.0 or 4.1.0 or 5.0.0"],
    );
    case("flux1 5.0", V5_0, log_of(&flux(8_388_608)), &["by the rules of 5.1.0 or 6.0.0 or 6.1.0"]);
    case("empty org 4.0", V4_0, value(&good, "submission_org", "\"\""), &["`submission_org` is empty"]);
    case("empty platform 4.1", V4_1, value(&good, "submission_platform", "\"\""), &["`submission_platform` is empty"]);
    case("null platform 4.1", V4_1, value(&good, "submission_platform", "null"), &[]);
    case(
        "unknown status 4.0",
        V4_0,
        value(&good, "submission_status", "\"soon\""),
        &["the rules have cloud, onprem, preview, research"],
    );
    case("empty train_samples", V5_0, value(&good, "train_samples", "\"\""), &["`train_samples` is empty"]);

    case(
        "init_start late",
        V5_0,
        moved(&good, "init_start", "run_start"),
        &["`init_start` comes behind `init_stop`", "`init_stop` comes before any `init_start`"],
    );
    case(
        "run_start early",
        V5_0,
        moved(&good, "run_start", "init_stop"),
        &["`run_start` comes before any `init_stop`"],
    );
    case("run_stop early", V5_0, moved(&good, "run_stop", "run_start"), &["`run_stop` comes before any `run_start`"]);
    case(
        "blocks early",
        V5_0,
        moved(&good, "block_start", "run_start"),
        &["`block_start` comes before any `run_start`"],
    );
    let long = |minutes: f64| at(&good, "init_start", time_of(&good, "init_stop") - (minutes * 60_000.0) as i64);
    case("slow init", V5_0, long(29.99), &[]);
    case(
        "init takes too long",
        V5_0,
        long(30.0),
        &["minutes behind the first `init_start`, where fewer than 30 are allowed"],
    );
    case(
        "run_stop without status",
        V5_0,
        with(&good, "run_stop", "\"status\"", "\"state\""),
        &["the metadata of `run_stop` has no `status`"],
    );
    case(
        "aborted, targets met",
        V5_0,
        with(&good, "run_stop", "success", "aborted"),
        &["advice: ", "did not end as a success"],
    );
    case(
        "run_stop dated back",
        V5_0,
        with(&good, "run_stop", "\"time_ms\": 17000000", "\"time_ms\": 16000000"),
        &["advice: ", "`run_stop` is earlier than `run_start`"],
    );

    case(
        "block_start without counts",
        V5_0,
        with(&good, "block_start", "samples_count", "samples"),
        &["has no `samples_count` and no `epoch_count`"],
    );
    case(
        "block_start negative",
        V5_0,
        with(&good, "block_start", "\"samples_count\": ", "\"samples_count\": -1"),
        &["`samples_count` that is no number of at least 0"],
    );
    case(
        "block_start in words",
        V5_0,
        with(&good, "block_start", "\"samples_count\": 0", "\"samples_count\": \"0\""),
        &["`samples_count` that is no number of at least 0"],
    );
    case(
        "epoch_count alone",
        V5_0,
        with(&good, "block_start", "samples_count", "epoch_count"),
        &["`epoch_count`, but no `first_epoch_num`"],
    );
    case(
        "no epoch",
        V5_0,
        with(&good, "block_start", "\"samples_count\"", "\"first_epoch_num\": 1, \"epoch_count\""),
        &["`epoch_count` that is no number above 0"],
    );
    case(
        "block_start metadata",
        V5_0,
        again(&good, "block_start", |line| format!("{}3}}\n", &line[..line.find("{\"file").unwrap()])),
        &["is no object"],
    );
    for key in ["block_stop", "eval_start", "eval_stop"] {
        case(
            &format!("{key} without counts"),
            V5_0,
            with(&good, key, "samples_count", "samples"),
            &["the metadata of `"],
        );
    }
    case(
        "no accumulation",
        V5_0,
        value(&good, "gradient_accumulation_steps", "0"),
        &["where a number above 0 is needed"],
    );
    case(
        "accumulation as text",
        V5_0,
        value(&good, "gradient_accumulation_steps", "\"1\""),
        &["is \"1\", where a number"],
    );
    case("accumulation is true", V5_0, value(&good, "gradient_accumulation_steps", "true"), &[]);
    case("without seed", V5_0, without(&good, "seed"), &["advice: ", "no `seed` is logged"]);
    let mut bytes = good.clone().into_bytes();
    bytes.extend(b"caf\xe9 \xff\n");
    log_case(cases, "other bytes", V5_0, bytes, &[]);
    let strict = |name: &str, log: String, says: &[&'static str]| Case {
        name: format!("log/{name}"),
        ruleset: V5_0,
        strict: true,
        what: What::Log(log.into_bytes()),
        says: says.to_vec(),
    };
    cases.push(strict("strict good", good.clone(), &[]));
    cases.push(strict(
        "strict train_samples twice",
        again(&good, "train_samples", str::to_owned),
        &["always the same"],
    ));
}
