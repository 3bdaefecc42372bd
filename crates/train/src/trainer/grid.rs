//! The processes of a run as a grid: neighbours compute the layers of the network together (`distributed.tensor_parallel`), and groups
//! of such neighbours share out the batches.
//!
//! Rank `r` is process `r mod n` of its group of `n` neighbours, with part `r mod n` of the weights that are shared out. What is not
//! shared out, parameters, moments and gradients, is the same at all neighbours, to the bit: nothing of it is sent.

use super::TrainError;
use crate::checkpoint::{Checkpoint, module_tensors};
use crate::config::{SettingError, TrainingRecipe, check};
use crate::stages::StageContext;
use crate::task::Task;
use burn::tensor::Device;
use calotype_collective::{Collective, CollectiveError};
use calotype_models::{Init, TensorParallel, state};
use calotype_ops::parallel::Peers;
use calotype_ops::uses_kernels;
use calotype_weights::TensorFileError;
use half::bf16;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The key that makes groups of neighbours.
pub(super) const KEY: &str = "distributed.tensor_parallel";

/// Who a process shares the layers with, and who the batches.
pub(super) struct Grid<'a> {
    run: &'a dyn Collective,
    /// The processes in the same place of all groups of neighbours; none where a group is one process: all of the run.
    data: Option<Box<dyn Collective>>,
    /// The neighbours, where there are some.
    tensor: Option<Arc<Neighbours>>,
    cuts: Cuts,
}

impl<'a> Grid<'a> {
    /// Of the processes of a run, as its recipe has it. Nothing is sent.
    ///
    /// # Errors
    /// [`TrainError::Setting`]: they do not make up such a grid, or the device cannot do it; [`TrainError::Record`]: parts of a
    /// network cannot be recorded.
    pub(super) fn of<R: TrainingRecipe>(recipe: &R, context: &StageContext<'a>) -> Result<Self, TrainError> {
        let (run, settings) = (context.collective, recipe.distributed());
        settings.check_world(&recipe.config(), run.world())?;
        let together = settings.sharing_layers(run.world());
        if together == 1 {
            return Ok(Self { run, data: None, tensor: None, cuts: Cuts::default() });
        }
        check(uses_kernels(context.device), KEY, || {
            "layers are computed together on the CPU alone: set it to 1, or use --device cpu".to_owned()
        })?;
        if let Some(record) = context.record {
            let problem = format!("each process has a part of the network ({KEY}): record with one process");
            return Err(TrainError::Record { path: record.path.clone(), problem });
        }
        let (rank, world) = (run.rank(), run.world());
        let first = rank / together * together;
        let neighbours: Vec<usize> = (first..first + together).collect();
        let others: Vec<usize> = (rank % together..world).step_by(together).collect();
        let tensor = Neighbours { collective: run.split(&neighbours)?, failed: Mutex::default() };
        let data = Some(run.split(&others)?);
        Ok(Self { run, data, tensor: Some(Arc::new(tensor)), cuts: Cuts::default() })
    }

    /// This process's part of a network; all of it where no layers are shared out.
    pub(super) fn part_of<T: Task>(&mut self, task: &T, model: T::Model) -> T::Model {
        let Some(tensor) = &self.tensor else { return model };
        let whole = state::layout(&model);
        let peers: Arc<dyn Peers> = tensor.clone();
        let model = task.part_of(model, &TensorParallel::new(peers));
        self.cuts = Cuts::between(whole, &state::layout(&model));
        model
    }

    /// Refuses what is trained around a network instead of its own parameters.
    ///
    /// # Errors
    /// [`SettingError`] where layers are shared out.
    pub(super) fn refuse_adapters(&self) -> Result<(), SettingError> {
        check(self.tensor.is_none(), KEY, || {
            "shares out the weights of whole networks, and here others are trained: set it to 1".to_owned()
        })
    }

    /// All processes of the run.
    pub(super) fn run(&self) -> &dyn Collective {
        self.run
    }

    /// The processes with this one's part of the network, which share out the batches.
    pub(super) fn data(&self) -> &dyn Collective {
        self.data.as_deref().unwrap_or(self.run)
    }

