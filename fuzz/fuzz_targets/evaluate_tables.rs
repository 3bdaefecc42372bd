#![no_main]
//! Tables of evaluations that reports are compared with: figures, scores by picture, curves of others.

use calotype_evaluate::report::{Baseline, ReferenceCurve};
use calotype_fuzz::input_file;
use libfuzzer_sys::fuzz_target;

const FIGURES: &[u8] =
    br#"{"title": "", "facts": [], "recipe": "", "varied": "", "settings": [{"label": "1.5", "figures": []}]}"#;

fuzz_target!(|content: &[u8]| {
    let Some((first, content)) = content.split_first() else { return };
    let figures = input_file("figures.json", if first.is_multiple_of(2) { FIGURES } else { content });
    input_file("picture_scores.csv", content);
    let folder = figures.parent().expect("a file has a folder");
    if let Ok(Baseline { evaluation, .. }) = Baseline::read(folder) {
        let counts = [0, evaluation.captions.len()];
        assert!(evaluation.settings.iter().all(|setting| counts.contains(&setting.clip_scores.len())));
    }
    if let Ok(curve) = ReferenceCurve::read(&input_file("curve.csv", content)) {
        assert!(curve.points.iter().all(|(_, fid, score)| fid.is_finite() && score.is_finite()));
    }
});
