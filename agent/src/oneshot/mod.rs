//! Commands that answer and end: `status`, `snapshot`, `replay`, `explain`,
//! `completions`, and what `check` prints.

mod client;
mod explain;
mod mesh;

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use overlaywatch_core::diagnose::{Diagnosis, replay as judge};
use overlaywatch_core::policy::Policy;
use overlaywatch_core::record::{RecordError, Recording};
use overlaywatch_core::report::NodeReport;
use overlaywatch_core::snapshot::Snapshot;
use serde_json::json;

use crate::cli::{
    CompletionsArgs, Exit, ExplainArgs, Output, ReplayArgs, SnapshotArgs, StatusArgs,
};
use crate::config::{Config, ConfigError};
use crate::serve::health::Health;
use crate::serve::text::{self, Paint};

pub use client::ClientError;
pub use mesh::table;

/// No recording is larger; a file that is was named by mistake.
const MAX_RECORDING_BYTES: u64 = 256 << 20;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum OneshotError {
    /// The agent did not answer as it should.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A file is no recording.
    #[error("{}: {source}; record one with `overlaywatch snapshot --output FILE`", path.display())]
    Recording {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: RecordError,
    },
    /// A file cannot be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("{}: cannot be written: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No verdict has this code.
    #[error("no verdict has the code `{code}`; {remedy}")]
    UnknownCode {
        /// The code.
        code: String,
        /// The nearest one, or where all are listed.
        remedy: String,
    },
    /// The result cannot be printed.
    #[error("the result cannot be printed: {0}")]
    Print(#[from] io::Error),
    /// The result cannot be written as JSON.
    #[error("the result cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

impl OneshotError {
    /// Whether only the reader of the output went away, as `head` does: then
    /// there is nothing to complain about, and nobody to complain to.
    #[must_use]
    pub fn is_broken_pipe(&self) -> bool {
        let kind = match self {
            Self::Print(error) => Some(error.kind()),
            Self::Json(error) => error.io_error_kind(),
            _ => None,
        };
        kind == Some(io::ErrorKind::BrokenPipe)
    }
}

/// How to paint on the standard output: in colour on a terminal, unless
/// NO_COLOR (<https://no-color.org>) or TERM=dumb says otherwise.
#[must_use]
pub fn stdout_paint() -> Paint {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
        || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    if io::stdout().is_terminal() && !refused { Paint::Colour } else { Paint::Plain }
}

/// Prints what was found on this node, as `check` does.
///
/// # Errors
/// When it cannot be printed.
pub fn print_diagnosis(
    snapshot: &Snapshot,
    diagnosis: &Diagnosis,
    output: Output,
    paint: Paint,
    out: &mut impl Write,
) -> Result<Exit, OneshotError> {
    let health = Health::new(snapshot, diagnosis);
    match output {
        Output::Json => print_json(&serde_json::to_value(&health)?, out)?,
        Output::Text => {
            let report = NodeReport::new(snapshot, diagnosis);
            out.write_all(text::health(&health, paint).as_bytes())?;
            out.write_all(table(&report, paint).as_bytes())?;
        }
    }
    Ok(Exit::from(diagnosis.status))
}

/// `overlaywatch status`: a running agent's verdict and its peers.
///
/// # Errors
/// An agent that does not answer as it should.
pub async fn status(
    args: &StatusArgs,
    paint: Paint,
    out: &mut impl Write,
) -> Result<Exit, OneshotError> {
    let agent = client::Agent::new(&args.url)?;
    let health: Health = agent.json("/health").await?;
    let exit = Exit::from(health.status);
    // An agent that has seen nothing yet has no report either.
    let report: Option<NodeReport> =
        if health.at.is_some() { Some(agent.json("/v1/report").await?) } else { None };
    match args.output.format {
        Output::Json => print_json(&json!({ "health": health, "report": report }), out)?,
        Output::Text => {
            out.write_all(text::health(&health, paint).as_bytes())?;
            if let Some(report) = report {
                out.write_all(table(&report, paint).as_bytes())?;
            }
        }
    }
    Ok(exit)
}

/// `overlaywatch snapshot`: saves what a running agent sees.
///
/// # Errors
/// An agent that does not answer as it should, or a file that cannot be written.
pub async fn snapshot(args: &SnapshotArgs, out: &mut impl Write) -> Result<Exit, OneshotError> {
    let agent = client::Agent::new(&args.url)?;
    let text = agent.text("/v1/snapshot").await?;
    // A recording that cannot be replayed is of no use to anybody.
    Recording::from_json(&text).map_err(|source| agent.foreign("/v1/snapshot", &source))?;
    match &args.output {
        None => out.write_all(text.as_bytes())?,
        Some(path) => std::fs::write(path, text)
            .map_err(|source| OneshotError::Write { path: path.clone(), source })?,
    }
    Ok(Exit::Fine)
}

/// `overlaywatch replay`: judges recordings.
///
/// # Errors
/// The first file that cannot be read or is no recording.
pub fn replay(args: &ReplayArgs, paint: Paint, out: &mut impl Write) -> Result<Exit, OneshotError> {
    let policy = match &args.config {
        Some(path) => Config::read(path)?.policy(),
        None => Policy::default(),
    };
    let mut exit = Exit::Fine;
    let mut documents = Vec::new();
    for path in &args.files {
        let recording = read_recording(path)?;
        let diagnosis = judge(recording.before.as_ref(), &recording.now, &policy);
        if args.output.format == Output::Json {
            let health = Health::new(&recording.now, &diagnosis);
            documents.push(json!({ "file": path, "health": health }));
            exit = exit.max(Exit::from(diagnosis.status));
            continue;
        }
        if args.files.len() > 1 {
            writeln!(out, "== {}", path.display())?;
        }
        let verdict = print_diagnosis(&recording.now, &diagnosis, Output::Text, paint, out)?;
        exit = exit.max(verdict);
    }
    if args.output.format == Output::Json {
        print_json(&documents.into(), out)?;
    }
    Ok(exit)
}

fn read_recording(path: &Path) -> Result<Recording, OneshotError> {
    let mut text = String::new();
    let source: Result<Box<dyn Read>, io::Error> = if path == Path::new("-") {
        Ok(Box::new(io::stdin()))
    } else {
        File::open(path).map(|file| Box::new(file) as Box<dyn Read>)
    };
    source
        .and_then(|source| source.take(MAX_RECORDING_BYTES).read_to_string(&mut text))
        .map_err(|source| OneshotError::Read { path: path.to_owned(), source })?;
    Recording::from_json(&text)
        .map_err(|source| OneshotError::Recording { path: path.to_owned(), source })
}

/// `overlaywatch explain`: the catalog, or one entry of it.
///
/// # Errors
/// A code that no verdict has.
pub fn explain(
    args: &ExplainArgs,
    paint: Paint,
    out: &mut impl Write,
) -> Result<Exit, OneshotError> {
    explain::explain(args, paint, out)?;
    Ok(Exit::Fine)
}

/// `overlaywatch completions`: a script for a shell.
///
/// # Errors
/// When it cannot be printed.
pub fn completions(args: &CompletionsArgs, out: &mut impl Write) -> Result<Exit, OneshotError> {
    // Into memory first: the generator panics on a pipe whose reader is gone.
    let mut script = Vec::new();
    let mut description = crate::cli::description();
    clap_complete::generate(args.shell, &mut description, "overlaywatch", &mut script);
    out.write_all(&script)?;
    Ok(Exit::Fine)
}

fn print_json(value: &serde_json::Value, out: &mut impl Write) -> Result<(), OneshotError> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    writeln!(out)?;
    Ok(())
}
