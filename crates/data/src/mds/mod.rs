//! MosaicML Streaming's datasets (MDS, version 2): shards with typed columns, compressed or not, and their index.
//!
//! Layout of a dataset folder, as `streaming/base/format/mds` of mosaicml-streaming 0.13 writes and reads it:
//!
//! ```text
//! shard.00000.mds         or shard.00000.mds.zstd, ...
//! shard.00001.mds
//! index.json              columns, sizes, hashes and compression of each shard
//! ```
//!
//! Samples have no keys of their own. Here the key is the text of the column [`KEY_COLUMN`] where there is one, else the
//! sample's number, as in `000000041`. A column is a part of the sample, its name the extension; [`encoding`] tells
//! the content of a part for each encoding.

mod array;
mod compression;
pub mod encoding;
mod error;
mod hash;
mod image;
mod index;
mod pickle;
mod reader;
mod shard;
mod writer;

pub use array::ArrayType;
pub use compression::{COMPRESSIONS, Compression};
pub use encoding::{ENCODINGS, Encoding};
pub use error::{MdsError, MdsFault, MdsResult};
pub use hash::HASHES;
pub use index::{ColumnList, MdsColumn, MdsFileInfo, MdsIndex, MdsShardInfo};
pub use reader::{MdsDataset, MdsReadOptions};
pub use writer::{MdsOptions, MdsSchema, MdsShard, MdsWriter, SIZE_LIMIT, shard_name};

/// Name of the index.
pub const INDEX_FILE: &str = "index.json";

/// Column that holds samples' keys, of encoding `str`.
pub const KEY_COLUMN: &str = "__key__";

/// Reads one shard and trusts nothing: `text` is the index, `bytes` are the raw bytes of its first shard. All samples
/// that can be decoded are decoded; the first error is returned.
///
/// # Errors
/// Every [`MdsFault`] that an index or shard can have.
pub fn read_shard(text: &[u8], bytes: &[u8]) -> Result<Vec<crate::Sample>, MdsFault> {
    let index = MdsIndex::parse(text)?;
    let Some(first) = index.shards.first() else { return Ok(Vec::new()) };
    let columns = first.columns()?;
    shard::check(bytes, first.samples)?;
    let sample = |number: usize| {
        let bytes = shard::sample_bytes(bytes, number)?;
        shard::decode(&columns, bytes, number, number.to_string())
    };
    (0..first.samples).map(sample).collect()
}
