//! Model configurations in the form of diffusers' `config.json`.
//!
//! A field that would change the result and is not built here is an error that names it, and so is a field that is not
//! known: a model must not run as something that it is not.

use crate::unet::PerLevel;
use crate::{AddedConfig, AutoencoderConfig, UNetConfig};
use calotype_core::fields::{FieldProblem, Fields, FieldsError, MOST};
use serde_json::{Value, json};

/// Fields of diffusers' `UNet2DConditionModel` of which only these values are built here.
fn unet_constants() -> Vec<(&'static str, Vec<Value>)> {
    vec![
        ("center_input_sample", vec![json!(false)]),
        ("only_cross_attention", vec![json!(false)]),
        ("mid_block_only_cross_attention", vec![json!(null), json!(false)]),
        ("downsample_padding", vec![json!(1)]),
        ("mid_block_scale_factor", vec![json!(1)]),
        ("mid_block_type", vec![json!("UNetMidBlock2DCrossAttn")]),
        ("act_fn", vec![json!("silu"), json!("swish")]),
        ("reverse_transformer_layers_per_block", vec![json!(null)]),
        ("encoder_hid_dim", vec![json!(null)]),
        ("encoder_hid_dim_type", vec![json!(null)]),
        ("num_attention_heads", vec![json!(null)]),
        ("dual_cross_attention", vec![json!(false)]),
        ("class_embed_type", vec![json!(null)]),
        ("num_class_embeds", vec![json!(null)]),
        ("class_embeddings_concat", vec![json!(false)]),
        ("resnet_time_scale_shift", vec![json!("default")]),
        ("resnet_skip_time_act", vec![json!(false)]),
        ("resnet_out_scale_factor", vec![json!(1)]),
        ("time_embedding_type", vec![json!("positional")]),
        ("time_embedding_dim", vec![json!(null)]),
        ("time_embedding_act_fn", vec![json!(null)]),
        ("timestep_post_act", vec![json!(null)]),
        ("conv_in_kernel", vec![json!(3)]),
        ("conv_out_kernel", vec![json!(3)]),
        ("attention_type", vec![json!("default")]),
        ("cross_attention_norm", vec![json!(null)]),
    ]
}

/// Fields of a UNet's configuration without an effect here: attention is always summed in `f32`, the heads are those of a
/// text embedding that is refused, and nothing is dropped where images are drawn.
const UNET_IGNORED: [&str; 3] = ["upcast_attention", "addition_embed_type_num_heads", "dropout"];

/// What diffusers' `EMAModel.save_pretrained` adds to a configuration (diffusers 0.42, `EMAModel.state_dict`).
const AVERAGES: [&str; 7] =
    ["decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power"];

const WITH_ATTENTION: [&str; 2] = ["CrossAttnDownBlock2D", "CrossAttnUpBlock2D"];
const WITHOUT_ATTENTION: [&str; 2] = ["DownBlock2D", "UpBlock2D"];

/// Most residual blocks of a level, and most transformer blocks of a spatial transformer.
const MOST_RESNETS: usize = 16;
const MOST_TRANSFORMERS: usize = 64;

impl UNetConfig {
    const CLASS: &str = "UNet2DConditionModel";

    /// Reads the `config.json` of a diffusers UNet; fields that are missing have diffusers' defaults.
    ///
    /// `attention_head_dim` is the number of heads of each level there, in spite of its name.
    ///
    /// # Errors
    /// [`FieldsError`] with every field that is unknown or asks for what is not built.
    pub fn from_diffusers(config: &Value) -> Result<Self, FieldsError> {
        let mut fields = Fields::new(Self::CLASS, config).with_nulls();
        let unet = Self::read(&mut fields);
        fields.refuse_unknown();
        fields.finish_checked(unet, Self::validate)
    }

    /// The fields of a configuration that are not known, and are passed for they have no effect.
    pub fn passed_fields(config: &Value) -> Vec<String> {
        let mut fields = Fields::new(Self::CLASS, config).with_nulls();
        Self::read(&mut fields);
        fields.passed()
    }

