//! `inspect`, `convert`, `probe` and `generate --model` on a small Stable Diffusion of random weights.

use crate::common::{calotype, fail, succeed, text};
use calotype_core::{Purpose, Stream};
use calotype_pipeline::random_checkpoint::{RandomCheckpoint, RandomFamily};
use calotype_weights::{NamedTensor, TensorFile, write_safetensors};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use tempfile::TempDir;

/// A diffusers folder that all tests read.
static FOLDER: LazyLock<(TempDir, PathBuf)> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    write_pipeline(&path, 4);
    (folder, path)
});

fn model() -> &'static Path {
    &FOLDER.1
}

fn write_pipeline(path: &Path, in_channels: usize) {
    RandomCheckpoint { in_channels, ..RandomCheckpoint::new(RandomFamily::Tiny) }.write(path).unwrap();
}

/// Draws with a few steps; returns the paths of the images.
fn generate(out: &Path, more: &[&str]) -> Vec<PathBuf> {
    let mut command =
        calotype(&["generate", "a cat", "two boats", "--steps", "3", "--seed", "9", "--precision", "f32"]);
    let said = succeed(command.arg("--model").arg(model()).arg("--out").arg(out).args(more)).stdout;
    said.lines().filter(|line| line.ends_with(".png")).map(PathBuf::from).collect()
}

fn bytes(paths: &[PathBuf]) -> Vec<Vec<u8>> {
    paths
        .iter()
        .map(|path| calotype_data::image::RgbImage::decode("", &fs::read(path).unwrap()).unwrap().into_data())
        .collect()
}

#[test]
fn inspect_tells_what_a_folder_is() {
    let said = succeed(calotype(&["inspect", "--json"]).arg(model())).stdout;
    let report: Value = serde_json::from_str(&said).unwrap();
    let text = report.to_string();
    for part in ["unet", "vae", "text_encoder", "epsilon", "diffusers"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
}

#[test]
fn conversions_round_trip_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let [single, ours, back] = ["single.safetensors", "ours", "back"].map(|name| folder.path().join(name));
    for (from, to, layout) in
        [(model(), &single, "single-file"), (&single, &ours, "calotype"), (&ours, &back, "diffusers")]
    {
        succeed(calotype(&["convert"]).arg(from).arg(to).args(["--to", layout]));
    }
    for component in ["unet", "vae"] {
        let file = format!("{component}/diffusion_pytorch_model.safetensors");
        let [before, after] = [model(), &back].map(|folder| TensorFile::open(folder.join(&file)).unwrap());
        assert_eq!(before.len(), after.len());
        for tensor in before.tensors() {
            assert_eq!(tensor.data(), after.get(tensor.name()).unwrap().data(), "{component}: {}", tensor.name());
        }
    }
    fail(calotype(&["convert"]).arg(model()).arg(&back).args(["--to", "diffusers"]), 2, &["back", "exists already"]);
}

#[test]
fn pictures_do_not_depend_on_batch_layout_or_repetition() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let alone = generate(&at("alone"), &[]);
    assert_eq!(alone.len(), 2);
    let pixels = bytes(&alone);
    assert_ne!(pixels[0], pixels[1]);
    assert_eq!(pixels[0].len(), 64 * 64 * 3, "the checkpoint's own size is 8 latents");
    assert_eq!(bytes(&generate(&at("together"), &["--batch", "2"])), pixels);
    let single = at("single.safetensors");
    succeed(calotype(&["convert"]).arg(model()).arg(&single).args(["--to", "single-file"]));
    let mut command =
        calotype(&["generate", "a cat", "two boats", "--steps", "3", "--seed", "9", "--precision", "f32"]);
    succeed(command.arg("--model").arg(&single).arg("--out").arg(at("converted")));
    let converted: Vec<PathBuf> = (0..2).map(|i| at("converted").join(format!("{i:05}.png"))).collect();
    assert_eq!(bytes(&converted), pixels);
    // An image knows how it was made.
    let mut command = calotype(&["generate", "--from", text(&alone[1])]);
    succeed(command.arg("--out").arg(at("again")));
    assert_eq!(fs::read(at("again").join("00001.png")).unwrap(), fs::read(&alone[1]).unwrap());
}

