//! The stages as a process sees them: real files, a real server, real kills.

mod support;
