//! Groups of some of a run's processes.

use std::sync::Arc;
use std::time::Duration;

use calotype_collective::{BucketPlan, Collective, Fingerprint, Order, Payload};
use half::bf16;

use crate::support::{as_ranks, groups, same, text, tree_sum, value};

/// Both groups of a process in a grid of so many rows, of four processes: its neighbours in a row, and those of other rows in its place.
fn grid(whole: &dyn Collective, row: usize) -> [Box<dyn Collective>; 2] {
    let (rank, world) = (whole.rank(), whole.world());
    let own: Vec<usize> = (0..row).map(|place| rank / row * row + place).collect();
    let others: Vec<usize> = (rank % row..world).step_by(row).collect();
    [own, others].map(|members| whole.split(&members).unwrap())
}

/// What a process gives in a sum.
fn values(rank: usize, length: usize) -> Vec<f32> {
    (0..length).map(|i| value(rank, i)).collect()
}

/// The sum over some ranks.
fn expected(ranks: &[usize], length: usize) -> Vec<f32> {
    (0..length).map(|i| tree_sum(&ranks.iter().map(|rank| value(*rank, i)).collect::<Vec<_>>())).collect()
}

#[test]
fn groups_sum_among_themselves_and_with_all() {
    for length in [3, 40_000] {
        let found = as_ranks(4, Payload::F32, |whole| {
            let [row, column] = grid(whole, 2);
            assert_eq!((row.rank(), row.world()), (whole.rank() % 2, 2));
            assert_eq!((column.rank(), column.world()), (whole.rank() / 2, 2));
            let sum = |group: &dyn Collective| {
                let mut own = values(whole.rank(), length);
                group.all_reduce_sum(&mut own).unwrap();
                own
            };
            let sums = [sum(row.as_ref()), sum(whole), sum(column.as_ref()), sum(row.as_ref())];
            assert!(row.counters().sent_bytes == whole.counters().sent_bytes, "a run has one account");
            sums
        });
        for (rank, [row, whole, column, again]) in found.into_iter().enumerate() {
            let first = rank / 2 * 2;
            assert!(row == expected(&[first, first + 1], length) && row == again, "row of rank {rank}");
            assert!(column == expected(&[rank % 2, rank % 2 + 2], length), "column of rank {rank}");
            assert!(whole == expected(&[0, 1, 2, 3], length), "rank {rank}");
        }
    }
}

#[test]
fn one_group_sums_in_the_background_while_another_one_calls() {
    let found = as_ranks(4, Payload::F32, |whole| {
        let [row, column] = grid(whole, 2);
        let plan = Arc::new(BucketPlan::new(&[5, 30_000, 7], 1 << 14));
        let mut reduction = column.start_reduction(&plan, Order::Ranks { micro_batches: 1 }).unwrap();
        let busy = row.start_reduction(&plan, Order::Ranks { micro_batches: 1 });
        assert!(text(busy).contains("the one before is not finished"));
        for (parameter, length) in [(2, 7), (1, 30_000), (0, 5)] {
            reduction.ready(parameter, &values(whole.rank() + parameter, length)).unwrap();
            let mut own = values(whole.rank(), 20_000);
            row.all_reduce_sum(&mut own).unwrap();
            let first = whole.rank() / 2 * 2;
            assert!(own == expected(&[first, first + 1], 20_000));
        }
        reduction.finish().unwrap().flat().collect::<Vec<f32>>()
    });
    for (rank, sums) in found.into_iter().enumerate() {
        let both = |parameter: usize| [rank % 2 + parameter, rank % 2 + 2 + parameter];
        let all = [(0, 5), (1, 30_000), (2, 7)].map(|(parameter, length)| expected(&both(parameter), length)).concat();
        assert!(sums == all, "rank {rank}");
    }
}

#[test]
fn halves_are_added_up_in_f32_and_rounded_once() {
    for (world, length) in [(1, 9), (2, 0), (2, 1), (3, 1000), (4, 70_000)] {
        let sums = same(as_ranks(world, Payload::F32, |group| {
            let mut values: Vec<bf16> = values(group.rank(), length).into_iter().map(bf16::from_f32).collect();
            group.all_reduce_sum_bf16(&mut values).unwrap();
            values
        }));
        for (i, sum) in sums.iter().enumerate() {
            let parts: Vec<f32> = (0..world).map(|rank| bf16::from_f32(value(rank, i)).to_f32()).collect();
            assert_eq!(*sum, bf16::from_f32(tree_sum(&parts)), "{i} of {length}, {world} processes");
        }
    }
}