    fn read(fields: &mut Fields<'_>) -> Self {
        fields.kind("_class_name", &[Self::CLASS]);
        fields.harmless(AVERAGES.map(|name| (name, None)));
        unet_constants().iter().for_each(|(name, allowed)| fields.fixed(name, allowed));
        fields.ignore(&UNET_IGNORED);
        quantization(fields);
        let block_out_channels = fields.levels("block_out_channels", &[320, 640, 1280, 1280]);
        let levels = block_out_channels.len();
        let norm_groups = fields.size("norm_num_groups", 32);
        let depths = fields.per_level("transformer_layers_per_block", 1, levels, 1..=MOST_TRANSFORMERS);
        let one_depth = depths.first().copied().filter(|first| depths.iter().all(|depth| depth == first));
        Self {
            in_channels: fields.size("in_channels", 4),
            out_channels: fields.size("out_channels", 4),
            layers_per_block: fields.uniform("layers_per_block", 2, 1..=MOST_RESNETS),
            attention_levels: attention_levels(fields, levels),
            head_channels: head_channels(fields, &block_out_channels),
            transformer_depth: one_depth.map_or(PerLevel::Each(depths), PerLevel::Same),
            linear_projection: fields.get("use_linear_projection", false),
            context_channels: fields.uniform("cross_attention_dim", 1280, 1..=MOST),
            norm_groups,
            norm_eps: fields.number("norm_eps", 1e-5) as f32,
            transformer_norm_groups: fields.size(TRANSFORMER_GROUPS, norm_groups),
            flip_sin_to_cos: fields.get("flip_sin_to_cos", true),
            freq_shift: fields.number("freq_shift", 0.0) as f32,
            sample_size: sample_size(fields),
            added: added(fields),
            guidance_features: fields.optional_size(GUIDANCE_FEATURES),
            block_out_channels,
            ..Self::default()
        }
    }

    /// The same network as diffusers' `config.json`.
    ///
    /// # Errors
    /// [`FieldsError`] if diffusers has no field for what it is: its transformers' norms have the residual blocks'
    /// groups (the MLPerf variant's do not) and an epsilon of 1e-6.
    pub fn to_diffusers(&self) -> Result<Value, FieldsError> {
        let mut problems: Vec<FieldProblem> = self.odd_epsilon().into_iter().collect();
        if self.transformer_norm_groups != self.norm_groups {
            let value = format!("{} beside norm_groups = {}", self.transformer_norm_groups, self.norm_groups);
            problems.push(unsaid("transformer_norm_groups", value));
        }
        self.written_unless(problems)
    }

    /// The same as [`UNetConfig::to_diffusers`], with the field `transformer_norm_num_groups` for what only Calotype reads.
    ///
    /// # Errors
    /// [`FieldsError`] if there is no field for its transformers' norms' epsilon.
    pub fn to_calotype(&self) -> Result<Value, FieldsError> {
        let mut config = self.written_unless(self.odd_epsilon().into_iter().collect())?;
        if self.transformer_norm_groups != self.norm_groups {
            config[TRANSFORMER_GROUPS] = self.transformer_norm_groups.into();
        }
        Ok(config)
    }

    fn odd_epsilon(&self) -> Option<FieldProblem> {
        let odd = self.transformer_norm_eps != UNetConfig::default().transformer_norm_eps;
        odd.then(|| unsaid("transformer_norm_eps", self.transformer_norm_eps.to_string()))
    }

