//! Files by address: single ones, lists, and those that a list of checksums names.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use url::Url;

use super::FetchError;
use super::digest::{Digest, Sum, parse_sums, safe_path};
use super::download::{Item, Origin, Place};
use super::http::{Client, plain_hint};
use crate::{Error, Result};

/// Files that one pattern with braces may stand for.
const MOST_EXPANDED: usize = 1_000_000;

/// A file at an address, which goes to `out` under `path` or its own name.
///
/// # Errors
/// [`FetchError::BadAddress`] for another scheme, a path that is not there, or no usable name of a file.
pub(super) fn item(written: &str, path: Option<&str>, out: &Path) -> Result<Item> {
    let bad = |detail: &str| FetchError::BadAddress { url: written.to_owned(), detail: detail.to_owned() };
    let origin = origin(written)?;
    let own = match &origin {
        Origin::Web(url) => {
            url.path_segments().and_then(|mut parts| parts.next_back()).map(decoded).unwrap_or_default()
        }
        Origin::File(path) => path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
    };
    let name = path.map_or(own, str::to_owned);
    let path = safe_path(&name).ok_or_else(|| bad("it does not end in a file's name that can be used here"))?;
    let (target, place) = (out.join(path), Place::Folder);
    Ok(Item { name, origin, target, place, size: None, digests: Vec::new(), promised: Vec::new() })
}

/// An address or a path of this machine.
fn origin(written: &str) -> Result<Origin> {
    let bad = |detail: &str| FetchError::BadAddress { url: written.to_owned(), detail: detail.to_owned() };
    match Url::parse(written) {
        Ok(url) if matches!(url.scheme(), "http" | "https") => Ok(Origin::Web(url)),
        Ok(url) if url.scheme() == "file" => match url.to_file_path() {
            Ok(path) => Ok(Origin::File(path)),
            Err(()) => Err(bad("it is no path of this machine; write file:///path").into()),
        },
        Ok(url) => Err(bad(&format!("{} is not understood; use http, https or file", url.scheme())).into()),
        Err(_) if Path::new(written).exists() => Ok(Origin::File(PathBuf::from(written))),
        Err(error) => Err(bad(&format!("it is no address: {error}")).into()),
    }
}

/// A segment of an address without percent signs, where it is text then.
fn decoded(segment: &str) -> String {
    let bytes = segment.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = bytes.get(at + 1..at + 3).and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()).filter(|_| bytes[at] == b'%') {
            Some(byte) => {
                plain.push(byte);
                at += 3;
            }
            None => {
                plain.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8(plain).unwrap_or_else(|_| segment.to_owned())
}

/// `part-{000..003}.tar` as four names; several braces give all combinations.
///
/// # Errors
/// [`FetchError::BadAddress`] for more files than anybody has.
pub(super) fn expand(text: &str) -> Result<Vec<String>> {
    let mut all = vec![String::new()];
    let mut rest = text;
    while let Some((range, first, last, digits)) = braces(rest) {
        // Counted before anything is made.
        if (last - first).saturating_add(1).saturating_mul(all.len() as u64) > MOST_EXPANDED as u64 {
            let detail = format!("it stands for more than {MOST_EXPANDED} files");
            return Err(FetchError::BadAddress { url: text.to_owned(), detail }.into());
        }
        let start = &rest[..range.start];
        let numbers = |begun: &String| {
            let begun = begun.clone();
            (first..=last).map(move |number| format!("{begun}{start}{number:0digits$}"))
        };
        all = all.iter().flat_map(numbers).collect();
        rest = &rest[range.end..];
    }
    all.iter_mut().for_each(|name| name.push_str(rest));
    Ok(all)
}

/// The first `{FIRST..LAST}`: where it stands, its numbers, and the digits they are written with.
fn braces(text: &str) -> Option<(std::ops::Range<usize>, u64, u64, usize)> {
    let mut from = 0;
    loop {
        let open = from + text[from..].find('{')?;
        let close = open + text[open..].find('}')?;
        let numbers = text[open + 1..close].split_once("..").and_then(|(first, last)| {
            let digits = if first.starts_with('0') { first.len() } else { 1 };
            Some((first.parse::<u64>().ok()?, last.parse::<u64>().ok()?, digits))
        });
        match numbers {
            Some((first, last, digits)) if first <= last && digits <= 20 => {
                return Some((open..close + 1, first, last, digits));
            }
            _ => from = open + 1,
        }
    }
}

/// The files of a list: a line holds an address, and after a space the path to write if it is not the address' name.
///
/// # Errors
/// [`FetchError::BadList`] for a malformed list, [`Error::Io`] if it cannot be read.
pub(super) fn read_list(list: &Path, out: &Path) -> Result<Vec<Item>> {
    let text = calotype_core::read_text(list).map_err(Error::io("read", list))?;
    let mut items: Vec<Item> = Vec::new();
    let mut lines = HashMap::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let bad = |detail: String| FetchError::BadList { list: list.display().to_string(), line: number + 1, detail };
        let (address, path) = match line.split_once(char::is_whitespace) {
            Some((address, path)) => (address, Some(path.trim())),
            None => (line, None),
        };
        for address in expand(address).map_err(|error| bad(error.to_string()))? {
            let item = item(&address, path, out).map_err(|error| bad(error.to_string()))?;
            if let Some(earlier) = lines.insert(item.target.clone(), number + 1) {
                return Err(bad(format!("`{}` is written by line {earlier}, too", item.name)).into());
            }
            items.push(item);
        }
    }
    match items.is_empty() {
        true => {
            Err(FetchError::BadList { list: list.display().to_string(), line: 1, detail: "it is empty".to_owned() }
                .into())
        }
        false => Ok(items),
    }
}

