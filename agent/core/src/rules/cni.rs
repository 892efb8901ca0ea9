//! CNI configurations: which one is in force, and whether it should be.

use super::{Context, Verdicts};
use crate::catalog::Code;
use crate::finding::{CniEvidence, Confidence, Evidence, Finding, Subject, Thing};
use crate::model::{Cni, CniDirectory, CniFile, Plugin};

pub(super) fn judge(context: &Context<'_>, verdicts: &mut Verdicts) {
    let Some(cni) = context.now.cni.seen() else {
        return verdicts.blind(&[Code::CniConfigPrecedence, Code::CniConfigMalformed]);
    };
    let (Ok(directory), Ok(first)) = (cni.in_use(), cni.winner()) else {
        return verdicts.blind(&[Code::CniConfigPrecedence, Code::CniConfigMalformed]);
    };
    let (Some(directory), Some(first)) = (directory, first) else { return };
    match &first.content {
        Err(error) => verdicts.add(about(
            Code::CniConfigMalformed,
            first,
            vec![CniEvidence::Malformed { path: first.path.clone(), error: error.clone() }],
        )),
        Ok(content) => {
            if let Some(plugin) = content.plugin() {
                precedence(cni, directory, (first, plugin), verdicts);
            }
        }
    }
}

/// The file in force is of a plugin that does not run, and one after it is of a
/// plugin that does. A plugin that nobody here knows may call others (Multus)
/// and comes first by right.
fn precedence(
    cni: &Cni,
    directory: &CniDirectory,
    (first, plugin): (&CniFile, Plugin),
    verdicts: &mut Verdicts,
) {
    match cni.agent_of(plugin) {
        Err(_) => return verdicts.blind(&[Code::CniConfigPrecedence]),
        Ok(Some(_)) => return,
        Ok(None) => {}
    }
    let runs = directory.files.iter().skip(1).find_map(|file| {
        let plugin = file.content.as_ref().ok()?.plugin()?;
        let agent = cni.agent_of(plugin).ok()??;
        Some((file, plugin, agent))
    });
    let Some((file, other, agent)) = runs else {
        // One that cannot be read may be of the plugin that runs.
        if cni.unread_of(directory).next().is_some() {
            verdicts.blind(&[Code::CniConfigPrecedence]);
        }
        return;
    };
    verdicts.add(about(
        Code::CniConfigPrecedence,
        first,
        vec![
            CniEvidence::First { path: first.path.clone(), plugin },
            CniEvidence::Later { path: file.path.clone(), plugin: other },
            CniEvidence::Runs { plugin: other, process: agent.name.clone(), pid: agent.pid },
        ],
    ));
}

fn about(code: Code, file: &CniFile, evidence: Vec<CniEvidence>) -> Finding {
    Finding {
        code,
        subject: Subject::Thing { what: Thing::File, name: file.path.clone() },
        direction: None,
        hop: None,
        evidence: evidence.into_iter().map(Evidence::Cni).collect(),
        confidence: Confidence::Certain,
    }
}
