//! The program from the outside: its commands, its errors, and what it promises about stops and repetitions.

mod averages;
mod basics;
mod bench;
mod checkpoints;
mod command_line;
mod common;
mod determinism;
mod errors;
mod evaluate;
mod generate;
mod judging;
mod mlperf;
mod mlperf_accuracy;
mod mlperf_inference;
mod precache;
mod quantize;
mod ranks;
mod recipes;
mod resume;
mod runs;
mod submissions;
mod vision;
mod vit;
