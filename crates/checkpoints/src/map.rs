//! Key maps: where a layout stores each canonical tensor, and in which form.
//!
//! A map is stated once, as the way from canonical keys to stored ones. The way back follows from it: the list of a
//! model's canonical tensors gives all places, and places that share a stored key are the parts of one stored tensor.

use crate::networks::TensorSpec;
use calotype_weights::tensor_file::NamedTensor;
use std::borrow::Cow;
use std::collections::HashMap;

/// The form in which the elements of a canonical tensor lie in the stored one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The same shape.
    Same,
    /// A linear layer `[out, in]` is stored as a 1x1 convolution `[out, in, 1, 1]`.
    Convolution,
    /// A matrix is stored transposed.
    Transposed,
    /// The canonical tensor is the given third of the stored rows (query, key, value).
    Third(usize),
    /// The same, where the stored rows are ordered by heads first: each of this many heads has its query, key and value side by side
    /// (Megatron since its second version of checkpoints).
    HeadThird {
        /// Which third.
        part: usize,
        /// Heads of the attention, which divide the canonical rows.
        heads: usize,
    },
    /// A vector or matrix is stored under this many leading axes of one.
    Leading(usize),
    /// Leading axes of one, this many, are left out in the file.
    WithoutLeading(usize),
    /// A convolution over whole patches `[out, in, rows, columns]` is stored as a linear layer over pixels whose channels
    /// vary fastest: `[out, rows * columns * in]`.
    Pixels,
    /// A convolution `[out, in, rows, columns]` is stored as TensorFlow has it: `[rows, columns, in, out]`.
    OutputsLast,
}

impl Form {
    /// Shape of the stored tensor of which a canonical tensor of the given shape is (a part of) the content.
    pub fn stored_shape(self, canonical: &[usize]) -> Vec<usize> {
        let mut shape = canonical.to_vec();
        match self {
            Self::Same => {}
            Self::Convolution => shape.extend([1, 1]),
            Self::Transposed => shape.reverse(),
            Self::Third(_) | Self::HeadThird { .. } => shape.iter_mut().take(1).for_each(|rows| *rows *= 3),
            Self::Leading(axes) => shape.splice(0..0, std::iter::repeat_n(1, axes)).for_each(drop),
            Self::WithoutLeading(axes) => shape.drain(..axes.min(canonical.len())).for_each(drop),
            Self::Pixels => shape = vec![canonical[0], canonical[1..].iter().product()],
            Self::OutputsLast => {
                if let [outputs, inputs, rows, columns] = *canonical {
                    shape = vec![rows, columns, inputs, outputs];
                }
            }
        }
        shape
    }

    /// Shape of the canonical tensor in a stored one of the given shape; the inverse of [`stored_shape`](Self::stored_shape)
    /// for images of three channels. `None` where the stored tensor cannot have this form.
    pub(crate) fn canonical_shape(self, stored: &[usize]) -> Option<Vec<usize>> {
        let mut shape = stored.to_vec();
        match self {
            Self::Same => {}
            Self::Convolution => shape.truncate(2),
            Self::Transposed => shape.reverse(),
            Self::Third(_) | Self::HeadThird { .. } => *shape.first_mut()? /= 3,
            Self::Leading(axes) => shape.drain(..axes.min(stored.len())).for_each(drop),
            Self::WithoutLeading(axes) => shape.splice(0..0, std::iter::repeat_n(1, axes)).for_each(drop),
            Self::Pixels => {
                let &[outputs, inputs] = stored else { return None };
                let side = (inputs / 3).isqrt();
                return (side * side * 3 == inputs).then(|| vec![outputs, 3, side, side]);
            }
            Self::OutputsLast => {
                let &[rows, columns, inputs, outputs] = stored else { return None };
                return Some(vec![outputs, inputs, rows, columns]);
            }
        }
        Some(shape)
    }

