//! Where a sweep keeps its work, and how it is cut into blocks.

use super::SweepError;
use calotype_collective::Collective;
use calotype_data::Slice;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// One set of pictures among those that a sweep judges.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Point {
    /// Samples that a run's checkpoint has seen.
    pub samples: Option<u64>,
    /// The guidance scale; none for pictures that were made elsewhere.
    pub guidance: Option<f32>,
}

impl fmt::Display for Point {
    /// The point's folder, as NeMo calls it for a single checkpoint: the guidance scale.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.samples, self.guidance) {
            (Some(samples), Some(guidance)) => write!(f, "{samples}/{guidance}"),
            (Some(samples), None) => write!(f, "{samples}"),
            (None, Some(guidance)) => write!(f, "{guidance}"),
            (None, None) => write!(f, "pictures"),
        }
    }
}

/// The folder of a sweep.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub out: PathBuf,
}

impl Layout {
    /// The folder of a point's pictures.
    pub fn pictures(&self, point: &Point) -> PathBuf {
        self.out.join("pictures").join(point.to_string())
    }

    /// Picture `index` of a point, under NeMo's name.
    pub fn picture(&self, point: &Point, index: usize) -> PathBuf {
        self.pictures(point).join(format!("image{index:06}.png"))
    }

    /// What a point's pictures were drawn with; beside their folder, for in it are pictures alone.
    pub fn drawn(&self, point: &Point) -> PathBuf {
        self.out.join("pictures").join(format!("{point}.json"))
    }

    /// The features of a block of pictures; `of` is a point or the reference, and `set` says which features they are.
    pub fn features(&self, set: &str, of: &str, block: usize) -> PathBuf {
        self.out.join("features").join(set).join(of).join(format!("{block:05}"))
    }

    /// The figures of a point.
    pub fn scores(&self, point: &Point) -> PathBuf {
        self.out.join("scores").join(format!("{point}.json"))
    }

    /// Where models of a run's checkpoints are while they draw.
    pub fn models(&self) -> PathBuf {
        self.out.join(".models")
    }

    /// The model of a run's checkpoint while it draws for a slice.
    pub fn model(&self, samples: u64, slice: Slice) -> PathBuf {
        self.models().join(format!("{samples}-{}", name_of(slice)))
    }

    /// Removes the models that a killed process has left that drew for a slice.
    ///
    /// # Errors
    /// [`SweepError::Io`].
    pub fn remove_models(&self, slice: Slice) -> Result<(), SweepError> {
        let (models, slice) = (self.models(), name_of(slice));
        if !models.is_dir() {
            return Ok(());
        }
        for entry in std::fs::read_dir(&models).map_err(SweepError::io("list", &models))? {
            let path = entry.map_err(SweepError::io("list", &models))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.split_once('-'));
            if name.is_some_and(|(samples, of)| samples.parse::<u64>().is_ok() && of == slice) {
                std::fs::remove_dir_all(&path).map_err(SweepError::io("remove", &path))?;
            }
        }
        Ok(())
    }

    /// The folder that a process has for a slice, so that none other does the same.
    pub fn slice(&self, slice: Slice) -> PathBuf {
        self.slices().join(name_of(slice))
    }

    /// The folder of all slices.
    pub fn slices(&self) -> PathBuf {
        self.out.join(".slices")
    }
}

/// A slice as a part of a file's name.
pub(super) fn name_of(slice: Slice) -> String {
    format!("{}-of-{}", slice.id, slice.count)
}

/// Pictures in blocks of equal size. A block is the unit in which work is shared out and features are kept: whoever does it, and
/// however often it was begun, its result is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Blocks {
    pub pictures: usize,
    pub size: usize,
}

impl Blocks {
    /// Their number.
    pub fn count(self) -> usize {
        self.pictures.div_ceil(self.size.max(1))
    }

    /// The pictures of a block.
    pub fn range(self, block: usize) -> Range<usize> {
        let first = block * self.size;
        first..(first + self.size).min(self.pictures)
    }

    /// The blocks that one process does, with the slice that each is of: of each slice, every world-th one.
    pub fn of_process(self, slices: &[Slice], collective: &dyn Collective) -> Vec<(usize, Slice)> {
        let (rank, world) = (collective.rank(), collective.world());
        let of_slice = |slice: &Slice| {
            let slice = *slice;
            let own = slice.range(self.count()).enumerate().filter(move |(number, _)| number % world == rank);
            own.map(move |(_, block)| (block, slice))
        };
        slices.iter().flat_map(of_slice).collect()
    }
}

/// Makes a folder with those above it.
pub(super) fn make_folder(path: &Path) -> Result<(), SweepError> {
    std::fs::create_dir_all(path).map_err(SweepError::io("make the folder", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use calotype_collective::Local;

    #[test]
    fn every_picture_is_in_one_block_and_every_block_in_one_slice() {
        for (pictures, size) in [(1, 64), (64, 64), (65, 64), (10, 3), (30_000, 64)] {
            let blocks = Blocks { pictures, size };
            let all: Vec<usize> = (0..blocks.count()).flat_map(|block| blocks.range(block)).collect();
            assert_eq!(all, (0..pictures).collect::<Vec<_>>());
            for count in [1, 2, 3, 7] {
                let of = |id| blocks.of_process(&[Slice { id, count }], &Local).into_iter().map(|(block, _)| block);
                assert_eq!((0..count).flat_map(of).collect::<Vec<_>>(), (0..blocks.count()).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn points_have_folders_of_their_own() {
        let point = |samples, guidance| Point { samples, guidance }.to_string();
        assert_eq!(point(None, Some(1.5)), "1.5");
        assert_eq!(point(None, Some(8.0)), "8");
        assert_eq!(point(Some(512_000), Some(8.0)), "512000/8");
        let layout = Layout { out: PathBuf::from("o") };
        let eight = Point { samples: None, guidance: Some(8.0) };
        assert_eq!(layout.picture(&eight, 7), Path::new("o/pictures/8/image000007.png"));
        let of_run = Point { samples: Some(512), guidance: Some(1.5) };
        assert_eq!(layout.drawn(&of_run), Path::new("o/pictures/512/1.5.json"));
    }

    #[test]
    fn models_that_were_left_go_by_slice() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout { out: folder.path().to_owned() };
        let [one, other] = [Slice::ALL, Slice { id: 1, count: 3 }];
        layout.remove_models(one).unwrap();
        let kept = [layout.model(8, other), layout.models().join("notes")];
        for path in kept.iter().chain([&layout.model(8, one), &layout.model(512, one)]) {
            std::fs::create_dir_all(path.join("unet")).unwrap();
        }
        layout.remove_models(one).unwrap();
        assert!(kept.iter().all(|path| path.is_dir()));
        assert_eq!(std::fs::read_dir(layout.models()).unwrap().count(), 2);
    }
}
