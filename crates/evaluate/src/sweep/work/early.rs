//! What a start would find out only once features of the reference or pictures are there, found out before.

use super::super::results::Compared;
use super::super::{SubStage, SweepError};
use super::{Artist, Judged, Subject, Work};
use std::path::Path;

impl Work<'_> {
    /// Reads what the report is compared with, and looks at the checkpoint that draws, if anything is left to draw: whether it is
    /// one, its sampler, and whether the memory holds the pictures. The checkpoints of a run are looked at when they come.
    ///
    /// # Errors
    /// [`SweepError::Setting`] naming a key; others as of opening a checkpoint.
    pub fn check_drawing(&self) -> Result<(), SweepError> {
        if self.does(SubStage::Plot) {
            Compared::read(self.recipe())?;
        }
        let Judged::Model(path) = self.recipe().judged()? else { return Ok(()) };
        let subject = Subject { samples: None, path: path.into() };
        let mut draws = false;
        for point in self.points(&subject) {
            let undrawn = self.own.iter().any(|(block, _)| self.undrawn(&point, *block) > 0);
            draws |= undrawn && !self.is_scored(&point)?;
        }
        match draws && self.does(SubStage::Generate) {
            true => Artist::check(Path::new(path), self.recipe(), self.sweep.device),
            false => Ok(()),
        }
    }
}