    /// diffusers' fields, if nothing speaks against it.
    fn written_unless(&self, problems: Vec<FieldProblem>) -> Result<Value, FieldsError> {
        if !problems.is_empty() {
            return Err(FieldsError { what: Self::CLASS.to_owned(), problems });
        }
        let levels = 0..self.block_out_channels.len();
        let block = |side: usize| move |&with: &bool| if with { WITH_ATTENTION[side] } else { WITHOUT_ATTENTION[side] };
        let heads: Vec<usize> = self.block_out_channels.iter().zip(&self.head_channels).map(|(c, h)| c / h).collect();
        let depths: Vec<usize> = levels.map(|level| self.transformer_depth.at(level)).collect();
        let mut config = json!({
            "_class_name": Self::CLASS,
            "act_fn": "silu",
            "addition_embed_type": self.added.as_ref().map(|_| "text_time"),
            "addition_time_embed_dim": self.added.as_ref().map(|added| added.time_features),
            "attention_head_dim": heads,
            "block_out_channels": self.block_out_channels,
            "cross_attention_dim": self.context_channels,
            "down_block_types": self.attention_levels.iter().map(block(0)).collect::<Vec<_>>(),
            "flip_sin_to_cos": self.flip_sin_to_cos,
            "freq_shift": shortest(self.freq_shift),
            "in_channels": self.in_channels,
            "layers_per_block": self.layers_per_block,
            "norm_eps": shortest(self.norm_eps),
            "norm_num_groups": self.norm_groups,
            "out_channels": self.out_channels,
            "projection_class_embeddings_input_dim": self.added.as_ref().map(|added| added.input_channels),
            "sample_size": self.sample_size,
            "transformer_layers_per_block": depths,
            "up_block_types": self.attention_levels.iter().rev().map(block(1)).collect::<Vec<_>>(),
            "use_linear_projection": self.linear_projection,
        });
        if let Some(features) = self.guidance_features {
            config[GUIDANCE_FEATURES] = features.into();
        }
        Ok(config)
    }
}

/// Features of the guidance scale, in networks that are told it.
const GUIDANCE_FEATURES: &str = "time_cond_proj_dim";
/// What `quantization_config` says of weights in 8 bits: `calotype quantize` writes `quant_method` = this. Scales stand beside the weights.
pub const QUANTIZATION: &str = "calotype-int8";

/// Refuses weights that are quantised in other ways.
fn quantization(fields: &mut Fields<'_>) {
    const FIELD: &str = "quantization_config";
    let method = match fields.raw(FIELD) {
        None | Some(Value::Null) => return,
        Some(config) => config["quant_method"].as_str().unwrap_or("none").to_owned(),
    };
    fields.check(method == QUANTIZATION, FIELD, || {
        format!("`quant_method` is {method}, and only {QUANTIZATION} is read: take weights that are not quantised")
    });
}

/// Not a field of diffusers: Calotype's own layout and the key maps of MLPerf's variant say with it what the groups of the
/// transformers' norms are.
const TRANSFORMER_GROUPS: &str = "transformer_norm_num_groups";

fn unsaid(field: &str, value: String) -> FieldProblem {
    let problem = "has no field in diffusers' configuration".to_owned();
    FieldProblem { field: field.to_owned(), value: Some(value), problem, unknown: false }
}

/// The number with the decimals that an `f32` has, not those of the `f64` next to it.
fn shortest(number: f32) -> f64 {
    number.to_string().parse().unwrap_or(f64::from(number))
}

/// Channels of a head in each level: `attention_head_dim` is the number of heads.
fn head_channels(fields: &mut Fields<'_>, channels: &[usize]) -> Vec<usize> {
    const FIELD: &str = "attention_head_dim";
    let heads = fields.per_level(FIELD, 8, channels.len(), 1..=MOST);
    let one = |(&channels, &heads): (&usize, &usize)| {
        let ok = channels.is_multiple_of(heads);
        fields.check(ok, FIELD, || format!("{heads} heads do not divide {channels} channels"));
        if ok { channels / heads } else { 1 }
    };
    channels.iter().zip(&heads).map(one).collect()
}

/// The levels that have transformers; the way up must mirror the way down.
fn attention_levels(fields: &mut Fields<'_>, levels: usize) -> Vec<bool> {
    const FIELDS: [&str; 2] = ["down_block_types", "up_block_types"];
    let with_default = |side: usize| {
        let (with, without) = (WITH_ATTENTION[side], WITHOUT_ATTENTION[side]);
        let down = [with, with, with, without].map(str::to_owned);
        if side == 0 { down.to_vec() } else { down.into_iter().rev().collect() }
    };
    let [down, up] = [0, 1].map(|side| {
        let types: Vec<String> = fields.get(FIELDS[side], with_default(side));
        let entries = types.len();
        fields.check(entries == levels, FIELDS[side], || format!("has {entries} entries for {levels} levels"));
        let built = [WITH_ATTENTION[side], WITHOUT_ATTENTION[side]];
        if let Some(other) = types.iter().find(|kind| !built.contains(&kind.as_str())) {
            fields.problem(FIELDS[side], format!("{other} is not built, only {} and {}", built[0], built[1]));
        }
        types.iter().map(|kind| kind == WITH_ATTENTION[side]).collect::<Vec<bool>>()
    });
    let mirrored = up.iter().rev().eq(&down);
    fields.check(mirrored, FIELDS[1], || format!("is not the mirror of {}", FIELDS[0]));
    down
}

