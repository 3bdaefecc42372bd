//! The command line itself: help texts, examples, completions, man pages, and what is said of what cannot be read.

use crate::common::{calotype, fail, run, succeed};
use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

/// The names that a help text lists below `Commands:`.
fn subcommands(help: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let names = lines.take_while(|line| line.starts_with("  ")).filter(|line| !line.starts_with("   "));
    names.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help").map(str::to_owned).collect()
}

/// Every command by its path, with its help.
fn commands() -> Vec<(Vec<String>, String)> {
    let mut found = Vec::new();
    let mut open = vec![Vec::new()];
    while let Some(path) = open.pop() {
        let mut arguments: Vec<&str> = path.iter().map(String::as_str).collect();
        arguments.push("--help");
        let help = succeed(&mut calotype(&arguments)).stdout;
        open.extend(subcommands(&help).into_iter().map(|name| [&path[..], &[name]].concat()));
        found.push((path, help));
    }
    found
}

/// The words of a line as a shell splits it.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted) = (Vec::new(), String::new(), false);
    for c in line.chars() {
        match c {
            '"' => quoted = !quoted,
            ' ' if !quoted => words.push(std::mem::take(&mut word)),
            c => word.push(c),
        }
    }
    words.push(word);
    words
}

#[test]
fn every_help_text_ends_with_examples_that_can_be_read() {
    let commands = commands();
    assert!(commands.len() > 20, "{}", commands.len());
    for (path, help) in commands {
        let path = path.join(" ");
        let (_, examples) =
            help.split_once("\nExamples:\n").unwrap_or_else(|| panic!("`{path}` has no examples:\n{help}"));
        for line in examples.lines() {
            let line = line.trim().split(" > ").next().unwrap();
            let words = words(line);
            assert_eq!(words[0], "calotype", "{path}: {line}");
            assert!(line.contains(&path), "{path}: {line}");
            let words: Vec<&str> = words[1..].iter().map(String::as_str).collect();
            // Flags and values are read one after the other; behind the last, help ends it well.
            let (own, rest) = words.split_at(words.iter().position(|word| *word == "--").unwrap_or(words.len()));
            let ended = run(calotype(own).arg("--help").args(rest));
            assert_eq!(ended.code, Some(0), "{line}: {ended}");
        }
    }
}

#[test]
fn flags_of_all_commands_stand_under_the_same_heading_and_say_what_they_take() {
    for (path, help) in commands() {
        let (path, name) = (path.join(" "), format!("\n{help}"));
        assert!(name.contains("\nMachine:\n") && help.contains("--threads <N>"), "{path}: {help}");
        if help.contains("--device <") {
            assert!(help.contains("[possible values: cpu, cuda, rocm, metal, vulkan, wgpu]"), "{path}: {help}");
        }
        if help.contains("--precision") {
            let more = if path == "bench unet" { ", int8" } else { "" };
            assert!(help.contains(&format!("[possible values: f32, bf16, auto{more}]")), "{path}: {help}");
        }
    }
}

#[test]
fn completions_and_man_pages_know_the_commands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = succeed(&mut calotype(&["completions", shell])).stdout;
        for word in ["calotype", "generate", "precache", "guidance"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    let script = succeed(&mut calotype(&["completions", "bash"])).stdout;
    for recipe in ["training/clip/quickstart", "data/precache/quickstart"] {
        assert!(script.contains(recipe), "{recipe}");
    }
    fail(&mut calotype(&["completions", "tcsh"]), 2, &["'tcsh'", "bash"]);
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("man");
    succeed(calotype(&["man"]).arg(&pages));
    let names: BTreeSet<String> =
        fs::read_dir(&pages).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    for page in ["calotype.1", "calotype-generate.1", "calotype-data-convert.1"] {
        assert!(names.contains(page), "{page} is not in {names:?}");
    }
    let page = fs::read_to_string(pages.join("calotype-generate.1")).unwrap();
    assert!(page.contains("guidance") && page.contains("Examples:"), "{page}");
}

