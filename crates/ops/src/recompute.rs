//! Blocks that keep only their inputs for the backward pass and compute the rest again (Chen et al. 2016, "Training deep
//! nets with sublinear memory cost").

use crate::flex::{absent, entered, seeded};
use crate::in_backward::{count, deliver};
use crate::uses_kernels;
use burn::backend::Autodiff;
use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, NodeGuard, Ops, OpsKind};
use burn::backend::flex::{Flex, FlexTensor};
use burn::backend::tensor::FloatTensor;
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;
use std::fmt::Debug;
use std::marker::PhantomData;

type Tracked = FloatTensor<Autodiff<Flex>>;

/// Tensors that go into a block: a tuple of one to four tensors.
pub trait Inputs: Clone + Debug + Send + 'static {
    /// Replaces every tensor, in order.
    fn map(self, mapper: &mut impl MapInput) -> Self;
}

/// A function of tensors of any rank.
pub trait MapInput {
    /// The tensor that takes its place.
    fn map<const D: usize>(&mut self, tensor: Tensor<D>) -> Tensor<D>;
}

macro_rules! inputs {
    ($($rank:ident $name:ident),*) => {
        impl<$(const $rank: usize),*> Inputs for ($(Tensor<$rank>,)*) {
            fn map(self, mapper: &mut impl MapInput) -> Self {
                let ($($name,)*) = self;
                ($(mapper.map($name),)*)
            }
        }
    };
}
inputs!(A a);
inputs!(A a, B b);
inputs!(A a, B b, C c);
inputs!(A a, B b, C c, D d);

/// Most inputs of a block.
const MOST: usize = 4;

/// The parents of a block's node: its inputs and one parameter, so that it is differentiated even where no input is.
const PARENTS: usize = MOST + 1;

/// The inputs of a block that keeps its activations.
///
/// Each becomes a node of its own, in which the gradients of its uses in the block are added up, and which is
/// differentiated right after the block. So gradients are added in the order in which [`recomputed`] adds them: both give
/// the same bits.
pub fn joined<I: Inputs>(inputs: I) -> I {
    struct Join<'a, I> {
        inputs: &'a I,
        next: usize,
    }
    impl<I: Inputs> MapInput for Join<'_, I> {
        fn map<const D: usize>(&mut self, tensor: Tensor<D>) -> Tensor<D> {
            let place = self.next;
            self.next += 1;
            if !tensor.is_tracked() {
                return tensor;
            }
            let parents = parents(Nodes::of(self.inputs).guards, None);
            let tensor = tensor.try_into_primitive::<Autodiff<Flex>>().expect("all inputs are of the CPU");
            Tensor::from_primitive::<Autodiff<Flex>>(entered(tensor, parents, place))
        }
    }
    let nodes = Nodes::of(&inputs);
    if nodes.foreign || !nodes.tracked.contains(&true) {
        return inputs;
    }
    inputs.clone().map(&mut Join { inputs: &inputs, next: 0 })
}

/// `forward(module, inputs)`, keeping only the inputs; the backward pass computes the block a second time.
///
/// The gradients are those of `forward(module, joined(inputs))`, to the last bit. `forward` must be a function of its
/// arguments alone. On devices without kernels all activations are kept.
pub fn recomputed<M: Module + Debug + 'static, I: Inputs, const D: usize>(
    module: M,
    inputs: I,
    forward: fn(&M, I) -> Tensor<D>,
) -> Tensor<D> {
    let nodes = Nodes::of(&inputs);
    let mut parameters = ParameterIds::default();
    module.visit(&mut parameters);
    let tracked = nodes.tracked.contains(&true) || parameters.first.is_some();
    if nodes.foreign || !tracked {
        return forward(&module, joined(inputs));
    }
    count(parameters.ids.iter().copied().flatten());
    let inputs = inputs.map(&mut Plain);
    let module = module.valid();
    let output = crate::packed::on_trained(|| forward(&module, inputs.clone()));
    let output = output.try_into_primitive::<Flex>().expect("inputs of Flex give an output of Flex");
    let parents = parents(nodes.guards, parameters.first);
    let block = Block { module, inputs, forward, tracked: nodes.tracked, parameters: parameters.ids };
    let step = RecomputeStep::<M, I, D>(PhantomData);
    let OpsKind::Tracked(step) = step.prepare::<NoCheckpointing>(parents).compute_bound().stateful() else {
        unreachable!("one parent at least is tracked");
    };
    Tensor::from_primitive::<Autodiff<Flex>>(step.finish(block, output))
}

/// The state that a block keeps.
#[derive(Clone, Debug)]
struct Block<M, I, const D: usize> {
    module: M,
    inputs: I,
    forward: fn(&M, I) -> Tensor<D>,
    /// True for inputs that want a gradient.
    tracked: Vec<bool>,
    /// The parameters in the module's order; `None` for those that want no gradient.
    parameters: Vec<Option<NodeId>>,
}

#[derive(Debug)]
struct RecomputeStep<M, I, const D: usize>(PhantomData<fn(M, I)>);

