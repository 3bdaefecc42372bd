//! Integration tests: features and figures against the packages that publish them, states that are saved and merged, pictures
//! with all their faults, vision models judged.

mod faults;
mod networks;
mod published;
mod slices;
mod support;
mod sweep;
mod vision;
