//! Components, prediction types and layouts of checkpoints.

use calotype_core::names;
pub use calotype_diffusion::Prediction;

names! {
    /// One network of a checkpoint; the name is its folder's in a diffusers pipeline.
    Component, "component" {
        /// The denoising UNet.
        Unet = "unet",
        /// The KL autoencoder.
        Vae = "vae",
        /// The first (or only) text encoder.
        TextEncoder = "text_encoder",
        /// The second text encoder of SDXL.
        TextEncoder2 = "text_encoder_2",
        /// A CLIP image tower with its projection.
        ImageEncoder = "image_encoder",
        /// Both CLIP towers, projections and logit scale.
        Clip = "clip",
        /// A vision transformer with a classification head.
        Classifier = "classifier",
        /// The Inception network of the Fréchet distance.
        Inception = "inception",
        /// Keras' Inception v3.
        KerasInception = "keras_inception",
        /// DINOv2, with or without registers.
        Dinov2 = "dinov2",
        /// EfficientNet-Lite.
        EfficientNetLite = "efficientnet_lite",
    }
}

names! {
    /// A way of storing checkpoints.
    Layout, "layout" {
        /// A diffusers pipeline: `model_index.json` and a folder for each component.
        DiffusersPipeline = "diffusers pipeline",
        /// One diffusers or transformers model: `config.json` and weights.
        ModelFolder = "model folder",
        /// Weights with the keys of diffusers or transformers, without a configuration.
        ModelFile = "model file",
        /// One file with the keys of the LDM code.
        SingleFile = "single file (LDM)",
        /// NeMo's Stable Diffusion: LDM keys, other indices in the residual blocks.
        NemoSingleFile = "NeMo Stable Diffusion",
        /// A folder that Calotype wrote: canonical keys, a folder for each component, a manifest.
        Calotype = "calotype",
        /// open_clip's and OpenAI CLIP's keys.
        OpenClip = "open_clip",
        /// NeMo's CLIP (Megatron names).
        NemoClip = "NeMo CLIP",
        /// timm's vision transformer.
        Timm = "timm",
        /// NeMo's vision transformer.
        NemoVit = "NeMo ViT",
        /// pytorch-fid's Inception.
        PytorchFid = "pytorch-fid",
        /// Keras' names of the variables of its Inception v3.
        Keras = "Keras",
        /// The keys of facebookresearch/dinov2.
        FacebookDinov2 = "facebookresearch/dinov2",
        /// The keys of the package efficientnet-lite-pytorch.
        EfficientNetLite = "efficientnet-lite-pytorch",
    }
}

impl Component {
    /// The class under which diffusers' pipelines list it and transformers names it.
    pub const fn class(self) -> &'static str {
        match self {
            Self::Unet => "UNet2DConditionModel",
            Self::Vae => "AutoencoderKL",
            Self::TextEncoder => "CLIPTextModel",
            Self::TextEncoder2 => "CLIPTextModelWithProjection",
            Self::ImageEncoder => "CLIPVisionModelWithProjection",
            Self::Clip => "CLIPModel",
            Self::Classifier => "ViTForImageClassification",
            Self::Inception => "FIDInceptionV3",
            Self::KerasInception => "InceptionV3",
            Self::Dinov2 => "Dinov2Model",
            Self::EfficientNetLite => "EfficientNet",
        }
    }

    /// The Python library that the class is of, and the stem of its weights' file name there.
    pub(crate) const fn library(self) -> (&'static str, &'static str) {
        match self {
            Self::Unet | Self::Vae => ("diffusers", "diffusion_pytorch_model"),
            Self::TextEncoder
            | Self::TextEncoder2
            | Self::ImageEncoder
            | Self::Clip
            | Self::Classifier
            | Self::Inception
            | Self::KerasInception
            | Self::Dinov2
            | Self::EfficientNetLite => ("transformers", "model"),
        }
    }
}

impl Layout {
    /// True if the keys are those of the LDM code, up to NeMo's differences.
    pub const fn is_single_file(self) -> bool {
        matches!(self, Self::SingleFile | Self::NemoSingleFile)
    }
}
