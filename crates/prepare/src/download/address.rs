//! Addresses that a list may lead to. A list of URLs is untrusted input: it must not reach the machines behind the
//! firewall (server-side request forgery).
//!
//! Names are checked where they are resolved, by the resolver that the connection itself uses, so that a name which
//! changes its address between check and use (DNS rebinding) gains nothing.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::failure::FailureKind;

/// IPv4 networks of no public host (IANA IPv4 Special-Purpose Address Registry, and multicast): address, prefix.
const SPECIAL_V4: [([u8; 4], u32); 17] = [
    ([0, 0, 0, 0], 8),          // this network (RFC 791)
    ([10, 0, 0, 0], 8),         // private use (RFC 1918)
    ([100, 64, 0, 0], 10),      // carriers' address translation (RFC 6598)
    ([127, 0, 0, 0], 8),        // loopback (RFC 1122)
    ([169, 254, 0, 0], 16),     // link local, and the clouds' metadata services (RFC 3927)
    ([172, 16, 0, 0], 12),      // private use (RFC 1918)
    ([192, 0, 0, 0], 24),       // protocol assignments (RFC 6890)
    ([192, 0, 2, 0], 24),       // documentation (RFC 5737)
    ([192, 88, 99, 0], 24),     // 6to4 relays (RFC 7526)
    ([192, 168, 0, 0], 16),     // private use (RFC 1918)
    ([198, 18, 0, 0], 15),      // benchmarks (RFC 2544)
    ([198, 51, 100, 0], 24),    // documentation (RFC 5737)
    ([203, 0, 113, 0], 24),     // documentation (RFC 5737)
    ([224, 0, 0, 0], 4),        // multicast (RFC 5771)
    ([240, 0, 0, 0], 4),        // reserved (RFC 1112)
    ([255, 255, 255, 255], 32), // broadcast (RFC 919)
    ([168, 63, 129, 16], 32),   // the metadata service of one cloud, on a public address
];

/// IPv6 networks inside of global unicast, 2000::/3, that are special all the same (IANA IPv6 Special-Purpose Address
/// Registry). What lies outside of it is refused as a whole: unique local, link local, multicast, ...
const SPECIAL_V6: [([u16; 3], u32); 3] = [
    ([0x2001, 0, 0], 23),      // protocol assignments, Teredo among them (RFC 2928, RFC 4380)
    ([0x2001, 0x0db8, 0], 32), // documentation (RFC 3849)
    ([0x3fff, 0, 0], 20),      // documentation (RFC 9637)
];

/// True if `address` can belong to a public host: none of the private, loopback, link-local, multicast, unique-local,
/// shared (CGNAT), documentation and reserved networks, also not inside of an IPv6 address (mapped, 6to4, NAT64).
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let bits = u32::from(address);
    !SPECIAL_V4.iter().any(|(network, prefix)| (bits ^ u32::from(Ipv4Addr::from(*network))) >> (32 - prefix) == 0)
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let words = address.segments();
    let embedded = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match words {
        // IPv4-mapped (RFC 4291) and NAT64 (RFC 6052) end at an IPv4 host; 6to4 (RFC 3056) passes through one.
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => is_public_v4(embedded(high, low)),
        [0x2002, high, low, ..] => is_public_v4(embedded(high, low)),
        [first, ..] if first >> 13 != 1 => false,
        _ => {
            let bits = u128::from(address);
            !SPECIAL_V6.iter().any(|([a, b, c], prefix)| {
                let network = u128::from(Ipv6Addr::new(*a, *b, *c, 0, 0, 0, 0, 0));
                (bits ^ network) >> (128 - prefix) == 0
            })
        }
    }
}

/// Refuses a URL that no request should be made for: another scheme than http and https, no host, or (unless allowed)
/// a literal address of a special network. Names are left to [`Resolver`].
///
/// # Errors
/// The kind of failure.
pub fn check_url(url: &url::Url, allow_private: bool) -> Result<(), FailureKind> {
    if !matches!(url.scheme(), "http" | "https") {
        return Err(FailureKind::Scheme);
    }
    let literal = match url.host() {
        None => return Err(FailureKind::BadUrl),
        Some(url::Host::Domain(_)) => None,
        Some(url::Host::Ipv4(v4)) => Some(IpAddr::V4(v4)),
        Some(url::Host::Ipv6(v6)) => Some(IpAddr::V6(v6)),
    };
    match literal {
        Some(address) if !allow_private && !is_public(address) => Err(FailureKind::PrivateAddress),
        _ => Ok(()),
    }
}