/// What diffusers, kohya and others call a flag, and what is said of it here.
#[test]
fn flags_of_other_programs_lead_to_ours() {
    for (arguments, tip) in [
        ("generate x --model m --num_inference_steps 30", "--steps 30"),
        ("generate x --model m --num-inference-steps=30", "--steps 30"),
        ("generate x --model m --guidance_scale 7.5", "--guidance 7.5"),
        ("generate x --model m --cfg 7", "--guidance 7"),
        ("generate x --model m --negative_prompt ugly", "--negative ugly"),
        ("generate x --model m --sampling_method euler", "--sampler euler"),
        ("generate x --ckpt a.ckpt", "--model a.ckpt"),
        ("generate x --pretrained_model_name_or_path sd", "--model sd"),
        ("generate x --model m --batch_size 4", "--batch 4"),
        ("generate x --model m --n_samples 4", "--count 4"),
        ("generate x --model m --outdir o", "--out o"),
        ("generate x --model m --init_img a.png", "--image a.png"),
        ("generate x --model m --clip_skip 2", "--clip-skip"),
        ("generate --prompt fox --model m", "calotype generate fox --model PATH"),
        ("train r --train_data_dir images", "data.path=images"),
        ("train r --output_dir o", "--out o"),
        ("train r --max_train_steps 100", "run.samples=N"),
        ("train r --learning_rate 1e-4", "optimizer.learning_rate=1e-4"),
        ("train r --mixed_precision bf16", "run.precision"),
        ("train r --pretrained_model_name_or_path sd", "init_from=sd"),
        ("train r --train_batch_size 4", "run.batch_size=4"),
        ("train r --resume_from_checkpoint latest", "the same command again"),
        ("train r --run.samples=5", "run.samples=5"),
        ("data convert a b --output_folder x", "without a flag"),
        ("data convert a --out x", "here the folder has no flag"),
        ("data precache r --out x", "out=x"),
        ("data precache r --batch-size 4", "batch_size=4"),
        ("generate x --model m --stpes 3", "'--steps'"),
        ("train r --ot d", "did you mean `--out`?"),
    ] {
        let words: Vec<&str> = arguments.split(' ').collect();
        let message = fail(&mut calotype(&words), 2, &["unexpected argument '--"]);
        assert!(message.contains(tip) && message.contains("tip: "), "{arguments}: {message}");
    }
    for (name, own) in
        [("txt2img", "generate"), ("finetune", "train"), ("precache", "data precache"), ("info", "inspect")]
    {
        fail(&mut calotype(&[name]), 2, &[&format!("here that is `calotype {own}`")]);
    }
    fail(&mut calotype(&["genrate"]), 2, &["'generate'"]);
    // Letters, sizes, what needs no flag here; and the usage names no flag that nobody meant.
    for (arguments, tip) in [
        ("generate x --model m -o d", "--out d"),
        ("generate x --model m -v", "CALOTYPE_LOG"),
        ("generate x --model m --size 512x768", "--width 512 --height 768"),
        ("generate x --model m --resolution=512", "--width 512 --height 512"),
        ("generate x --model m --medvram", "no flag is needed"),
        ("generate x --model m --xformers", "no flag is needed"),
        ("generate x --model m --n_iter 3", "--count 3"),
        ("quickstart --data images", "calotype data convert"),
    ] {
        let words: Vec<&str> = arguments.split(' ').collect();
        let message =
            fail(&mut calotype(&words), 2, &["tip: here", tip, &format!("Usage: calotype {} [OPTIONS]", words[0])]);
        assert!(!message.contains("similar"), "{arguments}: {message}");
    }
}

