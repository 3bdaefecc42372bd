//! The published families of models, with what is true of each: one file for the models that belong together, one row in
//! the table below for each family.
//!
//! A new family is a [`Facts`] in a file here and a row of the table; nothing else names families.

mod others;
pub(crate) mod schedulers;
mod sd1;
mod sd2;
mod sdxl;

use crate::kinds::{Component, Prediction};
use crate::map::KeyMap;
use calotype_models::TextStates;
use calotype_models::tokenizer::TokenizerOptions;
use serde_json::Value;

/// Declares [`Family`] with its names, and the facts of each; recognition asks the rows in their order.
macro_rules! families {
    ($($(#[$doc:meta])* $family:ident = $name:literal: $facts:path,)+) => {
        calotype_core::names! {
            /// The published model that a checkpoint's networks have the form of.
            Family, "family" {
                $($(#[$doc])* $family = $name,)+
            }
        }

        impl Family {
            /// The facts of the family.
            pub fn facts(self) -> &'static Facts {
                match self { $(Self::$family => &$facts),+ }
            }
        }
    };
}

families! {
    /// Stable Diffusion 1.x.
    Sd1 = "sd1": sd1::BASE,
    /// Stable Diffusion 1.5 inpainting: 9 input channels.
    Sd1Inpainting = "sd1-inpainting": sd1::INPAINTING,
    /// InstructPix2Pix: 8 input channels.
    InstructPix2Pix = "instruct-pix2pix": sd1::INSTRUCT,
    /// Stable Diffusion 2.x whose prediction type is not known.
    Sd2 = "sd2": sd2::UNKNOWN,
    /// Stable Diffusion 2.x base: predicts the noise.
    Sd2Base = "sd2-base": sd2::BASE,
    /// Stable Diffusion 2.x 768-v: predicts the velocity.
    Sd2V = "sd2-v": sd2::V,
    /// Stable Diffusion 2 inpainting: 9 input channels.
    Sd2Inpainting = "sd2-inpainting": sd2::INPAINTING,
    /// The SD v2 variant of MLPerf Training: 16 groups in the residual blocks' norms.
    MlperfSd2 = "mlperf-sd2": sd2::MLPERF,
    /// SDXL refiner.
    SdxlRefiner = "sdxl-refiner": sdxl::REFINER,
    /// SDXL inpainting: 9 input channels.
    SdxlInpainting = "sdxl-inpainting": sdxl::INPAINTING,
    /// SDXL's InstructPix2Pix: 8 input channels.
    SdxlInstruct = "sdxl-instruct-pix2pix": sdxl::INSTRUCT,
    /// SDXL base.
    SdxlBase = "sdxl-base": sdxl::BASE,
    /// A ViT classifier.
    Vit = "vit": others::VIT,
    /// The FID variant of Inception v3.
    Inception = "inception": others::INCEPTION,
    /// Keras' Inception v3.
    KerasInception = "keras-inception": others::KERAS_INCEPTION,
    /// DINOv2.
    Dinov2 = "dinov2": others::DINOV2,
    /// EfficientNet-Lite.
    EfficientNetLite = "efficientnet-lite": others::EFFICIENTNET_LITE,
    /// A KL autoencoder alone.
    Vae = "vae": others::VAE,
    /// A CLIP model, or one of its towers.
    Clip = "clip": others::CLIP,
}

impl Family {
    /// The first family of the table whose form this is; `None` where no published family has it.
    pub(crate) fn of(seen: &Form<'_>) -> Option<Self> {
        Self::ALL.iter().copied().find(|family| (family.facts().recognise)(seen))
    }

    /// What of the weights cannot be this family's, in words; none where nothing speaks against it. What the weights do not show
    /// (`sd2-v`, `mlperf-sd2`) speaks for nothing.
    pub(crate) fn contradiction(self, seen: &Form<'_>) -> Option<String> {
        match (&self.facts().unet, seen.unet) {
            (Some(form), Some(unet)) => form.contradiction(self, unet, seen),
            (None, Some(_)) => Some(format!("there is a UNet, and {self} has none")),
            // Encoders and autoencoders of all families are found alone, too.
            (Some(_), None) => None,
            (None, None) => (Self::of(seen) != Some(self)).then(|| {
                let held = seen.components.iter().map(|component| component.name()).collect::<Vec<_>>().join(" and ");
                format!("there is only {held}")
            }),
        }
    }

    /// The family, once it is known what the UNet predicts.
    pub(crate) fn refined(self, prediction: Prediction) -> Self {
        let table = self.facts().by_prediction;
        table.iter().find(|(known, _)| *known == prediction).map_or(self, |(_, family)| *family)
    }
}

/// The things that recognition looks at.
pub(crate) struct Form<'a> {
    /// The UNet's configuration, if there is a UNet.
    pub(crate) unet: Option<&'a Value>,
    /// All components.
    pub(crate) components: &'a [Component],
}

impl Form<'_> {
    fn has(&self, component: Component) -> bool {
        self.components.contains(&component)
    }

    /// True if there is a UNet with this many input channels that asks for no sizes, and whose transformers' projections
    /// are linear layers or not.
    fn is_unet(&self, channels: u64, linear: bool) -> bool {
        self.unet.is_some_and(|unet| {
            unet["in_channels"].as_u64().unwrap_or(4) == channels
                && (unet["use_linear_projection"] == true) == linear
                && unet["addition_embed_type"].is_null()
        })
    }

    /// True if it is one network without a UNet.
    fn is_alone(&self, component: Component) -> bool {
        self.unet.is_none() && self.has(component)
    }
}

/// What the weights of a family's UNets have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UnetForm {
    /// Input channels.
    channels: u64,
    /// Whether the transformers' projections are linear layers.
    linear: bool,
    /// The numbers beside the text.
    numbers: Numbers,
}

