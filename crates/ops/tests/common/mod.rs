//! What the test programs share: the device under test, evaluation of a case with its gradients, and comparisons.
#![allow(dead_code, reason = "every test program uses a part of this")]

pub mod cases;

use burn::tensor::{DType, Device, Tensor, TensorData};
use calotype_core::{Purpose, Stream};
use calotype_ops::force_portable;
use half::bf16;
use std::any::Any;
use std::cell::RefCell;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// One of the ways to compute an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// The kernels, on Flex.
    Kernels,
    /// Burn tensor operations, on Flex.
    Portable,
    /// Burn tensor operations, on the default wgpu device.
    Wgpu,
}

impl Body {
    pub fn device(self) -> Device {
        match self {
            Body::Kernels | Body::Portable => Device::flex(),
            Body::Wgpu => wgpu(),
        }
    }

    pub fn run<R>(self, body: impl FnOnce() -> R) -> R {
        if self == Body::Portable { force_portable(body) } else { body() }
    }
}

#[cfg(feature = "wgpu")]
fn wgpu() -> Device {
    Device::wgpu(burn::tensor::DeviceKind::DefaultDevice)
}

#[cfg(not(feature = "wgpu"))]
fn wgpu() -> Device {
    panic!("CALOTYPE_TEST_DEVICE=wgpu needs a test program built with --features wgpu")
}

/// What is tested: the body that the operations take on the device named by `CALOTYPE_TEST_DEVICE`.
pub fn subject() -> Body {
    match std::env::var("CALOTYPE_TEST_DEVICE").as_deref() {
        Err(_) | Ok("" | "cpu") => Body::Kernels,
        Ok("wgpu") => Body::Wgpu,
        Ok(other) => panic!("CALOTYPE_TEST_DEVICE is cpu or wgpu, not {other:?}"),
    }
}

/// What the subject is held against.
pub fn oracle() -> Body {
    match subject() {
        Body::Kernels => Body::Portable,
        Body::Wgpu | Body::Portable => Body::Kernels,
    }
}

/// Says on the real standard error, which the test harness does not swallow, that something is left out.
pub fn not_run(what: &str) {
    writeln!(std::io::stderr(), "not run with {:?}: {what}", subject()).expect("standard error is open");
}

/// The activation dtypes that the subject is tested with.
pub fn dtypes() -> Vec<DType> {
    if subject() == Body::Kernels {
        vec![DType::F32, DType::BF16]
    } else {
        not_run("bf16 activations");
        vec![DType::F32]
    }
}

/// The cases that the subject can take: wgpu has no buffers of zero bytes.
pub fn cases() -> Vec<Case> {
    let all = cases::all();
    if subject() == Body::Kernels {
        return all;
    }
    let (empty, full): (Vec<Case>, Vec<Case>) = all.into_iter().partition(Case::is_empty);
    empty.iter().for_each(|case| not_run(&case.name));
    full
}

/// Whether an input follows the activation dtype or is always f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Activation,
    Parameter,
}

/// A normally distributed input.
#[derive(Clone, Debug)]
pub struct Input {
    pub name: &'static str,
    pub role: Role,
    pub shape: Vec<usize>,
    pub centre: f32,
    pub spread: f32,
}

impl Input {
    pub fn activation(name: &'static str, shape: &[usize]) -> Self {
        Self { name, role: Role::Activation, shape: shape.to_vec(), centre: 0.0, spread: 1.0 }
    }

    pub fn parameter(name: &'static str, shape: &[usize]) -> Self {
        Self { role: Role::Parameter, ..Self::activation(name, shape) }
    }

    pub fn around(self, centre: f32, spread: f32) -> Self {
        Self { centre, spread, ..self }
    }

    fn len(&self) -> usize {
        self.shape.iter().product()
    }

    fn dtype(&self, activations: DType) -> DType {
        if self.role == Role::Activation { activations } else { DType::F32 }
    }
}

/// How far two bodies may be apart; every number is a fraction of the largest magnitude in the oracle's tensor.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    /// f32 outputs.
    pub forward: f32,
    /// f32 gradients.
    pub gradient: f32,
    /// bf16 tensors, besides one unit in the last place of each element; see [`Tolerance::of`].
    pub bf16: f32,
    /// What counts as the largest magnitude where all of a gradient is smaller: gradients that are zero but for
    /// rounding (one key, one channel) are differences of numbers of this size.
    pub floor: f32,
}

impl Default for Tolerance {
    fn default() -> Self {
        Self { forward: 2e-6, gradient: 1e-5, bf16: 1e-5, floor: 0.0 }
    }
}

