//! The command line as a whole: its definition, with the examples that end every help text.

use crate::Cli;
use crate::args::heading;
use clap::{Arg, Command, CommandFactory};
use std::any::TypeId;

/// Examples of each command, by its path. Tests parse every line.
const EXAMPLES: &[(&str, &[&str])] = &[
    (
        "",
        &[
            "calotype quickstart",
            "calotype generate --model runs/quickstart \"a red apple on a white background\"",
            "calotype train training/stable_diffusion/quickstart data.path=encoded --out runs/unet",
            "calotype completions bash > ~/.local/share/bash-completion/completions/calotype",
        ],
    ),
    (
        "quickstart",
        &[
            "calotype quickstart",
            "calotype quickstart --preset smoke --out runs/smoke",
            "calotype quickstart --out runs/mine --seed 7 diffusion.run.samples=50000",
        ],
    ),
    (
        "train",
        &[
            "calotype train training/clip/quickstart data.path=shards --out runs/clip",
            "calotype train training/stable_diffusion/quickstart data.path=encoded optimizer.learning_rate=5e-4 --dry-run",
            "calotype train mine.toml init_from=checkpoints/sd2 --record record.safetensors",
        ],
    ),
    (
        "ema",
        &[
            "calotype ema runs/unet --sigma-rel 0.12 --out averaged",
            "calotype ema runs/unet --sigma-rel 0.05 --at 100000 --out early",
        ],
    ),
    (
        "export",
        &[
            "calotype export runs/unet --weights trained --out trained",
            "calotype export runs/sd2 --at 512000 --out runs/sd2-at-512000",
        ],
    ),
    (
        "generate",
        &[
            "calotype generate \"a red fox in the snow\" --model v1-5-pruned.safetensors --negative \"blurry\" --seed 7",
            "calotype generate \"a stone bridge\" --model sdxl-folder --image photo.png --strength 0.6",
            "calotype generate \"a red fox\" --model sdxl-folder --lora sdxl_lightning_4step_lora.safetensors --preset lightning-4",
            "calotype generate --model runs/quickstart --prompts prompts.txt --count 4 --batch 4 --out drawn",
            "calotype generate --from runs/images/00000.png --steps 30",
        ],
    ),
    (
        "classify",
        &[
            "calotype classify vit-folder pictures --top 3 --csv classes.csv",
            "calotype classify clip-folder photo.jpg --classes imagenet --template openai",
            "calotype classify runs/quickstart/clip pictures --classes red --classes blue --template \"a dog on a {} background\" --json",
        ],
    ),
    (
        "similarity",
        &[
            "calotype similarity clip-folder --image photo.jpg --text \"a red fox\" --text \"a stone bridge\"",
            "calotype similarity runs/quickstart/clip --image pictures --texts captions.txt --json",
        ],
    ),
    (
        "evaluate",
        &[
            "calotype evaluate stable_diffusion/mlperf_v2 model=sd2-folder --out runs/scores",
            "calotype evaluate stable_diffusion/mlperf_v2 run=runs/mlperf --follow --finish --out runs/scores",
            "calotype evaluate stable_diffusion/fid_clip_mini model=runs/quickstart --out runs/curve",
            "calotype evaluate stable_diffusion/mlperf_v2 model=sd2-folder --out runs/scores --task-id 0 --task-count 8",
            "calotype evaluate vit/imagenet_val model=vit.nemo data.path=imagenet/val --out runs/vit",
            "calotype evaluate clip/imagenet_zeroshot_mini model=runs/quickstart/clip --out runs/zero-shot",
            "calotype evaluate pictures drawn --reference photographs --inception pt_inception-2015-12-05-6726825d.pth",
        ],
    ),
    ("probe", &["calotype probe unet --model sd2-folder --in inputs.safetensors --out outputs.safetensors --grad"]),
    (
        "inspect",
        &[
            "calotype inspect v1-5-pruned.safetensors",
            "calotype inspect sdxl-folder --tensors --json",
            "calotype inspect runs/quickstart",
        ],
    ),
    (
        "convert",
        &[
            "calotype convert model.ckpt model-folder --to diffusers",
            "calotype convert runs/quickstart quickstart.safetensors --to single-file --dtype f16",
            "calotype convert runs/vit vit.nemo --to nemo",
        ],
    ),
    (
        "quantize",
        &[
            "calotype quantize sdxl-folder --out sdxl-int8 --captions captions.txt --count 32",
            "calotype quantize runs/quickstart --out quickstart-int8 --keep mid_block,*.conv_shortcut",
        ],
    ),
    ("bench", &["calotype bench unet --family sd2 --resolution 512 --mode train --profile"]),
    ("bench kernels", &["calotype bench kernels --filter attention --precision bf16"]),
    ("bench features", &["calotype bench features --network vit-h-14 --batch 8"]),
    ("bench unet", &["calotype bench unet --family sd2 --resolution 512 --mode train --profile"]),
    ("bench vit", &["calotype bench vit --model b16 --batch 16 --mode train"]),
    ("bench clip", &["calotype bench clip --model l14 --batch 1"]),
    (
        "bench train",
        &[
            "calotype bench train --use-synth-data --use-ema --batch-size 4 --window 3",
            "calotype bench train --family tiny --remote mds-folder --image-size 64 --batch-size 64 --price 0.05",
        ],
    ),
    (
        "bench generate",
        &["calotype bench generate --family sd2", "calotype bench generate --model sdxl-folder --steps 8"],
    ),
    ("bench data", &["calotype bench data"]),
    ("bench download", &["calotype bench download --images 2000 -- --resize-mode=center_crop --image-size=256"]),
    (
        "evaluate pictures",
        &[
            "calotype evaluate pictures drawn --reference val2014.npz --inception pt_inception-2015-12-05-6726825d.pth --json",
            "calotype evaluate pictures drawn --reference photographs --metrics fid,kid --fid-variant clean-fid,pytorch-fid --inception inception.pth",
            "calotype evaluate pictures drawn --metrics clip-score --clip clip-folder --captions captions.txt",
        ],
    ),
    ("evaluate compare", &["calotype evaluate compare before.json after.json"]),
    (
        "mlperf",
        &[
            "calotype mlperf check runs/sd2 --ruleset 5.0.0",
            "calotype mlperf package runs/seed-0 runs/seed-1 --out submission --ruleset 5.0.0",
        ],
    ),
    (
        "mlperf check",
        &[
            "calotype mlperf check runs/sd2 --ruleset 5.0.0",
            "calotype mlperf check submission/results/box/stable_diffusion --ruleset 4.1.0 --full-rcps",
            "calotype mlperf check submission --ruleset 5.0.0 --bypass-rcp",
        ],
    ),
    (
        "mlperf plot",
        &[
            "calotype mlperf plot runs/sd2 --out plots",
            "calotype mlperf plot result_0.txt result_1.txt --out plots --reference-batch 1024",
        ],
    ),
    ("mlperf finish", &["calotype mlperf finish runs/sd2 --scores scores.jsonl"]),
    (
        "mlperf package",
        &["calotype mlperf package runs/seed-0 runs/seed-1 --out submission --ruleset 5.0.0 --field cooling=air"],
    ),
    (
        "mlperf inference accuracy",
        &[
            "calotype mlperf inference accuracy --run runs/sdxl/offline --captions coco/captions.tsv --statistics val2014.npz --clip \
             ViT-B-32 --inception inception.pth --compliance-ids v6.1",
            "calotype mlperf inference accuracy --log mlperf_log_accuracy.json --captions captions_source.tsv --statistics val2014.npz \
             --clip ViT-B-32 --inception inception.pth --out judged",
        ],
    ),
    (
        "mlperf inference verify",
        &[
            "calotype mlperf inference verify --test TEST01 --performance runs/sdxl/offline --compliance runs/test01 --out compliance",
        ],
    ),
    ("mlperf inference audit", &["calotype mlperf inference audit --test TEST04 --out runs/test04"]),
    (
        "mlperf inference",
        &[
            "calotype mlperf inference sdxl --model sdxl-folder --scenario offline --out runs/sdxl",
            "calotype mlperf inference worker --listen 0.0.0.0:4242 --model sdxl-folder",
        ],
    ),
    (
        "mlperf inference sdxl",
        &[
            "calotype mlperf inference sdxl --model sdxl-folder --scenario offline --captions coco/captions.tsv --qps 0.01 --out runs/sdxl",
            "calotype mlperf inference sdxl --model sdxl-folder --scenario server --accuracy --out runs/sdxl",
            "calotype mlperf inference sdxl --model sdxl-folder --variant scc24-base --scenario offline --workers host1:4242 --out runs/scc",
            "calotype mlperf inference sdxl --recipe inference/sdxl/mlperf_mini --scenario offline --out runs/trial",
        ],
    ),
    (
        "mlperf inference worker",
        &["calotype mlperf inference worker --listen 0.0.0.0:4242 --model sdxl-folder --variant scc24-base"],
    ),
    (
        "mlperf check-submission",
        &[
            "calotype mlperf check-submission submission --round v6.1",
            "calotype mlperf check-submission submission --round v5.1 --short-run --csv summary.csv",
        ],
    ),
    (
        "mlperf inference",
        &["calotype mlperf inference submission runs/sdxl --out handed-in --submitter Team --round v6.1 --short-run"],
    ),
    (
        "mlperf inference submission",
        &[
            "calotype mlperf inference submission runs/sdxl --out handed-in --submitter Team --round v6.1 --short-run --field cooling=air",
        ],
    ),
    ("recipes", &["calotype recipes", "calotype recipes training/clip/quickstart"]),
    ("doctor", &["calotype doctor", "calotype doctor --system-json > system.json"]),
    (
        "completions",
        &[
            "calotype completions bash > ~/.local/share/bash-completion/completions/calotype",
            "calotype completions zsh > ~/.zfunc/_calotype",
            "calotype completions fish > ~/.config/fish/completions/calotype.fish",
        ],
    ),
    ("man", &["calotype man ~/.local/share/man/man1"]),
    ("data", &["calotype data convert my-images shards", "calotype data check shards --quarantine"]),
    ("data fetch", &["calotype data fetch --list"]),
    ("data filter", &["calotype data filter list.parquet kept --licensed --min-width 512"]),
    ("data download", &["calotype data download kept downloaded --url-col URL --caption-col TEXT --resize-mode no"]),
    (
        "data convert",
        &["calotype data convert my-images shards", "calotype data convert laion.parquet shards --caption-column TEXT"],
    ),
    ("data reorganize", &["calotype data reorganize downloaded shards --samples-per-shard 1000"]),
    ("data index", &["calotype data index shards"]),
    (
        "data check",
        &["calotype data check shards --quarantine", "calotype data check shards --duplicates --min-side 64"],
    ),
    ("data coco", &["calotype data coco annotations_trainval2014.zip coco --images val2014.zip"]),
    ("data synth", &["calotype data synth synthetic --preset vit --samples 200"]),
    ("data emoji", &["calotype data emoji emoji --split held_out"]),
    ("data precache", &["calotype data precache data/precache/quickstart source=shards out=encoded"]),
    ("data fid-stats", &["calotype data fid-stats images stats.npz --inception pt_inception-2015-12-05-6726825d.pth"]),
];

