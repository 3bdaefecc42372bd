//! Calls against serial loops.

use calotype_collective::{Collective, ConsistencyError, Fingerprint, Partition, Payload};
use half::bf16;
use proptest::prelude::*;

use crate::support::{as_ranks, same, text, tree_sum, value};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn sums_are_those_of_the_tree(world in 1usize..=5, length in prop_oneof![0usize..40, 3_000usize..30_000], seed in 0usize..1000) {
        let sums = same(as_ranks(world, Payload::F32, |group| {
            let mut values: Vec<f32> = (0..length).map(|i| value(seed + group.rank(), i)).collect();
            group.all_reduce_sum(&mut values).unwrap();
            values
        }));
        for (i, sum) in sums.iter().enumerate() {
            let parts: Vec<f32> = (0..world).map(|rank| value(seed + rank, i)).collect();
            prop_assert_eq!(sum.to_bits(), tree_sum(&parts).to_bits());
            let exact: f64 = parts.iter().map(|part| f64::from(*part)).sum();
            let largest = parts.iter().map(|part| f64::from(part.abs())).sum::<f64>();
            prop_assert!((f64::from(*sum) - exact).abs() <= largest * 5.0 * f64::from(f32::EPSILON));
        }
    }

    #[test]
    fn sums_of_bf16_are_rounded_where_they_travel(world in 2usize..=5, length in prop_oneof![0usize..40, 9_000usize..10_000]) {
        let sums = same(as_ranks(world, Payload::Bf16, |group| {
            let mut values: Vec<f32> = (0..length).map(|i| value(group.rank(), i)).collect();
            group.all_reduce_sum(&mut values).unwrap();
            values
        }));
        let rounded = |value: f32| bf16::from_f32(value).to_f32();
        for (i, sum) in sums.iter().enumerate() {
            let parts: Vec<f32> = (0..world).map(|rank| rounded(value(rank, i))).collect();
            prop_assert_eq!(*sum, rounded(tree_sum(&parts)));
        }
    }

    #[test]
    fn everybody_gets_everybodys(world in 1usize..=5, lengths in prop::collection::vec(0usize..50, 5), root in 0usize..5) {
        let root = root % world;
        let bytes_of = |rank: usize| vec![rank as u8; lengths[rank] * 7];
        let all = as_ranks(world, Payload::Bf16, |group| {
            let own = group.rank();
            let gathered = group.all_gather(&vec![own as f32 + 0.1; lengths[own]]).unwrap();
            let mut bytes = bytes_of(own);
            group.broadcast(root, &mut bytes).unwrap();
            group.barrier().unwrap();
            (gathered, bytes, group.gather_bytes(root, &bytes_of(own)).unwrap())
        });
        for (own, (gathered, bytes, at_root)) in all.into_iter().enumerate() {
            let expected: Vec<Vec<f32>> = (0..world).map(|rank| vec![rank as f32 + 0.1; lengths[rank]]).collect();
            prop_assert_eq!(gathered, expected, "values that are not summed are not rounded");
            prop_assert_eq!(bytes, bytes_of(root));
            let expected: Vec<Vec<u8>> = (0..world).map(bytes_of).collect();
            prop_assert_eq!(at_root, if own == root { expected } else { Vec::new() });
        }
    }

    #[test]
    fn owners_give_their_parameters_to_all(world in 1usize..=5, lengths in prop::collection::vec(0usize..30, 0..12)) {
        let partition = Partition::by_size(&lengths, world);
        let loads: Vec<usize> = (0..world).map(|rank| partition.load(rank)).collect();
        prop_assert_eq!(loads.iter().sum::<usize>(), lengths.iter().sum::<usize>());
        let largest = lengths.iter().max().copied().unwrap_or(0);
        prop_assert!(loads.iter().max().unwrap() - loads.iter().min().unwrap() <= largest);
        let shared = same(as_ranks(world, Payload::F32, |group| {
            let own = |parameter: usize| vec![parameter as f32; lengths[parameter]];
            let mut parameters = vec![Vec::new(); lengths.len()];
            partition.of(group.rank()).for_each(|parameter| parameters[parameter] = own(parameter));
            partition.share(group, own, |parameter, values| parameters[parameter] = values.to_vec()).unwrap();
            parameters
        }));
        let expected: Vec<Vec<f32>> = lengths.iter().enumerate().map(|(i, length)| vec![i as f32; *length]).collect();
        prop_assert_eq!(shared, expected);
    }
}

