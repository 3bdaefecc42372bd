//! The CPU bodies: Burn's Flex tensors in and out, kernels in between, gradients by hand.

use crate::element::{Activations, Dense, by_dtype, room, tensor};
use crate::in_backward::{count, deliver};
use crate::packed::{PackedCache, on_trained, takes_trained};
use crate::profile::{Pass, Span, Work, span};
use crate::{Conv2dGeometry, PackedWeight, PoolGeometry, Pooling};
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::{CheckpointStrategy, NoCheckpointing};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, NodeGuard, Ops, OpsKind};
use burn::backend::flex::{Flex, FlexTensor};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, ExtensionType, backend_extension};
use burn::tensor::DType;
use calotype_kernels::{
    self as kernels, Activation, AttentionShape, Conv2dShape, PackedWeights, Pool2dShape, QuantisedWeights,
};
use half::bf16;
use std::borrow::Cow;
use std::sync::{Arc, LazyLock};

/// A tensor or none, in the form that Burn's dispatch carries.
#[allow(missing_docs, reason = "the variants are Option's")]
#[derive(ExtensionType)]
pub enum OptionalTensor<B: Backend> {
    Some(FloatTensor<B>),
    None,
}

impl<B: Backend> OptionalTensor<B> {
    fn into_option(self) -> Option<FloatTensor<B>> {
        match self {
            OptionalTensor::Some(tensor) => Some(tensor),
            OptionalTensor::None => None,
        }
    }
}

/// Extension point that carries the operations across Burn's runtime dispatch.
///
/// Shapes and meaning are documented on the functions of the crate root, which are the way to call
/// these: they fall back to [`crate::portable`] on devices without kernels.
#[allow(missing_docs, reason = "documented on the public functions of the same names")]
#[backend_extension(Autodiff, Flex)]
pub trait DiffusionOps: Backend {
    fn nhwc_conv2d(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        #[extension_type] bias: OptionalTensor<Self>,
        #[extension_type] channel_add: OptionalTensor<Self>,
        #[extension_type] residual: OptionalTensor<Self>,
        geometry: Conv2dGeometry,
    ) -> FloatTensor<Self>;
    fn nhwc_conv2d_packed(
        x: FloatTensor<Self>,
        #[extension_type] bias: OptionalTensor<Self>,
        #[extension_type] channel_add: OptionalTensor<Self>,
        #[extension_type] residual: OptionalTensor<Self>,
        weight: PackedWeight,
        geometry: Conv2dGeometry,
    ) -> FloatTensor<Self>;
    fn nhwc_conv2d_relu(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        #[extension_type] bias: OptionalTensor<Self>,
        geometry: Conv2dGeometry,
    ) -> FloatTensor<Self>;
    fn rows_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        #[extension_type] bias: OptionalTensor<Self>,
        #[extension_type] residual: OptionalTensor<Self>,
    ) -> FloatTensor<Self>;
    fn rows_linear_packed(
        x: FloatTensor<Self>,
        #[extension_type] bias: OptionalTensor<Self>,
        #[extension_type] residual: OptionalTensor<Self>,
        weight: PackedWeight,
    ) -> FloatTensor<Self>;
    fn token_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        heads: usize,
        causal: bool,
        scale: f32,
    ) -> FloatTensor<Self>;
    fn nhwc_group_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        groups: usize,
        eps: f32,
        silu: bool,
    ) -> FloatTensor<Self>;
    fn rows_layer_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        eps: f32,
    ) -> FloatTensor<Self>;
    fn pointwise_activation(x: FloatTensor<Self>, kind: Activation) -> FloatTensor<Self>;
    fn rows_geglu(x: FloatTensor<Self>) -> FloatTensor<Self>;
    fn rows_linear_geglu(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        #[extension_type] bias: OptionalTensor<Self>,
    ) -> FloatTensor<Self>;
    fn rows_linear_geglu_packed(
        x: FloatTensor<Self>,
        #[extension_type] bias: OptionalTensor<Self>,
        weight: PackedWeight,
    ) -> FloatTensor<Self>;
    fn nhwc_upsample_nearest2x(x: FloatTensor<Self>) -> FloatTensor<Self>;
    fn nhwc_pool2d(x: FloatTensor<Self>, kind: Pooling, geometry: PoolGeometry) -> FloatTensor<Self>;
    fn rows_concat(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self>;
    fn pointwise_add(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self>;
    fn mean_squared_error(prediction: FloatTensor<Self>, target: FloatTensor<Self>) -> FloatTensor<Self>;
}

impl DiffusionOps for Flex {
    fn nhwc_conv2d(
        x: FlexTensor,
        weight: FlexTensor,
        bias: OptionalTensor<Self>,
        channel_add: OptionalTensor<Self>,
        residual: OptionalTensor<Self>,
        geometry: Conv2dGeometry,
    ) -> FlexTensor {
        let [bias, channel_add, residual] = [bias, channel_add, residual].map(OptionalTensor::into_option);
        let op = Convolution::new(x, weight.into(), bias.is_some(), geometry).per_image().with_packed();
        op.forward(bias, channel_add, residual)
    }

    fn nhwc_conv2d_packed(
        x: FlexTensor,
        bias: OptionalTensor<Self>,
        channel_add: OptionalTensor<Self>,
        residual: OptionalTensor<Self>,
        weight: PackedWeight,
        geometry: Conv2dGeometry,
    ) -> FlexTensor {
        let [bias, channel_add, residual] = [bias, channel_add, residual].map(OptionalTensor::into_option);
        let op = Convolution::new(x, weight.into(), bias.is_some(), geometry).per_image();
        op.forward(bias, channel_add, residual)
    }

    fn nhwc_conv2d_relu(
        x: FlexTensor,
        weight: FlexTensor,
        bias: OptionalTensor<Self>,
        geometry: Conv2dGeometry,
    ) -> FlexTensor {
        let bias = bias.into_option();
        Convolution::new(x, weight.into(), bias.is_some(), geometry)
            .per_image()
            .with_packed_product()
            .forward_relu(bias)
    }

    fn rows_linear(
        x: FlexTensor,
        weight: FlexTensor,
        bias: OptionalTensor<Self>,
        residual: OptionalTensor<Self>,
    ) -> FlexTensor {
        let [bias, residual] = [bias, residual].map(OptionalTensor::into_option);
        Projection::new(x, weight.into(), bias.is_some()).per_image().with_packed().forward(bias, residual)
    }

    fn rows_linear_packed(
        x: FlexTensor,
        bias: OptionalTensor<Self>,
        residual: OptionalTensor<Self>,
        weight: PackedWeight,
    ) -> FlexTensor {
        let [bias, residual] = [bias, residual].map(OptionalTensor::into_option);
        Projection::new(x, weight.into(), bias.is_some()).per_image().forward(bias, residual)
    }

    fn token_attention(
        q: FlexTensor,
        k: FlexTensor,
        v: FlexTensor,
        heads: usize,
        causal: bool,
        scale: f32,
    ) -> FlexTensor {
        Attention::new(q, k, v, heads, causal, scale).forward().0
    }

    fn nhwc_group_norm(
        x: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        groups: usize,
        eps: f32,
        silu: bool,
    ) -> FlexTensor {
        GroupNorm::new(x, gamma, beta, groups, silu).forward(eps).0
    }

    fn rows_layer_norm(x: FlexTensor, gamma: FlexTensor, beta: FlexTensor, eps: f32) -> FlexTensor {
        LayerNorm::new(x, gamma, beta).forward(eps).0
    }

    fn pointwise_activation(x: FlexTensor, kind: Activation) -> FlexTensor {
        activation_forward(&Dense::new(x), kind)
    }

    fn rows_geglu(x: FlexTensor) -> FlexTensor {
        geglu_forward(&Dense::new(x))
    }

    fn rows_linear_geglu(x: FlexTensor, weight: FlexTensor, bias: OptionalTensor<Self>) -> FlexTensor {
        let bias = bias.into_option();
        Projection::new(x, weight.into(), bias.is_some()).per_image().with_packed_geglu().forward_geglu(bias)
    }

    fn rows_linear_geglu_packed(x: FlexTensor, bias: OptionalTensor<Self>, weight: PackedWeight) -> FlexTensor {
        let bias = bias.into_option();
        Projection::new(x, weight.into(), bias.is_some()).per_image().forward_geglu(bias)
    }

    fn nhwc_upsample_nearest2x(x: FlexTensor) -> FlexTensor {
        upsample_forward(&Dense::new(x))
    }

    fn nhwc_pool2d(x: FlexTensor, kind: Pooling, geometry: PoolGeometry) -> FlexTensor {
        Pool::new(x, kind, geometry).forward()
    }

    fn rows_concat(a: FlexTensor, b: FlexTensor) -> FlexTensor {
        concat_forward(&Dense::new(a), &Dense::new(b))
    }

    fn pointwise_add(a: FlexTensor, b: FlexTensor) -> FlexTensor {
        add_forward(&Dense::new(a), &Dense::new(b))
    }

    fn mean_squared_error(prediction: FlexTensor, target: FlexTensor) -> FlexTensor {
        mse_forward(&Dense::new(prediction), &Dense::new(target))
    }
}

// ---------------------------------------------------------------------------------------------
// Recording: one generic autodiff step, so that an operation states only its gradients.

type GradientFn<const N: usize> = Arc<dyn Fn(FlexTensor, [bool; N]) -> [Option<FlexTensor>; N] + Send + Sync>;

/// The part of a recorded operation that is kept for its backward pass: a function from the output's gradient,
/// and which inputs need one, to the inputs' gradients.
#[derive(Clone)]
pub(crate) struct Gradient<const N: usize>(GradientFn<N>);

impl<const N: usize> Gradient<N> {
    pub(crate) fn new(f: impl Fn(FlexTensor, [bool; N]) -> [Option<FlexTensor>; N] + Send + Sync + 'static) -> Self {
        Self(Arc::new(f))
    }
}

impl<const N: usize> std::fmt::Debug for Gradient<N> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gradient<{N}>")
    }
}

