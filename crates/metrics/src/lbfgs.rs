//! Minimisation of smooth functions: L-BFGS with a line search for the strong Wolfe conditions (Nocedal and Wright,
//! *Numerical Optimization*, second edition 2006, algorithms 7.4, 7.5, 3.5 and 3.6).

use std::collections::VecDeque;

/// What the minimisation may take, and when it ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Lbfgs {
    /// Most steps.
    pub max_iterations: usize,
    /// The largest component of the gradient at which the minimum counts as found.
    pub tolerance: f64,
}

/// Where the minimisation ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Minimum {
    /// The point.
    pub x: Vec<f64>,
    /// The function's value there.
    pub value: f64,
    /// The largest component of its gradient there, without sign.
    pub gradient: f64,
    /// Steps taken.
    pub iterations: usize,
}

/// Steps and changes of the gradient that the curvature is estimated from.
const MEMORY: usize = 10;
/// Share of the slope's promise that a step must keep.
const DECREASE: f64 = 1e-4;
/// Share of the slope that may be left behind a step.
const CURVATURE: f64 = 0.9;
/// Points that one line search may look at.
const MOST_TRIALS: usize = 40;

impl Lbfgs {
    /// Goes down from `x`. `function` returns its value and writes its gradient. Ends early where rounding leaves no point
    /// that is lower; what is left of the gradient then says how far it got.
    pub(crate) fn minimise(&self, x: Vec<f64>, mut function: impl FnMut(&[f64], &mut [f64]) -> f64) -> Minimum {
        let mut gradient = vec![0.0; x.len()];
        let value = function(&x, &mut gradient);
        let mut here = Minimum { x, value, gradient: largest(&gradient), iterations: 0 };
        let mut memory = Memory::default();
        while here.iterations < self.max_iterations && here.gradient > self.tolerance {
            let direction = memory.direction(&gradient);
            let slope = dot(&gradient, &direction);
            let first = if memory.pairs.is_empty() { 1.0 / dot(&gradient, &gradient).sqrt().max(1.0) } else { 1.0 };
            let mut line = Line::new(&mut function, &here.x, &direction);
            let Some(found) = line.search(Trial { step: 0.0, value: here.value, slope }, first) else { break };
            let Line { x, gradient: new, .. } = line;
            memory.push(difference(&x, &here.x), difference(&new, &gradient));
            here = Minimum { x, value: found.value, gradient: largest(&new), iterations: here.iterations + 1 };
            gradient = new;
        }
        here
    }
}

/// The last steps, oldest first.
#[derive(Default)]
struct Memory {
    pairs: VecDeque<Pair>,
}

struct Pair {
    step: Vec<f64>,
    change: Vec<f64>,
    /// 1 / (step · change).
    rho: f64,
}

impl Memory {
    fn push(&mut self, step: Vec<f64>, change: Vec<f64>) {
        let product = dot(&step, &change);
        // The Wolfe conditions make it positive; rounding may not.
        if product > f64::EPSILON * dot(&change, &change) {
            self.pairs.push_back(Pair { step, change, rho: 1.0 / product });
        }
        if self.pairs.len() > MEMORY {
            self.pairs.pop_front();
        }
    }

    /// Minus the estimated inverse Hessian times the gradient (algorithm 7.4).
    fn direction(&self, gradient: &[f64]) -> Vec<f64> {
        let mut q: Vec<f64> = gradient.iter().map(|g| -g).collect();
        let mut alphas = Vec::with_capacity(self.pairs.len());
        for pair in self.pairs.iter().rev() {
            let alpha = pair.rho * dot(&pair.step, &q);
            add_scaled(&mut q, &pair.change, -alpha);
            alphas.push(alpha);
        }
        if let Some(last) = self.pairs.back() {
            let scale = 1.0 / (last.rho * dot(&last.change, &last.change));
            q.iter_mut().for_each(|value| *value *= scale);
        }
        for (pair, alpha) in self.pairs.iter().zip(alphas.iter().rev()) {
            let beta = pair.rho * dot(&pair.change, &q);
            add_scaled(&mut q, &pair.step, alpha - beta);
        }
        q
    }
}

/// A point of a line: how far along, and the function's value and slope there.
#[derive(Clone, Copy, Debug)]
struct Trial {
    step: f64,
    value: f64,
    slope: f64,
}

/// A function along a line, with the point that was looked at last.
struct Line<'a, F> {
    function: &'a mut F,
    start: &'a [f64],
    direction: &'a [f64],
    x: Vec<f64>,
    gradient: Vec<f64>,
}

impl<'a, F: FnMut(&[f64], &mut [f64]) -> f64> Line<'a, F> {
    fn new(function: &'a mut F, start: &'a [f64], direction: &'a [f64]) -> Self {
        Self { function, start, direction, x: start.to_vec(), gradient: vec![0.0; start.len()] }
    }

    fn at(&mut self, step: f64) -> Trial {
        self.x.copy_from_slice(self.start);
        add_scaled(&mut self.x, self.direction, step);
        let value = (self.function)(&self.x, &mut self.gradient);
        Trial { step, value, slope: dot(&self.gradient, self.direction) }
    }

