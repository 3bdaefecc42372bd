//! What is found out before a run.

use calotype_inference::{LoadSettings, Plan, Recipe, Wishes};
use calotype_loadgen::{Mode, Scenario};
use std::fs;
use std::path::Path;

const RECIPE: &str = "kind = 'mlperf_inference'\nmodel = 'sdxl'\nvariant = 'custom'\nwidth = 1024\nheight = 1024\nsteps = 20\nguidance = 8.0\n\
                      negative = 'normal quality, low quality, worst quality, low res, blurry, nsfw, nude'\n";

fn recipe(more: &str) -> Recipe {
    toml::from_str(&format!("{RECIPE}{more}")).unwrap()
}

fn plan(recipe: &Recipe, scenario: Scenario, mode: Mode, wishes: &Wishes<'_>) -> Plan {
    Plan::new((recipe, ""), (scenario, mode), wishes, Path::new("out")).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn what_is_easier_than_the_benchmark_is_said() {
    let of = |recipe: &Recipe, scenario, mode, load: LoadSettings| {
        let found = plan(recipe, scenario, mode, &Wishes { load, ..Wishes::default() }).unofficial;
        // Captions of one's own are said in any case.
        found.into_iter().filter(|text| !text.contains("captions")).collect::<Vec<_>>()
    };
    let own = recipe("[captions]\nmade_up = true\ncount = 3\n");
    let none = LoadSettings::default;
    for scenario in Scenario::ALL {
        assert_eq!(of(&own, *scenario, Mode::Performance, none()), Vec::<String>::new(), "{scenario}");
    }
    let longer =
        LoadSettings { min_duration_ms: Some(700_000), min_query_count: Some(6000), target_qps: Some(3.0), ..none() };
    assert!(of(&own, Scenario::Offline, Mode::Performance, longer).is_empty());
    let easy = LoadSettings {
        min_duration_ms: Some(1000),
        max_duration_ms: Some(2000),
        min_query_count: Some(10),
        max_query_count: Some(20),
        performance_sample_count: Some(3),
        samples_per_query: Some(2),
        target_latency_ms: Some(30_000.0),
        ..none()
    };
    let all = of(&own, Scenario::Server, Mode::Performance, easy.clone());
    for part in
        ["least duration of 1000 ms", "10 queries", "after 2000 ms", "after 20 queries", "3 samples", "latency of 30 s"]
    {
        assert!(all.iter().any(|text| text.contains(part)), "{part}: {all:?}");
    }
    assert_eq!(all.len(), 6, "{all:?}");
    let multi = of(&own, Scenario::MultiStream, Mode::Performance, easy.clone());
    assert!(multi.iter().any(|text| text.contains("2 samples a query")), "{multi:?}");
    // What LoadGen is asked for plays no part where every sample is drawn once.
    assert!(of(&own, Scenario::Offline, Mode::Accuracy, easy).is_empty());
    let trial =
        Recipe { width: 512, steps: 8, guidance: 5.0, negative: "blurry".to_owned(), tiled: true, ..own.clone() };
    let found = of(&trial, Scenario::Offline, Mode::Accuracy, none());
    assert_eq!(found.len(), 5, "{found:?}");
}

#[test]
fn a_file_wins_over_the_recipe_and_wishes_over_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let conf = folder.path().join("user.conf");
    fs::write(&conf, "*.Offline.min_query_count = 7\n*.Offline.target_qps = 2\n").unwrap();
    let own =
        recipe("[captions]\nmade_up = true\n[load]\nmin_query_count = 5\nmin_duration_ms = 0\nsamples_per_query = 4\n");
    let load = LoadSettings { target_qps: Some(0.5), ..LoadSettings::default() };
    let made =
        plan(&own, Scenario::Offline, Mode::Performance, &Wishes { user_conf: Some(&conf), load, audit_conf: None });
    let found = &made.effective;
    assert_eq!((found.min_query_count, found.target_qps, found.min_duration_ms), (7, 0.5, 0));
    assert_eq!(made.issued(), 7);
    // A stream's values are not written where they have no use.
    assert!(!made.conf.to_text().contains("samples_per_query"), "{}", made.conf.to_text());
    assert!(made.conf.to_text().ends_with("stable-diffusion-xl.Offline.target_qps = 0.5\n"), "{}", made.conf.to_text());
}

#[test]
fn a_search_for_the_peak_must_have_an_end() {
    let own = recipe("[captions]\nmade_up = true\n");
    let load = |target_qps, min_duration_ms| LoadSettings { target_qps, min_duration_ms, ..LoadSettings::default() };
    let peak = |scenario, load| {
        let wishes = Wishes { load, ..Wishes::default() };
        Plan::new((&own, ""), (scenario, Mode::FindPeak), &wishes, Path::new("out"))
            .map(drop)
            .map_err(|error| error.to_string())
    };
    assert_eq!(peak(Scenario::Server, load(Some(0.1), None)), Ok(()));
    assert_eq!(peak(Scenario::Server, load(Some(0.1), Some(20_000))), Ok(()));
    for (scenario, load, part) in [
        (
            Scenario::Server,
            load(Some(0.1), Some(19_999)),
            "may not end: give --time at least the latency that is allowed, 20 s",
        ),
        (Scenario::Server, load(None, None), "give it with --qps"),
        (Scenario::Offline, load(Some(0.1), None), "in the server scenario alone"),
    ] {
        let error = peak(scenario, load).unwrap_err();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn samples_come_from_lists() {
    let folder = tempfile::tempdir().unwrap();
    let tsv = folder.path().join("captions.tsv");
    fs::write(&tsv, "id\timage_id\tcaption\n1\t42\tA cat.\n2\t7\tTwo dogs.\n3\t9\tA boat.\n").unwrap();
    let path = tsv.display();
    let all =
        plan(&recipe(&format!("[captions]\npath = '{path}'\n")), Scenario::Offline, Mode::Accuracy, &Wishes::default());
    assert_eq!((all.samples.len(), all.samples.caption(1), all.samples.caption(3)), (3, Some("Two dogs."), None));
    assert!(
        all.unofficial.iter().any(|text| text.contains("not the published captions_source.tsv")),
        "{:?}",
        all.unofficial
    );
    let two = recipe(&format!("[captions]\npath = '{path}'\ncount = 2\n"));
    assert_eq!(plan(&two, Scenario::Offline, Mode::Accuracy, &Wishes::default()).issued(), 2);
    let five = recipe(&format!("[captions]\npath = '{path}'\ncount = 5\n"));
    let plan = |recipe: &Recipe| {
        Plan::new((recipe, ""), (Scenario::Offline, Mode::Accuracy), &Wishes::default(), Path::new("out")).map(drop)
    };
    let error = plan(&five).unwrap_err();
    assert!(error.is_usage() && error.to_string().contains("holds 3 captions"), "{error}");
    let error = plan(&recipe("")).unwrap_err().to_string();
    assert!(error.contains("there are no captions"), "{error}");
}
