#![no_main]
//! Files of adapters of every kind, on a model of a few parameters.

use calotype_fuzz::input_file;
use calotype_weights::lora::{Component, LoraOptions, LoraSet};
use calotype_weights::{Dtype, TensorInfo};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|content: &[u8]| {
    let info = |name: &str, shape: &[usize]| TensorInfo { name: name.into(), dtype: Dtype::F32, shape: shape.to_vec() };
    let unet = vec![info("conv_in.weight", &[4, 4, 3, 3]), info("mid_block.attentions.0.proj_in.weight", &[4, 6])];
    let text = vec![info("text_model.encoder.layers.0.mlp.fc1.weight", &[6, 4])];
    let model = [(Component::Unet, unet), (Component::TextEncoder, text)];
    let mut set = LoraSet::new(&model);
    let path = input_file("adapter.safetensors", content);
    let options = LoraOptions { allow_unused: true, ..LoraOptions::default() };
    if let Ok(report) = set.add_path(&path, 0.5, &options) {
        for (component, key) in report.changed {
            let shape = model.iter().flat_map(|(_, infos)| infos).find(|info| info.name == key).map(|info| info.elements());
            let mut values = vec![1.0; shape.expect("a parameter of the model")];
            set.apply(component, &key, &mut values);
        }
    }
});
