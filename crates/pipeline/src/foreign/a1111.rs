//! The text `parameters` of AUTOMATIC1111's web interface and its relatives (version 1.10: `modules/infotext_utils.py`).

use super::ForeignRecord;
use crate::noise::NoiseKind;
use crate::prompt_syntax::PromptSyntax;
use calotype_data::image::text::Parameters;

/// Settings that say where an image is from, and nothing of how it is drawn.
const IDLE: [&str; 8] =
    ["Model hash", "Version", "Batch size", "Batch pos", "User", "Lora hashes", "TI hashes", "VAE hash"];

/// The settings of a text; one without any is a prompt alone.
pub fn read(text: &str) -> ForeignRecord {
    let parameters = Parameters::parse(text);
    let mut record = ForeignRecord::new("AUTOMATIC1111's web interface or a relative of it");
    record.settings.syntax = PromptSyntax::A1111;
    record.request.prompt = without_networks(&parameters.prompt, &mut record);
    let negative = without_networks(&parameters.negative_prompt, &mut record);
    // An empty one is none there too: zeros for SDXL.
    record.request.negative = Some(negative).filter(|negative| !negative.is_empty());
    for (name, value) in &parameters.settings {
        if !IDLE.contains(&name.as_str()) {
            set(&mut record, name, value);
        }
    }
    let sampler = parameters.get("Sampler");
    if let Some(sampler) = sampler {
        record.set_sampler(sampler, parameters.get("Schedule type"));
    }
    if parameters.get("RNG") != Some("CPU") {
        record.say("its noise is that of a GPU's generator: the image will be another one");
    }
    record
}

fn set(record: &mut ForeignRecord, name: &str, value: &str) {
    let settings = &mut record.settings;
    let read = match name {
        "Sampler" | "Schedule type" => true,
        "Model" => {
            record.model = Some(value.to_owned());
            true
        }
        "Steps" => store(value, &mut settings.steps),
        "Seed" => store(value, &mut settings.seed),
        "CFG scale" => store_some(value, &mut settings.guidance),
        "Denoising strength" => store(value, &mut settings.strength),
        "CFG Rescale" | "CFG Rescale φ" => store(value, &mut settings.guidance_rescale),
        "Clip skip" => match value.parse::<usize>() {
            Ok(layers @ 1..) => {
                settings.clip_skip = layers - 1;
                true
            }
            _ => false,
        },
        "Size" => match value.split_once('x').map(|(width, height)| (width.parse(), height.parse())) {
            Some((Ok(width), Ok(height))) => {
                (settings.width, settings.height) = (Some(width), Some(height));
                true
            }
            _ => false,
        },
        "RNG" => {
            if value == "CPU" {
                settings.noise = NoiseKind::TorchCpu;
            }
            true
        }
        _ => return record.say(format!("`{name}: {value}` has no counterpart here")),
    };
    if !read {
        record.malformed(name, value);
    }
    if name == "Denoising strength" {
        record.say("it began with another image: give it with --image");
    }
}

fn store<T: std::str::FromStr>(value: &str, to: &mut T) -> bool {
    value.parse().map(|value| *to = value).is_ok()
}

fn store_some<T: std::str::FromStr>(value: &str, to: &mut Option<T>) -> bool {
    value.parse().map(|value| *to = Some(value)).is_ok()
}

/// A prompt without `<lora:name:0.8>` and the like, which are said.
fn without_networks(prompt: &str, record: &mut ForeignRecord) -> String {
    let (mut out, mut rest) = (String::with_capacity(prompt.len()), prompt);
    while let Some(at) = rest.find('<') {
        let inner = rest[at + 1..].split_once('>').filter(|(inner, _)| is_network(inner));
        match inner {
            Some((inner, behind)) => {
                out.push_str(&rest[..at]);
                let mut parts = inner.split(':');
                let (kind, name) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
                let weight = parts.next().unwrap_or("1");
                record.say(match kind {
                    "lora" => format!("the LoRA `{name}` is not looked for: give it with --lora FILE={weight}"),
                    _ => format!("the network `{inner}` has no counterpart here"),
                });
                rest = behind;
            }
            None => {
                out.push_str(&rest[..=at]);
                rest = &rest[at + 1..];
            }
        }
    }
    out.push_str(rest);
    out.trim().to_owned()
}

/// Whether what stands in angle brackets is a name with a number.
fn is_network(inner: &str) -> bool {
    let (kind, rest) = inner.split_once(':').unwrap_or_default();
    !kind.is_empty() && kind.chars().all(char::is_alphanumeric) && !rest.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_of_the_web_interface_is_read() {
        let record = read(
            "a (red:1.2) fox <lora:ink:0.8>, <3\nNegative prompt: blurry\nSteps: 20, Sampler: DPM++ 2M, Schedule type: Karras, \
             CFG scale: 7.3, Seed: 4294967297, Size: 512x768, Model hash: abc, Model: dream, Clip skip: 2, RNG: CPU, \
             Hires upscale: 2, Lora hashes: \"ink: 1, b: 2\", Version: v1.10.1",
        );
        assert_eq!(record.request.prompt, "a (red:1.2) fox , <3");
        assert_eq!(record.request.negative.as_deref(), Some("blurry"));
        let s = &record.settings;
        assert_eq!((s.steps, s.guidance, s.seed), (20, Some(7.3), 4_294_967_297));
        assert_eq!((s.width, s.height, s.clip_skip), (Some(512), Some(768), 1));
        assert_eq!((s.noise, s.syntax), (NoiseKind::TorchCpu, PromptSyntax::A1111));
        assert_eq!((record.model.as_deref(), record.sampler.as_deref()), (Some("dream"), Some("DPM++ 2M Karras")));
        assert_eq!(
            record.rest,
            [
                "the LoRA `ink` is not looked for: give it with --lora FILE=0.8",
                "`Hires upscale: 2` has no counterpart here"
            ]
        );
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        for (text, part) in [
            ("x\nSteps: many, Sampler: Euler a, Seed: 1", "`Steps` is `many`"),
            ("x\nSteps: 3, Sampler: Euler a, Seed: -1", "`Seed` is `-1`"),
            ("x\nSteps: 3, Sampler: DPM2 a, Seed: 1", "the sampler `DPM2 a` is none of ours"),
            (
                "x\nSteps: 3, Sampler: Euler a, Schedule type: Simple, Seed: 1",
                "the schedule `Simple` has no counterpart",
            ),
            ("x\nSteps: 3, Sampler: Euler a, Seed: 1, Size: 512", "`Size` is `512`"),
            ("x\nSteps: 3, Sampler: Euler a, Clip skip: 0", "`Clip skip` is `0`"),
            ("x\nSteps: 3, Sampler: Euler a, Seed: 1", "noise is that of a GPU"),
            ("x\nSteps: 3, Sampler: Euler a, Denoising strength: 0.5", "--image"),
            ("x <lyco:a:1>\nSteps: 3, Sampler: Euler a, Seed: 1", "the network `lyco:a:1`"),
        ] {
            let rest = read(text).rest.join("; ");
            assert!(rest.contains(part), "{text}: {rest}");
        }
        assert_eq!(read("<<a:>").request.prompt, "<<a:>");
    }
}
