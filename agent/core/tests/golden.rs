//! Recordings of the lab as golden cases: a folder each, with the observation
//! (`now.json`), an earlier one (`before.json`), the policy (`policy.toml`) and
//! what must be said of them (`expect.txt`):
//!
//! ```text
//! status fail
//! raises encapsulation-lost pair 10.0.0.2 vxlan/8472 outbound sent>delivered
//! follows route-missing pair 10.0.0.2 vxlan/8472 outbound sent>encapsulated
//! not tunnel-down
//! ```
//!
//! `raises` and `follows` (a consequence of what is raised) are complete: what
//! is said beyond them fails the case. `not` names the code that this case
//! looks like and must not raise.

#![allow(clippy::panic, clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use overlaywatch_core::catalog::{CATALOG, Code};
use overlaywatch_core::diagnose::{Active, replay};
use overlaywatch_core::finding::Subject;
use overlaywatch_core::policy::Policy;
use overlaywatch_core::snapshot::Snapshot;
use serde_json::Value;

fn cases() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let mut cases: Vec<PathBuf> =
        fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    cases
}

fn snapshot(case: &Path, name: &str) -> Snapshot {
    let path = case.join(name);
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A finding as `expect.txt` writes it.
fn line(active: &Active) -> String {
    let finding = &active.finding;
    let verb = if active.parent.is_some() { "follows" } else { "raises" };
    let subject = match &finding.subject {
        Subject::Node => "node".to_owned(),
        Subject::Device { name } => format!("device {name}"),
        Subject::Thing { what, name } => format!("{} {name}", what.slug()),
        Subject::Pair { peer, encapsulation: None } => format!("pair {peer}"),
        Subject::Pair { peer, encapsulation: Some(through) } => format!("pair {peer} {through}"),
    };
    let direction = finding.direction.map_or(String::new(), |d| format!(" {}", d.slug()));
    let hop = finding.hop.map_or(String::new(), |hop| format!(" {}>{}", hop.from, hop.to));
    format!("{verb} {} {subject}{direction}{hop}", finding.code.slug())
}

#[test]
fn every_recording_is_judged_as_expected() {
    for case in cases() {
        let expected = fs::read_to_string(case.join("expect.txt")).unwrap();
        let policy: Policy =
            toml::from_str(&fs::read_to_string(case.join("policy.toml")).unwrap()).unwrap();
        let before = snapshot(&case, "before.json");
        let now = snapshot(&case, "now.json");
        let diagnosis = replay(Some(&before), &now, &policy);
        let mut said: Vec<String> = diagnosis.findings.iter().map(line).collect();
        said.push(format!("status {}", diagnosis.status.slug()));
        said.sort();
        let (denied, mut wanted): (Vec<&str>, Vec<&str>) = expected
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .partition(|line| line.starts_with("not "));
        wanted.sort_unstable();
        assert_eq!(said, wanted, "{}", case.display());
        for code in denied.iter().map(|line| line.trim_start_matches("not ")) {
            assert!(Code::from_slug(code).is_some(), "{}: no code {code}", case.display());
            assert!(
                diagnosis.findings.iter().all(|active| active.finding.code.slug() != code),
                "{}: {code} was raised",
                case.display()
            );
        }
    }
}

#[test]
fn every_code_has_a_case_that_raises_it_and_one_that_must_not() {
    let mut raised = BTreeSet::new();
    let mut denied = BTreeSet::new();
    for case in cases() {
        for line in fs::read_to_string(case.join("expect.txt")).unwrap().lines() {
            let mut words = line.split(' ');
            match (words.next(), words.next()) {
                (Some("raises" | "follows"), Some(code)) => raised.insert(code.to_owned()),
                (Some("not"), Some(code)) => denied.insert(code.to_owned()),
                _ => false,
            };
        }
    }
    let without = |cases: &BTreeSet<String>| -> Vec<&str> {
        CATALOG.iter().map(|entry| entry.slug).filter(|slug| !cases.contains(*slug)).collect()
    };
    assert_eq!(without(&raised), Vec::<&str>::new(), "codes that no case raises");
    assert_eq!(without(&denied), Vec::<&str>::new(), "codes that no case denies");
}

/// Gives every number under `key` (of any key, where none is named) the value
/// `limit`, and notes the keys that have numbers.
fn set(value: &mut Value, under: &str, key: Option<&str>, limit: u64, keys: &mut BTreeSet<String>) {
    match value {
        Value::Number(number) => {
            keys.insert(under.to_owned());
            if key.is_none_or(|key| key == under) {
                *number = limit.into();
            }
        }
        Value::Array(all) => all.iter_mut().for_each(|one| set(one, under, key, limit, keys)),
        Value::Object(map) => {
            map.iter_mut().for_each(|(name, one)| set(one, name, key, limit, keys));
        }
        _ => {}
    }
}

/// A recording may say anything, and so may a peer: sums must not overflow,
/// which in a test is a panic.
#[test]
fn numbers_at_their_limits_are_survived() {
    let mut judged = 0;
    for case in cases() {
        let text = fs::read_to_string(case.join("now.json")).unwrap();
        let original: Value = serde_json::from_str(&text).unwrap();
        let before = snapshot(&case, "before.json");
        let mut keys = BTreeSet::new();
        set(&mut original.clone(), "", Some(""), 0, &mut keys);
        for key in keys.iter().map(|key| Some(key.as_str())).chain([None]) {
            // Each type's own limit; the larger ones it refuses.
            for limit in [u64::MAX, u64::from(u32::MAX), u64::from(u16::MAX), u64::from(u8::MAX)] {
                let mut changed = original.clone();
                set(&mut changed, "", key, limit, &mut BTreeSet::new());
                let Ok(now) = serde_json::from_value::<Snapshot>(changed) else { continue };
                for before in [Some(&before), Some(&now), None] {
                    let diagnosis = replay(before, &now, &Policy::default());
                    let evidence = diagnosis.findings.iter().flat_map(|f| &f.finding.evidence);
                    evidence.for_each(|evidence| drop(evidence.to_string()));
                    judged += 1;
                }
                break;
            }
        }
    }
    assert!(judged > 1_000, "only {judged} recordings could be read");
}
