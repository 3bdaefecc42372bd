//! What an adapter of each kind changes in a parameter.
//!
//! Sources of the formulas: LoRA and LoCon (kohya), LoHa and LoKr (LyCORIS: Yeh et al., arXiv 2309.14859; its `loha.py` and
//! `lokr.py`), DoRA (Liu et al., arXiv 2402.09353; PEFT's `dora.py`, LyCORIS' `weight_decompose`).

use super::keys::Part;
use calotype_kernels::{Layout, Matrix, gemm};

/// Shape and values of a part as they are stored.
pub(super) type Stored = (Vec<usize>, Vec<f32>);

/// `up @ down`: `[rows, columns]` of rank `rank`.
pub(super) struct Product {
    rank: usize,
    /// `[rank, columns]`.
    down: Vec<f32>,
    /// `[rows, rank]`.
    up: Vec<f32>,
}

/// A matrix, as it is or in factors.
pub(super) enum Dense {
    Whole([usize; 2], Vec<f32>),
    Factored(Product),
}

/// The difference that an adapter makes, before it is scaled.
pub(super) enum Difference {
    /// LoRA and LoCon.
    Product(Product),
    /// LoHa: the element-wise product of two.
    Hadamard([Product; 2]),
    /// LoKr: the Kronecker product of two.
    Kronecker([Dense; 2]),
    /// All elements.
    Whole(Vec<f32>),
}

/// The lengths that a DoRA gives to the rows of a parameter (or to its columns, as LyCORIS' older versions do).
pub(super) enum Magnitude {
    OfOutputs(Vec<f32>),
    OfInputs(Vec<f32>),
}

/// Everything that one file changes in one parameter.
pub(super) struct Change {
    pub(super) difference: Difference,
    /// Weight of the file, times alpha over the rank.
    pub(super) scale: f32,
    pub(super) magnitude: Option<Magnitude>,
}

/// Why parts are no change of a parameter.
pub(super) enum Misfit {
    /// A part that has to be there.
    Missing(Part),
    /// Parts whose shapes do not make the parameter's.
    Shapes(Vec<Vec<usize>>),
}

impl Product {
    fn dims(&self) -> [usize; 2] {
        [self.up.len() / self.rank, self.down.len() / self.rank]
    }

    /// `scale * up @ down`, row-major.
    fn matrix(&self, scale: f32) -> Vec<f32> {
        let [rows, columns] = self.dims();
        let scaled: Vec<f32> = self.up.iter().map(|value| value * scale).collect();
        let (a, b) =
            (Matrix { data: &scaled, row_stride: self.rank }, Matrix { data: &self.down, row_stride: columns });
        let mut out = vec![0.0; rows * columns];
        gemm(Layout::NN, (rows, columns, self.rank), a, b, &mut out, false);
        out
    }
}

impl Dense {
    fn dims(&self) -> [usize; 2] {
        match self {
            Self::Whole(dims, _) => *dims,
            Self::Factored(product) => product.dims(),
        }
    }

    fn matrix(&self) -> Vec<f32> {
        match self {
            Self::Whole(_, values) => values.clone(),
            Self::Factored(product) => product.matrix(1.0),
        }
    }

    fn rank(&self) -> Option<usize> {
        match self {
            Self::Whole(..) => None,
            Self::Factored(product) => Some(product.rank),
        }
    }
}

impl Difference {
    /// The rank that alpha is divided by; none where alpha means nothing, for nothing is factored.
    pub(super) fn rank(&self) -> Option<usize> {
        match self {
            Self::Product(product) | Self::Hadamard([product, _]) => Some(product.rank),
            // Where both are factored, the second one's counts.
            Self::Kronecker([first, second]) => second.rank().or(first.rank()),
            Self::Whole(_) => None,
        }
    }

    /// True if it is LoKr's.
    pub(super) fn is_kronecker(&self) -> bool {
        matches!(self, Self::Kronecker(_))
    }

    fn values(&self, scale: f32) -> Vec<f32> {
        match self {
            Self::Product(product) => product.matrix(scale),
            Self::Hadamard([first, second]) => {
                let mut values = first.matrix(scale);
                values.iter_mut().zip(second.matrix(1.0)).for_each(|(a, b)| *a *= b);
                values
            }
            Self::Kronecker([first, second]) => kronecker(first, second, scale),
            Self::Whole(values) => values.iter().map(|value| value * scale).collect(),
        }
    }
}

