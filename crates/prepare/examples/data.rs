//! The data stages without the rest of Calotype: for machines that only prepare data, and for this crate's tests, which
//! kill it.
//!
//!     cargo run --release -p calotype-prepare --example data -- --help

use calotype_data::Control;
use calotype_prepare::DataStage;
use clap::Parser;
use std::process::ExitCode;

#[derive(Debug, Parser)]
#[command(name = "data", arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    stage: DataStage,
}

fn main() -> ExitCode {
    match Cli::parse().stage.run(&mut Control::default()) {
        Ok(account) => {
            println!("{account}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(if error.is_usage() { 2 } else { 1 })
        }
    }
}