impl Tolerance {
    /// `(relative to each element, relative to the largest element)`.
    ///
    /// bf16 has 8 significant bits. Both bodies compute in f32 and round once, so two results are either equal or, where
    /// the f32 values lie on two sides of a rounding boundary, neighbours: one unit in the last place, at most 2^-7 of
    /// the element. What exceeds that (`self.bf16`) is the f32 difference before rounding, or comes from
    /// intermediate results that one body rounds and the other does not.
    fn of(&self, what: What, dtype: DType) -> (f32, f32) {
        if subject() == Body::Wgpu {
            // Devices differ in fused multiply-add, in the order of sums and in the accuracy of exp and erf.
            return (0.0, 1e-3);
        }
        match (dtype, what) {
            (DType::BF16, _) => (1.0 / 128.0, self.bf16),
            (_, What::Output) => (0.0, self.forward),
            (_, What::Gradient) => (0.0, self.gradient),
        }
    }
}

/// Which of a case's results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Output,
    Gradient,
}

/// A call of an operation.
pub struct Case {
    pub name: String,
    pub inputs: Vec<Input>,
    pub call: Box<dyn Fn(&Leaves) -> Tensor<1>>,
    pub tolerance: Tolerance,
    /// Whether the function is smooth, so that quotients of differences tell its derivative.
    pub smooth: bool,
}

impl Case {
    pub fn new(name: String, inputs: Vec<Input>, call: impl Fn(&Leaves) -> Tensor<1> + 'static) -> Self {
        Self { name, inputs, call: Box::new(call), tolerance: Tolerance::default(), smooth: true }
    }

    /// The function has kinks, across which quotients of differences are no derivative.
    pub fn kinked(mut self) -> Self {
        self.smooth = false;
        self
    }

    pub fn within(mut self, tolerance: Tolerance) -> Self {
        self.tolerance = tolerance;
        self
    }

    pub fn is_empty(&self) -> bool {
        self.inputs.iter().any(|input| input.len() == 0)
    }

    /// FNV-1a of the name: a case keeps its numbers when others are added.
    pub fn stream(&self, index: u64) -> Stream {
        let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        let seed = self.name.bytes().fold(0xcbf2_9ce4_8422_2325, step);
        Stream::new(seed, Purpose::Evaluation, index)
    }

    /// The inputs' elements, those of activations rounded to the dtype, and with them the weights of products: kernels
    /// that multiply bf16 matrices round these once more, which must not count as an error.
    pub fn data(&self, dtype: DType) -> Vec<Vec<f32>> {
        let numbers = |(i, input): (usize, &Input)| {
            let mut values = vec![0.0; input.len()];
            self.stream(i as u64).fill_normal(&mut values);
            values.iter_mut().for_each(|value| *value = input.centre + input.spread * *value);
            rounded(values, if input.name == "weight" { dtype } else { input.dtype(dtype) })
        };
        self.inputs.iter().enumerate().map(numbers).collect()
    }

    /// The random weights of the output's elements in the scalar that is differentiated.
    pub fn projection(&self, n: usize, dtype: DType) -> Vec<f32> {
        let mut values = vec![0.0; n];
        self.stream(1000).fill_normal(&mut values);
        rounded(values, dtype)
    }
}

fn rounded(mut values: Vec<f32>, dtype: DType) -> Vec<f32> {
    if dtype == DType::BF16 {
        values.iter_mut().for_each(|value| *value = bf16::from_f32(*value).to_f32());
    }
    values
}

/// How tensors reach an operation in memory, and its output's gradient comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// From the beginning of a storage of their own.
    Dense,
    /// Inputs and output's gradient are permuted views, the dimensions in reverse order.
    Permuted,
    /// Inputs and output's gradient begin in the middle of a storage.
    Offset,
    /// The output is summed, so that its gradient is one number broadcast. The sum, which may cancel to any degree, is
    /// not compared.
    Summed,
}

/// The inputs of a case as tensors.
pub struct Leaves<'a> {
    inputs: &'a [Input],
    tensors: Vec<Tensor<1>>,
    placement: Placement,
    /// Shape and dtype of the output before [`Leaves::flat`].
    seen: RefCell<Option<(Vec<usize>, DType)>>,
}

fn backwards<const D: usize>(t: Tensor<D>) -> Tensor<D> {
    t.permute(std::array::from_fn::<isize, D, _>(|i| (D - 1 - i) as isize))
}

fn behind_zeros(t: Tensor<1>, zeros: usize) -> Tensor<1> {
    let front = Tensor::zeros([zeros], (&t.device(), t.dtype()));
    Tensor::cat(vec![front, t], 0)
}

