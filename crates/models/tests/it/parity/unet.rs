//! UNets of every family.

use super::golden::{Golden, channels_first, cosine, filled, input, picture, relative_error, uniform};
use burn::tensor::{DType, Device, Tensor};
use calotype_models::state::{WeightPrecision, values_of};
use calotype_models::unet::UNet;
use calotype_models::{AddedConditions, AddedConfig, PerLevel, UNetConfig};

const BATCH: usize = 2;
pub const TIMESTEPS: [f32; BATCH] = [3.0, 721.5];
pub const TEXT_CHANNELS: usize = 20;

/// Name, configuration, and sides of the latent of each case of the script.
fn cases() -> Vec<(&'static str, UNetConfig, [usize; 2])> {
    let sd1 = UNetConfig {
        block_out_channels: vec![16, 32, 32, 32],
        head_channels: vec![8, 16, 16, 16],
        context_channels: 24,
        norm_groups: 8,
        transformer_norm_groups: 8,
        linear_projection: false,
        ..UNetConfig::default()
    };
    let sd2 = UNetConfig { linear_projection: true, head_channels: vec![8; 4], ..sd1.clone() };
    let added = |numbers: usize| Some(AddedConfig { time_features: 8, input_channels: TEXT_CHANNELS + 8 * numbers });
    let xl = UNetConfig {
        block_out_channels: vec![16, 32, 32],
        attention_levels: vec![false, true, true],
        head_channels: vec![16, 16, 8],
        transformer_depth: PerLevel::Each(vec![1, 2, 3]),
        added: added(6),
        ..sd2.clone()
    };
    let refiner = UNetConfig {
        block_out_channels: vec![16, 32, 48, 48],
        attention_levels: vec![false, true, true, false],
        head_channels: vec![16, 16, 12, 12],
        transformer_depth: PerLevel::Same(2),
        added: added(5),
        ..sd2.clone()
    };
    vec![
        ("sd1", sd1.clone(), [8, 8]),
        ("sd2", sd2.clone(), [8, 8]),
        ("mlperf", UNetConfig { norm_groups: 4, ..sd2.clone() }, [8, 8]),
        ("pix2pix", UNetConfig { in_channels: 8, ..sd1.clone() }, [8, 8]),
        ("inpainting", UNetConfig { in_channels: 9, ..sd1 }, [8, 8]),
        ("xl", xl, [8, 8]),
        ("refiner", refiner, [8, 8]),
        ("odd", UNetConfig { flip_sin_to_cos: false, freq_shift: 1.0, ..sd2 }, [11, 6]),
    ]
}

/// The configuration of one case.
pub fn case(name: &str) -> UNetConfig {
    cases().into_iter().find(|case| case.0 == name).unwrap_or_else(|| panic!("no case {name}")).1
}

/// The inputs of a case.
struct Inputs {
    sample: Tensor<4>,
    context: Tensor<3>,
    added: Option<AddedConditions>,
}

impl Inputs {
    fn new(config: &UNetConfig, [height, width]: [usize; 2], device: &Device) -> Self {
        let added = config.added.as_ref().map(|added| {
            let numbers = BATCH * (added.input_channels - TEXT_CHANNELS) / added.time_features;
            AddedConditions {
                text_embeds: input("text_embeds", [BATCH, TEXT_CHANNELS], device),
                time_ids: uniform("time_ids").take(numbers).map(|u| (u as f32).abs() * 1000.0).collect(),
            }
        });
        Self {
            sample: picture("sample", [BATCH, config.in_channels, height, width], device),
            context: input("encoder_hidden_states", [BATCH, 5, 24], device),
            added,
        }
    }

    fn output(&self, unet: &UNet, dtype: DType) -> Tensor<4> {
        unet.forward(self.sample.clone().cast(dtype), &TIMESTEPS, self.context.clone(), self.added.as_ref())
    }
}

