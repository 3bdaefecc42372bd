//! The time of a UNet's steps.

use crate::json_line;
use calotype_ops::profile::{Pass, ProfileEntry};
use serde::{Serialize, Serializer};
use std::fmt;

/// The operations of the measured steps, and what is left between them.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    rows: Vec<ProfileRow>,
}

/// An operation of one shape in one pass; all figures are of one step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProfileRow {
    /// `forward`, `recompute`, `backward` or `optimizer`.
    #[serde(rename = "profile", serialize_with = "pass_name")]
    pub pass: Pass,
    /// Operation; `between operations` is what the pass took beside them: the framework, sums of gradients, casts.
    pub operation: &'static str,
    /// Shape.
    pub shape: String,
    /// Precision of the activations.
    pub precision: &'static str,
    /// Calls.
    pub calls: f64,
    /// Seconds of all calls.
    pub seconds: f64,
    /// Of the step's time.
    pub share: f64,
    /// GFLOP/s or GB/s, as `unit` says; none between operations.
    pub rate: Option<f64>,
    /// `GFLOP/s` or `GB/s`.
    pub unit: &'static str,
}

fn pass_name<S: Serializer>(pass: &Pass, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(pass.name())
}

impl Profile {
    /// `entries` of `steps` steps, whose passes took `seconds` in all. What has no time of its own there is part of the
    /// backward pass.
    pub(crate) fn new(entries: &[ProfileEntry], seconds: &[(Pass, f64)], steps: usize) -> Self {
        let step: f64 = seconds.iter().map(|(_, seconds)| seconds).sum();
        let steps = steps as f64;
        let timed = |pass| seconds.iter().any(|&(timed, _)| timed == pass);
        let mut rows = Vec::new();
        for pass in [Pass::Forward, Pass::Recompute, Pass::Backward, Pass::Optimizer] {
            let of_pass = entries.iter().filter(|entry| entry.pass == pass);
            rows.extend(of_pass.map(|entry| ProfileRow::new(entry, step, steps)));
            for &(_, total) in seconds.iter().filter(|&&(timed, _)| timed == pass) {
                let within = |of: Pass| of == pass || (pass == Pass::Backward && !timed(of));
                let inside = entries.iter().filter(|entry| within(entry.pass)).map(|entry| entry.seconds);
                let between = total - inside.sum::<f64>();
                rows.push(ProfileRow {
                    pass,
                    operation: "between operations",
                    shape: String::new(),
                    precision: "",
                    calls: 0.0,
                    seconds: between / steps,
                    share: between / step,
                    rate: None,
                    unit: "",
                });
            }
        }
        Self { rows }
    }

    /// Pass by pass, longest first, what is left between operations last.
    pub fn rows(&self) -> &[ProfileRow] {
        &self.rows
    }
}

impl ProfileRow {
    fn new(entry: &ProfileEntry, step: f64, steps: f64) -> Self {
        let (amount, unit) = if entry.flops > 0.0 { (entry.flops, "GFLOP/s") } else { (entry.bytes, "GB/s") };
        Self {
            pass: entry.pass,
            operation: entry.operation,
            shape: entry.shape.clone(),
            precision: entry.precision,
            calls: entry.calls as f64 / steps,
            seconds: entry.seconds / steps,
            share: entry.seconds / step,
            rate: Some(1e-9 * amount / entry.seconds),
            unit,
        }
    }

    /// One JSON object in one line.
    pub fn json(&self) -> String {
        json_line(self)
    }
}

impl fmt::Display for ProfileRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let calls = if self.calls > 0.0 { format!("{}", self.calls) } else { String::new() };
        let rate = self.rate.map_or(String::new(), |rate| format!("{rate:.1}"));
        let line = format!(
            "  {:<20} {:<40} {:>4} {:>6} {:>10.3} ms {:>5.1} % {:>9} {}",
            self.operation,
            self.shape,
            self.precision,
            calls,
            1e3 * self.seconds,
            100.0 * self.share,
            rate,
            self.unit
        );
        f.write_str(line.trim_end())
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last = None;
        for row in &self.rows {
            if last != Some(row.pass) {
                let of_pass = self.rows.iter().filter(|other| other.pass == row.pass);
                let (seconds, share) = of_pass.fold((0.0, 0.0), |sum, row| (sum.0 + row.seconds, sum.1 + row.share));
                let name = row.pass.name();
                let gap = if last.is_some() { "\n" } else { "" };
                writeln!(f, "{gap}{name}: {:.3} ms a step, {:.1} %", 1e3 * seconds, 100.0 * share)?;
                last = Some(row.pass);
            }
            writeln!(f, "{row}")?;
        }
        Ok(())
    }
}
