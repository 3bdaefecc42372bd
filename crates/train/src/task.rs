//! A training task: all that is particular to one kind of training, in one place.
//!
//! A task owns its recipe's tables, says how samples are decoded, which model is trained, which parameters are trained
//! how, what the loss is, and how the result is written in the published layout of its kind. Everything else (order of
//! samples, optimizer, average, checkpoints, resuming, logs, hooks) is the trainer's. `tasks/` holds the tasks, one a
//! file, and the table that makes them known to the command line.

use crate::config::{SettingError, TrainingRecipe, check};
use crate::hooks::PreviewSettings;
use crate::optim::GroupRule;
use crate::record::StepRecord;
use crate::stages::{StageContext, StageError};
use crate::start::Refit;
use burn::module::Module;
use burn::tensor::{DType, Tensor, TensorData};
use calotype_checkpoints::{Component, Export, Placement};
use calotype_collective::{Collective, CollectiveError};
use calotype_data::image::RgbImage;
use calotype_data::{Batch, SampleRef};
use calotype_models::state::values_of;
use calotype_models::{ConfigError, Init, TensorParallel};
use std::ops::Range;
use std::path::Path;

/// Any error of a decoder, a loss or a hook.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Makes an item of a sample and its position in the endless stream; a pure function of both.
pub type Decoder<T> = Box<dyn Fn(u64, &SampleRef<'_>) -> Result<T, BoxError> + Send + Sync>;

/// A batch's loss.
#[derive(Debug)]
pub struct Loss {
    /// The mean over the batch that is minimised, shape `[1]`, `f32`.
    pub value: Tensor<1>,
    /// Named parts of it, for the logs.
    pub parts: Vec<(&'static str, f64)>,
}

impl Loss {
    /// A loss without parts.
    pub fn of(value: Tensor<1>) -> Self {
        Self { value, parts: Vec::new() }
    }
}

/// What the loss of a whole batch is to one of the parts in which the batch goes through the network: its gradient with respect to
/// what the network makes of the part's samples (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited
/// Setup", section 3.2).
#[derive(Clone, Debug)]
pub struct PartLoss {
    /// The loss of the whole batch, or of this process's rows of it.
    pub value: f32,
    /// The gradients of the network's outputs and of what else the loss depends on, in an order that is the task's. The trainer takes the
    /// mean over the parts of all processes: they are multiplied by the number of these, unless each part has the whole of one.
    pub gradients: Vec<Vec<f32>>,
}

impl PartLoss {
    /// The loss of the part, shape `[1]`: its value is that of the whole batch, its gradient with respect to `outputs` is the one that
    /// the whole batch has.
    ///
    /// # Shapes
    /// `outputs`: flat, one for each of [`PartLoss::gradients`] and of its length; in `f32`
    ///
    /// # Panics
    /// If there are no outputs, or their lengths are others.
    pub fn through(&self, outputs: Vec<Tensor<1>>) -> Tensor<1> {
        let outputs = Tensor::cat(outputs, 0);
        let gradients = TensorData::new(self.gradients.concat(), outputs.dims());
        let sum = (outputs.clone() * Tensor::from_data(gradients, &outputs.device())).sum();
        // What the products come to is of no meaning.
        (sum.clone() - sum.detach()).add_scalar(self.value)
    }
}

/// What a loss may ask for beside its batch.
#[derive(Debug)]
pub struct StepContext<'a> {
    /// The processes that share out the batches.
    pub collective: &'a dyn Collective,
    /// Where the loss's inputs are recorded, if this step is recorded.
    pub record: Option<&'a StepRecord>,
}

impl StepContext<'_> {
    /// Records a tensor that the loss saw, as it is, in `f32`; nothing if the step is not recorded.
    pub fn record<const D: usize>(&self, name: &str, tensor: &Tensor<D>) {
        if let Some(record) = self.record {
            record.tensor(name, tensor.dims().to_vec(), values_of(tensor.clone().cast(DType::F32)));
        }
    }

    /// Records images or latents `[batch, height, width, channels]` with the channels first, as PyTorch has them.
    pub fn record_images(&self, name: &str, tensor: &Tensor<4>) {
        if self.record.is_some() {
            self.record(name, &tensor.clone().permute([0, 3, 1, 2]));
        }
    }

    /// Records whole numbers (timesteps, token ids, classes) of a shape.
    pub fn record_integers(&self, name: &str, shape: &[usize], values: impl IntoIterator<Item = i64>) {
        if let Some(record) = self.record {
            record.integers(name, shape.to_vec(), values);
        }
    }

    /// The rows of all processes, in the order of the ranks. Gradients reach our own rows only, multiplied by the number
    /// of processes: the mean of all processes' gradients, which the trainer takes, is then that of the loss over all.
    ///
    /// # Shapes
    /// `[rows, width]` to `[rows of all, width]`
    ///
    /// # Errors
    /// [`CollectiveError`] if a process is gone.
    pub fn gather_rows(&self, rows: Tensor<2>) -> Result<Tensor<2>, CollectiveError> {
        let world = self.collective.world();
        if world == 1 {
            return Ok(rows);
        }
        let ([_, width], device) = (rows.dims(), rows.device());
        let gathered = self.collective.all_gather(&values_of(rows.clone().inner()))?;
        let others = rows.clone().detach().mul_scalar(world as f32 - 1.0);
        let ours = rows.mul_scalar(world as f32) - others;
        let parts = gathered.into_iter().enumerate().map(|(rank, values)| match rank == self.collective.rank() {
            true => ours.clone(),
            false => {
                let height = values.len() / width;
                Tensor::from_data(TensorData::new(values, [height, width]), &device)
            }
        });
        Ok(Tensor::cat(parts.collect(), 0))
    }
}

