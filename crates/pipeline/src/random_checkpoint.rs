//! Checkpoints of random weights in diffusers' layout, for tests and benchmarks.

use crate::error::PipelineError;
use calotype_checkpoints::{Component, Family, TensorSpec, component_keys};
use calotype_core::{Purpose, Stream, durable, names};
use calotype_models::{AutoencoderConfig, UNetConfig};
use calotype_weights::stream::write_source;
use calotype_weights::{Dtype, NamedTensor, TensorFileError, TensorInfo, TensorSource};
use half::{bf16, f16};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

names! {
    /// Shapes of checkpoints.
    RandomFamily, "family" {
        /// Stable Diffusion 1: 1.0 billion parameters.
        Sd1 = "sd1",
        /// Stable Diffusion 2: 1.3 billion parameters.
        Sd2 = "sd2",
        /// Stable Diffusion XL base: 3.5 billion parameters.
        Sdxl = "sdxl",
        /// The form of Stable Diffusion 1 with images of 64x64 pixels and 1.9 million parameters.
        Tiny = "tiny",
        /// The form of Stable Diffusion 2 with all four levels and 3 million parameters, and with the text tower's last layer, which
        /// its published folder leaves out.
        TinySd2 = "tiny-sd2",
        /// The form of Stable Diffusion 1 as a latent consistency model, as small: told its guidance scale, with its scheduler.
        TinyLcm = "tiny-lcm",
        /// The form of Stable Diffusion XL base, as small.
        TinySdxl = "tiny-sdxl",
        /// The form of Stable Diffusion XL's refiner, as small.
        TinyRefiner = "tiny-refiner",
    }
}

/// A checkpoint of random weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RandomCheckpoint {
    /// Its shape.
    pub family: RandomFamily,
    /// Channels that the UNet takes: 4, or 9 for inpainting.
    pub in_channels: usize,
    /// Seed of the weights.
    pub seed: u64,
    /// Type of the stored weights: `F32`, `F16` or `BF16`.
    pub dtype: Dtype,
}

impl RandomCheckpoint {
    /// Of seed 0, in `F32`.
    pub fn new(family: RandomFamily) -> Self {
        Self { family, in_channels: 4, seed: 0, dtype: Dtype::F32 }
    }

    /// Writes it as a diffusers folder. Tensors are written one at a time.
    ///
    /// # Errors
    /// [`PipelineError::Io`] and [`PipelineError::Tensor`] naming the file.
    pub fn write(&self, folder: &Path) -> Result<(), PipelineError> {
        let facts = self.published().facts();
        let mut scheduler = (facts.scheduler)();
        if self.family == RandomFamily::TinyLcm {
            scheduler["_class_name"] = "LCMScheduler".into();
        }
        let mut index = (facts.index)();
        index["_class_name"] = facts.pipeline.into();
        index["scheduler"] = json!(["diffusers", scheduler["_class_name"]]);
        for (number, (component, config)) in (0..).zip(self.configs()?) {
            let (library, file) = match component {
                Component::Unet | Component::Vae => ("diffusers", "diffusion_pytorch_model.safetensors"),
                _ => ("transformers", "model.safetensors"),
            };
            let class = if library == "diffusers" { &config["_class_name"] } else { &config["architectures"][0] };
            index[component.name()] = json!([library, class]);
            let folder = folder.join(component.name());
            write_json(&folder, "config.json", &config)?;
            let specs = component_keys(component, &config)?;
            let source = RandomTensors::new(&folder, specs, self.seed + number, self.dtype);
            let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
            write_source(&folder.join(file), &source, None, &metadata)?;
        }
        write_json(&folder.join("scheduler"), "scheduler_config.json", &scheduler)?;
        write_json(folder, "model_index.json", &index)
    }

    /// The published family of this form.
    pub fn published(&self) -> Family {
        match self.family {
            RandomFamily::Sd1 | RandomFamily::Tiny | RandomFamily::TinyLcm => Family::Sd1,
            RandomFamily::Sd2 | RandomFamily::TinySd2 => Family::Sd2Base,
            RandomFamily::Sdxl | RandomFamily::TinySdxl => Family::SdxlBase,
            RandomFamily::TinyRefiner => Family::SdxlRefiner,
        }
    }

