//! Order, elasticity, resume, errors and shutdown of the loader.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use calotype_data::{
    Batch, BoxError, Dataset, Error, GlobalOrder, Loader, LoaderConfig, OnError, Sample, SampleRef, ShardLimits,
    ShardWriter,
};

const SAMPLES: usize = 23;

fn dataset(dir: &Path) -> Arc<Dataset> {
    let mut writer = ShardWriter::create(dir, "x", ShardLimits { samples: 7, bytes: 1 << 20 }).unwrap();
    for i in 0..SAMPLES {
        writer.write(&Sample::new(format!("{i}")).with("txt", i.to_string())).unwrap();
    }
    writer.finish().unwrap();
    Arc::new(Dataset::open(dir).unwrap())
}

fn order() -> Arc<GlobalOrder> {
    Arc::new(GlobalOrder::new(42, SAMPLES).unwrap())
}

type Item = (u64, usize);

fn decode(position: u64, sample: &SampleRef<'_>) -> Result<Item, BoxError> {
    Ok((position, sample.text("txt")?.parse()?))
}

fn loader(data: &Arc<Dataset>, config: LoaderConfig) -> Loader<Item> {
    Loader::new(Arc::clone(data), order(), config, decode).unwrap()
}

/// The stream as it should be.
fn expected(positions: std::ops::Range<u64>) -> Vec<Item> {
    let order = order();
    positions.map(|p| (p, order.index(p).1)).collect()
}

#[test]
fn batches_come_in_order_for_any_number_of_threads() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path());
    for (threads, prefetch) in [(1, 1), (1, 3), (4, 2), (3, 8)] {
        let config = LoaderConfig { threads, prefetch, end: Some(60), ..LoaderConfig::new(4) };
        let batches: Vec<Batch<Item>> = loader(&data, config).map(Result::unwrap).collect();
        assert!(batches.iter().enumerate().all(|(i, b)| b.first_position == 4 * i as u64));
        let items: Vec<Item> = batches.into_iter().flat_map(|b| b.items).collect();
        assert_eq!(items, expected(0..60));
    }
}

#[test]
fn the_stream_does_not_depend_on_the_ranks_nor_on_where_it_starts() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path());
    for world in [1, 2, 4] {
        for start in [0, 8, 13] {
            let mut ranks: Vec<_> = (0..world)
                .map(|rank| loader(&data, LoaderConfig { rank, world, start, end: Some(70), ..LoaderConfig::new(8) }))
                .collect();
            let mut items = Vec::new();
            'stream: loop {
                for rank in &mut ranks {
                    match rank.next() {
                        Some(batch) => items.extend(batch.unwrap().items),
                        None => break 'stream,
                    }
                }
            }
            assert!(ranks.iter_mut().all(|rank| rank.next().is_none()), "all ranks end together");
            assert_eq!(items, expected(start..70), "world {world}, start {start}");
        }
    }
}

#[test]
fn a_corrupt_sample_fails_by_default_and_ends_the_stream() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path());
    let bad = |position: u64, sample: &SampleRef<'_>| match sample.key() {
        "5" => Err(BoxError::from("broken")),
        _ => decode(position, sample),
    };
    let place = (0..).find(|p| order().index(*p).1 == 5).unwrap();
    let config = LoaderConfig { threads: 3, prefetch: 6, ..LoaderConfig::new(2) };
    let mut loader = Loader::new(Arc::clone(&data), order(), config, bad).unwrap();
    for _ in 0..place / 2 {
        loader.next().unwrap().unwrap();
    }
    match loader.next().unwrap().unwrap_err() {
        Error::Decode { position, key, source, .. } => {
            assert_eq!((position, key.as_str(), source.to_string().as_str()), (place, "5", "broken"));
        }
        other => panic!("{other}"),
    }
    assert!(loader.next().is_none());
}

#[test]
fn skipping_replaces_by_the_next_positions_sample_on_every_rank() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path());
    let order = order();
    // Two bad samples that follow each other, at positions 7 and 8.
    let bad = [order.index(7).1, order.index(8).1];
    let decode_good = move |position: u64, sample: &SampleRef<'_>| -> Result<Item, BoxError> {
        let item = decode(position, sample)?;
        if bad.contains(&item.1) { Err("broken".into()) } else { Ok(item) }
    };
    let mut want = expected(0..16);
    (want[7].1, want[8].1) = (order.index(9).1, order.index(9).1);
    for world in [1, 2] {
        let mut parts: Vec<Vec<Item>> = Vec::new();
        for rank in 0..world {
            let on_error = OnError::Skip;
            let config = LoaderConfig { rank, world, on_error, end: Some(16), ..LoaderConfig::new(16) };
            let mut loader = Loader::new(Arc::clone(&data), Arc::clone(&order), config, decode_good).unwrap();
            parts.extend(loader.by_ref().map(|batch| batch.unwrap().items));
            if world == 1 {
                assert_eq!(loader.skipped(), 3);
                assert_eq!(loader.skips().iter().map(|s| s.position).collect::<Vec<_>>(), [7, 7, 8]);
            }
        }
        assert_eq!(parts.concat(), want, "world {world}");
    }
}

