//! Steps during the backward pass: which gradients arrive, when they are complete, and where the new values are.

use crate::common::{Body, equal_bits, from_vec, subject, to_vec};
use burn::backend::flex::Flex;
use burn::tensor::{DType, Tensor};
use calotype_core::{Purpose, Stream};
use calotype_ops::in_backward::{AfterBackward, Leaf, StepParameter, backward_stepping, count_uses};
use calotype_ops::linear;

const SIZE: usize = 6;

fn normals(n: usize, index: u64) -> Vec<f32> {
    let mut values = vec![0.0; n];
    Stream::new(23, Purpose::Evaluation, index).fill_normal(&mut values);
    values
}

/// A weight and a bias of square layers, and an input.
fn tensors() -> (Tensor<2>, Tensor<1>, Tensor<2>) {
    let device = Body::Kernels.device().autodiff();
    let square = |index| from_vec(&normals(SIZE * SIZE, index), DType::F32, &device).reshape([SIZE, SIZE]);
    (square(0).detach().require_grad(), from_vec(&normals(SIZE, 1), DType::F32, &device).require_grad(), square(2))
}

/// Notes the gradients and the order of the steps; the new value is the old one minus the gradient.
#[derive(Default)]
struct Descend {
    order: Vec<usize>,
    gradients: Vec<Vec<f32>>,
}

impl StepParameter for Descend {
    fn step(&mut self, index: usize, parameter: Tensor<1>, gradient: Tensor<1>) -> Tensor<1> {
        self.order.push(index);
        self.gradients.push(to_vec(gradient.clone()));
        parameter - gradient
    }
}

type Network = fn(Tensor<2>, Tensor<2>, Tensor<1>) -> Tensor<2>;

/// Checks that both parameters get the gradients of an ordinary backward pass; gives what became of each.
fn check(network: Network) -> Vec<AfterBackward> {
    let (w, b, x) = tensors();
    let found = network(x.clone(), w.clone(), b.clone()).powi_scalar(2).sum().backward();
    let want = [w.grad(&found).map(to_vec), b.grad(&found).map(to_vec)];
    let (loss, uses) = count_uses(|| network(x, w.clone(), b.clone()).powi_scalar(2).sum());
    let before = [to_vec(w.clone()), to_vec(b.clone())];
    let leaves = vec![Leaf::new(w).expect("on the CPU"), Leaf::new(b).expect("on the CPU")];
    let (after, descend) = backward_stepping(loss, leaves, uses, Descend::default());
    for (place, (after, want)) in after.iter().zip(want).enumerate() {
        let new = to_vec(after.parameter.clone());
        if !after.stepped {
            assert_eq!(after.gradient.clone().map(to_vec), want);
            assert_eq!(new, before[place]);
            continue;
        }
        let step = descend.order.iter().position(|&i| i == place).expect("it was stepped");
        let gradient = &descend.gradients[step];
        equal_bits(gradient, &want.expect("a gradient")).expect("the ordinary gradient");
        let expected: Vec<f32> = before[place].iter().zip(gradient).map(|(p, g)| p - g).collect();
        equal_bits(&new, &expected).expect("one step");
    }
    after
}

/// Gives parameters back as they are.
#[derive(Default)]
struct Keep(Vec<(usize, Vec<f32>)>);

impl StepParameter for Keep {
    fn step(&mut self, index: usize, parameter: Tensor<1>, gradient: Tensor<1>) -> Tensor<1> {
        self.0.push((index, to_vec(gradient)));
        parameter
    }
}

