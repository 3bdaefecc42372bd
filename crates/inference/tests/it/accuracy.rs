//! Accuracy logs judged with networks whose features are plain numbers of the pictures.

use calotype_core::durable::write_bytes;
use calotype_data::Control;
use calotype_data::image::{DecodeOptions, RgbImage};
use calotype_data::npz::FeatureStatistics;
use calotype_evaluate::{FeatureKey, Features, ImageRows, NetworkFingerprint, Result};
use calotype_inference::accuracy::{Accuracy, AccuracyError, Job, judge_with};
use calotype_mlperf::inference::accuracy_log::{Response, write};
use std::fs;
use std::path::{Path, PathBuf};

const SIDE: usize = 4;

/// Mean levels of the channels for a picture; lengths of the words of a caption.
struct Plain {
    key: FeatureKey,
    fingerprint: NetworkFingerprint,
}

impl Plain {
    fn boxed(network: &str, preparation: &str) -> Box<dyn Features> {
        let none = String::new;
        let fingerprint = NetworkFingerprint {
            network: "plain".to_owned(),
            weights: none(),
            official: false,
            resize: none(),
            rounding: none(),
            precision: "f32".to_owned(),
        };
        Box::new(Self { key: FeatureKey::new(network, preparation), fingerprint })
    }
}

impl Features for Plain {
    fn key(&self) -> &FeatureKey {
        &self.key
    }

    fn fingerprint(&self) -> &NetworkFingerprint {
        &self.fingerprint
    }

    fn width(&self) -> usize {
        3
    }

    fn images(&self, images: &[&RgbImage]) -> Result<ImageRows> {
        Ok(ImageRows { features: images.iter().flat_map(|image| levels(image.data())).collect(), logits: Vec::new() })
    }

    fn captions(&self, captions: &[&str]) -> Result<Vec<f32>> {
        Ok(captions.iter().flat_map(|caption| words(caption)).collect())
    }
}

fn levels(data: &[u8]) -> [f32; 3] {
    let mean = |channel: usize| {
        let levels = data.iter().skip(channel).step_by(3);
        levels.clone().map(|level| f32::from(*level)).sum::<f32>() / levels.count() as f32
    };
    [0, 1, 2].map(mean)
}

fn words(caption: &str) -> [f32; 3] {
    let mut lengths = caption.split(' ').map(|word| word.len() as f32);
    [0, 1, 2].map(|_| lengths.next().unwrap_or(1.0))
}

fn data(sample: u64, bytes: usize) -> Vec<u8> {
    (0..bytes as u64).map(|at| (sample * 37 + at * at % 11 * (sample + 1)) as u8).collect()
}

fn response(qsl_idx: u64) -> Response {
    Response { seq_id: 100 - qsl_idx, qsl_idx, data: data(qsl_idx, SIDE * SIDE * 3) }
}

fn captions(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{} cat {}", "a".repeat(number + 1), "on".repeat(number % 5 + 1))).collect()
}

/// A folder with a log of these responses and with statistics.
fn place(responses: Vec<Response>) -> (tempfile::TempDir, PathBuf, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let (log, statistics) = (folder.path().join("mlperf_log_accuracy.json"), folder.path().join("val2014.npz"));
    let mut bytes = Vec::new();
    write::<std::io::Error>(&mut bytes, &mut responses.into_iter().map(Ok)).unwrap();
    write_bytes(&log, &bytes).unwrap();
    let covariance = vec![4.0, 1.0, 0.0, 1.0, 3.0, 0.0, 0.0, 0.0, 2.0];
    FeatureStatistics { mean: vec![100.0, 110.0, 120.0], covariance }.write(&statistics).unwrap();
    (folder, log, statistics)
}

fn networks() -> Vec<Box<dyn Features>> {
    vec![Plain::boxed("inception", "pytorch-fid"), Plain::boxed("clip", "open_clip")]
}

fn judge(job: &Job<'_>) -> std::result::Result<Accuracy, AccuracyError> {
    judge_with(job, networks(), &mut Control::default())
}

