//! One process's part of a sweep, sub-stage by sub-stage.

mod early;

use super::draw::Artist;
use super::judging::{Judge, REFERENCE, Scores, Side, drawn, features_of, merged, scores_of};
use super::layout::{Blocks, Layout, Point, make_folder};
use super::listing::Subject;
use super::recipe::{Judged, SweepRecipe};
use super::results::{Results, Shown};
use super::{Captions, SubStage, Sweep, SweepEnd, SweepError};
use crate::state::Reference;
use crate::{EvaluateError, Picture, Pictures};
use calotype_collective::Collective;
use calotype_core::{Progress, durable};
use calotype_data::Slice;
use calotype_pipeline::belonging::Hashes;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// One process's part of a sweep.
pub(super) struct Work<'a> {
    sweep: &'a Sweep<'a>,
    layout: &'a Layout,
    captions: &'a Captions,
    /// Hashes of the model's networks, if they are known already.
    networks: Option<&'a Hashes>,
    judge: Judge<'a>,
    /// Pictures that were made elsewhere, if those are judged.
    foreign: Option<Pictures>,
    /// Which features are kept.
    set: String,
    blocks: Blocks,
    own: Vec<(usize, Slice)>,
    /// The reference's pictures, with their set of features and their blocks.
    reference_pictures: Option<(Pictures, String, Blocks)>,
    reference: Option<Reference>,
    results: Results,
    waiting: usize,
    /// Pictures that this process has done, now or earlier.
    pictures: u64,
}

impl<'a> Work<'a> {
    /// Opens metrics, and lists what there is to judge.
    ///
    /// # Errors
    /// As of [`Judge::open`] and of opening pictures; [`SweepError::Setting`] if there are fewer pictures than the recipe asks for.
    pub fn open(
        sweep: &'a Sweep<'a>,
        layout: &'a Layout,
        captions: &'a Captions,
        networks: Option<&'a Hashes>,
    ) -> Result<Self, SweepError> {
        let recipe = sweep.recipe;
        let mut judge = Judge::open(recipe, sweep.device)?;
        let [features, score] = [SubStage::Features, SubStage::Score].map(|stage| sweep.stages.contains(&stage));
        if features {
            judge.check_networks()?;
        }
        if features || score {
            judge.check_counts()?;
        }
        let foreign = match recipe.judged()? {
            Judged::Pictures(folder) => Some(foreign(folder, recipe.images)?),
            _ => None,
        };
        let digest = match &foreign {
            Some(pictures) => told_and_digested(sweep.collective, "pictures", pictures, recipe.images)?,
            None => String::new(),
        };
        let blocks = Blocks { pictures: recipe.images, size: recipe.block_size };
        let opened = if features || score { judge.reference_pictures()? } else { None };
        let reference_pictures = match opened {
            None => None,
            Some(pictures) => {
                let count = recipe.judge.reference_images.unwrap_or(usize::MAX).min(pictures.len());
                let digest = told_and_digested(sweep.collective, "reference", &pictures, count)?;
                let set = judge.set(Side::Reference, &format!("{digest} {count}"));
                Some((pictures, set, Blocks { pictures: count, size: recipe.block_size }))
            }
        };
        let mut reference = None;
        if features || score {
            reference = judge.statistics(sweep.collective.is_first())?;
            judge.open_networks(reference.as_ref())?;
            let pictures = reference_pictures.as_ref().map(|(_, set, _)| set.as_str());
            judge.compare_with(pictures, reference.as_ref());
        }
        Ok(Self {
            set: judge.set(Side::Judged, &format!("{} {digest}", captions.sha256)),
            own: blocks.of_process(sweep.slices, sweep.collective),
            reference,
            results: Results::default(),
            waiting: 0,
            pictures: 0,
            sweep,
            layout,
            captions,
            networks,
            judge,
            foreign,
            blocks,
            reference_pictures,
        })
    }

