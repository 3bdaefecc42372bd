//! What each round asks for.
//!
//! Source: `tools/submission`, `loadgen/mlperf.conf` and `text_to_image/tools` of mlcommons/inference at the tags v4.0 to v5.0, v4.1
//! (379ee534), v5.1.1 (6776245e) and b66003e1 (August 2026, rounds v6.0 and v6.1).

use calotype_core::names;

names! {
    /// A round of MLPerf Inference, from the first with Stable Diffusion XL on.
    #[derive(Default)]
    Round, "round" {
        /// Early 2024. Its checker is not known here.
        V4_0 = "v4.0" | "4.0",
        /// 2024; the student competition of that year.
        V4_1 = "v4.1" | "4.1",
        /// Early 2025. Its checker is not known here.
        V5_0 = "v5.0" | "5.0",
        /// 2025.
        V5_1 = "v5.1" | "5.1",
        /// Early 2026: another layout of the tree, another checker.
        V6_0 = "v6.0" | "6.0",
        /// Mid 2026.
        #[default]
        V6_1 = "v6.1" | "6.1",
    }
}

names! {
    /// How LoadGen asks.
    Scenario, "scenario" {
        /// All samples at once.
        Offline = "Offline" | "offline",
        /// Queries of a sample, at random times.
        Server = "Server" | "server",
        /// A sample after the other.
        SingleStream = "SingleStream" | "singlestream",
        /// Eight samples after the other eight.
        MultiStream = "MultiStream" | "multistream",
    }
}

names! {
    /// Where a system is meant to be.
    SystemType, "system type" {
        /// In a data centre.
        Datacenter = "datacenter",
        /// Anywhere else.
        Edge = "edge",
        /// Both.
        Both = "datacenter,edge" | "edge,datacenter",
    }
}

names! {
    /// What is compared with what.
    InferenceDivision, "division" {
        /// The benchmark's model, as it is.
        Closed = "closed",
        /// Anything that does the task.
        Open = "open",
        /// Closed, over a network.
        Network = "network",
    }
}

/// The three seeds of a round, which LoadGen takes from mlperf.conf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seeds {
    /// Which samples are loaded.
    pub library: u64,
    /// Which samples are asked for.
    pub sample_index: u64,
    /// When they are asked for.
    pub schedule: u64,
}

impl Seeds {
    /// With LoadGen's names.
    pub fn named(self) -> [(&'static str, u64); 3] {
        [
            ("effective_qsl_rng_seed", self.library),
            ("effective_sample_index_rng_seed", self.sample_index),
            ("effective_schedule_rng_seed", self.schedule),
        ]
    }
}

/// Captions of the data set, and least of an Offline query.
pub(crate) const SAMPLES: u64 = 5000;
/// Least duration that a run's settings may ask for, milliseconds.
pub(crate) const MIN_DURATION_MS: f64 = 600_000.0;
/// Longest 99th percentile of a Server run, nanoseconds.
pub(crate) const TARGET_LATENCY_NS: f64 = 20e9;
/// Largest log of answers, bytes.
pub(crate) const LARGEST_ACCURACY_LOG: u64 = 10 * 1024;
/// Least and most of each figure of accuracy, in the checkers' order, and by how many percent TEST01's may differ.
pub(crate) const ACCURACY_WINDOW: [(&str, f64, f64, f64); 2] =
    [("CLIP_SCORE", 31.68631873, 31.81331801, 1.0), ("FID_SCORE", 23.01085758, 23.95007626, 2.0)];
/// What stands in the name of a system that is reached over a network.
pub(crate) const NETWORK_NAME: &str = "Network SUT";

impl Round {
    /// Those whose submission checkers [`super::check_submission`] is held to. Of another it takes the rules of the next.
    pub const CHECKED: [Self; 4] = [Self::V4_1, Self::V5_1, Self::V6_0, Self::V6_1];

    /// Seed by which pictures for reviewers are chosen: `--seed` of `text_to_image/tools/sample_ids.py` in that round.
    pub fn reviewers_seed(self) -> u32 {
        match self {
            Self::V4_0 => 926_019_364,
            Self::V4_1 => 633_994_880,
            Self::V5_0 => 265_673_710,
            Self::V5_1 => 927_722_784,
            Self::V6_0 => 1_999_337_312,
            Self::V6_1 => 3_234_044_599,
        }
    }

