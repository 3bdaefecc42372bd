//! CLIP, behind the preparations of those who published scores and distances with it: pictures and captions in one space.
//!
//! Which code prepares in which way: MLPerf training (ViT-H/14), NeMo (ViT-L/14) and MLPerf inference (ViT-B/32) call
//! open_clip's transform; clean-fid's `clip_vit_b_32` cuts the same pixels out; MosaicML (ViT-B/16) calls torchmetrics, and
//! that calls transformers' processor; CMMD (ViT-L/14 at 336 pixels) has its own.

use super::framing::{Framing, Half, Resampler, View};
use super::{FeatureEntry, FeatureKey, Features, ImageRows, NetworkFingerprint, Preparation};
use crate::{EvaluateError, Result};
use burn::tensor::{DType, Device};
use calotype_checkpoints::loading::LoadError;
use calotype_checkpoints::{Checkpoint, Component, LayoutError};
use calotype_data::image::{Filter, RgbImage};
use calotype_models::ClipTokenizer;
use calotype_models::state::values_of;
use calotype_models::tokenizer::{Cleaning, TokenizerOptions, Tokens};
use calotype_ops::Precision;
use calotype_pipeline::encoders::{
    EncoderError, HiddenStates, ImageEncoder, ImageEncoderKind, ImageInput, ImageOutput, TextEncoder, TextSettings,
    TokenizerChoice,
};
use rayon::prelude::*;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Its row of the table.
pub const ENTRY: FeatureEntry = FeatureEntry {
    network: "clip",
    about: "a CLIP model of any layout",
    preparations: &[
        Preparation {
            name: "open_clip",
            about: "open_clip's transform and tokenizer: MLPerf training and inference, NeMo; clean-fid's pixels",
        },
        Preparation {
            name: "transformers",
            about: "CLIPProcessor of transformers 5 with truncation=True: torch's rounding of levels",
        },
        Preparation {
            name: "transformers-pillow",
            about: "CLIPProcessor with CLIPImageProcessorPil, and that of transformers before 5",
        },
        Preparation {
            name: "torchmetrics",
            about: "torchmetrics' CLIPScore: pictures as transformers, long captions cut without their end token",
        },
        Preparation { name: "cmmd", about: "CMMD's reference: the middle square, bicubic" },
    ],
    open: |networks, preparation| {
        let Some(path) = &networks.clip else {
            let problem = "these metrics need a CLIP model: give its file or folder by --clip";
            return Err(EvaluateError::Usage(problem.to_owned()));
        };
        let precision = networks.precision;
        let network = networks.shared(path, || ClipNetwork::open(path, precision, &networks.device))?;
        Ok(Box::new(ClipFeatures::new(network, preparation)))
    },
};

/// Both towers; their weights are read at their first use.
pub struct ClipNetwork {
    path: PathBuf,
    image: ImageEncoder,
    text: Option<TextEncoder>,
    width: usize,
    weights: String,
    precision: &'static str,
}

impl ClipNetwork {
    /// Opens the towers of a model, or the image tower where it stands alone; `dtype` is that of activations.
    ///
    /// # Errors
    /// [`EvaluateError::Usage`] for another model than CLIP; [`EvaluateError::Encoder`] if it is none whose image tower has a
    /// projection.
    pub fn open(path: &Path, dtype: DType, device: &Device) -> Result<Self> {
        // The tower says the size and the normalisation itself.
        let input = ImageInput::in_range(0, 0.0, 1.0);
        let image = ImageEncoder::open(path, ImageEncoderKind::Clip, ImageOutput::Projected, input, dtype, device)
            .map_err(|error| of_another_kind(path, error))?;
        let whole = Checkpoint::open(path)?.components().contains(&Component::Clip);
        let text = if whole { Some(open_text(path, dtype, device)?) } else { None };
        let weights = match &text {
            Some(text) => format!("{}+{}", image.weights(), text.weights()),
            None => image.weights().to_owned(),
        };
        let width = image.facts()["config"]["projection"].as_u64().unwrap_or(0) as usize;
        Ok(Self { path: path.to_owned(), image, text, width, weights, precision: dtype.name() })
    }

    /// The tokenizer of a preparation: the published one for CLIP's vocabulary, the checkpoint's for another.
    fn tokenizer(&self, text: &TextEncoder, steps: &Steps) -> Option<ClipTokenizer> {
        let own = text.tokenizer();
        let published = match steps.open_clip {
            true => TokenizerOptions::OPEN_CLIP,
            // The model's own may pad in its way, and may know more tokens.
            false if own.options().cleaning == Cleaning::Transformers => return None,
            false => TokenizerOptions::TRANSFORMERS,
        };
        let clips = text.facts()["config"]["text"]["vocab_size"].as_u64() == Some(ClipTokenizer::VOCABULARY as u64);
        clips.then(|| ClipTokenizer::with_options(own.context_length(), published))
    }
}

/// An error of a checkpoint that holds something else than CLIP says so, and nothing of a tower to put beside it.
fn of_another_kind(path: &Path, error: EncoderError) -> EvaluateError {
    match error {
        EncoderError::Layout(LayoutError::NoComponent { held, .. })
        | EncoderError::Load(LoadError::Layout(LayoutError::NoComponent { held, .. })) => EvaluateError::Usage(
            format!("{}: is no CLIP model; it holds {held}; name a CLIP model in any layout", path.display()),
        ),
        other => other.into(),
    }
}