    fn recipe(&self) -> &'a SweepRecipe {
        self.sweep.recipe
    }

    fn does(&self, stage: SubStage) -> bool {
        self.sweep.stages.contains(&stage)
    }

    /// Pictures that this process has done.
    pub fn pictures(&self) -> u64 {
        self.pictures
    }

    /// A display of work on so many pictures, of which some are done; other processes than the first show nothing.
    fn progress(&self, stage: &str, total: u64, done: u64) -> Progress {
        let progress = match self.sweep.collective.is_first() {
            true => Progress::new(stage, total),
            false => Progress::with_lines(stage, total, Duration::MAX, Box::new(io::sink())),
        };
        progress.starting_at(done)
    }

    /// Computes this process's part of the reference's features.
    ///
    /// # Errors
    /// As of reading pictures and of the networks; [`SweepError::Interrupted`].
    pub fn judge_reference(&mut self) -> Result<(), SweepError> {
        let outcome = match (&self.reference_pictures, self.does(SubStage::Features)) {
            (Some((pictures, set, blocks)), true) => self.reference_blocks(pictures, set, *blocks),
            _ => Ok(()),
        };
        self.agree(outcome)
    }

    fn reference_blocks(&self, pictures: &Pictures, set: &str, blocks: Blocks) -> Result<(), SweepError> {
        let own = blocks.of_process(self.sweep.slices, self.sweep.collective);
        let folder = |block: usize| self.layout.features(set, REFERENCE, block);
        let (there, missing): (Vec<_>, Vec<_>) = own.into_iter().partition(|(block, _)| folder(*block).is_dir());
        there
            .iter()
            .try_for_each(|(block, _)| self.judge.check_block(&folder(*block), &features_of(set, REFERENCE)))?;
        if missing.is_empty() {
            return Ok(());
        }
        let count =
            |own: &[(usize, Slice)]| own.iter().map(|(block, _)| blocks.range(*block).len() as u64).sum::<u64>();
        let mut done = count(&there);
        let mut progress = self.progress("reference", done + count(&missing), done);
        for (block, slice) in missing {
            let range = blocks.range(block);
            let load = |numbers: Range<usize>| pictures.batch(numbers);
            let at = (folder(block), slice, features_of(set, REFERENCE));
            self.judge.block(Side::Reference, &at, range.clone(), &load, self.sweep.stop)?;
            done += range.len() as u64;
            progress.set(done, &[]);
        }
        progress.finish();
        Ok(())
    }

    /// Draws and judges one subject for all guidance scales; the first process makes the figures.
    ///
    /// # Errors
    /// [`SweepError`].
    pub fn judge(&mut self, subject: &Subject) -> Result<(), SweepError> {
        let points = self.points(subject);
        points.iter().try_for_each(|point| self.check_judge(point))?;
        let Some(model) = self.model(subject, &points)? else { return Ok(()) };
        let mut part = Part::new(self, subject, &points);
        let mut artist = None;
        for point in &points {
            let outcome = self.own_part(&model.path, point, &mut artist, &mut part);
            self.pictures += std::mem::take(&mut part.finished);
            self.agree(outcome)?;
            if self.sweep.collective.is_first() {
                self.score(point)?;
            }
        }
        // Figures are made of what is there, and no picture is gone through.
        if self.does(SubStage::Generate) || self.does(SubStage::Features) {
            part.progress.finish();
        }
        Ok(())
    }

    fn points(&self, subject: &Subject) -> Vec<Point> {
        let samples = subject.samples;
        match &self.foreign {
            Some(_) => vec![Point { samples, guidance: None }],
            None => {
                let scales = self.recipe().sampler.guidance.iter();
                scales.map(|scale| Point { samples, guidance: Some(*scale) }).collect()
            }
        }
    }

    /// Refuses figures of a point, or else features, that other networks made than are there now.
    fn check_judge(&self, point: &Point) -> Result<(), SweepError> {
        if let Some(scores) = self.scores(point)? {
            return self.judge.check_scores(&self.layout.scores(point), &scores);
        }
        let own = self.own.iter().map(|(block, _)| self.folder(point, *block)).filter(|folder| folder.is_dir());
        own.into_iter().try_for_each(|folder| self.judge.check_block(&folder, &self.of(point)))
    }

    /// What the features of a point are of.
    fn of(&self, point: &Point) -> String {
        features_of(&self.set, &point.to_string())
    }

    fn scores(&self, point: &Point) -> Result<Option<Scores>, SweepError> {
        scores_of(self.layout, point, &self.judge, &self.set)
    }

    fn folder(&self, point: &Point, block: usize) -> PathBuf {
        self.layout.features(&self.set, &point.to_string(), block)
    }

    /// Pictures of a block that are not drawn, and still needed.
    fn undrawn(&self, point: &Point, block: usize) -> usize {
        if self.foreign.is_some() || self.folder(point, block).is_dir() {
            return 0;
        }
        self.blocks.range(block).filter(|index| !self.layout.picture(point, *index).is_file()).count()
    }

    /// Pictures of a block that this start draws, or else judges.
    fn open_pictures(&self, point: &Point, block: usize) -> usize {
        let undrawn = if self.does(SubStage::Generate) { self.undrawn(point, block) } else { 0 };
        match undrawn {
            0 if self.does(SubStage::Features) && !self.folder(point, block).is_dir() => self.blocks.range(block).len(),
            undrawn => undrawn,
        }
    }

    /// Whether the figures of a point are there, so that nothing else is needed of it.
    fn is_scored(&self, point: &Point) -> Result<bool, SweepError> {
        Ok(self.scores(point)?.is_some())
    }

    /// The checkpoint to draw with. That of a training run is written as a model first, if any process has to draw; none if it is
    /// gone meanwhile.
    fn model(&self, subject: &Subject, points: &[Point]) -> Result<Option<Model>, SweepError> {
        let (Some(samples), Some(run)) = (subject.samples, self.sweep.run) else {
            return Ok(Some(Model { path: subject.path.clone(), is_temporary: false }));
        };
        let mut needed = false;
        for point in points {
            let draws = self.does(SubStage::Generate) && !self.is_scored(point)?;
            needed |= draws && self.own.iter().any(|(block, _)| self.undrawn(point, *block) > 0);
        }
        let collective = self.sweep.collective;
        let needed = any(&collective.all_gather(&[f32::from(u8::from(needed))])?);
        let slice = self.sweep.slices.first().copied().unwrap_or(Slice::ALL);
        let mut model = Model { path: self.layout.model(samples, slice), is_temporary: false };
        if !needed {
            return Ok(Some(model));
        }
        let mut written = vec![1u8];
        if collective.is_first() {
            model.is_temporary = true;
            model.remove();
            if let Err(source) = run.write_model(samples, self.recipe().averaged, &model.path) {
                if subject.path.is_dir() {
                    return Err(SweepError::Run { path: subject.path.clone(), source });
                }
                tracing::warn!("{}: the run has removed this checkpoint, and it is not judged", subject.path.display());
                written = vec![0];
            }
        }
        collective.broadcast(0, &mut written)?;
        Ok((written == [1]).then_some(model))
    }

    /// This process's blocks of a point.
    fn own_part(
        &self,
        model: &Path,
        point: &Point,
        artist: &mut Option<Artist<'a>>,
        part: &mut Part,
    ) -> Result<(), SweepError> {
        if self.is_scored(point)? {
            return Ok(());
        }
        part.begin();
        let mut claimed = false;
        for (block, slice) in &self.own {
            let (folder, range) = (self.folder(point, *block), self.blocks.range(*block));
            if folder.is_dir() {
                part.finished += range.len() as u64;
                continue;
            }
            let draws = self.does(SubStage::Generate) && !self.is_drawn(point, range.clone());
            if let (Some(guidance), true) = (point.guidance, draws) {
                let artist = self.artist(model, artist)?;
                if !std::mem::replace(&mut claimed, true) {
                    artist.claim(self.layout, point, guidance)?;
                }
                let mut done = || part.drawn();
                artist.draw(self.layout, (point, guidance), (self.blocks, *block), self.sweep.stop, &mut done)?;
            }
            let is_drawn = self.is_drawn(point, range.clone());
            if is_drawn && self.does(SubStage::Features) {
                let load = |numbers: Range<usize>| self.load(point, numbers);
                let at = (folder, *slice, self.of(point));
                let states = self.judge.block(Side::Judged, &at, range.clone(), &load, self.sweep.stop)?;
                part.judged(if draws { 0 } else { range.len() }, self.judge.running(&states)?);
            }
            part.finished += if is_drawn { range.len() as u64 } else { 0 };
        }
        Ok(())
    }

    /// The artist of a checkpoint, loaded when it is first needed.
    fn artist<'m>(&self, model: &Path, artist: &'m mut Option<Artist<'a>>) -> Result<&'m mut Artist<'a>, SweepError> {
        let loaded = match artist.take() {
            Some(loaded) => loaded,
            None => Artist::load(model, self.recipe(), self.captions, self.sweep.device, self.networks)?,
        };
        Ok(artist.insert(loaded))
    }

    /// Whether all pictures of a range are there; those that were made elsewhere are.
    fn is_drawn(&self, point: &Point, mut range: Range<usize>) -> bool {
        self.foreign.is_some() || range.all(|index| self.layout.picture(point, index).is_file())
    }

    /// Pictures of a point with the recipe's captions.
    fn load(&self, point: &Point, numbers: Range<usize>) -> Result<Vec<Picture>, EvaluateError> {
        let Some(foreign) = &self.foreign else { return drawn(self.layout, point, self.captions, numbers) };
        let captions = self.captions.list[numbers.clone()].iter();
        let with =
            |(picture, caption): (Picture, &super::Caption)| Picture { caption: Some(caption.text.clone()), ..picture };
        Ok(foreign.batch(numbers)?.into_iter().zip(captions).map(with).collect())
    }

    /// Waits for the other processes; if one was asked to stop, all stop.
    fn agree(&self, outcome: Result<(), SweepError>) -> Result<(), SweepError> {
        let stopped = match outcome {
            Ok(()) => false,
            Err(error) if error.is_interrupted() => true,
            Err(error) => return Err(error),
        };
        let all = self.sweep.collective.all_gather(&[f32::from(u8::from(stopped))])?;
        match any(&all) {
            true => Err(SweepError::Interrupted { pictures: self.pictures }),
            false => Ok(()),
        }
    }

    /// Makes the figures of a point whose features are all there, and takes those that were made earlier.
    fn score(&mut self, point: &Point) -> Result<(), SweepError> {
        if let Some(scores) = self.scores(point)? {
            self.results.push(*point, scores);
            return Ok(());
        }
        let folders: Vec<PathBuf> = (0..self.blocks.count()).map(|block| self.folder(point, block)).collect();
        let complete = folders.iter().all(|folder| folder.is_dir()) && self.take_reference()?;
        if !self.does(SubStage::Score) || !complete {
            self.waiting += 1;
            return Ok(());
        }
        let scores = self.judge.score(folders.into_iter(), point, self.reference.as_ref(), &self.set)?;
        // Before the figures are there: a process that is killed meanwhile goes on with it.
        if !self.recipe().keep_pictures && self.foreign.is_none() {
            self.remove_pictures(point, &scores)?;
        }
        let path = self.layout.scores(point);
        make_folder(durable::parent_folder(&path))?;
        durable::write_json(&path, &scores).map_err(SweepError::io("write", &path))?;
        self.results.push(*point, scores);
        Ok(())
    }

    /// Joins the reference's features, if its pictures are compared with; false if some are not there yet.
    fn take_reference(&mut self) -> Result<bool, SweepError> {
        if let (None, Some((_, set, blocks))) = (&self.reference, &self.reference_pictures) {
            let folders: Vec<PathBuf> =
                (0..blocks.count()).map(|block| self.layout.features(set, REFERENCE, block)).collect();
            if !folders.iter().all(|folder| folder.is_dir()) {
                return Ok(false);
            }
            let states = merged(folders.into_iter(), &features_of(set, REFERENCE))?;
            self.reference = Some(Reference::Pictures(states));
        }
        Ok(true)
    }

    /// Removes the pictures that the report does not show.
    fn remove_pictures(&self, point: &Point, scores: &Scores) -> Result<(), SweepError> {
        let shown = shown(self.recipe().report.pictures, self.recipe().images, &scores.clip_scores);
        for index in (0..self.recipe().images).filter(|index| !shown.contains(index)) {
            let path = self.layout.picture(point, index);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(SweepError::io("remove", &path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Writes tables and reports of all points that have figures.
    ///
    /// # Errors
    /// As of writing them.
    pub fn plot(&mut self) -> Result<(), SweepError> {
        if !self.sweep.collective.is_first() || !self.does(SubStage::Plot) {
            return Ok(());
        }
        let pictures = Shown { layout: self.layout, foreign: self.foreign.as_ref() };
        self.results.write(self.sweep, self.captions, pictures)
    }

    /// How the sweep ended.
    pub fn end(self) -> SweepEnd {
        self.results.end(self.waiting, self.pictures)
    }
}

/// Says what of pictures is left out, and finds a digest of the first `count`. The first process reads them for all.
fn told_and_digested(
    collective: &dyn Collective,
    what: &str,
    pictures: &Pictures,
    count: usize,
) -> Result<String, SweepError> {
    let mut digest = Vec::new();
    if collective.is_first() {
        pictures.left_out().iter().for_each(|sentence| tracing::warn!("{what}: {sentence}"));
        digest = pictures.digest_of_contents(count)?.into_bytes();
    }
    collective.broadcast(0, &mut digest)?;
    Ok(String::from_utf8_lossy(&digest).into_owned())
}

/// Pictures that were made elsewhere, as many as the recipe asks for.
fn foreign(folder: &str, images: usize) -> Result<Pictures, SweepError> {
    let pictures = Pictures::open(folder)?;
    match pictures.len() {
        count if count < images => {
            let problem = format!("{folder} holds {count} pictures, and `images` asks for {images}; take fewer images");
            Err(super::recipe::setting("pictures", problem))
        }
        _ => Ok(pictures),
    }
}

/// Numbers of the pictures that the report shows: the first ones, and those of the lowest and highest scores.
fn shown(count: usize, images: usize, scores: &[f32]) -> BTreeSet<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]).then(a.cmp(b)));
    let (low, high) = (order.iter().take(count), order.iter().rev().take(count));
    (0..images.min(count)).chain(low.copied()).chain(high.copied()).collect()
}

