//! Tests of logs, rules and packages.

// The example `cases` uses the rest.
#[allow(dead_code)]
mod cases;
mod golden;
mod packages;
mod writing;