fn kronecker(first: &Dense, second: &Dense, scale: f32) -> Vec<f32> {
    let ([rows, columns], [inner_rows, inner_columns]) = (first.dims(), second.dims());
    let (outer, inner) = (first.matrix(), second.matrix());
    let mut out = Vec::with_capacity(outer.len() * inner.len());
    for row in 0..rows {
        for inner_row in 0..inner_rows {
            let line = &inner[inner_row * inner_columns..][..inner_columns];
            for factor in &outer[row * columns..][..columns] {
                out.extend(line.iter().map(|value| value * factor * scale));
            }
        }
    }
    out
}

impl Change {
    /// Changes the values of a parameter, row-major in a shape whose first axis is `outputs` and whose second is `inputs`.
    ///
    /// DoRA gives rows their lengths after the difference was added.
    pub(super) fn apply(&self, values: &mut [f32], shape: &[usize]) {
        let difference = self.difference.values(self.scale);
        values.iter_mut().zip(&difference).for_each(|(value, change)| *value += change);
        let [outputs, inputs, kernel @ ..] = shape else { return };
        let pixels: usize = kernel.iter().product();
        let row_of = |at: usize| at / (inputs * pixels);
        let column_of = |at: usize| at / pixels % inputs;
        match &self.magnitude {
            None => {}
            Some(Magnitude::OfOutputs(lengths)) => rescale(values, *outputs, lengths, row_of),
            Some(Magnitude::OfInputs(lengths)) => rescale(values, *inputs, lengths, column_of),
        }
    }
}

/// Gives the values of each group the length that is asked for.
fn rescale(values: &mut [f32], groups: usize, lengths: &[f32], group_of: impl Fn(usize) -> usize) {
    let mut squares = vec![0.0f64; groups];
    for (at, value) in values.iter().enumerate() {
        squares[group_of(at)] += f64::from(*value) * f64::from(*value);
    }
    // Values that are all zero stay so.
    let factors: Vec<f64> = squares
        .iter()
        .zip(lengths)
        .map(|(square, length)| if *square > 0.0 { f64::from(*length) / square.sqrt() } else { 0.0 })
        .collect();
    for (at, value) in values.iter_mut().enumerate() {
        *value = (f64::from(*value) * factors[group_of(at)]) as f32;
    }
}

/// Makes a difference of its parts. `read` gives the part that is asked for, if it is there.
pub(super) struct Builder<'a, R> {
    pub(super) read: R,
    /// Shape of the parameter.
    pub(super) shape: &'a [usize],
}

