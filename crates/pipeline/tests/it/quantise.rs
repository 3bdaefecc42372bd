//! A UNet in 8 bits against the one that it was made of.

use burn::tensor::{DType, Device, Tensor, TensorData};
use calotype_checkpoints::loading::Loader;
use calotype_checkpoints::{Checkpoint, Component, ConvertOptions, Target, convert};
use calotype_core::{Purpose, Stream};
use calotype_models::state::{WeightPrecision, values_of};
use calotype_models::{AddedConditions, UNet};
use calotype_pipeline::quantise::{Calibration, Quantisation, Quantised, quantise};
use calotype_pipeline::random_checkpoint::{RandomCheckpoint, RandomFamily};
use calotype_pipeline::{LoadOptions, Observer, Pipeline, PipelineError, Request, Settings};
use calotype_weights::{Dtype, NamedTensor, TensorFile, TensorSource, write_safetensors};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn random(folder: &Path, family: RandomFamily) -> PathBuf {
    let path = folder.join(family.to_string());
    RandomCheckpoint::new(family).write(&path).unwrap();
    path
}

fn noise<const D: usize>(shape: [usize; D], index: u64) -> Tensor<D> {
    let mut values = vec![0.0; shape.iter().product()];
    Stream::new(5, Purpose::Evaluation, index).fill_normal(&mut values);
    Tensor::from_data(TensorData::new(values, shape), &Device::flex())
}

fn unet(path: &Path, precision: WeightPrecision) -> UNet {
    let checkpoint = Checkpoint::open(path).unwrap();
    let device = Device::flex();
    Loader { checkpoint: &checkpoint, device: &device, precision, adapters: None }.unet().unwrap().1
}

