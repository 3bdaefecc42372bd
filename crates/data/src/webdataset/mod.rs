//! Webdataset shards: tar files whose members `key.extension` form samples, with an index and checksums.
//!
//! Layout of a dataset folder:
//!
//! ```text
//! images-000000.tar       members a.png, a.txt, b.png, b.txt, ...
//! images-000001.tar
//! index.json              format version, and per shard: file, samples, bytes, blake3; free-form "meta"
//! ```
//!
//! Grouping follows the `webdataset` library (`webdataset/tariterators.py`): a member's key is its path up to the
//! first dot of the file name, the rest, in lower case, is the extension; neighbouring members of one key are a sample.
//! Folders, links, members without a dot and `__meta__` members are passed by, counted and reported.
//!
//! Names that a USTAR header cannot hold are written as pax records, and read in that form and in GNU's. Shards that are
//! compressed by gzip are read through a [`crate::source::ShardSet`], which unpacks each when it is opened.
//!
//! Shards are written under a temporary name, flushed, and renamed; `index.json` comes last. A folder without it is
//! either someone else's dataset (it is scanned) or an unfinished one (`progress.json` tells, and is refused).

mod header;
mod index;
mod mapped;
mod packed;
mod reader;
mod scan;
mod shard_file;
mod tar_shard;
mod writer;

pub use header::is_storable;
pub(crate) use index::is_plain_name;
pub use index::{DatasetIndex, FORMAT, INDEX_FILE, PROGRESS_FILE, ShardRecord, VERSION};
pub(crate) use mapped::{LeaveOut, MappedShard, map_file, map_open, named, starts};
pub(crate) use packed::refuse_others;
pub(crate) use packed::{is_gzip, is_gzip_file, peek};
pub use packed::{is_shard_name, refuse_packed, unpack_all};
pub(crate) use reader::tar_names;
pub use reader::{Dataset, VerifyReport, index_folder};
pub(crate) use reader::{digest, is_shard_as_recorded, kept_counts};
pub use shard_file::{END_BYTES, ShardFile, size_in_shard, write_shard};
pub use tar_shard::TarShard;
pub use writer::{ShardLimits, ShardWriter};
