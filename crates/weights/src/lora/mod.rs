//! Low-rank adapters (LoRA: Hu et al., arXiv 2106.09685; LoCon for convolutions), in the dialects of kohya's trainers,
//! PEFT and diffusers, several at once.
//!
//! A [`LoraSet`] is made for the parameters of a model, takes adapter files with a weight each, and tells for a
//! parameter the sum of `weight * alpha / rank * up @ down`, which is to be added to it. Nothing is left out silently:
//! keys that change no parameter of the model are errors, unless they are allowed and then listed; other kinds of
//! adapters are refused by their names.

mod config;
mod keys;

use crate::{TensorFile, TensorFileError, TensorInfo, TensorSource};
use calotype_kernels::{Layout, Matrix, gemm};
pub use config::LoraConfig;
use keys::{Address, Modules, Part};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A part of a pipeline that adapters change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Component {
    /// The UNet.
    Unet,
    /// The (first) text encoder.
    TextEncoder,
    /// SDXL's second text encoder.
    TextEncoder2,
}

impl Component {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Unet, Self::TextEncoder, Self::TextEncoder2];

    /// Its folder in a diffusers checkpoint: `unet`, `text_encoder`, `text_encoder_2`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unet => "unet",
            Self::TextEncoder => "text_encoder",
            Self::TextEncoder2 => "text_encoder_2",
        }
    }
}

impl std::fmt::Display for Component {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// An adapter that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoraError {
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] TensorFileError),
    /// The adapter's configuration cannot be read or means nothing here.
    #[error("{}: {problem}", file.display())]
    Config {
        /// The file.
        file: PathBuf,
        /// The fault, and the remedy.
        problem: String,
    },
    /// The file holds another kind of adapter.
    #[error("{}: `{key}` belongs to a {kind} adapter, which is not supported; LoRA and LoCon are", file.display())]
    OtherKind {
        /// The file.
        file: PathBuf,
        /// The first such key.
        key: String,
        /// The kind's name.
        kind: &'static str,
    },
    /// Keys that change no parameter of the model.
    #[error(
        "{}: {} keys fit no parameter of the model: {}; the adapter was made for another one, or allow unused keys",
        file.display(), keys.len(), list(keys)
    )]
    Unused {
        /// The file.
        file: PathBuf,
        /// The keys.
        keys: Vec<String>,
    },
    /// A key can mean several parameters.
    #[error("{}: `{key}` can mean {}; say which component the file is for", file.display(), list(candidates))]
    Ambiguous {
        /// The file.
        file: PathBuf,
        /// The key.
        key: String,
        /// Names that it can mean.
        candidates: Vec<String>,
    },
    /// An adapter of a module lacks one of its factors, or has one twice.
    #[error("{}: {module}: the {part} factor is {problem}; the file is damaged", file.display())]
    Factors {
        /// The file.
        file: PathBuf,
        /// The module.
        module: String,
        /// The factor.
        part: &'static str,
        /// The fault.
        problem: &'static str,
    },
    /// Factors whose product does not have the parameter's shape.
    #[error(
        "{}: {module}: factors of shapes {shapes:?} do not make a parameter of shape {expected:?}; the adapter was made \
         for another model",
        file.display()
    )]
    WrongShape {
        /// The file.
        file: PathBuf,
        /// The module.
        module: String,
        /// Shapes of down, up, and mid if there is one.
        shapes: Vec<Vec<usize>>,
        /// The parameter's.
        expected: Vec<usize>,
    },
    /// A tensor of integers, or a number where there should be none.
    #[error("{}: `{key}` is not {expected}", file.display())]
    NotNumbers {
        /// The file.
        file: PathBuf,
        /// The tensor.
        key: String,
        /// Shape that it should have.
        expected: &'static str,
    },
}

/// The first few of many.
fn list(items: &[String]) -> String {
    const SHOWN: usize = 8;
    let shown = items.iter().take(SHOWN).map(|item| format!("`{item}`")).collect::<Vec<_>>().join(", ");
    if items.len() > SHOWN { format!("{shown} and {} more", items.len() - SHOWN) } else { shown }
}