impl Leaves<'_> {
    pub fn get<const D: usize>(&self, name: &str) -> Tensor<D> {
        self.find(name).unwrap_or_else(|| panic!("the case has no input {name}"))
    }

    pub fn find<const D: usize>(&self, name: &str) -> Option<Tensor<D>> {
        let i = self.inputs.iter().position(|input| input.name == name)?;
        let leaf = self.tensors[i].clone();
        let mut shape: [usize; D] = self.inputs[i].shape.as_slice().try_into().expect("rank of the input");
        Some(match self.placement {
            Placement::Dense | Placement::Summed => leaf.reshape(shape),
            Placement::Permuted => {
                shape.reverse();
                backwards(leaf.reshape(shape))
            }
            Placement::Offset => behind_zeros(leaf, 3).narrow(0, 3, self.inputs[i].len()).reshape(shape),
        })
    }

    /// The operation's output as the case's result.
    pub fn flat<const D: usize>(&self, y: Tensor<D>) -> Tensor<1> {
        let n = y.dims().iter().product::<usize>();
        self.seen.replace(Some((y.dims().to_vec(), y.dtype())));
        match self.placement {
            Placement::Dense => y.reshape([n]),
            Placement::Permuted => backwards(y).reshape([n]),
            Placement::Offset => behind_zeros(y.reshape([n]), 5),
            Placement::Summed => y.cast(DType::F32).sum(),
        }
    }
}

/// Which inputs require gradients.
#[derive(Clone, Debug)]
pub enum Tracking {
    /// Tensors of a device without autodiff.
    None,
    /// Tensors of an autodiff device; those marked require gradients.
    Marked(Vec<bool>),
}

/// The result of a case.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub shape: Vec<usize>,
    pub dtype: DType,
    pub output: Vec<f32>,
    pub gradients: Vec<Option<Vec<f32>>>,
    pub gradient_dtypes: Vec<Option<DType>>,
}

pub fn to_vec<const D: usize>(t: Tensor<D>) -> Vec<f32> {
    t.cast(DType::F32).try_into_vec_as::<f32>().expect("the device gives its data back")
}

pub fn from_vec(values: &[f32], dtype: DType, device: &Device) -> Tensor<1> {
    let n = values.len();
    Tensor::from_data(TensorData::new(values.to_vec(), [n]).convert_dtype(dtype), (device, dtype))
}

/// One way to evaluate a case.
#[derive(Clone, Debug)]
pub struct Setting {
    pub body: Body,
    pub dtype: DType,
    pub placement: Placement,
    pub tracking: Tracking,
}

impl Setting {
    /// Dense, with a gradient for every input.
    pub fn new(case: &Case, body: Body, dtype: DType) -> Self {
        let tracking = Tracking::Marked(vec![true; case.inputs.len()]);
        Self { body, dtype, placement: Placement::Dense, tracking }
    }
}

/// Evaluates a case, and the gradients of its random projection.
pub fn evaluate(case: &Case, data: &[Vec<f32>], setting: &Setting) -> Outcome {
    let (device, marks) = match &setting.tracking {
        Tracking::None => (setting.body.device(), vec![false; data.len()]),
        Tracking::Marked(marks) => (setting.body.device().autodiff(), marks.clone()),
    };
    let leaf = |((input, values), &mark): ((&Input, &Vec<f32>), &bool)| {
        let t = from_vec(values, input.dtype(setting.dtype), &device);
        if mark { t.require_grad() } else { t }
    };
    let tensors: Vec<Tensor<1>> = case.inputs.iter().zip(data).zip(&marks).map(leaf).collect();
    let leaves = Leaves { inputs: &case.inputs, tensors, placement: setting.placement, seen: RefCell::new(None) };
    let y = setting.body.run(|| (case.call)(&leaves));
    let (shape, dtype) = leaves.seen.take().expect("the case calls Leaves::flat");
    let output = if setting.placement == Placement::Summed { Vec::new() } else { to_vec(y.clone()) };
    let n = marks.len();
    let (mut gradients, mut gradient_dtypes) = (vec![None; n], vec![None; n]);
    if marks.contains(&true) {
        let weights = from_vec(&case.projection(y.dims()[0], setting.dtype), DType::F32, &device);
        let found = (y.cast(DType::F32) * weights).sum().backward();
        for (i, leaf) in leaves.tensors.iter().enumerate() {
            let gradient = leaf.grad(&found);
            gradient_dtypes[i] = gradient.as_ref().map(Tensor::dtype);
            gradients[i] = gradient.map(to_vec);
        }
    }
    Outcome { shape, dtype, output, gradients, gradient_dtypes }
}

