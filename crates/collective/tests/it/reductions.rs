//! Gradients in buckets, in the background.

use std::sync::Arc;
use std::time::Duration;

use calotype_collective::{BucketPlan, Collective, CollectiveError, Local, Order, Payload, Reduced, SlotTree};
use proptest::prelude::*;

use crate::support::{as_ranks, same, text, tree_sum, value};

/// One process's part of a step: gradients come last parameter first within a bucket and late, and every fifth is missing.
fn step(
    collective: &dyn Collective,
    plan: &Arc<BucketPlan>,
    lengths: &[usize],
    order: Order,
    own: std::ops::Range<usize>,
) -> Result<Reduced, CollectiveError> {
    let mut reduction = collective.start_reduction(plan, order)?;
    for micro_batch in own {
        for (parameter, length) in lengths.iter().enumerate().rev() {
            if !missing(micro_batch, parameter) {
                reduction.ready(parameter, &gradient(micro_batch, parameter, *length))?;
            }
        }
        reduction.end_micro_batch()?;
    }
    reduction.finish()
}

fn missing(micro_batch: usize, parameter: usize) -> bool {
    (micro_batch * 3 + parameter) % 5 == 4
}

fn gradient(micro_batch: usize, parameter: usize, length: usize) -> Vec<f32> {
    (0..length).map(|i| value(micro_batch * 7 + parameter, i)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]

    #[test]
    fn micro_batches_give_the_same_bits_on_any_number_of_processes(
        all in 5usize..=12,
        lengths in prop::collection::vec(prop_oneof![0usize..20, 4_000usize..6_000], 1..8),
        bytes in prop_oneof![Just(4usize), Just(16_000), Just(1 << 20)],
    ) {
        let plan = Arc::new(BucketPlan::new(&lengths, bytes));
        let order = Order::MicroBatches { all };
        let alone = step(&Local, &plan, &lengths, order, 0..all).unwrap();
        for (parameter, length) in lengths.iter().enumerate() {
            let values = alone.values(parameter).unwrap();
            prop_assert_eq!(values.len(), *length);
            for (i, sum) in values.iter().enumerate().step_by(97) {
                let of = |micro_batch| if missing(micro_batch, parameter) { 0.0 } else { value(micro_batch * 7 + parameter, i) };
                let parts: Vec<f32> = (0..all).map(of).collect();
                prop_assert_eq!(sum.to_bits(), tree_sum(&parts).to_bits());
            }
        }
        for world in [1, 2, 3, 4, 5] {
            let tree = SlotTree::new(all, world).unwrap();
            let together = same(as_ranks(world, Payload::F32, |group| {
                step(group, &plan, &lengths, order, tree.slots_of(group.rank())).unwrap()
            }));
            prop_assert!(together == alone, "{} processes have other bits", world);
        }
    }
}

#[test]
fn sums_by_rank_add_up_what_a_rank_has() {
    let lengths = [3, 9_000];
    let plan = Arc::new(BucketPlan::new(&lengths, 64));
    let together = same(as_ranks(3, Payload::F32, |group| {
        let own = 2 * group.rank()..2 * group.rank() + 2;
        step(group, &plan, &lengths, Order::Ranks { micro_batches: 2 }, own).unwrap()
    }));
    for (parameter, length) in lengths.into_iter().enumerate() {
        for i in 0..length {
            let of = |micro_batch| match missing(micro_batch, parameter) {
                true => 0.0,
                false => value(micro_batch * 7 + parameter, i),
            };
            let own: Vec<f32> = (0..3).map(|rank| of(2 * rank) + of(2 * rank + 1)).collect();
            assert_eq!(together.values(parameter).unwrap()[i], tree_sum(&own));
        }
    }
    assert_eq!(together.values(2), None);
}

