//! The account of a stage: counts of what went in, came out and was left out.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// The account of a stage or of one slice of it. `taken` is always `written` plus what was left out, unless the stage
/// says otherwise.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Account {
    /// Name of the stage.
    pub stage: String,
    /// Samples, rows or files that were looked at.
    pub taken: u64,
    /// Samples, rows or files that were written or found good.
    pub written: u64,
    /// Bytes written, or read where nothing is written.
    pub bytes: u64,
    /// Number left out, by reason.
    pub left_out: BTreeMap<String, u64>,
    /// Time that the work took.
    pub seconds: f64,
    /// Further notes, a sentence each.
    pub notes: Vec<String>,
    /// True for a stage that only looks: what it counts as left out stays where it is.
    #[serde(skip)]
    pub looks_only: bool,
}

impl Account {
    /// An empty account of stage `stage`.
    pub fn new(stage: impl Into<String>) -> Self {
        Account { stage: stage.into(), ..Account::default() }
    }

    /// Counts one more that is left out.
    pub fn leave_out(&mut self, reason: impl Into<String>) {
        *self.left_out.entry(reason.into()).or_default() += 1;
    }

    /// Number left out, for any reason.
    pub fn left_out_in_all(&self) -> u64 {
        self.left_out.values().sum()
    }

    /// Adds another slice's account.
    pub fn add(&mut self, other: &Account) {
        self.taken += other.taken;
        self.written += other.written;
        self.bytes += other.bytes;
        self.seconds += other.seconds;
        for (reason, count) in &other.left_out {
            *self.left_out.entry(reason.clone()).or_default() += count;
        }
        self.notes.extend(other.notes.iter().cloned());
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.taken == 0 && self.seconds == 0.0 && !self.notes.is_empty() {
            // An answer to a question, no work.
            return f.write_str(&self.notes.join("\n"));
        }
        let megabytes = self.bytes as f64 / 1e6;
        let [taken, written, left_out] = match self.looks_only {
            true => ["read", "good", "  faulty"],
            false => ["in", "out", "left out"],
        };
        write!(f, "{}: {} {taken}, {} {written}, ", self.stage, self.taken, self.written)?;
        write!(f, "{megabytes:.1} MB, {:.1} s", self.seconds)?;
        if self.seconds > 0.0 {
            write!(f, ", {:.0} a second", self.taken as f64 / self.seconds)?;
        }
        for (reason, count) in &self.left_out {
            write!(f, "\n  {left_out}: {count:>8}  {reason}")?;
        }
        for note in &self.notes {
            write!(f, "\n  {note}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_add_up_and_say_what_is_missing() {
        let mut all = Account::new("download");
        let mut one = Account { taken: 3, written: 1, bytes: 2_000_000, seconds: 2.0, ..Account::new("download") };
        one.leave_out("http 404");
        one.leave_out("http 404");
        all.add(&one);
        all.add(&one);
        assert_eq!((all.taken, all.written, all.left_out_in_all()), (6, 2, 4));
        let text = all.to_string();
        assert!(text.contains("6 in, 2 out, 4.0 MB, 4.0 s, 2 a second"), "{text}");
        assert!(text.contains("4  http 404"), "{text}");
    }
}
