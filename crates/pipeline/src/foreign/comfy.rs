//! The text `prompt` of ComfyUI: a graph of nodes as JSON, `{"3": {"class_type": "KSampler", "inputs": {"seed": 1,
//! "model": ["4", 0], ...}}, ...}`, in which an input is a value or the number of the node whose output it takes. Graphs with
//! one sampler are understood, by following its inputs.

use super::ForeignRecord;
use crate::noise::NoiseKind;
use crate::prompt_syntax::PromptSyntax;
use calotype_data::json;
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// Most links that are followed one after the other; a graph of nodes that lead in a circle ends there.
const MOST_LINKS: usize = 64;

/// Classes of nodes that sample.
const SAMPLERS: [&str; 2] = ["KSampler", "KSamplerAdvanced"];

/// Classes whose part is taken over by what every image goes through here.
const IDLE: [&str; 5] = ["VAEDecode", "VAEDecodeTiled", "SaveImage", "PreviewImage", "Note"];

/// The settings of a graph.
///
/// # Errors
/// In words, if the text is no graph, or one without exactly one sampler.
pub fn read(text: &str) -> Result<ForeignRecord, String> {
    let nodes =
        match json::from_slice(text.as_bytes()).map_err(|error| format!("its text `prompt` is no JSON ({error})"))? {
            Value::Object(nodes) => nodes,
            _ => return Err("its text `prompt` is no graph of ComfyUI".to_owned()),
        };
    let samplers: Vec<&str> =
        nodes.iter().filter(|(_, node)| SAMPLERS.contains(&class(node))).map(|(id, _)| id.as_str()).collect();
    let &[sampler] = samplers.as_slice() else {
        let known = SAMPLERS.join(", ");
        return Err(format!("its graph of ComfyUI has {} samplers ({known}); one is understood", samplers.len()));
    };
    let mut graph = Graph { nodes: &nodes, seen: BTreeSet::new(), record: ForeignRecord::new("ComfyUI") };
    graph.sampler(sampler);
    graph.say_rest();
    Ok(graph.record)
}

fn class(node: &Value) -> &str {
    node.get("class_type").and_then(Value::as_str).unwrap_or_default()
}

struct Graph<'a> {
    nodes: &'a Map<String, Value>,
    /// Nodes that were made use of.
    seen: BTreeSet<&'a str>,
    record: ForeignRecord,
}

