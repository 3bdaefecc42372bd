//! Results of evaluations by samples seen, as files and settings of programs hold them, and targets in place of the rules'.

use crate::offline::Scores;
use crate::ruleset::{Benchmark, Metric};
use calotype_core::words::plain;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A value for each of the results that benchmarks measure.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PerMetric<T> {
    /// Of the Fréchet inception distance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fid: Option<T>,
    /// Of the CLIP score, a mean cosine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip: Option<T>,
    /// Of the validation loss.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_loss: Option<T>,
}

impl<T> PerMetric<T> {
    /// The value of a metric.
    pub fn of(&self, metric: Metric) -> Option<&T> {
        match metric {
            Metric::Fid => self.fid.as_ref(),
            Metric::Clip => self.clip.as_ref(),
            Metric::ValidationLoss => self.validation_loss.as_ref(),
        }
    }

    /// The first metric of a benchmark that has no value.
    pub fn lacks(&self, benchmark: Benchmark) -> Option<Metric> {
        benchmark.metrics().iter().copied().find(|metric| self.of(*metric).is_none())
    }
}

impl PerMetric<f64> {
    /// What no measurement gives, in words.
    pub fn impossible(&self) -> Option<String> {
        let fid = self.fid.filter(|fid| !(*fid >= 0.0 && fid.is_finite()));
        let clip = self.clip.filter(|clip| !(-1.0..=1.0).contains(clip));
        let loss = self.validation_loss.filter(|loss| !loss.is_finite());
        if let Some(loss) = loss {
            return Some(format!("a validation loss of {loss} is no result"));
        }
        let fid = fid.map(|fid| format!("an FID of {fid} is not possible, distances are 0 or more"));
        fid.or_else(|| {
            clip.map(|clip| format!("a CLIP score of {clip} is not possible, cosines are -1 to 1 (0.15, not 15)"))
        })
    }

    /// Whether results reach these targets, and the rules' where there is none: CLIP scores from the target on, everything else up
    /// to it. A result that is missing or NaN does not.
    pub fn reached(&self, benchmark: Benchmark, results: &[(Metric, f64)]) -> bool {
        benchmark.metrics().iter().all(|metric| {
            let result = results.iter().rev().find(|(found, _)| found == metric).map(|(_, value)| *value);
            result.is_some_and(|value| match (self.of(*metric), metric) {
                (None, _) => metric.reached(value),
                (Some(target), Metric::Clip) => value >= *target,
                (Some(target), _) => value <= *target,
            })
        })
    }
}

/// Results of one evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figure {
    /// Samples that the model had seen.
    pub samples: u64,
    /// Fréchet inception distance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fid: Option<f64>,
    /// A Fréchet distance of other features or weights than the published ones, in the place of the inception distance. It is no
    /// result of the benchmark, and good for trying out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fd: Option<f64>,
    /// CLIP score, a mean cosine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip: Option<f64>,
    /// Validation loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_loss: Option<f64>,
}

impl Figure {
    /// The results of a benchmark's metrics that are there.
    pub fn results(&self, benchmark: Benchmark) -> Vec<(Metric, f64)> {
        let results = self.per_metric();
        benchmark.metrics().iter().filter_map(|metric| Some((*metric, *results.of(*metric)?))).collect()
    }

    fn per_metric(&self) -> PerMetric<f64> {
        PerMetric { fid: self.fid.or(self.fd), clip: self.clip, validation_loss: self.validation_loss }
    }
}

/// Results of evaluations. A file of them has a JSON object on each line, as
/// `{"samples": 512000, "fid": 240.31, "clip": 0.0704}`.
///
/// ```
/// use calotype_mlperf::Figures;
/// let figures = Figures::parse("{\"samples\": 8, \"fid\": 3.5, \"clip\": 0.2}\n\n{\"samples\": 16, \"fid\": 2, \"clip\": 0.3}").unwrap();
/// assert_eq!(figures.at(15).map(|figure| figure.samples), Some(8));
/// assert!(Figures::parse("{\"samples\": 8, \"FID\": 3.5}").unwrap_err().contains("line 1"));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Figures(Vec<Figure>);