    fn configs(&self) -> Result<Vec<(Component, Value)>, PipelineError> {
        let text = |width: usize, layers: usize, heads: usize, activation: &str, class: &str| {
            json!({
                "architectures": [class], "model_type": "clip_text_model", "hidden_size": width,
                "intermediate_size": 4 * width, "num_hidden_layers": layers, "num_attention_heads": heads,
                "hidden_act": activation, "projection_dim": width, "vocab_size": 49408, "max_position_embeddings": 77,
                "eos_token_id": 49407,
            })
        };
        const CROSS_DOWN: &str = "CrossAttnDownBlock2D";
        const CROSS_UP: &str = "CrossAttnUpBlock2D";
        const PLAIN: &str = "CLIPTextModel";
        const PROJECTED: &str = "CLIPTextModelWithProjection";
        let clip_l = || text(768, 12, 12, "quick_gelu", PLAIN);
        let vae = AutoencoderConfig::stable_diffusion().to_diffusers();
        Ok(match self.family {
            RandomFamily::Tiny => tiny(self.in_channels, text(32, 2, 2, "quick_gelu", PLAIN)),
            RandomFamily::TinyLcm => {
                let mut parts = tiny(self.in_channels, text(32, 2, 2, "quick_gelu", PLAIN));
                parts[0].1["time_cond_proj_dim"] = 32.into();
                parts
            }
            RandomFamily::TinySd2 => {
                let mut parts = tiny(self.in_channels, text(32, 3, 2, "gelu", PLAIN));
                parts[0].1 = json!({
                    "_class_name": "UNet2DConditionModel", "in_channels": self.in_channels, "out_channels": 4, "sample_size": 8,
                    "block_out_channels": [32, 64, 64, 64], "layers_per_block": 2, "attention_head_dim": [4, 8, 8, 8],
                    "cross_attention_dim": 32, "norm_num_groups": 32, "use_linear_projection": true,
                    "down_block_types": [CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, "DownBlock2D"],
                    "up_block_types": ["UpBlock2D", CROSS_UP, CROSS_UP, CROSS_UP],
                });
                parts
            }
            RandomFamily::TinySdxl => {
                let mut parts = tiny(self.in_channels, text(32, 3, 2, "quick_gelu", PLAIN));
                parts.push((Component::TextEncoder2, text(32, 3, 2, "gelu", PROJECTED)));
                add_numbers(&mut parts[0].1, 64, 6);
                parts
            }
            RandomFamily::TinyRefiner => {
                let mut parts = tiny(self.in_channels, text(32, 3, 2, "gelu", PROJECTED));
                parts[2].0 = Component::TextEncoder2;
                add_numbers(&mut parts[0].1, 32, 5);
                parts
            }
            RandomFamily::Sd1 => vec![
                (Component::Unet, self.unet(UNetConfig::stable_diffusion_1(), 64)?),
                (Component::Vae, vae),
                (Component::TextEncoder, clip_l()),
            ],
            RandomFamily::Sd2 => vec![
                (Component::Unet, self.unet(UNetConfig::stable_diffusion_2(), 64)?),
                (Component::Vae, vae),
                (Component::TextEncoder, text(1024, 23, 16, "gelu", PLAIN)),
            ],
            RandomFamily::Sdxl => vec![
                (Component::Unet, self.unet(UNetConfig::stable_diffusion_xl(), 128)?),
                (Component::Vae, AutoencoderConfig::stable_diffusion_xl().to_diffusers()),
                (Component::TextEncoder, clip_l()),
                (Component::TextEncoder2, text(1280, 32, 20, "gelu", PROJECTED)),
            ],
        })
    }

    fn unet(&self, config: UNetConfig, side: usize) -> Result<Value, PipelineError> {
        let config = UNetConfig { sample_size: Some(side), in_channels: self.in_channels, ..config };
        config.to_diffusers().map_err(|error| PipelineError::setting(error.to_string()))
    }
}

