#![no_main]
//! Metadata tables of images, as JSON lines and as CSV.

use std::path::Path;

use bytes::Bytes;
use calotype_data::source::metadata::{METADATA_FILES, Table};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|content: &[u8]| {
    for name in METADATA_FILES {
        let Ok(table) = Table::parse(Path::new(name), Bytes::copy_from_slice(content), false) else { continue };
        for row in 0..table.len() {
            table.row(row).expect("rows are checked when a table is opened");
        }
        assert!(table.row(table.len()).is_err());
    }
});