#[test]
fn a_log_is_judged_once_for_each_sample() {
    let order = [9u64, 3, 7, 0, 1, 8, 2, 11, 5, 4, 19, 17, 6, 10, 12, 13, 14];
    let mut responses: Vec<Response> = order.iter().map(|sample| response(*sample)).collect();
    // Later responses of a sample are passed over, whatever they are.
    responses.insert(5, Response { data: vec![0; 48], ..response(3) });
    responses.push(Response { data: vec![1, 2], ..response(9) });
    let (folder, log, statistics) = place(responses);
    let (captions, out) = (captions(20), folder.path().join("judged"));
    let kept = [7, 3, 7, 18];
    let job = Job { log: &log, size: None, captions: &captions, statistics: &statistics, kept: &kept, out: &out };
    let found = judge(&job).unwrap();
    let cosine = |sample: &u64| {
        let (a, b) = (levels(&response(*sample).data), words(&captions[*sample as usize]));
        let dot = |a: [f32; 3], b: [f32; 3]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(b)).sum::<f64>();
        100.0 * dot(a, b) / (dot(a, a).sqrt() * dot(b, b).sqrt())
    };
    let clip = order.iter().map(cosine).sum::<f64>() / order.len() as f64;
    assert!((found.clip.value - clip).abs() < 1e-4, "{} {clip}", found.clip.value);
    assert_eq!((found.fid.count, found.clip.count, found.repeated, found.size), (17, 17, 2, (SIDE, SIDE)));
    assert_eq!((found.missing.as_slice(), found.captions), (&[18][..], 20));
    let notes = found.notes().join("\n");
    for part in [
        "4x4 pixels",
        "17 samples were judged (of 20 captions)",
        "not known to be the published",
        "samples 18:",
        "2 responses",
    ] {
        assert!(notes.contains(part), "{part}: {notes}");
    }
    // The reference's forms: print(f"Accuracy Results: {result_dict}"), json.dump(…, sort_keys=True, indent=4).
    let text = |name: &str| fs::read_to_string(out.join(name)).unwrap();
    let (fid, clip) = (found.fid.value, found.clip.value);
    assert_eq!(
        text("accuracy.txt"),
        format!("Accuracy Results: {{'FID_SCORE': '{fid:?}', 'CLIP_SCORE': '{clip:?}'}}\n")
    );
    let results = format!("{{\n    \"CLIP_SCORE\": \"{clip:?}\",\n    \"FID_SCORE\": \"{fid:?}\"\n}}");
    assert_eq!(text("coco-results.json"), results);
    let written = calotype_evaluate::figure::read(&out.join("figures.json")).unwrap();
    let written: Vec<_> = written.into_iter().map(|placed| placed.figure).collect();
    assert_eq!(written, [found.fid.clone(), found.clip.clone()]);
    let expected: String = kept.iter().map(|sample| format!("{sample}  {}\n", captions[*sample])).collect();
    assert_eq!(text("images/captions.txt"), expected);
    let mut files: Vec<_> = fs::read_dir(out.join("images")).unwrap().map(|file| file.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, ["3.png", "7.png", "captions.txt"]);
    let png = fs::read(out.join("images/3.png")).unwrap();
    let picture = RgbImage::decode_with("3", &png, &DecodeOptions::as_stored()).unwrap();
    assert_eq!(picture, RgbImage::new(SIDE, SIDE, response(3).data).unwrap());
}

#[test]
fn sizes_that_are_said_hold() {
    let responses = (0..3).map(response).collect();
    let (folder, log, statistics) = place(responses);
    let captions = captions(3);
    let out = folder.path().join("judged");
    let job = |size| Job { log: &log, size, captions: &captions, statistics: &statistics, kept: &[], out: &out };
    assert_eq!(judge(&job(Some((8, 2)))).unwrap().size, (8, 2));
    assert!(!out.join("images").exists());
    let error = judge(&job(Some((8, 3)))).unwrap_err().to_string();
    assert!(error.contains("sample 0: 48 bytes are no picture of 8x3 pixels"), "{error}");
}

#[test]
fn what_cannot_be_judged_is_named() {
    let (three, bytes) =
        ((0..3).map(response).collect::<Vec<_>>(), |bytes| Response { data: data(1, bytes), ..response(1) });
    let with = |other: Response| vec![response(0), other];
    let named = "mlperf_log_accuracy.json";
    for (responses, count, kept, problem) in [
        (Vec::new(), 3, &[][..], "no responses in it, as of a performance run"),
        (three.clone(), 2, &[], "sample 2: there are 2 captions"),
        (with(Response { qsl_idx: u64::MAX, ..response(1) }), 2, &[], "there are 2 captions"),
        (with(bytes(75)), 2, &[], "sample 1: 75 bytes are no picture of 4x4 pixels"),
        (vec![bytes(50)], 2, &[], "sample 1: 50 bytes are no square picture"),
        (vec![bytes(0)], 2, &[], "sample 1: 0 bytes are no square picture"),
        (three, 3, &[3][..], "--compliance-ids"),
    ] {
        let (folder, log, statistics) = place(responses);
        let captions = captions(count);
        let out = folder.path().join("judged");
        let job = Job { log: &log, size: None, captions: &captions, statistics: &statistics, kept, out: &out };
        let error = judge(&job).unwrap_err().to_string();
        assert!(error.contains(problem) && (error.contains(named) || !kept.is_empty()), "{problem}: {error}");
        assert!(!out.join("accuracy.txt").exists());
    }
    // One picture has no covariance.
    let (folder, log, statistics) = place(vec![response(0)]);
    let (captions, out) = (captions(1), folder.path().join("judged"));
    let job = |log, statistics| Job { log, size: None, captions: &captions, statistics, kept: &[], out: &out };
    assert!(judge(&job(&log, &statistics)).is_err());
    let nowhere = Path::new("nowhere.npz");
    assert!(judge(&job(&log, nowhere)).unwrap_err().to_string().contains("nowhere.npz"));
    assert!(judge(&job(nowhere, &statistics)).unwrap_err().to_string().contains("nowhere.npz"));
    assert!(judge(&job(folder.path(), &statistics)).is_err());
}

#[test]
fn a_stop_ends_the_work() {
    let (folder, log, statistics) = place((0..20).map(response).collect());
    let (captions, out) = (captions(20), folder.path().join("judged"));
    let job = Job { log: &log, size: None, captions: &captions, statistics: &statistics, kept: &[], out: &out };
    let mut reports = Vec::new();
    let mut control = Control::default().with_progress(|_, done, total| reports.push((done, total)));
    judge_with(&job, networks(), &mut control).unwrap();
    drop(control);
    assert_eq!(reports.last(), Some(&(20, 20)));
    assert!(reports[1..].iter().all(|(done, total)| done <= total && (19..=21).contains(total)), "{reports:?}");
    let stopped = judge_with(&job, networks(), &mut Control::default().with_stop(|| true)).unwrap_err();
    assert!(matches!(stopped, AccuracyError::Evaluate(error) if error.is_interrupted()));
}
