//! The tests of the public interface.

mod golden;
mod logistic;
mod malformed;
mod peers;
mod support;
