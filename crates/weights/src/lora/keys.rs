//! Keys of adapters in each dialect, and the module of the model that each one means.

use super::Component;
use std::collections::{BTreeMap, BTreeSet};

/// Declares [`Part`] with the name of each in messages.
macro_rules! parts {
    ($($(#[$doc:meta])* $part:ident = $name:literal,)+) => {
        /// The part of an adapter that a tensor is.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub(super) enum Part {
            $($(#[$doc])* $part,)+
        }

        impl Part {
            /// Name in messages.
            pub fn name(self) -> &'static str {
                match self { $(Self::$part => $name),+ }
            }
        }
    };
}

parts! {
    Down = "down (A)",
    Up = "up (B)",
    /// The middle factor of a convolution (LoCon with Tucker decomposition).
    Mid = "mid",
    Alpha = "alpha",
    /// LoHa's factors, and the cores between them.
    HadaW1A = "hada_w1_a",
    HadaW1B = "hada_w1_b",
    HadaW2A = "hada_w2_a",
    HadaW2B = "hada_w2_b",
    HadaT1 = "hada_t1",
    HadaT2 = "hada_t2",
    /// LoKr's matrices, whole or in factors, and the core between those of the second.
    LokrW1 = "lokr_w1",
    LokrW2 = "lokr_w2",
    LokrW1A = "lokr_w1_a",
    LokrW1B = "lokr_w1_b",
    LokrW2A = "lokr_w2_a",
    LokrW2B = "lokr_w2_b",
    LokrT2 = "lokr_t2",
    /// All elements of the difference (LyCORIS' full adapters).
    Whole = "diff",
    /// DoRA's lengths as LyCORIS and kohya's trainers store them.
    DoraScale = "dora_scale",
    /// DoRA's lengths as PEFT stores them.
    PeftMagnitude = "lora_magnitude_vector",
}

/// Endings of keys: kohya and LyCORIS, diffusers' PEFT form, diffusers' older layers, its oldest attention processors; then
/// LyCORIS' other kinds, whose names PEFT uses too, and DoRA.
const ENDINGS: [(&str, Part); 29] = [
    (".lora_down.weight", Part::Down),
    (".lora_up.weight", Part::Up),
    (".lora_mid.weight", Part::Mid),
    (".lora_A.weight", Part::Down),
    (".lora_B.weight", Part::Up),
    (".lora.down.weight", Part::Down),
    (".lora.up.weight", Part::Up),
    (".lora_linear_layer.down.weight", Part::Down),
    (".lora_linear_layer.up.weight", Part::Up),
    ("_lora.down.weight", Part::Down),
    ("_lora.up.weight", Part::Up),
    (".alpha", Part::Alpha),
    (".hada_w1_a", Part::HadaW1A),
    (".hada_w1_b", Part::HadaW1B),
    (".hada_w2_a", Part::HadaW2A),
    (".hada_w2_b", Part::HadaW2B),
    (".hada_t1", Part::HadaT1),
    (".hada_t2", Part::HadaT2),
    (".lokr_w1", Part::LokrW1),
    (".lokr_w2", Part::LokrW2),
    (".lokr_w1_a", Part::LokrW1A),
    (".lokr_w1_b", Part::LokrW1B),
    (".lokr_w2_a", Part::LokrW2A),
    (".lokr_w2_b", Part::LokrW2B),
    (".lokr_t2", Part::LokrT2),
    (".diff", Part::Whole),
    (".dora_scale", Part::DoraScale),
    (".lora_magnitude_vector", Part::PeftMagnitude),
    (".lora_magnitude_vector.weight", Part::PeftMagnitude),
];

/// Pieces of keys of other kinds of adapters.
const OTHER_KINDS: [(&str, &str); 12] = [
    (".oft_", "OFT"),
    (".boft_", "BOFT"),
    (".on_input", "IA3"),
    (".ia3_", "IA3"),
    (".lora_embedding_", "LoRA of embeddings"),
    (".diff_b", "differences of biases"),
    (".w_norm", "differences of norms"),
    (".b_norm", "differences of norms"),
    ("lora_B.bias", "LoRA of biases"),
    (".b1.weight", "GLoRA"),
    (".wd_for_diff", "DoRA of differences"),
    (".vera_lambda_", "VeRA"),
];

/// The kind of adapter that a key belongs to, if it is another one than those that are read.
pub(super) fn other_kind(key: &str) -> Option<&'static str> {
    OTHER_KINDS.iter().find(|(piece, _)| key.contains(piece)).map(|&(_, kind)| kind)
}

/// Where OneTrainer puts the embeddings that belong to an adapter: `bundle_emb.NAME.…`. The name, if it is such a key.
pub(super) fn bundled_embedding(key: &str) -> Option<&str> {
    let (name, _) = key.strip_prefix("bundle_emb.")?.split_once('.')?;
    Some(name)
}

/// Beginnings of keys of files that are no adapters, what they are, and what to do with them.
const OTHER_FILES: [(&str, &str, &str); 14] = [
    ("model.diffusion_model.", "a checkpoint", "give it as the model (--model)"),
    ("cond_stage_model.", "a checkpoint", "give it as the model (--model)"),
    ("conditioner.embedders.", "a checkpoint", "give it as the model (--model)"),
    ("first_stage_model.", "an autoencoder", "give it as that (--vae)"),
    ("encoder.down", "an autoencoder", "give it as that (--vae)"),
    ("down_blocks.", "the weights of a UNet", "give the folder that it is from as the model (--model)"),
    ("input_blocks.", "the weights of a UNet", "give the checkpoint that it is from as the model (--model)"),
    ("text_model.", "the weights of a text encoder", "give the folder that it is from as the model (--model)"),
    ("control", "a ControlNet", "these are not supported"),
    ("emb_params", "a textual-inversion embedding", "give it as that (--embedding)"),
    ("string_to_param", "a textual-inversion embedding", "give it as that (--embedding)"),
    ("clip_l", "a textual-inversion embedding", "give it as that (--embedding)"),
    ("clip_g", "a textual-inversion embedding", "give it as that (--embedding)"),
    ("<", "a textual-inversion embedding", "give it as that (--embedding)"),
];

/// What a file without any adapter's key is, and what to do with it.
pub(crate) fn other_file<'k>(mut keys: impl Iterator<Item = &'k str> + Clone) -> Option<(&'static str, &'static str)> {
    let row = OTHER_FILES.iter().find(|(start, ..)| keys.clone().any(|key| key.starts_with(start)));
    let first = keys.next().filter(|_| row.is_none());
    // A file of one tensor without dots in its name is how diffusers saves an embedding.
    let alone = first.filter(|key| !key.contains('.') && keys.next().is_none());
    let embedding = alone.map(|_| ("a textual-inversion embedding", "give it as that (--embedding)"));
    row.map(|&(_, what, remedy)| (what, remedy)).or(embedding)
}

