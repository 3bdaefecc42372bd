//! The messages of a run's transaction log, as far as they are written here. Field numbers are those of the client's
//! `wandb_internal.proto` (wandb 0.31.0), seen with its own protobuf classes.

use prost::{Message, Oneof};

/// One record of the log.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Record {
    /// Counted from 1.
    #[prost(int64, tag = "1")]
    pub(super) num: i64,
    #[prost(oneof = "Kind", tags = "2, 3, 6, 17, 18, 21")]
    pub(super) kind: Option<Kind>,
}

/// What a record is.
#[allow(clippy::large_enum_variant, reason = "there is one at a time")]
#[derive(Clone, PartialEq, Oneof)]
pub(super) enum Kind {
    #[prost(message, tag = "2")]
    History(History),
    #[prost(message, tag = "3")]
    Summary(Summary),
    #[prost(message, tag = "6")]
    Files(Files),
    #[prost(message, tag = "17")]
    Run(Run),
    #[prost(message, tag = "18")]
    Exit(Exit),
    #[prost(message, tag = "21")]
    Header(Header),
}

/// The first record: who wrote the log.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Header {
    #[prost(message, optional, tag = "1")]
    pub(super) version_info: Option<VersionInfo>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct VersionInfo {
    #[prost(string, tag = "1")]
    pub(super) producer: String,
    #[prost(string, tag = "2")]
    pub(super) min_consumer: String,
}

/// The second record: which run it is.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Run {
    #[prost(string, tag = "1")]
    pub(super) run_id: String,
    #[prost(string, tag = "2")]
    pub(super) entity: String,
    #[prost(string, tag = "3")]
    pub(super) project: String,
    #[prost(message, optional, tag = "4")]
    pub(super) config: Option<Config>,
    #[prost(string, tag = "6")]
    pub(super) run_group: String,
    #[prost(string, tag = "7")]
    pub(super) job_type: String,
    #[prost(string, tag = "8")]
    pub(super) display_name: String,
    #[prost(string, tag = "9")]
    pub(super) notes: String,
    #[prost(string, repeated, tag = "10")]
    pub(super) tags: Vec<String>,
    #[prost(string, tag = "13")]
    pub(super) host: String,
    #[prost(message, optional, tag = "17")]
    pub(super) start_time: Option<Timestamp>,
    /// Whether the run may be known to the server already, from an earlier folder.
    #[prost(bool, tag = "24")]
    pub(super) resume: bool,
}

/// `google.protobuf.Timestamp`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Timestamp {
    #[prost(int64, tag = "1")]
    pub(super) seconds: i64,
    #[prost(int32, tag = "2")]
    pub(super) nanos: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Config {
    #[prost(message, repeated, tag = "1")]
    pub(super) update: Vec<ConfigItem>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ConfigItem {
    #[prost(string, tag = "1")]
    pub(super) key: String,
    #[prost(string, tag = "16")]
    pub(super) value_json: String,
}

/// A row of numbers, and of what is logged beside them.
#[derive(Clone, PartialEq, Message)]
pub(super) struct History {
    #[prost(message, repeated, tag = "1")]
    pub(super) item: Vec<Item>,
    #[prost(message, optional, tag = "2")]
    pub(super) step: Option<Step>,
}

/// Items of histories and of summaries have the same fields.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Item {
    #[prost(string, repeated, tag = "2")]
    pub(super) nested_key: Vec<String>,
    #[prost(string, tag = "16")]
    pub(super) value_json: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Step {
    #[prost(int64, tag = "1")]
    pub(super) num: i64,
}

/// The newest value of each name.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Summary {
    #[prost(message, repeated, tag = "1")]
    pub(super) update: Vec<Item>,
}

/// Files of the folder `files` that belong to the run.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Files {
    #[prost(message, repeated, tag = "1")]
    pub(super) files: Vec<FilesItem>,
}

/// The policy and the type that are left out are those of files that do not change, the client's own choice for media.
#[derive(Clone, PartialEq, Message)]
pub(super) struct FilesItem {
    #[prost(string, tag = "1")]
    pub(super) path: String,
}

/// The last record of a process that left the run by itself.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Exit {
    #[prost(int32, tag = "1")]
    pub(super) exit_code: i32,
    /// In seconds.
    #[prost(int32, tag = "2")]
    pub(super) runtime: i32,
}

impl Item {
    pub(super) fn new(key: &[&str], value_json: String) -> Self {
        Self { nested_key: key.iter().map(|part| (*part).to_owned()).collect(), value_json }
    }
}

impl History {
    /// The value of a name that is no table.
    pub(super) fn number(&self, name: &str) -> Option<f64> {
        let item = self.item.iter().find(|item| item.nested_key == [name])?;
        item.value_json.parse().ok()
    }
}
