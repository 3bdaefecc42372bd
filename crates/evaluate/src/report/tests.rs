//! Tests of the whole report and of its parts.

use super::compare::compare;
use super::*;
use crate::{FeatureKey, Fingerprint, NetworkFingerprint};
use calotype_data::image::RgbImage;
use calotype_metrics::report::Outcome;
use std::collections::BTreeMap;
use std::fs;

fn figure(metric: &str, value: f64, interval: Option<[f64; 2]>) -> Figure {
    let (network, text) = (if metric == "clip_score" { "clip" } else { "inception" }, String::new);
    Figure {
        metric: metric.into(),
        variant: "v".into(),
        value,
        deviation: None,
        interval,
        count: 40,
        fingerprint: Fingerprint {
            features: FeatureKey::new(network, "v"),
            network: NetworkFingerprint {
                network: text(),
                weights: "w".into(),
                official: metric != "fd",
                resize: text(),
                rounding: text(),
                precision: "f32".into(),
            },
            sums: "f64".into(),
            samples: text(),
            reference: text(),
            settings: BTreeMap::new(),
        },
    }
}

/// Forty captions in two settings; those of the word "two" score low.
fn evaluation(distance: f64, score: f64) -> Evaluation {
    let captions: Vec<String> =
        (0..40).map(|n| format!("{} \"cats\", {n}", if n % 4 == 0 { "two" } else { "some" })).collect();
    let setting = |label: &str, shift: f64| {
        let value = |n: usize| score + 0.002 * (n % 5) as f64 - if n.is_multiple_of(4) { 0.1 } else { 0.0 };
        let clip_scores: Vec<f32> = (0..40).map(|n| value(n) as f32).collect();
        let mean = clip_scores.iter().map(|score| f64::from(*score)).sum::<f64>() / 40.0;
        let distance = figure("fid", distance + shift, Some([distance + shift - 0.1, distance + shift + 0.1]));
        let figures = vec![distance, figure("clip_score", mean, None)];
        Setting { label: label.into(), samples_seen: None, figures, clip_scores }
    };
    Evaluation {
        title: "<model>".into(),
        facts: vec![("sampler".into(), "DDIM".into())],
        recipe: "steps = 50\n".into(),
        varied: "guidance scale".into(),
        settings: vec![setting("1.5", 3.0), setting("4", 0.0)],
        captions,
    }
}

/// Pictures of one colour; every seventh was not kept.
struct Plain;

impl Pictures for Plain {
    fn picture(&self, setting: usize, sample: usize) -> Result<Option<RgbImage>> {
        let picture = RgbImage::filled(300, 200, [sample as u8, 99, 60 * setting as u8])?;
        Ok((sample % 7 != 6).then_some(picture))
    }
}

const OPTIONS: ReportOptions<'static> = ReportOptions { baseline: None, reference: None, seed: 3, pictures: 5 };

fn names(paths: &[PathBuf]) -> Vec<String> {
    paths.iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
}

#[test]
fn all_files_are_written_and_the_same_every_time() {
    let folder = tempfile::tempdir().unwrap();
    let mut written = Vec::new();
    for name in ["a", "b"] {
        let out = folder.path().join(name);
        fs::create_dir(&out).unwrap();
        written.push(write(&evaluation(10.0, 0.3), &Plain, &OPTIONS, &out).unwrap());
    }
    let expected = [
        "fid_scores.csv",
        "clip_scores.csv",
        "picture_scores.csv",
        "figures.json",
        "fid_clip_plot.svg",
        "fid_clip_plot.png",
        "report.html",
    ];
    assert_eq!(names(&written[0]), expected);
    for (a, b) in written[0].iter().zip(&written[1]) {
        assert_eq!(fs::read(a).unwrap(), fs::read(b).unwrap(), "{}", a.display());
    }
    // NeMo's form.
    assert_eq!(fs::read_to_string(&written[0][0]).unwrap(), "cfg,fid\n1.5,13\n4,10\n");
    assert!(fs::read_to_string(&written[0][1]).unwrap().starts_with("cfg,clip_score\n1.5,0.2"));
}

