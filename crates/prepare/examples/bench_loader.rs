//! The loader's benchmark alone.
//!
//!     cargo run --release -p calotype-prepare --example bench_loader -- --json

use calotype_data::Control;
use calotype_prepare::bench::{LoaderBench, bench_loader};
use clap::Parser;

#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    bench: LoaderBench,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Cli { bench } = Cli::parse();
    let figures = bench_loader(&bench, &mut Control::default())?;
    if bench.json {
        println!("{}", serde_json::to_string(&figures)?);
    } else {
        println!("{figures}");
    }
    Ok(())
}
