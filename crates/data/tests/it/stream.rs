//! The stream over ranks and restarts, for every kind of order.

use std::sync::Arc;

use calotype_data::source::{Mixture, Source, SourceOptions, open};
use calotype_data::{
    BoxError, GlobalOrder, Loader, LoaderConfig, OrderConfig, Sample, SampleRef, ShardLimits, ShardWriter, Shuffle,
};

type Item = (u64, String);

fn source(name: &str, samples: usize) -> (tempfile::TempDir, Arc<dyn Source>) {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = ShardWriter::create(dir.path(), name, ShardLimits { samples: 4, bytes: 1 << 20 }).unwrap();
    for i in 0..samples {
        writer.write(&Sample::new(format!("{name}{i}")).with("txt", "")).unwrap();
    }
    writer.finish().unwrap();
    let source = open(&dir.path().display().to_string(), &SourceOptions::default()).unwrap();
    (dir, source)
}

fn key(position: u64, sample: &SampleRef<'_>) -> Result<Item, BoxError> {
    Ok((position, sample.key().to_owned()))
}

/// The items that the ranks deliver, one after the other, in the order of the batches.
fn stream(source: &Arc<dyn Source>, order: &Arc<GlobalOrder>, world: usize, start: u64, end: u64) -> Vec<Item> {
    let config = |rank| LoaderConfig { rank, world, start, end: Some(end), threads: 2, ..LoaderConfig::new(8) };
    let loader = |rank| Loader::new(Arc::clone(source), Arc::clone(order), config(rank), key).unwrap();
    let mut ranks: Vec<_> = (0..world).map(loader).collect();
    let mut items = Vec::new();
    loop {
        let batches: Vec<_> = ranks.iter_mut().map(|rank| rank.next()).collect();
        if batches.iter().all(Option::is_none) {
            return items;
        }
        items.extend(batches.into_iter().flat_map(|batch| batch.expect("all ranks end together").unwrap().items));
    }
}

fn orders() -> Vec<OrderConfig> {
    let shuffles = [
        (Shuffle::Sequential, false),
        (Shuffle::Full, false),
        (Shuffle::Full, true),
        (Shuffle::Shards { buffer: 9 }, false),
        (Shuffle::Shards { buffer: 9 }, true),
        (Shuffle::Shards { buffer: 1 }, false),
    ];
    shuffles.map(|(shuffle, resampled)| OrderConfig { seed: 11, shuffle, resampled }).to_vec()
}

#[test]
fn ranks_share_one_stream_and_a_restart_at_any_sample_goes_on_with_it() {
    let (_dir_a, a) = source("a", 19);
    let (_dir_b, b) = source("b", 7);
    let mixture: Arc<dyn Source> = Arc::new(Mixture::new(vec![(Arc::clone(&a), 0.75), (b, 0.25)]).unwrap());
    for source in [a, mixture] {
        for config in orders() {
            let order = Arc::new(source.order(&config).unwrap());
            let whole = stream(&source, &order, 1, 0, 70);
            assert_eq!(whole.len(), 70);
            assert!(whole.iter().enumerate().all(|(place, (position, _))| place as u64 == *position));
            for world in [2, 4] {
                assert_eq!(stream(&source, &order, world, 0, 70), whole, "{config:?}, {world} ranks");
            }
            // Stopped after any sample, and gone on with by another number of ranks and an order of its own.
            for stop in [0, 1, 2, 7, 8, 9, 18, 19, 20, 37, 38, 39, 63, 69, 70] {
                let mut items = stream(&source, &order, 2, 0, stop);
                let fresh = Arc::new(source.order(&config).unwrap());
                items.extend(stream(&source, &fresh, 4, stop, 70));
                assert_eq!(items, whole, "{config:?}, stopped after {stop}");
            }
        }
    }
}

#[test]
fn an_exact_epoch_loses_nothing_and_shows_nothing_twice() {
    let (_dir, source) = source("a", 19);
    for config in orders().into_iter().filter(|config| !config.resampled) {
        let order = Arc::new(source.order(&config).unwrap());
        for epoch in 0..3 {
            let mut keys: Vec<String> =
                stream(&source, &order, 2, 19 * epoch, 19 * (epoch + 1)).into_iter().map(|(_, key)| key).collect();
            keys.sort();
            keys.dedup();
            assert_eq!(keys.len(), 19, "{config:?}, epoch {epoch}");
        }
    }
}

#[test]
fn mixtures_tell_what_they_are() {
    let (_dir_a, a) = source("a", 5);
    let (_dir_b, b) = source("b", 4);
    let mix = |weight| Mixture::new(vec![(Arc::clone(&a), weight), (Arc::clone(&b), 1.0)]).unwrap();
    let mixture = mix(3.0);
    assert_eq!((mixture.len(), mixture.blocks()), (9, vec![4, 1, 4]));
    assert_eq!(mixture.get(5).unwrap().sample().key(), "b0");
    assert!(mixture.get(9).is_err());
    assert!(mixture.name().contains("(3) + "));
    assert_eq!(mixture.digest(), mix(3.0).digest());
    assert_ne!(mixture.digest(), mix(2.0).digest());
    assert!(Mixture::new(Vec::new()).is_err());
}
