//! What `/health` says, read by its contract and nothing more.

use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use overlaywatch_core::catalog::Code;
use overlaywatch_core::diagnose::Status;
use overlaywatch_core::finding::Direction;
use overlaywatch_core::ladder::Segment;
use serde::Deserialize;

use crate::judge::{About, Observed, Said};

#[derive(Debug, Deserialize)]
struct Health {
    status: Status,
    summary: String,
    findings: Vec<Finding>,
    peers: Peers,
}

/// Consequences stand under their cause and are not read.
#[derive(Debug, Deserialize)]
struct Finding {
    code: Code,
    subject: Subject,
    hop: Option<Segment>,
    #[serde(default)]
    evidence: Vec<Sentence>,
}

#[derive(Debug, Deserialize)]
struct Sentence {
    text: String,
}

#[derive(Debug, Deserialize)]
struct Subject {
    kind: String,
    name: Option<String>,
    device: Option<String>,
    address: Option<IpAddr>,
    direction: Option<Direction>,
}

#[derive(Debug, Deserialize)]
struct Peers {
    expected: u32,
    healthy: u32,
}

/// What an agent says, and the sentence it says it with.
///
/// # Errors
/// When the document breaks the contract.
pub fn read(document: &str) -> Result<(Said, String)> {
    let health: Health = serde_json::from_str(document)
        .with_context(|| format!("/health breaks its contract: {document}"))?;
    let findings = health.findings.into_iter().map(observed).collect::<Result<_>>()?;
    let peers = (health.peers.expected, health.peers.healthy);
    Ok((Said::Verdict { status: health.status, findings, peers }, health.summary))
}

fn observed(finding: Finding) -> Result<Observed> {
    let subject = finding.subject;
    let about = match (subject.kind.as_str(), subject.name, subject.device, subject.address) {
        ("node", ..) => About::Node,
        ("device", _, Some(device), _) => About::Device(device),
        ("pair", _, _, Some(address)) => About::Peer(address),
        (what, Some(name), ..) => About::Thing(what.to_owned(), name),
        (kind, ..) => bail!("/health has a subject of kind {kind} without what names it"),
    };
    Ok(Observed {
        code: finding.code,
        about,
        direction: subject.direction,
        hop: finding.hop.map(Into::into),
        evidence: finding.evidence.into_iter().map(|it| it.text + "\n").collect(),
    })
}

#[cfg(test)]
mod tests {
    use overlaywatch_core::ladder::Hop;

    use super::*;

    #[test]
    fn reads_the_contract() {
        let document = r#"{
            "status": "fail", "node": "node-1", "summary": "node-2 cannot be reached", "since": 1,
            "findings": [
                {"id": "x", "code": "encapsulation-lost", "severity": "critical",
                 "subject": {"kind": "pair", "node": "node-2", "address": "10.0.0.12",
                             "encapsulation": "vxlan:8472", "direction": "both"},
                 "hop": {"from": "encapsulated", "to": "delivered"}, "title": "t",
                 "evidence": [{"text": "9 of 9 lost", "kind": "lost"}, {"text": "so it is"}]},
                {"id": "y", "code": "tunnel-down", "severity": "critical",
                 "subject": {"kind": "device", "device": "flannel.1", "direction": null},
                 "hop": null}
            ],
            "peers": {"expected": 2, "healthy": 1, "degraded": 0, "broken": 1, "unknown": 0},
            "gaps": []
        }"#;
        let (said, summary) = read(document).unwrap();
        assert_eq!(summary, "node-2 cannot be reached");
        let findings = vec![
            Observed {
                code: Code::EncapsulationLost,
                about: About::Peer("10.0.0.12".parse().unwrap()),
                direction: Some(Direction::Both),
                hop: Some(Segment { from: Hop::Encapsulated, to: Hop::Delivered }.into()),
                evidence: "9 of 9 lost\nso it is\n".to_owned(),
            },
            Observed {
                code: Code::TunnelDown,
                about: About::Device("flannel.1".to_owned()),
                direction: None,
                hop: None,
                evidence: String::new(),
            },
        ];
        assert_eq!(said, Said::Verdict { status: Status::Fail, findings, peers: (2, 1) });
    }

    #[test]
    fn a_broken_contract_is_an_error() {
        assert!(read("{}").is_err());
        assert!(read("not json").is_err());
    }
}
