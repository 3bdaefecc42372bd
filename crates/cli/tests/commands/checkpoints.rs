//! `inspect`, `convert`, `probe` and `generate --model` on a small Stable Diffusion of random weights.

use crate::common::{calotype, fail, finished, succeed, text};
use calotype_core::{Purpose, Stream};
use calotype_data::image::text::{PngText, add_png_text};
use calotype_data::image::{PngEffort, RgbImage};
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
    paths.iter().map(|path| RgbImage::decode("", &fs::read(path).unwrap()).unwrap().into_data()).collect()
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
    let plain = succeed(calotype(&["convert"]).arg(model()).arg(at("plain")).args(["--to", "single-file"]));
    assert!(plain.stderr.contains("plain has no ending") && plain.stderr.contains("plain.safetensors"), "{plain}");
    assert!(at("plain").is_file());
    let mut command =
        calotype(&["generate", "a cat", "two boats", "--steps", "3", "--seed", "9", "--precision", "f32"]);
    succeed(command.arg("--model").arg(&single).arg("--out").arg(at("converted")));
    let converted: Vec<PathBuf> = (0..2).map(|i| at("converted").join(format!("{i:05}.png"))).collect();
    assert_eq!(bytes(&converted), pixels);
    // An image knows how it was made.
    let mut command = calotype(&["generate", "--from", text(&alone[1])]);
    succeed(command.arg("--out").arg(at("again")));
    assert_eq!(fs::read(at("again").join("00000.png")).unwrap(), fs::read(&alone[1]).unwrap());
    // Every flag changes it, or is an error.
    let again = |code: i32, more: &[&str], parts: &[&str]| {
        let mut command = calotype(&["generate", "--from", text(&alone[1])]);
        command.arg("--out").arg(at("changed")).args(more);
        match code {
            0 => succeed(&mut command).stdout.lines().map(PathBuf::from).collect(),
            code => {
                fail(&mut command, code, parts);
                Vec::new()
            }
        }
    };
    assert_eq!(again(0, &["--count", "2"], &[]).len(), 2);
    again(2, &["--karras"], &["--karras", "pndm"]);
    again(2, &["--background", "black"], &["--background", "--image"]);
    again(2, &["--as-stored"], &["--as-stored", "--image"]);
    again(2, &["--background", "blue"], &["`blue` is no background"]);
    again(2, &["--original-size", "64x64"], &["--original-size", "Stable Diffusion XL"]);
    for flag in ["--aesthetic-score", "--negative-aesthetic-score"] {
        again(2, &[flag, "7"], &[flag, "refiner alone"]);
        again(2, &[flag, "nan"], &[flag, "it takes a number"]);
    }
    again(2, &["--refiner", text(&single), "--refiner-start", "nan"], &["--refiner-start", "a share from 0 to 1"]);
    again(2, &["--refiner", text(&single)], &["--refiner", "no model of Stable Diffusion XL"]);
    again(2, &["--family", "sdxl-base"], &["--family", "takes no sizes", "those of sd1"]);
    let velocity = again(0, &["--prediction", "v_prediction"], &[]);
    assert_ne!(bytes(&velocity)[0], pixels[1]);
    // A second command in the same folder leaves the images of the first.
    let more = generate(&at("alone"), &["--guidance", "2"]);
    assert!(more[0].ends_with("00002.png") && more[1].ends_with("00003.png"), "{more:?}");
    assert_eq!(bytes(&alone), pixels);
    assert_ne!(bytes(&more), pixels);
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

