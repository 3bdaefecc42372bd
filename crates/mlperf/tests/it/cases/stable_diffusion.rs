//! Rules of Stable Diffusion.

use super::edits::*;
use super::{Case, Run, fid_and_clip, log_case, log_of, stable_diffusion};
use calotype_mlperf::*;

pub fn logs(cases: &mut Vec<Case>) {
    use Ruleset::{V4_0, V4_1, V5_0};
    let run = stable_diffusion(2_560_000);
    let good = log_of(&run);
    let evaluated = |evaluations: Vec<Scores>| log_of(&Run { evaluations, ..run.clone() });
    let mut case = |name: &str, ruleset, log: String, says: &[&'static str]| log_case(cases, name, ruleset, log, says);
    for (key, bad, part) in [
        ("global_batch_size", "-1", "is -1, where a number of at least 0"),
        ("global_batch_size", "\"512\"", "is \"512\", where a number"),
        ("opt_name", "\"adam\"", "is \"adam\", where the rules have adamw; the closed division fixes it"),
        ("opt_adamw_beta_1", "0.95", "is 0.95, where the rules have 0.9"),
        ("opt_adamw_beta_2", "0.99", "is 0.99, where the rules have 0.999"),
        ("opt_adamw_epsilon", "1e-06", "is 1e-6, where the rules have 1e-8"),
        ("opt_adamw_epsilon", "\"1e-08\"", "is \"1e-08\""),
        ("opt_adamw_weight_decay", "0", "is 0, where the rules have 0.01"),
        ("opt_base_learning_rate", "-0.1", "is -0.1, where a number of at least 0"),
        ("opt_base_learning_rate", "null", "is null, where a number"),
        ("opt_base_learning_rate", "NaN", "is NaN, where a number"),
        ("opt_learning_rate_warmup_steps", "[1000]", "is [1000], where a number"),
    ] {
        case(&format!("{key} {bad}"), V5_0, value(&good, key, bad), &[part]);
    }
    for key in [
        "global_batch_size",
        "opt_name",
        "opt_adamw_beta_1",
        "opt_adamw_beta_2",
        "opt_adamw_epsilon",
        "opt_adamw_weight_decay",
        "opt_base_learning_rate",
        "opt_learning_rate_warmup_steps",
    ] {
        case(&format!("without {key}"), V5_0, without(&good, key), &["is missing; "]);
    }
    case("batch twice", V5_0, again(&good, "global_batch_size", |line| line.replace("512", "1024")), &[]);
    for ruleset in [V4_0, V4_1, V5_0] {
        let real = evaluated(vec![fid_and_clip(512_000, 240.31, 0.0704), fid_and_clip(1_024_000, 160.47, 0.0955)]);
        case(
            &format!("not converged {ruleset}"),
            ruleset,
            real,
            &["the lowest FID is 160.47, at 1024000 samples, with CLIP score 0.0955"],
        );
    }
    // The reference's published convergence at batch 512.
    let published = [
        (512_000, 240.31, 0.0704),
        (1_024_000, 160.47, 0.0955),
        (1_536_000, 116.10, 0.1298),
        (2_048_000, 98.62, 0.1490),
        (2_560_000, 77.91, 0.1700),
    ];
    let published = published.map(|(samples, fid, clip)| fid_and_clip(samples, fid, clip)).to_vec();
    case("published convergence", V4_0, evaluated(published), &[]);
    case(
        "at different samples",
        V5_0,
        evaluated(vec![fid_and_clip(2_048_000, 85.0, 0.14), fid_and_clip(2_560_000, 95.0, 0.16)]),
        &["at the same sample count"],
    );
    case(
        "just met",
        V5_0,
        evaluated(vec![fid_and_clip(2_048_000, 95.0, 0.14), fid_and_clip(2_560_000, 90.0, 0.15)]),
        &[],
    );
    case(
        "percent",
        V5_0,
        evaluated(vec![fid_and_clip(2_048_000, 95.0, 14.0), fid_and_clip(2_560_000, 80.0, 15.5)]),
        &["CLIP scores are cosines here, not percent"],
    );
    case(
        "one evaluation",
        V5_0,
        evaluated(vec![fid_and_clip(2_560_000, 80.0, 0.2)]),
        &["there are 1 evaluations, where at least 2"],
    );
    case(
        "diverged",
        V5_0,
        evaluated(vec![fid_and_clip(2_048_000, f64::NAN, 0.2), fid_and_clip(2_560_000, f64::INFINITY, 0.2)]),
        &["no FID is a number"],
    );
    case(
        "negative FID",
        V5_0,
        evaluated(vec![fid_and_clip(2_048_000, 95.0, 0.2), fid_and_clip(2_560_000, -0.1, 0.2)]),
        &["the lowest FID is -0.1"],
    );
    let texts = with(&good, "eval_accuracy", "\"samples_count\": 2560000", "\"samples_count\": \"2560000\"");
    case("samples as text", V5_0, texts.clone(), &[]);
    let one_text = texts.replace("\"2560000\", \"metric\": \"CLIP\"", "2560000, \"metric\": \"CLIP\"");
    case("samples as text once", V5_0, one_text, &["fatal: ", "the evaluation at \"2560000\" samples has no CLIP"]);
    case(
        "samples as float",
        V5_0,
        good.replace(
            "\"samples_count\": 2560000, \"metric\": \"CLIP\"",
            "\"samples_count\": 2560000.0, \"metric\": \"CLIP\"",
        ),
        &[],
    );
    let only_fid = |fid| Scores { samples: 2_048_000, results: vec![(Metric::Fid, fid)] };
    case(
        "CLIP missing, FID good",
        V5_0,
        evaluated(vec![only_fid(80.0), fid_and_clip(2_560_000, 80.0, 0.2)]),
        &["fatal: ", "the evaluation at 2048000 samples has no CLIP as a number"],
    );
    case(
        "CLIP missing, FID bad",
        V5_0,
        evaluated(vec![only_fid(95.0), fid_and_clip(2_560_000, 80.0, 0.2)]),
        &["error: ", "the evaluation at 2048000 samples has no CLIP"],
    );
    let only_clip = Scores { samples: 2_048_000, results: vec![(Metric::Clip, 0.2)] };
    case(
        "FID missing",
        V5_0,
        evaluated(vec![only_clip, fid_and_clip(2_560_000, 80.0, 0.2)]),
        &["fatal: ", "has no FID"],
    );
    case(
        "FID as text",
        V5_0,
        good.replace("\"value\": 77.91", "\"value\": \"77.91\""),
        &["fatal: ", "the evaluation at 2560000 samples has no FID as a number"],
    );
    case(
        "CLIP as text, FID bad",
        V5_0,
        good.replace("\"value\": 0.149", "\"value\": \"0.149\""),
        &["advice: ", "the evaluation at 2048000 samples has no CLIP as a number"],
    );
    case(
        "metric without samples",
        V5_0,
        with(&good, "eval_accuracy", "samples_count", "epoch_num"),
        &["fatal: ", "`eval_accuracy` cannot be told by `metric` and `samples_count`"],
    );
    case("no metric", V5_0, with(&good, "eval_accuracy", "\"metric\"", "\"name\""), &["there are 0 evaluations"]);
    case(
        "samples in a list",
        V5_0,
        with(&good, "eval_accuracy", "\"samples_count\": 2560000", "\"samples_count\": [2560000]"),
        &["fatal: "],
    );
    case("corrected result", V5_0, again(&good, "eval_accuracy", |line| line.replace("98.62", "400")), &[]);
    case(
        "evaluations behind run_stop",
        V5_0,
        moved(&good, "run_stop", "eval_start"),
        &["advice: ", "an evaluation stands behind run_stop"],
    );

    let open = Run { division: Division::Open, ..run.clone() };
    let anything = vec![fid_and_clip(512_000, 400.0, 0.01), fid_and_clip(1_024_000, 300.0, 0.02)];
    let open_log = log_of(&Run { evaluations: anything, ..open.clone() });
    case("open", V5_0, open_log.clone(), &[]);
    case(
        "odd interval",
        V5_0,
        evaluated(vec![fid_and_clip(512_000, 200.0, 0.1), fid_and_clip(1_000_000, 80.0, 0.2)]),
        &["advice: ", "at 1000000 samples, which is no multiple of 512000"],
    );
    case("open without optimizer", V4_1, without(&without(&open_log, "opt_name"), "gradient_accumulation_steps"), &[]);
    let long =
        |minutes: f64| at(&open_log, "init_start", time_of(&open_log, "init_stop") - (minutes * 60_000.0) as i64);
    case("open, slow init", V5_0, long(239.99), &[]);
    case("open, init takes too long", V5_0, long(240.0), &["where fewer than 240 are allowed"]);
    let nothing = vec![fid_and_clip(512_000, -1.0, 0.1), fid_and_clip(1_024_000, 50.0, 1.5)];
    case("open, no results", V5_0, log_of(&Run { evaluations: nothing, ..open }), &["no evaluation reaches"]);
}