/// `sample_size`: one number, or none; of a list, the first.
fn sample_size(fields: &mut Fields<'_>) -> Option<usize> {
    const FIELD: &str = "sample_size";
    match fields.raw(FIELD) {
        Some(Value::Array(sides)) => {
            let size = sides.first().and_then(Value::as_u64).filter(|&size| (1..=MOST as u64).contains(&size));
            fields.check(size.is_some(), FIELD, || format!("must be whole numbers from 1 to {MOST}"));
            size.map(|size| size as usize)
        }
        _ => fields.optional_size(FIELD),
    }
}

/// The conditions beside the text states.
fn added(fields: &mut Fields<'_>) -> Option<AddedConfig> {
    const FIELDS: [&str; 3] =
        ["addition_embed_type", "addition_time_embed_dim", "projection_class_embeddings_input_dim"];
    fields.fixed(FIELDS[0], &[json!(null), json!("text_time")]);
    let is_there = fields.raw(FIELDS[0]).is_some_and(|kind| !kind.is_null());
    match (is_there, fields.optional_size(FIELDS[1]), fields.optional_size(FIELDS[2])) {
        (false, _, _) => None,
        (true, Some(time_features), Some(input_channels)) => Some(AddedConfig { time_features, input_channels }),
        (true, _, _) => {
            fields.problem(FIELDS[0], format!("needs `{}` and `{}`", FIELDS[1], FIELDS[2]));
            None
        }
    }
}

impl AutoencoderConfig {
    const CLASS: &str = "AutoencoderKL";
    const DOWN: &str = "DownEncoderBlock2D";
    const UP: &str = "UpDecoderBlock2D";

    /// Reads the `config.json` of a diffusers autoencoder; fields that are missing have diffusers' defaults.
    ///
    /// # Errors
    /// [`FieldsError`] with every field that is unknown or asks for what is not built.
    pub fn from_diffusers(config: &Value) -> Result<Self, FieldsError> {
        let mut fields = Fields::new(Self::CLASS, config).with_nulls();
        let autoencoder = Self::read(&mut fields);
        fields.refuse_unknown();
        fields.finish_checked(autoencoder, Self::validate)
    }

    /// The fields of a configuration that are not known, and are passed for they have no effect.
    pub fn passed_fields(config: &Value) -> Vec<String> {
        let mut fields = Fields::new(Self::CLASS, config).with_nulls();
        Self::read(&mut fields);
        fields.passed()
    }

    fn read(fields: &mut Fields<'_>) -> Self {
        fields.kind("_class_name", &[Self::CLASS]);
        fields.harmless(AVERAGES.map(|name| (name, None)));
        let in_channels = fields.size("in_channels", 3);
        let block_out_channels = fields.levels("block_out_channels", &[64]);
        fields.fixed("out_channels", &[json!(in_channels)]);
        fields.fixed("act_fn", &[json!("silu"), json!("swish")]);
        fields.fixed("shift_factor", &[json!(null)]);
        for (name, built) in [("down_block_types", Self::DOWN), ("up_block_types", Self::UP)] {
            fields.fixed(name, &[json!(built)]);
            let types = fields.raw(name).and_then(Value::as_array).map_or(1, Vec::len);
            let levels = block_out_channels.len();
            fields.check(types == levels, name, || format!("has {types} entries for {levels} levels"));
        }
        Self {
            in_channels,
            latent_channels: fields.size("latent_channels", 4),
            block_out_channels,
            layers_per_block: fields.whole("layers_per_block", 1, 1..=MOST_RESNETS),
            norm_groups: fields.size("norm_num_groups", 32),
            mid_attention: fields.get("mid_block_add_attention", true),
            use_quant_conv: fields.get("use_quant_conv", true),
            use_post_quant_conv: fields.get("use_post_quant_conv", true),
            sample_size: sample_size(fields).unwrap_or(32),
            force_upcast: fields.get("force_upcast", true),
            scaling_factor: Some(fields.number("scaling_factor", f64::from(Self::STABLE_DIFFUSION_SCALE)) as f32),
            latents_mean: fields.get("latents_mean", None),
            latents_std: fields.get("latents_std", None),
        }
    }