#[derive(Debug)]
struct KernelStep;

impl<const N: usize> Backward<Flex, N> for KernelStep {
    type State = Gradient<N>;

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let Ops { parents, node, state } = ops;
        let wanted = parents.each_ref().map(Option::is_some);
        let output_gradient = grads.consume::<Flex>(&node);
        let gradients = (state.0)(output_gradient, wanted);
        // What the operation saved goes first: a parameter among it may be stepped in place now.
        drop(state);
        for (parent, gradient) in parents.into_iter().zip(gradients) {
            if let (Some(parent), Some(gradient)) = (parent, gradient) {
                deliver(grads, parent.id, gradient);
            }
        }
    }
}

pub(crate) type Tracked<C> = FloatTensor<Autodiff<Flex, C>>;

/// Runs `forward`, asking for the gradient function only where some input is tracked.
pub(crate) fn record<C: CheckpointStrategy, const N: usize>(
    inputs: [NodeGuard; N],
    forward: impl FnOnce() -> (FlexTensor, Gradient<N>),
) -> Tracked<C> {
    let ids = inputs.each_ref().map(NodeGuard::id);
    match KernelStep.prepare::<C>(inputs).compute_bound().stateful() {
        OpsKind::Tracked(step) => {
            count(ids);
            let (output, gradient) = forward();
            step.finish(gradient, output)
        }
        OpsKind::UnTracked(step) => step.finish(forward().0),
    }
}

/// A tensor that stands for an absent input: nobody tracks it.
pub(crate) fn absent() -> Tracked<NoCheckpointing> {
    static ABSENT: LazyLock<Tracked<NoCheckpointing>> =
        LazyLock::new(|| Tracked::<NoCheckpointing>::new(tensor(Vec::<f32>::new(), [0])));
    ABSENT.clone()
}

/// The node of an optional input.
pub(crate) fn node_of<C: CheckpointStrategy>(input: &Option<Tracked<C>>) -> NodeGuard {
    input.as_ref().map_or_else(|| absent().node(), Tracked::<C>::node)
}

/// The tensor itself as a node of its own behind all of `parents`, of which it is the one at `place`.
pub(crate) fn entered<const N: usize>(
    x: Tracked<NoCheckpointing>,
    parents: [NodeGuard; N],
    place: usize,
) -> Tracked<NoCheckpointing> {
    record::<NoCheckpointing, N>(parents, move || {
        let gradient = Gradient::new(move |dy, _| {
            let mut dy = Some(dy);
            std::array::from_fn(|i| if i == place { dy.take() } else { None })
        });
        (x.into_primitive(), gradient)
    })
}

/// A number whose gradient for `output` is `gradient`: where the backward pass of a part of a graph starts.
pub(crate) fn seeded(output: Tracked<NoCheckpointing>, gradient: FlexTensor) -> Tracked<NoCheckpointing> {
    record::<NoCheckpointing, 1>([output.node()], || {
        (tensor(vec![0f32], [1]), Gradient::new(move |_, _| [Some(gradient.clone())]))
    })
}

impl<C: CheckpointStrategy> DiffusionOps for Autodiff<Flex, C> {
    fn nhwc_conv2d(
        x: Tracked<C>,
        weight: Tracked<C>,
        bias: OptionalTensor<Self>,
        channel_add: OptionalTensor<Self>,
        residual: OptionalTensor<Self>,
        geometry: Conv2dGeometry,
    ) -> Tracked<C> {
        let [bias, channel_add, residual] = [bias, channel_add, residual].map(OptionalTensor::into_option);
        let nodes = [x.node(), weight.node(), node_of::<C>(&bias), node_of::<C>(&channel_add), node_of::<C>(&residual)];
        record::<C, 5>(nodes, move || {
            let op = Convolution::new(x.into_primitive(), weight.into_primitive().into(), bias.is_some(), geometry);
            let keep = op.shape.packs_changing_weights();
            let op = if keep { on_trained(|| op.with_packed()) } else { op };
            let y = op.forward(
                bias.map(|t| t.into_primitive()),
                channel_add.map(|t| t.into_primitive()),
                residual.map(|t| t.into_primitive()),
            );
            (y, Gradient::new(move |dy, wanted| op.backward(dy, wanted)))
        })
    }