/// Prefixes of keys whose modules are joined by underscores: kohya's, and those of LyCORIS alone.
const JOINED_PREFIXES: [(&str, Option<Component>); 9] = [
    ("lora_unet_", Some(Component::Unet)),
    ("lora_te_", Some(Component::TextEncoder)),
    ("lora_te1_", Some(Component::TextEncoder)),
    ("lora_te2_", Some(Component::TextEncoder2)),
    ("lycoris_unet_", Some(Component::Unet)),
    ("lycoris_te_", Some(Component::TextEncoder)),
    ("lycoris_te1_", Some(Component::TextEncoder)),
    ("lycoris_te2_", Some(Component::TextEncoder2)),
    ("lycoris_", None),
];

/// Prefixes of keys whose modules are joined by points: PEFT's wrapper, diffusers', ComfyUI's.
const DOTTED_PREFIXES: [(&str, Option<Component>); 13] = [
    ("base_model.model.", None),
    ("unet.", Some(Component::Unet)),
    ("text_encoder.", Some(Component::TextEncoder)),
    ("text_encoder_2.", Some(Component::TextEncoder2)),
    ("diffusion_model.", Some(Component::Unet)),
    ("model.diffusion_model.", Some(Component::Unet)),
    ("text_encoders.clip_l.transformer.", Some(Component::TextEncoder)),
    ("text_encoders.clip_h.transformer.", Some(Component::TextEncoder)),
    ("text_encoders.clip_g.transformer.", Some(Component::TextEncoder2)),
    ("clip_l.transformer.", Some(Component::TextEncoder)),
    ("clip_h.transformer.", Some(Component::TextEncoder)),
    ("clip_g.transformer.", Some(Component::TextEncoder2)),
    ("lora_unet.", Some(Component::Unet)),
];

