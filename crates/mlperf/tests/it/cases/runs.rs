//! Logs of a result beside the reference points.

use super::edits::*;
use super::{Case, Run, What, flux, log_of, stable_diffusion, ten};
use calotype_mlperf::*;

pub fn runs(cases: &mut Vec<Case>) {
    use RcpSet::{Full, Pruned};
    use Ruleset::{V4_0, V4_1, V5_0, V5_1, V6_0, V6_1};
    let mut case = |name: &str, ruleset, set, logs: Vec<String>, says: &[&'static str]| {
        let (name, says) = (format!("runs/{name}"), says.to_vec());
        cases.push(Case { name, ruleset, strict: false, what: What::Runs(logs, set), says });
    };
    let sd = |batch, samples| ten(&Run { batch, ..stable_diffusion(samples) });
    let fx = |batch, samples| ten(&Run { batch, ..flux(samples) });
    case("512 as slow as the reference", V5_0, Pruned, sd(512, 2_048_000), &["reference point interpolated"]);
    case("512 a little faster", V5_0, Pruned, sd(512, 1_945_600), &["multiplied by 1.0458"]);
    case(
        "512 too fast",
        V5_0,
        Pruned,
        sd(512, 1_024_000),
        &["the runs converge after 1024000 samples on average", "fewer than"],
    );
    case("512 all points", V5_0, Full, sd(512, 2_048_000), &["reference point found", "multiplied by 1.0278"]);
    case("320", V5_0, Pruned, sd(320, 1_843_200), &[]);
    case("320 all points", V5_0, Full, sd(320, 1_843_200), &["multiplied by 1.0188"]);
    case("384", V5_0, Full, sd(384, 2_049_024), &["found"]);
    case("128", V5_0, Pruned, sd(128, 1_843_200), &["smallest"]);
    case("128 too fast", V5_0, Pruned, sd(128, 1_024_000), &["at batch size 256"]);
    case("4096", V5_0, Pruned, sd(4096, 4_608_000), &["there are no reference points up to batch size 4096"]);
    case("2048", V4_0, Pruned, sd(2048, 4_096_000), &[]);
    case("4.0 384", V4_0, Full, sd(384, 2_561_280), &[]);
    case("4.0 256", V4_0, Pruned, sd(256, 2_560_000), &["smallest"]);
    case("4.1 256", V4_1, Pruned, sd(256, 2_048_000), &["found"]);
    case("4.1 256 faster", V4_1, Pruned, sd(256, 1_900_000), &["multiplied by 1.0779"]);
    case(
        "5.1 stable_diffusion",
        V5_1,
        Pruned,
        sd(512, 2_048_000),
        &["round 5.1.0 has no reference points of stable_diffusion"],
    );
    case("flux1 512", V5_1, Pruned, fx(512, 8_126_464), &["found"]);
    case("flux1 1024", V5_1, Pruned, fx(1024, 8_388_608), &[]);
    case("flux1 1024 6.1", V6_1, Pruned, fx(1024, 8_388_608), &["interpolated"]);
    case("flux1 2048 6.0", V6_0, Pruned, fx(2048, 10_485_760), &["found"]);
    case("flux1 too fast", V6_0, Pruned, fx(512, 6_553_600), &["are not believed"]);
    case("flux1 8192", V6_1, Pruned, fx(8192, 20_000_000), &["no reference points up to batch size 8192"]);
    case("flux1 512 5.0", V5_0, Pruned, fx(512, 8_126_464), &["round 5.0.0 has no reference points of flux1"]);

    let good = sd(512, 2_048_000);
    let changed = |which: &[usize], change: &dyn Fn(&str) -> String| {
        let mut logs = good.clone();
        which.iter().for_each(|&run| logs[run] = change(&logs[run]));
        logs
    };
    let abort = |log: &str| log.replace("success", "aborted");
    case("one aborted", V5_0, Pruned, changed(&[3], &abort), &[]);
    case("two aborted", V5_0, Pruned, changed(&[3, 4], &abort), &["2 runs did not converge"]);
    case("one without end", V5_0, Pruned, changed(&[3], &|log| without(log, "run_stop")), &[]);
    case(
        "two batch sizes",
        V5_0,
        Pruned,
        changed(&[3], &|log| value(log, "global_batch_size", "256")),
        &["result_3.txt: it is a run of stable_diffusion with batch size 256"],
    );
    case("two benchmarks", V5_0, Pruned, changed(&[3], &|_| log_of(&flux(8_126_464))), &["it is a run of flux1"]);
    case(
        "no batch size",
        V5_0,
        Pruned,
        good.iter().map(|log| without(log, "global_batch_size")).collect(),
        &["the logs have no global batch size"],
    );
    case(
        "no benchmark",
        V5_0,
        Pruned,
        changed(&[0], &|log| without(log, "submission_benchmark")),
        &["comes before `submission_benchmark`"],
    );
    case(
        "no status",
        V5_0,
        Pruned,
        changed(&[3], &|log| with(log, "run_stop", "\"status\"", "\"state\"")),
        &["`run_stop` has no `status`"],
    );
    case(
        "targets missed",
        V5_0,
        Pruned,
        changed(&[3], &|log| log.replace("77.91", "177.91")),
        &["no evaluation before `run_stop` meets the targets"],
    );
    case(
        "evaluations behind run_stop",
        V5_0,
        Pruned,
        changed(&[3], &|log| moved(log, "run_stop", "eval_start")),
        &["no evaluation before `run_stop`"],
    );
    case(
        "no CLIP",
        V5_0,
        Pruned,
        changed(&[3], &|log| log.replace("\"metric\": \"CLIP\"", "\"metric\": \"clip\"")),
        &["has no CLIP"],
    );
    case(
        "no metric",
        V5_0,
        Pruned,
        changed(&[3], &|log| with(log, "eval_accuracy", "\"metric\"", "\"name\"")),
        &["an evaluation has no `metric`"],
    );
    case(
        "no samples",
        V5_0,
        Pruned,
        changed(&[3], &|log| with(log, "eval_accuracy", "samples_count", "samples")),
        &["an evaluation has no `samples_count`"],
    );
    case(
        "damaged evaluation",
        V5_0,
        Pruned,
        changed(&[3], &|log| log.replacen("\"metric\": \"FID\"}}", "", 1)),
        &["result_3.txt line", "is not JSON"],
    );
    case("damaged elsewhere", V5_0, Pruned, changed(&[3], &|log| inserted(log, ":::MLLOG {\"time")), &[]);
    case("percent", V5_0, Pruned, changed(&[3], &|log| log.replace("\"value\": 0.17,", "\"value\": 17.0,")), &[]);
    case(
        "flux1 without evaluations",
        V5_1,
        Pruned,
        fx(512, 8_126_464).iter().map(|log| without(log, "eval_accuracy")).collect(),
        &["no evaluation before `run_stop` meets"],
    );
    case("none", V5_0, Pruned, Vec::new(), &["there are no result files"]);
    case("two", V5_0, Pruned, good[..2].to_vec(), &["2 runs leave none"]);
    case("three", V5_0, Pruned, good[..3].to_vec(), &[]);
}
