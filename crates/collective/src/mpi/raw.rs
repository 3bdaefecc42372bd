//! The few calls of MPI that carry messages. The crate `mpi` has safe ones, but those of its version 0.8 throw away what a
//! call returns: where errors are returned, a message that failed would look like one that came.

use std::ffi::{c_char, c_int, c_void};
use std::fmt;
use std::mem::MaybeUninit;

use mpi::ffi;

use crate::transport::Pool;

/// The longest message that is sent as one; MPI counts bytes in a C `int`.
pub(super) const PIECE: usize = 1 << 30;

/// An MPI call that failed.
#[derive(Debug)]
pub struct MpiFault {
    call: &'static str,
    code: c_int,
}

impl std::error::Error for MpiFault {}

impl fmt::Display for MpiFault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} failed: {}", self.call, text_of(self.code))
    }
}

/// What MPI says of an error.
fn text_of(code: c_int) -> String {
    let mut text = vec![0u8; ffi::MPI_MAX_ERROR_STRING as usize];
    let mut length = 0;
    // SAFETY: the text has room for the longest message, and the length is written before it is read.
    let outcome = unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr().cast::<c_char>(), &mut length) };
    text.truncate(usize::try_from(length).unwrap_or(0));
    match outcome == SUCCESS {
        true => String::from_utf8_lossy(&text).into_owned(),
        false => format!("error {code}"),
    }
}

const SUCCESS: c_int = ffi::MPI_SUCCESS as c_int;

fn checked(call: &'static str, code: c_int) -> Result<(), MpiFault> {
    if code == SUCCESS { Ok(()) } else { Err(MpiFault { call, code }) }
}

/// Errors are returned, instead of ending the process with a message of MPI's.
pub(super) fn return_errors() -> Result<(), MpiFault> {
    // SAFETY: both handles are constants of the library, which is set up.
    let code = unsafe { ffi::MPI_Comm_set_errhandler(ffi::RSMPI_COMM_WORLD, ffi::RSMPI_ERRORS_RETURN) };
    checked("MPI_Comm_set_errhandler", code)
}

/// A request that is not yet done, and the memory it uses. Dropped before it is done, it keeps the memory for ever, since
/// MPI may still use it.
#[derive(Debug)]
struct Request {
    handle: Handle,
    bytes: Vec<u8>,
    done: bool,
}

/// MPI's name of a request.
struct Handle(ffi::MPI_Request);

// SAFETY: a request may be used by any thread, as MPI was set up for that; calls take turns behind a lock.
unsafe impl Send for Handle {}

impl fmt::Debug for Handle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("MPI_Request")
    }
}

impl Request {
    fn is_done(&mut self) -> Result<bool, MpiFault> {
        if self.done {
            return Ok(true);
        }
        let mut flag = 0;
        // SAFETY: the request is live, as it is not done, and its memory is kept by `bytes`.
        let code = unsafe { ffi::MPI_Test(&mut self.handle.0, &mut flag, ffi::RSMPI_STATUS_IGNORE) };
        checked("MPI_Test", code)?;
        self.done = flag != 0;
        Ok(self.done)
    }

    /// The memory, if MPI needs it no more.
    fn into_bytes(mut self) -> Option<Vec<u8>> {
        self.done.then(|| std::mem::take(&mut self.bytes))
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if !self.done {
            std::mem::forget(std::mem::take(&mut self.bytes));
        }
    }
}

/// A message that leaves.
#[derive(Debug)]
pub(super) struct Sending(Request);

impl Sending {
    /// Begins to send at most [`PIECE`] bytes.
    pub(super) fn start(to: usize, tag: c_int, bytes: Vec<u8>) -> Result<Self, MpiFault> {
        let mut handle = MaybeUninit::uninit();
        // SAFETY: the bytes stay where they are, unchanged, until the request is done: `Request` owns and never touches them.
        let code = unsafe {
            ffi::MPI_Isend(
                bytes.as_ptr().cast::<c_void>(),
                bytes.len() as c_int,
                ffi::RSMPI_UINT8_T,
                to as c_int,
                tag,
                ffi::RSMPI_COMM_WORLD,
                handle.as_mut_ptr(),
            )
        };
        checked("MPI_Isend", code)?;
        // SAFETY: a call that succeeded has written the request.
        let handle = Handle(unsafe { handle.assume_init() });
        Ok(Self(Request { handle, bytes, done: false }))
    }

    pub(super) fn is_done(&mut self) -> Result<bool, MpiFault> {
        self.0.is_done()
    }

    /// The memory, if MPI needs it no more.
    pub(super) fn into_bytes(self) -> Option<Vec<u8>> {
        self.0.into_bytes()
    }
}

/// A message that comes.
#[derive(Debug)]
pub(super) struct Receiving {
    pub source: usize,
    pub tag: c_int,
    request: Request,
}

impl Receiving {
    /// Begins to receive the next message of anybody, if there is one.
    pub(super) fn start(pool: &Pool) -> Result<Option<Self>, MpiFault> {
        let (mut found, mut count) = (0, 0);
        let (mut message, mut status) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        // SAFETY: all results are written by a call that succeeds and finds a message.
        let code = unsafe {
            ffi::MPI_Improbe(
                ffi::RSMPI_ANY_SOURCE,
                ffi::RSMPI_ANY_TAG,
                ffi::RSMPI_COMM_WORLD,
                &mut found,
                message.as_mut_ptr(),
                status.as_mut_ptr(),
            )
        };
        checked("MPI_Improbe", code)?;
        if found == 0 {
            return Ok(None);
        }
        // SAFETY: a message was found, so that both are written.
        let (mut message, status): (ffi::MPI_Message, ffi::MPI_Status) =
            unsafe { (message.assume_init(), status.assume_init()) };
        // SAFETY: the status is that of a message of bytes.
        checked("MPI_Get_count", unsafe { ffi::MPI_Get_count(&status, ffi::RSMPI_UINT8_T, &mut count) })?;
        let length = usize::try_from(count).unwrap_or(0);
        let mut bytes = pool.take(length);
        bytes.resize(length, 0);
        let mut handle = MaybeUninit::uninit();
        // SAFETY: the message was found and is received once; the bytes have its length and stay where they are until the request
        // is done, as `Request` owns them.
        let code = unsafe {
            ffi::MPI_Imrecv(
                bytes.as_mut_ptr().cast::<c_void>(),
                count,
                ffi::RSMPI_UINT8_T,
                &mut message,
                handle.as_mut_ptr(),
            )
        };
        checked("MPI_Imrecv", code)?;
        // SAFETY: a call that succeeded has written the request.
        let handle = Handle(unsafe { handle.assume_init() });
        let source = usize::try_from(status.MPI_SOURCE).unwrap_or(usize::MAX);
        Ok(Some(Self { source, tag: status.MPI_TAG, request: Request { handle, bytes, done: false } }))
    }

    pub(super) fn is_done(&mut self) -> Result<bool, MpiFault> {
        self.request.is_done()
    }

    /// The bytes, if they have all come.
    pub(super) fn into_bytes(self) -> Option<Vec<u8>> {
        self.request.into_bytes()
    }
}