    fn nhwc_conv2d_packed(
        x: Tracked<C>,
        bias: OptionalTensor<Self>,
        channel_add: OptionalTensor<Self>,
        residual: OptionalTensor<Self>,
        weight: PackedWeight,
        geometry: Conv2dGeometry,
    ) -> Tracked<C> {
        let [bias, channel_add, residual] = [bias, channel_add, residual].map(OptionalTensor::into_option);
        let nodes = [x.node(), node_of::<C>(&bias), node_of::<C>(&channel_add), node_of::<C>(&residual)];
        record::<C, 4>(nodes, move || {
            let op = Convolution::new(x.into_primitive(), weight.into(), bias.is_some(), geometry);
            let y = op.forward(
                bias.map(|t| t.into_primitive()),
                channel_add.map(|t| t.into_primitive()),
                residual.map(|t| t.into_primitive()),
            );
            let gradient = Gradient::new(move |dy, [x, bias, channel_add, residual]| {
                let [x, _, bias, channel_add, residual] = op.backward(dy, [x, false, bias, channel_add, residual]);
                [x, bias, channel_add, residual]
            });
            (y, gradient)
        })
    }

    fn nhwc_conv2d_relu(
        x: Tracked<C>,
        weight: Tracked<C>,
        bias: OptionalTensor<Self>,
        geometry: Conv2dGeometry,
    ) -> Tracked<C> {
        let (channel_add, residual) = (OptionalTensor::None, OptionalTensor::None);
        let y = Self::nhwc_conv2d(x, weight, bias, channel_add, residual, geometry);
        Self::pointwise_activation(y, Activation::Relu)
    }

    fn rows_linear(
        x: Tracked<C>,
        weight: Tracked<C>,
        bias: OptionalTensor<Self>,
        residual: OptionalTensor<Self>,
    ) -> Tracked<C> {
        let [bias, residual] = [bias, residual].map(OptionalTensor::into_option);
        let nodes = [x.node(), weight.node(), node_of::<C>(&bias), node_of::<C>(&residual)];
        record::<C, 4>(nodes, move || {
            let op = Projection::new(x.into_primitive(), weight.into_primitive().into(), bias.is_some());
            let op = on_trained(|| op.with_packed());
            let y = op.forward(bias.map(|t| t.into_primitive()), residual.map(|t| t.into_primitive()));
            (y, Gradient::new(move |dy, wanted| op.backward(dy, wanted)))
        })
    }

    fn rows_linear_packed(
        x: Tracked<C>,
        bias: OptionalTensor<Self>,
        residual: OptionalTensor<Self>,
        weight: PackedWeight,
    ) -> Tracked<C> {
        let [bias, residual] = [bias, residual].map(OptionalTensor::into_option);
        let nodes = [x.node(), node_of::<C>(&bias), node_of::<C>(&residual)];
        record::<C, 3>(nodes, move || {
            let op = Projection::new(x.into_primitive(), weight.into(), bias.is_some());
            let y = op.forward(bias.map(|t| t.into_primitive()), residual.map(|t| t.into_primitive()));
            let gradient = Gradient::new(move |dy, [x, bias, residual]| {
                let [x, _, bias, residual] = op.backward(dy, [x, false, bias, residual]);
                [x, bias, residual]
            });
            (y, gradient)
        })
    }

    fn token_attention(
        q: Tracked<C>,
        k: Tracked<C>,
        v: Tracked<C>,
        heads: usize,
        causal: bool,
        scale: f32,
    ) -> Tracked<C> {
        record::<C, 3>([q.node(), k.node(), v.node()], move || {
            let op = Attention::new(q.into_primitive(), k.into_primitive(), v.into_primitive(), heads, causal, scale);
            let (y, lse) = op.forward();
            let output = Dense::new(y.clone());
            (y, Gradient::new(move |dy, _| op.backward(&output, &lse, dy).map(Some)))
        })
    }

    fn nhwc_group_norm(
        x: Tracked<C>,
        gamma: Tracked<C>,
        beta: Tracked<C>,
        groups: usize,
        eps: f32,
        silu: bool,
    ) -> Tracked<C> {
        record::<C, 3>([x.node(), gamma.node(), beta.node()], move || {
            let op = GroupNorm::new(x.into_primitive(), gamma.into_primitive(), beta.into_primitive(), groups, silu);
            let (y, mean, rstd) = op.forward(eps);
            (y, Gradient::new(move |dy, _| op.backward(&mean, &rstd, dy).map(Some)))
        })
    }

    fn rows_layer_norm(x: Tracked<C>, gamma: Tracked<C>, beta: Tracked<C>, eps: f32) -> Tracked<C> {
        record::<C, 3>([x.node(), gamma.node(), beta.node()], move || {
            let op = LayerNorm::new(x.into_primitive(), gamma.into_primitive(), beta.into_primitive());
            let (y, mean, rstd) = op.forward(eps);
            (y, Gradient::new(move |dy, _| op.backward(&mean, &rstd, dy).map(Some)))
        })
    }

    fn pointwise_activation(x: Tracked<C>, kind: Activation) -> Tracked<C> {
        record::<C, 1>([x.node()], move || {
            let x = Dense::new(x.into_primitive());
            let y = activation_forward(&x, kind);
            (y, Gradient::new(move |dy, _| [Some(activation_backward(&x, kind, dy))]))
        })
    }

    fn rows_geglu(x: Tracked<C>) -> Tracked<C> {
        record::<C, 1>([x.node()], move || {
            let x = Dense::new(x.into_primitive());
            let y = geglu_forward(&x);
            (y, Gradient::new(move |dy, _| [Some(geglu_backward(&x, dy))]))
        })
    }

    fn rows_linear_geglu(x: Tracked<C>, weight: Tracked<C>, bias: OptionalTensor<Self>) -> Tracked<C> {
        // The gradient needs what is between the two.
        Self::rows_geglu(Self::rows_linear(x, weight, bias, OptionalTensor::None))
    }

    fn rows_linear_geglu_packed(x: Tracked<C>, bias: OptionalTensor<Self>, weight: PackedWeight) -> Tracked<C> {
        Self::rows_geglu(Self::rows_linear_packed(x, bias, OptionalTensor::None, weight))
    }

    fn nhwc_upsample_nearest2x(x: Tracked<C>) -> Tracked<C> {
        record::<C, 1>([x.node()], move || {
            let x = Dense::new(x.into_primitive());
            let dims: [usize; 4] = dims(&x);
            let y = upsample_forward(&x);
            (y, Gradient::new(move |dy, _| [Some(upsample_backward(dims, dy))]))
        })
    }

