//! Writing `.nemo` files: a tar archive of `model_config.yaml` and `model_weights.ckpt`, as NeMo's `save_restore_connector.py` unpacks
//! and reads it.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use crate::error::TensorFileError;
use crate::nemo_file::{CONFIG, TEXTS, WEIGHTS};
use crate::source::TensorSource;
use crate::stream::{Failure, replace_tensors};
use crate::tensor_file::Dtype;
use crate::torch_writer::TorchArchive;

/// Bytes that the parts of a tar archive begin at multiples of.
const BLOCK: u64 = 512;

/// Writes a `.nemo` file, atomically: `config` in YAML, the tensors of a source (floating-point ones as `dtype` if one is given), and
/// texts of our own that [`crate::NemoFile`] gives back as metadata and NeMo passes over. Tensors are read twice, one at a time; the
/// bytes depend on the arguments alone.
///
/// # Errors
/// Those of reading the source; [`TensorFileError::Unwritable`] for a repeated name and for a type that torch has no storage of; `DiskFull`
/// and `Io` from the system. An existing file is then untouched.
pub fn write_nemo(
    path: &Path,
    config: &str,
    weights: &dyn TensorSource,
    dtype: Option<Dtype>,
    texts: &BTreeMap<String, String>,
) -> Result<(), TensorFileError> {
    let archive = TorchArchive::plan(path, weights, dtype)?;
    let texts = match texts.is_empty() {
        true => None,
        false => {
            Some(serde_json::to_vec(texts).map_err(|error| TensorFileError::writing(path, io::Error::other(error)))?)
        }
    };
    replace_tensors(path, |writer| {
        text(writer, CONFIG, config.as_bytes())?;
        texts.iter().try_for_each(|texts| text(writer, TEXTS, texts))?;
        writer.write_all(&header(WEIGHTS, archive.length()))?;
        archive.write(writer, path)?;
        pad(writer, archive.length())?;
        // Two blocks of zeros are the end.
        Ok(writer.write_all(&[0; 2 * BLOCK as usize])?)
    })
}

fn text(writer: &mut dyn Write, name: &str, content: &[u8]) -> Result<(), Failure> {
    writer.write_all(&header(name, content.len() as u64))?;
    writer.write_all(content)?;
    Ok(pad(writer, content.len() as u64)?)
}

/// A file's header; sizes of 8 GiB and more are written as GNU's tar and Python's do.
fn header(name: &str, length: u64) -> [u8; BLOCK as usize] {
    let mut header = tar::Header::new_gnu();
    // As NeMo writes names, which the crate's own setter would make `name`.
    let name = format!("./{name}");
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.set_size(length);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_cksum();
    *header.as_bytes()
}

fn pad(writer: &mut dyn Write, length: u64) -> io::Result<()> {
    writer.write_all(&[0; BLOCK as usize][..(length.next_multiple_of(BLOCK) - length) as usize])
}