impl<M: Module + Debug + 'static, I: Inputs, const D: usize> Backward<Flex, PARENTS> for RecomputeStep<M, I, D> {
    type State = Block<M, I, D>;

    fn backward(self, ops: Ops<Self::State, PARENTS>, gradients: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let Ops { parents, node, state: block } = ops;
        let output_gradient = gradients.consume::<Flex>(&node);
        let (of_inputs, of_parameters) = block.gradients(output_gradient);
        for (parent, gradient) in parents.into_iter().zip(of_inputs) {
            if let (Some(parent), Some(gradient)) = (parent, gradient) {
                gradients.register::<Flex>(parent.id, gradient);
            }
        }
        for (id, gradient) in of_parameters {
            deliver(gradients, id, gradient);
        }
    }
}

impl<M: Module + Debug + 'static, I: Inputs, const D: usize> Block<M, I, D> {
    /// Gradients of the inputs, in order, and of the parameters; on return nothing of the block is kept.
    fn gradients(self, output_gradient: FlexTensor) -> (Vec<Option<FlexTensor>>, Vec<(NodeId, FlexTensor)>) {
        let module = self.module.train();
        let mut leaves = Leaves { tracked: self.tracked.into_iter(), leaves: Vec::new() };
        let inputs = self.inputs.map(&mut leaves);
        let output = crate::profile::recomputing(|| (self.forward)(&module, inputs));
        let output = output.try_into_primitive::<Autodiff<Flex>>().expect("something in the block is tracked");
        let mut gradients = seeded(output, output_gradient).backward();
        let of_inputs = leaves.leaves.iter().map(|leaf| gradients.remove::<Flex>(leaf.as_ref()?)).collect();
        let mut collect = Collect { ids: self.parameters.into_iter(), gradients, found: Vec::new() };
        module.visit(&mut collect);
        (of_inputs, collect.found)
    }
}

/// Looks at inputs as parents of a node.
#[derive(Default)]
struct Nodes {
    guards: Vec<NodeGuard>,
    tracked: Vec<bool>,
    /// True if some input has no autodiff, or is not of the CPU.
    foreign: bool,
}

impl MapInput for Nodes {
    fn map<const D: usize>(&mut self, tensor: Tensor<D>) -> Tensor<D> {
        self.tracked.push(tensor.is_tracked());
        self.foreign |= !uses_kernels(&tensor.device());
        let tracked = tensor.is_tracked().then(|| tensor.clone().try_into_primitive::<Autodiff<Flex>>());
        match tracked {
            None => self.guards.push(absent().node()),
            Some(Ok(tracked)) => self.guards.push(tracked.node()),
            Some(Err(_)) => self.foreign = true,
        }
        tensor
    }
}

/// The inputs' nodes, and the parameter's at the end and wherever there is no input.
fn parents(inputs: Vec<NodeGuard>, parameter: Option<Tracked>) -> [NodeGuard; PARENTS] {
    let mut inputs = inputs.into_iter();
    let parameter = parameter.unwrap_or_else(absent);
    std::array::from_fn(|_| inputs.next().unwrap_or_else(|| parameter.node()))
}

impl Nodes {
    fn of<I: Inputs>(inputs: &I) -> Self {
        let mut nodes = Self::default();
        inputs.clone().map(&mut nodes);
        nodes
    }
}

struct Plain;

impl MapInput for Plain {
    fn map<const D: usize>(&mut self, tensor: Tensor<D>) -> Tensor<D> {
        tensor.without_autodiff()
    }
}

/// Makes inputs the leaves of a graph of their own.
struct Leaves {
    tracked: std::vec::IntoIter<bool>,
    leaves: Vec<Option<Tracked>>,
}

impl MapInput for Leaves {
    fn map<const D: usize>(&mut self, tensor: Tensor<D>) -> Tensor<D> {
        let tensor = tensor.autodiff();
        let tensor = if self.tracked.next() == Some(true) { tensor.require_grad() } else { tensor };
        let leaf = tensor.is_tracked().then(|| tensor.clone().try_into_primitive::<Autodiff<Flex>>().ok()).flatten();
        self.leaves.push(leaf);
        tensor
    }
}

#[derive(Default)]
struct ParameterIds {
    ids: Vec<Option<NodeId>>,
    /// The first that wants a gradient.
    first: Option<Tracked>,
}

impl ModuleVisitor for ParameterIds {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let value = param.val();
        let tracked = value.is_tracked().then(|| value.try_into_primitive::<Autodiff<Flex>>().ok()).flatten();
        self.ids.push(tracked.as_ref().map(Tracked::id));
        if self.first.is_none() {
            self.first = tracked;
        }
    }
}

/// Takes the gradients of a block's own parameters for those of the outer graph.
struct Collect {
    ids: std::vec::IntoIter<Option<NodeId>>,
    gradients: Gradients,
    found: Vec<(NodeId, FlexTensor)>,
}

impl ModuleVisitor for Collect {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(Some(id)) = self.ids.next() else { return };
        let Ok(leaf) = param.val().try_into_primitive::<Autodiff<Flex>>() else { return };
        if let Some(gradient) = self.gradients.remove::<Flex>(&leaf) {
            self.found.push((id, gradient));
        }
    }
}