/// Numbers that a UNet takes beside the text, as its weights and its fellows show them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Numbers {
    None,
    /// Of SDXL.
    Sizes,
    /// Of SDXL's refiner.
    Scores,
}

impl UnetForm {
    /// What of a UNet is not of this form, in words.
    fn contradiction(self, family: Family, unet: &Value, seen: &Form<'_>) -> Option<String> {
        let (channels, linear) = (unet["in_channels"].as_u64().unwrap_or(4), unet["use_linear_projection"] == true);
        let scored = sdxl::shows_scores(seen);
        match self.numbers {
            Numbers::None if sdxl::takes_sizes(seen) => {
                Some(format!("the UNet takes sizes beside the text, as SDXL's, and that of {family} does not"))
            }
            Numbers::Sizes | Numbers::Scores if !sdxl::takes_sizes(seen) => {
                Some(format!("the UNet takes no sizes beside the text, and that of {family} does"))
            }
            Numbers::Sizes if scored == Some(true) => {
                Some("it is SDXL's refiner, with the second text encoder alone".into())
            }
            Numbers::Scores if scored == Some(false) => {
                Some("it is no refiner: it has the first text encoder, or six numbers".into())
            }
            _ if self.channels != channels => {
                Some(format!("the UNet has {channels} input channels, and that of {family} has {}", self.channels))
            }
            Numbers::None if self.linear != linear => {
                let kind = |linear| {
                    if linear { "linear layers (Stable Diffusion 2)" } else { "convolutions (Stable Diffusion 1)" }
                };
                Some(format!(
                    "the UNet's transformers project by {}, and those of {family} by {}",
                    kind(linear),
                    kind(self.linear)
                ))
            }
            _ => None,
        }
    }
}

