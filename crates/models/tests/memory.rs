//! A network for inference holds each packed weight once, before and after it has been used; and its weights can still be read.
//!
//! A program of its own: its allocator counts what the whole process holds, and other tests hold memory, too.

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor};
use calotype_kernels::multiplies_bf16;
use calotype_models::state::{self, StateError, StoredTensor, WeightPrecision, checkpoint_shape};
use calotype_models::{Init, UNet, UNetConfig};
use half::{bf16, f16};
use std::alloc::{GlobalAlloc, Layout, System};
use std::borrow::Cow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Counts the bytes that are allocated at the moment.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);

/// Held by the test that runs: the count is that of the process.
static ALONE: Mutex<()> = Mutex::new(());

// SAFETY: hands everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the contract of this function.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the contract of this function.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the contract of this function.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn config() -> UNetConfig {
    UNetConfig {
        block_out_channels: vec![256, 512],
        layers_per_block: 1,
        attention_levels: vec![true, false],
        head_channels: vec![64, 64],
        context_channels: 64,
        ..UNetConfig::default()
    }
}

/// Numbers that are exact in both types of 16 bits.
fn values(key: &str, len: usize) -> impl Iterator<Item = f32> {
    let shift = key.len();
    (0..len).map(move |i| ((i + shift) * 7 % 31) as f32 / 512.0 - 0.03)
}

fn exact(value: f32) -> f32 {
    bf16::from_f32(value).to_f32()
}

fn loaded(precision: WeightPrecision, device: &Device) -> UNet {
    let empty = config().init(&mut Init::placeholders(device)).expect("valid");
    let lookup = |key: &str, shape: &[usize]| {
        let len = shape.iter().product();
        let bytes = values(key, len).flat_map(|value| f16::from_f32(exact(value)).to_le_bytes()).collect();
        let (shape, bytes) = (shape.to_vec(), Cow::Owned(bytes));
        Ok::<_, StateError>(StoredTensor { source_name: "test", dtype: DType::F16, shape, bytes })
    };
    state::load_with(empty, precision, lookup).expect("every tensor fits")
}

fn draw(unet: &UNet, dtype: DType, device: &Device) -> Vec<f32> {
    let (latent, context) = (Tensor::<4>::ones([1, 64, 64, 4], device), Tensor::<3>::ones([1, 9, 64], device));
    state::values_of(unet.forward(latent.cast(dtype), &[500.0], context.cast(dtype), None))
}

#[test]
fn inference_holds_each_weight_once() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let device = Device::flex();
    let before = LIVE.load(Ordering::Relaxed);
    let unet = loaded(WeightPrecision::Bf16, &device);
    let held = LIVE.load(Ordering::Relaxed) - before;
    let numbers: usize = state::layout(&unet).iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
    // Two bytes each, but for small ones in f32, and what is around them.
    assert!(held < 2 * numbers + numbers / 10, "{held} bytes for {numbers} numbers");
    let output = draw(&unet, DType::BF16, &device);
    let used = LIVE.load(Ordering::Relaxed) - before;
    if multiplies_bf16() {
        // Kernels keep working memory; a second copy of the weights would be twice as much as they may.
        assert!(used < held + numbers, "{used} bytes after use, {held} before");
    }

    // As the module holds them.
    for tensor in state::collect(&unet) {
        let len = tensor.shape.iter().product();
        assert!(tensor.values.into_iter().eq(values(&tensor.name, len).map(exact)), "{}", tensor.name);
    }
    assert_eq!(unet.num_params(), numbers);

    // Weights that change hands are still the same weights.
    let moved = unet.clone().no_grad().valid().to_device(&device);
    assert!(draw(&moved, DType::BF16, &device) == output);
    let unpacked =
        state::load(moved, |key, shape| Ok::<_, StateError>(values(key, shape.iter().product()).map(exact).collect()));
    assert!(draw(&unpacked.expect("has every tensor"), DType::BF16, &device).len() == output.len());
    let wide = loaded(WeightPrecision::F32, &device);
    assert!(
        draw(&unet, DType::F32, &device) == draw(&wide, DType::F32, &device),
        "f32 activations take the same numbers"
    );
    // Rounded weights are what was stored here, so a packed network of f32 weights is the loaded one.
    assert!(draw(&state::packed(wide), DType::BF16, &device) == output);
}

#[test]
fn stored_tensors_that_do_not_fit_are_named() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let fails = |dtype: DType, shape: fn(&[usize]) -> Vec<usize>, missing: usize| {
        let device = Device::flex();
        let empty = config().init(&mut Init::placeholders(&device)).expect("valid");
        let lookup = |_: &str, needed: &[usize]| {
            let (shape, len) = (shape(needed), needed.iter().product::<usize>());
            let bytes = Cow::Owned(vec![0; 2 * len - missing]);
            Ok::<_, StateError>(StoredTensor { source_name: "test", dtype, shape, bytes })
        };
        state::load_with(empty, WeightPrecision::Bf16, lookup).expect_err("does not fit").to_string()
    };
    let first = checkpoint_shape(&[256, 3, 3, 4]);
    assert_eq!(first, [256, 4, 3, 3]);
    let same = |shape: &[usize]| shape.to_vec();
    for (message, part) in [
        (fails(DType::F16, |shape| shape[1..].to_vec(), 0), "`conv_in.weight` has shape [4, 3, 3], the model needs"),
        (fails(DType::I16, same, 0), "`conv_in.weight` has elements of type i16"),
        (fails(DType::F16, same, 1), "`conv_in.weight` has 18431 bytes, its shape asks for 18432"),
    ] {
        assert!(message.contains(part), "{message}");
    }
}
