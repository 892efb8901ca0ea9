//! A fact is what a source said, or the reason why it said nothing.
//!
//! A failed dump read as "no routes" would be a false alarm, so emptiness and
//! ignorance are different values here, and only [`Fact::Seen`] and
//! [`Fact::Absent`] can prove anything.

use serde::{Deserialize, Serialize};

use crate::time::Mono;

/// What is known of a thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fact<T> {
    /// The source saw it.
    Seen {
        /// What it saw.
        value: T,
        /// When.
        at: Mono,
    },
    /// The source looked and it is not there.
    Absent {
        /// When it looked.
        at: Mono,
    },
    /// Nobody knows, and this is why.
    Missing(Gap),
}

/// Why a fact is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Gap {
    /// The source has not finished its first look.
    NotYet,
    /// Switched off in the configuration.
    Disabled,
    /// This kernel or machine does not have it.
    Unsupported,
    /// A capability or permission is missing.
    Denied,
    /// The source did not answer in time.
    TimedOut,
    /// The last answer is too old to be relied on.
    Stale,
    /// The source failed; its detail says how.
    Failed,
}

impl Gap {
    /// The name used in labels and in JSON.
    #[must_use]
    pub const fn slug(self) -> &'static str {
        match self {
            Self::NotYet => "not-yet",
            Self::Disabled => "disabled",
            Self::Unsupported => "unsupported",
            Self::Denied => "denied",
            Self::TimedOut => "timed-out",
            Self::Stale => "stale",
            Self::Failed => "failed",
        }
    }
}

impl<T> Fact<T> {
    /// The value, if it was seen.
    pub const fn seen(&self) -> Option<&T> {
        match self {
            Self::Seen { value, .. } => Some(value),
            Self::Absent { .. } | Self::Missing(_) => None,
        }
    }

    /// The gap, if nobody knows.
    pub const fn gap(&self) -> Option<Gap> {
        match self {
            Self::Missing(gap) => Some(*gap),
            Self::Seen { .. } | Self::Absent { .. } => None,
        }
    }

    /// The value, or the gap that stands in its place; an absent thing is `Ok(None)`.
    ///
    /// # Errors
    /// The [`Gap`] of a missing fact.
    pub const fn known(&self) -> Result<Option<&T>, Gap> {
        match self {
            Self::Seen { value, .. } => Ok(Some(value)),
            Self::Absent { .. } => Ok(None),
            Self::Missing(gap) => Err(*gap),
        }
    }
}

impl<T> Default for Fact<T> {
    fn default() -> Self {
        Self::Missing(Gap::NotYet)
    }
}
