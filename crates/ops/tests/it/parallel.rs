//! Layers that several processes compute together, which are threads here, against the same layers in one piece.

use crate::common::{Body, excess, from_vec, not_run, subject, to_vec};
use burn::tensor::{DType, Device, Tensor};
use calotype_core::{Purpose, Stream};
use calotype_ops::parallel::{Peers, enter, linear_summed};
use calotype_ops::{Activation, activation, linear};
use half::bf16;
use std::sync::{Arc, Barrier, Mutex};

const ROWS: usize = 5;
const CHANNELS: usize = 6;
const HIDDEN: usize = 8;

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
fn as_peers<R: Send>(world: usize, body: impl Fn(Arc<dyn Peers>) -> R + Sync) -> Vec<R> {
    let values = (0..world).map(|_| Mutex::default()).collect();
    let meeting = Arc::new(Meeting { values, barrier: Barrier::new(world) });
    std::thread::scope(|scope| {
        let (meeting, body) = (&meeting, &body);
        let start = |rank| {
            let peer: Arc<dyn Peers> = Arc::new(Peer { rank, meeting: Arc::clone(meeting) });
            scope.spawn(move || body(peer))
        };
        let threads: Vec<_> = (0..world).map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn normals<const D: usize>(shape: [usize; D], index: u64, dtype: DType, device: &Device) -> Tensor<D> {
    let mut values = vec![0.0; shape.iter().product()];
    Stream::new(29, Purpose::Evaluation, index).fill_normal(&mut values);
    from_vec(&values, dtype, device).reshape(shape)
}

/// Input, residual, and the weights and biases of both layers.
struct Inputs {
    x: Tensor<2>,
    residual: Tensor<2>,
    first: Tensor<2>,
    first_bias: Tensor<1>,
    second: Tensor<2>,
    second_bias: Tensor<1>,
}

impl Inputs {
    /// The part of a process; leaves that want gradients on a device for gradients.
    fn part(dtype: DType, device: &Device, rank: usize, world: usize) -> Self {
        let (hidden, start) = (HIDDEN / world, rank * HIDDEN / world);
        let leaf = |tensor: Tensor<2>| if device.is_autodiff() { tensor.detach().require_grad() } else { tensor };
        let row = |tensor: Tensor<1>| if device.is_autodiff() { tensor.detach().require_grad() } else { tensor };
        let weight = |shape, index| normals(shape, index, DType::F32, device);
        Self {
            x: leaf(normals([ROWS, CHANNELS], 0, dtype, device)),
            residual: leaf(normals([ROWS, CHANNELS], 1, dtype, device)),
            first: leaf(weight([HIDDEN, CHANNELS], 2).narrow(0, start, hidden)),
            first_bias: row(normals([HIDDEN], 3, DType::F32, device).narrow(0, start, hidden)),
            second: leaf(weight([CHANNELS, HIDDEN], 4).narrow(1, start, hidden)),
            second_bias: row(normals([CHANNELS], 5, DType::F32, device)),
        }
    }

    fn hidden(&self, x: Tensor<2>) -> Tensor<2> {
        activation(linear(x, self.first.clone(), Some(self.first_bias.clone()), None), Activation::Gelu)
    }

    fn alone(&self) -> Tensor<2> {
        let (bias, residual) = (self.second_bias.clone(), self.residual.clone());
        linear(self.hidden(self.x.clone()), self.second.clone(), Some(bias), Some(residual))
    }

    fn together(&self, peers: &Arc<dyn Peers>) -> Tensor<2> {
        let (bias, residual) = (self.second_bias.clone(), self.residual.clone());
        let hidden = self.hidden(enter(self.x.clone(), peers));
        linear_summed(hidden, self.second.clone(), Some(bias), Some(residual), peers)
    }

    /// The output, and the gradients of a sum with fixed factors: of what all have, and of the parts.
    fn differentiated(&self, y: Tensor<2>) -> [Vec<f32>; 7] {
        let factors = normals([ROWS, CHANNELS], 6, DType::F32, &y.device());
        let output = to_vec(y.clone().inner());
        let found = (y.cast(DType::F32) * factors).sum().backward();
        let wide = |gradient: Option<Tensor<2>>| to_vec(gradient.expect("a gradient"));
        let row = |gradient: Option<Tensor<1>>| to_vec(gradient.expect("a gradient"));
        [
            output,
            wide(self.x.grad(&found)),
            wide(self.residual.grad(&found)),
            row(self.second_bias.grad(&found)),
            wide(self.first.grad(&found)),
            row(self.first_bias.grad(&found)),
            // By inputs, so that those of the processes lie one behind the other.
            wide(self.second.grad(&found).map(|gradient| gradient.transpose())),
        ]
    }
}

#[test]
fn outputs_and_gradients_are_those_of_the_layers_in_one_piece() {
    if subject() != Body::Kernels {
        return not_run("layers that several processes compute together: the CPU alone has them");
    }
    let device = Device::flex().autodiff();
    for (dtype, bounds) in [(DType::F32, (0.0, 1e-5)), (DType::BF16, (0.01, 0.02))] {
        let whole = Inputs::part(dtype, &device, 0, 1);
        let want = whole.differentiated(whole.alone());
        for world in [1, 2, 4] {
            let found = as_peers(world, |peers| {
                let part = Inputs::part(dtype, &Device::flex().autodiff(), peers.rank(), peers.world());
                part.differentiated(part.together(&peers))
            });
            for (rank, of_rank) in found.iter().enumerate() {
                for (place, (got, want)) in of_rank.iter().zip(&want).enumerate().take(4) {
                    assert!(*got == found[0][place], "{dtype:?}, {world} processes: {place} differs between them");
                    let excess = excess(got, want, bounds, 1.0).unwrap();
                    assert!(excess <= 1.0, "{dtype:?}, rank {rank} of {world}, {place}: {excess}");
                }
            }
            for (place, want) in want.iter().enumerate().skip(4) {
                let got: Vec<f32> = found.iter().flat_map(|of_rank| of_rank[place].clone()).collect();
                let excess = excess(&got, want, bounds, 1.0).unwrap();
                assert!(excess <= 1.0, "{dtype:?}, {world} processes, {place}: {excess}");
            }
        }
    }
}

#[test]
fn without_gradients_the_outputs_are_the_same() {
    if subject() != Body::Kernels {
        return not_run("layers that several processes compute together: the CPU alone has them");
    }
    for (dtype, bounds) in [(DType::F32, (0.0, 1e-6)), (DType::BF16, (0.01, 0.01))] {
        let outputs = as_peers(2, |peers| {
            [Device::flex(), Device::flex().autodiff()].map(|device| {
                let part = Inputs::part(dtype, &device, peers.rank(), peers.world());
                to_vec(part.together(&peers).inner())
            })
        });
        let [plain, tracked] = &outputs[0];
        assert!(outputs[1] == outputs[0], "{dtype:?}");
        let excess = excess(plain, tracked, bounds, 1.0).unwrap();
        assert!(excess <= 1.0, "{dtype:?}: {excess}");
    }
}