/// Settings for reading a file of adapters.
#[derive(Clone, Debug, Default)]
pub struct LoraOptions {
    /// The file's own settings, which tell alpha; files of kohya hold it among their tensors.
    pub config: LoraConfig,
    /// The component, for files whose keys do not name it (PEFT's).
    pub component: Option<Component>,
    /// True if keys that fit no parameter of the model are left out, and only listed.
    pub allow_unused: bool,
}

/// Outcome of applying a file: the parameters that it changes, and the keys that were left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoraReport {
    /// The parameters that it changes.
    pub changed: Vec<(Component, String)>,
    /// Keys that fit no parameter of the model; empty unless they were allowed.
    pub unused: Vec<String>,
}

/// The factors for one parameter.
struct Factors {
    /// Number of rows of `down`.
    rank: usize,
    /// `[rank, inputs]`: channels, rows and columns of the kernel.
    down: Vec<f32>,
    /// `[outputs, rank]`.
    up: Vec<f32>,
    /// Weight of the file, times alpha over the rank.
    scale: f32,
}

/// Adapters for one model.
pub struct LoraSet {
    /// The parameters that can be changed, by module: key and shape.
    parameters: BTreeMap<(Component, String), (String, Vec<usize>)>,
    modules: BTreeMap<Component, Modules>,
    /// By component and key of the parameter.
    factors: BTreeMap<(Component, String), Vec<Factors>>,
}

impl LoraSet {
    /// For a model of these components, each with its tensors under diffusers' and transformers' keys. Tensors of two
    /// axes or more called `….weight` are those that adapters can change.
    pub fn new(model: &[(Component, Vec<TensorInfo>)]) -> Self {
        let mut parameters = BTreeMap::new();
        for (component, tensors) in model {
            for tensor in tensors.iter().filter(|tensor| tensor.shape.len() >= 2) {
                if let Some(module) = tensor.name.strip_suffix(".weight") {
                    parameters.insert((*component, module.to_owned()), (tensor.name.clone(), tensor.shape.clone()));
                }
            }
        }
        let names = |component| {
            parameters.keys().filter(move |(owner, _)| *owner == component).map(|(_, module)| module.as_str())
        };
        let modules =
            model.iter().map(|&(component, _)| (component, Modules::new(component, names(component)))).collect();
        Self { parameters, modules, factors: BTreeMap::new() }
    }

    /// True if no adapter changes anything.
    pub fn is_empty(&self) -> bool {
        self.factors.is_empty()
    }

    /// Opens a safetensors file, or a folder with `adapter_model.safetensors` and `adapter_config.json` (PEFT) or
    /// `pytorch_lora_weights.safetensors` (diffusers), and adds it. The configuration comes from the folder or the
    /// file's metadata, and takes the place of that in `options`.
    ///
    /// # Errors
    /// The file cannot be read or used; then the set is as it was.
    pub fn add_path(&mut self, path: &Path, weight: f32, options: &LoraOptions) -> Result<LoraReport, LoraError> {
        let peft = path.join("adapter_model.safetensors");
        let file = match path.is_dir() {
            true if peft.exists() => peft,
            true => path.join("pytorch_lora_weights.safetensors"),
            false => path.to_owned(),
        };
        let tensors = TensorFile::open(&file)?;
        let beside = file.with_file_name("adapter_config.json");
        let config = if file.ends_with("adapter_model.safetensors") && beside.exists() {
            LoraConfig::from_adapter_config(&beside)?
        } else {
            LoraConfig::from_metadata(&file, tensors.metadata())?
        };
        self.add(&tensors, weight, &LoraOptions { config, ..options.clone() })
    }

