//! The weights of layers: parameters that can be trained, or packed for inference.

use burn::module::{Content, Devices, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor};
use burn::module::{Param, ParamId};
use burn::tensor::{Device, Tensor};
use calotype_ops::{PackedWeight, Weight, WeightUse, uses_kernels};
use std::cell::RefCell;

/// The weight of a linear layer or a convolution.
///
/// A parameter as any other, until [`crate::state::load_with`] or [`crate::state::packed`] packs it for inference: then
/// its numbers are in memory only once, in the order in which the kernels read them, as `bf16` or in 8 bits. Traversals of the module still see
/// a parameter, which is unpacked when its value is asked for; one that gives it another value makes the weight an
/// ordinary parameter again.
#[derive(Clone, Debug)]
pub struct LayerWeight<const D: usize> {
    usage: WeightUse,
    value: Value<D>,
}

#[derive(Clone, Debug)]
enum Value<const D: usize> {
    Parameter(Param<Tensor<D>>),
    Packed { id: ParamId, weight: PackedWeight, device: Device },
}

impl<const D: usize> LayerWeight<D> {
    /// A parameter that is multiplied by the operation that `usage` names.
    pub fn new(parameter: Param<Tensor<D>>, usage: WeightUse) -> Self {
        Self { usage, value: Value::Parameter(parameter) }
    }

    /// The same weight, multiplied by another operation.
    pub fn used_in(self, usage: WeightUse) -> Self {
        Self { usage, ..self }
    }

    /// The weight as operations take it.
    pub fn val(&self) -> Weight<D> {
        match &self.value {
            Value::Parameter(parameter) => parameter.val().into(),
            Value::Packed { weight, .. } => weight.clone().into(),
        }
    }

    /// The tensor; that of a packed weight is made for it.
    pub fn tensor(&self) -> Tensor<D> {
        self.val().into_tensor(&self.device())
    }

    /// The packed weight, if it is packed.
    pub fn packed(&self) -> Option<&PackedWeight> {
        match &self.value {
            Value::Parameter(_) => None,
            Value::Packed { weight, .. } => Some(weight),
        }
    }

    /// The parameter's identity, which stays when it is packed.
    pub fn id(&self) -> ParamId {
        match &self.value {
            Value::Parameter(parameter) => parameter.id,
            Value::Packed { id, .. } => *id,
        }
    }

    /// Shape in memory: `[out, in]` or `[out, rows, columns, in]`.
    pub fn dims(&self) -> [usize; D] {
        match &self.value {
            Value::Parameter(parameter) => parameter.lazy_shape().dims(),
            // A packed weight took the place of a parameter of its shape.
            Value::Packed { weight, .. } => std::array::from_fn(|axis| weight.shape()[axis]),
        }
    }

    /// The device that has it.
    pub fn device(&self) -> Device {
        match &self.value {
            Value::Parameter(parameter) => parameter.lazy_device(),
            Value::Packed { device, .. } => device.clone(),
        }
    }
}

/// A packed weight as a parameter, which unpacks it when its value is asked for.
fn unpacking<const D: usize>(id: ParamId, weight: &PackedWeight, device: &Device) -> Param<Tensor<D>> {
    let (shape, weight) = (weight.shape().into(), weight.clone());
    Param::uninitialized(id, move |device, _| weight.tensor(device), device.clone(), false, shape)
}

impl<const D: usize> Module for LayerWeight<D> {
    fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        match &self.value {
            Value::Parameter(parameter) => parameter.visit(visitor),
            Value::Packed { id, weight, device } => visitor.visit_float(&unpacking::<D>(*id, weight, device)),
        }
    }

    fn map<M: ModuleMapper>(self, mapper: &mut M) -> Self {
        let Self { usage, value } = self;
        let (parameter, before) = match value {
            Value::Parameter(parameter) => (parameter, None),
            Value::Packed { id, weight, device } => (unpacking(id, &weight, &device), Some(weight)),
        };
        let (parameter, packed) = offering(usage, || Module::map(parameter, mapper));
        // Whoever mapped a packed weight without asking for its value has not changed it.
        let packed = packed.or(before.filter(|_| !parameter.is_initialized()));
        let value = match packed {
            Some(weight) => Value::Packed { id: parameter.id, weight, device: parameter.lazy_device() },
            None => Value::Parameter(parameter),
        };
        Self { usage, value }
    }

    fn to_device(self, device: &Device) -> Self {
        self.moved(device, Module::to_device)
    }

    fn fork(self, device: &Device) -> Self {
        self.moved(device, Module::fork)
    }

    fn collect_devices(&self, mut devices: Devices) -> Devices {
        match &self.value {
            Value::Parameter(parameter) => return parameter.collect_devices(devices),
            Value::Packed { device, .. } if !devices.contains(device) => devices.push(device.clone()),
            Value::Packed { .. } => {}
        }
        devices
    }

    fn materialize(self) -> Self {
        self.with_parameter(Module::materialize)
    }

    fn valid(&self) -> Self {
        self.clone().with_parameter(|parameter| parameter.valid())
    }

    fn train(self) -> Self {
        self.with_parameter(Module::train)
    }
}

