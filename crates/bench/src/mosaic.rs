//! What MosaicML's diffusion-benchmark defines and publishes.

use serde::Serialize;
use std::collections::VecDeque;
use std::fmt;

/// Images of the schedule that its table of costs is of: Stable Diffusion 2's 550,000 batches of 2,048 images at 256x256 pixels
/// and 850,000 at 512x512. Not stated there; images a second times days of each row give it to within 0.2 %.
pub const SCHEDULE_IMAGES: f64 = (550_000.0 + 850_000.0) * 2048.0;

/// Batches that the throughput is taken over: `SpeedMonitor(window_size=100)`.
pub const WINDOW: usize = 100;

/// Decay of its moving average: a half-life of 1,000 batches, 2^(-1/1000).
pub const EMA_DECAY: f64 = 0.999_307_092_990_452_5;

/// A row of the table of costs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ScheduleCost {
    /// Number of devices.
    pub devices: usize,
    /// Throughput of all devices.
    pub images_per_second: f64,
    /// Duration of the schedule.
    pub days: f64,
    /// Devices times hours.
    pub device_hours: f64,
    /// In dollars; none without a price.
    pub cost: Option<f64>,
}

impl ScheduleCost {
    /// The schedule at a throughput; `price` is that of a device-hour.
    pub fn of(devices: usize, images_per_second: f64, price: Option<f64>) -> Self {
        let hours = SCHEDULE_IMAGES / images_per_second / 3600.0;
        let device_hours = hours * devices as f64;
        let cost = price.map(|price| price * device_hours);
        Self { devices, images_per_second, days: hours / 24.0, device_hours, cost }
    }

    /// A row, whose devices are called `name`.
    fn line(&self, name: &str) -> String {
        let cost = self.cost.map_or("–".to_owned(), |cost| format!("${}", thousands(cost)));
        let Self { images_per_second, days, device_hours, .. } = self;
        let hours = thousands(*device_hours);
        format!("{name:<14} {images_per_second:>10.4} {days:>12.2} {hours:>14} {cost:>14}")
    }
}

/// A whole number in groups of three digits.
fn thousands(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// The published table (README at c7f3cff): A100 with 40 GB, 512x512 pixels, batch 2,048.
pub const PUBLISHED: [ScheduleCost; 6] = [
    published(8, 128.2, 258.83, 49_696.0, 99_000.0),
    published(16, 254.0, 130.63, 50_166.0, 100_000.0),
    published(32, 485.7, 68.33, 52_470.0, 105_000.0),
    published(64, 912.2, 36.38, 55_875.0, 110_000.0),
    published(128, 1618.4, 20.5, 62_987.0, 125_000.0),
    published(256, 2589.4, 12.83, 78_735.0, 160_000.0),
];

const fn published(devices: usize, images_per_second: f64, days: f64, device_hours: f64, cost: f64) -> ScheduleCost {
    ScheduleCost { devices, images_per_second, days, device_hours, cost: Some(cost) }
}

/// Our row, with the published ones below it.
pub(crate) struct Table(pub(crate) ScheduleCost);

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<14} {:>10} {:>12} {:>14} {:>14}", "devices", "images/s", "days", "device-hours", "cost")?;
        write!(f, "{}", self.0.line("this process"))?;
        PUBLISHED.iter().try_for_each(|row| write!(f, "\n{}", row.line(&format!("{} A100", row.devices))))
    }
}

/// The throughput as Composer 0.12's `SpeedMonitor` computes it: samples over wall time of the last batches, from the end of one
/// batch to the end of the next, with waiting for data and without evaluation.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SpeedMonitor {
    window: usize,
    batches: VecDeque<(usize, f64)>,
}

impl SpeedMonitor {
    pub(crate) fn new(window: usize) -> Self {
        Self { window, batches: VecDeque::new() }
    }

    pub(crate) fn add(&mut self, samples: usize, seconds: f64) {
        if self.batches.len() == self.window {
            self.batches.pop_front();
        }
        self.batches.push_back((samples, seconds));
    }

    /// Batches, and their seconds in all.
    pub(crate) fn seen(&self) -> (usize, f64) {
        (self.batches.len(), self.batches.iter().map(|(_, seconds)| seconds).sum())
    }

    pub(crate) fn samples_per_second(&self) -> f64 {
        let samples: usize = self.batches.iter().map(|(samples, _)| samples).sum();
        samples as f64 / self.seen().1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schedule_is_that_of_the_published_table() {
        for row in PUBLISHED {
            let ours = ScheduleCost::of(row.devices, row.images_per_second, Some(2.0));
            assert!((ours.days / row.days - 1.0).abs() < 2e-3, "{row:?}: {} days", ours.days);
            assert!((ours.device_hours / row.device_hours - 1.0).abs() < 3e-3, "{row:?}: {}", ours.device_hours);
            let cost = ours.cost.unwrap() / row.cost.unwrap();
            assert!((cost - 1.0).abs() < 0.03, "{row:?}: {cost}");
        }
        assert!((EMA_DECAY - 0.5f64.powf(1e-3)).abs() < 1e-15);
        assert_eq!(SCHEDULE_IMAGES, 2_867_200_000.0);
    }

    #[test]
    fn the_last_batches_count() {
        let mut monitor = SpeedMonitor::new(2);
        monitor.add(8, 100.0);
        assert_eq!((monitor.samples_per_second(), monitor.seen()), (0.08, (1, 100.0)));
        monitor.add(8, 1.0);
        monitor.add(8, 3.0);
        assert_eq!((monitor.samples_per_second(), monitor.seen()), (4.0, (2, 4.0)));
    }

    #[test]
    fn the_table_has_our_row_first() {
        let table = Table(ScheduleCost::of(1, 0.5, None)).to_string();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 2 + PUBLISHED.len());
        assert!(
            lines[1].starts_with("this process") && lines[1].contains("1,592,889") && lines[1].ends_with('–'),
            "{table}"
        );
        assert!(
            lines[2].starts_with("8 A100") && lines[2].contains("49,696") && lines[2].ends_with("$99,000"),
            "{table}"
        );
        assert_eq!([0.0, 999.0, 1000.4, 1_234_567.0].map(thousands), ["0", "999", "1,000", "1,234,567"]);
    }
}
