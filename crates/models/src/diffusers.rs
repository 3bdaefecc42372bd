//! Model configurations in the form of diffusers' `config.json`.
//!
//! A field that would change the result and is not built here is an error that names it, and so is a field that is not
//! known: a model must not run as something that it is not.

use crate::unet::PerLevel;
use crate::{AddedConfig, AutoencoderConfig, ConfigError, UNetConfig};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// A configuration that cannot be built, with everything that stands in the way.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{class} configuration: {}", .problems.join("; "))]
pub struct DiffusersError {
    /// The diffusers class that the configuration is for.
    pub class: &'static str,
    /// One sentence for each field at fault.
    pub problems: Vec<String>,
}

/// What diffusers' `UNet2DConditionModel` makes of a field, where only that is built here.
fn unet_constants() -> Vec<(&'static str, Vec<Value>)> {
    vec![
        ("center_input_sample", vec![json!(false)]),
        ("only_cross_attention", vec![json!(false)]),
        ("mid_block_only_cross_attention", vec![json!(null), json!(false)]),
        ("downsample_padding", vec![json!(1)]),
        ("mid_block_scale_factor", vec![json!(1)]),
        ("mid_block_type", vec![json!("UNetMidBlock2DCrossAttn")]),
        ("dropout", vec![json!(0)]),
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
        ("time_cond_proj_dim", vec![json!(null)]),
        ("conv_in_kernel", vec![json!(3)]),
        ("conv_out_kernel", vec![json!(3)]),
        ("attention_type", vec![json!("default")]),
        ("cross_attention_norm", vec![json!(null)]),
    ]
}

/// Fields of a UNet's configuration without an effect here: attention is always summed in `f32`, and the heads are those of
/// a text embedding that is refused.
const UNET_IGNORED: [&str; 2] = ["upcast_attention", "addition_embed_type_num_heads"];

const WITH_ATTENTION: [&str; 2] = ["CrossAttnDownBlock2D", "CrossAttnUpBlock2D"];
const WITHOUT_ATTENTION: [&str; 2] = ["DownBlock2D", "UpBlock2D"];

/// A number, or one for each level, as diffusers writes it.
#[derive(serde::Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(usize),
    Many(Vec<usize>),
}

impl OneOrMany {
    fn levels(self, levels: usize) -> Vec<usize> {
        match self {
            Self::One(number) => vec![number; levels],
            Self::Many(numbers) => numbers,
        }
    }
}

/// Reads the fields of one configuration; notes what was asked for and what is wrong.
struct Fields<'a> {
    class: &'static str,
    object: Option<&'a Map<String, Value>>,
    known: BTreeSet<&'static str>,
    problems: Vec<String>,
}

impl<'a> Fields<'a> {
    fn new(class: &'static str, config: &'a Value) -> Self {
        let object = config.as_object();
        let mut problems = Vec::new();
        if object.is_none() {
            problems.push("is not a JSON object".to_owned());
        }
        let found = object.and_then(|o| o.get("_class_name")).and_then(Value::as_str);
        if let Some(found) = found.filter(|found| *found != class) {
            problems.push(format!("`_class_name` is {found}, which is another model"));
        }
        Self { class, object, known: BTreeSet::new(), problems }
    }