#[test]
fn the_page_answers_and_shows() {
    let page =
        page::report(&evaluation(10.0, 0.3), &Plain, &OPTIONS, plots::all(&evaluation(10.0, 0.3), &OPTIONS).unwrap());
    let page = page.unwrap().to_html();
    for part in [
        "<h1>&lt;model&gt;</h1>",
        "no baseline was given",
        "guidance scale 4, the best",
        "FID (v)",
        "10.00",
        "<th scope=\"row\">two<small>in 10 captions</small>",
        "Lowest CLIP scores",
        "Highest CLIP scores",
        "two &quot;cats&quot;, 0",
        "The same captions by guidance scale",
        "steps = 50",
        "Fingerprint: CLIP score (v)",
    ] {
        assert!(page.contains(part), "{part}");
    }
    assert!(!page.contains("class=\"verdict"));
    for forbidden in ["<script", "<link", "href=", "src=\"http", "@import", "url("] {
        assert!(!page.contains(forbidden), "{forbidden}");
    }
    assert!(page.matches("<img").count() == page.matches("alt=\"d").count(), "an image has no description");
}

#[test]
fn tables_are_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut written = evaluation(10.0, 0.3);
    written.settings[1].clip_scores[7] = f32::NAN;
    tables::write(&written, folder.path()).unwrap();
    let read = Baseline::read(folder.path()).unwrap().evaluation;
    assert_eq!((&read.captions, &read.recipe, &read.facts), (&written.captions, &written.recipe, &written.facts));
    for (a, b) in read.settings.iter().zip(&written.settings) {
        assert_eq!((&a.label, &a.figures), (&b.label, &b.figures));
        assert_eq!(a.clip_scores.len(), b.clip_scores.len());
        assert!(a.clip_scores.iter().zip(&b.clip_scores).all(|(a, b)| a == b || a.is_nan() && b.is_nan()));
    }
}

#[test]
fn damaged_tables_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let said = |name: &str, content: &[u8]| {
        tables::write(&evaluation(10.0, 0.3), folder.path()).unwrap();
        fs::write(folder.path().join(name), content).unwrap();
        Baseline::read(folder.path()).err().unwrap().to_string()
    };
    for (name, content, part) in [
        ("figures.json", "", "figures.json: "),
        ("figures.json", "{}", "figures.json: "),
        ("figures.json", "[1", "give the folder of another evaluation"),
        ("figures.json", "{\"title\": 3}", "figures.json: "),
        ("picture_scores.csv", "", "no column sample"),
        ("picture_scores.csv", "sample,1.5\n0,0.3\n", "no column caption"),
        ("picture_scores.csv", "sample,caption,1.5\n1,a,0.3\n", "line 2: sample \"1\" where 0 comes next"),
        ("picture_scores.csv", "sample,caption,1.5\n0,a,x\n", "line 2: \"x\" is no number"),
        ("picture_scores.csv", "sample,caption,1.5\n0,a\n", "picture_scores.csv: "),
    ] {
        let said = said(name, content.as_bytes());
        assert!(said.contains(part) && said.contains(name), "{content}: {said}");
    }
    assert!(said("figures.json", b"\xff\xfe\x00").contains("figures.json"));
    let missing = Baseline::read(&folder.path().join("none")).err().unwrap().to_string();
    assert!(missing.contains("none/figures.json"), "{missing}");
}

