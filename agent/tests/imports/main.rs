//! Who may import whom, enforced: the modules' boundaries are in `table`, and a
//! path that crosses one fails here with the reason why the boundary is there.
//!
//! Cargo keeps the core apart from the agent; within a crate nothing but this
//! test keeps a module in its place. Test modules may import what they like.

mod scan;
mod table;

use std::collections::BTreeSet;
use std::path::Path;
use std::{fs, io};

use table::{EVERYTHING, FOREIGN, ROWS, Row, Siblings, VOCABULARY, WORDS};

/// A source file: where it is in its crate, and what is in it.
struct File {
    /// For messages.
    name: String,
    /// `agent` or `core`.
    krate: &'static str,
    /// Its module's path within the crate; `lib` and `main` stand for the roots.
    module: Vec<String>,
    source: String,
}

#[test]
fn modules_keep_to_their_boundaries() {
    let mut files = files("agent", "agent/src").unwrap();
    files.extend(self::files("core", "agent/core/src").unwrap());
    assert!(files.len() > 30, "found only {} files: is the source elsewhere now?", files.len());
    let broken = judge(&files);
    assert!(broken.is_empty(), "\n{}\n", broken.join("\n"));
}

/// What is wrong with these files, one sentence each.
fn judge(files: &[File]) -> Vec<String> {
    let modules: BTreeSet<String> =
        files.iter().map(|file| full(file.krate, &file.module)).collect();
    files.iter().flat_map(|file| judge_file(file, &modules)).collect()
}

fn judge_file(file: &File, modules: &BTreeSet<String>) -> Vec<String> {
    let is_test = |words: &[String]| words.iter().any(|word| word == "tests");
    if is_test(&file.module) {
        return Vec::new();
    }
    let own = full(file.krate, &file.module[..1]);
    let Some(row) = ROWS.iter().find(|row| row.module == own) else {
        return vec![format!(
            "{}: {own} has no row in agent/tests/imports/table.rs: say what it may import and why",
            file.name
        )];
    };
    let mut broken = BTreeSet::new();
    for named in scan::paths(&file.source) {
        if is_test(&named.within) {
            continue;
        }
        let complaint = match resolve(file, &named) {
            Some(path) => ours(row, file, &path, modules),
            None => foreign(&own, &named.words),
        };
        broken.extend(complaint.map(|what| format!("{}:{}: {what}", file.name, named.line)));
    }
    broken.into_iter().collect()
}

/// The path from its crate (`agent` or `core`) on, if it is one of ours.
fn resolve(file: &File, named: &scan::Named) -> Option<Vec<String>> {
    // `lib` and `main` are their crate's root, so their path is empty.
    let root = matches!(file.module[0].as_str(), "lib" | "main") && file.module.len() == 1;
    let mut base = vec![file.krate.to_owned()];
    if !root {
        base.extend(file.module.clone());
    }
    base.extend(named.within.clone());
    let mut words = named.words.iter().peekable();
    match words.peek()?.as_str() {
        "crate" => {
            base.truncate(1);
            words.next();
        }
        "overlaywatch" => {
            base = vec!["agent".to_owned()];
            words.next();
        }
        "overlaywatch_core" => {
            base = vec!["core".to_owned()];
            words.next();
        }
        "self" => {
            words.next();
        }
        "super" => {
            while words.next_if(|word| *word == "super").is_some() {
                base.pop();
            }
        }
        _ => return None,
    }
    base.extend(words.cloned());
    Some(base)
}

/// Judges a path within our crates.
fn ours(row: &Row, file: &File, path: &[String], modules: &BTreeSet<String>) -> Option<String> {
    let Row { module: own, may, siblings, reason } = row;
    if may.contains(&EVERYTHING) {
        return None;
    }
    let target = path.get(..2).map(|path| path.join("::"));
    let Some(target) = target.filter(|target| modules.contains(target)) else {
        return Some(format!(
            "{own} imports {}, of which cannot be told what it means: name the module",
            path.join("::")
        ));
    };
    if target == *own {
        let Siblings::Strangers(common) = siblings else { return None };
        let (from, to) = (file.module.get(1)?, path.get(2)?);
        let is_module = modules.contains(&path[..3].join("::"));
        let stranger = is_module && from != to && !common.contains(&to.as_str());
        return stranger
            .then(|| format!("{own}::{from} imports {own}::{to}, its sibling: {reason}"));
    }
    let allowed = may.contains(&target.as_str())
        || may.contains(&path[0].as_str())
        || (may.contains(&VOCABULARY) && WORDS.contains(&target.as_str()));
    (!allowed).then(|| format!("{own} imports {}, which it may not: {reason}", path.join("::")))
}

/// Judges a path of another crate.
fn foreign(own: &str, words: &[String]) -> Option<String> {
    let path = words.join("::");
    let within = |outer: &str| path == outer || path.starts_with(&format!("{outer}::"));
    let broken = FOREIGN.iter().find(|row| within(row.path) && !row.only.contains(&own))?;
    Some(format!("{own} uses {path}, which it may not: {}", broken.reason))
}

