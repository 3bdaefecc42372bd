#![no_main]
//! Parquet files with embedded images: opened, and every row read.

use calotype_data::Source;
use calotype_data::source::{ParquetSource, SourceOptions};
use calotype_fuzz::input_file;
use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: {
        // The reader of parquet files may panic on damaged ones; what is tested is that this is contained.
        std::panic::set_hook(Box::new(|_| {}));
    },
    |content: &[u8]| {
        let path = input_file("x.parquet", content);
        let Ok(table) = ParquetSource::open(&path, &SourceOptions::default()) else { return };
        // A footer may claim any number of rows.
        for i in 0..table.len().min(1000) {
            let _ = table.get(i);
        }
    }
);