    /// Whether the package `submission_checker` judges it, and not the single file before.
    pub(crate) fn by_package(self) -> bool {
        matches!(self, Self::V6_0 | Self::V6_1)
    }

    /// The seeds.
    pub fn seeds(self) -> Seeds {
        let (library, sample_index, schedule) = match self {
            Self::V4_0 => (13_281_865_557_512_327_830, 198_141_574_272_810_017, 7_575_108_116_881_280_410),
            Self::V4_1 => (3_066_443_479_025_735_752, 10_688_027_786_191_513_374, 14_962_580_496_156_340_209),
            Self::V5_0 => (6_023_615_788_873_153_749, 15_036_839_855_038_426_416, 9_933_818_062_894_767_841),
            Self::V5_1 => (1_780_908_523_862_526_354, 14_771_362_308_971_278_857, 18_209_322_760_996_052_031),
            Self::V6_0 => (2_465_351_861_681_999_779, 14_276_810_075_590_677_512, 3_936_089_224_930_324_775),
            Self::V6_1 => (2_085_463_073_848_966_840, 2_747_215_439_041_700_203, 16_159_082_839_903_944_936),
        };
        Seeds { library, sample_index, schedule }
    }

    /// Numbers of the samples whose images are handed in; none where the checker does not ask for any.
    pub fn images(self) -> Option<&'static [u32; 10]> {
        match self {
            // The checker of v5.1 has the list of v4.0 under the name of v5.0.
            Self::V4_0 | Self::V5_0 => Some(&[4459, 4015, 2705, 1682, 4048, 4683, 3757, 1578, 3319, 95]),
            Self::V4_1 => Some(&[4655, 2569, 1303, 109, 4509, 3009, 2179, 1826, 2094, 3340]),
            Self::V5_1 => Some(&[2747, 2235, 2165, 1515, 1538, 1367, 2419, 4629, 3657, 4532]),
            Self::V6_0 => Some(&[1311, 2476, 3644, 2188, 4114, 52, 388, 1195, 3427, 2289]),
            Self::V6_1 => None,
        }
    }

    /// Scenarios that the closed division needs; none where the round has no such category.
    pub fn required(self, system: SystemType) -> Option<&'static [Scenario]> {
        use Scenario::{Offline, Server, SingleStream};
        match system {
            SystemType::Datacenter if self.by_package() => None,
            SystemType::Datacenter => Some(&[Server, Offline]),
            SystemType::Edge => Some(&[SingleStream, Offline]),
            SystemType::Both => Some(&[SingleStream, Offline, Server]),
        }
    }

    /// Files that stand beside measurements.
    pub(crate) fn settings_files(self) -> &'static [&'static str] {
        match self {
            Self::V4_0 | Self::V4_1 => &["mlperf.conf", super::USER_CONF, "README.md"],
            _ => &[super::USER_CONF, "README.md"],
        }
    }
}

impl Scenario {
    /// LoadGen's key of the result, and what the summary calls its unit.
    pub(crate) fn result(self) -> (&'static str, &'static str) {
        match self {
            Self::Offline => ("result_samples_per_second", "Samples/s"),
            Self::Server => ("result_completed_samples_per_sec", "Queries/s"),
            Self::SingleStream => ("early_stopping_latency_ss", "Latency (ms)"),
            Self::MultiStream => ("early_stopping_latency_ms", "Latency (ms)"),
        }
    }

    /// Whether its result is a latency, in nanoseconds.
    pub(crate) fn is_latency(self) -> bool {
        matches!(self, Self::SingleStream | Self::MultiStream)
    }

    /// Whether LoadGen's early stopping decides how many queries are enough.
    pub(crate) fn stops_early(self) -> bool {
        self != Self::Offline
    }

    /// The scenario that a text names in any case.
    pub(crate) fn of_folder(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|scenario| scenario.name().eq_ignore_ascii_case(name))
    }
}
