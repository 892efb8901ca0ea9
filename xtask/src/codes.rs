//! The page of all verdicts, made from what the program itself says of them:
//! it is committed, so that it can be read and linked to where no program is.

use std::fmt::Write as _;
use std::fs;

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::Deserialize;

use crate::shell::{self, cargo, root};

/// Where the page is, below the workspace's root.
const PAGE: &str = "agent/assets/codes.md";

#[derive(Args)]
pub(crate) struct Options {
    /// Write nothing; fail if the committed page is not what would be written
    #[arg(long)]
    check: bool,
}

/// One verdict, as `overlaywatch explain -o json` has it.
#[derive(Deserialize)]
struct Code {
    code: String,
    severity: String,
    title: String,
    meaning: String,
    remedy: String,
    raise_after_ms: u32,
    clear_after_seconds: u32,
    explained_by: Vec<String>,
}

/// `cargo xtask gen`.
pub(crate) fn generate(options: &Options) -> Result<()> {
    if options.check { check() } else { write() }
}

fn write() -> Result<()> {
    let path = root().join(PAGE);
    let folder = path.parent().context("the page is in a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    fs::write(&path, current()?).with_context(|| format!("cannot write {}", path.display()))?;
    eprintln!("wrote {PAGE}");
    Ok(())
}

/// Whether the committed page is what the program says.
pub(crate) fn check() -> Result<()> {
    let committed = fs::read_to_string(root().join(PAGE)).with_context(|| format!("no {PAGE}"))?;
    ensure!(committed == current()?, "{PAGE} is out of date: run `cargo xtask gen`, commit it");
    println!("{PAGE} is what `overlaywatch explain` says");
    Ok(())
}

fn current() -> Result<String> {
    let explain = ["run", "--quiet", "--package", "overlaywatch", "--", "explain", "-o", "json"];
    let json = shell::output(cargo().args(explain))?;
    let codes: Vec<Code> =
        serde_json::from_str(&json).context("what `overlaywatch explain` prints")?;
    Ok(page(&codes))
}

fn page(codes: &[Code]) -> String {
    let mut page = String::from(
        "# Verdicts\n\nEvery verdict that Overlaywatch can give, as `overlaywatch explain CODE` \
         tells it. Made by `cargo xtask gen`.\n\n| code | severity | title |\n|---|---|---|\n",
    );
    // Writing into a string cannot fail.
    for Code { code, severity, title, .. } in codes {
        let _ = writeln!(page, "| [`{code}`](#{code}) | {severity} | {title} |");
    }
    for code in codes {
        let _ = write!(page, "\n## {}\n\n**{}** ({})\n", code.code, code.title, code.severity);
        let _ = write!(page, "\n{}\n\n*What to do.* {}\n", code.meaning, code.remedy);
        let raised = f64::from(code.raise_after_ms) / 1e3;
        let _ = write!(
            page,
            "\nRaised when it lasted {raised} s, in two evaluations at least; cleared {} s after \
             it was last seen.",
            code.clear_after_seconds
        );
        if !code.explained_by.is_empty() {
            let links: Vec<String> =
                code.explained_by.iter().map(|code| format!("[`{code}`](#{code})")).collect();
            let _ = write!(page, " Shown as a consequence of {}.", links.join(", "));
        }
        page.push('\n');
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_in_the_table_and_has_a_section() {
        let code = Code {
            code: "tunnel-down".to_owned(),
            severity: "critical".to_owned(),
            title: "tunnel device is down".to_owned(),
            meaning: "It is off.".to_owned(),
            remedy: "Switch it on.".to_owned(),
            raise_after_ms: 1500,
            clear_after_seconds: 5,
            explained_by: vec!["node-isolated".to_owned()],
        };
        let page = page(&[code]);
        assert!(page.contains("| [`tunnel-down`](#tunnel-down) | critical | tunnel device is"));
        assert!(page.contains("## tunnel-down\n\n**tunnel device is down** (critical)\n"));
        assert!(page.ends_with(
            "Raised when it lasted 1.5 s, in two evaluations at least; cleared 5 s after it was \
             last seen. Shown as a consequence of [`node-isolated`](#node-isolated).\n"
        ));
    }
}
