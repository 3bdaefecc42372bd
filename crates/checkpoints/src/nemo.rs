//! What the `model_config.yaml` of a `.nemo` file says of a CLIP model or a ViT that its weights do not, and that file for models of
//! our own.
//!
//! Sources: NeMo 1.23's `vit_backbone.py`, `megatron_vit_classification_models.py`, `megatron_clip_models.py`, `attention.py` and
//! `mlp.py` of its Megatron modules, and the configurations in `examples/vision` and `examples/multimodal`.

use crate::error::LayoutError;
use crate::kinds::Component;
use crate::recognise::Found;
use calotype_models::vit::Reads;
use calotype_models::{ClipConfig, ClipTokenizer, HiddenActivation, VitConfig};
use calotype_weights::{NamedTensor, NemoFile, Yaml};
use serde_json::Value;
use std::fmt::Write as _;
use std::path::Path;

/// What is assumed of a NeMo checkpoint that has no configuration.
pub(crate) const NO_CONFIG: &str = "the file has no model_config.yaml: queries, keys and values are taken to lie in three blocks \
     (megatron_legacy: True), as in NeMo's published CLIP models; where that is wrong, results are noise";

/// Behind a model's prefix: the bias of the linear layer that patches go through in NeMo 1. CLIP has none; converted models have zeros.
pub(crate) const PATCH_BIAS: &str = "vision_encoder.backbone.linear_encoder.bias";

/// The bias that changes nothing.
pub(crate) fn patch_bias(name: &str, channels: usize) -> NamedTensor<'static> {
    NamedTensor::from_f32(name, [channels], &vec![0.0; channels]).into_owned()
}

/// Whether a tensor is [`patch_bias`], or another one of zeros alone.
pub(crate) fn is_zero(tensor: &NamedTensor<'_>) -> bool {
    tensor.to_f32_vec().is_some_and(|values| values.iter().all(|value| *value == 0.0))
}

/// The towers of a component: where its settings stand in NeMo's configuration and in ours, and the canonical prefix of its attention.
fn towers(component: Component) -> &'static [(Option<&'static str>, Option<&'static str>, &'static str)] {
    match component {
        Component::Classifier => &[(None, None, "vit.")],
        Component::Clip => &[
            (Some("vision"), Some("vision_config"), "vision_model."),
            (Some("text"), Some("text_config"), "text_model."),
        ],
        _ => &[],
    }
}

/// Completes a component of a `.nemo` file by its `model_config.yaml`: heads, epsilon and activation where they are not known yet, and
/// the order of the rows of queries, keys and values.
///
/// # Errors
/// [`LayoutError::Setting`] for a text that cannot be read, with its line, and for a value that a model of ours has no place for, with
/// its name.
pub(crate) fn complete(found: &mut Found, path: &Path, text: &str) -> Result<(), LayoutError> {
    let file = path.join(NemoFile::CONFIG);
    let fault = |problem: String| LayoutError::Setting { path: file.clone(), problem };
    let whole = Yaml::parse(text).map_err(|error| fault(error.to_string()))?;
    // A configuration of a whole run has the model's below `model`.
    let model = whole.get("model").unwrap_or(&whole);
    for (theirs, ours, prefix) in towers(found.component) {
        let settings = Settings { tower: *theirs, values: theirs.map_or(Some(model), |name| model.get(name)) };
        settings.check().map_err(fault)?;
        let config = match ours {
            Some(name) => &mut found.config[*name],
            None => &mut found.config,
        };
        if found.inferred {
            settings.apply(config).map_err(fault)?;
        }
        let heads = config["num_attention_heads"].as_u64().unwrap_or(1) as usize;
        if !settings.flag("megatron_legacy").map_err(fault)? {
            found.map = found.map.clone().by_heads(prefix, heads);
        }
    }
    Ok(())
}

/// The settings of one tower.
struct Settings<'a> {
    tower: Option<&'static str>,
    values: Option<&'a Yaml>,
}

type Read<T> = Result<T, String>;

