#![no_main]
//! Variables of launchers: lines `NAME=VALUE`.

use calotype_collective::Launch;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|content: &str| {
    let find = |name: &str| {
        let mut pairs = content.lines().filter_map(|line| line.split_once('='));
        pairs.find(|(known, _)| *known == name).map(|(_, value)| value.to_owned())
    };
    if let Ok(launch) = Launch::from_variables(&find) {
        assert!(launch.rank < launch.world && launch.local_rank < launch.local_size);
        assert!(launch.local_size <= launch.world);
    }
});