#[test]
fn a_dataset_without_any_good_sample_ends() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path());
    let config = LoaderConfig { on_error: OnError::Skip, ..LoaderConfig::new(4) };
    let none = |_: u64, _: &SampleRef<'_>| -> Result<Item, BoxError> { Err("broken".into()) };
    let mut loader = Loader::new(data, order(), config, none).unwrap();
    assert!(matches!(loader.next(), Some(Err(Error::TooManyBadSamples { tries: 23, .. }))));
}

#[test]
fn a_panic_reaches_the_consumer() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path());
    let panics = |position: u64, sample: &SampleRef<'_>| {
        assert!(position < 4, "no more");
        decode(position, sample)
    };
    let mut loader = Loader::new(data, order(), LoaderConfig::new(4), panics).unwrap();
    loader.next().unwrap().unwrap();
    assert!(matches!(loader.next(), Some(Err(Error::LoaderPanicked { message })) if message.contains("no more")));
}

#[test]
fn dropping_never_hangs_and_prefetch_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path());
    let (done, finished) = mpsc::channel();
    let decoded = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&decoded);
    std::thread::spawn(move || {
        for taken in 0..6 {
            let count = Arc::clone(&count);
            count.store(0, Ordering::SeqCst);
            let config = LoaderConfig { threads: 3, prefetch: 4, ..LoaderConfig::new(2) };
            let counted = {
                let count = Arc::clone(&count);
                move |position: u64, sample: &SampleRef<'_>| {
                    count.fetch_add(1, Ordering::SeqCst);
                    decode(position, sample)
                }
            };
            let mut loader = Loader::new(Arc::clone(&data), order(), config, counted).unwrap();
            loader.by_ref().take(taken).for_each(|batch| drop(batch.unwrap()));
            if taken % 2 == 0 {
                std::thread::sleep(Duration::from_millis(20));
            }
            drop(loader);
            done.send((taken, count.load(Ordering::SeqCst))).unwrap();
        }
    });
    for _ in 0..6 {
        let (taken, decoded) = finished.recv_timeout(Duration::from_secs(20)).expect("dropping the loader hangs");
        assert!(decoded <= 2 * (taken + 4), "{decoded} decoded, {taken} batches taken");
    }
}

#[test]
fn senseless_settings_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path());
    let good = LoaderConfig::new(4);
    for config in [
        LoaderConfig { global_batch: 0, ..good.clone() },
        LoaderConfig { world: 3, ..good.clone() },
        LoaderConfig { world: 2, rank: 2, ..good.clone() },
        LoaderConfig { world: 0, ..good.clone() },
        LoaderConfig { threads: 0, ..good.clone() },
        LoaderConfig { prefetch: 0, ..good.clone() },
    ] {
        let result = Loader::new(Arc::clone(&data), order(), config, decode).map(|_| ());
        assert!(matches!(result, Err(Error::InvalidArgument { .. })));
    }
    let short = Arc::new(GlobalOrder::new(0, SAMPLES - 1).unwrap());
    let result = Loader::new(data, short, good, decode).map(|_| ());
    assert!(matches!(result, Err(Error::InvalidArgument { what: "loader order", .. })));
}

#[test]
fn a_batch_is_split_in_order() {
    let batch = Batch { first_position: 40, items: vec!['a', 'b', 'c', 'd', 'e'] };
    let parts = batch.clone().split(2);
    let expected: [(u64, &[char]); 3] = [(40, &['a', 'b']), (42, &['c', 'd']), (44, &['e'])];
    assert!(parts.iter().map(|part| (part.first_position, part.items.as_slice())).eq(expected));
    let whole = batch.clone().split(9);
    assert!(whole.len() == 1 && whole[0] == batch);
    assert_eq!(batch.split(0).len(), 5, "at least one item each");
    assert!(Batch { first_position: 3, items: Vec::<u8>::new() }.split(2).is_empty());
}
