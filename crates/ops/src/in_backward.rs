//! Gradients that are used during the backward pass, as soon as each is complete: for optimizer steps, so that no two large
//! gradients need be in memory at once, or to be sent to other processes while the pass goes on.
//!
//! A gradient is complete when every recorded operation that used the parameter has given its share. [`count_uses`]
//! counts those operations during the forward pass; [`backward_stepping`] owns the parameters during the backward pass,
//! so that the step can change them in place: an operation lets go of what it saved before its gradients are delivered.

use burn::backend::Autodiff;
use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::flex::{Flex, FlexTensor};
use burn::backend::tensor::FloatTensor;
use burn::tensor::{DType, Shape, Tensor};
use std::any::Any;
use std::cell::RefCell;
use std::collections::HashMap;

type Tracked = FloatTensor<Autodiff<Flex>>;

/// Number of recorded operations that used each tensor.
#[derive(Debug, Default)]
pub struct Uses(HashMap<NodeId, usize>);

/// A parameter on its way through a backward pass.
#[derive(Debug)]
pub struct Leaf(Tracked);

impl Leaf {
    /// A parameter of the CPU's autodiff device; nothing of any other tensor.
    pub fn new<const D: usize>(parameter: Tensor<D>) -> Option<Self> {
        parameter.try_into_primitive::<Autodiff<Flex>>().ok().map(Self)
    }
}

/// The work on a parameter and its gradient.
pub trait StepParameter: Any {
    /// The parameter's new value; `index` is its place in the list that [`backward_stepping`] got.
    ///
    /// # Shapes
    /// All three are flat, of the same length, and without autodiff.
    fn step(&mut self, index: usize, parameter: Tensor<1>, gradient: Tensor<1>) -> Tensor<1>;
}

/// A parameter after a backward pass; flat and without autodiff.
#[derive(Debug)]
pub struct AfterBackward {
    /// Its value.
    pub parameter: Tensor<1>,
    /// True if its gradient was complete and used, so that the value is a new one.
    pub stepped: bool,
    /// The whole gradient of a parameter that was not stepped because it was not used by recorded operations alone.
    pub gradient: Option<Tensor<1>>,
}

/// The state that [`deliver`] works on during a backward pass.
struct Session {
    waiting: HashMap<NodeId, (usize, Tracked)>,
    uses: HashMap<NodeId, usize>,
    stepper: Box<dyn StepParameter>,
    stepped: HashMap<usize, Tensor<1>>,
}

thread_local! {
    static USES: RefCell<Option<HashMap<NodeId, usize>>> = const { RefCell::new(None) };
    static SESSION: RefCell<Option<Session>> = const { RefCell::new(None) };
}

/// Empties a thread's place again, even when what runs meanwhile panics.
struct Clear(fn());

impl Drop for Clear {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Runs a forward pass and counts the uses of tensors by the operations that it records on this thread.
pub fn count_uses<R>(forward: impl FnOnce() -> R) -> (R, Uses) {
    let _clear = Clear(|| USES.set(None));
    USES.set(Some(HashMap::new()));
    let result = forward();
    (result, Uses(USES.take().unwrap_or_default()))
}

/// Notes one use of each tensor.
pub(crate) fn count(ids: impl IntoIterator<Item = NodeId>) {
    USES.with_borrow_mut(|uses| {
        if let Some(uses) = uses {
            ids.into_iter().for_each(|id| *uses.entry(id).or_default() += 1);
        }
    });
}

/// Differentiates `loss` and steps every parameter whose gradient becomes complete on the way.
///
/// `uses` must come from [`count_uses`] around the whole forward pass of `loss`. Nothing else may own the parameters'
/// storage if they are to be changed in place.
///
/// # Panics
/// If a parameter is used by recorded operations and, nearer to the model's input, by an operation of Burn: then its
/// gradient was not complete when it was used.
pub fn backward_stepping<S: StepParameter>(
    loss: Tensor<1>,
    parameters: Vec<Leaf>,
    uses: Uses,
    stepper: S,
) -> (Vec<AfterBackward>, S) {
    let _clear = Clear(|| SESSION.set(None));
    let count = parameters.len();
    let waiting = parameters.into_iter().enumerate().map(|(i, Leaf(leaf))| (leaf.id(), (i, leaf))).collect();
    SESSION.set(Some(Session { waiting, uses: uses.0, stepper: Box::new(stepper), stepped: HashMap::new() }));
    let mut gradients = loss.backward();
    drop(loss);
    let Session { waiting, stepper, mut stepped, .. } = SESSION.take().expect("set above, on this thread");
    let mut left: HashMap<usize, Tracked> = waiting.into_values().collect();
    let after = |index| {
        if let Some(parameter) = stepped.remove(&index) {
            return AfterBackward { parameter, stepped: true, gradient: None };
        }
        let leaf = left.remove(&index).expect("a parameter waits until it is stepped");
        let handle = Tensor::<1>::from_primitive::<Autodiff<Flex>>(leaf.clone());
        let gradient = handle.grad_remove(&mut gradients);
        let gradient = gradient.map(|g| flat(g.try_into_primitive::<Flex>().expect("its gradient is of the CPU, too")));
        drop(handle);
        AfterBackward { parameter: flat(leaf.into_primitive()), stepped: false, gradient }
    };
    let after = (0..count).map(after).collect();
    let stepper: Box<dyn Any> = stepper;
    (after, *stepper.downcast().expect("the stepper that was put in"))
}

fn flat(t: FlexTensor) -> Tensor<1> {
    let size = t.layout().num_elements();
    Tensor::from_primitive::<Flex>(t.reshape(Shape::from([size])))
}

/// Registers an operation's gradient of an input; if that completes a parameter's gradient, steps the parameter.
pub(crate) fn deliver(gradients: &mut Gradients, id: NodeId, gradient: FlexTensor) {
    gradients.register::<Flex>(id, gradient);
    let complete = SESSION.with_borrow_mut(|session| session.as_mut().and_then(|session| session.complete(id)));
    let Some((index, leaf)) = complete else { return };
    let gradient = gradients.remove::<Flex>(&leaf).expect("registered above");
    let parameter = leaf.into_primitive();
    SESSION.with_borrow_mut(|session| {
        let session = session.as_mut().expect("it was there above");
        let new = session.stepper.step(index, flat(parameter), flat(gradient));
        session.stepped.insert(index, new);
    });
    gradients.register::<Flex>(id, used_up());
}

/// Stands for a gradient that was used. No gradient can be added to it: of five dimensions, which no parameter has, and
/// no elements.
fn used_up() -> FlexTensor {
    FlexTensor::zeros(Shape::from([0, 2, 2, 2, 2]), DType::F32)
}

impl Session {
    /// One use's gradient has come; the parameter, if it was the last.
    fn complete(&mut self, id: NodeId) -> Option<(usize, Tracked)> {
        let (_, leaf) = self.waiting.get(&id)?;
        let uses = self.uses.get_mut(&id)?;
        *uses = uses.checked_sub(1)?;
        // An operation of Burn may have saved the parameter, and then its gradient is still to come.
        if *uses > 0 || !leaf.primitive().is_unique() {
            return None;
        }
        self.waiting.remove(&id)
    }
}