impl<const D: usize> LayerWeight<D> {
    /// With another parameter in its place; what is packed is unpacked for that.
    pub(crate) fn changed(self, change: impl FnOnce(Param<Tensor<D>>) -> Param<Tensor<D>>) -> Self {
        let parameter = match self.value {
            Value::Parameter(parameter) => parameter,
            Value::Packed { id, weight, device } => unpacking(id, &weight, &device),
        };
        Self::new(change(parameter), self.usage)
    }

    /// Changes the parameter; what is packed stays.
    fn with_parameter(self, change: impl FnOnce(Param<Tensor<D>>) -> Param<Tensor<D>>) -> Self {
        let value = match self.value {
            Value::Parameter(parameter) => Value::Parameter(change(parameter)),
            packed => packed,
        };
        Self { usage: self.usage, value }
    }

    /// On another device; packed weights are unpacked where the kernels are not.
    fn moved(self, to: &Device, change: impl FnOnce(Param<Tensor<D>>, &Device) -> Param<Tensor<D>>) -> Self {
        let value = match self.value {
            Value::Packed { id, weight, .. } if uses_kernels(to) => Value::Packed { id, weight, device: to.clone() },
            Value::Packed { id, weight, device } => Value::Parameter(change(unpacking(id, &weight, &device), to)),
            Value::Parameter(parameter) => Value::Parameter(change(parameter, to)),
        };
        Self { usage: self.usage, value }
    }
}

impl<const D: usize> ModuleDisplayDefault for LayerWeight<D> {
    fn content(&self, content: Content) -> Option<Content> {
        let packed = if self.packed().is_some() { ", packed" } else { "" };
        content.add_formatted(&format!("LayerWeight {{shape: {:?}{packed}}}", self.dims())).optional()
    }
}

impl<const D: usize> ModuleDisplay for LayerWeight<D> {}

/// The view of a weight for whoever maps its parameter.
struct Offer {
    usage: WeightUse,
    packed: Option<PackedWeight>,
}

thread_local! {
    /// Burn's mappers take a parameter and give one. This is how they take a weight and give a packed one.
    static OFFER: RefCell<Option<Offer>> = const { RefCell::new(None) };
}

/// Runs `map`, which maps the parameter of a weight, and gives what it said takes the parameter's place.
fn offering<R>(usage: WeightUse, map: impl FnOnce() -> R) -> (R, Option<PackedWeight>) {
    /// Takes the offer back even when a mapper panics.
    struct Withdraw;
    impl Drop for Withdraw {
        fn drop(&mut self) {
            OFFER.take();
        }
    }
    let _withdraw = Withdraw;
    OFFER.replace(Some(Offer { usage, packed: None }));
    let mapped = map();
    (mapped, OFFER.take().and_then(|offer| offer.packed))
}

/// In a mapper: what the parameter that is being mapped is multiplied in, if it is the weight of a layer on a device that
/// takes packed ones.
pub(crate) fn packable<const D: usize>(parameter: &Param<Tensor<D>>) -> Option<WeightUse> {
    let device = parameter.lazy_device();
    // On a device for gradients, weights may be trained.
    if !uses_kernels(&device) || device.is_autodiff() {
        return None;
    }
    OFFER.with_borrow(|offer| offer.as_ref().map(|offer| offer.usage))
}

/// In a mapper: puts a packed weight in the place of the parameter that is being mapped.
pub(crate) fn replace_by(packed: PackedWeight) {
    OFFER.with_borrow_mut(|offer| {
        if let Some(offer) = offer {
            offer.packed = Some(packed);
        }
    });
}
