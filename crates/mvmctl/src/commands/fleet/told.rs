//! A plan as data.

use mvm_fleet::Plan;
use serde::{Deserialize, Serialize};

/// What would be done now, and what would not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Told {
    /// In the order in which it is begun.
    pub(crate) actions: Vec<ToldAction>,
    /// What something speaks for and is not done.
    pub(crate) held: Vec<ToldHeld>,
}

/// One action.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ToldAction {
    pub(crate) pool: String,
    pub(crate) action: String,
    pub(crate) vm: String,
    pub(crate) reason: String,
}

/// Why nothing is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ToldHeld {
    pub(crate) pool: String,
    pub(crate) cause: String,
}

impl Told {
    pub(crate) fn of(plan: &Plan) -> Self {
        let actions = plan.actions.iter().map(|action| ToldAction {
            pool: action.pool.to_string(),
            action: action.kind.to_string(),
            vm: action.vm.to_string(),
            reason: action.reason.to_string(),
        });
        let held = plan.held.iter().map(|held| ToldHeld {
            pool: held.pool.to_string(),
            cause: held.cause.to_string(),
        });
        Self {
            actions: actions.collect(),
            held: held.collect(),
        }
    }
}
