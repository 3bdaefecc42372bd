//! Checkpoints that torch, numpy and tar wrote (`golden/make_golden.py`), read bit for bit.

use std::collections::BTreeMap;
use std::path::PathBuf;

use calotype_weights::pickle::{Kind, Value};
use calotype_weights::{
    NemoFile, ReadOptions, ShardedTensors, TensorFile, TensorFileError, TensorSource, TorchFile, TorchFormat,
    open_tensors, open_tensors_with, write_nemo,
};

const SKIP: ReadOptions = ReadOptions { skip_unknown_objects: true };

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn torch(name: &str) -> TorchFile {
    TorchFile::open(golden(name), ReadOptions::default()).unwrap()
}

/// Compares all tensors with those of `expected.safetensors`, before and after their pages were given back.
fn assert_same(source: &dyn TensorSource, expected: &str) {
    let expected = TensorFile::open(golden(&format!("{expected}.safetensors"))).unwrap();
    let file = source.origin().display().to_string();
    let mut names: Vec<_> = source.entries().into_iter().map(|entry| entry.name).collect();
    names.sort();
    assert_eq!(names, expected.names().collect::<Vec<_>>(), "{file}");
    for entry in source.entries() {
        let wanted = expected.get(&entry.name).unwrap().to_named();
        assert_eq!((entry.dtype, &entry.shape), (wanted.dtype, &wanted.shape), "{file}: {}", entry.name);
        for _ in 0..2 {
            assert_eq!(source.tensor(&entry.name).unwrap(), wanted, "{file}");
            source.release(&entry.name);
        }
    }
}

#[test]
fn every_layout_of_torch_reads_bit_for_bit() {
    let files = [
        ("zip_protocol2.pt", "torch", TorchFormat::Zip),
        ("zip_protocol4.pt", "torch", TorchFormat::Zip),
        ("deflated.pt", "torch", TorchFormat::Zip),
        ("legacy.pt", "torch", TorchFormat::Legacy),
        ("legacy_protocol4.pt", "torch", TorchFormat::Legacy),
        ("untyped.pt", "untyped", TorchFormat::Zip),
        ("lightning.ckpt", "lightning", TorchFormat::Zip),
        ("numpy_protocol2.pickle", "numpy", TorchFormat::Pickle),
        ("numpy_protocol3.pickle", "numpy", TorchFormat::Pickle),
        ("numpy_protocol4.pickle", "numpy", TorchFormat::Pickle),
        ("numpy_protocol5.pickle", "numpy", TorchFormat::Pickle),
    ];
    for (name, expected, format) in files {
        let file = torch(name);
        assert_eq!(file.format(), format, "{name}");
        assert_same(&file, expected);
        file.verify_checksums().unwrap();
        assert_eq!(file.skipped().count(), 0);
    }
}

#[test]
fn tensors_of_stored_entries_are_borrowed_from_the_map() {
    let file = torch("zip_protocol2.pt");
    let borrowed = |name| matches!(file.tensor(name).unwrap().data, std::borrow::Cow::Borrowed(_));
    assert!(borrowed("f32") && borrowed("offset") && borrowed("half_view"));
    assert!(!borrowed("transposed") && !borrowed("expanded"));
}

#[test]
fn the_dictionary_of_tensors_can_be_chosen() {
    let mut file = torch("parameters.pt");
    let roots: Vec<_> = file.roots().iter().map(|root| (root.path.as_str(), root.tensors)).collect();
    assert_eq!(roots, [("model", 2), ("ema", 2)]);
    assert_eq!(file.root(), "model");
    assert_same(&file, "parameters.model");
    file.select_root("ema").unwrap();
    assert_same(&file, "parameters.ema");
    let error = file.select_root("optimizer").unwrap_err().to_string();
    assert!(
        error.contains("no tensors under `optimizer`; they are under `model` (2 tensors), `ema` (2 tensors)"),
        "{error}"
    );
    assert_eq!(file.root(), "ema");
}