/// A resolver that hands out public addresses only, unless told otherwise.
#[derive(Clone, Copy, Debug)]
pub(super) struct Resolver {
    pub allow_private: bool,
}

/// Reason for which a name led nowhere; found again in the chain of causes of a client's error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unresolved(pub FailureKind);

impl fmt::Display for Unresolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.label())
    }
}

impl std::error::Error for Unresolved {}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let allow_private = self.allow_private;
        Box::pin(async move {
            let addresses = lookup(name.as_str(), allow_private).await?;
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

async fn lookup(name: &str, allow_private: bool) -> Result<Vec<SocketAddr>, Unresolved> {
    // Names that never exist (RFC 6761, section 6.4) are not asked for.
    let plain = name.trim_end_matches('.');
    if plain.rsplit('.').next().is_some_and(|top| top.eq_ignore_ascii_case("invalid")) {
        return Err(Unresolved(FailureKind::Dns));
    }
    // The caller replaces port 0 by the URL's.
    let found = tokio::net::lookup_host((name, 0)).await;
    let all: Vec<SocketAddr> = found.map_err(|_| Unresolved(FailureKind::Dns))?.collect();
    if all.is_empty() {
        return Err(Unresolved(FailureKind::Dns));
    }
    let allowed: Vec<SocketAddr> = all.into_iter().filter(|at| allow_private || is_public(at.ip())).collect();
    match allowed.is_empty() {
        true => Err(Unresolved(FailureKind::PrivateAddress)),
        false => Ok(allowed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_hosts_are_public() {
        let special = "0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.127.255.255 127.0.0.1 127.8.8.8 \
             169.254.169.254 172.16.0.1 172.31.255.255 192.0.0.1 192.0.2.9 192.88.99.1 192.168.1.1 198.18.0.1 \
             198.19.255.255 198.51.100.7 203.0.113.255 224.0.0.1 239.255.255.250 240.0.0.1 255.255.255.255 \
             168.63.129.16 :: ::1 ::7f00:1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 64:ff9b::10.0.0.1 \
             64:ff9b:1::1 100::1 2001::1 2001:1ff::1 2001:db8::1 2002:7f00:1::1 2002:c0a8:101::1 3fff::1 5f00::1 \
             fc00::1 fdff::1 fe80::1 fec0::1 ff02::1 4000::1";
        for text in special.split_whitespace() {
            assert!(!is_public(text.parse().unwrap()), "{text}");
        }
        let public = "1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.1 \
             169.253.0.1 172.15.255.255 172.32.0.1 192.0.1.1 192.167.1.1 198.17.1.1 198.20.1.1 223.255.255.255 \
             ::ffff:8.8.8.8 64:ff9b::8.8.8.8 2001:200::1 2001:4860:4860::8888 2002:808:808::1 2606:4700::1111 \
             2a00:1450::1";
        for text in public.split_whitespace() {
            assert!(is_public(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn urls_are_checked_as_the_connection_would_read_them() {
        use FailureKind::{PrivateAddress, Scheme};
        for (text, expected) in [
            ("http://example.com/a.jpg", Ok(())),
            ("https://8.8.8.8/a.jpg", Ok(())),
            ("http://127.0.0.1/", Err(PrivateAddress)),
            ("http://2130706433/", Err(PrivateAddress)),
            ("http://0x7f.1/", Err(PrivateAddress)),
            ("http://0177.0.0.1:80/", Err(PrivateAddress)),
            ("http://[::1]/", Err(PrivateAddress)),
            ("http://[::ffff:7f00:1]/", Err(PrivateAddress)),
            ("http://user:pw@169.254.169.254/latest", Err(PrivateAddress)),
            ("http://１２７.0.0.1/", Err(PrivateAddress)),
            ("file:///etc/passwd", Err(Scheme)),
            ("ftp://8.8.8.8/a.jpg", Err(Scheme)),
            ("data:image/png;base64,AAAA", Err(Scheme)),
        ] {
            assert_eq!(check_url(&url::Url::parse(text).unwrap(), false), expected, "{text}");
        }
        assert_eq!(check_url(&url::Url::parse("http://127.0.0.1/").unwrap(), true), Ok(()));
    }

    #[test]
    fn names_are_checked_by_what_they_resolve_to() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            assert_eq!(lookup("localhost", false).await, Err(Unresolved(FailureKind::PrivateAddress)));
            assert!(!lookup("localhost", true).await.unwrap().is_empty());
            assert_eq!(lookup("a.b.invalid.", true).await, Err(Unresolved(FailureKind::Dns)));
        });
    }
}
