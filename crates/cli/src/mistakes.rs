//! What a command line that cannot be read was probably meant to say.

use calotype_core::names::nearest;
use calotype_core::numbers::standard_message;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, Error};
use std::error::Error as _;

/// Where results go, for commands that have the flag.
const OUT: &str = "--out VALUE";

/// Names that other programs give to what a flag or a recipe's key is called here: diffusers' pipelines and training
/// scripts, kohya's sd-scripts, the scripts of CompVis and Stability, A1111's API, open_clip, img2dataset. The command that
/// a row is for (all, if empty), the names with hyphens for underscores, and what to write; `VALUE` becomes the value that
/// was given.
const FOREIGN: &[(&str, &[&str], &str)] = &[
    ("generate", &["num-inference-steps", "sampling-steps", "ddim-steps", "n-steps", "step"], "--steps VALUE"),
    ("generate", &["guidance-scale", "cfg", "cfg-scale", "scale", "text-scale"], "--guidance VALUE"),
    ("generate", &["negative-prompt", "neg-prompt", "n-prompt", "uncond-prompt"], "--negative VALUE"),
    ("generate", &["prompt", "text", "caption"], "the prompt without a flag: calotype generate VALUE --model PATH"),
    ("generate", &["from-file", "prompt-file", "prompts-file"], "--prompts VALUE"),
    (
        "generate",
        &["sampling-method", "sampler-name", "sampler-index", "scheduler", "scheduler-type"],
        "--sampler VALUE",
    ),
    ("generate", &["plms", "ddim", "dpm-solver", "dpm"], "--sampler with a name, such as --sampler ddim"),
    (
        "generate",
        &[
            "ckpt",
            "ckpt-path",
            "checkpoint",
            "checkpoint-path",
            "pretrained-model-name-or-path",
            "pretrained",
            "model-id",
            "model-path",
            "model-name",
            "run",
            "unet",
        ],
        "--model VALUE",
    ),
    ("generate", &["lora-weights", "lora-path", "network-weights", "adapter"], "--lora VALUE"),
    ("generate", &["network-mul", "lora-scale"], "--lora FILE=VALUE"),
    (
        "generate",
        &[
            "num-images-per-prompt",
            "images-per-prompt",
            "num-images",
            "n-samples",
            "n-iter",
            "batch-count",
            "num-samples",
        ],
        "--count VALUE",
    ),
    ("generate", &["batch-size", "bs"], "--batch VALUE"),
    ("generate", &["resolution", "size", "image-size"], "--width VALUE --height VALUE"),
    ("generate", &["w"], "--width VALUE"),
    ("generate", &["h"], "--height VALUE"),
    ("generate", &["init-image", "init-img", "input-image", "image-path"], "--image VALUE"),
    ("generate", &["mask-image", "mask-path"], "--mask VALUE"),
    ("generate", &["denoising-strength", "denoise"], "--strength VALUE"),
    ("generate", &["manual-seed", "random-seed"], "--seed VALUE"),
    ("generate", &["clip-stop-at-last-layers"], "--clip-skip with the number of layers left out"),
    ("generate", &["vae-tiling", "tiled-vae", "enable-vae-tiling", "vae-slicing"], "--tiled"),
    ("generate", &["use-karras-sigmas"], "--karras"),
    ("generate", &["cache-branch-id"], "--cache-branch VALUE"),
    (
        "generate",
        &[
            "medvram",
            "lowvram",
            "medvram-sdxl",
            "enable-model-cpu-offload",
            "enable-sequential-cpu-offload",
            "low-memory",
        ],
        "no flag is needed, for each network is in memory only as long as it is used; --tiled decodes large images in less",
    ),
    ("generate", &["p"], "the prompt without a flag: calotype generate VALUE --model PATH"),
    ("generate", &["m"], "--model VALUE"),
    (
        "quickstart",
        &["data", "dataset", "data-dir", "data-path", "train-data-dir", "images", "input"],
        "the quickstart draws its own images, and takes no others; yours go through `calotype data convert` to `calotype train`",
    ),
    ("generate", &["dtype", "torch-dtype", "mixed-precision", "weight-dtype"], "--precision with f32, bf16 or auto"),
    ("generate", &["half", "fp16", "bf16", "full-bf16"], "--precision bf16"),
    ("generate", &["no-half", "full-precision", "fp32"], "--precision f32"),
    ("classify", &["labels", "class-names", "candidate-labels"], "--classes VALUE"),
    ("classify", &["topk", "top-k", "k"], "--top VALUE"),
    ("classify", &["templates", "hypothesis-template", "prompt"], "--template VALUE"),
    ("similarity", &["prompt", "caption"], "--text VALUE"),
    ("similarity", &["images", "image-path"], "--image VALUE"),
    ("train", &["config", "config-file", "recipe", "base"], "the recipe without a flag: calotype train VALUE"),
    (
        "train",
        &["train-data-dir", "data-dir", "train-data", "dataset-name", "dataset", "data", "in-json"],
        "data.path=VALUE",
    ),
    (
        "train",
        &["pretrained-model-name-or-path", "pretrained", "ckpt", "checkpoint", "model", "init-from", "finetune-from"],
        "init_from=VALUE",
    ),
    ("train", &["logging-dir", "log-dir", "logs"], "--out DIR: the logs lie there, too"),
    (
        "train",
        &["max-train-steps", "max-steps", "num-train-steps", "iterations"],
        "run.samples=N, steps times run.batch_size",
    ),
    (
        "train",
        &["num-train-epochs", "max-train-epochs", "epochs", "num-epochs"],
        "run.samples=N, epochs times samples of the dataset",
    ),
    ("train", &["samples", "num-samples"], "run.samples=VALUE"),
    ("train", &["train-batch-size", "batch-size", "batch"], "run.batch_size=VALUE"),
    ("train", &["learning-rate", "lr", "unet-lr", "base-learning-rate"], "optimizer.learning_rate=VALUE"),
    ("train", &["lr-scheduler", "lr-scheduler-type"], "optimizer.schedule.name=VALUE"),
    ("train", &["lr-warmup-steps", "warmup", "warmup-steps"], "optimizer.schedule.warmup={steps=VALUE}"),
    ("train", &["optimizer", "optimizer-type"], "optimizer.name=VALUE, adamw or sgd"),
    ("train", &["adam-weight-decay", "weight-decay", "wd"], "optimizer.weight_decay=VALUE"),
    ("train", &["adam-beta1", "beta1"], "optimizer.beta1=VALUE"),
    ("train", &["adam-beta2", "beta2"], "optimizer.beta2=VALUE"),
    ("train", &["adam-epsilon", "eps"], "optimizer.eps=VALUE"),
    ("train", &["max-grad-norm", "grad-clip-norm", "grad-clip"], "optimizer.gradient_clip=VALUE"),
    ("train", &["gradient-accumulation-steps", "accum-freq"], "optimizer.accumulate=VALUE"),
    ("train", &["tensor-model-parallel-size", "tensor-parallel-size", "tp"], "distributed.tensor_parallel=VALUE"),
    (
        "train",
        &["gradient-checkpointing", "grad-checkpointing"],
        "memory.recompute_blocks=true, of clip and vit memory.recompute={ uniform = 1 }",
    ),
    ("train", &["local-loss", "gather-with-grad"], "objective.loss=local"),
    ("train", &["siglip"], "objective.loss=siglip and model.logit_bias=true"),
    ("train", &["force-patch-dropout", "patch-dropout"], "objective.patch_dropout=VALUE"),
    ("train", &["use-ema", "ema"], "ema.name=\"diffusers\", or another average"),
    (
        "train",
        &["mixed-precision", "precision", "full-bf16", "full-fp16", "dtype"],
        "run.precision=\"bf16\", \"f32\" or \"auto\"",
    ),
    ("train", &["seed", "manual-seed"], "run.seed=VALUE"),
    ("train", &["resolution", "image-size"], "objective.resolution=VALUE, or resolution of the precache recipe"),
    ("train", &["random-flip", "flip-aug", "hflip"], "data.augment.flip=0.5"),
    ("train", &["center-crop"], "data.augment.crop=\"center\""),
    ("train", &["random-crop"], "data.augment.crop=\"random\""),
    ("train", &["dataloader-num-workers", "max-data-loader-n-workers", "workers"], "data.threads=VALUE"),
    ("train", &["caption-column", "caption-extension"], "data.caption=VALUE, the extension of the caption's part"),
    ("train", &["proportion-empty-prompts", "caption-dropout-rate"], "objective.caption_dropout=VALUE"),
    ("train", &["prediction-type"], "objective.prediction=VALUE"),
    ("train", &["smoothing", "label-smoothing"], "objective.label_smoothing=VALUE"),
    ("train", &["mixup", "mixup-alpha"], "objective.mix.mixup=VALUE"),
    ("train", &["cutmix", "cutmix-alpha"], "objective.mix.cutmix=VALUE"),
    ("train", &["drop-path", "drop-path-rate"], "model.drop_path=VALUE"),
    ("train", &["drop"], "model.dropout=VALUE"),
    (
        "train",
        &["aa", "auto-augment"],
        "data.augment.rand_augment={ timm = { magnitude = 9, deviation = 0.5 } }, for example",
    ),
    ("train", &["num-classes"], "model.labels=VALUE"),
    ("train", &["finetune", "initial-checkpoint"], "init_from=VALUE"),
    ("train", &["v-parameterization"], "objective.prediction=\"v\""),
    (
        "train",
        &["checkpointing-steps", "save-every-n-steps", "save-frequency"],
        "run.checkpoint_every=N, counted in samples",
    ),
    ("train", &["checkpoints-total-limit"], "run.keep_checkpoints=VALUE"),
    (
        "train",
        &["validation-prompts", "validation-epochs", "sample-prompts"],
        "hooks.preview={every=N,prompts=[\"VALUE\"]}, N counted in samples",
    ),
    (
        "train",
        &["report-to", "log-with", "wandb-project", "wandb-project-name"],
        "trackers.wandb={project=\"NAME\"} or trackers.csv=true; JSON lines and TensorBoard are on",
    ),
    (
        "train",
        &["resume", "resume-from-checkpoint", "resume-from"],
        "the same command again: a run in the same folder goes on where it stopped",
    ),
    (
        "data precache",
        &["out", "o", "output", "output-dir", "output-folder", "outdir", "out-dir", "save-dir"],
        "out=VALUE",
    ),
    ("data precache", &["source", "input", "images", "dataset", "data"], "source=VALUE"),
    ("data precache", &["resolution", "image-size", "size"], "resolution=VALUE"),
    ("data precache", &["batch-size", "batch"], "batch_size=VALUE"),
    ("data precache", &["model", "vae"], "encoders.NAME.model=VALUE"),
    ("data", &["output-folder", "url-list"], "folders without a flag: calotype data STAGE INPUT OUTPUT"),
    (
        "data",
        &["number-sample-per-shard", "samples-per-tar", "maxcount"],
        "--samples-per-shard VALUE, or --shard-samples",
    ),
    ("data", &["processes-count", "num-workers", "workers"], "--threads VALUE, in front of or behind the stage"),
    ("", &["outdir", "output-dir", "output", "output-path", "output-name", "save-dir", "save-path", "out-dir"], OUT),
    ("", &["o", "out"], OUT),
    (
        "",
        &[
            "xformers",
            "enable-xformers-memory-efficient-attention",
            "opt-sdp-attention",
            "opt-sdp-no-mem-attention",
            "sdpa",
            "flash-attention",
            "mem-eff-attn",
            "attention-slicing",
            "enable-attention-slicing",
        ],
        "no flag is needed, for attention never has all its scores in memory",
    ),
    ("", &["gpu", "cuda", "use-cuda"], "--device cuda"),
    ("", &["cpu"], "--device cpu"),
    ("", &["num-threads", "num-cpu-threads-per-process", "jobs"], "--threads VALUE"),
    ("", &["v", "verbose", "debug", "log-level"], "the variable CALOTYPE_LOG=calotype=debug"),
];

