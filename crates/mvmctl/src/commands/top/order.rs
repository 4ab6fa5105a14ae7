//! Which rows are shown, and in which order.

use super::row::Guest;
use mvm_fleet::State;
use mvm_protocol::status::Health;

/// By what rows are ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sort {
    Name,
    State,
    For,
    Health,
    Load,
}

impl Sort {
    pub(super) fn next(self) -> Self {
        match self {
            Self::Name => Self::State,
            Self::State => Self::For,
            Self::For => Self::Health,
            Self::Health => Self::Load,
            Self::Load => Self::Name,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::State => "state",
            Self::For => "for",
            Self::Health => "health",
            Self::Load => "load",
        }
    }
}

/// Which rows are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filter {
    All,
    /// Those that run: busy, idle, starting.
    Up,
    /// Those that want looking after: unknown, unhealthy.
    Amiss,
    /// Those that do not run: paused, asleep, stopped.
    Off,
}

impl Filter {
    pub(super) fn next(self) -> Self {
        match self {
            Self::All => Self::Up,
            Self::Up => Self::Amiss,
            Self::Amiss => Self::Off,
            Self::Off => Self::All,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Up => "up",
            Self::Amiss => "amiss",
            Self::Off => "off",
        }
    }

    /// Whether such a row is shown.
    pub(super) fn shows(self, state: State, guest: Option<&Guest>) -> bool {
        match self {
            Self::All => true,
            Self::Up => matches!(state, State::Busy | State::Idle | State::Starting),
            Self::Amiss => {
                state == State::Unknown
                    || guest.is_some_and(|guest| guest.health == Health::Unhealthy)
            }
            Self::Off => matches!(state, State::Paused | State::Asleep | State::Stopped),
        }
    }
}
