//! The tests of the public interface, as one program. Its allocator counts by thread, and every test is a thread.

mod counting;
mod golden;
mod lora;
mod malformed;
