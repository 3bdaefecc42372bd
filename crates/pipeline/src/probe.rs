//! One network of a checkpoint on given tensors, and its gradients, for comparison with the original.

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{DType, Device, Gradients, Int, Tensor, TensorData};
use calotype_checkpoints::loading::{LoadError, Loader};
use calotype_checkpoints::{Checkpoint, Component, LayoutError};
use calotype_core::names;
use calotype_models::state::{self, NamedValues, Path as ModulePath, WeightPrecision};
use calotype_models::{AddedConditions, InputError, Pass};
use calotype_ops::Precision;
use calotype_weights::{NamedTensor, TensorFile, TensorFileError};
use std::path::{Path, PathBuf};

names! {
    /// The networks that can be probed, with their inputs and outputs.
    ///
    /// Images and latents are `[batch, channels, height, width]`, as the originals take them. Gradients are `grad.KEY`: of
    /// inputs by their names (not of `timestep`, `time_ids` and `input_ids`), of parameters by the checkpoint's own keys.
    Probed, "network" {
        /// `sample`, `timestep`, `encoder_hidden_states`, for SDXL `text_embeds` and `time_ids`, to `sample`.
        Unet = "unet",
        /// `sample` (or `x`, `pixel_values`) to `moments` (means, log-variances), `mean`, `logvar`.
        VaeEncoder = "vae-encoder",
        /// `sample` (or `z`) to `sample`.
        VaeDecoder = "vae-decoder",
        /// `input_ids` to `last_hidden_state`, `pooler_output`, `text_embeds`, `hidden_states.N` and `hidden_states.-2`.
        TextEncoder = "text-encoder",
        /// As the first.
        TextEncoder2 = "text-encoder-2",
        /// `pixel_values` to `image_embeds`, `last_hidden_state`, `pooler_output`.
        ImageEncoder = "image-encoder",
        /// `pixel_values` to `logits`.
        Classifier = "classifier",
        /// `pixel_values` (or `x`) in `0..1` to `features`, `logits`.
        Inception = "inception",
        /// `pixel_values`, of the size that the network takes, to `features`, `logits` (the first dense layer's outputs).
        KerasInception = "keras-inception",
        /// `pixel_values` to `last_hidden_state`, `pooler_output`.
        Dinov2 = "dinov2",
        /// `pixel_values` to `features`, `logits`.
        EfficientNetLite = "efficientnet-lite",
    }
}

impl Probed {
    fn component(self) -> Component {
        match self {
            Self::Unet => Component::Unet,
            Self::VaeEncoder | Self::VaeDecoder => Component::Vae,
            Self::TextEncoder => Component::TextEncoder,
            Self::TextEncoder2 => Component::TextEncoder2,
            Self::ImageEncoder => Component::ImageEncoder,
            Self::Classifier => Component::Classifier,
            Self::Inception => Component::Inception,
            Self::KerasInception => Component::KerasInception,
            Self::Dinov2 => Component::Dinov2,
            Self::EfficientNetLite => Component::EfficientNetLite,
        }
    }
}

