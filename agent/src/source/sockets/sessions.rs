//! BGP sessions over time: a session that is gone leaves no socket behind.

use std::collections::BTreeMap;
use std::net::IpAddr;

use overlaywatch_core::model::{BgpSession, SessionState};
use overlaywatch_core::time::{Mono, SECOND};

use super::BGP;
use super::translate::TcpSocket;

/// A session that nothing was seen of for this long is forgotten.
const FORGET_NS: u64 = 900 * SECOND;
/// A connection that is open for this long is a session: whoever only looks
/// whether the port answers closes it at once, and a daemon does so with one that
/// it has no peer configured for.
const HELD_NS: u64 = 10 * SECOND;
/// Addresses that are remembered, at most: more than a cluster has nodes.
const MOST: usize = 4_096;

/// What is known of each address.
#[derive(Debug, Default)]
pub(super) struct Sessions(BTreeMap<IpAddr, BgpSession>);

impl Sessions {
    /// Whether there is anything to follow.
    pub(super) fn has_any(&self) -> bool {
        !self.0.is_empty()
    }

    /// Takes what was seen just now.
    pub(super) fn take(&mut self, at: Mono, sockets: &[TcpSocket]) {
        let mut seen: BTreeMap<IpAddr, SessionState> = BTreeMap::new();
        let with_bgp =
            |socket: &&TcpSocket| BGP == socket.remote.port() || BGP == socket.local.port();
        for socket in sockets.iter().filter(with_bgp) {
            let state = seen.entry(socket.remote.ip()).or_insert(SessionState::Closed);
            *state = (*state).max(socket.session());
        }
        // What this node has or wants comes before what strangers begin.
        for is_own in [true, false] {
            let new = seen.iter().filter(|(_, state)| is_own == is_own_doing(**state));
            for &peer in new.map(|(peer, _)| peer) {
                if !self.0.contains_key(&peer) && self.has_room(is_own, &seen) {
                    self.0.insert(peer, unseen(peer, at));
                }
            }
        }
        for session in self.0.values_mut() {
            let state = seen.get(&session.peer).copied().unwrap_or(SessionState::Closed);
            if state != session.state {
                (session.state, session.since) = (state, at);
            }
            match state {
                SessionState::Established if at.since(session.since) >= HELD_NS => {
                    session.last_established = Some(at);
                }
                SessionState::SynSent | SessionState::SynReceived => {
                    session.last_attempt = Some(at);
                }
                SessionState::Established | SessionState::Closed => {}
            }
        }
        self.0.retain(|_, session| {
            let last = session.last_established.max(session.last_attempt);
            session.state == SessionState::Established
                || last.is_some_and(|last| at.since(last) < FORGET_NS)
        });
    }

    /// Whether one more can be remembered; for what this node has or wants, the
    /// oldest attempt of a stranger is forgotten where need be.
    fn has_room(&mut self, is_own: bool, seen: &BTreeMap<IpAddr, SessionState>) -> bool {
        if self.0.len() < MOST {
            return true;
        }
        let is_dear = |session: &BgpSession| {
            session.last_established.is_some()
                || is_own_doing(session.state)
                || seen.get(&session.peer).is_some_and(|state| is_own_doing(*state))
        };
        let strangers = self.0.values().filter(|session| is_own && !is_dear(session));
        let oldest = strangers.min_by_key(|session| session.last_attempt).map(|it| it.peer);
        oldest.is_some_and(|peer| self.0.remove(&peer).is_some())
    }

    /// All of them, in order of address.
    pub(super) fn told(&self) -> Vec<BgpSession> {
        self.0.values().copied().collect()
    }
}

/// Whether a connection is in a state that no stranger brings about alone: anybody
/// may begin one, also with an address that is not his.
const fn is_own_doing(state: SessionState) -> bool {
    matches!(state, SessionState::Established | SessionState::SynSent)
}

