//! What of a run is not as the benchmark asks, in sentences: such a run is a trial, or one for the open division.

use crate::benchmark::{GUIDANCE, NEGATIVE, SAMPLES, SIDE, STEPS, Variant};
use crate::recipe::Recipe;
use calotype_loadgen::{Effective, Mode, Scenario, UserConf};

/// The settings that are not the benchmark's. What depends on the checkpoint, the captions and the latents is told by who reads them.
pub fn unofficial(recipe: &Recipe, scenario: Scenario, mode: Mode, effective: &Effective) -> Vec<String> {
    let mut found = Vec::new();
    let mut differs = |same: bool, text: String| {
        if !same {
            found.push(text);
        }
    };
    let Recipe { width, height, steps, guidance, negative, variant, random, model, .. } = recipe;
    let trial = model.is_none().then_some(random.as_ref()).flatten();
    differs(trial.is_none(), format!("the model has random weights ({})", trial.map_or("", |family| family.name())));
    differs(
        [*width, *height] == [SIDE; 2],
        format!("pictures have {width}x{height} pixels; the benchmark's {SIDE}x{SIDE}"),
    );
    differs(*steps == STEPS, format!("{steps} steps; the benchmark takes {STEPS}"));
    differs(*guidance == GUIDANCE, format!("a guidance of {guidance}; the benchmark's is {GUIDANCE}"));
    differs(negative == NEGATIVE, format!("the negative prompt is `{negative}`; the benchmark's is `{NEGATIVE}`"));
    differs(!recipe.tiled, "the autoencoder decodes in tiles, which changes pixels near their seams".to_owned());
    match variant {
        Variant::Full => {}
        Variant::Custom => differs(false, "captions of one's own; the benchmark has 5,000 of COCO".to_owned()),
        _ => differs(
            false,
            format!(
                "the variant {variant} takes {} of {SAMPLES} samples (Student Cluster Competition 2024: open division, short run)",
                variant.samples().unwrap_or_default()
            ),
        ),
    }
    if mode == Mode::FindPeak {
        differs(false, "a search for the peak is no result".to_owned());
    }
    if mode != Mode::Accuracy {
        found.extend(load(scenario, effective));
    }
    found
}

/// What LoadGen was asked for that is easier than what the benchmark asks.
fn load(scenario: Scenario, effective: &Effective) -> Vec<String> {
    let own = Effective::of(scenario, &UserConf::default());
    let mut found = Vec::new();
    let mut differs = |same: bool, text: String| {
        if !same {
            found.push(text);
        }
    };
    let Effective { min_duration_ms, max_duration_ms, min_query_count, max_query_count, .. } = *effective;
    differs(
        min_duration_ms >= own.min_duration_ms,
        format!("a least duration of {min_duration_ms} ms; the benchmark's is {} ms", own.min_duration_ms),
    );
    differs(
        min_query_count >= own.min_query_count,
        format!("a least number of {min_query_count} queries; the benchmark's is {}", own.min_query_count),
    );
    differs(
        max_duration_ms == 0,
        format!("the run ends after {max_duration_ms} ms at the latest; the benchmark sets no end"),
    );
    differs(max_query_count == 0, format!("the run ends after {max_query_count} queries; the benchmark sets no end"));
    let count = effective.performance_sample_count;
    differs(
        count >= own.performance_sample_count,
        format!("performance runs take {count} samples; the benchmark's take {}", own.performance_sample_count),
    );
    if scenario == Scenario::MultiStream {
        let count = effective.samples_per_query;
        differs(
            count == own.samples_per_query,
            format!("{count} samples a query; the benchmark's has {}", own.samples_per_query),
        );
    }
    if scenario == Scenario::Server {
        let seconds = |ns: u64| ns as f64 / 1e9;
        differs(
            effective.target_latency_ns <= own.target_latency_ns,
            format!(
                "a latency of {} s is allowed; the benchmark allows {} s",
                seconds(effective.target_latency_ns),
                seconds(own.target_latency_ns)
            ),
        );
    }
    if scenario != Scenario::Offline {
        let percent = |share: f64| (1e4 * share).round() / 100.0;
        let (ours, theirs) = (percent(effective.target_latency_percentile), percent(own.target_latency_percentile));
        differs(ours == theirs, format!("the percentile {ours} of the latency counts; the benchmark's is {theirs}"));
    }
    found
}