    /// The same network as diffusers' `config.json`.
    pub fn to_diffusers(&self) -> Value {
        let levels = self.block_out_channels.len();
        let statistics = |values: &Option<Vec<f32>>| values.as_ref().map(|v| v.iter().map(|&x| shortest(x)).collect());
        let [mean, deviation]: [Option<Vec<f64>>; 2] = [statistics(&self.latents_mean), statistics(&self.latents_std)];
        let mut config = json!({
            "_class_name": Self::CLASS,
            "act_fn": "silu",
            "block_out_channels": self.block_out_channels,
            "down_block_types": vec![Self::DOWN; levels],
            "force_upcast": self.force_upcast,
            "in_channels": self.in_channels,
            "latent_channels": self.latent_channels,
            "latents_mean": mean,
            "latents_std": deviation,
            "layers_per_block": self.layers_per_block,
            "mid_block_add_attention": self.mid_attention,
            "norm_num_groups": self.norm_groups,
            "out_channels": self.in_channels,
            "sample_size": self.sample_size,
            "up_block_types": vec![Self::UP; levels],
            "use_post_quant_conv": self.use_post_quant_conv,
            "use_quant_conv": self.use_quant_conv,
        });
        if let Some(scale) = self.scaling_factor {
            config["scaling_factor"] = json!(shortest(scale));
        }
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published configuration of Stable Diffusion 2.1 (768-v), as diffusers writes it.
    fn stable_diffusion_2_1() -> Value {
        json!({
            "_class_name": "UNet2DConditionModel",
            "_diffusers_version": "0.10.0.dev0",
            "act_fn": "silu",
            "attention_head_dim": [5, 10, 20, 20],
            "block_out_channels": [320, 640, 1280, 1280],
            "center_input_sample": false,
            "cross_attention_dim": 1024,
            "down_block_types": [
                "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"
            ],
            "downsample_padding": 1,
            "dual_cross_attention": false,
            "flip_sin_to_cos": true,
            "freq_shift": 0,
            "in_channels": 4,
            "layers_per_block": 2,
            "mid_block_scale_factor": 1,
            "norm_eps": 1e-05,
            "norm_num_groups": 32,
            "num_class_embeds": null,
            "only_cross_attention": false,
            "out_channels": 4,
            "sample_size": 96,
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
            "use_linear_projection": true,
            "upcast_attention": true
        })
    }

    #[test]
    fn published_configurations() {
        let config = UNetConfig::from_diffusers(&stable_diffusion_2_1()).unwrap();
        assert_eq!(config, UNetConfig { sample_size: Some(96), ..UNetConfig::stable_diffusion_2() });
        // Stable Diffusion 1 says 8 for what are 8 heads of every level.
        let sd1 = json!({ "attention_head_dim": 8, "cross_attention_dim": 768, "sample_size": 64 });
        let config = UNetConfig::from_diffusers(&sd1).unwrap();
        assert_eq!(config, UNetConfig { sample_size: Some(64), ..UNetConfig::stable_diffusion_1() });
    }

    #[test]
    fn written_configurations_are_read_again() {
        for config in [
            UNetConfig::stable_diffusion_1(),
            UNetConfig::stable_diffusion_2(),
            UNetConfig::stable_diffusion_xl(),
            UNetConfig::stable_diffusion_xl_refiner(),
            UNetConfig { in_channels: 9, ..UNetConfig::stable_diffusion_1() },
            UNetConfig { guidance_features: Some(256), ..UNetConfig::stable_diffusion_xl() },
        ] {
            assert_eq!(UNetConfig::from_diffusers(&config.to_diffusers().unwrap()).unwrap(), config);
        }
        let error = UNetConfig::mlperf_stable_diffusion_2().to_diffusers().unwrap_err().to_string();
        assert!(error.contains("transformer_norm_groups") && error.contains("16"), "{error}");
        for config in [AutoencoderConfig::stable_diffusion(), AutoencoderConfig::stable_diffusion_xl()] {
            assert_eq!(AutoencoderConfig::from_diffusers(&config.to_diffusers()).unwrap(), config);
        }
    }

    #[test]
    fn what_is_not_built_is_named() {
        let with = |name: &str, value: Value| {
            let mut config = stable_diffusion_2_1();
            config[name] = value;
            UNetConfig::from_diffusers(&config).unwrap_err().to_string()
        };
        for (name, value) in [
            ("only_cross_attention", json!([false, true, false, false])),
            ("time_cond_proj_dim", json!("wide")),
            ("class_embed_type", json!("projection")),
            ("num_attention_heads", json!(8)),
            ("mid_block_type", json!(null)),
            ("encoder_hid_dim_type", json!("text_proj")),
            ("resnet_time_scale_shift", json!("scale_shift")),
            ("addition_embed_type", json!("text_image")),
            ("layers_per_block", json!([2, 2, 2, 1])),
            ("transformer_layers_per_block", json!([[1, 1], [2, 2], [1, 1], [1, 1]])),
            ("norm_num_groups", json!(null)),
            ("attention_head_dim", json!([7, 10, 20, 20])),
            ("down_block_types", json!(["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"])),
            ("brand_new_field", json!(1)),
        ] {
            let error = with(name, value);
            assert!(error.contains(name), "{name}: {error}");
        }
        assert!(with("_class_name", json!("UNet2DModel")).contains("another model"));
        let error = AutoencoderConfig::from_diffusers(&json!({ "shift_factor": 0.1, "act_fn": "relu" })).unwrap_err();
        assert_eq!(error.problems.len(), 2, "{error}");
    }

    /// Sizes that no memory holds are refused before anything is made of them.
    #[test]
    fn hostile_sizes_are_named() {
        let huge = json!(1u64 << 40);
        for name in [
            "in_channels",
            "out_channels",
            "layers_per_block",
            "transformer_layers_per_block",
            "cross_attention_dim",
            "norm_num_groups",
            "attention_head_dim",
            "sample_size",
            "time_cond_proj_dim",
            "addition_time_embed_dim",
            "projection_class_embeddings_input_dim",
        ] {
            let error = UNetConfig::from_diffusers(&json!({ name: huge })).unwrap_err();
            assert!(error.names(name), "{name}: {error}");
        }
        let error = UNetConfig::from_diffusers(&json!({ "block_out_channels": [32, huge] })).unwrap_err();
        assert!(error.names("block_out_channels"), "{error}");
        let error = UNetConfig::from_diffusers(&json!({ "block_out_channels": vec![32; 9] })).unwrap_err();
        assert!(error.names("block_out_channels"), "{error}");
        for name in ["in_channels", "latent_channels", "layers_per_block", "norm_num_groups", "sample_size"] {
            let error = AutoencoderConfig::from_diffusers(&json!({ name: huge })).unwrap_err();
            assert!(error.names(name), "{name}: {error}");
        }
    }

    /// Configurations of earlier versions of this project, and recipes, have none of the newer fields.
    #[test]
    fn older_configurations_are_read() {
        let older = json!({ "in_channels": 4, "transformer_depth": 1, "norm_groups": 16 });
        let config: UNetConfig = serde_json::from_value(older).unwrap();
        assert_eq!(config, UNetConfig { norm_groups: 16, ..UNetConfig::default() });
        let older = json!({ "latent_channels": 4, "mid_attention": true });
        assert_eq!(serde_json::from_value::<AutoencoderConfig>(older).unwrap(), AutoencoderConfig::default());
    }
}
