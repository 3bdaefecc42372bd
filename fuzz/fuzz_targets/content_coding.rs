#![no_main]
//! Bodies in content codings: the first byte chooses them, the rest is the body.

use calotype_prepare::download::coding::decoded;
use libfuzzer_sys::fuzz_target;

const LONGEST: u64 = 1 << 20;

fuzz_target!(|content: &[u8]| {
    let Some((first, body)) = content.split_first() else { return };
    let names = ["gzip", "deflate", "br", "odd"];
    let codings: Vec<String> =
        [first % 4, first / 4 % 5].iter().filter_map(|n| names.get(usize::from(*n))).map(|name| (*name).to_owned()).collect();
    if let Ok(out) = decoded(body.to_vec(), &codings, LONGEST) {
        assert!(out.len() as u64 <= LONGEST);
    }
});