fn unseen(peer: IpAddr, at: Mono) -> BgpSession {
    let state = SessionState::Closed;
    BgpSession { peer, state, since: at, last_attempt: None, last_established: None }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn socket(local: u16, remote: (u8, u16), state: u8) -> TcpSocket {
        TcpSocket {
            local: SocketAddr::from(([10, 0, 0, 1], local)),
            remote: SocketAddr::from(([10, 0, 0, remote.0], remote.1)),
            state,
        }
    }

    fn at(seconds: u64) -> Mono {
        Mono(seconds * SECOND)
    }

    #[test]
    fn the_furthest_of_two_connections_counts_whoever_opened_it() {
        let mut sessions = Sessions::default();
        let [trying, open] = [socket(40_000, (2, 179), 2), socket(179, (2, 50_000), 1)];
        sessions.take(at(1), &[open, trying, socket(5_000, (9, 5_001), 1)]);
        let told = sessions.told();
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].state, SessionState::Established);
    }

    #[test]
    fn a_lost_session_is_remembered_for_a_while() {
        let mut sessions = Sessions::default();
        sessions.take(at(1), &[socket(179, (2, 50_000), 1)]);
        sessions.take(at(11), &[socket(179, (2, 50_000), 1)]);
        sessions.take(at(15), &[]);
        let lost = sessions.told()[0];
        assert_eq!((lost.state, lost.since), (SessionState::Closed, at(15)));
        assert_eq!((lost.last_established, lost.last_attempt), (Some(at(11)), None));
        sessions.take(at(17), &[socket(40_000, (2, 179), 2)]);
        assert_eq!(sessions.told()[0].last_attempt, Some(at(17)));
        sessions.take(at(916), &[]);
        assert!(sessions.has_any());
        sessions.take(at(917), &[]);
        assert!(!sessions.has_any());
    }

    #[test]
    fn a_connection_that_is_closed_at_once_was_no_session() {
        let mut sessions = Sessions::default();
        for seconds in [1, 3, 9] {
            sessions.take(at(seconds), &[socket(179, (2, 50_000), 1)]);
            let told = sessions.told()[0];
            assert_eq!((told.state, told.last_established), (SessionState::Established, None));
        }
        sessions.take(at(11), &[]);
        assert_eq!(sessions.told(), [], "nothing was lost");
    }

    #[test]
    fn a_flood_of_strangers_hides_no_session() {
        let strangers = |round: u8| -> Vec<TcpSocket> {
            let socket_of = |number: u16| {
                let [high, low] = number.to_be_bytes();
                let remote = SocketAddr::from(([10, round, high, low], 50_000));
                TcpSocket { remote, ..socket(179, (2, 50_000), 12) }
            };
            (0..4_500).map(socket_of).collect()
        };
        let mut sessions = Sessions::default();
        sessions.take(at(1), &strangers(1));
        sessions.take(at(3), &strangers(2));
        assert_eq!(sessions.told().len(), MOST);
        let [open, asked] = [socket(179, (2, 50_000), 1), socket(40_000, (3, 179), 2)];
        sessions.take(at(5), &[strangers(3), vec![open, asked]].concat());
        let told = sessions.told();
        let known = |number: u8| told.iter().any(|it| it.peer == IpAddr::from([10, 0, 0, number]));
        assert!(known(2) && known(3));
        assert_eq!(told.len(), MOST);
    }

    #[test]
    fn memory_is_bounded() {
        let mut sessions = Sessions::default();
        for round in 0..3 {
            let many: Vec<TcpSocket> = (0..2_000_u16)
                .map(|number| {
                    let [high, low] = number.to_be_bytes();
                    let remote = SocketAddr::from(([10, round, high, low], 179));
                    TcpSocket { remote, ..socket(1, (2, 179), 2) }
                })
                .collect();
            sessions.take(at(1), &many);
        }
        assert_eq!(sessions.told().len(), MOST);
    }
}