    /// The canonical elements out of the stored tensor's, which must have [`stored_shape`](Self::stored_shape) or the
    /// same up to trailing axes of one. Nothing is copied unless the order of elements differs.
    pub(crate) fn read<'a>(self, stored: NamedTensor<'a>, spec: &TensorSpec) -> NamedTensor<'a> {
        let size = stored.dtype.size();
        let bytes = spec.shape.iter().product::<usize>() * size;
        let data = match (self, stored.data) {
            (Self::Third(part), Cow::Borrowed(data)) => Cow::Borrowed(&data[part * bytes..(part + 1) * bytes]),
            (Self::Third(part), Cow::Owned(data)) => Cow::Owned(data[part * bytes..(part + 1) * bytes].to_vec()),
            (Self::HeadThird { part, heads }, data) => {
                let head = (bytes / heads.max(1)).max(1);
                let of_heads = data.chunks_exact(3 * head).flat_map(|three| &three[part * head..(part + 1) * head]);
                Cow::Owned(of_heads.copied().collect())
            }
            (Self::Transposed, data) => Cow::Owned(transposed(&data, spec.shape[1], spec.shape[0], size)),
            (Self::Pixels, data) => Cow::Owned(self.reorder_pixels(&data, &spec.shape, size, false)),
            (Self::OutputsLast, data) => {
                let [outputs, inputs, taps] = kernel(&spec.shape);
                let by_inputs = transposed(&data, taps, inputs, outputs * size);
                Cow::Owned(transposed(&by_inputs, inputs * taps, outputs, size))
            }
            (_, data) => data,
        };
        NamedTensor { name: spec.name.clone(), dtype: stored.dtype, shape: spec.shape.clone(), data }
    }

    /// The stored elements of one canonical tensor (of one third, where thirds are stored together).
    fn write<'a>(self, tensor: NamedTensor<'a>) -> Cow<'a, [u8]> {
        let size = tensor.dtype.size();
        match self {
            Self::Transposed => Cow::Owned(transposed(&tensor.data, tensor.shape[0], tensor.shape[1], size)),
            Self::Pixels => Cow::Owned(self.reorder_pixels(&tensor.data, &tensor.shape, size, true)),
            Self::OutputsLast => {
                let [outputs, inputs, taps] = kernel(&tensor.shape);
                let by_inputs = transposed(&tensor.data, outputs, inputs * taps, size);
                Cow::Owned(transposed(&by_inputs, inputs, taps, outputs * size))
            }
            _ => tensor.data,
        }
    }

    /// Swaps channels and pixels of every output; `store` tells the direction.
    fn reorder_pixels(self, data: &[u8], canonical: &[usize], size: usize, store: bool) -> Vec<u8> {
        let channels = canonical[1];
        let pixels: usize = canonical[2..].iter().product();
        let (rows, columns) = if store { (channels, pixels) } else { (pixels, channels) };
        let outputs = data.chunks_exact((rows * columns * size).max(1));
        outputs.flat_map(|output| transposed(output, rows, columns, size)).collect()
    }
}

/// Parts of equal length, whose heads, this many of each, stand side by side.
fn by_heads(parts: &[NamedTensor<'_>], heads: usize) -> Vec<u8> {
    let heads = heads.max(1);
    let head = |part: &NamedTensor<'_>, at: usize| {
        let bytes = part.data.len() / heads;
        part.data[at * bytes..(at + 1) * bytes].to_vec()
    };
    (0..heads).flat_map(|at| parts.iter().flat_map(move |part| head(part, at))).collect()
}

/// Outputs, inputs and positions of a convolution's weight.
fn kernel(canonical: &[usize]) -> [usize; 3] {
    [canonical[0], canonical[1], canonical[2..].iter().product()]
}

/// A `rows` x `columns` matrix of elements of `size` bytes, transposed.
fn transposed(data: &[u8], rows: usize, columns: usize, size: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len());
    for column in 0..columns {
        for row in 0..rows {
            let start = (row * columns + column) * size;
            out.extend_from_slice(&data[start..start + size]);
        }
    }
    out
}

/// One row of a section's table: the rest of a canonical key, the rest of the stored one, and the form. A name matches
/// itself and, followed by a point, whatever comes below it.
pub(crate) type Name = (&'static str, &'static str, Form);

/// A subtree of a model. `#` in both prefixes stands for the same number.
#[derive(Clone, Debug)]
struct Section {
    canonical: String,
    stored: String,
    /// Empty where everything below keeps its name.
    names: &'static [Name],
}

/// A spelling of stored keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spelling {
    Plain,
    /// As the LDM code spells its averaged copies: `model_ema.` and the key below `model.` without points.
    Averaged,
}