    /// Adds an adapter file with a weight (1 is as it was trained; any finite number is allowed).
    ///
    /// # Errors
    /// The file is of another kind, damaged, or does not fit the model; then the set is as it was.
    pub fn add(
        &mut self,
        source: &dyn TensorSource,
        weight: f32,
        options: &LoraOptions,
    ) -> Result<LoraReport, LoraError> {
        let (parts, unused) = self.resolve(source, options)?;
        if !(unused.is_empty() || options.allow_unused) {
            return Err(LoraError::Unused { file: source.origin().into(), keys: unused });
        }
        let mut added = Vec::with_capacity(parts.len());
        for ((component, module), keys) in &parts {
            let reader = Reader { source, module, keys };
            let (key, shape) = &self.parameters[&(*component, module.clone())];
            let mut factors = reader.factors(shape)?;
            let alpha = match keys.get(&Part::Alpha) {
                Some(_) => Some(reader.alpha()?),
                None => options.config.alpha(*component, module),
            };
            factors.scale = weight * options.config.scale(*component, alpha, factors.rank);
            added.push(((*component, key.clone()), factors));
        }
        let changed = added.iter().map(|(name, _)| name.clone()).collect();
        added.into_iter().for_each(|(name, factors)| self.factors.entry(name).or_default().push(factors));
        Ok(LoraReport { changed, unused })
    }

    /// The sum of all adapters' changes of a parameter, row-major in the parameter's shape; nothing if none changes it.
    pub fn delta(&self, component: Component, key: &str) -> Option<Vec<f32>> {
        let all = self.factors.get(&(component, key.to_owned()))?;
        let mut delta: Vec<f32> = Vec::new();
        for Factors { rank, down, up, scale } in all {
            let (inputs, outputs) = (down.len() / rank, up.len() / rank);
            let scaled: Vec<f32> = up.iter().map(|value| value * scale).collect();
            let (a, b) = (Matrix { data: &scaled, row_stride: *rank }, Matrix { data: down, row_stride: inputs });
            let first = delta.is_empty();
            delta.resize(outputs * inputs, 0.0);
            gemm(Layout::NN, (outputs, inputs, *rank), a, b, &mut delta, !first);
        }
        Some(delta)
    }

    /// The keys of a file by the module they change, and those that fit none.
    fn resolve(&self, source: &dyn TensorSource, options: &LoraOptions) -> Result<(Parts, Vec<String>), LoraError> {
        let file = || source.origin().to_owned();
        let (mut parts, mut unused) = (Parts::new(), Vec::new());
        for TensorInfo { name: key, .. } in source.entries() {
            if let Some(kind) = keys::other_kind(&key) {
                return Err(LoraError::OtherKind { file: file(), key, kind });
            }
            let Some(address) = keys::parse(&key) else {
                unused.push(key);
                continue;
            };
            let mut candidates = self.candidates(&address, options.component);
            match candidates.len() {
                0 => unused.push(key),
                1 => {
                    let module = candidates.swap_remove(0);
                    let part = address.part;
                    if parts.entry(module.clone()).or_default().insert(part, key).is_some() {
                        let problem = "there twice";
                        let module = format!("{}.{}", module.0, module.1);
                        return Err(LoraError::Factors { file: file(), module, part: part.name(), problem });
                    }
                }
                _ => {
                    let candidates = candidates.iter().map(|(owner, module)| format!("{owner}.{module}")).collect();
                    return Err(LoraError::Ambiguous { file: file(), key, candidates });
                }
            }
        }
        Ok((parts, unused))
    }

    /// The modules of the model that an address can mean.
    fn candidates(&self, address: &Address, told: Option<Component>) -> Vec<(Component, String)> {
        let component = address.component.or(told);
        let owners = self.modules.iter().filter(|(owner, _)| component.is_none_or(|component| component == **owner));
        owners
            .flat_map(|(owner, modules)| modules.find(&address.module).iter().map(|module| (*owner, module.clone())))
            .collect()
    }
}

/// The keys of a module's parts, by module.
type Parts = BTreeMap<(Component, String), BTreeMap<Part, String>>;

/// Reads the factors of one module.
struct Reader<'a> {
    source: &'a dyn TensorSource,
    module: &'a str,
    keys: &'a BTreeMap<Part, String>,
}

