//! Reasons for which an image of a list did not become a sample.

use std::borrow::Cow;
use std::time::Duration;

/// The kinds of failures: the rows of the failure table. Where img2dataset has a fixed text for the same thing, the
/// label is that text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FailureKind {
    /// The list's cell is empty, or no URL.
    BadUrl,
    /// Neither http nor https.
    Scheme,
    /// The address belongs to a private, loopback or otherwise special network.
    PrivateAddress,
    /// The host's name has no address.
    Dns,
    /// No connection.
    Connect,
    /// No encrypted connection, or a certificate that nobody vouches for.
    Tls,
    /// No complete answer in time.
    Timeout,
    /// The connection ended in the middle of the answer.
    Broken,
    /// An answer other than success.
    Http(u16),
    /// A redirect to an address that was visited already.
    RedirectLoop,
    /// More redirects than allowed.
    TooManyRedirects,
    /// A redirect to nowhere.
    BadRedirect,
    /// More bytes than allowed.
    TooLarge,
    /// No image, and a content type that no image has.
    WrongType,
    /// A content coding that is not known, or a body that is damaged inside of it.
    BadCoding,
    /// The server opts out of this use of its images.
    OptedOut,
    /// Other bytes than the list's checksum promises.
    HashMismatch,
    /// The bytes are no image of a known format.
    NotAnImage,
    /// The image ends too early.
    Truncated,
    /// More pixels than allowed; such an image is not decoded.
    TooManyPixels,
    /// The image is damaged in another way.
    Undecodable,
    /// A side is shorter than allowed.
    TooSmall,
    /// Width times height is more than allowed.
    AreaTooLarge,
    /// One side is too much longer than the other.
    AspectTooLarge,
    /// The finished image could not be encoded.
    Unencodable,
}

impl FailureKind {
    /// The kind's name in the failure table, in statistics and in `error_message`.
    pub fn label(self) -> Cow<'static, str> {
        use FailureKind::*;
        Cow::Borrowed(match self {
            BadUrl => "bad URL",
            Scheme => "URL is neither http nor https",
            PrivateAddress => "private address",
            Dns => "host name not found",
            Connect => "cannot connect",
            Tls => "TLS failed",
            Timeout => "timed out",
            Broken => "connection broken",
            Http(status) => return Cow::Owned(format!("HTTP {status}")),
            RedirectLoop => "redirect loop",
            TooManyRedirects => "too many redirects",
            BadRedirect => "redirect without a usable address",
            TooLarge => "body too large",
            WrongType => "content type of no image",
            BadCoding => "content encoding that cannot be undone",
            OptedOut => "Use of image disallowed by X-Robots-Tag directive",
            HashMismatch => "hash mismatch",
            NotAnImage => "not an image",
            Truncated => "truncated image",
            TooManyPixels => "too many pixels",
            Undecodable => "image cannot be decoded",
            TooSmall => "image too small",
            AreaTooLarge => "image area too large",
            AspectTooLarge => "aspect ratio too large",
            Unencodable => "image cannot be encoded",
        })
    }

    /// img2dataset's `status`: one name for failures before the bytes were there and checked, one for later failures.
    pub fn status(self) -> &'static str {
        use FailureKind::*;
        match self {
            NotAnImage | Truncated | TooManyPixels | Undecodable | TooSmall | AreaTooLarge | AspectTooLarge
            | Unencodable => "failed_to_resize",
            BadUrl | Scheme | PrivateAddress | Dns | Connect | Tls | Timeout | Broken | Http(_) | RedirectLoop
            | TooManyRedirects | BadRedirect | TooLarge | WrongType | BadCoding | OptedOut | HashMismatch => {
                "failed_to_download"
            }
        }
    }

    /// True if another try may do better.
    pub fn is_passing(self) -> bool {
        use FailureKind::*;
        match self {
            Dns | Connect | Timeout | Broken => true,
            // Request timeout, too early, too many requests; the server's own troubles.
            Http(status) => matches!(status, 408 | 425 | 429 | 500 | 502 | 503 | 504),
            _ => false,
        }
    }
}

/// One failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Its row of the table.
    pub kind: FailureKind,
    /// Further words on the kind; a function of the server's answer alone.
    pub detail: String,
    /// Time that the server asks to wait before another try.
    pub retry_after: Option<Duration>,
}

impl Failure {
    /// A failure with further words.
    pub fn new(kind: FailureKind, detail: impl Into<String>) -> Self {
        Failure { kind, detail: detail.into(), retry_after: None }
    }

    /// The text of `error_message`.
    pub fn message(&self) -> String {
        match self.detail.as_str() {
            "" => self.kind.label().into_owned(),
            detail => format!("{}: {detail}", self.kind.label()),
        }
    }
}

impl From<FailureKind> for Failure {
    fn from(kind: FailureKind) -> Self {
        Failure::new(kind, "")
    }
}
