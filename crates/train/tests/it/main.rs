//! Training from the outside: every task of the table, precaching, and what training reads of it.

mod adapters;
mod contrastive;
mod layouts;
mod precache;
mod raw;
mod steps;
mod tasks;
mod vit_steps;