impl<'a> Graph<'a> {
    fn node(&mut self, id: &str) -> Option<&'a Value> {
        let (id, node) = self.nodes.get_key_value(id)?;
        self.seen.insert(id);
        Some(node)
    }

    fn input(node: &'a Value, name: &str) -> Option<&'a Value> {
        node.get("inputs")?.get(name)
    }

    /// The node that an input leads to.
    fn link(&mut self, node: &'a Value, name: &str) -> Option<&'a Value> {
        let id = Self::input(node, name)?.as_array()?.first()?;
        let id = id.as_str().map(str::to_owned).or_else(|| id.as_u64().map(|id| id.to_string()))?;
        self.node(&id)
    }

    /// A value, or that of the node which holds nothing else.
    fn value(&mut self, node: &'a Value, name: &str) -> Option<&'a Value> {
        let mut found = Self::input(node, name)?;
        let mut holder = (node, name);
        for _ in 0..MOST_LINKS {
            if !found.is_array() {
                return Some(found);
            }
            let next = self.link(holder.0, holder.1)?;
            let held = [name, "value", "text", "string", "prompt", "seed", "int", "float"];
            holder = held.iter().find(|held| Self::input(next, held).is_some()).map(|held| (next, *held))?;
            found = Self::input(holder.0, holder.1)?;
        }
        None
    }

    /// Reads a number, or says that it cannot.
    fn number<T>(&mut self, node: &'a Value, name: &str, take: impl FnOnce(&Value) -> Option<T>, to: &mut T) {
        match self.value(node, name).and_then(take) {
            Some(value) => *to = value,
            None => self.record.say(format!("`{name}` of the sampler cannot be read")),
        }
    }

    fn sampler(&mut self, id: &str) {
        let Some(node) = self.node(id) else { return };
        let mut settings = self.record.settings.clone();
        settings.noise = NoiseKind::TorchCpu;
        let whole = |value: &Value| value.as_u64();
        let size = |value: &Value| value.as_u64().map(|value| value as usize);
        let seed = if Self::input(node, "noise_seed").is_some() { "noise_seed" } else { "seed" };
        self.number(node, seed, whole, &mut settings.seed);
        self.number(node, "steps", size, &mut settings.steps);
        self.number(node, "cfg", |value| Some(Some(value.as_f64()? as f32)), &mut settings.guidance);
        if Self::input(node, "denoise").is_some() {
            self.number(node, "denoise", Value::as_f64, &mut settings.strength);
        }
        self.record.settings = settings;
        for name in ["start_at_step", "end_at_step", "add_noise", "return_with_leftover_noise"] {
            if let Some(value) = Self::input(node, name) {
                self.record.say(format!("`{name}: {value}` of the sampler has no counterpart here"));
            }
        }
        let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
        let (sampler, scheduler) = (text(self.value(node, "sampler_name")), text(self.value(node, "scheduler")));
        match sampler {
            Some(sampler) => self.record.set_sampler(&sampler, scheduler.as_deref()),
            None => self.record.say("the sampler has no name: the checkpoint's own is taken"),
        }
        self.record.request.prompt = self.prompt(node, "positive").unwrap_or_default();
        self.record.request.negative = self.prompt(node, "negative");
        self.model(node);
        self.latent(node);
    }

    /// The text at the end of a chain of conditions; none for zeros.
    fn prompt(&mut self, node: &'a Value, name: &str) -> Option<String> {
        let mut next = self.link(node, name);
        for _ in 0..MOST_LINKS {
            let node = next?;
            match class(node) {
                "CLIPTextEncode" => {
                    self.clip(node);
                    return Some(self.text(node, "text", name));
                }
                "CLIPTextEncodeSDXL" => {
                    self.clip(node);
                    let (global, local) = (self.text(node, "text_g", name), self.text(node, "text_l", name));
                    if global != local {
                        self.record.say(format!("the second text of `{name}` is left out: `{local}`"));
                    }
                    return Some(global);
                }
                "ConditioningZeroOut" => return None,
                other => {
                    self.record.say(format!("the node {other} on the way to `{name}` has no counterpart here"));
                    let inputs = ["conditioning", name, "conditioning_1", "conditioning_to"];
                    next = inputs.iter().find_map(|input| self.link(node, input));
                }
            }
        }
        None
    }

    fn text(&mut self, node: &'a Value, name: &str, what: &str) -> String {
        let text = self.value(node, name).and_then(Value::as_str).map(str::to_owned);
        let text = text.unwrap_or_else(|| {
            self.record.say(format!("the text of `{what}` cannot be read"));
            String::new()
        });
        if text.contains('(') && self.record.settings.syntax == PromptSyntax::Plain {
            self.record.settings.syntax = PromptSyntax::A1111;
            self.record.say("weights in prompts are read as AUTOMATIC1111's, which differ a little from ComfyUI's");
        }
        text
    }

    /// The text encoder of a text.
    fn clip(&mut self, node: &'a Value) {
        let mut next = self.link(node, "clip");
        for _ in 0..MOST_LINKS {
            let Some(node) = next else { return };
            if class(node) == "CLIPSetLastLayer" {
                let layer = self.value(node, "stop_at_clip_layer").and_then(Value::as_i64);
                match layer.and_then(|layer| usize::try_from(-1 - layer).ok()) {
                    Some(skip) => self.record.settings.clip_skip = skip,
                    None => self.record.say("`stop_at_clip_layer` cannot be read"),
                }
            }
            next = self.link(node, "clip");
        }
    }

    /// The chain of the model: adapters, and the checkpoint.
    fn model(&mut self, node: &'a Value) {
        let mut next = self.link(node, "model");
        for _ in 0..MOST_LINKS {
            let Some(node) = next else { return };
            let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or("?").to_owned();
            match class(node) {
                "CheckpointLoaderSimple" | "CheckpointLoader" | "UNETLoader" => {
                    let name = if Self::input(node, "ckpt_name").is_some() { "ckpt_name" } else { "unet_name" };
                    self.record.model = Some(text(self.value(node, name)));
                    return;
                }
                "LoraLoader" | "LoraLoaderModelOnly" => {
                    let name = text(self.value(node, "lora_name"));
                    let weight = self.value(node, "strength_model").and_then(Value::as_f64).unwrap_or(1.0);
                    let sentence = format!("the LoRA `{name}` is not looked for: give it with --lora FILE={weight}");
                    self.record.say(sentence);
                }
                other => self.record.say(format!("the node {other} on the way to the model has no counterpart here")),
            }
            next = self.link(node, "model");
        }
    }

    fn latent(&mut self, node: &'a Value) {
        let Some(latent) = self.link(node, "latent_image") else { return };
        match class(latent) {
            "EmptyLatentImage" | "EmptySD3LatentImage" => {
                let mut size = [0; 2];
                for (name, side) in ["width", "height"].into_iter().zip(&mut size) {
                    self.number(latent, name, |value| value.as_u64().map(|value| value as usize), side);
                }
                let [width, height] = size.map(|side| (side > 0).then_some(side));
                (self.record.settings.width, self.record.settings.height) = (width, height);
                self.record.settings.strength = 1.0;
                let count = self.value(latent, "batch_size").and_then(Value::as_u64).unwrap_or(1);
                if count > 1 {
                    self.record.say(format!("of its {count} images the first is drawn"));
                }
            }
            other => self.record.say(format!("it begins with an image (node {other}): give it with --image")),
        }
    }

    fn say_rest(&mut self) {
        let rest: BTreeSet<&str> = self
            .nodes
            .iter()
            .filter(|(id, _)| !self.seen.contains(id.as_str()))
            .map(|(_, node)| class(node))
            .filter(|class| !IDLE.contains(class) && !class.is_empty())
            .collect();
        if !rest.is_empty() {
            let rest = rest.into_iter().collect::<Vec<_>>().join(", ");
            self.record.say(format!("these nodes have no counterpart here: {rest}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The graph that ComfyUI 0.3 opens with, with an adapter, a clip layer and NaN as it writes them.
    const GRAPH: &str = r#"{
        "3": {"class_type": "KSampler", "inputs": {"cfg": 7.3, "denoise": 1, "latent_image": ["5", 0], "model": ["10", 0],
              "negative": ["7", 0], "positive": ["6", 0], "sampler_name": "dpmpp_2m", "scheduler": "karras",
              "seed": 156680208700286, "steps": 20}, "is_changed": [NaN]},
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "v1-5.safetensors"}},
        "5": {"class_type": "EmptyLatentImage", "inputs": {"batch_size": 1, "height": 768, "width": 512}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["11", 0], "text": ["12", 0]}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["4", 1], "text": "text, watermark"}},
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
        "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "ComfyUI", "images": ["13", 0]}},
        "10": {"class_type": "LoraLoader", "inputs": {"lora_name": "ink.safetensors", "strength_model": 0.8,
               "strength_clip": 1, "model": ["4", 0], "clip": ["4", 1]}},
        "11": {"class_type": "CLIPSetLastLayer", "inputs": {"stop_at_clip_layer": -2, "clip": ["10", 1]}},
        "12": {"class_type": "PrimitiveString", "inputs": {"value": "a red fox"}},
        "13": {"class_type": "ImageScale", "inputs": {"image": ["8", 0]}}
    }"#;

    #[test]
    fn a_graph_with_one_sampler_is_read() {
        let record = read(GRAPH).unwrap();
        assert_eq!(record.request.prompt, "a red fox");
        assert_eq!(record.request.negative.as_deref(), Some("text, watermark"));
        let s = &record.settings;
        assert_eq!((s.seed, s.steps, s.guidance, s.strength), (156_680_208_700_286, 20, Some(7.3), 1.0));
        assert_eq!((s.width, s.height, s.clip_skip, s.noise), (Some(512), Some(768), 1, NoiseKind::TorchCpu));
        assert_eq!(record.sampler.as_deref(), Some("dpmpp_2m karras"));
        assert_eq!(record.model.as_deref(), Some("v1-5.safetensors"));
        assert_eq!(s.syntax, PromptSyntax::Plain);
        assert_eq!(
            record.rest,
            [
                "the LoRA `ink.safetensors` is not looked for: give it with --lora FILE=0.8",
                "these nodes have no counterpart here: ImageScale"
            ]
        );
    }

    #[test]
    fn malformed_graphs_are_told() {
        for (text, part) in [
            ("", "no JSON"),
            ("[1]", "no graph"),
            ("{\"1\": ", "no JSON"),
            ("{}", "has 0 samplers"),
            (
                "{\"1\": {\"class_type\": \"KSampler\"}, \"2\": {\"class_type\": \"KSamplerAdvanced\"}}",
                "has 2 samplers",
            ),
            ("{\"1\": {\"class_type\": 3}, \"2\": null}", "has 0 samplers"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
        // Circles, links to nothing and values of other kinds end in sentences.
        let circle = r#"{"1": {"class_type": "KSampler", "inputs": {"seed": ["1", 0], "steps": "x", "cfg": null, "model": ["1", 0],
            "positive": ["1", 0], "negative": ["9", 0], "latent_image": [], "sampler_name": "no such"}}}"#;
        let rest = read(circle).unwrap().rest.join("; ");
        for part in ["`seed` of the sampler", "`steps` of", "`cfg` of", "`no such` is none of ours"] {
            assert!(rest.contains(part), "{part}: {rest}");
        }
        let weighted = GRAPH.replace("a red fox", "a (red:1.2) fox");
        assert_eq!(read(&weighted).unwrap().settings.syntax, PromptSyntax::A1111);
    }
}