impl Settings<'_> {
    fn get(&self, name: &str) -> Option<&Yaml> {
        self.values?.get(name).filter(|value| **value != Yaml::Null)
    }

    fn refuse<T>(&self, name: &str, value: &Yaml, why: &str) -> Read<T> {
        let name = self.tower.map_or_else(|| name.to_owned(), |tower| format!("{tower}.{name}"));
        let value = match value {
            Yaml::Text(text) => format!("`{text}`"),
            Yaml::Bool(value) => if *value { "True" } else { "False" }.to_owned(),
            Yaml::Int(number) => number.to_string(),
            Yaml::Float(number) => number.to_string(),
            Yaml::Null | Yaml::List(_) | Yaml::Map(_) => "a list or mapping".to_owned(),
        };
        Err(format!("`{name}` is {value}, {why}"))
    }

    /// A switch, off where it is not there.
    fn flag(&self, name: &str) -> Read<bool> {
        match self.get(name) {
            None => Ok(false),
            Some(Yaml::Bool(value)) => Ok(*value),
            Some(other) => self.refuse(name, other, "and is a switch: True or False"),
        }
    }

    /// Refuses what makes another network of the same weights.
    fn check(&self) -> Read<()> {
        const NETWORKS: &str = "which is another network than those that are built here";
        match self.get("normalization") {
            Some(other) if other.as_str() != Some("layernorm") => self.refuse("normalization", other, NETWORKS)?,
            _ => {}
        }
        for name in ["global_average_pool", "layerscale"] {
            if self.flag(name)? {
                self.refuse(name, &Yaml::Bool(true), NETWORKS)?;
            }
        }
        // Of a classifier any number is built.
        match self.get("class_token_length").filter(|_| self.tower == Some("vision")) {
            Some(other) if *other != Yaml::Int(1) => {
                self.refuse("class_token_length", other, "and a CLIP is built with 1 class token")
            }
            _ => Ok(()),
        }
    }

    fn apply(&self, config: &mut Value) -> Read<()> {
        if let Some(heads) = self.get("num_attention_heads") {
            let width = config["hidden_size"].as_u64().unwrap_or(0);
            let divides =
                |heads: &i64| u64::try_from(*heads).is_ok_and(|heads| heads > 0 && width.is_multiple_of(heads));
            match heads {
                Yaml::Int(number) if divides(number) => config["num_attention_heads"] = (*number).into(),
                other => self.refuse("num_attention_heads", other, &format!("and divides no width of {width}"))?,
            }
        }
        if let Some(epsilon) = self.get("layernorm_epsilon") {
            match epsilon.as_f64().filter(|number| *number > 0.0 && *number < 1.0) {
                Some(number) => config["layer_norm_eps"] = number.into(),
                None => self.refuse("layernorm_epsilon", epsilon, "and is a number from 0 to 1")?,
            }
        }
        config["hidden_act"] = self.activation()?.into();
        Ok(())
    }

    /// transformers' name of the activation: NeMo's `gelu` is exact, unless it is joined with the sum of the bias or OpenAI's is asked
    /// for, which are the approximation by a tanh; its `approx-gelu` is `x · sigmoid(1.702 x)`.
    fn activation(&self) -> Read<&'static str> {
        if self.flag("openai_gelu")? {
            return Ok("gelu_pytorch_tanh");
        }
        match self.get("activation") {
            None => {}
            Some(name) if name.as_str() == Some("gelu") => {}
            Some(name) if name.as_str() == Some("approx-gelu") => return Ok("quick_gelu"),
            Some(other) => return self.refuse("activation", other, "which is none of gelu and approx-gelu"),
        }
        Ok(if self.flag("bias_activation_fusion")? { "gelu_pytorch_tanh" } else { "gelu" })
    }
}

// Writing ----------------------------------------------------------------------------------------------------------------

/// Names of NeMo's classes, of which it makes a model from its file.
const VIT_CLASS: &str =
    "nemo.collections.vision.models.megatron_vit_classification_models.MegatronVitClassificationModel";
const CLIP_CLASS: &str =
    "nemo.collections.multimodal.models.vision_language_foundation.clip.megatron_clip_models.MegatronCLIPModel";

/// What NeMo's code reads of a model's configuration, with values that are true of any model of ours: one process, no mixed
/// precision, no fused kernels.
const MODEL: &str = "precision: 32
micro_batch_size: 1
global_batch_size: 1
tensor_model_parallel_size: 1
pipeline_model_parallel_size: 1
virtual_pipeline_model_parallel_size: null
restore_from_path: null
restore_from_pretrained: null
megatron_amp_O2: false
native_amp_init_scale: 4294967296
native_amp_growth_interval: 1000
hysteresis: 2
grad_allreduce_chunk_size_mb: 125
grad_div_ar_fusion: true
gradient_as_bucket_view: true
seed: 1234
resume_from_checkpoint: null
apex_transformer_log_level: 30
optim:
  name: fused_adam
  lr: 0.001
  weight_decay: 0.0
  betas:
  - 0.9
  - 0.999
  sched:
    name: CosineAnnealing
    warmup_steps: 0
    constant_steps: 0
    min_lr: 0.0
