//! The latent that all pictures begin with.

use crate::benchmark::{LATENT_SEED, LATENT_SHA256, SIDE};
use crate::error::InferenceError;
use crate::recipe::LatentSettings;
use burn::tensor::{Device, Tensor, TensorData};
use calotype_core::TorchCpuGenerator;
use calotype_data::npy::NpyArray;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// Where the published latent differs from what PyTorch 2.15 makes of its seed: for each number its place (`u16`) and by how many units
/// of the last place (`i8`), little endian. The PyTorch of 2023 had other logarithms and cosines; 636 of 65,536 numbers are others by
/// one or two units.
const CORRECTIONS: &[u8] = include_bytes!("latent_corrections.bin");

/// `tools/latents.pt` of mlcommons/inference, `[4, 128, 128]`.
fn published_latent() -> Vec<f32> {
    let mut values = fixed_latent(LATENT_SEED, [4, SIDE / 8, SIDE / 8]);
    for &[low, high, units] in CORRECTIONS.as_chunks().0 {
        let value = &mut values[usize::from(u16::from_le_bytes([low, high]))];
        *value = f32::from_bits(value.to_bits().wrapping_add_signed(i32::from(units as i8)));
    }
    values
}

/// Standard normal noise `[1, channels, height, width]` of PyTorch's generator for CPU tensors, in `f32`.
pub fn fixed_latent(seed: u64, [channels, height, width]: [usize; 3]) -> Vec<f32> {
    let mut values = vec![0.0_f32; channels * height * width];
    TorchCpuGenerator::new(seed).fill_normal(&mut values);
    values
}

/// The recipe's latent for pictures whose latents are `[height, width, channels]`, as the pipeline takes it, with sentences on what is
/// not the benchmark's.
///
/// # Errors
/// [`InferenceError::File`] for a file that is no such latent; [`InferenceError::Setting`] if the benchmark's own one does not come
/// out as published.
pub(crate) fn latent(
    settings: &LatentSettings,
    [height, width, channels]: [usize; 3],
    device: &Device,
) -> Result<(Tensor<4>, Vec<String>), InferenceError> {
    let shape = [channels, height, width];
    let (values, notes) = match &settings.path {
        Some(path) => read(Path::new(path), shape)?,
        None => (made(settings.seed, shape)?, seed_notes(settings.seed)),
    };
    let tensor = Tensor::<4>::from_data(TensorData::new(values, [1, channels, height, width]), device);
    Ok((tensor.permute([0, 2, 3, 1]), notes))
}

fn made(seed: u64, shape: [usize; 3]) -> Result<Vec<f32>, InferenceError> {
    let [channels, height, width] = shape;
    if seed == LATENT_SEED && shape == [4, SIDE / 8, SIDE / 8] {
        let values = published_latent();
        let found = npy_sha256(&[1, channels, height, width], &values)?;
        if found != LATENT_SHA256 {
            return Err(InferenceError::setting(format!(
                "the benchmark's latent came out with SHA-256 {found} instead of {LATENT_SHA256}: a fault of the generator"
            )));
        }
        return Ok(values);
    }
    Ok(fixed_latent(seed, shape))
}

fn seed_notes(seed: u64) -> Vec<String> {
    match seed {
        LATENT_SEED => Vec::new(),
        _ => vec![format!("the latent is that of seed {seed}; the benchmark's is that of seed {LATENT_SEED}")],
    }
}

/// SHA-256 of values as a file of NumPy, in hexadecimal.
fn npy_sha256(shape: &[usize], values: &[f32]) -> Result<String, InferenceError> {
    let npy = NpyArray::from_f32(shape, values.to_vec()).map_err(|error| InferenceError::setting(error.to_string()))?;
    Ok(hex(&Sha256::digest(npy.to_bytes())))
}

/// Bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A file's latent, with a sentence if it is another one than the benchmark's.
fn read(path: &Path, [channels, height, width]: [usize; 3]) -> Result<(Vec<f32>, Vec<String>), InferenceError> {
    let fault = |problem: String| InferenceError::File { path: PathBuf::from(path), problem };
    let bytes = std::fs::read(path).map_err(InferenceError::io("read", path))?;
    let npy = NpyArray::from_bytes(&bytes).map_err(|error| fault(format!("is no array of NumPy: {error}")))?;
    let wanted = [1, channels, height, width];
    if npy.shape() != wanted {
        return Err(fault(format!("has shape {:?}; pictures of this size begin with {wanted:?}", npy.shape())));
    }
    let values = npy.to_f32().map_err(|error| fault(error.to_string()))?;
    if let Some(bad) = values.iter().position(|value| !value.is_finite()) {
        return Err(fault(format!("number {bad} of it is not finite")));
    }
    let notes = match npy_sha256(&wanted, &values)? == LATENT_SHA256 {
        true => Vec::new(),
        false => {
            vec![format!("the latent is that of {}, not the benchmark's (SHA-256 {LATENT_SHA256})", path.display())]
        }
    };
    Ok((values, notes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `tools/latents.npy` of mlcommons/inference: SHA-256 of the file, and its first values.
    #[test]
    fn the_benchmarks_latent_is_the_published_one() {
        let values = published_latent();
        assert_eq!(values[..4], [-1.125_839_8, -1.152_360_2, -0.250_578_58, -0.433_878_8]);
        assert_eq!(npy_sha256(&[1, 4, 128, 128], &values).unwrap(), LATENT_SHA256);
    }

    #[test]
    fn latents_of_files_are_checked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("latents.npy");
        let settings = LatentSettings { path: Some(path.display().to_string()), seed: 0 };
        let device = Device::flex();
        let open = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            latent(&settings, [2, 2, 4], &device)
        };
        let npy = |shape: &[usize], values: Vec<f32>| NpyArray::from_f32(shape, values).unwrap().to_bytes();
        let (found, notes) = open(&npy(&[1, 4, 2, 2], (0..16).map(|x| x as f32).collect())).unwrap();
        // Channels become the last axis.
        let values: Vec<f32> = found.to_data().iter::<f32>().collect();
        assert_eq!((found.dims(), &values[..4]), ([1, 2, 2, 4], &[0.0, 4.0, 8.0, 12.0][..]));
        assert!(notes[0].contains("not the benchmark's"), "{notes:?}");
        for (bytes, part) in [
            (npy(&[1, 4, 2, 3], vec![0.0; 24]), "has shape [1, 4, 2, 3]"),
            (npy(&[16], vec![0.0; 16]), "has shape [16]"),
            (npy(&[1, 4, 2, 2], vec![f32::NAN; 16]), "number 0 of it is not finite"),
            (b"numbers".to_vec(), "is no array of NumPy"),
            (Vec::new(), "is no array of NumPy"),
        ] {
            let error = open(&bytes).unwrap_err().to_string();
            assert!(error.contains("latents.npy") && error.contains(part), "{error}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(latent(&settings, [2, 2, 4], &device).unwrap_err().to_string().starts_with("cannot read"));
    }
}