/// Names that other programs give to a command.
const COMMANDS: &[(&[&str], &str)] = &[
    (&["txt2img", "img2img", "inpaint", "sample", "infer", "inference", "draw", "run", "predict"], "generate"),
    (&["finetune", "fine-tune", "fit", "pretrain"], "train"),
    (&["demo", "start", "init", "example"], "quickstart"),
    (&["info", "show", "describe", "ls"], "inspect"),
    (&["save"], "convert"),
    (&["precache", "encode", "cache", "cache-latents"], "data precache"),
    (&["download", "img2dataset"], "data download"),
    (&["fetch"], "data fetch"),
    (&["check", "validate", "verify"], "data check"),
    (&["prepare", "dataset", "datasets"], "data"),
    (&["fid", "kid", "clip-score", "score", "judge", "metrics"], "evaluate pictures"),
    (&["fid-stats"], "data fid-stats"),
    (&["benchmark", "profile"], "bench"),
    (&["list", "configs", "presets"], "recipes"),
    (&["env", "version", "system"], "doctor"),
    (&["completion"], "completions"),
    (&["manpage", "manpages"], "man"),
];

/// The error with what was probably meant; `arguments` are those of the process, its own name first.
pub(crate) fn explained(mut error: Error, command: Command, arguments: &[String]) -> Error {
    match error.kind() {
        ErrorKind::UnknownArgument => {
            let tip = unknown_flag(&error, &command, arguments);
            let given = text_of(&error, ContextKind::InvalidArg).unwrap_or_default();
            if tip.is_none() && !given.contains(char::is_whitespace) {
                // How to pass the flag as a value, which is seldom meant.
                error.remove(ContextKind::Suggested);
            }
            if let Some(tip) = tip {
                error.remove(ContextKind::SuggestedArg);
                error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
                // The usage names the flag that looks most like the unknown one, which is none of those meant.
                let usage = command_of(&command, arguments).1.clone().render_usage();
                error.insert(ContextKind::Usage, ContextValue::StyledStr(usage));
            }
            error
        }
        ErrorKind::InvalidSubcommand => {
            let Some(name) = text_of(&error, ContextKind::InvalidSubcommand) else { return error };
            let name = name.replace('_', "-").to_lowercase();
            if let Some((_, own)) = COMMANDS.iter().find(|(names, _)| names.contains(&name.as_str())) {
                error.remove(ContextKind::SuggestedSubcommand);
                let tip = format!("here that is `calotype {own}`");
                error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
            }
            error
        }
        ErrorKind::InvalidValue
            if text_of(&error, ContextKind::InvalidArg).is_some_and(|it| it.starts_with("--device")) =>
        {
            let value = text_of(&error, ContextKind::InvalidValue).unwrap_or_default().to_lowercase();
            let graphics = ["gpu", "nvidia", "amd", "apple", "mps", "intel"].iter().any(|name| value.starts_with(name));
            if graphics {
                error.remove(ContextKind::SuggestedValue);
                let tip = "a graphics processor is cuda (NVIDIA), rocm (AMD), metal (Apple) or vulkan, each in a build with the \
                           feature of its name; `calotype doctor` tells what this one has";
                error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
            }
            error
        }
        ErrorKind::ValueValidation => match plain_value(&error) {
            Some(message) => Error::raw(ErrorKind::ValueValidation, message).with_cmd(&command),
            None => error,
        },
        _ => error,
    }
}

