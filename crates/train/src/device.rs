//! Devices by name.

use burn::tensor::Device;

/// A device that this build does not have.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("device `{name}`: {problem}; this build has {available}")]
pub struct DeviceError {
    /// What was asked for.
    pub name: String,
    /// Why it is not to be had.
    pub problem: &'static str,
    /// The devices of this build.
    pub available: String,
}

/// All devices that a build can have.
pub const KNOWN: [&str; 6] = ["cpu", "cuda", "rocm", "metal", "vulkan", "wgpu"];

/// Names of the devices that this build has.
pub fn available() -> Vec<&'static str> {
    KNOWN.into_iter().filter(|name| open(name).is_some()).collect()
}

/// Opens the device of a number, or the usual one.
type Open = fn(Option<usize>) -> Device;

#[allow(unreachable_patterns, reason = "devices stand and fall with features")]
fn open(name: &str) -> Option<Open> {
    match name {
        "cpu" => Some(|_| Device::flex()),
        #[cfg(feature = "cuda")]
        "cuda" => Some(|number| Device::cuda(number.unwrap_or(0))),
        #[cfg(feature = "rocm")]
        "rocm" => Some(|number| Device::rocm(number.unwrap_or(0))),
        #[cfg(feature = "metal")]
        "metal" => Some(|number| Device::metal(kind(number))),
        #[cfg(feature = "vulkan")]
        "vulkan" => Some(|number| Device::vulkan(kind(number))),
        #[cfg(feature = "wgpu")]
        "wgpu" => Some(|number| Device::wgpu(kind(number))),
        _ => None,
    }
}

/// A graphics processor by its number, or the usual one.
#[cfg(any(feature = "metal", feature = "vulkan", feature = "wgpu"))]
fn kind(number: Option<usize>) -> burn::tensor::DeviceKind {
    number.map_or(burn::tensor::DeviceKind::DefaultDevice, burn::tensor::DeviceKind::DiscreteGpu)
}

/// Opens a device by name: `cpu`, or one that this build was made with (`cuda`, `rocm`, `metal`, `vulkan`, `wgpu`).
///
/// # Errors
/// [`DeviceError`] that lists what this build has; there is no silent fallback.
pub fn device(name: &str) -> Result<Device, DeviceError> {
    numbered(name, None)
}

/// [`device`], of several that a machine has the one of this number, from 0. There is one `cpu`, whatever the number.
///
/// # Errors
/// As [`device`].
pub fn numbered(name: &str, number: Option<usize>) -> Result<Device, DeviceError> {
    match open(name) {
        Some(open) => Ok(open(number)),
        None => {
            let problem = if KNOWN.contains(&name) {
                "needs a build with the feature of that name (cargo build --release --features NAME)"
            } else {
                "is not a device"
            };
            Err(DeviceError { name: name.to_owned(), problem, available: available().join(", ") })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_devices_are_refused_by_name() {
        assert!(device("cpu").is_ok() && numbered("cpu", Some(3)).is_ok());
        let error = device("tpu").unwrap_err().to_string();
        assert!(error.contains("`tpu`") && error.contains("cpu"), "{error}");
    }
}
