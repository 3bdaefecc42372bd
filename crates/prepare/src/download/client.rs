//! Getting the bytes of one URL: redirects, opt-outs, limits, and other tries.

use std::error::Error as StdError;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use reqwest::header::{CONTENT_TYPE, HeaderMap, LOCATION, RETRY_AFTER};
use reqwest::{Client, Response, redirect};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use url::Url;

use super::DownloadError;
use super::address::{Resolver, Unresolved, check_url};
use super::budget::{Budget, Held, Hosts};
use super::coding::{codings, decoded, too_large};
use super::failure::{Failure, FailureKind};
use super::robots::is_opted_out;

/// Redirects that are followed.
const REDIRECTS: usize = 10;

/// Reservation for a body that does not say how long it is, in bytes.
const UNKNOWN_LENGTH: u64 = 256 << 10;

/// Longest wait before another try, whatever the server asks for.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Beginnings of content types that no image has. They only say what a body is that is no image by its bytes: many
/// scripts that hand out images say `text/html`, for that is what they say by default.
const NO_IMAGES: [&str; 8] = [
    "text/",
    "audio/",
    "video/",
    "font/",
    "multipart/",
    "application/json",
    "application/xhtml",
    "application/javascript",
];

/// Bytes of a body by which an image is known.
const HEAD: usize = 64;

/// Settings of the requests for images.
#[derive(Clone, Debug)]
pub struct FetchOptions {
    /// `User-Agent` of the requests.
    pub user_agent: String,
    /// Name by which `X-Robots-Tag` may address this program, lower case.
    pub robot: String,
    /// Directives of `X-Robots-Tag` that are honoured, lower case.
    pub directives: Vec<String>,
    /// Most requests under way.
    pub concurrency: usize,
    /// Most requests under way at one host.
    pub per_host: usize,
    /// Other tries after a failure that may pass.
    pub retries: u32,
    /// Wait before the second try; it doubles with each.
    pub backoff: Duration,
    /// Time for a connection to be made.
    pub connect_timeout: Duration,
    /// Time for one try, redirects and body included.
    pub timeout: Duration,
    /// Longest body, in bytes.
    pub max_bytes: u64,
    /// Bytes that all bodies in memory may take.
    pub memory: u64,
    /// True if private addresses are asked, too.
    pub allow_private: bool,
    /// Proxy that all requests go through. It resolves the names, so it has to guard its own network.
    pub proxy: Option<String>,
}

/// Gets bytes of URLs within its limits. Made inside of a tokio runtime, shared by all tasks.
pub struct Fetcher {
    client: Client,
    options: FetchOptions,
    hosts: Hosts,
    active: Semaphore,
    budget: Budget,
    received: AtomicU64,
}

/// The bytes of an image, with their reservation of memory.
pub struct Body {
    /// As they came.
    pub bytes: Vec<u8>,
    _held: Held,
}

/// Reason for which there is no body.
#[derive(Debug)]
pub enum FetchError {
    /// The image's or its server's fault.
    Failed(Failure),
    /// This machine's fault, which no other image would escape.
    Fatal(DownloadError),
}

impl From<FailureKind> for FetchError {
    fn from(kind: FailureKind) -> Self {
        FetchError::Failed(kind.into())
    }
}

type Fetched<T> = Result<T, FetchError>;

/// The time that is left of one try. Waiting for places and memory does not count, for it says nothing of the server.
struct Clock {
    left: Duration,
}

impl Clock {
    async fn run<T>(&mut self, work: impl Future<Output = reqwest::Result<T>>) -> Fetched<T> {
        let started = Instant::now();
        let result = timeout(self.left, work).await;
        self.left = self.left.saturating_sub(started.elapsed());
        match result {
            Err(_) => Err(FailureKind::Timeout.into()),
            Ok(result) => result.map_err(|error| classify(&error)),
        }
    }
}

/// Outcome of one request.
enum Step {
    Done(Body),
    Redirect(Url),
}

impl Fetcher {
    /// # Errors
    /// [`DownloadError::Client`] if the options make no client (a proxy's URL, characters of the user agent).
    pub fn new(options: FetchOptions) -> Result<Self, DownloadError> {
        // A provider may be installed already, by another stage of this process: it serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let bad = |source| DownloadError::Client { source };
        let builder = Client::builder()
            .user_agent(&options.user_agent)
            .redirect(redirect::Policy::none())
            .connect_timeout(options.connect_timeout)
            .pool_idle_timeout(Duration::from_secs(5))
            .pool_max_idle_per_host(options.per_host)
            .tcp_nodelay(true);
        let builder = match &options.proxy {
            // The only name that is resolved here is the proxy's, which the user has chosen.
            Some(proxy) => {
                builder.proxy(reqwest::Proxy::all(proxy).map_err(bad)?).dns_resolver(Resolver { allow_private: true })
            }
            None => builder.no_proxy().dns_resolver(Resolver { allow_private: options.allow_private }),
        };
        Ok(Fetcher {
            client: builder.build().map_err(bad)?,
            hosts: Hosts::new(options.per_host),
            active: Semaphore::new(options.concurrency),
            budget: Budget::new(options.memory),
            received: AtomicU64::new(0),
            options,
        })
    }

