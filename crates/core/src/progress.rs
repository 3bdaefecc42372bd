//! Progress for people: a bar on a terminal, an occasional plain line anywhere else.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::system::{format_count, format_duration};

/// Time over which the speed is averaged.
const SPEED_WINDOW_SECONDS: f64 = 30.0;
/// Shortest pause between plain lines; it grows with the time that a stage has taken, so that logs of days stay short.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// Longest pause between plain lines.
const LINE_AT_LEAST_EVERY: Duration = Duration::from_secs(300);
/// A pause is this part of the time that a stage has taken.
const PAUSE_PART: u32 = 20;

/// Progress of one stage, counted in samples. Shows images per second, the given fields and the time left, on
/// standard error.
pub struct Progress {
    stage: String,
    /// What is counted, and the unit of its speed.
    units: [&'static str; 2],
    total: u64,
    samples: u64,
    fields: String,
    speed: Speed,
    display: Display,
    finished: bool,
}

enum Display {
    Bar(ProgressBar),
    Lines { out: Box<dyn Write + Send>, every: Duration, at_most: Duration, last: Option<Instant> },
}

impl Progress {
    /// Starts a stage of `total` samples: a bar if standard error is a terminal, otherwise lines: every ten
    /// seconds at first, then less often, and at least every five minutes.
    pub fn new(stage: &str, total: u64) -> Self {
        if io::stderr().is_terminal() {
            return Self::with_display(stage, total, Display::Bar(new_bar(stage, total)));
        }
        let (out, every, at_most) = (Box::new(io::stderr()), LINE_EVERY, LINE_AT_LEAST_EVERY);
        Self::with_display(stage, total, Display::Lines { out, every, at_most, last: None })
    }

