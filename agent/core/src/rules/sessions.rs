//! BGP sessions with peers, and what services of this node say of themselves.

use super::{Context, Verdicts};
use crate::catalog::Code;
use crate::finding::{Confidence, Evidence, Finding, Subject, Thing};
use crate::model::{BgpSession, Peer, Service, ServiceHealth, SessionState, Sockets};
use crate::time::{Mono, SECOND};

/// An attempt to open a session this young means that one is wanted.
const ATTEMPT_NS: u64 = 60 * SECOND;
/// A session that was lost this long ago, and that nobody tried to open since,
/// is not wanted any more.
const LOST_NS: u64 = 600 * SECOND;
/// A service must have been unwell for this long, in this many answers.
const AILING_NS: u64 = 10 * SECOND;
const AILING: u32 = 2;

pub(super) fn judge(context: &Context<'_>, verdicts: &mut Verdicts) {
    match context.now.sockets.known() {
        Ok(sockets) => sockets.iter().for_each(|sockets| bgp(context, sockets, verdicts)),
        Err(_) => verdicts.blind(&[Code::BgpSessionDown]),
    }
    match context.now.services.known() {
        Ok(services) => {
            let services = services.iter().flat_map(|services| services.iter());
            services.for_each(|health| service(context.at(), health, verdicts));
        }
        Err(_) => verdicts.blind(&[Code::FelixNotReady, Code::ServiceUnhealthy]),
    }
}

fn bgp(context: &Context<'_>, sockets: &Sockets, verdicts: &mut Verdicts) {
    let at = context.at();
    let peers = &context.now.peers;
    // Routers that are no nodes have sessions, too: they are others' matter.
    let with_peers: Vec<(&Peer, &BgpSession)> = sockets
        .sessions
        .iter()
        .filter_map(|session| {
            let position = peers.binary_search_by_key(&session.peer, |peer| peer.id.0).ok()?;
            Some((peers.get(position)?, session))
        })
        .filter(|(peer, _)| !peer.has_departed())
        .collect();
    let count = |is: &dyn Fn(&BgpSession) -> bool| {
        with_peers.iter().filter(|(_, session)| is(session)).count()
    };
    let established = count(&|session| session.state == SessionState::Established);
    if !sockets.bgp_listens && established == 0 {
        return;
    }
    let lost = count(&|session| is_lost(at, session) && !is_tried(at, session));
    // A mesh that gives way to route reflectors loses most of its sessions for
    // good, and tries none of them again.
    let loss_is_odd = lost < established;
    let down: Vec<_> = with_peers
        .iter()
        .filter(|(_, session)| {
            session.state != SessionState::Established
                && (is_tried(at, session) || (loss_is_odd && is_lost(at, session)))
        })
        .collect();
    let of = established.saturating_add(down.len());
    let few = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    for (peer, session) in down {
        verdicts.add(Finding {
            code: Code::BgpSessionDown,
            subject: Subject::Pair { peer: peer.id, encapsulation: None },
            direction: None,
            hop: None,
            evidence: vec![
                Evidence::BgpSessions { established: few(established), of: few(of) },
                Evidence::BgpSession {
                    peer: session.peer,
                    state: session.state,
                    seconds: at.since(session.since) / SECOND,
                },
            ],
            confidence: Confidence::Certain,
        });
    }
}

/// Whether one side keeps trying to open it.
fn is_tried(at: Mono, session: &BgpSession) -> bool {
    session.last_attempt.is_some_and(|last| at.since(last) <= ATTEMPT_NS)
}

/// Whether it was there a while ago and is not now.
fn is_lost(at: Mono, session: &BgpSession) -> bool {
    session.state != SessionState::Established
        && session.last_established.is_some_and(|last| at.since(last) <= LOST_NS)
}