    /// The processes with the other parts of the network, where it is shared out, and this one.
    pub(super) fn neighbours(&self) -> Option<&dyn Collective> {
        self.tensor.as_ref().map(|tensor| tensor.collective.as_ref())
    }

    /// Whether this process gives to a checkpoint, among its neighbours, the tensor of a key: of what all have, one does.
    pub(super) fn gives(&self, key: &str) -> bool {
        self.neighbours().is_none_or(|tensor| tensor.rank() == 0 || self.cuts.of(key).is_some())
    }

    /// How a checkpoint's tensor of this key is shared out, if it is.
    pub(super) fn cut_of(&self, key: &str) -> Option<&Cut> {
        self.cuts.of(key)
    }

    /// What went wrong between neighbours in the passes since the last look; what these gave is of no use then.
    ///
    /// # Errors
    /// A process is gone.
    pub(super) fn check_passes(&self) -> Result<(), CollectiveError> {
        let failed = self.tensor.as_ref().and_then(|tensor| tensor.failed().take());
        failed.map_or(Ok(()), Err)
    }

    /// The values of a checkpoint's tensor that are this process's, whose tensor has this shape.
    ///
    /// # Errors
    /// [`TensorFileError`]: the checkpoint is of another model.
    pub(super) fn values(
        &self,
        checkpoint: &Checkpoint,
        key: &str,
        shape: &[usize],
    ) -> Result<Vec<f32>, TensorFileError> {
        match (self.neighbours(), self.cuts.of(key)) {
            (Some(tensor), Some(cut)) => {
                let whole = checkpoint.values(key, &cut.shape)?;
                Ok(cut.part(&whole, tensor.rank(), tensor.world()))
            }
            _ => checkpoint.values(key, shape),
        }
    }

    /// Adds to a sum of each parameter, in traversal order, what its parts at the neighbours have; all get the same bits.
    ///
    /// # Errors
    /// A process is gone.
    pub(super) fn add_up(&self, sums: &mut [Option<f64>]) -> Result<(), CollectiveError> {
        let Some(tensor) = self.neighbours() else { return Ok(()) };
        let shared: Vec<usize> = self.cuts.places().collect();
        let own: Vec<f32> = shared.iter().flat_map(|place| halves(sums[*place].unwrap_or(0.0))).collect();
        let all = tensor.all_gather(&own)?;
        for (number, place) in shared.into_iter().enumerate() {
            if let Some(sum) = &mut sums[place] {
                let of = |values: &Vec<f32>| values.get(2 * number..2 * number + 2).map_or(f64::NAN, whole_of);
                *sum = all.iter().map(of).sum();
            }
        }
        Ok(())
    }

    /// Parameters of the whole network, of which this process has so many.
    pub(super) fn parameters(&self, own: usize) -> usize {
        let world = self.neighbours().map_or(1, |tensor| tensor.world());
        let shared: usize = self.cuts.by_name.values().map(|cut| cut.shape.iter().product::<usize>()).sum();
        own + shared - shared / world
    }

    /// At the first process of the run, the whole network of which `model` is this process's part, without autodiff; at the others that
    /// part. All must take part.
    ///
    /// # Errors
    /// A process is gone.
    pub(super) fn whole<T: Task>(&self, task: &T, model: T::Model, device: &Device) -> Result<T::Model, TrainError> {
        let Some(tensor) = self.neighbours().filter(|_| self.data().rank() == 0) else { return Ok(model) };
        let mut parts = module_tensors("", &model).into_iter();
        if tensor.rank() != 0 {
            for part in parts.filter(|part| self.cuts.of(part.name()).is_some()) {
                tensor.gather_bytes(0, &part.into_bytes())?;
            }
            return Ok(model);
        }
        let empty = task.model(&mut Init::placeholders(device));
        let empty = empty.map_err(|error| SettingError { key: "model", problem: error.to_string() })?;
        state::load(empty, |name, _| {
            // Part and whole have the same parameters in the same order.
            let bytes = parts.next().map(|part| part.into_bytes()).unwrap_or_default();
            let bytes = match self.cuts.of(name) {
                Some(cut) => cut.joined(&tensor.gather_bytes(0, &bytes)?),
                None => bytes,
            };
            Ok(bytemuck::pod_collect_to_vec::<u8, f32>(&bytes))
        })
    }
}

