//! How parameters are trained: update rules, learning-rate schedules, moving averages and groups of parameters, one file
//! each, and the optimizer that applies them to a module.

mod adamw;
pub mod ema;
mod gradients;
mod groups;
pub mod lr;
mod optimizer;
mod position;
mod rule;
mod settings;
mod sgd;
mod state;
mod table;

pub use adamw::AdamW;
pub use ema::{EmaForm, EmaSettings};
pub use gradients::StepGradients;
pub use groups::{Group, GroupError, GroupRule, ParameterKind};
pub use lr::LrSchedule;
pub use optimizer::{AVERAGE, NotFinite, Optimizer};
pub(crate) use optimizer::{WITHOUT_AVERAGE, snapshot_name};
pub use position::{Position, Span};
pub use rule::{Rule, UpdateRule};
pub use settings::{OptimizerSettings, Stepping, TrainConfig};
pub use sgd::Sgd;
pub use state::StateForm;

fn check(ok: bool, problem: impl FnOnce() -> String) -> Result<(), String> {
    if ok { Ok(()) } else { Err(problem()) }
}