/// Facts that hold for all published models of a family.
#[derive(Debug)]
pub struct Facts {
    /// True if networks have the family's form.
    pub(crate) recognise: fn(&Form<'_>) -> bool,
    /// What the weights of its UNets show; none for families without one.
    pub(crate) unet: Option<UnetForm>,
    /// The pipeline's class in `model_index.json`.
    pub pipeline: &'static str,
    /// Fields of `model_index.json` that are no components.
    pub index: fn() -> Value,
    /// The text encoders that the pipeline lists, with what belongs to each.
    pub text_encoders: &'static [TextFacts],
    /// The scheduler's configuration as the original repository publishes it, whole; a checkpoint's marks and its prediction
    /// type go before ([`Checkpoint::scheduler`](crate::Checkpoint::scheduler)).
    pub scheduler: fn() -> Value,
    /// Old settings in a folder that diffusers' pipeline of the family corrects.
    pub corrections: Corrections,
    /// The UNet's prediction type, where all published models of the family predict the same.
    pub prediction: Option<Prediction>,
    /// Families that the prediction type tells from this one.
    pub(crate) by_prediction: &'static [(Prediction, Family)],
    /// Classifier-free guidance scale of the original pipeline.
    pub guidance: f32,
    /// Side of the usual images in pixels.
    pub size: usize,
    /// Numbers that the UNet takes beside the text.
    pub size_numbers: SizeNumbers,
    /// True if an empty negative prompt stands for hidden states of zeros.
    pub zeros_for_empty_prompt: bool,
    /// Latent channels to red, green and blue, roughly, for previews: fitted to the published autoencoder.
    pub preview: [[f32; 3]; 4],
    /// Changes a UNet's configuration that was inferred from weights which do not show what the family is.
    pub(crate) adjust_unet: Option<fn(&mut Value)>,
    /// Another family that a single file may be of, which its tensors do not show.
    pub(crate) doubt: Option<&'static str>,
    /// `modelspec.architecture` in single files.
    pub(crate) modelspec: Option<&'static str>,
}

/// Settings that were published wrongly in 2022, and that diffusers' pipelines correct when they are made (diffusers 0.42,
/// `__init__` of each pipeline): true for those that are corrected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Corrections {
    /// The scheduler's `steps_offset`, to 1.
    pub steps_offset: bool,
    /// The scheduler's `clip_sample`, to false.
    pub clip_sample: bool,
    /// The scheduler's `skip_prk_steps`, to true.
    pub skip_prk_steps: bool,
    /// A `sample_size` of the UNet below 64, to 64, if diffusers before 0.9 wrote it.
    pub sample_size: bool,
}

impl Corrections {
    /// Of `StableDiffusionPipeline` and `StableDiffusionImg2ImgPipeline`.
    const TEXT_TO_IMAGE: Self =
        Self { steps_offset: true, clip_sample: true, skip_prk_steps: false, sample_size: true };
    /// Of `StableDiffusionInpaintPipeline`.
    const INPAINTING: Self = Self { clip_sample: false, skip_prk_steps: true, ..Self::TEXT_TO_IMAGE };
    /// Of `StableDiffusionInstructPix2PixPipeline`, and of all pipelines of SDXL.
    const NONE: Self = Self { steps_offset: false, clip_sample: false, skip_prk_steps: false, sample_size: false };
}

/// Facts about a text encoder of a family.
#[derive(Debug)]
pub struct TextFacts {
    /// The encoder.
    pub component: Component,
    /// Folder of its tokenizer in a diffusers pipeline.
    pub tokenizer: &'static str,
    /// Its tokenizer's cleaning of prompts and padding of rows.
    pub options: TokenizerOptions,
    /// The hidden states that condition the UNet.
    pub hidden_states: TextStates,
    /// Its keys in single files.
    pub(crate) single_file: TextKeys,
}

/// The names of a text encoder's tensors in single files, and the prefix before them.
#[derive(Clone, Copy, Debug)]
pub(crate) enum TextKeys {
    Transformers(&'static str),
    OpenClip(&'static str),
}

impl TextKeys {
    /// The encoder's key map.
    pub(crate) fn map(self) -> KeyMap {
        match self {
            Self::Transformers(prefix) => crate::rules::prefixed(prefix),
            Self::OpenClip(prefix) => crate::rules::open_clip_text(prefix),
        }
    }
}

/// Numbers that a UNet takes beside the text (Podell et al. 2023, sections 2.2 and 2.5), as `text_time` conditions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SizeNumbers {
    /// None.
    None,
    /// Original height and width, top and left of the crop, target height and width.
    OriginalCropTarget,
    /// Original height and width, top and left of the crop, and a score of beauty: these, for the prompt and the negative
    /// prompt.
    OriginalCropScore {
        /// The score for the prompt.
        score: f32,
        /// The score for the negative prompt.
        negative_score: f32,
    },
}

/// The scores of beauty for the prompt and for the negative prompt that diffusers' pipelines give SDXL's refiner.
pub const AESTHETIC_SCORES: [f32; 2] = [6.0, 2.5];

impl Facts {
    /// The facts of a checkpoint's family; of Stable Diffusion 1, whose pipeline is the plainest, where it has none.
    pub fn of(family: Option<Family>) -> &'static Self {
        family.unwrap_or(Family::Sd1).facts()
    }

    /// The facts about a text encoder; of [`Component::TextEncoder2`], SDXL's, where the family has no second one.
    pub fn text(&self, component: Component) -> &'static TextFacts {
        let own = self.text_encoders.iter().find(|facts| facts.component == component);
        own.unwrap_or(if component == Component::TextEncoder2 { &sdxl::TEXT_2 } else { &sd1::TEXT })
    }
}