data:
  num_workers: 0
  data_path: null
  dataloader_type: cyclic
  validation_drop_last: true
  data_sharding: false
";

/// The same of one transformer.
const TOWER: &str = "init_method_std: 0.02
use_scaled_init_method: true
attention_dropout: 0.0
kv_channels: null
apply_query_key_layer_scaling: false
normalization: layernorm
do_layer_norm_weight_decay: false
pre_process: true
post_process: true
persist_layer_norm: false
fp32_residual_connection: false
fp16_lm_cross_entropy: false
masked_softmax_fusion: false
bias_dropout_add_fusion: false
bias_activation_fusion: false
megatron_legacy: true
use_cpu_initialization: false
onnx_safe: false
gradient_accumulation_fusion: false
activations_checkpoint_granularity: null
activations_checkpoint_method: null
activations_checkpoint_num_layers: null
num_micro_batches_with_partial_activation_checkpoints: null
activations_checkpoint_layers_per_pipeline: null
sequence_parallel: false
transformer_engine: false
fp8: false
fp8_e4m3: false
fp8_hybrid: false
fp8_margin: 0
fp8_interval: 1
fp8_amax_history_len: 1
fp8_amax_compute_algo: most_recent
use_emha: false
";

/// One transformer's own settings.
struct Tower {
    layers: usize,
    channels: usize,
    mlp_channels: usize,
    heads: usize,
    activation: HiddenActivation,
    norm_eps: f32,
    dropout: f32,
    /// Positions that the tower has, without class tokens.
    positions: usize,
}

impl Tower {
    fn text(&self) -> String {
        let (activation, openai) = match self.activation {
            HiddenActivation::Gelu => ("gelu", false),
            HiddenActivation::QuickGelu => ("approx-gelu", false),
            HiddenActivation::GeluTanh => ("gelu", true),
        };
        let Self { layers, channels, mlp_channels, heads, positions, .. } = self;
        let (epsilon, dropout) = (decimal(self.norm_eps), decimal(self.dropout));
        format!(
            "encoder_seq_length: {positions}\nmax_position_embeddings: {positions}\nnum_layers: {layers}\nhidden_size: {channels}\n\
             ffn_hidden_size: {mlp_channels}\nnum_attention_heads: {heads}\nlayernorm_epsilon: {epsilon}\n\
             hidden_dropout: {dropout}\nactivation: {activation}\nopenai_gelu: {openai}\n{TOWER}"
        )
    }
}

/// A number as every reader of YAML knows it for one: with a point, also in front of an exponent.
fn decimal(number: f32) -> String {
    let text = format!("{number:?}");
    if text.contains('.') { text } else { text.replacen('e', ".0e", 1) }
}

/// An image tower's settings besides.
fn image_text(side: usize, patch: usize, class_tokens: usize) -> String {
    format!(
        "patch_dim: {patch}\nimg_h: {side}\nimg_w: {side}\nnum_channels: 3\nclass_token_length: {class_tokens}\ndrop_patch_rate: 0.0\n\
         drop_path_rate: 0.0\n"
    )
}

/// Lines below a name.
fn below(name: &str, text: &str) -> String {
    text.lines().fold(format!("{name}:\n"), |mut all, line| {
        let _ = writeln!(all, "  {line}");
        all
    })
}

/// The configuration of a classifier, as [`VitConfig::from_transformers`] reads it.
///
/// # Errors
/// The reason for which NeMo has no such network.
pub(crate) fn vit_config(config: &VitConfig) -> Result<String, String> {
    if !config.qkv_bias {
        return Err("its queries, keys and values have no biases, which all of NeMo's have".to_owned());
    }
    if config.reads != Reads::FirstToken {
        return Err(format!("its classifier reads {}, and NeMo's reads the first class token", config.reads.name()));
    }
    let patches = (config.image_size / config.patch_size).pow(2);
    let tower = Tower {
        layers: config.layers,
        channels: config.channels,
        mlp_channels: config.mlp_channels,
        heads: config.heads,
        activation: config.activation,
        norm_eps: config.norm_eps,
        dropout: config.dropout,
        positions: patches,
    };
    let (image, tower) = (image_text(config.image_size, config.patch_size, config.class_tokens), tower.text());
    // Without the layer in front of the classifier it is a fine-tuned one's head.
    let (labels, finetune) = (config.labels, !config.pooling);
    Ok(format!(
        "target: {VIT_CLASS}\nvision_pretraining_type: classify\nnum_classes: {labels}\nfinetune: {finetune}\nclasses_fraction: 1.0\n\
         data_per_class_fraction: 1.0\nposition_embedding_type: learned_absolute\npreprocess_layernorm: false\n{image}{tower}{MODEL}"
    ))
}

