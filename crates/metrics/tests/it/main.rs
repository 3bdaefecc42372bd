//! The tests of the public interface.

mod golden;
