//! LoadGen's configuration, as LoadGen 6.0.17 reads it.

use calotype_loadgen::{Effective, Scenario, UserConf};

fn conf(text: &str) -> UserConf {
    UserConf::parse(text).unwrap_or_else(|(line, problem)| panic!("line {line}: {problem}"))
}

/// mlperf.conf of 6.0.17, through a run without user.conf: the log's `effective_…` values.
#[test]
fn without_a_user_conf_the_benchmark_holds() {
    let of = |scenario| Effective::of(scenario, &UserConf::default());
    let offline = of(Scenario::Offline);
    assert_eq!(
        (offline.min_query_count, offline.min_duration_ms, offline.performance_sample_count),
        (5000, 600_000, 5000)
    );
    assert_eq!((offline.target_qps, offline.samples(Scenario::Offline)), (1.0, 5000));
    let server = of(Scenario::Server);
    assert_eq!((server.target_latency_ns, server.min_query_count), (20_000_000_000, 100));
    assert!((server.target_latency_percentile - 0.99).abs() < 1e-12);
    let single = of(Scenario::SingleStream);
    assert_eq!((single.samples_per_query, single.target_latency_ns), (1, 10_000_000));
    assert!((single.target_latency_percentile - 0.9).abs() < 1e-12);
    let multi = of(Scenario::MultiStream);
    assert_eq!(multi.target_latency_ns, 80_000_000);
    assert_eq!((multi.samples_per_query, multi.min_query_count, multi.samples(Scenario::MultiStream)), (8, 662, 5296));
}

/// Observed with mlcommons-loadgen 6.0.17: the number of samples of one query (66,000 = 1.1 x 600 s x 100; 135 = 1.1 x 1230 s x 0.1, cut).
#[test]
fn offline_samples_are_those_of_loadgen() {
    for (text, samples) in [
        ("*.Offline.target_qps = 100\n*.Offline.min_query_count = 50\n", 66_000),
        ("*.Offline.target_qps = 0.1\n*.Offline.min_duration = 1230000\n*.Offline.min_query_count = 50\n", 135),
        ("*.Offline.target_qps = 0.001\n*.Offline.min_duration = 0\n*.Offline.min_query_count = 50\n", 50),
        ("*.Offline.target_qps = 0.001\n*.Offline.min_duration = 0\n", 5000),
    ] {
        assert_eq!(Effective::of(Scenario::Offline, &conf(text)).samples(Scenario::Offline), samples, "{text}");
    }
}

/// Which line wins, as observed: the table of the user before LoadGen's own, an exact key before `*.Offline`, that before `model.*`, that
/// before `*.*`, and of equal keys the last.
#[test]
fn lines_win_as_in_loadgen() {
    let model = "stable-diffusion-xl";
    for (text, count) in [
        (format!("{model}.Offline.min_query_count = 50\n"), 50),
        ("*.Offline.min_query_count = 50\n".to_owned(), 50),
        (format!("{model}.*.min_query_count = 50\n"), 50),
        ("*.*.min_query_count = 50\n".to_owned(), 50),
        (format!("{model}.*.min_query_count = 9\n*.Offline.min_query_count = 7\n"), 7),
        (format!("*.Offline.min_query_count = 7\n{model}.Offline.min_query_count = 8\n"), 8),
        ("*.Offline.min_query_count = 7\n*.Offline.min_query_count = 6\n".to_owned(), 6),
        ("bert.Offline.min_query_count = 7\n".to_owned(), 5000),
        ("*.Server.min_query_count = 7\n".to_owned(), 5000),
        ("# a comment\n#*.Offline.min_query_count = 7\n\n".to_owned(), 5000),
    ] {
        assert_eq!(Effective::of(Scenario::Offline, &conf(&text)).min_query_count, count, "{text}");
    }
    let added = conf("*.Offline.min_query_count = 7\n").with(Scenario::Offline, "min_query_count", 50.0);
    assert_eq!(Effective::of(Scenario::Offline, &added).min_query_count, 50);
    assert_eq!(conf(&added.to_text()).to_text(), added.to_text());
    assert!(added.to_text().ends_with("stable-diffusion-xl.Offline.min_query_count = 50\n"));
}