fn any(flags: &[Vec<f32>]) -> bool {
    flags.iter().flatten().any(|flag| *flag != 0.0)
}

/// The checkpoint that draws; one that was written for it goes with it.
struct Model {
    path: PathBuf,
    is_temporary: bool,
}

impl Model {
    fn remove(&self) {
        // What stays is overwritten by the next start.
        let _ = fs::remove_dir_all(&self.path);
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        if self.is_temporary {
            self.remove();
        }
    }
}

/// What one process shows of its part of a subject.
struct Part {
    progress: Progress,
    /// Pictures that are drawn; where they were there before, those that are judged.
    done: u64,
    /// Pictures of finished blocks since they were last counted.
    finished: u64,
    /// Sum and number of the CLIP scores of the point.
    score: (f64, usize),
}

impl Part {
    fn new(work: &Work<'_>, subject: &Subject, points: &[Point]) -> Self {
        let blocks = || work.own.iter().map(|(block, _)| *block);
        let total = blocks().map(|block| work.blocks.range(block).len() as u64).sum::<u64>() * points.len() as u64;
        let open = |point: &Point| blocks().map(|block| work.open_pictures(point, block) as u64).sum::<u64>();
        let done = total - points.iter().map(open).sum::<u64>();
        let stage = subject.samples.map_or_else(|| "evaluate".to_owned(), |samples| format!("evaluate {samples}"));
        Self { progress: work.progress(&stage, total, done), done, finished: 0, score: (0.0, 0) }
    }

    /// Begins with a point, whose score is its own.
    fn begin(&mut self) {
        self.score = (0.0, 0);
    }

    fn drawn(&mut self) {
        self.done += 1;
        self.show();
    }

    fn judged(&mut self, pictures: usize, score: Option<(f64, usize)>) {
        if let Some((sum, count)) = score {
            self.score = (self.score.0 + sum, self.score.1 + count);
        }
        self.done += pictures as u64;
        self.show();
    }

    fn show(&mut self) {
        let (sum, count) = self.score;
        match count {
            0 => self.progress.set(self.done, &[]),
            _ => self.progress.set(self.done, &[("CLIP score", sum / count as f64)]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_shows_the_first_the_worst_and_the_best() {
        let scores = [0.5, 0.1, 0.9, 0.4, 0.3, 0.8];
        assert_eq!(shown(1, 6, &scores), BTreeSet::from([0, 1, 2]));
        assert_eq!(shown(2, 6, &scores), BTreeSet::from([0, 1, 2, 4, 5]));
        assert_eq!(shown(12, 3, &[]), BTreeSet::from([0, 1, 2]));
        assert_eq!(shown(0, 6, &scores), BTreeSet::new());
    }
}
