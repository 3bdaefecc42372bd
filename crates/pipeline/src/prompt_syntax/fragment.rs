//! Pieces of prompts, and what is wrong with them.

/// A piece of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Fragment {
    /// The text, without the syntax.
    pub text: String,
    /// Its weight; 1 is none.
    pub weight: f64,
}

/// What of a prompt its syntax does not allow, or is not known here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SyntaxError {
    /// A weight that is no number.
    #[error("the weight `{weight}` is no number")]
    Weight {
        /// It.
        weight: String,
    },
    /// Brackets inside brackets, too many of them.
    #[error("more than {most} brackets lie inside each other")]
    Deep {
        /// The most that are read.
        most: usize,
    },
    /// An operator of compel that is no weight.
    #[error("`{operator}` is not supported: only weights are (`word++`, `(some words)1.2`)")]
    Operator {
        /// It.
        operator: &'static str,
    },
}