/// Headings of the stages' flags, by the flags' names in the code; the stages know no command line around them. The command, or
/// all below `data` if empty.
const HEADINGS: &[(&str, &str, &[&str])] = &[
    ("", "Array of jobs", &["task_id", "task_count", "tasks"]),
    ("", "Shards", &["to", "shard_samples", "shard_bytes", "prefix", "compression", "hashes", "samples_per_shard"]),
    ("data download", "List", &["input_format", "url_col", "caption_col", "save_additional_columns"]),
    (
        "data download",
        "Images",
        &[
            "resize_mode",
            "image_size",
            "resize_only_if_bigger",
            "upscale_interpolation",
            "downscale_interpolation",
            "encode_format",
            "encode_quality",
            "skip_reencode",
            "disable_all_reencoding",
            "extract_exif",
            "compute_hash",
        ],
    ),
    (
        "data download",
        "Images that are left out",
        &["min_image_size", "max_image_area", "max_aspect_ratio", "max_image_pixels", "verify_hash", "max_bytes"],
    ),
    ("data download", "Shards", &["number_sample_per_shard", "oom_shard_count"]),
    (
        "data download",
        "Network",
        &[
            "thread_count",
            "per_host",
            "retries",
            "backoff",
            "timeout",
            "connect_timeout",
            "user_agent",
            "user_agent_token",
            "disallowed_header_directives",
            "allow_private",
            "proxy",
        ],
    ),
    ("data download", heading::MACHINE, &["decode_threads", "memory"]),
    (
        "data convert",
        "Input",
        &["from", "image_column", "caption_column", "key_column", "caption_extensions", "with_quarantined"],
    ),
    ("data convert", "Samples", &["map", "parts", "encoding", "missing", "without_keys", "key_part", "skip_bad"]),
    ("data check", "Problems", &["ignore", "min_side", "max_aspect", "duplicates"]),
    ("data check", heading::OUTPUT, &["quarantine", "findings", "examples"]),
    ("data filter", heading::OUTPUT, &["parts", "row_group_rows"]),
    ("data filter", heading::MACHINE, &["threads"]),
    ("bench data", heading::MACHINE, &["threads"]),
    ("bench data", heading::OUTPUT, &["json"]),
];

