//! Rules of Flux.1.

use super::edits::*;
use super::{Case, Run, flux, log_case, log_of};
use calotype_mlperf::*;

pub fn logs(cases: &mut Vec<Case>) {
    use Ruleset::{V5_1, V6_0, V6_1};
    let run = flux(8_388_608);
    let disclosed = Run { disclosed: true, ..run.clone() };
    let (good, full) = (log_of(&run), log_of(&disclosed));
    let mut case = |name: &str, ruleset, log: String, says: &[&'static str]| {
        log_case(cases, &format!("flux1 {name}"), ruleset, log, says);
    };
    case("good 5.1", V5_1, good.clone(), &[]);
    case("good 6.0", V6_0, good.clone(), &[]);
    case("good 6.1", V6_1, full.clone(), &[]);
    case(
        "6.1 without disclosure",
        V6_1,
        good.clone(),
        &["`lowest_numerical_precision_in_linear` is missing", "`config_filename` is missing"],
    );
    for (key, bad, part) in [
        ("evaluation_frequency", "262145", "is 262145, where the rules have 262144.0"),
        ("opt_adamw_beta_2", "0.999", "where the rules have 0.95"),
        ("opt_adamw_weight_decay", "0.01", "where the rules have 0.1"),
        ("opt_gradient_clip_norm", "0.5", "where the rules have 1.0"),
        ("opt_name", "\"sgd\"", "where the rules have adamw"),
        ("eval_accuracy", "0.6", "no evaluation reaches a validation loss above 0 and up to 0.586; the lowest is 0.6"),
        ("eval_accuracy", "0.0", "the lowest is 0"),
        ("eval_accuracy", "NaN", "no evaluation reaches a validation loss"),
        ("eval_accuracy", "\"0.5\"", "`eval_accuracy` is \"0.5\", where a number is needed"),
    ] {
        case(&format!("{key} {bad}"), V5_1, value(&good, key, bad), &[part]);
    }
    case("opt_gradient_clip_norm true", V6_0, value(&good, "opt_gradient_clip_norm", "true"), &[]);
    for key in [
        "evaluation_frequency",
        "opt_gradient_clip_norm",
        "opt_adamw_beta_1",
        "opt_adamw_epsilon",
        "opt_base_learning_rate",
    ] {
        case(&format!("without {key}"), V6_0, without(&good, key), &["is missing; "]);
    }
    case(
        "evaluations by epoch",
        V5_1,
        with(&good, "eval_accuracy", "samples_count", "epoch_num"),
        &["the metadata of `eval_accuracy` has no `samples_count`"],
    );
    case("without evaluations", V5_1, without(&good, "eval_accuracy"), &["`eval_accuracy` is missing"]);
    let odd = log_of(&Run { batch: 1152, ..disclosed.clone() });
    case("6.1 whole batches", V6_1, odd.clone(), &[]);
    case("6.0 whole batches", V6_0, odd.clone(), &["is 262656, where the rules have 262144"]);
    case(
        "6.1 parts of batches",
        V6_1,
        value(&odd, "evaluation_frequency", "262144"),
        &["where batches of 1152 make it 262656"],
    );
    case(
        "6.1 early frequency",
        V6_1,
        moved(&full, "evaluation_frequency", "global_batch_size"),
        &["comes before any usable `global_batch_size`"],
    );
    case("6.1 no batch", V6_1, value(&full, "global_batch_size", "0"), &["is 0, where a number above 0"]);
    case("6.1 mxfp6", V6_1, value(&full, "lowest_numerical_precision_in_attn", "\"mxfp6\""), &[]);
    case(
        "6.0 mxfp6",
        V6_0,
        value(&full, "lowest_numerical_precision_in_attn", "\"mxfp6\""),
        &["is \"mxfp6\", where the rules have fp64"],
    );
    case(
        "6.1 unknown precision",
        V6_1,
        value(&full, "lowest_numerical_precision_in_comm", "\"bf16\""),
        &["is \"bf16\", where the rules have"],
    );
    case("6.0 half a part", V6_0, value(&full, "tensor_parallelism", "1.5"), &["is 1.5, where a whole number"]);
    case("6.0 no part", V6_0, value(&full, "tensor_parallelism", "0"), &[]);
    case("6.1 no part", V6_1, value(&full, "pipeline_parallelism", "0"), &["is 0, where a number of at least 1"]);
    case("6.1 parts in words", V6_1, value(&full, "expert_parallelism", "\"1\""), &["is \"1\", where a whole number"]);
    case(
        "6.1 context twice",
        V6_1,
        again(&full, "context_parallelism", |line| line.replace("\"value\": 1", "\"value\": 2")),
        &["2 times with different values"],
    );
    case("6.1 micro batch", V6_1, value(&full, "micro_batch_size", "8.0"), &[]);
    case("6.1 no configuration", V6_1, value(&full, "config_filename", "\"\""), &["`config_filename` is empty"]);
    let open = log_of(&Run { division: Division::Open, ..disclosed });
    case("open", V6_1, open.clone(), &[]);
    case(
        "open without loss",
        V6_1,
        without(&open, "averaged_validation_loss"),
        &["`averaged_validation_loss` is missing"],
    );
    case("open missed", V5_1, value(&open, "averaged_validation_loss", "0.7"), &["the lowest is 0.7"]);
}