fn service(at: Mono, health: &ServiceHealth, verdicts: &mut Verdicts) {
    let Some(since) = health.ailing_since else { return };
    if health.ailing < AILING || at.since(since) < AILING_NS {
        return;
    }
    let (port, path) = health.service.place();
    let code = match health.service {
        Service::Felix => Code::FelixNotReady,
        Service::Cilium | Service::Kubelet => Code::ServiceUnhealthy,
    };
    verdicts.add(Finding {
        code,
        subject: Subject::Thing { what: Thing::Service, name: health.service.slug().to_owned() },
        direction: None,
        hop: None,
        evidence: vec![Evidence::HealthAnswer {
            url: format!("http://127.0.0.1:{port}{path}"),
            status: health.answer,
            seconds: at.since(since) / SECOND,
        }],
        confidence: Confidence::Certain,
    });
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::sync::Arc;

    use super::*;
    use crate::delta::Delta;
    use crate::fact::{Fact, Gap};
    use crate::model::{Origin, PeerId};
    use crate::snapshot::Snapshot;

    const NOW: Mono = Mono(1_000 * SECOND);

    fn address(number: u8) -> IpAddr {
        Ipv4Addr::new(10, 0, 0, number).into()
    }

    fn peer(number: u8) -> Peer {
        Peer {
            id: PeerId(address(number)),
            name: None,
            origin: Origin::File,
            tunnels: Vec::new(),
            pod_networks: Vec::new(),
            other_addresses: Vec::new(),
            departed_since: None,
        }
    }

    fn session(number: u8, state: SessionState) -> BgpSession {
        let since = NOW.minus(30 * SECOND);
        let seen = |wanted| (state == wanted).then_some(NOW);
        BgpSession {
            peer: address(number),
            state,
            since,
            last_attempt: seen(SessionState::SynSent),
            last_established: seen(SessionState::Established),
        }
    }

    fn lost(number: u8) -> BgpSession {
        let last_established = Some(NOW.minus(30 * SECOND));
        BgpSession { last_established, ..session(number, SessionState::Closed) }
    }

    fn observed(sessions: Vec<BgpSession>) -> Snapshot {
        let mut snapshot = Snapshot::default();
        snapshot.now.mono = NOW;
        snapshot.peers = Arc::new((2..=8).map(peer).collect());
        let sockets = Sockets { bgp_listens: true, sessions };
        snapshot.sockets = Fact::Seen { value: Arc::new(sockets), at: NOW };
        snapshot.services = Fact::Seen { value: Arc::default(), at: NOW };
        snapshot
    }

    fn judged(now: &Snapshot) -> Verdicts {
        let mut verdicts = Verdicts::default();
        judge(&Context { delta: Delta { before: None, now }, now, digest: None }, &mut verdicts);
        verdicts
    }

    fn named(sessions: Vec<BgpSession>) -> Vec<IpAddr> {
        let found = judged(&observed(sessions)).findings;
        found.iter().filter_map(|finding| Some(finding.subject.peer()?.0)).collect()
    }

    fn established(numbers: std::ops::RangeInclusive<u8>) -> Vec<BgpSession> {
        numbers.map(|number| session(number, SessionState::Established)).collect()
    }

    #[test]
    fn seven_of_seven_are_all() {
        assert_eq!(named(established(2..=8)), [0; 0].map(address));
    }

    #[test]
    fn the_peer_that_is_missing_is_named() {
        for missing in [session(8, SessionState::SynSent), lost(8)] {
            let sessions = [established(2..=7), vec![missing]].concat();
            assert_eq!(named(sessions.clone()), [address(8)], "{missing:?}");
            let found = judged(&observed(sessions)).findings;
            let text: Vec<_> = found[0].evidence.iter().map(ToString::to_string).collect();
            assert_eq!(text[0], "6 of 7 BGP sessions established");
            assert!(text[1].starts_with("none with 10.0.0.8"), "{}", text[1]);
        }
    }

    #[test]
    fn nodes_that_never_spoke_owe_each_other_nothing() {
        assert_eq!(named(established(2..=3)), [0; 0].map(address), "route reflectors");
    }

    #[test]
    fn a_mesh_that_is_given_up_is_not_missed() {
        let sessions = [established(2..=3), (4..=8).map(lost).collect()].concat();
        assert_eq!(named(sessions), [0; 0].map(address));
    }

    #[test]
    fn what_was_lost_long_ago_is_not_missed() {
        let mut old = lost(8);
        old.last_established = Some(NOW.minus(700 * SECOND));
        assert_eq!(named([established(2..=7), vec![old]].concat()), [0; 0].map(address));
    }

    #[test]
    fn routers_that_are_no_nodes_are_others_matter() {
        let sessions = [established(2..=8), vec![session(99, SessionState::SynSent)]].concat();
        assert_eq!(named(sessions), [0; 0].map(address));
    }

    #[test]
    fn without_a_daemon_there_are_no_sessions_to_miss() {
        let mut snapshot = observed(vec![session(8, SessionState::SynSent)]);
        let sockets =
            Sockets { bgp_listens: false, ..(**snapshot.sockets.seen().unwrap()).clone() };
        snapshot.sockets = Fact::Seen { value: Arc::new(sockets), at: NOW };
        assert!(judged(&snapshot).findings.is_empty());
    }

    #[test]
    fn a_service_is_believed_when_it_complains_for_a_while() {
        let said = |service, ailing, seconds| {
            let mut snapshot = observed(Vec::new());
            let health = ServiceHealth {
                service,
                answer: Some(503),
                ailing_since: (ailing > 0).then(|| NOW.minus(seconds * SECOND)),
                ailing,
            };
            snapshot.services = Fact::Seen { value: Arc::new(vec![health]), at: NOW };
            judged(&snapshot).findings.into_iter().map(|finding| finding.code).collect::<Vec<_>>()
        };
        assert_eq!(said(Service::Felix, 3, 15), [Code::FelixNotReady]);
        assert_eq!(said(Service::Kubelet, 3, 15), [Code::ServiceUnhealthy]);
        assert_eq!(said(Service::Felix, 1, 15), [], "one bad answer");
        assert_eq!(said(Service::Felix, 3, 5), [], "just now");
        assert_eq!(said(Service::Felix, 0, 0), [], "well");
    }

    #[test]
    fn what_is_not_seen_is_not_healthy() {
        let mut snapshot = observed(Vec::new());
        snapshot.sockets = Fact::Missing(Gap::Denied);
        snapshot.services = Fact::Missing(Gap::Disabled);
        let blind = judged(&snapshot).blind;
        assert_eq!(blind, [Code::BgpSessionDown, Code::FelixNotReady, Code::ServiceUnhealthy]);
    }
}