/// The places in which a layout stores the tensors of one component.
#[derive(Clone, Debug)]
pub struct KeyMap {
    prefix: String,
    sections: Vec<Section>,
    spelling: Spelling,
    /// Heads of the attention below a canonical prefix, where thirds are stored by heads.
    heads: Vec<(&'static str, usize)>,
}

/// The place of one canonical tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The stored key.
    pub key: String,
    /// Its form there.
    pub form: Form,
}

/// One stored tensor and the canonical tensors that it holds: one, or the three thirds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTensor {
    /// The stored key.
    pub key: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Form of the first part.
    pub form: Form,
    /// Indices into the list of canonical tensors, in stored order.
    pub parts: Vec<usize>,
}

impl KeyMap {
    /// A map that leaves keys as they are.
    pub fn identity() -> Self {
        Self::new("").section("", "", &[])
    }

    pub(crate) fn new(prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into(), sections: Vec::new(), spelling: Spelling::Plain, heads: Vec::new() }
    }

    /// Adds a subtree.
    pub(crate) fn section(
        mut self,
        canonical: impl Into<String>,
        stored: impl Into<String>,
        names: &'static [Name],
    ) -> Self {
        self.sections.push(Section { canonical: canonical.into(), stored: stored.into(), names });
        self
    }

    /// The map to the averaged copies that the LDM code keeps of the parameters below `model.`.
    pub(crate) fn averaged(mut self) -> Self {
        self.spelling = Spelling::Averaged;
        self
    }

    /// Below a canonical prefix, thirds are stored by `heads` ([`Form::HeadThird`]).
    #[must_use]
    pub fn by_heads(mut self, canonical: &'static str, heads: usize) -> Self {
        self.heads.push((canonical, heads));
        self
    }

    /// The prefix of all stored keys.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The place of a canonical tensor; `None` if the layout has no place for it.
    pub fn place(&self, canonical: &str) -> Option<Place> {
        let (key, form) = self.sections.iter().find_map(|section| section.place(canonical))?;
        let key = format!("{}{key}", self.prefix);
        let key = match self.spelling {
            Spelling::Plain => key,
            Spelling::Averaged => averaged_key(&key)?,
        };
        let heads = self.heads.iter().find(|(prefix, _)| canonical.starts_with(prefix)).map(|(_, heads)| *heads);
        let form = match (form, heads) {
            (Form::Third(part), Some(heads)) => Form::HeadThird { part, heads },
            _ => form,
        };
        Some(Place { key, form })
    }

    /// The stored tensors of a model with the given canonical tensors, in the order of their first parts; and the
    /// canonical tensors that the layout has no place for.
    pub fn stored(&self, specs: &[TensorSpec]) -> (Vec<StoredTensor>, Vec<String>) {
        let mut list: Vec<StoredTensor> = Vec::with_capacity(specs.len());
        let mut known: HashMap<String, usize> = HashMap::new();
        let mut homeless = Vec::new();
        for (index, spec) in specs.iter().enumerate() {
            let Some(Place { key, form }) = self.place(&spec.name) else {
                homeless.push(spec.name.clone());
                continue;
            };
            if let Some(&at) = known.get(&key) {
                list[at].parts.push(index);
                continue;
            }
            known.insert(key.clone(), list.len());
            list.push(StoredTensor { key, shape: form.stored_shape(&spec.shape), form, parts: vec![index] });
        }
        for tensor in &mut list {
            let part = |index: &usize| self.place(&specs[*index].name).map(|place| place.form);
            tensor.parts.sort_by_key(|index| match part(index) {
                Some(Form::Third(third) | Form::HeadThird { part: third, .. }) => third,
                _ => 0,
            });
        }
        (list, homeless)
    }
}