#[test]
fn outputs() {
    let golden = Golden::open("unet");
    let device = Device::flex();
    for (name, config, side) in cases() {
        let unet = filled(WeightPrecision::F32, &device, |init| config.init(init).unwrap());
        golden.check_layout(name, &unet);
        let inputs = Inputs::new(&config, side, &device);
        let expected = golden.values(&format!("{name}/sample"));
        let error = relative_error(&channels_first(inputs.output(&unet, DType::F32)), &expected);
        assert!(error < 2e-5, "{name}: relative error {error}");
        for precision in [WeightPrecision::F32, WeightPrecision::Bf16] {
            let unet = filled(precision, &device, |init| config.init(init).unwrap());
            let found = channels_first(inputs.output(&unet, DType::BF16));
            let cosine = cosine(&found, &expected);
            assert!(cosine > 0.999, "{name}, bf16, weights {precision:?}: cosine {cosine}");
        }
    }
}

#[test]
fn gradients() {
    let golden = Golden::open("unet");
    let device = Device::flex().autodiff();
    for (name, config, side) in cases() {
        let unet = filled(WeightPrecision::F32, &device, |init| config.init(init).unwrap());
        let mut inputs = Inputs::new(&config, side, &device);
        inputs.sample = inputs.sample.require_grad();
        inputs.context = inputs.context.require_grad();
        inputs.added = inputs.added.map(|a| AddedConditions { text_embeds: a.text_embeds.require_grad(), ..a });
        let output = inputs.output(&unet, DType::F32);
        let [_, height, width, channels] = output.dims();
        let seed = picture("grad_output", [BATCH, channels, height, width], &device);
        let gradients = (output * seed).sum().backward();
        golden.check_gradients(name, &unet, &gradients);
        let same = |key: &str, found: Vec<f32>| {
            let error = relative_error(&found, &golden.values(&format!("{name}/grad.{key}")));
            assert!(error < 1e-3, "{name}: gradient of {key}: relative error {error}");
        };
        same("sample", channels_first(inputs.sample.grad(&gradients).unwrap()));
        same("encoder_hidden_states", values_of(inputs.context.grad(&gradients).unwrap()));
        if let Some(added) = &inputs.added {
            same("text_embeds", values_of(added.text_embeds.grad(&gradients).unwrap()));
        }
        for (key, gradient) in crate::common::gradients(&unet, &gradients) {
            if ["conv_out.bias", "time_embedding.linear_1.bias"].contains(&key.as_str()) {
                same(&key, gradient.unwrap());
            }
        }
    }
}

/// Inputs that do not fit are told apart, and nothing panics before they are.
#[test]
fn inputs_are_checked() {
    let device = Device::flex();
    let (_, config, side) = cases().into_iter().find(|case| case.0 == "xl").unwrap();
    let unet = config.init(&mut calotype_models::Init::placeholders(&device)).unwrap();
    let Inputs { sample, context, added } = Inputs::new(&config, side, &device);
    let added = added.unwrap();
    let message = |sample: &Tensor<4>, timesteps: &[f32], context: &Tensor<3>, added: Option<&AddedConditions>| {
        unet.check(sample, timesteps, context, added).unwrap_err().to_string()
    };
    assert_eq!(unet.check(&sample, &TIMESTEPS, &context, Some(&added)), Ok(()));
    let nine = input("nine", [2, 8, 8, 9], &device);
    assert_eq!(message(&nine, &TIMESTEPS, &context, Some(&added)), "sample has 9 channels, not 4");
    assert_eq!(message(&sample, &[1.0], &context, Some(&added)), "timestep has 1 values, not 2");
    let wide = input("wide", [2, 5, 25], &device);
    assert_eq!(message(&sample, &TIMESTEPS, &wide, Some(&added)), "encoder_hidden_states has 25 channels, not 24");
    assert!(message(&sample, &TIMESTEPS, &context, None).contains("needs text_embeds"));
    let short = AddedConditions { time_ids: vec![1.0; 11], ..added.clone() };
    assert_eq!(message(&sample, &TIMESTEPS, &context, Some(&short)), "time_ids has 11 numbers, not 12");
    let odd = AddedConditions { text_embeds: input("odd", [2, 21], &device), ..added };
    assert_eq!(message(&sample, &TIMESTEPS, &context, Some(&odd)), "text_embeds has 21 channels, not 28");
}
