//! Logs: one line each on the standard error, which systemd takes into the journal.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt;

use crate::config::{LogFormat, LogLevel};

/// Overrides the configured level, by module if need be: `debug`, or
/// `info,overlaywatch::probe=trace`.
pub const VARIABLE: &str = "OVERLAYWATCH_LOG";

/// Why there are no logs.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The environment's filter is no filter.
    #[error("{VARIABLE}: {0}; give a level like `debug`, or `info,overlaywatch::probe=trace`")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// The environment's filter is not text.
    #[error("{VARIABLE}: not UTF-8 text")]
    NotText,
    /// Logs were set up before.
    #[error("logs are set up twice: {0}")]
    Twice(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Starts logging for the whole process.
///
/// # Errors
/// A malformed filter in the environment, or a second call.
pub fn init(level: LogLevel, format: LogFormat) -> Result<(), TelemetryError> {
    let wanted = match std::env::var(VARIABLE) {
        Ok(text) => text,
        Err(std::env::VarError::NotPresent) => String::new(),
        Err(std::env::VarError::NotUnicode(_)) => return Err(TelemetryError::NotText),
    };
    let filter = if wanted.is_empty() {
        EnvFilter::builder().with_default_directive(filter(level).into()).parse("")?
    } else {
        EnvFilter::builder().parse(wanted)?
    };
    let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let lines = fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(colour);
    // The journal stamps each line itself (systemd.exec(5), $JOURNAL_STREAM).
    let stamped_by_journal = std::env::var_os("JOURNAL_STREAM").is_some();
    match format {
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
        LogFormat::Text if stamped_by_journal => lines.without_time().with_target(false).try_init(),
        LogFormat::Text => lines.with_target(false).try_init(),
    }
    .map_err(TelemetryError::Twice)
}

const fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}