#[test]
fn curves_of_others_are_read_in_both_forms() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("paper.csv");
    let of = |text: &str| {
        fs::write(&file, text).unwrap();
        ReferenceCurve::read(&file).map_err(|error| error.to_string())
    };
    let curve = of("cfg,fid,clip_score\n1.5,12.5,0.25\n\n3,9,0.3\n").unwrap();
    assert_eq!((curve.name.as_str(), curve.points.len(), &curve.points[0]), ("paper", 2, &("1.5".into(), 12.5, 0.25)));
    assert!(of("cfg,fid\n1,2\n").unwrap_err().contains("paper.csv: line 1: has no column clip_score, only cfg, fid"));
    assert!(of("cfg,fid,clip_score\n1,?,0.3\n").unwrap_err().contains("line 2: \"?\" is no number"));
    assert!(of("cfg,fid,clip_score\n1,2,nan\n").unwrap_err().contains("line 2: \"nan\" is no number"));
    assert!(of("cfg,fid,clip_score\n").unwrap_err().contains("no setting has both"));
    // Two tables, as NeMo's: 3 and 3.0 are the same.
    fs::write(folder.path().join("fid_scores.csv"), "cfg,fid\n1.5,12\n3.0,9\n").unwrap();
    fs::write(folder.path().join("clip_scores.csv"), "cfg,clip_score\n3,0.31\n").unwrap();
    assert_eq!(ReferenceCurve::read(folder.path()).unwrap().points, [("3.0".into(), 9.0, 0.31)]);
}

#[test]
fn no_damage_to_a_table_panics() {
    let folder = tempfile::tempdir().unwrap();
    tables::write(&evaluation(10.0, 0.3), folder.path()).unwrap();
    for name in ["figures.json", "picture_scores.csv", "fid_scores.csv", "clip_scores.csv"] {
        let path = folder.path().join(name);
        let whole = fs::read(&path).unwrap();
        for at in (0..whole.len()).step_by(whole.len() / 60 + 1) {
            for other in [b'"', b',', b'\n', b'}', b'9', 0xff, 0] {
                let mut damaged = whole.clone();
                damaged[at] = other;
                fs::write(&path, damaged).unwrap();
                if let Ok(Baseline { evaluation, .. }) = Baseline::read(folder.path()) {
                    let counts = [0, evaluation.captions.len()];
                    assert!(evaluation.settings.iter().all(|setting| counts.contains(&setting.clip_scores.len())));
                }
                if let Ok(curve) = ReferenceCurve::read(folder.path()) {
                    assert!(curve.points.iter().all(|(_, fid, score)| fid.is_finite() && score.is_finite()));
                }
            }
            fs::write(&path, &whole[..at]).unwrap();
            let _ = (Baseline::read(folder.path()), ReferenceCurve::read(folder.path()));
        }
        fs::write(&path, &whole).unwrap();
    }
}

#[test]
fn chance_is_told_from_change() {
    let compared = |distance: f64, score: f64| {
        let evaluation = evaluation(distance, score).with_intervals(1).unwrap();
        let baseline = self::evaluation(10.0, 0.3);
        let baseline =
            Baseline { evaluation: baseline, pictures: PictureFolder { root: PathBuf::new(), labels: Vec::new() } };
        compare(&evaluation, evaluation.best(), &baseline, 1).unwrap()
    };
    for (distance, score, outcome, words) in [
        (9.0, 0.31, Outcome::Better, "Better than it: FID 9.000 instead of 10.00 (\u{2212}1.00); CLIP score"),
        (9.0, 0.3, Outcome::Better, "no more than chance"),
        (11.0, 0.3, Outcome::Worse, "Worse than it: FID"),
        (9.0, 0.29, Outcome::Open, "Better in some and worse in other ways than it"),
        // Both intervals are 0.1 to each side, that of the difference 0.14.
        (9.9, 0.3, Outcome::Open, "No different from it by more than chance"),
        (9.85, 0.3, Outcome::Better, "Better than it"),
    ] {
        let verdict = compared(distance, score).verdict("it");
        assert_eq!(verdict.outcome, outcome, "{distance} {score}: {}", verdict.text);
        assert!(verdict.text.contains(words), "{}", verdict.text);
    }
    // Paired by caption, a difference that is the same everywhere has no spread.
    let found = compared(10.0, 0.3001);
    let change = found.changes.iter().find(|change| change.figure.metric == "clip_score").unwrap();
    assert_eq!(change.outcome, Outcome::Better);
}