/// The processes that compute layers together. A pass cannot fail: the first error is kept until somebody asks.
#[derive(Debug)]
struct Neighbours {
    collective: Box<dyn Collective>,
    failed: Mutex<Option<CollectiveError>>,
}

impl Neighbours {
    fn failed(&self) -> std::sync::MutexGuard<'_, Option<CollectiveError>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sums, unless a sum before has failed.
    fn try_sum(&self, sum: impl FnOnce(&dyn Collective) -> Result<(), CollectiveError>) {
        let mut failed = self.failed();
        if failed.is_none() {
            *failed = sum(self.collective.as_ref()).err();
        }
    }
}

impl Peers for Neighbours {
    fn rank(&self) -> usize {
        self.collective.rank()
    }

    fn world(&self) -> usize {
        self.collective.world()
    }

    fn sum(&self, values: &mut [f32]) {
        self.try_sum(|collective| collective.all_reduce_sum(values));
    }

    fn sum_bf16(&self, values: &mut [bf16]) {
        self.try_sum(|collective| collective.all_reduce_sum_bf16(values));
    }
}

/// Parameters that are shared out to neighbours.
#[derive(Debug, Default)]
struct Cuts {
    /// Of each parameter in traversal order, whether it is.
    shared: Vec<bool>,
    by_name: BTreeMap<String, Cut>,
}

/// How a parameter is shared out, and what belongs to it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Cut {
    /// Of the whole in a checkpoint.
    pub(super) shape: Vec<usize>,
    /// The axis along which parts lie side by side.
    axis: usize,
}

impl Cuts {
    /// By names and shapes of the parameters of a whole network, and of a part of it.
    fn between(whole: Vec<(String, Vec<usize>)>, part: &[(String, Vec<usize>)]) -> Self {
        let mut cuts = Self::default();
        for ((name, shape), (_, own)) in whole.into_iter().zip(part) {
            let axis = shape.iter().zip(own).position(|(whole, own)| whole != own);
            cuts.shared.push(axis.is_some());
            cuts.by_name.extend(axis.map(|axis| (name, Cut { shape, axis })));
        }
        cuts
    }

    /// Of the tensor of a key, which is a parameter's name, or has something in front of it (`model.`, the name of a moment).
    fn of(&self, key: &str) -> Option<&Cut> {
        if self.by_name.is_empty() {
            return None;
        }
        let behind_dots = key.match_indices('.').map(|(at, _)| at + 1);
        std::iter::once(0).chain(behind_dots).find_map(|start| self.by_name.get(&key[start..]))
    }

    /// Places of the parameters that are shared out, in traversal order.
    fn places(&self) -> impl Iterator<Item = usize> {
        self.shared.iter().enumerate().filter(|(_, shared)| **shared).map(|(place, _)| place)
    }
}

impl Cut {
    /// Pieces of a row-major tensor that each part has one behind the other.
    fn rows(&self) -> usize {
        self.shape[..self.axis].iter().product()
    }

    /// One of `world` parts of a whole.
    fn part(&self, whole: &[f32], rank: usize, world: usize) -> Vec<f32> {
        let (row, rows) = (whole.len() / self.rows().max(1), self.rows());
        let own = row * rank / world..row * (rank + 1) / world;
        (0..rows).flat_map(|number| &whole[number * row..(number + 1) * row][own.clone()]).copied().collect()
    }

    /// The bytes of a whole, of those of its parts.
    pub(super) fn joined(&self, parts: &[Vec<u8>]) -> Vec<u8> {
        let rows = self.rows().max(1);
        let mut whole = Vec::with_capacity(parts.iter().map(Vec::len).sum());
        for number in 0..rows {
            for part in parts {
                let row = part.len() / rows;
                whole.extend_from_slice(&part[number * row..(number + 1) * row]);
            }
        }
        whole
    }
}