/// One kind of training.
///
/// To add one: a file in `tasks/` with its recipe ([`training_recipe!`](crate::config)) and this trait, a row in the
/// table of `tasks/mod.rs`, and a recipe in `recipes/training/` whose `kind` is [`Task::KIND`].
pub trait Task: Sized + 'static {
    /// The value of `kind` in its recipes, and the name of the stage in messages.
    const KIND: &'static str;
    /// What is trained, for help texts: a phrase without a full stop.
    const ABOUT: &'static str;

    /// Its recipe: the shared tables and its own.
    type Recipe: TrainingRecipe;
    /// The network.
    type Model: Module;
    /// One decoded sample.
    type Item: Send + 'static;

    /// Checks what the types of the recipe's own tables cannot.
    ///
    /// # Errors
    /// [`SettingError`] naming the first key at fault.
    fn check(recipe: &Self::Recipe) -> Result<(), SettingError>;

    /// Checks the sizes of the network, before anything is built or made: as its configuration would be read back,
    /// and as what the recipe says elsewhere needs them.
    ///
    /// # Errors
    /// [`ConfigError`] naming the first field at fault.
    fn check_model(_: &Self::Recipe) -> Result<(), ConfigError> {
        Ok(())
    }

    /// Looks at the dataset and opens frozen encoders: everything that can be wrong is found out here, before the run's
    /// folder is touched.
    ///
    /// # Errors
    /// [`StageError`].
    fn open(recipe: &Self::Recipe, context: &StageContext<'_>) -> Result<Self, StageError>;

    /// The network with random weights.
    ///
    /// # Errors
    /// [`ConfigError`] naming the field that cannot be.
    fn model(&self, init: &mut Init<'_>) -> Result<Self::Model, ConfigError>;

    /// Checks that so many processes can compute the network's layers together (`distributed.tensor_parallel`).
    ///
    /// # Errors
    /// [`StageError`] naming the key that stands against it: that of the table `[model]` that they do not divide, or of tasks
    /// without [`Task::part_of`] the number of processes.
    fn check_parts(_: &Self::Recipe, processes: usize) -> Result<(), StageError> {
        Ok(check(processes == 1, "distributed.tensor_parallel", || {
            format!(
                "is {processes}, and the network of a run of kind `{}` cannot be shared out; set it to 1: processes then share out \
                 the batches",
                Self::KIND
            )
        })?)
    }

    /// This process's part of the network, which computes together with the others' parts what the whole does. Its parameters are
    /// those of the whole, under the same names and in the same order; some have a part of their rows or columns.
    fn part_of(&self, model: Self::Model, _: &TensorParallel) -> Self::Model {
        model
    }

    /// The component of a checkpoint that the network's weights stand in, for `init_from`.
    fn component(&self) -> Component;

    /// What may differ between the checkpoint of `init_from` and the network.
    fn refit(&self) -> Refit {
        Refit::Nothing
    }

    /// Parameters that are trained differently: frozen, without weight decay, at another learning rate. Rules of the
    /// recipe's optimizer come after these and win.
    fn groups(&self) -> Vec<GroupRule> {
        Vec::new()
    }

    /// The function that background threads decode samples with. What [`Task::notices`] tells is counted in samples at the
    /// positions `counted`, so that each is counted once, however often a run sees it.
    fn decoder(&self, counted: Range<u64>) -> Decoder<Self::Item>;

    /// The same for samples that are evaluated, not trained on.
    fn evaluation_decoder(&self) -> Decoder<Self::Item> {
        self.decoder(0..0)
    }

    /// The loss of a batch, or of this process's part of it. What it computes with is recorded in `step` under the
    /// argument names of the reference implementation.
    ///
    /// # Errors
    /// A frozen encoder that runs in training cannot take the batch, or another process is gone.
    fn loss(&self, model: &Self::Model, batch: Batch<Self::Item>, step: &StepContext<'_>) -> Result<Loss, BoxError>;

    /// Whether the loss compares all samples of a batch with each other: there is a [`Task::compare`].
    const COMPARES_SAMPLES: bool = false;

    /// In front of the losses of a batch's parts, for a loss that compares all samples: looks at all of them, without gradients, and
    /// says what each part's loss is. None if the parts need not know of each other. `parts` are those of this process, `step` knows of
    /// the others.
    ///
    /// # Errors
    /// Those of [`Task::loss`].
    fn compare(
        &self,
        model: &Self::Model,
        parts: &[Batch<Self::Item>],
        step: &StepContext<'_>,
    ) -> Result<Option<Vec<PartLoss>>, BoxError> {
        let _ = (model, parts, step);
        Ok(None)
    }

    /// The loss of a part of which [`Task::compare`] has said what it is.
    ///
    /// # Errors
    /// Those of [`Task::loss`].
    fn part_loss(
        &self,
        model: &Self::Model,
        batch: Batch<Self::Item>,
        part: &PartLoss,
        step: &StepContext<'_>,
    ) -> Result<Loss, BoxError> {
        let _ = part;
        self.loss(model, batch, step)
    }

    /// What is written of a model of this task, in the published layout of its kind. The trainer checks it with a model
    /// without weights before training, so that nothing is trained that cannot be written.
    ///
    /// # Errors
    /// [`StageError`] naming the field that the published configuration cannot say.
    fn published(&self, model: &Self::Model) -> Result<Export<'static>, StageError>;

    /// Writes the trained model to `folder`, which is new: [`Task::published`], and what else belongs to it. Sentences that
    /// the user should read, such as parts that had to be left out, are the result.
    ///
    /// # Errors
    /// [`StageError`].
    fn export(&self, model: &Self::Model, folder: &Path) -> Result<Vec<String>, StageError> {
        Ok(self.published(model)?.write(folder, Placement::New)?.notes)
    }

    /// The frozen encoders that run in training: kind and hash of their weights. They are recorded beside the run, which
    /// is not resumed with others.
    fn encoders(&self) -> Option<String> {
        None
    }

    /// What the user should read at the end: counts of samples in which something was cut or changed.
    fn notices(&self) -> Vec<String> {
        Vec::new()
    }

    /// Whether [`Task::export`] writes a model that draws images of prompts; without, recipes with `[hooks.judge]` are refused.
    const DRAWS: bool = false;

    /// Whether there is a [`Task::preview`]; without one, recipes with `[hooks.preview]` are refused.
    const PREVIEWS: bool = false;

    /// Images that show what the model can do so far, with names, for `[hooks.preview]`. The model has its averaged
    /// weights, without autodiff.
    ///
    /// # Errors
    /// Those of the model.
    fn preview(&self, model: &Self::Model, settings: &PreviewSettings) -> Result<Vec<(String, RgbImage)>, BoxError> {
        let _ = (model, settings);
        Ok(Vec::new())
    }

    /// Floating-point operations of a training step for one sample: forward and backward pass of the network that is trained,
    /// without what is computed twice to save memory. None where nobody has counted them.
    fn training_flops(&self) -> Option<f64> {
        None
    }

    /// Number of timesteps that losses are drawn at; none for tasks without. Those that have them have
    /// [`Task::at_timesteps`].
    fn timesteps(&self) -> Option<usize> {
        None
    }

    /// The batch with each sample at a timestep of the range, which is a function of its position alone. All else stays:
    /// latents, noise, captions. None for tasks without timesteps.
    fn at_timesteps(&self, batch: &Batch<Self::Item>, range: Range<usize>) -> Option<Batch<Self::Item>> {
        let _ = (batch, range);
        None
    }
}
