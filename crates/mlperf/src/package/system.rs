//! Descriptions of systems.

use crate::finding::{Finding, Report, Severity};
use crate::log::ReadError;
use crate::ruleset::{Division, SubmissionStatus};
use crate::value::Value;
use calotype_core::{read_input, system};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// Values that `status` may have.
const AVAILABILITY: [&str; 4] =
    ["Available on-premise", "Available cloud", "Research, Development, or Internal (RDI)", "Preview"];

/// Fields that the official checker joins as texts, and breaks off where one is a number.
const TEXTS: [&str; 7] = [
    "submitter",
    "system_name",
    "host_processor_model_name",
    "host_processor_core_count",
    "accelerator_model_name",
    "accelerators_per_node",
    "framework",
];

/// Declares the description's fields, all of them texts but `other_software_stack`.
macro_rules! description {
    ($($(#[$doc:meta])* $field:ident = $name:literal,)+) => {
        /// A system as a submission describes it. All fields are needed; those of nothing that is there may be empty.
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct SystemDescription {
            $($(#[$doc])* #[serde(rename = $name, default)] pub $field: String,)+
            /// Names and versions of further software.
            #[serde(default)]
            pub other_software_stack: BTreeMap<String, String>,
        }

        /// Names of all fields.
        const FIELDS: &[&str] = &[$($name,)+ "other_software_stack"];
    };
}

description! {
    /// The submitting organisation.
    submitter = "submitter",
    /// `closed` or `open`.
    division = "division",
    /// How the system can be had, in the rules' words.
    status = "status",
    /// The system's name, which is also that of its file and folder.
    system_name = "system_name",
    /// How many nodes.
    number_of_nodes = "number_of_nodes",
    /// Processors of a node.
    host_processors_per_node = "host_processors_per_node",
    /// The processor's name.
    host_processor_model_name = "host_processor_model_name",
    /// Cores of a processor.
    host_processor_core_count = "host_processor_core_count",
    /// Hardware threads of a processor.
    host_processor_vcpu_count = "host_processor_vcpu_count",
    /// Its clock.
    host_processor_frequency = "host_processor_frequency",
    /// Its caches.
    host_processor_caches = "host_processor_caches",
    /// What connects the processors.
    host_processor_interconnect = "host_processor_interconnect",
    /// Memory of a node.
    host_memory_capacity = "host_memory_capacity",
    /// Kind of storage.
    host_storage_type = "host_storage_type",
    /// Its size.
    host_storage_capacity = "host_storage_capacity",
    /// What connects the nodes.
    host_networking = "host_networking",
    /// In which topology.
    host_networking_topology = "host_networking_topology",
    /// Modules of memory.
    host_memory_configuration = "host_memory_configuration",
    /// Accelerators of a node.
    accelerators_per_node = "accelerators_per_node",
    /// Their name.
    accelerator_model_name = "accelerator_model_name",
    /// What connects them with the host.
    accelerator_host_interconnect = "accelerator_host_interconnect",
    /// Their clock.
    accelerator_frequency = "accelerator_frequency",
    /// Memory on the chip.
    accelerator_on_chip_memories = "accelerator_on-chip_memories",
    /// Kind of their memory.
    accelerator_memory_configuration = "accelerator_memory_configuration",
    /// Its size.
    accelerator_memory_capacity = "accelerator_memory_capacity",
    /// What connects them with each other.
    accelerator_interconnect = "accelerator_interconnect",
    /// In which topology.
    accelerator_interconnect_topology = "accelerator_interconnect_topology",
    /// How it is cooled.
    cooling = "cooling",
    /// Remarks on the hardware.
    hw_notes = "hw_notes",
    /// The training program.
    framework = "framework",
    /// The operating system.
    operating_system = "operating_system",
    /// Remarks on the software.
    sw_notes = "sw_notes",
}

impl SystemDescription {
    /// What this machine tells of itself, as one node without accelerators: processor, cores, memory, operating system, program. The
    /// rest is for the submitter to say.
    pub fn of_this_machine(submitter: &str, system_name: &str, division: Division, status: SubmissionStatus) -> Self {
        let told = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let (packages, cores) = processors(&told("/proc/cpuinfo"));
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            submitter: submitter.to_owned(),
            division: division.name().to_owned(),
            status: availability(status).to_owned(),
            system_name: system_name.to_owned(),
            number_of_nodes: "1".to_owned(),
            host_processors_per_node: packages.to_string(),
            host_processor_model_name: system::processor_name().unwrap_or_default(),
            host_processor_core_count: cores.unwrap_or(threads).to_string(),
            host_processor_vcpu_count: (threads / packages.max(1)).max(1).to_string(),
            host_memory_capacity: system::memory().map(|memory| system::format_bytes(memory.total)).unwrap_or_default(),
            accelerators_per_node: "0".to_owned(),
            framework: concat!("Calotype ", env!("CARGO_PKG_VERSION")).to_owned(),
            operating_system: operating_system(&told("/etc/os-release")),
            ..Self::default()
        }
    }

    /// Reads a description in JSON; fields that are left out are empty.
    ///
    /// # Errors
    /// The file system's, and [`std::io::ErrorKind::InvalidData`] with what is wrong in words.
    pub fn read(path: &Path) -> std::io::Result<Self> {
        let text = calotype_core::read_text(path)?;
        serde_json::from_str(&text).map_err(|error| {
            let words = calotype_core::words::plain(&error.to_string());
            std::io::Error::new(std::io::ErrorKind::InvalidData, words)
        })
    }
}

/// The rules' words for how a system can be had.
fn availability(status: SubmissionStatus) -> &'static str {
    match status {
        SubmissionStatus::OnPremises => AVAILABILITY[0],
        SubmissionStatus::Cloud => AVAILABILITY[1],
        SubmissionStatus::Research => AVAILABILITY[2],
        SubmissionStatus::Preview => AVAILABILITY[3],
    }
}

/// How many processors Linux lists, and the cores of one where it says so.
pub(crate) fn processors(cpuinfo: &str) -> (usize, Option<usize>) {
    let values = |name: &str| -> Vec<&str> {
        let fields = cpuinfo.lines().filter_map(|line| line.split_once(':'));
        fields.filter(|(field, _)| field.trim() == name).map(|(_, value)| value.trim()).collect()
    };
    let mut packages = values("physical id");
    packages.sort_unstable();
    packages.dedup();
    (packages.len().max(1), values("cpu cores").first().and_then(|cores| cores.parse().ok()))
}

pub(crate) fn operating_system(os_release: &str) -> String {
    let name = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or(std::env::consts::OS, |name| name.trim_matches('"')).to_owned()
}

/// A file's text with any byte-order mark, which the official checkers do not read past.
pub(crate) fn text_as_it_is(path: &Path) -> std::io::Result<String> {
    String::from_utf8(read_input(path)?).map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidData, error))
}

