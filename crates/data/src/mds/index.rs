//! The index of an MDS dataset, and the part of it that every shard repeats.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Component, Path};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::ser::Formatter;

use super::{Compression, Encoding, INDEX_FILE, MdsFault, MdsResult};
use crate::{Error, Result};

/// Version of the format, in the index and in each shard's entry.
pub(super) const VERSION: u64 = 2;

/// `index.json`. Fields of this and the following types stand in the order of their names, as Streaming writes them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MdsIndex {
    /// The shards, in the order of their samples.
    pub shards: Vec<MdsShardInfo>,
    /// 2.
    pub version: u64,
}

/// The index's record of a shard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MdsShardInfo {
    /// Encodings of the columns, as [`Encoding`] is written.
    pub column_encodings: Vec<String>,
    /// Names of the columns, sorted.
    pub column_names: Vec<String>,
    /// Bytes of every value, for columns of fixed width.
    pub column_sizes: Vec<Option<u64>>,
    /// Name of the file's compression, if any.
    #[serde(default)]
    pub compression: Option<String>,
    /// "mds".
    pub format: String,
    /// The algorithms of the files' hashes, sorted.
    #[serde(default)]
    pub hashes: Vec<String>,
    /// The shard uncompressed.
    pub raw_data: MdsFileInfo,
    /// Number of samples.
    pub samples: usize,
    /// Number of bytes at which the writer began another shard: a number, none, or a text like "64mb".
    #[serde(default)]
    pub size_limit: Value,
    /// 2.
    pub version: u64,
    /// The shard compressed.
    #[serde(default)]
    pub zip_data: Option<MdsFileInfo>,
}

/// A file: its name, length and hashes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MdsFileInfo {
    /// Path in the dataset's folder.
    pub basename: String,
    /// Length, in bytes.
    pub bytes: u64,
    /// Hashes in hexadecimal, by algorithm.
    #[serde(default)]
    pub hashes: BTreeMap<String, String>,
}

/// A column: name and encoding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MdsColumn {
    /// Name; of the part, too, that a sample has of it.
    pub name: String,
    /// Form in which its values are stored.
    pub encoding: Encoding,
}

/// Columns as messages show them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnList(pub Vec<MdsColumn>);

impl fmt::Display for ColumnList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns: Vec<String> = self.0.iter().map(|c| format!("{} ({})", c.name, c.encoding)).collect();
        f.write_str(&columns.join(", "))
    }
}

impl MdsIndex {
    /// Reads the index of the dataset in `dir` and checks all of it; the files themselves are not looked at.
    ///
    /// # Errors
    /// [`Error::Mds`] with [`MdsFault::MissingIndex`], [`MdsFault::Index`], [`MdsFault::Version`], [`MdsFault::Format`],
    /// [`MdsFault::Name`], or those of the columns; [`Error::Io`].
    pub fn read(dir: &Path) -> Result<Self> {
        MdsIndex::parse(&read_text(dir)?).map_err(|fault| fault.of(&dir.join(INDEX_FILE)))
    }

    /// Reads an index from its text.
    ///
    /// # Errors
    /// As [`MdsIndex::read`].
    pub fn parse(text: &[u8]) -> MdsResult<Self> {
        /// The fields that tell an index of another version from garbage.
        #[derive(Deserialize)]
        struct Versions {
            version: u64,
            shards: Vec<Value>,
        }
        let broken = |e: serde_json::Error| MdsFault::Index(e.to_string());
        let Versions { version, shards } = serde_json::from_slice(text).map_err(broken)?;
        if version != VERSION {
            return Err(MdsFault::Version { what: "the index".to_owned(), found: version });
        }
        let shards = shards.into_iter().map(MdsShardInfo::parse).collect::<MdsResult<Vec<_>>>()?;
        let total = shards.iter().try_fold(0usize, |n, shard| n.checked_add(shard.samples));
        total.ok_or_else(|| MdsFault::Index("the numbers of samples overflow".to_owned()))?;
        let index = MdsIndex { shards, version };
        index.check_columns()?;
        Ok(index)
    }

    /// All shards have the same columns.
    fn check_columns(&self) -> MdsResult<()> {
        let Some(first) = self.shards.first() else { return Ok(()) };
        let expected = first.columns()?;
        for shard in &self.shards {
            let found = shard.columns()?;
            if found != expected {
                let (expected, found) = (ColumnList(expected), ColumnList(found));
                return Err(MdsFault::OtherColumns { shard: shard.raw_data.basename.clone(), expected, found });
            }
        }
        Ok(())
    }

    /// Writes the index into `dir`, atomically, byte for byte as Streaming does.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        crate::files::write_bytes(&dir.join(INDEX_FILE), &python_json(self))
    }

    /// Number of samples in all shards.
    pub fn samples(&self) -> usize {
        self.shards.iter().map(|shard| shard.samples).sum()
    }
}