#[test]
fn gradients_are_handed_out_in_the_order_of_the_pass_and_parameters_stay() {
    if subject() != Body::Kernels {
        return crate::common::not_run("gradients in the backward pass: the CPU alone has them");
    }
    let (w, b, x) = tensors();
    let (v, ..) = tensors();
    let network = |w: Tensor<2>, v: Tensor<2>, b: Tensor<1>| {
        let inner = linear(x.clone(), w, None, None);
        linear(inner, v, Some(b), None).powi_scalar(2).sum()
    };
    let found = network(w.clone(), v.clone(), b.clone()).backward();
    let want = [w.grad(&found).map(to_vec), v.grad(&found).map(to_vec), b.grad(&found).map(to_vec)];
    let before = [to_vec(w.clone()), to_vec(v.clone()), to_vec(b.clone())];
    let (loss, uses) = count_uses(|| network(w.clone(), v.clone(), b.clone()));
    drop(found);
    let leaves = [Leaf::new(w), Leaf::new(v), Leaf::new(b)].map(|leaf| leaf.expect("on the CPU"));
    let (after, kept) = backward_stepping(loss, leaves.into(), uses, Keep::default());
    assert_eq!(kept.0.last().map(|(index, _)| *index), Some(0), "the layer nearest to the input is the last");
    for (index, gradient) in &kept.0 {
        equal_bits(gradient, want[*index].as_ref().expect("a gradient")).expect("the ordinary gradient");
    }
    assert_eq!((stepped(&after), kept.0.len()), (vec![true; 3], 3));
    for (after, before) in after.iter().zip(&before) {
        equal_bits(&to_vec(after.parameter.clone()), before).expect("unchanged");
    }
}

fn stepped(after: &[AfterBackward]) -> Vec<bool> {
    after.iter().map(|after| after.stepped).collect()
}

#[test]
fn each_parameter_is_stepped_once() {
    if subject() != Body::Kernels {
        return crate::common::not_run("steps in the backward pass: the CPU alone has them");
    }
    assert_eq!(stepped(&check(|x, w, b| linear(x, w, Some(b), None))), [true, true]);
}

#[test]
fn shared_parameters_wait_for_all_their_uses() {
    if subject() != Body::Kernels {
        return crate::common::not_run("steps in the backward pass: the CPU alone has them");
    }
    let network: Network = |x, w, b| {
        let h = linear(x, w.clone(), Some(b.clone()), None);
        let h = linear(h, w.clone(), Some(b.clone()), None);
        linear(h, w, Some(b), None)
    };
    assert_eq!(stepped(&check(network)), [true, true]);
}

#[test]
fn parameters_of_other_operations_are_left() {
    if subject() != Body::Kernels {
        return crate::common::not_run("steps in the backward pass: the CPU alone has them");
    }
    assert_eq!(stepped(&check(|x, w, b| x.matmul(w) + b.unsqueeze())), [false, false]);
    // Unused ones, too.
    assert_eq!(stepped(&check(|x, w, _| linear(x, w, None, None))), [true, false]);
}

#[test]
fn another_operation_nearer_to_the_loss_is_counted_in() {
    if subject() != Body::Kernels {
        return crate::common::not_run("steps in the backward pass: the CPU alone has them");
    }
    assert_eq!(stepped(&check(|x, w, b| linear(x, w.clone(), Some(b), None).matmul(w))), [true, true]);
}

#[test]
#[should_panic]
fn another_operation_nearer_to_the_input_is_refused() {
    let network: Network = |x, w, b| linear(x + b.clone().unsqueeze(), w, Some(b), None);
    let (w, b, x) = tensors();
    let (loss, uses) = count_uses(|| network(x, w.clone(), b.clone()).sum());
    let leaves = vec![Leaf::new(w).expect("on the CPU"), Leaf::new(b).expect("on the CPU")];
    backward_stepping(loss, leaves, uses, Descend::default());
}

/// The stepper is the only owner of parameter and gradient, so that it can change them in place.
#[test]
fn nothing_is_shared_when_a_parameter_is_stepped() {
    struct Alone;
    impl StepParameter for Alone {
        fn step(&mut self, index: usize, parameter: Tensor<1>, gradient: Tensor<1>) -> Tensor<1> {
            let [parameter, gradient] =
                [parameter, gradient].map(|t| t.try_into_primitive::<Flex>().expect("a tensor of Flex"));
            assert!(parameter.is_unique() && gradient.is_unique(), "parameter {index} or its gradient is shared");
            Tensor::from_primitive::<Flex>(parameter)
        }
    }
    if subject() != Body::Kernels {
        return crate::common::not_run("steps in the backward pass: the CPU alone has them");
    }
    let (w, b, x) = tensors();
    let (loss, uses) = count_uses(|| {
        let h = linear(x, w.clone(), Some(b.clone()), None);
        linear(h, w.clone(), Some(b.clone()), None).sum()
    });
    let leaves = vec![Leaf::new(w).expect("on the CPU"), Leaf::new(b).expect("on the CPU")];
    let (after, _) = backward_stepping(loss, leaves, uses, Alone);
    assert_eq!(stepped(&after), [true, true]);
}
