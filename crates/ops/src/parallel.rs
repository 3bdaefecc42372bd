//! Layers that several processes compute together, each with a part of the weights (Shoeybi et al. 2019, "Megatron-LM", section 3).
//!
//! Two linear layers with something between them that treats channels apart (an activation, the heads of attention) are shared
//! out without a message between them: of the first layer, each process has some outputs ([`enter`] stands in front of it); of
//! the second one, the inputs of the same channels, and the products of all are added up ([`linear_summed`]). Outside of such
//! pairs every process computes the same, to the bit.

use crate::element::whole;
use crate::flex::{Gradient, Projection, Tracked, node_of, record};
use crate::packed::on_trained;
use crate::profile::{Pass, Work, span};
use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::flex::{Flex, FlexTensor};
use burn::tensor::{DType, Tensor};
use half::bf16;
use std::fmt::Debug;
use std::sync::Arc;

/// The processes that compute layers together. All call the same methods in the same order with as many values, in forward and
/// backward passes.
pub trait Peers: Debug + Send + Sync {
    /// This process's number among them.
    fn rank(&self) -> usize;

    /// How many there are.
    fn world(&self) -> usize;

    /// Replaces values by their sums over all processes, which have the same bits at each. A pass has no way to fail: where a
    /// process is gone, the values are of no use, and whoever made the peers asks them after the pass.
    fn sum(&self, values: &mut [f32]);

    /// [`Peers::sum`] of activations in `bf16`, added up in `f32`.
    fn sum_bf16(&self, values: &mut [bf16]);
}

/// The input of layers whose outputs are shared out: the tensor itself, whose gradient is the sum of those of all processes ("f" in
/// the paper). Any shape, the same at all processes.
///
/// # Panics
/// If the tensor is tracked, and not on the CPU.
pub fn enter<const D: usize>(x: Tensor<D>, peers: &Arc<dyn Peers>) -> Tensor<D> {
    if !x.is_tracked() {
        return x;
    }
    let (x, peers) = (tracked(x), Arc::clone(peers));
    Tensor::from_primitive::<Autodiff<Flex>>(record::<NoCheckpointing, 1>([x.node()], move || {
        let gradient = Gradient::new(move |dy, _| [Some(summed(dy, Pass::Backward, peers.as_ref()))]);
        (x.into_primitive(), gradient)
    }))
}

/// A linear layer whose inputs are shared out, with the products of all processes added up ("g" in the paper): `y = sum over all of
/// (x · weightᵀ) + bias + residual`. Gradients reach the inputs of this process.
///
/// # Shapes
/// - `x`: `[.., in / processes]`, `weight`: `[out, in / processes]`, `f32`: this process's part of each
/// - `bias`: `[out]`, `f32`; `residual` and the result: `[.., out]`; the same at all processes
///
/// # Panics
/// On other devices than the CPU.
pub fn linear_summed<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    residual: Option<Tensor<D>>,
    peers: &Arc<dyn Peers>,
) -> Tensor<D> {
    let with_gradients = x.is_autodiff()
        || weight.is_autodiff()
        || bias.as_ref().is_some_and(Tensor::is_autodiff)
        || residual.as_ref().is_some_and(Tensor::is_autodiff);
    if !with_gradients {
        let layer = Projection::new(plain(x), plain(weight).into(), bias.is_some()).per_image().with_packed();
        return Tensor::from_primitive::<Flex>(forward(&layer, bias.map(plain), residual.map(plain), peers.as_ref()));
    }
    let (x, weight, bias, residual) = (tracked(x), tracked(weight), bias.map(tracked), residual.map(tracked));
    let nodes = [x.node(), weight.node(), node_of::<NoCheckpointing>(&bias), node_of::<NoCheckpointing>(&residual)];
    let output = record::<NoCheckpointing, 4>(nodes, || {
        let layer = Projection::new(x.into_primitive(), weight.into_primitive().into(), bias.is_some());
        let layer = on_trained(|| layer.with_packed());
        let [bias, residual] = [bias, residual].map(|added| added.map(|added| added.into_primitive()));
        let y = forward(&layer, bias, residual, peers.as_ref());
        (y, Gradient::new(move |dy, wanted| layer.backward(dy, wanted)))
    });
    Tensor::from_primitive::<Autodiff<Flex>>(output)
}

/// What all have is added by one of them, in its product.
fn forward(
    layer: &Projection,
    bias: Option<FlexTensor>,
    residual: Option<FlexTensor>,
    peers: &dyn Peers,
) -> FlexTensor {
    let adds = peers.rank() == 0;
    summed(layer.forward(bias.filter(|_| adds), residual.filter(|_| adds)), Pass::Forward, peers)
}

/// The sum over all processes, in place where the storage has no other owner.
fn summed(t: FlexTensor, pass: Pass, peers: &dyn Peers) -> FlexTensor {
    let (dims, dtype) = (t.layout().shape().to_vec(), t.dtype());
    let _span = span(pass, || Work::stream("sum over processes", &dims, 2 * dims.iter().product::<usize>(), dtype));
    match dtype {
        DType::BF16 => {
            let mut t = whole::<bf16>(t);
            peers.sum_bf16(t.storage_mut());
            t
        }
        _ => {
            let mut t = whole::<f32>(t);
            peers.sum(t.storage_mut());
            t
        }
    }
}

fn tracked<const D: usize>(t: Tensor<D>) -> Tracked<NoCheckpointing> {
    let tracked = t.autodiff().try_into_primitive::<Autodiff<Flex>>();
    tracked.unwrap_or_else(|error| panic!("layers are shared out on the CPU alone: {error:?}"))
}

fn plain<const D: usize>(t: Tensor<D>) -> FlexTensor {
    t.try_into_primitive::<Flex>().unwrap_or_else(|error| panic!("layers are shared out on the CPU alone: {error:?}"))
}