impl Reader<'_> {
    /// Shape and values of a part.
    fn part(&self, part: Part) -> Result<(Vec<usize>, Vec<f32>), LoraError> {
        let (file, module) = (self.source.origin().to_owned(), self.module.to_owned());
        let Some(key) = self.keys.get(&part) else {
            return Err(LoraError::Factors { file, module, part: part.name(), problem: "missing" });
        };
        let tensor = self.source.tensor(key)?;
        let values = tensor.to_f32_vec();
        let expected = "a tensor of floating-point numbers";
        let values = values.ok_or_else(|| LoraError::NotNumbers { file, key: key.clone(), expected })?;
        Ok((tensor.shape, values))
    }

    fn alpha(&self) -> Result<f32, LoraError> {
        match self.part(Part::Alpha)?.1[..] {
            [alpha] if alpha.is_finite() => Ok(alpha),
            _ => Err(LoraError::NotNumbers {
                file: self.source.origin().into(),
                key: self.keys[&Part::Alpha].clone(),
                expected: "one finite number",
            }),
        }
    }

    /// The factors for a parameter of this shape, with a middle factor multiplied into `down`; not yet scaled.
    fn factors(&self, expected: &[usize]) -> Result<Factors, LoraError> {
        let (down_shape, down) = self.part(Part::Down)?;
        let (up_shape, up) = self.part(Part::Up)?;
        let mid = self.keys.contains_key(&Part::Mid).then(|| self.part(Part::Mid)).transpose()?;
        let rank = down_shape.first().copied().unwrap_or(0);
        let product = match &mid {
            Some((mid_shape, _)) => product_shape_with_mid(&down_shape, &up_shape, mid_shape),
            None => product_shape(&down_shape, &up_shape),
        };
        if product.is_none_or(|product| squeezed(&product) != squeezed(expected)) {
            let mid_shape = mid.map(|(shape, _)| shape);
            return Err(LoraError::WrongShape {
                file: self.source.origin().into(),
                module: self.module.into(),
                shapes: [Some(down_shape), Some(up_shape), mid_shape].into_iter().flatten().collect(),
                expected: expected.into(),
            });
        }
        let down = match mid {
            Some((shape, mid)) => with_mid(&down, &mid, rank, &shape),
            None => down,
        };
        Ok(Factors { rank, down, up, scale: 1.0 })
    }
}

/// Shape of `up @ down`: a linear layer's, or a convolution's whose kernel `down` has.
fn product_shape(down: &[usize], up: &[usize]) -> Option<Vec<usize>> {
    let ([rank, inputs @ ..], [outputs, up_rank, up_kernel @ ..]) = (down, up) else { return None };
    let fits = *rank > 0 && rank == up_rank && !inputs.is_empty() && up_kernel.iter().all(|&size| size == 1);
    fits.then(|| [&[*outputs], inputs].concat())
}

/// The same with a middle factor `[rank, rank, rows, columns]` between two convolutions of one pixel.
fn product_shape_with_mid(down: &[usize], up: &[usize], mid: &[usize]) -> Option<Vec<usize>> {
    let ([rank, inputs, down_kernel @ ..], [a, b, kernel @ ..]) = (down, mid) else { return None };
    let fits = rank == a && rank == b && down_kernel.iter().all(|&size| size == 1);
    let whole = [&[*rank, *inputs], kernel].concat();
    fits.then(|| product_shape(&whole, up)).flatten()
}

/// A shape without a kernel of one pixel: a linear layer is such a convolution.
fn squeezed(shape: &[usize]) -> &[usize] {
    match shape {
        [rest @ .., 1, 1] => rest,
        _ => shape,
    }
}

/// `down` after the middle factor: sum over j of `mid[i, j, y, x] * down[j, c]`, as `[i, c, y, x]`.
fn with_mid(down: &[f32], mid: &[f32], rank: usize, mid_shape: &[usize]) -> Vec<f32> {
    let inputs = down.len() / rank;
    let pixels: usize = mid_shape[2..].iter().product();
    let mut out = vec![0.0; rank * inputs * pixels];
    for i in 0..rank {
        for j in 0..rank {
            let kernel = &mid[(i * rank + j) * pixels..][..pixels];
            for c in 0..inputs {
                let (factor, at) = (down[j * inputs + c], (i * inputs + c) * pixels);
                out[at..at + pixels].iter_mut().zip(kernel).for_each(|(sum, value)| *sum += factor * value);
            }
        }
    }
    out
}