/// The facts of a row of the table that says nothing else.
const PLAIN: Facts = Facts {
    recognise: |_| false,
    unet: None,
    pipeline: "StableDiffusionPipeline",
    index: no_safety_checker,
    text_encoders: &[sd1::TEXT],
    scheduler: schedulers::pndm,
    corrections: Corrections::TEXT_TO_IMAGE,
    prediction: None,
    by_prediction: &[],
    guidance: 7.5,
    size: 512,
    size_numbers: SizeNumbers::None,
    zeros_for_empty_prompt: false,
    preview: sd1::PREVIEW,
    adjust_unet: None,
    doubt: None,
    modelspec: None,
};

/// Pipelines of Stable Diffusion 1 and 2 load without their optional parts only if the index says so.
fn no_safety_checker() -> Value {
    serde_json::json!({
        "feature_extractor": [null, null],
        "image_encoder": [null, null],
        "requires_safety_checker": false,
        "safety_checker": [null, null],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_familys_facts_fit_together() {
        for &family in Family::ALL {
            let facts = family.facts();
            let scheduler = (facts.scheduler)();
            assert!(scheduler["_class_name"].as_str().is_some_and(|class| class.ends_with("Scheduler")), "{family}");
            if let Some(prediction) = facts.prediction {
                assert_eq!(family.refined(prediction), family);
                let said = scheduler["prediction_type"].as_str().unwrap_or("epsilon");
                assert_eq!(said, prediction.name(), "{family}");
            }
            for text in facts.text_encoders {
                assert_eq!(facts.text(text.component).tokenizer, text.tokenizer);
            }
            for field in ["clip_sample", "steps_offset", "skip_prk_steps", "set_alpha_to_one"] {
                assert!(!scheduler[field].is_null(), "{family}: the table leaves out {field}");
            }
            assert!((facts.index)().is_object() && facts.size.is_multiple_of(64), "{family}");
        }
    }

    /// Each published form against each family: those that share one, and no others, may be named for it.
    #[test]
    fn a_family_that_the_weights_contradict_is_told_apart() {
        use Component::{Classifier, Clip, TextEncoder, TextEncoder2, Vae};
        let unet = |channels: u64, linear: bool| json!({ "in_channels": channels, "use_linear_projection": linear });
        let xl = |channels: u64, added: u64| {
            let mut unet = unet(channels, true);
            unet["addition_embed_type"] = "text_time".into();
            unet["projection_class_embeddings_input_dim"] = added.into();
            Some(unet)
        };
        let base = [TextEncoder, TextEncoder2];
        let cases: [(Option<Value>, &[Component], &str); 14] = [
            (Some(unet(4, false)), &[TextEncoder], "sd1"),
            (Some(unet(9, false)), &[TextEncoder], "sd1-inpainting"),
            (Some(unet(8, false)), &[TextEncoder], "instruct-pix2pix"),
            (Some(unet(4, true)), &[TextEncoder], "sd2 sd2-base sd2-v mlperf-sd2"),
            (Some(unet(9, true)), &[TextEncoder], "sd2-inpainting"),
            (xl(4, 2816), &base, "sdxl-base"),
            (xl(4, 2816), &[TextEncoder2], "sdxl-base"),
            (xl(4, 112), &[], "sdxl-base sdxl-refiner"),
            (xl(4, 2560), &[TextEncoder2], "sdxl-refiner"),
            (xl(9, 2816), &base, "sdxl-inpainting"),
            (xl(8, 2816), &base, "sdxl-instruct-pix2pix"),
            (None, &[Classifier], "vit"),
            (None, &[Vae], "vae"),
            (None, &[Clip], "clip"),
        ];
        for (unet, components, may) in cases {
            let seen = Form { unet: unet.as_ref(), components };
            let fits = |family: &&Family| unet.is_some() || family.facts().unet.is_none();
            for family in Family::ALL.iter().filter(fits) {
                let told = family.contradiction(&seen);
                assert_eq!(
                    told.is_none(),
                    may.split(' ').any(|name| name == family.name()),
                    "{may}: {family}: {told:?}"
                );
            }
        }
        let alone = Form { unet: None, components: &[TextEncoder] };
        assert_eq!(Family::Sd2V.contradiction(&alone), None);
    }
}
