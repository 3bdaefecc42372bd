//! What is seen of images that are being drawn: progress, the images, and the end at a signal.

use super::{STOPPED, print};
use anyhow::{Result, anyhow, bail};
use calotype_core::{Progress, StopFlag};
use calotype_pipeline::contents::Contents;
use calotype_pipeline::images::{write_next_png, write_preview};
use calotype_pipeline::{CutPrompt, DrawnImage, GenerationRecord, Observer, PipelineError, Step};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::ScopedJoinHandle;
use std::time::Duration;

/// Time after which a signal is seen to.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Shows how far it is, and writes the images.
pub(crate) struct Writer<'a> {
    records: &'a [GenerationRecord],
    drawn_from: DrawnFrom<'a>,
    out: &'a Path,
    preview: Option<&'a Path>,
    /// Print the path of each image when it is written.
    tells: bool,
    shared: Shared,
    failure: Option<anyhow::Error>,
}

/// What images are drawn from, by hashes.
pub(crate) enum DrawnFrom<'a> {
    Known(Contents),
    /// A thread computes them while the first image is drawn, which is not written before.
    Sought(ScopedJoinHandle<'a, Result<Contents>>),
    /// They were sought, which failed and was told.
    Unknown,
}

impl DrawnFrom<'_> {
    /// The hashes, once they are there.
    fn get(&mut self) -> Result<&Contents> {
        *self = match std::mem::replace(self, Self::Unknown) {
            Self::Sought(thread) => {
                let found = thread.join().map_err(|_| anyhow!("the thread that hashes the weights panicked"))?;
                Self::Known(found?)
            }
            found => found,
        };
        match self {
            Self::Known(contents) => Ok(contents),
            _ => bail!("it is not known what the images are drawn from"),
        }
    }
}

/// What the thread that waits for signals has to know; whoever writes a file holds it.
#[derive(Clone)]
struct Shared(Arc<Mutex<Shown>>);

struct Shown {
    progress: Progress,
    written: Vec<PathBuf>,
    all: usize,
    /// Steps of all images; 0 until the first one.
    steps: u64,
    ended: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Shown> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the process soon after a signal, between two files. A step can take minutes, and nothing of it could be kept.
    fn end_at(self, stop: StopFlag) {
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(LOOK_EVERY);
                let mut shown = self.lock();
                if shown.ended {
                    return;
                }
                if stop.is_set() {
                    shown.progress.clear();
                    eprintln!("{}", PipelineError::Stopped { done: shown.written.len(), all: shown.all });
                    std::process::exit(i32::from(STOPPED));
                }
            }
        });
    }
}

impl<'a> Writer<'a> {
    /// Writes an image for each record into a folder, with what it was drawn from. From now on a signal ends the process.
    pub(crate) fn new(
        (records, drawn_from): (&'a [GenerationRecord], DrawnFrom<'a>),
        out: &'a Path,
        preview: Option<&'a Path>,
        tells: bool,
        stop: StopFlag,
    ) -> Self {
        let progress = Progress::new("generate", 0).counting(["steps", "steps/s"]);
        let shown = Shown { progress, written: Vec::new(), all: records.len(), steps: 0, ended: false };
        let shared = Shared(Arc::new(Mutex::new(shown)));
        shared.clone().end_at(stop);
        Self { records, drawn_from, out, preview, tells, shared, failure: None }
    }

    /// The files that were written, at the end of the work.
    ///
    /// # Errors
    /// The first failure of a file.
    pub(crate) fn end(mut self) -> Result<Vec<PathBuf>> {
        let mut shown = self.shared.lock();
        shown.ended = true;
        let (drawn, steps) = (shown.written.len() == shown.all, shown.steps);
        if drawn && steps > 0 {
            shown.progress.set(steps, &[]);
            shown.progress.finish();
        } else {
            shown.progress.clear();
        }
        let written = std::mem::take(&mut shown.written);
        drop(shown);
        self.failure.take().map_or(Ok(written), Err)
    }

    /// Keeps the first failure, which ends the work: what is written later does not undo it.
    fn note(&mut self, written: Result<()>) {
        if let Err(error) = written {
            self.failure.get_or_insert(error);
        }
    }
}

/// The beginning of a long text, which names it.
fn beginning(text: &str) -> String {
    const SHOWN: usize = 40;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", text[..end].trim_end()),
        None => text.to_owned(),
    }
}

impl Observer for Writer<'_> {
    fn prompt_cut(&mut self, cut: &CutPrompt) {
        eprintln!(
            "warning: prompt `{}`: its last {} tokens are not drawn (`{}`); --long-prompts keeps them",
            beginning(&cut.prompt),
            cut.tokens,
            beginning(&cut.lost)
        );
    }

    fn step(&mut self, step: &Step<'_>) {
        // Of all images; those of a batch that is drawn at once count when they are done.
        let steps = step.progress.steps as u64;
        let mut shown = self.shared.lock();
        shown.steps = steps * self.records.len() as u64;
        let all = shown.steps;
        shown.progress.set_total(all);
        shown.progress.set(steps * step.first as u64 + step.progress.step as u64, &[]);
        let preview = self.preview.map(|path| write_preview(path, &step.preview(0)).map_err(anyhow::Error::from));
        drop(shown);
        self.note(preview.unwrap_or(Ok(())));
    }

    fn image(&mut self, image: &DrawnImage<'_>) {
        let contents = match self.drawn_from.get() {
            Ok(contents) => contents.clone(),
            Err(error) => return self.note(Err(error)),
        };
        let record = GenerationRecord { contents, ..self.records[image.index].clone() };
        let texts = record.texts(image.pixels);
        let mut shown = self.shared.lock();
        let written = write_next_png(self.out, image.pixels, &texts).map_err(anyhow::Error::from).and_then(|path| {
            let told = if self.tells { print(&path.display().to_string()) } else { Ok(()) };
            shown.written.push(path);
            told
        });
        drop(shown);
        self.note(written);
    }

    fn go_on(&mut self) -> bool {
        self.failure.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_images_are_drawn_from_is_waited_for() {
        std::thread::scope(|scope| {
            let contents = || Contents::from([("unet of model".to_owned(), "00".to_owned())]);
            let mut found = DrawnFrom::Sought(scope.spawn(move || Ok(contents())));
            assert_eq!(found.get().unwrap()["unet of model"], "00");
            assert_eq!(found.get().unwrap().len(), 1);
            let mut failed = DrawnFrom::Sought(scope.spawn(|| -> Result<Contents> { bail!("cannot read model") }));
            assert!(failed.get().unwrap_err().to_string().contains("cannot read model"));
            assert!(failed.get().is_err(), "no image is written without it");
        });
    }

    #[test]
    fn long_prompts_are_named_by_their_beginning() {
        assert_eq!(beginning("a cat"), "a cat");
        assert_eq!(beginning(&"é".repeat(41)), format!("{}…", "é".repeat(40)));
        assert_eq!(beginning(&"four ".repeat(9)), format!("{}…", "four ".repeat(8).trim_end()));
    }
}
