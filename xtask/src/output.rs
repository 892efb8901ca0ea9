//! What is printed: text for people or JSON for programs.

use clap::ValueEnum;

/// What to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs: stdout carries one JSON document and nothing else.
    Json,
}