#[test]
fn all_else_in_a_checkpoint_is_plain_values() {
    let file = torch("lightning.ckpt");
    let top = file.value();
    assert_eq!(top.get("epoch").and_then(Value::as_i64), Some(3));
    assert_eq!(top.get("global_step").and_then(Value::as_i64), Some(1 << 40));
    assert_eq!(top.get("pytorch-lightning_version").and_then(Value::as_str), Some("1.4.2"));
    let settings = top.get("hyper_parameters").unwrap();
    assert_eq!(settings.get("rate").and_then(Value::as_f64), Some(1e-4));
    let names: Vec<_> = settings.get("names").unwrap().items().map(|name| name.as_str().unwrap()).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(settings.get("counts").unwrap().get("x").and_then(Value::as_i64), Some(1));
    let path = top.get("callbacks").and_then(|all| all.get("ModelCheckpoint")?.get("best_model_path"));
    assert_eq!(path.and_then(Value::as_str), Some("päth"));
    let scheduler = top.get("lr_schedulers").unwrap().items().next().unwrap();
    let flags: Vec<_> = scheduler.get("flags").unwrap().items().map(Value::kind).collect();
    assert_eq!(flags, [Kind::Bool(true), Kind::Bool(false), Kind::Tuple]);
    assert_eq!(scheduler.get("milestones").unwrap().kind(), Kind::None);

    let numbers = torch("numpy_protocol2.pickle");
    let top = numbers.value();
    assert_eq!(top.get("number").and_then(Value::as_f64), Some(1.5));
    assert_eq!(top.get("count").and_then(Value::as_i64), Some(-7));
    let all_bytes: Vec<u8> = (0..=255).collect();
    assert_eq!(top.get("raw").unwrap().kind(), Kind::Bytes(&all_bytes));
    assert_eq!(top.get("set").unwrap().items().len(), 2);
}

#[test]
fn objects_of_other_classes_are_refused_by_name_or_skipped_and_counted() {
    let error = TorchFile::open(golden("objects.ckpt"), ReadOptions::default()).unwrap_err();
    assert!(matches!(error, TensorFileError::Pickle { .. }));
    let error = error.to_string();
    assert!(error.contains("objects.ckpt") && error.contains("`argparse.") && error.contains("nothing was executed"));

    let file = TorchFile::open(golden("objects.ckpt"), SKIP).unwrap();
    assert_same(&file, "lightning");
    let skipped: Vec<_> = file.skipped().collect();
    assert_eq!(skipped.len(), 3, "{skipped:?}");
    assert!(skipped.contains(&("argparse.Namespace", 1)) && skipped.contains(&("argparse.Action", 0)), "{skipped:?}");
    let arguments = file.value().get("hyper_parameters").and_then(|settings| settings.get("arguments")).unwrap();
    assert_eq!(arguments.kind(), Kind::Object("argparse.Namespace"));
    open_tensors_with(golden("objects.ckpt"), SKIP).unwrap();
}

#[test]
fn nemo_archives_hold_configuration_and_weights() {
    for name in ["plain.nemo", "packed.nemo"] {
        let file = NemoFile::open(golden(name), ReadOptions::default()).unwrap();
        assert_eq!(file.config(), "name: tíny\n");
        assert_same(&file, "torch");
        file.weights().verify_checksums().unwrap();
    }
}

