//! Takes the place of `file.rs` in builds without the feature `remote`: no address can be opened, so that there is no
//! [`RemoteFile`].

use std::convert::Infallible;
use std::path::Path;

use bytes::Bytes;

use super::RemoteOptions;
use super::cache::Facts;
use crate::Result;
use crate::source::lacks;

pub(crate) struct Stores;

#[derive(Clone)]
pub(crate) struct RemoteFile(Infallible);

impl Stores {
    pub fn new(_: RemoteOptions) -> Self {
        Stores
    }

    /// Refuses the address.
    pub fn file(&self, address: &str) -> Result<RemoteFile> {
        // A query may hold a signature.
        Err(lacks("remote", address.split('?').next().unwrap_or_default()))
    }
}

impl RemoteFile {
    pub fn shown(&self) -> String {
        match self.0 {}
    }

    pub fn address(&self) -> &str {
        match self.0 {}
    }

    pub fn name(&self) -> &str {
        match self.0 {}
    }

    pub fn read(&self, _: u64) -> Result<Option<Bytes>> {
        match self.0 {}
    }

    pub fn list(&self) -> Result<Vec<String>> {
        match self.0 {}
    }

    pub(super) fn fetch(&self, _: &Path, _: Option<u64>, _: impl FnMut(&Facts) -> Result<()>) -> Result<()> {
        match self.0 {}
    }
}