/// Reads a list of checksums from a file or an address.
///
/// # Errors
/// [`FetchError::BadSums`], and those of reading it.
pub(super) async fn read_sums(client: &Client, written: &str) -> Result<Vec<Sum>> {
    let content = match origin(written)? {
        Origin::Web(url) => client.text(&url, &plain_hint).await?.0,
        Origin::File(path) => calotype_core::read_input(&path).map_err(Error::io("read", &path))?,
    };
    let list = written.to_owned();
    Ok(parse_sums(&content).map_err(|source| FetchError::BadSums { list, source })?)
}

/// The files that a list of checksums names, below the address `base`.
///
/// # Errors
/// [`FetchError::BadAddress`], [`FetchError::SumsDiffer`] if the list names none.
pub(super) fn listed(base: &str, list: &str, sums: &[Sum], out: &Path) -> Result<Vec<Item>> {
    let differ = |detail: String| FetchError::SumsDiffer { list: list.to_owned(), detail };
    let base = format!("{}/", base.trim_end_matches('/'));
    let mut places: HashMap<&str, usize> = HashMap::new();
    let mut items: Vec<Item> = Vec::new();
    for sum in sums {
        if sum.path.is_empty() {
            return Err(differ("it holds a checksum without a file's name".to_owned()).into());
        }
        // A list may give several checksums of one file, each of another kind.
        if let Some(place) = places.get(sum.path.as_str()) {
            items[*place].digests.push(sum.digest.clone());
            continue;
        }
        let mut item = match Url::parse(&base) {
            Ok(mut url) if url.scheme() != "file" => {
                if let Ok(mut parts) = url.path_segments_mut() {
                    parts.pop_if_empty().extend(sum.path.split('/'));
                }
                item(url.as_str(), Some(&sum.path), out)?
            }
            _ => item(&format!("{base}{}", sum.path), Some(&sum.path), out)?,
        };
        item.digests.push(sum.digest.clone());
        places.insert(&sum.path, items.len());
        items.push(item);
    }
    match items.is_empty() {
        true => Err(differ("it names no file".to_owned()).into()),
        false => Ok(items),
    }
}

