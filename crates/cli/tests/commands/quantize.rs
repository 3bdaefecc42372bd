//! `quantize`, and what takes its folders.

use crate::common::{calotype, fail, succeed};
use calotype_pipeline::random_checkpoint::{RandomCheckpoint, RandomFamily};
use calotype_weights::{Dtype, NamedTensor, TensorFile, write_safetensors};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

const WEIGHTS: &str = "unet/diffusion_pytorch_model.safetensors";

/// Changes the tensors of a file.
fn rewrite(path: &Path, change: impl Fn(&mut NamedTensor<'static>)) {
    let file = TensorFile::open(path).unwrap();
    let mut tensors: Vec<NamedTensor<'static>> = file.tensors().map(|tensor| tensor.to_named().into_owned()).collect();
    drop(file);
    tensors.iter_mut().for_each(change);
    write_safetensors(path, &tensors, &BTreeMap::new()).unwrap();
}

#[test]
fn a_network_in_8_bits_is_made_inspected_probed_and_drawn_with() {
    let folder = tempfile::tempdir().unwrap();
    let [model, int8, again, captions] =
        ["model", "int8", "again", "captions.txt"].map(|name| folder.path().join(name));
    RandomCheckpoint::new(RandomFamily::Tiny).write(&model).unwrap();
    fs::write(&captions, "a red apple\ntwo boats\n").unwrap();
    let quantize = |out: &Path, more: &[&str]| {
        let mut command = calotype(&["quantize", "--steps", "2"]);
        command.arg(&model).arg("--out").arg(out).args(more);
        command
    };
    let said = succeed(
        quantize(&int8, &["--keep", "mid_block,*.conv_shortcut", "--count", "2"]).arg("--captions").arg(&captions),
    )
    .stdout;
    assert!(said.contains("layers of the UNet in 8 bits"), "{said}");
    // The same captions, the same bytes, whatever the batch and the threads.
    let more = ["--keep", "mid_block", "--keep", "*.conv_shortcut", "--batch", "2", "--threads", "1", "--count", "2"];
    succeed(quantize(&again, &more).arg("--captions").arg(&captions));
    for file in [WEIGHTS, "unet/config.json", "model_index.json"] {
        assert!(fs::read(int8.join(file)).unwrap() == fs::read(again.join(file)).unwrap(), "{file}");
    }
    let said = succeed(calotype(&["inspect"]).arg(&int8)).stdout;
    assert!(said.contains("weights in 8 bits") && said.contains("F32+I8"), "{said}");
    let draw = |out: &str| {
        let mut command = calotype(&["generate", "a cat", "--steps", "2"]);
        command.arg("--model").arg(&int8).arg("--out").arg(folder.path().join(out));
        command
    };
    succeed(&mut draw("drawn"));
    assert!(folder.path().join("drawn/00000.png").is_file());

    // What cannot be has a clear word.
    fail(&mut quantize(&int8, &[]), 2, &["--out", "something is there already"]);
    let out = folder.path().join("other");
    fail(&mut quantize(&out, &["--smoothing", "0", "--count", "2"]), 2, &["--count has no effect with --smoothing 0"]);
    fail(&mut quantize(&out, &["--keep", "*"]), 2, &["--keep names all layers"]);
    let many = ["--captions", "embedded", "--count", "18446744073709551615"];
    fail(&mut quantize(&out, &many), 2, &["--count 18446744073709551615", "embedded captions"]);
    fail(&mut quantize(&out, &["--keep", "mid"]), 2, &["--keep mid", "no such layer"]);
    fail(&mut quantize(&out, &["--captions", "nowhere.txt"]), 2, &["nowhere.txt"]);
    fail(quantize(&out, &["--count", "3"]).arg("--captions").arg(&captions), 2, &["captions.txt", "2 captions"]);
    let convert = |to: &str| {
        let mut command = calotype(&["convert", "--to", to]);
        command.arg(&int8).arg(folder.path().join("converted"));
        command
    };
    fail(&mut convert("single-file"), 2, &["unet is in 8 bits", "convert the checkpoint that it was quantized from"]);
    assert!(!out.exists());

    // Damaged scales, and numbers that are quantised in another way.
    let key = "down_blocks.0.resnets.0.conv1";
    rewrite(&int8.join(WEIGHTS), |tensor| {
        if tensor.name == format!("{key}.weight_scale") {
            tensor.shape = vec![tensor.shape[0] - 1];
            tensor.data = tensor.data[4..].to_vec().into();
            assert_eq!(tensor.dtype, Dtype::F32);
        }
    });
    fail(&mut draw("never"), 1, &[&format!("{key}.weight_scale"), "has shape"]);
    let config = again.join("unet/config.json");
    let text = fs::read_to_string(&config).unwrap().replace("calotype-int8", "bitsandbytes");
    fs::write(&config, text).unwrap();
    let mut inspect = calotype(&["inspect"]);
    fail(inspect.arg(&again), 1, &["quantization_config", "bitsandbytes", "not quantised"]);
}