/// Why a network could not be probed.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The network cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The file of inputs cannot be read, or lacks one.
    #[error(transparent)]
    Tensor(#[from] TensorFileError),
    /// The inputs do not fit the network.
    #[error("{}: the inputs do not fit the network: {source}", path.display())]
    Input {
        /// The file of inputs.
        path: PathBuf,
        /// The misfit.
        source: InputError,
    },
    /// Inputs that the network does not take, or lacks.
    #[error("{}: {problem}", path.display())]
    Inputs {
        /// The file of inputs.
        path: PathBuf,
        /// The problem.
        problem: String,
    },
    /// Gradients that there are none of.
    #[error("{0}")]
    Gradients(&'static str),
}

impl From<LayoutError> for ProbeError {
    fn from(error: LayoutError) -> Self {
        LoadError::from(error).into()
    }
}

type Result<T> = std::result::Result<T, ProbeError>;

/// Runs a network of a checkpoint on the tensors of a safetensors file, and gives its outputs, that of `grad_output` first.
/// With `grad` also the gradients of all inputs and parameters, of the sum of outputs times `grad_output` (that of the first
/// output) and `grad_output.NAME`. `precision` is that of activations, and of weights without `grad`; `device` has no autodiff.
///
/// # Errors
/// [`ProbeError`]: the network cannot be loaded, or the file holds not what it takes.
pub fn probe(
    checkpoint: &Checkpoint,
    network: Probed,
    inputs: &Path,
    grad: bool,
    precision: Precision,
    device: &Device,
) -> Result<Vec<NamedValues>> {
    let dtype = precision.dtype(device);
    let device = if grad { device.clone().autodiff() } else { device.clone() };
    let half = dtype == DType::BF16 && !grad;
    let precision = if half { WeightPrecision::Bf16 } else { WeightPrecision::F32 };
    let loader = Loader { checkpoint, device: &device, precision, adapters: None };
    let inputs = Inputs::open(inputs, &device, dtype, grad)?;
    Probe { component: network.component(), checkpoint, inputs, grad }.run(network, &loader)
}

/// The tensors of the input file, and those that were taken, which gradients are wanted of.
struct Inputs {
    file: TensorFile,
    device: Device,
    dtype: DType,
    grad: bool,
    taken: Vec<Taken>,
    names: Vec<String>,
}

enum Taken {
    Image(String, Tensor<4>),
    Tokens(String, Tensor<3>),
    Row(String, Tensor<2>),
}

impl Inputs {
    fn open(path: &Path, device: &Device, dtype: DType, grad: bool) -> Result<Self> {
        let file = TensorFile::open(path)?;
        Ok(Self { file, device: device.clone(), dtype, grad, taken: Vec::new(), names: Vec::new() })
    }

    fn problem(&self, problem: String) -> ProbeError {
        ProbeError::Inputs { path: self.file.path().to_owned(), problem }
    }

    fn misfit(&self) -> impl FnOnce(InputError) -> ProbeError {
        let path = self.file.path().to_owned();
        move |source| ProbeError::Input { path, source }
    }

    fn has(&self, name: &str) -> bool {
        self.file.contains(name)
    }

    fn data<const D: usize>(&mut self, name: &str) -> Result<Tensor<D>> {
        let view = self.file.get(name)?;
        let shape: [usize; D] = view
            .shape()
            .try_into()
            .map_err(|_| self.problem(format!("tensor `{name}` has shape {:?}; {D} axes are needed", view.shape())))?;
        let values = TensorData::new(view.to_f32_vec()?, shape);
        self.names.push(name.to_owned());
        let tensor = Tensor::<D>::from_data(values, &self.device);
        Ok(if self.grad { tensor.require_grad() } else { tensor })
    }

    /// An image or latent as the networks take it, `[batch, height, width, channels]`; under the first of these names that
    /// is there.
    fn image(&mut self, names: &[&str]) -> Result<Tensor<4>> {
        let name = names.iter().copied().find(|name| self.has(name)).unwrap_or(names[0]);
        let tensor = self.data::<4>(name)?;
        self.taken.push(Taken::Image(name.to_owned(), tensor.clone()));
        Ok(tensor.permute([0, 2, 3, 1]).cast(self.dtype))
    }

    fn tokens(&mut self, name: &str) -> Result<Tensor<3>> {
        let tensor = self.data::<3>(name)?;
        self.taken.push(Taken::Tokens(name.to_owned(), tensor.clone()));
        Ok(tensor.cast(self.dtype))
    }

    fn row(&mut self, name: &str) -> Result<Tensor<2>> {
        let tensor = self.data::<2>(name)?;
        self.taken.push(Taken::Row(name.to_owned(), tensor.clone()));
        Ok(tensor.cast(self.dtype))
    }

    /// Numbers that no gradient is wanted of.
    fn numbers(&mut self, name: &str) -> Result<Vec<f32>> {
        let view = self.file.get(name)?;
        self.names.push(name.to_owned());
        match view.to_i64_vec() {
            Ok(whole) => Ok(whole.into_iter().map(|n| n as f32).collect()),
            Err(_) => Ok(view.to_f32_vec()?),
        }
    }

    fn ids(&mut self, name: &str) -> Result<Tensor<2, Int>> {
        let shape: [usize; 2] = match *self.file.get(name)?.shape() {
            [batch, tokens] => [batch, tokens],
            ref other => {
                return Err(self.problem(format!("tensor `{name}` has shape {other:?}; [batch, tokens] is needed")));
            }
        };
        let ids: Vec<i32> = self.numbers(name)?.into_iter().map(|n| n as i32).collect();
        Ok(Tensor::from_data(TensorData::new(ids, shape), &self.device))
    }

    /// The tensors that nothing took: a wrong name must not go unnoticed.
    fn all_taken(&self) -> Result<()> {
        let unused: Vec<&str> = self
            .file
            .names()
            .filter(|name| !name.starts_with("grad_output") && !self.names.iter().any(|taken| taken == name))
            .collect();
        if unused.is_empty() {
            return Ok(());
        }
        let unused = unused.join(", ");
        Err(self.problem(format!("the network takes no input {unused}; see `calotype probe --help`")))
    }
}

/// An output: images go back to `[batch, channels, height, width]`.
enum Output {
    Image(Tensor<4>),
    Tokens(Tensor<3>),
    Row(Tensor<2>),
}

impl Output {
    fn values(&self, name: &str) -> NamedValues {
        fn of<const D: usize>(name: &str, tensor: Tensor<D>) -> NamedValues {
            let shape = tensor.dims().to_vec();
            NamedValues { name: name.to_owned(), shape, values: state::values_of(tensor) }
        }
        match self {
            Self::Image(t) => of(name, t.clone().permute([0, 3, 1, 2])),
            Self::Tokens(t) => of(name, t.clone()),
            Self::Row(t) => of(name, t.clone()),
        }
    }

    /// The sum of the output times `given`, which is in the file's order of axes.
    fn against(&self, given: &NamedValues, device: &Device) -> std::result::Result<Tensor<1>, String> {
        fn of<const D: usize>(
            tensor: Tensor<D>,
            given: &NamedValues,
            device: &Device,
        ) -> std::result::Result<Tensor<1>, String> {
            if tensor.dims()[..] != given.shape[..] {
                return Err(format!(
                    "`{}` has shape {:?}; the output has {:?}",
                    given.name,
                    given.shape,
                    tensor.dims()
                ));
            }
            let given = Tensor::<D>::from_data(TensorData::new(given.values.clone(), given.shape.clone()), device);
            Ok((tensor.cast(DType::F32) * given).sum())
        }
        match self {
            Self::Image(t) => of(t.clone().permute([0, 3, 1, 2]), given, device),
            Self::Tokens(t) => of(t.clone(), given, device),
            Self::Row(t) => of(t.clone(), given, device),
        }
    }
}

/// A borrowed view, for writing.
fn named(values: &NamedValues) -> NamedTensor<'_> {
    NamedTensor::from_f32(values.name.clone(), values.shape.clone(), &values.values)
}