/// The differences of a tensor from the oracle's, in units of what is allowed; more than 1 is too much.
pub fn excess(got: &[f32], want: &[f32], (each, largest): (f32, f32), floor: f32) -> Result<f32, String> {
    if got.len() != want.len() {
        return Err(format!("{} elements instead of {}", got.len(), want.len()));
    }
    let scale = want.iter().fold(floor, |max, value| max.max(value.abs()));
    let mut worst = (0.0f32, 0);
    for (i, (a, b)) in got.iter().zip(want).enumerate() {
        // Where nothing is allowed (all zero), 0 / 0 must not become NaN; NaN in the results must.
        let allowed = (each * b.abs() + largest * scale).max(f32::MIN_POSITIVE);
        let excess = (a - b).abs() / allowed;
        if excess.is_nan() {
            return Err(format!("element {i} is {a} instead of {b}"));
        }
        if excess > worst.0 {
            worst = (excess, i);
        }
    }
    let (excess, i) = worst;
    if excess <= 1.0 {
        return Ok(excess);
    }
    Err(format!("{excess:.2} times the tolerance: element {i} is {} instead of {}, largest {scale}", got[i], want[i]))
}

/// Compares output and gradients, dtypes and shape; returns the largest excess of a tolerance.
pub fn compare(case: &Case, got: &Outcome, want: &Outcome) -> Result<f32, String> {
    if (&got.shape, got.dtype) != (&want.shape, want.dtype) {
        return Err(format!("a {:?} {:?} instead of {:?} {:?}", got.shape, got.dtype, want.shape, want.dtype));
    }
    let t = &case.tolerance;
    let mut worst =
        excess(&got.output, &want.output, t.of(What::Output, want.dtype), 0.0).map_err(|e| format!("output: {e}"))?;
    let mut failures = Vec::new();
    for (i, input) in case.inputs.iter().enumerate() {
        if got.gradient_dtypes[i] != want.gradient_dtypes[i] {
            let (got, want) = (got.gradient_dtypes[i], want.gradient_dtypes[i]);
            failures.push(format!("gradient of {}: {got:?} instead of {want:?}", input.name));
        } else if let (Some(got), Some(want), Some(dtype)) =
            (&got.gradients[i], &want.gradients[i], want.gradient_dtypes[i])
        {
            match excess(got, want, t.of(What::Gradient, dtype), t.floor) {
                Ok(excess) => worst = worst.max(excess),
                Err(e) => failures.push(format!("gradient of {}: {e}", input.name)),
            }
        }
    }
    if failures.is_empty() { Ok(worst) } else { Err(failures.join("; ")) }
}

/// Whether two outcomes agree to the last bit.
pub fn same_bits(got: &Outcome, want: &Outcome) -> Result<(), String> {
    equal_bits(&got.output, &want.output).map_err(|e| format!("output: {e}"))?;
    for (i, (got, want)) in got.gradients.iter().zip(&want.gradients).enumerate() {
        match (got, want) {
            (Some(got), Some(want)) => equal_bits(got, want).map_err(|e| format!("gradient {i}: {e}"))?,
            (None, None) => {}
            _ => return Err(format!("gradient {i} is there in one of two")),
        }
    }
    Ok(())
}

pub fn equal_bits(got: &[f32], want: &[f32]) -> Result<(), String> {
    if got.len() != want.len() {
        return Err(format!("{} elements instead of {}", got.len(), want.len()));
    }
    match got.iter().zip(want).position(|(a, b)| a.to_bits() != b.to_bits()) {
        Some(i) => Err(format!("element {i} is {:?} instead of {:?}", got[i], want[i])),
        None => Ok(()),
    }
}

/// Collects what fails, so that a table is reported as a whole.
#[derive(Default)]
pub struct Report {
    checks: usize,
    failures: Vec<String>,
    worst: Option<(f32, String)>,
}

impl Report {
    /// Runs one check; an error or a panic is a failure, a number is how much of its tolerance it used.
    pub fn check(&mut self, name: &str, check: impl FnOnce() -> Result<f32, String>) {
        self.checks += 1;
        match catch_unwind(AssertUnwindSafe(check)) {
            Ok(Ok(used)) => {
                if self.worst.as_ref().is_none_or(|(worst, _)| used > *worst) {
                    self.worst = Some((used, name.to_string()));
                }
            }
            Ok(Err(error)) => self.failures.push(format!("{name}: {error}")),
            Err(panic) => self.failures.push(format!("{name}: panic: {}", message(&*panic))),
        }
    }

    /// # Panics
    /// With all failures, if there are any.
    pub fn finish(self) {
        assert!(self.checks > 0, "no check was run");
        if let Some((used, name)) = &self.worst {
            println!("{} checks; nearest to its tolerance: {name} ({used:.2} of it)", self.checks);
        }
        let n = self.failures.len();
        assert!(n == 0, "{n} of {} checks failed:\n{}", self.checks, self.failures.join("\n"));
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}
