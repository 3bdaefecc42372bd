//! The time of the CPU kernels: by pass, operation and shape.
//!
//! Off, an operation pays one relaxed load for it. On, each kernel call is timed and added to a table that
//! [`stop`] hands out. The table belongs to the process, not to a thread.

use burn::tensor::DType;
use calotype_kernels::{AttentionShape, Conv2dShape};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The part of a training step that an operation belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pass {
    /// From inputs to outputs.
    Forward,
    /// Forward a second time, for the backward pass of a block that kept its inputs only.
    Recompute,
    /// From the gradients of outputs to those of inputs and parameters.
    Backward,
    /// From gradients to new parameters.
    Optimizer,
}

impl Pass {
    /// `"forward"`, `"recompute"`, `"backward"` or `"optimizer"`.
    pub fn name(self) -> &'static str {
        match self {
            Pass::Forward => "forward",
            Pass::Recompute => "recompute",
            Pass::Backward => "backward",
            Pass::Optimizer => "optimizer",
        }
    }
}

/// All calls of one operation with one shape in one pass.
#[derive(Clone, Debug, PartialEq)]
pub struct ProfileEntry {
    /// Pass.
    pub pass: Pass,
    /// Operation, and in the backward pass which gradient, where they are separate.
    pub operation: &'static str,
    /// Shape as the operation's kernel sees it.
    pub shape: String,
    /// Precision of the activations, `"f32"` or `"bf16"`.
    pub precision: &'static str,
    /// Calls.
    pub calls: u64,
    /// Seconds of all calls together.
    pub seconds: f64,
    /// Floating-point operations of all calls together; 0 where memory decides the speed.
    pub flops: f64,
    /// Bytes that all calls together must at least read and write; 0 where arithmetic decides the speed.
    pub bytes: f64,
}

/// The work of one call.
pub(crate) struct Work {
    operation: &'static str,
    shape: String,
    precision: &'static str,
    flops: f64,
    bytes: f64,
}

type Key = (Pass, &'static str, String, &'static str);

struct Sums {
    calls: u64,
    time: Duration,
    flops: f64,
    bytes: f64,
}

static ON: AtomicBool = AtomicBool::new(false);
static TABLE: Mutex<BTreeMap<Key, Sums>> = Mutex::new(BTreeMap::new());

fn table() -> MutexGuard<'static, BTreeMap<Key, Sums>> {
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Begins to time operations.
pub fn start() {
    ON.store(true, Ordering::Relaxed);
}

/// Stops timing; what was gathered since the last [`stop`], longest first in each pass.
pub fn stop() -> Vec<ProfileEntry> {
    ON.store(false, Ordering::Relaxed);
    let table = std::mem::take(&mut *table());
    let mut entries: Vec<ProfileEntry> = table
        .into_iter()
        .map(|((pass, operation, shape, precision), sums)| ProfileEntry {
            pass,
            operation,
            shape,
            precision,
            calls: sums.calls,
            seconds: sums.time.as_secs_f64(),
            flops: sums.flops,
            bytes: sums.bytes,
        })
        .collect();
    entries.sort_by(|a, b| a.pass.cmp(&b.pass).then(b.seconds.total_cmp(&a.seconds)));
    entries
}

/// Times from its making to its end, if profiling is on.
pub(crate) struct Span(Option<(Instant, Pass, Work)>);

thread_local! {
    static RECOMPUTING: Cell<bool> = const { Cell::new(false) };
}

/// Runs `forward`, whose operations belong to [`Pass::Recompute`].
pub(crate) fn recomputing<R>(forward: impl FnOnce() -> R) -> R {
    RECOMPUTING.set(true);
    let result = forward();
    RECOMPUTING.set(false);
    result
}

/// Begins to time an operation; `work` is only asked for where profiling is on.
#[inline]
pub(crate) fn span(pass: Pass, work: impl FnOnce() -> Work) -> Span {
    if !ON.load(Ordering::Relaxed) {
        return Span(None);
    }
    let pass = if pass == Pass::Forward && RECOMPUTING.get() { Pass::Recompute } else { pass };
    let work = work();
    Span(Some((Instant::now(), pass, work)))
}

impl Drop for Span {
    fn drop(&mut self) {
        let Some((start, pass, work)) = self.0.take() else { return };
        let time = start.elapsed();
        let mut table = table();
        let key = (pass, work.operation, work.shape, work.precision);
        let sums = table.entry(key).or_insert(Sums { calls: 0, time: Duration::ZERO, flops: 0.0, bytes: 0.0 });
        sums.calls += 1;
        sums.time += time;
        sums.flops += work.flops;
        sums.bytes += work.bytes;
    }
}

fn precision(dtype: DType) -> (&'static str, f64) {
    if dtype == DType::BF16 { ("bf16", 2.0) } else { ("f32", 4.0) }
}

/// A product of three numbers without overflow, times two: the operations of a matrix product.
fn twice(m: usize, n: usize, k: usize) -> f64 {
    2.0 * m as f64 * n as f64 * k as f64
}

impl Work {
    /// A convolution or one of its gradients: all three do the same arithmetic.
    pub(crate) fn conv2d(operation: &'static str, s: &Conv2dShape, dtype: DType) -> Self {
        let [rows, columns] = s.kernel;
        let patch = rows * columns * s.in_channels;
        Self {
            operation,
            shape: format!(
                "{}x{}x{}x{} to {} channels, {rows}x{columns} /{}",
                s.batch, s.height, s.width, s.in_channels, s.out_channels, s.stride
            ),
            precision: precision(dtype).0,
            flops: twice(s.batch * s.out_height() * s.out_width(), s.out_channels, patch),
            bytes: 0.0,
        }
    }

    /// A linear layer of `[rows, inputs, outputs]` or one of its gradients.
    pub(crate) fn linear(operation: &'static str, [m, k, n]: [usize; 3], dtype: DType) -> Self {
        let shape = format!("{m} rows, {k} to {n}");
        Self { operation, shape, precision: precision(dtype).0, flops: twice(m, n, k), bytes: 0.0 }
    }

    /// Attention that does `products` matrix products: 2 forward, 5 backward, where the scores are computed again.
    pub(crate) fn attention(s: &AttentionShape, products: usize, dtype: DType) -> Self {
        let all = s.batch * s.heads * s.query_tokens;
        // Under a causal mask half of the scores are not needed.
        let share = if s.causal { 0.5 } else { 1.0 };
        Self {
            operation: "attention",
            shape: format!(
                "{}x{} heads of {}, {} x {} keys",
                s.batch, s.heads, s.head_dim, s.query_tokens, s.key_tokens
            ),
            precision: precision(dtype).0,
            flops: share * products as f64 * twice(all, s.key_tokens, s.head_dim),
            bytes: 0.0,
        }
    }

    /// Something that reads and writes `elements` elements of activations in all.
    pub(crate) fn stream(operation: &'static str, dims: &[usize], elements: usize, dtype: DType) -> Self {
        let shape = dims.iter().map(usize::to_string).collect::<Vec<_>>().join("x");
        let (precision, size) = precision(dtype);
        Self { operation, shape, precision, flops: 0.0, bytes: size * elements as f64 }
    }
}