struct Probe<'a> {
    component: Component,
    checkpoint: &'a Checkpoint,
    inputs: Inputs,
    grad: bool,
}

impl Probe<'_> {
    fn run(mut self, which: Probed, loader: &Loader) -> Result<Vec<NamedValues>> {
        match which {
            Probed::Unet => self.unet(loader),
            Probed::VaeEncoder => {
                let vae = loader.autoencoder()?.1;
                let moments = vae.encode(self.inputs.image(&["sample", "x", "pixel_values"])?);
                let outputs = [
                    ("moments", Output::Image(moments.moments.clone())),
                    ("mean", Output::Image(moments.mean())),
                    ("logvar", Output::Image(moments.log_variance())),
                ];
                self.finish(&vae, outputs)
            }
            Probed::VaeDecoder => {
                let vae = loader.autoencoder()?.1;
                let image = vae.decode(self.inputs.image(&["sample", "z"])?);
                self.finish(&vae, [("sample", Output::Image(image))])
            }
            Probed::TextEncoder | Probed::TextEncoder2 => self.text(loader),
            Probed::ImageEncoder => {
                let tower = loader.image_encoder()?.1;
                let out = tower.forward(self.inputs.image(&["pixel_values"])?).map_err(self.inputs.misfit())?;
                let mut outputs: Vec<(&str, Output)> = Vec::new();
                outputs.extend(out.image_embeds.map(|embeds| ("image_embeds", Output::Row(embeds))));
                outputs.push(("last_hidden_state", Output::Tokens(out.last_hidden_state)));
                outputs.push(("pooler_output", Output::Row(out.pooler_output)));
                self.finish(&tower, outputs)
            }
            Probed::Classifier => {
                let vit = loader.classifier()?.1;
                let logits = vit.forward(self.inputs.image(&["pixel_values"])?).map_err(self.inputs.misfit())?;
                self.finish(&vit, [("logits", Output::Row(logits))])
            }
            Probed::Inception => {
                if self.grad {
                    return Err(ProbeError::Gradients(
                        "inception: gradients are not offered, for its norms are folded into its convolutions",
                    ));
                }
                let inception = loader.inception()?;
                let out =
                    inception.forward(self.inputs.image(&["pixel_values", "x"])?).map_err(self.inputs.misfit())?;
                let outputs = [("features", Output::Row(out.features)), ("logits", Output::Row(out.logits))];
                self.finish(&inception, outputs)
            }
            Probed::KerasInception => {
                if self.grad {
                    return Err(ProbeError::Gradients(
                        "keras-inception: gradients are not offered, for its norms are folded into its convolutions",
                    ));
                }
                let inception = loader.keras_inception()?;
                let out =
                    inception.forward_resized(self.inputs.image(&["pixel_values"])?).map_err(self.inputs.misfit())?;
                let outputs = [("features", Output::Row(out.features)), ("logits", Output::Row(out.logits))];
                self.finish(&inception, outputs)
            }
            Probed::Dinov2 => {
                let network = loader.dinov2()?.1;
                let states =
                    network.last_hidden_state(self.inputs.image(&["pixel_values"])?).map_err(self.inputs.misfit())?;
                let [batch, _, channels] = states.dims();
                let pooled = states.clone().narrow(1, 0, 1).reshape([batch, channels]);
                let outputs = [("last_hidden_state", Output::Tokens(states)), ("pooler_output", Output::Row(pooled))];
                self.finish(&network, outputs)
            }
            Probed::EfficientNetLite => {
                let network = loader.efficientnet_lite()?.1;
                let out = network.forward(self.inputs.image(&["pixel_values"])?).map_err(self.inputs.misfit())?;
                let outputs = [("features", Output::Row(out.features)), ("logits", Output::Row(out.logits))];
                self.finish(&network, outputs)
            }
        }
    }

    fn unet(mut self, loader: &Loader) -> Result<Vec<NamedValues>> {
        let (config, unet) = loader.unet()?;
        let x = self.inputs.image(&["sample"])?;
        let batch = x.dims()[0];
        let mut times = self.inputs.numbers("timestep")?;
        if times.len() == 1 {
            times = times.repeat(batch);
        }
        let context = self.inputs.tokens("encoder_hidden_states")?;
        let added = match config.added.is_some() || self.inputs.has("text_embeds") {
            true => Some(AddedConditions {
                text_embeds: self.inputs.row("text_embeds")?,
                time_ids: self.inputs.numbers("time_ids")?,
            }),
            false => None,
        };
        unet.check(&x, &times, &context, added.as_ref())
            .map_err(|error| self.inputs.problem(format!("the inputs do not fit the network: {error}")))?;
        let guidance = match config.guidance_features.is_some() || self.inputs.has("guidance_scale") {
            true => Some(self.inputs.numbers("guidance_scale")?),
            false => None,
        };
        unet.check_guidance(guidance.as_deref(), batch)
            .map_err(|error| self.inputs.problem(format!("the inputs do not fit the network: {error}")))?;
        let pass = Pass { guidance: guidance.as_deref(), ..Pass::default() };
        let y = unet.forward_with(pass, x, &times, context, added.as_ref());
        self.finish(&unet, [("sample", Output::Image(y))])
    }

    fn text(mut self, loader: &Loader) -> Result<Vec<NamedValues>> {
        let encoder = loader.text_encoder(self.component)?.1;
        let out = encoder.forward(self.inputs.ids("input_ids")?, self.inputs.dtype).map_err(self.inputs.misfit())?;
        let mut outputs = vec![
            ("last_hidden_state".to_owned(), Output::Tokens(out.last_hidden_state)),
            ("pooler_output".to_owned(), Output::Row(out.pooler_output)),
        ];
        outputs.extend(out.text_embeds.map(|embeds| ("text_embeds".to_owned(), Output::Row(embeds))));
        let count = out.hidden_states.len();
        for (i, states) in out.hidden_states.into_iter().enumerate() {
            if i + 2 == count {
                outputs.push(("hidden_states.-2".to_owned(), Output::Tokens(states.clone())));
            }
            outputs.push((format!("hidden_states.{i}"), Output::Tokens(states)));
        }
        self.finish(&encoder, outputs)
    }

    /// Outputs, and gradients where they are asked for.
    fn finish<M: Module, N: Into<String>>(
        self,
        network: &M,
        outputs: impl IntoIterator<Item = (N, Output)>,
    ) -> Result<Vec<NamedValues>> {
        self.inputs.all_taken()?;
        let outputs: Vec<(String, Output)> = outputs.into_iter().map(|(name, output)| (name.into(), output)).collect();
        let mut written: Vec<NamedValues> = outputs.iter().map(|(name, output)| output.values(name)).collect();
        if self.grad {
            written.extend(self.gradients(network, &outputs)?);
        }
        Ok(written)
    }

    fn gradients<M: Module>(&self, network: &M, outputs: &[(String, Output)]) -> Result<Vec<NamedValues>> {
        let mut sums = Vec::new();
        for (i, (name, output)) in outputs.iter().enumerate() {
            let keys = [format!("grad_output.{name}"), "grad_output".to_owned()];
            let keys = if i == 0 { &keys[..] } else { &keys[..1] };
            if let Some(key) = keys.iter().find(|key| self.inputs.has(key)) {
                let view = self.inputs.file.get(key)?;
                let given = NamedValues { name: key.clone(), shape: view.shape().to_vec(), values: view.to_f32_vec()? };
                let sum = output.against(&given, &self.inputs.device);
                sums.push(sum.map_err(|problem| self.inputs.problem(problem))?);
            }
        }
        let total = sums.into_iter().reduce(|a, b| a + b);
        let none = || self.inputs.problem("--grad needs the tensor `grad_output`, of the output's shape".to_owned());
        let total = total.ok_or_else(none)?;
        let gradients = total.backward();
        let mut written = self.of_inputs(&gradients);
        let canonical = of_parameters(network, &gradients);
        let canonical: Vec<NamedTensor<'_>> = canonical.iter().map(named).collect();
        for stored in self.checkpoint.as_stored(self.component, &canonical)? {
            let unreadable = || self.inputs.problem(format!("the gradient of `{}` is not of f32", stored.name));
            let values = stored.to_f32_vec().ok_or_else(unreadable)?;
            written.push(NamedValues { name: format!("grad.{}", stored.name), shape: stored.shape, values });
        }
        Ok(written)
    }

    fn of_inputs(&self, gradients: &Gradients) -> Vec<NamedValues> {
        fn of<const D: usize>(name: &str, tensor: &Tensor<D>, gradients: &Gradients) -> Option<NamedValues> {
            let gradient = tensor.grad(gradients)?;
            let (name, shape) = (format!("grad.{name}"), gradient.dims().to_vec());
            Some(NamedValues { name, shape, values: state::values_of(gradient) })
        }
        let found = self.inputs.taken.iter().filter_map(|taken| match taken {
            Taken::Image(name, t) => of(name, t, gradients),
            Taken::Tokens(name, t) => of(name, t, gradients),
            Taken::Row(name, t) => of(name, t, gradients),
        });
        found.collect()
    }
}

/// The gradients of all parameters that have one, under canonical keys in checkpoint layout.
fn of_parameters<M: Module>(network: &M, gradients: &Gradients) -> Vec<NamedValues> {
    struct Collect<'a> {
        path: ModulePath,
        gradients: &'a Gradients,
        out: Vec<NamedValues>,
    }
    impl ModuleVisitor for Collect<'_> {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.push(name, container);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = param.val().grad(self.gradients) {
                let shape = gradient.dims();
                self.out.push(NamedValues {
                    name: self.path.name(),
                    shape: state::checkpoint_shape(&shape),
                    values: state::to_checkpoint(&state::values_of(gradient), &shape),
                });
            }
        }
    }
    let mut visitor = Collect { path: ModulePath::default(), gradients, out: Vec::new() };
    network.visit(&mut visitor);
    visitor.out
}
