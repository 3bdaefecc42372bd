//! Integration tests: features and figures against the packages that publish them, states that are saved and merged, pictures
//! with all their faults, vision models judged.

mod faults;
#[path = "../../../models/tests/it/formula.rs"]
mod formula;
mod networks;
mod published;
mod slices;
mod state;
mod support;
mod sweep;
mod sweep_state;
mod vision;