/// The bits of a number as those of two, which travel as they are.
fn halves(number: f64) -> [f32; 2] {
    let bits = number.to_bits();
    [(bits >> 32) as u32, bits as u32].map(f32::from_bits)
}

fn whole_of(halves: &[f32]) -> f64 {
    f64::from_bits(halves.iter().fold(0, |bits, half| bits << 32 | u64::from(half.to_bits())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use calotype_collective::{Group, Local, Memory, Payload};
    use std::time::Duration;

    fn layout(shapes: &[(&str, &[usize])]) -> Vec<(String, Vec<usize>)> {
        shapes.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec())).collect()
    }

    fn cuts() -> Cuts {
        let whole = layout(&[("a.weight", &[4, 3]), ("a.bias", &[4]), ("b.weight", &[3, 4]), ("b.bias", &[3])]);
        let part = layout(&[("a.weight", &[2, 3]), ("a.bias", &[2]), ("b.weight", &[3, 2]), ("b.bias", &[3])]);
        Cuts::between(whole, &part)
    }

    #[test]
    fn what_is_shared_out_is_known_by_any_key() {
        let cuts = cuts();
        assert_eq!(cuts.places().collect::<Vec<_>>(), [0, 1, 2]);
        for key in ["a.weight", "model.a.weight", "adamw.first_moment.a.weight", "ema2.a.weight"] {
            assert_eq!(cuts.of(key), Some(&Cut { shape: vec![4, 3], axis: 0 }), "{key}");
        }
        assert_eq!(cuts.of("model.b.weight").map(|cut| cut.axis), Some(1));
        assert!(cuts.of("model.b.bias").is_none() && cuts.of("weight").is_none() && cuts.of("aa.weight").is_none());
    }

    #[test]
    fn parts_make_up_the_whole() {
        let whole: Vec<f32> = (0..12).map(|value| value as f32).collect();
        let cuts = cuts();
        let part = |key: &str, rank| cuts.of(key).unwrap().part(&whole, rank, 2);
        assert_eq!(part("a.weight", 1), [6.0, 7.0, 8.0, 9.0, 10.0, 11.0]);
        assert_eq!(part("b.weight", 0), [0.0, 1.0, 4.0, 5.0, 8.0, 9.0]);
        for key in ["a.weight", "b.weight"] {
            let parts = [0, 1].map(|rank| part(key, rank).into_iter().flat_map(f32::to_ne_bytes).collect::<Vec<u8>>());
            let joined = cuts.of(key).unwrap().joined(&parts);
            assert_eq!(bytemuck::pod_collect_to_vec::<u8, f32>(&joined), whole, "{key}");
        }
    }

    #[test]
    fn a_neighbour_that_is_gone_is_told_after_the_pass_and_once() {
        let mut members = Memory::members(2, Duration::from_millis(200));
        drop(members.pop());
        let group = Group::new(members.remove(0), Payload::F32);
        let neighbours = Arc::new(Neighbours { collective: Box::new(group), failed: Mutex::default() });
        let grid = Grid { run: &Local, data: None, tensor: Some(Arc::clone(&neighbours)), cuts: Cuts::default() };
        assert!(grid.check_passes().is_ok());
        let mut values = [1.0, 2.0];
        Peers::sum(neighbours.as_ref(), &mut values);
        Peers::sum_bf16(neighbours.as_ref(), &mut [bf16::ONE]);
        assert_eq!(values, [1.0, 2.0]);
        let error = grid.check_passes().unwrap_err().to_string();
        assert!(error.contains("all_reduce_sum failed: rank 1 on thread 1"), "{error}");
        assert!(grid.check_passes().is_ok());
    }

    #[test]
    fn halves_keep_all_bits() {
        for number in [0.0, -1.5, 1e-300, f64::MAX, f64::INFINITY, std::f64::consts::PI] {
            assert_eq!(whole_of(&halves(number)).to_bits(), number.to_bits());
        }
        assert!(whole_of(&halves(f64::NAN)).is_nan());
    }
}
