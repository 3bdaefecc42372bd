//! Times the statistics and the distance of 2,048 features: `time_statistics [ROWS] [ROUNDS] [THREADS]`.
//! `scripts/time-statistics.py` times numpy and scipy in turn with it.

use calotype_core::{Purpose, Stream};
use calotype_metrics::{GaussianAccumulator, GaussianStatistics, MetricsError, frechet_distance};
use std::time::Instant;

const WIDTH: usize = 2048;
/// Rows that are pushed at once, as a feature network's batches are.
const BATCH: usize = 64;

fn main() -> Result<(), MetricsError> {
    let mut numbers = std::env::args().skip(1).map(|text| text.parse().unwrap_or(0));
    let mut number = |default: usize| numbers.next().filter(|&number| number > 0).unwrap_or(default);
    let (rows, rounds) = (number(30_000), number(3));
    calotype_kernels::set_threads(number(calotype_kernels::threads()));
    for _ in 0..rounds {
        let (statistics, gathered) = statistics(rows, 1)?;
        let peak = 1024.0 * calotype_core::system::peak_rss_gib().unwrap_or(f64::NAN);
        let (other, _) = self::statistics(rows / 3, 2)?;
        let start = Instant::now();
        let distance = frechet_distance(&statistics, &other)?;
        let taken = start.elapsed().as_secs_f64();
        println!("statistics {gathered:.3} s (peak of the first {peak:.0} MiB), distance {taken:.3} s ({distance:.9})");
    }
    Ok(())
}

/// The statistics of rows that are made while they are gathered, as those of pictures are, and the seconds of gathering.
fn statistics(rows: usize, seed: u64) -> Result<(GaussianStatistics, f64), MetricsError> {
    let mut accumulator = GaussianAccumulator::new(WIDTH)?;
    let mut seconds = 0.0;
    let mut timed = |start: Instant| seconds += start.elapsed().as_secs_f64();
    for first in (0..rows).step_by(BATCH) {
        let batch = features(seed, first, BATCH.min(rows - first));
        let start = Instant::now();
        accumulator.push(&batch)?;
        timed(start);
    }
    let start = Instant::now();
    let statistics = accumulator.finish()?;
    timed(start);
    Ok((statistics, seconds))
}

/// Positive numbers of unequal spread, each with some of its neighbour.
fn features(seed: u64, first: usize, rows: usize) -> Vec<f32> {
    let mut stream = Stream::new(seed, Purpose::Evaluation, first as u64);
    let mut before = 0.0;
    let one = |index: usize| {
        let value = stream.uniform();
        let sum = (value + 0.7 * before) / (1 + index % WIDTH / 8) as f32;
        before = value;
        sum
    };
    (0..rows * WIDTH).map(one).collect()
}
