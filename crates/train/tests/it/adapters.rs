//! An adapter as LoRA (Hu et al. 2021) around the models of several tasks, which know nothing of it.

use crate::tasks::{World, recipe_text};
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor};
use calotype_checkpoints::Checkpoint;
use calotype_models::{Init, state};
use calotype_train::config::TrainingRecipe;
use calotype_train::stages::{Recipe, StageContext};
use calotype_train::task::Task;
use calotype_train::tasks::{clip::ClipTask, diffusion::DiffusionTask, vit::VitTask};
use calotype_train::trainable::Trainable;
use calotype_train::trainer::{CHECKPOINTS, Outcome, train_with};
use calotype_train::{CheckpointStore, StopFlag};

/// Adds a product of two thin matrices to each matrix of a frozen model.
#[derive(Debug)]
struct LowRank<M>(M);

/// Two factors for each matrix, in the order of the model.
#[derive(Module, Debug)]
struct Factors {
    down: Vec<Param<Tensor<2>>>,
    up: Vec<Param<Tensor<2>>>,
}

const RANK: usize = 2;

impl Factors {
    /// `up` is zero, so that training begins with the model as it is.
    fn of<M: Module>(model: &M, device: &Device) -> Self {
        struct Visit<'a>(Factors, Init<'a>, &'a Device);
        impl ModuleVisitor for Visit<'_> {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                let shape = param.lazy_shape().to_vec();
                if let [rows, columns] = shape[..] {
                    self.0.down.push(self.1.normal([RANK, columns], 0.1));
                    self.0.up.push(Param::from_tensor(Tensor::zeros([rows, RANK], self.2)));
                }
            }
        }
        let mut visit = Visit(Self { down: Vec::new(), up: Vec::new() }, Init::new(9, device), device);
        model.visit(&mut visit);
        visit.0
    }
}

struct Add<'a>(std::iter::Zip<std::slice::Iter<'a, Param<Tensor<2>>>, std::slice::Iter<'a, Param<Tensor<2>>>>);

impl ModuleMapper for Add<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (id, weight, mapper) = param.consume();
        let weight = weight.detach();
        let added = if D == 2 { self.0.next() } else { None };
        let value = match added {
            Some((up, down)) => weight.clone() + up.val().matmul(down.val()).reshape(weight.dims()),
            None => weight,
        };
        Param::from_mapped_value(id, value, mapper)
    }
}

impl<M: Module> LowRank<M> {
    fn adapted(&self, factors: &Factors) -> M {
        self.0.clone().map(&mut Add(factors.up.iter().zip(&factors.down)))
    }
}

impl<M: Module> Trainable<M> for LowRank<M> {
    type Parameters = Factors;

    fn with_model<R>(&self, parameters: &Factors, body: impl FnOnce(&M) -> R) -> R {
        body(&self.adapted(parameters))
    }

    fn model_of(&self, parameters: Factors) -> M {
        self.adapted(&parameters)
    }
}

/// A new UNet's last layer is all zeros, so that nothing in front of it has a gradient as long as it is frozen: as if it had
/// been trained, small numbers take their place.
fn without_zeros<M: Module>(model: M) -> M {
    let mut values = state::collect(&model).into_iter().map(|tensor| tensor.values);
    let filled = state::load(model, |_, _| {
        let mut values = values.next().ok_or("the model has changed")?;
        if values.iter().all(|value| *value == 0.0) {
            values.iter_mut().enumerate().for_each(|(i, value)| *value = 0.1 * (i as f32).sin());
        }
        Ok::<_, &str>(values)
    });
    filled.unwrap()
}

/// Trains an adapter with a task's recipe and exports the merged model.
fn adapt<T: Task>(world: &World) {
    let text = recipe_text(world, T::KIND);
    let value: T::Recipe = toml::from_str(&text).unwrap();
    let (device, never) = (Device::flex(), StopFlag::new_unhooked());
    let folder = world.path(&format!("{}-adapter", T::KIND));
    let context = StageContext::new(&folder, &device, &never);
    let task = T::open(&value, &context).unwrap();
    let autodiff = device.clone().autodiff();
    let base = task.model(&mut Init::new(value.config().run.seed, &autodiff)).unwrap();
    let base = without_zeros(base);
    let before = state::collect(&base);
    let factors = Factors::of(&base, &autodiff);
    let matrices = factors.down.len();
    let recipe = Recipe { value: &value, text: &text };
    let outcome = train_with(&task, &LowRank(base), factors, recipe, &context).unwrap();
    let Outcome::Finished(merged, _) = outcome else { panic!("nobody asked to stop") };

    let store = CheckpointStore::open(folder.join(CHECKPOINTS), "checkpoint").unwrap();
    let newest = store.newest().unwrap().unwrap();
    let parameters: Vec<&str> = newest.tensors.names().filter(|name| name.starts_with("model.")).collect();
    assert!(parameters.len() == 2 * matrices && matrices > 0, "{}: {parameters:?}", T::KIND);
    let merged = merged.valid();
    let changed = |tensor: &state::NamedValues, old: &state::NamedValues| tensor.values != old.values;
    let pairs: Vec<_> = state::collect(&merged).into_iter().zip(before).collect();
    assert!(pairs.iter().all(|(new, old)| new.shape.len() == 2 || !changed(new, old)), "{}", T::KIND);
    assert!(pairs.iter().filter(|(new, old)| changed(new, old)).count() > matrices / 2, "{}", T::KIND);

    let model = world.path(&format!("{}-merged", T::KIND));
    task.export(&merged, &model).unwrap();
    assert!(Checkpoint::open(&model).unwrap().components().contains(&task.component()), "{}", T::KIND);
}

#[test]
fn adapters_fit_around_the_models_of_all_kinds() {
    let world = World::new();
    adapt::<VitTask>(&world);
    adapt::<ClipTask>(&world);
    adapt::<DiffusionTask>(&world);
}