    /// Counts something else than samples: `units` are its name and that of its speed, such as `steps` and `steps/s`.
    pub fn counting(mut self, units: [&'static str; 2]) -> Self {
        self.units = units;
        self
    }

    /// Starts a stage that writes plain lines to `out`, at most one per `every`.
    pub fn with_lines(stage: &str, total: u64, every: Duration, out: Box<dyn Write + Send>) -> Self {
        Self::with_display(stage, total, Display::Lines { out, every, at_most: every, last: None })
    }

    /// Says that the stage continues after `samples`, which must not count as speed.
    pub fn starting_at(mut self, samples: u64) -> Self {
        self.start_at(samples);
        self
    }

    /// [`starting_at`](Self::starting_at) for a stage whose beginning was not known when it was made.
    pub fn start_at(&mut self, samples: u64) {
        self.samples = samples;
        self.speed = Speed::new(samples, Instant::now());
        if let Display::Bar(bar) = &self.display {
            bar.set_position(samples);
        }
    }

    /// Says that the stage turned out to have `total` samples.
    pub fn set_total(&mut self, total: u64) {
        self.total = total;
        if let Display::Bar(bar) = &self.display {
            bar.set_length(total);
        }
    }

    /// Reports that `samples` of the total are done, with named numbers such as the loss.
    pub fn set(&mut self, samples: u64, fields: &[(&str, f64)]) {
        self.set_at(samples, fields, Instant::now());
    }

    /// Shows a line of text without disturbing the bar.
    pub fn message(&mut self, text: &str) {
        match &mut self.display {
            Display::Bar(bar) => bar.println(text),
            Display::Lines { out, .. } => write_line(out.as_mut(), text),
        }
    }

    /// Ends the stage with a last line of totals: the speed is that of all its time. Dropping it unfinished removes the bar and shows nothing.
    pub fn finish(&mut self) {
        if self.finished {
            return;
        }
        self.finish_at(Instant::now());
    }

    fn finish_at(&mut self, now: Instant) {
        self.finished = true;
        let elapsed = now.duration_since(self.speed.started);
        let line = self.line(self.speed.whole(self.samples, now), &format!("  took {}", format_duration(elapsed)));
        match &mut self.display {
            Display::Bar(bar) => {
                bar.println(&line);
                bar.finish_and_clear();
            }
            Display::Lines { out, .. } => write_line(out.as_mut(), &line),
        }
    }

    /// Removes the bar from the terminal, and shows nothing.
    pub fn clear(&mut self) {
        if let Display::Bar(bar) = &self.display {
            bar.finish_and_clear();
        }
    }

    fn with_display(stage: &str, total: u64, display: Display) -> Self {
        let speed = Speed::new(0, Instant::now());
        let units = ["samples", "img/s"];
        Self {
            stage: stage.to_owned(),
            units,
            total,
            samples: 0,
            fields: String::new(),
            speed,
            display,
            finished: false,
        }
    }

    fn set_at(&mut self, samples: u64, fields: &[(&str, f64)], now: Instant) {
        self.samples = samples;
        self.speed.update(samples, now);
        self.fields = fields.iter().fold(String::new(), |mut text, (name, value)| {
            // Writing to a String cannot fail.
            let _ = write!(text, "  {name} {}", format_number(*value));
            text
        });
        let left = self.left();
        let taken = now.duration_since(self.speed.started);
        let line_due = matches!(&self.display, Display::Lines { every, at_most, last, .. }
            if last.is_none_or(|last| now.duration_since(last) >= (taken / PAUSE_PART).clamp(*every, *at_most)));
        let line = if line_due { self.line(self.speed.per_second, &left) } else { String::new() };
        match &mut self.display {
            Display::Bar(bar) => {
                bar.set_position(samples);
                bar.set_message(format!("{}{}{left}", speed_text(self.speed.per_second, self.units[1]), self.fields));
            }
            Display::Lines { out, last, .. } if line_due => {
                *last = Some(now);
                write_line(out.as_mut(), &line);
            }
            Display::Lines { .. } => {}
        }
    }

    fn line(&self, per_second: Option<f64>, tail: &str) -> String {
        let (done, total) = (format_count(self.samples), format_count(self.total));
        format!(
            "{}  {done}/{total} {}{}{}{tail}",
            self.stage,
            self.units[0],
            speed_text(per_second, self.units[1]),
            self.fields
        )
    }

    fn left(&self) -> String {
        let remaining = self.total.saturating_sub(self.samples) as f64;
        let seconds = self.speed.per_second.map(|speed| remaining / speed);
        match seconds.map(Duration::try_from_secs_f64) {
            Some(Ok(left)) => format!("  left {}", format_duration(left)),
            _ => String::new(),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

fn new_bar(stage: &str, total: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    let template = "{prefix}  {wide_bar} {human_pos}/{human_len}{msg}";
    // The template is fixed; should indicatif ever refuse it, its default style serves.
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style);
    bar.set_prefix(stage.to_owned());
    bar
}

/// Progress is a courtesy: a closed standard error must not end a training run.
fn write_line(out: &mut dyn Write, line: &str) {
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Four significant digits; plain for everyday sizes, scientific for the rest.
pub fn format_number(value: f64) -> String {
    let size = value.abs();
    if value == 0.0 || !value.is_finite() {
        return value.to_string();
    }
    if !(1e-3..1e6).contains(&size) {
        return format!("{value:.3e}");
    }
    let digits_before = (size.log10().floor() as i32 + 1).max(1);
    let decimals = (4 - digits_before + i32::from(size < 1.0)).max(0) as usize;
    format!("{value:.decimals$}")
}

/// Samples per second, averaged exponentially over [`SPEED_WINDOW_SECONDS`], each time by its length.
struct Speed {
    started: Instant,
    /// Where the count began, and when.
    first_samples: u64,
    first_time: Instant,
    last_samples: u64,
    last_time: Instant,
    per_second: Option<f64>,
    /// Sum of the weights in the average, below 1 at first.
    weight: f64,
}

impl Speed {
    fn new(samples: u64, now: Instant) -> Self {
        Self {
            started: now,
            first_samples: samples,
            first_time: now,
            last_samples: samples,
            last_time: now,
            per_second: None,
            weight: 0.0,
        }
    }

    fn update(&mut self, samples: u64, now: Instant) {
        let seconds = now.duration_since(self.last_time).as_secs_f64();
        // Going back (a stage used anew) restarts the measurement; too short a time measures only noise.
        if samples < self.last_samples {
            *self = Self { started: self.started, ..Self::new(samples, now) };
            return;
        }
        if seconds < 1e-3 || samples == self.last_samples {
            return;
        }
        let current = (samples - self.last_samples) as f64 / seconds;
        let keep = (-seconds / SPEED_WINDOW_SECONDS).exp();
        self.weight = self.weight * keep + (1.0 - keep);
        let share = (1.0 - keep) / self.weight;
        self.per_second = Some(self.per_second.map_or(current, |old| old + (current - old) * share));
        self.last_samples = samples;
        self.last_time = now;
    }

    /// Samples per second since the count began; none if nothing was done.
    fn whole(&self, samples: u64, now: Instant) -> Option<f64> {
        let seconds = now.duration_since(self.first_time).as_secs_f64();
        let done = samples.saturating_sub(self.first_samples);
        (done > 0 && seconds > 0.0).then(|| done as f64 / seconds)
    }
}

fn speed_text(per_second: Option<f64>, unit: &str) -> String {
    per_second.map(|speed| format!("  {} {unit}", format_speed(speed))).unwrap_or_default()
}

fn format_speed(speed: f64) -> String {
    match speed {
        10.0.. => format!("{speed:.1}"),
        _ => format!("{speed:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Shared {
        fn lines(&self) -> Vec<String> {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap().lines().map(str::to_owned).collect()
        }
    }

    fn lines_progress(total: u64) -> (Progress, Shared) {
        let out = Shared::default();
        (Progress::with_lines("diffusion", total, Duration::from_secs(10), Box::new(out.clone())), out)
    }

    #[test]
    fn lines_carry_speed_fields_and_time_left_at_most_every_so_often() {
        let (mut progress, out) = lines_progress(64_000);
        let start = progress.speed.started;
        for step in 1..=25u64 {
            progress.set_at(step * 160, &[("loss", 0.21434)], start + Duration::from_secs(step));
        }
        progress.message("saved");
        let lines = out.lines();
        assert_eq!(lines[0], "diffusion  160/64,000 samples  160.0 img/s  loss 0.2143  left 6m39s");
        assert_eq!(lines.len(), 4, "{lines:?}");
        assert!(lines[2].starts_with("diffusion  3,360/64,000 samples  160.0 img/s"), "{}", lines[2]);
        assert_eq!(lines[3], "saved");
    }

    #[test]
    fn lines_of_long_stages_are_sparse_and_count_what_is_counted() {
        let out = Shared::default();
        let lines =
            Display::Lines { out: Box::new(out.clone()), every: LINE_EVERY, at_most: LINE_AT_LEAST_EVERY, last: None };
        let mut progress = Progress::with_display("generate", 90_000, lines).counting(["steps", "steps/s"]);
        let start = progress.speed.started;
        for second in 1..=86_400u64 {
            progress.set_at(second, &[], start + Duration::from_secs(second));
        }
        let lines = out.lines();
        assert!((300..420).contains(&lines.len()), "{} lines of a day", lines.len());
        assert_eq!(lines[0], "generate  1/90,000 steps  1.000 steps/s  left 1d00h");
        assert!(lines[3].contains("  31/90,000 steps"), "{}", lines[3]);
    }

    #[test]
    fn samples_before_a_resume_are_not_speed_and_finish_says_it_once() {
        let (progress, out) = lines_progress(1000);
        let mut progress = progress.starting_at(900);
        let start = progress.speed.started;
        progress.set_at(910, &[], start + Duration::from_secs(10));
        assert_eq!(out.lines(), ["diffusion  910/1,000 samples  1.000 img/s  left 1m30s"]);
        progress.finish();
        progress.finish();
        assert_eq!(out.lines().len(), 2);
        assert!(out.lines()[1].contains("took"));
    }

    /// The first of 16 images of a batch comes after all the work, and the others in no time.
    #[test]
    fn the_last_line_divides_by_all_the_time() {
        let (mut progress, out) = lines_progress(16);
        let at = |start: Instant, milliseconds: u64| start + Duration::from_millis(milliseconds);
        let start = progress.speed.started;
        (1..=16).for_each(|image| progress.set_at(image, &[], at(start, 400)));
        progress.finish_at(at(start, 500));
        assert_eq!(out.lines()[1], "diffusion  16/16 samples  32.0 img/s  took 500ms");
        let (mut progress, out) = lines_progress(300);
        progress.start_at(200);
        let start = progress.speed.started;
        progress.set_at(220, &[], at(start, 2000));
        progress.finish_at(at(start, 4000));
        assert_eq!(out.lines()[1], "diffusion  220/300 samples  5.000 img/s  took 4.0s");
    }

    #[test]
    fn a_short_time_counts_little() {
        let (mut progress, _) = lines_progress(10_000);
        let start = progress.speed.started;
        progress.set_at(1000, &[], start + Duration::from_millis(2));
        progress.set_at(1100, &[], start + Duration::from_secs(2));
        let speed = progress.speed.per_second.unwrap();
        assert!((500.0..600.0).contains(&speed), "{speed}");
    }

    #[test]
    fn the_first_line_knows_no_speed_when_nothing_was_done() {
        let (mut progress, out) = lines_progress(10);
        progress.set(0, &[]);
        assert_eq!(out.lines(), ["diffusion  0/10 samples"]);
    }

    #[test]
    fn numbers_have_four_significant_digits() {
        for (value, text) in [
            (0.0, "0"),
            (0.2143, "0.2143"),
            (0.999_99, "1.0000"),
            (1.5, "1.500"),
            (-12.345, "-12.35"),
            (123_456.0, "123456"),
            (1e-4, "1.000e-4"),
            (f64::NAN, "NaN"),
        ] {
            assert_eq!(format_number(value), text);
        }
    }

    #[test]
    fn the_bar_template_is_valid() {
        assert!(ProgressStyle::with_template("{prefix}  {wide_bar} {human_pos}/{human_len}{msg}").is_ok());
    }
}
