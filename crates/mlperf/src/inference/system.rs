//! Descriptions of systems, as rounds of MLPerf Inference want them.

use super::rounds::SystemType;
use crate::package::{operating_system, processors};
use calotype_core::{names, system};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;

names! {
    /// How a system can be had.
    Availability, "availability" {
        /// Everyone can buy or rent it.
        Available = "available",
        /// Everyone will be able to.
        Preview = "preview",
        /// Research, development or internal.
        Research = "rdi",
    }
}

/// What a field of nothing that is there says: the checkers want a text.
const NOTHING: &str = "N/A";

/// Declares the description's fields, all of them texts.
macro_rules! description {
    ($($(#[$doc:meta])* $field:ident = $name:literal, $needed:literal;)+) => {
        /// A system as a submission describes it: texts, for the checkers take the number 0 for a field that is empty.
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct InferenceSystem {
            $($(#[$doc])* #[serde(rename = $name, default)] pub $field: String,)+
        }

        /// Names of all fields, and whether they may not be empty.
        pub(crate) const FIELDS: &[(&str, bool)] = &[$(($name, $needed),)+];

        impl InferenceSystem {
            /// Names of fields that have to say something and do not yet.
            pub fn lacks(&self) -> Vec<&'static str> {
                let all = [$(($name, $needed, self.$field.trim()),)+];
                all.into_iter().filter(|(_, needed, text)| *needed && text.is_empty()).map(|(name, _, _)| name).collect()
            }

            /// A field by its name.
            pub fn field(&mut self, name: &str) -> Option<&mut String> {
                match name { $($name => Some(&mut self.$field),)+ _ => None }
            }

            /// Names of all fields.
            pub fn names() -> impl Iterator<Item = &'static str> {
                FIELDS.iter().map(|(name, _)| *name)
            }
        }
    };
}

description! {
    /// `closed`, `open` or `network`.
    division = "division", true;
    /// The submitting organisation.
    submitter = "submitter", true;
    /// `available`, `preview` or `rdi`.
    status = "status", true;
    /// The system's name.
    system_name = "system_name", true;
    /// `datacenter`, `edge` or both.
    system_type = "system_type", true;
    /// More on that.
    system_type_detail = "system_type_detail", false;
    /// How many nodes.
    number_of_nodes = "number_of_nodes", true;
    /// The processor's name.
    host_processor_model_name = "host_processor_model_name", true;
    /// Processors of a node.
    host_processors_per_node = "host_processors_per_node", true;
    /// Cores of a processor.
    host_processor_core_count = "host_processor_core_count", true;
    /// Its clock.
    host_processor_frequency = "host_processor_frequency", false;
    /// Its caches.
    host_processor_caches = "host_processor_caches", false;
    /// What connects the processors.
    host_processor_interconnect = "host_processor_interconnect", false;
    /// Memory of a node.
    host_memory_capacity = "host_memory_capacity", true;
    /// Modules of memory.
    host_memory_configuration = "host_memory_configuration", true;
    /// Size of the storage.
    host_storage_capacity = "host_storage_capacity", true;
    /// Its kind.
    host_storage_type = "host_storage_type", true;
    /// What connects the nodes.
    host_networking = "host_networking", true;
    /// How many cards for that a node has.
    host_network_card_count = "host_network_card_count", true;
    /// In which topology.
    host_networking_topology = "host_networking_topology", true;
    /// Accelerators of a node.
    accelerators_per_node = "accelerators_per_node", true;
    /// Their name.
    accelerator_model_name = "accelerator_model_name", true;
    /// Size of their memory.
    accelerator_memory_capacity = "accelerator_memory_capacity", true;
    /// Its kind.
    accelerator_memory_configuration = "accelerator_memory_configuration", true;
    /// Memory on the chip.
    accelerator_on_chip_memories = "accelerator_on-chip_memories", false;
    /// Their clock.
    accelerator_frequency = "accelerator_frequency", false;
    /// What connects them with the host.
    accelerator_host_interconnect = "accelerator_host_interconnect", true;
    /// What connects them with each other.
    accelerator_interconnect = "accelerator_interconnect", true;
    /// In which topology.
    accelerator_interconnect_topology = "accelerator_interconnect_topology", false;
    /// How it is cooled.
    cooling = "cooling", true;
    /// Remarks on the hardware.
    hw_notes = "hw_notes", false;
    /// The program.
    framework = "framework", true;
    /// The operating system.
    operating_system = "operating_system", true;
    /// Further software.
    other_software_stack = "other_software_stack", true;
    /// Remarks on the software.
    sw_notes = "sw_notes", false;
}

impl InferenceSystem {
    /// What this machine tells of itself, as one node without accelerators. What it does not tell is empty ([`Self::lacks`]): cooling,
    /// modules of memory where the firmware does not list them for everyone.
    pub fn of_this_machine(submitter: &str, system_name: &str, system_type: SystemType, status: Availability) -> Self {
        let told = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let (packages, cores) = processors(&told("/proc/cpuinfo"));
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let disks = Disks::below(Path::new("/sys/block"));
        let cards = network_cards(Path::new("/sys/class/net"));
        let nothing = || NOTHING.to_owned();
        Self {
            submitter: submitter.to_owned(),
            division: "open".to_owned(),
            status: status.name().to_owned(),
            system_name: system_name.to_owned(),
            system_type: system_type.name().to_owned(),
            number_of_nodes: "1".to_owned(),
            host_processor_model_name: system::processor_name().unwrap_or_default(),
            host_processors_per_node: packages.to_string(),
            host_processor_core_count: cores.unwrap_or(threads).to_string(),
            host_processor_frequency: frequency(&told("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")),
            host_processor_caches: caches(Path::new("/sys/devices/system/cpu/cpu0/cache")),
            host_memory_capacity: system::memory().map(|memory| system::format_bytes(memory.total)).unwrap_or_default(),
            host_storage_capacity: disks.capacity(),
            host_storage_type: disks.kind.to_owned(),
            host_networking: if cards == 0 { nothing() } else { "Ethernet".to_owned() },
            host_network_card_count: cards.to_string(),
            host_networking_topology: nothing(),
            accelerators_per_node: "0".to_owned(),
            accelerator_model_name: nothing(),
            accelerator_memory_capacity: nothing(),
            accelerator_memory_configuration: nothing(),
            accelerator_host_interconnect: nothing(),
            accelerator_interconnect: nothing(),
            framework: concat!("Calotype ", env!("CARGO_PKG_VERSION")).to_owned(),
            operating_system: operating_system(&told("/etc/os-release")),
            other_software_stack: kernel(&told("/proc/sys/kernel/osrelease")),
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

/// What the machine stores on.
struct Disks {
    bytes: u64,
    kind: &'static str,
}

impl Disks {
    /// Reads Linux's list of block devices, without those that are made of others or of memory.
    fn below(folder: &Path) -> Self {
        let mut found = Self { bytes: 0, kind: "" };
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if ["loop", "ram", "zram", "dm-", "md", "sr", "fd"].iter().any(|other| name.starts_with(other)) {
                continue;
            }
            let told = |file: &str| fs::read_to_string(entry.path().join(file)).unwrap_or_default().trim().to_owned();
            // Linux counts in sectors of 512 bytes, whatever the device's are.
            found.bytes += told("size").parse::<u64>().unwrap_or(0).saturating_mul(512);
            // Virtual disks say that they turn, whatever is below them.
            let turns = if name.starts_with("vd") { String::new() } else { told("queue/rotational") };
            found.kind = match (name.starts_with("nvme"), turns.as_str()) {
                (true, _) => "NVMe SSD",
                (false, "1") if found.kind.is_empty() => "HDD",
                (false, "0") if found.kind != "NVMe SSD" => "SSD",
                _ => found.kind,
            };
        }
        found
    }

    fn capacity(&self) -> String {
        if self.bytes == 0 { String::new() } else { system::format_bytes(self.bytes) }
    }
}

/// Cards, not what the system makes up: those have no device.
fn network_cards(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|entry| entry.path().join("device").exists()).count()
}

fn frequency(kilohertz: &str) -> String {
    kilohertz.trim().parse().map_or(String::new(), |kilohertz: f64| format!("{:.2} GHz", kilohertz / 1e6))
}

/// The caches of a processor's first core: `L1 32K Data, L1 32K Instruction, L2 1024K Unified`.
fn caches(folder: &Path) -> String {
    let told = |index: usize, file: &str| {
        fs::read_to_string(folder.join(format!("index{index}")).join(file)).map(|text| text.trim().to_owned())
    };
    let cache = |index| {
        Some(format!("L{} {} {}", told(index, "level").ok()?, told(index, "size").ok()?, told(index, "type").ok()?))
    };
    (0..8).map_while(cache).collect::<Vec<_>>().join(", ")
}

fn kernel(release: &str) -> String {
    match release.trim() {
        "" => NOTHING.to_owned(),
        release => format!("Linux {release}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_described_but_for_what_only_people_know() {
        let described = InferenceSystem::of_this_machine("org", "box", SystemType::Edge, Availability::Available);
        let lacks = described.lacks();
        assert!(lacks.contains(&"cooling") && !lacks.contains(&"host_processor_model_name"), "{lacks:?}");
        assert_eq!((FIELDS.len(), FIELDS.iter().filter(|(_, needed)| *needed).count()), (35, 26));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("box.json");
        calotype_core::durable::write_json(&path, &described).unwrap();
        assert_eq!(InferenceSystem::read(&path).unwrap(), described);
        fs::write(&path, r#"{"coolling": "air"}"#).unwrap();
        assert!(InferenceSystem::read(&path).unwrap_err().to_string().contains("`coolling` is not known"));
    }

    #[test]
    fn what_linux_lists_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        for (name, text) in [("sda/size", "2097152\n"), ("sda/queue/rotational", "0\n"), ("loop0/size", "99\n")] {
            put(name, text);
        }
        let disks = Disks::below(folder.path());
        assert_eq!((disks.capacity(), disks.kind), ("1.0 GiB".to_owned(), "SSD"));
        put("virtual/vda/size", "2097152\n");
        put("virtual/vda/queue/rotational", "1\n");
        let disks = Disks::below(&folder.path().join("virtual"));
        assert_eq!((disks.capacity(), disks.kind), ("1.0 GiB".to_owned(), ""));
        for (name, text) in [("c/index0/level", "2\n"), ("c/index0/size", "2048K\n"), ("c/index0/type", "Unified\n")] {
            put(name, text);
        }
        assert_eq!(caches(&folder.path().join("c")), "L2 2048K Unified");
        assert_eq!((frequency("3500000\n"), frequency("")), ("3.50 GHz".to_owned(), String::new()));
        assert_eq!(network_cards(&folder.path().join("none")), 0);
    }
}
