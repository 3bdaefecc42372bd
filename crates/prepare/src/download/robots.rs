//! Opting out by the `X-Robots-Tag` header.

use reqwest::header::HeaderMap;

/// Directives that take a value after a colon; what stands before the colon is not the name of a robot.
const WITH_VALUE: [&str; 4] = ["unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"];

/// True if one of the headers `X-Robots-Tag` holds one of `directives` (lower case) for everybody, or for the robot
/// `token` (lower case). A header may hold a robot's name with a colon, which holds for what follows up to the next
/// name: `noindex, somebot: noai, noimageai`.
///
/// img2dataset reads a name only at the beginning of a header, and by it the rest; what it refuses, this refuses too.
pub fn is_opted_out(headers: &HeaderMap, token: &str, directives: &[String]) -> bool {
    headers
        .get_all("x-robots-tag")
        .iter()
        .any(|value| holds(&String::from_utf8_lossy(value.as_bytes()), token, directives))
}

fn holds(value: &str, token: &str, directives: &[String]) -> bool {
    let value = value.to_lowercase();
    let mut is_for_us = true;
    value.split(',').any(|part| {
        let directive = match part.split_once(':') {
            Some((name, _)) if WITH_VALUE.contains(&name.trim()) => name.trim(),
            Some((name, directive)) => {
                is_for_us = name.trim() == token;
                directive.trim()
            }
            None => part.trim(),
        };
        is_for_us && directives.iter().any(|one| one == directive)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directives_hold_for_everybody_or_for_the_robot_that_they_name() {
        let directives = ["noai", "noimageai", "noindex", "noimageindex"].map(str::to_owned);
        for (value, expected) in [
            ("noai", true),
            ("NoIndex", true),
            (" nofollow , noimageai ", true),
            ("nofollow", false),
            ("", false),
            ("calotype: noai", true),
            ("Calotype: nofollow, noindex", true),
            ("otherbot: noai", false),
            ("otherbot: nofollow, noindex", false),
            ("otherbot: nofollow, calotype: noindex", true),
            ("noindex, otherbot: nofollow", true),
            ("unavailable_after: 25 Jun 2010 15:00:00 PST, noai", true),
            ("max-snippet: 10", false),
            (":::,,:", false),
        ] {
            assert_eq!(holds(value, "calotype", &directives), expected, "{value}");
        }
        let mut headers = HeaderMap::new();
        assert!(!is_opted_out(&headers, "calotype", &directives));
        headers.append("X-Robots-Tag", "nofollow".parse().unwrap());
        headers.append("X-Robots-Tag", "noai".parse().unwrap());
        assert!(is_opted_out(&headers, "calotype", &directives));
        assert!(!is_opted_out(&headers, "calotype", &[]));
    }
}
