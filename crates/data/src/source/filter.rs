//! Samples of a source by size and by figures of their metadata: `data.filter` of a training recipe.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use calotype_core::decode_text;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::folder::IMAGE_EXTENSIONS;
use super::{Member, Removed, Source};
use crate::image::dimensions;
use crate::sample::{HeldSample, SampleRef};
use crate::{Error, Result};

/// Names of width and height in the metadata that stands beside images, best first: as img2dataset found the image, as LAION's
/// tables say, and as the image was written.
const SIZES: [[&str; 2]; 3] = [["original_width", "original_height"], ["WIDTH", "HEIGHT"], ["width", "height"]];

/// The part that holds a sample's metadata.
const METADATA: &str = "json";

/// Which samples of a source are taken.
///
/// The size of a sample's image is what its metadata says (part `json`, or a part by the figure's name, as columns of MDS are):
/// `original_width` and `original_height`, else `WIDTH` and `HEIGHT`, else `width` and `height`; without these it is that of the
/// image itself. A sample whose size or figure is asked for and not known is left out. What is left out is counted by reason.
///
/// NeMo's stages filter by size (`filterings.resolution`, method `larger`), Mosaic's datasets by size and by figures such as
/// `aesthetic_score`, `punsafe` and `pwatermark`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SampleFilter {
    /// Smallest width and smallest height, in pixels.
    pub min_side: u64,
    /// Smallest width times height, in pixels.
    pub min_area: u64,
    /// Smallest values of figures, by their names.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub at_least: BTreeMap<String, f64>,
    /// Largest values of figures, by their names.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub at_most: BTreeMap<String, f64>,
}

/// What a filter says of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Taken,
    TooSmall,
    SizeUnknown,
    Outside,
    FigureUnknown,
}

impl Verdict {
    /// Why the sample is left out.
    fn reason(self) -> Option<&'static str> {
        match self {
            Verdict::Taken => None,
            Verdict::TooSmall => Some("smaller than data.filter asks for"),
            Verdict::SizeUnknown => Some("of a size that is not known, which data.filter asks for"),
            Verdict::Outside => Some("with figures outside of what data.filter asks for"),
            Verdict::FigureUnknown => Some("without the figures that data.filter asks for"),
        }
    }
}

impl SampleFilter {
    /// Checks what the types cannot: gives the name of the key at fault, and the problem.
    ///
    /// # Errors
    /// A limit that is not a number.
    pub fn validate(&self) -> std::result::Result<(), (&'static str, String)> {
        for (key, limits) in [("at_least", &self.at_least), ("at_most", &self.at_most)] {
            if let Some((figure, limit)) = limits.iter().find(|(_, limit)| limit.is_nan()) {
                return Err((key, format!("the limit of `{figure}` is {limit}; it takes a number")));
            }
        }
        Ok(())
    }

    /// Why a sample is left out; none if it is taken.
    pub fn reason(&self, sample: SampleRef<'_>) -> Option<&'static str> {
        self.judge(sample).reason()
    }

    fn judge(&self, sample: SampleRef<'_>) -> Verdict {
        let facts = Facts::of(sample);
        if self.min_side > 0 || self.min_area > 0 {
            let Some([width, height]) = facts.size() else { return Verdict::SizeUnknown };
            if width.min(height) < self.min_side || width.saturating_mul(height) < self.min_area {
                return Verdict::TooSmall;
            }
        }
        let mut verdict = Verdict::Taken;
        let limits = self.at_least.iter().map(|(name, limit)| (name, *limit, true));
        for (name, limit, least) in limits.chain(self.at_most.iter().map(|(name, limit)| (name, *limit, false))) {
            match facts.figure(name) {
                None => return Verdict::FigureUnknown,
                Some(figure) if (least && figure < limit) || (!least && figure > limit) => verdict = Verdict::Outside,
                Some(_) => {}
            }
        }
        verdict
    }
}

/// What a sample says of itself.
struct Facts<'a> {
    sample: SampleRef<'a>,
    metadata: Option<Map<String, Value>>,
}

impl<'a> Facts<'a> {
    fn of(sample: SampleRef<'a>) -> Self {
        let part = sample.parts().find(|(name, _)| *name == METADATA);
        let text = part.and_then(|(_, bytes)| decode_text(bytes).ok());
        Facts { sample, metadata: text.and_then(|text| serde_json::from_str(&text).ok()) }
    }