/// The configuration of a CLIP model, and what NeMo would make of it that it is not, in full sentences; or why NeMo has no such
/// model.
pub(crate) fn clip_config(config: &ClipConfig) -> Result<(String, Vec<String>), String> {
    let ClipConfig { projection, text, vision, logit_bias } = config;
    if *logit_bias {
        return Err("it has a bias of the logits, which NeMo's CLIP has not".to_owned());
    }
    let positions = (vision.image_size / vision.patch_size).pow(2);
    let image = Tower {
        layers: vision.layers,
        channels: vision.channels,
        mlp_channels: vision.mlp_channels.unwrap_or(4 * vision.channels),
        heads: vision.heads,
        activation: vision.activation,
        norm_eps: vision.norm_eps,
        dropout: 0.0,
        positions,
    };
    let words = Tower {
        layers: text.layers,
        channels: text.channels,
        mlp_channels: text.mlp_channels.unwrap_or(4 * text.channels),
        heads: text.heads,
        activation: text.activation,
        norm_eps: text.norm_eps,
        dropout: 0.0,
        positions: text.context_length,
    };
    let common = format!("precision: 32\noutput_dim: {projection}\nposition_embedding_type: learned_parameters\n");
    let square = image_text(vision.image_size, vision.patch_size, 1);
    let vision_text = format!(
        "{common}{square}image_mean: null\nimage_std: null\nglobal_average_pool: false\npreprocess_layernorm: true\n{}",
        image.text()
    );
    let whole = format!(
        "target: {CLIP_CLASS}\noutput_dim: {projection}\nlocal_loss: false\ngather_with_grad: true\n{}{}tokenizer:\n  library: \
         huggingface\n  type: openai/clip-vit-large-patch14\n  model: null\n  vocab_file: null\n  merge_file: null\n  delimiter: null\n  \
         sentencepiece_legacy: false\nmake_vocab_size_divisible_by: 128\nimagenet_val: null\n{MODEL}",
        below("vision", &vision_text),
        below("text", &format!("{common}{}", words.text())),
    );
    let other = (text.vocab_size != ClipTokenizer::VOCABULARY).then(|| {
        format!(
            "the text encoder has {} tokens, and NeMo makes {} of CLIP's tokenizer: it reads the file, and cannot make the model",
            text.vocab_size,
            ClipTokenizer::VOCABULARY
        )
    });
    Ok((whole, other.into_iter().collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::KeyMap;
    use serde_json::json;

    fn found(component: Component, config: Value) -> Found {
        Found { component, config, inferred: true, map: KeyMap::identity() }
    }

    fn completed(text: &str) -> Result<Found, String> {
        let config =
            json!({ "hidden_size": 12, "num_attention_heads": 3, "layer_norm_eps": 1e-5, "hidden_act": "gelu" });
        let mut found = found(Component::Classifier, config);
        complete(&mut found, Path::new("x.nemo"), text).map_err(|error| error.to_string())?;
        Ok(found)
    }

    #[test]
    fn settings_that_weights_do_not_show_are_taken() {
        let text = "num_attention_heads: 4\nlayernorm_epsilon: 1e-6\nactivation: approx-gelu\nmegatron_legacy: True\n";
        let vit = completed(&format!("name: x\nmodel:\n  {}", text.trim_end().replace('\n', "\n  "))).unwrap();
        let expected =
            json!({ "hidden_size": 12, "num_attention_heads": 4, "layer_norm_eps": 1e-6, "hidden_act": "quick_gelu" });
        assert_eq!(vit.config, expected);
        for (text, activation) in [
            ("", "gelu"),
            ("bias_activation_fusion: True", "gelu_pytorch_tanh"),
            ("openai_gelu: true\nactivation: null", "gelu_pytorch_tanh"),
        ] {
            assert_eq!(completed(text).unwrap().config["hidden_act"], activation, "{text}");
        }
    }

    #[test]
    fn rows_are_ordered_by_heads_unless_the_old_order_is_said() {
        let config = json!({
            "vision_config": { "hidden_size": 8, "num_attention_heads": 2 },
            "text_config": { "hidden_size": 12, "num_attention_heads": 2 },
        });
        let mut clip = found(Component::Clip, config);
        clip.map = crate::rules::nemo_clip("model.", Default::default());
        let text = "vision:\n  megatron_legacy: false\n  num_attention_heads: 4\ntext:\n  megatron_legacy: true\n";
        let several = format!("{text}vision: {{class_token_length: 8}}\n").replacen(
            "vision:\n  megatron_legacy: false\n  num_attention_heads: 4\n",
            "",
            1,
        );
        let error = complete(&mut clip, Path::new("x.nemo"), &several).unwrap_err().to_string();
        assert!(error.contains("`vision.class_token_length` is 8, and a CLIP is built with 1"), "{error}");
        complete(&mut clip, Path::new("x.nemo"), text).unwrap();
        let form = |key: &str| format!("{:?}", clip.map.place(key).unwrap().form);
        let layer = "encoder.layers.3.self_attn.k_proj.weight";
        assert_eq!(form(&format!("vision_model.{layer}")), "HeadThird { part: 1, heads: 4 }");
        assert_eq!(form(&format!("text_model.{layer}")), "Third(1)");
    }

    #[test]
    fn settings_that_do_not_fit_are_named() {
        for (text, part) in [
            ("num_attention_heads: 5", "`num_attention_heads` is 5, and divides no width of 12"),
            ("num_attention_heads: 0", "`num_attention_heads` is 0"),
            ("num_attention_heads: ${x}", "`num_attention_heads` is `${x}`"),
            ("layernorm_epsilon: a", "`layernorm_epsilon` is `a`"),
            ("activation: swiglu", "`activation` is `swiglu`, which is none of gelu and approx-gelu"),
            ("megatron_legacy: 1", "`megatron_legacy` is 1, and is a switch"),
            ("normalization: layernorm1p", "`normalization` is `layernorm1p`, which is another network"),
            ("layerscale: True", "`layerscale` is True, which is another network"),
            ("a: 'x", "line 1: while scanning a quoted scalar"),
        ] {
            let error = completed(text).map(|_| ()).unwrap_err();
            assert!(error.contains(part) && error.contains("model_config.yaml"), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let vit = VitConfig {
            image_size: 32,
            patch_size: 8,
            channels: 20,
            heads: 5,
            norm_eps: 1e-6,
            activation: HiddenActivation::GeluTanh,
            ..VitConfig::default()
        };
        let text = vit_config(&vit).unwrap();
        let yaml = Yaml::parse(&text).unwrap();
        assert!(text.contains("layernorm_epsilon: 1.0e-6\n") && text.contains("hidden_dropout: 0.0\n"), "{text}");
        assert_eq!(yaml.get("layernorm_epsilon").and_then(Yaml::as_f64), Some(1e-6));
        assert_eq!((yaml.get("finetune"), yaml.get("img_h")), (Some(&Yaml::Bool(true)), Some(&Yaml::Int(32))));
        let mut model = found(Component::Classifier, json!({ "hidden_size": 20, "num_attention_heads": 1 }));
        complete(&mut model, Path::new("x.nemo"), &text).unwrap();
        assert_eq!(
            (&model.config["num_attention_heads"], &model.config["hidden_act"]),
            (&json!(5), &json!("gelu_pytorch_tanh"))
        );
        assert!(vit_config(&VitConfig { qkv_bias: false, ..vit.clone() }).unwrap_err().contains("no biases"));
        assert!(vit_config(&VitConfig { reads: Reads::Patches, ..vit }).unwrap_err().contains("reads patches"));

        let (text, notes) = clip_config(&ClipConfig::open_clip("ViT-L-14-quickgelu").unwrap()).unwrap();
        assert!(notes.is_empty(), "{notes:?}");
        let yaml = Yaml::parse(&text).unwrap();
        let tower = |name: &str, field: &str| yaml.get(name).and_then(|tower| tower.get(field)).cloned();
        assert_eq!(tower("vision", "activation"), Some(Yaml::Text("approx-gelu".into())));
        assert_eq!(tower("text", "num_attention_heads"), Some(Yaml::Int(12)));
        assert_eq!(tower("text", "max_position_embeddings"), Some(Yaml::Int(77)));
    }
}
