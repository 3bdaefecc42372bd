//! Sweeps: pictures of a checkpoint, of the kept checkpoints of a training run, or from elsewhere, drawn by a recipe, and judged.
//!
//! A sweep has four sub-stages: `generate` draws a picture for each caption, `features` sends each picture through the networks,
//! `score` makes figures of the features of all pictures, and `plot` writes tables and the report. Each begins where a process that
//! was killed has left it, with the same result to the byte: pictures, and the features of a block of them, are written aside and
//! renamed. A picture depends on its number and not on who draws it; slices of an array of jobs, and the processes of a launcher,
//! take whole blocks.
//!
//! ```text
//! OUT/recipe.toml, drawing.json       the recipe, and what of it decides over pictures
//! OUT/pictures/POINT/image000000.png  POINT is a guidance scale, or SAMPLES/SCALE of a run's checkpoint
//! OUT/features/SET/POINT/00000/       features of a block; SET stands for networks, metrics' needs and captions
//! OUT/scores/POINT.json               figures, and the CLIP score of each picture
//! OUT/report.html, *.csv, …           what `plot` writes
//! ```

mod captions;
mod claim;
mod draw;
mod error;
mod judging;
mod kept;
mod layout;
mod listing;
mod recipe;
mod results;
mod work;

pub use captions::{Caption, Captions, parse_lines, parse_table};
pub use error::SweepError;
pub use kept::KeptCheckpoints;
pub use recipe::{
    CaptionSettings, JudgeSettings, Judged, KIND, NoiseSettings, PictureNoise, ReportSettings, SamplerSettings,
    SeedRule, SweepRecipe,
};

use crate::Figure;
use burn::tensor::Device;
use calotype_collective::Collective;
use calotype_core::folders::DRAWING;
use calotype_core::{FolderLock, StopFlag, names};
use calotype_data::Slice;
use layout::Layout;
use results::Compared;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

names! {
    /// A sub-stage of a sweep.
    SubStage, "sub-stage" {
        /// Draws a picture for each caption.
        Generate = "generate",
        /// Computes features of pictures.
        Features = "features",
        /// Makes figures of features.
        Score = "score",
        /// Writes tables, plots and the report.
        Plot = "plot",
    }
}

/// A sweep, as one process has a part in it.
pub struct Sweep<'a> {
    /// What is judged and how.
    pub recipe: &'a SweepRecipe,
    /// The resolved recipe as TOML.
    pub text: &'a str,
    /// The sweep's folder; its work is continued.
    pub out: &'a Path,
    /// Where networks run.
    pub device: &'a Device,
    /// Asked between pictures.
    pub stop: &'a StopFlag,
    /// The processes that were started together.
    pub collective: &'a dyn Collective,
    /// The slices of the work that these processes do.
    pub slices: &'a [Slice],
    /// The sub-stages that are done.
    pub stages: BTreeSet<SubStage>,
    /// The run that the recipe names, if it does.
    pub run: Option<&'a dyn KeptCheckpoints>,
    /// Whether to wait for checkpoints until the run ends.
    pub follow: bool,
}

/// How a sweep ended.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SweepEnd {
    /// Points that have figures.
    pub scored: usize,
    /// Points that lack features of some pictures, which other slices or sub-stages have to make.
    pub waiting: usize,
    /// Pictures that this process has drawn or judged, now or earlier.
    pub pictures: u64,
    /// What was written into the sweep's folder, the report last.
    pub written: Vec<PathBuf>,
    /// A line for each point: its figures.
    pub lines: Vec<String>,
    /// The figures of each point that has them, with the samples that a run's checkpoint has seen.
    pub figures: Vec<(Option<u64>, Vec<Figure>)>,
    /// The figures of a run's checkpoints as `calotype mlperf finish` reads them, if FID and CLIP score are among them.
    pub mlperf: Option<PathBuf>,
}

