//! Requests: headers, redirects, and which failures may pass.

use std::time::Duration;

use reqwest::header::{ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, LOCATION, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Method, Response, StatusCode};
use url::{Origin, Url};

use super::FetchError;
use crate::Error;

const USER_AGENT: &str = concat!("calotype/", env!("CARGO_PKG_VERSION"));
/// Redirects that are followed, about as many as browsers follow; loops end here.
const MOST_REDIRECTS: usize = 10;
/// Longest answer that is read into memory: pages of listings and lists of checksums.
const LONGEST_TEXT: usize = 256 << 20;

/// Sends requests; it knows which host may see which credentials.
pub(super) struct Client {
    http: reqwest::Client,
    credentials: Vec<(Origin, HeaderName, HeaderValue)>,
    /// Reason for which redirects are not followed, if they are not.
    no_redirects: Option<&'static str>,
    /// Requests without progress until a file is given up.
    pub tries: u32,
    /// Pause after the first failure; it doubles with each further one.
    pub pause: Duration,
}

/// Outcome of a request.
pub(super) struct Answer {
    pub response: Response,
    /// Headers of the first answer, which may be a redirect that describes the file.
    pub first: HeaderMap,
}

/// A failed try.
pub(super) enum Failure {
    /// Another try may succeed; the server may tell after what time.
    Passing(FetchError, Option<Duration>),
    /// Another try would fail as well.
    Lasting(Error),
}

impl From<FetchError> for Failure {
    fn from(error: FetchError) -> Self {
        Failure::Lasting(error.into())
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Lasting(error)
    }
}

impl Client {
    /// A client that gives up a file after `tries` requests without progress.
    ///
    /// # Errors
    /// [`FetchError::Unreachable`] if the system's certificates cannot be used.
    pub fn new(tries: u32, pause: Duration) -> Result<Self, FetchError> {
        // Fails if there is one already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .user_agent(USER_AGENT)
            .redirect(Policy::none())
            .connect_timeout(Duration::from_secs(30))
            .read_timeout(Duration::from_secs(60))
            .build()
            .map_err(|error| FetchError::Unreachable { url: "the network".to_owned(), detail: causes(&error) })?;
        Ok(Client { http, credentials: Vec::new(), no_redirects: None, tries, pause })
    }

    /// Sends `token` along with requests to the host of `url`, and to no other.
    pub fn with_token(self, url: &Url, token: &str) -> Self {
        self.with_credential(url, AUTHORIZATION, &format!("Bearer {token}"))
    }

    /// Sends a header along with requests to the host of `url`, and to no other.
    pub fn with_credential(mut self, url: &Url, name: HeaderName, value: &str) -> Self {
        if let Ok(mut value) = HeaderValue::from_str(value) {
            value.set_sensitive(true);
            self.credentials.push((url.origin(), name, value));
        }
        self
    }

    /// Redirects are errors, for this reason.
    pub fn without_redirects(mut self, why: &'static str) -> Self {
        self.no_redirects = Some(why);
        self
    }

    /// One request, redirects followed.
    ///
    /// # Errors
    /// [`Failure`] without an answer; statuses of failure are answers, see [`check`].
    pub async fn request(&self, method: Method, url: &Url, headers: &HeaderMap) -> Result<Answer, Failure> {
        let mut at = url.clone();
        let mut first = None;
        for _ in 0..=MOST_REDIRECTS {
            let mut request = self.http.request(method.clone(), at.clone()).headers(headers.clone());
            // Lengths and ranges are those of the file, not of a compressed form.
            request = request.header(ACCEPT_ENCODING, "identity");
            for (_, name, value) in self.credentials.iter().filter(|(origin, ..)| *origin == at.origin()) {
                request = request.header(name, value);
            }
            let response = request.send().await.map_err(|error| Failure::Passing(unreachable(url, &error), None))?;
            let first = first.get_or_insert_with(|| response.headers().clone());
            if !is_redirect(response.status()) {
                return Ok(Answer { first: std::mem::take(first), response });
            }
            let next = target(url, &at, &response)?;
            if let Some(why) = self.no_redirects {
                return Err(redirect(url, next.as_str(), why).into());
            }
            at = next;
        }
        Err(redirect(url, at.as_str(), "there are more than 10 redirects").into())
    }