#[test]
fn written_archives_are_read_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let (path, again) = (folder.path().join("written.nemo"), folder.path().join("again.nemo"));
    let source = TensorFile::open(golden("torch.safetensors")).unwrap();
    let texts = BTreeMap::from([("kept".to_owned(), "a \"text\"".to_owned())]);
    write_nemo(&path, "name: tíny\n", &source, None, &texts).unwrap();
    let file = NemoFile::open(&path, ReadOptions::default()).unwrap();
    assert_same(&file, "torch");
    file.weights().verify_checksums().unwrap();
    assert_eq!((file.weights().format(), file.weights().skipped().count()), (TorchFormat::Zip, 0));
    let mut metadata = texts.clone();
    metadata.insert(NemoFile::CONFIG.to_owned(), "name: tíny\n".to_owned());
    assert_eq!(file.metadata(), metadata);
    write_nemo(&again, "name: tíny\n", &file, None, &texts).unwrap();
    // Tensors stand in the order of their source; the file's is that of its own dictionary.
    let other = NemoFile::open(&again, ReadOptions::default()).unwrap();
    assert_same(&other, "torch");
    let bytes = std::fs::read(&again).unwrap();
    assert!(bytes.len() % 512 == 0 && bytes.starts_with(b"./model_config.yaml\0"));

    let missing = folder.path().join("none/x.nemo");
    let error = write_nemo(&missing, "", &source, None, &BTreeMap::new()).unwrap_err().to_string();
    assert!(error.contains("x.nemo"), "{error}");
}

#[test]
fn shards_are_joined_by_their_index() {
    for name in ["shard.safetensors.index.json", "shard.bin.index.json"] {
        assert_same(&ShardedTensors::open(golden(name), ReadOptions::default()).unwrap(), "sharded");
    }
}

#[test]
fn formats_are_recognised_by_content() {
    let folder = tempfile::tempdir().unwrap();
    let files = [
        ("torch.safetensors", "torch"),
        ("zip_protocol4.pt", "torch"),
        ("legacy.pt", "torch"),
        ("numpy_protocol4.pickle", "numpy"),
        ("plain.nemo", "torch"),
        ("packed.nemo", "torch"),
    ];
    for (name, expected) in files {
        let path = folder.path().join("model.of.no.kind");
        std::fs::copy(golden(name), &path).unwrap();
        assert_same(&*open_tensors(&path).unwrap(), expected);
    }
    for name in ["shard.safetensors.index.json", "shard.bin.index.json"] {
        assert_same(&*open_tensors(golden(name)).unwrap(), "sharded");
    }
}

#[test]
fn a_name_that_is_not_there_brings_up_the_nearest() {
    let error = torch("lightning.ckpt").tensor("wieght").unwrap_err().to_string();
    assert!(error.contains("did you mean `weight`?"), "{error}");
}

#[test]
fn every_truncation_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut");
    for name in ["parameters.pt", "legacy_protocol4.pt", "numpy_protocol2.pickle", "packed.nemo"] {
        let bytes = std::fs::read(golden(name)).unwrap();
        for length in (0..bytes.len()).step_by(11) {
            std::fs::write(&path, &bytes[..length]).unwrap();
            assert!(open_tensors(&path).is_err(), "{name} cut to {length}");
        }
    }
}

/// Words, and per encoder how many vectors of which width, with the first values of each.
#[test]
fn learned_words_of_every_program() {
    use calotype_weights::EmbeddingSlot::{Any, First, Second};
    let two = [0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875];
    for (file, word, slots) in [
        ("embedding_web.pt", "style", &[(Any, 2, 4)][..]),
        ("embedding_original.pt", "embedding_original", &[(Any, 2, 4)]),
        ("embedding_diffusers.bin", "<toy>", &[(Any, 1, 4)]),
        ("embedding_xl.pt", "embedding_xl", &[(First, 2, 4), (Second, 2, 8)]),
    ] {
        for given in [None, Some("other")] {
            let found = calotype_weights::read_embeddings(&golden(file), given).unwrap();
            assert_eq!(found.len(), 1, "{file}");
            assert_eq!(found[0].word, given.unwrap_or(word), "{file}");
            let seen: Vec<_> =
                found[0].vectors.iter().map(|(slot, vectors)| (*slot, vectors.count(), vectors.width)).collect();
            assert_eq!(seen, slots, "{file}");
            let values = &found[0].vectors.values().next().unwrap().values;
            assert_eq!(values[..], two[..values.len()], "{file}");
        }
    }
    let error = calotype_weights::read_embeddings(&golden("zip_protocol2.pt"), None).unwrap_err().to_string();
    assert!(error.contains("zip_protocol2.pt") && error.contains("embedding"), "{error}");
}