    fn nhwc_pool2d(x: Tracked<C>, kind: Pooling, geometry: PoolGeometry) -> Tracked<C> {
        record::<C, 1>([x.node()], move || {
            let op = Pool::new(x.into_primitive(), kind, geometry);
            (op.forward(), Gradient::new(move |dy, _| [Some(op.backward(dy))]))
        })
    }

    fn rows_concat(a: Tracked<C>, b: Tracked<C>) -> Tracked<C> {
        record::<C, 2>([a.node(), b.node()], move || {
            let (a, b) = (Dense::new(a.into_primitive()), Dense::new(b.into_primitive()));
            let y = concat_forward(&a, &b);
            let (a, b) = (a.dims().to_vec(), b.dims().to_vec());
            (y, Gradient::new(move |dy, _| concat_backward(&a, &b, dy).map(Some)))
        })
    }

    fn pointwise_add(a: Tracked<C>, b: Tracked<C>) -> Tracked<C> {
        record::<C, 2>([a.node(), b.node()], move || {
            let y = add_forward(&Dense::new(a.into_primitive()), &Dense::new(b.into_primitive()));
            (y, Gradient::new(|dy, _| [Some(dy.clone()), Some(dy)]))
        })
    }

    fn mean_squared_error(prediction: Tracked<C>, target: Tracked<C>) -> Tracked<C> {
        record::<C, 2>([prediction.node(), target.node()], move || {
            let prediction = Dense::new(prediction.into_primitive());
            let target = Dense::new(target.into_primitive());
            let y = mse_forward(&prediction, &target);
            (y, Gradient::new(move |dy, wanted| mse_backward(&prediction, &target, dy, wanted)))
        })
    }
}

// ---------------------------------------------------------------------------------------------
// The operations themselves, on Flex tensors.

fn dims<const D: usize>(t: &Dense) -> [usize; D] {
    t.dims().try_into().unwrap_or_else(|_| panic!("operation needs rank {D}, got {:?}", t.dims()))
}

fn last_dim(t: &Dense) -> usize {
    t.dims().last().copied().unwrap_or(1)
}

fn rows(t: &Dense) -> usize {
    let dims = t.dims();
    dims[..dims.len().saturating_sub(1)].iter().product()
}

fn elements(t: &Dense) -> usize {
    t.dims().iter().product()
}

/// Profiles something that reads or writes `times` tensors like `t`.
fn stream(pass: Pass, operation: &'static str, t: &Dense, times: usize) -> Span {
    span(pass, || Work::stream(operation, t.dims(), times * elements(t), t.dtype()))
}

/// The key of a weight's packing: `[out, rows, columns, in]`, and true for Winograd; a linear layer's is that
/// of a 1x1 convolution, and of a 0x0 one if its outputs are values and gates.
pub(crate) type Form = ([usize; 4], bool);

/// Packed weights of products with bf16 activations.
pub(crate) static PACKED: PackedCache<Form, Option<PackedWeights>> = PackedCache::new();

/// A layer's weight.
pub(crate) enum Factor {
    /// A tensor, and its packed form, if it has one and is wanted.
    Plain(Dense, Option<Arc<Option<PackedWeights>>>),
    /// In packed form alone.
    Packed(PackedWeight),
}

impl From<FlexTensor> for Factor {
    fn from(weight: FlexTensor) -> Self {
        Self::Plain(Dense::new(weight), None)
    }
}

impl From<PackedWeight> for Factor {
    fn from(weight: PackedWeight) -> Self {
        Self::Packed(weight)
    }
}

impl Factor {
    fn dims<const D: usize>(&self) -> [usize; D] {
        match self {
            Self::Plain(weight, _) => dims(weight),
            Self::Packed(weight) => {
                let shape = weight.shape();
                shape.try_into().unwrap_or_else(|_| panic!("operation needs rank {D}, got {shape:?}"))
            }
        }
    }

    /// A tensor and room for its packed form, where it is to be multiplied with `bf16`.
    fn unpacked(&mut self, x: &Dense) -> Option<(&Dense, &mut Option<Arc<Option<PackedWeights>>>)> {
        match self {
            Self::Plain(weight, packed) if x.dtype() == DType::BF16 => Some((weight, packed)),
            _ => None,
        }
    }

    /// The packed weights for products with activations of `dtype`, if there are any: for GEGLU or without.
    fn packed(&self, dtype: DType, gated: bool) -> Option<&PackedWeights> {
        match self {
            _ if dtype != DType::BF16 => None,
            Self::Plain(_, packed) => packed.as_deref()?.as_ref().filter(|packed| packed.is_gated() == gated),
            Self::Packed(weight) => weight.packed(gated),
        }
    }

    /// The weights in 8 bits, if they are: for GEGLU or without.
    fn int8(&self, gated: bool) -> Option<&QuantisedWeights> {
        match self {
            Self::Plain(..) => None,
            Self::Packed(weight) => weight.int8(gated),
        }
    }

    /// The packed weights that gradients of a layer's input are computed from, if they can be, with the gradient of its output.
    fn for_input(&self, dy: &Dense) -> Option<&PackedWeights> {
        self.packed(dy.dtype(), false).filter(|packed| packed.gives_input_gradients())
    }

    /// The numbers as `f32`.
    fn wide(&self) -> Cow<'_, [f32]> {
        match self {
            Self::Plain(weight, _) => weight.wide(),
            Self::Packed(weight) => weight.wide(),
        }
    }
}

struct Convolution {
    x: Dense,
    weight: Factor,
    has_bias: bool,
    shape: Conv2dShape,
}

impl Convolution {
    fn new(x: FlexTensor, weight: Factor, has_bias: bool, geometry: Conv2dGeometry) -> Self {
        let x = Dense::new(x);
        let [batch, height, width, in_channels] = dims(&x);
        let [out_channels, rows, columns, weight_channels] = weight.dims();
        assert_eq!(
            in_channels, weight_channels,
            "conv2d: the input has {in_channels} channels, the weight expects {weight_channels}"
        );
        let shape = Conv2dShape {
            batch,
            height,
            width,
            in_channels,
            out_channels,
            kernel: [rows, columns],
            stride: geometry.stride,
            padding: geometry.padding,
            per_image: false,
        };
        Self { x, weight, has_bias, shape }
    }

    /// Gives an image the same bits in any batch, unless weights are trained.
    fn per_image(mut self) -> Self {
        self.shape.per_image = !takes_trained();
        self
    }

    /// Uses a tensor's packed form, made now or before.
    fn with_packed(mut self) -> Self {
        if let Some((weight, packed)) = self.weight.unpacked(&self.x) {
            let form = (dims(weight), self.shape.uses_winograd());
            *packed = by_dtype!(weight.dtype(), W => {
                PACKED.get::<W>(weight.tensor(), form, |w| PackedWeights::for_conv(&self.shape, w))
            });
        }
        self
    }

