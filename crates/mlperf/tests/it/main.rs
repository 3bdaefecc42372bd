//! Tests of logs, rules and packages.

// The examples `cases` and `submissions` use the rest.
#[allow(dead_code)]
mod cases;
mod golden;
mod inference;
mod packages;
#[allow(dead_code)]
mod submissions;
mod writing;