#[test]
fn numbers_that_mean_nothing_are_refused_in_plain_words() {
    for (arguments, parts) in [
        ("generate x --model m --guidance nan", &["'nan'", "--guidance", "it takes a number, such as 7.5"][..]),
        ("generate x --model m --guidance inf", &["it takes a number"]),
        ("generate x --model m --count 0", &["--count", "a whole number of at least 1, such as 4"]),
        ("generate x --model m --count 99999999999999", &["--count 99999999999999", "at most 1000000 images"]),
        ("generate x y --model m --count 9999999999999999999", &["at most 1000000 images"]),
        ("generate x --model m --steps 0", &["--steps", "at least 1"]),
        ("generate x --model m --batch 0", &["--batch", "at least 1"]),
        ("generate x --model m --steps ten", &["--steps", "at least 1"]),
        ("generate x --model m --width 0", &["--width", "at least 1"]),
        ("generate x --model m --width -8", &["'-8'", "--width", "at least 1"]),
        ("generate x --model m --count -1", &["'-1'", "--count", "at least 1"]),
        ("generate x --model m --clip-skip -1", &["--clip-skip", "a whole number"]),
        ("doctor --threads -2", &["'-2'", "--threads", "at least 1"]),
        ("data convert a b --shard-samples -5", &["'-5'", "--shard-samples", "at least 1"]),
        ("bench unet --batch -1", &["'-1'", "--batch", "at least 1"]),
        ("evaluate pictures p --subsets -3", &["'-3'", "--subsets", "at least 1"]),
        ("generate x --model m --eta 1.5", &["--eta", "a share from 0 to 1"]),
        ("generate x --model m --strength -1", &["--strength", "a share from 0 to 1"]),
        ("generate x --model m --seed -1", &["--seed", "a whole number from 0", "none is drawn at random"]),
        ("quickstart --seed -1", &["--seed", "a whole number from 0"]),
        ("generate x --model m --clip-skip two", &["--clip-skip", "a whole number"]),
        ("doctor --threads 0", &["--threads", "at least 1"]),
        ("generate x --model m --precision fp16", &["'fp16'", "possible values: f32, bf16, auto"]),
        ("convert a b --to difusers", &["'difusers'", "'diffusers'"]),
        ("bench unet --batch 0", &["--batch", "at least 1"]),
        ("bench unet --recompute-blocks", &["--recompute-blocks", "--mode train"]),
        ("bench data --threads 0", &["--threads", "at least 1"]),
        ("data emoji e --drawings 0", &["--drawings", "at least 1"]),
        ("data synth s --samples 0", &["--samples", "at least 1"]),
        ("data synth s --samples 99999999999999999999", &["--samples", "the number is too large"]),
        ("data filter a b --max-punsafe 7", &["--max-punsafe", "a share from 0 to 1"]),
        ("data filter a b --min-width wide", &["--min-width", "it takes a whole number, such as 4"]),
        ("data download a b --timeout nan", &["--timeout", "a number of at least 0"]),
        ("train r --record f --record-steps 0", &["--record-steps", "at least 1"]),
        ("generate x --model m --strength 0.5", &["--strength has no effect without", "--image"]),
        ("generate x --model m --lora-allow-unused", &["--lora-allow-unused has no effect without", "--lora"]),
    ] {
        let words: Vec<&str> = arguments.split(' ').collect();
        let message = fail(&mut calotype(&words), 2, parts);
        for rust in ["'-- -", "invalid digit", "invalid float", "u64", "usize", "f32:"] {
            assert!(!message.contains(rust), "{arguments}: {message}");
        }
    }
}

#[test]
fn variables_of_the_environment_are_checked() {
    let with = |name: &str, value: &str| -> Command {
        let mut command = calotype(&["doctor"]);
        command.env(name, value);
        command
    };
    for (name, value, takes) in [
        ("CALOTYPE_ISA", "avx9", "it takes scalar, avx2, avx512, avx512bf16, amx"),
        ("CALOTYPE_CONV", "winograd", "it takes direct"),
        ("CALOTYPE_THREADS", "0", "a whole number of at least 1"),
        ("CALOTYPE_LOG", "calotype=loud", "filters of tracing"),
        ("MIMALLOC_PURGE_DELAY", "soon", "milliseconds"),
    ] {
        fail(&mut with(name, value), 2, &[name, &format!("`{value}`"), takes, "unset it"]);
    }
    let told = succeed(&mut with("CALOTYPE_ISA", "avx2"));
    assert!(told.stdout.contains("CALOTYPE_ISA=avx2 holds back"), "{told}");
    succeed(&mut with("CALOTYPE_ISA", ""));
    let told = succeed(&mut with("CALOTYPE_ISSA", "avx2"));
    assert!(told.stderr.contains("did you mean CALOTYPE_ISA?"), "{told}");
}