    /// [`Convolution::with_packed`] for [`Convolution::forward_relu`].
    fn with_packed_product(mut self) -> Self {
        if let Some((weight, packed)) = self.weight.unpacked(&self.x) {
            let form = (dims(weight), false);
            *packed = by_dtype!(weight.dtype(), W => {
                PACKED.get::<W>(weight.tensor(), form, |w| PackedWeights::for_product_conv(&self.shape, w))
            });
        }
        self
    }

    fn output_dims(&self) -> [usize; 4] {
        let s = &self.shape;
        [s.batch, s.out_height(), s.out_width(), s.out_channels]
    }

    fn forward(
        &self,
        bias: Option<FlexTensor>,
        channel_add: Option<FlexTensor>,
        residual: Option<FlexTensor>,
    ) -> FlexTensor {
        let [bias, channel_add, residual] = [bias, channel_add, residual].map(|t| t.map(Dense::new));
        let out = self.output_dims();
        if let Some(weight) = self.weight.int8(false) {
            let _span = span(Pass::Forward, || Work::conv2d("conv2d int8", &self.shape, self.x.dtype()));
            return by_dtype!(self.x.dtype(), T => {
                let mut y = room::<T>(out.iter().product());
                kernels::conv2d_forward_int8::<T>(
                    &self.shape,
                    self.x.slice(),
                    weight,
                    bias.as_ref().map(Dense::slice::<f32>),
                    channel_add.as_ref().map(Dense::slice::<T>),
                    residual.as_ref().map(Dense::slice::<T>),
                    &mut y,
                );
                tensor(y, out)
            });
        }
        let _span = span(Pass::Forward, || Work::conv2d("conv2d", &self.shape, self.x.dtype()));
        if let Some(packed) = self.weight.packed(self.x.dtype(), false) {
            let mut y = room::<bf16>(out.iter().product());
            kernels::conv2d_forward_packed(
                &self.shape,
                self.x.slice(),
                packed,
                bias.as_ref().map(Dense::slice::<f32>),
                channel_add.as_ref().map(Dense::slice::<bf16>),
                residual.as_ref().map(Dense::slice::<bf16>),
                &mut y,
            );
            return tensor(y, out);
        }
        by_dtype!(self.x.dtype(), T => {
            let mut y = room::<T>(out.iter().product());
            kernels::conv2d_forward::<T>(
                &self.shape,
                self.x.slice(),
                &self.weight.wide(),
                bias.as_ref().map(Dense::slice::<f32>),
                channel_add.as_ref().map(Dense::slice::<T>),
                residual.as_ref().map(Dense::slice::<T>),
                &mut y,
            );
            tensor(y, out)
        })
    }

    /// With a ReLU behind the convolution, and nothing added but a bias.
    fn forward_relu(&self, bias: Option<FlexTensor>) -> FlexTensor {
        let bias = bias.map(Dense::new);
        let bias = bias.as_ref().map(Dense::slice::<f32>);
        let out = self.output_dims();
        let _span = span(Pass::Forward, || Work::conv2d("conv2d", &self.shape, self.x.dtype()));
        if let Some(packed) = self.weight.packed(self.x.dtype(), false) {
            let mut y = room::<bf16>(out.iter().product());
            kernels::conv2d_relu_forward_packed(&self.shape, self.x.slice(), packed, bias, &mut y);
            return tensor(y, out);
        }
        by_dtype!(self.x.dtype(), T => {
            let mut y = room::<T>(out.iter().product());
            kernels::conv2d_relu_forward::<T>(&self.shape, self.x.slice(), &self.weight.wide(), bias, &mut y);
            tensor(y, out)
        })
    }

    fn backward(&self, dy: FlexTensor, wanted: [bool; 5]) -> [Option<FlexTensor>; 5] {
        let residual_gradient = wanted[4].then(|| dy.clone());
        let dy = Dense::new(dy);
        by_dtype!(self.x.dtype(), T => {
            let dx = wanted[0].then(|| {
                let _span = span(Pass::Backward, || Work::conv2d("conv2d input", &self.shape, dy.dtype()));
                if let Some(packed) = self.weight.for_input(&dy) {
                    let mut dx = room::<bf16>(self.shape.input_len());
                    kernels::conv2d_backward_input_packed(&self.shape, dy.slice(), packed, &mut dx);
                    return tensor(dx, self.x.shape());
                }
                let mut dx = room::<T>(self.x.slice::<T>().len());
                kernels::conv2d_backward_input::<T>(
                    &self.shape, dy.slice(), &self.weight.wide(), &mut dx,
                );
                tensor(dx, self.x.shape())
            });
            let (dw, db) = self.parameter_gradients::<T>(&dy, wanted[1], wanted[2]);
            let dc = wanted[3].then(|| self.channel_add_gradient::<T>(&dy));
            [dx, dw, db, dc, residual_gradient]
        })
    }

    fn parameter_gradients<T: Activations>(
        &self,
        dy: &Dense,
        weight: bool,
        bias: bool,
    ) -> (Option<FlexTensor>, Option<FlexTensor>) {
        if !weight && !bias {
            return (None, None);
        }
        let _span = span(Pass::Backward, || Work::conv2d("conv2d weight", &self.shape, dy.dtype()));
        let mut dw = room::<f32>(self.shape.weight_len());
        let mut db = (bias && self.has_bias).then(|| room::<f32>(self.shape.out_channels));
        kernels::conv2d_backward_weight::<T>(&self.shape, dy.slice(), self.x.slice(), &mut dw, db.as_deref_mut());
        (weight.then(|| tensor(dw, self.weight.dims::<4>())), db.map(|db| tensor(db, [self.shape.out_channels])))
    }

    /// The added `[batch, channels]` reaches every pixel: its gradient is a sum over pixels.
    fn channel_add_gradient<T: Activations>(&self, dy: &Dense) -> FlexTensor {
        let s = &self.shape;
        let pixels = s.out_height() * s.out_width();
        let elements = dy.slice::<T>().len();
        let _span = span(Pass::Backward, || Work::stream("sum of pixels", dy.dims(), elements, dy.dtype()));
        let mut sums = room::<f32>(s.batch * s.out_channels);
        kernels::sum_row_groups::<T>(dy.slice(), &mut sums, s.batch, pixels, s.out_channels);
        let sums = sums.into_iter().map(T::from_f32).collect::<Vec<T>>();
        tensor(sums, [s.batch, s.out_channels])
    }
}

pub(crate) struct Projection {
    x: Dense,
    weight: Factor,
    has_bias: bool,
    /// As in [`Conv2dShape`].
    per_image: bool,
}

impl Projection {
    pub(crate) fn new(x: FlexTensor, weight: Factor, has_bias: bool) -> Self {
        let x = Dense::new(x);
        let [_, k] = weight.dims();
        assert_eq!(last_dim(&x), k, "linear: input has {} features, weight {k}", last_dim(&x));
        Self { x, weight, has_bias, per_image: false }
    }