fn open_text(path: &Path, dtype: DType, device: &Device) -> Result<TextEncoder> {
    let settings = TextSettings {
        model: path.display().to_string(),
        component: Component::TextEncoder,
        states: HiddenStates::Last,
        tokenizer: TokenizerChoice::Auto,
        precision: if dtype == DType::BF16 { Precision::Bf16 } else { Precision::F32 },
    };
    Ok(TextEncoder::open(&settings, device)?)
}

/// What a preparation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Steps {
    framing: Framing,
    /// True for open_clip's tokenizer, false for transformers'.
    open_clip: bool,
    /// True if texts that are too long keep their end token.
    keeps_end: bool,
}

impl Steps {
    /// Those of a preparation of [`ENTRY`], for pictures of `side` pixels; the first one's are those of open_clip.
    fn of(preparation: &str, side: usize) -> Self {
        let (pillow, torch) = (Resampler::Pillow(Filter::Bicubic), Resampler::Torch(Filter::Bicubic));
        let (even, down) = (View::Shorter(side, Half::Even), View::Shorter(side, Half::Down));
        let (view, resampler, open_clip, keeps_end) = match preparation {
            "transformers" => (down, torch, false, true),
            "transformers-pillow" => (down, pillow, false, true),
            "torchmetrics" => (down, torch, false, false),
            "cmmd" => (View::MiddleSquare(Half::Down), pillow, true, true),
            _ => (even, pillow, true, true),
        };
        Self { framing: Framing { view, resampler }, open_clip, keeps_end }
    }
}

/// Rows of tokens that are encoded at once.
const ROWS: usize = 32;

/// The model behind one preparation.
pub struct ClipFeatures {
    network: Arc<ClipNetwork>,
    key: FeatureKey,
    steps: Steps,
    tokenizer: Option<ClipTokenizer>,
    fingerprint: NetworkFingerprint,
}

impl ClipFeatures {
    /// The model behind a preparation of [`ENTRY`].
    pub fn new(network: Arc<ClipNetwork>, preparation: &Preparation) -> Self {
        let side = network.image.input().side;
        let steps = Steps::of(preparation.name, side);
        let fingerprint = NetworkFingerprint {
            network: format!("CLIP, {side} pixels, width {}", network.width),
            weights: network.weights.clone(),
            // Published weights are known by no hash here.
            official: false,
            resize: steps.framing.describe(side),
            rounding: steps.framing.rounding(),
            precision: network.precision.to_owned(),
        };
        let tokenizer = network.text.as_ref().and_then(|text| network.tokenizer(text, &steps));
        Self { network, key: FeatureKey::new(ENTRY.network, preparation.name), steps, tokenizer, fingerprint }
    }

    /// A caption as this preparation gives it to the text tower.
    fn tokens(&self, tokenizer: &ClipTokenizer, caption: &str) -> Tokens {
        let row = tokenizer.encode(caption);
        if row.truncated == 0 || self.steps.keeps_end {
            return row;
        }
        // torchmetrics cuts rows of ids, whose end token stands last.
        let ids = tokenizer.text_tokens(caption).into_iter().map(|token| token.id);
        let ids: Vec<i32> = row.ids[..1].iter().copied().chain(ids).take(tokenizer.context_length()).collect();
        Tokens { end: ids.len() - 1, ids, ..row }
    }
}

impl Features for ClipFeatures {
    fn key(&self) -> &FeatureKey {
        &self.key
    }

    fn fingerprint(&self) -> &NetworkFingerprint {
        &self.fingerprint
    }

    fn width(&self) -> usize {
        self.network.width
    }

    fn images(&self, images: &[&RgbImage]) -> Result<ImageRows> {
        let features = encode_images(&self.network.image, images, |image, side| self.steps.framing.apply(image, side))?;
        Ok(ImageRows { features, logits: Vec::new() })
    }

    fn captions(&self, captions: &[&str]) -> Result<Vec<f32>> {
        let Some(text) = &self.network.text else {
            return Err(EvaluateError::Usage(format!(
                "{} holds an image tower alone, which reads no captions: give a whole CLIP model by --clip",
                self.network.path.display()
            )));
        };
        let tokenizer = self.tokenizer.as_ref().unwrap_or_else(|| text.tokenizer());
        let mut rows = Vec::with_capacity(captions.len() * self.network.width);
        for some in captions.chunks(ROWS) {
            let tokens: Vec<Tokens> = some.iter().map(|caption| self.tokens(tokenizer, caption)).collect();
            // A whole CLIP model's text tower has a projection.
            rows.extend(text.encode(&tokens, true)?.pooled.map(values_of).unwrap_or_default());
        }
        Ok(rows)
    }
}

/// What an encoder gives for pictures that `frame` makes squares of, row by row.
pub(crate) fn encode_images(
    encoder: &ImageEncoder,
    images: &[&RgbImage],
    frame: impl Fn(&RgbImage, usize) -> std::result::Result<RgbImage, calotype_data::Error> + Sync,
) -> Result<Vec<f32>> {
    let input = *encoder.input();
    // A picture that has the size is normalised only.
    let prepare = |image: &&RgbImage| input.prepare(&frame(image, input.side)?, Some(Filter::Bicubic));
    let prepared: Vec<_> = images.par_iter().map(prepare).collect();
    let prepared = prepared.into_iter().collect::<std::result::Result<Vec<_>, calotype_data::Error>>()?;
    if prepared.is_empty() {
        return Ok(Vec::new());
    }
    Ok(encoder.encode(&prepared)?.1)
}