    /// A point that is low and flat enough; it is the one looked at last. None if there is no such point among those tried.
    fn search(&mut self, start: Trial, first: f64) -> Option<Trial> {
        // Beside the minimum, differences of values are rounding; there the slopes decide.
        let noise = 8.0 * f64::EPSILON * start.value.abs();
        let (mut low, mut high, mut step) = (start, None::<Trial>, first);
        for _ in 0..MOST_TRIALS {
            let here = self.at(step);
            let promised = start.value + DECREASE * step * start.slope;
            // Not a number counts as too high.
            let descends = here.value <= promised + noise && here.value <= low.value + noise;
            if !descends {
                high = Some(here);
            } else if here.slope.abs() <= CURVATURE * start.slope.abs() {
                return Some(here);
            } else {
                // The minimum lies between here and the point that the slope leads to.
                let turns = high.map_or(here.slope >= 0.0, |high| here.slope * (high.step - low.step) >= 0.0);
                high = if turns { Some(low) } else { high };
                low = here;
            }
            step = high.map_or(2.0 * step, |high| between(low, high));
        }
        None
    }
}

/// The minimum of the cubic through both points (equation 3.59), kept off the ends of the interval.
fn between(low: Trial, high: Trial) -> f64 {
    let span = high.step - low.step;
    let d1 = low.slope + high.slope - 3.0 * (low.value - high.value) / (low.step - high.step);
    let d2 = span.signum() * (d1 * d1 - low.slope * high.slope).sqrt();
    let cubic = high.step - span * (high.slope + d2 - d1) / (high.slope - low.slope + 2.0 * d2);
    let share = (cubic - low.step) / span;
    if (0.1..=0.9).contains(&share) { cubic } else { low.step + 0.5 * span }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

fn add_scaled(target: &mut [f64], values: &[f64], scale: f64) {
    target.iter_mut().zip(values).for_each(|(target, value)| *target += scale * value);
}

fn difference(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(x, y)| x - y).collect()
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |most, value| value.abs().max(most))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXACT: Lbfgs = Lbfgs { max_iterations: 500, tolerance: 1e-10 };

    /// Rosenbrock's valley, 100 (y - x²)² + (1 - x)², in pairs of variables; the minimum is at 1 in all of them.
    fn valley(x: &[f64], gradient: &mut [f64]) -> f64 {
        let mut sum = 0.0;
        for (pair, slope) in x.chunks_exact(2).zip(gradient.chunks_exact_mut(2)) {
            let (a, b) = (1.0 - pair[0], pair[1] - pair[0] * pair[0]);
            sum += 100.0 * b * b + a * a;
            slope[0] = -400.0 * pair[0] * b - 2.0 * a;
            slope[1] = 200.0 * b;
        }
        sum
    }

    #[test]
    fn it_finds_the_ends_of_a_valley() {
        let start: Vec<f64> = [-1.2, 1.0].repeat(6);
        let end = EXACT.minimise(start, valley);
        assert!(end.gradient <= 1e-10 && end.iterations < 100, "{end:?}");
        assert!(end.x.iter().all(|x| (x - 1.0).abs() < 1e-9), "{end:?}");
    }

    #[test]
    fn it_finds_the_minimum_of_an_ill_conditioned_bowl() {
        let bowl = |x: &[f64], gradient: &mut [f64]| {
            let weight = |i: usize| 10f64.powi(i as i32);
            for (i, (slope, x)) in gradient.iter_mut().zip(x).enumerate() {
                *slope = weight(i) * (x - i as f64);
            }
            x.iter().enumerate().map(|(i, x)| 0.5 * weight(i) * (x - i as f64).powi(2)).sum()
        };
        let end = EXACT.minimise(vec![10.0; 6], bowl);
        assert!(end.gradient <= 1e-10, "{end:?}");
        assert!(end.x.iter().enumerate().all(|(i, x)| (x - i as f64).abs() < 1e-9), "{end:?}");
    }

    #[test]
    fn it_ends_where_it_should() {
        let done = EXACT.minimise(vec![1.0; 4], valley);
        assert_eq!((done.iterations, done.x), (0, vec![1.0; 4]));
        let cut = Lbfgs { max_iterations: 3, ..EXACT }.minimise(vec![-1.2, 1.0], valley);
        assert_eq!(cut.iterations, 3);
        // No slope leads down, and no point is lower.
        let stuck = EXACT.minimise(vec![0.0], |x, gradient| {
            gradient[0] = 1.0;
            x[0].abs()
        });
        assert_eq!((stuck.iterations, stuck.x), (0, vec![0.0]));
        // Beyond a wall there are no numbers.
        let wall = EXACT.minimise(vec![3.0], |x, gradient| {
            gradient[0] = 1.0 - 1.0 / x[0];
            x[0] - x[0].ln()
        });
        assert!((wall.x[0] - 1.0).abs() < 1e-9, "{wall:?}");
    }
}
