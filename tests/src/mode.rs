//! How the agents under test run.

use serde::Serialize;

/// How the agents run, and what is asked of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// As they are shipped: each names the cause.
    #[default]
    Rules,
    /// Without the rules that name causes: each names the direction and the
    /// hop, which proves that they are counted.
    NoRules,
}

impl Mode {
    /// Its name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rules => "rules",
            Self::NoRules => "no-rules",
        }
    }
}