#[test]
fn unlike_figures_are_not_compared() {
    let mut ours = evaluation(9.0, 0.3);
    ours.settings[1].figures[0].fingerprint.network.weights = "other".into();
    let baseline = Baseline {
        evaluation: evaluation(10.0, 0.3),
        pictures: PictureFolder { root: PathBuf::new(), labels: Vec::new() },
    };
    let found = compare(&ours, 1, &baseline, 0).unwrap();
    assert!(found.changes.iter().all(|change| change.figure.metric != "fid"));
    assert_eq!(found.unlike, ["FID (v) does not compare, it differs in weights"]);
    assert!(found.verdict("it").text.contains("differs in weights"));
}

#[test]
fn intervals_of_scores_follow_their_unit() {
    let mut evaluation = evaluation(10.0, 0.3);
    let mean = evaluation.settings[0].figures[1].value;
    evaluation.settings[0].figures.push(figure("clip_score", 100.0 * mean, None));
    evaluation.settings[0].figures.push(figure("clip_score", 7.0, None));
    let figures = evaluation.with_intervals(5).unwrap().settings.remove(0).figures;
    let [low, high] = figures[1].interval.unwrap();
    assert!(low < mean && mean < high);
    let hundredths = figures[2].interval.unwrap();
    assert!((hundredths[0] - 100.0 * low).abs() < 1e-9 && (hundredths[1] - 100.0 * high).abs() < 1e-9);
    assert_eq!(figures[3].interval, None);
}

#[test]
fn unofficial_features_are_never_called_fid() {
    let folder = tempfile::tempdir().unwrap();
    let mut evaluation = evaluation(10.0, 0.3);
    for setting in &mut evaluation.settings {
        setting.figures[0].metric = "fd".into();
    }
    let written = names(&write(&evaluation, &Plain, &OPTIONS, folder.path()).unwrap());
    assert!(written.contains(&"fd_scores.csv".to_owned()) && !written.contains(&"fid_scores.csv".to_owned()));
    for name in ["report.html", "fid_clip_plot.svg"] {
        let text = fs::read_to_string(folder.path().join(name)).unwrap();
        assert!(text.contains("Fréchet distance (v)") && !text.contains("FID"), "{name}");
    }
}

#[test]
fn checkpoints_are_drawn_over_training() {
    let folder = tempfile::tempdir().unwrap();
    let mut evaluation = evaluation(10.0, 0.3);
    evaluation.varied = "samples seen".into();
    for (setting, samples) in evaluation.settings.iter_mut().zip([512_000, 1_024_000]) {
        (setting.label, setting.samples_seen) = (samples.to_string(), Some(samples));
    }
    let written = names(&write(&evaluation, &Plain, &OPTIONS, folder.path()).unwrap());
    assert!(
        written.contains(&"convergence_fid.svg".to_owned()) && written.contains(&"convergence_clip.png".to_owned())
    );
    let svg = fs::read_to_string(folder.path().join("convergence_fid.svg")).unwrap();
    assert!(svg.contains("reference runs, batch 512") && svg.contains("target: at most 90"));
    // A distance that is not the FID has another name, and no reference.
    let mut other = evaluation.clone();
    other.settings.iter_mut().for_each(|setting| setting.figures[0].metric = "fd".into());
    let elsewhere = tempfile::tempdir().unwrap();
    let written = names(&write(&other, &Plain, &OPTIONS, elsewhere.path()).unwrap());
    assert!(written.contains(&"convergence_fd.svg".to_owned()) && !written.contains(&"convergence_fid.svg".to_owned()));
    // Runs that are far from the reference's length stand alone.
    evaluation.settings.iter_mut().for_each(|setting| setting.samples_seen = setting.samples_seen.map(|n| n / 1000));
    write(&evaluation, &Plain, &OPTIONS, folder.path()).unwrap();
    let svg = fs::read_to_string(folder.path().join("convergence_fid.svg")).unwrap();
    assert!(!svg.contains("reference") && !svg.contains("target"));
}