    /// A number by name, also where metadata holds it as text.
    fn figure(&self, name: &str) -> Option<f64> {
        let held = match self.metadata.as_ref().and_then(|metadata| metadata.get(name)) {
            Some(Value::Number(number)) => number.as_f64(),
            Some(Value::String(text)) => text.trim().parse().ok(),
            _ => None,
        };
        held.or_else(|| self.part(name)).filter(|figure| !figure.is_nan())
    }

    fn part(&self, name: &str) -> Option<f64> {
        let (_, bytes) = self.sample.parts().find(|(part, _)| *part == name)?;
        let text: Cow<'_, str> = decode_text(bytes).ok()?;
        text.trim().parse().ok()
    }

    /// Width and height of the image in pixels.
    fn size(&self) -> Option<[u64; 2]> {
        let told = SIZES.into_iter().find_map(|names| {
            let [width, height] = names.map(|name| self.figure(name).filter(|side| *side >= 1.0));
            Some([width? as u64, height? as u64])
        });
        told.or_else(|| {
            let image = self.sample.parts().find(|(part, _)| IMAGE_EXTENSIONS.contains(part))?;
            let (width, height) = dimensions(self.sample.key(), image.1).ok()?;
            Some([width as u64, height as u64])
        })
    }
}

/// What a filter leaves out of a source.
#[derive(Debug)]
struct LeftOut {
    removed: Removed,
    reasons: BTreeMap<&'static str, usize>,
}

/// Verdicts of this process, by source and filter: a run opens its source more than once.
static KNOWN: LazyLock<Mutex<HashMap<String, Arc<LeftOut>>>> = LazyLock::new(Mutex::default);

/// The samples of a source that a filter takes, numbered anew, in the source's order.
pub struct Filtered {
    source: Arc<dyn Source>,
    left_out: Arc<LeftOut>,
    digest: String,
}

impl Filtered {
    /// Judges every sample of a source, which reads their metadata, or the headers of their images, once. A sample that cannot be
    /// read stays: what is done about it is the reader's choice.
    ///
    /// # Errors
    /// [`Error::BadSource`] if the filter leaves nothing; those of [`Source::get`] that do not concern a single sample.
    pub fn new(source: Arc<dyn Source>, filter: &SampleFilter) -> Result<Self> {
        let digest = digest(&source.digest(), filter);
        let known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner).get(&digest).cloned();
        let left_out = match known {
            Some(known) => known,
            None => {
                let judged = Arc::new(judge_all(source.as_ref(), filter)?);
                KNOWN.lock().unwrap_or_else(PoisonError::into_inner).insert(digest.clone(), Arc::clone(&judged));
                judged
            }
        };
        if left_out.removed.len() == source.len() {
            let reasons: Vec<String> = left_out.reasons.iter().map(|(why, n)| format!("{n} samples {why}")).collect();
            let detail = format!("no sample is left: {}; lower the limits of data.filter", reasons.join(", "));
            return Err(Error::BadSource { spec: source.name(), detail });
        }
        Ok(Filtered { source, left_out, digest })
    }
}

fn judge_all(source: &dyn Source, filter: &SampleFilter) -> Result<LeftOut> {
    let judge = |number: usize| match source.get(number) {
        Ok(held) => Ok(filter.judge(held.sample())),
        Err(error) if error.concerns_one_sample() => Ok(Verdict::Taken),
        Err(error) => Err(error),
    };
    let verdicts = (0..source.len()).into_par_iter().map(judge).collect::<Result<Vec<Verdict>>>()?;
    let mut reasons = BTreeMap::new();
    verdicts.iter().filter_map(|verdict| verdict.reason()).for_each(|why| *reasons.entry(why).or_default() += 1);
    let out = verdicts.iter().enumerate().filter(|(_, verdict)| **verdict != Verdict::Taken);
    Ok(LeftOut { removed: Removed::new(out.map(|(number, _)| number)), reasons })
}

fn digest(source: &str, filter: &SampleFilter) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(format!("{source}\n{} {}\n", filter.min_side, filter.min_area).as_bytes());
    for (sign, limits) in [(">=", &filter.at_least), ("<=", &filter.at_most)] {
        for (name, limit) in limits {
            hasher.update(format!("{}\t{name} {sign} {:x}\n", name.len(), limit.to_bits()).as_bytes());
        }
    }
    hasher.finalize().to_hex().to_string()
}