#[test]
fn pictures_from_pictures() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let first = generate(&at("first"), &["--count", "1", "--preview", text(&at("preview.png"))]);
    assert!(at("preview.png").exists());
    let image = text(&first[0]);
    let near = bytes(&generate(&at("near"), &["--image", image, "--strength", "0.4"]));
    assert_ne!(near[0], bytes(&first)[0]);
    let mask = generate(&at("mask"), &["--sampler", "euler_ancestral"]);
    let masked = generate(
        &at("masked"),
        &["--image", image, "--mask", text(&mask[0]), "--sampler", "dpm_multistep", "--karras"],
    );
    assert_eq!(masked.len(), 2);
}

#[test]
fn a_probe_gives_outputs_and_gradients_by_the_checkpoints_keys() {
    let folder = tempfile::tempdir().unwrap();
    let [single, given, out] =
        ["single.safetensors", "in.safetensors", "out.safetensors"].map(|n| folder.path().join(n));
    succeed(calotype(&["convert"]).arg(model()).arg(&single).args(["--to", "single-file"]));
    let shapes: [(&str, &[usize]); 4] = [
        ("sample", &[2, 4, 8, 8]),
        ("timestep", &[2]),
        ("encoder_hidden_states", &[2, 7, 32]),
        ("grad_output", &[2, 4, 8, 8]),
    ];
    let values: Vec<Vec<f32>> = (90..)
        .zip(shapes)
        .map(|(number, (_, shape))| {
            let mut values = vec![0.0; shape.iter().product()];
            Stream::new(1, Purpose::Noise, number).fill_normal(&mut values);
            values
        })
        .collect();
    let tensors: Vec<NamedTensor> = shapes
        .iter()
        .zip(&values)
        .map(|((name, shape), values)| NamedTensor::from_f32(*name, *shape, values))
        .collect();
    write_safetensors(&given, &tensors, &BTreeMap::new()).unwrap();
    let probe = |model: &Path, more: &[&str]| {
        let mut command = calotype(&["probe", "unet"]);
        succeed(command.arg("--model").arg(model).arg("--in").arg(&given).arg("--out").arg(&out).args(more));
        TensorFile::open(&out).unwrap()
    };
    let plain = probe(model(), &["--grad"]);
    let sample = plain.get("sample").unwrap().to_f32_vec_finite().unwrap();
    let of_input = plain.get("grad.sample").unwrap();
    assert_eq!(of_input.shape(), [2, 4, 8, 8]);
    let key = "grad.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight";
    let gradient = plain.get(key).unwrap().to_f32_vec_finite().unwrap();
    assert!(gradient.iter().any(|&g| g != 0.0));
    let stored = probe(&single, &["--grad"]);
    assert_eq!(stored.get("sample").unwrap().to_f32_vec().unwrap(), sample);
    let key = "grad.model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight";
    assert_eq!(stored.get(key).unwrap().to_f32_vec().unwrap(), gradient);
    let half = probe(model(), &["--precision", "bf16"]).get("sample").unwrap().to_f32_vec().unwrap();
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
    assert!(dot(&half, &sample) / (dot(&half, &half) * dot(&sample, &sample)).sqrt() > 0.999);
    let mut wrong = calotype(&["probe", "vae-decoder"]);
    fail(wrong.arg("--model").arg(model()).arg("--in").arg(&given).arg("--out").arg(&out), 1, &["timestep", "--help"]);
}

#[test]
fn what_cannot_be_drawn_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let try_with = |code: i32, model: &Path, more: &[&str], parts: &[&str]| {
        let mut command = calotype(&["generate", "a cat", "--steps", "2"]);
        fail(command.arg("--model").arg(model).arg("--out").arg(&out).args(more), code, parts);
    };
    try_with(1, Path::new("/nowhere"), &[], &["/nowhere"]);
    try_with(2, model(), &["--width", "65"], &["65 pixels", "multiples of 8"]);
    try_with(2, model(), &["--sampler", "eulre"], &["eulre", "euler"]);
    try_with(2, model(), &["--mask", "mask.png"], &["--image"]);
    try_with(1, model(), &["--lora", "none.safetensors=0.5"], &["none.safetensors"]);
    try_with(2, model(), &["--karras"], &["pndm"]);
    let inpainting = folder.path().join("inpainting");
    write_pipeline(&inpainting, 9);
    try_with(2, &inpainting, &[], &["9 input channels", "--mask"]);
    let broken = folder.path().join("broken");
    write_pipeline(&broken, 4);
    let file = broken.join("unet/diffusion_pytorch_model.safetensors");
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    try_with(1, &broken, &[], &["diffusion_pytorch_model.safetensors", "truncated"]);
}
