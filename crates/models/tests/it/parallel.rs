//! Models whose layers several processes compute together, which are threads here, against whole ones.

use crate::common::gradients;
use burn::module::Module;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use calotype_core::{Purpose, Stream};
use calotype_models::state::{self, values_of};
use calotype_models::vit::Dropout;
use calotype_models::{Clip, ClipConfig, Init, TensorParallel, TextConfig, VisionConfig, Vit, VitConfig};
use calotype_ops::parallel::Peers;
use half::bf16;
use std::sync::{Arc, Barrier, Mutex};

/// What threads that stand for processes share.
#[derive(Debug)]
struct Meeting {
    values: Vec<Mutex<Vec<f32>>>,
    barrier: Barrier,
}

/// One of them.
#[derive(Debug)]
struct Peer {
    rank: usize,
    meeting: Arc<Meeting>,
}

impl Peers for Peer {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.meeting.values.len()
    }

    fn sum(&self, values: &mut [f32]) {
        *self.meeting.values[self.rank].lock().unwrap() = values.to_vec();
        self.meeting.barrier.wait();
        values.fill(0.0);
        for others in &self.meeting.values {
            values.iter_mut().zip(&*others.lock().unwrap()).for_each(|(sum, value)| *sum += value);
        }
        // Nobody puts in what comes next before all have read.
        self.meeting.barrier.wait();
    }

    fn sum_bf16(&self, values: &mut [bf16]) {
        let mut wide: Vec<f32> = values.iter().map(|value| value.to_f32()).collect();
        self.sum(&mut wide);
        values.iter_mut().zip(wide).for_each(|(value, wide)| *value = bf16::from_f32(wide));
    }
}