    /// Bytes of bodies received so far.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// The most bytes of bodies that were in memory at once, by their reservations.
    pub fn peak_memory(&self) -> u64 {
        self.budget.peak()
    }

    /// The bytes of `url`, if need be after several tries.
    ///
    /// # Errors
    /// [`FetchError`]: the failure of the last try.
    pub async fn fetch(&self, url: &str) -> Fetched<Body> {
        for attempt in 0.. {
            match self.attempt(url).await {
                Err(FetchError::Failed(failure)) if failure.kind.is_passing() && attempt < self.options.retries => {
                    tokio::time::sleep(wait(self.options.backoff, url, attempt, failure.retry_after)).await;
                }
                result => return result,
            }
        }
        unreachable!("the loop ends by its last attempt")
    }

    async fn attempt(&self, text: &str) -> Fetched<Body> {
        let mut url = Url::parse(text.trim()).map_err(|_| FailureKind::BadUrl)?;
        let mut clock = Clock { left: self.options.timeout };
        let mut visited = Vec::new();
        loop {
            url.set_fragment(None);
            match self.step(&url, &mut clock).await? {
                Step::Done(body) => return Ok(body),
                Step::Redirect(_) if visited.len() == REDIRECTS => return Err(FailureKind::TooManyRedirects.into()),
                Step::Redirect(next) => visited.push(std::mem::replace(&mut url, next)),
            }
            if visited.contains(&url) {
                return Err(FailureKind::RedirectLoop.into());
            }
        }
    }

    async fn step(&self, url: &Url, clock: &mut Clock) -> Fetched<Step> {
        check_url(url, self.options.allow_private)?;
        let host =
            format!("{}:{}", url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or_default());
        let _at_host = self.hosts.enter(host).await.map_err(closed)?;
        let _active = self.active.acquire().await.map_err(closed)?;
        let response = clock.run(self.client.get(url.clone()).send()).await?;
        match response.status().as_u16() {
            200..=299 => {}
            301 | 302 | 303 | 307 | 308 => return redirected(url, response.headers()).map(Step::Redirect),
            status => {
                let retry_after = retry_after(response.headers());
                let failure = Failure { retry_after, ..FailureKind::Http(status).into() };
                return Err(FetchError::Failed(failure));
            }
        }
        if is_opted_out(response.headers(), &self.options.robot, &self.options.directives) {
            return Err(FailureKind::OptedOut.into());
        }
        self.body(response, clock).await.map(Step::Done)
    }

    async fn body(&self, mut response: Response, clock: &mut Clock) -> Fetched<Body> {
        let longest = self.options.max_bytes;
        let too_large = || FetchError::Failed(too_large(longest));
        let known = response.content_length();
        if known.is_some_and(|length| length > longest) {
            return Err(too_large());
        }
        let codings = codings(response.headers());
        let other_type =
            content_type(response.headers()).filter(|kind| NO_IMAGES.iter().any(|no| kind.starts_with(no)));
        let refuse_other = |bytes: &[u8]| match &other_type {
            Some(kind) if !is_image(bytes) => Err(FetchError::Failed(Failure::new(FailureKind::WrongType, kind))),
            _ => Ok(()),
        };
        let reserved = known.unwrap_or(UNKNOWN_LENGTH.min(longest));
        let mut held = self.budget.take(reserved).await.map_err(closed)?;
        let mut bytes = Vec::with_capacity(known.unwrap_or(0) as usize);
        while let Some(chunk) = clock.run(response.chunk()).await? {
            self.received.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            let length = (bytes.len() + chunk.len()) as u64;
            if length > longest {
                return Err(too_large());
            }
            if length > reserved {
                self.budget.let_grow(&mut held, longest).await.map_err(closed)?;
            }
            let is_first_look = bytes.len() < HEAD && length >= HEAD as u64;
            bytes.extend_from_slice(&chunk);
            // The rest of a page of text need not come.
            if is_first_look && codings.is_empty() {
                refuse_other(&bytes)?;
            }
        }
        if !codings.is_empty() && !is_image(&bytes) {
            // How long it becomes is known when it is there.
            self.budget.let_grow(&mut held, longest).await.map_err(closed)?;
            bytes = tokio::task::block_in_place(|| decoded(bytes, &codings, longest)).map_err(FetchError::Failed)?;
        }
        refuse_other(&bytes)?;
        Ok(Body { bytes, _held: held })
    }
}