    /// Fetches a short text, again after failures that may pass.
    ///
    /// # Errors
    /// [`FetchError`]; `explain` says what to do about refusals.
    pub async fn text(
        &self,
        url: &Url,
        explain: &(dyn Fn(u16, &HeaderMap) -> String + Sync),
    ) -> crate::Result<(Vec<u8>, HeaderMap)> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.text_once(url, tries, explain).await {
                Ok(found) => return Ok(found),
                Err(Failure::Lasting(error)) => return Err(error),
                Err(Failure::Passing(error, _)) if tries >= self.tries => return Err(error.into()),
                Err(Failure::Passing(error, wait)) => self.wait(tries, wait, &error).await,
            }
        }
    }

    async fn text_once(
        &self,
        url: &Url,
        tries: u32,
        explain: &(dyn Fn(u16, &HeaderMap) -> String + Sync),
    ) -> Result<(Vec<u8>, HeaderMap), Failure> {
        let answer = self.request(Method::GET, url, &HeaderMap::new()).await?;
        let mut response = check(url, answer.response, tries, explain)?;
        let mut text = Vec::new();
        while let Some(chunk) =
            response.chunk().await.map_err(|error| Failure::Passing(unreachable(url, &error), None))?
        {
            if text.len() + chunk.len() > LONGEST_TEXT {
                let detail = format!("it is longer than {LONGEST_TEXT} bytes");
                return Err(FetchError::BadListing { url: url.to_string(), detail }.into());
            }
            text.extend_from_slice(&chunk);
        }
        Ok((text, response.headers().clone()))
    }

    /// Waits before try number `tries + 1`: as long as the server asks for, or twice as long as the last time.
    pub async fn wait(&self, tries: u32, asked: Option<Duration>, error: &FetchError) {
        const LONGEST: Duration = Duration::from_secs(60);
        let doubled = self.pause.saturating_mul(1 << (tries - 1).min(16));
        let pause = asked.unwrap_or(doubled).min(LONGEST);
        tracing::warn!("{error}; next try in {:.1} s", pause.as_secs_f64());
        tokio::time::sleep(pause).await;
    }
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

fn target(asked: &Url, at: &Url, response: &Response) -> Result<Url, FetchError> {
    let to = response.headers().get(LOCATION).and_then(|to| to.to_str().ok()).unwrap_or_default();
    let next = at.join(to).map_err(|_| redirect(asked, to, "it is no address"))?;
    if to.is_empty() {
        return Err(redirect(asked, to, "the server does not say where to"));
    }
    match (at.scheme(), next.scheme()) {
        (_, "https") | ("http", "http") => Ok(next),
        (_, "http") => Err(redirect(asked, next.as_str(), "an encrypted transfer must not go on unencrypted")),
        _ => Err(redirect(asked, next.as_str(), "only http and https are fetched from a server")),
    }
}

fn redirect(url: &Url, to: &str, why: &'static str) -> FetchError {
    FetchError::Redirect { url: url.to_string(), to: to.to_owned(), why }
}

/// Passes on answers that carry a file, and names the others.
///
/// # Errors
/// [`Failure`] by status.
pub(super) fn check(
    url: &Url,
    response: Response,
    tries: u32,
    explain: &(dyn Fn(u16, &HeaderMap) -> String + Sync),
) -> Result<Response, Failure> {
    let status = response.status().as_u16();
    let url = url.to_string();
    match status {
        200..=299 => Ok(response),
        401 | 403 | 407 | 451 => {
            Err(FetchError::Refused { url, status, hint: explain(status, response.headers()) }.into())
        }
        408 | 425 | 429 | 500..=599 => {
            let seconds = response.headers().get(RETRY_AFTER).and_then(|text| text.to_str().ok()?.parse().ok());
            Err(Failure::Passing(FetchError::ServerFailure { url, status, tries }, seconds.map(Duration::from_secs)))
        }
        _ => Err(FetchError::NotFound { url, status, hint: explain(status, response.headers()) }.into()),
    }
}

pub(super) fn unreachable(url: &Url, error: &reqwest::Error) -> FetchError {
    FetchError::Unreachable { url: url.to_string(), detail: causes(error) }
}

/// An error with its causes, for the outer ones say little.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// Words about refusals of a server that nothing is known about.
pub(super) fn plain_hint(status: u16, _headers: &HeaderMap) -> String {
    match status {
        401 | 403 => "the server asks for credentials, or does not give this file to everybody".to_owned(),
        404 | 410 => "check the address".to_owned(),
        _ => "the server does not say why".to_owned(),
    }
}