/// Runs a function as every process, and returns what each returns, by rank.
fn as_peers<R: Send>(world: usize, body: impl Fn(usize, &TensorParallel) -> R + Sync) -> Vec<R> {
    let values = (0..world).map(|_| Mutex::default()).collect();
    let meeting = Arc::new(Meeting { values, barrier: Barrier::new(world) });
    std::thread::scope(|scope| {
        let (meeting, body) = (&meeting, &body);
        let start = |rank| {
            let parallel = TensorParallel::new(Arc::new(Peer { rank, meeting: Arc::clone(meeting) }));
            scope.spawn(move || body(rank, &parallel))
        };
        let threads: Vec<_> = (0..world).map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn images(batch: usize, side: usize, dtype: DType) -> Tensor<4> {
    let mut values = vec![0f32; batch * side * side * 3];
    Stream::new(31, Purpose::Noise, 0).fill_normal(&mut values);
    let images: Tensor<4> = Tensor::from_data(TensorData::new(values, [batch, side, side, 3]), &Device::flex());
    images.cast(dtype)
}

fn vit_config() -> VitConfig {
    VitConfig {
        image_size: 16,
        patch_size: 8,
        channels: 32,
        mlp_channels: 64,
        layers: 2,
        heads: 4,
        labels: 5,
        dropout: 0.1,
        ..VitConfig::default()
    }
}

fn vit() -> Vit {
    vit_config().init(&mut Init::new(3, &Device::flex().autodiff())).unwrap()
}

fn clip_config() -> ClipConfig {
    let text =
        TextConfig { vocab_size: 20, context_length: 6, channels: 32, layers: 2, heads: 4, ..TextConfig::default() };
    let vision =
        VisionConfig { image_size: 16, patch_size: 8, channels: 32, layers: 2, heads: 4, ..VisionConfig::default() };
    ClipConfig { text, vision, ..ClipConfig::default() }
}

fn clip() -> Clip {
    clip_config().init(&mut Init::new(4, &Device::flex().autodiff())).unwrap()
}

/// The loss of a model, and the gradient of each parameter by name and shape.
type Found = (f32, Vec<(String, Vec<usize>, Vec<f32>)>);

fn found<M: Module>(model: &M, loss: Tensor<1>) -> Found {
    let number = values_of(loss.clone().inner())[0];
    let shapes = state::layout(model).into_iter().map(|(_, shape)| shape);
    let named = gradients(model, &loss.backward()).into_iter().zip(shapes);
    let gradient = |((name, values), shape): ((String, Option<Vec<f32>>), Vec<usize>)| {
        let values = values.unwrap_or_else(|| panic!("{name} has none"));
        (name, shape, values)
    };
    (number, named.map(gradient).collect())
}

fn of_vit(model: &Vit, dtype: DType) -> Found {
    let dropout = Dropout { seed: 1, positions: &[7, 8] };
    let logits = model.forward_training(images(2, 16, dtype), dropout).unwrap().cast(DType::F32);
    found(model, logits.powi_scalar(2).mean().reshape([1]))
}

fn of_clip(model: &Clip, dtype: DType) -> Found {
    let ids = Tensor::<2, Int>::from_data([[1, 5, 9, 19, 0, 0], [1, 7, 3, 2, 19, 0]], &Device::flex());
    let texts = model.text_features(ids, &[3, 4], dtype);
    found(model, model.contrastive_loss(model.image_features(images(2, 16, dtype)), texts))
}

/// Holds the losses and gradients of all processes against those of the whole, the latter as parts of the largest one of the
/// parameter, or where that is small, of a hundredth of that of all. Those of parameters that all have are the same bits.
fn compare(name: &str, whole: &Found, parts: &[Found], [of_losses, of_gradients]: [f32; 2]) {
    for (rank, (loss, gradients)) in parts.iter().enumerate() {
        let error = (loss - whole.0).abs();
        assert!(error <= of_losses * whole.0.abs().max(1.0), "{name}, rank {rank}: {loss} and {}", whole.0);
        assert_eq!(*loss, parts[0].0, "{name}, rank {rank}");
        assert_eq!(gradients.len(), whole.1.len());
    }
    let largest_of = |values: &[f32]| values.iter().fold(0f32, |most, value| most.max(value.abs()));
    let of_all = whole.1.iter().fold(0f32, |most, (.., values)| most.max(largest_of(values)));
    for (place, (key, shape, want)) in whole.1.iter().enumerate() {
        let own: Vec<_> = parts.iter().map(|(_, gradients)| &gradients[place]).collect();
        assert!(own.iter().all(|(found, ..)| found == key), "{name}: {key}");
        let axis = shape.iter().zip(&own[0].1).position(|(whole, part)| whole != part);
        let got: Vec<f32> = match axis {
            None => {
                assert!(own.iter().all(|(.., values)| *values == own[0].2), "{name}: {key} differs between processes");
                own[0].2.clone()
            }
            Some(axis) => {
                let rows: usize = shape[..axis].iter().product();
                let row = own[0].2.len() / rows;
                (0..rows).flat_map(|i| own.iter().flat_map(move |(.., v)| v[i * row..(i + 1) * row].to_vec())).collect()
            }
        };
        assert_eq!(got.len(), want.len(), "{name}: {key}");
        let largest = largest_of(want).max(of_all / 100.0);
        let worst = got.iter().zip(want).fold(0f32, |worst, (a, b)| worst.max((a - b).abs()));
        assert!(worst <= of_gradients * largest, "{name}, gradient of {key}: {worst} of {largest}");
    }
}

#[test]
fn losses_and_gradients_are_those_of_the_whole_model() {
    // In `bf16`, gradients that are sums of opposites are little but rounding.
    for (dtype, bounds) in [(DType::F32, [1e-5, 1e-4]), (DType::BF16, [0.05, f32::INFINITY])] {
        let whole = (of_vit(&vit(), dtype), of_clip(&clip(), dtype));
        for world in [1, 2, 4] {
            let parts = as_peers(world, |_, parallel| {
                (of_vit(&vit().part_of(parallel), dtype), of_clip(&clip().part_of(parallel), dtype))
            });
            let (of_vit, of_clip): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
            compare(&format!("ViT, {dtype:?}, {world} processes"), &whole.0, &of_vit, bounds);
            compare(&format!("CLIP, {dtype:?}, {world} processes"), &whole.1, &of_clip, bounds);
        }
    }
}

#[test]
fn parts_have_the_rows_and_columns_of_their_place() {
    let whole = state::collect(&vit());
    let parts = as_peers(2, |_, parallel| state::collect(&vit().part_of(parallel)));
    let of = |model: &[state::NamedValues], key: &str| model.iter().find(|p| p.name.ends_with(key)).unwrap().clone();
    let shared = ["0.attention.attention.query.weight", "0.intermediate.dense.bias", "1.output.dense.weight"];
    let [rows, bias, columns] = shared.map(|key| (of(&whole, key), [of(&parts[0], key), of(&parts[1], key)]));
    assert_eq!(rows.1[0].shape, [16, 32]);
    assert_eq!(bias.1[0].shape, [32]);
    assert_eq!(columns.1[0].shape, [32, 32]);
    for (whole, parts) in [rows, bias] {
        assert_eq!([parts[0].values.as_slice(), &parts[1].values].concat(), whole.values, "{}", whole.name);
    }
    let (whole_columns, parts_of_columns) = columns;
    for (number, row) in whole_columns.values.chunks(64).enumerate() {
        assert_eq!(row[32..], parts_of_columns[1].values[32 * number..32 * (number + 1)]);
    }
    for key in ["classifier.weight", "1.output.dense.bias", "position_embeddings", "0.layernorm_before.weight"] {
        assert!(parts.iter().all(|part| of(part, key) == of(&whole, key)), "{key}");
    }
}

#[test]
fn a_part_without_gradients_gives_the_same_outputs() {
    let whole = values_of(vit().valid().forward(images(2, 16, DType::F32)).unwrap());
    let parts = as_peers(4, |_, parallel| {
        values_of(vit().part_of(parallel).valid().forward(images(2, 16, DType::F32)).unwrap())
    });
    for part in parts {
        assert!(part.iter().zip(&whole).all(|(a, b)| (a - b).abs() < 1e-5));
    }
}

#[test]
fn processes_must_divide_heads_and_channels() {
    assert!(vit_config().check_parts(4).is_ok() && clip_config().check_parts(4).is_ok());
    let error = vit_config().check_parts(3).unwrap_err();
    assert!(error.field == "heads" && error.problem.contains("4 cannot be shared out to 3 processes"), "{error}");
    let error = VitConfig { mlp_channels: 66, ..vit_config() }.check_parts(4).unwrap_err();
    assert!(error.field == "mlp_channels" && error.problem.contains("distributed.tensor_parallel"), "{error}");
    let vision = VisionConfig { heads: 2, ..clip_config().vision };
    let error = ClipConfig { vision, ..clip_config() }.check_parts(4).unwrap_err();
    assert_eq!(error.field, "vision.heads");
    assert_eq!(clip_config().check_parts(8).unwrap_err().field, "text.heads");
}