/// A key taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Address {
    /// The component, if the key names it.
    pub component: Option<Component>,
    /// The module, as the dialect spells it.
    pub module: String,
    /// True if the module's parts are joined by underscores.
    pub joined: bool,
    pub part: Part,
}

/// Takes a key apart; nothing if it is no adapter's.
pub(super) fn parse(key: &str) -> Option<Address> {
    let key = without_adapter_name(key);
    let (module, part) = ENDINGS.iter().find_map(|&(ending, part)| Some((key.strip_suffix(ending)?, part)))?;
    for (prefix, component) in JOINED_PREFIXES {
        if let Some(module) = module.strip_prefix(prefix) {
            return Some(Address { component, module: module.into(), joined: true, part });
        }
    }
    let (mut module, mut component) = (module, None);
    // PEFT's prefix stands in front of the component or behind it.
    while let Some((rest, owner)) =
        DOTTED_PREFIXES.iter().find_map(|&(prefix, owner)| Some((module.strip_prefix(prefix)?, owner)))
    {
        (module, component) = (rest, owner.or(component));
    }
    // The oldest form keeps the layers of an attention in its processor: `attn1.processor.to_out_lora`.
    let mut module = module.replace(".processor.", ".");
    if module.ends_with(".to_out") {
        module.push_str(".0");
    }
    Some(Address { component, module, joined: false, part })
}

/// PEFT puts the adapter's name between factor and `weight`, when a model holds several.
fn without_adapter_name(key: &str) -> String {
    for factor in [".lora_A.", ".lora_B.", ".lora_magnitude_vector."] {
        if let Some((module, rest)) = key.rsplit_once(factor)
            && let Some(name) = rest.strip_suffix(".weight")
            && !name.is_empty()
        {
            return format!("{module}{factor}weight");
        }
    }
    key.to_owned()
}

/// The modules of one component by every spelling that adapters use.
#[derive(Debug)]
pub(super) struct Modules {
    /// Spelling to modules: more than one where a spelling is ambiguous.
    spellings: BTreeMap<String, Vec<String>>,
}

impl Modules {
    pub fn new<'a>(component: Component, modules: impl Iterator<Item = &'a str> + Clone) -> Self {
        let mut spellings: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let blocks = Blocks::new(modules.clone());
        for module in modules {
            let other = match component {
                Component::Unet => blocks.ldm_module(module),
                Component::TextEncoder | Component::TextEncoder2 => Some(other_text_module(module)),
            };
            let plain = [Some(module.to_owned()), other];
            let mut names: Vec<String> =
                plain.into_iter().flatten().flat_map(|name| [name.replace('.', "_"), name]).collect();
            names.sort_unstable();
            names.dedup();
            names.into_iter().for_each(|name| spellings.entry(name).or_default().push(module.to_owned()));
        }
        Self { spellings }
    }

    /// The modules that a spelling can mean.
    pub fn find(&self, spelling: &str) -> &[String] {
        self.spellings.get(spelling).map_or(&[], Vec::as_slice)
    }
}

