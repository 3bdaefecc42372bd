//! Features of a UNet's deep blocks that outlive a pass (Ma et al. 2023, "DeepCache", section 3.2).

use burn::tensor::Tensor;

/// Skip connections that DeepCache counts in each level: of the published UNets, those of two residual blocks and of what is
/// before them.
const BRANCHES_PER_LEVEL: usize = 3;

/// A skip connection, by the numbers of DeepCache's `cache_branch_id`: the blocks below it are deep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Branch {
    /// The level, 0 the finest.
    pub level: usize,
    /// Residual blocks of the level that are above it, on the way down.
    pub layer: usize,
}

/// What comes up into the layer that joins a skip connection. A pass that finds it here leaves out every block that is below
/// the connection, on the way down and up, so that it is exact only as far as deep features change slowly from one step to
/// the next; a pass that finds nothing here is a whole one, and leaves it here.
///
/// Branch `3 · level + layer` is the connection behind `layer` residual blocks of a level (DeepCache 0.1.1, `set_params`): 0
/// leaves out all but the first convolution and the last layer of the way up. Passes that share one have the same batch and
/// size.
#[derive(Clone, Debug)]
pub struct DeepFeatures {
    branch: Branch,
    features: Option<Tensor<4>>,
}

impl DeepFeatures {
    /// Nothing yet, for a network of some levels; none beyond its last level.
    pub(crate) fn new(branch: usize, levels: usize) -> Option<Self> {
        let branch = Branch { level: branch / BRANCHES_PER_LEVEL, layer: branch % BRANCHES_PER_LEVEL };
        (branch.level < levels).then_some(Self { branch, features: None })
    }

    /// Branches of a network of some levels.
    pub fn branches(levels: usize) -> usize {
        BRANCHES_PER_LEVEL * levels
    }

    /// Forgets the features, so that the next pass is a whole one.
    pub fn forget(&mut self) {
        self.features = None;
    }

    pub(crate) fn branch(&self) -> Branch {
        self.branch
    }

    pub(crate) fn take(&mut self) -> Option<Tensor<4>> {
        self.features.take()
    }

    pub(crate) fn put(&mut self, features: Tensor<4>) {
        self.features = Some(features);
    }
}