#[test]
fn runs_stand_over_what_is_near_to_them() {
    use calotype_mlperf::{Benchmark, Metric, Ruleset, Scores};
    use convergence::{Behind, TrainingRun, charts};
    let of = |batch| Behind::of(Benchmark::StableDiffusion, Some(Ruleset::V5_0), batch);
    // Batch, that of the reference runs, and whether there is a reference point.
    for (batch, runs, point) in [
        (4, None, false),
        (128, Some(512), false),
        (256, Some(512), true),
        (700, Some(512), true),
        (4096, Some(2048), false),
    ] {
        let behind = of(batch);
        assert_eq!((behind.runs, behind.caption().contains("Shaded")), (runs, point), "{batch}");
        assert_eq!(behind.is_nothing(), batch == 4);
    }
    let caption = of(512).caption();
    assert!(
        caption.contains("14 published reference runs of batch 512")
            && caption.contains("1\u{202f}904\u{202f}445 samples"),
        "{caption}"
    );
    let evaluations = vec![Scores { samples: 512_000, results: vec![(Metric::Fid, 240.3), (Metric::Clip, 0.07)] }];
    let run = TrainingRun { name: "ours".into(), evaluations };
    let charts = charts(&[run], &of(512));
    let titles: Vec<_> =
        charts.iter().map(|(_, chart)| (chart.title.as_str(), chart.log_y, chart.curves.len())).collect();
    assert_eq!(titles, [("FID over samples seen", true, 15), ("CLIP score over samples seen", false, 15)]);
    // The validation loss of Flux.1 has a reference point, but no published runs.
    let behind = Behind::of(Benchmark::Flux1, None, 1024);
    assert!(behind.runs.is_none() && behind.caption().starts_with("Shaded"));
}

#[test]
fn little_is_reported_too() {
    let folder = tempfile::tempdir().unwrap();
    let nothing = Evaluation::default();
    assert_eq!(names(&write(&nothing, &Plain, &OPTIONS, folder.path()).unwrap()), ["figures.json", "report.html"]);
    let one = Setting { label: "pictures".into(), figures: vec![figure("fid", 3.0, None)], ..Setting::default() };
    let one = Evaluation { settings: vec![one], ..Evaluation::default() };
    let written = names(&write(&one, &Plain, &OPTIONS, folder.path()).unwrap());
    assert_eq!(written, ["fid_scores.csv", "figures.json", "report.html"]);
}

#[test]
fn scores_without_captions_are_refused() {
    let mut evaluation = evaluation(10.0, 0.3);
    evaluation.captions.pop();
    let error = write(&evaluation, &Plain, &OPTIONS, Path::new("/nowhere")).unwrap_err();
    assert!(
        error.to_string().contains("setting 1.5 has CLIP scores of 40 pictures, but there are 39 captions"),
        "{error}"
    );
}

#[test]
fn words_are_told_by_more_than_chance() {
    let captions: Vec<String> = (0..60).map(|n| format!("A {} on Mars!", ["dog", "Two dogs", "cat"][n % 3])).collect();
    let values: Vec<f64> =
        (0..60).map(|n| 0.3 + 0.001 * (n % 7) as f64 - if n % 3 == 1 { 0.05 } else { 0.0 }).collect();
    let found = words::lowest(&captions, &values, 8);
    let told: Vec<_> = found.iter().map(|word| (word.word.as_str(), word.captions)).collect();
    assert_eq!(told, [("dogs", 20), ("two", 20)]);
    assert!((found[0].difference - -0.0333).abs() < 1e-3, "{found:?}");
    assert_eq!(words::lowest(&captions, &[f64::NAN; 60], 8), []);
    assert_eq!(words::lowest(&captions[..7], &values[..7], 8), []);
}

#[test]
fn numbers_are_short() {
    assert_eq!(
        [9.0, 12.345678, 0.31234567, 123456.0, 0.0, f64::NAN].map(digits),
        ["9.000", "12.35", "0.3123", "123456", "0", "–"]
    );
    assert_eq!([0.5, -0.0123, 0.0].map(signed), ["+0.500", "\u{2212}0.0123", "+0"]);
    assert_eq!(
        [7, 1234, 30_000, 2_560_000].map(count),
        ["7", "1\u{202f}234", "30\u{202f}000", "2\u{202f}560\u{202f}000"]
    );
}
