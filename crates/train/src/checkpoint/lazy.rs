//! Tensors of a checkpoint that are made when they are written.

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;
use calotype_models::state::{Path, checkpoint_shape, to_checkpoint};
use calotype_weights::{Dtype, NamedTensor, TensorInfo};
use std::fmt;

/// Elements as little-endian bytes.
pub(super) struct Data<'a>(Box<dyn AsRef<[u8]> + 'a>);

impl AsRef<[u8]> for Data<'_> {
    fn as_ref(&self) -> &[u8] {
        (*self.0).as_ref()
    }
}

type Make<'a> = Box<dyn FnOnce() -> Data<'a> + 'a>;

/// A tensor of a checkpoint whose data are made when they are written, so that those of a whole checkpoint are never in
/// memory at once.
pub struct LazyTensor<'a> {
    info: TensorInfo,
    make: Make<'a>,
}

impl fmt::Debug for LazyTensor<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("LazyTensor").field("info", &self.info).finish_non_exhaustive()
    }
}

impl<'a> LazyTensor<'a> {
    /// A tensor of any type; `make` gives its row-major elements as little-endian bytes. Whether they fit the shape is
    /// checked when they are written.
    pub fn new<B: AsRef<[u8]> + 'a>(
        name: impl Into<String>,
        dtype: Dtype,
        shape: impl Into<Vec<usize>>,
        make: impl FnOnce() -> B + 'a,
    ) -> Self {
        let info = TensorInfo { name: name.into(), dtype, shape: shape.into() };
        Self { info, make: Box::new(|| Data(Box::new(make()))) }
    }

    /// A tensor of `F32`.
    pub fn f32(name: impl Into<String>, shape: impl Into<Vec<usize>>, make: impl FnOnce() -> Vec<f32> + 'a) -> Self {
        Self::new(name, Dtype::F32, shape, || Floats(make()))
    }

    /// A parameter, or what belongs to one, as `F32` in checkpoint layout. `shape` is the parameter's in memory. The
    /// tensor's own storage is what is read.
    pub fn parameter<const D: usize>(name: impl Into<String>, shape: &[usize], tensor: Tensor<D>) -> Self {
        let in_file = checkpoint_shape(shape);
        let shape = shape.to_vec();
        Self::f32(name, in_file, move || {
            let values = tensor.into_data().try_into_vec_as::<f32>().expect("a float tensor's data, read here");
            if shape.len() == 4 { to_checkpoint(&values, &shape) } else { values }
        })
    }

    /// Length of the data.
    pub fn bytes(&self) -> u64 {
        self.info.dtype.bytes_of(&self.info.shape).unwrap_or(usize::MAX) as u64
    }

    /// Its key in the file.
    pub fn name(&self) -> &str {
        &self.info.name
    }

    /// The same, beside others that do not live as long.
    pub fn within<'s>(self) -> LazyTensor<'s>
    where
        'a: 's,
    {
        let make = self.make;
        LazyTensor { info: self.info, make: Box::new(move || Data(make().0)) }
    }

    /// What the file's header says of it.
    pub fn info(&self) -> &TensorInfo {
        &self.info
    }

    /// Its data: row-major elements, little-endian.
    pub fn into_bytes(self) -> Vec<u8> {
        (self.make)().as_ref().to_vec()
    }

    /// What the file's header says of it, and what makes the data.
    pub(super) fn into_parts(self) -> (TensorInfo, Make<'a>) {
        (self.info, self.make)
    }
}

impl<'a> From<NamedTensor<'a>> for LazyTensor<'a> {
    fn from(tensor: NamedTensor<'a>) -> Self {
        let NamedTensor { name, dtype, shape, data } = tensor;
        Self::new(name, dtype, shape, || data)
    }
}

/// Elements of `F32`.
struct Floats(Vec<f32>);

impl AsRef<[u8]> for Floats {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

/// Whether all numbers of `F32` data are finite.
pub(super) fn all_finite(data: &[u8]) -> bool {
    let (elements, _) = data.as_chunks::<4>();
    // Run by run, so that the loop over a run needs no exit and is vectorized.
    elements.chunks(4096).all(|run| run.iter().fold(true, |ok, &bytes| ok & f32::from_le_bytes(bytes).is_finite()))
}

/// All parameters of a module under `prefix` and their names, in traversal order and checkpoint layout.
///
/// ```
/// use burn::module::{Module, Param};
/// use burn::tensor::{Device, Tensor};
/// use calotype_train::checkpoint::module_tensors;
///
/// #[derive(Module, Debug)]
/// struct Scale {
///     weight: Param<Tensor<1>>,
/// }
/// let scale = Scale { weight: Param::from_tensor(Tensor::ones([3], &Device::flex())) };
/// let tensors = module_tensors("model.", &scale);
/// assert_eq!((tensors[0].name(), tensors[0].bytes()), ("model.weight", 12));
/// ```
pub fn module_tensors<'a, M: Module>(prefix: &str, module: &M) -> Vec<LazyTensor<'a>> {
    struct Collect<'p, 'a> {
        path: Path,
        prefix: &'p str,
        out: Vec<LazyTensor<'a>>,
    }
    impl ModuleVisitor for Collect<'_, '_> {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.push(name, container);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let tensor = param.val().inner();
            let name = format!("{}{}", self.prefix, self.path.name());
            self.out.push(LazyTensor::parameter(name, &tensor.dims(), tensor));
        }
    }
    let mut collect = Collect { path: Path::default(), prefix, out: Vec::new() };
    module.visit(&mut collect);
    collect.out
}
