//! Network policies that nobody maintains: chains of kube-router's controller that
//! are still hooked on a node where it runs no more.
//!
//! Where K3s runs nothing is said: whether it runs the controller stands in
//! arguments that it hides. Nor without a kubelet of its own: a K3s that was
//! stopped for a while leaves its chains on purpose, as it does its pods.

use super::{Context, Verdicts};
use crate::catalog::Code;
use crate::finding::{
    CniEvidence, Confidence, Evidence, Filtered, Finding, SetEvidence, Subject, Thing,
};
use crate::model::{AgentKind, CniAgent, Controller, Plugin};

pub(super) fn judge(context: &Context<'_>, verdicts: &mut Verdicts) {
    let running = context.now.cni.seen().and_then(|cni| cni.running.as_ref());
    let (Some(running), Some(netfilter)) = (running, context.now.netfilter.seen()) else {
        return verdicts.blind(&[Code::NetworkPolicyLeftover]);
    };
    let keeps = |agent: &CniAgent| {
        matches!(agent.kind, AgentKind::K3s | AgentKind::Rke2 | AgentKind::Of(Plugin::KubeRouter))
    };
    let kubelet = running.iter().find(|agent| agent.kind == AgentKind::Kubelet);
    let (Some(kubelet), false) = (kubelet, running.iter().any(keeps)) else { return };
    let entries: Vec<_> = netfilter
        .tables
        .iter()
        .flat_map(|table| table.entries.iter().map(|at| (table.title(), at.clone())))
        .collect();
    if entries.is_empty() {
        return;
    }
    let own = netfilter.programmed(Controller::KubeRouter);
    let hooked =
        Filtered::Hooked { entries, chains: own.chains, rules: own.rules, denials: own.denials };
    let nobody = CniEvidence::NoPolicies { process: kubelet.name.clone(), pid: kubelet.pid };
    let mut evidence = vec![Evidence::Netfilter(hooked), Evidence::Cni(nobody)];
    evidence.extend(sets(context).map(Evidence::Set));
    verdicts.add(Finding {
        code: Code::NetworkPolicyLeftover,
        subject: Subject::Thing {
            what: Thing::Leftover,
            name: Controller::KubeRouter.slug().to_owned(),
        },
        direction: None,
        hop: None,
        evidence,
        confidence: Confidence::High,
    });
}

/// Sets that the controller left.
fn sets(context: &Context<'_>) -> Option<SetEvidence> {
    let sets = &context.now.ipsets.seen()?.sets;
    let mut own = sets.iter().filter(|set| set.is_of_kube_router()).map(|set| set.name.clone());
    let name = own.next()?;
    Some(SetEvidence::KubeRouter {
        count: u32::try_from(own.count() + 1).unwrap_or(u32::MAX),
        name,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::delta::Delta;
    use crate::fact::{Fact, Gap};
    use crate::model::{Cni, Family, IpSet, IpSets, Netfilter, NftTable, Programmed, RuleAt};
    use crate::snapshot::Snapshot;
    use crate::time::Mono;

    fn seen<T>(value: T) -> Fact<Arc<T>> {
        Fact::Seen { value: Arc::new(value), at: Mono(1) }
    }

    fn ruleset(entries: Vec<RuleAt>) -> Netfilter {
        let by = Controller::KubeRouter;
        let table = NftTable {
            family: Family::Ip,
            name: "filter".to_owned(),
            handle: 1,
            owner: None,
            chains: 9,
            rules: 20,
            base: Vec::new(),
            programmed: vec![Programmed { by, chains: 5, rules: 12, anchored: 3, denials: 2 }],
            entries,
            blockers: Vec::new(),
            silencers: Vec::new(),
            barriers: Vec::new(),
            untracking: Vec::new(),
            illegible: Vec::new(),
            floods: Vec::new(),
        };
        Netfilter { tables: vec![table], ..Netfilter::default() }
    }

    fn hooked() -> Netfilter {
        ruleset(vec![RuleAt { chain: "FORWARD".to_owned(), handle: 12 }])
    }

    fn running(names: &[&str]) -> Fact<Arc<Cni>> {
        let agents = names.iter().zip(70..).map(|(&name, pid)| CniAgent {
            kind: AgentKind::of_process(name).unwrap(),
            name: name.to_owned(),
            pid,
        });
        seen(Cni { running: Some(agents.collect()), ..Cni::default() })
    }

    fn judged(cni: Fact<Arc<Cni>>, netfilter: Fact<Arc<Netfilter>>) -> Verdicts {
        let left = IpSet { name: "KUBE-SRC-AB".to_owned(), ..IpSet::default() };
        let ipsets = seen(IpSets { sets: vec![left], ..IpSets::default() });
        let now = Snapshot { cni, netfilter, ipsets, ..Snapshot::default() };
        let mut verdicts = Verdicts::default();
        let delta = Delta { before: None, now: &now };
        judge(&Context { delta, now: &now, digest: None }, &mut verdicts);
        verdicts
    }

    #[test]
    fn chains_without_a_controller_are_left_over() {
        let verdicts = judged(running(&["kubelet", "calico-node"]), seen(hooked()));
        let [finding] = verdicts.findings.as_slice() else { panic!("{verdicts:?}") };
        assert_eq!(finding.code, Code::NetworkPolicyLeftover);
        let text: Vec<_> = finding.evidence.iter().map(ToString::to_string).collect();
        let text = text.join("\n");
        for told in [
            "5 chains with 12 rules, of which 2 drop",
            "ip filter FORWARD (handle 12)",
            "while kubelet (process 70) does",
            "KUBE-SRC-AB",
        ] {
            assert!(text.contains(told), "{told} in:\n{text}");
        }
        let commands = finding.evidence[0].placeholders();
        let expected = "`nft delete rule ip filter FORWARD handle 12`".to_owned();
        assert_eq!(commands, [("{unhook}", expected)]);
    }

    #[test]
    fn where_somebody_may_keep_them_nothing_is_said() {
        for keeper in ["k3s", "k3s-server", "k3s-agent", "rke2", "kube-router"] {
            let verdicts = judged(running(&["kubelet", keeper]), seen(hooked()));
            assert!(verdicts.findings.is_empty() && verdicts.blind.is_empty(), "{keeper}");
        }
        // K3s was stopped for a while.
        assert!(judged(running(&["calico-node"]), seen(hooked())).findings.is_empty());
        // No packet comes to them any more.
        let unhooked = seen(ruleset(Vec::new()));
        assert!(judged(running(&["kubelet"]), unhooked).findings.is_empty());
    }

    #[test]
    fn what_is_not_known_is_not_healthy() {
        let blind = [Code::NetworkPolicyLeftover];
        let hidden = seen(Cni { running: None, ..Cni::default() });
        assert_eq!(judged(hidden, seen(hooked())).blind, blind);
        let denied = Fact::Missing(Gap::Denied);
        assert_eq!(judged(running(&["kubelet"]), denied).blind, blind);
    }
}
