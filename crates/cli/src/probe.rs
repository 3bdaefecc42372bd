//! `probe`: one network of a checkpoint on given tensors, and its gradients, for comparison with the original.

use crate::checkpoint::{OpenArgs, open};
use crate::commands::print;
use anyhow::{Context, Result, anyhow, bail};
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{DType, Device, Gradients, Int, Tensor, TensorData};
use calotype_diffusion::loading::Loader;
use calotype_models::AddedConditions;
use calotype_models::state::{self, NamedValues, Path as ModulePath, WeightPrecision};
use calotype_weights::layout::{Checkpoint, Component};
use calotype_weights::{NamedTensor, TensorFile, write_safetensors};
use clap::{Args, ValueEnum};
use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(Debug, Args)]
#[command(after_help = INPUTS)]
pub(crate) struct ProbeArgs {
    /// Which network.
    component: Probed,
    /// The checkpoint, in any layout.
    #[arg(long, value_name = "PATH")]
    model: PathBuf,
    /// Safetensors file of the inputs.
    #[arg(long = "in", value_name = "FILE")]
    input: PathBuf,
    /// Safetensors file to write.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Back-propagate the input `grad_output` and write the gradients of all inputs and parameters.
    #[arg(long)]
    grad: bool,
    /// Precision of activations, and of weights without --grad.
    #[arg(long, default_value = "f32", value_parser = ["f32", "bf16"])]
    precision: String,
    /// cpu, or a device that this build was made with.
    #[arg(long, default_value = "cpu", value_name = "NAME")]
    device: String,
    #[command(flatten)]
    open: OpenArgs,
}

const INPUTS: &str = "\
Pictures and latents are [batch, channels, height, width], as the originals take them.
  network          inputs                                                     outputs, that of grad_output first
  unet             sample, timestep, encoder_hidden_states,                   sample
                   SDXL: text_embeds, time_ids
  vae-encoder      sample (or x, pixel_values)                                moments (means, log-variances), mean, logvar
  vae-decoder      sample (or z)                                              sample
  text-encoder,    input_ids                                                  last_hidden_state, pooler_output, text_embeds,
  text-encoder-2                                                              hidden_states.N and hidden_states.-2
  image-encoder    pixel_values                                               image_embeds, last_hidden_state, pooler_output
  classifier       pixel_values                                               logits
  inception        pixel_values (or x) in 0..1                                features, logits
Gradients are `grad.KEY`: of inputs by their names (not of timestep, time_ids and input_ids), of parameters by the
checkpoint's own keys. `grad_output.NAME` instead of `grad_output` back-propagates another output.";

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Probed {
    Unet,
    VaeEncoder,
    VaeDecoder,
    TextEncoder,
    #[value(name = "text-encoder-2")]
    TextEncoder2,
    ImageEncoder,
    Classifier,
    Inception,
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
        }
    }
}

/// Runs one network and writes what it gives.
pub(crate) fn probe_command(args: &ProbeArgs) -> Result<()> {
    let checkpoint = open(&args.model, &args.open.options())?;
    let device = calotype_train::device::device(&args.device)?;
    let device = if args.grad { device.autodiff() } else { device };
    let dtype = if args.precision == "bf16" { DType::BF16 } else { DType::F32 };
    let half = dtype == DType::BF16 && !args.grad;
    let precision = if half { WeightPrecision::Bf16 } else { WeightPrecision::F32 };
    let loader = Loader { checkpoint: &checkpoint, device: &device, precision, adapters: None };
    let inputs = Inputs::open(args, &device, dtype)?;
    let probe = Probe { component: args.component.component(), checkpoint: &checkpoint, inputs, grad: args.grad };
    let written = probe.run(args.component, &loader)?;
    let tensors: Vec<NamedTensor<'_>> = written.iter().map(NamedTensorExt::named).collect();
    write_safetensors(&args.out, &tensors, &BTreeMap::new())?;
    print(&format!("{} tensors written to {}", tensors.len(), args.out.display()))
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
    Picture(String, Tensor<4>),
    Tokens(String, Tensor<3>),
    Row(String, Tensor<2>),
}

impl Inputs {
    fn open(args: &ProbeArgs, device: &Device, dtype: DType) -> Result<Self> {
        let file = TensorFile::open(&args.input)?;
        Ok(Self { file, device: device.clone(), dtype, grad: args.grad, taken: Vec::new(), names: Vec::new() })
    }

    fn has(&self, name: &str) -> bool {
        self.file.contains(name)
    }

    fn data<const D: usize>(&mut self, name: &str) -> Result<Tensor<D>> {
        let view = self.file.get(name)?;
        let shape: [usize; D] = view.shape().try_into().map_err(|_| {
            let path = self.file.path().display();
            anyhow!("{path}: tensor `{name}` has shape {:?}; {D} axes are needed", view.shape())
        })?;
        let values = TensorData::new(view.to_f32_vec()?, shape);
        self.names.push(name.to_owned());
        let tensor = Tensor::<D>::from_data(values, &self.device);
        Ok(if self.grad { tensor.require_grad() } else { tensor })
    }