/// Judges a system description: all fields, a status that the rules have, and texts where the official checker needs them.
///
/// # Errors
/// [`ReadError`].
pub fn check_system(path: &Path) -> Result<Report, ReadError> {
    let text = text_as_it_is(path).map_err(|source| ReadError { file: path.to_owned(), source })?;
    let mut report = Report::default();
    let mut add = |severity, problem: String, remedy: &str| report.add(Finding::new(severity, path, problem, remedy));
    let description = match Value::parse(&text) {
        Ok(description @ Value::Object(_)) => description,
        Ok(_) => {
            add(
                Severity::Fatal,
                "it is not a JSON object".to_owned(),
                "write the fields of the description as one object",
            );
            return Ok(report);
        }
        Err(reason) => {
            let remedy = "save it as JSON in UTF-8 without a byte-order mark";
            add(Severity::Fatal, format!("it is not JSON: {reason}"), remedy);
            return Ok(report);
        }
    };
    let missing: Vec<_> = FIELDS.iter().copied().filter(|field| description.get(field).is_none()).collect();
    if !missing.is_empty() {
        add(
            Severity::Error,
            format!("it has no {}", missing.join(", ")),
            "add them, empty where there is nothing to say",
        );
    }
    for field in TEXTS {
        if let Some(value) = description.get(field).filter(|value| value.text().is_none()) {
            let problem = format!("`{field}` is {value}, where the official checker only takes text");
            add(Severity::Fatal, problem, "put it into quotes");
        }
    }
    let status = description.get("status");
    if let Some(status) = status.filter(|status| !status.text().is_some_and(|text| AVAILABILITY.contains(&text))) {
        let remedy = format!("write one of: {}", AVAILABILITY.join("; "));
        add(Severity::Error, format!("`status` is {status}"), &remedy);
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_described() {
        let described =
            SystemDescription::of_this_machine("org", "box", Division::Closed, SubmissionStatus::OnPremises);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("box.json");
        calotype_core::durable::write_json(&path, &described).unwrap();
        assert_eq!(check_system(&path).unwrap(), Report::default());
        assert_eq!(SystemDescription::read(&path).unwrap(), described);
        assert_eq!(FIELDS.len(), 33);
        assert!(described.host_processor_core_count.parse::<usize>().unwrap() > 0);
    }

    #[test]
    fn what_linux_lists_is_counted() {
        let one =
            "processor: 0\nphysical id\t: 0\ncpu cores\t: 24\n\nprocessor: 1\nphysical id\t: 1\ncpu cores\t: 24\n";
        assert_eq!(processors(one), (2, Some(24)));
        assert_eq!(processors("Features: asimd"), (1, None));
        assert_eq!(operating_system("NAME=x\nPRETTY_NAME=\"Debian 12\"\n"), "Debian 12");
    }

    #[test]
    fn an_unknown_field_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        std::fs::write(&path, r#"{"sumbitter": "x"}"#).unwrap();
        let error = SystemDescription::read(&path).unwrap_err().to_string();
        assert!(error.contains("`sumbitter` is not known"), "{error}");
    }
}