fn text_of(error: &Error, kind: ContextKind) -> Option<String> {
    match error.get(kind)? {
        ContextValue::String(text) => Some(text.clone()),
        _ => None,
    }
}

/// The message of a value that Rust's own parsers refused, in other words.
fn plain_value(error: &Error) -> Option<String> {
    let takes = standard_message(&error.source()?.to_string())?;
    let (flag, value) = (text_of(error, ContextKind::InvalidArg)?, text_of(error, ContextKind::InvalidValue)?);
    Some(format!("invalid value '{value}' for '{flag}': {takes}\n"))
}

/// What to write instead of a flag that is not known.
fn unknown_flag(error: &Error, command: &Command, arguments: &[String]) -> Option<String> {
    let given = text_of(error, ContextKind::InvalidArg)?;
    let (path, at) = command_of(command, arguments);
    let flag = given.trim_start_matches('-').split('=').next().unwrap_or_default();
    if flag.is_empty() {
        return None;
    }
    let value = value_of(&given, arguments);
    if flag.contains('.') && matches!(path.first(), Some(&"train" | &"quickstart" | &"data")) {
        return Some(format!(
            "keys of recipes have no hyphens in front: {flag}={}",
            value.as_deref().unwrap_or("VALUE")
        ));
    }
    let name = flag.replace('_', "-").to_lowercase();
    let is_own = at.get_arguments().any(|arg| arg.get_long() == Some(name.as_str()));
    if is_own {
        return Some(format!("here that is `--{name}`"));
    }
    let (stage, whole) = (path.first().copied().unwrap_or_default(), path.join(" "));
    let fits = |of: &str| of.is_empty() || of == stage || of == whole;
    let row = FOREIGN.iter().find(|(of, names, _)| fits(of) && names.contains(&name.as_str()));
    let Some((_, _, own)) = row else { return alike(error, at, &name) };
    let own = filled(own, value.as_deref());
    // A flag of another command is no help.
    let known = |flag: &str| flag == "threads" || at.get_arguments().any(|arg| arg.get_long() == Some(flag));
    match own.strip_prefix("--").map(|rest| rest.split([' ', ':', ',']).next().unwrap_or_default()) {
        // The stages of `data` take folders by their places.
        Some("out") if !known("out") && stage == "data" => {
            Some(format!("here the folder has no flag: see calotype {whole} --help"))
        }
        Some(flag) if !known(flag) => None,
        _ if own.contains(", ") || own.contains(": ") || own.contains(" with ") => Some(format!("here: {own}")),
        _ => Some(format!("here that is `{own}`")),
    }
}

