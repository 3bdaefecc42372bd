//! Changes of logs.

use calotype_mlperf::Log;
use std::path::Path;

pub fn is_of(line: &str, key: &str) -> bool {
    line.contains(&format!("\"key\": \"{key}\""))
}

/// A log without the lines of a key.
pub fn without(log: &str, key: &str) -> String {
    log.split_inclusive('\n').filter(|line| !is_of(line, key)).collect()
}

/// A log in which something is exchanged in the lines of a key.
pub fn with(log: &str, key: &str, from: &str, to: &str) -> String {
    let changed = |line: &str| if is_of(line, key) { line.replacen(from, to, 1) } else { line.to_owned() };
    let changed: String = log.split_inclusive('\n').map(changed).collect();
    assert!(changed != log, "{key}: there is no {from}");
    changed
}

/// A log in which the lines of a key have another value.
pub fn value(log: &str, key: &str, to: &str) -> String {
    let set = |line: &str| {
        let start = line.find("\"value\": ").unwrap() + "\"value\": ".len();
        let end = line.find(", \"metadata\"").unwrap();
        format!("{}{to}{}", &line[..start], &line[end..])
    };
    let changed = log.split_inclusive('\n').map(|line| if is_of(line, key) { set(line) } else { line.to_owned() });
    changed.collect()
}

/// When a line was logged.
pub fn time_of(log: &str, key: &str) -> i64 {
    let log = Log::parse(Path::new("log"), log.as_bytes());
    log.lines().find(|(_, line)| line.key == key).unwrap().1.time_ms as i64
}

/// A log in which a line has another time.
pub fn at(log: &str, key: &str, time: i64) -> String {
    with(log, key, &format!("\"time_ms\": {}", time_of(log, key)), &format!("\"time_ms\": {time}"))
}

/// A log with the first line of a key once more, changed.
pub fn again(log: &str, key: &str, change: impl Fn(&str) -> String) -> String {
    let mut first = true;
    let repeat = |line: &str| {
        let repeats = first && is_of(line, key);
        first &= !repeats;
        if repeats { format!("{line}{}", change(line)) } else { line.to_owned() }
    };
    log.split_inclusive('\n').map(repeat).collect()
}

/// A log with the lines of a key in front of the first line of another.
pub fn moved(log: &str, key: &str, before: &str) -> String {
    let lines: String = log.split_inclusive('\n').filter(|line| is_of(line, key)).collect();
    let rest = without(log, key);
    let at = rest.split_inclusive('\n').take_while(|line| !is_of(line, before)).map(str::len).sum();
    format!("{}{lines}{}", &rest[..at], &rest[at..])
}

/// A log with a line in front of the end of the run.
pub fn inserted(log: &str, line: &str) -> String {
    let at = log.find('\n').unwrap() + 1;
    format!("{}{line}\n{}", &log[..at], &log[at..])
}