#[test]
fn what_is_longer_than_a_bucket_is_summed_in_pieces() {
    const LENGTH: usize = 2_100_001;
    let sums = same(as_ranks(2, Payload::F32, |group| {
        // Sums of whole numbers are exact.
        let mut wide: Vec<f32> = (0..LENGTH).map(|i| ((i + group.rank()) % 1000) as f32).collect();
        let mut halves: Vec<bf16> = (0..LENGTH).map(|i| bf16::from_f32(((i + group.rank()) % 64) as f32)).collect();
        group.all_reduce_sum(&mut wide).unwrap();
        group.all_reduce_sum_bf16(&mut halves).unwrap();
        (wide, halves, group.counters().calls)
    }));
    let (wide, halves, calls) = sums;
    assert!((0..LENGTH).all(|i| wide[i] == (i % 1000 + (i + 1) % 1000) as f32));
    assert!((0..LENGTH).all(|i| halves[i] == bf16::from_f32((i % 64 + (i + 1) % 64) as f32)));
    assert_eq!(calls, 3 + 2, "pieces of 4 MiB");
}

#[test]
fn members_that_make_no_group_are_named() {
    let errors = as_ranks(3, Payload::F32, |whole| {
        [&[0, 3][..], &[0, 0, 1, 2], &[1], &[]].map(|members| whole.split(members).map_err(|error| error.to_string()))
    });
    let of = |rank: usize, list: usize| errors[rank][list].as_ref().err().cloned().unwrap_or_default();
    assert_eq!(of(0, 0), "rank 0 of 3: split failed: there is no rank 3; these are 3 processes");
    assert!(of(1, 1).contains("named twice among [0, 0, 1, 2]"), "{}", of(1, 1));
    assert!(of(2, 2).ends_with("rank 2 is not among [1]") && of(1, 2).is_empty() && !of(1, 3).is_empty());
}

#[test]
fn who_fails_in_a_group_is_named_as_in_the_run_and_ends_all() {
    let all = groups(4, Payload::F32, Duration::from_millis(400));
    let errors: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = all
            .into_iter()
            .map(|whole| {
                scope.spawn(move || {
                    let [row, column] = grid(&whole, 2);
                    if whole.rank() == 3 {
                        whole.abort("the loss is not finite");
                        return text(row.barrier());
                    }
                    // Ranks 0 and 1 are in no group with rank 3 but the whole, or wait for it in vain.
                    text(column.barrier().and_then(|()| row.barrier()).and_then(|()| whole.barrier()))
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for (rank, error) in errors.iter().enumerate() {
        assert!(error.starts_with(&format!("rank {rank} of 4: ")), "{error}");
        assert!(error.contains("rank 3 on thread 3 gave up: the loss is not finite"), "{error}");
    }
}

#[test]
fn weights_that_differ_in_a_group_name_the_rank_in_the_run() {
    let found = as_ranks(4, Payload::F32, |whole| {
        let [row, column] = grid(whole, 2);
        let mut fingerprint = Fingerprint::default();
        fingerprint.add("in.weight", &[u8::from(whole.rank() == 3)]);
        let among = |group: &dyn Collective| fingerprint.check_same(group).map_err(|error| error.to_string()).err();
        [among(column.as_ref()), among(row.as_ref())]
    });
    assert_eq!([&found[0], &found[2]].map(|[column, _]| column), [&None, &None]);
    for rank in [1, 3] {
        let problem = found[rank][0].as_ref().unwrap();
        assert!(problem.contains("`in.weight` of rank 3 is not that of the others"), "{problem}");
    }
    assert!(found[0][1].is_none() && found[2][1].as_ref().unwrap().contains("of rank 3"));
}

#[test]
fn calls_of_different_groups_are_told_apart() {
    let errors = as_ranks(2, Payload::F32, |whole| {
        let [first, second] = [0, 1].map(|_| whole.split(&[0, 1]).unwrap());
        match whole.rank() {
            0 => text(first.barrier()),
            _ => text(second.barrier()),
        }
    });
    let told = |group: usize| errors.iter().any(|error| error.contains(&format!("as call 0 of group {group}")));
    assert!(told(1) && told(2), "{errors:?}");
}
