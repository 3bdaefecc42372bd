//! The description of a system.

use super::Judge;
use crate::finding::{Finding, Severity};
use crate::inference::rounds::{InferenceDivision, SystemType};
use crate::inference::system::{Availability, FIELDS};
use crate::value::Value;
use std::path::Path;

/// Fields that say how a system is reached over a network.
const NETWORK_FIELDS: [&str; 13] = [
    IS_NETWORK,
    "network_type",
    "network_media",
    "network_rate",
    "nic_loadgen",
    "number_nic_loadgen",
    "net_software_stack_loadgen",
    "network_protocol",
    "number_connections",
    "nic_sut",
    "number_nic_sut",
    "net_software_stack_sut",
    "network_topology",
];

/// Whether a system is reached over a network, as a text.
const IS_NETWORK: &str = "is_network";

/// Whether a description says that its system is reached over a network; `None` where a checker cannot tell, for it takes only text.
pub(super) fn is_network(system: &Value) -> Option<bool> {
    match system.get(IS_NETWORK) {
        None | Some(Value::Null) => Some(false),
        Some(Value::Text(text)) => Some(text.eq_ignore_ascii_case("true")),
        Some(_) => None,
    }
}

/// The kind of system that a description names.
pub(super) fn system_type(system: &Value) -> Option<SystemType> {
    system.get("system_type").and_then(Value::text).and_then(|name| name.parse().ok())
}

impl Judge<'_> {
    /// Judges a system's description, and tells whether it stands.
    pub(super) fn system(&mut self, path: &Path, system: &Value, division: InferenceDivision, submitter: &str) -> bool {
        let before = self.refusals();
        let package = self.round.by_package();
        // The checkers up to v5.1 break off where they want a text and find none.
        let severity = if package { Severity::Error } else { Severity::Fatal };
        let lacks = |judge: &mut Self, name: &'static str| {
            let problem = format!("`{name}` is {}, where a text is needed", told(system.get(name)));
            judge.found.report.add(Finding::new(severity, path, problem, "write it as a text").of(name));
        };
        match system.get("status").and_then(Value::text) {
            None => lacks(self, "status"),
            Some(status) if status.to_lowercase().parse::<Availability>().is_err() => {
                self.error(path, format!("`status` is `{status}`"), "write available, preview or rdi");
            }
            Some(_) => {}
        }
        if system_type(system).is_none() {
            let problem = format!("`system_type` is {}", told(system.get("system_type")));
            self.error(path, problem, "write datacenter, edge, or datacenter,edge");
        }
        // Up to v5.1, nothing more is read of a description that fails so far.
        if !package && self.refusals() > before {
            return false;
        }
        self.network(path, system, division, severity);
        self.fields(path, system);
        self.named(path, system, "submitter", submitter, severity, false);
        self.named(path, system, "division", division.name(), severity, !package);
        self.refusals() == before
    }

    fn network(&mut self, path: &Path, system: &Value, division: InferenceDivision, severity: Severity) {
        let wanted = match division {
            InferenceDivision::Closed => Some(false),
            InferenceDivision::Network => Some(true),
            InferenceDivision::Open => None,
        };
        match (is_network(system), wanted) {
            (None, _) => {
                let problem = format!("`{IS_NETWORK}` is {}, where a text is needed", told(system.get(IS_NETWORK)));
                self.add(severity, path, problem, "write \"true\" or \"false\", in quotes");
            }
            (Some(found), Some(wanted)) if found != wanted => {
                self.error(
                    path,
                    format!("`{IS_NETWORK}` does not suit the {division} division"),
                    format!("write \"{wanted}\""),
                );
            }
            _ => {}
        }
    }

    fn fields(&mut self, path: &Path, system: &Value) {
        let mut needed: Vec<(&str, bool)> = FIELDS.to_vec();
        // Since v6.0, any text counts, also "false".
        let over_network = match self.round.by_package() {
            true => system.get(IS_NETWORK).is_some_and(Value::is_true),
            false => is_network(system) == Some(true),
        };
        if over_network {
            needed.extend(NETWORK_FIELDS.map(|name| (name, false)));
        }
        let missing: Vec<_> =
            needed.iter().filter(|(name, _)| system.get(name).is_none()).map(|(name, _)| *name).collect();
        if !missing.is_empty() {
            self.error(
                path,
                format!("it has no {}", missing.join(", ")),
                "add them, \"N/A\" where there is nothing to say",
            );
        }
        let is_empty = |name: &str| system.get(name).is_some_and(|value| !value.is_true());
        let empty: Vec<_> =
            needed.iter().filter(|(name, meant)| *meant && is_empty(name)).map(|(name, _)| *name).collect();
        if !empty.is_empty() {
            let remedy = "say something of each; numbers as texts, for the checkers take 0 for empty and \"0\" not";
            self.error(path, format!("{} say nothing", empty.join(", ")), remedy);
        }
    }

    /// A field that has to agree with the folders' names.
    fn named(
        &mut self,
        path: &Path,
        system: &Value,
        name: &'static str,
        folder: &str,
        severity: Severity,
        exact: bool,
    ) {
        match system.get(name).and_then(Value::text) {
            Some(text) if text == folder || (!exact && text.to_lowercase() == folder.to_lowercase()) => {}
            Some(text) => {
                self.error(
                    path,
                    format!("`{name}` is `{text}`, and the folder is named {folder}"),
                    "let both be the same",
                );
            }
            // Compared as it is, what is no text is merely another value.
            None if exact => {
                self.error(path, format!("`{name}` is {}", told(system.get(name))), format!("write `{folder}`"))
            }
            None => {
                let problem = format!("`{name}` is {}, where a text is needed", told(system.get(name)));
                self.found.report.add(Finding::new(severity, path, problem, format!("write \"{folder}\"")).of(name));
            }
        }
    }
}

/// A value in words.
pub(super) fn told(value: Option<&Value>) -> String {
    value.map_or("missing".to_owned(), ToString::to_string)
}
