//! Datasets in MLCommons' storage: a file `NAME.uri` holds the address of a folder, `NAME.md5` beside it the names and
//! checksums of what is in it. Some of them ask for a login, which shows itself as a redirect.

use std::path::{Path, PathBuf};

use reqwest::header::HeaderName;
use url::Url;

use super::FetchError;
use super::digest::parse_sums;
use super::download::Item;
use super::http::{Client, plain_hint};
use super::lists::listed;
use crate::Result;

const LOGIN: &str = "this dataset asks for a login; accept its licence with MLCommons, and set CF_ACCESS_CLIENT_ID and \
                     CF_ACCESS_CLIENT_SECRET to the service token that you are given";

/// `client` as this storage wants it: with the login, if the environment has one, and without redirects.
pub(super) fn prepare(client: Client, url: &Url, env: &dyn Fn(&str) -> Option<String>) -> Client {
    let names =
        [("CF_ACCESS_CLIENT_ID", "cf-access-client-id"), ("CF_ACCESS_CLIENT_SECRET", "cf-access-client-secret")];
    let client = client.without_redirects(LOGIN);
    names.into_iter().fold(client, |client, (variable, header)| match env(variable) {
        Some(value) => client.with_credential(url, HeaderName::from_static(header), &value),
        None => client,
    })
}

/// The files that `url`, the address of a `.uri` file, stands for, and the folder they go to.
///
/// # Errors
/// [`FetchError`] if the two files cannot be fetched, or do not hold what they should.
pub(super) async fn list(client: &Client, url: &Url, out: Option<&Path>) -> Result<(Vec<Item>, PathBuf)> {
    let (text, _) = client.text(url, &plain_hint).await?;
    let bad = |detail: String| FetchError::BadListing { url: url.to_string(), detail };
    let text = String::from_utf8_lossy(&text);
    let base = Url::parse(text.trim())
        .ok()
        .filter(|base| base.scheme() == url.scheme() && base.path_segments().is_some())
        .ok_or_else(|| bad("it should hold the address of a folder".to_owned()))?;
    let last = base.path().trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned();
    let out = out.map_or_else(|| PathBuf::from(&last), Path::to_path_buf);
    if out.as_os_str().is_empty() {
        return Err(bad("its address names no folder; say where to write".to_owned()).into());
    }
    let mut sums_url = url.clone();
    sums_url.set_path(&format!("{}.md5", url.path().trim_end_matches(".uri")));
    let (sums, _) = client.text(&sums_url, &plain_hint).await?;
    let list = sums_url.to_string();
    let sums = parse_sums(&sums).map_err(|source| FetchError::BadSums { list: list.clone(), source })?;
    Ok((listed(base.as_str(), &list, &sums, &out)?, out))
}