/// Weights in prompts, names of other programs, and their images.
#[test]
fn prompts_samplers_and_images_of_other_programs() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let draw = |out: &str, prompt: &str, more: &[&str]| {
        let mut command = calotype(&["generate", prompt, "--steps", "3", "--precision", "f32", "--model"]);
        let said = succeed(command.arg(model()).arg("--out").arg(at(out)).args(more));
        (bytes(&[PathBuf::from(said.stdout.trim())]), said.stderr)
    };
    let (plain, _) = draw("plain", "a cat", &[]);
    assert_eq!(draw("none", "a cat", &["--prompt-syntax", "a1111"]).0, plain);
    assert_eq!(draw("none", "a cat", &["--prompt-syntax", "compel"]).0, plain);
    // What editors on Windows write: the mark is no part of the prompt.
    fs::write(at("prompts.txt"), "\u{feff}a cat\r\n").unwrap();
    let mut command = calotype(&["generate", "--steps", "3", "--precision", "f32", "--prompts"]);
    let said = succeed(command.arg(at("prompts.txt")).arg("--model").arg(model()).arg("--out").arg(at("file")));
    assert_eq!(bytes(&[PathBuf::from(said.stdout.trim())]), plain);
    assert_ne!(draw("more", "a (cat:1.5)", &["--prompt-syntax", "a1111"]).0, plain);
    assert_ne!(draw("more", "a cat--", &["--prompt-syntax", "compel"]).0, plain);
    let ours = draw("ours", "a cat", &["--sampler", "dpm_multistep", "--karras"]).0;
    assert_eq!(draw("theirs", "a cat", &["--sampler", "DPM++ 2M Karras"]).0, ours);
    for (more, part) in [
        (&["--prompt-syntax", "plane"][..], "plane"),
        (&["--sampler", "DPM2 a"], "the nearest is `Euler a`"),
        (&["--prompt-syntax", "a1111", "(a:1.2.3)"], "the weight `1.2.3` is no number"),
    ] {
        let mut command = calotype(&["generate", "a cat", "--model"]);
        fail(command.arg(model()).arg("--out").arg(at("wrong")).args(more), 2, &[part]);
    }
    // An image of the web interface: its settings draw what the flags do.
    let text = "a (cat:1.5)\nNegative prompt: blurry\nSteps: 3, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 4.5, \
                Seed: 6, Size: 72x64, RNG: CPU, Model: tiny, Hires upscale: 2";
    let png = RgbImage::filled(8, 8, [1; 3]).unwrap().encode_png(PngEffort::Fast).unwrap();
    let texts = [PngText { keyword: "parameters".to_owned(), text: text.to_owned() }];
    fs::write(at("foreign.png"), add_png_text(&png, &texts).unwrap()).unwrap();
    let mut command = calotype(&["generate", "--precision", "f32", "--from"]);
    let said = succeed(command.arg(at("foreign.png")).arg("--model").arg(model()).arg("--out").arg(at("again")));
    assert!(said.stderr.contains("`Hires upscale: 2` has no counterpart"), "{}", said.stderr);
    let flags =
        ["--negative", "blurry", "--sampler", "DPM++ 2M Karras", "--guidance", "4.5", "--seed", "6", "--width", "72"];
    let flags = [&flags[..], &["--height", "64", "--noise", "torch-cpu", "--prompt-syntax", "a1111"]].concat();
    let expected = draw("by_flags", "a (cat:1.5)", &flags).0;
    assert_eq!(bytes(&[PathBuf::from(said.stdout.trim())]), expected);
    fail(calotype(&["generate", "--from"]).arg(at("foreign.png")), 2, &["--model", "`tiny`"]);
}