/// Why a file of figures cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FiguresError {
    /// The file system refuses, or it is no text.
    #[error("{}: cannot be read: {source}; check the path and the permissions", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// Its content is not as it has to be.
    #[error("{}: {problem}", file.display())]
    Content {
        /// The file.
        file: PathBuf,
        /// Where, what is wrong, and what to do.
        problem: String,
    },
}

impl Figures {
    /// Reads the lines of a file; empty ones are passed over.
    ///
    /// # Errors
    /// The line and what is wrong with it, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let read = |(index, line): (usize, &str)| {
            serde_json::from_str(line).map_err(|error| {
                // Where it is in the line says less than the line.
                let message = error.to_string();
                let message = message.split(" at line ").next().unwrap_or_default();
                let example = "{\"samples\": 512000, \"fid\": 240.31, \"clip\": 0.0704}";
                format!("line {}: {}; write an object on each line, such as {example}", index + 1, plain(message))
            })
        };
        lines.map(read).collect::<Result<_, _>>().map(Self)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`FiguresError`].
    pub fn read(file: &Path) -> Result<Self, FiguresError> {
        let text =
            calotype_core::read_text(file).map_err(|source| FiguresError::Io { file: file.to_owned(), source })?;
        Self::parse(&text).map_err(|problem| FiguresError::Content { file: file.to_owned(), problem })
    }

    /// Reads a file whose figures have all that a benchmark measures.
    ///
    /// # Errors
    /// [`FiguresError`].
    pub fn read_for(file: &Path, benchmark: Benchmark) -> Result<Self, FiguresError> {
        let figures = Self::read(file)?;
        match figures.check(benchmark) {
            Ok(()) => Ok(figures),
            Err(problem) => Err(FiguresError::Content { file: file.to_owned(), problem }),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Checks that there are some, by ascending samples, with all that a benchmark measures.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn check(&self, benchmark: Benchmark) -> Result<(), String> {
        if self.is_empty() {
            return Err("there are no figures; give one for each evaluation".to_owned());
        }
        if let Some(figure) = self.0.iter().find(|figure| figure.fid.is_some() && figure.fd.is_some()) {
            return Err(format!("the figure at {} samples has `fid` and `fd`; leave one out", figure.samples));
        }
        let lacking = self.0.iter().find_map(|figure| Some((figure.samples, figure.per_metric().lacks(benchmark)?)));
        if let Some((samples, metric)) = lacking {
            return Err(format!(
                "the figure at {samples} samples has no `{}`, which {benchmark} measures",
                metric.key()
            ));
        }
        let impossible = self.0.iter().find_map(|figure| Some((figure.samples, figure.per_metric().impossible()?)));
        if let Some((samples, problem)) = impossible {
            return Err(format!("the figure at {samples} samples: {problem}"));
        }
        match self.0.windows(2).find(|pair| pair[0].samples >= pair[1].samples) {
            None => Ok(()),
            Some(pair) => {
                let [first, second] = [pair[0].samples, pair[1].samples];
                Err(format!(
                    "the figure at {second} samples comes behind that at {first}; sort them, each sample count once"
                ))
            }
        }
    }

    /// Whether some distance is not the FID.
    pub fn are_unofficial(&self) -> bool {
        self.0.iter().any(|figure| figure.fd.is_some())
    }

    /// The last figure at or before some samples.
    pub fn at(&self, samples: u64) -> Option<&Figure> {
        let behind = self.0.partition_point(|figure| figure.samples <= samples);
        behind.checked_sub(1).map(|last| &self.0[last])
    }

    /// The results of all, as an evaluation after training takes them.
    pub fn scores(&self, benchmark: Benchmark) -> Vec<Scores> {
        let scores = |figure: &Figure| Scores { samples: figure.samples, results: figure.results(benchmark) };
        self.0.iter().map(scores).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SD: Benchmark = Benchmark::StableDiffusion;

    #[test]
    fn malformed_lines_are_named() {
        for (text, part) in [
            ("{\"samples\": 1, \"fid\": 1}\n{\"samples\": 2,", "line 2: "),
            ("\n\n[]", "line 3: "),
            ("{}", "the key `samples` is missing"),
            ("{\"samples\": -1}", "line 1: "),
            ("{\"samples\": 1.5}", "line 1: "),
            ("{\"samples\": 1, \"fid\": \"3\"}", "a number"),
            ("{\"samples\": 1, \"clip_score\": 3}", "clip_score"),
            ("{\"samples\": 1, \"fid\": NaN}", "line 1: "),
            ("{\"samples\": 1} {\"samples\": 2}", "line 1: "),
            ("samples,fid,clip", "write an object on each line"),
        ] {
            let error = Figures::parse(text).unwrap_err();
            assert!(error.contains(part) && error.contains("such as {\"samples\""), "{text}: {error}");
        }
    }

    #[test]
    fn figures_that_say_too_little_are_refused() {
        for (text, part) in [
            ("", "there are no figures"),
            ("{\"samples\": 8, \"fid\": 3}", "at 8 samples has no `clip`"),
            ("{\"samples\": 8, \"validation_loss\": 3}", "at 8 samples has no `fid`"),
            (
                "{\"samples\": 8, \"fid\": 3, \"clip\": 0}\n{\"samples\": 8, \"fid\": 3, \"clip\": 0}",
                "at 8 samples comes behind that at 8",
            ),
            ("{\"samples\": 8, \"fid\": 3, \"fd\": 3, \"clip\": 0}", "at 8 samples has `fid` and `fd`"),
            ("{\"samples\": 8, \"fd\": -80, \"clip\": 0.2}", "an FID of -80 is not possible"),
            ("{\"samples\": 8, \"fid\": -80, \"clip\": 0.2}", "an FID of -80 is not possible"),
            ("{\"samples\": 8, \"fid\": 80, \"clip\": 20}", "a CLIP score of 20 is not possible"),
        ] {
            let error = Figures::parse(text).unwrap().check(SD).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("figures.jsonl");
        assert!(Figures::read_for(&path, SD).unwrap_err().to_string().contains("figures.jsonl: cannot be read"));
        std::fs::write(&path, "{\"samples\": 8}").unwrap();
        assert!(Figures::read_for(&path, SD).unwrap_err().to_string().contains("figures.jsonl: the figure at 8"));
        std::fs::write(&path, "{\"samples\": 8, \"validation_loss\": 0.5}\r\n").unwrap();
        let scores = Figures::read_for(&path, Benchmark::Flux1).unwrap().scores(Benchmark::Flux1);
        assert_eq!(scores, [Scores { samples: 8, results: vec![(Metric::ValidationLoss, 0.5)] }]);
    }

    #[test]
    fn a_distance_that_is_not_the_fid_stands_in_its_place() {
        let figures = |text: &str| Figures::parse(text).unwrap();
        let other = figures("{\"samples\": 8, \"fd\": 3, \"clip\": 0.2}");
        assert!(other.check(SD).is_ok() && other.are_unofficial());
        assert_eq!(other.scores(SD)[0].results, [(Metric::Fid, 3.0), (Metric::Clip, 0.2)]);
        assert!(!figures("{\"samples\": 8, \"fid\": 3, \"clip\": 0.2}").are_unofficial());
    }

    #[test]
    fn the_last_figure_at_or_before_counts() {
        let figures = Figures::parse("{\"samples\": 8, \"fid\": 1}\n{\"samples\": 16, \"fid\": 2}").unwrap();
        let at = |samples| figures.at(samples).map(|figure| figure.samples);
        assert_eq!([0, 7, 8, 15, 16, 99].map(at), [None, None, Some(8), Some(8), Some(16), Some(16)]);
    }
}