impl<E: From<Misfit>, R: Fn(Part) -> Result<Option<Stored>, E>> Builder<'_, R> {
    /// The difference of whichever kind the parts are of.
    ///
    /// # Errors
    /// Those of reading; [`Misfit`].
    pub(super) fn difference(&self, has: impl Fn(Part) -> bool) -> Result<Difference, E> {
        let any = |parts: &[Part]| parts.iter().any(|&part| has(part));
        if any(&[Part::Whole]) {
            let (shape, values) = self.part(Part::Whole)?;
            return match squeezed(&shape) == squeezed(self.shape) {
                true => Ok(Difference::Whole(values)),
                false => Err(Misfit::Shapes(vec![shape]).into()),
            };
        }
        if any(&[Part::HadaW1A, Part::HadaW1B, Part::HadaW2A, Part::HadaW2B]) {
            return self.hadamard();
        }
        if any(&[Part::LokrW1, Part::LokrW2, Part::LokrW1A, Part::LokrW1B, Part::LokrW2A, Part::LokrW2B]) {
            return self.kronecker(has);
        }
        self.low_rank()
    }

    /// The lengths of a DoRA, of which `shape` says whose they are: PEFT's are of outputs, LyCORIS' of whichever axis is not
    /// one.
    pub(super) fn magnitude(&self, part: Part) -> Result<Option<Magnitude>, E> {
        let Some((shape, values)) = (self.read)(part)? else { return Ok(None) };
        let [outputs, inputs, ..] = *self.shape else { return Err(Misfit::Shapes(vec![shape]).into()) };
        let of_outputs = shape.first() == Some(&outputs) || part == Part::PeftMagnitude;
        match (of_outputs, values.len()) {
            (true, length) if length == outputs => Ok(Some(Magnitude::OfOutputs(values))),
            (false, length) if length == inputs => Ok(Some(Magnitude::OfInputs(values))),
            _ => Err(Misfit::Shapes(vec![shape]).into()),
        }
    }

    fn part(&self, part: Part) -> Result<Stored, E> {
        (self.read)(part)?.ok_or_else(|| Misfit::Missing(part).into())
    }

    fn low_rank(&self) -> Result<Difference, E> {
        let ((down_shape, down), (up_shape, up)) = (self.part(Part::Down)?, self.part(Part::Up)?);
        let mid = (self.read)(Part::Mid)?;
        let rank = down_shape.first().copied().unwrap_or(0);
        let product = match &mid {
            Some((mid_shape, _)) => product_shape_with_mid(&down_shape, &up_shape, mid_shape),
            None => product_shape(&down_shape, &up_shape),
        };
        if product.is_none_or(|product| squeezed(&product) != squeezed(self.shape)) {
            let mid_shape = mid.map(|(shape, _)| shape);
            let shapes = [Some(down_shape), Some(up_shape), mid_shape];
            return Err(Misfit::Shapes(shapes.into_iter().flatten().collect()).into());
        }
        let down = match mid {
            Some((shape, mid)) => with_mid(&down, &mid, rank, &shape),
            None => down,
        };
        Ok(Difference::Product(Product { rank, down, up }))
    }

    fn hadamard(&self) -> Result<Difference, E> {
        let first = self.factored(Part::HadaW1A, Part::HadaW1B, Some(Part::HadaT1))?;
        let second = self.factored(Part::HadaW2A, Part::HadaW2B, Some(Part::HadaT2))?;
        self.check([first.dims(), second.dims()])?;
        Ok(Difference::Hadamard([first, second]))
    }

    fn kronecker(&self, has: impl Fn(Part) -> bool) -> Result<Difference, E> {
        let first = match has(Part::LokrW1) {
            true => self.whole(Part::LokrW1)?,
            false => Dense::Factored(self.factored(Part::LokrW1A, Part::LokrW1B, None)?),
        };
        let second = match has(Part::LokrW2) {
            true => self.whole(Part::LokrW2)?,
            false => Dense::Factored(self.factored(Part::LokrW2A, Part::LokrW2B, Some(Part::LokrT2))?),
        };
        let ([a, b], [c, d]) = (first.dims(), second.dims());
        self.check([[a.saturating_mul(c), b.saturating_mul(d)]; 2])?;
        Ok(Difference::Kronecker([first, second]))
    }

    /// A part as a matrix: its first axis, and all others.
    fn whole(&self, part: Part) -> Result<Dense, E> {
        let (shape, values) = self.part(part)?;
        match shape.first() {
            Some(&rows) if shape.len() >= 2 && rows > 0 => Ok(Dense::Whole([rows, values.len() / rows], values)),
            _ => Err(Misfit::Shapes(vec![shape]).into()),
        }
    }

    /// The matrix of two factors `[rows, rank]` and `[rank, columns]`; with a core `[rank, rank, kernel]` between, the first
    /// one is stored the other way round (Tucker's decomposition, LyCORIS' `rebuild_tucker`).
    fn factored(&self, a: Part, b: Part, core: Option<Part>) -> Result<Product, E> {
        let ((a_shape, a), (b_shape, b)) = (self.part(a)?, self.part(b)?);
        let core = core.map(|core| (self.read)(core)).transpose()?.flatten();
        let Some((core_shape, core)) = core else {
            return match (&a_shape[..], &b_shape[..]) {
                ([_, rank], [b_rank, _, ..]) if rank == b_rank && *rank > 0 && !a.is_empty() && !b.is_empty() => {
                    Ok(Product { rank: *rank, down: b, up: a })
                }
                _ => Err(Misfit::Shapes(vec![a_shape, b_shape]).into()),
            };
        };
        match (&a_shape[..], &b_shape[..], &core_shape[..]) {
            (&[rank, rows], &[b_rank, columns], &[first, second, _, _])
                if [b_rank, first, second] == [rank; 3] && rank * rows * columns * core.len() > 0 =>
            {
                let up = (0..rows).flat_map(|row| a[row..].iter().step_by(rows).copied()).collect();
                Ok(Product { rank, down: with_mid(&b, &core, rank, &core_shape), up })
            }
            _ => Err(Misfit::Shapes(vec![a_shape, b_shape, core_shape]).into()),
        }
    }

    /// Checks that matrices are as large as the parameter.
    fn check(&self, found: [[usize; 2]; 2]) -> Result<(), E> {
        let [outputs, inputs @ ..] = self.shape else { return Err(Misfit::Shapes(Vec::new()).into()) };
        let needed = [*outputs, inputs.iter().product()];
        if found == [needed; 2] { Ok(()) } else { Err(Misfit::Shapes(found.map(Vec::from).to_vec()).into()) }
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