/// The semaphores live as long as their owner and are never closed.
fn closed(error: tokio::sync::AcquireError) -> FetchError {
    FetchError::Fatal(DownloadError::Stopped { detail: error.to_string() })
}

fn redirected(from: &Url, headers: &HeaderMap) -> Fetched<Url> {
    let to = headers.get(LOCATION).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    to.and_then(|to| from.join(&to).ok()).ok_or_else(|| FailureKind::BadRedirect.into())
}

/// The type without its parameters, in lower case.
fn content_type(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    Some(value.split(';').next().unwrap_or_default().trim().to_lowercase())
}

/// True for the first bytes of an image, of whatever format.
fn is_image(bytes: &[u8]) -> bool {
    image::guess_format(bytes).is_ok()
}

/// `Retry-After` in seconds or as a date (RFC 9110, section 10.2.3).
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    match value.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => httpdate::parse_http_date(value).ok()?.duration_since(SystemTime::now()).ok(),
    }
}

/// The wait after try `attempt` (from 0): what the server asks for, but no more than a minute, else `first` doubled
/// with each try and spread by half around it, so that the images of a host do not come back all at once. The
/// spread is a function of URL and try, so that runs can be repeated.
fn wait(first: Duration, url: &str, attempt: u32, asked: Option<Duration>) -> Duration {
    let mut hasher = blake3::Hasher::new();
    hasher.update(url.as_bytes()).update(&attempt.to_le_bytes());
    let spread = f64::from(hasher.finalize().as_bytes()[0]) / 255.0;
    let own = first.saturating_mul(2u32.saturating_pow(attempt.min(16))).min(LONGEST_WAIT).mul_f64(0.5 + spread);
    asked.unwrap_or(own).min(LONGEST_WAIT)
}

/// The kind of failure behind a client's error, by its chain of causes.
fn classify(error: &reqwest::Error) -> FetchError {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(this) = cause {
        if let Some(Unresolved(kind)) = this.downcast_ref() {
            return (*kind).into();
        }
        if this.is::<rustls::Error>() {
            return FailureKind::Tls.into();
        }
        let io = this.downcast_ref::<std::io::Error>();
        if let Some(io) = io.filter(|io| matches!(io.raw_os_error(), Some(TOO_MANY_HERE | TOO_MANY_EVERYWHERE))) {
            return FetchError::Fatal(DownloadError::TooManyFiles { detail: io.to_string() });
        }
        // An error inside of one of input and output is not its source, but itself.
        cause = match io.and_then(|io| io.get_ref()) {
            Some(inner) => Some(inner),
            None => this.source(),
        };
    }
    let kind = match error {
        error if error.is_timeout() => FailureKind::Timeout,
        error if error.is_builder() => FailureKind::BadUrl,
        error if error.is_connect() => FailureKind::Connect,
        _ => FailureKind::Broken,
    };
    kind.into()
}

/// EMFILE and ENFILE: the process, or the machine, has too many files open.
const TOO_MANY_HERE: i32 = 24;
const TOO_MANY_EVERYWHERE: i32 = 23;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_are_spread_and_have_an_end() {
        let first = Duration::from_millis(500);
        let own = |attempt| wait(first, "http://a/b.jpg", attempt, None);
        assert_eq!(own(3), own(3));
        assert_ne!(own(3), wait(first, "http://a/c.jpg", 3, None));
        for attempt in 0..40 {
            let middle = first.mul_f64(2f64.powi(attempt)).min(LONGEST_WAIT);
            let got = own(attempt as u32);
            assert!(got >= middle / 2 && got <= LONGEST_WAIT && got <= middle.mul_f64(1.5), "{attempt}: {got:?}");
        }
        assert_eq!(wait(first, "", 0, Some(Duration::from_secs(7))), Duration::from_secs(7));
        assert_eq!(wait(first, "", 0, Some(Duration::from_secs(u64::MAX))), LONGEST_WAIT);
    }

    #[test]
    fn servers_say_when_to_come_back_in_seconds_or_by_date() {
        let read = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, value.parse().unwrap());
            retry_after(&headers)
        };
        assert_eq!(read("120"), Some(Duration::from_secs(120)));
        assert_eq!(read("soon"), None);
        assert_eq!(read("Wed, 21 Oct 2015 07:28:00 GMT"), None);
        let later = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(1000));
        assert!(read(&later).is_some_and(|wait| wait > Duration::from_secs(900)));
    }
}