/// The flag of the command that is alike, where clap has seen none: it tells how to pass the word as a value, which is seldom meant.
fn alike(error: &Error, at: &Command, name: &str) -> Option<String> {
    if error.get(ContextKind::SuggestedArg).is_some() {
        return None;
    }
    let own = nearest(name, at.get_arguments().filter_map(clap::Arg::get_long))?;
    Some(format!("did you mean `--{own}`?"))
}

/// What to write, with the value that was given; a size such as 512x768 is width and height.
fn filled(own: &str, value: Option<&str>) -> String {
    const SIDES: &str = "--width VALUE --height VALUE";
    let sides = value.and_then(|value| value.split_once(['x', 'X', '*', ',']));
    let is_side = |side: &str| !side.is_empty() && side.bytes().all(|byte| byte.is_ascii_digit());
    match sides.filter(|(width, height)| own == SIDES && is_side(width) && is_side(height)) {
        Some((width, height)) => format!("--width {width} --height {height}"),
        None => own.replace("VALUE", value.unwrap_or("VALUE")),
    }
}

/// The command that arguments lead to, and the names on the way.
fn command_of<'a>(root: &'a Command, arguments: &'a [String]) -> (Vec<&'a str>, &'a Command) {
    let (mut path, mut at) = (Vec::new(), root);
    for argument in arguments.iter().skip(1) {
        if let Some(below) = at.find_subcommand(argument) {
            path.push(below.get_name());
            at = below;
        }
    }
    (path, at)
}

/// The value behind a flag: `--flag=value`, or the next argument.
fn value_of(flag: &str, arguments: &[String]) -> Option<String> {
    let place = arguments.iter().position(|argument| argument == flag || argument.starts_with(&format!("{flag}=")))?;
    let value = match arguments[place].split_once('=') {
        Some((_, value)) => value.to_owned(),
        None => arguments.get(place + 1).filter(|next| !next.starts_with("--"))?.clone(),
    };
    let plain = !value.is_empty() && !value.contains(char::is_whitespace);
    Some(if plain { value } else { format!("\"{value}\"") })
}