    fn raw(&mut self, name: &'static str) -> Option<&'a Value> {
        self.known.insert(name);
        self.object.and_then(|object| object.get(name))
    }

    /// A field's value, or what diffusers takes where it is missing.
    fn get<T: DeserializeOwned>(&mut self, name: &'static str, default: T) -> T {
        let Some(value) = self.raw(name) else { return default };
        T::deserialize(value).unwrap_or_else(|error| {
            self.problems.push(format!("`{name}` = {value}: {error}"));
            default
        })
    }

    /// A field with one number for each level.
    fn levels(&mut self, name: &'static str, default: usize, levels: usize) -> Vec<usize> {
        let numbers = self.get(name, OneOrMany::One(default)).levels(levels);
        if numbers.len() != levels {
            self.problems.push(format!("`{name}` has {} entries for {levels} levels", numbers.len()));
            return vec![default; levels];
        }
        numbers
    }

    /// A field that may be a list but must have the same number everywhere.
    fn uniform(&mut self, name: &'static str, default: usize) -> usize {
        let numbers = self.get(name, OneOrMany::One(default)).levels(1);
        let first = numbers.first().copied().unwrap_or(default);
        if numbers.iter().any(|&number| number != first) {
            self.problems.push(format!("`{name}` = {numbers:?}: only the same for all levels is built"));
        }
        first
    }

    /// Fields of which only these values are built; a list must have one of them everywhere.
    fn constants(&mut self, table: Vec<(&'static str, Vec<Value>)>) {
        for (name, allowed) in table {
            let Some(value) = self.raw(name) else { continue };
            let fits = |value: &Value| allowed.iter().any(|allowed| equal(value, allowed));
            if !fits(value) && !value.as_array().is_some_and(|values| values.iter().all(fits)) {
                let allowed = allowed.iter().map(Value::to_string).collect::<Vec<_>>().join(" or ");
                self.problems.push(format!("`{name}` = {value} is not built, only {allowed}"));
            }
        }
    }

    /// Notes a sentence about the fields.
    fn check(&mut self, ok: bool, problem: impl FnOnce() -> String) {
        if !ok {
            self.problems.push(problem());
        }
    }

    /// The configuration, if nothing was wrong.
    fn finish<C>(mut self, config: C, validate: fn(&C) -> Result<(), ConfigError>) -> Result<C, DiffusersError> {
        let names = self.object.into_iter().flat_map(Map::keys);
        let unknown: Vec<&str> =
            names.map(String::as_str).filter(|n| !n.starts_with('_') && !self.known.contains(n)).collect();
        if !unknown.is_empty() {
            self.problems.push(format!("unknown fields: {}", unknown.join(", ")));
        }
        if self.problems.is_empty()
            && let Err(error) = validate(&config)
        {
            self.problems.push(error.to_string());
        }
        match self.problems.is_empty() {
            true => Ok(config),
            false => Err(DiffusersError { class: self.class, problems: self.problems }),
        }
    }
}

/// Equality of JSON values for which 1 and 1.0 are the same.
fn equal(a: &Value, b: &Value) -> bool {
    a == b || a.as_f64().is_some_and(|a| b.as_f64() == Some(a))
}

impl UNetConfig {
    const CLASS: &str = "UNet2DConditionModel";

    /// Reads the `config.json` of a diffusers UNet; fields that are missing have diffusers' defaults.
    ///
    /// `attention_head_dim` is the number of heads of each level there, in spite of its name.
    ///
    /// # Errors
    /// [`DiffusersError`] with every field that is unknown or asks for what is not built.
    pub fn from_diffusers(config: &Value) -> Result<Self, DiffusersError> {
        let mut fields = Fields::new(Self::CLASS, config);
        fields.constants(unet_constants());
        UNET_IGNORED.iter().for_each(|name| _ = fields.raw(name));
        let block_out_channels: Vec<usize> = fields.get("block_out_channels", vec![320, 640, 1280, 1280]);
        let levels = block_out_channels.len();
        let heads = fields.levels("attention_head_dim", 8, levels);
        let head_channels = block_out_channels.iter().zip(&heads).map(|(&channels, &heads)| {
            let ok = heads > 0 && channels.is_multiple_of(heads);
            fields.check(ok, || format!("`attention_head_dim`: {heads} heads do not divide {channels} channels"));
            if ok { channels / heads } else { 1 }
        });
        let head_channels = head_channels.collect();
        let norm_groups = fields.get("norm_num_groups", 32);
        let depths = fields.levels("transformer_layers_per_block", 1, levels);
        let one_depth = depths.first().copied().filter(|first| depths.iter().all(|depth| depth == first));
        let unet = Self {
            in_channels: fields.get("in_channels", 4),
            out_channels: fields.get("out_channels", 4),
            layers_per_block: fields.uniform("layers_per_block", 2),
            attention_levels: attention_levels(&mut fields, levels),
            head_channels,
            transformer_depth: one_depth.map_or(PerLevel::Each(depths), PerLevel::Same),
            linear_projection: fields.get("use_linear_projection", false),
            context_channels: fields.uniform("cross_attention_dim", 1280),
            norm_groups,
            norm_eps: fields.get("norm_eps", 1e-5),
            // Not a field of diffusers; key maps say so what MLPerf's variant is.
            transformer_norm_groups: fields.get("transformer_norm_num_groups", norm_groups),
            flip_sin_to_cos: fields.get("flip_sin_to_cos", true),
            freq_shift: fields.get("freq_shift", 0.0),
            sample_size: sample_size(&mut fields),
            added: added(&mut fields),
            block_out_channels,
            ..Self::default()
        };
        fields.finish(unet, Self::validate)
    }

    /// The same network as diffusers' `config.json`.
    ///
    /// # Errors
    /// [`DiffusersError`] if diffusers has no field for what it is: its transformers' norms have the residual blocks'
    /// groups (the MLPerf variant's do not) and an epsilon of 1e-6.
    pub fn to_diffusers(&self) -> Result<Value, DiffusersError> {
        let mut problems = Vec::new();
        if self.transformer_norm_groups != self.norm_groups {
            problems.push(format!(
                "norms of {} groups in residual blocks and {} in transformers have no field there",
                self.norm_groups, self.transformer_norm_groups
            ));
        }
        if self.transformer_norm_eps != UNetConfig::default().transformer_norm_eps {
            problems.push(format!("transformer_norm_eps = {} has no field there", self.transformer_norm_eps));
        }
        if !problems.is_empty() {
            return Err(DiffusersError { class: Self::CLASS, problems });
        }
        let levels = 0..self.block_out_channels.len();
        let block = |side: usize| move |&with: &bool| if with { WITH_ATTENTION[side] } else { WITHOUT_ATTENTION[side] };
        let heads: Vec<usize> = self.block_out_channels.iter().zip(&self.head_channels).map(|(c, h)| c / h).collect();
        let depths: Vec<usize> = levels.map(|level| self.transformer_depth.at(level)).collect();
        Ok(json!({
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
        }))
    }
}

/// The number with the decimals that an `f32` has, not those of the `f64` next to it.
fn shortest(number: f32) -> f64 {
    number.to_string().parse().unwrap_or(f64::from(number))
}

/// Which levels have transformers; the way up must mirror the way down.
fn attention_levels(fields: &mut Fields<'_>, levels: usize) -> Vec<bool> {
    let defaults = |side: usize| {
        let last = std::iter::once(WITHOUT_ATTENTION[side].to_owned());
        let mut types: Vec<String> = vec![WITH_ATTENTION[side].to_owned(); 3];
        types.extend(last);
        types
    };
    let down: Vec<String> = fields.get("down_block_types", defaults(0));
    let default_up = defaults(1).into_iter().rev().collect();
    let up: Vec<String> = fields.get("up_block_types", default_up);
    for (name, types, side) in [("down_block_types", &down, 0), ("up_block_types", &up, 1)] {
        fields.check(types.len() == levels, || format!("`{name}` has {} entries for {levels} levels", types.len()));
        for kind in types {
            let built = [WITH_ATTENTION[side], WITHOUT_ATTENTION[side]];
            fields.check(built.contains(&kind.as_str()), || {
                format!("`{name}`: {kind} is not built, only {} and {}", built[0], built[1])
            });
        }
    }
    let with: Vec<bool> = down.iter().map(|kind| kind == WITH_ATTENTION[0]).collect();
    let mirrored = up.iter().rev().map(|kind| kind == WITH_ATTENTION[1]).eq(with.iter().copied());
    fields.check(mirrored, || "`up_block_types` is not the mirror of `down_block_types`".to_owned());
    with
}

/// `sample_size`: one number, or none; of a list, the first.
fn sample_size(fields: &mut Fields<'_>) -> Option<usize> {
    let size: Option<OneOrMany> = fields.get("sample_size", None);
    size.and_then(|size| size.levels(1).first().copied())
}

/// The conditions beside the text states.
fn added(fields: &mut Fields<'_>) -> Option<AddedConfig> {
    let kind: Option<String> = fields.get("addition_embed_type", None);
    let time_features: Option<usize> = fields.get("addition_time_embed_dim", None);
    let input_channels: Option<usize> = fields.get("projection_class_embeddings_input_dim", None);
    match (kind.as_deref(), time_features, input_channels) {
        (None, _, _) => None,
        (Some("text_time"), Some(time_features), Some(input_channels)) => {
            Some(AddedConfig { time_features, input_channels })
        }
        (Some("text_time"), _, _) => {
            let needed = "`addition_time_embed_dim` and `projection_class_embeddings_input_dim`";
            fields.check(false, || format!("`addition_embed_type` text_time needs {needed}"));
            None
        }
        (Some(other), _, _) => {
            fields.check(false, || format!("`addition_embed_type` = {other} is not built, only null and text_time"));
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
    /// [`DiffusersError`] with every field that is unknown or asks for what is not built.
    pub fn from_diffusers(config: &Value) -> Result<Self, DiffusersError> {
        let mut fields = Fields::new(Self::CLASS, config);
        let in_channels = fields.get("in_channels", 3);
        fields.constants(vec![
            ("out_channels", vec![json!(in_channels)]),
            ("act_fn", vec![json!("silu"), json!("swish")]),
            ("down_block_types", vec![json!(Self::DOWN)]),
            ("up_block_types", vec![json!(Self::UP)]),
            ("shift_factor", vec![json!(null)]),
        ]);
        let block_out_channels: Vec<usize> = fields.get("block_out_channels", vec![64]);
        for name in ["down_block_types", "up_block_types"] {
            let types = fields.raw(name).and_then(Value::as_array).map_or(1, Vec::len);
            let levels = block_out_channels.len();
            fields.check(types == levels, || format!("`{name}` has {types} entries for {levels} levels"));
        }
        let autoencoder = Self {
            in_channels,
            latent_channels: fields.get("latent_channels", 4),
            block_out_channels,
            layers_per_block: fields.get("layers_per_block", 1),
            norm_groups: fields.get("norm_num_groups", 32),
            mid_attention: fields.get("mid_block_add_attention", true),
            use_quant_conv: fields.get("use_quant_conv", true),
            use_post_quant_conv: fields.get("use_post_quant_conv", true),
            sample_size: sample_size(&mut fields).unwrap_or(32),
            force_upcast: fields.get("force_upcast", true),
            scaling_factor: Some(fields.get("scaling_factor", Self::STABLE_DIFFUSION_SCALE)),
            latents_mean: fields.get("latents_mean", None),
            latents_std: fields.get("latents_std", None),
        };
        fields.finish(autoencoder, Self::validate)
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
        ] {
            assert_eq!(UNetConfig::from_diffusers(&config.to_diffusers().unwrap()).unwrap(), config);
        }
        let error = UNetConfig::mlperf_stable_diffusion_2().to_diffusers().unwrap_err().to_string();
        assert!(error.contains("16 groups"), "{error}");
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
            ("time_cond_proj_dim", json!(256)),
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
