//! Malformed and hostile checkpoints: each gives an error that names the cause, without a panic and without taking more
//! memory than a small multiple of its size.

mod build;

use std::path::Path;

use self::build::{
    HUGE, Item, Tensor, deflated, gzip, json_header, legacy, legacy_of, pickle_of_names, safetensors, state, tar_of,
    zip, zip_of,
};
use calotype_weights::{ReadOptions, open_tensors_with};

/// A malformed file, and words of the error that it must give.
struct Case {
    name: String,
    content: Vec<u8>,
    error: &'static str,
}

fn case(name: impl Into<String>, error: &'static str, content: impl Into<Vec<u8>>) -> Case {
    Case { name: name.into(), content: content.into(), error }
}

/// Opens the file and reads all of its tensors.
fn read(path: &Path, options: ReadOptions) -> Result<(), String> {
    let source = open_tensors_with(path, options).map_err(|error| error.to_string())?;
    for entry in source.entries() {
        source.tensor(&entry.name).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// Reads every case from a file, and checks its message and what it allocated at most.
fn check(cases: Vec<Case>) {
    let folder = tempfile::tempdir().unwrap();
    for (name, key) in [("a.safetensors", "a"), ("b.safetensors", "b")] {
        std::fs::write(folder.path().join(name), safetensors(&json_header(key, "F32", &[1], 0, 4), 4)).unwrap();
    }
    for Case { name, content, error } in cases {
        let path = folder.path().join("malformed");
        std::fs::write(&path, &content).unwrap();
        let size = content.len();
        drop(content);
        for skip_unknown_objects in [false, true] {
            let before = crate::counting::start();
            let outcome = read(&path, ReadOptions { skip_unknown_objects });
            let peak = crate::counting::peak_since(before);
            assert!(peak <= size * 4 + (1 << 20), "{name}: {peak} bytes allocated for a file of {size}");
            if skip_unknown_objects && error.starts_with("names `") {
                // Nothing is executed then either; what is left may or may not hold tensors.
                continue;
            }
            let message = outcome.expect_err(&name);
            assert!(message.contains(error), "{name}: {message}");
            assert!(message.contains("malformed"), "{name} does not name its file: {message}");
        }
    }
}

#[test]
fn files_of_other_kinds_are_named() {
    check(vec![
        case("empty", "the file is empty", ""),
        case("GGUF", "this is a GGUF file", "GGUF\x03\0\0\0 and so on"),
        case("HDF5", "this is an HDF5 file", b"\x89HDF\r\n\x1a\n and so on"),
        case("ONNX", "this is an ONNX file", b"\x08\x07\x12\x07pytorch"),
        case("Git LFS", "a pointer of Git LFS", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        case("HTML", "an HTML or XML page", "  <!DOCTYPE html><html>not found</html>"),
        case("numpy", "a numpy array", b"\x93NUMPY\x01\0"),
        case("zeros", "a file of zeros", [0; 4096]),
        case("text", "of a kind that is not known", "hello, world"),
        case("zstd", "a zstd-compressed file", b"\x28\xb5\x2f\xfd..."),
        case("npz", "numpy arrays (`.npz`)", zip(&[("arr_0.npy", b"\x93NUMPY")])),
        case("another zip", "has no `data.pkl`", zip(&[("word/document.xml", b"<xml/>")])),
        case(
            "TorchScript",
            "a TorchScript program",
            zip(&[("m/data.pkl", b"\x80\x02}."), ("m/constants.pkl", b"\x80\x02)."), ("m/code/m.py", b"")]),
        ),
        case(
            "old tar of torch",
            "tar format of torch",
            tar_of(&[("storages", b"1"), ("tensors", b"2"), ("pickle", b"3")]),
        ),
        case("one letter", "of a kind that is not known", "x"),
        case("JSON of another kind", "no `weight_map`", r#"{"architectures": ["CLIPModel"]}"#),
    ]);
}

#[test]
fn safetensors_headers() {
    let two = |first: (usize, usize), second: (usize, usize)| {
        let entry = |name, (start, end)| {
            let header = json_header(name, "U8", &[end - start], start, end);
            header[1..header.len() - 1].to_owned()
        };
        format!("{{{},{}}}", entry("a", first), entry("b", second))
    };
    let one = |dtype, shape: &[usize], start, end| json_header("a", dtype, shape, start, end);
    let long = |announced: u64| [&announced.to_le_bytes()[..], b"{\"a\":1}"].concat();
    check(vec![
        case("header of 90 MB", "the file is truncated", long(90_000_000)),
        case("header longer than any", "announce a header of 1000000000000 bytes", long(1_000_000_000_000)),
        case("header cut", "is truncated", &safetensors(&one("F32", &[1], 0, 4), 4)[..20]),
        case("data cut", "is truncated", safetensors(&one("F32", &[2], 0, 8), 7)),
        case("data that go on", "the file goes on to", safetensors(&one("F32", &[2], 0, 8), 9)),
        case("overlap", "the bytes of tensors `a` and `b` overlap", safetensors(&two((0, 4), (2, 6)), 6)),
        case("hole", "bytes 4..5 of the data, before tensor `b`", safetensors(&two((0, 4), (5, 6)), 6)),
        case("same range", "overlap", safetensors(&two((0, 4), (0, 4)), 4)),
        case("shape overflow", "of tensor `a` overflows", safetensors(&one("F32", &[HUGE, HUGE, 2], 0, 4), 4)),
        case("shape and range disagree", "`a` needs 8 bytes", safetensors(&one("F32", &[2], 0, 4), 4)),
        case("backward range", "`a` needs 4 bytes", safetensors(&one("F32", &[1], 4, 0), 4)),
        case("range far outside", "is truncated", safetensors(&one("U8", &[HUGE], 0, HUGE), 4)),
        case("unknown type", "element type F3", safetensors(&one("F3", &[1], 0, 4), 4)),
        case("type that is not read", "element type C64", safetensors(&one("C64", &[1], 0, 8), 8)),
        case(
            "negative size",
            "the entry of tensor `a` is malformed",
            safetensors(r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, 4),
        ),
        case("no offsets", "missing field `data_offsets`", safetensors(r#"{"a":{"dtype":"F32","shape":[1]}}"#, 4)),
        case("twice the same", "`a` is there twice", safetensors(&two((0, 0), (0, 0)).replace("\"b\"", "\"a\""), 0)),
        case("deep JSON", "not a JSON object of tensors", safetensors(&format!("{{\"a\":{}", "[".repeat(9000)), 0)),
        case("not an entry", "the entry of tensor `a` is malformed", safetensors(r#"{"a":[1,2,3]}"#, 0)),
        case("metadata", "the entry of tensor `__metadata__`", safetensors(r#"{"__metadata__":{"a":{}}}"#, 0)),
    ]);
}

/// Functions that attackers have pickles call, and some whose refusal scanners missed.
const HOSTILE: [(&str, &str); 44] = [
    ("os", "system"),
    ("posix", "system"),
    ("nt", "system"),
    ("os", "popen"),
    ("builtins", "eval"),
    ("builtins", "exec"),
    ("__builtin__", "eval"),
    ("__builtin__", "execfile"),
    ("builtins", "__import__"),
    ("builtins", "getattr"),
    ("builtins", "open"),
    ("builtins", "compile"),
    ("builtins", "apply"),
    ("subprocess", "Popen"),
    ("subprocess", "check_output"),
    ("torch", "load"),
    ("torch.serialization", "load"),
    ("torch.storage", "_load_from_bytes"),
    ("torch.hub", "load"),
    ("torch.jit", "load"),
    ("torch", "_utils._rebuild_tensor_v2"),
    ("torch.utils._config_module", "ConfigModule.load_config"),
    ("torch._inductor.codecache", "compile_file"),
    ("webbrowser", "open"),
    ("runpy", "run_path"),
    ("runpy", "_run_code"),
    ("numpy.testing._private.utils", "runstring"),
    ("numpy.f2py.crackfortran", "param_eval"),
    ("numpy", "load"),
    ("numpy.core.multiarray", "fromfile"),
    ("importlib", "import_module"),
    ("operator", "attrgetter"),
    ("functools", "partial"),
    ("pickle", "loads"),
    ("_pickle", "loads"),
    ("marshal", "loads"),
    ("types", "CodeType"),
    ("pty", "spawn"),
    ("ctypes", "CDLL"),
    ("sys", "modules"),
    ("shutil", "rmtree"),
    ("timeit", "timeit"),
    ("code", "InteractiveInterpreter"),
    ("collections", "OrderedDict.__class__"),
];

#[test]
fn hostile_names_are_refused_in_every_spelling() {
    for (module, name) in HOSTILE {
        let spellings = [
            format!("\u{2}c{module}\n{name}\nX\u{2}\0\0\0id\u{1}R.").into_bytes(),
            pickle_of_names(module, name),
            format!("\u{2}(X\u{2}\0\0\0idi{module}\n{name}\n.").into_bytes(),
            format!("\u{2}(c{module}\n{name}\nX\u{2}\0\0\0ido.").into_bytes(),
        ];
        for (number, mut pickle) in spellings.into_iter().enumerate() {
            pickle.insert(0, 0x80);
            let direct = case(format!("{module}.{name} {number}"), "names `", pickle.clone());
            let zipped = case(format!("{module}.{name} {number} in a zip"), "names `", zip_of(&pickle, &[]));
            let old = case(
                format!("{module}.{name} {number} in the old format"),
                "names `",
                legacy_of(&pickle, b"\x80\x02]."),
            );
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("malformed");
            std::fs::write(&path, &pickle).unwrap();
            let message = read(&path, ReadOptions::default()).unwrap_err();
            assert!(
                message.contains(&format!("`{module}.{name}`")) && message.contains("nothing was executed"),
                "{message}"
            );
            check(vec![direct, zipped, old]);
        }
    }
}

#[test]
fn damaged_pickles() {
    let p = |body: &[u8]| [b"\x80\x02", body].concat();
    check(vec![
        case("unknown operation", "0xff is not a pickle operation", p(b"\xff.")),
        case("no end", "the pickle is truncated", p(b"}")),
        case("nothing", "the pickle is truncated", p(b"")),
        case("protocol 9", "of a kind that is not known", b"\x80\x09}."),
        case("later protocol 9", "of pickle protocol 9", p(b"\x80\x09}.")),
        case("end without a value", "where there is none", p(b".")),
        case("pop of nothing", "where there is none", p(b"0.")),
        case("pair from nothing", "where there is none", p(b"N\x86.")),
        case("value under a mark", "where there is none", p(b"N(\x85.")),
        case("group never begun", "a group that was never begun", p(b"Nt.")),
        case("call without arguments", "where there is none", p(b"NR.")),
        case("call of a number", "a call needs a type or function, and is given an integer", p(b"K\x01)R.")),
        case("arguments that are none", "a call needs a tuple of arguments", p(b"ccollections\nOrderedDict\nK\x01R.")),
        case("append to a number", "adding values needs a list or a set, and is given an integer", p(b"K\x01K\x02a.")),
        case("item of a list", "adding values needs a dictionary", p(b"]K\x01K\x02s.")),
        case("odd pairs", "keys and values in pairs, and is given an odd number", p(b"}(K\x01u.")),
        case("state of a number", "setting a state needs", p(b"K\x01}b.")),
        case("memo that is empty", "value number 7, which was not kept", p(b"h\x07.")),
        case("memo that skips", "value number 1, which was not kept", p(b"Nq\x05h\x01.")),
        case("memo of four billion", "more than the", p(b"Nr\xff\xff\xff\xff.")),
        case("memo of nothing", "where there is none", p(b"q\x00.")),
        case("long of 2 GB", "is truncated", p(b"\x8b\xff\xff\xff\x7f.")),
        case("negative long", "is truncated", p(b"\x8b\xff\xff\xff\xff.")),
        case("text of 4 GB", "is truncated", p(b"X\xff\xff\xff\xff.")),
        case("text of 16 EB", "is truncated", p(b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff.")),
        case("bytes of 16 EB", "is truncated", p(b"\x8e\xff\xff\xff\xff\xff\xff\xff\xff.")),
        case("frame of 16 EB", "is truncated", p(b"\x95\xff\xff\xff\xff\xff\xff\xff\xff.")),
        case("text that is no UTF-8", "a text is not valid", p(b"X\x01\0\0\0\xff.")),
        case("digits that are none", "a number is not valid", p(b"I12x\n.")),
        case("text with bad escapes", "a text is not valid", p(b"V\\u12\n.")),
        case("quotes that do not close", "a text is not valid", p(b"S'abc\n.")),
        case("extension registry", "entry 5 of Python's extension registry", p(b"\x82\x05.")),
        case("buffers outside", "buffers outside the file", p(b"\x97.")),
        case("persistent text", "a persistent reference is not a torch storage", p(b"Pos.system\n.")),
        case("persistent object", "a persistent reference is not a torch storage", p(b"X\x02\0\0\0idQ.")),
        case("name from numbers", "naming a type needs two texts", b"\x80\x04K\x01K\x02\x93."),
        case("named arguments of a known type", "needs a class", b"\x80\x04ccollections\nOrderedDict\n)}\x92."),
        case(
            "ordered dictionary of numbers",
            "`OrderedDict` is called with",
            p(b"ccollections\nOrderedDict\n(K\x01K\x02lK\x01\x86R."),
        ),
        case("no tensors", "no tensor was found", p(b"}X\x01\0\0\0aK\x01s.")),
        case("a dictionary in itself", "no tensor was found", p(b"}q\0X\x01\0\0\0ah\0s.")),
        case("a list in itself", "no tensor was found", p(b"]q\0h\0a.")),
        case("only a number", "no tensor was found", p(b"K\x01.")),
    ]);
}

#[test]
fn numpy_arrays() {
    let array = |shape: &[u8], dtype: &[u8], data: &[u8]| {
        let mut pickle =
            b"\x80\x02}X\x01\0\0\0acnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85C\x01b\x87R(K\x01"
                .to_vec();
        pickle.extend_from_slice(shape);
        pickle.extend_from_slice(b"cnumpy\ndtype\nX\x02\0\0\0");
        pickle.extend_from_slice(dtype);
        pickle.extend_from_slice(b"K\0K\x01\x87R(K\x03X\x01\0\0\0<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89C");
        pickle.push(data.len() as u8);
        pickle.extend_from_slice(data);
        pickle.extend_from_slice(b"tbs.");
        pickle
    };
    check(vec![
        case("too few bytes", "another number of bytes", array(b"K\x02\x85", b"f4", &[0; 4])),
        case("negative size", "a shape that is no tuple", array(b"J\xff\xff\xff\xff\x85", b"f4", &[0; 4])),
        case(
            "shape that overflows",
            "a shape that overflows",
            array(b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x87", b"f4", &[0; 4]),
        ),
        case("objects", "element type numpy object", array(b"K\x01\x85", b"O8", &[0; 8])),
        case("texts", "element type numpy text", array(b"K\x01\x85", b"U1", &[0; 4])),
        case("complex", "element type numpy complex", array(b"K\x01\x85", b"c8", &[0; 8])),
        case(
            "never filled",
            "element type unfilled numpy array",
            b"\x80\x02}X\x01\0\0\0acnumpy.core.multiarray\n_reconstruct\n)\x85Rs.",
        ),
        case("code that is none", "`dtype` is called with", array(b"K\x01\x85", b"fx", &[0; 4])),
        case(
            "array of a number",
            "`_reconstruct` is called with a state",
            b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n)\x85RK\x01b.",
        ),
        case(
            "scalar of the wrong size",
            "`scalar` is called with",
            b"\x80\x02cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nX\x02\0\0\0f8\x85RC\x01a\x86R.",
        ),
    ]);
}

/// Programs that try to take more memory than their length allows: rows of a repeated operation.
#[test]
fn memory_stays_in_proportion() {
    const LENGTH: usize = 400_000;
    let repeated = |start: &[u8], operation: &[u8], end: &[u8]| {
        [b"\x80\x04", start, &operation.repeat(LENGTH / operation.len()), end].concat()
    };
    // Each list holds the one before it twice: 2^60 values, if sharing were not kept.
    let laughs: Vec<u8> = (0..60).flat_map(|level| [b'(', b'h', level, b'h', level, b'l', b'q', level + 1]).collect();
    let laughs = [b"\x80\x02]q\0".as_slice(), &laughs, b"."].concat();
    let fill = "x".repeat(4000);
    let text = |tail: &[u8]| [b"X\xa0\x0f\0\0".as_slice(), fill.as_bytes(), tail].concat();
    let state = state(&Tensor { shape: vec![2], strides: vec![1], elements: 2, ..Tensor::default() });
    check(vec![
        case("billion laughs", "no tensor was found", laughs),
        case("empty lists", "more than the", repeated(b"", b"]", b".")),
        case("marks", "more than the", repeated(b"", b"(", b".")),
        case("deep lists", "more than the", repeated(b"", b"(l", b"")),
        case("nested tuples", "more than the", repeated(b"N", b"\x85", b".")),
        case("kept values", "more than the", repeated(b"}", b"\x94", b".")),
        case("floats", "no tensor was found", repeated(b"", b"G\0\0\0\0\0\0\0\0", b".")),
        case("truth values", "more than the", repeated(b"", b"\x88", b"")),
        case("names", "no tensor was found", repeated(b"", b"ctorch\nSize\n", b".")),
        case(
            "one text encoded over and over",
            "more than the",
            repeated(&text(b"\x94X\x06\0\0\0latin1\x94\x86\x94c_codecs\nencode\n\x94"), b"h\x03h\x02R0", b"N."),
        ),
        case(
            "one list copied over and over",
            "more than the",
            repeated(
                &[b"(".as_slice(), &b"N".repeat(4000), b"l\x85\x94cbuiltins\nset\n\x94"].concat(),
                b"h\x01h\0R0",
                b"N.",
            ),
        ),
        case(
            "one dictionary copied over and over",
            "more than the",
            repeated(
                &[b"(".as_slice(), &b"))\x86".repeat(1000), b"l\x85\x94ccollections\nOrderedDict\n\x94"].concat(),
                b"h\x01h\0R0",
                b"N.",
            ),
        ),
        case("many dictionaries", "more than the", repeated(b"}(", b"Vab\n}", b"u.")),
        case("much text in a zip", "no tensor was found", zip_of(&repeated(b"](", b"Vabcdefghijklmnop\n", b"e."), &[])),
        case("many tensors", "is there twice", zip_of(&many_tensors(2000), &[("a/data/0", &[0; 8])])),
        case("valid state with other storage", "lies in storage `0`", zip_of(&state, &[("a/data/1", &[0; 8])])),
    ]);
}

/// A dictionary that holds one and the same tensor under one and the same name.
fn many_tensors(count: usize) -> Vec<u8> {
    let state = state(&Tensor { shape: vec![2], strides: vec![1], elements: 2, ..Tensor::default() });
    // `}`, then name and tensor, then `s.`: keep both, and repeat them.
    let (inner, _) = state.split_at(state.len() - 2);
    [inner, b"q\x01s(".as_slice(), &b"V0\nh\x01".repeat(count), b"u."].concat()
}

#[test]
fn tensors_outside_their_storages() {
    let valid = || Tensor { shape: vec![2, 2], strides: vec![2, 1], elements: 4, ..Tensor::default() };
    let in_zip = |tensor: Tensor| zip_of(&state(&tensor), &[("a/data/0", &[0; 16])]);
    check(vec![
        case("no storage", "lies in storage `0`, which the file does not have", zip_of(&state(&valid()), &[])),
        case("short storage", "of 8 bytes, which should have 16", zip_of(&state(&valid()), &[("a/data/0", &[0; 8])])),
        case("long storage", "of 20 bytes, which should have 16", zip_of(&state(&valid()), &[("a/data/0", &[0; 20])])),
        case("offset behind the end", "reaches outside its storage", in_zip(Tensor { offset: 1, ..valid() })),
        case("negative offset", "a negative or missing offset", in_zip(Tensor { offset: -1, ..valid() })),
        case("offset of 2^62", "reaches outside its storage", in_zip(Tensor { offset: 1 << 62, ..valid() })),
        case("negative stride", "strides that are no tuple", in_zip(Tensor { strides: vec![2, -1], ..valid() })),
        case("stride behind the end", "reaches outside its storage", in_zip(Tensor { strides: vec![3, 1], ..valid() })),
        case(
            "stride that overflows",
            "reaches outside its storage",
            in_zip(Tensor { strides: vec![i64::MAX, 1], shape: vec![5, 2], ..valid() }),
        ),
        case("negative size", "a shape that is no tuple", in_zip(Tensor { shape: vec![-2, 2], ..valid() })),
        case(
            "size that overflows",
            "which overflows",
            in_zip(Tensor { shape: vec![1 << 40, 1 << 40], strides: vec![0, 0], ..valid() }),
        ),
        case(
            "one element repeated to a terabyte",
            "repeats its elements",
            in_zip(Tensor { shape: vec![1 << 38], strides: vec![0], ..valid() }),
        ),
        case(
            "more strides than sizes",
            "another number of strides",
            in_zip(Tensor { strides: vec![4, 2, 1], ..valid() }),
        ),
        case(
            "65 axes",
            "a shape that is no tuple of up to 64 sizes",
            in_zip(Tensor { shape: vec![1; 65], strides: vec![1; 65], ..valid() }),
        ),
        case("storage of 2^62 elements", "which should have", in_zip(Tensor { elements: 1 << 62, ..valid() })),
        case(
            "negative storage",
            "a persistent reference is not a torch storage",
            in_zip(Tensor { elements: -4, ..valid() }),
        ),
        case("complex", "element type complex64", in_zip(Tensor { class: "ComplexFloatStorage", ..valid() })),
        case("quantized", "element type qint8", in_zip(Tensor { class: "QInt8Storage", ..valid() })),
        case(
            "double storage of half the length",
            "which should have 32",
            in_zip(Tensor { class: "DoubleStorage", ..valid() }),
        ),
        case("unknown storage class", "names `torch.EvilStorage`", in_zip(Tensor { class: "EvilStorage", ..valid() })),
        case(
            "key that leads out",
            "lies in storage `../../etc/passwd`",
            in_zip(Tensor { key: "../../etc/passwd", ..valid() }),
        ),
    ]);
}

#[test]
fn zip_archives() {
    let pickle = state(&Tensor { shape: vec![2], strides: vec![1], elements: 2, ..Tensor::default() });
    let storage = [0u8; 8];
    let entries = || vec![Item::new("a/data.pkl", &pickle), Item::new("a/data/0", &storage)];
    let with = |change: &dyn Fn(&mut Vec<Item>)| {
        let mut items = entries();
        change(&mut items);
        build::zip_items(&items)
    };
    let whole = build::zip_items(&entries());
    let zeros = vec![0u8; 30 << 20];
    let end = whole.len() - 22;
    let patched = |at: usize, bytes: &[u8]| {
        let mut copy = whole.clone();
        copy[at..at + bytes.len()].copy_from_slice(bytes);
        copy
    };
    check(vec![
        case("cut before the end record", "no directory at its end", &whole[..whole.len() - 1]),
        case("cut in the directory", "no directory at its end", &whole[..end - 10]),
        case("only a start", "no directory at its end", b"PK\x03\x04"),
        case("directory behind the end", "does not end before the end record", patched(end + 16, &[0xf0; 4])),
        case("more entries than there are", "damaged", patched(end + 10, &[3, 0])),
        case("65535 entries", "more entries than fit", patched(end + 10, &[0xff, 0xff])),
        case("several volumes", "one of several volumes", patched(end + 4, &[1, 0])),
        case(
            "entry twice",
            "`a/data/0` is in the archive twice",
            with(&|items| items.push(Item::new("a/data/0", b"12345678"))),
        ),
        case("encrypted", "`a/data/0` of the zip archive is encrypted", with(&|items| items[1].flags = 1)),
        case("bzip2", "is compressed by method 12", with(&|items| items[1].method = 12)),
        case("other local name", "another name", with(&|items| items[1].local_name = "a/data/9".to_owned())),
        case("other local sizes", "other sizes", with(&|items| items[1].local_length = Some(4))),
        case("stored with two sizes", "a stored entry has two sizes", with(&|items| items[1].length = 9)),
        case(
            "data behind the directory",
            "lies outside the file",
            with(&|items| {
                items[1].length = 100_000;
                items[1].packed = 100_000;
            }),
        ),
        case(
            "header behind the directory",
            "lies outside the file",
            with(&|items| items[1].offset = Some(0x7fff_ffff)),
        ),
        case(
            "header in the data of another",
            "the local header of entry `a/data/0` contradicts",
            with(&|items| items[1].offset = Some(40)),
        ),
        case(
            "two names for one entry",
            "another name",
            with(&|items| {
                items.push(Item::new("a/data/1", b""));
                items[2].offset = Some(0);
            }),
        ),
        case(
            "overlap",
            "overlap",
            with(&|items| {
                items.push(items[1].clone());
                items[2].offset = Some(build::local_length(&items[0]));
                items[2].hidden = true;
            }),
        ),
        case(
            "bomb",
            "refused as a bomb",
            build::zip_items(&[Item::new("a/data.pkl", &pickle), deflated("a/data/0", &zeros)]),
        ),
        case("bomb of a pickle", "refused as a bomb", build::zip_items(&[deflated("a/data.pkl", &zeros)])),
        case(
            "deflated to less than announced",
            "does not unpack",
            with(&|items| {
                let mut item = deflated("a/data/0", &storage[..4]);
                item.length = 8;
                items[1] = item;
            }),
        ),
        case(
            "deflated to more than announced",
            "does not unpack",
            with(&|items| {
                let mut item = deflated("a/data/0", &zeros[..100]);
                item.length = 8;
                items[1] = item;
            }),
        ),
        case(
            "deflated data that are none",
            "does not unpack",
            with(&|items| {
                items[1] = Item { method: 8, ..Item::new("a/data/0", &[0xff; 8]) };
            }),
        ),
        case(
            "wrong checksum of packed data",
            "the checksum of entry `a/data/0` is wrong",
            with(&|items| {
                items[1] = Item { checksum: 7, ..deflated("a/data/0", &storage) };
            }),
        ),
        case(
            "64-bit sizes that are missing",
            "64-bit sizes of an entry are missing",
            with(&|items| {
                items[1].length = u32::MAX;
                items[1].packed = u32::MAX;
            }),
        ),
        case(
            "byte order",
            "neither `little` nor `big`",
            with(&|items| items.push(Item::new("a/byteorder", b"middle"))),
        ),
        case("pickle that is none", "is not a pickle operation", zip_of(b"\xff\xff", &[])),
        case("empty pickle", "the pickle is truncated", zip_of(b"", &[])),
        case("no entries", "has no `data.pkl`", [b"PK\x03\x04".as_slice(), &build::zip_items(&[])].concat()),
    ]);
}

#[test]
fn old_torch_files() {
    let pickle = state(&Tensor { shape: vec![2], strides: vec![1], elements: 2, ..Tensor::default() });
    let keys: &[u8] = b"\x80\x02]X\x01\0\0\x000a.";
    let storage = |count: i64| [&count.to_le_bytes()[..], &[0; 8]].concat();
    let whole = [legacy_of(&pickle, keys), storage(2)].concat();
    let magic = &legacy_of(&pickle, keys)[..15];
    check(vec![
        case("magic number alone", "pickle `version`", magic),
        case("version 7", "version Some(7) of torch's old format", [magic, b"\x80\x02K\x07."].concat()),
        case("version that is none", "version None", [magic, b"\x80\x02N."].concat()),
        case("no byte order", "the description of the machine", [magic, b"\x80\x02M\xe9\x03.\x80\x02}."].concat()),
        case("keys that are no list", "the list of storages", legacy_of(&pickle, b"\x80\x02N.")),
        case("keys that are no texts", "the list of storages", legacy_of(&pickle, b"\x80\x02]K\x01a.")),
        case("unknown key", "storage `9` is listed twice, or is not", legacy_of(&pickle, b"\x80\x02]X\x01\0\0\x009a.")),
        case(
            "key twice",
            "storage `0` is listed twice",
            [legacy_of(&pickle, b"\x80\x02](X\x01\0\0\x000X\x01\0\0\x000e."), storage(2), storage(2)].concat(),
        ),
        case("key that is missing", "which the file does not have", legacy_of(&pickle, b"\x80\x02].")),
        case("no storage", "and the file at", legacy_of(&pickle, keys)),
        case("cut storage", "and the file at", &whole[..whole.len() - 1]),
        case("data that go on", "the storages end at byte", [whole.as_slice(), b"x"].concat()),
        case(
            "other length",
            "holds 3 elements, and its description says 2",
            [legacy_of(&pickle, keys), storage(3)].concat(),
        ),
        case("negative length", "holds -2 elements", [legacy_of(&pickle, keys), storage(-2)].concat()),
        case(
            "storage of 2^62",
            "holds 2 elements",
            [legacy_of(&state(&Tensor { elements: 1 << 62, ..Tensor::default() }), keys), storage(2)].concat(),
        ),
        case("hostile description", "names `os.system`", legacy(b"\x80\x02cos\nsystem\n.", &pickle, keys)),
        case(
            "huge description",
            "more than the",
            legacy(&[b"\x80\x02".as_slice(), &b"]".repeat(100_000), b"."].concat(), &pickle, keys),
        ),
        case("hostile keys", "names `os.system`", legacy_of(&pickle, b"\x80\x02cos\nsystem\n.")),
    ]);
}

#[test]
fn nemo_archives() {
    let weights = zip_of(
        &state(&Tensor { shape: vec![2], strides: vec![1], elements: 2, ..Tensor::default() }),
        &[("a/data/0", &[0; 8])],
    );
    let config: (&str, &[u8]) = ("./model_config.yaml", b"name: x\n");
    let whole = tar_of(&[config, ("./model_weights.ckpt", &weights)]);
    let packed = gzip(&whole);
    let damaged = |at: usize| {
        let mut copy = packed.clone();
        copy[at] ^= 0x55;
        copy
    };
    check(vec![
        case("no weights", "no `model_weights.ckpt`", tar_of(&[config])),
        case("no configuration", "no `model_config.yaml`", tar_of(&[("model_weights.ckpt", &weights)])),
        case(
            "two weights",
            "`model_weights.ckpt` is in the archive twice",
            tar_of(&[config, ("model_weights.ckpt", &weights), ("./model_weights.ckpt", &weights)]),
        ),
        case("pieces", "pieces of several processes", tar_of(&[config, ("./mp_rank_00/model_weights.ckpt", b"x")])),
        case("distributed", "pieces of several processes", tar_of(&[config, ("model_weights/.metadata", b"x")])),
        case(
            "configuration that is no text",
            "is not UTF-8 text",
            tar_of(&[("model_config.yaml", b"\xff\xfe"), ("model_weights.ckpt", &weights)]),
        ),
        case(
            "texts that are a list",
            "`calotype.json` of the archive is no JSON object of texts",
            tar_of(&[config, ("calotype.json", b"[1]"), ("model_weights.ckpt", &weights)]),
        ),
        case(
            "texts twice",
            "`calotype.json` is in the archive twice",
            tar_of(&[("calotype.json", b"{}"), ("calotype.json", b"{}"), config, ("model_weights.ckpt", &weights)]),
        ),
        case("weights that are empty", "the file is empty", tar_of(&[config, ("model_weights.ckpt", b"")])),
        case("weights that are none", "is not a pickle operation", tar_of(&[config, ("model_weights.ckpt", b"\xff")])),
        case(
            "hostile weights",
            "names `os.system`",
            tar_of(&[config, ("model_weights.ckpt", b"\x80\x02cos\nsystem\n.")]),
        ),
        case("cut in the weights", "lies outside the file", &whole[..1700]),
        case("cut gzip", "does not unpack", &packed[..packed.len() - 9]),
        case("damaged gzip", "does not unpack", damaged(packed.len() - 6)),
        case("gzip of zeros", "refused as a bomb", gzip(&vec![0; 30 << 20])),
        case(
            "gzip of text",
            "the tar archive is damaged",
            gzip("some text that is no archive at all ".repeat(20).as_bytes()),
        ),
        case("link as weights", "a link or a sparse file", build::tar_with_link("model_weights.ckpt", "/etc/passwd")),
    ]);
}

#[test]
fn indices_of_shards() {
    let index = |map: &str| format!(r#"{{"metadata":{{"total_size":8}},"weight_map":{{{map}}}}}"#);
    let both = r#""a":"a.safetensors","b":"b.safetensors""#;
    check(vec![
        case("not JSON", "not an index of a sharded checkpoint", "{ not json"),
        case("cut", "not an index of a sharded checkpoint", &index(both)[..40]),
        case("map that is a list", "not an index of a sharded checkpoint", r#"{"weight_map":[1,2]}"#),
        case("no map", "no `weight_map`", "{}"),
        case(
            "path upwards",
            "`../b.safetensors` is not a plain file name",
            index(r#""a":"a.safetensors","b":"../b.safetensors""#),
        ),
        case("absolute path", "is not a plain file name", index(r#""a":"/etc/passwd""#)),
        case("path of Windows", "is not a plain file name", index(r#""a":"C:\\x""#)),
        case("folder itself", "is not a plain file name", index(r#""a":"..""#)),
        case("missing shard", "shard `c.safetensors` is missing", index(r#""a":"a.safetensors","b":"c.safetensors""#)),
        case(
            "tensor elsewhere",
            "`a` is in `a.safetensors` as well",
            index(r#""a":"b.safetensors","b":"a.safetensors""#),
        ),
        case(
            "tensor nowhere",
            "`c` is in `a.safetensors`, and it is not there",
            index(&format!("{both},\"c\":\"a.safetensors\"")),
        ),
        case(
            "tensor unlisted",
            "`b` of shard `b.safetensors` is not in the index",
            index(r#""a":"a.safetensors","c":"b.safetensors""#),
        ),
        case("tensor twice", "`a` is in the index twice", index(&format!("{both},\"a\":\"b.safetensors\""))),
        case("other size", "announces 9 bytes", index(both).replace("8", "9")),
        case("negative size", "is not a number of bytes", index(both).replace("8", "-8")),
        case(
            "index as its own shard",
            "neither a safetensors file nor a torch checkpoint",
            index(r#""a":"malformed""#),
        ),
    ]);
}
