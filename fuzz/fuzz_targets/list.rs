#![no_main]
//! Lists of images: the first byte chooses txt, csv, tsv or jsonl, the rest is the list.

use calotype_prepare::download::list::{Holds, ListFormat, Wanted, read_text_list};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|content: &[u8]| {
    let Some((first, list)) = content.split_first() else { return };
    let format = [ListFormat::Txt, ListFormat::Csv, ListFormat::Tsv, ListFormat::Jsonl][usize::from(first % 4)];
    let one = |name: &str, holds| Wanted { column: name.to_owned(), name: name.to_owned(), holds };
    let mut wanted = vec![one("url", Holds::Text)];
    if format != ListFormat::Txt {
        wanted.extend([one("a", Holds::Anything), one("b", Holds::Caption)]);
    }
    if let Ok(batch) = read_text_list("list", list, format, &wanted) {
        assert_eq!(batch.num_columns(), wanted.len());
        assert!(batch.num_rows() <= list.len());
    }
});