#[test]
fn large_parameters_are_shared_one_after_the_other() {
    let lengths = [1_100_000, 3, 1_200_000, 5, 1_000_000];
    let partition = Partition::by_size(&lengths, 2);
    let own = |parameter: usize| -> Vec<f32> { (0..lengths[parameter]).map(|i| (i + parameter) as f32).collect() };
    let received = as_ranks(2, Payload::F32, |group| {
        let mut received = Vec::new();
        let write = |parameter: usize, values: &[f32]| {
            assert!(values == own(parameter));
            received.push(parameter);
        };
        partition.share(group, own, write).unwrap();
        (received, group.counters().calls)
    });
    assert_eq!(received, [(vec![0, 4], 3), (vec![1, 2, 3], 3)]);
}

#[test]
fn calls_that_do_not_fit_name_who_makes_them() {
    let errors = as_ranks(2, Payload::F32, |group| match group.rank() {
        0 => text(group.all_reduce_sum(&mut [1.0, 2.0])),
        _ => text(group.barrier()),
    });
    // Whoever sees it first accuses the other.
    let accused =
        errors[0].contains("rank 1 on thread 1 makes another call: barrier of 0 values as call 0, where rank 0 makes");
    let accuses = errors[0].contains("rank 0 on thread 0 makes another call: all_reduce_sum of 2 values as call 0");
    assert!(accused || accuses, "{errors:?}");
    let errors = as_ranks(2, Payload::F32, |group| text(group.all_reduce_sum(&mut vec![1.0; 3 + group.rank()])));
    assert!(
        errors[0].contains("all_reduce_sum of 3 values as call 0") && errors[0].contains("of 4 values"),
        "{errors:?}"
    );
    let errors = as_ranks(3, Payload::F32, |group| text(group.broadcast(3, &mut Vec::new())));
    assert_eq!(errors[1], "rank 1 of 3: broadcast failed: there is no rank 3; the run has 3 processes");
    let partition = Partition::by_size(&[2], 2);
    let errors = as_ranks(2, Payload::F32, |group| text(partition.share(group, |_| vec![1.0], |_, _| ())));
    assert_eq!(errors[1], "rank 1 of 2: share failed: rank 0 gave 1 values instead of 2");
    let errors = as_ranks(3, Payload::F32, |group| text(partition.share(group, |_| vec![1.0], |_, _| ())));
    assert_eq!(errors[2], "rank 2 of 3: share failed: the partition is of 2 processes");
}

/// What every process says of tensors that differ at some of them.
fn checked(world: usize, wrong: &[(usize, &str)]) -> String {
    let outcome = as_ranks(world, Payload::F32, |group| {
        let bytes = |name: &str| match wrong.contains(&(group.rank(), name)) {
            true => [1, 2, 4],
            false => [1, 2, 3],
        };
        let mut fingerprint = Fingerprint::default();
        ["in.weight", "in.bias", "out.weight"].into_iter().for_each(|name| fingerprint.add(name, &bytes(name)));
        fingerprint.check_same(group).map_or_else(|error| error.to_string(), |()| "same".to_owned())
    });
    same(outcome)
}

#[test]
fn different_weights_name_the_tensor_and_the_ranks() {
    assert_eq!(checked(4, &[]), "same");
    assert_eq!(checked(1, &[(0, "in.bias")]), "same");
    let differs = |ranks: &str, tensor: &str, count: usize| {
        format!(
            "the processes have different weights: `{tensor}` of {ranks} is not that of the others \
             ({count} of 3 tensors differ); restart from the last checkpoint"
        )
    };
    assert_eq!(checked(4, &[(2, "in.bias")]), differs("rank 2", "in.bias", 1));
    assert_eq!(checked(4, &[(0, "out.weight"), (0, "in.bias")]), differs("rank 0", "in.bias", 2));
    assert_eq!(checked(5, &[(1, "in.weight"), (3, "in.weight")]), differs("ranks 1, 3", "in.weight", 1));
    assert_eq!(checked(2, &[(1, "in.bias")]), differs("rank 1", "in.bias", 1));
}

/// Of tensors with the same content.
fn fingerprint(names: &[&str]) -> Fingerprint {
    let mut fingerprint = Fingerprint::default();
    names.iter().for_each(|name| fingerprint.add(name, &[1, 2]));
    fingerprint
}

#[test]
fn different_tensors_are_told_from_different_weights() {
    let outcome = as_ranks(3, Payload::F32, |group| {
        let second = if group.rank() == 2 { "b.bias" } else { "b.weight" };
        fingerprint(&["a", second]).check_same(group).unwrap_err()
    });
    assert!(
        matches!(&outcome[0], ConsistencyError::OtherTensors { ranks, position: 1, tensor } if ranks == "rank 2" && tensor == "b.weight")
    );
    let shorter = as_ranks(3, Payload::F32, |group| {
        let names = if group.rank() == 0 { &["a"][..] } else { &["a", "b"] };
        fingerprint(names).check_same(group).unwrap_err().to_string()
    });
    assert!(shorter[1].contains("rank 0 has others than most, from number 1 on (here `b`)"), "{shorter:?}");
}