/// Gives files the checksums that a list has for them, by path or else by name.
///
/// # Errors
/// [`FetchError::SumsDiffer`] for files without a checksum.
pub(super) fn apply_sums(items: &mut [Item], list: &str, sums: &[Sum]) -> Result<()> {
    let single = items.len() == 1;
    let last = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
    let mut by_name: HashMap<String, Vec<&Digest>> = HashMap::new();
    for sum in sums {
        by_name.entry(sum.path.clone()).or_default().push(&sum.digest);
        if sum.path.contains('/') {
            by_name.entry(last(&sum.path)).or_default().push(&sum.digest);
        }
    }
    for item in items {
        let found = by_name.get(&item.name).or_else(|| by_name.get(&last(&item.name)));
        let found = found.or_else(|| by_name.get("").filter(|_| single));
        let Some(found) = found else {
            let detail = format!("there is none of {}", item.name);
            return Err(FetchError::SumsDiffer { list: list.to_owned(), detail }.into());
        };
        item.digests.extend(found.iter().map(|digest| (*digest).clone()));
        item.digests.dedup();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn braces_stand_for_numbers() {
        assert_eq!(expand("a-{08..11}.tar").unwrap(), ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]);
        assert_eq!(expand("{0..1}{2..3}").unwrap(), ["02", "03", "12", "13"]);
        for plain in ["a.tar", "{a,b}", "{3..1}", "{..3}", "{1..}", "{{", "}{"] {
            assert_eq!(expand(plain).unwrap(), [plain]);
        }
        assert_eq!(expand("{x}{1..2}").unwrap(), ["{x}1", "{x}2"]);
        for endless in ["{0..99999999999}", "{0..18446744073709551615}", "{0..9999}{0..9999}{0..9999}"] {
            assert!(expand(endless).unwrap_err().to_string().contains("more than 1000000 files"));
        }
    }

    #[test]
    fn addresses_name_their_files() {
        let out = Path::new("out");
        for (address, name) in [
            ("https://example.com/a/b.tar?download=1", "b.tar"),
            ("https://example.com/a%20b%2B.tar", "a b+.tar"),
            ("https://example.com/100%", "100%"),
            ("file:///etc/hostname", "hostname"),
        ] {
            assert_eq!(item(address, None, out).unwrap().name, name);
        }
        for (address, message) in [
            ("https://example.com/", "does not end in a file's name"),
            ("https://example.com/a%2Fb/..%2F..", "does not end in a file's name"),
            ("ftp://example.com/a", "ftp is not understood"),
            ("nowhere.tar", "it is no address"),
            ("s3://bucket/a", "s3 is not understood"),
        ] {
            let error = item(address, None, out).unwrap_err();
            assert!(error.is_usage() && error.to_string().contains(message), "{address}: {error}");
        }
    }

    #[test]
    fn malformed_lists_are_named_with_their_line() {
        let folder = tempfile::tempdir().unwrap();
        let list = folder.path().join("list.txt");
        for (text, message) in [
            ("", "line 1: it is empty"),
            ("# only this\n\n", "it is empty"),
            ("http://a/x\nnonsense", "line 2: `nonsense`"),
            ("http://a/x\nhttp://b/x", "line 2: `x` is written by line 1, too"),
            ("http://a/{0..1} same", "line 1: `same` is written by line 1, too"),
            ("http://a/x ../y", "line 1: `http://a/x`: it does not end"),
            ("http://a/x /etc/passwd", "it does not end"),
            ("gopher://a/x", "gopher is not understood"),
        ] {
            fs::write(&list, text).unwrap();
            let error = read_list(&list, folder.path()).unwrap_err().to_string();
            assert!(error.contains(message), "{text}: {error}");
        }
        fs::write(&list, "http://a/{0..1}.tar\nhttp://a/x data/y\r\n").unwrap();
        let names: Vec<_> = read_list(&list, folder.path()).unwrap().into_iter().map(|item| item.name).collect();
        assert_eq!(names, ["0.tar", "1.tar", "data/y"]);
    }

    #[test]
    fn checksums_find_their_files() {
        let (a, b) = ("d41d8cd98f00b204e9800998ecf8427e", "da39a3ee5e6b4b0d3255bfef95601890afd80709");
        let out = Path::new("out");
        let sums = parse_sums(format!("{a}  data/x.tar\n{b}  y.tar").as_bytes()).unwrap();
        let mut items = vec![item("http://h/x.tar", None, out).unwrap(), item("http://h/y.tar", None, out).unwrap()];
        apply_sums(&mut items, "sums", &sums).unwrap();
        assert_eq!((items[0].digests[0].hex.as_str(), items[1].digests[0].hex.as_str()), (a, b));
        let mut other = vec![item("http://h/z.tar", None, out).unwrap()];
        assert!(apply_sums(&mut other, "sums", &sums).unwrap_err().to_string().contains("there is none of z.tar"));
        let alone = parse_sums(a.as_bytes()).unwrap();
        apply_sums(&mut other, "sums", &alone).unwrap();
        let both = parse_sums(format!("{a}  x\n{b}  x\n{a}  data/a b").as_bytes()).unwrap();
        let items = listed("http://h/d", "sums", &both, out).unwrap();
        let found: Vec<_> = items.iter().map(|item| (item.origin.to_string(), item.digests.len())).collect();
        assert_eq!(found, [("http://h/d/x".to_owned(), 2), ("http://h/d/data/a%20b".to_owned(), 1)]);
        assert!(listed("http://h/d/", "sums", &alone, out).is_err());
        assert!(listed("http://h/d/", "sums", &[], out).is_err());
    }
}