/// The UNet's answer to noise.
fn answer(path: &Path, family: RandomFamily, dtype: DType) -> Vec<f32> {
    let precision = if dtype == DType::BF16 { WeightPrecision::Bf16 } else { WeightPrecision::F32 };
    let width = if family == RandomFamily::TinySdxl { 64 } else { 32 };
    let added = (family == RandomFamily::TinySdxl)
        .then(|| AddedConditions { text_embeds: noise([2, 32], 3).cast(dtype), time_ids: vec![64.0; 12] });
    let x = noise([2, 16, 8, 4], 1).cast(dtype);
    let output = unet(path, precision).forward(x, &[700.0, 20.0], noise([2, 77, width], 2).cast(dtype), added.as_ref());
    values_of(output.cast(DType::F32))
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

fn calibration(path: &Path) -> Calibration {
    let pipeline = Pipeline::load(&Checkpoint::open(path).unwrap(), &LoadOptions::default()).unwrap();
    let settings = Settings { steps: 2, batch: 2, ..Settings::default() };
    let captions = ["a red apple", "two boats", ""].map(str::to_owned);
    Calibration::draw(&pipeline, &captions, (1, None), &settings, &mut ()).unwrap()
}

fn quantised(path: &Path, out: &Path, smoothing: f64, keep: &[&str]) -> Result<Quantised, PipelineError> {
    let seen = (smoothing > 0.0).then(|| calibration(path));
    let keep = keep.iter().map(|&layer| layer.to_owned()).collect();
    quantise(&Checkpoint::open(path).unwrap(), seen.as_ref(), &Quantisation { smoothing, keep }, out)
}

#[test]
fn networks_in_8_bits_answer_nearly_the_same() {
    let folder = tempfile::tempdir().unwrap();
    for family in [RandomFamily::Tiny, RandomFamily::TinySd2, RandomFamily::TinySdxl] {
        let path = random(folder.path(), family);
        let exact = answer(&path, family, DType::F32);
        for smoothing in [0.0, 0.5] {
            let out = folder.path().join(format!("{family}-{smoothing}"));
            let told = quantised(&path, &out, smoothing, &[]).unwrap();
            assert!(told.layers > 20 && (told.folded > 0) == (smoothing > 0.0), "{told}");
            for dtype in [DType::F32, DType::BF16] {
                let cosine = cosine(&exact, &answer(&out, family, dtype));
                assert!(cosine >= 0.99, "{family}, smoothing {smoothing}, {dtype:?}: {cosine}");
            }
        }
    }
}

#[test]
fn weights_in_8_bits_are_half_a_step_from_what_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let path = random(folder.path(), RandomFamily::TinySd2);
    let out = folder.path().join("int8");
    quantised(&path, &out, 0.5, &["mid_block", "*.conv_shortcut"]).unwrap();
    let file = TensorFile::open(out.join("unet/diffusion_pytorch_model.safetensors")).unwrap();
    let dtype = |key: &str| file.get(key).map(|tensor| tensor.dtype());
    for key in ["conv_in.weight", "mid_block.resnets.0.conv1.weight", "time_embedding.linear_1.weight"] {
        assert_eq!(dtype(key).unwrap(), Dtype::F32, "{key}");
    }
    let block = "down_blocks.0.attentions.0.transformer_blocks.0";
    assert_eq!(dtype(&format!("{block}.attn1.to_q.weight")).unwrap(), Dtype::I8);
    assert!(dtype(&format!("{block}.attn1.to_q.smooth")).is_err(), "the norm in front divides");
    assert_eq!(dtype(&format!("{block}.attn2.to_k.smooth")).unwrap(), Dtype::F32);
    let [before, after] = [&path, &out].map(|path| Checkpoint::open(path).unwrap().component(Component::Unet).unwrap());
    assert!(after.missing.is_empty() && after.unused.is_empty());
    // The norm's numbers are divided by what the weights of the layers behind it are multiplied by.
    let values = |source: &dyn TensorSource, key: &str| source.tensor(key).unwrap().to_f32_vec().unwrap();
    let norm = format!("{block}.norm2.weight");
    let factors: Vec<f32> = values(&before, &norm).iter().zip(values(&after, &norm)).map(|(a, b)| a / b).collect();
    assert!(factors.iter().any(|factor| (factor - 1.0).abs() > 0.01));
    for (key, factors) in [
        (format!("{block}.attn2.to_q.weight"), factors),
        (format!("{block}.attn2.to_k.weight"), vec![1.0]),
        ("down_blocks.1.resnets.0.conv2.weight".to_owned(), vec![1.0]),
    ] {
        let int8 = after.int8(&key).unwrap().expect("in 8 bits");
        let row = int8.numbers.data.len() / int8.scales.len();
        let inputs = int8.numbers.shape[1];
        let smooth = int8.smooth.clone().unwrap_or_else(|| vec![1.0; inputs]);
        for (at, (a, b)) in values(&before, &key).iter().zip(values(&after, &key)).enumerate() {
            let input = at % row / (row / inputs);
            let step = int8.scales[at / row] / smooth[input];
            let wanted = a * factors[input % factors.len()];
            assert!((wanted - b).abs() <= 0.501 * step + 1e-6 * wanted.abs(), "{key}[{at}]: {b} instead of {wanted}");
        }
    }
}