impl Source for Filtered {
    fn name(&self) -> String {
        self.source.name()
    }

    fn len(&self) -> usize {
        self.source.len() - self.left_out.removed.len()
    }

    fn get(&self, i: usize) -> Result<HeldSample<'_>> {
        if i >= self.len() {
            return Err(Error::OutOfRange { index: i, len: self.len() });
        }
        self.source.get(self.left_out.removed.whole(i))
    }

    fn meta(&self) -> &Map<String, Value> {
        self.source.meta()
    }

    fn digest(&self) -> String {
        self.digest.clone()
    }

    fn members(&self) -> Vec<Member> {
        let inner: String = self.source.members().into_iter().map(|member| member.digest).collect();
        let digest = blake3::hash(format!("{}\n{inner}", self.digest).as_bytes()).to_hex().to_string();
        vec![Member { name: self.name(), samples: self.len(), digest }]
    }

    fn file_of(&self, i: usize) -> String {
        self.source.file_of(self.left_out.removed.whole(i))
    }

    fn blocks(&self) -> Vec<usize> {
        let removed = &self.left_out.removed;
        let kept = |(start, length): (usize, usize)| length - (removed.before(start + length) - removed.before(start));
        let mut start = 0;
        let starts = self.source.blocks().into_iter().map(|length| {
            start += length;
            (start - length, length)
        });
        starts.map(kept).collect()
    }

    fn left_out(&self) -> BTreeMap<&'static str, usize> {
        let mut all = self.source.left_out();
        self.left_out.reasons.iter().for_each(|(why, count)| *all.entry(why).or_default() += count);
        all
    }

    fn notes(&self) -> Vec<String> {
        self.source.notes()
    }

    fn prepare(&self, i: usize) -> Result<bool> {
        match i < self.len() {
            true => self.source.prepare(self.left_out.removed.whole(i)),
            false => Err(Error::OutOfRange { index: i, len: self.len() }),
        }
    }

    fn read_ahead(&self) -> usize {
        self.source.read_ahead()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{PngEffort, RgbImage};
    use crate::order::{OrderConfig, Shuffle};
    use crate::sample::Sample;
    use crate::{Dataset, ShardLimits, ShardWriter};

    fn png(width: usize, height: usize) -> Vec<u8> {
        let pixels = vec![7; width * height * 3];
        RgbImage::new(width, height, pixels).unwrap().encode_png(PngEffort::Fast).unwrap()
    }

    fn verdict(filter: &str, sample: Sample) -> Verdict {
        of_json(filter).judge(SampleRef::from(&sample))
    }

    fn of_json(json: &str) -> SampleFilter {
        serde_json::from_str(json).unwrap()
    }

    fn json(text: &str) -> Sample {
        Sample::new("a").with("json", text)
    }

    #[test]
    fn sizes_are_those_of_the_metadata_or_of_the_image() {
        let side = r#"{"min_side": 512}"#;
        for (sample, wanted) in [
            (json(r#"{"original_width": 512, "original_height": 600}"#), Verdict::Taken),
            (json(r#"{"original_width": 511, "original_height": 600}"#), Verdict::TooSmall),
            // What was found counts, not what a table said or what was written.
            (json(r#"{"original_width": 512, "original_height": 600, "width": 256, "height": 256}"#), Verdict::Taken),
            (json(r#"{"WIDTH": 600, "HEIGHT": 600, "width": 256, "height": 256}"#), Verdict::Taken),
            (json(r#"{"width": 256, "height": 256}"#), Verdict::TooSmall),
            (json(r#"{"width": "640", "height": 512.0}"#), Verdict::Taken),
            (json(r#"{"width": 640}"#), Verdict::SizeUnknown),
            (json(r#"{"width": 0, "height": -3}"#), Verdict::SizeUnknown),
            (json("[]"), Verdict::SizeUnknown),
            (json("{"), Verdict::SizeUnknown),
            (Sample::new("a").with("png", png(512, 513)), Verdict::Taken),
            (Sample::new("a").with("png", png(512, 511)), Verdict::TooSmall),
            (Sample::new("a").with("png", png(600, 600)).with("json", r#"{"caption": "x"}"#), Verdict::Taken),
            (Sample::new("a").with("jpg", "no image"), Verdict::SizeUnknown),
            (Sample::new("a").with("original_width", "512").with("original_height", "512"), Verdict::Taken),
        ] {
            let shown = format!("{sample:?}");
            assert_eq!(verdict(side, sample), wanted, "{}", &shown[..shown.len().min(300)]);
        }
        let area = r#"{"min_area": 1000}"#;
        assert_eq!(verdict(area, json(r#"{"width": 10, "height": 100}"#)), Verdict::Taken);
        assert_eq!(verdict(area, json(r#"{"width": 10, "height": 99}"#)), Verdict::TooSmall);
        assert_eq!(verdict("{}", Sample::new("a")), Verdict::Taken);
    }

    #[test]
    fn figures_lie_within_their_limits() {
        let filter = r#"{"at_least": {"aesthetic_score": 4.5}, "at_most": {"punsafe": 0.1}}"#;
        for (text, wanted) in [
            (r#"{"aesthetic_score": 4.5, "punsafe": 0.1}"#, Verdict::Taken),
            (r#"{"aesthetic_score": 4.4, "punsafe": 0.1}"#, Verdict::Outside),
            (r#"{"aesthetic_score": 5, "punsafe": 0.2}"#, Verdict::Outside),
            (r#"{"aesthetic_score": 5}"#, Verdict::FigureUnknown),
            (r#"{"aesthetic_score": "NaN", "punsafe": 0}"#, Verdict::FigureUnknown),
            (r#"{"aesthetic_score": null, "punsafe": 0}"#, Verdict::FigureUnknown),
        ] {
            assert_eq!(verdict(filter, json(text)), wanted, "{text}");
        }
        let nan = SampleFilter { at_most: BTreeMap::from([("x".to_owned(), f64::NAN)]), ..SampleFilter::default() };
        let (key, problem) = nan.validate().unwrap_err();
        assert_eq!(key, "at_most");
        assert!(problem.contains("`x`") && problem.contains("takes a number"), "{problem}");
        assert_eq!(of_json(filter).validate(), Ok(()));
    }

    /// Samples `0` to `9` in shards of four, of 10, 20, … 100 pixels.
    fn dataset(folder: &std::path::Path) -> Arc<dyn Source> {
        let limits = ShardLimits { samples: 4, ..ShardLimits::default() };
        let mut writer = ShardWriter::create(folder, "x", limits).unwrap();
        for number in 0..10 {
            let side = 10 * (number + 1);
            let metadata = format!(r#"{{"width": {side}, "height": {side}}}"#);
            writer.write(&Sample::new(number.to_string()).with("json", metadata)).unwrap();
        }
        writer.finish().unwrap();
        Arc::new(Dataset::open(folder).unwrap())
    }

    #[test]
    fn what_is_left_is_numbered_anew() {
        let folder = tempfile::tempdir().unwrap();
        let whole = dataset(&folder.path().join("x"));
        let filter = |min_side| SampleFilter { min_side, ..SampleFilter::default() };
        let source = Filtered::new(Arc::clone(&whole), &filter(30)).unwrap();
        let keys: Vec<String> = (0..source.len()).map(|i| source.get(i).unwrap().sample().key().to_owned()).collect();
        assert_eq!(keys, ["2", "3", "4", "5", "6", "7", "8", "9"]);
        assert_eq!((source.blocks(), source.len()), (vec![2, 4, 2], 8));
        assert_eq!(source.left_out(), BTreeMap::from([("smaller than data.filter asks for", 2)]));
        assert!(matches!(source.get(8), Err(Error::OutOfRange { index: 8, len: 8 })));
        assert!(matches!(source.prepare(8), Err(Error::OutOfRange { .. })));
        assert!(source.order(&OrderConfig { seed: 1, shuffle: Shuffle::Full, resampled: false }).is_ok());
        // The digest tells filters apart; the same one again is not judged anew, and is the same.
        let again = Filtered::new(Arc::clone(&whole), &filter(30)).unwrap();
        let other = Filtered::new(Arc::clone(&whole), &filter(31)).unwrap();
        assert_eq!(again.digest(), source.digest());
        assert!(other.digest() != source.digest() && source.digest() != whole.digest());
        let error = Filtered::new(whole, &filter(101)).map(|_| ()).unwrap_err().to_string();
        assert!(
            error.contains("no sample is left: 10 samples smaller than") && error.contains("data.filter"),
            "{error}"
        );
    }
}