impl KeyMap {
    /// Canonical tensors as the layout stores them.
    ///
    /// # Errors
    /// The canonical key that the layout has no place for, or of whose siblings in one stored tensor some are missing.
    pub fn store(&self, canonical: &[NamedTensor<'_>]) -> Result<Vec<NamedTensor<'static>>, String> {
        let spec = |tensor: &NamedTensor<'_>| TensorSpec { name: tensor.name.clone(), shape: tensor.shape.clone() };
        let specs: Vec<TensorSpec> = canonical.iter().map(spec).collect();
        let (stored, homeless) = self.stored(&specs);
        if let Some(key) = homeless.into_iter().next() {
            return Err(key);
        }
        let assemble = |tensor: &StoredTensor| {
            let parts: Vec<NamedTensor<'_>> = tensor.parts.iter().map(|&part| canonical[part].clone()).collect();
            let thirds = matches!(tensor.form, Form::Third(_) | Form::HeadThird { .. });
            let whole = parts.len() == if thirds { 3 } else { 1 };
            let alike = parts.iter().all(|part| part.dtype == parts[0].dtype);
            if whole && alike { Ok(tensor.assemble(parts).into_owned()) } else { Err(parts[0].name.clone()) }
        };
        stored.iter().map(assemble).collect()
    }

    /// The canonical tensors, as far as they are among the stored ones with the shapes that the layout has for them.
    pub fn load(&self, stored: &[NamedTensor<'_>], canonical: &[TensorSpec]) -> Vec<NamedTensor<'static>> {
        let known: HashMap<&str, &NamedTensor<'_>> =
            stored.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
        let read = |spec: &TensorSpec| {
            let Place { key, form } = self.place(&spec.name)?;
            let tensor = known.get(key.as_str()).filter(|tensor| tensor.shape == form.stored_shape(&spec.shape))?;
            Some(form.read((*tensor).clone(), spec).into_owned())
        };
        canonical.iter().filter_map(read).collect()
    }
}

/// The key under which the LDM code averages a parameter; `None` outside of `model.`.
pub(crate) fn averaged_key(key: &str) -> Option<String> {
    Some(format!("model_ema.{}", key.strip_prefix("model.")?.replace('.', "")))
}

impl StoredTensor {
    /// The stored tensor out of its canonical parts, in stored order.
    pub(crate) fn assemble<'a>(&self, mut parts: Vec<NamedTensor<'a>>) -> NamedTensor<'a> {
        let dtype = parts[0].dtype;
        let data = match self.form {
            _ if parts.len() == 1 => self.form.write(parts.remove(0)),
            Form::HeadThird { heads, .. } => Cow::Owned(by_heads(&parts, heads)),
            _ => Cow::Owned(parts.iter().flat_map(|part| part.data.iter().copied()).collect()),
        };
        NamedTensor { name: self.key.clone(), dtype, shape: self.shape.clone(), data }
    }
}

impl Section {
    fn place(&self, canonical: &str) -> Option<(String, Form)> {
        let (number, rest) = after_prefix(&self.canonical, canonical)?;
        let stored = match number {
            Some(number) => self.stored.replacen('#', number, 1),
            None => self.stored.clone(),
        };
        if self.names.is_empty() {
            return Some((stored + rest, Form::Same));
        }
        self.names.iter().find_map(|(name, to, form)| {
            let below = rest.strip_prefix(name)?;
            (below.is_empty() || below.starts_with('.')).then(|| (format!("{stored}{to}{below}"), *form))
        })
    }
}

/// The number that `#` stands for in a key that starts with the pattern, and what follows it.
fn after_prefix<'k>(pattern: &str, key: &'k str) -> Option<(Option<&'k str>, &'k str)> {
    let Some((before, after)) = pattern.split_once('#') else {
        return Some((None, key.strip_prefix(pattern)?));
    };
    let rest = key.strip_prefix(before)?;
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let (number, rest) = rest.split_at(digits);
    (digits > 0).then_some((Some(number), rest.strip_prefix(after)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use calotype_weights::tensor_file::Dtype;

    fn spec(name: &str, shape: &[usize]) -> TensorSpec {
        TensorSpec { name: name.into(), shape: shape.to_vec() }
    }

    #[test]
    fn a_number_in_a_prefix_is_carried_over() {
        const NAMES: &[Name] = &[("norm1", "ln_1", Form::Same)];
        let map = KeyMap::new("x.").section("layers.#.", "blocks.#.", NAMES);
        assert_eq!(map.place("layers.12.norm1.weight").unwrap().key, "x.blocks.12.ln_1.weight");
        assert_eq!(map.place("layers.12.norm10.weight"), None);
        assert_eq!(map.place("layers.x.norm1.weight"), None);
    }

    #[test]
    fn averaged_keys_lose_their_points() {
        let map = KeyMap::new("model.diffusion_model.").section("conv_in.", "input_blocks.0.0.", &[]).averaged();
        assert_eq!(map.place("conv_in.weight").unwrap().key, "model_ema.diffusion_modelinput_blocks00weight");
    }

    #[test]
    fn every_form_reads_what_it_wrote() {
        let cases: [(Form, &[usize], &[usize]); 7] = [
            (Form::Same, &[2, 3], &[2, 3]),
            (Form::Convolution, &[2, 3], &[2, 3, 1, 1]),
            (Form::Transposed, &[2, 3], &[3, 2]),
            (Form::Leading(2), &[4], &[1, 1, 4]),
            (Form::WithoutLeading(1), &[1, 2, 3], &[2, 3]),
            (Form::Pixels, &[2, 3, 2, 2], &[2, 12]),
            (Form::OutputsLast, &[2, 3, 1, 2], &[1, 2, 3, 2]),
        ];
        for (form, shape, stored_shape) in cases {
            assert_eq!(form.stored_shape(shape), stored_shape, "{form:?}");
            let spec = spec("w", shape);
            let count: usize = shape.iter().product();
            let bytes: Vec<u8> = (0..2 * count as u8).collect();
            let tensor = NamedTensor::new("w", Dtype::F16, shape, bytes.clone());
            let stored = StoredTensor { key: "s".into(), shape: stored_shape.to_vec(), form, parts: vec![0] };
            let written = stored.assemble(vec![tensor.clone()]);
            assert_eq!(written.shape, stored_shape);
            assert_eq!(form.read(written, &spec), tensor, "{form:?}");
        }
    }

    #[test]
    fn transposition_moves_the_elements() {
        assert_eq!(transposed(&[1, 2, 3, 4, 5, 6], 2, 3, 1), [1, 4, 2, 5, 3, 6]);
        // One row, two columns, two inputs, three outputs: the column varies fastest in the canonical order, inputs next.
        let stored = NamedTensor::new("k", Dtype::U8, [1, 2, 2, 3], (0..12).collect::<Vec<u8>>());
        let read = Form::OutputsLast.read(stored, &spec("k", &[3, 2, 1, 2]));
        assert_eq!(&read.data[..], [0, 6, 3, 9, 1, 7, 4, 10, 2, 8, 5, 11]);
    }

    #[test]
    fn thirds_of_heads_stand_side_by_side() {
        const NAMES: &[Name] =
            &[("k", "qkv", Form::Third(1)), ("q", "qkv", Form::Third(0)), ("v", "qkv", Form::Third(2))];
        let map = KeyMap::new("").section("a.", "", NAMES).by_heads("a.", 2);
        let part =
            |name: &str, first: u8| NamedTensor::new(name, Dtype::U8, [4, 1], (first..first + 4).collect::<Vec<_>>());
        let canonical = [part("a.k", 4), part("a.q", 0), part("a.v", 8)];
        let stored = map.store(&canonical).unwrap();
        // Two rows of each head: query, key, value of the first, then those of the second.
        assert_eq!(&stored[0].data[..], [0, 1, 4, 5, 8, 9, 2, 3, 6, 7, 10, 11]);
        let specs = canonical.clone().map(|tensor| spec(&tensor.name, &tensor.shape));
        assert_eq!(map.load(&stored, &specs), canonical);
    }

    #[test]
    fn thirds_are_joined_in_stored_order_and_split_without_a_copy() {
        const NAMES: &[Name] =
            &[("k", "qkv", Form::Third(1)), ("q", "qkv", Form::Third(0)), ("v", "qkv", Form::Third(2))];
        let map = KeyMap::new("").section("", "", NAMES);
        let specs = [spec("k", &[1, 2]), spec("q", &[1, 2]), spec("v", &[1, 2])];
        let (stored, homeless) = map.stored(&specs);
        assert!(homeless.is_empty());
        assert_eq!((stored.len(), &stored[0].parts[..], &stored[0].shape[..]), (1, &[1, 0, 2][..], &[3, 2][..]));
        let part = |name: &str, first: u8| NamedTensor::new(name, Dtype::U8, [1, 2], vec![first, first + 1]);
        let joined = stored[0].assemble(vec![part("q", 1), part("k", 3), part("v", 5)]);
        assert_eq!(&joined.data[..], [1, 2, 3, 4, 5, 6]);
        let borrowed = NamedTensor::new("qkv", Dtype::U8, [3, 2], &joined.data[..]);
        let key = Form::Third(1).read(borrowed, &specs[0]);
        assert_eq!(&key.data[..], [3, 4]);
        assert!(matches!(key.data, Cow::Borrowed(_)));
    }
}
