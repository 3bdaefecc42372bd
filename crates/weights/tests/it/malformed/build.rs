//! Makers of files, with every field open to lies.

use std::io::Write;

/// A size of which two overflow when multiplied.
pub const HUGE: usize = 1 << 40;

pub fn safetensors(header: &str, data: usize) -> Vec<u8> {
    let length = (header.len() as u64).to_le_bytes();
    [&length[..], header.as_bytes(), &vec![0; data]].concat()
}

pub fn json_header(name: &str, dtype: &str, shape: &[usize], start: usize, end: usize) -> String {
    format!(r#"{{"{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{end}]}}}}"#)
}

/// A pickle of protocol 4 that names by texts, without its first byte.
pub fn pickle_of_names(module: &str, name: &str) -> Vec<u8> {
    let text = |text: &str| [&[0x8c, text.len() as u8], text.as_bytes()].concat();
    [b"\x04", &text(module)[..], &text(name), b"\x93\x8c\x02id\x85R."].concat()
}

/// A tensor `w` of a state dictionary.
pub struct Tensor {
    pub class: &'static str,
    pub key: &'static str,
    pub elements: i64,
    pub offset: i64,
    pub shape: Vec<i64>,
    pub strides: Vec<i64>,
}

impl Default for Tensor {
    fn default() -> Self {
        Self { class: "FloatStorage", key: "0", elements: 4, offset: 0, shape: vec![1], strides: vec![1] }
    }
}

/// The pickle of a dictionary with that tensor.
pub fn state(tensor: &Tensor) -> Vec<u8> {
    let text = |text: &str| [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
    let int = |value: i64| [b"\x8a\x08", &value.to_le_bytes()[..]].concat();
    let tuple = |values: &[i64]| {
        let values: Vec<u8> = values.iter().flat_map(|&value| int(value)).collect();
        [b"(", &values[..], b"t"].concat()
    };
    let class = format!("ctorch\n{}\n", tensor.class);
    let pieces: [&[u8]; 13] = [
        b"\x80\x02}",
        &text("w"),
        b"ctorch._utils\n_rebuild_tensor_v2\n((",
        &text("storage"),
        class.as_bytes(),
        &text(tensor.key),
        &text("cpu"),
        &int(tensor.elements),
        b"tQ",
        &int(tensor.offset),
        &tuple(&tensor.shape),
        &tuple(&tensor.strides),
        b"\x89ccollections\nOrderedDict\n)RtRs.",
    ];
    pieces.concat()
}

/// A file in torch's old layout, up to the storages.
pub fn legacy(machine: &[u8], pickle: &[u8], keys: &[u8]) -> Vec<u8> {
    let magic: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
    [magic, b"\x80\x02M\xe9\x03.", machine, pickle, keys].concat()
}

pub fn legacy_of(pickle: &[u8], keys: &[u8]) -> Vec<u8> {
    legacy(b"\x80\x02}X\x0d\0\0\0little_endian\x88s.", pickle, keys)
}

/// An entry of a zip archive as directory and local header describe it.
#[derive(Clone)]
pub struct Item {
    pub name: String,
    pub local_name: String,
    pub data: Vec<u8>,
    pub method: u16,
    pub flags: u16,
    pub length: u32,
    pub packed: u32,
    pub local_length: Option<u32>,
    pub checksum: u32,
    pub offset: Option<u32>,
    /// True if only the directory has it.
    pub hidden: bool,
}

impl Item {
    pub fn new(name: &str, data: &[u8]) -> Self {
        Self {
            name: name.to_owned(),
            local_name: name.to_owned(),
            data: data.to_vec(),
            method: 0,
            flags: 0,
            length: data.len() as u32,
            packed: data.len() as u32,
            local_length: None,
            checksum: crc32fast::hash(data),
            offset: None,
            hidden: false,
        }
    }

    /// The fields that both headers share; `length` is that of the content.
    fn fields(&self, name: &str, length: u32) -> Vec<u8> {
        let mut fields = Vec::new();
        for value in [20, self.flags, self.method, 0, 0x21] {
            fields.extend(value.to_le_bytes());
        }
        for value in [self.checksum, self.packed, length] {
            fields.extend(value.to_le_bytes());
        }
        fields.extend((name.len() as u16).to_le_bytes());
        fields.extend([0, 0]);
        fields
    }
}

/// An entry that is truly deflated.
pub fn deflated(name: &str, data: &[u8]) -> Item {
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(data).unwrap();
    let packed = encoder.finish().unwrap();
    let packed_length = packed.len() as u32;
    Item { data: packed, packed: packed_length, method: 8, ..Item::new(name, data) }
}

/// Bytes of an entry's local header and data.
pub fn local_length(item: &Item) -> u32 {
    (30 + item.local_name.len() + item.data.len()) as u32
}

pub fn zip_items(items: &[Item]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for item in items {
        let offset = item.offset.unwrap_or(file.len() as u32);
        if !item.hidden {
            file.extend(b"PK\x03\x04");
            file.extend(item.fields(&item.local_name, item.local_length.unwrap_or(item.length)));
            file.extend(item.local_name.as_bytes());
            file.extend(&item.data);
        }
        directory.extend(b"PK\x01\x02\x14\0");
        directory.extend(item.fields(&item.name, item.length));
        directory.extend([0; 10]);
        directory.extend(offset.to_le_bytes());
        directory.extend(item.name.as_bytes());
    }
    let (start, count) = (file.len() as u32, items.len() as u16);
    file.extend(&directory);
    file.extend(b"PK\x05\x06\0\0\0\0");
    file.extend([count.to_le_bytes(), count.to_le_bytes()].concat());
    file.extend((directory.len() as u32).to_le_bytes());
    file.extend(start.to_le_bytes());
    file.extend([0, 0]);
    file
}

pub fn zip(entries: &[(&str, &[u8])]) -> Vec<u8> {
    zip_items(&entries.iter().map(|(name, data)| Item::new(name, data)).collect::<Vec<_>>())
}

/// A torch archive with that pickle.
pub fn zip_of(pickle: &[u8], storages: &[(&str, &[u8])]) -> Vec<u8> {
    zip(&[&[("a/data.pkl", pickle)], storages].concat())
}

pub fn tar_of(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, data) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *data).unwrap();
    }
    builder.into_inner().unwrap()
}

pub fn tar_with_link(name: &str, target: &str) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    builder.append_link(&mut header, name, target).unwrap();
    builder.into_inner().unwrap()
}

pub fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}