    /// A picture or latent as the networks take it, `[batch, height, width, channels]`; under the first of these names that
    /// is there.
    fn picture(&mut self, names: &[&str]) -> Result<Tensor<4>> {
        let name = names.iter().copied().find(|name| self.has(name)).unwrap_or(names[0]);
        let tensor = self.data::<4>(name)?;
        self.taken.push(Taken::Picture(name.to_owned(), tensor.clone()));
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
                bail!("{}: tensor `{name}` has shape {other:?}; [batch, tokens] is needed", self.file.path().display())
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
        bail!(
            "{}: the network takes no input {}; see `calotype probe --help`",
            self.file.path().display(),
            unused.join(", ")
        )
    }
}

/// An output: pictures go back to `[batch, channels, height, width]`.
enum Output {
    Picture(Tensor<4>),
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
            Self::Picture(t) => of(name, t.clone().permute([0, 3, 1, 2])),
            Self::Tokens(t) => of(name, t.clone()),
            Self::Row(t) => of(name, t.clone()),
        }
    }

    /// The sum of the output times `given`, which is in the file's order of axes.
    fn against(&self, given: &NamedValues, device: &Device) -> Result<Tensor<1>> {
        fn of<const D: usize>(tensor: Tensor<D>, given: &NamedValues, device: &Device) -> Result<Tensor<1>> {
            if tensor.dims()[..] != given.shape[..] {
                bail!("`{}` has shape {:?}; the output has {:?}", given.name, given.shape, tensor.dims());
            }
            let given = Tensor::<D>::from_data(TensorData::new(given.values.clone(), given.shape.clone()), device);
            Ok((tensor.cast(DType::F32) * given).sum())
        }
        match self {
            Self::Picture(t) => of(t.clone().permute([0, 3, 1, 2]), given, device),
            Self::Tokens(t) => of(t.clone(), given, device),
            Self::Row(t) => of(t.clone(), given, device),
        }
    }
}

/// A borrowed view for writing.
trait NamedTensorExt {
    fn named(&self) -> NamedTensor<'_>;
}

impl NamedTensorExt for NamedValues {
    fn named(&self) -> NamedTensor<'_> {
        NamedTensor::from_f32(self.name.clone(), self.shape.clone(), &self.values)
    }
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
                let moments = vae.encode(self.inputs.picture(&["sample", "x", "pixel_values"])?);
                let outputs = [
                    ("moments", Output::Picture(moments.moments.clone())),
                    ("mean", Output::Picture(moments.mean())),
                    ("logvar", Output::Picture(moments.log_variance())),
                ];
                self.finish(&vae, outputs)
            }
            Probed::VaeDecoder => {
                let vae = loader.autoencoder()?.1;
                let picture = vae.decode(self.inputs.picture(&["sample", "z"])?);
                self.finish(&vae, [("sample", Output::Picture(picture))])
            }
            Probed::TextEncoder | Probed::TextEncoder2 => self.text(loader),
            Probed::ImageEncoder => {
                let tower = loader.image_encoder()?.1;
                let out = tower.forward(self.inputs.picture(&["pixel_values"])?)?;
                let mut outputs: Vec<(&str, Output)> = Vec::new();
                outputs.extend(out.image_embeds.map(|embeds| ("image_embeds", Output::Row(embeds))));
                outputs.push(("last_hidden_state", Output::Tokens(out.last_hidden_state)));
                outputs.push(("pooler_output", Output::Row(out.pooler_output)));
                self.finish(&tower, outputs)
            }
            Probed::Classifier => {
                let vit = loader.classifier()?.1;
                let logits = vit.forward(self.inputs.picture(&["pixel_values"])?)?;
                self.finish(&vit, [("logits", Output::Row(logits))])
            }
            Probed::Inception => {
                if self.grad {
                    bail!("inception: gradients are not offered, for its norms are folded into its convolutions");
                }
                let inception = loader.inception()?;
                let out = inception.forward(self.inputs.picture(&["pixel_values", "x"])?)?;
                let outputs = [("features", Output::Row(out.features)), ("logits", Output::Row(out.logits))];
                self.finish(&inception, outputs)
            }
        }
    }

    fn unet(mut self, loader: &Loader) -> Result<Vec<NamedValues>> {
        let (config, unet) = loader.unet()?;
        let x = self.inputs.picture(&["sample"])?;
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
        unet.check(&x, &times, &context, added.as_ref()).context("the inputs do not fit the UNet")?;
        let y = unet.forward(x, &times, context, added.as_ref());
        self.finish(&unet, [("sample", Output::Picture(y))])
    }

    fn text(mut self, loader: &Loader) -> Result<Vec<NamedValues>> {
        let encoder = loader.text_encoder(self.component)?.1;
        let out = encoder.forward(self.inputs.ids("input_ids")?, self.inputs.dtype)?;
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
                sums.push(output.against(&given, &self.inputs.device)?);
            }
        }
        let total = sums.into_iter().reduce(|a, b| a + b);
        let path = self.inputs.file.path().display();
        let total =
            total.ok_or_else(|| anyhow!("{path}: --grad needs the tensor `grad_output`, of the output's shape"))?;
        let gradients = total.backward();
        let mut written = self.of_inputs(&gradients);
        let canonical = of_parameters(network, &gradients);
        let canonical: Vec<NamedTensor<'_>> = canonical.iter().map(NamedTensorExt::named).collect();
        for stored in self.checkpoint.as_stored(self.component, &canonical)? {
            let values = stored.to_f32_vec().unwrap_or_default();
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
            Taken::Picture(name, t) => of(name, t, gradients),
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
