//! The crate's tests, in one program.

mod conf;
mod responder;
