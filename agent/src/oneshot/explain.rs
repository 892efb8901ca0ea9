//! The catalog for people.

use std::io::Write;

use overlaywatch_core::catalog::{CATALOG, Code, Entry, Severity};
use serde_json::{Value, json};

use super::{OneshotError, print_json};
use crate::cli::{ExplainArgs, Output};
use crate::config::nearest;
use crate::serve::text::{Paint, Tone, wrap};

/// Widest line, in characters.
const WIDTH: usize = 88;

pub(super) fn explain(
    args: &ExplainArgs,
    paint: Paint,
    out: &mut impl Write,
) -> Result<(), OneshotError> {
    let Some(slug) = &args.code else { return all(args.output.format, paint, out) };
    let Some(code) = Code::from_slug(slug) else {
        let remedy = match nearest(slug, CATALOG.iter().map(|entry| entry.slug)) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => "`overlaywatch explain` lists all".to_owned(),
        };
        return Err(OneshotError::UnknownCode { code: slug.clone(), remedy });
    };
    match args.output.format {
        Output::Json => print_json(&as_json(code.entry()), out),
        Output::Text => one(code.entry(), paint, out),
    }
}

fn all(output: Output, paint: Paint, out: &mut impl Write) -> Result<(), OneshotError> {
    if output == Output::Json {
        return print_json(&CATALOG.iter().copied().map(as_json).collect(), out);
    }
    let width = CATALOG.iter().map(|entry| entry.slug.len()).max().unwrap_or(0);
    for entry in CATALOG {
        let code = paint.paint(Tone::Strong, &format!("{:width$}", entry.slug));
        let severity = paint.paint(tone(entry.severity), &format!("{:8}", entry.severity.slug()));
        writeln!(out, "{code}  {severity}  {}", entry.title)?;
    }
    writeln!(out, "\n`overlaywatch explain CODE` says what it means and what to do.")?;
    Ok(())
}

fn one(entry: &Entry, paint: Paint, out: &mut impl Write) -> Result<(), OneshotError> {
    let severity = paint.paint(tone(entry.severity), entry.severity.slug());
    let title = paint.paint(Tone::Strong, entry.title);
    writeln!(out, "{} ({severity}): {title}", entry.slug)?;
    let mut part = |heading: &str, text: &str| -> std::io::Result<()> {
        writeln!(out, "\n{}", paint.paint(Tone::Strong, heading))?;
        wrap(text, WIDTH - 2).iter().try_for_each(|line| writeln!(out, "  {line}"))
    };
    part("What it means", entry.meaning)?;
    part("What to do", &spelt_out(entry.remedy))?;
    let raised = f64::from(entry.raise_after_ms) / 1e3;
    let when = format!(
        "Raised when two observations agree and it has lasted {raised} s; cleared when it has \
         been gone for {} s.",
        entry.clear_after_seconds
    );
    part("When", &when)?;
    let parents = join(entry.parents());
    if !parents.is_empty() {
        part("Explained by", &parents)?;
    }
    let explained = explained_by(entry.code);
    if !explained.is_empty() {
        part("Explains", &join(explained))?;
    }
    Ok(())
}

/// A remedy of no subject in particular, in the manner of a manual page.
fn spelt_out(remedy: &str) -> String {
    let mut text = String::with_capacity(remedy.len());
    let mut is_name = false;
    for character in remedy.chars() {
        match character {
            '{' => is_name = true,
            '}' => is_name = false,
            _ if is_name => text.push(character.to_ascii_uppercase()),
            _ => text.push(character),
        }
    }
    text
}

fn explained_by(code: Code) -> Vec<Code> {
    CATALOG.iter().filter(|e| e.parents().any(|parent| parent == code)).map(|e| e.code).collect()
}

fn join(codes: impl IntoIterator<Item = Code>) -> String {
    codes.into_iter().map(Code::slug).collect::<Vec<_>>().join(", ")
}

fn as_json(entry: &Entry) -> Value {
    json!({
        "code": entry.slug,
        "severity": entry.severity,
        "title": entry.title,
        "meaning": entry.meaning,
        "remedy": spelt_out(entry.remedy),
        "raise_after_ms": entry.raise_after_ms,
        "clear_after_seconds": entry.clear_after_seconds,
        "explained_by": entry.parents().collect::<Vec<_>>(),
        "explains": explained_by(entry.code),
    })
}

const fn tone(severity: Severity) -> Tone {
    match severity {
        Severity::Info => Tone::Faint,
        Severity::Warning => Tone::Bad,
        Severity::Critical => Tone::Worst,
    }
}