/// An image to begin with lies as its EXIF orientation says, and without hidden colours.
#[test]
fn images_to_begin_with_are_upright() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/tests/golden/images/orientation_6.jpg");
    let upright = RgbImage::decode("x", &fs::read(&golden).unwrap()).unwrap();
    fs::write(at("upright.png"), upright.encode_png(PngEffort::Fast).unwrap()).unwrap();
    let draw = |image: &Path, more: &[&str]| {
        let mut command =
            calotype(&["generate", "a cat", "--steps", "2", "--strength", "0.5", "--width", "64", "--height"]);
        command.arg("64").arg("--model").arg(model()).arg("--image").arg(image).arg("--out").arg(at("out")).args(more);
        let said = succeed(&mut command);
        (bytes(&[PathBuf::from(said.stdout.trim())]), said.stderr)
    };
    let (turned, told) = draw(&golden, &[]);
    assert_eq!(turned, draw(&at("upright.png"), &[]).0);
    assert!(told.contains("turned upright"), "{told}");
    let (stored, told) = draw(&golden, &["--as-stored"]);
    assert_ne!(stored, turned);
    assert!(told.contains("left as stored"), "{told}");
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
    let mut absent = calotype(&["probe", "unet", "--in", "none.safetensors"]);
    fail(
        absent.arg("--model").arg(model()).arg("--out").arg(&out),
        2,
        &["--in none.safetensors: there is no such file"],
    );
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
    try_with(2, Path::new("/nowhere"), &[], &["/nowhere"]);
    try_with(2, model(), &["--width", "65"], &["65 pixels", "multiples of 8"]);
    let few = ["sampler `pndm` needs at least 4 steps, and 2 were asked for: take more, or the sampler `plms`"];
    try_with(2, &finished().out(), &["--sampler", "pndm"], &few);
    try_with(2, model(), &["--sampler", "eulre"], &["eulre", "did you mean `euler`?"]);
    try_with(2, model(), &["--mask", "mask.png"], &["--image"]);
    try_with(2, model(), &["--lora", "none.safetensors=0.5"], &["none.safetensors"]);
    try_with(2, model(), &["--lora", "none.safetensors=nan"], &["`nan` is no finite number"]);
    try_with(2, model(), &["--embedding", "none.pt=<w>"], &["none.pt", "no such file"]);
    try_with(2, model(), &["--vae", "none.safetensors"], &["none.safetensors"]);
    try_with(2, model(), &["--variant", "fp16"], &["no part of it has weights of the variant fp16"]);
    // What is not a file of the kind asked for is called what it is.
    let weights = model().join("unet/diffusion_pytorch_model.safetensors");
    try_with(1, model(), &["--lora", text(&weights)], &["the weights of a UNet, not an adapter", "--model"]);
    try_with(1, model(), &["--embedding", text(&weights)], &["the weights of a UNet, not an embedding"]);
    // A picture that cannot be written ends the command.
    let nowhere = folder.path().join("none/preview.png");
    try_with(2, model(), &["--preview", text(&nowhere)], &["--preview", "preview.png: there is no folder"]);
    assert!(!out.exists());
    if cfg!(target_os = "linux") {
        try_with(1, model(), &["--preview", "/dev/full"], &["/dev/full"]);
        assert!(!out.exists(), "no image was drawn");
    }
    try_with(2, model(), &["--karras"], &["pndm"]);
    // The flag at fault is named.
    try_with(2, model(), &["--clip-skip", "99"], &["--clip-skip: ", "layers of a text tower"]);
    let picture = folder.path().join("picture.png");
    fs::write(&picture, RgbImage::filled(64, 64, [1; 3]).unwrap().encode_png(PngEffort::Fast).unwrap()).unwrap();
    let strength = ["--image", text(&picture), "--strength", "0"];
    try_with(2, model(), &strength, &["--strength: ", "leaves nothing to do"]);
    let empty = folder.path().join("empty.txt");
    fs::write(&empty, "\n").unwrap();
    try_with(2, model(), &["--prompts", text(&empty)], &["--prompts ", "empty.txt: there is no prompt in the file"]);
    let mut many = calotype(&["generate", "a cat", "--steps", "2000", "--model", text(model()), "--out", text(&out)]);
    fail(&mut many, 2, &["--steps: 2000 sampling steps", "1 to 1000"]);
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

#[test]
fn adapters_words_and_autoencoders_of_other_files() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let plain = bytes(&generate(&at("plain"), &[]));
    let put = |name: &str, tensors: &[(&str, &[usize])]| {
        let values: Vec<f32> = (0..4096).map(|number| (number % 7) as f32 / 7.0 - 0.4).collect();
        let tensors: Vec<NamedTensor> = tensors
            .iter()
            .map(|(key, shape)| NamedTensor::from_f32(*key, *shape, &values[..shape.iter().product()]))
            .collect();
        write_safetensors(&at(name), &tensors, &BTreeMap::new()).unwrap();
        at(name)
    };
    // A word changes the images of prompts that hold it; the file's record draws the image again.
    let word = put("boats.safetensors", &[("emb_params", &[2, 32])]);
    let drawn = generate(&at("word"), &["--embedding", text(&word)]);
    let [cat, boats] = bytes(&drawn).try_into().unwrap();
    assert!(cat == plain[0] && boats != plain[1]);
    let mut again = calotype(&["generate", "--from"]);
    let again = succeed(again.arg(&drawn[1]).arg("--out").arg(at("again"))).stdout;
    assert!(bytes(&[PathBuf::from(again.lines().last().unwrap())]) == [boats]);
    // Another autoencoder, and the same one: a checkpoint's own file.
    let own = model().join("vae");
    assert!(bytes(&generate(&at("own"), &["--vae", text(&own)])) == plain);
    // LoHa on one layer, at weight 0 and 1.
    let key = "lora_unet_mid_block_attentions_0_proj_in";
    let config: Value = serde_json::from_str(&fs::read_to_string(model().join("unet/config.json")).unwrap()).unwrap();
    let width = config["block_out_channels"].as_array().unwrap().last().unwrap().as_u64().unwrap() as usize;
    let parts = ["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"].map(|part| format!("{key}.{part}"));
    let shapes = [[width, 1], [1, width], [width, 1], [1, width]];
    let tensors: Vec<(&str, &[usize])> = parts.iter().zip(&shapes).map(|(key, shape)| (&**key, &shape[..])).collect();
    let loha = put("loha.ckpt", &tensors);
    assert!(bytes(&generate(&at("loha"), &["--lora", text(&loha)])) != plain);
    assert!(bytes(&generate(&at("off"), &["--lora", &format!("{}=0", loha.display())])) == plain);
}