    /// Gives an image the same bits in any batch, unless weights are trained.
    pub(crate) fn per_image(self) -> Self {
        Self { per_image: !takes_trained(), ..self }
    }

    /// The rows of a forward pass: all, and those of one image or sequence, the first dimension being the batch.
    fn row_count(&self) -> kernels::RowCount {
        let (all, dims) = (rows(&self.x), self.x.dims());
        let of_image = dims.get(1..dims.len().saturating_sub(1)).map_or(1, |dims| dims.iter().product());
        kernels::RowCount { all, deciding: if self.per_image { of_image } else { all } }
    }

    /// Uses a tensor's packed form, made now or before.
    pub(crate) fn with_packed(mut self) -> Self {
        let [_, k, n] = self.sizes();
        if let Some((weight, packed)) = self.weight.unpacked(&self.x) {
            let form = ([n, 1, 1, k], false);
            *packed = by_dtype!(weight.dtype(), W => {
                PACKED.get::<W>(weight.tensor(), form, |w| PackedWeights::for_linear(w, n, k))
            });
        }
        self
    }

    /// [`Projection::with_packed`] for a layer in front of GEGLU, or the form for any layer where there is none for that.
    fn with_packed_geglu(mut self) -> Self {
        let [_, k, n] = self.sizes();
        if let Some((weight, packed)) = self.weight.unpacked(&self.x) {
            let form = ([n, 0, 0, k], false);
            *packed = by_dtype!(weight.dtype(), W => {
                PACKED.get::<W>(weight.tensor(), form, |w| PackedWeights::for_linear_geglu(w, n / 2, k))
            });
        }
        if self.weight.packed(self.x.dtype(), true).is_some() { self } else { self.with_packed() }
    }

    /// `[m, k, n]`: rows, input features, output features.
    fn sizes(&self) -> [usize; 3] {
        let [n, k] = self.weight.dims();
        [rows(&self.x), k, n]
    }

    pub(crate) fn forward(&self, bias: Option<FlexTensor>, residual: Option<FlexTensor>) -> FlexTensor {
        let [m, k, n] = self.sizes();
        let [bias, residual] = [bias, residual].map(|t| t.map(Dense::new));
        let mut out = self.x.dims().to_vec();
        *out.last_mut().expect("rank at least 1") = n;
        if let Some(weight) = self.weight.int8(false) {
            let _span = span(Pass::Forward, || Work::linear("linear int8", [m, k, n], self.x.dtype()));
            return by_dtype!(self.x.dtype(), T => {
                let mut y = room::<T>(m * n);
                let (bias, residual) = (bias.as_ref().map(Dense::slice), residual.as_ref().map(Dense::slice));
                kernels::linear_forward_int8::<T>(self.x.slice(), weight, bias, residual, &mut y, m, k, n);
                tensor(y, out)
            });
        }
        let _span = span(Pass::Forward, || Work::linear("linear", [m, k, n], self.x.dtype()));
        if let Some(packed) = self.weight.packed(self.x.dtype(), false) {
            let mut y = room::<bf16>(m * n);
            let (bias, residual) = (bias.as_ref().map(Dense::slice), residual.as_ref().map(Dense::slice));
            kernels::linear_forward_packed(self.x.slice(), packed, bias, residual, &mut y, self.row_count(), k, n);
            return tensor(y, out);
        }
        by_dtype!(self.x.dtype(), T => {
            let mut y = room::<T>(m * n);
            kernels::linear_forward::<T>(
                self.x.slice(),
                &self.weight.wide(),
                bias.as_ref().map(Dense::slice::<f32>),
                residual.as_ref().map(Dense::slice::<T>),
                &mut y,
                self.row_count(),
                k,
                n,
            );
            tensor(y, out)
        })
    }

    /// The layer, then GEGLU: in one pass where there are packed weights for that.
    fn forward_geglu(&self, bias: Option<FlexTensor>) -> FlexTensor {
        let [m, k, n] = self.sizes();
        let c = n / 2;
        if let Some(weight) = self.weight.int8(true) {
            let _span = span(Pass::Forward, || Work::linear("linear int8, geglu", [m, k, n], self.x.dtype()));
            let (bias, mut out) = (bias.map(Dense::new), self.x.dims().to_vec());
            *out.last_mut().expect("rank at least 1") = c;
            return by_dtype!(self.x.dtype(), T => {
                let mut y = room::<T>(m * c);
                let bias = bias.as_ref().map(Dense::slice);
                kernels::linear_geglu_forward_int8::<T>(self.x.slice(), weight, bias, &mut y, m, k, c);
                tensor(y, out)
            });
        }
        let Some(packed) = self.weight.packed(self.x.dtype(), true) else {
            return geglu_forward(&Dense::new(self.forward(bias, None)));
        };
        let _span = span(Pass::Forward, || Work::linear("linear, geglu", [m, k, n], self.x.dtype()));
        let bias = bias.map(Dense::new);
        let mut out = self.x.dims().to_vec();
        *out.last_mut().expect("rank at least 1") = c;
        let mut y = room::<bf16>(m * c);
        let (bias, rows) = (bias.as_ref().map(Dense::slice), self.row_count());
        kernels::linear_geglu_forward_packed(self.x.slice(), packed, bias, &mut y, rows, k, c);
        tensor(y, out)
    }

    pub(crate) fn backward(&self, dy: FlexTensor, wanted: [bool; 4]) -> [Option<FlexTensor>; 4] {
        let residual_gradient = wanted[3].then(|| dy.clone());
        let [m, k, n] = self.sizes();
        let dy = Dense::new(dy);
        by_dtype!(self.x.dtype(), T => {
            let dx = wanted[0].then(|| {
                let _span = span(Pass::Backward, || Work::linear("linear input", [m, k, n], dy.dtype()));
                if let Some(packed) = self.weight.for_input(&dy) {
                    let mut dx = room::<bf16>(m * k);
                    kernels::linear_backward_input_packed(dy.slice(), packed, &mut dx, m, k, n);
                    return tensor(dx, self.x.shape());
                }
                let mut dx = room::<T>(m * k);
                kernels::linear_backward_input::<T>(
                    dy.slice(), &self.weight.wide(), &mut dx, m, k, n,
                );
                tensor(dx, self.x.shape())
            });
            let (mut dw, mut db) = (None, None);
            if wanted[1] || wanted[2] {
                let _span = span(Pass::Backward, || Work::linear("linear weight", [m, k, n], dy.dtype()));
                let mut w = room::<f32>(n * k);
                let mut b = (wanted[2] && self.has_bias).then(|| room::<f32>(n));
                kernels::linear_backward_weight::<T>(
                    dy.slice(), self.x.slice(), &mut w, b.as_deref_mut(), m, k, n,
                );
                dw = wanted[1].then(|| tensor(w, [n, k]));
                db = b.map(|b| tensor(b, [n]));
            }
            [dx, dw, db, residual_gradient]
        })
    }
}

