//! Writes small models of random weights as diffusers and transformers have them, with inputs and outputs, into a folder.
//!
//!     cargo run --release -p calotype-checkpoints --example export -- FOLDER
//!
//! `scripts/parity_exports.py` loads what was written with these libraries and compares.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use calotype_checkpoints::{Component, Export, Facts, ImageProcessor, Part, Placement};
use calotype_core::{Purpose, Stream};
use calotype_models::tokenizer::TokenizerOptions;
use calotype_models::{
    AutoencoderConfig, ClipConfig, ClipTokenizer, HiddenActivation, Init, PerLevel, TextConfig, TextEncoderConfig,
    UNetConfig, VisionConfig, VitConfig,
};
use calotype_weights::{Dtype, NamedTensor, write_safetensors};
use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;

const PROMPTS: [&str; 8] = [
    "",
    "a red circle on a blue background",
    "A photo of a Cat's whiskers, isn't it?",
    "naïve café — 12345 ½",
    "   many    spaces\tand\nlines ",
    "<|startoftext|> within <|endoftext|> text",
    "🏳️‍🌈 a very long prompt that certainly has more than the two dozen tokens which the small tower takes, and then some",
    "wow! really!!",
];
const LENGTH: usize = 24;
const SIDE: usize = 32;

/// Inputs and outputs in the layout of torch.
#[derive(Default)]
struct Expected(Vec<NamedTensor<'static>>);

impl Expected {
    fn put<const D: usize>(&mut self, name: &str, tensor: Tensor<D>) {
        let shape = tensor.dims();
        let values: Vec<f32> = tensor.into_data().iter::<f32>().collect();
        self.0.push(NamedTensor::from_f32(name, shape, &values).into_owned());
    }

    /// Images and latents are channels-first in torch.
    fn put_image(&mut self, name: &str, tensor: Tensor<4>) {
        self.put(name, tensor.permute([0, 3, 1, 2]));
    }

    fn put_ids(&mut self, name: &str, rows: &[Vec<i32>]) {
        let ids: Vec<i64> = rows.iter().flatten().map(|&id| i64::from(id)).collect();
        self.0.push(NamedTensor::from_i64(name, [rows.len(), rows[0].len()], &ids).into_owned());
    }

    fn write(self, folder: &Path) -> Result<(), Box<dyn Error>> {
        Ok(write_safetensors(&folder.join("expected.safetensors"), &self.0, &BTreeMap::new())?)
    }
}

fn noise<const D: usize>(number: u64, shape: [usize; D], device: &Device) -> Tensor<D> {
    let mut values = vec![0f32; shape.iter().product()];
    Stream::new(7, Purpose::Noise, number).fill_normal(&mut values);
    Tensor::from_data(TensorData::new(values, shape), device)
}

fn text_config() -> TextConfig {
    TextConfig {
        context_length: LENGTH,
        channels: 32,
        layers: 2,
        heads: 2,
        activation: HiddenActivation::QuickGelu,
        ..TextConfig::default()
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let out = std::env::args().nth(1).ok_or("usage: export FOLDER")?;
    let (out, device) = (Path::new(&out), Device::flex());
    std::fs::create_dir_all(out)?;
    pipeline(&out.join("pipeline"), &device)?;
    clip(&out.join("clip"), &device)?;
    vit(&out.join("vit"), &device)?;
    std::fs::write(out.join("prompts.json"), serde_json::to_string(&PROMPTS)?)?;
    Ok(())
}

fn pipeline(out: &Path, device: &Device) -> Result<(), Box<dyn Error>> {
    let unet_config = UNetConfig {
        block_out_channels: vec![32, 64],
        layers_per_block: 1,
        attention_levels: vec![false, true],
        head_channels: vec![16, 16],
        transformer_depth: PerLevel::Same(1),
        context_channels: 32,
        norm_groups: 16,
        transformer_norm_groups: 16,
        sample_size: Some(16),
        ..UNetConfig::default()
    };
    let vae_config = AutoencoderConfig {
        block_out_channels: vec![32, 64],
        layers_per_block: 1,
        norm_groups: 16,
        sample_size: SIDE,
        scaling_factor: Some(0.75),
        ..AutoencoderConfig::default()
    };
    let text_config = TextEncoderConfig { text: text_config(), projection: None };
    let mut init = Init::new(1, device);
    // A fresh UNet predicts zero.
    let unet = unet_config.init(&mut Init::repeated_noise(0.05, device))?;
    let vae = vae_config.init(&mut init)?;
    let text = text_config.init(&mut init)?;
    let mut scheduler = (Facts::of(None).scheduler)();
    scheduler["_class_name"] = "DDIMScheduler".into();
    scheduler["prediction_type"] = "v_prediction".into();
    let options = TokenizerOptions::TRANSFORMERS_EXCLAMATION;
    for (folder, dtype) in [(out.to_owned(), None), (out.with_file_name("pipeline-f16"), Some(Dtype::F16))] {
        Export::pipeline(None)
            .part(Part::module(Component::Unet, unet_config.to_diffusers()?, &unet))
            .part(Part::module(Component::Vae, vae_config.to_diffusers(), &vae))
            .part(Part::module(Component::TextEncoder, text_config.to_transformers()?, &text))
            .tokenizer(Component::TextEncoder, options, LENGTH)?
            .scheduler(&scheduler)
            .dtype(dtype)
            .write(&folder, Placement::Replace)?;
    }
    let mut expected = Expected::default();
    let tokenizer = ClipTokenizer::with_options(LENGTH, options);
    let rows: Vec<Vec<i32>> = PROMPTS.iter().map(|prompt| tokenizer.encode(prompt).ids).collect();
    expected.put_ids("ids", &rows);
    let ids = TensorData::new(rows.concat(), [rows.len(), LENGTH]);
    let ids = Tensor::<2, Int>::from_data(ids, device);
    let states = text.forward(ids, DType::F32)?.last_hidden_state;
    expected.put("states", states.clone());
    let x = noise(0, [2, 16, 16, 4], device);
    let context = states.narrow(0, 1, 2);
    expected.put_image("x", x.clone());
    expected.put_image("prediction", unet.forward(x, &[3.0, 700.0], context, None));
    let image = noise(1, [2, SIDE, SIDE, 3], device).tanh();
    expected.put_image("image", image.clone());
    let mean = vae.encode(image).mean();
    expected.put_image("mean", mean.clone());
    expected.put_image("decoded", vae.decode(mean));
    expected.write(out)
}

/// Bytes of an image, and their values as a model takes them.
fn image(processor: &ImageProcessor, device: &Device) -> (Tensor<4>, Tensor<4>) {
    let bytes = noise(2, [1, SIDE, SIDE, 3], device).mul_scalar(60.0).add_scalar(128.0).round().clamp(0.0, 255.0);
    let channels = |values: [f32; 3]| Tensor::<1>::from_floats(values, device).reshape([1, 1, 1, 3]);
    let pixels = (bytes.clone().div_scalar(255.0) - channels(processor.mean)) / channels(processor.std);
    (bytes, pixels)
}

fn clip(out: &Path, device: &Device) -> Result<(), Box<dyn Error>> {
    let vision = VisionConfig {
        image_size: SIDE,
        patch_size: 8,
        channels: 48,
        layers: 2,
        heads: 3,
        activation: HiddenActivation::QuickGelu,
        ..VisionConfig::default()
    };
    let config = ClipConfig { projection: 24, text: text_config(), vision, ..ClipConfig::default() };
    let model = config.init(&mut Init::new(2, device))?;
    let (processor, options) = (ImageProcessor::clip(SIDE), TokenizerOptions::TRANSFORMERS);
    Export::model(Part::module(Component::Clip, config.to_transformers()?, &model))
        .tokenizer(Component::Clip, options, LENGTH)?
        .image_processor(&processor)
        .write(out, Placement::Replace)?;
    let mut expected = Expected::default();
    let (bytes, pixels) = image(&processor, device);
    expected.put("bytes", bytes);
    expected.put_image("pixel_values", pixels.clone());
    expected.put("image_embeds", model.image_features(pixels));
    let tokenizer = ClipTokenizer::with_options(LENGTH, options);
    let rows: Vec<_> = PROMPTS.iter().map(|prompt| tokenizer.encode(prompt)).collect();
    // A prompt that names the end-of-text marker ends where that stands first.
    let end = |ids: &Vec<i32>| ids.iter().position(|&id| id == 49_407).unwrap_or(0);
    let ids: Vec<Vec<i32>> = rows.into_iter().map(|row| row.ids).collect();
    let ends: Vec<usize> = ids.iter().map(end).collect();
    expected.put_ids("ids", &ids);
    let tensor = Tensor::<2, Int>::from_data(TensorData::new(ids.concat(), [ids.len(), LENGTH]), device);
    expected.put("text_embeds", model.text_features(tensor, &ends, DType::F32));
    expected.write(out)
}

fn vit(out: &Path, device: &Device) -> Result<(), Box<dyn Error>> {
    let config = VitConfig {
        image_size: SIDE,
        patch_size: 8,
        channels: 48,
        mlp_channels: 96,
        layers: 2,
        heads: 3,
        labels: 7,
        norm_eps: 1e-6,
        ..VitConfig::default()
    };
    let model = config.init(&mut Init::new(3, device))?;
    let processor = ImageProcessor::vit(SIDE);
    Export::model(Part::module(Component::Classifier, config.to_transformers()?, &model))
        .image_processor(&processor)
        .write(out, Placement::Replace)?;
    let mut expected = Expected::default();
    let (bytes, pixels) = image(&processor, device);
    expected.put("bytes", bytes);
    expected.put_image("pixel_values", pixels.clone());
    expected.put("logits", model.forward(pixels)?);
    expected.write(out)
}
