//! What is wrong with a configuration: one line that names file, line,
//! column, key and remedy.

use std::io;
use std::path::{Path, PathBuf};

use super::DEFAULT_PATH;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error(
        "{}: cannot be read: {source}; name an existing, readable file with --config, \
         or leave the option out to use {DEFAULT_PATH} where it exists", path.display()
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not text, or far too large.
    #[error("{}: {detail}", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// What it is.
        detail: String,
    },
    /// Something in the file is wrong.
    #[error("{}:{line}:{column}: {detail}", path.display())]
    Mistake {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The column in characters, from 1.
        column: usize,
        /// The key, what is wrong with it, and the remedy.
        detail: String,
    },
}

/// Similarity (Jaro-Winkler, 0 to 1) from which on a key is taken for a mistyped one.
const SIMILAR: f64 = 0.75;

/// The likeliest of `candidates` to be meant by `given`, if any is near.
pub(crate) fn nearest<'a>(
    given: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(given, candidate), candidate))
        .filter(|(similarity, _)| *similarity >= SIMILAR)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}

/// A mistake at the byte `offset` of `text`.
pub(super) fn mistake(path: &Path, text: &str, offset: usize, detail: String) -> ConfigError {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    ConfigError::Mistake {
        path: path.to_owned(),
        line: before.matches('\n').count() + 1,
        column: before[line_start..].chars().count() + 1,
        detail,
    }
}

/// What the parser found wrong, in this product's words.
pub(super) fn explain(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let offset = error.span().map_or(0, |span| span.start);
    let detail = if let Some((unknown, known)) = unknown_key(error.message()) {
        let remedy = match nearest(unknown, known.iter().copied()) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => format!("known here: {}", known.join(", ")),
        };
        format!("unknown key `{unknown}`; {remedy}")
    } else {
        let what = error.message().lines().collect::<Vec<_>>().join("; ");
        let key = key_at(text, offset);
        let hint = key.as_deref().and_then(|key| hint(key.rsplit('.').next().unwrap_or(key)));
        let key = key.map_or_else(String::new, |key| format!("`{key}`: "));
        match hint {
            _ if what == "duplicate key" => format!("{key}{what}; keep one of the two"),
            // A range is remedy enough.
            Some(hint) if !what.contains("is not within") => format!("{key}{what}; give {hint}"),
            _ => format!("{key}{what}"),
        }
    };
    mistake(path, text, offset, detail)
}

/// The unknown key and the known ones, as serde words it:
/// "unknown field `x`, expected one of `a`, `b`" (serde_core, de::Error::unknown_field).
fn unknown_key(message: &str) -> Option<(&str, Vec<&str>)> {
    let mut quoted = message.strip_prefix("unknown field ")?.split('`').skip(1).step_by(2);
    Some((quoted.next()?, quoted.collect()))
}

/// The key, with its section, whose value is at `offset`.
fn key_at(text: &str, offset: usize) -> Option<String> {
    let before = text.get(..offset)?;
    let start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let line = text.get(start..)?.lines().next()?;
    let (key, _) = line.split_once('=')?;
    let key = key.rsplit(['{', ',']).next().unwrap_or(key).trim();
    let is_key = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
    if key.is_empty() || !key.chars().all(is_key) {
        return None;
    }
    let section = text
        .get(..start)?
        .lines()
        .rev()
        .find_map(|line| line.trim().strip_prefix('['))
        .map(|rest| rest.trim_start_matches('[').split(']').next().unwrap_or(rest).trim());
    Some(section.map_or_else(|| key.to_owned(), |section| format!("{section}.{key}")))
}

/// What a key wants, for those where the parser's words are not enough.
fn hint(key: &str) -> Option<&'static str> {
    Some(match key {
        "listen" => "an address and a port, e.g. \"0.0.0.0:9977\" or \"[::]:9977\"",
        "address" | "overlay" => "an IP address, e.g. \"10.0.0.2\"",
        "node" | "name" => "a name, e.g. \"node-a\"",
        "peers_file" => "the path of a file, e.g. \"/etc/overlaywatch/peers.json\"",
        "port" => "a port number from 1 to 65535",
        "probes_per_second"
        | "forget_departed_seconds"
        | "max_connections"
        | "read_timeout_seconds" => "a whole number",
        "silence" => {
            "a list of codes as `overlaywatch explain` names them, e.g. [\"peer-departed\"]"
        }
        "peers" => "a list: [[peers]] sections with `address` and, if you like, `name`",
        _ => return None,
    })
}