/// A UNet, an autoencoder and a text encoder of a few hundred thousand parameters each; most are the token table's.
fn tiny(in_channels: usize, text: Value) -> Vec<(Component, Value)> {
    let unet = json!({
        "_class_name": "UNet2DConditionModel", "in_channels": in_channels, "out_channels": 4, "sample_size": 8,
        "block_out_channels": [32, 64], "layers_per_block": 1, "attention_head_dim": 4, "cross_attention_dim": 32,
        "norm_num_groups": 8, "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    });
    let vae = json!({
        "_class_name": "AutoencoderKL", "block_out_channels": [16, 16, 32, 32], "layers_per_block": 1,
        "norm_num_groups": 8, "latent_channels": 4, "scaling_factor": 0.18215,
        "down_block_types": vec!["DownEncoderBlock2D"; 4], "up_block_types": vec!["UpDecoderBlock2D"; 4],
    });
    vec![(Component::Unet, unet), (Component::Vae, vae), (Component::TextEncoder, text)]
}

/// Makes a tiny UNet take a pooled text of 32 channels and numbers besides hidden states of `width` channels.
fn add_numbers(unet: &mut Value, width: usize, numbers: usize) {
    const FEATURES: usize = 16;
    unet["cross_attention_dim"] = width.into();
    unet["addition_embed_type"] = "text_time".into();
    unet["addition_time_embed_dim"] = FEATURES.into();
    unet["projection_class_embeddings_input_dim"] = (32 + numbers * FEATURES).into();
    unet["use_linear_projection"] = true.into();
}

fn write_json(folder: &Path, name: &str, value: &Value) -> Result<(), PipelineError> {
    let path = folder.join(name);
    let written = std::fs::create_dir_all(folder).and_then(|()| durable::write_json(&path, value));
    written.map_err(PipelineError::io("write", &path))
}

/// Random tensors: matrices keep the size of what goes through them, scales of norms are near one and biases near zero.
struct RandomTensors {
    path: PathBuf,
    specs: Vec<TensorSpec>,
    dtype: Dtype,
    /// Normal numbers, which all tensors repeat from places of their own. A prime length, so that no rows of a matrix are
    /// alike.
    noise: Vec<f32>,
}

/// Elements after which the noise repeats.
const NOISE: usize = 65_537;

impl RandomTensors {
    fn new(path: &Path, specs: Vec<TensorSpec>, seed: u64, dtype: Dtype) -> Self {
        let mut noise = vec![0.0; NOISE];
        Stream::new(seed, Purpose::WeightInit, 0).fill_normal(&mut noise);
        Self { path: path.to_owned(), specs, dtype, noise }
    }

    /// One round of the noise for a tensor, from its own place.
    fn round(&self, number: usize) -> Vec<f32> {
        let TensorSpec { name, shape } = &self.specs[number];
        let fan: usize = shape.iter().skip(1).product();
        let (by, shift) = match shape.len() {
            0 | 1 => (0.02, if name.ends_with("bias") { 0.0 } else { 1.0 }),
            _ => ((fan as f32).powf(-0.5), 0.0),
        };
        let from = number.wrapping_mul(7919) % NOISE;
        self.noise[from..].iter().chain(&self.noise[..from]).map(|x| x * by + shift).collect()
    }
}

impl TensorSource for RandomTensors {
    fn origin(&self) -> &Path {
        &self.path
    }

    fn entries(&self) -> Vec<TensorInfo> {
        let info =
            |spec: &TensorSpec| TensorInfo { name: spec.name.clone(), dtype: self.dtype, shape: spec.shape.clone() };
        self.specs.iter().map(info).collect()
    }

    fn tensor(&self, name: &str) -> Result<NamedTensor<'_>, TensorFileError> {
        let missing = || TensorFileError::MissingTensor {
            file: self.path.clone(),
            tensor: name.to_owned(),
            count: self.specs.len(),
            nearest: None,
        };
        let number = self.specs.iter().position(|spec| spec.name == name).ok_or_else(missing)?;
        let values = self.round(number);
        let round: Vec<u8> = match self.dtype {
            Dtype::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
            Dtype::BF16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
            Dtype::F32 => values.iter().flat_map(|&x| x.to_le_bytes()).collect(),
            other => {
                return Err(TensorFileError::Unwritable {
                    file: self.path.clone(),
                    tensor: name.to_owned(),
                    reason: format!("random weights are F32, F16 or BF16, not {other}"),
                });
            }
        };
        let shape = self.specs[number].shape.clone();
        let mut data = vec![0; shape.iter().product::<usize>() * self.dtype.size()];
        data.chunks_mut(round.len()).for_each(|piece| piece.copy_from_slice(&round[..piece.len()]));
        Ok(NamedTensor { name: name.to_owned(), dtype: self.dtype, shape, data: Cow::Owned(data) })
    }
}