#[test]
fn pictures_of_a_network_in_8_bits_do_not_depend_on_the_batch() {
    let folder = tempfile::tempdir().unwrap();
    let path = random(folder.path(), RandomFamily::TinySdxl);
    let out = folder.path().join("int8");
    quantised(&path, &out, 0.5, &[]).unwrap();
    let pipeline = Pipeline::load(&Checkpoint::open(&out).unwrap(), &LoadOptions::default()).unwrap();
    let requests: Vec<Request> =
        (0..3).map(|seed| Request { seed, ..Request::new(format!("picture {seed}")) }).collect();
    let drawn = |batch| pipeline.images(&requests, &Settings { steps: 2, batch, ..Settings::default() }).unwrap();
    let [alone, together] = [1, 3].map(drawn);
    for (a, b) in alone.into_iter().zip(together) {
        assert!(a.into_data() == b.into_data());
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = random(folder.path(), RandomFamily::Tiny);
    let out = folder.path().join("int8");
    let error = quantised(&path, &out, 0.0, &["mid_blocks"]).unwrap_err();
    assert!(error.is_usage() && error.to_string().contains("--keep mid_blocks: the UNet has no such layer"), "{error}");
    assert!(!out.exists());
    quantised(&path, &out, 0.0, &[]).unwrap();
    let error = quantised(&out, &folder.path().join("again"), 0.0, &[]).unwrap_err().to_string();
    assert!(error.contains("in 8 bits already"), "{error}");
    for target in [Target::SingleFile, Target::Diffusers, Target::Calotype] {
        let to = folder.path().join("converted");
        let checkpoint = Checkpoint::open(&out).unwrap();
        let error = convert(&checkpoint, &to, target, &ConvertOptions::default()).unwrap_err().to_string();
        assert!(error.contains("unet is in 8 bits"), "{error}");
    }
    struct Stop;
    impl Observer for Stop {
        fn go_on(&mut self) -> bool {
            false
        }
    }
    let pipeline = Pipeline::load(&Checkpoint::open(&path).unwrap(), &LoadOptions::default()).unwrap();
    let draw = |captions: &[String], observer: &mut dyn Observer| {
        Calibration::draw(&pipeline, captions, (0, None), &Settings { steps: 1, ..Settings::default() }, observer)
    };
    assert!(draw(&["a".to_owned()], &mut Stop).unwrap_err().is_stopped());
    assert!(draw(&[], &mut ()).unwrap_err().is_usage());
}

#[test]
fn damaged_numbers_are_named() {
    const LAYER: &str = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k";
    let folder = tempfile::tempdir().unwrap();
    let path = random(folder.path(), RandomFamily::Tiny);
    let out = folder.path().join("int8");
    quantised(&path, &out, 0.5, &[]).unwrap();
    let weights = out.join("unet/diffusion_pytorch_model.safetensors");
    let whole: Vec<NamedTensor<'static>> =
        TensorFile::open(&weights).unwrap().tensors().map(|tensor| tensor.to_named().into_owned()).collect();
    let floats = |values: &[f32]| NamedTensor::from_f32("", vec![values.len()], values).into_owned();
    let cases: [(&str, Option<NamedTensor<'static>>, &str); 8] = [
        ("weight_scale", None, "has element type I8"),
        ("weight_scale", Some(floats(&[1.0; 31])), "has shape [31], expected [32]"),
        ("weight_scale", Some(floats(&[f32::NAN; 32])), "holds NaN at element 0"),
        ("weight_scale", Some(floats(&[-1.0; 32])), "holds -1 at element 0"),
        ("smooth", Some(floats(&[1.0; 33])), "has shape [33], expected [32]"),
        ("smooth", Some(floats(&[0.0; 32])), "holds 0 at element 0"),
        ("smooth", Some(floats(&[f32::INFINITY; 32])), "holds inf at element 0"),
        ("weight", Some(NamedTensor::new("", Dtype::I8, vec![32, 31], vec![0; 32 * 31])), "has shape [32, 31]"),
    ];
    for (end, tensor, message) in cases {
        let name = format!("{LAYER}.{end}");
        let mut tensors = whole.clone();
        let at = tensors.iter().position(|tensor| tensor.name == name).expect("it is there");
        match tensor {
            Some(tensor) => tensors[at] = NamedTensor { name, ..tensor },
            None => drop(tensors.remove(at)),
        }
        write_safetensors(&weights, &tensors, &BTreeMap::new()).unwrap();
        let error = Pipeline::load(&Checkpoint::open(&out).unwrap(), &LoadOptions::default()).unwrap_err().to_string();
        assert!(error.contains(message) && error.contains(LAYER), "{end}: {error}");
    }
    // One scale for all is one for each.
    let mut tensors = whole;
    for tensor in &mut tensors {
        if tensor.name == format!("{LAYER}.weight_scale") {
            *tensor = NamedTensor { name: tensor.name.clone(), ..floats(&[0.01]) };
        }
    }
    write_safetensors(&weights, &tensors, &BTreeMap::new()).unwrap();
    let unet = Checkpoint::open(&out).unwrap().component(Component::Unet).unwrap();
    assert_eq!(unet.int8(&format!("{LAYER}.weight")).unwrap().unwrap().scales, [0.01; 32]);
}