#[test]
fn other_calls_go_on_beside_a_reduction() {
    let plan = Arc::new(BucketPlan::new(&[20_000; 6], 1));
    as_ranks(2, Payload::F32, |group| {
        let order = Order::Ranks { micro_batches: 1 };
        let mut reduction = group.start_reduction(&plan, order).unwrap();
        let again = text(group.start_reduction(&plan, order));
        assert!(again.ends_with("reduction failed: the one before is not finished"), "{again}");
        for parameter in 0..6 {
            reduction.ready(parameter, &vec![1.0; 20_000]).unwrap();
            let mut own = [group.rank() as f32];
            group.all_reduce_sum(&mut own).unwrap();
            assert_eq!(own, [1.0]);
        }
        assert!(reduction.finish().unwrap().flat().all(|value| value == 2.0));
        group.start_reduction(&plan, order).unwrap().finish().unwrap();
    });
}

#[test]
fn communication_hides_behind_the_backward_pass() {
    let plan = Arc::new(BucketPlan::new(&[50_000; 8], 1));
    as_ranks(2, Payload::F32, |group| {
        let mut reduction = group.start_reduction(&plan, Order::Ranks { micro_batches: 1 }).unwrap();
        for parameter in 0..8 {
            reduction.ready(parameter, &vec![1.0; 50_000]).unwrap();
        }
        // All is summed while we do something else.
        while group.counters().calls < 8 {
            std::thread::sleep(Duration::from_millis(1));
        }
        let counters = group.counters();
        assert_eq!((counters.calls, counters.waiting), (8, Duration::ZERO));
        assert!(counters.communicating > Duration::ZERO);
        assert_eq!(counters.overlap(), Some(1.0));
        reduction.finish().unwrap();
        // Half of every bucket goes to the other process, and the sums of the other half come back.
        let bytes = 8 * (50_000 * 4 + 2 * 16);
        assert_eq!((counters.sent_bytes, counters.received_bytes), (bytes, bytes));
    });
}

#[test]
fn wrong_use_is_an_error() {
    let plan = Arc::new(BucketPlan::new(&[2, 3], 100));
    let start = |order| Local.start_reduction(&plan, order);
    let one = Order::Ranks { micro_batches: 1 };
    let mut reduction = start(one).unwrap();
    assert!(text(reduction.ready(2, &[])).ends_with("there is no parameter 2 of 2"));
    assert!(text(reduction.ready(1, &[1.0])).ends_with("parameter 1 has 3 values, not 1"));
    reduction.ready(0, &[1.0, 2.0]).unwrap();
    assert!(text(reduction.ready(0, &[1.0, 2.0])).ends_with("parameter 0 is ready twice in one micro-batch"));
    reduction.end_micro_batch().unwrap();
    assert!(text(reduction.ready(1, &[0.0; 3])).ends_with("all 1 micro-batches are over"));
    assert!(text(reduction.end_micro_batch()).ends_with("all 1 micro-batches are over"));
    assert_eq!(reduction.finish().unwrap().flat().collect::<Vec<_>>(), [1.0, 2.0, 0.0, 0.0, 0.0]);
    let reduction = start(Order::MicroBatches { all: 3 }).unwrap();
    assert!(text(reduction.finish()).ends_with("0 of 3 micro-batches are over"));
    for order in [Order::Ranks { micro_batches: 0 }, Order::MicroBatches { all: 0 }] {
        assert!(text(start(order)).ends_with("every process needs at least one micro-batch"));
    }
    let errors = as_ranks(2, Payload::Bf16, |group| text(group.start_reduction(&plan, Order::MicroBatches { all: 2 })));
    assert!(errors[0].contains("bf16 rounds where processes meet"), "{errors:?}");
}

#[test]
fn a_reduction_that_is_dropped_ends_the_run() {
    let plan = Arc::new(BucketPlan::new(&[2], 100));
    let errors = as_ranks(2, Payload::F32, |group| {
        let reduction = group.start_reduction(&plan, Order::Ranks { micro_batches: 1 }).unwrap();
        if group.rank() == 0 {
            return text(reduction.finish());
        }
        drop(reduction);
        text(group.barrier())
    });
    for error in errors {
        assert!(error.ends_with("rank 1 on thread 1 gave up: a reduction was dropped before its end"), "{error}");
    }
}