fn heading_of(path: &str, argument: &str) -> Option<&'static str> {
    let is_for = |of: &str| of == path || (of.is_empty() && path.starts_with("data "));
    HEADINGS.iter().find(|(of, _, names)| is_for(of) && names.contains(&argument)).map(|(_, heading, _)| *heading)
}

/// The command line with all its help.
pub(crate) fn command() -> Command {
    with_examples(Cli::command(), "")
}

/// An option that takes a number, with the parser's own words on a negative one: clap takes `-8` for a flag.
fn with_negative_numbers(argument: Arg) -> Arg {
    let parsed = argument.get_value_parser().type_id();
    let is_number = [
        TypeId::of::<u8>(),
        TypeId::of::<u16>(),
        TypeId::of::<u32>(),
        TypeId::of::<u64>(),
        TypeId::of::<usize>(),
        TypeId::of::<f32>(),
        TypeId::of::<f64>(),
    ]
    .iter()
    .any(|number| parsed == *number);
    let takes = argument.get_long().is_some() && argument.get_action().takes_values();
    if is_number && takes { argument.allow_negative_numbers(true) } else { argument }
}

fn with_examples(command: Command, path: &str) -> Command {
    let command = command.mut_args(with_negative_numbers);
    let command = command.mut_args(|argument| match heading_of(path, argument.get_id().as_str()) {
        Some(heading) if argument.get_help_heading().is_none() => argument.help_heading(heading),
        _ => argument,
    });
    let names: Vec<String> = command.get_subcommands().map(|below| below.get_name().to_owned()).collect();
    let mut command = command;
    for name in names {
        let path = if path.is_empty() { name.clone() } else { format!("{path} {name}") };
        command = command.mut_subcommand(&name, |below| with_examples(below, &path));
    }
    let examples = EXAMPLES.iter().find(|(of, _)| *of == path).map_or(&[][..], |(_, lines)| *lines);
    if examples.is_empty() {
        return command;
    }
    let examples: String = examples.iter().map(|line| format!("\n  {line}")).collect();
    let before = command.get_after_help().map(|text| format!("{text}\n\n")).unwrap_or_default();
    command.after_help(format!("{before}Examples:{examples}"))
}