struct Attention {
    q: Dense,
    k: Dense,
    v: Dense,
    shape: AttentionShape,
}

impl Attention {
    fn new(q: FlexTensor, k: FlexTensor, v: FlexTensor, heads: usize, causal: bool, scale: f32) -> Self {
        let (q, k, v) = (Dense::new(q), Dense::new(k), Dense::new(v));
        let [batch, query_tokens, channels] = dims(&q);
        let [_, key_tokens, _] = dims(&k);
        assert_eq!(channels % heads, 0, "attention: {channels} channels over {heads} heads");
        let head_dim = channels / heads;
        let shape = AttentionShape { batch, query_tokens, key_tokens, heads, head_dim, causal, scale };
        Self { q, k, v, shape }
    }

    /// The output and the log-sum-exp of every query's scores, `[batch, heads, query tokens]`.
    fn forward(&self) -> (FlexTensor, Vec<f32>) {
        let s = &self.shape;
        let _span = span(Pass::Forward, || Work::attention(s, 2, self.q.dtype()));
        let mut lse = room::<f32>(s.batch * s.heads * s.query_tokens);
        let y = by_dtype!(self.q.dtype(), T => {
            let mut y = room::<T>(self.q.slice::<T>().len());
            kernels::attention_forward::<T>(
                s, self.q.slice(), self.k.slice(), self.v.slice(), &mut y, &mut lse,
            );
            tensor(y, self.q.shape())
        });
        (y, lse)
    }

    fn backward(&self, y: &Dense, lse: &[f32], dy: FlexTensor) -> [FlexTensor; 3] {
        let _span = span(Pass::Backward, || Work::attention(&self.shape, 5, self.q.dtype()));
        let dy = Dense::new(dy);
        by_dtype!(self.q.dtype(), T => {
            let mut dq = room::<T>(self.q.slice::<T>().len());
            let mut dk = room::<T>(self.k.slice::<T>().len());
            let mut dv = room::<T>(self.v.slice::<T>().len());
            kernels::attention_backward::<T>(
                &self.shape, self.q.slice(), self.k.slice(), self.v.slice(), y.slice(), lse,
                dy.slice(), &mut dq, &mut dk, &mut dv,
            );
            [
                tensor(dq, self.q.shape()),
                tensor(dk, self.k.shape()),
                tensor(dv, self.v.shape()),
            ]
        })
    }
}

struct GroupNorm {
    x: Dense,
    gamma: Dense,
    beta: Dense,
    groups: usize,
    silu: bool,
}

impl GroupNorm {
    fn new(x: FlexTensor, gamma: FlexTensor, beta: FlexTensor, groups: usize, silu: bool) -> Self {
        let [x, gamma, beta] = [x, gamma, beta].map(Dense::new);
        Self { x, gamma, beta, groups, silu }
    }

    fn forward(&self, eps: f32) -> (FlexTensor, Vec<f32>, Vec<f32>) {
        let batch = self.x.dims()[0];
        let _span = stream(Pass::Forward, "group_norm", &self.x, 2);
        let mut mean = room::<f32>(batch * self.groups);
        let mut rstd = room::<f32>(batch * self.groups);
        let y = by_dtype!(self.x.dtype(), T => {
            let mut y = room::<T>(self.x.slice::<T>().len());
            kernels::group_norm_forward::<T>(
                self.x.slice(), self.gamma.slice::<f32>(), self.beta.slice::<f32>(),
                self.groups, eps, self.silu, &mut y, &mut mean, &mut rstd,
            );
            tensor(y, self.x.shape())
        });
        (y, mean, rstd)
    }

    fn backward(&self, mean: &[f32], rstd: &[f32], dy: FlexTensor) -> [FlexTensor; 3] {
        let _span = stream(Pass::Backward, "group_norm", &self.x, 3);
        let channels = last_dim(&self.x);
        let dy = Dense::new(dy);
        let mut dgamma = room::<f32>(channels);
        let mut dbeta = room::<f32>(channels);
        let dx = by_dtype!(self.x.dtype(), T => {
            let mut dx = room::<T>(self.x.slice::<T>().len());
            kernels::group_norm_backward::<T>(
                self.x.slice(), dy.slice(), self.gamma.slice::<f32>(), self.beta.slice::<f32>(),
                mean, rstd, self.groups, self.silu,
                &mut dx, &mut dgamma, &mut dbeta,
            );
            tensor(dx, self.x.shape())
        });
        [dx, tensor(dgamma, [channels]), tensor(dbeta, [channels])]
    }
}

struct LayerNorm {
    x: Dense,
    gamma: Dense,
    beta: Dense,
}

impl LayerNorm {
    fn new(x: FlexTensor, gamma: FlexTensor, beta: FlexTensor) -> Self {
        let [x, gamma, beta] = [x, gamma, beta].map(Dense::new);
        Self { x, gamma, beta }
    }

    fn forward(&self, eps: f32) -> (FlexTensor, Vec<f32>, Vec<f32>) {
        let _span = stream(Pass::Forward, "layer_norm", &self.x, 2);
        let rows = rows(&self.x);
        let mut mean = room::<f32>(rows);
        let mut rstd = room::<f32>(rows);
        let y = by_dtype!(self.x.dtype(), T => {
            let mut y = room::<T>(self.x.slice::<T>().len());
            kernels::layer_norm_forward::<T>(
                self.x.slice(), self.gamma.slice::<f32>(), self.beta.slice::<f32>(),
                eps, &mut y, &mut mean, &mut rstd,
            );
            tensor(y, self.x.shape())
        });
        (y, mean, rstd)
    }

    fn backward(&self, mean: &[f32], rstd: &[f32], dy: FlexTensor) -> [FlexTensor; 3] {
        let _span = stream(Pass::Backward, "layer_norm", &self.x, 3);
        let channels = last_dim(&self.x);
        let dy = Dense::new(dy);
        let mut dgamma = room::<f32>(channels);
        let mut dbeta = room::<f32>(channels);
        let dx = by_dtype!(self.x.dtype(), T => {
            let mut dx = room::<T>(self.x.slice::<T>().len());
            kernels::layer_norm_backward::<T>(
                self.x.slice(), dy.slice(), self.gamma.slice::<f32>(), mean, rstd,
                &mut dx, &mut dgamma, &mut dbeta,
            );
            tensor(dx, self.x.shape())
        });
        [dx, tensor(dgamma, [channels]), tensor(dbeta, [channels])]
    }
}

fn activation_forward(x: &Dense, kind: Activation) -> FlexTensor {
    let _span = stream(Pass::Forward, "activation", x, 2);
    by_dtype!(x.dtype(), T => {
        let mut y = room::<T>(x.slice::<T>().len());
        kernels::activation_forward::<T>(kind, x.slice(), &mut y);
        tensor(y, x.shape())
    })
}

