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

/// The processor's name as it tells it, where the system passes it on.
pub fn processor_name() -> Option<String> {
    let told = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    cpuinfo_field(&told, &["model name", "Model", "cpu model"])
}

/// Names of the instruction sets that the processor says it has, as Linux lists them; empty where that is not known.
pub fn processor_flags() -> Vec<String> {
    let told = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpuinfo_field(&told, &["flags", "Features"]).unwrap_or_default();
    flags.split_whitespace().map(str::to_owned).collect()
}

fn cpuinfo_field(text: &str, names: &[&str]) -> Option<String> {
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.into_iter().find(|(name, _)| names.contains(&name.trim())).map(|(_, value)| value.trim().to_owned())
}

/// Memory of the machine, or of the container where that allows less; in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// In all.
    pub total: u64,
    /// That a new process may still take.
    pub available: u64,
}

/// What memory there is, where the system tells it.
pub fn memory() -> Option<Memory> {
    let mut memory = parse_meminfo(&std::fs::read_to_string("/proc/meminfo").ok()?)?;
    // Control groups of the second and the first version, as a container sees them.
    for (limit, used) in [
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ] {
        let number = |path| std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
        if let Some(limit) = number(limit).filter(|limit| *limit < memory.total) {
            let left = limit.saturating_sub(number(used).unwrap_or(0));
            memory = Memory { total: limit, available: memory.available.min(left) };
        }
    }
    Some(memory)
}

fn parse_meminfo(text: &str) -> Option<Memory> {
    let kib = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    let total = kib("MemTotal:")?.checked_mul(1024)?;
    Some(Memory { total, available: kib("MemAvailable:").map_or(total, |kib| kib.saturating_mul(1024)) })
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

/// A number of things, as `1 sample` or `1,150 samples`.
pub fn counted(count: u64, thing: &str) -> String {
    format!("{} {thing}{}", format_count(count), if count == 1 { "" } else { "s" })
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
    fn processor_and_memory_are_read_as_linux_writes_them() {
        let text = "processor\t: 0\nmodel name\t: AMD EPYC 9B14\nflags\t\t: fpu avx2 avx512f\n\nprocessor\t: 1\n";
        assert_eq!(cpuinfo_field(text, &["model name"]).as_deref(), Some("AMD EPYC 9B14"));
        assert_eq!(cpuinfo_field(text, &["flags"]).as_deref(), Some("fpu avx2 avx512f"));
        assert_eq!(cpuinfo_field("", &["flags"]), None);
        let memory = parse_meminfo("MemTotal:       16384 kB\nMemFree: 1 kB\nMemAvailable:    8192 kB\n");
        assert_eq!(memory, Some(Memory { total: 16 << 20, available: 8 << 20 }));
        assert_eq!(parse_meminfo("MemTotal: x kB"), None);
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