/// Some versions of transformers put the text tower into a module `text_model`, others do not.
fn other_text_module(module: &str) -> String {
    match module.strip_prefix("text_model.") {
        Some(inner) => inner.to_owned(),
        None => format!("text_model.{module}"),
    }
}

/// Names inside a residual block: diffusers', then LDM's.
const RESNET_PARTS: [(&str, &str); 6] = [
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
];

/// Modules of a UNet outside its blocks: diffusers' names, then LDM's.
const OUTER_PARTS: [(&str, &str); 7] = [
    ("conv_in", "input_blocks.0.0"),
    ("conv_norm_out", "out.0"),
    ("conv_out", "out.2"),
    ("time_embedding.linear_1", "time_embed.0"),
    ("time_embedding.linear_2", "time_embed.2"),
    ("add_embedding.linear_1", "label_emb.0.0"),
    ("add_embedding.linear_2", "label_emb.0.2"),
];

/// The facts that the numbering of LDM's blocks depends on.
struct Blocks {
    /// Residual blocks of a level on the way down.
    layers: usize,
    /// Levels on the way up that have attention.
    up_with_attention: BTreeSet<usize>,
}

impl Blocks {
    fn new<'a>(modules: impl Iterator<Item = &'a str>) -> Self {
        let mut blocks = Self { layers: 0, up_with_attention: BTreeSet::new() };
        for module in modules {
            match split_block(module) {
                Some(("down_blocks", _, "resnets", layer, _)) => blocks.layers = blocks.layers.max(layer + 1),
                Some(("up_blocks", level, "attentions", ..)) => _ = blocks.up_with_attention.insert(level),
                _ => (),
            }
        }
        blocks
    }

    /// The name that LDM's UNet has for a module of diffusers': `input_blocks.4.1.proj_in`.
    fn ldm_module(&self, module: &str) -> Option<String> {
        if let Some(&(_, name)) = OUTER_PARTS.iter().find(|(outer, _)| *outer == module) {
            return Some(name.into());
        }
        if let Some(inside) = module.strip_prefix("mid_block.") {
            let (kind, rest) = inside.split_once('.')?;
            let (layer, inner) = rest.split_once('.')?;
            let number = 2 * layer.parse::<usize>().ok()? + usize::from(kind == "attentions");
            return Some(format!("middle_block.{number}.{}", inner_name(kind, inner)?));
        }
        let (way, level, kind, layer, inner) = split_block(module)?;
        // A level on the way down ends with its downsampler; one on the way up has a layer more, which the upsampler
        // ends.
        let first = level * (self.layers + 1);
        let inner = inner_name(kind, inner)?;
        let part = usize::from(kind == "attentions");
        match (way, kind) {
            ("down_blocks", "downsamplers") => Some(format!("input_blocks.{}.0.op", first + self.layers + 1)),
            ("down_blocks", _) => Some(format!("input_blocks.{}.{part}.{inner}", first + layer + 1)),
            ("up_blocks", "upsamplers") => {
                let part = 1 + usize::from(self.up_with_attention.contains(&level));
                Some(format!("output_blocks.{}.{part}.conv", first + self.layers))
            }
            ("up_blocks", _) => Some(format!("output_blocks.{}.{part}.{inner}", first + layer)),
            _ => None,
        }
    }
}

/// `down_blocks.1.attentions.0.proj_in` as its five parts.
fn split_block(module: &str) -> Option<(&str, usize, &str, usize, &str)> {
    let mut parts = module.splitn(5, '.');
    let (way, level, kind) = (parts.next()?, parts.next()?.parse().ok()?, parts.next()?);
    Some((way, level, kind, parts.next()?.parse().ok()?, parts.next()?))
}

