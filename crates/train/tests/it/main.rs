//! Training from the outside: every task of the table, precaching, and what training reads of it.

mod adapters;
mod precache;
mod raw;
mod steps;
mod tasks;