/// Finds out what a sweep would before it draws: what the recipe says by itself, its captions, whether the networks are there, and
/// what the report is to be compared with.
///
/// # Errors
/// [`SweepError`] naming the key or file at fault.
pub fn check(recipe: &SweepRecipe, device: &Device) -> Result<(), SweepError> {
    recipe.validate()?;
    recipe.check_captions()?;
    Captions::read(&recipe.captions, recipe.images)?;
    let judge = judging::Judge::open(recipe, device)?;
    judge.check_counts()?;
    judge.check_networks()?;
    draw::check_size(recipe, device)?;
    Compared::read(recipe).map(drop)
}

/// Finds out what a recipe says of its metrics that cannot be, without a look at any file: names, a reference that is missing, and
/// fewer pictures than a metric takes.
///
/// # Errors
/// [`SweepError`] naming the key at fault.
pub fn check_metrics(recipe: &SweepRecipe) -> Result<(), SweepError> {
    judging::Judge::open(recipe, &Device::default())?.check_counts()
}

/// The names of the figures that a recipe asks for, as far as they are known before they are made: distances are called otherwise on
/// other weights than the published ones.
///
/// # Errors
/// [`SweepError`] for metrics that are none, or a network that cannot be read.
pub fn figure_names(recipe: &SweepRecipe) -> Result<BTreeSet<&'static str>, SweepError> {
    judging::Judge::open(recipe, &Device::default())?.figure_names()
}

/// Removes the models that killed processes have written to draw with into a sweep's folder, if no other process works there.
///
/// # Errors
/// [`SweepError::Io`] if they cannot be removed.
pub fn remove_leftovers(out: &Path) -> Result<(), SweepError> {
    let layout = Layout { out: out.to_owned() };
    let models = layout.models();
    if !models.is_dir() {
        return Ok(());
    }
    let folder = layout.slice(Slice::ALL);
    layout::make_folder(&folder)?;
    match FolderLock::take(&folder) {
        Ok(_lock) => layout.remove_models(Slice::ALL),
        Err(_) => Ok(()),
    }
}

impl Sweep<'_> {
    /// Does this process's part of the sub-stages.
    ///
    /// # Errors
    /// [`SweepError`]; [`SweepError::Interrupted`] when a stop is asked for, with everything saved.
    pub fn run(&self) -> Result<SweepEnd, SweepError> {
        self.recipe.validate()?;
        let layout = Layout { out: self.out.to_owned() };
        let begun = layout.out.join(DRAWING).exists();
        if !begun {
            self.recipe.check_model()?;
        }
        if let Err(problem) = self.recipe.check_captions() {
            // Captions are looked for in the model's folder: that it is not there says more.
            self.recipe.check_model()?;
            return Err(problem);
        }
        check_metrics(self.recipe)?;
        let captions = Captions::read(&self.recipe.captions, self.recipe.images)?;
        if !begun && self.stages.contains(&SubStage::Plot) {
            Compared::read(self.recipe)?;
        }
        if let (Judged::Model(path), true) =
            (self.recipe.judged()?, !begun && self.stages.contains(&SubStage::Generate))
        {
            // Before the folder is taken for such pictures.
            draw::Artist::check(Path::new(path), self.recipe, self.device)?;
        }
        let claim = self.claim(&layout, &captions)?;
        let opened = work::Work::open(self, &layout, &captions, claim.networks.as_ref())
            .and_then(|work| work.check_drawing().map(|()| work));
        let mut work = match opened {
            Ok(work) => work,
            Err(problem) => {
                claim.release(&layout, self.slices);
                return Err(problem);
            }
        };
        work.judge_reference()?;
        let mut listed = BTreeSet::new();
        loop {
            let listing = self.next(&listed)?;
            if listing.stopped {
                return Err(SweepError::Interrupted { pictures: work.pictures() });
            }
            for subject in &listing.subjects {
                work.judge(subject)?;
                listed.insert(subject.samples);
            }
            work.plot()?;
            if listing.last {
                return Ok(work.end());
            }
        }
    }
}