fn inner_name<'a>(kind: &str, inner: &'a str) -> Option<&'a str> {
    match kind {
        "resnets" => RESNET_PARTS.iter().find(|(part, _)| *part == inner).map(|&(_, name)| name),
        _ => Some(inner),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dialect_is_taken_apart() {
        let unet = Some(Component::Unet);
        let cases = [
            (
                "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight",
                unet,
                "mid_block_attentions_0_proj_in",
                true,
                Part::Down,
            ),
            (
                "lora_te2_text_model_encoder_layers_3_mlp_fc1.alpha",
                Some(Component::TextEncoder2),
                "text_model_encoder_layers_3_mlp_fc1",
                true,
                Part::Alpha,
            ),
            (
                "base_model.model.down_blocks.0.attn1.to_q.lora_A.weight",
                None,
                "down_blocks.0.attn1.to_q",
                false,
                Part::Down,
            ),
            ("base_model.model.unet.attn1.to_q.lora_B.default.weight", unet, "attn1.to_q", false, Part::Up),
            (
                "unet.down_blocks.0.attn1.processor.to_out_lora.up.weight",
                unet,
                "down_blocks.0.attn1.to_out.0",
                false,
                Part::Up,
            ),
            (
                "text_encoder.text_model.q_proj.lora_linear_layer.down.weight",
                Some(Component::TextEncoder),
                "text_model.q_proj",
                false,
                Part::Down,
            ),
            (
                "text_encoder_2.text_model.q_proj.lora.up.weight",
                Some(Component::TextEncoder2),
                "text_model.q_proj",
                false,
                Part::Up,
            ),
            ("lora_unet_conv_in.lora_mid.weight", unet, "conv_in", true, Part::Mid),
            ("lora_unet_conv_in.hada_t1", unet, "conv_in", true, Part::HadaT1),
            ("lycoris_conv_in.lokr_w2_b", None, "conv_in", true, Part::LokrW2B),
            ("diffusion_model.input_blocks.0.0.lora_up.weight", unet, "input_blocks.0.0", false, Part::Up),
            ("unet.base_model.model.conv_in.lokr_w1", unet, "conv_in", false, Part::LokrW1),
            (
                "base_model.model.conv_in.lora_magnitude_vector.default.weight",
                None,
                "conv_in",
                false,
                Part::PeftMagnitude,
            ),
            ("unet.conv_in.lora_magnitude_vector", unet, "conv_in", false, Part::PeftMagnitude),
            (
                "lora_te1_text_model_encoder_layers_0_mlp_fc1.dora_scale",
                Some(Component::TextEncoder),
                "text_model_encoder_layers_0_mlp_fc1",
                true,
                Part::DoraScale,
            ),
        ];
        for (key, component, module, joined, part) in cases {
            assert_eq!(parse(key), Some(Address { component, module: module.into(), joined, part }), "{key}");
        }
        assert_eq!(parse("conv_in.weight"), None);
    }

    #[test]
    fn ldm_numbers_of_the_xl_unet() {
        let modules =
            ["down_blocks.0.resnets.1.conv1", "up_blocks.0.attentions.0.norm", "up_blocks.1.attentions.0.norm"];
        let blocks = Blocks::new(modules.into_iter());
        let cases = [
            (
                "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
                "input_blocks.4.1.transformer_blocks.0.attn1.to_q",
            ),
            ("down_blocks.2.resnets.1.conv_shortcut", "input_blocks.8.0.skip_connection"),
            ("down_blocks.0.downsamplers.0.conv", "input_blocks.3.0.op"),
            ("mid_block.resnets.1.time_emb_proj", "middle_block.2.emb_layers.1"),
            ("mid_block.attentions.0.proj_out", "middle_block.1.proj_out"),
            ("up_blocks.0.upsamplers.0.conv", "output_blocks.2.2.conv"),
            ("up_blocks.2.resnets.2.conv2", "output_blocks.8.0.out_layers.3"),
            ("up_blocks.2.upsamplers.0.conv", "output_blocks.8.1.conv"),
            ("add_embedding.linear_2", "label_emb.0.2"),
        ];
        for (module, expected) in cases {
            assert_eq!(blocks.ldm_module(module).as_deref(), Some(expected));
        }
        assert_eq!(blocks.ldm_module("down_blocks.x.resnets.1.conv1"), None);
    }
}