impl MdsShardInfo {
    fn parse(value: Value) -> MdsResult<Self> {
        // Version and format first: the other fields are theirs to define.
        let name = value["raw_data"]["basename"].as_str().unwrap_or("(without raw_data)").to_owned();
        if let Some(found) = value["version"].as_u64().filter(|found| *found != VERSION) {
            return Err(MdsFault::Version { what: format!("shard {name}"), found });
        }
        if let Some(found) = value["format"].as_str().filter(|found| *found != "mds") {
            return Err(MdsFault::Format { shard: name, found: found.to_owned() });
        }
        let shard: MdsShardInfo =
            serde_json::from_value(value).map_err(|e| MdsFault::Index(format!("shard {name}: {e}")))?;
        for file in [Some(&shard.raw_data), shard.zip_data.as_ref()].into_iter().flatten() {
            if !is_inner_path(&file.basename) {
                return Err(MdsFault::Name(file.basename.clone()));
            }
        }
        if shard.zip_data.is_some() != shard.compression.is_some() {
            return Err(MdsFault::Index(format!("shard {name}: compression and zip_data only come together")));
        }
        shard.compression()?;
        Ok(shard)
    }

    /// The file's compression, if any.
    ///
    /// # Errors
    /// [`MdsFault::Compression`] for a name that is not known.
    pub fn compression(&self) -> MdsResult<Option<Compression>> {
        self.compression.as_deref().map(str::parse).transpose()
    }

    /// The columns, in the order of their values in samples.
    ///
    /// # Errors
    /// [`MdsFault::Columns`] if the lists of columns contradict each other, [`MdsFault::Encoding`] for an encoding
    /// that is not known.
    pub fn columns(&self) -> MdsResult<Vec<MdsColumn>> {
        let contradiction = |detail: String| MdsFault::Columns { shard: self.raw_data.basename.clone(), detail };
        let (names, encodings, sizes) = (self.column_names.len(), self.column_encodings.len(), self.column_sizes.len());
        if names != encodings || names != sizes || names == 0 {
            return Err(contradiction(format!("{names} names, {encodings} encodings, {sizes} sizes")));
        }
        let mut columns: Vec<MdsColumn> = Vec::with_capacity(names);
        for ((name, text), size) in self.column_names.iter().zip(&self.column_encodings).zip(&self.column_sizes) {
            let encoding: Encoding = text.parse().map_err(|_| MdsFault::Encoding {
                column: name.clone(),
                encoding: text.clone(),
                known: super::ENCODINGS,
            })?;
            let expected = encoding.fixed_size().map(|size| size as u64);
            if *size != expected {
                let show = |size: Option<u64>| size.map_or("of any length".to_owned(), |size| format!("{size} bytes"));
                let (says, has) = (show(*size), show(expected));
                return Err(contradiction(format!("`{name}` is {says} by the index, {text} is {has}")));
            }
            if columns.iter().any(|column| column.name == *name) {
                return Err(contradiction(format!("`{name}` is there twice")));
            }
            columns.push(MdsColumn { name: name.clone(), encoding });
        }
        Ok(columns)
    }
}

/// The text of the index in `dir`.
pub(super) fn read_text(dir: &Path) -> Result<Vec<u8>> {
    let path = dir.join(INDEX_FILE);
    calotype_core::read_input(&path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => MdsFault::MissingIndex.of(&path),
        _ => Error::io("read", &path)(e),
    })
}

/// True if a path of the index stays inside of the dataset's folder. Indices that were merged name files in subfolders.
fn is_inner_path(name: &str) -> bool {
    let mut components = Path::new(name).components();
    !name.is_empty() && !name.contains(['\\', '\0']) && components.all(|part| matches!(part, Component::Normal(_)))
}

/// JSON as Python's `json.dumps` writes it: a blank after commas and colons, everything but ASCII escaped.
pub(super) fn python_json(value: &impl Serialize) -> Vec<u8> {
    let mut out = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, PythonJson);
    // Into memory, and of types whose keys are texts: there is nothing that could fail.
    let written = value.serialize(&mut serializer);
    debug_assert!(written.is_ok());
    out
}

struct PythonJson;

impl PythonJson {
    fn separate<W: ?Sized + io::Write>(writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }
}

impl Formatter for PythonJson {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        PythonJson::separate(writer, first)
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        PythonJson::separate(writer, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }

    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut units = [0; 2];
        for c in fragment.chars() {
            if matches!(c, ' '..='~') {
                writer.write_all(&[c as u8])?;
                continue;
            }
            for unit in c.encode_utf16(&mut units) {
                write!(writer, "\\u{unit:04x}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_that_of_python() {
        let value = serde_json::json!({"b": [1, null, "é\u{1f600}\u{7f}\n\""], "c": {}});
        let expected = r#"{"b": [1, null, "\u00e9\ud83d\ude00\u007f\n\""], "c": {}}"#;
        assert_eq!(String::from_utf8(python_json(&value)).unwrap(), expected);
    }

    #[test]
    fn names_stay_inside() {
        assert!(is_inner_path("shard.00000.mds") && is_inner_path("0/shard.00000.mds.zstd"));
        for name in ["", "/etc/passwd", "../a", "a/../../b", "a\\b", "./a", "a\0"] {
            assert!(!is_inner_path(name), "{name}");
        }
    }
}