fn full(krate: &str, module: &[String]) -> String {
    format!("{krate}::{}", module.join("::"))
}

/// All files of the crate whose sources are in `folder` of the workspace.
fn files(krate: &'static str, folder: &str) -> io::Result<Vec<File>> {
    let agent = Path::new(env!("CARGO_MANIFEST_DIR"));
    let workspace = agent.parent().unwrap_or(agent);
    let folder = workspace.join(folder);
    let mut found = Vec::new();
    let mut folders = vec![folder.clone()];
    while let Some(next) = folders.pop() {
        for entry in next.read_dir()? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(workspace).unwrap_or(&path).display().to_string();
                let inner = path.strip_prefix(&folder).unwrap_or(&path).with_extension("");
                let mut module: Vec<String> =
                    inner.iter().map(|part| part.to_string_lossy().into_owned()).collect();
                module.pop_if(|last| last == "mod");
                found.push(File { name, krate, module, source: fs::read_to_string(&path)? });
            }
        }
    }
    Ok(found)
}

mod tests {
    use super::*;

    fn sample(krate: &'static str, module: &str, source: &str) -> File {
        let module = module.split("::").map(str::to_owned).collect();
        File { name: "sample.rs".to_owned(), krate, module, source: source.to_owned() }
    }

    /// What is wrong with one file that stands among all these modules.
    fn complaints(krate: &'static str, module: &str, source: &str) -> Vec<String> {
        let mut files = vec![sample(krate, module, source)];
        let others = [
            ("agent", "serve"),
            ("agent", "published"),
            ("agent", "probe"),
            ("agent", "clock"),
            ("agent", "source"),
            ("agent", "source::meter"),
            ("agent", "source::procfs"),
            ("agent", "source::rtnetlink"),
            ("core", "model"),
            ("core", "rules"),
            ("core", "rules::route"),
            ("core", "snapshot"),
        ];
        files.extend(others.map(|(krate, module)| sample(krate, module, "")));
        judge(&files)
    }

    #[test]
    fn a_forbidden_import_is_found_wherever_it_hides() {
        for source in [
            "use crate::source::Link;",
            "use crate::{published::Published, source::{self, rtnetlink}};",
            "fn f() { crate::source::start() }",
            "mod inner { use super::super::source::Link; }",
        ] {
            let found = complaints("agent", "serve", source);
            assert!(!found.is_empty(), "{source}");
            assert!(found[0].contains("does no I/O"), "the reason is missing: {found:?}");
        }
    }

    #[test]
    fn what_is_allowed_passes() {
        let source = "use std::net::IpAddr; use crate::published::Published; \
                      use overlaywatch_core::snapshot::Snapshot; use self::text::words; \
                      mod tests { use crate::source::Link; }";
        assert_eq!(complaints("agent", "serve", source), Vec::<String>::new());
        let source = "use super::meter::Metered; use super::{Source, procfs_root}; \
                      use overlaywatch_core::model::Link; use rtnetlink::Handle;";
        assert_eq!(complaints("agent", "source::rtnetlink", source), Vec::<String>::new());
    }

    #[test]
    fn siblings_are_strangers() {
        let found = complaints("agent", "source::rtnetlink", "use super::procfs::read;");
        assert!(found[0].contains("its sibling"), "{found:?}");
        let found = complaints("core", "rules::tunnel", "use crate::rules::route::judge;");
        assert!(found[0].contains("its sibling"), "{found:?}");
    }

    #[test]
    fn judges_speak_the_vocabulary_and_no_more() {
        let source = "use crate::model::Link; use crate::snapshot::Snapshot;";
        assert_eq!(complaints("core", "rules::route", source), Vec::<String>::new());
        let found = complaints("core", "ledger", "use crate::snapshot::Snapshot;");
        assert!(found[0].contains("never looks at the network"), "{found:?}");
    }

    #[test]
    fn the_whole_core_is_no_module() {
        let found = complaints("agent", "source::procfs", "use overlaywatch_core as core;");
        assert!(found[0].contains("name the module"), "{found:?}");
        let found = complaints("agent", "source::procfs", "use overlaywatch_core::*;");
        assert!(found[0].contains("name the module"), "{found:?}");
    }

    #[test]
    fn foreign_words_are_confined() {
        let found = complaints("agent", "probe", "use netlink_packet_route::RouteNetlinkMessage;");
        assert!(found[0].contains("never leaves the sources"), "{found:?}");
        let found = complaints("core", "rules::route", "fn f() { std::time::Instant::now(); }");
        assert!(found[0].contains("time is an input"), "{found:?}");
    }

    #[test]
    fn a_new_module_needs_a_row() {
        let found = complaints("agent", "novelty", "");
        assert!(found[0].contains("has no row"), "{found:?}");
    }
}