fn activation_backward(x: &Dense, kind: Activation, dy: FlexTensor) -> FlexTensor {
    let _span = stream(Pass::Backward, "activation", x, 3);
    let dy = Dense::new(dy);
    by_dtype!(x.dtype(), T => {
        let mut dx = room::<T>(x.slice::<T>().len());
        kernels::activation_backward::<T>(kind, x.slice(), dy.slice(), &mut dx);
        tensor(dx, x.shape())
    })
}

fn geglu_forward(x: &Dense) -> FlexTensor {
    let _span = span(Pass::Forward, || Work::stream("geglu", x.dims(), 3 * elements(x) / 2, x.dtype()));
    let (rows, channels) = (rows(x), last_dim(x) / 2);
    let mut out = x.dims().to_vec();
    *out.last_mut().expect("rank at least 1") = channels;
    by_dtype!(x.dtype(), T => {
        let mut y = room::<T>(rows * channels);
        kernels::geglu_forward::<T>(x.slice(), &mut y, rows, channels);
        tensor(y, out)
    })
}

fn geglu_backward(x: &Dense, dy: FlexTensor) -> FlexTensor {
    let _span = span(Pass::Backward, || Work::stream("geglu", x.dims(), 5 * elements(x) / 2, x.dtype()));
    let (rows, channels) = (rows(x), last_dim(x) / 2);
    let dy = Dense::new(dy);
    by_dtype!(x.dtype(), T => {
        let mut dx = room::<T>(x.slice::<T>().len());
        kernels::geglu_backward::<T>(x.slice(), dy.slice(), &mut dx, rows, channels);
        tensor(dx, x.shape())
    })
}

fn upsample_forward(x: &Dense) -> FlexTensor {
    let _span = stream(Pass::Forward, "upsample", x, 5);
    let [b, h, w, c] = dims(x);
    by_dtype!(x.dtype(), T => {
        let mut y = room::<T>(b * 4 * h * w * c);
        kernels::upsample_nearest2x_forward::<T>(x.slice(), &mut y, b, h, w, c);
        tensor(y, [b, 2 * h, 2 * w, c])
    })
}

fn upsample_backward([b, h, w, c]: [usize; 4], dy: FlexTensor) -> FlexTensor {
    let dy = Dense::new(dy);
    let _span = span(Pass::Backward, || Work::stream("upsample", &[b, h, w, c], 5 * b * h * w * c, dy.dtype()));
    by_dtype!(dy.dtype(), T => {
        let mut dx = room::<T>(b * h * w * c);
        kernels::upsample_nearest2x_backward::<T>(dy.slice(), &mut dx, b, h, w, c);
        tensor(dx, [b, h, w, c])
    })
}

struct Pool {
    x: Dense,
    kind: Pooling,
    shape: Pool2dShape,
}

impl Pool {
    fn new(x: FlexTensor, kind: Pooling, geometry: PoolGeometry) -> Self {
        let x = Dense::new(x);
        let [batch, height, width, channels] = dims(&x);
        let PoolGeometry { size, stride, padding } = geometry;
        Self { x, kind, shape: Pool2dShape { batch, height, width, channels, size, stride, padding } }
    }

    fn forward(&self) -> FlexTensor {
        let s = &self.shape;
        let _span = stream(Pass::Forward, "pool", &self.x, 2);
        by_dtype!(self.x.dtype(), T => {
            let mut y = room::<T>(s.output_len());
            kernels::pool2d_forward::<T>(self.kind, s, self.x.slice(), &mut y);
            tensor(y, [s.batch, s.out_height(), s.out_width(), s.channels])
        })
    }

    fn backward(&self, dy: FlexTensor) -> FlexTensor {
        let _span = stream(Pass::Backward, "pool", &self.x, 3);
        let dy = Dense::new(dy);
        by_dtype!(self.x.dtype(), T => {
            let mut dx = room::<T>(self.shape.input_len());
            kernels::pool2d_backward::<T>(self.kind, &self.shape, self.x.slice(), dy.slice(), &mut dx);
            tensor(dx, self.x.shape())
        })
    }
}

fn concat_forward(a: &Dense, b: &Dense) -> FlexTensor {
    let (rows, ca, cb) = (rows(a), last_dim(a), last_dim(b));
    let mut out = a.dims().to_vec();
    *out.last_mut().expect("rank at least 1") = ca + cb;
    let _span = span(Pass::Forward, || Work::stream("concat", &out, 2 * rows * (ca + cb), a.dtype()));
    by_dtype!(a.dtype(), T => {
        let mut y = room::<T>(rows * (ca + cb));
        kernels::concat_channels::<T>(a.slice(), b.slice(), &mut y, rows, ca, cb);
        tensor(y, out)
    })
}

fn concat_backward(a: &[usize], b: &[usize], dy: FlexTensor) -> [FlexTensor; 2] {
    let dy = Dense::new(dy);
    let _span = stream(Pass::Backward, "concat", &dy, 2);
    let channels = |dims: &[usize]| dims.last().copied().unwrap_or(1);
    by_dtype!(dy.dtype(), T => {
        let mut da = room::<T>(a.iter().product());
        let mut db = room::<T>(b.iter().product());
        kernels::split_channels::<T>(
            dy.slice(), &mut da, &mut db, rows(&dy), channels(a), channels(b),
        );
        [tensor(da, a.to_vec()), tensor(db, b.to_vec())]
    })
}

fn add_forward(a: &Dense, b: &Dense) -> FlexTensor {
    let _span = stream(Pass::Forward, "add", a, 3);
    assert_eq!(a.dims(), b.dims(), "add: shapes differ");
    by_dtype!(a.dtype(), T => {
        let mut y = room::<T>(a.slice::<T>().len());
        kernels::add::<T>(a.slice(), b.slice(), &mut y);
        tensor(y, a.shape())
    })
}

fn mse_forward(prediction: &Dense, target: &Dense) -> FlexTensor {
    let _span = stream(Pass::Forward, "mean_squared_error", prediction, 2);
    assert_eq!(prediction.dims(), target.dims(), "mean squared error: shapes differ");
    let loss = by_dtype!(prediction.dtype(), T => {
        kernels::mse_loss::<T>(prediction.slice(), target.slice(), None, 1)
    });
    tensor(vec![loss], [1])
}

fn mse_backward(prediction: &Dense, target: &Dense, dy: FlexTensor, wanted: [bool; 2]) -> [Option<FlexTensor>; 2] {
    let _span = stream(Pass::Backward, "mean_squared_error", prediction, 3);
    let scale = Dense::new(dy).slice::<f32>()[0];
    by_dtype!(prediction.dtype(), T => {
        let gradient = |a: &Dense, b: &Dense| {
            let mut d = room::<T>(a.slice::<T>().len());
            kernels::mse_loss_backward::<T>(a.slice(), b.slice(), None, 1, scale, &mut d);
            tensor(d, a.shape())
        };
        [
            wanted[0].then(|| gradient(prediction, target)),
            wanted[1].then(|| gradient(target, prediction)),
        ]
    })
}