/// What LoadGen passes over without a word, or takes for something else (observed), is an error here.
#[test]
fn what_loadgen_passes_over_is_told() {
    for (line, part) in [
        ("*.Offline.min_query_count = 7 # seven", "put comments on lines of their own"),
        ("*.Offline.min_query_count = 7 8", "put comments on lines of their own"),
        ("*.Offline.min_query_count=7", "without spaces around it"),
        ("*.Offline.min_query_count =7", "without spaces around it"),
        ("*.Offline.min_query_count 7", "is no `model.scenario.key = value`"),
        ("*.Offline.min_query_count", "is no `model.scenario.key = value`"),
        ("*.Offline.min_query_count = seven", "takes nothing of the whole file"),
        ("*.Offline.min_query_count = 7.9", "no whole number"),
        ("*.Offline.min_query_count = -7", "takes nothing of the whole file"),
        ("*.Offline.min_query_count = 010", "octal"),
        ("*.Offline.min_query_count = 0x10", "hexadecimal"),
        ("*.Offline.target_qps = nan", "no number"),
        ("*.Offline.nonsense = 1", "knows no key `nonsense`"),
        ("*.Offline.min_query_cuont = 1", "did you mean `min_query_count`?"),
        ("*.offline.min_query_count = 1", "no scenario `offline`"),
        ("Offline.min_query_count = 1", "is no key"),
        ("min_query_count = 1", "is no key"),
        ("*.*.qsl_rng_seed = 12345", "its own mlperf.conf alone"),
        ("*.*.schedule_rng_seed = 1", "its own mlperf.conf alone"),
        ("*.*.accuracy_log_rng_seed = 7", "--audit-conf"),
        ("*.*.mode = 1", "chosen on the command line"),
        ("= 1", "is no `model"),
        ("é.Offline.min_query_count = ٣", "no number"),
    ] {
        let (number, problem) = UserConf::parse(&format!("# first\n{line}\n")).expect_err(line);
        assert_eq!(number, 2, "{line}");
        assert!(problem.contains(part), "{line}: {problem}");
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("user.conf");
    let error = UserConf::read(&path).unwrap_err().to_string();
    assert!(error.contains("user.conf: cannot be read"), "{error}");
    std::fs::write(&path, "*.Offline.target_qps=1\n").unwrap();
    let error = UserConf::read(&path).unwrap_err().to_string();
    assert!(error.contains("user.conf line 1: LoadGen passes over"), "{error}");
}

#[cfg(not(feature = "official"))]
#[test]
fn without_loadgen_the_error_says_how_to_build_it() {
    use calotype_loadgen::{Library, Mode, Responder, Sample, Settings, System, run, version};
    use std::sync::Arc;

    struct None;
    impl System for None {
        fn name(&self) -> &str {
            "none"
        }
        fn issue(&self, _: &[Sample], _: &Arc<Responder>) {}
        fn flush(&self) {}
    }
    impl Library for None {
        fn name(&self) -> &str {
            "none"
        }
        fn total(&self) -> usize {
            0
        }
        fn performance(&self) -> usize {
            0
        }
    }
    let settings = Settings {
        scenario: Scenario::Offline,
        mode: Mode::Performance,
        user_conf: "user.conf".into(),
        audit_conf: Option::None,
        seeds: Option::None,
        out: ".".into(),
        trace: false,
        grace: std::time::Duration::ZERO,
    };
    let (system, library): (Arc<dyn System>, Arc<dyn Library>) = (Arc::new(None), Arc::new(None));
    let error = run(&settings, &system, &library).unwrap_err();
    assert!(error.is_usage() && error.to_string().contains("scripts/loadgen.sh"), "{error}");
    assert!(error.to_string().contains("--features loadgen") && version().is_none());
}
