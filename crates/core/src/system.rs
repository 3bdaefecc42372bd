//! Facts about this process, and how durations, counts and sizes are written for people.

use std::time::Duration;

/// Largest resident memory of this process so far, in GiB: `VmHWM` of `/proc/self/status` on Linux, otherwise
/// `getrusage`. `None` where the system tells neither.
pub fn peak_rss_gib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok();
    status.as_deref().and_then(parse_peak_kib).or_else(peak_from_getrusage).map(|kib| kib / (1024.0 * 1024.0))
}

fn parse_peak_kib(status: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// In KiB, as Linux gives it; macOS gives bytes.
fn peak_from_getrusage() -> Option<f64> {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).ok()?;
    let unit = if cfg!(target_vendor = "apple") { 1024.0 } else { 1.0 };
    Some(usage.max_rss() as f64 / unit)
}

/// A duration in its two largest units: `850ms`, `9.5s`, `5m12s`, `3h04m`, `2d07h`.
pub fn format_duration(duration: Duration) -> String {
    let tenths = (duration.as_secs_f64() * 10.0).round();
    if duration < Duration::from_millis(999) {
        return format!("{}ms", (duration.as_secs_f64() * 1000.0).round());
    }
    if tenths < 100.0 {
        return format!("{:.1}s", tenths / 10.0);
    }
    // Saturates above five hundred billion years.
    let seconds = duration.as_secs_f64().round() as u64;
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m{:02}s", seconds % 60),
        3600..86_400 => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{}d{:02}h", hours / 24, hours % 24),
    }
}

/// A whole number with a comma between thousands: `12,800`.
pub fn format_count(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A size in the largest binary unit that keeps it at 1 or more: `512 B`, `1.5 KiB`, `3.2 GiB`.
pub fn format_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // 1023.95 would print as 1024.0.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (millis, text) in [
            (0, "0ms"),
            (850, "850ms"),
            (9_500, "9.5s"),
            (9_990, "10s"),
            (59_700, "1m00s"),
            (312_000, "5m12s"),
            (3_600_000, "1h00m"),
            (11_040_000, "3h04m"),
            (198_000_000, "2d07h"),
        ] {
            assert_eq!(format_duration(Duration::from_millis(millis)), text);
        }
        assert!(format_duration(Duration::MAX).ends_with('h'));
    }

    #[test]
    fn counts_and_sizes() {
        for (count, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (12_800, "12,800"), (1_234_567, "1,234,567")] {
            assert_eq!(format_count(count), text);
        }
        for (bytes, text) in
            [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (1_048_575, "1.0 MiB"), (u64::MAX, "16.0 EiB")]
        {
            assert_eq!(format_bytes(bytes), text);
        }
    }

    #[test]
    fn the_peak_is_at_least_what_we_hold_and_both_sources_agree() {
        let held = std::hint::black_box(vec![1u8; 64 << 20]);
        let peak = peak_rss_gib().unwrap();
        assert!(peak * 1024.0 >= 64.0, "{peak} GiB with {} MiB held", held.len() >> 20);
        assert!(peak_from_getrusage().unwrap() >= 65_536.0);
        assert_eq!(parse_peak_kib("VmPeak:\t 9 kB\nVmHWM:\t  2048 kB\n"), Some(2048.0));
        assert_eq!(parse_peak_kib("Name:\tx\n"), None);
    }
}
