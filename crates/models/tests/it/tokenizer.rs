//! The tokenizer against open_clip's and transformers' (`tests/make_tokenizer_golden.py`).

use calotype_models::tokenizer::{Cleaning, ClipTokenizer, Padding, TokenizerError, TokenizerOptions};
use std::path::{Path, PathBuf};

const LENGTH: usize = 1000;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tokenizer").join(name)
}

fn rows<T: serde::de::DeserializeOwned>(name: &str) -> Vec<T> {
    let text = std::fs::read_to_string(golden(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn text_ids(tokenizer: &ClipTokenizer, prompt: &str) -> Vec<i32> {
    let tokens = tokenizer.encode(prompt);
    assert_eq!((tokens.truncated, tokens.lost.as_str(), tokens.ids.len()), (0, "", LENGTH));
    assert!(tokens.ids[tokens.end + 1..].iter().all(|&id| id == tokenizer.padding_id()));
    tokens.ids[1..tokens.end].to_vec()
}

#[test]
fn tokens_equal_the_peers() {
    type Ids = Option<Vec<i32>>;
    let tokenizer = |options| ClipTokenizer::with_options(LENGTH, options);
    let open_clip = tokenizer(TokenizerOptions::OPEN_CLIP);
    let transformers = tokenizer(TokenizerOptions::TRANSFORMERS);
    let exclamation = tokenizer(TokenizerOptions::TRANSFORMERS_EXCLAMATION);
    let rows: Vec<(String, Vec<i32>, Ids, Ids)> = rows("prompts.jsonl");
    assert!(rows.len() > 250);
    let mut wrong = Vec::new();
    for (prompt, first, second, third) in rows {
        let second = second.unwrap_or_else(|| first.clone());
        let third = third.unwrap_or_else(|| second.clone());
        let cases =
            [("open_clip", &open_clip, first), ("transformers", &transformers, second), ("!", &exclamation, third)];
        for (name, tokenizer, expected) in cases {
            let got = text_ids(tokenizer, &prompt);
            if got != expected {
                wrong.push(format!("{name}: {prompt:?}\n  got      {got:?}\n  expected {expected:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn plain_prompts_are_the_same_with_and_without_cleaning() {
    let (bare, cleaned) = (ClipTokenizer::new(77), ClipTokenizer::with_options(77, TokenizerOptions::OPEN_CLIP));
    for prompt in ["A photo of a cat's tail", "flag: Åland Islands", "  two\n lines ", "keycap: #, 10!"] {
        assert_eq!(bare.encode(prompt), cleaned.encode(prompt));
    }
}

#[test]
fn a_vocabulary_of_files() {
    let (vocab, merges) = (golden("small/vocab.json"), golden("small/merges.txt"));
    let tokenizer = ClipTokenizer::from_files(&vocab, &merges, LENGTH, TokenizerOptions::TRANSFORMERS).unwrap();
    for (prompt, expected) in rows::<(String, Vec<i32>)>("small.jsonl") {
        let tokens = tokenizer.encode(&prompt);
        assert_eq!(tokens.ids[..=tokens.end], expected, "{prompt}");
    }
}

#[test]
fn a_folder_says_how_it_pads() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["vocab.json", "merges.txt"] {
        std::fs::copy(golden("small").join(file), folder.path().join(file)).unwrap();
    }
    let read = || ClipTokenizer::from_folder(folder.path());
    let write = |file: &str, text: &str| std::fs::write(folder.path().join(file), text).unwrap();
    let expect = |padding, length| {
        let tokenizer = read().unwrap();
        assert_eq!(tokenizer.options(), TokenizerOptions { padding, cleaning: Cleaning::Transformers });
        assert_eq!(tokenizer.context_length(), length);
    };
    expect(Padding::EndOfText, 77);
    write("tokenizer_config.json", r#"{"pad_token": "<|endoftext|>", "model_max_length": 20}"#);
    expect(Padding::EndOfText, 20);
    write("special_tokens_map.json", r#"{"pad_token": "!"}"#);
    expect(Padding::Exclamation, 20);
    write(
        "tokenizer_config.json",
        r#"{"pad_token": {"content": "<|endoftext|>"}, "added_tokens_decoder": {}, "model_max_length": 1e30}"#,
    );
    expect(Padding::EndOfText, 77);
    write("tokenizer_config.json", r#"{"pad_token": "x", "added_tokens_decoder": {}}"#);
    assert!(matches!(read(), Err(TokenizerError::UnknownPadding { token, .. }) if token == "x"));
    write("tokenizer_config.json", r#"{"model_max_length": 2}"#);
    assert!(matches!(read(), Err(TokenizerError::ShortRows { length: 2, .. })));
    write("tokenizer_config.json", "{");
    assert!(matches!(read(), Err(TokenizerError::Json { .. })));
    std::fs::remove_file(folder.path().join("tokenizer_config.json")).unwrap();
    write("merges.txt", "#version: 0.2\na b\nc\n");
    assert!(matches!(read(), Err(TokenizerError::BadMerge { line: 2 | 3, .. })));
    write("vocab.json", "{}");
    assert!(matches!(read(), Err(TokenizerError::MissingToken { token, .. }) if token == "<|startoftext|>"));
    std::fs::remove_file(folder.path().join("vocab.json")).unwrap();
    assert!(matches!(read(), Err(TokenizerError::NoVocabulary { .. })));
}

/// What transformers 5 saves, and the same in the files of its older versions.
#[test]
fn added_tokens_are_found_as_transformers_finds_them() {
    let folder = tempfile::tempdir().unwrap();
    let write = |file: &str, text: &str| std::fs::write(folder.path().join(file), text).unwrap();
    let check = |tokenizer: &ClipTokenizer| {
        for (prompt, expected) in rows::<(String, Vec<i32>)>("added.jsonl") {
            let tokens = tokenizer.encode(&prompt);
            assert_eq!(tokens.ids[..=tokens.end], expected, "{prompt}");
        }
    };
    check(&ClipTokenizer::from_folder(&golden("added")).unwrap());
    // The flags that older versions kept beside the vocabulary.
    let text = std::fs::read_to_string(golden("added/tokenizer.json")).unwrap();
    let file: serde_json::Value = serde_json::from_str(&text).unwrap();
    let listed = file["added_tokens"].as_array().unwrap().iter().map(|token| (token["id"].to_string(), token.clone()));
    let listed: serde_json::Map<_, _> = listed.collect();
    for name in ["vocab.json", "merges.txt"] {
        std::fs::copy(golden("small").join(name), folder.path().join(name)).unwrap();
    }
    write("tokenizer_config.json", &serde_json::json!({ "added_tokens_decoder": listed }).to_string());
    check(&ClipTokenizer::from_folder(folder.path()).unwrap());
    // White space is made single before added tokens are looked for.
    let ids = |prompt: &str| ClipTokenizer::from_folder(&golden("added")).unwrap().encode(prompt).ids;
    assert_eq!(ids("two words"), ids("two \t words"));
    // The oldest list says no more than texts and ids.
    std::fs::remove_file(folder.path().join("tokenizer_config.json")).unwrap();
    write("added_tokens.json", r#"{"<cat-toy>": 500, "the cat": 501}"#);
    let tokenizer = ClipTokenizer::from_folder(folder.path()).unwrap();
    let tokens = tokenizer.encode("a<CAT-TOY>the cat");
    assert_eq!(tokens.ids[2..tokens.end], [500, 501]);
    for (text, told) in [
        (r#"{"": 500}"#, "is empty"),
        (r#"{"x": -1}"#, "no id"),
        (r#"{"x": "y"}"#, "no id"),
        (r#"{"x": 99999999999}"#, "no id"),
        ("[", "not the JSON"),
    ] {
        write("added_tokens.json", text);
        let error = ClipTokenizer::from_folder(folder.path()).unwrap_err().to_string();
        assert!(error.contains(told) && error.contains("added_tokens.json"), "{text}: {error}");
    }
}

/// Words of several ids: found anywhere, never cut, never twice.
#[test]
fn learned_words_are_added() {
    let mut tokenizer = ClipTokenizer::with_options(8, TokenizerOptions::TRANSFORMERS);
    tokenizer.add_word("My-Style", vec![49408, 49409, 49410]).unwrap();
    let tokens = tokenizer.encode("a my-style cat");
    assert_eq!(tokens.ids, [49406, 320, 49408, 49409, 49410, 2368, 49407, 49407]);
    let rows = tokenizer.chunks("a a a a MY-STYLE cat");
    assert_eq!(rows[0].ids[1..rows[0].end], [320; 4]);
    assert_eq!(rows[1].ids[1..rows[1].end], [49408, 49409, 49410, 2368]);
    let error = tokenizer.add_word("my-style", vec![1]).unwrap_err().to_string();
    assert!(error.contains("`my-style`"), "{error}");
    assert!(matches!(tokenizer.add_word("<|endoftext|>", vec![1]), Err(TokenizerError::WordTaken { .. })));
}

#[test]
fn tokenizers_that_are_not_clips_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(golden("added/tokenizer.json")).unwrap();
    let changed = |path: &[&str], value: serde_json::Value| {
        let mut file: serde_json::Value = serde_json::from_str(&text).unwrap();
        let place = path.iter().fold(&mut file, |place, name| &mut place[*name]);
        *place = value;
        std::fs::write(folder.path().join("tokenizer.json"), file.to_string()).unwrap();
        ClipTokenizer::from_folder(folder.path()).unwrap_err().to_string()
    };
    let step = |name: &str| serde_json::json!({ "type": name });
    for (path, value, told) in [
        (&["model", "type"][..], "Unigram".into(), "its model is Unigram"),
        (&["model", "type"], "WordPiece".into(), "its model is WordPiece"),
        (&["model", "end_of_word_suffix"], serde_json::Value::Null, "null"),
        (&["model", "vocab"], 3.into(), "not the JSON"),
        (&["model", "merges"], serde_json::json!([["a"]]), "not the JSON"),
        (&["normalizer"], serde_json::Value::Null, "normalizer has the step none"),
        (&["normalizer"], step("NFC"), "lacks the step Lowercase"),
        (&["normalizer"], step("BertNormalizer"), "BertNormalizer"),
        (&["pre_tokenizer"], step("Whitespace"), "Whitespace"),
        (&["added_tokens"], serde_json::json!([{ "id": 1 }]), "has no text"),
        (&["added_tokens"], serde_json::json!([{ "content": "x" }]), "has no id"),
    ] {
        let error = changed(path, value);
        assert!(error.contains(told) && error.contains("tokenizer.json"), "{path:?}: {error}");
    }
}
