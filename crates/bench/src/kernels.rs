//! The kernels one by one.

use crate::Peaks;
use crate::cases::{Case, Limit, Work, cases};
use crate::{BenchError, json_line, median};
use burn::tensor::Device;
use calotype_kernels::{MemoryBandwidth, isa_name, memory_bandwidth, threads};
use calotype_ops::Precision;
use serde::Serialize;
use std::fmt;
use std::time::{Duration, Instant};

/// Time that the runs of one case should fill, and how many there are at least and at most.
const TIME: Duration = Duration::from_millis(300);
const RUNS: std::ops::RangeInclusive<usize> = 5..=10_000;

/// A measured operation, or a measured peak (`operation` is `peak` then).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KernelRow {
    /// Operation, in lower case.
    pub operation: &'static str,
    /// `forward`, `forward packed` (with weights packed beforehand, as in inference), `backward`, `backward input` or
    /// `backward weight`; `step` of an optimizer.
    pub pass: &'static str,
    /// Shape, in the order that [`run_kernels`] tells.
    pub shape: String,
    /// Precision of the activations.
    pub precision: Precision,
    /// Threads of the kernels.
    pub threads: usize,
    /// Instruction set of the kernels.
    pub isa: &'static str,
    /// Median time of a run; none for peaks.
    pub seconds: Option<f64>,
    /// The speed that was reached, in `unit`.
    pub rate: f64,
    /// `GFLOP/s` or `GB/s`.
    pub unit: &'static str,
    /// The measured peak that the operation is held against, in `unit`.
    pub peak: f64,
    /// `rate / peak`. More than 1 where operands stay in a cache and memory is the yardstick, or where convolutions take fewer multiplications
    /// than plain ones.
    pub peak_fraction: f64,
}

impl KernelRow {
    /// One JSON object in one line.
    pub fn json(&self) -> String {
        json_line(self)
    }

    /// The line above the rows.
    pub fn header() -> String {
        format!(
            "{:<18} {:<15} {:<26} {:>4} {:>11} {:>9} {:<7} {:>7}",
            "operation", "pass", "shape", "", "median", "rate", "", "of peak"
        )
    }
}

impl fmt::Display for KernelRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = self.seconds.map_or(String::new(), |seconds| format!("{:.3} ms", 1e3 * seconds));
        write!(
            f,
            "{:<18} {:<15} {:<26} {:>4} {:>11} {:>9.1} {:<7} {:>5.1} %",
            self.operation,
            self.pass,
            self.shape,
            self.precision,
            time,
            self.rate,
            self.unit,
            100.0 * self.peak_fraction
        )
    }
}

/// Measures the peaks, then every operation whose line (operation, pass, shape, precision) contains `filter`, and gives
/// each row to `emit` as soon as it is there. Both precisions where none is named.
///
/// # Shapes
/// - `gemm`, `linear`: rows x output features x input features (m x n x k)
/// - `conv3x3`: batch x height x width x input channels - output channels / stride
/// - `attention`: heads x queries x head size, the keys behind `keys` where they are fewer
/// - norms and pointwise operations: batch x pixels x channels of the input
///
/// # Errors
/// [`BenchError::NoMatch`], and those of `emit`.
pub fn run_kernels<E: From<BenchError>>(
    filter: Option<&str>,
    precision: Option<Precision>,
    mut emit: impl FnMut(&KernelRow) -> Result<(), E>,
) -> Result<(), E> {
    let precision = precision.map(|precision| precision.resolve(&Device::flex()));
    let precisions = [Precision::Bf16, Precision::F32].into_iter().filter(|&p| precision.is_none_or(|only| only == p));
    let mut wanted: Vec<Case> = precisions.flat_map(cases).collect();
    if let Some(filter) = filter {
        wanted.retain(|case| case.name().contains(filter));
        if wanted.is_empty() {
            return Err(BenchError::NoMatch { filter: filter.to_owned() }.into());
        }
    }
    let yardsticks = Yardsticks { arithmetic: Peaks::measure(), memory: memory_bandwidth() };
    for row in yardsticks.rows() {
        emit(&row)?;
    }
    for case in wanted {
        emit(&yardsticks.measure(case))?;
    }
    Ok(())
}

struct Yardsticks {
    arithmetic: Peaks,
    memory: MemoryBandwidth,
}

impl Yardsticks {
    fn rows(&self) -> Vec<KernelRow> {
        let arithmetic = self.arithmetic.all().map(|(precision, peak)| {
            let rate = 1e-9 * peak.flops;
            peak_row(peak.instruction, precision, rate, "GFLOP/s")
        });
        let MemoryBandwidth { read, write, copy } = self.memory;
        let memory = [("memory read", read), ("memory write", write), ("memory copy", copy)];
        let memory = memory.map(|(name, rate)| peak_row(name, Precision::F32, 1e-9 * rate, "GB/s"));
        arithmetic.chain(memory).collect()
    }

    fn measure(&self, case: Case) -> KernelRow {
        let (amount, unit, peak) = match case.work {
            Work::Arithmetic(flops) => (flops, "GFLOP/s", self.arithmetic.of(case.precision).flops),
            Work::Memory(bytes, Limit::Copy) => (bytes, "GB/s", self.memory.copy),
            Work::Memory(bytes, Limit::Read) => (bytes, "GB/s", self.memory.read),
        };
        let seconds = time(&mut (case.prepare)());
        let rate = 1e-9 * amount / seconds;
        let peak = 1e-9 * peak;
        KernelRow {
            operation: case.operation,
            pass: case.pass,
            shape: case.shape,
            precision: case.precision,
            threads: threads(),
            isa: isa_name(),
            seconds: Some(seconds),
            rate,
            unit,
            peak,
            peak_fraction: rate / peak,
        }
    }
}

fn peak_row(name: &str, precision: Precision, rate: f64, unit: &'static str) -> KernelRow {
    KernelRow {
        operation: "peak",
        pass: "",
        shape: name.to_owned(),
        precision,
        threads: threads(),
        isa: isa_name(),
        seconds: None,
        rate,
        unit,
        peak: rate,
        peak_fraction: 1.0,
    }
}

/// Median seconds of the runs after a first one, which pays for memory and for packing what can be kept.
fn time(run: &mut dyn FnMut()) -> f64 {
    run();
    let begin = Instant::now();
    let mut seconds = Vec::new();
    while seconds.len() < *RUNS.start() || (begin.elapsed() < TIME && seconds.len() < *RUNS.end()) {
        let start = Instant::now();
        run();
        seconds.push(start.elapsed().as_secs_f64());
    }
    median(seconds)
}
