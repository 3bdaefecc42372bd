//! `doctor`: what this machine and this build offer, and what to make of it.

use super::mlperf_submission::of_this_machine;
use super::{print, recipe_loader};
use anyhow::Result;
use calotype_core::system::{Memory, format_bytes, memory, processor_flags, processor_name};
use calotype_train::device::{KNOWN, available};
use clap::Args;

/// Instruction sets that the kernels use, by Linux's names.
const USED: [&str; 9] =
    ["avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16", "amx_tile", "amx_bf16"];
/// Below this, large networks need care.
const LITTLE_MEMORY: u64 = 8 << 30;

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Print the description of this machine that a submission to MLPerf inference holds, as JSON, and name the fields that only
    /// people can fill.
    #[arg(long)]
    system_json: bool,
}

/// Prints facts, one a line, then advice; or the description of a submission.
pub(crate) fn doctor(args: &DoctorArgs) -> Result<()> {
    if args.system_json { describe() } else { tell() }
}

fn describe() -> Result<()> {
    let system = of_this_machine("");
    let lacks: Vec<_> = system.lacks().into_iter().filter(|name| *name != "submitter").collect();
    if !lacks.is_empty() {
        eprintln!("note: this machine does not tell {}; fill them in", lacks.join(", "));
    }
    print(&serde_json::to_string_pretty(&system)?)
}

fn tell() -> Result<()> {
    let (cores, threads) = (cores(), calotype_kernels::threads());
    let bf16 = calotype_kernels::multiplies_bf16();
    let memory = memory();
    let flags = processor_flags();
    let has: Vec<&str> = USED.into_iter().filter(|used| flags.iter().any(|flag| flag == used)).collect();
    let has =
        if has.is_empty() { "none of those that the kernels use, or not known".to_owned() } else { has.join(" ") };
    let lines = [
        ("calotype", format!("{} (commit {}{})", env!("CARGO_PKG_VERSION"), env!("CALOTYPE_COMMIT"), build())),
        ("processor", format!("{}, {cores} cores", processor_name().unwrap_or_else(|| "not known".to_owned()))),
        ("instructions", has),
        ("kernels", calotype_kernels::isa_name().to_owned()),
        ("bf16", if bf16 { "multiplied by the processor" } else { "converted to f32" }.to_owned()),
        ("memory", memory.map_or_else(|| "not known".to_owned(), told)),
        ("threads", threads.to_string()),
        ("devices", available().join(", ")),
        ("recipes", recipe_loader().names().len().to_string()),
    ];
    for (name, value) in lines {
        print(&format!("{name:12} {value}"))?;
    }
    for line in advice(cores, threads, bf16, memory) {
        print(&format!("advice       {line}"))?;
    }
    Ok(())
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get())
}

fn told(memory: Memory) -> String {
    format!("{}, {} available", format_bytes(memory.total), format_bytes(memory.available))
}

/// What kind of build it is, where that matters.
fn build() -> &'static str {
    if cfg!(debug_assertions) { ", debug" } else { "" }
}

fn advice(cores: usize, threads: usize, bf16: bool, memory: Option<Memory>) -> Vec<String> {
    let mut advice = Vec::new();
    if cfg!(debug_assertions) {
        advice.push("this build is many times slower than one of cargo build --release".to_owned());
    }
    if let Some(isa) = std::env::var("CALOTYPE_ISA").ok().filter(|isa| !isa.is_empty()) {
        advice.push(format!("CALOTYPE_ISA={isa} holds back what the processor has; unset it for full speed"));
    }
    if threads < cores {
        advice.push(format!("{threads} of {cores} cores are used; --threads {cores} uses all"));
    }
    if bf16 {
        advice.push("precision auto is bf16 here, about twice as fast as f32".to_owned());
    } else {
        advice.push(
            "precision auto is f32 here: without instructions for bf16, training and drawing take about twice the time"
                .to_owned(),
        );
    }
    if memory.is_some_and(|memory| memory.available < LITTLE_MEMORY) {
        advice.push(
            "little memory for large networks: draw with --tiled and --batch 1; train with memory.recompute_blocks=true, \
             optimizer.in_backward=true, or a larger optimizer.accumulate"
                .to_owned(),
        );
    }
    if available().len() == 1 {
        let others: Vec<&str> = KNOWN.into_iter().filter(|name| *name != "cpu").collect();
        advice.push(format!(
            "for another device build with its feature: cargo build --release --features {}",
            others.join("|")
        ));
    }
    advice
}
