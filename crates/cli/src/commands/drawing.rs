//! What is seen of images that are being drawn: progress, the images, and the end at a signal.

use super::{STOPPED, print};
use anyhow::Result;
use calotype_core::{Progress, StopFlag};
use calotype_pipeline::images::{write_next_png, write_png};
use calotype_pipeline::{CutPrompt, DrawnImage, GenerationRecord, Observer, PipelineError, Step};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Time after which a signal is seen to.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Shows how far it is, and writes the images.
pub(crate) struct Writer<'a> {
    records: &'a [GenerationRecord],
    out: &'a Path,
    preview: Option<&'a Path>,
    /// Print the path of each image when it is written.
    tells: bool,
    shared: Shared,
    failure: Option<anyhow::Error>,
}

/// What the thread that waits for signals has to know; whoever writes a file holds it.
#[derive(Clone)]
struct Shared(Arc<Mutex<Shown>>);

struct Shown {
    progress: Progress,
    written: Vec<PathBuf>,
    all: usize,
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
    /// Writes an image for each record into a folder. From now on a signal ends the process.
    pub(crate) fn new(
        records: &'a [GenerationRecord],
        out: &'a Path,
        preview: Option<&'a Path>,
        tells: bool,
        stop: StopFlag,
    ) -> Self {
        let progress = Progress::new("generate", 0).counting(["steps", "steps/s"]);
        let shown = Shown { progress, written: Vec::new(), all: records.len(), ended: false };
        let shared = Shared(Arc::new(Mutex::new(shown)));
        shared.clone().end_at(stop);
        Self { records, out, preview, tells, shared, failure: None }
    }

    /// The files that were written, at the end of the work.
    ///
    /// # Errors
    /// The first failure of a file.
    pub(crate) fn end(mut self) -> Result<Vec<PathBuf>> {
        let mut shown = self.shared.lock();
        shown.ended = true;
        shown.progress.clear();
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

/// The beginning of a long prompt, which names it.
fn beginning(prompt: &str) -> String {
    const SHOWN: usize = 40;
    match prompt.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", prompt[..end].trim_end()),
        None => prompt.to_owned(),
    }
}

impl Observer for Writer<'_> {
    fn prompt_cut(&mut self, cut: &CutPrompt) {
        eprintln!(
            "warning: prompt `{}`: its last {} tokens are not drawn (`{}`); --long-prompts keeps them",
            beginning(&cut.prompt),
            cut.tokens,
            cut.lost
        );
    }

    fn step(&mut self, step: &Step<'_>) {
        // Of all images; those of a batch that is drawn at once count when they are done.
        let steps = step.progress.steps as u64;
        let mut shown = self.shared.lock();
        shown.progress.set_total(steps * self.records.len() as u64);
        shown.progress.set(steps * step.first as u64 + step.progress.step as u64, &[]);
        let preview = self.preview.map(|path| write_png(path, &step.preview(0), &[]).map_err(anyhow::Error::from));
        drop(shown);
        self.note(preview.unwrap_or(Ok(())));
    }

    fn image(&mut self, image: &DrawnImage<'_>) {
        let mut shown = self.shared.lock();
        let texts = self.records[image.index].texts(image.pixels);
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
    fn long_prompts_are_named_by_their_beginning() {
        assert_eq!(beginning("a cat"), "a cat");
        assert_eq!(beginning(&"é".repeat(41)), format!("{}…", "é".repeat(40)));
        assert_eq!(beginning(&"four ".repeat(9)), format!("{}…", "four ".repeat(8).trim_end()));
    }
}
